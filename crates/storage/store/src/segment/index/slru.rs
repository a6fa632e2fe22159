//! Which pages of a transaction-status store a truncation removes.

use borealis_types::{SLRU_PAGES_PER_SEGMENT, SlruKind};
use borealis_wal::layout::slru;

/// Whether truncating the store so that `first_kept` stays removes `page`.
///
/// As `SlruMayDeleteSegment` in `src/backend/access/transam/slru.c`: a segment file goes when its first and
/// its last page both precede the cutoff, in the circular order of what the pages are about.
pub(crate) fn slru_page_is_gone(kind: SlruKind, page: u32, first_kept: u32) -> bool {
    let per_page: u32 = match kind {
        SlruKind::Transactions => slru::TRANSACTIONS_PER_PAGE,
        SlruKind::MultiXactOffsets => slru::MULTIXACTS_PER_PAGE,
        SlruKind::MultiXactMembers => slru::MEMBERS_PER_PAGE,
        SlruKind::CommitTimestamps => slru::COMMIT_TIMESTAMPS_PER_PAGE,
    };
    let precedes = |page: u32, other: u32| {
        let (first, other_first) = (page.wrapping_mul(per_page), other.wrapping_mul(per_page));
        let before = |a: u32, b: u32| (a.wrapping_sub(b) as i32) < 0;
        before(first, other_first) && before(first, other_first.wrapping_add(per_page - 1))
    };
    let segment_first = page - page % SLRU_PAGES_PER_SEGMENT;
    precedes(segment_first, first_kept)
        && precedes(segment_first.wrapping_add(SLRU_PAGES_PER_SEGMENT - 1), first_kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncating_a_store_removes_whole_segments_in_circular_order() {
        let gone = |page, kept| slru_page_is_gone(SlruKind::Transactions, page, kept);
        assert!(gone(0, 32) && gone(31, 32) && gone(31, 40));
        assert!(!gone(32, 40) && !gone(0, 31) && !gone(64, 40));
        // Pages 0 to 131071 are all there are; the cutoff has wrapped around.
        assert!(gone(131_008, 40) && !gone(40, 131_008));
    }
}
