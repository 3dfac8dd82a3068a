//! Attacks from a catalogue, as tables: a hostile root file system, configuration, caller or state folder against the OCI
//! runtime. A test's name begins with the identifier of its row (`fs_01`).
//!
//! The outcome that counts everywhere is the same: a [`Canary`] outside the container is untouched, the host census is
//! as before, and what was refused did not run. A row that cannot bite proves nothing: where it is cheap, the test also
//! shows that the recipe works (the plain case runs, the unconfined process may).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cgroup;
mod console;
mod descriptors;
mod exec;
mod hooks;
mod ids;
mod joining;
mod kernel_files;
mod labels;
mod limits;
mod procfs;
mod races;
mod records;
mod rootfs;
mod seccomp;
mod sharing;
mod state;

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use cofferdam_tests::oci::{Outcome, Runtime};
use cofferdam_tests::world::World;
use serde_json::Value;

/// Printed by a container's program to say that it ran.
pub const RAN: &str = "the program ran";

/// Runs an attack in a world of its own, and checks that the host is as it was.
pub(crate) fn attack(body: impl Fn(&Runtime, &Path)) {
    if !needs::root() || !needs::programs(&["busybox", "ip", "bash"]) {
        return;
    }
    let world = World::enter().unwrap();
    let runtime = Runtime::ours(&world.state());
    // The first container would make it, and it stays.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime.root()).unwrap();
    let watch = world.watch();
    body(&runtime, &world.files());
    watch.end();
}

/// A folder of the host that no attack may change.
pub(crate) struct Canary {
    folder: PathBuf,
    before: Vec<String>,
}

impl Canary {
    /// Makes one with files that attackers like: devices' names, a secret, a folder.
    pub(crate) fn make(below: &Path) -> Canary {
        let folder = below.join("canary");
        std::fs::create_dir(&folder).unwrap();
        for name in ["ptmx", "null", "console", "secret"] {
            std::fs::write(folder.join(name), "host's own\n").unwrap();
            std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        std::fs::create_dir(folder.join("folder")).unwrap();
        let before = entries(&folder);
        Canary { folder, before }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// The folder's path relative to the root of a bundle, climbing far above it.
    pub(crate) fn relative(&self) -> PathBuf {
        Path::new("../../../../../../../../..").join(self.folder.strip_prefix("/").unwrap())
    }

    /// Panics if anything was made, removed, written or given other modes.
    pub(crate) fn assert_intact(&self, case: &str) {
        assert_eq!(entries(&self.folder), self.before, "the canary was touched: {case}");
    }
}

/// Every entry with everything that a change of it would change.
fn entries(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let metadata = entry.path().symlink_metadata().unwrap();
        all.push(format!(
            "{} mode={:o} owner={}:{} inode={} size={} changed={}.{}",
            entry.path().display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.ino(),
            metadata.size(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ));
        if metadata.is_dir() {
            all.extend(entries(&entry.path()));
        }
    }
    all.sort();
    all
}

/// A bundle whose program says that it ran, and then does `script`.
pub(crate) fn bundle(below: &Path, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Bundle {
    let script = format!("echo {RAN}; {script}");
    Bundle::make(&below.join(name), &["sh", "-c", &script], change).unwrap()
}

/// A bundle whose program sleeps.
pub(crate) fn sleeper(below: &Path, name: &str, change: impl FnOnce(&mut Value)) -> Bundle {
    Bundle::make(&below.join(name), &["sleep", "1000"], change).unwrap()
}

/// The configuration of a bundle.
pub(crate) fn configuration(bundle: &Bundle) -> Value {
    serde_json::from_slice(&std::fs::read(bundle.path().join("config.json")).unwrap()).unwrap()
}

/// Changes the configuration of a bundle.
pub(crate) fn reconfigure(bundle: &Bundle, change: impl FnOnce(&mut Value)) {
    let mut config = configuration(bundle);
    change(&mut config);
    bundle.configure(&config).unwrap();
}

/// Adds a mount to a configuration.
pub(crate) fn mount(config: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    let mount = serde_json::json!({
        "destination": destination, "type": kind, "source": source, "options": options
    });
    config["mounts"].as_array_mut().unwrap().push(mount);
}

/// Removes the mounts at a destination and below it.
pub(crate) fn unmount(config: &mut Value, destination: &str) {
    config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with(destination));
}

/// Asserts that a call was refused before the program ran, in words and not by dying.
pub(crate) fn assert_refused(outcome: &Outcome, case: &str) {
    assert!(!outcome.stdout.contains(RAN), "it ran: {case}: {outcome:?}");
    assert!(matches!(outcome.status, Some(status) if status != 0), "{case}: {outcome:?}");
    assert!(!outcome.stderr.is_empty() && !outcome.stderr.contains("panicked"), "{case}: {outcome:?}");
}

/// Asserts that the program ran to its end.
pub(crate) fn assert_ran(outcome: &Outcome, case: &str) {
    assert!(outcome.status == Some(0) && outcome.stdout.contains(RAN), "{case}: {outcome:?}");
}

/// A call of the runtime made by a shell that prepares its descriptors first.
pub(crate) fn after_shell(preparation: &str, call: &Command) -> Command {
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!("{preparation}\nexec \"$0\" \"$@\"")).arg(call.get_program());
    command.args(call.get_args()).stdin(std::process::Stdio::null());
    command
}
