//! Sequences (`RM_SEQ_ID`).
//!
//! Record and redo: `src/include/commands/sequence.h`, `seq_redo` in `src/backend/commands/sequence.c`.

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::layout::sequence::{LOG, LOG_HEADER_BYTES, MAGIC, SPECIAL_BYTES};

use crate::block::listed;
use crate::bytes::{Reader, put};
use crate::fault::{Fault, Redo, expect};
use crate::page::mask;
use crate::page::{self, Placing};

/// Applies a sequence's new state, which is all of its only page.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    if record.operation() != LOG {
        return Err(Fault::Unknown);
    }
    expect(listed(record, key).is_some(), "the record does not list the block")?;
    let mut data = Reader::new(record.main_data);
    data.skip(LOG_HEADER_BYTES)?;
    page::init(page, SPECIAL_BYTES);
    let special = usize::from(page::special_start(page));
    put(page, special, &MAGIC.to_le_bytes())?;
    page::add_item(page, data.rest(), 1, Placing::Shift)?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// `seq_mask`
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::unused_space(page)
}
