//! Which cached pages may be dropped.
//!
//! A page that is dropped comes back from storage as redo makes it. That is the same page only if
//!
//! * its content is logged: pages of an index that is being built, of unlogged relations and free space maps are not;
//! * storage has all of it: the page's LSN alone does not say so, because setting "all visible" does not raise it;
//! * no transaction that changed it is still open: command ids and speculative tokens are not in redo;
//! * it has nothing else that PostgreSQL needs and redo does not restore: the vacuum cycle id of a B-tree page, and the
//!   values a sequence has handed out since it last logged.
//!
//! Hint bits, `LP_DEAD` marks and the like are lost; PostgreSQL sets them again.

use borealis_types::{Lsn, PAGE_SIZE, PageBytes, invariant};
use borealis_wal::layout::btree::{CYCLE_ID_MAX, CYCLE_ID_OFFSET, SPECIAL_BYTES as BTREE_SPECIAL_BYTES};
use borealis_wal::layout::page::{LSN_OFFSET, SPECIAL_OFFSET, UPPER_OFFSET, max_align};
use borealis_wal::layout::sequence::{self, MAGIC as SEQUENCE_MAGIC};

/// The special space of a sequence's page is aligned, as every page's is.
const SEQUENCE_SPECIAL_BYTES: usize = max_align(sequence::SPECIAL_BYTES);

/// The reason for which a page must stay in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// It was never initialised: nothing was logged of it.
    Empty,
    /// Its LSN is none of the log: nothing was logged of it yet.
    NotLogged,
    /// Storage does not have all of its redo yet.
    NotDurable,
    /// A transaction that is not over may have changed it.
    OpenTransaction,
    /// It has a vacuum cycle id.
    VacuumCycle,
    /// It is a sequence's page: the values it has handed out since it last logged are in memory alone.
    Sequence,
}

/// What is known at the moment a page is to be dropped.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Storage has all redo up to here.
    pub durable: Lsn,
    /// Where the oldest open transaction began to log, read after `durable`.
    pub oldest_open: Lsn,
    /// No record ends below: where the log of any cluster begins.
    pub log_begins: Lsn,
}

/// Whether the page may be dropped that PostgreSQL last wrote when its log reached `written_at`.
///
/// # Errors
/// The reason to keep it.
pub fn may_drop(page: &PageBytes, written_at: Lsn, known: &Known) -> Result<(), Keep> {
    // With zero, a page whose content was never logged would pass for one that storage has.
    invariant!("log-begins-above-zero", known.log_begins > Lsn::ZERO);
    if half(page, UPPER_OFFSET) == 0 {
        return Err(Keep::Empty);
    }
    let lsn = Lsn(u64::from(word(page, LSN_OFFSET)) << 32 | u64::from(word(page, LSN_OFFSET + 4)));
    if lsn < known.log_begins {
        return Err(Keep::NotLogged);
    }
    if lsn > known.durable || written_at > known.durable {
        return Err(Keep::NotDurable);
    }
    if lsn >= known.oldest_open {
        return Err(Keep::OpenTransaction);
    }
    match PAGE_SIZE.saturating_sub(usize::from(half(page, SPECIAL_OFFSET))) {
        BTREE_SPECIAL_BYTES => {
            // Other access methods with as much special space have a page id there, which is above every cycle id.
            let cycle = half(page, PAGE_SIZE - BTREE_SPECIAL_BYTES + CYCLE_ID_OFFSET);
            if cycle != 0 && cycle <= CYCLE_ID_MAX {
                return Err(Keep::VacuumCycle);
            }
        }
        SEQUENCE_SPECIAL_BYTES if word(page, PAGE_SIZE - SEQUENCE_SPECIAL_BYTES) == SEQUENCE_MAGIC => {
            return Err(Keep::Sequence);
        }
        _ => {}
    }
    Ok(())
}

fn half(page: &PageBytes, offset: usize) -> u16 {
    u16::from_le_bytes([page[offset], page[offset + 1]])
}

fn word(page: &PageBytes, offset: usize) -> u32 {
    u32::from_le_bytes([page[offset], page[offset + 1], page[offset + 2], page[offset + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known { durable: Lsn(5000), oldest_open: Lsn(4000), log_begins: Lsn(1000) };

    fn page(lsn: u64, special_bytes: u16) -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let special = PAGE_SIZE as u16 - special_bytes;
        page[14..16].copy_from_slice(&special.to_le_bytes());
        page[16..18].copy_from_slice(&special.to_le_bytes());
        page
    }

    #[test]
    fn an_old_logged_page_may_go() {
        assert_eq!(may_drop(&page(1000, 0), Lsn(0), &KNOWN), Ok(()));
        assert_eq!(may_drop(&page(3999, 0), Lsn(5000), &KNOWN), Ok(()));
    }

    #[test]
    fn a_page_whose_content_is_not_logged_stays() {
        assert_eq!(may_drop(&[0; PAGE_SIZE], Lsn(0), &KNOWN), Err(Keep::Empty));
        // Hazard 5: 0 and 1 are the LSNs of pages of indexes that are being built.
        for lsn in [0, 1, 0x28, 999] {
            assert_eq!(may_drop(&page(lsn, 0), Lsn(0), &KNOWN), Err(Keep::NotLogged));
        }
    }

    #[test]
    fn a_page_that_storage_may_not_have_stays() {
        let known = Known { oldest_open: Lsn::MAX, ..KNOWN };
        assert_eq!(may_drop(&page(5000, 0), Lsn(5000), &known), Ok(()));
        assert_eq!(may_drop(&page(5001, 0), Lsn(0), &known), Err(Keep::NotDurable));
        // Hazard 6: "all visible" was set in it after its LSN.
        assert_eq!(may_drop(&page(2000, 0), Lsn(5001), &known), Err(Keep::NotDurable));
        assert_eq!(may_drop(&page(1 << 33, 0), Lsn(0), &known), Err(Keep::NotDurable));
    }

    #[test]
    fn a_page_of_an_open_transaction_stays() {
        // Hazards 1 and 2.
        assert_eq!(may_drop(&page(4000, 0), Lsn(0), &KNOWN), Err(Keep::OpenTransaction));
        assert_eq!(may_drop(&page(4500, 0), Lsn(0), &KNOWN), Err(Keep::OpenTransaction));
        // Nothing was said about transactions yet.
        let unknown = Known { oldest_open: Lsn(0), ..KNOWN };
        assert_eq!(may_drop(&page(1000, 0), Lsn(0), &unknown), Err(Keep::OpenTransaction));
    }

    #[test]
    fn a_btree_page_with_a_vacuum_cycle_stays_and_other_indexes_go() {
        // Hazard 3.
        let mut page = page(2000, 16);
        page[PAGE_SIZE - 2..].copy_from_slice(&7u16.to_le_bytes());
        assert_eq!(may_drop(&page, Lsn(0), &KNOWN), Err(Keep::VacuumCycle));
        page[PAGE_SIZE - 2..].copy_from_slice(&0u16.to_le_bytes());
        assert_eq!(may_drop(&page, Lsn(0), &KNOWN), Ok(()));
        // Page ids of hash, GiST and SP-GiST.
        for id in [0xFF80u16, 0xFF81, 0xFF82] {
            page[PAGE_SIZE - 2..].copy_from_slice(&id.to_le_bytes());
            assert_eq!(may_drop(&page, Lsn(0), &KNOWN), Ok(()));
        }
    }

    #[test]
    #[should_panic(expected = "invariant log-begins-above-zero is broken")]
    fn a_log_without_a_beginning_is_noticed() {
        let _ = may_drop(&page(2000, 0), Lsn(0), &Known { log_begins: Lsn(0), ..KNOWN });
    }

    #[test]
    fn a_sequence_stays() {
        let mut page = page(2000, 8);
        assert_eq!(may_drop(&page, Lsn(0), &KNOWN), Ok(()));
        page[PAGE_SIZE - 8..PAGE_SIZE - 4].copy_from_slice(&SEQUENCE_MAGIC.to_le_bytes());
        assert_eq!(may_drop(&page, Lsn(0), &KNOWN), Err(Keep::Sequence));
    }
}
