//! The special space of an SP-GiST page, and its tuples: what all operations do to them.

use arrayvec::ArrayVec;
use borealis_types::PageBytes;
use borealis_wal::layout::INVALID_XID;
use borealis_wal::layout::item_pointer::{INVALID_BLOCK, INVALID_OFFSET_NUMBER, OFFSET_NUMBER_OFFSET};
use borealis_wal::layout::spgist::{
    DEAD_POINTER_OFFSET, DEAD_TUPLE_BYTES, DEAD_XID_OFFSET, FLAGS_OFFSET, INNER_HEADER_BYTES,
    INNER_SIZE_OFFSET, LEAF_INFO_FLAGS, LEAF_INFO_OFFSET, NODE_COUNT_MASK, NODE_COUNT_SHIFT, PAGE_ID,
    PAGE_ID_OFFSET, PLACEHOLDERS_OFFSET, PREFIX_SIZE_SHIFT, REDIRECTIONS_OFFSET, SIZE_SHIFT, SPECIAL_BYTES,
    STATE_DEAD, STATE_MASK, STATE_PLACEHOLDER, STATE_REDIRECT,
};

use crate::btree::tuple as index_tuple;
use crate::bytes::{OffsetNumbers, Reader, put, u16_at, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::{self, Placing};

/// A tuple's state: the lowest two bits of its first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum State {
    /// `SPGIST_REDIRECT`
    Redirect = STATE_REDIRECT,
    /// `SPGIST_DEAD`
    Dead = STATE_DEAD,
    /// `SPGIST_PLACEHOLDER`
    Placeholder = STATE_PLACEHOLDER,
}

/// `SpGistPageOpaqueData`: what an SP-GiST index keeps in the special space of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opaque {
    pub(super) flags: u16,
    /// `nRedirection`
    pub(super) redirections: u16,
    /// `nPlaceholder`
    pub(super) placeholders: u16,
}

impl Opaque {
    pub(super) const SIZE: usize = SPECIAL_BYTES;

    pub(super) fn read(page: &PageBytes) -> Redo<Opaque> {
        let special = page::special(page, Self::SIZE)?;
        Ok(Opaque {
            flags: u16_at(special, FLAGS_OFFSET)?,
            redirections: u16_at(special, REDIRECTIONS_OFFSET)?,
            placeholders: u16_at(special, PLACEHOLDERS_OFFSET)?,
        })
    }

    /// Writes the fields; the page's identification stays.
    pub(super) fn write(self, page: &mut PageBytes) -> Redo {
        let special = page::special_mut(page, Self::SIZE)?;
        put(special, FLAGS_OFFSET, &self.flags.to_le_bytes())?;
        put(special, REDIRECTIONS_OFFSET, &self.redirections.to_le_bytes())?;
        put(special, PLACEHOLDERS_OFFSET, &self.placeholders.to_le_bytes())
    }
}

/// `SpGistInitPage`
pub(super) fn init_page(page: &mut PageBytes, flags: u16) -> Redo {
    page::init(page, Opaque::SIZE);
    put(page::special_mut(page, Opaque::SIZE)?, PAGE_ID_OFFSET, &PAGE_ID.to_le_bytes())?;
    Opaque { flags, redirections: 0, placeholders: 0 }.write(page)
}

/// Adds to the counts of redirections and placeholders.
pub(super) fn count(page: &mut PageBytes, redirections: i16, placeholders: i16) -> Redo {
    pub(super) const MISCOUNTED: Fault =
        Fault::Failed("an SP-GiST page miscounts its redirections or placeholders");
    let mut opaque = Opaque::read(page)?;
    opaque.redirections = opaque.redirections.checked_add_signed(redirections).ok_or(MISCOUNTED)?;
    opaque.placeholders = opaque.placeholders.checked_add_signed(placeholders).ok_or(MISCOUNTED)?;
    opaque.write(page)
}

/// `spgxlogState`: how tuples that go are replaced.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) xid: u32,
    /// While an index is built nobody else can be on the way to a tuple, so none needs a redirection.
    pub(super) is_build: bool,
}

impl Source {
    pub(super) fn read(data: &mut Reader<'_>) -> Redo<Source> {
        let source = Source { xid: data.u32()?, is_build: data.u8()? != 0 };
        data.align(4)?;
        Ok(source)
    }

    /// `spgFormDeadTuple`: a redirection to `target`, or a tuple that stands for nothing.
    pub(super) fn dead_tuple(self, state: State, target: (u32, u16)) -> Redo<[u8; DEAD_TUPLE_BYTES]> {
        let mut tuple = [0; DEAD_TUPLE_BYTES];
        put(&mut tuple, 0, &((DEAD_TUPLE_BYTES as u32) << SIZE_SHIFT | state as u32).to_le_bytes())?;
        let (target, xid) = if state == State::Redirect {
            (target, self.xid)
        } else {
            ((INVALID_BLOCK, INVALID_OFFSET_NUMBER), INVALID_XID)
        };
        index_tuple::set_block_number(&mut tuple[DEAD_POINTER_OFFSET..], target.0)?;
        put(&mut tuple, DEAD_POINTER_OFFSET + OFFSET_NUMBER_OFFSET, &target.1.to_le_bytes())?;
        put(&mut tuple, DEAD_XID_OFFSET, &xid.to_le_bytes())?;
        Ok(tuple)
    }
}

pub(super) fn state(tuple: &[u8]) -> Redo<u32> {
    Ok(u32_at(tuple, 0)? & STATE_MASK)
}

/// The first leaf tuple in `bytes`, and what follows it.
pub(super) fn split_leaf(bytes: &[u8]) -> Redo<(&[u8], &[u8])> {
    let size = (u32_at(bytes, 0)? >> SIZE_SHIFT) as usize;
    split_tuple(bytes, size)
}

/// The first inner tuple in `bytes`, and what follows it.
pub(super) fn split_inner(bytes: &[u8]) -> Redo<(&[u8], &[u8])> {
    let size = usize::from(u16_at(bytes, INNER_SIZE_OFFSET)?);
    split_tuple(bytes, size)
}

pub(super) fn split_tuple(bytes: &[u8], size: usize) -> Redo<(&[u8], &[u8])> {
    expect(size >= INNER_HEADER_BYTES, "an SP-GiST tuple is smaller than its header")?;
    bytes.split_at_checked(size).ok_or(Fault::Failed("an SP-GiST tuple is longer than its data"))
}

/// Puts a tuple at a number, which the later ones then follow.
pub(super) fn add(page: &mut PageBytes, tuple: &[u8], offset_number: u16) -> Redo {
    expect(offset_number != 0, "an index tuple needs an offset number")?;
    page::add_item(page, tuple, offset_number, Placing::Shift).map(|_| ())
}

/// Puts a tuple in another's place.
pub(super) fn replace(page: &mut PageBytes, tuple: &[u8], offset_number: u16) -> Redo {
    page::index_tuple_delete(page, offset_number)?;
    add(page, tuple, offset_number)
}

/// `addOrReplaceTuple`: a tuple that is there already is a placeholder.
pub(super) fn add_or_replace(page: &mut PageBytes, tuple: &[u8], offset_number: u16) -> Redo {
    if offset_number > page::max_offset_number(page) {
        return add(page, tuple, offset_number);
    }
    let old = page::item(page, page::line_pointer(page, offset_number)?)?;
    expect(state(old)? == State::Placeholder as u32, "the SP-GiST tuple to be replaced is no placeholder")?;
    count(page, 0, -1)?;
    replace(page, tuple, offset_number)
}

/// `spgUpdateNodeLink`: lets node `node` of an inner tuple lead to `target`.
pub(super) fn update_node_link(
    page: &mut PageBytes,
    offset_number: u16,
    node: u16,
    target: (u32, u16),
) -> Redo {
    let pointer = page::line_pointer(page, offset_number)?;
    let inner = page::item_mut(page, pointer)?;
    // State, "all the same" flag, 13 bits of node count, 16 bits of prefix size.
    let header = u32_at(inner, 0)?;
    expect(
        u32::from(node) < header >> NODE_COUNT_SHIFT & NODE_COUNT_MASK,
        "an SP-GiST tuple has no such node",
    )?;
    let mut at = INNER_HEADER_BYTES + (header >> PREFIX_SIZE_SHIFT) as usize;
    for _ in 0..node {
        let size = index_tuple::size(inner.get(at..).unwrap_or_default())?;
        expect(size >= index_tuple::HEADER_BYTES, "an SP-GiST node is smaller than its header")?;
        at += size;
    }
    let link = inner.get_mut(at..).ok_or(Fault::Failed("an SP-GiST node lies outside its tuple"))?;
    index_tuple::set_block_number(link, target.0)?;
    put(link, OFFSET_NUMBER_OFFSET, &target.1.to_le_bytes())
}

/// `SGLT_SET_NEXTOFFSET`: the next tuple of a leaf tuple's chain.
pub(super) fn set_next_in_chain(page: &mut PageBytes, offset_number: u16, next: u16) -> Redo {
    let pointer = page::line_pointer(page, offset_number)?;
    let leaf = page::item_mut(page, pointer)?;
    let info = u16_at(leaf, LEAF_INFO_OFFSET)? & LEAF_INFO_FLAGS | next & !LEAF_INFO_FLAGS;
    put(leaf, LEAF_INFO_OFFSET, &info.to_le_bytes())
}

/// `spgPageIndexMultiDelete`: puts dead tuples in the place of others, of state `first` in that of the first
/// one listed and of state `rest` in the others'.
pub(super) fn delete_tuples(
    page: &mut PageBytes,
    source: Source,
    offset_numbers: OffsetNumbers<'_>,
    (first, rest): (State, State),
    target: (u32, u16),
) -> Redo {
    let Some(first_number) = offset_numbers.iter().next() else { return Ok(()) };
    let mut sorted = ArrayVec::<u16, { page::LINE_POINTERS_MAX }>::new();
    for offset_number in offset_numbers.iter() {
        sorted.try_push(offset_number).map_err(|_| Fault::Failed("more tuples to delete than fit a page"))?;
    }
    sorted.sort_unstable();
    page::index_multi_delete(page, sorted.iter().copied())?;
    for offset_number in sorted {
        let state = if offset_number == first_number { first } else { rest };
        add(page, &source.dead_tuple(state, target)?, offset_number)?;
        match state {
            State::Redirect => count(page, 1, 0)?,
            State::Placeholder => count(page, 0, 1)?,
            State::Dead => {}
        }
    }
    Ok(())
}
