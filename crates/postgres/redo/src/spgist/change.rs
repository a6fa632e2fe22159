//! Adding tuples, and making room for them.

use borealis_types::PageBytes;
use borealis_wal::Record;
use borealis_wal::layout::spgist::{LEAF, NULLS};

use super::tuples::{
    Source, State, add_or_replace, count, delete_tuples, init_page, replace, set_next_in_chain, split_inner,
    split_leaf, update_node_link,
};
use crate::bytes::{OffsetNumbers, Reader};
use crate::fault::{Fault, Redo, expect};

const NO_SUCH_BLOCK: Fault = Fault::Failed("this SP-GiST operation does not have such a block");

fn listed_number(record: &Record<'_>, id: u8) -> Redo<u32> {
    record
        .block(id)
        .map(|block| block.key.block)
        .ok_or(Fault::Failed("the record lacks a block that its operation needs"))
}

/// The flags of a fresh leaf page.
fn leaf_flags(stores_nulls: bool) -> u16 {
    if stores_nulls { LEAF | NULLS } else { LEAF }
}

/// `spgRedoAddLeaf`: the leaf page (block 0) and, if there is one, the parent's (block 1).
pub(super) fn add_leaf(record: &Record<'_>, block_id: u8, page: &mut PageBytes) -> Redo {
    // `spgxlogAddLeaf`
    let mut data = Reader::new(record.main_data);
    let (new_page, stores_nulls) = (data.u8()? != 0, data.u8()? != 0);
    let (leaf, head, parent, node) = (data.u16()?, data.u16()?, data.u16()?, data.u16()?);
    match block_id {
        0 => {
            if new_page {
                init_page(page, leaf_flags(stores_nulls))?;
            }
            let (tuple, _) = split_leaf(data.rest())?;
            if leaf == head {
                // The chain was nothing but a dead tuple.
                return replace(page, tuple, leaf);
            }
            add_or_replace(page, tuple, leaf)?;
            if head != 0 { set_next_in_chain(page, head, leaf) } else { Ok(()) }
        }
        1 => update_node_link(page, parent, node, (listed_number(record, 0)?, leaf)),
        _ => Err(NO_SUCH_BLOCK),
    }
}

/// `spgRedoMoveLeafs`: a chain moves from a page (block 0) to another (block 1), with one tuple more; the
/// parent is in block 2.
pub(super) fn move_leafs(record: &Record<'_>, block_id: u8, page: &mut PageBytes) -> Redo {
    // `spgxlogMoveLeafs`
    let mut data = Reader::new(record.main_data);
    let moved = data.u16()?;
    let (new_page, replaces_dead, stores_nulls) = (data.u8()? != 0, data.u8()? != 0, data.u8()? != 0);
    data.align(2)?;
    let (parent, node) = (data.u16()?, data.u16()?);
    data.align(4)?;
    let source = Source::read(&mut data)?;
    let deleted = OffsetNumbers::read(&mut data, moved)?;
    let inserted_count =
        if replaces_dead { 1 } else { moved.checked_add(1).ok_or(Fault::Failed("too many tuples move"))? };
    let inserted = OffsetNumbers::read(&mut data, inserted_count)?;
    let head = inserted.iter().next_back().unwrap_or_default();
    let target = (listed_number(record, 1)?, head);
    match block_id {
        0 => {
            let first = if source.is_build { State::Placeholder } else { State::Redirect };
            delete_tuples(page, source, deleted, (first, State::Placeholder), target)
        }
        1 => {
            if new_page {
                init_page(page, leaf_flags(stores_nulls))?;
            }
            let mut rest = data.rest();
            for offset_number in inserted.iter() {
                let (tuple, following) = split_leaf(rest)?;
                add_or_replace(page, tuple, offset_number)?;
                rest = following;
            }
            Ok(())
        }
        2 => update_node_link(page, parent, node, target),
        _ => Err(NO_SUCH_BLOCK),
    }
}

/// `spgRedoAddNode`: an inner tuple grows, in place (block 0 only) or by moving from block 0 to block 1. The
/// record says in which of the blocks its parent is.
pub(super) fn add_node(record: &Record<'_>, block_id: u8, page: &mut PageBytes) -> Redo {
    // `spgxlogAddNode`
    let mut data = Reader::new(record.main_data);
    let (old, new) = (data.u16()?, data.u16()?);
    let (new_page, parent_block) = (data.u8()? != 0, data.u8()?.cast_signed());
    let (parent, node) = (data.u16()?, data.u16()?);
    data.align(4)?;
    let source = Source::read(&mut data)?;
    let (tuple, _) = split_inner(data.rest())?;
    if record.block(1).is_none() {
        expect(block_id == 0, "this SP-GiST operation does not have such a block")?;
        return replace(page, tuple, old);
    }
    let target = (listed_number(record, 1)?, new);
    match block_id {
        0 => {
            let state = if source.is_build { State::Placeholder } else { State::Redirect };
            replace(page, &source.dead_tuple(state, target)?, old)?;
            if source.is_build { count(page, 0, 1)? } else { count(page, 1, 0)? }
        }
        1 => {
            if new_page {
                init_page(page, 0)?;
            }
            add_or_replace(page, tuple, new)?;
        }
        2 => {}
        _ => return Err(NO_SUCH_BLOCK),
    }
    if parent_block == block_id.cast_signed() {
        update_node_link(page, parent, node, target)?;
    }
    Ok(())
}

/// `spgRedoSplitTuple`: an inner tuple becomes one with its prefix, in its place (block 0), and one with the
/// rest, on the same page or in block 1.
pub(super) fn split_tuple(record: &Record<'_>, block_id: u8, page: &mut PageBytes) -> Redo {
    // `spgxlogSplitTuple`
    let mut data = Reader::new(record.main_data);
    let (prefix, postfix) = (data.u16()?, data.u16()?);
    let (new_page, same_page) = (data.u8()? != 0, data.u8()? != 0);
    let (prefix_tuple, rest) = split_inner(data.rest())?;
    let (postfix_tuple, _) = split_inner(rest)?;
    match block_id {
        0 => {
            replace(page, prefix_tuple, prefix)?;
            if same_page { add_or_replace(page, postfix_tuple, postfix) } else { Ok(()) }
        }
        1 if !same_page => {
            if new_page {
                init_page(page, 0)?;
            }
            add_or_replace(page, postfix_tuple, postfix)
        }
        _ => Err(NO_SUCH_BLOCK),
    }
}

/// `spgRedoPickSplit`: the tuples of a leaf page (block 0, unless it is the root) are spread over it and
/// another (block 1), below a new inner tuple (block 2), whose parent is on the same page or in block 3.
pub(super) fn pick_split(record: &Record<'_>, block_id: u8, page: &mut PageBytes) -> Redo {
    // `spgxlogPickSplit`
    let mut data = Reader::new(record.main_data);
    // Whether the root is split: then block 0 is not listed.
    data.skip(1)?;
    data.align(2)?;
    let (deleted_count, inserted_count) = (data.u16()?, data.u16()?);
    let (init_source, init_destination) = (data.u8()? != 0, data.u8()? != 0);
    let inner = data.u16()?;
    let (init_inner, stores_nulls, inner_is_parent) = (data.u8()? != 0, data.u8()? != 0, data.u8()? != 0);
    data.align(2)?;
    let (parent, node) = (data.u16()?, data.u16()?);
    data.align(4)?;
    let source = Source::read(&mut data)?;
    let deleted = OffsetNumbers::read(&mut data, deleted_count)?;
    let inserted = OffsetNumbers::read(&mut data, inserted_count)?;
    let destinations = data.bytes(usize::from(inserted_count))?;
    let (inner_tuple, leaf_tuples) = split_inner(data.rest())?;
    let target = (listed_number(record, 2)?, inner);

    match block_id {
        0 | 1 => {
            if [init_source, init_destination][usize::from(block_id)] {
                init_page(page, leaf_flags(stores_nulls))?;
            } else if block_id == 0 {
                let first = if source.is_build { State::Placeholder } else { State::Redirect };
                delete_tuples(page, source, deleted, (first, State::Placeholder), target)?;
            }
            let mut rest = leaf_tuples;
            for (offset_number, destination) in inserted.iter().zip(destinations) {
                let (tuple, following) = split_leaf(rest)?;
                if (*destination != 0) == (block_id == 1) {
                    add_or_replace(page, tuple, offset_number)?;
                }
                rest = following;
            }
            Ok(())
        }
        2 => {
            if init_inner {
                init_page(page, if stores_nulls { NULLS } else { 0 })?;
            }
            add_or_replace(page, inner_tuple, inner)?;
            if inner_is_parent { update_node_link(page, parent, node, target) } else { Ok(()) }
        }
        3 => update_node_link(page, parent, node, target),
        _ => Err(NO_SUCH_BLOCK),
    }
}
