//! The mapped file and typed access to it.

use std::os::fd::RawFd;

use crate::layout::{Header, MAX_SLOTS, Slot, total_bytes};

/// A shared mapping of the whole file. Unmapped when dropped.
pub(crate) struct Mapping {
    base: *mut u8,
    slot_count: usize,
}

// SAFETY: the mapping is shared memory by nature. Everything in it is an atomic, or is written before the
// magic word is and never again, or is handed over by a slot's state word.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `slot_count` slots and the header of the open file. The caller has checked the file's length.
    /// `None` when the kernel refuses (see `errno`).
    pub(crate) fn new(descriptor: RawFd, slot_count: usize) -> Option<Mapping> {
        if slot_count == 0 || slot_count > MAX_SLOTS {
            return None;
        }
        // SAFETY: a fresh mapping at an address the kernel chooses touches no existing object.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                total_bytes(slot_count),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                descriptor,
                0,
            )
        };
        (base != libc::MAP_FAILED).then(|| Mapping { base: base.cast(), slot_count })
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the mapping starts with a header, is page-aligned, and lives as long as `self`. All bit
        // patterns are valid for its fields, and its plain fields do not change once the magic is written.
        unsafe { &*self.base.cast::<Header>() }
    }

    /// The header's address, for writing the plain fields before anyone else maps the file.
    pub(crate) fn header_pointer(&mut self) -> *mut Header {
        self.base.cast()
    }

    pub(crate) fn slot_count(&self) -> usize {
        self.slot_count
    }

    pub(crate) fn slot(&self, index: usize) -> Option<&Slot> {
        if index >= self.slot_count {
            return None;
        }
        // SAFETY: the index is in range, so the slot lies inside the mapping; slots follow the header, whose
        // size is a multiple of their alignment (both are aligned to 64). All bit patterns are valid.
        Some(unsafe { &*self.base.add(size_of::<Header>()).cast::<Slot>().add(index) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.cast(), total_bytes(self.slot_count)) };
    }
}
