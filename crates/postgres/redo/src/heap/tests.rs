//! Heap redo that ordinary workloads seldom or never reach, and what it must refuse.

use borealis_types::{BlockKey, Fork, PAGE_SIZE, PageBytes, PageKey, RelationFork};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::{BlockReference, Effect, Record, ResourceManager, effects};

use super::tuple::Tuple;
use super::*;
use crate::test_record::{SPAN, block_key, build};

const XID: u32 = 900;
/// The first heap block whose bits are on the second visibility map page.
const SECOND_MAP_PAGE: u32 = 8168 * 4;

fn record(
    manager: ResourceManager,
    info: u8,
    main_data: &[u8],
    blocks: &[(u8, u32, &[u8])],
) -> Record<'static> {
    let mut builder = RecordBuilder::new(manager, info).xid(XID).main_data(main_data);
    for (id, number, data) in blocks {
        let will_init = info & INIT_PAGE != 0 && *id == 0;
        builder =
            builder.block(BlockReference { id: *id, key: block_key(*number), will_init, image: None, data });
    }
    build(&builder)
}

fn heap_key(block: u32) -> PageKey {
    PageKey::Block(block_key(block))
}

fn map_key(block: u32) -> PageKey {
    let BlockKey { relation_fork, .. } = block_key(0);
    let relation_fork = RelationFork { fork: Fork::VisibilityMap, ..relation_fork };
    PageKey::Block(BlockKey { relation_fork, block })
}

/// A stored tuple: two columns, no nulls, `t_hoff` 24, then `data`.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 2, 8, 24, 0];
    bytes.extend_from_slice(data);
    bytes
}

/// A page with these tuples, as inserts by transaction 900 leave it.
fn page_with(block: u32, tuples: &[&[u8]]) -> PageBytes {
    let mut page = [0xEE; PAGE_SIZE];
    for (index, data) in tuples.iter().enumerate() {
        let number = index as u8 + 1;
        let info = if index == 0 { INIT_PAGE } else { 0 };
        let insert = record(ResourceManager::Heap, info, &[number, 0, 0], &[(0, block, &stored(data))]);
        crate::apply_page(&insert, &heap_key(block), &mut page).unwrap();
    }
    page
}

fn tuple_bytes(page: &PageBytes, offset_number: u16) -> &[u8] {
    page::item(page, page::line_pointer(page, offset_number).unwrap()).unwrap()
}

fn map_bits(page: &PageBytes, heap_block: u32) -> u8 {
    page[24 + (heap_block % SECOND_MAP_PAGE / 4) as usize] >> (heap_block % 4 * 2) & 3
}

fn map_with(heap_blocks: &[u32]) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    for heap_block in heap_blocks {
        visibility_map::set(&mut page, *heap_block, 3, SPAN.start);
    }
    page
}

#[test]
fn an_inserted_tuple_has_every_field_where_postgres_has_it() {
    let page = page_with(0x0001_0002, &[b"data"]);
    assert_eq!(
        tuple_bytes(&page, 1),
        [
            132, 3, 0, 0, // t_xmin: 900
            0, 0, 0, 0, 0, 0, 0, 0, // t_xmax, t_cid
            1, 0, 2, 0, 1, 0, // t_ctid: block's halves, offset number
            2, 0, 2, 8, 24, 0, // t_infomask2, t_infomask, t_hoff, padding
            b'd', b'a', b't', b'a',
        ]
    );
    assert_eq!(page::lsn(&page), SPAN.end);
}

#[test]
fn a_failed_speculative_insertion_loses_its_xmin() {
    let mut page = page_with(7, &[b"token"]);
    let delete =
        record(ResourceManager::Heap, DELETE, &[132, 3, 0, 0, 1, 0, 0, DELETE_IS_SUPER], &[(0, 7, &[])]);
    crate::apply_page(&delete, &heap_key(7), &mut page).unwrap();
    assert_eq!(tuple_bytes(&page, 1)[..8], [0; 8], "neither xmin nor xmax");
}

#[test]
fn a_row_that_moves_to_another_partition_says_so() {
    let mut page = page_with(7, &[b"row"]);
    let main_data = [132, 3, 0, 0, 1, 0, 0x10, DELETE_IS_PARTITION_MOVE];
    let delete = record(ResourceManager::Heap, DELETE, &main_data, &[(0, 7, &[])]);
    crate::apply_page(&delete, &heap_key(7), &mut page).unwrap();
    assert_eq!(tuple_bytes(&page, 1)[12..18], [0xFF, 0xFF, 0xFF, 0xFF, 0xFD, 0xFF]);
    assert_eq!(tuple_bytes(&page, 1)[18..20], [2, 0x20], "keys updated");
}

#[test]
fn an_update_takes_prefix_and_suffix_from_the_old_tuple() {
    let mut page = page_with(3, &[b"prefix-OLD-suffix"]);
    let flags = UPDATE_PREFIX_FROM_OLD | UPDATE_SUFFIX_FROM_OLD;
    let mut main_data = vec![132, 3, 0, 0, 1, 0, 0, flags];
    main_data.extend_from_slice(&[0, 0, 0, 0, 2, 0]);
    // Lengths, header, the byte of padding that the bitmap would be in, then the new middle. The prefix counts
    // from t_hoff, so it has no padding.
    let mut data = vec![7, 0, 7, 0, 2, 0, 2, 8, 24, 0];
    data.extend_from_slice(b"and new");
    let update = record(ResourceManager::Heap, HOT_UPDATE, &main_data, &[(0, 3, &data)]);
    crate::apply_page(&update, &heap_key(3), &mut page).unwrap();
    assert_eq!(&tuple_bytes(&page, 2)[24..], b"prefix-and new-suffix");
    assert_eq!(tuple_bytes(&page, 1)[12..18], [0, 0, 3, 0, 2, 0], "the old tuple points to the new one");
    assert_eq!(tuple_bytes(&page, 1)[19], 0x40, "heap-only updated");
    assert_eq!(page::prune_xid(&page), XID);
}

#[test]
fn an_update_across_pages_changes_each_page_by_itself() {
    let mut main_data = vec![132, 3, 0, 0, 1, 0, 0, 0];
    main_data.extend_from_slice(&[0, 0, 0, 0, 1, 0]);
    let new = stored(b"new");
    let blocks: &[(u8, u32, &[u8])] = &[(0, 5, &new), (1, 4, &[])];
    let update = record(ResourceManager::Heap, UPDATE | INIT_PAGE, &main_data, blocks);
    let mut old_page = page_with(4, &[b"old"]);
    crate::apply_page(&update, &heap_key(4), &mut old_page).unwrap();
    assert_eq!(page::max_offset_number(&old_page), 1);
    assert_eq!(tuple_bytes(&old_page, 1)[12..18], [0, 0, 5, 0, 1, 0]);
    let mut new_page = [0; PAGE_SIZE];
    crate::apply_page(&update, &heap_key(5), &mut new_page).unwrap();
    assert_eq!(&tuple_bytes(&new_page, 1)[24..], b"new");
}

#[test]
fn an_update_clears_the_bits_of_both_its_pages_wherever_they_are() {
    let flags = UPDATE_OLD_ALL_VISIBLE_CLEARED | UPDATE_NEW_ALL_VISIBLE_CLEARED;
    let mut main_data = vec![132, 3, 0, 0, 1, 0, 0, flags];
    main_data.extend_from_slice(&[0, 0, 0, 0, 1, 0]);
    let new = stored(b"new");
    for (old_block, new_block) in [(4, 5), (SECOND_MAP_PAGE - 1, SECOND_MAP_PAGE)] {
        let update =
            record(ResourceManager::Heap, UPDATE, &main_data, &[(0, new_block, &new), (1, old_block, &[])]);
        let mut changes = Vec::new();
        effects(&update, &mut changes).unwrap();
        let mut bystander = 0;
        for heap_block in [old_block, new_block] {
            let key = map_key(heap_block / SECOND_MAP_PAGE);
            assert!(changes.contains(&Effect::Page(key)));
            let mut map = map_with(&[heap_block, heap_block ^ 2]);
            crate::apply_page(&update, &key, &mut map).unwrap();
            assert_eq!(map_bits(&map, heap_block), 0);
            bystander += map_bits(&map, heap_block ^ 2);
        }
        assert_eq!(bystander, 6, "other blocks keep their bits");
        assert!(
            crate::apply_page(&update, &map_key(9), &mut [0; PAGE_SIZE]).is_err(),
            "not a page it changes"
        );
    }
}

#[test]
fn locking_clears_only_the_all_frozen_bit() {
    let main_data = [132, 3, 0, 0, 1, 0, 0x06, LOCK_ALL_FROZEN_CLEARED];
    for (manager, info) in [(ResourceManager::Heap, LOCK), (ResourceManager::Heap2, 0x60)] {
        let lock = record(manager, info, &main_data, &[(0, 7, &[])]);
        let mut map = map_with(&[7]);
        crate::apply_page(&lock, &map_key(0), &mut map).unwrap();
        assert_eq!(map_bits(&map, 7), 1);
        let mut page = page_with(7, &[b"row"]);
        crate::apply_page(&lock, &heap_key(7), &mut page).unwrap();
        assert_eq!(tuple_bytes(&page, 1)[20..22], [0xC2, 0], "exclusively locked, xmax valid");
    }
}

#[test]
fn a_record_that_clears_no_bit_does_not_change_the_map() {
    let insert = record(ResourceManager::Heap, INSERT, &[1, 0, 0], &[(0, 7, &stored(b"x"))]);
    assert!(crate::apply_page(&insert, &map_key(0), &mut map_with(&[7])).is_err());
}

#[test]
fn freezing_a_tuple_that_was_moved_long_ago_sets_its_xvac() {
    let freeze = |flags: u8| {
        let plan = [0, 0, 0, 0, 1, 0, 2, 0, 2, 0x0B, flags, 0];
        let record = record(ResourceManager::Heap2, 0x30, &[1, 4, 0, 0, 1, 0], &[(0, 7, &plan)]);
        let mut page = page_with(7, &[b"row"]);
        Tuple::on_page(&mut page, 1).unwrap().set_command_id_field(77);
        crate::apply_page(&record, &heap_key(7), &mut page).unwrap();
        tuple_bytes(&page, 1)[8..12].to_vec()
    };
    assert_eq!(freeze(0x02), [2, 0, 0, 0]);
    assert_eq!(freeze(0x04), [0, 0, 0, 0]);
    assert_eq!(freeze(0), [77, 0, 0, 0]);
}

#[test]
fn visible_makes_a_new_map_page_and_leaves_the_heap_page_its_stamp() {
    let heap_block = SECOND_MAP_PAGE + 5;
    let BlockKey { relation_fork, .. } = block_key(0);
    let map =
        BlockKey { relation_fork: RelationFork { fork: Fork::VisibilityMap, ..relation_fork }, block: 1 };
    let builder = RecordBuilder::new(ResourceManager::Heap2, 0x40).main_data(&[0, 0, 0, 0, 3]);
    let list = |id, key| BlockReference { id, key, will_init: false, image: None, data: &[] };
    let visible = build(&builder.block(list(0, map)).block(list(1, block_key(heap_block))));

    let mut map_page = [0; PAGE_SIZE];
    crate::apply_page(&visible, &PageKey::Block(map), &mut map_page).unwrap();
    assert_eq!(map_bits(&map_page, heap_block), 3);
    assert_eq!(page::lsn(&map_page), SPAN.end);
    assert_eq!(page::special_start(&map_page), 8192);

    let mut heap_page = page_with(heap_block, &[b"row"]);
    page::set_lsn(&mut heap_page, SPAN.start);
    crate::apply_page(&visible, &heap_key(heap_block), &mut heap_page).unwrap();
    assert_ne!(page::flags(&heap_page) & page::ALL_VISIBLE, 0);
    assert_eq!(page::lsn(&heap_page), SPAN.start);
}

#[test]
fn redo_refuses_a_page_that_is_not_the_one_before_the_record() {
    let insert = record(ResourceManager::Heap, INSERT, &[2, 0, 0], &[(0, 7, &stored(b"second"))]);
    assert!(crate::apply_page(&insert, &heap_key(7), &mut [0; PAGE_SIZE]).is_err(), "never initialized");
    let mut page = page_with(7, &[b"first", b"second"]);
    assert!(crate::apply_page(&insert, &heap_key(7), &mut page).is_err(), "applied before");
    let delete = record(ResourceManager::Heap, DELETE, &[132, 3, 0, 0, 9, 0, 0, 0], &[(0, 7, &[])]);
    assert!(crate::apply_page(&delete, &heap_key(7), &mut page).is_err(), "no such tuple");
    assert!(crate::apply_page(&delete, &heap_key(8), &mut page).is_err(), "another block");
}

#[test]
fn an_in_place_update_keeps_the_length() {
    let mut page = page_with(7, &[b"row"]);
    let inplace = |data: &[u8]| record(ResourceManager::Heap, INPLACE, &[1, 0], &[(0, 7, data)]);
    assert!(crate::apply_page(&inplace(b"longer"), &heap_key(7), &mut page.clone()).is_err());
    crate::apply_page(&inplace(b"new"), &heap_key(7), &mut page).unwrap();
    assert_eq!(&tuple_bytes(&page, 1)[24..], b"new");
}

#[test]
#[should_panic(expected = "invariant new-tuple-fills-its-item is broken")]
fn a_tuple_shorter_than_its_item_is_noticed() {
    let header = StoredHeader::read(&mut Reader::new(&[0, 0, 0, 0, 24])).unwrap();
    let ctid = ItemPointer { block: 0, offset_number: 1 };
    let tuple = NewTuple { header, xmin: XID, xmax: 0, ctid, offset_number: 1 };
    tuple.fill(&mut [0; PAGE_SIZE], 8000..8040, &[Piece::New(&[1; 16])]);
}
