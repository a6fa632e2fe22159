//! The way back: records from their parts, and their place among WAL pages.

use std::convert::Infallible;

use borealis_types::{BlockKey, Lsn, PAGE_SIZE, PageBytes, Part, RecordSpan, invariant};

use crate::assemble::{Front, PageAssembler, PageFiller, record_span, record_start};
use crate::bytes::Reader;

use crate::layout::common::wal_record::{
    BLOCK_HAS_DATA, BLOCK_HAS_IMAGE, BLOCK_ID_MAX, BLOCK_SAME_RELATION, BLOCK_WILL_INIT, CHECKSUM_OFFSET,
    ID_DATA_LONG, ID_DATA_SHORT, ID_ORIGIN, ID_TOP_LEVEL_XID, IMAGE_APPLY, IMAGE_HAS_HOLE, IMAGE_LZ4,
    IMAGE_PGLZ, IMAGE_ZSTD, RECORD_BYTES_MAX, RECORD_HEADER_BYTES,
};
use crate::layout::{CheckPointRecord, page as page_header, xlog};
use crate::page::{WalLayout, is_segment_start, page_start};
use crate::record::{RecordHeader, checksum, verify_checksum};
use crate::{BlockImage, BlockReference, ImageCompression, ResourceManager};

/// Pages one [`full_page_images`] record can hold.
pub const FULL_PAGE_IMAGES_MAX: usize = BLOCK_ID_MAX as usize;

/// Builds one record. The order of parts is that of `XLogRecordAssemble`
/// (`src/backend/access/transam/xloginsert.c`).
#[derive(Clone, Debug)]
pub struct RecordBuilder<'a> {
    resource_manager: ResourceManager,
    info: u8,
    xid: u32,
    previous_start: Lsn,
    origin: Option<u16>,
    top_level_xid: Option<u32>,
    blocks: Vec<BlockReference<'a>>,
    main_data: &'a [u8],
}

impl<'a> RecordBuilder<'a> {
    /// A record of this operation (with its `XLR_*` flags), of no transaction, after no record.
    #[must_use]
    pub fn new(resource_manager: ResourceManager, info: u8) -> RecordBuilder<'a> {
        RecordBuilder {
            resource_manager,
            info,
            xid: 0,
            previous_start: Lsn::ZERO,
            origin: None,
            top_level_xid: None,
            blocks: Vec::new(),
            main_data: &[],
        }
    }

    /// Sets the (sub)transaction that writes the record; without it there is none.
    #[must_use]
    pub fn xid(mut self, xid: u32) -> Self {
        self.xid = xid;
        self
    }

    /// Sets the start of the record before (`xl_prev`).
    #[must_use]
    pub fn previous_start(mut self, previous_start: Lsn) -> Self {
        self.previous_start = previous_start;
        self
    }

    /// Sets the replication origin; `None` writes no such part.
    #[must_use]
    pub fn origin(mut self, origin: Option<u16>) -> Self {
        self.origin = origin;
        self
    }

    /// Sets the top-level transaction; `None` writes no such part.
    #[must_use]
    pub fn top_level_xid(mut self, xid: Option<u32>) -> Self {
        self.top_level_xid = xid;
        self
    }

    /// Sets the resource manager's data that belongs to no block.
    #[must_use]
    pub fn main_data(mut self, main_data: &'a [u8]) -> Self {
        self.main_data = main_data;
        self
    }

    /// Adds a block. Its image is stored as it is given.
    ///
    /// # Panics
    /// If its id is not above the last one's, or above [`BLOCK_ID_MAX`].
    #[must_use]
    pub fn block(mut self, block: BlockReference<'a>) -> Self {
        let rises = block.id <= BLOCK_ID_MAX && self.blocks.last().is_none_or(|last| last.id < block.id);
        invariant!("record-block-ids-rise", rises, "block id {}", block.id);
        self.blocks.push(block);
        self
    }

    /// The bytes of the record, checksum and all.
    ///
    /// # Panics
    /// If the record is longer than [`RECORD_BYTES_MAX`], or a block's data or image longer than a record can
    /// say.
    #[must_use]
    pub fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + self.main_data.len() + 64);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.xid.to_le_bytes());
        bytes.extend_from_slice(&self.previous_start.0.to_le_bytes());
        bytes.extend_from_slice(&[self.info, self.resource_manager.number()]);
        bytes.extend_from_slice(&[0; 6]);

        let mut last_locator = None;
        for block in &self.blocks {
            let locator = block.key.relation_fork.locator;
            push_block_header(block, last_locator == Some(locator), &mut bytes);
            last_locator = Some(locator);
        }
        if let Some(origin) = self.origin {
            bytes.push(ID_ORIGIN);
            bytes.extend_from_slice(&origin.to_le_bytes());
        }
        if let Some(xid) = self.top_level_xid {
            bytes.push(ID_TOP_LEVEL_XID);
            bytes.extend_from_slice(&xid.to_le_bytes());
        }
        if let Ok(length @ 1..) = u8::try_from(self.main_data.len()) {
            bytes.extend_from_slice(&[ID_DATA_SHORT, length]);
        } else if !self.main_data.is_empty() {
            bytes.push(ID_DATA_LONG);
            let length = u32::try_from(self.main_data.len()).expect("main data is shorter than a record");
            bytes.extend_from_slice(&length.to_le_bytes());
        }

        for block in &self.blocks {
            if let Some(image) = &block.image {
                bytes.extend_from_slice(image.bytes);
            }
            bytes.extend_from_slice(block.data);
        }
        bytes.extend_from_slice(self.main_data);

        assert_length(bytes.len());
        let total_bytes = u32::try_from(bytes.len()).expect("the limit is below 4 GiB");
        bytes[..4].copy_from_slice(&total_bytes.to_le_bytes());
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_OFFSET..RECORD_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        assert_sealed(&bytes);
        bytes
    }
}

fn assert_length(length: usize) {
    invariant!("record-not-longer-than-readers-take", length <= RECORD_BYTES_MAX, "{length} bytes");
}

/// Says of an encoded record what the decoder of the log will ask of it.
fn assert_sealed(bytes: &[u8]) {
    let announced = RecordHeader::read(&mut Reader::new(bytes)).map(|header| header.total_bytes as usize);
    invariant!(
        "encoded-record-passes-its-checks",
        announced == Some(bytes.len()) && verify_checksum(bytes, Lsn::ZERO).is_ok(),
        "{} bytes, announced {announced:?}",
        bytes.len()
    );
}

fn push_block_header(block: &BlockReference<'_>, same_relation: bool, bytes: &mut Vec<u8>) {
    let mut flags = block.key.relation_fork.fork as u8;
    let mut set = |condition: bool, flag: u8| flags |= if condition { flag } else { 0 };
    set(block.image.is_some(), BLOCK_HAS_IMAGE);
    set(!block.data.is_empty(), BLOCK_HAS_DATA);
    set(block.will_init, BLOCK_WILL_INIT);
    set(same_relation, BLOCK_SAME_RELATION);
    let data_bytes = u16::try_from(block.data.len()).expect("a block's data is shorter than 64 KiB");
    bytes.extend_from_slice(&[block.id, flags]);
    bytes.extend_from_slice(&data_bytes.to_le_bytes());
    if let Some(image) = &block.image {
        let has_hole = image.hole_length > 0;
        let compression = match image.compression {
            ImageCompression::None => 0,
            ImageCompression::Pglz => IMAGE_PGLZ,
            ImageCompression::Lz4 => IMAGE_LZ4,
            ImageCompression::Zstd => IMAGE_ZSTD,
        };
        let info = compression
            | if has_hole { IMAGE_HAS_HOLE } else { 0 }
            | if image.apply { IMAGE_APPLY } else { 0 };
        let image_bytes = u16::try_from(image.bytes.len()).expect("an image is no longer than a page");
        bytes.extend_from_slice(&image_bytes.to_le_bytes());
        bytes.extend_from_slice(&image.hole_offset.to_le_bytes());
        bytes.push(info);
        if has_hole && compression != 0 {
            bytes.extend_from_slice(&image.hole_length.to_le_bytes());
        }
    }
    if !same_relation {
        let locator = block.key.relation_fork.locator;
        for number in [locator.tablespace, locator.database, locator.relation] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes.extend_from_slice(&block.key.block.to_le_bytes());
}

/// Where a page can be cut so that its image needs fewer bytes: offset and length of a hole, which is all
/// zeros.
fn hole(page: &PageBytes) -> (u16, u16) {
    let is_zero = |range: std::ops::Range<usize>| page[range].iter().all(|&byte| byte == 0);
    let half = |offset: usize| u16::from_le_bytes([page[offset], page[offset + 1]]);
    let (lower, upper) = (half(page_header::LOWER_OFFSET), half(page_header::UPPER_OFFSET));
    let (start, end) = (usize::from(lower), usize::from(upper));
    // Between `pd_lower` and `pd_upper` a standard page is free. A page that is not standard may have
    // anything there, so the bytes are looked at and not believed.
    if start >= page_header::HEADER_BYTES && start < end && end <= PAGE_SIZE && is_zero(start..end) {
        (lower, upper - lower)
    } else if is_zero(0..PAGE_SIZE) {
        // The format has no hole at offset zero, so one byte stays.
        (1, PAGE_SIZE as u16 - 1)
    } else {
        (0, 0)
    }
}

/// One `XLOG_FPI` record that makes each of these blocks exactly the page given (but for the LSN redo
/// stamps).
///
/// # Panics
/// If there are no pages or more than [`FULL_PAGE_IMAGES_MAX`].
#[must_use]
pub fn full_page_images(pages: &[(BlockKey, &PageBytes)], previous_start: Lsn) -> Vec<u8> {
    assert!(!pages.is_empty() && pages.len() <= FULL_PAGE_IMAGES_MAX, "{} pages in one record", pages.len());
    let solid: Vec<(u16, u16, Vec<u8>)> = pages
        .iter()
        .map(|(_, page)| {
            let (offset, length) = hole(page);
            let (before, rest) = page.split_at(usize::from(offset));
            (offset, length, [before, &rest[usize::from(length)..]].concat())
        })
        .collect();
    let mut builder = RecordBuilder::new(ResourceManager::Xlog, xlog::FULL_PAGE_IMAGE);
    for (id, ((key, page), (hole_offset, hole_length, bytes))) in pages.iter().zip(&solid).enumerate() {
        let image = BlockImage {
            bytes,
            hole_offset: *hole_offset,
            hole_length: *hole_length,
            compression: ImageCompression::None,
            apply: true,
        };
        assert_restores(&image, page);
        let id = u8::try_from(id).expect("there are at most 32 pages");
        builder =
            builder.block(BlockReference { id, key: *key, will_init: false, image: Some(image), data: &[] });
    }
    builder.previous_start(previous_start).finish()
}

/// Says of an image what whoever applies it relies on. A page of an import is read once and thrown away.
fn assert_restores(image: &BlockImage<'_>, page: &PageBytes) {
    let mut restored = [0; PAGE_SIZE];
    let result = image.restore(&mut restored);
    invariant!("full-page-image-restores-its-page", result.is_ok() && restored == *page, "{result:?}");
}

/// Lays a record out as it stands in the log.
///
/// `at` is the end of the record before (`RecordSpan::end`). The bytes returned begin at `at`: a page
/// header if a page begins there, the record, a header wherever it enters another page, and zeros up to the
/// aligned end.
///
/// # Panics
/// If `at` is not aligned or inside a page header, or `record` is empty.
#[must_use]
pub fn lay_out(layout: &WalLayout, record: &[u8], at: Lsn) -> (RecordSpan, Vec<u8>) {
    assert!(!record.is_empty(), "there is no empty record");
    let span = record_span(layout, at, record.len());
    let (before, until) = ((at.0 - page_start(at).0) as usize, (span.end.0 - page_start(at).0) as usize);
    let mut filler = PageFiller::new(*layout, at);
    let mut bytes = Vec::with_capacity(until + PAGE_SIZE);
    filler.begin_record(0, false);
    let Ok(()) = filler.put(record, record.len(), &mut |_, page: &PageBytes| {
        bytes.extend_from_slice(page);
        Ok::<(), Infallible>(())
    });
    bytes.extend_from_slice(filler.page());
    bytes.truncate(until);
    bytes.drain(..before);
    (span, bytes)
}

/// A shutdown checkpoint written into otherwise empty pages.
#[derive(Clone, Debug)]
pub struct ShutdownCheckpoint {
    /// Where the record starts, after any page header, and its aligned end.
    pub span: RecordSpan,
    /// The record's bytes, without page headers.
    pub record: Vec<u8>,
    /// Whole WAL pages and where they begin: those the record stands on and, before them, the first page of
    /// its segment file, which PostgreSQL reads to know the file. What of them is not the record is zeros,
    /// and zeros is what PostgreSQL finds when it goes on writing after it.
    pub pages: Vec<(Lsn, Box<PageBytes>)>,
}

/// Writes a shutdown checkpoint after the record `last`, whose end need not be on a page that exists.
///
/// The checkpoint's `redo` is set to the new record's own start, as PostgreSQL has it.
///
/// # Panics
/// As [`lay_out`] for `last.end`.
#[must_use]
pub fn shutdown_checkpoint(
    layout: &WalLayout,
    last: RecordSpan,
    checkpoint: CheckPointRecord,
) -> ShutdownCheckpoint {
    let redo = record_start(layout, last.end);
    let body = CheckPointRecord { redo, ..checkpoint }.encode();
    let record = RecordBuilder::new(ResourceManager::Xlog, xlog::CHECKPOINT_SHUTDOWN)
        .previous_start(last.start)
        .main_data(&body)
        .finish();
    let span = record_span(layout, last.end, record.len());

    let mut pages: Vec<(Lsn, Box<PageBytes>)> = Vec::new();
    let mut give = |page: Lsn, bytes: &PageBytes| {
        pages.push((page, Box::new(*bytes)));
        Ok(())
    };
    // PostgreSQL does not set the flag in pages that it writes before it runs either.
    let assembled = PageAssembler::new(*layout, last.end, last.start, Front::Zeros).and_then(|assembler| {
        let mut assembler = assembler.with_backup_removable(false);
        assembler.append(span, Part::Whole, &record, &mut give)?;
        assembler.finish(&mut give)
    });
    assembled.expect("the record was made to stand after the last one");
    assert_checkpoint_can_be_found(layout, last, redo, span, &pages);
    ShutdownCheckpoint { span, record, pages }
}

/// A server that finds the checkpoint reads its segment file's first page, then the record at `redo`, and its link back.
fn assert_checkpoint_can_be_found(
    layout: &WalLayout,
    last: RecordSpan,
    redo: Lsn,
    span: RecordSpan,
    pages: &[(Lsn, Box<PageBytes>)],
) {
    let has_first_page = pages.iter().any(|(page, _)| is_segment_start(*page, layout.segment_bytes));
    invariant!("checkpoint-has-its-segments-first-page", has_first_page, "for {}", span.start);
    invariant!(
        "checkpoint-starts-at-its-redo",
        span.start == redo && last.end <= span.start,
        "redo {redo}, start {}, last {}",
        span.start,
        last.end
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::PostgresVersion;

    const LAYOUT: WalLayout = WalLayout {
        version: PostgresVersion::NEWEST,
        timeline: 1,
        system_identifier: 1,
        segment_bytes: WalLayout::DEFAULT_SEGMENT_BYTES,
    };

    fn block(id: u8) -> BlockReference<'static> {
        let locator = borealis_types::RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
        let relation_fork = borealis_types::RelationFork { locator, fork: borealis_types::Fork::Main };
        let key = BlockKey { relation_fork, block: 0 };
        BlockReference { id, key, will_init: false, image: None, data: &[] }
    }

    #[test]
    #[should_panic(expected = "invariant record-block-ids-rise is broken")]
    fn a_block_id_that_does_not_rise_is_noticed() {
        let _ = RecordBuilder::new(ResourceManager::Heap, 0).block(block(1)).block(block(1));
    }

    #[test]
    #[should_panic(expected = "invariant encoded-record-passes-its-checks is broken")]
    fn a_record_that_changed_after_it_was_sealed_is_noticed() {
        let mut bytes = RecordBuilder::new(ResourceManager::Heap, 0).main_data(&[1, 2]).finish();
        bytes[RECORD_HEADER_BYTES] ^= 1;
        assert_sealed(&bytes);
    }

    #[test]
    #[should_panic(expected = "invariant record-begins-where-one-may is broken")]
    fn a_record_inside_a_page_header_is_noticed() {
        let _ = lay_out(&LAYOUT, &[1], Lsn(8));
    }

    #[test]
    #[should_panic(expected = "invariant checkpoint-starts-at-its-redo is broken")]
    fn a_checkpoint_that_starts_elsewhere_is_noticed() {
        let span = RecordSpan { start: Lsn(48), end: Lsn(160) };
        let first_page = [(Lsn(0), Box::new([0; PAGE_SIZE]))];
        assert_checkpoint_can_be_found(&LAYOUT, RecordSpan::NONE, Lsn(40), span, &first_page);
    }

    #[test]
    #[should_panic(expected = "invariant checkpoint-has-its-segments-first-page is broken")]
    fn a_checkpoint_without_its_segments_first_page_is_noticed() {
        let span = RecordSpan { start: Lsn(40), end: Lsn(152) };
        assert_checkpoint_can_be_found(&LAYOUT, RecordSpan::NONE, Lsn(40), span, &[]);
    }

    #[test]
    #[should_panic(expected = "invariant full-page-image-restores-its-page is broken")]
    fn an_image_whose_hole_is_not_empty_is_noticed() {
        let mut page = [0; PAGE_SIZE];
        page[100] = 7;
        let image = BlockImage {
            bytes: &[0; PAGE_SIZE - 200],
            hole_offset: 50,
            hole_length: 200,
            compression: ImageCompression::None,
            apply: true,
        };
        assert_restores(&image, &page);
    }

    #[test]
    #[should_panic(expected = "invariant record-not-longer-than-readers-take is broken")]
    fn a_record_that_no_reader_takes_is_noticed() {
        assert_length(RECORD_BYTES_MAX + 1);
    }
}
