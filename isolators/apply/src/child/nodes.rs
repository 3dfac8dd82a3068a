//! Device nodes, links, directories and the terminal, made through a handle on the rootfs.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_linux::rootfs::{Missing, Rootfs};
use cofferdam_linux::terminal;
use cofferdam_plan::{ContainerPath, HostPath, Op, Slot};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstatfs, major, makedev, minor,
    mknodat, open, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::Table;

/// File system magic of devpts, statfs(2).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

pub(super) fn run(table: &mut Table, op: &Op) -> Result<(), Errno> {
    match op {
        Op::OpenDirectory { path, into } => {
            let fd =
                open(path.as_c_str(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            table.set(*into, fd);
            Ok(())
        }
        Op::OpenDevice { path, kind, major, minor, into } => {
            let fd = open_device(path, *kind, *major, *minor)?;
            table.set(*into, fd);
            Ok(())
        }
        Op::MakeNode { root, at, kind, mode, major, minor, uid, gid } => {
            make_node(table.get(*root)?, at, *kind, *mode, makedev(*major, *minor), (*uid, *gid))
        }
        Op::BindDevice { root, device, at } => {
            let target = Rootfs::new(table.get(*root)?).open_or_make(
                at.as_c_str(),
                Missing::File,
                ResolveFlags::empty(),
            )?;
            bind(table.get(*device)?, target.as_fd())
        }
        Op::MakeSymlink { root, target, at } => {
            let (parent, name) =
                Rootfs::new(table.get(*root)?).parent(at.as_c_str(), ResolveFlags::empty())?;
            match symlinkat(target.as_c_str(), &parent, name) {
                Err(Errno::EXIST) => Ok(()),
                result => result,
            }
        }
        Op::MakeDirectory { root, at } => Rootfs::new(table.get(*root)?)
            .open_or_make(at.as_c_str(), Missing::Directory, ResolveFlags::empty())
            .map(drop),
        Op::MakeTerminal { root, devpts, send, console, fronted, rows, columns, uid } => {
            let kind = Kind { console: *console, fronted: *fronted };
            make_terminal(table, *root, devpts, (*send, kind), (*rows, *columns), *uid)
        }
        _ => Err(Errno::NOSYS),
    }
}

/// A host device is what its number says, not what its name says.
fn open_device(path: &HostPath, kind: u32, wanted_major: u32, wanted_minor: u32) -> Result<OwnedFd, Errno> {
    let fd = open(path.as_c_str(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = statat(&fd, c"", AtFlags::EMPTY_PATH)?;
    let same = FileType::from_raw_mode(stat.st_mode) == FileType::from_raw_mode(kind)
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (wanted_major, wanted_minor);
    if same { Ok(fd) } else { Err(Errno::NODEV) }
}

fn make_node(
    root: BorrowedFd<'_>,
    at: &ContainerPath,
    kind: u32,
    mode: u32,
    device: u64,
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    let (parent, name) = Rootfs::new(root).parent(at.as_c_str(), ResolveFlags::empty())?;
    let kind = FileType::from_raw_mode(kind);
    match mknodat(&parent, name, kind, Mode::from_raw_mode(mode), device) {
        Err(Errno::EXIST) => return same_node(&parent, name, kind, device),
        result => result?,
    }
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
}

/// A node that is there already is good if it is the same; a FIFO has no number to compare.
fn same_node(parent: &OwnedFd, name: &CStr, kind: FileType, device: u64) -> Result<(), Errno> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let same =
        FileType::from_raw_mode(stat.st_mode) == kind && (kind == FileType::Fifo || stat.st_rdev == device);
    if same { Ok(()) } else { Err(Errno::EXIST) }
}

fn bind(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(tree, c"", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&copy, c"", target, c"", flags)
}

/// What a terminal is besides.
struct Kind {
    /// `/dev/console` too.
    console: bool,
    /// Another terminal is in front of it.
    fronted: bool,
}

/// The pair comes from the container's own devpts, checked by its magic; the slave is opened through the master
/// (`TIOCGPTPEER`), never by a name; `/dev/console` is a mount of that very descriptor.
fn make_terminal(
    table: &Table,
    root: Slot,
    devpts: &ContainerPath,
    (send, kind): (Slot, Kind),
    (rows, columns): (u16, u16),
    uid: u32,
) -> Result<(), Errno> {
    let rootfs = Rootfs::new(table.get(root)?);
    let instance =
        rootfs.open(devpts.as_c_str(), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)?;
    if fstatfs(&instance)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Errno::NODEV);
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let master = Rootfs::new(instance.as_fd()).open(c"ptmx", flags, ResolveFlags::NO_SYMLINKS)?;
    rustix::pty::unlockpt(&master)?;
    if (rows, columns) != (0, 0) {
        terminal::set_size(master.as_fd(), rows, columns)?;
    }
    if kind.fronted {
        terminal::leave_line_ends(master.as_fd())?;
    }
    let slave = terminal::open_peer(master.as_fd())?;
    // Its group stays what devpts gives it: that of terminals, whom write(1) runs as.
    match rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None) {
        // An id that is not mapped into the user namespace: the terminal stays root's.
        Err(Errno::INVAL) => {}
        result => result?,
    }
    if kind.console {
        let console = rootfs.open_or_make(c"/dev/console", Missing::File, ResolveFlags::NO_SYMLINKS)?;
        bind(slave.as_fd(), console.as_fd())?;
    }
    terminal::send_descriptor(table.get(send)?, b"/dev/ptmx", master.as_fd())?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    rustix::stdio::dup2_stderr(&slave)
}
