//! Multixacts (`RM_MULTIXACT_ID`, `pg_multixact`): several transactions that lock one row.
//!
//! Layout and redo: `src/backend/access/transam/multixact.c`. The store of
//! offsets says where a multixact's members start in the store of members, and where the next one's start,
//! which is where its own end.

use borealis_types::{PageBytes, PageKey, SlruKind};
use borealis_wal::Record;
use borealis_wal::layout::MultiXactCreate;
use borealis_wal::layout::multixact::{
    CREATE, TRUNCATE, ZERO_MEMBERS_PAGE, ZERO_OFFSETS_PAGE, members_page, next_multixact, offsets_page,
};
use borealis_wal::layout::slru::{
    MEMBER_GROUP_BYTES, MEMBER_GROUPS_PER_PAGE, MEMBERS_PER_GROUP, MULTIXACT_STATUS_MAX, MULTIXACTS_PER_PAGE,
};

use crate::fault::{Fault, Redo, expect};

/// Applies a record of this resource manager to a page of offsets or members.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let PageKey::Slru { kind, page: page_number } = *key else {
        return Err(Fault::Failed("a multixact record changes no block"));
    };
    match (record.operation(), kind) {
        (ZERO_OFFSETS_PAGE, SlruKind::MultiXactOffsets) | (ZERO_MEMBERS_PAGE, SlruKind::MultiXactMembers) => {
            crate::clog::zero_page(record, page_number, page)
        }
        (CREATE, SlruKind::MultiXactOffsets) => {
            record_offsets(&MultiXactCreate::parse(record)?, page_number, page);
            Ok(())
        }
        (CREATE, SlruKind::MultiXactMembers) => {
            record_members(&MultiXactCreate::parse(record)?, page_number, page)
        }
        (ZERO_OFFSETS_PAGE | ZERO_MEMBERS_PAGE | CREATE | TRUNCATE, _) => {
            Err(Fault::Failed("the record does not change such a page"))
        }
        _ => Err(Fault::Unknown),
    }
}

/// `RecordNewMultiXact`, the offsets: its own, and the next multixact's.
///
/// Older minor versions let the next multixact write its own offset only, and start a new page of offsets
/// after this record rather than before it. What this writes to a page that such a record then zeroes is
/// written again by the next multixact, so pages end up right either way.
fn record_offsets(create: &MultiXactCreate<'_>, page_number: u32, page: &mut PageBytes) {
    // Member number zero is never used: it would look like "not set".
    let end = create.offset.wrapping_add(create.members().len() as u32).max(1);
    for (multi, offset) in [(create.multi, create.offset), (next_multixact(create.multi), end)] {
        if offsets_page(multi) == page_number {
            let at = (multi % MULTIXACTS_PER_PAGE) as usize * 4;
            page[at..at + 4].copy_from_slice(&offset.to_le_bytes());
        }
    }
}

/// `RecordNewMultiXact`, the members that are on the page with this number.
fn record_members(create: &MultiXactCreate<'_>, page_number: u32, page: &mut PageBytes) -> Redo {
    let mut number = create.offset;
    for member in create.members() {
        if members_page(number) == page_number {
            let group = (number / MEMBERS_PER_GROUP % MEMBER_GROUPS_PER_PAGE * MEMBER_GROUP_BYTES) as usize;
            let in_group = (number % MEMBERS_PER_GROUP) as usize;
            expect(member.status <= MULTIXACT_STATUS_MAX, "a multixact member has an unknown status")?;
            page[group + in_group] = member.status as u8;
            let at = group + MEMBERS_PER_GROUP as usize + in_group * 4;
            page[at..at + 4].copy_from_slice(&member.xid.to_le_bytes());
        }
        number = number.wrapping_add(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::PAGE_SIZE;
    use borealis_wal::layout::slru::MEMBERS_PER_PAGE;

    fn create(multi: u32, offset: u32, members: &[(u32, u32)]) -> Vec<u8> {
        let mut data: Vec<u8> =
            [multi, offset, members.len() as u32].iter().flat_map(|word| word.to_le_bytes()).collect();
        data.extend(
            members.iter().flat_map(|(xid, status)| [xid.to_le_bytes(), status.to_le_bytes()].concat()),
        );
        data
    }

    fn apply(data: &[u8], kind: SlruKind, page_number: u32, page: &mut PageBytes) {
        let record = crate::test_record::record(borealis_wal::ResourceManager::MultiXact, CREATE, data);
        redo_page(&record, &PageKey::Slru { kind, page: page_number }, page).unwrap();
    }

    #[test]
    fn members_that_straddle_two_pages_go_to_both() {
        let first_of_page_1 = MEMBERS_PER_PAGE;
        let data = create(9, first_of_page_1 - 1, &[(100, 5), (101, 1)]);
        let (mut page_0, mut page_1) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        apply(&data, SlruKind::MultiXactMembers, 0, &mut page_0);
        apply(&data, SlruKind::MultiXactMembers, 1, &mut page_1);
        let last_group = ((MEMBER_GROUPS_PER_PAGE - 1) * MEMBER_GROUP_BYTES) as usize;
        assert_eq!(page_0[last_group..last_group + 4], [0, 0, 0, 5]);
        assert_eq!(page_0[last_group + 16..last_group + 20], [100, 0, 0, 0]);
        assert_eq!(page_1[..8], [1, 0, 0, 0, 101, 0, 0, 0]);
    }

    #[test]
    fn the_next_multixact_starts_where_this_one_ends_even_on_the_next_page() {
        let data = create(MULTIXACTS_PER_PAGE - 1, 50, &[(100, 1), (101, 1)]);
        let (mut page_0, mut page_1) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        apply(&data, SlruKind::MultiXactOffsets, 0, &mut page_0);
        apply(&data, SlruKind::MultiXactOffsets, 1, &mut page_1);
        assert_eq!(page_0[PAGE_SIZE - 4..], [50, 0, 0, 0]);
        assert_eq!(page_1[..4], [52, 0, 0, 0]);
        assert!(page_1[4..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn ids_and_offsets_that_wrap_skip_zero() {
        let data = create(u32::MAX, u32::MAX, &[(100, 1)]);
        let mut page_0 = [0; PAGE_SIZE];
        apply(&data, SlruKind::MultiXactOffsets, 0, &mut page_0);
        assert_eq!(page_0[..8], [0, 0, 0, 0, 1, 0, 0, 0], "multixact 1 starts at member 1");
    }
}
