//! What the library tells the user: one line to standard error, without allocating.

use std::sync::atomic::{AtomicU32, Ordering};

use borealis_shm::{RequestError, WaitError};
use libc::c_int;

/// Writes one line to standard error, which is PostgreSQL's log. Longer than 600 bytes is cut.
pub(crate) fn say(parts: &[&[u8]]) {
    let mut line = [0u8; 600];
    let mut used = 0;
    for &byte in parts.iter().copied().flatten().take(line.len() - 1).chain(b"\n") {
        if let Some(place) = line.get_mut(used) {
            *place = byte;
            used += 1;
        }
    }
    // SAFETY: the buffer is readable for the length given. Nothing can be done if nobody listens.
    unsafe { libc::syscall(libc::SYS_write, 2, line.as_ptr(), used) };
}

/// A number in decimal digits, without allocating.
pub(crate) struct Digits([u8; 20], usize);

impl Digits {
    pub(crate) fn new(mut value: u64) -> Digits {
        let mut digits = Digits([b'0'; 20], 20);
        for (index, digit) in digits.0.iter_mut().enumerate().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
            digits.1 = index;
            if value == 0 {
                break;
            }
        }
        digits
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.get(self.1..).unwrap_or(&[])
    }
}

/// Messages of one process, so that a loop of failures does not fill the log.
static SAID: AtomicU32 = AtomicU32::new(0);

const MAX_SAID: u32 = 100;

pub(crate) fn may_say() -> bool {
    SAID.fetch_add(1, Ordering::Relaxed) < MAX_SAID
}

/// Says why a wait failed; the `errno` to fail with.
pub(crate) fn report_wait(error: &WaitError) -> c_int {
    if may_say() {
        match error {
            WaitError::Fenced(epoch) => say(&[
                b"borealis: this instance was fenced by a newer writer (epoch ",
                Digits::new(epoch.0).as_bytes(),
                b"); nothing more it writes will be kept. Connect to the new writer.",
            ]),
            WaitError::Poisoned(reason) => say(&[
                b"borealis: the driver stopped this instance: ",
                reason.as_bytes(),
                b". Restart it; everything acknowledged is in storage.",
            ]),
            WaitError::DriverGone => say(&[
                b"borealis: the driver of this instance is gone; what was not acknowledged may be lost. ",
                b"Restart the instance.",
            ]),
        }
    }
    libc::EIO
}

/// Says why a request for `path` (or another description) failed; the `errno` to fail with.
pub(crate) fn report_request(what: &[u8], error: &RequestError) -> c_int {
    match error {
        RequestError::Instance(error) => return report_wait(error),
        RequestError::Refused(reason) if may_say() => {
            say(&[b"borealis: storage could not serve ", what, b": ", reason.as_bytes()]);
        }
        RequestError::Malformed if may_say() => {
            say(&[b"borealis: the driver's answer about ", what, b" makes no sense; are both of one build?"]);
        }
        RequestError::Refused(_) | RequestError::Malformed => {}
    }
    libc::EIO
}

/// Says something about a file; the `errno` to fail with.
pub(crate) fn report_file(parts: &[&[u8]]) -> c_int {
    if may_say() {
        say(parts);
    }
    libc::EIO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        for value in [0, 7, 10, 1_234_567_890, u64::MAX] {
            assert_eq!(Digits::new(value).as_bytes(), value.to_string().as_bytes());
        }
    }
}
