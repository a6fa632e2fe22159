//! One test for each operation that PostgreSQL's regression suite does not write; [`super::coverage`] says why not.

use borealis_types::{Fork, Lsn, MetaKey, PAGE_SIZE, PageBytes, PageKey, RelationFork, SlruKind};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::{
    BlockImage, BlockReference, Effect, ImageCompression, Record, ResourceManager as Rm, effects,
};

use super::{rare_operation, rare_operations};
use crate::counters::Counters;
use crate::names::{operation_name, operations};
use crate::page::{self, Placing};
use crate::test_record::{SPAN, block_key, build, record, record_on};
use crate::{apply_meta, apply_page};

/// The operations with a test here: what the test covers, and the test.
const CASES: &[(Rm, u8, fn())] = &[
    (Rm::Xlog, 0x40, switch_changes_nothing),
    (Rm::Xlog, 0x50, backup_end_changes_nothing),
    (Rm::Xlog, 0x70, restore_point_changes_nothing),
    (Rm::Xlog, 0x80, full_page_writes_are_a_counter),
    (Rm::Xlog, 0x90, end_of_recovery_begins_a_time_line),
    (Rm::Xlog, 0xA0, an_image_for_a_hint_is_restored),
    (Rm::Xlog, 0xD0, overwriting_a_torn_record_changes_nothing),
    (Rm::Clog, 0x10, truncating_statuses_removes_whole_files),
    (Rm::MultiXact, 0x00, a_page_of_offsets_begins_as_zeros),
    (Rm::MultiXact, 0x30, truncating_multixacts_removes_whole_files),
    (Rm::Heap2, 0x00, rewrite_is_for_logical_decoding_only),
    (Rm::Heap2, 0x60, locking_a_newer_version_sets_its_xmax),
    (Rm::Hash, 0x70, moved_tuples_leave_one_page_for_another),
    (Rm::Hash, 0xC0, vacuuming_one_page_removes_its_dead_and_counts_them),
    (Rm::Gin, 0x50, deleting_a_page_unlinks_it),
    (Rm::Gin, 0x90, vacuuming_a_leaf_replaces_its_segments),
    (Rm::Gist, 0x10, deleting_the_dead_clears_the_garbage_flag),
    (Rm::Gist, 0x20, reusing_a_page_is_for_standbys_only),
    (Rm::Gist, 0x70, assigning_an_lsn_changes_nothing),
    (Rm::Spgist, 0x70, vacuuming_the_root_removes_its_tuples),
    (Rm::CommitTs, 0x10, truncating_times_removes_whole_files),
    (Rm::ReplicationOrigin, 0x00, setting_an_origin_changes_no_page),
    (Rm::Generic, 0x00, generic_ranges_are_written),
    (Rm::LogicalMessage, 0x00, a_message_changes_nothing),
];

#[test]
fn every_operation_the_suite_does_not_write_has_its_test() {
    for (resource_manager, info, test) in CASES {
        let name = operation_name(*resource_manager, *info).expect("an operation");
        assert!(rare_operation(*resource_manager, name).is_some(), "{resource_manager}/{name} is not listed");
        test();
    }
    for rare in rare_operations() {
        let tested = CASES.iter().any(|(resource_manager, info, _)| {
            *resource_manager == rare.resource_manager
                && operation_name(*resource_manager, *info) == Some(rare.operation)
        });
        assert!(tested, "{}/{} has no test", rare.resource_manager, rare.operation);
        assert!(!rare.why.is_empty());
        assert!(operations().any(|operation| operation == (rare.resource_manager, rare.operation)));
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn effects_of(record: &Record<'_>) -> Vec<Effect> {
    let mut found = Vec::new();
    effects(record, &mut found).unwrap();
    found
}

fn key(block: u32) -> PageKey {
    PageKey::Block(block_key(block))
}

fn apply(record: &Record<'_>, block: u32, page: &mut PageBytes) {
    assert!(effects_of(record).contains(&Effect::Page(key(block))));
    apply_page(record, &key(block), page).unwrap();
}

fn counters_after(record: &Record<'_>) -> Counters {
    let mut counters = Counters { oldest_xid: 700, oldest_multi: 2, timeline: 1, ..Counters::default() };
    counters.apply(record).unwrap();
    counters
}

/// The record changes neither a page nor any counter.
fn assert_changes_nothing(record: &Record<'_>) {
    assert_eq!(effects_of(record), []);
    let before = Counters { oldest_xid: 700, oldest_multi: 2, timeline: 1, ..Counters::default() };
    assert_eq!(counters_after(record), Counters { last_record: SPAN, ..before });
    assert!(apply_meta(record, &MetaKey::Counters, None).is_ok());
}

/// A page with this special space and these items.
fn page_of(special: &[u8], items: &[&[u8]]) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    page::init(&mut page, special.len());
    page[PAGE_SIZE - special.len()..].copy_from_slice(special);
    for item in items {
        page::add_item(&mut page, item, 0, Placing::Overwrite).unwrap();
    }
    page
}

fn items(page: &PageBytes) -> Vec<Vec<u8>> {
    (1..=page::max_offset_number(page))
        .map(|number| page::item(page, page::line_pointer(page, number).unwrap()).unwrap().to_vec())
        .collect()
}

/// An index tuple of 16 bytes whose key is eight times `filler`.
fn index_tuple(filler: u8) -> [u8; 16] {
    let mut tuple = [filler; 16];
    tuple[6..8].copy_from_slice(&16_u16.to_le_bytes());
    tuple
}

fn special_u16(page: &PageBytes, from_end: usize) -> u16 {
    u16::from_le_bytes([page[PAGE_SIZE - from_end], page[PAGE_SIZE - from_end + 1]])
}

/// Tells the stream that the rest of the segment file is not used; nothing else.
fn switch_changes_nothing() {
    assert_changes_nothing(&record(Rm::Xlog, 0x40, &[]));
}

/// Says where an online backup began: for recovery from that backup, which Borealis never does.
fn backup_end_changes_nothing() {
    assert_changes_nothing(&record(Rm::Xlog, 0x50, &7_u64.to_le_bytes()));
}

fn restore_point_changes_nothing() {
    assert_changes_nothing(&record(Rm::Xlog, 0x70, &[0; 72]));
}

fn full_page_writes_are_a_counter() {
    let on = record(Rm::Xlog, 0x80, &[1]);
    assert_eq!(effects_of(&on), [Effect::Meta(MetaKey::Counters)]);
    assert!(counters_after(&on).full_page_writes);
    assert!(!counters_after(&record(Rm::Xlog, 0x80, &[0])).full_page_writes);
}

fn end_of_recovery_begins_a_time_line() {
    // xl_end_of_recovery: time, this time line, the one before.
    let data = [9_i64.to_le_bytes().to_vec(), words(&[4, 3])].concat();
    let record = record(Rm::Xlog, 0x90, &data);
    assert_eq!(effects_of(&record), [Effect::Meta(MetaKey::Counters)]);
    let counters = counters_after(&record);
    assert_eq!((counters.timeline, counters.previous_timeline), (4, 3));
}

fn an_image_for_a_hint_is_restored() {
    let image_page = page_of(&[], &[&[5; 32]]);
    let with = |image| {
        let block = BlockReference { id: 0, key: block_key(3), will_init: false, image, data: &[] };
        build(&RecordBuilder::new(Rm::Xlog, 0xA0).block(block))
    };
    let image = BlockImage {
        bytes: &image_page,
        hole_offset: 0,
        hole_length: 0,
        compression: ImageCompression::None,
        apply: true,
    };
    let mut page = [9; PAGE_SIZE];
    apply(&with(Some(image)), 3, &mut page);
    let mut expected = image_page;
    page::set_lsn(&mut expected, SPAN.end);
    assert!(page == expected);
    assert_eq!(effects_of(&with(None)), [], "without full_page_writes there is no image, and nothing to do");
}

fn overwriting_a_torn_record_changes_nothing() {
    assert_changes_nothing(&record(Rm::Xlog, 0xD0, &[0; 16]));
}

fn truncating_statuses_removes_whole_files() {
    // xl_clog_truncate: page, oldest transaction, its database.
    let record = record(Rm::Clog, 0x10, &words(&[40, 40 * 32768 + 5, 16384]));
    let kind = SlruKind::Transactions;
    assert_eq!(
        effects_of(&record),
        [Effect::Meta(MetaKey::Counters), Effect::TruncateSlru { kind, first_kept_page: 32 }]
    );
    let counters = counters_after(&record);
    assert_eq!((counters.oldest_xid, counters.oldest_xid_database), (40 * 32768 + 5, 16384));
}

fn a_page_of_offsets_begins_as_zeros() {
    let record = record(Rm::MultiXact, 0x00, &words(&[6]));
    let key = PageKey::Slru { kind: SlruKind::MultiXactOffsets, page: 6 };
    assert_eq!(effects_of(&record), [Effect::Page(key)]);
    let mut page = [1; PAGE_SIZE];
    apply_page(&record, &key, &mut page).unwrap();
    assert!(page == [0; PAGE_SIZE]);
}

fn truncating_multixacts_removes_whole_files() {
    // xl_multixact_truncate: database, first and first kept multixact, first and first kept member.
    let members_per_file = 32 * 1636;
    let record = record(Rm::MultiXact, 0x30, &words(&[5, 1, 70 * 2048, 1, 2 * members_per_file + 9]));
    assert_eq!(
        effects_of(&record),
        [
            Effect::Meta(MetaKey::Counters),
            Effect::TruncateSlru { kind: SlruKind::MultiXactMembers, first_kept_page: 64 },
            Effect::TruncateSlru { kind: SlruKind::MultiXactOffsets, first_kept_page: 64 },
        ]
    );
    let counters = counters_after(&record);
    assert_eq!((counters.oldest_multi, counters.oldest_multi_database), (70 * 2048, 5));
}

/// Says where a file of old and new places of rows goes on; the file is of use to a slot alone.
fn rewrite_is_for_logical_decoding_only() {
    assert_changes_nothing(&record(Rm::Heap2, 0x00, &[0; 48]));
}

fn locking_a_newer_version_sets_its_xmax() {
    let mut tuple = [0; 32];
    tuple[4..8].copy_from_slice(&77_u32.to_le_bytes());
    tuple[20..22].copy_from_slice(&0x0800_u16.to_le_bytes());
    tuple[22] = 24;
    let mut page = page_of(&[], &[&tuple]);
    // xl_heap_lock_updated: transaction, tuple, only locked exclusively; flags: the map's "all frozen" goes.
    let data = [words(&[900]), vec![1, 0, 0x06, 0x01]].concat();
    let record = record_on(Rm::Heap2, 0x60, &data, &[(0, 3, &[])]);
    apply(&record, 3, &mut page);
    let locked = &items(&page)[0];
    assert_eq!(locked[4..8], 900_u32.to_le_bytes());
    assert_eq!(locked[20..22], 0x00C0_u16.to_le_bytes(), "HEAP_XMAX_LOCK_ONLY and HEAP_XMAX_EXCL_LOCK");
    let fork = RelationFork { fork: Fork::VisibilityMap, ..block_key(3).relation_fork };
    let map = PageKey::Block(borealis_types::BlockKey { relation_fork: fork, block: 0 });
    assert!(effects_of(&record).contains(&Effect::Page(map)));
    let mut map_page = page_of(&[], &[]);
    map_page[24] = 0b1100_0000;
    apply_page(&record, &map, &mut map_page).unwrap();
    assert_eq!(map_page[24], 0b0100_0000);
}

/// Special space of a hash index page: previous, next, bucket, flags, identification.
fn hash_special(flags: u16) -> Vec<u8> {
    [words(&[u32::MAX, u32::MAX, 2]), flags.to_le_bytes().to_vec(), 0xFF80_u16.to_le_bytes().to_vec()]
        .concat()
}

fn moved_tuples_leave_one_page_for_another() {
    let (overflow, bucket) = (1, 2);
    let mut from = page_of(&hash_special(overflow), &[&index_tuple(1), &index_tuple(2), &index_tuple(3)]);
    let mut to = page_of(&hash_special(bucket), &[&index_tuple(9)]);
    // xl_hash_move_page_contents: number of tuples, whether to the bucket's first page.
    let added = [&[1, 0, 3, 0][..], &index_tuple(1), &index_tuple(3)].concat();
    let record = record_on(Rm::Hash, 0x70, &[2, 0, 0], &[(0, 1, &[]), (1, 5, &added), (2, 6, &[1, 0, 3, 0])]);
    apply(&record, 5, &mut to);
    apply(&record, 6, &mut from);
    assert_eq!(items(&to), [index_tuple(1), index_tuple(9), index_tuple(3)]);
    assert_eq!(items(&from), [index_tuple(2)]);
    let mut locked = page_of(&hash_special(bucket), &[]);
    let before = locked;
    apply(&record, 1, &mut locked);
    assert!(locked == before, "the bucket's first page is only locked");
}

fn vacuuming_one_page_removes_its_dead_and_counts_them() {
    let (bucket, has_dead_tuples) = (2, 1 << 7);
    let special = hash_special(bucket | has_dead_tuples);
    let mut page = page_of(&special, &[&index_tuple(1), &index_tuple(2), &index_tuple(3)]);
    // xl_hash_vacuum_one_page: newest transaction removed, number of tuples; their numbers.
    let data = [words(&[800, 2]), vec![1, 0, 3, 0]].concat();
    let record = record_on(Rm::Hash, 0xC0, &data, &[(0, 5, &[]), (1, 0, &[])]);
    apply(&record, 5, &mut page);
    assert_eq!(items(&page), [index_tuple(2)]);
    assert_eq!(special_u16(&page, 4), bucket);
    let mut meta = page_of(&hash_special(1 << 3), &[]);
    meta[32..40].copy_from_slice(&10_f64.to_le_bytes());
    apply(&record, 0, &mut meta);
    assert_eq!(meta[32..40], 8_f64.to_le_bytes());
}

/// Special space of a GIN page: right sibling, number of items, flags.
fn gin_special(right: u32, count: u16, flags: u16) -> Vec<u8> {
    [words(&[right]), count.to_le_bytes().to_vec(), flags.to_le_bytes().to_vec()].concat()
}

fn deleting_a_page_unlinks_it() {
    use borealis_wal::layout::gin::flag::{DATA, DELETED, LEAF};
    let mut deleted = page_of(&gin_special(9, 0, DATA | LEAF), &[]);
    let mut left = page_of(&gin_special(6, 0, DATA | LEAF), &[]);
    // Two downlinks of ten bytes after the right bound.
    let mut parent = page_of(&gin_special(u32::MAX, 2, DATA), &[]);
    parent[32..42].fill(1);
    parent[42..52].fill(2);
    page::set_lower(&mut parent, 52);
    // ginxlogDeletePage: the downlink's number, padding, right sibling, transaction.
    let data = [vec![1, 0, 0, 0], words(&[9, 4321])].concat();
    let record = record_on(Rm::Gin, 0x50, &data, &[(0, 6, &[]), (1, 3, &[]), (2, 5, &[])]);
    apply(&record, 6, &mut deleted);
    apply(&record, 3, &mut parent);
    apply(&record, 5, &mut left);
    assert_eq!(special_u16(&deleted, 2), DATA | LEAF | DELETED);
    assert_eq!(page::prune_xid(&deleted), 4321);
    assert_eq!((parent[32..42].to_vec(), special_u16(&parent, 4)), (vec![2; 10], 1));
    assert_eq!(page::lower(&parent), 42);
    assert_eq!(left[PAGE_SIZE - 8..PAGE_SIZE - 4], 9_u32.to_le_bytes());
}

fn vacuuming_a_leaf_replaces_its_segments() {
    const DATA_LEAF_COMPRESSED: u16 = 0b1000_0011;
    // A posting list of the rows (1, 1) and (1, 3): first row, length, the difference.
    let old = [0, 0, 1, 0, 1, 0, 1, 0, 2, 0];
    let new = [0, 0, 1, 0, 3, 0, 0, 0];
    let mut leaf = page_of(&gin_special(u32::MAX, 0, DATA_LEAF_COMPRESSED), &[]);
    leaf[32..42].copy_from_slice(&old);
    page::set_lower(&mut leaf, 42);
    // One action: segment 0 is replaced.
    let data = [&[1, 0, 0, 3][..], &new].concat();
    apply(&record_on(Rm::Gin, 0x90, &[], &[(0, 4, &data)]), 4, &mut leaf);
    assert_eq!(leaf[32..usize::from(page::lower(&leaf))], new);
}

fn deleting_the_dead_clears_the_garbage_flag() {
    const LEAF_WITH_GARBAGE: u16 = 0b1_0001;
    let special = [
        words(&[0, 0, u32::MAX]),
        LEAF_WITH_GARBAGE.to_le_bytes().to_vec(),
        0xFF81_u16.to_le_bytes().to_vec(),
    ]
    .concat();
    let mut page = page_of(&special, &[&index_tuple(1), &index_tuple(2), &index_tuple(3)]);
    // gistxlogDelete: newest transaction removed, number of tuples; their numbers.
    let data = [words(&[800]), vec![2, 0, 1, 0, 2, 0]].concat();
    apply(&record_on(Rm::Gist, 0x10, &data, &[(0, 4, &[])]), 4, &mut page);
    assert_eq!(items(&page), [index_tuple(3)]);
    assert_eq!(special_u16(&page, 4), 1, "still a leaf, and no garbage");
}

/// Cancels queries on a standby that could still be on their way to the page.
fn reusing_a_page_is_for_standbys_only() {
    assert_changes_nothing(&record(Rm::Gist, 0x20, &words(&[1663, 5, 16384, 7, 900, 0])));
}

/// Written for the position it gets, and for nothing else.
fn assigning_an_lsn_changes_nothing() {
    assert_changes_nothing(&record(Rm::Gist, 0x70, &[0; 4]));
}

fn vacuuming_the_root_removes_its_tuples() {
    use borealis_wal::layout::spgist::LEAF;
    let special = [LEAF.to_le_bytes(), [0; 2], [0; 2], 0xFF82_u16.to_le_bytes()].concat();
    let mut page = page_of(&special, &[&[1; 16], &[2; 16], &[3; 16]]);
    // spgxlogVacuumRoot: number of tuples, padding; transaction, whether building, padding; their numbers.
    let data = [vec![2, 0, 0, 0], words(&[900, 0]), vec![1, 0, 3, 0]].concat();
    apply(&record_on(Rm::Spgist, 0x70, &data, &[(0, 1, &[])]), 1, &mut page);
    assert_eq!(items(&page), [[2; 16]]);
}

fn truncating_times_removes_whole_files() {
    // xl_commit_ts_truncate: page, oldest transaction.
    let record = record(Rm::CommitTs, 0x10, &words(&[65, 65 * 819]));
    let kind = SlruKind::CommitTimestamps;
    assert!(effects_of(&record).contains(&Effect::TruncateSlru { kind, first_kept_page: 64 }));
    let mut counters = Counters { oldest_commit_ts_xid: 5, ..Counters::default() };
    counters.apply(&record).unwrap();
    assert_eq!(counters.oldest_commit_ts_xid, 65 * 819);
}

/// Progress of a logical subscription, which is no page.
fn setting_an_origin_changes_no_page() {
    assert_changes_nothing(&record(Rm::ReplicationOrigin, 0x00, &[0; 16]));
}

fn generic_ranges_are_written() {
    let mut page = page_of(&[0; 8], &[]);
    // Offset, length, bytes.
    let data = [0xF8, 0x1F, 2, 0, 0xAA, 0xBB];
    apply(&record_on(Rm::Generic, 0x00, &[], &[(0, 4, &data)]), 4, &mut page);
    assert_eq!(page[PAGE_SIZE - 8..PAGE_SIZE - 5], [0xAA, 0xBB, 0]);
    assert_eq!(page::lsn(&page), SPAN.end);
    assert_ne!(SPAN.end, Lsn::ZERO);
}

fn a_message_changes_nothing() {
    assert_changes_nothing(&record(Rm::LogicalMessage, 0x00, &[0; 40]));
}
