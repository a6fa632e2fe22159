//! How much memory large frames may take, over all connections: one connection's bound alone would be multiplied by the
//! number of connections.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use borealis_types::invariant;
use borealis_wire::frame::MAX_PAYLOAD_BYTES;

/// Frames up to this size are not counted; the number of connections bounds them.
pub(crate) const UNCOUNTED_BYTES: usize = 256 << 10;
/// For large frames of the promised writer: two of the largest there are.
const PROMISED_BYTES: usize = 2 * MAX_PAYLOAD_BYTES;
/// For large frames of everyone else: two of the largest that they may send.
const OTHERS_BYTES: usize = 2 * borealis_wire::roles::ORDINARY_LIMIT_BYTES;
/// Longest wait for memory; whoever holds it must have sent its frame by then.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Memory for large frames, in two parts, so that others cannot take the promised writer's.
#[derive(Debug)]
pub(crate) struct FrameMemory {
    promised: Arc<Part>,
    others: Arc<Part>,
}

#[derive(Debug)]
struct Part {
    free_bytes: Mutex<usize>,
    given_back: Condvar,
    total_bytes: usize,
}

impl Default for FrameMemory {
    fn default() -> FrameMemory {
        let part = |total_bytes| {
            Arc::new(Part { free_bytes: Mutex::new(total_bytes), given_back: Condvar::new(), total_bytes })
        };
        FrameMemory { promised: part(PROMISED_BYTES), others: part(OTHERS_BYTES) }
    }
}

impl FrameMemory {
    /// Waits for memory for a frame of this size; `None` if none came free in time.
    pub(crate) fn reserve(&self, frame_bytes: usize, holds_promise: bool) -> Option<Reserved> {
        let part = if holds_promise { &self.promised } else { &self.others };
        part.reserve(frame_bytes, WAIT_MAX)
    }
}

impl Part {
    fn reserve(self: &Arc<Part>, bytes: usize, wait: Duration) -> Option<Reserved> {
        if bytes > self.total_bytes {
            return None;
        }
        let deadline = Instant::now() + wait;
        let mut free = self.free_bytes.lock().expect("nothing panics while it holds this lock");
        while *free < bytes {
            let left = deadline.checked_duration_since(Instant::now())?;
            free =
                self.given_back.wait_timeout(free, left).expect("nothing panics while it holds this lock").0;
        }
        *free -= bytes;
        Some(Reserved { part: Arc::clone(self), bytes })
    }
}

/// Memory for one frame, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    part: Arc<Part>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut free = self.part.free_bytes.lock().expect("nothing panics while it holds this lock");
        *free += self.bytes;
        // A second panic would end the process without a word about the first.
        if !std::thread::panicking() {
            invariant!(
                "frame-memory-adds-up",
                *free <= self.part.total_bytes,
                "{free} of {} bytes are free",
                self.part.total_bytes
            );
        }
        self.part.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_reserve_is_not_the_writers() {
        let memory = FrameMemory::default();
        let all = memory.reserve(OTHERS_BYTES, false).unwrap();
        assert!(memory.others.reserve(1, Duration::ZERO).is_none());
        assert!(memory.reserve(MAX_PAYLOAD_BYTES, true).is_some());
        drop(all);
        assert!(memory.others.reserve(1, Duration::ZERO).is_some());
        assert!(memory.reserve(OTHERS_BYTES + 1, false).is_none(), "nobody could ever give it");
    }

    #[test]
    fn a_frame_waits_until_another_was_handled() {
        let memory = Arc::new(FrameMemory::default());
        let first = memory.reserve(OTHERS_BYTES, false).unwrap();
        let waiting = std::thread::spawn({
            let memory = Arc::clone(&memory);
            move || memory.reserve(OTHERS_BYTES, false).is_some()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.join().unwrap());
    }

    #[test]
    #[should_panic(expected = "invariant frame-memory-adds-up is broken")]
    fn memory_that_was_given_back_twice_is_noticed() {
        let memory = FrameMemory::default();
        let reserved = memory.reserve(100, false).unwrap();
        *memory.others.free_bytes.lock().unwrap() = OTHERS_BYTES;
        drop(reserved);
    }
}
