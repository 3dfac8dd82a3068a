//! The size of the terminal's window.
#![allow(unsafe_code)] // repeated from lib.rs for the second compilation, see guest.rs

use std::ffi::{c_int, c_ulong};
use std::os::fd::{AsRawFd, BorrowedFd};

#[cfg(not(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc64",
    target_arch = "sparc64"
)))]
const TIOCGWINSZ: c_ulong = 0x5413;
#[cfg(any(target_arch = "mips", target_arch = "mips64", target_arch = "powerpc64", target_arch = "sparc64"))]
const TIOCGWINSZ: c_ulong = 0x4008_7468;

/// A window's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
    x_pixels: u16,
    y_pixels: u16,
}

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
}

/// The size of the window of the terminal at `fd`; nothing if there is no terminal.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = WindowSize::default();
    // SAFETY: TIOCGWINSZ writes one `struct winsize`, which `WindowSize` is laid out as, through a pointer to a live local.
    let result = unsafe { ioctl(fd.as_raw_fd(), TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_is_no_terminal() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        assert_eq!(window_size(file.as_fd()), None);
    }
}
