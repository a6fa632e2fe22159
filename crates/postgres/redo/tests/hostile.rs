//! Redo of records and pages that nobody wrote: it may refuse them, it must not panic.
//!
//! The pages are real ones with some bytes changed, the records have the shape of real ones with small
//! numbers in their fields, so that most get past the first checks.

#![allow(clippy::unwrap_used)] // All of this is test code.

use borealis_redo::consistency::{check_consistency, compare_pages};
use borealis_redo::{apply_meta, apply_page};
use borealis_types::{
    BlockKey, DatabaseKey, Fork, Lsn, MetaKey, PAGE_SIZE, PageBytes, PageKey, RecordSpan, RelationFork,
    RelationLocator, ServerVersion, SlruKind,
};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::{BlockImage, BlockReference, Effect, ImageCompression, Record, ResourceManager, effects};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const SPAN: RecordSpan = RecordSpan { start: Lsn(0x0100_0028), end: Lsn(0x0100_0100) };

fn key(fork: Fork, block: u32) -> BlockKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
    BlockKey { relation_fork: RelationFork { locator, fork }, block }
}

/// Two-byte fields, mostly small, as little-endian bytes; odd lengths too.
fn fields(count: usize) -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![8 => 0u16..6, 2 => 0u16..300, 1 => any::<u16>()];
    (vec(field, 0..count), any::<bool>()).prop_map(|(fields, odd)| {
        let mut bytes: Vec<u8> = fields.into_iter().flat_map(u16::to_le_bytes).collect();
        if odd {
            bytes.pop();
        }
        bytes
    })
}

#[derive(Clone, Debug)]
struct Parts {
    manager: u8,
    info: u8,
    main_data: Vec<u8>,
    blocks: Vec<BlockParts>,
}

/// Fork, block number, whether redo initializes it, data, image.
type BlockParts = (Fork, u32, bool, Vec<u8>, Option<Vec<u8>>);

fn record_parts() -> impl Strategy<Value = Parts> {
    let fork =
        select(vec![Fork::Main, Fork::Main, Fork::Main, Fork::VisibilityMap, Fork::FreeSpaceMap, Fork::Init]);
    let image = proptest::option::weighted(0.1, vec(any::<u8>(), 0..200));
    let block = (fork, 0u32..3, any::<bool>(), fields(40), image);
    // Heap, Heap2 and Btree oftener than the others.
    let manager = prop_oneof![3 => select(vec![9u8, 10, 11]), 2 => 0u8..=22, 1 => select(vec![127u8, 128])];
    (manager, any::<u8>(), fields(24), vec(block, 0..4)).prop_map(|(manager, info, main_data, blocks)| {
        Parts { manager, info: info & 0xF0, main_data, blocks }
    })
}

fn encode(parts: &Parts) -> Vec<u8> {
    let mut builder = RecordBuilder::new(ResourceManager::from(parts.manager), parts.info)
        .xid(900)
        .main_data(&parts.main_data);
    for (id, (fork, block, will_init, data, image)) in parts.blocks.iter().enumerate() {
        let image = image.as_ref().map(|bytes| BlockImage {
            bytes,
            hole_offset: 24,
            hole_length: 8000,
            compression: ImageCompression::Pglz,
            apply: *will_init,
        });
        let key = key(*fork, *block);
        builder = builder.block(BlockReference { id: id as u8, key, will_init: *will_init, image, data });
    }
    builder.finish()
}

/// A page with this much special space and these item lengths, laid out as PostgreSQL does.
fn page(special_size: usize, lengths: &[usize], fill: u8) -> PageBytes {
    let special = PAGE_SIZE - special_size;
    let mut page = [0; PAGE_SIZE];
    let (mut lower, mut upper) = (24, special);
    for length in lengths {
        upper -= length.next_multiple_of(8);
        page[upper..upper + length].fill(fill);
        // A heap tuple's t_hoff, so that its data is found.
        page[upper + 22] = 24;
        page[lower..lower + 4]
            .copy_from_slice(&((*length as u32) << 17 | 1 << 15 | upper as u32).to_le_bytes());
        lower += 4;
    }
    for (at, value) in [(12, lower), (14, upper), (16, special), (18, PAGE_SIZE | 4)] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    page
}

fn hostile_page() -> impl Strategy<Value = PageBytes> {
    let lengths = vec(24usize..100, 0..12);
    let changes = vec((prop_oneof![3 => 0usize..80, 1 => 0usize..PAGE_SIZE], any::<u8>()), 0..4);
    (select(vec![0usize, 8, 16]), lengths, 0u8..4, changes, any::<u8>()).prop_map(
        |(special_size, lengths, fill, changes, zero)| {
            let mut page = page(special_size, &lengths, fill);
            for (at, value) in changes {
                page[at] = value;
            }
            if zero % 16 == 0 { [0; PAGE_SIZE] } else { page }
        },
    )
}

fn try_everything(record: &Record<'_>, before: &PageBytes) {
    let mut keys: Vec<PageKey> = record.blocks.iter().map(|block| PageKey::Block(block.key)).collect();
    keys.push(PageKey::Block(key(Fork::VisibilityMap, 0)));
    keys.push(PageKey::Block(key(Fork::FreeSpaceMap, 2)));
    keys.extend(SlruKind::ALL.map(|kind| PageKey::Slru { kind, page: 0 }));
    let database = DatabaseKey { tablespace: 1663, database: 5 };
    let mut values = vec![
        MetaKey::Counters,
        MetaKey::RelationMap(database),
        MetaKey::Database(database),
        MetaKey::Tablespace(1),
        MetaKey::PreparedTransaction(900),
        MetaKey::SmallFile("file".to_owned()),
    ];
    let mut changes = Vec::new();
    if effects(record, &mut changes).is_ok() {
        for change in changes {
            match change {
                Effect::Page(key) => keys.push(key),
                Effect::Meta(key) => values.push(key),
                _ => {}
            }
        }
    }
    for key in keys {
        let mut after = *before;
        if apply_page(record, &key, &mut after).is_ok() {
            let _ = check_consistency(record, &key, &after);
        }
    }
    for key in values {
        let _ = apply_meta(record, &key, None);
        let _ = apply_meta(record, &key, Some(before[..200].to_vec()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_record_panics_on_any_page(parts in record_parts(), page in hostile_page()) {
        let bytes = encode(&parts);
        if let Ok(record) = Record::parse(ServerVersion::NEWEST_TESTED, SPAN, &bytes) {
            try_everything(&record, &page);
        }
    }

    #[test]
    fn a_record_with_changed_bytes_does_not_panic(
        parts in record_parts(),
        page in hostile_page(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&parts);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(record) = Record::parse(ServerVersion::NEWEST_TESTED, SPAN, &bytes) {
            try_everything(&record, &page);
        }
    }

    #[test]
    fn no_page_panics_when_compared(page in hostile_page(), other in hostile_page()) {
        for manager in (0..=22).map(ResourceManager::from) {
            let _ = compare_pages(manager, key(Fork::Main, 3), &page, &other);
        }
    }
}
