//! A record with the pages and values it is applied to, as instructions.
//!
//! ```text
//! sample = resource manager u8 | info u8 | xid u32 | presence u8 | origin u16 | top-level xid u32
//!          | changes to pages | main data | count u8, block* | count u8, (key, page)* | count u8, (key, value)*
//! block  = id u8 | flags u8 | key | data | image, if the flags say so
//! ```
//! Byte strings have a two-byte length before them, numbers are little-endian. What real WAL does comes out as it
//! went in (the committed corpus is made of it), and every other sequence of bytes means some sample.

use borealis_types::{
    BlockKey, DatabaseKey, Fork, Lsn, MetaKey, PageBytes, PageKey, RelationFork, RelationLocator,
    ServerVersion, SlruKind,
};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::record::BLOCK_ID_MAX;
use borealis_wal::{BlockImage, BlockReference, ImageCompression, Record, ResourceManager};

use crate::Input;
use crate::pages::{change_pages, decode_page, encode_page};

/// Blocks, pages and values in one sample.
const PARTS_MAX: u8 = 40;

const HAS_ORIGIN: u8 = 1;
const HAS_TOP_LEVEL_XID: u8 = 2;
const BY_OLDER_RELEASE: u8 = 4;

const WILL_INIT: u8 = 0x01;
const HAS_IMAGE: u8 = 0x02;
const APPLY: u8 = 0x04;

const COMPRESSIONS: [ImageCompression; 4] =
    [ImageCompression::None, ImageCompression::Pglz, ImageCompression::Lz4, ImageCompression::Zstd];

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// `xl_rmid`
    pub resource_manager: u8,
    /// `xl_info`
    pub info: u8,
    /// `xl_xid`
    pub xid: u32,
    /// Replication origin, if any.
    pub origin: Option<u16>,
    /// Top-level transaction, if any.
    pub top_level_xid: Option<u32>,
    /// The oldest tested release wrote it, not the newest.
    pub by_older_release: bool,
    /// Data that belongs to no block.
    pub main_data: Vec<u8>,
    /// Listed blocks; ids rise.
    pub blocks: Vec<SampleBlock>,
    /// Pages before the record.
    pub pages: Vec<(PageKey, Box<PageBytes>)>,
    /// Small values before the record.
    pub values: Vec<(MetaKey, Vec<u8>)>,
}

/// A listed block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SampleBlock {
    /// Its id in the record.
    pub id: u8,
    /// Which block.
    pub key: BlockKey,
    /// Redo initializes it.
    pub will_init: bool,
    /// Its data.
    pub data: Vec<u8>,
    /// Its image, if any.
    pub image: Option<SampleImage>,
}

/// A full-page image, as the record stores it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SampleImage {
    /// Stored bytes.
    pub bytes: Vec<u8>,
    /// Offset of the hole.
    pub hole_offset: u16,
    /// Length of the hole.
    pub hole_length: u16,
    /// How the bytes are compressed.
    pub compression: ImageCompression,
    /// Redo restores the page from it.
    pub apply: bool,
}

impl Sample {
    /// The parts of a record, without pages and values. Images that redo does not apply are left out: they are for
    /// the oracle, and large.
    #[must_use]
    pub fn of_record(record: &Record<'_>) -> Sample {
        let blocks = record.blocks.iter().map(|block| SampleBlock {
            id: block.id,
            key: block.key,
            will_init: block.will_init,
            data: block.data.to_vec(),
            image: block.image.filter(|image| image.apply).map(|image| SampleImage {
                bytes: image.bytes.to_vec(),
                hole_offset: image.hole_offset,
                hole_length: image.hole_length,
                compression: image.compression,
                apply: true,
            }),
        });
        Sample {
            resource_manager: record.resource_manager.number(),
            info: record.info & !borealis_wal::record::CHECK_CONSISTENCY,
            xid: record.xid,
            origin: record.origin,
            top_level_xid: record.top_level_xid,
            by_older_release: record.server_version < ServerVersion::NEWEST_TESTED,
            main_data: record.main_data.to_vec(),
            blocks: blocks.collect(),
            pages: Vec::new(),
            values: Vec::new(),
        }
    }

    /// The release that wrote the record, which redo follows.
    #[must_use]
    pub fn server_version(&self) -> ServerVersion {
        release(self.by_older_release)
    }

    /// The record, with its checksum.
    #[must_use]
    pub fn record_bytes(&self, previous_start: Lsn) -> Vec<u8> {
        let mut builder = RecordBuilder::new(ResourceManager::from(self.resource_manager), self.info)
            .xid(self.xid)
            .previous_start(previous_start)
            .origin(self.origin)
            .top_level_xid(self.top_level_xid)
            .main_data(&self.main_data);
        for block in &self.blocks {
            let image = block.image.as_ref().map(|image| BlockImage {
                bytes: &image.bytes,
                hole_offset: image.hole_offset,
                hole_length: image.hole_length,
                compression: image.compression,
                apply: image.apply,
            });
            builder = builder.block(BlockReference {
                id: block.id,
                key: block.key,
                will_init: block.will_init,
                image,
                data: &block.data,
            });
        }
        builder.finish()
    }

    /// Writes the sample down.
    ///
    /// # Panics
    /// If a part is longer than its two-byte length can say.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.resource_manager, self.info];
        out.extend_from_slice(&self.xid.to_le_bytes());
        out.push(
            (u8::from(self.origin.is_some()) * HAS_ORIGIN)
                | (u8::from(self.top_level_xid.is_some()) * HAS_TOP_LEVEL_XID)
                | (u8::from(self.by_older_release) * BY_OLDER_RELEASE),
        );
        out.extend_from_slice(&self.origin.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&self.top_level_xid.unwrap_or(0).to_le_bytes());
        // No changes.
        out.push(0);
        put_counted(&mut out, &self.main_data);
        out.push(self.blocks.len() as u8);
        for block in &self.blocks {
            encode_block(block, &mut out);
        }
        out.push(self.pages.len() as u8);
        for (key, page) in &self.pages {
            put_page_key(&mut out, key);
            encode_page(page, &mut out);
        }
        out.push(self.values.len() as u8);
        for (key, value) in &self.values {
            put_meta_key(&mut out, key);
            put_counted(&mut out, value);
        }
        out
    }

    /// Reads a sample.
    pub fn decode(input: &mut Input<'_>) -> Sample {
        let (resource_manager, info, xid) = (input.u8(), input.u8(), input.u32());
        let (presence, origin, top_level_xid) = (input.u8(), input.u16(), input.u32());
        // What the changes are is said before the pages, near the front, where mutations find it.
        let mut changes = input.clone();
        let count = input.u8() % 16;
        input.bytes(usize::from(count) * 6);
        let main_data = input.counted().to_vec();
        let blocks = decode_blocks(input);
        let (mut keys, mut pages) = (Vec::new(), Vec::new());
        for _ in 0..input.u8().min(PARTS_MAX) {
            keys.push(take_page_key(input));
            pages.push(decode_page(input));
        }
        change_pages(&mut changes, &mut pages);
        let values = (0..input.u8().min(PARTS_MAX))
            .map(|_| (take_meta_key(input), input.counted().to_vec()))
            .collect();
        Sample {
            resource_manager,
            info,
            xid,
            origin: (presence & HAS_ORIGIN != 0).then_some(origin),
            top_level_xid: (presence & HAS_TOP_LEVEL_XID != 0).then_some(top_level_xid),
            by_older_release: presence & BY_OLDER_RELEASE != 0,
            main_data,
            blocks,
            pages: keys.into_iter().zip(pages).collect(),
            values,
        }
    }
}

/// One from each end of what was tested: what redo does differently lies between them.
pub(crate) fn release(older: bool) -> ServerVersion {
    if older { ServerVersion::OLDEST_TESTED } else { ServerVersion::NEWEST_TESTED }
}

fn encode_block(block: &SampleBlock, out: &mut Vec<u8>) {
    let mut flags = u8::from(block.will_init) * WILL_INIT;
    if let Some(image) = &block.image {
        let compression = COMPRESSIONS.iter().position(|known| *known == image.compression);
        flags |= HAS_IMAGE | (u8::from(image.apply) * APPLY);
        flags |= (compression.expect("every compression is listed") as u8) << 4;
    }
    out.extend_from_slice(&[block.id, flags]);
    put_block_key(out, &block.key);
    put_counted(out, &block.data);
    if let Some(image) = &block.image {
        out.extend_from_slice(&image.hole_offset.to_le_bytes());
        out.extend_from_slice(&image.hole_length.to_le_bytes());
        put_counted(out, &image.bytes);
    }
}

fn decode_blocks(input: &mut Input<'_>) -> Vec<SampleBlock> {
    let mut blocks: Vec<SampleBlock> = Vec::new();
    for _ in 0..input.u8().min(PARTS_MAX) {
        let (id, flags) = (input.u8(), input.u8());
        let next = blocks.last().map_or(0, |last| last.id + 1);
        let id = if id < next || id > BLOCK_ID_MAX { next } else { id };
        if id > BLOCK_ID_MAX {
            break;
        }
        let key = take_block_key(input);
        let data = input.counted().to_vec();
        let image = (flags & HAS_IMAGE != 0).then(|| SampleImage {
            hole_offset: input.u16(),
            hole_length: input.u16(),
            bytes: input.counted().to_vec(),
            compression: COMPRESSIONS[usize::from(flags >> 4 & 3)],
            apply: flags & APPLY != 0,
        });
        blocks.push(SampleBlock { id, key, will_init: flags & WILL_INIT != 0, data, image });
    }
    blocks
}

fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("a part of a sample is shorter than 64 KiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_block_key(out: &mut Vec<u8>, key: &BlockKey) {
    let locator = key.relation_fork.locator;
    for number in [locator.tablespace, locator.database, locator.relation] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.push(key.relation_fork.fork as u8);
    out.extend_from_slice(&key.block.to_le_bytes());
}

fn take_block_key(input: &mut Input<'_>) -> BlockKey {
    let (tablespace, database, relation) = (input.u32(), input.u32(), input.u32());
    let locator = RelationLocator { tablespace, database, relation };
    let fork = Fork::ALL[usize::from(input.u8() % 4)];
    BlockKey { relation_fork: RelationFork { locator, fork }, block: input.u32() }
}

fn put_page_key(out: &mut Vec<u8>, key: &PageKey) {
    match key {
        PageKey::Block(key) => {
            out.push(0);
            put_block_key(out, key);
        }
        PageKey::Slru { kind, page } => {
            out.extend_from_slice(&[1, *kind as u8]);
            out.extend_from_slice(&page.to_le_bytes());
        }
    }
}

fn take_page_key(input: &mut Input<'_>) -> PageKey {
    if input.u8() & 1 == 0 {
        PageKey::Block(take_block_key(input))
    } else {
        PageKey::Slru { kind: SlruKind::ALL[usize::from(input.u8() % 4)], page: input.u32() }
    }
}

fn put_meta_key(out: &mut Vec<u8>, key: &MetaKey) {
    let (kind, first, second) = match key {
        MetaKey::Counters => (0, 0, 0),
        MetaKey::ControlFileTemplate => (1, 0, 0),
        MetaKey::RelationMap(database) => (2, database.tablespace, database.database),
        MetaKey::Database(database) => (3, database.tablespace, database.database),
        MetaKey::Tablespace(tablespace) => (4, *tablespace, 0),
        MetaKey::PreparedTransaction(xid) => (5, *xid, 0),
        // Which file does not matter to redo.
        MetaKey::SmallFile(_) => (6, 0, 0),
    };
    out.push(kind);
    out.extend_from_slice(&u32::to_le_bytes(first));
    out.extend_from_slice(&u32::to_le_bytes(second));
}

pub(crate) fn take_meta_key(input: &mut Input<'_>) -> MetaKey {
    let (kind, first, second) = (input.u8(), input.u32(), input.u32());
    let database = DatabaseKey { tablespace: first, database: second };
    match kind % 7 {
        0 => MetaKey::Counters,
        1 => MetaKey::ControlFileTemplate,
        2 => MetaKey::RelationMap(database),
        3 => MetaKey::Database(database),
        4 => MetaKey::Tablespace(first),
        5 => MetaKey::PreparedTransaction(first),
        _ => MetaKey::SmallFile(String::from("file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    #[test]
    fn the_corpus_survives_the_round_trip() {
        for bytes in corpus::samples() {
            let sample = Sample::decode(&mut Input::new(&bytes));
            assert!(sample.encode() == bytes, "{sample:?}");
        }
    }
}
