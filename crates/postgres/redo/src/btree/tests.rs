use super::*;
use crate::test_record::{SPAN, block_key, record_on};
use borealis_types::PAGE_SIZE;
use borealis_wal::ResourceManager;
use proptest::prelude::*;

/// A plain tuple with an eight-byte key; the heap position doubles as a downlink.
fn plain(key: u64, block: u32, offset: u16) -> Vec<u8> {
    let mut tuple = vec![0; 16];
    tuple::set_block_number(&mut tuple, block).unwrap();
    tuple[4..6].copy_from_slice(&offset.to_le_bytes());
    tuple[6..8].copy_from_slice(&16_u16.to_le_bytes());
    tuple[8..].copy_from_slice(&key.to_le_bytes());
    tuple
}

fn page_with(opaque: Opaque, items: &[Vec<u8>]) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    opaque.init_page(&mut page).unwrap();
    for (index, item) in items.iter().enumerate() {
        page::add_item(&mut page, item, index as u16 + 1, page::Placing::Shift).unwrap();
    }
    page
}

fn items(page: &PageBytes) -> Vec<Vec<u8>> {
    (1..=page::max_offset_number(page))
        .map(|number| page::item(page, page::line_pointer(page, number).unwrap()).unwrap().to_vec())
        .collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Applies the record to its block with this number.
fn apply(operation: u8, main_data: &[u8], blocks: &[(u8, u32, &[u8])], number: u32, page: &mut PageBytes) {
    let record = record_on(ResourceManager::Btree, operation, main_data, blocks);
    redo_page(&record, &PageKey::Block(block_key(number)), page).unwrap();
    assert_eq!(page::lsn(page), SPAN.end);
}

fn leaf(previous: u32, next: u32) -> Opaque {
    Opaque { previous, next, level: 0, flags: flag::LEAF, cycle_id: 0 }
}

#[test]
fn a_half_dead_leaf_keeps_its_siblings_and_the_parent_loses_its_key_space() {
    let main_data = words(&[2, 5, 4, 6, 9]);
    let blocks: &[(u8, u32, &[u8])] = &[(0, 5, &[]), (1, 3, &[])];
    let mut page = [0xFF; PAGE_SIZE];
    apply(MARK_PAGE_HALFDEAD, &main_data, blocks, 5, &mut page);
    let opaque = Opaque::read(&page).unwrap();
    assert_eq!((opaque.previous, opaque.next), (4, 6));
    assert_eq!(opaque.flags, flag::HALF_DEAD | flag::LEAF);
    assert_eq!(items(&page), [[0, 0, 9, 0, 0, 0, 8, 0x20]], "the high key points to the top parent");

    let downlinks = [plain(0, 4, 1), plain(10, 5, 1), plain(20, 6, 1), plain(30, 7, 1)];
    let mut parent = page_with(Opaque { level: 1, ..Opaque::default() }, &downlinks);
    apply(MARK_PAGE_HALFDEAD, &main_data, blocks, 3, &mut parent);
    assert_eq!(items(&parent), [plain(0, 4, 1), plain(10, 6, 1), plain(30, 7, 1)]);
}

#[test]
fn unlinking_leaves_a_tombstone_between_siblings_that_know_each_other() {
    // Left and right sibling, level, padding, transaction id, then the leaf's siblings and top parent.
    let main_data = words(&[4, 6, 2, 0, 77, 1, 40, 41, 42]);
    let blocks: &[(u8, u32, &[u8])] = &[(0, 5, &[]), (1, 4, &[]), (2, 6, &[]), (3, 8, &[])];
    let mut target = [0xFF; PAGE_SIZE];
    apply(UNLINK_PAGE, &main_data, blocks, 5, &mut target);
    let opaque = Opaque::read(&target).unwrap();
    assert_eq!(
        opaque,
        Opaque { previous: 4, next: 6, level: 2, flags: flag::DELETED | flag::HAS_FULLXID, cycle_id: 0 }
    );
    assert_eq!(target[24..32], (1_u64 << 32 | 77).to_le_bytes());
    assert_eq!(page::lower(&target), 32);

    let mut left = page_with(leaf(3, 5), &[plain(1, 1, 1)]);
    apply(UNLINK_PAGE, &main_data, blocks, 4, &mut left);
    assert_eq!(Opaque::read(&left).unwrap(), leaf(3, 6));
    let mut right = page_with(leaf(5, 7), &[plain(1, 1, 1)]);
    apply(UNLINK_PAGE, &main_data, blocks, 6, &mut right);
    assert_eq!(Opaque::read(&right).unwrap(), leaf(4, 7));

    let mut leaf_page = [0xFF; PAGE_SIZE];
    apply(UNLINK_PAGE, &main_data, blocks, 8, &mut leaf_page);
    let opaque = Opaque::read(&leaf_page).unwrap();
    assert_eq!((opaque.previous, opaque.next, opaque.flags), (40, 41, flag::HALF_DEAD | flag::LEAF));
    assert_eq!(tuple::block_number(&items(&leaf_page)[0]).unwrap(), 42);
}

#[test]
fn the_metapage_is_written_anew_by_every_operation_that_changes_it() {
    let mut data = words(&[4, 17, 2, 16, 1, 3]);
    data.extend([1, 0, 0, 0]);
    for (operation, id) in [(INSERT_META, 2), (NEWROOT, 2), (UNLINK_PAGE_META, 4), (META_CLEANUP, 0)] {
        let mut page = [0xFF; PAGE_SIZE];
        apply(operation, &[0; 36], &[(id, 0, &data)], 0, &mut page);
        assert_eq!(page[24..28], 0x0005_3162_u32.to_le_bytes());
        assert_eq!(page[28..52], data[..24]);
        assert_eq!(page[56..64], (-1.0_f64).to_le_bytes());
        assert_eq!(page[64], 1);
        assert_eq!(page::lower(&page), 72);
        assert_eq!(Opaque::read(&page).unwrap().flags, flag::META);
    }
}

#[test]
fn a_new_root_is_an_empty_leaf_or_has_two_downlinks() {
    let mut page = [0xFF; PAGE_SIZE];
    apply(NEWROOT, &words(&[1, 0]), &[(0, 1, &[])], 1, &mut page);
    assert_eq!(Opaque::read(&page).unwrap().flags, flag::ROOT | flag::LEAF);
    assert_eq!(items(&page).len(), 0);

    let data = [plain(9, 2, 1), plain(0, 1, 0)].concat();
    let blocks: &[(u8, u32, &[u8])] = &[(0, 3, &data), (1, 1, &[])];
    apply(NEWROOT, &words(&[3, 1]), blocks, 3, &mut page);
    assert_eq!(items(&page), [plain(0, 1, 0), plain(9, 2, 1)]);
    let mut child = page_with(Opaque { flags: flag::LEAF | flag::INCOMPLETE_SPLIT, ..leaf(0, 2) }, &[]);
    apply(NEWROOT, &words(&[3, 1]), blocks, 1, &mut child);
    assert_eq!(Opaque::read(&child).unwrap(), leaf(0, 2));
}

/// A split record's data: level, first right item, new item, offset in its posting list.
fn split_data(first_right: u16, new_item: u16, posting_offset: u16) -> Vec<u8> {
    let mut data = words(&[0]);
    data.extend([first_right, new_item, posting_offset].iter().flat_map(|number| number.to_le_bytes()));
    data
}

#[test]
fn a_split_that_also_splits_the_last_posting_list_on_the_left() {
    let positions: Vec<u8> = [10_u8, 30, 40].iter().flat_map(|block| [0, 0, *block, 0, 1, 0]).collect();
    let posting = tuple::form_posting(&plain(5, 0, 0), &positions).unwrap();
    let mut page =
        page_with(leaf(0, 9), &[plain(90, 0, 0), plain(1, 1, 1), posting.to_vec(), plain(7, 7, 1)]);
    // The new tuple would be item 4, which goes right; the posting list before it stays.
    let data = [plain(5, 20, 1), plain(6, 0, 0)].concat();
    let right = [plain(7, 7, 1), plain(5, 40, 1), plain(90, 0, 0)].concat();
    let blocks: &[(u8, u32, &[u8])] = &[(0, 1, &data), (1, 8, &right), (2, 9, &[])];
    apply(SPLIT_R, &split_data(4, 4, 1), blocks, 1, &mut page);
    let expected: Vec<u8> = [10_u8, 20, 30].iter().flat_map(|block| [0, 0, *block, 0, 1, 0]).collect();
    let new_posting = tuple::form_posting(&posting, &expected).unwrap();
    assert_eq!(items(&page), [plain(6, 0, 0), plain(1, 1, 1), new_posting.to_vec()]);
    let opaque = Opaque::read(&page).unwrap();
    assert_eq!(opaque, Opaque { flags: flag::LEAF | flag::INCOMPLETE_SPLIT, ..leaf(0, 8) });

    let mut new_right = [0xFF; PAGE_SIZE];
    apply(SPLIT_R, &split_data(4, 4, 1), blocks, 8, &mut new_right);
    assert_eq!(items(&new_right), [plain(90, 0, 0), plain(5, 40, 1), plain(7, 7, 1)]);
    assert_eq!(Opaque::read(&new_right).unwrap(), leaf(1, 9));
    let mut sibling = page_with(leaf(1, 0), &[]);
    apply(SPLIT_R, &split_data(4, 4, 1), blocks, 9, &mut sibling);
    assert_eq!(Opaque::read(&sibling).unwrap(), leaf(8, 0));
}

#[test]
fn a_new_tuple_goes_left_in_order_or_at_the_end() {
    for (new_item, expected) in [(2, [1_u64, 2, 3]), (3, [1, 3, 2])] {
        let mut page = page_with(leaf(0, 0), &[plain(1, 1, 1), plain(3, 3, 1), plain(9, 9, 1)]);
        let data = [plain(2, 2, 1), plain(8, 0, 0)].concat();
        apply(SPLIT_L, &split_data(3, new_item, 0), &[(0, 1, &data), (1, 8, &[])], 1, &mut page);
        let mut tuples = vec![plain(8, 0, 0)];
        tuples.extend(expected.iter().map(|key| plain(*key, *key as u32, 1)));
        assert_eq!(items(&page), tuples);
    }
}

#[test]
fn duplicates_merge_in_the_named_runs_only() {
    let tuples =
        [plain(9, 0, 0), plain(1, 1, 1), plain(5, 2, 1), plain(5, 3, 1), plain(5, 4, 1), plain(5, 5, 1)];
    let mut page = page_with(Opaque { flags: flag::LEAF | flag::HAS_GARBAGE, ..leaf(0, 7) }, &tuples);
    let intervals = [3_u16, 2, 5, 2].iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    apply(DEDUP, &[2, 0], &[(0, 1, &intervals)], 1, &mut page);
    let merged = |first: u8| {
        let positions = [[0, 0, first, 0, 1, 0], [0, 0, first + 1, 0, 1, 0]].concat();
        tuple::form_posting(&plain(5, 0, 0), &positions).unwrap().to_vec()
    };
    assert_eq!(items(&page).len(), 4);
    assert_eq!(items(&page)[..2], [plain(9, 0, 0), plain(1, 1, 1)]);
    for (item, first) in items(&page)[2..].iter().zip([2, 4]) {
        assert_eq!(tuple::heap_positions(item), tuple::heap_positions(&merged(first)));
    }
    assert_eq!(Opaque::read(&page).unwrap(), leaf(0, 7));
}

#[test]
fn the_mask_hides_what_redo_does_not_reproduce() {
    let redone = page_with(leaf(1, 2), &[plain(1, 1, 1)]);
    let opaque =
        Opaque { flags: flag::LEAF | flag::SPLIT_END | flag::HAS_GARBAGE, cycle_id: 7, ..leaf(1, 2) };
    let mut original = page_with(opaque, &[plain(1, 1, 1)]);
    let pointer = page::line_pointer(&original, 1).unwrap();
    let dead = page::LinePointer { flags: borealis_wal::layout::item_id::LP_DEAD, ..pointer };
    page::set_line_pointer(&mut original, 1, dead).unwrap();
    let (mut left, mut right) = (redone, original);
    mask(&mut left, 1).unwrap();
    mask(&mut right, 1).unwrap();
    assert_eq!(left, right);
}

fn operations() -> impl Strategy<Value = u8> {
    (0_u8..16).prop_map(|number| number << 4)
}

proptest! {
    #[test]
    fn hostile_records_never_panic(
        operation in operations(),
        id in 0_u8..5,
        mut main_data in proptest::collection::vec(0_u8..6, 0..40),
        data in proptest::collection::vec(prop_oneof![0_u8..20, any::<u8>()], 0..120),
        damage in proptest::collection::vec((0_usize..PAGE_SIZE, any::<u8>()), 0..6),
        header_damage in proptest::collection::vec((0_usize..60, any::<u8>()), 0..3),
    ) {
        main_data.resize(40, 0);
        let positions: Vec<u8> = [10_u8, 30].iter().flat_map(|block| [0, 0, *block, 0, 1, 0]).collect();
        let posting = tuple::form_posting(&plain(5, 0, 0), &positions).unwrap();
        let mut page = page_with(leaf(0, 9), &[plain(90, 0, 0), posting.to_vec(), plain(1, 1, 1), plain(7, 7, 1)]);
        for (offset, byte) in damage.into_iter().chain(header_damage) {
            page[offset] = byte;
        }
        let blocks: Vec<(u8, u32, &[u8])> = (0..5).map(|other| (other, u32::from(other), data.as_slice())).collect();
        let record = record_on(ResourceManager::Btree, operation, &main_data, &blocks);
        let _ = redo_page(&record, &PageKey::Block(block_key(u32::from(id))), &mut page);
        let _ = mask(&mut page, 1);
    }
}
