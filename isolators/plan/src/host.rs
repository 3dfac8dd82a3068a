//! What a plan needs to know of the host: a value, probed by `cofferdam-apply`, or written by hand in tests.

/// One cgroup v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Hierarchy {
    /// Controllers mounted together, such as `cpu` and `cpuacct`; `name=systemd` for a named one.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: String,
    /// Our own cgroup in it, as `/proc/self/cgroup` says.
    pub own_path: String,
    /// Whether cgroups may be made beside or below our own.
    pub delegated: bool,
}

/// Which cgroup world the host lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupLayout {
    /// One cgroup2 hierarchy with these controllers.
    V2 {
        /// Where it is mounted.
        mount_point: String,
        /// `cgroup.controllers` of the root.
        controllers: Vec<String>,
        /// Our own cgroup.
        own_path: String,
        /// Whether cgroups may be made beside our own.
        delegated: bool,
    },
    /// Version 1 hierarchies, and perhaps a cgroup2 one beside them (hybrid).
    V1 {
        /// The version 1 hierarchies.
        hierarchies: Vec<V1Hierarchy>,
        /// The cgroup2 hierarchy beside them; its `controllers` are not read.
        unified: Option<V1Hierarchy>,
    },
    /// None that we can see.
    None,
}

impl CgroupLayout {
    /// Whether the host is a pure v2 one.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Whether the version 2 hierarchy is among them.
    pub fn has_v2(&self) -> bool {
        matches!(self, Self::V2 { .. } | Self::V1 { unified: Some(_), .. })
    }

    /// Whether a hierarchy is mounted there.
    pub fn mounts(&self, point: &str) -> bool {
        match self {
            Self::V2 { mount_point, .. } => mount_point == point,
            Self::V1 { hierarchies, unified } => {
                hierarchies.iter().chain(unified).any(|hierarchy| hierarchy.mount_point == point)
            }
            Self::None => false,
        }
    }

    /// What is left of it for a caller who may use only what was delegated to him.
    pub fn delegated(&self) -> Self {
        match self {
            Self::V2 { delegated: true, .. } => self.clone(),
            Self::V1 { hierarchies, unified } => {
                let delegated = |hierarchy: &&V1Hierarchy| hierarchy.delegated;
                let hierarchies: Vec<_> = hierarchies.iter().filter(delegated).cloned().collect();
                let unified = unified.clone().filter(|unified| unified.delegated);
                if hierarchies.is_empty() && unified.is_none() {
                    return Self::None;
                }
                Self::V1 { hierarchies, unified }
            }
            Self::V2 { delegated: false, .. } | Self::None => Self::None,
        }
    }
}

/// What the caller may do to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// CAP_SYS_ADMIN in the initial user namespace: root.
    Host,
    /// CAP_SYS_ADMIN in a user namespace below it and over its own mounts: root of somebody's making.
    Namespace,
    /// Neither: an ordinary user, who must make a user namespace before anything else.
    User,
}

/// How the overlay file system takes its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayApi {
    /// By descriptor, one fsconfig(2) call a layer (Linux 6.13 and later). Layers may be mounts that are attached nowhere.
    Descriptors,
    /// By name, one fsconfig(2) call a layer (Linux 6.7 and later).
    Names,
    /// As one option string of mount(2).
    OptionString,
}

/// The service manager that makes cgroups where it is asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Systemd {
    /// The cgroup that it manages: empty for the machine's own, somewhere below for a user's.
    pub control_group: String,
    /// Whether it is a user's.
    pub user: bool,
    /// Its version, such as 252.
    pub version: u32,
    /// The drivers of this host, by which it names devices.
    pub device_groups: Vec<DeviceGroup>,
}

/// One line of `/proc/devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceGroup {
    /// Block or character devices.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// The driver's name.
    pub name: String,
}

impl Systemd {
    /// A machine's manager, for tests and golden plans.
    pub fn sample() -> Self {
        let group = |(block, major, name): (bool, u32, &str)| DeviceGroup { block, major, name: name.into() };
        let groups = [(false, 1, "mem"), (false, 10, "misc"), (false, 136, "pts"), (true, 8, "sd")];
        Self {
            control_group: String::new(),
            user: false,
            version: 252,
            device_groups: groups.map(group).into(),
        }
    }
}

/// What the host can do and what the caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFeatures {
    /// Kernel version.
    pub kernel: (u32, u32),
    /// The cgroup world.
    pub cgroups: CgroupLayout,
    /// The service manager, where it was asked for.
    pub systemd: Option<Systemd>,
    /// How to stack layers.
    pub overlay: OverlayApi,
    /// Capabilities that may be granted: the caller's bounding set, as a bit mask.
    pub capabilities: u64,
    /// What the caller may do to the host.
    pub standing: Standing,
    /// Whether a container whose configuration names no cgroup has one only where the host has delegated some: so for
    /// everybody but root, unless the caller says otherwise.
    pub spares_cgroups: bool,
    /// The caller's effective user id.
    pub uid: u32,
    /// The caller's effective group id.
    pub gid: u32,
    /// The caller's `oom_score_adj`; lower values need CAP_SYS_RESOURCE.
    pub oom_score_adj: i32,
    /// The caller's hard resource limits by `RLIMIT_*` number.
    pub hard_limits: [u64; 16],
    /// Online processors as the kernel lists them, such as `0-3`.
    pub online_cpus: String,
    /// Online memory nodes as the kernel lists them.
    pub online_nodes: String,
    /// Where resctrl is mounted, where it was asked for.
    pub resctrl: Option<String>,
    /// Whether AppArmor is enabled.
    pub apparmor: bool,
    /// Whether SELinux is enabled.
    pub selinux: bool,
}

impl HostFeatures {
    /// A modern root host on cgroup v2, for tests and golden plans.
    pub fn sample() -> Self {
        Self {
            kernel: (6, 18),
            cgroups: CgroupLayout::V2 {
                mount_point: "/sys/fs/cgroup".into(),
                controllers: ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"]
                    .map(String::from)
                    .into(),
                own_path: "/".into(),
                delegated: true,
            },
            systemd: None,
            overlay: OverlayApi::Descriptors,
            capabilities: (1 << 41) - 1,
            standing: Standing::Host,
            spares_cgroups: false,
            uid: 0,
            gid: 0,
            oom_score_adj: 0,
            hard_limits: [u64::MAX; 16],
            online_cpus: "0-1".into(),
            online_nodes: "0".into(),
            resctrl: Some("/sys/fs/resctrl".into()),
            apparmor: false,
            selinux: false,
        }
    }

    /// The same host with cgroup v1 hierarchies.
    pub fn sample_v1() -> Self {
        let hierarchies =
            ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "name=systemd"];
        let hierarchy = |controller: &str| V1Hierarchy {
            controllers: vec![controller.to_owned()],
            mount_point: format!("/sys/fs/cgroup/{}", controller.trim_start_matches("name=")),
            own_path: "/".into(),
            delegated: true,
        };
        let unified = Some(V1Hierarchy { controllers: Vec::new(), ..hierarchy("unified") });
        let cgroups = CgroupLayout::V1 { hierarchies: hierarchies.map(hierarchy).into(), unified };
        Self { cgroups, ..Self::sample() }
    }

    /// An ordinary user's view of [`HostFeatures::sample`]: no privilege, no cgroup of his own.
    pub fn sample_user() -> Self {
        let cgroups = match Self::sample().cgroups {
            CgroupLayout::V2 { mount_point, controllers, .. } => {
                CgroupLayout::V2 { mount_point, controllers, own_path: "/user".into(), delegated: false }
            }
            other => other,
        };
        Self {
            cgroups,
            standing: Standing::User,
            spares_cgroups: true,
            uid: 1000,
            gid: 1000,
            ..Self::sample()
        }
    }

    /// Whether the caller holds a capability over the host.
    pub fn holds(&self, capability: u32) -> bool {
        self.standing == Standing::Host && self.capabilities >> capability & 1 == 1
    }
}
