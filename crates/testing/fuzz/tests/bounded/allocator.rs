//! An allocator that counts: what hostile bytes made a target allocate.

// An allocator is unsafe by nature.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// No request above this is even tried.
const REFUSED_BYTES: usize = 1 << 30;

static LARGEST_BYTES: AtomicUsize = AtomicUsize::new(0);
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with counters that all threads share.
pub struct Counting;

fn grew(bytes: usize) {
    LARGEST_BYTES.fetch_max(bytes, Ordering::Relaxed);
    let live = LIVE_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK_BYTES.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every request goes to the system's allocator unchanged, or is answered with the null pointer that means
// failure; the counters are atomic and nothing here allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        if layout.size() > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps this method's contract, which is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        if layout.size() > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        grew(new_bytes);
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        if new_bytes > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_bytes) }
    }
}

/// What was allocated while something ran.
#[derive(Clone, Copy, Debug)]
pub struct Allocated {
    /// The largest single request, in bytes.
    pub largest_bytes: usize,
    /// The most that was in use at once beyond what was before, in bytes.
    pub peak_bytes: usize,
}

/// Runs something and tells what it, or any other thread meanwhile, allocated.
pub fn measured<T>(run: impl FnOnce() -> T) -> (T, Allocated) {
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    LARGEST_BYTES.store(0, Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    let result = run();
    let allocated = Allocated {
        largest_bytes: LARGEST_BYTES.load(Ordering::Relaxed),
        peak_bytes: PEAK_BYTES.load(Ordering::Relaxed).saturating_sub(before),
    };
    (result, allocated)
}
