//! The plugin side as a program: the examples, executed as a runtime would.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod dispatch;
mod example;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use cofferdam_linux::namespace::{create_pinned_netns, remove_pinned_netns};
use serde_json::Value;

/// Where an example is; built first, for whoever runs this suite alone.
fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(cargo) = std::env::var_os("CARGO") {
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--package", "cofferdam-cni", "--examples"])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(built.unwrap().success(), "the examples do not build");
        }
    });
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples").join(name)
}

/// What a program said.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    /// The one JSON object that must be all of standard output.
    fn object(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A call with every variable that any verb needs; an empty value takes one away.
fn call(program: &str, verb: &str, changes: &[(&str, &str)], stdin: &[u8]) -> Said {
    let mut command = Command::new(example(program));
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let usual = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "one"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_PATH", "/nowhere"),
        ("PATH", "/usr/sbin:/usr/bin"),
    ];
    for (name, value) in usual.iter().chain(changes) {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    let mut child = command.spawn().unwrap();
    // Whoever refuses the environment need not read.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A namespace that is there for a test.
struct Netns {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Netns {
    /// None, said so, without root.
    fn make() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        create_pinned_netns(&path).unwrap();
        Some(Self { _folder: folder, path })
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = remove_pinned_netns(&self.path);
    }
}
