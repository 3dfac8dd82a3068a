//! Control groups (seam).
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
/// A cgroup error.
#[derive(Debug, thiserror::Error)]
#[error("cgroup: {0}")]
pub struct Error(Errno);
impl Error {
    /// The kernel's answer.
    pub fn errno(&self) -> Errno {
        self.0
    }
}
/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup(pub String);
#[allow(missing_docs)]
impl Cgroup {
    pub fn create(path: &str) -> Result<Self, Error> {
        Ok(Self(path.into()))
    }
    pub fn write(&self, _c: &str, _f: &str, _v: &str, _o: bool) -> Result<(), Error> {
        Ok(())
    }
    pub fn filter_devices(&self, _p: &[u64]) -> Result<(), Error> {
        Ok(())
    }
    pub fn directory(&self) -> Result<OwnedFd, Error> {
        Err(Error(Errno::NOSYS))
    }
    pub fn attach(&self, _pid: i32) -> Result<(), Error> {
        Ok(())
    }
    pub fn remove(&self) -> Result<(), Error> {
        Ok(())
    }
    pub fn x(_: BorrowedFd<'_>) {}
}
