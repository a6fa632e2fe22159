//! How much memory the cache may take.

use std::fs;
use std::path::Path;

/// Cached pages may take one in this many parts of the memory there is, unless the user says otherwise. The rest is for
/// log in flight, temporary files, and other programs.
const SHARE: u64 = 2;

/// The limit when the user gives none: a share of what the memory file system has to offer and of what this process's
/// control group may use, whichever is less.
#[must_use]
pub fn default_limit_bytes(file_system_bytes: u64) -> u64 {
    file_system_bytes.min(control_group_bytes().unwrap_or(u64::MAX)) / SHARE
}

/// Free memory that the cache leaves to log, temporary files and other programs: a sixteenth of the file system, a
/// gigabyte at most.
const RESERVE_SHARE: u64 = 16;
const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// The limit as of now: the one that was set, or less when the memory file system is running full.
pub(super) fn current_limit_bytes(data_directory: &Path, set_bytes: u64, cache_bytes: u64) -> u64 {
    let Some((free_bytes, total_bytes)) = room(data_directory) else { return set_bytes };
    within_room(set_bytes, cache_bytes, free_bytes, total_bytes)
}

/// Whether less is free than the cache should leave to others.
pub(super) fn is_short_of_room(data_directory: &Path) -> bool {
    room(data_directory).is_some_and(|(free_bytes, total_bytes)| free_bytes < reserve_bytes(total_bytes))
}

/// Bytes that the memory file system has free, and altogether; `None` if it does not say.
fn room(data_directory: &Path) -> Option<(u64, u64)> {
    let statistics = nix::sys::statfs::statfs(data_directory).ok()?;
    let block_bytes = statistics.block_size().unsigned_abs();
    let bytes = |blocks: u64| blocks.saturating_mul(block_bytes);
    Some((bytes(statistics.blocks_available()), bytes(statistics.blocks())))
}

fn reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / RESERVE_SHARE).min(RESERVE_BYTES_MAX)
}

fn within_room(set_bytes: u64, cache_bytes: u64, free_bytes: u64, total_bytes: u64) -> u64 {
    set_bytes.min(cache_bytes.saturating_add(free_bytes).saturating_sub(reserve_bytes(total_bytes)))
}

/// The least `memory.max` of this process's control group and those around it (cgroup version 2); `None` without one.
fn control_group_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(path);
    own.ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_full_file_system_lowers_the_limit() {
        assert_eq!(within_room(4 * GIB, 2 * GIB, 14 * GIB, 16 * GIB), 4 * GIB);
        // Others have taken nearly everything: the cache shrinks until the reserve is free.
        assert_eq!(within_room(4 * GIB, 3 * GIB, GIB / 2, 16 * GIB), 3 * GIB - GIB / 2);
        assert_eq!(within_room(4 * GIB, 0, 0, 16 * GIB), 0);
        assert_eq!(within_room(0, GIB, GIB, 16 * GIB), 0);
    }

    #[test]
    fn the_default_is_a_share_of_what_there_is() {
        assert!(default_limit_bytes(8 * GIB) <= 4 * GIB);
        assert_eq!(default_limit_bytes(0), 0);
    }
}
