//! What nobody knows in a result: fields of other plugins of the chain, which a plugin that answers with a result of its own
//! making passes on.

use serde_json::value::RawValue;

use super::Prefix;
use crate::object::Object;

/// What a result holds by the specification; everything else is a plugin's own.
pub(crate) const RESULT_KEYS: [&str; 7] = ["cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6"];

/// A list of a result.
struct Part {
    key: &'static str,
    /// The keys that tell its entries apart.
    identity: &'static [&'static str],
    /// The keys of an entry that the specification knows, in any version.
    known: &'static [&'static str],
}

const PARTS: [Part; 3] = [
    Part {
        key: "interfaces",
        identity: &["name", "sandbox"],
        known: &["name", "mac", "mtu", "sandbox", "socketPath", "pciID"],
    },
    Part { key: "ips", identity: &["address"], known: &["version", "interface", "address", "gateway"] },
    Part {
        key: "routes",
        identity: &["dst", "gw"],
        known: &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"],
    },
];
const DNS_KEYS: [&str; 6] = ["nameservers", "servers", "domain", "search", "searches", "options"];

/// The printed result with what `previous` holds and nobody knows: of the whole, of the name service, and of the entries
/// that are in both. What cannot be read holds nothing.
pub(crate) fn keep(printed: String, previous: Option<&RawValue>) -> String {
    let before = previous.and_then(|raw| serde_json::from_str::<Option<Object>>(raw.get()).ok().flatten());
    let Some(before) = before else { return printed };
    let Ok(mut after) = serde_json::from_str::<Object>(&printed) else { return printed };
    let mut is_changed = add_missing(&mut after, &before, &RESULT_KEYS);
    for part in &PARTS {
        let (Some(before), Some(mut entries)) = (list(&before, part.key), list(&after, part.key)) else {
            continue;
        };
        let mut is_richer = false;
        for entry in &mut entries {
            let same = before.iter().find(|before| identity(before, part) == identity(entry, part));
            is_richer |= same.is_some_and(|same| add_missing(entry, same, part.known));
        }
        is_changed |= is_richer && after.set(part.key, &entries).is_ok();
    }
    if let (Ok(Some(before)), Ok(Some(mut dns))) = (before.get::<Object>("dns"), after.get::<Object>("dns"))
        && add_missing(&mut dns, &before, &DNS_KEYS)
    {
        is_changed |= after.set("dns", &dns).is_ok();
    }
    if is_changed { after.to_text() } else { printed }
}

fn list(object: &Object, key: &str) -> Option<Vec<Object>> {
    object.get(key).ok().flatten()
}

/// Adds the keys of `before` that are neither known nor there; tells whether there were such.
fn add_missing(after: &mut Object, before: &Object, known: &[&str]) -> bool {
    let mut is_changed = false;
    for key in before.keys().filter(|key| !known.contains(key)) {
        if let (None, Some(value)) = (after.raw(key), before.raw(key)) {
            after.set_raw(key, value.to_owned());
            is_changed = true;
        }
    }
    is_changed
}

/// What tells an entry from others: addresses may be written in more than one way.
fn identity(entry: &Object, part: &Part) -> Vec<String> {
    let text = |key: &&str| entry.get::<String>(key).ok().flatten().unwrap_or_default();
    let canonical = |text: String| text.parse::<Prefix>().map_or(text, |prefix| prefix.to_string());
    part.identity.iter().map(text).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(printed: &str, previous: &str) -> String {
        keep(printed.into(), Some(&RawValue::from_string(previous.into()).unwrap()))
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_on_with_the_entry_they_belong_to() {
        let previous = r#"{"cniVersion":"1.1.0","vendor":{"big":12345678901234567890},
            "interfaces":[{"name":"br0"},{"name":"eth0","mtu":1500,"sandbox":"/n","x":1}],
            "ips":[{"interface":1,"address":"FD00::2/64","gateway":"fd00::1","zone":"a"}],
            "routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","y":2},{"dst":"0.0.0.0/0","z":3}],"dns":{"search":["s"],"w":[4]}}"#;
        let printed = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/n"},{"name":"eth0"}],"ips":[{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}],"dns":{"options":["o"]}}"#;
        assert_eq!(
            kept(printed, previous),
            r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/n","x":1},{"name":"eth0"}],"ips":[{"address":"fd00::2/64","zone":"a"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","y":2}],"dns":{"options":["o"],"w":[4]},"vendor":{"big":12345678901234567890}}"#
        );
    }

    #[test]
    fn what_a_plugin_says_itself_counts_and_what_it_took_away_stays_away() {
        let printed = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}],"vendor":2}"#;
        for previous in [
            r#"{"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"address":"10.0.0.3/24","x":1}],"vendor":1}"#,
            "null",
            "[]",
            r#"{"ips":7,"dns":[],"routes":[1]}"#,
        ] {
            assert_eq!(kept(printed, previous), printed, "{previous}");
        }
    }
}
