//! Circular comparison of 32-bit transaction ids, multixact ids and member offsets.
//!
//! Rules: `TransactionIdPrecedes` in `src/backend/access/transam/transam.c`, `MultiXactIdPrecedes` in
//! `src/backend/access/transam/multixact.c`.

use borealis_wal::layout::FIRST_NORMAL_XID;

/// Whether `left` is older than `right`, at most half the circle apart.
#[must_use]
pub(crate) fn precedes(left: u32, right: u32) -> bool {
    if left < FIRST_NORMAL_XID || right < FIRST_NORMAL_XID {
        left < right
    } else {
        circularly_precedes(left, right)
    }
}

/// Whether `left` comes before `right` on a circle without fixed ids (multixact ids and member offsets).
#[must_use]
pub(crate) fn circularly_precedes(left: u32, right: u32) -> bool {
    left.wrapping_sub(right) > i32::MAX as u32
}

/// The id after `xid`, leaving out those with fixed meanings.
#[must_use]
pub(crate) fn next(xid: u32) -> u32 {
    xid.wrapping_add(1).max(FIRST_NORMAL_XID)
}

/// The next full transaction id (epoch in the high half) once `xid` is known to be in use: past it, unless
/// `next_full_xid` is already.
///
/// A full id cannot be told from 32 bits alone, but no two transaction ids in use at one time are more than
/// half the circle apart, so an id that looks newer and is numerically smaller starts the next epoch.
#[must_use]
pub(crate) fn advance_full_past(next_full_xid: u64, xid: u32) -> u64 {
    // The low half of a full id is a transaction id by definition.
    let next_xid = next_full_xid as u32;
    if precedes(xid, next_xid) || xid < FIRST_NORMAL_XID {
        return next_full_xid;
    }
    let advanced = next(xid);
    let epoch = next_full_xid >> 32;
    let epoch = if advanced < next_xid { epoch.saturating_add(1) & 0xFFFF_FFFF } else { epoch };
    epoch << 32 | u64::from(advanced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_wal::layout::INVALID_XID;
    use proptest::prelude::*;

    #[test]
    fn fixed_ids_are_older_than_all_others() {
        assert!(precedes(2, 3));
        assert!(precedes(0, u32::MAX));
        assert!(!precedes(u32::MAX, 1));
    }

    #[test]
    fn an_id_past_the_wrap_starts_the_next_epoch() {
        let next_full_xid = 7 << 32 | 0xFFFF_FFF0;
        assert_eq!(advance_full_past(next_full_xid, 0xFFFF_FFEF), next_full_xid, "already past it");
        assert_eq!(advance_full_past(next_full_xid, 0xFFFF_FFF0), 7 << 32 | 0xFFFF_FFF1);
        assert_eq!(advance_full_past(next_full_xid, 0xFFFF_FFFF), 8 << 32 | 3);
        assert_eq!(advance_full_past(next_full_xid, 5), 8 << 32 | 6);
        assert_eq!(advance_full_past(next_full_xid, INVALID_XID), next_full_xid);
    }

    proptest! {
        #[test]
        fn advancing_never_goes_back_and_ends_past_the_id(epoch in 0_u64..1 << 31, low in 3_u32.., xid in 3_u32..) {
            let before = epoch << 32 | u64::from(low);
            let after = advance_full_past(before, xid);
            prop_assert!(after >= before);
            // Exactly half the circle away, either id precedes the other.
            prop_assume!(xid.wrapping_sub(low) != 1 << 31);
            prop_assert!(precedes(xid, after as u32) || xid.wrapping_sub(after as u32) == 1 << 31);
        }
    }
}
