//! The special space of a B-tree page.

use borealis_types::PageBytes;
use borealis_wal::layout::btree::{
    CYCLE_ID_OFFSET, FIRST_KEY, FLAGS_OFFSET, HIGH_KEY, LEVEL_OFFSET, NEXT_OFFSET, NO_BLOCK, PREVIOUS_OFFSET,
    SPECIAL_BYTES,
};

use crate::bytes::{put, u16_at, u32_at};
use crate::fault::Redo;
use crate::page;

/// `BTPageOpaqueData`: what a B-tree keeps in the special space of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Opaque {
    /// `btpo_prev`: left sibling.
    pub(super) previous: u32,
    /// `btpo_next`: right sibling.
    pub(super) next: u32,
    /// `btpo_level`: zero for leaves.
    pub(super) level: u32,
    /// `btpo_flags`
    pub(super) flags: u16,
    /// `btpo_cycleid`
    pub(super) cycle_id: u16,
}

impl Opaque {
    pub(super) const SIZE: usize = SPECIAL_BYTES;

    pub(super) fn read(page: &PageBytes) -> Redo<Opaque> {
        let special = page::special(page, Self::SIZE)?;
        Ok(Opaque {
            previous: u32_at(special, PREVIOUS_OFFSET)?,
            next: u32_at(special, NEXT_OFFSET)?,
            level: u32_at(special, LEVEL_OFFSET)?,
            flags: u16_at(special, FLAGS_OFFSET)?,
            cycle_id: u16_at(special, CYCLE_ID_OFFSET)?,
        })
    }

    pub(super) fn write(self, page: &mut PageBytes) -> Redo {
        let special = page::special_mut(page, Self::SIZE)?;
        put(special, PREVIOUS_OFFSET, &self.previous.to_le_bytes())?;
        put(special, NEXT_OFFSET, &self.next.to_le_bytes())?;
        put(special, LEVEL_OFFSET, &self.level.to_le_bytes())?;
        put(special, FLAGS_OFFSET, &self.flags.to_le_bytes())?;
        put(special, CYCLE_ID_OFFSET, &self.cycle_id.to_le_bytes())
    }

    /// `P_FIRSTDATAKEY`: the number of the first item that is not the high key.
    pub(super) fn first_data_key(self) -> u16 {
        if self.next == NO_BLOCK { HIGH_KEY } else { FIRST_KEY }
    }

    /// `_bt_pageinit`, with this in the special space.
    pub(super) fn init_page(self, page: &mut PageBytes) -> Redo {
        page::init(page, Self::SIZE);
        self.write(page)
    }
}
