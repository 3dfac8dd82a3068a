//! Questions to the kernel about itself, none of which changes anything.

use rustix::io::Errno;

use crate::process::check;

/// The version of the Landlock interface, landlock(7). `ENOSYS` and `EOPNOTSUPP` mean "not built" and "not enabled".
pub fn landlock_abi() -> Result<u32, Errno> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the kernel wants no attributes and no size, and returns a number rather than a descriptor.
    let version = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    })?;
    u32::try_from(version).map_err(|_| Errno::RANGE)
}

/// Whether seccomp(2) filters may return `action`, one of `SECCOMP_RET_*`.
pub fn has_seccomp_action(action: u32) -> bool {
    const SECCOMP_GET_ACTION_AVAIL: u32 = 2;
    // SAFETY: the kernel reads one u32 from a live local.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) }).is_ok()
}

/// Whether clone3(2) is there and no filter of our own hides it.
pub fn has_clone3() -> bool {
    // SAFETY: a size of zero is refused before the pointer is looked at.
    let result = check(unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0_usize) });
    result == Err(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_without_doing_anything() {
        assert!(has_clone3(), "clone3 is from Linux 5.3");
        const ALLOW: u32 = 0x7fff_0000;
        const NO_SUCH_ACTION: u32 = 0x1234_0000;
        assert!(has_seccomp_action(ALLOW));
        assert!(!has_seccomp_action(NO_SUCH_ACTION));
        match landlock_abi() {
            Ok(version) => assert!(version >= 1),
            Err(errno) => assert!(matches!(errno, Errno::NOSYS | Errno::OPNOTSUPP), "{errno}"),
        }
    }
}
