//! Whether another process lives, and the clock that heartbeats are read by.

/// Milliseconds of `CLOCK_MONOTONIC`, the same for every process of this machine.
pub(crate) fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable and outlives the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Whether a process has this number. One of another user counts.
pub(crate) fn process_exists(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    if pid <= 0 {
        return false;
    }
    // SAFETY: signal 0 is not delivered; only the number is checked.
    let status = unsafe { libc::syscall(libc::SYS_kill, pid, 0) };
    // SAFETY: the location of this thread's errno is always readable.
    status == 0 || unsafe { *libc::__errno_location() } != libc::ESRCH
}

/// Whether the process has ended and only waits for its parent: state `Z` (or `X`) in `/proc/<pid>/stat`.
pub(crate) fn process_is_zombie(pid: u32) -> bool {
    let mut path = [0u8; 32];
    let written = {
        use std::io::Write;
        let mut rest = &mut path[..31];
        write!(rest, "/proc/{pid}/stat").is_ok()
    };
    if !written {
        return false;
    }
    let mut text = [0u8; 128];
    // SAFETY: the path ends with a zero byte, since its last byte is never written; the buffer is writable
    // for the length given. Raw calls, because this code runs inside the library that replaces them.
    let length = unsafe {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let descriptor = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0);
        if descriptor < 0 {
            return false;
        }
        let length = libc::syscall(libc::SYS_read, descriptor, text.as_mut_ptr(), text.len());
        libc::syscall(libc::SYS_close, descriptor);
        length
    };
    let text = usize::try_from(length).ok().and_then(|length| text.get(..length)).unwrap_or(&[]);
    // The command's name is in parentheses and may contain anything, so the last one counts.
    let Some(end) = text.iter().rposition(|&byte| byte == b')') else { return false };
    matches!(text.get(end + 2), Some(b'Z' | b'X'))
}
