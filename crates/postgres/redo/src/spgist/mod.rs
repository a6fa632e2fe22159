//! SP-GiST indexes (`RM_SPGIST_ID`).
//!
//! Records: `src/include/access/spgxlog.h`; pages: `src/include/access/spgist_private.h`; redo:
//! `src/backend/access/spgist/spgxlog.c`. A tuple's offset number never changes while anything may lead to it: a
//! tuple that moves leaves a redirection, one that goes a placeholder that another may replace.

mod change;
mod tuples;
mod vacuum;

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::layout::spgist::{
    ADD_LEAF, ADD_NODE, MOVE_LEAFS, PICKSPLIT, SPLIT_TUPLE, VACUUM_LEAF, VACUUM_REDIRECT, VACUUM_ROOT,
};

use crate::block::listed;
use crate::fault::{Fault, Redo};
use crate::page::mask;
use crate::page::{self};

/// Applies an SP-GiST record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    match record.operation() {
        ADD_LEAF => change::add_leaf(record, block.id, page),
        MOVE_LEAFS => change::move_leafs(record, block.id, page),
        ADD_NODE => change::add_node(record, block.id, page),
        SPLIT_TUPLE => change::split_tuple(record, block.id, page),
        PICKSPLIT => change::pick_split(record, block.id, page),
        VACUUM_LEAF => vacuum::vacuum_leaf(record, page),
        VACUUM_ROOT => vacuum::vacuum_root(record, page),
        VACUUM_REDIRECT => vacuum::vacuum_redirect(record, page),
        _ => return Err(Fault::Unknown),
    }?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// `spg_mask`: makes equal what redo does not reproduce.
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::page_hint_bits(page);
    if usize::from(page::lower(page)) >= page::HEADER_BYTES {
        mask::unused_space(page)?;
    }
    Ok(())
}
