//! Page objects: images of the pages of some extents as of one LSN.
//!
//! ```text
//! facts   = group lsn epoch node extents
//! block   = extent*                           extents in key order, about 256 KiB of them or one that is larger
//! extent  = postcard(first present) page*     the bits of `present`, the lowest for `first`: which pages exist
//! ```
//!
//! An extent is 128 neighbouring pages that begin at a multiple of 128. A page object alone is nothing: the manifest of a
//! snapshot ([`crate::manifest`]) says which extents of which objects it consists of.

use borealis_types::{
    BlockKey, GroupId, Lsn, MAX_GROUPS, NodeId, PAGE_SIZE, PageBytes, PageKey, VolumeEpoch, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::name::PagesName;
use crate::object::{BLOCKS_MAX, Digest, Facts, Head, Kind, ObjectWriter};
use crate::sealing::Sealing;

/// Pages of an extent.
pub const PAGES_PER_EXTENT: u32 = 128;

/// A block is full when it has so many bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// What a page object says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PagesFacts {
    /// The group whose pages it has.
    pub group: GroupId,
    /// As of which they are.
    pub lsn: Lsn,
    /// The epoch in which that was durable.
    pub epoch: VolumeEpoch,
    /// Who made it.
    pub node: NodeId,
    /// How many extents it has.
    pub extents: u64,
}

impl Facts for PagesFacts {
    const KIND: Kind = Kind::Pages;

    fn check(&self) -> Result<(), &'static str> {
        if self.group.0 < MAX_GROUPS { Ok(()) } else { Err("a group that there cannot be") }
    }
}

impl PagesFacts {
    /// The name of the object with these facts.
    #[must_use]
    pub fn name(&self, digest: Digest) -> PagesName {
        let PagesFacts { group, lsn, epoch, node, extents: _ } = *self;
        PagesName { group, lsn, epoch, node, digest }
    }
}

/// The first page of the extent that a page is in, and the page's place in it.
#[must_use]
pub fn extent_of(key: &PageKey) -> (PageKey, u32) {
    let number = number_of(key);
    let place = number % PAGES_PER_EXTENT;
    (with_number(key, number - place), place)
}

fn number_of(key: &PageKey) -> u32 {
    match *key {
        PageKey::Block(BlockKey { block, .. }) => block,
        PageKey::Slru { page, .. } => page,
    }
}

fn with_number(key: &PageKey, number: u32) -> PageKey {
    match *key {
        PageKey::Block(BlockKey { relation_fork, .. }) => {
            PageKey::Block(BlockKey { relation_fork, block: number })
        }
        PageKey::Slru { kind, .. } => PageKey::Slru { kind, page: number },
    }
}

/// The pages of one extent that exist, as of one LSN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentPages {
    first: PageKey,
    present: u128,
    /// Those that are present, one after the other.
    bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct ExtentHead {
    first: PageKey,
    present: u128,
}

impl ExtentPages {
    /// The extent that `key` is in, without a page.
    #[must_use]
    pub fn new(key: &PageKey) -> ExtentPages {
        ExtentPages { first: extent_of(key).0, present: 0, bytes: Vec::new() }
    }

    /// Its first page, whether or not that exists.
    #[must_use]
    pub fn first(&self) -> PageKey {
        self.first
    }

    /// Adds a page; `false` if it is of another extent, or does not come after those that are there.
    pub fn push(&mut self, key: &PageKey, page: &PageBytes) -> bool {
        let (first, place) = extent_of(key);
        let next = u128::BITS - self.present.leading_zeros();
        if first != self.first || place < next {
            return false;
        }
        self.present |= 1 << place;
        self.bytes.extend_from_slice(page);
        true
    }

    /// Says which pages exist and what they have: two extents that begin at the same page and have the same content are equal.
    #[must_use]
    pub fn content(&self) -> Digest {
        Digest::of_parts(&[&self.present.to_le_bytes(), &self.bytes])
    }

    /// Whether it has no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// Every page that exists, in order.
    pub fn pages(&self) -> impl Iterator<Item = (PageKey, &PageBytes)> {
        let places = (0..PAGES_PER_EXTENT).filter(|place| self.present & 1 << place != 0);
        let (pages, _) = self.bytes.as_chunks::<PAGE_SIZE>();
        let first = number_of(&self.first);
        places.map(move |place| with_number(&self.first, first + place)).zip(pages)
    }
}

/// Reads the extents of one block of a page object, calling `take` with each.
///
/// # Errors
/// When the block is not a sequence of extents in key order.
pub fn for_each_extent(block: &[u8], mut take: impl FnMut(ExtentPages)) -> Result<(), FormatError> {
    let mut rest = block;
    let mut before = None;
    while !rest.is_empty() {
        let (head, pages): (ExtentHead, _) = postcard::take_from_bytes(rest)
            .map_err(|_| FormatError::Malformed("the head of an extent does not decode"))?;
        let bytes = head.present.count_ones() as usize * PAGE_SIZE;
        let pages_there =
            pages.get(..bytes).ok_or(FormatError::Malformed("pages of an extent are missing"))?;
        if extent_of(&head.first).1 != 0 || before >= Some(head.first) || head.present == 0 {
            return Err(FormatError::Malformed("extents of a block out of order"));
        }
        before = Some(head.first);
        rest = &pages[bytes..];
        take(ExtentPages { first: head.first, present: head.present, bytes: pages_there.to_vec() });
    }
    Ok(())
}

/// The pages of one extent, from the block that a manifest names for it.
///
/// # Errors
/// When the block is malformed, or does not have the extent.
pub fn find_extent(block: &[u8], first: &PageKey) -> Result<ExtentPages, FormatError> {
    let mut found = None;
    for_each_extent(block, |extent| {
        if extent.first == *first {
            found = Some(extent);
        }
    })?;
    found.ok_or(FormatError::Malformed("the extent is not in the block that the manifest names"))
}

/// Where an extent is in a page object: in which of its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlacedExtent {
    /// Its first page.
    pub first: PageKey,
    /// The block's number.
    pub block: u32,
}

/// Collects extents for one page object.
#[derive(Debug)]
pub struct PagesBuilder {
    writer: ObjectWriter,
    facts: PagesFacts,
    block: Vec<u8>,
    placed: Vec<PlacedExtent>,
}

impl PagesBuilder {
    /// An object for pages of a group as of `lsn`, which was durable in `epoch`.
    #[must_use]
    pub fn new(volume: VolumeId, group: GroupId, node: NodeId, epoch: VolumeEpoch, lsn: Lsn) -> PagesBuilder {
        let facts = PagesFacts { group, lsn, epoch, node, extents: 0 };
        PagesBuilder { writer: ObjectWriter::new(volume), facts, block: Vec::new(), placed: Vec::new() }
    }

    /// Adds an extent; `false` if it has no page, does not come after the last one, or the object is full.
    pub fn push(&mut self, extent: &ExtentPages) -> bool {
        let follows = self.placed.last().is_none_or(|last| last.first < extent.first);
        if extent.present == 0 || !follows || self.writer.block_count() + 1 >= BLOCKS_MAX {
            return false;
        }
        if !self.block.is_empty() && self.block.len() + extent.bytes.len() > BLOCK_BYTES {
            self.end_block();
        }
        let head = ExtentHead { first: extent.first, present: extent.present };
        let block = std::mem::take(&mut self.block);
        self.block = postcard::to_extend(&head, block)
            .expect("plain numbers and lists always encode into a growing buffer");
        self.block.extend_from_slice(&extent.bytes);
        self.placed.push(PlacedExtent { first: extent.first, block: self.writer.block_count() as u32 });
        self.facts.extents += 1;
        true
    }

    fn end_block(&mut self) {
        self.writer.push(&self.block);
        self.block.clear();
    }

    /// How much memory its content takes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.writer.size_bytes() + self.block.len()
    }

    /// The object, and where each extent is in it; `None` if it has none.
    #[must_use]
    pub fn finish(mut self, sealing: &Sealing) -> Option<(PagesName, Vec<u8>, Vec<PlacedExtent>)> {
        if self.placed.is_empty() {
            return None;
        }
        self.end_block();
        let encoded = self.writer.finish(self.facts, sealing);
        Some((self.facts.name(encoded.digest), encoded.bytes, self.placed))
    }
}

/// Reads the head of a page object, of which only the first bytes are needed.
///
/// # Errors
/// When it is not the head of the object with that name.
pub fn decode_head(
    bytes: &[u8],
    volume: VolumeId,
    name: &PagesName,
    sealing: &Sealing,
) -> Result<Head<PagesFacts>, FormatError> {
    let head = Head::<PagesFacts>::decode(bytes, volume, sealing)?;
    if head.facts().name(name.digest) == *name { Ok(head) } else { Err(FormatError::Name) }
}
