//! The example configuration that `spec` writes, as runc's.

use serde_json::{Value, json};

use crate::error::Error;

/// A `config.json` that runs a shell in `rootfs`.
pub const CONFIG: &str = include_str!("example.json");

/// The same for a user without privileges: in a user namespace where the caller is root, on the host's network, with the
/// host's `/sys`, and without what needs more than that one id.
pub fn rootless() -> Result<String, Error> {
    let broken =
        |error: serde_json::Error| Error::Bundle { path: "config.json".into(), problem: error.to_string() };
    let mut config: Value = serde_json::from_str(CONFIG).map_err(broken)?;
    let linux = &mut config["linux"];
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user" }));
    }
    let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| !mount["destination"].as_str().unwrap_or_default().starts_with("/sys"));
        for mount in mounts.iter_mut() {
            if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
                let names_an_id = |option: &str| option.starts_with("gid=") || option.starts_with("uid=");
                options.retain(|option| !option.as_str().is_some_and(names_an_id));
            }
        }
        // A new sysfs needs a network namespace of one's own.
        let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
        mounts.push(json!({ "destination": "/sys", "type": "none", "source": "/sys", "options": options }));
    }
    serde_json::to_string_pretty(&config).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_for_an_ordinary_user_says_nothing_by_null() {
        let text = rootless().unwrap();
        assert!(!text.contains("null,") && !text.contains("null\n"), "{text}");
        assert!(serde_json::from_str::<oci_spec::runtime::Spec>(&text).is_ok());
    }
}
