//! Removing tuples.

use borealis_types::PageBytes;
use borealis_wal::Record;
use borealis_wal::layout::item_pointer::{INVALID_BLOCK, INVALID_OFFSET_NUMBER};

use super::tuples::{Source, State, count, delete_tuples, set_next_in_chain};
use crate::btree::tuple as index_tuple;
use crate::bytes::{OffsetNumbers, Reader, put, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page;

/// The target of a tuple that redirects nowhere.
const NOWHERE: (u32, u16) = (INVALID_BLOCK, INVALID_OFFSET_NUMBER);

/// `spgRedoVacuumLeaf`
pub(super) fn vacuum_leaf(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    // `spgxlogVacuumLeaf`
    let mut data = Reader::new(record.main_data);
    let (dead, placeholders, moves, chains) = (data.u16()?, data.u16()?, data.u16()?, data.u16()?);
    let source = Source::read(&mut data)?;
    let to_dead = OffsetNumbers::read(&mut data, dead)?;
    let to_placeholder = OffsetNumbers::read(&mut data, placeholders)?;
    let move_from = OffsetNumbers::read(&mut data, moves)?;
    let move_to = OffsetNumbers::read(&mut data, moves)?;
    let chain_from = OffsetNumbers::read(&mut data, chains)?;
    let chain_to = OffsetNumbers::read(&mut data, chains)?;

    let only_placeholders = (State::Placeholder, State::Placeholder);
    delete_tuples(page, source, to_dead, (State::Dead, State::Dead), NOWHERE)?;
    delete_tuples(page, source, to_placeholder, only_placeholders, NOWHERE)?;
    // A chain's head keeps its number, so a tuple that stays trades places with a head that goes.
    for (from, to) in move_from.iter().zip(move_to.iter()) {
        let (from_pointer, to_pointer) = (page::line_pointer(page, from)?, page::line_pointer(page, to)?);
        page::set_line_pointer(page, from, to_pointer)?;
        page::set_line_pointer(page, to, from_pointer)?;
    }
    delete_tuples(page, source, move_from, only_placeholders, NOWHERE)?;
    for (from, to) in chain_from.iter().zip(chain_to.iter()) {
        set_next_in_chain(page, from, to)?;
    }
    Ok(())
}

/// `spgRedoVacuumRoot`: a root that is also a leaf has no chains, so its tuples just go.
pub(super) fn vacuum_root(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    // `spgxlogVacuumRoot`
    let mut data = Reader::new(record.main_data);
    let deleted = data.u16()?;
    data.align(4)?;
    Source::read(&mut data)?;
    page::index_multi_delete(page, OffsetNumbers::read(&mut data, deleted)?.iter())
}

/// `spgRedoVacuumRedirect`: redirections nobody can need become placeholders, and placeholders at the end of the
/// page go.
pub(super) fn vacuum_redirect(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    // `spgxlogVacuumRedirect`
    let mut data = Reader::new(record.main_data);
    let (converted, first_placeholder) = (data.u16()?, data.u16()?);
    // The newest transaction that made one of them: for conflicts on a standby.
    data.skip(4)?;
    for offset_number in OffsetNumbers::read(&mut data, converted)?.iter() {
        let pointer = page::line_pointer(page, offset_number)?;
        let tuple = page::item_mut(page, pointer)?;
        let header = u32_at(tuple, 0)? | State::Placeholder as u32;
        put(tuple, 0, &header.to_le_bytes())?;
        put(tuple, 10, &0_u16.to_le_bytes())?;
        index_tuple::set_block_number(&mut tuple[6..], u32::MAX)?;
    }
    let converted =
        i16::try_from(converted).map_err(|_| Fault::Failed("too many redirections for a page"))?;
    count(page, -converted, converted)?;
    if first_placeholder != 0 {
        let last = page::max_offset_number(page);
        // The last offset number is far below 65535, so this is a range with a length.
        let removed = first_placeholder..last + 1;
        let removed_count =
            i16::try_from(removed.len()).map_err(|_| Fault::Failed("too many placeholders"))?;
        expect(removed_count > 0, "the first placeholder to remove is not on the page")?;
        count(page, 0, -removed_count)?;
        page::index_multi_delete(page, removed)?;
    }
    Ok(())
}
