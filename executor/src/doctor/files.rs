//! File systems: the mount API, overlay and id-mapped mounts, each tried detached; the data and state folders.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_linux::mount::{IDMAP, set_attributes};
use cofferdam_linux::process::{Child, clone_child};
use rustix::fs::{CWD, Mode, OFlags, StatVfs, open, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, geteuid, pidfd_send_signal, waitid};

use super::Check;

const AREA: &str = "files";

/// Less than this and an ordinary image may not fit.
const LOW_BYTES: u64 = 2 << 30;
/// Less than this and an ordinary image may not fit.
const LOW_FILES: u64 = 100_000;

pub(super) fn examine(root: &Path, state: &Path) -> Vec<Check> {
    let existing = nearest_existing(root);
    let mut checks = vec![mount_api(), attributes()];
    checks.extend(overlay(existing));
    checks.extend(super::backends::examine(existing));
    checks.push(id_mapped(existing));
    checks.push(space("data root, space", existing));
    checks.push(inodes("data root, files", existing));
    checks.push(space("state root, space", nearest_existing(state)));
    checks.push(folder("data root", root));
    checks.push(folder("state root", state));
    checks
}

fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"))
}

fn tried<T>(subject: &str, result: Result<T, Errno>, costs: &str) -> Check {
    match result {
        Ok(_) => Check::works(AREA, subject, "works"),
        Err(errno) => Check::missing(AREA, subject, errno.to_string(), costs),
    }
}

/// A tmpfs that is mounted nowhere and gone when its descriptor is closed.
fn detached_tmpfs() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn mount_api() -> Check {
    tried(
        "mount API",
        detached_tmpfs(),
        "no container can be built: mounts are made detached and attached once",
    )
    .essential()
}

fn attributes() -> Check {
    const READ_ONLY: u64 = 1;
    let changed =
        detached_tmpfs().and_then(|tree| set_attributes(tree.as_fd(), READ_ONLY, 0, 0, false, None));
    tried("mount_setattr", changed, "paths cannot be made read-only").essential()
}

/// How a layer is named to overlay: by descriptor, or by path.
#[derive(Clone, Copy)]
enum By {
    Descriptor,
    Path,
}

/// Tries overlay where the layers will lie: it depends on the file system beneath.
fn overlay(place: &Path) -> Vec<Check> {
    const SUBJECT: &str = "overlay";
    let costs = "no image can be run: layers cannot be stacked";
    let layers = match Layers::make(place) {
        Ok(layers) => layers,
        Err(error) => {
            let found = format!("cannot be tried: {}: {error}", place.display());
            return vec![Check::missing(AREA, SUBJECT, found, costs).essential()];
        }
    };
    let by_path = layers.stack(By::Path, None);
    let mut checks = vec![
        match by_path {
            Ok(()) => Check::works(AREA, SUBJECT, format!("works on {}", place.display())),
            Err(errno) => Check::missing(AREA, SUBJECT, format!("{errno} on {}", place.display()), costs)
                .remedy("put the data root (--root) on ext4, xfs or btrfs; load the overlay module"),
        }
        .essential(),
    ];
    if by_path.is_ok() {
        checks.push(match layers.stack(By::Descriptor, None) {
            Ok(()) => Check::works(AREA, "overlay, layers by descriptor", "works"),
            Err(errno) => Check::degraded(
                AREA,
                "overlay, layers by descriptor",
                format!("{errno} (Linux 6.13)"),
                "layers are named by path: about a hundred of them at most, none with a colon",
            ),
        });
        checks.push(tried(
            "overlay, userxattr",
            layers.stack(By::Path, Some("userxattr")),
            "layers cannot be stacked inside a user namespace",
        ));
    }
    checks
}

/// The four folders of an overlay, in one that is removed when dropped.
struct Layers {
    folder: PathBuf,
}

impl Layers {
    fn make(place: &Path) -> std::io::Result<Layers> {
        let name = format!(".cofferdam-doctor-{}", rustix::thread::gettid().as_raw_nonzero());
        let layers = Layers { folder: place.join(name) };
        for name in ["lower", "second", "upper", "work"] {
            fs::create_dir_all(layers.folder.join(name))?;
        }
        Ok(layers)
    }

    /// Stacks them, detached.
    fn stack(&self, by: By, flag: Option<&str>) -> Result<(), Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        match by {
            By::Path => {
                let lower = format!("{}:{}", self.path("lower"), self.path("second"));
                fsconfig_set_string(context.as_fd(), "lowerdir", lower)?;
                fsconfig_set_string(context.as_fd(), "upperdir", self.path("upper"))?;
                fsconfig_set_string(context.as_fd(), "workdir", self.path("work"))?;
            }
            By::Descriptor => {
                for (key, name) in [
                    ("lowerdir+", "lower"),
                    ("lowerdir+", "second"),
                    ("upperdir", "upper"),
                    ("workdir", "work"),
                ] {
                    let folder = open(self.path(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                    fsconfig_set_fd(context.as_fd(), key, folder.as_fd())?;
                }
            }
        }
        if let Some(flag) = flag {
            fsconfig_set_flag(context.as_fd(), flag)?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Tries to give a copy of the data root's mount other ids.
fn id_mapped(place: &Path) -> Check {
    const SUBJECT: &str = "id-mapped mounts";
    let mapped = || {
        let tree = open_tree(CWD, place, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        let namespace = MappedNamespace::make()?;
        set_attributes(tree.as_fd(), IDMAP, 0, 0, false, Some(namespace.file.as_fd()))
    };
    match mapped() {
        Ok(()) => Check::works(AREA, SUBJECT, format!("work on {}", place.display())),
        Err(errno) => Check::missing(
            AREA,
            SUBJECT,
            format!("{errno} on {}", place.display()),
            "images for tasks with a user namespace have to be copied with other owners",
        ),
    }
}

/// A user namespace with ids 0 to 65535 mapped, held by a process that does nothing.
struct MappedNamespace {
    file: OwnedFd,
    holder: Child,
}

impl MappedNamespace {
    fn make() -> Result<MappedNamespace, Errno> {
        const CLONE_NEWUSER: u64 = 0x1000_0000;
        let holder = clone_child(CLONE_NEWUSER, None, wait_for_ever)?;
        let mut holder = Holder(Some(holder));
        let file = holder.map_and_open()?;
        holder.0.take().map(|holder| MappedNamespace { file, holder }).ok_or(Errno::CHILD)
    }
}

/// Sleeps; only SIGKILL ends it, since a cloned child has every signal blocked.
fn wait_for_ever() -> i32 {
    const LONG: rustix::thread::Timespec = rustix::thread::Timespec { tv_sec: 3600, tv_nsec: 0 };
    // An early end ends the probe early, which then fails as it should.
    let _ = rustix::thread::nanosleep(&LONG);
    0
}

impl Drop for MappedNamespace {
    fn drop(&mut self) {
        end(self.holder.pidfd.as_fd());
    }
}

/// Ends the process if the namespace cannot be completed.
struct Holder(Option<Child>);

impl Holder {
    fn map_and_open(&self) -> Result<OwnedFd, Errno> {
        let pid = self.0.as_ref().ok_or(Errno::CHILD)?.pid;
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), "0 100000 65536")
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            end(child.pidfd.as_fd());
        }
    }
}

fn end(pidfd: BorrowedFd<'_>) {
    // Both can fail only if the process is gone already.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
}

fn space(subject: &str, place: &Path) -> Check {
    let Ok(statistics) = statvfs(place) else {
        return Check::degraded(
            AREA,
            subject,
            format!("{} cannot be asked", place.display()),
            "nobody knows when it is full",
        );
    };
    let free = statistics.f_bavail * statistics.f_frsize;
    let found = format!("{} MiB free at {}", free >> 20, place.display());
    let enough = free >= LOW_BYTES || subject.starts_with("state");
    match enough {
        true => Check::works(AREA, subject, found),
        false => Check::degraded(AREA, subject, found, "ordinary images may not fit")
            .remedy("free space, or another --root"),
    }
}

fn inodes(subject: &str, place: &Path) -> Check {
    match statvfs(place) {
        // btrfs and others count none.
        Ok(StatVfs { f_files: 0, .. }) | Err(_) => Check::works(AREA, subject, "not limited"),
        Ok(StatVfs { f_favail, .. }) if f_favail >= LOW_FILES => {
            Check::works(AREA, subject, format!("{f_favail} free"))
        }
        Ok(StatVfs { f_favail, .. }) => {
            Check::degraded(AREA, subject, format!("{f_favail} free"), "ordinary images may not fit")
                .remedy("another --root")
        }
    }
}

/// Whether others could reach in: setuid programs lie in layers, secrets in state.
fn folder(subject: &str, path: &Path) -> Check {
    let data = match fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Check::works(AREA, subject, format!("{} will be made", path.display()));
        }
        Err(error) => {
            return Check::missing(
                AREA,
                subject,
                format!("{}: {error}", path.display()),
                "nothing can be kept there",
            );
        }
    };
    let mode = data.mode() & 0o7777;
    let found = format!("{}, owner {}, mode {mode:04o}", path.display(), data.uid());
    let remedy = format!("chown root: {0} && chmod 0700 {0}", path.display());
    if !data.is_dir() {
        return Check::missing(AREA, subject, format!("{} is not a folder", path.display()), "it is refused");
    }
    if data.uid() != geteuid().as_raw() {
        return Check::missing(AREA, subject, found, "it belongs to somebody else and is refused")
            .remedy(remedy);
    }
    match mode & 0o077 {
        0 => Check::works(AREA, subject, found),
        _ => {
            Check::degraded(AREA, subject, found, "other users of this host can reach into images and state")
                .remedy(remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_others_can_enter_is_pointed_out() {
        let scratch = tempfile::tempdir().expect("a folder");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        assert_eq!(folder("data root", scratch.path()).state, State::Degraded);
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o700)).expect("a mode");
        assert_eq!(folder("data root", scratch.path()).state, State::Works);
        assert_eq!(folder("data root", &scratch.path().join("absent")).state, State::Works);
        let file = scratch.path().join("file");
        fs::File::create(&file).expect("a file");
        assert_eq!(folder("data root", &file).state, State::Missing);
    }

    #[test]
    fn the_folder_that_will_hold_the_data_root_is_asked_instead() {
        let scratch = tempfile::tempdir().expect("a folder");
        assert_eq!(nearest_existing(&scratch.path().join("a/b/c")), scratch.path());
    }
}
