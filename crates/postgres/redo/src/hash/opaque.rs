//! The special space of a hash index page.

use borealis_types::PageBytes;
use borealis_wal::layout::hash::{
    BUCKET_OFFSET, FLAGS_OFFSET, NEXT_OFFSET, PAGE_ID, PAGE_ID_OFFSET, PREVIOUS_OFFSET, SPECIAL_BYTES,
};

use crate::bytes::{put, u16_at, u32_at};
use crate::fault::Redo;
use crate::page;

/// `HashPageOpaqueData`: what a hash index keeps in the special space of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opaque {
    /// `hasho_prevblkno`: on a bucket's first page, the number of buckets when it was last split.
    pub(super) previous: u32,
    /// `hasho_nextblkno`
    pub(super) next: u32,
    /// `hasho_bucket`
    pub(super) bucket: u32,
    /// `hasho_flag`
    pub(super) flags: u16,
}

impl Opaque {
    pub(super) const SIZE: usize = SPECIAL_BYTES;

    pub(super) fn read(page: &PageBytes) -> Redo<Opaque> {
        let special = page::special(page, Self::SIZE)?;
        Ok(Opaque {
            previous: u32_at(special, PREVIOUS_OFFSET)?,
            next: u32_at(special, NEXT_OFFSET)?,
            bucket: u32_at(special, BUCKET_OFFSET)?,
            flags: u16_at(special, FLAGS_OFFSET)?,
        })
    }

    /// Writes the fields; the page's identification stays.
    pub(super) fn write(self, page: &mut PageBytes) -> Redo {
        let special = page::special_mut(page, Self::SIZE)?;
        put(special, PREVIOUS_OFFSET, &self.previous.to_le_bytes())?;
        put(special, NEXT_OFFSET, &self.next.to_le_bytes())?;
        put(special, BUCKET_OFFSET, &self.bucket.to_le_bytes())?;
        put(special, FLAGS_OFFSET, &self.flags.to_le_bytes())
    }

    /// `_hash_pageinit`, with this in the special space.
    pub(super) fn init_page(self, page: &mut PageBytes) -> Redo {
        page::init(page, Self::SIZE);
        put(page::special_mut(page, Self::SIZE)?, PAGE_ID_OFFSET, &PAGE_ID.to_le_bytes())?;
        self.write(page)
    }
}

/// Reads the special space, changes it and writes it.
pub(super) fn update_opaque(page: &mut PageBytes, change: impl FnOnce(&mut Opaque)) -> Redo {
    let mut opaque = Opaque::read(page)?;
    change(&mut opaque);
    opaque.write(page)
}
