//! Bytes from outside never panic: damaged records on damaged pages, for every index access method.

use borealis_redo::apply_page;
use borealis_redo::consistency::compare_pages;
use borealis_types::{
    BlockKey, Fork, Lsn, PAGE_SIZE, PageBytes, PageKey, RecordSpan, RelationFork, RelationLocator,
    ServerVersion,
};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::{BlockReference, Record, ResourceManager};
use proptest::prelude::*;

const SPAN: RecordSpan = RecordSpan { start: Lsn(0x0100_0028), end: Lsn(0x0100_0100) };

fn key(block: u32) -> BlockKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
    BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block }
}

/// A page with a special space of this size and some items of 24 bytes, as index pages have them.
fn page(special: &[u8], item: &[u8], item_count: usize) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    let special_start = PAGE_SIZE - special.len();
    let upper = special_start - 24 * item_count;
    for (at, value) in [(12, 24 + 4 * item_count), (14, upper), (16, special_start), (18, PAGE_SIZE | 4)] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    for index in 0..item_count {
        let start = special_start - 24 * (index + 1);
        let pointer = start as u32 | 1 << 15 | 24 << 17;
        page[24 + 4 * index..28 + 4 * index].copy_from_slice(&pointer.to_le_bytes());
        page[start..start + item.len().min(24)].copy_from_slice(&item[..item.len().min(24)]);
    }
    page[special_start..].copy_from_slice(special);
    page
}

fn index_manager() -> impl Strategy<Value = (ResourceManager, usize)> {
    prop_oneof![
        Just((ResourceManager::Btree, 16)),
        Just((ResourceManager::Hash, 16)),
        Just((ResourceManager::Gin, 8)),
        Just((ResourceManager::Gist, 16)),
        Just((ResourceManager::Spgist, 8)),
        Just((ResourceManager::Brin, 8)),
        Just((ResourceManager::Generic, 8)),
        Just((ResourceManager::Sequence, 8)),
    ]
}

/// Bytes that are small numbers more often than not, so that counts and offsets are plausible.
fn plausible(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![4 => 0_u8..6, 2 => Just(24_u8), 1 => Just(99_u8), 1 => any::<u8>()],
        length,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn redo_and_masks_never_panic(
        (resource_manager, special_size) in index_manager(),
        operation in 0_u8..16,
        id in 0_u8..8,
        main_data in plausible(0..100),
        data in plausible(0..120),
        special in plausible(16..17),
        item in plausible(8..24),
        item_count in 0_usize..8,
        damage in proptest::collection::vec((prop_oneof![0_usize..60, 0_usize..PAGE_SIZE], any::<u8>()), 0..4),
    ) {
        let mut page = page(&special[..special_size], &item, item_count);
        for (offset, byte) in damage {
            page[offset] = byte;
        }
        let mut builder = RecordBuilder::new(resource_manager, operation << 4).main_data(&main_data);
        for other in 0..7 {
            let number = u32::from(other);
            builder = builder.block(BlockReference {
                id: other, key: key(number), will_init: false, image: None, data: &data,
            });
        }
        let bytes = builder.finish();
        let record = Record::parse(ServerVersion::NEWEST_TESTED, SPAN, &bytes).unwrap();
        let before = page;
        let _ = apply_page(&record, &PageKey::Block(key(u32::from(id))), &mut page);
        let _ = compare_pages(resource_manager, key(1), &before, &page);
    }
}
