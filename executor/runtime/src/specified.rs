//! Where runtime-spec 1.3 allows what the types of `oci-spec` refuse: the one place that knows (ADR 5). What is corrected
//! here keeps its meaning, or had none.

use std::collections::BTreeSet;

use serde_json::Value;

/// Names of the specification and what `oci-spec` 0.10 calls them. config.md, "scheduler".
const SCHEDULER_FLAGS: &[(&str, &str)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Corrects a configuration, a process or resources; tells whether there was anything to correct, and adds what its author
/// is to be told.
pub(crate) fn correct(document: &mut Value, warnings: &mut Vec<String>) -> bool {
    let before = document.clone();
    leave_out_null(document);
    if let Some(process) = document.get_mut("process") {
        correct_process(process, warnings);
    }
    correct_process(document, warnings);
    for resources in ["/linux/resources", ""] {
        if let Some(resources) = document.pointer_mut(resources) {
            correct_resources(resources);
        }
    }
    *document != before
}

/// What is there as null is not there, for whoever writes configurations in Go and for the peers that read them.
fn leave_out_null(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(leave_out_null);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_null),
        _ => {}
    }
}

fn correct_process(process: &mut Value, warnings: &mut Vec<String>) {
    // The specification does not require a user: who is not named is root, as with the peers.
    if let Some(process) = process.as_object_mut().filter(|process| process.contains_key("cwd")) {
        process.entry("user").or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
    }
    for flag in process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut).into_iter().flatten() {
        let known = SCHEDULER_FLAGS.iter().find(|(name, _)| flag.as_str() == Some(name));
        if let Some((_, renamed)) = known {
            *flag = Value::from(*renamed);
        }
    }
    // An empty list of processors is none: "If omitted or empty", config.md, `execCPUAffinity`.
    if let Some(affinity) = process.pointer_mut("/execCPUAffinity").and_then(Value::as_object_mut) {
        affinity.retain(|_, list| list != "");
    }
    // What no kernel interface is known for is warned of and does not fail, config.md, `capabilities`.
    if let Some(sets) = process.pointer_mut("/capabilities").and_then(Value::as_object_mut) {
        for (kind, set) in sets {
            let Some(set) = set.as_array_mut() else { continue };
            let unknown: Vec<Value> = set.extract_if(.., |name| !is_known(name)).collect();
            if !unknown.is_empty() {
                let names: BTreeSet<&str> = unknown.iter().map(|name| name.as_str().unwrap_or("?")).collect();
                let names: Vec<&str> = names.into_iter().collect();
                // In runc's words, which are looked for.
                warnings.push(format!(
                    "/process/capabilities/{kind}: ignoring unknown or unavailable capabilities: [{}]",
                    names.join(" ")
                ));
            }
        }
    }
}

fn is_known(capability: &Value) -> bool {
    serde_json::from_value::<oci_spec::runtime::Capability>(capability.clone()).is_ok()
}

/// Since 1.3 the limit of processes may be missing: nothing is limited then. config-linux.md, "PIDs".
fn correct_resources(resources: &mut Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    if resources.get("pids").is_some_and(|pids| pids.get("limit").is_none_or(Value::is_null)) {
        resources.remove("pids");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxResources, Process};
    use serde_json::json;

    fn corrected(mut value: Value) -> Value {
        correct(&mut value, &mut Vec::new());
        value
    }

    #[test]
    fn what_the_specification_allows_is_read() {
        let process = json!({
            "cwd": "/", "user": { "uid": 0, "gid": 0 },
            "scheduler": { "policy": "SCHED_DEADLINE", "flags": [
                "SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY",
                "SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX"
            ] },
            "execCPUAffinity": { "initial": "", "final": "0" },
            "capabilities": { "bounding": ["CAP_KILL", "CAP_OF_TOMORROW"] }
        });
        let read: Process = serde_json::from_value(corrected(process.clone())).unwrap();
        assert_eq!(read.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 7);
        assert_eq!(read.exec_cpu_affinity().as_ref().unwrap().initial(), &None);
        let capabilities = read.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
        let inside = corrected(json!({ "ociVersion": "1.3.0", "process": process }));
        assert!(serde_json::from_value::<oci_spec::runtime::Spec>(inside).is_ok());
        let nobody = corrected(json!({ "cwd": "/", "args": ["sh"] }));
        assert_eq!(serde_json::from_value::<Process>(nobody).unwrap().user().uid(), 0);
        let nobody = corrected(json!({
            "ociVersion": "1.3.0", "process": { "cwd": "/", "user": null, "args": ["sh"] }, "annotations": { "a": null },
            "linux": { "devices": [{ "path": "/dev/a", "type": "c", "major": null, "minor": 3 }] }
        }));
        let nobody: oci_spec::runtime::Spec = serde_json::from_value(nobody).unwrap();
        assert_eq!(nobody.process().as_ref().unwrap().user().uid(), 0);
        let resources = corrected(json!({ "pids": {}, "cpu": { "shares": 2 } }));
        assert!(serde_json::from_value::<LinuxResources>(resources).unwrap().cpu().is_some());
    }

    #[test]
    fn an_unknown_capability_is_warned_of() {
        let mut warnings = Vec::new();
        let mut process =
            json!({ "capabilities": { "bounding": ["CAP_KILL", "CAP_OF_TOMORROW", 7, "CAP_OF_TOMORROW"] } });
        assert!(correct(&mut process, &mut warnings));
        let expected = "/process/capabilities/bounding: ignoring unknown or unavailable capabilities: [? CAP_OF_TOMORROW]";
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn what_is_right_or_wrong_by_the_specification_stays() {
        for document in [json!({ "ociVersion": "1.3.0" }), json!({ "process": { "args": 7 } }), json!([1])] {
            assert!(!correct(&mut document.clone(), &mut Vec::new()), "{document}");
        }
    }
}
