//! The special space of a GIN page.

use borealis_types::PageBytes;
use borealis_wal::layout::gin::{COUNT_OFFSET, FLAGS_OFFSET, NO_BLOCK, RIGHT_OFFSET, SPECIAL_BYTES};

use crate::bytes::{put, u16_at, u32_at};
use crate::fault::Redo;
use crate::page;

/// `GinPageOpaqueData`: what a GIN index keeps in the special space of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opaque {
    /// `rightlink`
    pub(super) right: u32,
    /// `maxoff`: items of an inner page of a posting tree; rows on a page of the pending list.
    pub(super) count: u16,
    pub(super) flags: u16,
}

impl Opaque {
    pub(super) const SIZE: usize = SPECIAL_BYTES;

    pub(super) fn read(page: &PageBytes) -> Redo<Opaque> {
        let special = page::special(page, Self::SIZE)?;
        Ok(Opaque {
            right: u32_at(special, RIGHT_OFFSET)?,
            count: u16_at(special, COUNT_OFFSET)?,
            flags: u16_at(special, FLAGS_OFFSET)?,
        })
    }

    pub(super) fn write(self, page: &mut PageBytes) -> Redo {
        let special = page::special_mut(page, Self::SIZE)?;
        put(special, RIGHT_OFFSET, &self.right.to_le_bytes())?;
        put(special, COUNT_OFFSET, &self.count.to_le_bytes())?;
        put(special, FLAGS_OFFSET, &self.flags.to_le_bytes())
    }
}

/// `GinInitPage`
pub(super) fn init_page(page: &mut PageBytes, flags: u16) -> Redo {
    page::init(page, Opaque::SIZE);
    Opaque { right: NO_BLOCK, count: 0, flags }.write(page)
}

pub(super) fn update_opaque(page: &mut PageBytes, change: impl FnOnce(&mut Opaque)) -> Redo {
    let mut opaque = Opaque::read(page)?;
    change(&mut opaque);
    opaque.write(page)
}
