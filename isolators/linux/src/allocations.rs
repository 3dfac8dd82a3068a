//! Counting what a program allocates: for budgets, which hold on every machine alike.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with a count of what it is asked for. A program takes it with `#[global_allocator]`.
#[derive(Debug)]
pub struct Counted;

/// How many blocks of memory were asked for up to now, those that were made larger or smaller included.
#[must_use]
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

// SAFETY: every call goes on to the system's allocator as it came, which keeps the contract; the count is an atomic.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises; the block came from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises; the block came from the system's allocator.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_counted_and_works() {
        let layout = Layout::array::<u64>(4).unwrap();
        let before = count();
        // SAFETY: the layout has a size; the block is used and freed with the size that it has at that time.
        unsafe {
            let block = Counted.alloc_zeroed(layout);
            assert_eq!(*block, 0);
            let larger = Counted.realloc(block, layout, 2 * layout.size());
            Counted.dealloc(larger, Layout::array::<u64>(8).unwrap());
            let other = Counted.alloc(layout);
            Counted.dealloc(other, layout);
        }
        assert_eq!(count() - before, 3);
    }
}
