//! Stacked layers for real: every way in which a kernel takes them, and what a container sees of owners and devices.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cofferdam_linux::cgroup::Layout;
use cofferdam_plan::{HostFeatures, OverlayApi};
use cofferdam_runtime::{ContainerId, Create, Layer, Options, Rootfs, Runtime, Spec, foreground};
use serde_json::{Value, json};

/// Layers, a writable folder and a bundle, below a path of a chosen length.
struct Place {
    _directory: tempfile::TempDir,
    base: PathBuf,
    host: HostFeatures,
}

impl Place {
    fn make(length: usize) -> Place {
        // Not in /tmp, which may be in memory.
        let directory = tempfile::Builder::new().prefix("cofferdam-stack-").tempdir_in("/var/tmp").unwrap();
        let mut base = directory.path().to_owned();
        while base.as_os_str().len() + 201 < length {
            base.push("p".repeat(200));
        }
        for folder in ["top", "base", "bundle/rootfs"] {
            std::fs::create_dir_all(base.join(folder)).unwrap();
        }
        let program = base.join("base/guest");
        std::fs::write(&program, cofferdam_guest::PROGRAM).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(base.join("base/text"), "base").unwrap();
        std::fs::write(base.join("top/text"), "top").unwrap();
        for folder in ["proc", "dev", "sys"] {
            std::fs::create_dir(base.join("base").join(folder)).unwrap();
        }
        let host = cofferdam_apply::probe::host(&Layout::probe().unwrap());
        Place { _directory: directory, base, host }
    }

    /// A container of its own writable folder over the shared layers.
    fn create(&self, name: &str, arguments: &[&str], change: impl Fn(&mut Value)) -> Create {
        for folder in ["upper", "work"] {
            std::fs::create_dir_all(self.base.join(name).join(folder)).unwrap();
        }
        let mut config: Value = serde_json::from_str(cofferdam_runtime::example::CONFIG).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!([&["/guest"], arguments].concat());
        config["root"]["readonly"] = json!(false);
        config["linux"]["cgroupsPath"] = json!(format!("/cofferdam-stack-{}-{name}", std::process::id()));
        change(&mut config);
        let spec: Spec = serde_json::from_value(config).unwrap();
        let id = ContainerId::parse(name).unwrap();
        let mut create = Create::new(id, self.base.join("bundle"), spec);
        create.rootfs = Rootfs::Overlay {
            lower: ["top", "base"].map(|layer| Layer::Directory(self.base.join(layer))).into(),
            upper: self.base.join(name).join("upper"),
            work: self.base.join(name).join("work"),
            onto: self.base.join("bundle/rootfs"),
            disk: None,
        };
        create.start = true;
        create
    }

    fn runtime(&self, overlay: OverlayApi) -> Runtime {
        let host = HostFeatures { overlay, ..self.host.clone() };
        let state = self._directory.path().join("state");
        Runtime::with_host(&state, Options::default(), host, Layout::probe().unwrap()).unwrap()
    }
}

fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

fn run(runtime: &Runtime, create: Create) -> i32 {
    let id = create.id.clone();
    let created = runtime.create(create).unwrap();
    let ended = foreground::reap(created.pidfd.as_fd()).unwrap();
    runtime.delete(&id, true).unwrap();
    match ended {
        foreground::Ended::Exited(status) => status,
        foreground::Ended::Signalled(signal) => 128 + signal,
    }
}

/// Runs until it is looked at, then ends.
fn look<T>(runtime: &Runtime, create: Create, look: impl FnOnce(&Path) -> T) -> T {
    let id = create.id.clone();
    let created = runtime.create(create).unwrap();
    let seen = look(Path::new(&format!("/proc/{}/root", created.pid)));
    runtime.kill(&id, 9, false).unwrap();
    foreground::reap(created.pidfd.as_fd()).unwrap();
    runtime.delete(&id, true).unwrap();
    seen
}

/// The forms that this kernel takes; a newer one takes all older ones.
fn forms(host: &HostFeatures) -> Vec<OverlayApi> {
    let all = [OverlayApi::OptionString, OverlayApi::Names, OverlayApi::Descriptors];
    let known = all.iter().position(|form| *form == host.overlay).unwrap();
    if known < 2 {
        println!("skipped: layers {:?}, which this kernel does not know", &all[known + 1..]);
    }
    all[..=known].to_vec()
}

#[test]
fn a69_layers_are_stacked_in_every_form_below_any_path_and_the_host_sees_no_mount() {
    if !privileged() {
        return;
    }
    for length in [0, 3000] {
        let place = Place::make(length);
        assert!(place.base.as_os_str().len() + 201 >= length);
        for (index, form) in forms(&place.host).into_iter().enumerate() {
            let runtime = place.runtime(form);
            let name = format!("form{length}-{index}");
            let create = place.create(&name, &["write", "/new", "words"], |_| {});
            assert_eq!(run(&runtime, create), 0, "{form:?} {length}");
            let written = std::fs::read_to_string(place.base.join(&name).join("upper/new")).unwrap();
            assert_eq!(written, "words\n", "{form:?} {length}");
            let create = place.create(&format!("{name}-look"), &["sleep", "100"], |_| {});
            look(&runtime, create, |root| {
                assert_eq!(std::fs::read_to_string(root.join("text")).unwrap(), "top");
                let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
                let ours = place._directory.path().to_str().unwrap();
                assert!(!mounts.contains(ours), "{form:?}: {mounts}");
            });
        }
    }
}

#[test]
fn a40_device_nodes_of_layers_have_no_power() {
    if !privileged() {
        return;
    }
    let place = Place::make(0);
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, place.base.join("base/null"), kind, mode, device).unwrap();
    for (index, form) in forms(&place.host).into_iter().enumerate() {
        let runtime = place.runtime(form);
        let of_image = place.create(&format!("node{index}"), &["cat", "/null"], |_| {});
        assert_ne!(run(&runtime, of_image), 0, "{form:?}: a node of a layer was opened");
        let own = place.create(&format!("own{index}"), &["cat", "/dev/null"], |_| {});
        assert_eq!(run(&runtime, own), 0, "{form:?}: its own /dev works");
    }
    let mut create = place.create("whole", &["cat", "/null"], |_| {});
    create.rootfs = Rootfs::Directory(place.base.join("base"));
    assert_ne!(run(&place.runtime(place.host.overlay), create), 0, "a node of a copy was opened");
}

/// A user namespace of its own whose root is `first`.
fn mapped(config: &mut Value, first: u32) {
    let map = json!([{ "containerID": 0, "hostID": first, "size": 65_536 }]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
}

#[test]
fn a75_two_containers_with_different_maps_share_one_copy_of_the_layers() {
    if !privileged() {
        return;
    }
    let place = Place::make(0);
    if place.host.overlay != OverlayApi::Descriptors {
        println!("skipped: idmapped layers need overlay by descriptor (Linux 6.13)");
        return;
    }
    std::os::unix::fs::chown(place.base.join("base/text"), Some(7), Some(8)).unwrap();
    std::fs::remove_file(place.base.join("top/text")).unwrap();
    std::fs::write(place.base.join("base/rooted"), "root's").unwrap();
    let runtime = place.runtime(place.host.overlay);
    for first in [100_000, 300_000] {
        let name = format!("map{first}");
        let create = place.create(&name, &["sleep", "100"], |config| mapped(config, first));
        look(&runtime, create, |root| {
            let owner = |file: &str| {
                let metadata = std::fs::metadata(root.join(file)).unwrap();
                (metadata.uid() - first, metadata.gid() - first)
            };
            assert_eq!((owner("guest"), owner("text"), owner("")), ((0, 0), (7, 8), (0, 0)), "{first}");
        });
        // Its root may change what is root's, and what it writes is root's on the disk.
        let create = place.create(&format!("{name}-write"), &["write", "/rooted", "x"], |config| {
            mapped(config, first);
        });
        assert_eq!(run(&runtime, create), 0, "{first}");
        let copied = std::fs::metadata(place.base.join(format!("{name}-write/upper/rooted"))).unwrap();
        assert_eq!((copied.uid(), copied.gid()), (0, 0), "{first}");
    }
    let untouched = std::fs::metadata(place.base.join("base/text")).unwrap();
    assert_eq!((untouched.uid(), untouched.gid(), untouched.len()), (7, 8, 4));
}
