//! A page shared between parent and child: how the child tells which step it has done, when, and what failed, without a
//! single system call.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// No step has failed.
const NONE: u64 = u64::MAX;

/// Header of the shared memory. The records follow it.
#[repr(C)]
struct Header {
    failed_step: AtomicU64,
    errno: AtomicI32,
    detail: AtomicI32,
    pid: AtomicI32,
    _padding: u32,
}

/// What went wrong in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildFailure {
    /// Index of the step in the plan.
    pub step: usize,
    /// Error number of the call that failed.
    pub errno: Errno,
    /// A number that the step gives meaning to.
    pub detail: i32,
}

/// The shared page: one failure, and one time stamp a step.
#[derive(Debug)]
pub struct Report {
    memory: std::ptr::NonNull<u8>,
    steps: usize,
}

// SAFETY: the memory is only ever read and written through atomics, and lives as long as the value.
unsafe impl Send for Report {}
// SAFETY: as above.
unsafe impl Sync for Report {}

impl Report {
    /// Maps a page (or as many as it takes) for `steps` records.
    pub fn new(steps: usize) -> Result<Self, Errno> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let memory = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                Self::size(steps),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }?;
        let memory = std::ptr::NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?;
        let report = Self { memory, steps };
        report.header().failed_step.store(NONE, Ordering::Relaxed);
        Ok(report)
    }

    fn size(steps: usize) -> usize {
        size_of::<Header>() + steps * size_of::<AtomicU64>()
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, at least as large as a Header, and zero-filled, which is a valid Header.
        unsafe { self.memory.cast().as_ref() }
    }

    fn records(&self) -> &[AtomicU64] {
        // SAFETY: `steps` records fit behind the header by construction, aligned to 8 because the header's size is 24;
        // zero-filled memory is a valid AtomicU64.
        unsafe {
            let first = self.memory.as_ptr().add(size_of::<Header>()).cast();
            std::slice::from_raw_parts(first, self.steps)
        }
    }

    /// Records that `step` was done at `nanoseconds` of the monotonic clock. *Child-safe.*
    pub fn done(&self, step: usize, nanoseconds: u64) {
        if let Some(record) = self.records().get(step) {
            record.store(nanoseconds, Ordering::Release);
        }
    }

    /// Records the failure. *Child-safe.*
    pub fn fail(&self, step: usize, errno: Errno, detail: i32) {
        self.header().errno.store(errno.raw_os_error(), Ordering::Relaxed);
        self.header().detail.store(detail, Ordering::Relaxed);
        self.header().failed_step.store(step as u64, Ordering::Release);
    }

    /// The place for the child's pid, which the clone fills in.
    pub fn pid(&self) -> &AtomicI32 {
        &self.header().pid
    }

    /// When `step` was done, 0 if it was not.
    pub fn time(&self, step: usize) -> u64 {
        self.records().get(step).map_or(0, |record| record.load(Ordering::Acquire))
    }

    /// The failure that the child recorded.
    pub fn failure(&self) -> Option<ChildFailure> {
        let step = self.header().failed_step.load(Ordering::Acquire);
        (step != NONE).then(|| ChildFailure {
            step: step as usize,
            errno: Errno::from_raw_os_error(self.header().errno.load(Ordering::Relaxed)),
            detail: self.header().detail.load(Ordering::Relaxed),
        })
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and no borrow of it outlives the value.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), Self::size(self.steps)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::clone_child;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;

    #[test]
    fn what_the_child_records_the_parent_reads() {
        let report = Report::new(700).unwrap();
        assert_eq!(report.failure(), None);
        let child = clone_child(0, None, || {
            report.done(699, 12345);
            report.fail(3, Errno::NOENT, 7);
            0
        })
        .unwrap();
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        assert_eq!(report.time(699), 12345);
        assert_eq!(report.failure(), Some(ChildFailure { step: 3, errno: Errno::NOENT, detail: 7 }));
        report.done(700, 1); // out of range: dropped
    }
}
