//! Mounts: made detached, changed by descriptor, attached through a handle on the rootfs.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_linux::mount;
use cofferdam_linux::rootfs::{Missing, Rootfs};
use cofferdam_plan::op::FilesystemOption;
use cofferdam_plan::{ContainerPath, Create, HostPath, MountAttributes, Op, Propagation, Slot, Text};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstat, fstatfs, fstatvfs, openat,
    readlinkat_raw, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::Table;
use crate::stack::Stack;

/// File system magic of procfs, statfs(2).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// Longest target of a symbolic link with its NUL, in bytes.
pub(super) const LINK_MAX_BYTES: usize = 4096;

pub(super) fn run(table: &mut Table, op: &Op) -> Result<(), Errno> {
    match op {
        Op::SetRootPropagation { propagation } => set_root(0, 0, Some(*propagation), true),
        Op::SetRootAttributes { attributes: a } => set_root(a.set, a.clear, a.propagation, a.recursive),
        Op::CloneTree { source, recursive, no_follow, into } => {
            let tree = crate::host::clone_tree(source, *recursive, *no_follow)?;
            table.set(*into, tree);
            Ok(())
        }
        Op::CloneInside { root, source, recursive, no_follow, into } => {
            let mut flags = OFlags::PATH;
            flags.set(OFlags::NOFOLLOW, *no_follow);
            let source =
                Rootfs::new(table.get(*root)?).open(source.as_c_str(), flags, ResolveFlags::empty())?;
            let tree = copy_of(source.as_fd(), *recursive)?;
            table.set(*into, tree);
            Ok(())
        }
        Op::MapTree { tree, user, recursive } => {
            let user = Some(table.get(*user)?);
            mount::set_attributes(table.get(*tree)?, mount::IDMAP, 0, 0, *recursive, user)
        }
        Op::NewFilesystem { kind, source, covers, options, attributes, into } => {
            let covered =
                covers.as_ref().map(|(root, at)| covered_mode(table, *root, at)).transpose()?.flatten();
            let tree = new_filesystem(kind, source.as_ref(), covered, options, *attributes)?;
            table.set(*into, tree);
            Ok(())
        }
        Op::Overlay { form, lower, upper, work, into } => {
            let tree = Stack { lower, upper, work }.mount(table, form)?;
            table.set(*into, tree);
            Ok(())
        }
        Op::SetAttributes { tree, attributes } => set_attributes(table.get(*tree)?, attributes),
        Op::SetUnlocked { tree, attributes } => set_unlocked(table.get(*tree)?, attributes),
        Op::SetAttributesAt { root, at, attributes } => {
            let target = target(table.get(*root)?, at, Missing::Fail, ResolveFlags::empty())?;
            set_attributes(target.as_fd(), attributes)
        }
        Op::AttachRoot { tree, onto } => attach(table.get(*tree)?, table.get(*onto)?),
        Op::CopyUp { tree, root, at } => {
            copy_up(table.get(*tree)?, table.get(*root)?, at, ResolveFlags::empty())
        }
        Op::FillEmpty { tree, root, at } => {
            let tree = table.get(*tree)?;
            if kind_of(tree)? != FileType::Directory || !super::copy::is_empty(tree)? {
                return Ok(());
            }
            match copy_up(tree, table.get(*root)?, at, ResolveFlags::NO_XDEV) {
                Err(Errno::XDEV) => Ok(()),
                result => result,
            }
        }
        Op::Place { tree, root, at, create } => place(table.get(*tree)?, table.get(*root)?, at, *create),
        Op::MakeReadOnly { root, at } => make_read_only(table.get(*root)?, at),
        Op::Pivot { root } => pivot(table.get(*root)?),
        Op::MoveRoot { root } => move_root(table.get(*root)?),
        Op::ChangeRoot { path } => change_root(path),
        _ => Err(Errno::NOSYS),
    }
}

fn set_attributes(tree: BorrowedFd<'_>, a: &MountAttributes) -> Result<(), Errno> {
    let propagation = a.propagation.map_or(0, Propagation::flag);
    mount::set_attributes(tree, a.set, a.clear, propagation, a.recursive, None)
}

/// The tree was copied by somebody with privilege over the host, so the kernel locks nothing about it: what it would have
/// locked for the container is told by what has changed. A file system that is read-only itself stays so, whatever its mount
/// says; that is no change. mount_namespaces(7), "Restrictions on mount namespaces".
fn set_unlocked(tree: BorrowedFd<'_>, attributes: &MountAttributes) -> Result<(), Errno> {
    type Flags = StatVfsMountFlags;
    let given = Flags::RDONLY | Flags::NOSUID | Flags::NODEV | Flags::NOEXEC;
    let times = Flags::NOATIME | Flags::NODIRATIME | Flags::RELATIME;
    let before = fstatvfs(tree)?.f_flag;
    set_attributes(tree, attributes)?;
    let after = fstatvfs(tree)?.f_flag;
    let lost = before & given & !after;
    if lost.is_empty() && before & times == after & times { Ok(()) } else { Err(Errno::PERM) }
}

fn change_root(path: &HostPath) -> Result<(), Errno> {
    rustix::process::chdir(path.as_c_str())?;
    rustix::process::chroot(c".")
}

fn set_root(set: u64, clear: u64, propagation: Option<Propagation>, recursive: bool) -> Result<(), Errno> {
    mount::set_attributes_at(CWD, c"/", set, clear, propagation.map_or(0, Propagation::flag), recursive, None)
}

fn new_filesystem(
    kind: &Text,
    source: Option<&Text>,
    mode: Option<u32>,
    options: &[FilesystemOption],
    attributes: u64,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(source) = source {
        fsconfig_set_string(&context, c"source", source.as_c_str())?;
    }
    if let Some(mode) = mode {
        fsconfig_set_string(&context, c"mode", octal(mode, &mut [0; OCTAL_BYTES]))?;
    }
    configure(&context, options)?;
    fsconfig_create(&context)?;
    make(&context, attributes)
}

/// The permissions of a directory of the container; `None` where there is none yet.
fn covered_mode(table: &Table, root: Slot, at: &ContainerPath) -> Result<Option<u32>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match Rootfs::new(table.get(root)?).open(at.as_c_str(), flags, ResolveFlags::empty()) {
        Ok(directory) => Ok(Some(fstat(&directory)?.st_mode & 0o7777)),
        // What is in its way is told when it is placed.
        Err(_) => Ok(None),
    }
}

/// Four digits and the NUL byte.
const OCTAL_BYTES: usize = 5;

/// A mode in text, without allocating.
fn octal(mode: u32, text: &mut [u8; OCTAL_BYTES]) -> &CStr {
    for (place, digit) in text.iter_mut().take(OCTAL_BYTES - 1).rev().zip(0..) {
        *place = b'0' + (mode >> (3 * digit) & 7) as u8;
    }
    CStr::from_bytes_until_nul(text).unwrap_or(c"0")
}

fn configure(context: &OwnedFd, options: &[FilesystemOption]) -> Result<(), Errno> {
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context, key.as_c_str())?,
        }
    }
    Ok(())
}

fn make(context: &OwnedFd, attributes: u64) -> Result<OwnedFd, Errno> {
    // MOUNT_ATTR_* are 32 bits wide in fsmount(2).
    let attributes = u32::try_from(attributes).map_err(|_| Errno::INVAL)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(attributes))
}

fn attach(tree: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", onto, c"", flags)
}

fn copy_of(tree: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(tree, c"", flags)
}

fn kind_of(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(statat(fd, c"", AtFlags::EMPTY_PATH)?.st_mode))
}

fn target(
    root: BorrowedFd<'_>,
    at: &ContainerPath,
    missing: Missing,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    Rootfs::new(root).open_or_make(at.as_c_str(), missing, resolve)
}

/// Attaches a tree at a path of the container. What decides is the descriptor, not the path: nothing but the few files
/// that the plan allows by name is ever mounted on a procfs.
fn place(
    tree: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    at: &ContainerPath,
    create: Create,
) -> Result<(), Errno> {
    let directory = kind_of(tree)?;
    let (missing, resolve) = match create {
        Create::Directory => (Missing::Directory, ResolveFlags::empty()),
        Create::RealDirectory => (Missing::Directory, ResolveFlags::NO_SYMLINKS),
        Create::LinkOrTree if directory == FileType::Symlink => return copy_link(tree, root, at),
        _ if directory == FileType::Directory => (Missing::Directory, ResolveFlags::empty()),
        _ => (Missing::File, ResolveFlags::empty()),
    };
    let target = if create == Create::LikeTreeUnfollowed {
        unfollowed(root, at, missing)?
    } else {
        target(root, at, missing, resolve)?
    };
    if !at.is_at_or_below("/proc") && is_procfs(target.as_fd())? {
        return Err(Errno::XDEV);
    }
    if at.as_bytes() == b"/proc" && !is_procfs_root(tree)? {
        return Err(Errno::XDEV);
    }
    // The kernel's word for this is EINVAL; callers look for mount(2)'s.
    if (directory == FileType::Directory) != (kind_of(target.as_fd())? == FileType::Directory) {
        return Err(Errno::NOTDIR);
    }
    attach(tree, target.as_fd())
}

/// What is at a path, a link itself where it is one.
fn unfollowed(root: BorrowedFd<'_>, at: &ContainerPath, missing: Missing) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    match Rootfs::new(root).open(at.as_c_str(), flags, ResolveFlags::empty()) {
        Err(Errno::NOENT) => target(root, at, missing, ResolveFlags::empty()),
        result => result,
    }
}

/// Makes a link like the one that `link` is; one that is there already is good if it leads to the same place.
fn copy_link(link: BorrowedFd<'_>, root: BorrowedFd<'_>, at: &ContainerPath) -> Result<(), Errno> {
    let (mut wanted, mut found) = ([0; LINK_MAX_BYTES], [0; LINK_MAX_BYTES]);
    let wanted = read_link(link, c"", &mut wanted)?;
    let (parent, name) = Rootfs::new(root).parent(at.as_c_str(), ResolveFlags::empty())?;
    match symlinkat(wanted, &parent, name) {
        Err(Errno::EXIST) if read_link(parent.as_fd(), name, &mut found) == Ok(wanted) => Ok(()),
        result => result,
    }
}

/// Where a link leads.
pub(super) fn read_link<'b>(
    directory: BorrowedFd<'_>,
    name: &CStr,
    buffer: &'b mut [u8; LINK_MAX_BYTES],
) -> Result<&'b CStr, Errno> {
    // The last byte stays NUL.
    let length = readlinkat_raw(directory, name, &mut buffer[..LINK_MAX_BYTES - 1])?;
    if length == LINK_MAX_BYTES - 1 {
        return Err(Errno::NAMETOOLONG);
    }
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::INVAL)
}

/// What the rootfs has where another file system is going to be: it goes on in there.
fn copy_up(
    tree: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    at: &ContainerPath,
    resolve: ResolveFlags,
) -> Result<(), Errno> {
    let readable = OFlags::RDONLY | OFlags::DIRECTORY;
    match Rootfs::new(root).open(at.as_c_str(), readable, resolve) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(directory) => {
            let into = openat(tree, c".", readable | OFlags::CLOEXEC, Mode::empty())?;
            super::copy::directory(directory.as_fd(), into.as_fd())
        }
    }
}

/// What is at /proc is believed by whoever reads it: a folder that looks like it is not it.
fn is_procfs_root(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    const PROC_ROOT_INO: u64 = 1;
    Ok(is_procfs(fd)? && statat(fd, c"", AtFlags::EMPTY_PATH)?.st_ino == PROC_ROOT_INO)
}

fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.f_type == PROC_SUPER_MAGIC)
}

/// Opens what is to be masked or made read-only; a link on the way is somebody's trick, and refused.
fn existing(root: BorrowedFd<'_>, at: &ContainerPath) -> Result<Option<OwnedFd>, Errno> {
    match target(root, at, Missing::Fail, ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        result => result.map(Some),
    }
}

/// Hides a path. The first directory takes the empty file system itself, every further one a copy of that mount.
pub(super) fn mask(
    table: &Table,
    attached: &mut bool,
    root: Slot,
    at: &ContainerPath,
    directory: Slot,
    file: Slot,
) -> Result<(), Errno> {
    let Some(target) = existing(table.get(root)?, at)? else { return Ok(()) };
    if kind_of(target.as_fd())? != FileType::Directory {
        return attach(copy_of(table.get(file)?, false)?.as_fd(), target.as_fd());
    }
    let empty = table.get(directory)?;
    if std::mem::replace(attached, true) {
        attach(copy_of(empty, false)?.as_fd(), target.as_fd())
    } else {
        attach(empty, target.as_fd())
    }
}

/// One descriptor carries the copy, its read-only attribute and its place: no moment in which the path could be swapped.
fn make_read_only(root: BorrowedFd<'_>, at: &ContainerPath) -> Result<(), Errno> {
    let Some(target) = existing(root, at)? else { return Ok(()) };
    let copy = copy_of(target.as_fd(), true)?;
    mount::set_attributes(copy.as_fd(), MountAttributes::READ_ONLY, 0, 0, false, None)?;
    attach(copy.as_fd(), target.as_fd())
}

/// The old root ends up stacked on the new one, whence it is detached, pivot_root(2), "NOTES".
fn pivot(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// For hosts whose root is an initramfs, which cannot be pivoted away from.
fn move_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    super::views::detach(root)?;
    rustix::process::fchdir(root)?;
    move_mount(root, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}
