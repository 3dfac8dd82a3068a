//! Running our own binary so that nobody in a container can overwrite it (the class of CVE-2019-5736).
//!
//! A process that enters a container can be made to execute `/proc/self/exe`, and whoever opens that link reaches the
//! file on the host. So the program runs from a detached, read-only copy of its mount: through that, the file cannot be
//! opened for writing, whoever asks.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fstatvfs, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mount;
use crate::process::{Vector, exec_descriptor};

/// A descriptor from which the running program can be executed and through which it cannot be written.
pub fn open_self() -> Result<OwnedFd, Errno> {
    match open_read_only(c"/proc/self/exe") {
        // No mount API, or no privilege to use it: a sealed copy in memory.
        Err(_) => copy_to_memory(),
        opened => opened,
    }
}

fn open_read_only(path: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    mount::set_attributes(tree.as_fd(), MOUNT_ATTR_RDONLY, 0, 0, false, None)?;
    Ok(tree)
}

fn copy_to_memory() -> Result<OwnedFd, Errno> {
    let io = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut source = std::fs::File::open("/proc/self/exe").map_err(io)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Where a sysctl makes such files unexecutable unless they ask, this one asks; Linux before 6.3 does not know the word.
    let copy = match rustix::fs::memfd_create(c"cofferdam", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"cofferdam", flags),
        made => made,
    };
    let mut copy = std::fs::File::from(copy?);
    std::io::copy(&mut source, &mut copy).map_err(io)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(copy.into())
}

/// Whether the running program cannot be written through `/proc/self/exe`: it was started from a read-only mount, or from a
/// sealed copy in memory. Asked of the kernel, because whatever a caller could set to say so, a caller could set falsely.
pub fn is_sealed() -> Result<bool, Errno> {
    let program = open(c"/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if fstatvfs(&program)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    // EINVAL: no file in memory, so nothing that could carry seals.
    Ok(rustix::fs::fcntl_get_seals(&program).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

/// Goes on as the sealed copy of this program, with the same arguments and environment. Returns at once where the program
/// is sealed already. Fails when neither a read-only mount nor a sealed copy can be made: then nothing may enter a container.
pub fn become_sealed() -> Result<(), Errno> {
    if is_sealed()? {
        return Ok(());
    }
    let text = |bytes: &OsStr| CString::new(bytes.as_bytes()).map_err(|_| Errno::INVAL);
    let arguments = std::env::args_os().map(|a| text(&a)).collect::<Result<Vec<_>, _>>()?;
    let mut environment = Vec::new();
    for (key, value) in std::env::vars_os() {
        let mut pair = key;
        pair.push("=");
        pair.push(value);
        environment.push(text(&pair)?);
    }
    let program = open_self()?;
    let arguments = Vector::new(arguments.iter().map(CString::as_c_str));
    let environment = Vector::new(environment.iter().map(CString::as_c_str));
    Err(exec_descriptor(program.as_fd(), &arguments, &environment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sealed_program_cannot_be_opened_for_writing() {
        let program = open_self().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program));
        let error = std::fs::OpenOptions::new().write(true).open(path).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(libc::EROFS | libc::EPERM | libc::EACCES | libc::ETXTBSY)),
            "{error}"
        );
    }
}
