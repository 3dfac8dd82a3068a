//! What is supported, for `features`. runtime-spec features.md, features-linux.md.
//!
//! Nothing is claimed here. Words come from the tables that do the work, and a field of the configuration counts as
//! supported when it makes a difference to a plan.

use cofferdam_isolators::capabilities::CapSet;
use cofferdam_isolators::scheduling::{self, Nodes};
use cofferdam_isolators::seccomp::{self, Architecture};
use cofferdam_isolators::{CgroupManager, Container, Gate, Rootfs, compile, mount_options};
use cofferdam_plan::op::HookPoint;
use cofferdam_plan::{ContainerId, HostFeatures, Namespace, Plan};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, Spec,
};
use serde_json::{Value, json};

/// Annotations of a configuration that change what the runtime does on the host; one that ends in a dot is a prefix.
pub const UNSAFE_ANNOTATIONS: &[&str] = &["org.criu.config", "org.systemd.property."];

/// Whether systemd can be asked to make the cgroups, for the system and for a user.
pub const SYSTEMD: (bool, bool) = (true, true);

/// Oldest version of the runtime-spec that is understood.
const OLDEST: &str = "1.0.0";

/// The features as the specification's JSON.
pub fn features() -> Value {
    let host = HostFeatures { apparmor: true, selinux: true, ..HostFeatures::sample() };
    let asked = Asked { base: plan(&base(), &host), host };
    json!({
        "ociVersionMin": OLDEST,
        "ociVersionMax": crate::SPEC_VERSION,
        "hooks": HookPoint::ALL.map(HookPoint::key),
        "mountOptions": mount_options::known_words(),
        "linux": {
            "namespaces": asked.namespaces(),
            "capabilities": CapSet::ALL.iter().map(|capability| capability.to_string()).collect::<Vec<_>>(),
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": SYSTEMD.0,
                "systemdUser": SYSTEMD.1,
                "rdma": asked.matters("/linux/resources/rdma", json!({ "mlx5_1": { "hcaHandles": 1 } })),
            },
            "seccomp": seccomp(),
            "apparmor": { "enabled": asked.matters("/process/apparmorProfile", json!("a-profile")) },
            "selinux": { "enabled": asked.matters("/process/selinuxLabel", json!("a_u:b_r:c_t:s0")) },
            "intelRdt": {
                "enabled": asked.matters("/linux/intelRdt", json!({ "closID": "c", "l3CacheSchema": "L3:0=f" })),
                "schemata": asked.matters("/linux/intelRdt", json!({ "closID": "c", "schemata": ["L3:0=f"] })),
                "monitoring": asked.matters("/linux/intelRdt", json!({ "closID": "c", "enableMonitoring": true })),
            },
            "memoryPolicy": asked.memory_policy(),
            "mountExtensions": { "idmap": { "enabled": asked.mounts_idmapped() } },
            "netDevices": { "enabled": asked.matters("/linux/netDevices", json!({ "eth0": { "name": "e" } })) },
        },
        "annotations": { "org.cofferdam.version": env!("CARGO_PKG_VERSION") },
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    })
}

/// A configuration in which every field may be set.
fn base() -> Value {
    let kinds = ["mount", "pid", "network"];
    json!({
        "ociVersion": crate::SPEC_VERSION,
        "process": { "cwd": "/", "args": ["sh"], "env": [], "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "mounts": [],
        "linux": { "namespaces": kinds.map(|kind| json!({ "type": kind })), "resources": {} },
    })
}

fn plan(config: &Value, host: &HostFeatures) -> Option<Plan> {
    let spec: Spec = serde_json::from_value(config.clone()).ok()?;
    let container = Container {
        id: &ContainerId::parse("features").ok()?,
        bundle: std::path::Path::new("/bundle"),
        spec: &spec,
        rootfs: &Rootfs::Bundle,
        gate: Gate::Open,
        console: cofferdam_isolators::Console::None,
        stdio: false,
        preserve_fds: 0,
        no_pivot: false,
        no_new_keyring: false,
        cgroup_manager: CgroupManager::Cgroupfs,
    };
    compile(&container, host).ok()
}

/// Questions to the compiler.
struct Asked {
    host: HostFeatures,
    base: Option<Plan>,
}

impl Asked {
    /// Whether this value at this pointer is planned, and changes what is done.
    fn matters(&self, pointer: &str, value: Value) -> bool {
        let mut config = base();
        let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        if let Some(parent) = config.pointer_mut(parent) {
            parent[key] = value;
        }
        self.changes(&config)
    }

    fn changes(&self, config: &Value) -> bool {
        let steps = |plan: &Plan| plan.steps.clone();
        let planned = plan(config, &self.host);
        planned.is_some() && planned.as_ref().map(steps) != self.base.as_ref().map(steps)
    }

    fn namespaces(&self) -> Vec<&'static str> {
        let word = |kind: Namespace| match kind {
            Namespace::Network => "network",
            Namespace::Mount => "mount",
            kind => kind.file(),
        };
        let known = |kind: &&'static str| {
            let mut config = base();
            let map = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
            let linux = &mut config["linux"];
            if *kind == "user" {
                (linux["uidMappings"], linux["gidMappings"]) = (map.clone(), map);
            }
            let listed = linux["namespaces"].as_array_mut();
            match listed {
                Some(list) if list.iter().all(|namespace| namespace["type"] != *kind) => {
                    list.push(json!({ "type": kind }));
                    self.changes(&config)
                }
                _ => self.base.is_some(),
            }
        };
        let mut words: Vec<_> = Namespace::ALL.into_iter().map(word).filter(|kind| known(kind)).collect();
        words.sort_unstable();
        words
    }

    fn mounts_idmapped(&self) -> bool {
        let mount = |map: Value| {
            let mount = json!({ "destination": "/m", "type": "bind", "source": "/m", "options": ["bind"] });
            let mut config = base();
            config["mounts"] = json!([mount]);
            if !map.is_null() {
                (config["mounts"][0]["uidMappings"], config["mounts"][0]["gidMappings"]) = (map.clone(), map);
            }
            plan(&config, &self.host).map(|plan| plan.steps)
        };
        let mapped = mount(json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]));
        mapped.is_some() && mapped != mount(Value::Null)
    }

    fn memory_policy(&self) -> Value {
        let matters = |policy: Value| self.matters("/linux/memoryPolicy", policy);
        let mode = |(name, _, _, _, nodes): &scheduling::MemoryMode| {
            let nodes = if *nodes == Nodes::None { "" } else { "0" };
            matters(json!({ "mode": name, "nodes": nodes })).then_some(*name)
        };
        let modes: Vec<_> = scheduling::MEMORY_MODES.iter().filter_map(mode).collect();
        let flags = scheduling::MEMORY_FLAGS.iter().map(|(name, ..)| name);
        let flag = |flag: &&&str| matters(json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] }));
        let flags: Vec<_> = flags.filter(flag).collect();
        json!({ "modes": modes, "flags": flags })
    }
}

/// What the filter compiler takes.
fn seccomp() -> Value {
    let compiles = |extra: Value| {
        let mut profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener" });
        for (key, value) in extra.as_object().into_iter().flatten() {
            profile[key.as_str()] = value.clone();
        }
        serde_json::from_value::<LinuxSeccomp>(profile)
            .is_ok_and(|profile| seccomp::compile(&profile).is_ok())
    };
    let rule = |rule: Value| compiles(json!({ "syscalls": [rule] }));
    let action = |action: &LinuxSeccompAction| rule(json!({ "names": ["getcwd"], "action": action }));
    let operator = |op: &LinuxSeccompOperator| {
        let argument = json!({ "index": 0, "value": 1, "valueTwo": 1, "op": op });
        rule(json!({ "names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "args": [argument] }))
    };
    let flag = |flag: &LinuxSeccompFilterFlag| compiles(json!({ "flags": [flag] }));
    json!({
        "enabled": true,
        "actions": seccomp::known_actions().filter(action).collect::<Vec<_>>(),
        "operators": seccomp::known_operators().filter(operator).collect::<Vec<_>>(),
        "archs": Architecture::ALL.map(Architecture::to_oci),
        "knownFlags": seccomp::known_flags().collect::<Vec<_>>(),
        "supportedFlags": seccomp::known_flags().filter(flag).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_of_the_specification_s_shape_and_name_what_is_there() {
        let features = features();
        serde_json::from_value::<oci_spec::runtime::Features>(features.clone()).unwrap();
        let list = |pointer: &str| features.pointer(pointer).unwrap().as_array().unwrap().clone();
        assert_eq!(list("/hooks").len(), 6);
        assert_eq!(list("/linux/namespaces").len(), 8);
        assert_eq!(list("/linux/capabilities").len(), 41);
        for (pointer, word) in [
            ("/mountOptions", "rro"),
            ("/linux/seccomp/actions", "SCMP_ACT_ERRNO"),
            ("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ"),
            ("/linux/seccomp/archs", "SCMP_ARCH_X86_64"),
            ("/linux/seccomp/supportedFlags", "SECCOMP_FILTER_FLAG_LOG"),
        ] {
            assert!(list(pointer).contains(&json!(word)), "{pointer}: {word}");
        }
        assert_eq!(features["linux"]["cgroup"]["rdma"], true);
        assert!(list("/potentiallyUnsafeConfigAnnotations").contains(&json!("org.systemd.property.")));
    }

    #[test]
    fn a_field_that_changes_nothing_is_not_supported() {
        let host = HostFeatures::sample();
        let asked = Asked { base: plan(&base(), &host), host };
        assert!(asked.base.is_some());
        assert!(asked.matters("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" })));
        assert!(!asked.matters("/linux/nonsense", json!(true)));
    }
}
