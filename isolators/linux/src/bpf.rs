//! The bpf(2) calls that a version 2 cgroup's device filter takes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::process::check;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// The kernel's limit on programs at one cgroup (`BPF_CGROUP_MAX_PROGS`).
const PROGRAMS_MAX: usize = 64;

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as Linux 4.15 knows it; the kernel takes a shorter one for zeros.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[derive(Default)]
#[repr(C)]
struct Attach {
    target_fd: i32,
    attach_bpf_fd: i32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: i32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target_fd: i32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Calls bpf(2) with one of the records above.
fn call<T>(command: libc::c_int, record: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: every record is `repr(C)`, laid out as the prefix of `union bpf_attr` that its command reads, and zeros stand
    // for the rest; pointers in it are to buffers that its maker keeps until the call returns.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(record), size_of::<T>()) })
}

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let descriptor = i32::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: the two commands that come here return a descriptor made for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Loads a device program (`BPF_PROG_TYPE_CGROUP_DEVICE`); close-on-exec. Needs CAP_BPF or CAP_SYS_ADMIN. Linux 4.15.
///
/// # Errors
/// `EINVAL` or `EACCES` where the verifier refuses it.
pub fn load_device_program(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    let mut record = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"cofferdam_dev\0\0\0",
    };
    owned(call(PROG_LOAD, &mut record)?)
}

/// The device programs in force at a cgroup itself.
///
/// # Errors
/// `EINVAL` where the kernel lacks them.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut record = Query {
        target_fd: cgroup.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: PROGRAMS_MAX as u32,
    };
    call(PROG_QUERY, &mut record)?;
    let count = usize::try_from(record.prog_cnt).unwrap_or(0).min(PROGRAMS_MAX);
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        match call(PROG_GET_FD_BY_ID, &mut ById { id: *id, next_id: 0, open_flags: 0 }).and_then(owned) {
            Ok(program) => programs.push(program),
            Err(Errno::NOENT) => {} // gone meanwhile
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

/// Loads `instructions` and puts them in force at `cgroup`; a program that is in force there already is replaced, so that
/// at no moment everything or nothing is allowed. The kernel asks the programs of all parents too.
///
/// # Errors
/// The operation that failed, and its answer.
pub fn put_device_program(cgroup: BorrowedFd<'_>, instructions: &[u64]) -> Result<(), (&'static str, Errno)> {
    let program = load_device_program(instructions).map_err(|errno| ("bpf(BPF_PROG_LOAD)", errno))?;
    let in_force = device_programs(cgroup).map_err(|errno| ("bpf(BPF_PROG_QUERY)", errno))?;
    let mut record = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
        ..Attach::default()
    };
    if let [one] = in_force.as_slice() {
        record.attach_flags |= REPLACE;
        record.replace_bpf_fd = one.as_raw_fd();
    }
    call(PROG_ATTACH, &mut record).map_err(|errno| ("bpf(BPF_PROG_ATTACH)", errno))?;
    // More than one: another manager has been here. Ours is in force before theirs go, so nothing is open in between.
    if in_force.len() > 1 {
        for old in in_force {
            detach(cgroup, old.as_fd()).map_err(|errno| ("bpf(BPF_PROG_DETACH)", errno))?;
        }
    }
    Ok(())
}

fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut record = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        ..Attach::default()
    };
    call(PROG_DETACH, &mut record).map(drop)
}
