//! One system call through every door that the kernel has for it: a seccomp filter has to know them all.
#![allow(unsafe_code)] // repeated from lib.rs for the second compilation, see guest.rs

use std::ffi::c_long;

/// A way into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// As this program was compiled.
    Native,
    /// The 32-bit one of the same machine: `int 0x80` on x86-64.
    Compat,
    /// x86-64's with 32-bit pointers: the native one with a bit in the number.
    X32,
}

const ENOSYS: i32 = 38;

#[cfg(target_arch = "x86_64")]
const GETPPID: c_long = 110;
#[cfg(not(target_arch = "x86_64"))]
const GETPPID: c_long = 173;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// getppid(2), which on its own cannot fail: the parent's pid, or the error number that a filter gave.
pub fn parent(abi: Abi) -> Result<i64, i32> {
    const X32_BIT: c_long = 0x4000_0000;
    let number = match abi {
        Abi::Native => GETPPID,
        Abi::X32 if cfg!(target_arch = "x86_64") => GETPPID | X32_BIT,
        Abi::X32 => return Err(ENOSYS),
        Abi::Compat => return compat_parent(),
    };
    // SAFETY: getppid has no arguments and touches no memory; a number that the kernel does not know gives ENOSYS.
    let result = unsafe { syscall(number) };
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

#[cfg(target_arch = "x86_64")]
fn compat_parent() -> Result<i64, i32> {
    const GETPPID_I386: i32 = 64;
    let result: i32;
    // SAFETY: getppid has no arguments and touches no memory; the kernel keeps every register but eax and, before Linux
    // 4.17, r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") GETPPID_I386 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result >= 0 { Ok(result.into()) } else { Err(-result) }
}

#[cfg(not(target_arch = "x86_64"))]
fn compat_parent() -> Result<i64, i32> {
    Err(ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_call_and_std_agree() {
        assert_eq!(parent(Abi::Native), Ok(i64::from(std::os::unix::process::parent_id())));
    }
}
