//! The limit on open files of this process.

use anyhow::Context;

/// For connections (two each), the peers, the log, and what else is open besides the files of pages and old log.
const RESERVED: u64 = 2 * 256 + 64;
/// Fewer are not enough to serve six nodes and a writer.
const LIMIT_MIN: u64 = 64;
/// Open page and log files: fewer cost a system call now and then, more bring nothing.
const FILES_MIN: u64 = 8;
const FILES_MAX: u64 = 1024;

/// How many page and log files may be open when the process may open `limit` files.
fn files_of(limit: u64) -> usize {
    let files = limit.saturating_sub(RESERVED).clamp(FILES_MIN, FILES_MAX);
    usize::try_from(files).expect("at most a thousand")
}

/// Raises the limit on open files as far as the system allows, and returns how many page and log files may be open at a
/// time.
///
/// # Errors
/// When the limit is too low for a node to serve.
pub(crate) fn raise_limit() -> anyhow::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one `rlimit` to the pointer it is given.
    #[allow(unsafe_code)]
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result != 0 {
        return Err(std::io::Error::last_os_error())
            .context("cannot see how many files this process may open");
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: the call reads one `rlimit` from the pointer it is given.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    if result == 0 {
        limit = raised;
    }
    let limit = limit.rlim_cur;
    anyhow::ensure!(
        limit >= LIMIT_MIN,
        "this process may open {limit} files, and a storage node needs {LIMIT_MIN} at least, better 1024: raise the limit \
         (`ulimit -n`, or `LimitNOFILE=` of the service)"
    );
    if limit < RESERVED + FILES_MIN {
        tracing::warn!(
            limit,
            "this process may open few files: with many connections it has to refuse some; raise the limit (`ulimit -n`, or \
             `LimitNOFILE=` of the service) to 1024 at least"
        );
    }
    Ok(files_of(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_limit_leaves_room_for_files_and_a_low_one_for_a_few() {
        assert_eq!([64, 600, 1024, 1 << 20].map(files_of), [8, 24, 448, 1024]);
        assert!(raise_limit().unwrap() >= 8);
    }
}
