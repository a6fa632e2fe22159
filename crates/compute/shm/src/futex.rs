//! Futexes on shared memory (`futex(2)`), for processes rather than threads.

use std::sync::atomic::AtomicU32;

/// Sleeps while `*word == expected`, at most `timeout_ms`.
///
/// Returns for any reason (a wake, a changed word, a signal, the time limit); the caller looks again.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout_ms: u32) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::from(timeout_ms / 1000),
        tv_nsec: libc::c_long::from(timeout_ms % 1000) * 1_000_000,
    };
    // SAFETY: the word is a live, aligned 32-bit integer for the whole call, and the time limit outlives it.
    // FUTEX_WAIT without FUTEX_PRIVATE_FLAG, because the waker is another process.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            std::ptr::from_ref(&timeout),
            std::ptr::null::<u32>(),
            0u32,
        );
    }
}

/// Wakes everyone who sleeps on the word.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: the word is a live, aligned 32-bit integer for the whole call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE,
            i32::MAX,
            std::ptr::null::<libc::timespec>(),
            std::ptr::null::<u32>(),
            0u32,
        );
    }
}
