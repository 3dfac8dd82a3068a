//! The entry point of a program that must be sealed: it seals itself (see [`crate::sealed`]) before the C library starts, so
//! that the C library starts once and not twice.
//!
//! On a virtual machine the start of a static C library is the most expensive thing that a short program does: every `cpuid`
//! instruction, of which it executes some forty, leaves the guest. A program takes this entry with the linker argument
//! `-e cofferdam_start` (see the build script of `cofferdam-oci`). It is a short cut and nothing depends on it: whatever does not
//! work here is left to [`crate::sealed::become_sealed`], which the program calls in any case.
//!
//! The code below runs before relocation, before thread-local storage and before `memcpy` and its like can be called. So it
//! makes system calls by instruction, reads memory by single volatile bytes, and refers to nothing by a stored address.

use core::arch::{asm, global_asm};

/// The words of a command line that say that a container will be entered. A false match costs one needless exec.
const ENTERING: [&[u8; 8]; 4] = [b"create\0\0", b"run\0\0\0\0\0", b"exec\0\0\0\0", b"restore\0"];

const SYS_CLOSE: usize = 3;
const SYS_OPEN: usize = 2;
const SYS_FCNTL: usize = 72;
const SYS_FSTATFS: usize = 138;
const SYS_EXECVEAT: usize = 322;
const SYS_OPEN_TREE: usize = 428;
const SYS_MOUNT_SETATTR: usize = 442;

const O_CLOEXEC: usize = 0o2_000_000;
const AT_FDCWD: usize = -100_isize as usize;
const AT_EMPTY_PATH: usize = 0x1000;
const OPEN_TREE_CLONE: usize = 1;
const F_GET_SEALS: usize = 1034;
const F_SEAL_WRITE: usize = 8;
const ST_RDONLY: u64 = 1;
const MOUNT_ATTR_RDONLY: u64 = 1;
const STATFS_WORDS: usize = 15;
const STATFS_FLAGS: usize = 10;

// rdx holds what the kernel wants run at exit, rsp the arguments: both must reach the real entry as they came.
global_asm!(
    ".globl cofferdam_start",
    ".type cofferdam_start, @function",
    "cofferdam_start:",
    "mov rbx, rsp",
    "mov r12, rdx",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {seal}",
    "mov rsp, rbx",
    "mov rdx, r12",
    "xor ebp, ebp",
    "jmp _start",
    seal = sym seal,
);

/// Executes the program again from a read-only copy of its mount, where that is needed and possible. `stack` is what the
/// kernel left: the count of arguments, the arguments, a zero, the environment, a zero.
extern "C" fn seal(stack: *const usize) {
    // SAFETY: `stack` is the initial stack of the process, laid out as the ABI says: all words read below are there. The
    // system calls are given addresses of live data of the sizes that they expect.
    unsafe {
        let count = stack.read_volatile();
        let arguments = stack.add(1);
        if !enters(arguments, count) {
            return;
        }
        let own = c"/proc/self/exe".as_ptr() as usize;
        let program = call(SYS_OPEN, [own, O_CLOEXEC, 0, 0, 0]);
        if failed(program) {
            return;
        }
        let mut statistics = [0_u64; STATFS_WORDS];
        let told = call(SYS_FSTATFS, [program, statistics.as_mut_ptr() as usize, 0, 0, 0]);
        let seals = call(SYS_FCNTL, [program, F_GET_SEALS, 0, 0, 0]);
        call(SYS_CLOSE, [program, 0, 0, 0, 0]);
        let read_only = statistics.as_ptr().add(STATFS_FLAGS).read_volatile() & ST_RDONLY != 0;
        if failed(told) || read_only || (!failed(seals) && seals & F_SEAL_WRITE != 0) {
            return;
        }
        let tree = call(SYS_OPEN_TREE, [AT_FDCWD, own, OPEN_TREE_CLONE | O_CLOEXEC, 0, 0]);
        if failed(tree) {
            return;
        }
        let attributes = [MOUNT_ATTR_RDONLY, 0, 0, 0];
        let empty = c"".as_ptr() as usize;
        let size = size_of_val(&attributes);
        if !failed(call(SYS_MOUNT_SETATTR, [tree, empty, AT_EMPTY_PATH, attributes.as_ptr() as usize, size]))
        {
            let environment = arguments.add(count + 1) as usize;
            call(SYS_EXECVEAT, [tree, empty, arguments as usize, environment, AT_EMPTY_PATH]);
        }
        call(SYS_CLOSE, [tree, 0, 0, 0, 0]);
    }
}

/// Whether one of the arguments is a command that enters a container.
///
/// # Safety
/// `arguments` points at `count` addresses of zero-terminated texts.
unsafe fn enters(arguments: *const usize, count: usize) -> bool {
    let mut index = 1;
    while index < count {
        // SAFETY: as the caller promises.
        let text = unsafe { arguments.add(index).read_volatile() } as *const u8;
        let mut word = 0;
        while word < ENTERING.len() {
            // SAFETY: as the caller promises; a word is not read beyond its first zero, which ends the text.
            if unsafe { is(text, ENTERING[word]) } {
                return true;
            }
            word += 1;
        }
        index += 1;
    }
    false
}

/// Byte by byte, and volatile, so that it is not made a call of the C library.
///
/// # Safety
/// `text` is zero-terminated.
unsafe fn is(text: *const u8, word: &[u8; 8]) -> bool {
    let mut at = 0;
    while at < word.len() {
        // SAFETY: no zero was met before `at`, so the text goes on to there.
        let byte = unsafe { text.add(at).read_volatile() };
        if byte != word[at] {
            return false;
        }
        if byte == 0 {
            return true;
        }
        at += 1;
    }
    false
}

fn failed(result: usize) -> bool {
    result > usize::MAX - 4096
}

/// # Safety
/// As the system call demands.
unsafe fn call(number: usize, [a, b, c, d, e]: [usize; 5]) -> usize {
    let result;
    // SAFETY: the caller's promise; the kernel changes rcx, r11 and the result alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}
