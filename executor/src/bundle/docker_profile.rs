//! Seccomp profiles in Docker's JSON: the runtime specification's form, with conditions on each rule.
//!
//! A rule may say for which capabilities and architectures it is meant (`includes`) or not meant (`excludes`); the
//! architectures are in `archMap`. What is decided here is gone from the result; a profile in the specification's own form
//! comes out as it went in.

use cofferdam_isolators::capabilities::{CapSet, Capability};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use crate::request::Refusal;

/// Reads a profile for a task that holds `granted`.
pub(super) fn parse(text: &str, granted: CapSet) -> Result<LinuxSeccomp, Refusal> {
    let refuse = |error: serde_json::Error| Refusal::new("seccomp profile", "given file", error.to_string());
    let mut profile: Value = serde_json::from_str(text).map_err(refuse)?;
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain(|rule| applies(rule, granted));
    }
    if let Some(architectures) = architectures(&profile) {
        profile["architectures"] = json!(architectures);
    }
    serde_json::from_value(profile).map_err(refuse)
}

/// Whether a rule is meant for this machine and this task.
fn applies(rule: &Value, granted: CapSet) -> bool {
    let has =
        |name: &Value| name.as_str().and_then(Capability::parse).is_some_and(|one| granted.contains(one));
    let is_native = |name: &Value| name.as_str() == Some(native());
    let list = |part: &str, key: &str| rule.get(part).and_then(|part| part.get(key)?.as_array().cloned());
    let capabilities = list("includes", "caps").is_none_or(|names| names.iter().all(has));
    let architectures = list("includes", "arches").is_none_or(|names| names.iter().any(is_native));
    let excluded = list("excludes", "caps").is_some_and(|names| names.iter().any(has))
        || list("excludes", "arches").is_some_and(|names| names.iter().any(is_native));
    capabilities && architectures && !excluded
}

/// The machine as Docker's profiles call it.
fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn architectures(profile: &Value) -> Option<Vec<String>> {
    let map = profile.get("archMap")?.as_array()?;
    let wanted = match native() {
        "amd64" => "SCMP_ARCH_X86_64",
        "arm64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "s390x" => "SCMP_ARCH_S390X",
        "ppc64le" => "SCMP_ARCH_PPC64LE",
        _ => return None,
    };
    let entry = map.iter().find(|entry| entry["architecture"] == wanted)?;
    let relatives = entry["subArchitectures"].as_array().cloned().unwrap_or_default();
    let names = relatives.iter().filter_map(Value::as_str).map(str::to_owned);
    Some(std::iter::once(wanted.to_owned()).chain(names).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{ "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] },
                    { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"] }],
        "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["s390_pci_mmio_read"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390"] } }
        ]
    }"#;

    fn names(granted: &[&str]) -> Vec<String> {
        let profile = parse(PROFILE, CapSet::parse(granted.iter().copied()).0).unwrap();
        let rules = profile.syscalls().clone().unwrap();
        rules.iter().flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn rules_are_kept_for_this_machine_and_these_capabilities() {
        assert_eq!(names(&[]), ["read", "clone"]);
        assert_eq!(names(&["SYS_ADMIN"]), ["read", "mount"]);
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let error = parse("{ \"defaultAction\": 5 }", CapSet::EMPTY).unwrap_err().to_string();
        assert!(error.contains("seccomp profile"), "{error}");
    }
}
