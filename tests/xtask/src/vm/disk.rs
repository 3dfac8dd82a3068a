//! The machine's root disk: an ext4 image made from a folder, without mounting anything.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::initramfs::BUSYBOX;
use super::kernel::Kernel;
use super::modules::{Modules, SUITES};
use super::{Session, name};
use crate::command::{command, demand, read};
use crate::workspace::{Executable, Workspace};

const GUEST: &str = include_str!("guest.sh");
const RUN_SUITES: &str = include_str!("suites.sh");
const SHELL: &str = include_str!("shell.sh");

/// A sparse file: only what is written takes space.
const DISK_SIZE: &str = "4G";

/// One test that takes longer than this in the machine has hung.
pub(super) const TEST_LIMIT_S: u32 = 360;

/// Programs of the host that suites use; each is copied with the libraries that it loads.
const HOST_PROGRAMS: &[&str] = &[
    "nft",
    "ip",
    "curl",
    "crun",
    "docker-registry",
    "skopeo",
    "socat",
    "strace",
    "systemctl",
    "bash",
    "script",
    "openssl",
    "setpriv",
    "unshare",
    "perl",
    "mkfs.ext4",
    "fsck.erofs",
    "newuidmap",
    "newgidmap",
    "apparmor_parser",
    "tar",
];

/// The service manager, which is on no search path: a test runs it as a user's.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// What goes on the disk.
pub(super) struct Contents<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) kernel: &'a Kernel,
    pub(super) tests: &'a [&'a Executable],
    pub(super) programs: &'a [&'a Executable],
    pub(super) session: &'a Session,
}

pub(super) fn build(contents: &Contents<'_>, cache: &Path) -> Result<PathBuf> {
    let root = cache.join("disk");
    let _ = std::fs::remove_dir_all(&root);
    base(&root, contents.session)?;
    modules(&root, contents.kernel)?;
    for program in HOST_PROGRAMS {
        host_program(&root, program)?;
    }
    if Path::new(SYSTEMD).exists() {
        let place = root.join(SYSTEMD.trim_start_matches('/'));
        std::fs::create_dir_all(place.with_file_name(""))?;
        with_libraries(&root, Path::new(SYSTEMD), &place)?;
    }
    tracked_data(&root, contents.workspace)?;
    images(&root, contents.workspace)?;
    for program in contents.programs {
        strip(&program.path, &root.join("programs").join(&program.name))?;
    }
    for test in contents.tests {
        suite(&root, test)?;
    }
    image(&root, cache)
}

fn base(root: &Path, session: &Session) -> Result<()> {
    for folder in ["etc/cni/net.d", "proc", "sys", "dev", "run", "tmp", "mnt", "root", "var/lib", "var/tmp"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["modules", "programs", "suites"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    // As on Debian: whoever has /usr has all programs and libraries.
    for folder in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(root.join("usr").join(folder))?;
        symlink(Path::new("usr").join(folder), root.join(folder))?;
    }
    std::fs::copy(BUSYBOX, root.join("bin/busybox")).context("copying busybox-static")?;
    for applet in read(&mut command(BUSYBOX, "--list"))?.lines() {
        // A program of the host's is copied in its place later.
        symlink("/bin/busybox", root.join("bin").join(applet)).or_else(ignore_existing)?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\n")?;
    std::fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.53\n")?;
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    // skopeo takes no image without being told which it may.
    std::fs::create_dir_all(root.join("etc/containers"))?;
    std::fs::write(
        root.join("etc/containers/policy.json"),
        r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#,
    )?;
    // openssl makes no request without its configuration.
    let openssl = Path::new("/etc/ssl/openssl.cnf");
    if openssl.is_file() {
        std::fs::create_dir_all(root.join("usr/lib/ssl"))?;
        std::fs::copy(openssl, root.join("usr/lib/ssl/openssl.cnf"))?;
    }
    executable(&root.join("sbin/init"), GUEST)?;
    let script = match session {
        Session::Suites(_) => RUN_SUITES,
        Session::Shell => SHELL,
    };
    std::fs::write(root.join("session"), script).context("writing the session's script")
}

fn modules(root: &Path, kernel: &Kernel) -> Result<()> {
    for (index, path) in Modules::find(&kernel.modules)?.in_order(SUITES)?.iter().enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        std::fs::copy(path, root.join(format!("modules/{index:02}-{name}")))?;
    }
    Ok(())
}

/// Copies a dynamic program with its libraries; a host that lacks it has tests that say so.
fn host_program(root: &Path, name: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(source) =
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
    else {
        println!("  not on this host, so not in the machine: {name}");
        return Ok(());
    };
    let place = root.join("bin").join(name);
    with_libraries(root, &source, &place)
}

/// Copies a dynamic program to `place`, and the libraries that it loads to where they are here.
fn with_libraries(root: &Path, source: &Path, place: &Path) -> Result<()> {
    let _ = std::fs::remove_file(place);
    std::fs::copy(source, place).with_context(|| format!("copying {}", source.display()))?;
    for library in read(command("ldd", "").arg(source))?.lines().filter_map(library_path) {
        let place = root.join(library.trim_start_matches('/'));
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(library, &place).with_context(|| format!("copying {library}"))?;
    }
    Ok(())
}

/// Reads one line of ldd: `libc.so.6 => /lib/…/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library_path(line: &str) -> Option<&str> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    path.split(' ').next().filter(|path| path.starts_with('/'))
}

/// Tests read the tree's data (golden plans, profiles) by the absolute path that it had when they were compiled.
fn tracked_data(root: &Path, workspace: &Workspace) -> Result<()> {
    let files = read(command("git", "ls-files -z").current_dir(workspace.root()))?;
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let source = workspace.root().join(file);
        let place = inside(root, &source);
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // A file that git knows and that was deleted since is nothing to copy.
        if source.is_file() {
            std::fs::copy(&source, place).with_context(|| format!("copying {file}"))?;
        }
    }
    Ok(())
}

/// The images that the host suites have made: the machine has neither the programs nor a network to make them.
fn images(root: &Path, workspace: &Workspace) -> Result<()> {
    let Some(made) = fixtures(workspace) else {
        println!("  no fixture images yet, so none in the machine: tests that need them will say so");
        return Ok(());
    };
    for entry in std::fs::read_dir(made)?.filter_map(Result::ok) {
        if entry.path().join("registry").is_dir() {
            std::fs::create_dir_all(root.join("fixtures"))?;
            demand(
                command("cp", "--recursive").arg(entry.path().join("registry")).arg(root.join("fixtures")),
            )?;
        }
    }
    Ok(())
}

/// Tests keep them in the topmost of their folders that cargo has marked: the target folder, or the one for the target's
/// triple where another program had made the former.
fn fixtures(workspace: &Workspace) -> Option<PathBuf> {
    let programs = workspace.programs();
    let folders = programs.ancestors().take_while(|folder| folder.starts_with(workspace.target()));
    folders.map(|folder| folder.join("fixtures")).find(|made| made.is_dir())
}

fn suite(root: &Path, test: &Executable) -> Result<()> {
    let folder = root.join("suites").join(name(test));
    std::fs::create_dir_all(&folder)?;
    strip(&test.path, &folder.join("test"))?;
    // What cargo tells its tests, and what this machine is.
    let settings = format!(
        "folder={}\nlimit={TEST_LIMIT_S}\n\
         export CARGO_MANIFEST_DIR=$folder CARGO_PKG_NAME={} CARGO_PKG_VERSION={}\n\
         export COFFERDAM_BIN_DIR=/programs COFFERDAM_FIXTURES=/fixtures COFFERDAM_EMULATED=1\n",
        test.folder.display(),
        test.package,
        env!("CARGO_PKG_VERSION"),
    );
    std::fs::write(folder.join("settings"), settings).context("writing a suite's settings")
}

/// Debugging information is most of a test executable, and the machine reads slowly.
fn strip(source: &Path, place: &Path) -> Result<()> {
    demand_quietly(command("strip", "--strip-debug -o").arg(place).arg(source))
}

fn image(root: &Path, cache: &Path) -> Result<PathBuf> {
    let image = cache.join("disk.img");
    let _ = std::fs::remove_file(&image);
    let mut make = command("mke2fs", "-q -F -t ext4 -O ^has_journal -E root_owner=0:0 -d");
    demand(make.arg(root).arg(&image).arg(DISK_SIZE).env("PATH", search_path()))?;
    Ok(image)
}

/// mke2fs lives in /sbin, which is not on every user's search path.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn demand_quietly(command: &mut std::process::Command) -> Result<()> {
    read(command).map(drop)
}

fn executable(path: &Path, content: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).with_context(|| format!("writing {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).context("making it executable")
}

fn inside(root: &Path, absolute: &Path) -> PathBuf {
    root.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

fn ignore_existing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::library_path;

    #[test]
    fn lines_of_ldd_are_read() {
        assert_eq!(library_path("\tlibc.so.6 => /lib/libc.so.6 (0x7f)"), Some("/lib/libc.so.6"));
        assert_eq!(library_path("\t/lib64/ld-linux-x86-64.so.2 (0x7f)"), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library_path("\tlinux-vdso.so.1 (0x7f)"), None);
        assert_eq!(library_path("\tstatically linked"), None);
    }
}
