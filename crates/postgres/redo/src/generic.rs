//! Generic WAL (`RM_GENERIC_ID`), which extensions' access methods use: byte ranges of pages.
//!
//! Format and redo: `src/backend/access/transam/generic_xlog.c`.

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::Record;

use crate::block::listed;
use crate::bytes::{Reader, put};
use crate::fault::{Fault, Redo, expect};
use crate::page::{self, mask};

/// `generic_redo`. Block data: offset, length and bytes of each range.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    let mut data = Reader::new(block.data);
    while data.remaining() > 0 {
        let (offset, length) = (data.u16()?, data.u16()?);
        put(page, usize::from(offset), data.bytes(usize::from(length))?)?;
    }
    // The ranges leave the hole out, whatever was there before.
    let (lower, upper) = (usize::from(page::lower(page)), usize::from(page::upper(page)));
    expect(lower <= upper, "the page header's pointers are corrupt")?;
    let hole = page.get_mut(lower..upper).ok_or(Fault::Failed("the page header's pointers are corrupt"))?;
    hole.fill(0);
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// `generic_mask`
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::unused_space(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_record::{SPAN, block_key, record_on};
    use borealis_types::PAGE_SIZE;
    use borealis_wal::ResourceManager;
    use proptest::prelude::*;

    fn apply(data: &[u8], page: &mut PageBytes) -> Redo {
        let record = record_on(ResourceManager::Generic, 0, &[], &[(0, 1, data)]);
        redo_page(&record, &PageKey::Block(block_key(1)), page)
    }

    #[test]
    fn ranges_are_written_and_the_hole_is_zeroed() {
        let mut page = [0; PAGE_SIZE];
        page::init(&mut page, 8);
        page[100] = 7;
        apply(&[0xF8, 0x1F, 2, 0, 0xAA, 0xBB, 10, 0, 1, 0, 4], &mut page).unwrap();
        assert_eq!(page[PAGE_SIZE - 8..PAGE_SIZE - 5], [0xAA, 0xBB, 0]);
        assert_eq!(page[10], 4);
        assert_eq!(page[100], 0);
        assert_eq!(page::lsn(&page), SPAN.end);
        assert!(apply(&[0xFF, 0x1F, 2, 0, 1, 2], &mut page).is_err(), "a range past the page's end");
    }

    proptest! {
        #[test]
        fn hostile_ranges_never_panic(data in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = apply(&data, &mut [0; PAGE_SIZE]);
        }
    }
}
