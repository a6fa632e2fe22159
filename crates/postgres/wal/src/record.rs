//! One WAL record, parsed in place.
//!
//! Layouts: PostgreSQL's `src/include/access/xlogrecord.h`; order of parts: `DecodeXLogRecord` in
//! `src/backend/access/transam/xlogreader.c`.

use std::fmt;
use std::ops::Deref;

use arrayvec::ArrayVec;
use borealis_types::{
    BlockKey, Fork, Lsn, PostgresVersion, RecordSpan, RelationFork, RelationLocator, ServerVersion, invariant,
};

use crate::ResourceManager;
use crate::bytes::Reader;
use crate::layout::common::wal_record::{
    BLOCK_FORK_MASK, BLOCK_HAS_DATA, BLOCK_HAS_IMAGE, BLOCK_SAME_RELATION, BLOCK_WILL_INIT, CHECKSUM_OFFSET,
    ID_DATA_LONG, ID_DATA_SHORT, ID_ORIGIN, ID_TOP_LEVEL_XID, OPERATION_MASK, RECORD_HEADER_BYTES,
};
pub use crate::layout::common::wal_record::{
    BLOCK_ID_MAX, CHECK_CONSISTENCY, RECORD_BYTES_MAX, SPECIAL_RELATION_UPDATE,
};

/// A parsed record. It borrows the contiguous bytes of the record (`xl_tot_len` of them).
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Where the record stands; `span.end` is what its pages are stamped with.
    pub span: RecordSpan,
    /// The release that wrote it: its major version has the layouts, and redo does what that release does.
    pub server_version: ServerVersion,
    /// The whole record, header included.
    pub bytes: &'a [u8],
    /// Writing (sub)transaction, zero for none.
    pub xid: u32,
    /// Start of the previous record in the volume (`xl_prev`).
    pub previous_start: Lsn,
    /// Which resource manager applies it.
    pub resource_manager: ResourceManager,
    /// `xl_info`: the resource manager's operation in the high four bits, `XLR_*` flags in the low four.
    pub info: u8,
    /// Listed blocks, in block-id order.
    pub blocks: BlockList<'a>,
    /// Resource-manager data that belongs to no block.
    pub main_data: &'a [u8],
    /// The replication origin; `None` for local transactions.
    pub origin: Option<u16>,
    /// Top-level transaction, where the record carries it.
    pub top_level_xid: Option<u32>,
}

impl<'a> Record<'a> {
    /// Parses the bytes of one record, which must be exactly `xl_tot_len` long.
    ///
    /// The checksum is not looked at (see [`verify_checksum`]): records are parsed again and again after they
    /// have been verified once. `server_version` is the release that wrote it.
    ///
    /// # Errors
    /// [`RecordError::Malformed`] when the bytes break the layout.
    // Inlined, so that the record, which is large, is made where the caller wants it.
    #[inline]
    pub fn parse(
        server_version: ServerVersion,
        span: RecordSpan,
        bytes: &'a [u8],
    ) -> Result<Record<'a>, RecordError> {
        let mut record = Record {
            span,
            server_version,
            bytes,
            xid: 0,
            previous_start: Lsn::ZERO,
            resource_manager: ResourceManager::Xlog,
            info: 0,
            blocks: BlockList::new(),
            main_data: &[],
            origin: None,
            top_level_xid: None,
        };
        match parse(&mut record) {
            Ok(()) => Ok(record),
            Err(what) => Err(RecordError::Malformed { start: span.start, what }),
        }
    }

    /// The operation bits of `info` (without the `XLR_*` flags).
    #[must_use]
    pub fn operation(&self) -> u8 {
        self.info & OPERATION_MASK
    }

    /// The listed block with this id (`XLogRecGetBlock…`).
    #[must_use]
    #[inline]
    pub fn block(&self, id: u8) -> Option<&BlockReference<'a>> {
        self.blocks.iter().find(|block| block.id == id)
    }
}

/// Where the record before this one in the volume starts (`xl_prev`), if its bytes keep to the layout of `version`. Who
/// wrote it need not be known: minor releases share every layout, and nothing is redone.
///
/// # Errors
/// As [`Record::parse`].
pub fn previous_start(version: PostgresVersion, span: RecordSpan, bytes: &[u8]) -> Result<Lsn, RecordError> {
    let any_release = ServerVersion::any_of(version);
    Record::parse(any_release, span, bytes).map(|record| record.previous_start)
}

/// Compares the record's checksum (`xl_crc`) with that of its bytes.
///
/// # Errors
/// [`RecordError::Checksum`] when they differ, [`RecordError::Malformed`] when there is no whole header.
pub fn verify_checksum(bytes: &[u8], start: Lsn) -> Result<(), RecordError> {
    let mut header = Reader::new(bytes);
    let stored = header.take(CHECKSUM_OFFSET).and_then(|_| header.u32());
    let Some(stored) = stored else {
        return Err(RecordError::Malformed { start, what: "shorter than a record header" });
    };
    if stored == checksum(bytes) { Ok(()) } else { Err(RecordError::Checksum { start }) }
}

/// The checksum a record must have: CRC-32C of what follows the header, then of the header up to `xl_crc`.
///
/// # Panics
/// If there is no whole header.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let length = bytes.len();
    invariant!("checksummed-record-has-its-header", length >= RECORD_HEADER_BYTES, "{length} bytes");
    let (header, body) = bytes.split_at(RECORD_HEADER_BYTES);
    crc32c::crc32c_append(crc32c::crc32c(body), &header[..CHECKSUM_OFFSET])
}

/// The checksum of a record whose bytes come one part after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RunningChecksum {
    /// The record's header, as far as it was counted.
    header: [u8; RECORD_HEADER_BYTES],
    counted_bytes: usize,
    /// CRC-32C of the record's bytes after its header, so far.
    body: u32,
}

impl RunningChecksum {
    /// Counts the record's next bytes.
    pub(crate) fn count(&mut self, bytes: &[u8]) {
        let of_header = RECORD_HEADER_BYTES.saturating_sub(self.counted_bytes).min(bytes.len());
        let (header, body) = bytes.split_at(of_header);
        let place = self.counted_bytes.min(RECORD_HEADER_BYTES);
        self.header[place..place + of_header].copy_from_slice(header);
        self.body = crc32c::crc32c_append(self.body, body);
        self.counted_bytes += bytes.len();
    }

    /// How many bytes were counted.
    pub(crate) fn counted_bytes(&self) -> usize {
        self.counted_bytes
    }

    /// The checksum that the record, all of which was counted, must have.
    pub(crate) fn expected(&self) -> u32 {
        crc32c::crc32c_append(self.body, &self.header[..CHECKSUM_OFFSET])
    }

    /// Whether the record, all of which was counted, has its checksum.
    pub(crate) fn is_sound(&self) -> bool {
        self.expected().to_le_bytes() == self.header[CHECKSUM_OFFSET..]
    }
}

/// The fixed header of a record (`XLogRecord`), without its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub total_bytes: u32,
    pub xid: u32,
    pub previous_start: Lsn,
    pub info: u8,
    pub resource_manager: u8,
}

impl RecordHeader {
    /// Reads the header; `None` when the bytes are too short.
    pub fn read(reader: &mut Reader<'_>) -> Option<RecordHeader> {
        let header = RecordHeader {
            total_bytes: reader.u32()?,
            xid: reader.u32()?,
            previous_start: Lsn(reader.u64()?),
            info: reader.u8()?,
            resource_manager: reader.u8()?,
        };
        // Two bytes of padding, then the checksum.
        reader.take(6)?;
        Some(header)
    }
}

/// How much of the payload is a block's: where it stands is known only after all headers are read.
#[derive(Clone, Copy)]
struct PayloadLengths {
    image: u16,
    data: u16,
}

/// Fills in everything that stands in the record's bytes.
fn parse(record: &mut Record<'_>) -> Result<(), &'static str> {
    const SHORT: &str = "a part of the record is cut short";
    let bytes = record.bytes;
    let mut reader = Reader::new(bytes);
    let header = RecordHeader::read(&mut reader).ok_or("shorter than a record header")?;
    if header.total_bytes as usize != bytes.len() {
        return Err("its length field does not match its bytes");
    }

    record.xid = header.xid;
    record.previous_start = header.previous_start;
    record.resource_manager = ResourceManager::from(header.resource_manager);
    record.info = header.info;
    let mut lengths = ArrayVec::<PayloadLengths, { BLOCK_ID_MAX as usize + 1 }>::new();
    let mut payload_bytes = 0usize;
    let mut main_data_bytes = 0usize;
    let mut locator = None;

    // Headers first, payload after them; the headers end where exactly the announced payload is left.
    while reader.remaining() > payload_bytes {
        let id = reader.u8().ok_or(SHORT)?;
        match id {
            ID_DATA_SHORT | ID_DATA_LONG => {
                main_data_bytes = if id == ID_DATA_SHORT {
                    usize::from(reader.u8().ok_or(SHORT)?)
                } else {
                    reader.u32().ok_or(SHORT)? as usize
                };
                payload_bytes += main_data_bytes;
                // The main data is always the last part.
                break;
            }
            ID_ORIGIN => record.origin = Some(reader.u16().ok_or(SHORT)?),
            ID_TOP_LEVEL_XID => record.top_level_xid = Some(reader.u32().ok_or(SHORT)?),
            0..=BLOCK_ID_MAX => {
                if record.blocks.last().is_some_and(|last| last.id >= id) {
                    return Err("block ids out of order");
                }
                let (block, length) = parse_block_header(id, &mut reader, &mut locator)?;
                payload_bytes += usize::from(length.image) + usize::from(length.data);
                // Ids ascend, so there are no more blocks than ids.
                lengths.push(length);
                record.blocks.push(block);
            }
            _ => return Err("unknown block id"),
        }
    }
    if reader.remaining() != payload_bytes {
        return Err(SHORT);
    }

    for (block, length) in record.blocks.as_mut_slice().iter_mut().zip(lengths) {
        if let Some(image) = &mut block.image {
            image.bytes = reader.take(length.image.into()).ok_or(SHORT)?;
        }
        block.data = reader.take(length.data.into()).ok_or(SHORT)?;
    }
    record.main_data = reader.take(main_data_bytes).ok_or(SHORT)?;
    Ok(())
}

/// Reads one block's header; its image and data bytes are filled in later.
fn parse_block_header<'a>(
    id: u8,
    reader: &mut Reader<'a>,
    locator: &mut Option<RelationLocator>,
) -> Result<(BlockReference<'a>, PayloadLengths), &'static str> {
    const SHORT: &str = "a block header is cut short";
    let flags = reader.u8().ok_or(SHORT)?;
    let data_bytes = reader.u16().ok_or(SHORT)?;
    if (flags & BLOCK_HAS_DATA != 0) != (data_bytes != 0) {
        return Err("a block's data flag and data length disagree");
    }
    let fork = Fork::try_from(flags & BLOCK_FORK_MASK).map_err(|_| "unknown fork number")?;
    let (image, image_bytes) = if flags & BLOCK_HAS_IMAGE != 0 {
        let (image, length) = BlockImage::parse_header(reader)?;
        (Some(image), length)
    } else {
        (None, 0)
    };
    if flags & BLOCK_SAME_RELATION == 0 {
        *locator = Some(reader.locator().ok_or(SHORT)?);
    }
    let locator = (*locator).ok_or("a block refers to the previous relation, and there is none")?;
    let block = reader.u32().ok_or(SHORT)?;
    let key = BlockKey { relation_fork: RelationFork { locator, fork }, block };
    let reference = BlockReference { id, key, will_init: flags & BLOCK_WILL_INIT != 0, image, data: &[] };
    Ok((reference, PayloadLengths { image: image_bytes, data: data_bytes }))
}

/// The listed blocks of a record. Reads as a slice; up to four, which is nearly every record, need no
/// allocation.
#[derive(Clone)]
pub struct BlockList<'a> {
    // Not an `ArrayVec`: its destructor would keep what it borrows borrowed to the end of a scope.
    inline: [BlockReference<'a>; BlockList::INLINE],
    inline_count: usize,
    /// Every block, once there are more than fit inline.
    spilled: Vec<BlockReference<'a>>,
}

impl<'a> BlockList<'a> {
    const INLINE: usize = 4;

    /// A list without blocks, which allocates nothing.
    #[must_use]
    pub fn new() -> BlockList<'a> {
        BlockList { inline: [BlockReference::NOTHING; 4], inline_count: 0, spilled: Vec::new() }
    }

    fn push(&mut self, block: BlockReference<'a>) {
        if self.spilled.is_empty() {
            if let Some(place) = self.inline.get_mut(self.inline_count) {
                *place = block;
                self.inline_count += 1;
                return;
            }
            self.spilled.extend_from_slice(&self.inline);
        }
        self.spilled.push(block);
    }

    fn as_mut_slice(&mut self) -> &mut [BlockReference<'a>] {
        if self.spilled.is_empty() { &mut self.inline[..self.inline_count] } else { &mut self.spilled }
    }
}

impl Default for BlockList<'_> {
    fn default() -> Self {
        BlockList::new()
    }
}

impl<'a> Deref for BlockList<'a> {
    type Target = [BlockReference<'a>];

    fn deref(&self) -> &[BlockReference<'a>] {
        if self.spilled.is_empty() { &self.inline[..self.inline_count] } else { &self.spilled }
    }
}

impl<'l, 'a> IntoIterator for &'l BlockList<'a> {
    type Item = &'l BlockReference<'a>;
    type IntoIter = std::slice::Iter<'l, BlockReference<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for BlockList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A block a record lists.
#[derive(Clone, Copy, Debug)]
pub struct BlockReference<'a> {
    /// The id the resource manager knows it by.
    pub id: u8,
    /// The block of a relation fork it is about.
    pub key: BlockKey,
    /// The record re-initializes the page (`BKPBLOCK_WILL_INIT`): its old bytes do not matter.
    pub will_init: bool,
    /// A full-page image, if the record has one.
    pub image: Option<BlockImage<'a>>,
    /// Resource-manager data of this block (empty if none).
    pub data: &'a [u8],
}

impl BlockReference<'_> {
    /// What stands in the unused places of a [`BlockList`].
    const NOTHING: Self = BlockReference {
        id: 0,
        key: BlockKey {
            relation_fork: RelationFork {
                locator: RelationLocator { tablespace: 0, database: 0, relation: 0 },
                fork: Fork::Main,
            },
            block: 0,
        },
        will_init: false,
        image: None,
        data: &[],
    };
}

/// A full-page image as the record stores it: perhaps compressed, perhaps with its hole left out.
#[derive(Clone, Copy, Debug)]
pub struct BlockImage<'a> {
    /// The page without its hole, compressed or not.
    pub bytes: &'a [u8],
    /// Offset of the hole in the page; zero if none.
    pub hole_offset: u16,
    /// Length of the hole, which is all zeros; zero if none.
    pub hole_length: u16,
    /// How the bytes are compressed.
    pub compression: ImageCompression,
    /// Redo restores the page from this image (`BKPIMAGE_APPLY`); otherwise it is for checking only.
    pub apply: bool,
}

/// How a full-page image is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageCompression {
    /// Stored as it is.
    None,
    /// Compressed with PostgreSQL's own LZ (`pglz`).
    Pglz,
    /// Compressed in the LZ4 block format.
    Lz4,
    /// Compressed as one Zstandard frame.
    Zstd,
}

/// Bytes that are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes break the layout.
    #[error("malformed WAL record at {start}: {what}")]
    Malformed {
        /// Where the record starts in the log.
        start: Lsn,
        /// The rule of the layout that is broken.
        what: &'static str,
    },
    /// A full-page image cannot be restored.
    #[error("full-page image cannot be restored: {what}")]
    Image {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The checksum is not that of the bytes.
    #[error("WAL record at {start} fails its checksum")]
    Checksum {
        /// Where the record starts in the log.
        start: Lsn,
    },
}

/// A parsed part of the record, or the error that names the record and the layout it breaks.
pub(crate) fn parsed<T>(record: &Record<'_>, part: Option<T>, what: &'static str) -> Result<T, RecordError> {
    part.ok_or(RecordError::Malformed { start: record.span.start, what })
}

#[cfg(test)]
mod tests {
    #[test]
    #[should_panic(expected = "invariant checksummed-record-has-its-header is broken")]
    fn a_checksum_without_a_header_is_noticed() {
        super::checksum(&[0; 10]);
    }
}
