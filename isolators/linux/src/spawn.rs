//! Starting a program of somebody else's, as a plugin is one: without copying this process, straight into a cgroup, and with
//! nothing of ours left open.
//!
//! ```text
//! parent ── clone3(CLONE_VM | CLONE_VFORK, stack of its own) ──▶ child: group, signals, streams, directory, exec
//!    └── stands still until the child has executed ◀─────────────┘   (a failure is written into shared memory)
//! ```
//!
//! The standard library forks as soon as a working directory is asked for (a static C library has no spawn action for it),
//! and a fork of an agent with gigabytes of heap takes a hundred milliseconds. It also knows nothing of cgroups, and a
//! process that is moved into one after its start may have children outside by then.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::process::{self, Child, CloneArgs, Vector};
use crate::signal;

const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;

/// Room for the child's few frames, in bytes; what is not touched costs nothing.
const STACK_BYTES: usize = 64 * 1024;

/// A program to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Where it is.
    pub path: &'a CStr,
    /// Its arguments, its name first.
    pub arguments: &'a Vector,
    /// Its whole environment.
    pub environment: &'a Vector,
    /// Its working directory.
    pub directory: &'a CStr,
    /// Its standard input, output and error.
    pub streams: [BorrowedFd<'a>; 3],
    /// The version 2 cgroup that it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// What the child works with. The parent stands still while the child reads it.
struct Order<'a> {
    program: &'a Program<'a>,
    parent: Option<rustix::process::Pid>,
    failure: Option<Errno>,
}

/// Starts a program in a process group of its own, with default signal dispositions, no signal blocked, the three streams
/// and no other descriptor. It is killed when the calling thread ends.
///
/// Returns when the program runs: a failure to execute it is ours. Linux 5.7.
///
/// # Errors
/// What clone3(2), chdir(2) or execve(2) answered; `ETXTBSY` while somebody has the program open for writing.
pub fn spawn(program: &Program<'_>) -> Result<Child, Errno> {
    let mut order = Order { program, parent: Some(rustix::process::getpid()), failure: None };
    // 16-byte units, because that is how stacks are aligned.
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: CLONE_VM | CLONE_VFORK | process::CLONE_PIDFD | process::CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK_BYTES as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = program.cgroup {
        args.flags |= process::CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // A handler of ours that ran in the child would run on our memory.
    let mask = signal::block_all();
    // SAFETY: `args` is a live clone_args whose stack is live memory of the size given; `pidfd`, `order` and the stack outlive
    // the child's use of them, because CLONE_VFORK holds this thread until the child has executed or ended.
    let result = unsafe { clone_onto(&mut args, &mut order) };
    signal::restore(&mask);
    let pid = i32::try_from(process::check_raw(result)?).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the kernel stored a fresh descriptor for us in `pidfd`, as CLONE_PIDFD promises on success.
    let child = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    match order.failure {
        None => Ok(child),
        Some(errno) => {
            let _ = process::reap(child.pidfd.as_fd());
            Err(errno)
        }
    }
}

/// clone3(2) whose child runs [`child`] on the stack in `args`; returns what the call returned to the parent.
///
/// The call is in assembly because the child has another stack: it must not return through frames that it does not have.
///
/// # Safety
/// `args` must be valid for clone3, with a stack of its own and CLONE_VFORK; `order` must outlive the child's exec.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_onto(args: &mut CloneArgs, order: &mut Order<'_>) -> isize {
    let mut result: isize = libc::SYS_clone3 as isize;
    // SAFETY: the caller vouches for `args` and `order`. The child leaves this block at the call, which does not return; the
    // parent sees a system call, which clobbers rax, rcx and r11. The new stack is 16-byte aligned at the call.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {order}",
            "call {child}",
            "ud2",
            "2:",
            order = in(reg) std::ptr::from_mut(order),
            child = in(reg) child as extern "C" fn(*mut Order<'static>) -> !,
            inout("rax") result,
            in("rdi") std::ptr::from_mut(args),
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_onto(args: &mut CloneArgs, order: &mut Order<'_>) -> isize {
    let mut result: isize = std::ptr::from_mut(args) as isize;
    // SAFETY: as above; on this processor a system call changes x0 alone.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {order}",
            "blr {child}",
            "brk 1",
            "2:",
            order = in(reg) std::ptr::from_mut(order),
            child = in(reg) child as extern "C" fn(*mut Order<'static>) -> !,
            inout("x0") result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
        );
    }
    result
}

/// The child's whole life before it is another program. It shares our memory: it allocates nothing and unwinds nowhere.
extern "C" fn child(order: *mut Order<'static>) -> ! {
    // SAFETY: the parent made `order` and stands still until we execute or end, so nobody else looks at it.
    let order = unsafe { &mut *order };
    let failure = become_program(order.program, order.parent).err();
    order.failure = failure;
    process::exit_now(127)
}

/// Returns only the error. *Child-safe.*
fn become_program(
    program: &Program<'_>,
    parent: Option<rustix::process::Pid>,
) -> Result<std::convert::Infallible, Errno> {
    rustix::process::setpgid(None, None)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It could have died before that call.
    if rustix::process::getppid() != parent {
        return Err(Errno::SRCH);
    }
    let mut numbers = program.streams.map(|stream| stream.as_raw_fd());
    for number in &mut numbers {
        // A stream that sits where another one goes is moved out of the way first.
        if *number < 3 {
            *number = process::duplicate_from(*number, 3)?;
        }
    }
    for (target, number) in (0..).zip(numbers) {
        process::duplicate_onto(number, target)?;
    }
    process::close_all_from(3, [])?;
    rustix::process::chdir(program.directory)?;
    signal::reset_to_defaults()?;
    Err(process::exec(program.path, program.arguments, program.environment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Runs a shell script; what it printed and how it ended.
    fn shell(script: &CStr) -> (String, i32) {
        run(c"/bin/sh", [c"sh", c"-c", script])
    }

    fn run<const N: usize>(path: &CStr, arguments: [&CStr; N]) -> (String, i32) {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let arguments = Vector::new(arguments);
        let environment = Vector::new([c"PATH=/usr/bin:/bin", c"ONLY=this"]);
        let child = spawn(&Program {
            path,
            arguments: &arguments,
            environment: &environment,
            directory: c"/",
            streams: [null.as_fd(), theirs.as_fd(), theirs.as_fd()],
            cgroup: None,
        });
        drop(theirs);
        let child = child.unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        (text, status.exit_status().unwrap_or(-1))
    }

    #[test]
    fn a_program_starts_clean() {
        let kept = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
        let (text, status) = shell(c"pwd; ls /proc/$$/fd | tr '\\n' ' '; env; exit 7");
        assert_eq!(status, 7);
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words[..4], ["/", "0", "1", "2"]);
        // Asked of a program that has not changed them itself, as a shell may.
        let (signals, _) = run(c"/bin/cat", [c"cat", c"/proc/self/status"]);
        for field in ["SigBlk:", "SigIgn:"] {
            assert!(signals.contains(&format!("{field}\t0000000000000000\n")), "{signals}");
        }
        assert!(text.contains("ONLY=this") && !text.contains("CARGO"), "{text}");
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_the_callers_error_told_through_the_memory_that_both_share() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let vector = Vector::new([c"x"]);
        for (path, errno) in [(c"/nonexistent", Errno::NOENT), (c"/etc/passwd", Errno::ACCESS)] {
            let failed = spawn(&Program {
                path,
                arguments: &vector,
                environment: &vector,
                directory: c"/",
                streams: [null.as_fd(); 3],
                cgroup: None,
            });
            assert_eq!(failed.unwrap_err(), errno);
        }
    }
}
