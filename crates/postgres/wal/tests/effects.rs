//! Effects of hand-made records whose every case a real server would take long to produce.

use borealis_types::{
    BlockKey, DatabaseKey, Fork, Lsn, MetaKey, PageKey, RecordSpan, RelationFork, RelationLocator,
    ServerVersion, SlruKind,
};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::layout::{Prepare, TransactionEnd};
use borealis_wal::{BlockReference, Effect, Record, ResourceManager, effects, highest_xid};

const TABLE: RelationLocator = RelationLocator { tablespace: 1663, database: 5, relation: 16384 };

/// Heap blocks on one visibility map page.
const MAP_PAGE: u32 = 32_672;

fn with_record<T>(builder: RecordBuilder<'_>, look: impl FnOnce(&Record<'_>) -> T) -> T {
    let bytes = builder.finish();
    let span = RecordSpan { start: Lsn(64), end: Lsn(64 + bytes.len() as u64).align_up() };
    look(
        &Record::parse(ServerVersion::NEWEST_TESTED, span, &bytes).expect("an encoded record is well-formed"),
    )
}

fn effects_of(builder: RecordBuilder<'_>) -> Vec<Effect> {
    with_record(builder, |record| {
        let mut out = Vec::new();
        effects(record, &mut out).expect("the operation is known");
        out
    })
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn page(fork: Fork, block: u32) -> Effect {
    let relation_fork = RelationFork { locator: TABLE, fork };
    Effect::Page(PageKey::Block(BlockKey { relation_fork, block }))
}

fn slru(kind: SlruKind, page: u32) -> Effect {
    Effect::Page(PageKey::Slru { kind, page })
}

fn listed<'a>(id: u8, block: u32) -> BlockReference<'a> {
    let relation_fork = RelationFork { locator: TABLE, fork: Fork::Main };
    BlockReference { id, key: BlockKey { relation_fork, block }, will_init: false, image: None, data: b"d" }
}

/// An update's main data with these flags.
fn update(flags: u8) -> [u8; 14] {
    let mut data = [0; 14];
    data[7] = flags;
    data
}

#[test]
fn an_update_clears_map_bits_of_the_old_and_the_new_block() {
    let (old, new) = (MAP_PAGE - 1, MAP_PAGE);
    let record = |flags: &'static [u8; 14]| {
        RecordBuilder::new(ResourceManager::Heap, 0x20)
            .block(listed(0, new))
            .block(listed(1, old))
            .main_data(flags)
    };
    const NONE: &[u8; 14] = &[0; 14];
    const BOTH: &[u8; 14] = &[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0];
    const OLD: &[u8; 14] = &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let main = [page(Fork::Main, new), page(Fork::Main, old)];
    let map = |block| page(Fork::VisibilityMap, block);
    assert_eq!(effects_of(record(NONE)), main);
    assert_eq!(effects_of(record(OLD)), [&[map(0)], &main[..]].concat());
    assert_eq!(effects_of(record(BOTH)), [&[map(0), map(1)], &main[..]].concat());
}

#[test]
fn an_update_within_one_map_page_names_it_once_and_one_block_stands_for_both() {
    let both = update(3);
    let two = RecordBuilder::new(ResourceManager::Heap, 0x20)
        .block(listed(0, 7))
        .block(listed(1, 3))
        .main_data(&both);
    let expected = [page(Fork::VisibilityMap, 0), page(Fork::Main, 7), page(Fork::Main, 3)];
    assert_eq!(effects_of(two), expected);
    let hot = RecordBuilder::new(ResourceManager::Heap, 0x40).block(listed(0, 7)).main_data(&both);
    assert_eq!(effects_of(hot), [page(Fork::VisibilityMap, 0), page(Fork::Main, 7)]);
}

#[test]
fn each_heap_change_has_its_flags_where_its_struct_has_them() {
    // Operation, resource manager, length of the data, offset of the flags.
    for (resource_manager, info, length, offset) in [
        (ResourceManager::Heap, 0x00, 3, 2),
        (ResourceManager::Heap, 0x80, 3, 2),
        (ResourceManager::Heap, 0x10, 8, 7),
        (ResourceManager::Heap, 0x60, 8, 7),
        (ResourceManager::Heap2, 0x50, 6, 0),
        (ResourceManager::Heap2, 0x60, 8, 7),
    ] {
        let mut data = vec![0xFE; length];
        let of = |data: &[u8]| {
            effects_of(
                RecordBuilder::new(resource_manager, info).block(listed(0, MAP_PAGE * 3)).main_data(data),
            )
        };
        assert_eq!(of(&data), [page(Fork::Main, MAP_PAGE * 3)], "{resource_manager} {info:#x}");
        data[offset] = 1;
        let expected = [page(Fork::VisibilityMap, 3), page(Fork::Main, MAP_PAGE * 3)];
        assert_eq!(of(&data), expected, "{resource_manager} {info:#x}");
    }
}

#[test]
fn a_truncation_zeroes_the_tails_of_the_maps_and_cuts_all_files() {
    let cut = |fork, blocks| Effect::TruncateRelation {
        relation_fork: RelationFork { locator: TABLE, fork },
        blocks,
    };
    let record = |blocks, flags| {
        let data = words(&[blocks, TABLE.tablespace, TABLE.database, TABLE.relation, flags]);
        effects_of(RecordBuilder::new(ResourceManager::Storage, 0x20).main_data(&data))
    };
    assert_eq!(
        record(10, 7),
        [
            page(Fork::FreeSpaceMap, 2),
            page(Fork::VisibilityMap, 0),
            cut(Fork::Main, 10),
            cut(Fork::FreeSpaceMap, 3),
            cut(Fork::VisibilityMap, 1),
        ]
    );
    assert_eq!(record(0, 7), [cut(Fork::Main, 0), cut(Fork::FreeSpaceMap, 2), cut(Fork::VisibilityMap, 0)]);
    assert_eq!(record(10, 2), [page(Fork::VisibilityMap, 0), cut(Fork::VisibilityMap, 1)]);
}

#[test]
fn a_commit_sets_the_status_of_all_its_transactions_and_drops_relations() {
    const SUBXIDS_AND_RELATIONS: u32 = 0b110;
    let mut data = 77u64.to_le_bytes().to_vec();
    // Subtransactions 32767 (page 0) and 32768 (page 1); one relation.
    data.extend(words(&[SUBXIDS_AND_RELATIONS, 2, 32_767, 32_768, 1]));
    data.extend(words(&[TABLE.tablespace, TABLE.database, TABLE.relation]));
    for operation in [0x00, 0x20] {
        let builder = || {
            RecordBuilder::new(ResourceManager::Transaction, operation | 0x80).xid(32_766).main_data(&data)
        };
        assert_eq!(
            effects_of(builder()),
            [slru(SlruKind::Transactions, 0), slru(SlruKind::Transactions, 1), Effect::DropRelation(TABLE)]
        );
        assert_eq!(with_record(builder(), highest_xid), Some(32_768));
    }
}

#[test]
fn the_end_of_a_prepared_transaction_is_that_transactions_and_forgets_it() {
    const TWO_PHASE_AND_GID: u32 = 1 << 4 | 1 << 7;
    let mut data = 77u64.to_le_bytes().to_vec();
    data.extend(words(&[TWO_PHASE_AND_GID, 40_000]));
    data.extend_from_slice(b"name\0");
    for operation in [0x30, 0x40] {
        let builder = || RecordBuilder::new(ResourceManager::Transaction, operation | 0x80).main_data(&data);
        assert_eq!(
            effects_of(builder()),
            [slru(SlruKind::Transactions, 1), Effect::Meta(MetaKey::PreparedTransaction(40_000))]
        );
        with_record(builder(), |record| {
            let end = TransactionEnd::parse(record).expect("it is well-formed");
            assert_eq!((end.gid, end.prepared, end.committed), (Some(&b"name"[..]), true, operation == 0x30));
        });
    }
    let unnamed = RecordBuilder::new(ResourceManager::Transaction, 0x30).main_data(&data[..8]);
    with_record(unnamed, |record| assert!(effects(record, &mut Vec::new()).is_err()));
}

#[test]
fn a_prepare_keeps_its_state_and_proves_its_transaction_ids() {
    let mut data = words(&[0x57F9_4534, 0, 500, 5]);
    data.extend(1u64.to_le_bytes());
    // Owner, two subtransactions, no relations, statistics or invalidations; the name is five bytes long.
    data.extend(words(&[10, 2, 0, 0, 0, 0, 0, 5 << 16]));
    data.extend([0; 16]);
    data.extend_from_slice(b"name\0\0\0\0");
    data.extend(words(&[501, 502]));
    let builder = || RecordBuilder::new(ResourceManager::Transaction, 0x10).xid(500).main_data(&data);
    assert_eq!(effects_of(builder()), [Effect::Meta(MetaKey::PreparedTransaction(500))]);
    assert_eq!(with_record(builder(), highest_xid), Some(502));
    with_record(builder(), |record| {
        assert_eq!(Prepare::parse(record).expect("it is well-formed").gid, b"name\0");
    });
}

#[test]
fn a_multixact_touches_its_own_entry_the_next_one_and_all_member_pages() {
    let counters = Effect::Meta(MetaKey::Counters);
    let create = |multi, offset, members: u32| {
        let mut data = words(&[multi, offset, members]);
        (0..members).for_each(|member| data.extend(words(&[700 + member, 1])));
        effects_of(RecordBuilder::new(ResourceManager::MultiXact, 0x20).main_data(&data))
    };
    let offsets = |page| slru(SlruKind::MultiXactOffsets, page);
    let members = |page| slru(SlruKind::MultiXactMembers, page);
    assert_eq!(create(5, 10, 2), [counters.clone(), offsets(0), members(0)]);
    assert_eq!(
        create(2047, 1635, 1700),
        [counters.clone(), offsets(0), offsets(1), members(0), members(1), members(2)]
    );
    // After the last multixact comes number one, and after the last member offset comes zero.
    assert_eq!(
        create(u32::MAX, u32::MAX, 2),
        [counters, offsets(2_097_151), offsets(0), members(u32::MAX / 1636), members(0)]
    );
}

#[test]
fn multixacts_are_truncated_by_whole_segment_files() {
    let cut = |kind, first_kept_page| Effect::TruncateSlru { kind, first_kept_page };
    let truncate = |start_member, end_multi, end_member| {
        let data = words(&[5, 1, end_multi, start_member, end_member]);
        effects_of(RecordBuilder::new(ResourceManager::MultiXact, 0x30).main_data(&data))
    };
    let counters = || Effect::Meta(MetaKey::Counters);
    let per_segment = 1636 * 32;
    assert_eq!(
        truncate(0, 2048 * 64, per_segment * 2 + 5),
        [
            counters(),
            cut(SlruKind::MultiXactMembers, 64),
            // One multixact less than the first of page 64 is on page 63, in the segment file of page 32.
            cut(SlruKind::MultiXactOffsets, 32),
        ]
    );
    assert_eq!(truncate(1, 100, 50), [counters(), cut(SlruKind::MultiXactOffsets, 0)]);
}

#[test]
fn transaction_status_is_truncated_to_the_segment_file_of_the_cutoff() {
    let data = words(&[70, 70 * 32_768, 5]);
    let cut = Effect::TruncateSlru { kind: SlruKind::Transactions, first_kept_page: 64 };
    let record = RecordBuilder::new(ResourceManager::Clog, 0x10).main_data(&data);
    assert_eq!(effects_of(record), [Effect::Meta(MetaKey::Counters), cut]);
}

#[test]
fn databases_come_and_go_folder_by_folder() {
    let key = |tablespace, database| DatabaseKey { tablespace, database };
    let record = |info, data: &[u32]| {
        effects_of(RecordBuilder::new(ResourceManager::Database, info).main_data(&words(data)))
    };
    let copy = Effect::CopyDatabase { from: key(1663, 1), to: key(1700, 9) };
    assert_eq!(
        record(0x00, &[9, 1700, 1, 1663]),
        [
            copy,
            Effect::Meta(MetaKey::Database(key(1700, 9))),
            Effect::Meta(MetaKey::RelationMap(key(1700, 9)))
        ]
    );
    assert_eq!(
        record(0x20, &[9, 2, 1663, 1700]),
        [
            Effect::DropDatabase(key(1663, 9)),
            Effect::Meta(MetaKey::Database(key(1663, 9))),
            Effect::DropDatabase(key(1700, 9)),
            Effect::Meta(MetaKey::Database(key(1700, 9))),
        ]
    );
}

#[test]
fn the_newest_transaction_is_found_across_the_wraparound() {
    let assignment = |subxids: &[u32]| {
        let mut data = words(&[u32::MAX - 5, subxids.len() as u32]);
        data.extend(words(subxids));
        let builder = RecordBuilder::new(ResourceManager::Transaction, 0x50).xid(u32::MAX).main_data(&data);
        with_record(builder, highest_xid)
    };
    assert_eq!(assignment(&[u32::MAX - 2]), Some(u32::MAX));
    assert_eq!(assignment(&[u32::MAX - 2, 3]), Some(3));
    let running = |next| {
        let data = words(&[0, 0, 0, next, 3, 3]);
        with_record(RecordBuilder::new(ResourceManager::Standby, 0x10).main_data(&data), highest_xid)
    };
    assert_eq!(running(3), Some(u32::MAX));
    assert_eq!(running(1000), Some(999));
    assert_eq!(with_record(RecordBuilder::new(ResourceManager::Heap, 0).xid(1), highest_xid), None);
}
