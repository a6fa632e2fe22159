//! What the consistency oracle must not compare on a heap page (`heap_mask`).

use borealis_types::{BlockNumber, PAGE_SIZE, PageBytes};
use borealis_wal::layout::heap_tuple::{XACT_MASK, XMAX_COMMITTED, XMAX_INVALID};

use super::tuple::{ItemPointer, Tuple};
use crate::fault::Redo;
use crate::page::{self, mask};

/// Hides LSN, hints, command ids, speculative tokens and padding.
///
/// It also hides all of a visibility map page, which to PostgreSQL is nothing but unused space.
pub(crate) fn mask(page: &mut PageBytes, block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::page_hint_bits(page);
    mask::unused_space(page)?;
    for offset_number in 1..=page::max_offset_number(page) {
        let pointer = page::line_pointer(page, offset_number)?;
        if pointer.is_normal() {
            let mut tuple = Tuple::at(page, pointer)?;
            let hidden = if tuple.is_xmin_frozen() { XMAX_INVALID | XMAX_COMMITTED } else { XACT_MASK };
            tuple.set_infomask(tuple.infomask() & !hidden);
            tuple.set_command_id_field(u32::from(mask::MARKER));
            if tuple.is_speculative() {
                tuple.set_ctid(ItemPointer { block, offset_number });
            }
        }
        if pointer.has_storage() {
            let end = usize::from(pointer.offset) + usize::from(pointer.length);
            let padded_end = page::max_align(end).min(PAGE_SIZE);
            if let Some(padding) = page.get_mut(end..padded_end) {
                padding.fill(mask::MARKER);
            }
        }
    }
    Ok(())
}
