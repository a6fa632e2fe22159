//! One object of each kind, the same on every run: the golden files are made of these.
#![allow(dead_code, reason = "each test uses a part of them")]

use std::collections::BTreeMap;

use borealis_archive::history;
use borealis_archive::manifest::{Entry, ManifestBuilder};
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::{HistoryName, ManifestName, MarksName, Name, PagesName, RedoName, SnapshotName};
use borealis_archive::pages::{ExtentPages, PagesBuilder};
use borealis_archive::redo::RedoBuilder;
use borealis_archive::sealing::{Sealing, SealingKey};
use borealis_archive::settings::{self, NamedSnapshot, Retention, VolumeFacts};
use borealis_types::{
    BlockKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, MetaKey, NodeId, PAGE_SIZE, PageKey, Part,
    Placement, PostgresVersion, RecordForm, RecordSpan, RelationFork, RelationLocator, ServerVersion,
    SlruKind, VolumeEpoch, VolumeId,
};
use borealis_wire::{BatchRecord, GroupLink, GroupTail};

pub const VOLUME: VolumeId = VolumeId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
pub const GROUP: GroupId = GroupId(0);
pub const NODE: NodeId = NodeId(3);
pub const EPOCH: VolumeEpoch = VolumeEpoch(2);

pub fn sealed() -> Sealing {
    Sealing::from(SealingKey::new([0x5A; 32]))
}

/// Records of group 0, each of 64 bytes of log, the last two pieces of one record; every second is in group 1 too.
pub fn records() -> Vec<BatchRecord<'static>> {
    const BYTES: [u8; 60] = [0xAB; 60];
    let parts = [Part::Whole, Part::Whole, Part::Whole, Part::First, Part::Last];
    let mut previous = 1000;
    let numbered = (0u64..).zip(parts);
    numbered
        .map(|(number, part)| {
            let start = 1024 + 64 * number;
            let mut links = vec![GroupLink { group: GROUP, previous_end: Lsn(previous) }];
            if number % 2 == 1 {
                links.push(GroupLink { group: GroupId(1), previous_end: Lsn(start - 64) });
            }
            previous = start + 64;
            let previous_start = part.is_piece().then_some(Lsn(start - 64));
            let span = RecordSpan { start: Lsn(start), end: Lsn(start + 64) };
            BatchRecord { span, links, form: RecordForm { part, previous_start }, bytes: &BYTES }
        })
        .collect()
}

pub fn redo(sealing: &Sealing) -> (RedoName, Vec<u8>) {
    let mut builder = RedoBuilder::new(VOLUME, GROUP, NODE, EPOCH, Lsn(1000));
    for record in records() {
        builder.push(EPOCH, &record).expect("the next record");
    }
    builder.finish(Lsn(5000), sealing).expect("records")
}

pub fn block(relation: u32, block: u32) -> PageKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation };
    PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block })
}

pub fn extents() -> Vec<ExtentPages> {
    let slru = |page| PageKey::Slru { kind: SlruKind::Transactions, page };
    let pages = [block(16384, 128), block(16384, 129), block(16384, 255), block(16390, 0), slru(0), slru(5)];
    let mut extents: BTreeMap<PageKey, ExtentPages> = BTreeMap::new();
    for (number, key) in (1u8..).zip(pages) {
        let mut extent = ExtentPages::new(&key);
        let extent = extents
            .entry(extent.first())
            .or_insert_with(|| std::mem::replace(&mut extent, ExtentPages::new(&key)));
        assert!(extent.push(&key, &[number; PAGE_SIZE]));
    }
    extents.into_values().collect()
}

pub fn pages(sealing: &Sealing) -> (PagesName, Vec<u8>) {
    let mut builder = PagesBuilder::new(VOLUME, GROUP, NODE, EPOCH, Lsn(1000));
    for extent in extents() {
        assert!(builder.push(&extent));
    }
    let (name, bytes, _) = builder.finish(sealing).expect("extents");
    (name, bytes)
}

pub fn entries() -> Vec<Entry> {
    let (object, _) = pages(&Sealing::Plain);
    let mut entries = vec![Entry::Object(object)];
    entries.extend(extents().iter().map(|extent| Entry::Extent {
        first: extent.first(),
        object: 0,
        block: 0,
        content: extent.content(),
    }));
    for relation in [16384, 16390] {
        let PageKey::Block(BlockKey { relation_fork, .. }) = block(relation, 0) else { unreachable!() };
        entries.push(Entry::Relation { fork: relation_fork, blocks: relation - 16383 });
    }
    let value =
        |key, bytes: &[u8]| Entry::Value { key, total_bytes: bytes.len() as u64, part: bytes.to_vec() };
    entries.push(value(MetaKey::Counters, &[7; 100]));
    entries.push(value(MetaKey::SmallFile("pg_hba.conf".to_owned()), b""));
    entries
}

pub fn manifest(sealing: &Sealing) -> (ManifestName, Vec<u8>) {
    let last = RecordSpan { start: Lsn(1008), end: Lsn(1016) };
    let mut builder = ManifestBuilder::new(VOLUME, GROUP, NODE, EPOCH, (last, Lsn(1000)));
    for entry in entries() {
        builder.push(&entry).expect("in order");
    }
    builder.finish(sealing).expect("whole")
}

pub fn opening(epoch: u64, end: u64) -> EpochOpening {
    let last = RecordSpan { start: Lsn(end.saturating_sub(64)), end: Lsn(end) };
    EpochOpening { epoch: VolumeEpoch(epoch), last, server_version: ServerVersion::NEWEST_TESTED }
}

pub fn openings() -> EpochHistory {
    let mut history = EpochHistory::default();
    history.push(opening(1, 0));
    history.push(opening(2, 512));
    history
}

pub fn history(sealing: &Sealing) -> (HistoryName, Vec<u8>) {
    history::encode(VOLUME, &openings(), sealing)
}

pub fn mark_list() -> Vec<Mark> {
    let mark = |clock_ms, durable| Mark {
        clock_ms,
        epoch: EPOCH,
        durable: Lsn(durable),
        tails: vec![
            GroupTail { group: GROUP, last_end: Lsn(durable) },
            GroupTail { group: GroupId(1), last_end: Lsn(durable - 64) },
        ],
    };
    vec![mark(1_800_000_000_000, 1088), mark(1_800_000_001_000, 1344), mark(1_800_000_001_000, 1344)]
}

pub fn mark_object(sealing: &Sealing) -> (MarksName, Vec<u8>) {
    marks::encode(VOLUME, NODE, &mark_list(), sealing).expect("marks in order")
}

pub fn volume_facts() -> VolumeFacts {
    let placement = Placement::new(2).expect("two groups");
    VolumeFacts { placement, version: PostgresVersion::V15, page_bytes: 8192, created_ms: 1_800_000_000_000 }
}

pub fn snapshot_facts() -> NamedSnapshot {
    let name = SnapshotName::try_from("before-upgrade".to_owned()).expect("a name");
    NamedSnapshot { name, lsn: Lsn(1344), epoch: EPOCH, created_ms: 1_800_000_002_000 }
}

pub fn retention_facts() -> Retention {
    Retention { window_ms: 86_400_000, unfinished_ms: 43_200_000 }
}

/// Every kind, with its name and bytes.
pub fn all(sealing: &Sealing) -> Vec<(&'static str, Name, Vec<u8>)> {
    let (redo, redo_bytes) = redo(sealing);
    let (pages, pages_bytes) = pages(sealing);
    let (manifest, manifest_bytes) = manifest(sealing);
    let (history, history_bytes) = history(sealing);
    let (marks, marks_bytes) = mark_object(sealing);
    let snapshot = snapshot_facts();
    let encode_snapshot = settings::encode(VOLUME, snapshot.clone(), sealing);
    vec![
        ("redo", Name::Redo(redo), redo_bytes),
        ("pages", Name::Pages(pages), pages_bytes),
        ("manifest", Name::Manifest(manifest), manifest_bytes),
        ("history", Name::History(history), history_bytes),
        ("marks", Name::Marks(marks), marks_bytes),
        ("volume", Name::Volume, settings::encode(VOLUME, volume_facts(), sealing)),
        ("snapshot", Name::Snapshot(snapshot.name), encode_snapshot),
        ("retention", Name::Retention { revision: 1 }, settings::encode(VOLUME, retention_facts(), sealing)),
    ]
}
