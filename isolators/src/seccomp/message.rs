//! What is said to the process that takes a filter's notifications: runtime-spec config-linux.md, "The container process
//! state".

use std::path::Path;

use cofferdam_plan::{ContainerId, Refusal, Text};
use oci_spec::runtime::Spec;
use serde_json::Value;

/// The name of the descriptor, as the specification gives it.
const DESCRIPTOR: &str = "seccompFd";

/// Whose process it is.
#[derive(Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a ContainerId,
    pub(crate) bundle: &'a Path,
    /// The container's status at that moment.
    pub(crate) status: &'static str,
    /// The container's first process; `None` where it is the process in question.
    pub(crate) init_pid: Option<i32>,
}

impl Identity<'_> {
    /// The message in parts. The process's pid, known only to the clone, goes between them.
    pub(crate) fn message(&self, spec: &Spec, metadata: &str) -> Result<Vec<Text>, Refusal> {
        let version = quoted(spec.version().as_str());
        let mut parts = vec![format!("{{\"ociVersion\":{version},\"fds\":[\"{DESCRIPTOR}\"],\"pid\":")];
        let state = format!(
            ",\"metadata\":{},\"state\":{{\"ociVersion\":{version},\"id\":{},\"status\":\"{}\",\"pid\":",
            quoted(metadata),
            quoted(self.id.as_str()),
            self.status,
        );
        let annotations = spec.annotations().as_ref().filter(|annotations| !annotations.is_empty());
        // Sorted, so that the same container gives the same plan.
        let annotations = annotations.map(|annotations| {
            let sorted = annotations.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
            format!(",\"annotations\":{}", Value::Object(sorted.collect()))
        });
        let rest = format!(
            ",\"bundle\":{}{}}}}}",
            quoted(self.bundle.to_string_lossy().as_ref()),
            annotations.unwrap_or_default(),
        );
        match self.init_pid {
            None => parts.extend([state, rest]),
            Some(pid) => parts.push(format!("{state}{pid}{rest}")),
        }
        parts.into_iter().map(|part| Text::new(part, "/linux/seccomp/listenerMetadata")).collect()
    }
}

fn quoted(text: &str) -> Value {
    Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_message_is_what_the_specification_shows() {
        let id = ContainerId::parse("c1").unwrap();
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0", "annotations": { "b": "\"quoted\"", "a": "1" }
        }))
        .unwrap();
        for (init_pid, state_pid) in [(None, 4422), (Some(7), 7)] {
            let identity = Identity { id: &id, bundle: Path::new("/b/\u{e9}"), status: "created", init_pid };
            let parts = identity.message(&spec, "meta\0data").unwrap();
            assert!(parts.len() <= cofferdam_plan::op::Handover::PARTS);
            let text =
                parts.iter().map(|part| part.as_c_str().to_str().unwrap()).collect::<Vec<_>>().join("4422");
            let message: Value = serde_json::from_str(&text).unwrap();
            let state = json!({
                "ociVersion": "1.2.0", "id": "c1", "status": "created", "pid": state_pid, "bundle": "/b/\u{e9}",
                "annotations": { "a": "1", "b": "\"quoted\"" }
            });
            let expected = json!({
                "ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": 4422, "metadata": "meta\0data", "state": state
            });
            assert_eq!(message, expected);
        }
    }
}
