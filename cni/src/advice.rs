//! What looks like a mistake in a configuration and is none by the rules: keys that occur twice, and keys in the wrong case.
//!
//! The reference library reads plugin keys in any case and list keys in theirs only, so a file may work with one caller and
//! lose a setting with another.

use crate::object::Object;

/// The keys of a list.
pub(crate) const LIST_KEYS: [&str; 7] =
    ["name", "cniVersion", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins"];
/// The keys that every plugin's configuration may have.
pub(crate) const PLUGIN_KEYS: [&str; 10] = [
    "type",
    "name",
    "cniVersion",
    "capabilities",
    "args",
    "ipMasq",
    "ipam",
    "dns",
    "runtimeConfig",
    "prevResult",
];

/// Adds what there is to say about an object's keys; `place` begins each sentence.
pub(crate) fn about(object: &Object, known: &[&str], place: &str, warnings: &mut Vec<String>) {
    for key in object.repeated() {
        warnings.push(format!("{place}the key {key:?} occurs more than once; the last value counts"));
    }
    for key in object.keys().filter(|key| !known.contains(key)) {
        if let Some(meant) = known.iter().find(|meant| meant.eq_ignore_ascii_case(key)) {
            warnings.push(format!("{place}the key {key:?} means nothing; did you mean {meant:?}?"));
        }
    }
}
