//! Images that other programs made: debootstrap, umoci and skopeo, from Debian's packages.
//!
//! ```text
//! debootstrap ──▶ rootfs ──umoci──▶ debian ──unpack, apt-get install nginx-light, repack──▶ nginx (two layers)
//! busybox-static ─────────umoci──▶ busybox                       all ──skopeo──▶ registry storage
//! ```
//! Made once (about a minute) and kept in cargo's target folder. The registry's storage is what is kept: a
//! [`crate::registry::Registry`] serves it in place, read-only.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::needs;
use crate::registry::{Options, Registry, Writes};
use crate::world::succeed;

/// Names the folder that holds the images; set in the virtual machine, which has none of the programs.
pub const FOLDER_VARIABLE: &str = "COFFERDAM_FIXTURES";

/// Rises with every change to how the images are made.
const VERSION: u32 = 1;

const DEBIAN_SUITE: &str = "bookworm";
const SEARCH_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The programs without which the images cannot be made.
const PROGRAMS: &[&str] =
    &["debootstrap", "umoci", "skopeo", "docker-registry", "busybox", "setpriv", "unshare"];

/// What is in the registry, as skopeo pushed it.
const PUSHED: &[Pushed] = &[
    Pushed { image: "busybox", name: "busybox:latest", options: &[] },
    Pushed { image: "busybox", name: "busybox:docker", options: &["--format", "v2s2"] },
    Pushed { image: "busybox", name: "busybox:zstd", options: &["--dest-compress-format", "zstd"] },
    Pushed { image: "debian", name: "debian:latest", options: &[] },
    Pushed { image: "nginx", name: "nginx:latest", options: &["--format", "v2s2"] },
];

struct Pushed {
    image: &'static str,
    name: &'static str,
    options: &'static [&'static str],
}

/// Where the images are.
#[derive(Clone, Debug)]
pub struct Images {
    folder: PathBuf,
}

impl Images {
    /// Whether the images are there or can be made here; if not, says what it takes.
    pub fn are_available() -> bool {
        folder().exists() || (needs::root() && needs::programs(PROGRAMS))
    }

    /// Finds the images, and makes them if there are none. Needs root and [`PROGRAMS`] for that.
    pub fn get() -> Result<Images> {
        let folder = folder();
        let images = Images { folder: folder.clone() };
        if folder.exists() {
            return Ok(images);
        }
        once(&folder, |partial| make(partial).context("making the fixture images"))?;
        Ok(images)
    }

    /// Starts a registry that serves `busybox`, `debian` and `nginx` and takes no pushes.
    pub fn serve(&self) -> Result<Registry> {
        Registry::start(&self.storage(), Options { writes: Writes::Refused, ..Options::default() })
    }

    /// The storage folder of that registry.
    pub fn storage(&self) -> PathBuf {
        self.folder.join("registry")
    }

    /// An OCI image layout that holds the images `busybox`, `debian` and `nginx`.
    pub fn layout(&self) -> PathBuf {
        self.folder.join("layout")
    }
}

fn folder() -> PathBuf {
    match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) => folder.into(),
        None => cache().join(format!("images-{VERSION}")),
    }
}

/// Where what takes long to make is kept.
pub(crate) fn cache() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // target/TRIPLE/PROFILE/deps/EXECUTABLE; cargo marks its folders, and the topmost is the one that lasts.
    let target = own.ancestors().filter(|folder| folder.join("CACHEDIR.TAG").exists()).last();
    target.unwrap_or(Path::new("target")).join("fixtures")
}

/// Makes a folder that many processes want, in one of them: whoever comes second waits for the first.
///
/// It is filled under another name, so that one that is there is whole. What a maker that was killed has left is removed.
fn once(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = folder.parent().context("the images' folder has no parent")?;
    std::fs::create_dir_all(parent)?;
    let lock = File::create(parent.join("lock"))?;
    lock.lock()?;
    if folder.exists() {
        return Ok(());
    }
    let partial = parent.join("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    std::fs::create_dir(&partial)?;
    make(&partial)?;
    std::fs::rename(&partial, folder).context("putting what was made in its place")
}

/// A program that mounts below a folder of ours and runs long: in a mount namespace of its own, where what it leaves
/// mounted cannot stay, and killed with all its children when the calling thread ends before it does.
fn confined(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--", program]);
    command
}

fn make(folder: &Path) -> Result<()> {
    let work = tempfile::Builder::new().prefix("work-").tempdir_in(folder)?;
    let layout = folder.join("layout");
    succeed(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    busybox(&layout, work.path())?;
    debian(&layout, work.path())?;
    nginx(&layout, work.path())?;
    push(&layout, &folder.join("registry"))?;
    work.close().context("removing the working files")
}

/// Debian's static busybox runs applets by itself; the links are for those that look.
fn busybox(layout: &Path, work: &Path) -> Result<()> {
    let rootfs = work.join("busybox");
    for folder in ["bin", "etc", "proc", "sys", "dev", "root", "var", "usr"] {
        std::fs::create_dir_all(rootfs.join(folder))?;
    }
    std::fs::create_dir(rootfs.join("tmp"))?;
    std::fs::set_permissions(rootfs.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
    for applet in succeed(Command::new("/bin/busybox").arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
    }
    std::fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    std::fs::write(rootfs.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    image(layout, "busybox", &rootfs, "/bin/sh")
}

fn debian(layout: &Path, work: &Path) -> Result<()> {
    let rootfs = work.join("debian");
    succeed(confined("debootstrap").args(["--variant=minbase", DEBIAN_SUITE]).arg(&rootfs))?;
    empty(&rootfs.join("var/cache/apt/archives"))?;
    empty(&rootfs.join("var/lib/apt/lists"))?;
    image(layout, "debian", &rootfs, "/bin/bash")
}

/// A second layer over Debian, as a build would make it: packages installed, the difference packed.
fn nginx(layout: &Path, work: &Path) -> Result<()> {
    let bundle = work.join("nginx");
    umoci(layout, "unpack", "debian", |umoci| umoci.arg(&bundle))?;
    let rootfs = bundle.join("rootfs");
    // The difference is what nginx brings: the host's resolver and the package lists are taken out again.
    let resolver = rootfs.join("etc/resolv.conf");
    let kept = std::fs::read(&resolver).ok();
    std::fs::copy("/etc/resolv.conf", &resolver)?;
    let policy = rootfs.join("usr/sbin/policy-rc.d");
    std::fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o755))?;
    chroot(&rootfs, &["apt-get", "update", "-q"])?;
    chroot(&rootfs, &["apt-get", "install", "-q", "-y", "--no-install-recommends", "nginx-light"])?;
    std::fs::remove_file(policy)?;
    std::fs::remove_file(&resolver)?;
    if let Some(content) = kept {
        std::fs::write(&resolver, content)?;
    }
    empty(&rootfs.join("var/cache/apt/archives"))?;
    empty(&rootfs.join("var/lib/apt/lists"))?;
    umoci(layout, "repack", "nginx", |umoci| umoci.arg(&bundle))?;
    umoci(layout, "config", "nginx", |umoci| {
        umoci.args(["--config.cmd", "nginx", "--config.cmd", "-g", "--config.cmd", "daemon off;"]).args([
            "--config.exposedports",
            "80/tcp",
            "--config.stopsignal",
            "SIGQUIT",
        ])
    })
}

fn chroot(rootfs: &Path, command: &[&str]) -> Result<()> {
    let mut chroot = confined("chroot");
    chroot.arg(rootfs).args(command).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    succeed(&mut chroot).map(drop)
}

/// Makes an image of one layer.
fn image(layout: &Path, name: &str, rootfs: &Path, command: &str) -> Result<()> {
    umoci(layout, "new", name, |umoci| umoci)?;
    umoci(layout, "insert", name, |umoci| umoci.arg(rootfs).arg("/"))?;
    umoci(layout, "config", name, |umoci| {
        umoci.args(["--config.cmd", command, "--config.env", SEARCH_PATH, "--config.workingdir", "/"])
    })
}

fn umoci(
    layout: &Path,
    verb: &str,
    name: &str,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<()> {
    let mut umoci = Command::new("umoci");
    umoci.arg(verb).arg("--image").arg(format!("{}:{name}", layout.display()));
    succeed(arguments(&mut umoci)).map(drop)
}

fn push(layout: &Path, storage: &Path) -> Result<()> {
    std::fs::create_dir(storage)?;
    let registry = Registry::start(storage, Options::default())?;
    for pushed in PUSHED {
        succeed(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
                .args(pushed.options)
                .arg(format!("oci:{}:{}", layout.display(), pushed.image))
                .arg(format!("docker://{}/{}", registry.address(), pushed.name)),
        )?;
    }
    Ok(())
}

fn empty(folder: &Path) -> Result<()> {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_folder_that_many_want_is_made_by_one_of_them_while_the_others_wait() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("made");
        // A maker that was killed has left this.
        std::fs::create_dir_all(parent.path().join("partial/half")).unwrap();
        let makers = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    once(&folder, |partial| {
                        makers.fetch_add(1, Ordering::Relaxed);
                        std::fs::write(partial.join("content"), "whole").context("writing")
                    })
                    .unwrap();
                    assert_eq!(std::fs::read(folder.join("content")).unwrap(), b"whole");
                });
            }
        });
        assert_eq!(makers.into_inner(), 1);
        assert!(!parent.path().join("partial").exists() && !folder.join("half").exists());
    }

    #[test]
    fn what_a_confined_program_mounts_is_gone_with_it_and_it_ends_with_its_caller() {
        if !needs::root() || !needs::programs(&["setpriv", "unshare"]) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_string_lossy().into_owned();
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        succeed(confined("mount").args(["-t", "proc", "proc", &at])).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        // The thread that starts it ends at once; only the program's end closes the pipe.
        let script = format!("mount -t tmpfs left {at} && echo mounted && exec sleep 1000");
        let child = std::thread::spawn(move || {
            let mut child = confined("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
            let mut word = [0; 8];
            child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
            assert_eq!(&word, b"mounted\n");
            child
        });
        let mut child = child.join().unwrap();
        child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}
