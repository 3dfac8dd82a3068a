//! systemd itself, as a user's manager over a cgroup of the test's own. It needs no bus: it is spoken to by its own socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_tests::needs;

const PROGRAM: &str = "/lib/systemd/systemd";

/// A running manager; it ends with the value, and its cgroups go.
pub(crate) struct Manager {
    child: Child,
    folder: PathBuf,
    socket: PathBuf,
    cgroup: String,
}

impl Manager {
    /// Starts one, with its sockets and units below `files`; `None` where there is none to start.
    pub(crate) fn start(files: &Path) -> Option<Self> {
        if !needs::met(Path::new(PROGRAM).exists(), "needs systemd") || !needs::programs(&["systemctl"]) {
            return None;
        }
        let folder = files.join("manager");
        let units = folder.join("units");
        fs::create_dir_all(&units).unwrap();
        // Everything else that it would start is none of a test's business.
        fs::write(units.join("default.target"), "[Unit]\nDescription=nothing\n").unwrap();
        // It asks for this to know that it runs on a machine of its kind. The mount is the test's own.
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, None::<&str>).unwrap();
        fs::create_dir_all("/run/systemd/system").unwrap();
        let cgroup = format!("/cofferdam-suite-{}-manager", std::process::id());
        let mut enter = String::new();
        for root in hierarchies() {
            let own = root.join(&cgroup[1..]);
            // Delegated with all controllers, as a user's manager has it: it looks once, when it starts.
            let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_whitespace() {
                let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            fs::create_dir_all(&own).unwrap();
            enter += &format!("echo $$ >{}/cgroup.procs; ", own.display());
        }
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{enter} exec {PROGRAM} --user --log-target=null"))
            .env("XDG_RUNTIME_DIR", &folder)
            .env("HOME", &folder)
            // Scopes are files too, which a reload reads.
            .env("SYSTEMD_UNIT_PATH", format!("{0}/systemd/transient:{1}", folder.display(), units.display()))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let manager = Self { child, socket: folder.join("systemd/private"), folder, cgroup };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !manager.systemctl(&["is-active", "default.target"]).starts_with("active") {
            assert!(Instant::now() < deadline, "systemd did not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(manager)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The cgroup that it manages.
    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A property of a unit, as systemctl says it: a second opinion.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, unit]).trim().to_owned()
    }

    pub(crate) fn reload(&self) {
        self.systemctl(&["daemon-reload"]);
    }

    fn systemctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("systemctl")
            .arg("--user")
            .args(arguments)
            .env("XDG_RUNTIME_DIR", &self.folder)
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for root in hierarchies().into_iter().chain(children("/sys/fs/cgroup")) {
            remove(&root.join(&self.cgroup[1..]));
        }
    }
}

/// Those by which systemd finds its own place.
fn hierarchies() -> Vec<PathBuf> {
    let first = Path::new("/sys/fs/cgroup");
    if first.join("cgroup.controllers").exists() {
        vec![first.to_owned()]
    } else {
        ["systemd", "unified"].map(|name| first.join(name)).into_iter().filter(|path| path.exists()).collect()
    }
}

fn children(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes a cgroup with everything below it, and ends who is left there.
pub(crate) fn remove(cgroup: &Path) {
    if !cgroup.exists() {
        return;
    }
    children(cgroup).iter().for_each(|child| remove(child));
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let deadline = Instant::now() + Duration::from_secs(5);
    while fs::remove_dir(cgroup).is_err() && cgroup.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}
