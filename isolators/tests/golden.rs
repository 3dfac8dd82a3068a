//! Golden plans: `tests/golden/<case>.json` compiles to `<case>.v1.plan` and `<case>.v2.plan`; what an ordinary user asks
//! for (`rootless…`) to `<case>.user.plan`.
//!
//! A plan is read in review like an strace of what a container costs and touches. `cargo xtask golden --bless` writes the
//! plans anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use cofferdam_isolators::{CgroupManager, Container, Gate, Layer, Rootfs, compile};
use cofferdam_plan::host::Systemd;
use cofferdam_plan::{ContainerId, HostFeatures, HostPath};
use oci_spec::runtime::Spec;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// The plan of one case, or its refusal.
fn plan(spec: &Spec, host: &HostFeatures, overlay: bool) -> String {
    let cgroup_manager =
        if host.systemd.is_some() { CgroupManager::Systemd } else { CgroupManager::Cgroupfs };
    let id = ContainerId::parse("golden").expect("an id");
    let rootfs = if overlay {
        Rootfs::Overlay {
            lower: vec![
                Layer::Erofs("/layers/top/layer.erofs".into()),
                Layer::Directory("/layers/base".into()),
            ],
            upper: "/task/upper".into(),
            work: "/task/work".into(),
            onto: "/task/rootfs".into(),
            disk: None,
        }
    } else {
        Rootfs::Bundle
    };
    let container = Container {
        id: &id,
        bundle: Path::new("/bundle"),
        spec,
        rootfs: &rootfs,
        gate: Gate::Socket(HostPath::new("/run/cofferdam/runtime/golden/start.sock", "").expect("a path")),
        console: match spec.process().as_ref().and_then(|process| process.terminal()) {
            Some(true) => cofferdam_isolators::Console::Sent,
            _ => cofferdam_isolators::Console::None,
        },
        stdio: false,
        preserve_fds: 0,
        no_pivot: false,
        no_new_keyring: false,
        cgroup_manager,
    };
    match compile(&container, host) {
        Ok(plan) => plan.to_string(),
        Err(refusal) => format!("refused: {refusal}\n"),
    }
}

#[test]
fn plans_are_as_they_were_reviewed() {
    let bless = std::env::var_os("COFFERDAM_BLESS").is_some();
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 5, "the golden cases are gone");
    let mut different = Vec::new();
    for case in cases {
        let spec: Spec = serde_json::from_str(&std::fs::read_to_string(&case).unwrap()).unwrap();
        let overlay = case.file_stem().is_some_and(|name| name.to_string_lossy().contains("overlay"));
        let rootless = case.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("rootless"));
        let worlds = if rootless {
            vec![("user", HostFeatures::sample_user())]
        } else {
            vec![("v1", HostFeatures::sample_v1()), ("v2", HostFeatures::sample())]
        };
        for (world, host) in worlds {
            let path = case.with_extension(format!("{world}.plan"));
            let systemd = case.to_string_lossy().contains("systemd").then(Systemd::sample);
            let host = HostFeatures { systemd, ..host };
            let now = plan(&spec, &host, overlay);
            if bless {
                std::fs::write(&path, now).unwrap();
            } else if std::fs::read_to_string(&path).unwrap_or_default() != now {
                different.push(format!("{}:\n{now}", path.display()));
            }
        }
    }
    assert!(
        different.is_empty(),
        "plans changed; read them, then `cargo xtask golden --bless`:\n{}",
        different.join("\n")
    );
}
