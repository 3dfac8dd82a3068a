//! The memory that is pulled to: in the same state for everybody.
//!
//! The host of a virtual machine may take back what the machine has free (virtio-balloon's free page reporting, some seconds
//! after it was freed) and gives it again at the first touch, page by page. That takes one to two seconds of processor time
//! for a gigabyte, as much as inflating and hashing it, and whom it meets depends on what ran before. So memory is touched
//! and freed at once before each pull, and what a pull then takes for its files is there.

/// More than the largest image and its blobs.
const BYTES: usize = 2 << 30;

/// Lets the host give what a pull will take.
pub(super) fn touch() {
    drop(std::hint::black_box(vec![1_u8; BYTES]));
}
