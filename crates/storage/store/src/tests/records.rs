//! Records for tests: each names its effects, and redo is a hash over what was there and the record's LSN, so
//! that a missing, repeated or reordered record shows. Each also says which release wrote it, which redo compares with
//! the release that the store takes it for.

use std::path::Path;
use std::sync::Arc;

use borealis_quorum::Promise;
use borealis_redo::RedoError;
use borealis_types::{
    AvailabilityZone, BlockKey, DatabaseKey, EpochHistory, EpochOpening, Fork, GroupId, GroupSet, Lsn,
    META_GROUP, MetaKey, NodeId, PAGE_SIZE, PageBytes, PageKey, Part, Placement, PostgresVersion, RecordForm,
    RecordSpan, RelationFork, RelationLocator, ServerVersion, SlruKind, VolumeEpoch, VolumeId, WriterId,
};
use borealis_wal::{Effect, EffectError, Record, RecordError};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};
use serde::{Deserialize, Serialize};

use crate::{CountersReplay, Environment, Identity, Options, RedoEngine, Store};

/// An effect, in a form that can be stored in a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum TestEffect {
    Page(PageKey),
    Create(RelationFork),
    Truncate(RelationFork, u32),
    Drop(RelationLocator),
    Copy(DatabaseKey, DatabaseKey),
    DropDatabase(DatabaseKey),
    TruncateSlru(SlruKind, u32),
    Meta(MetaKey),
    /// Nobody knows this one.
    Unknown,
}

impl TestEffect {
    pub(super) fn real(&self) -> Option<Effect> {
        Some(match self.clone() {
            TestEffect::Page(key) => Effect::Page(key),
            TestEffect::Create(fork) => Effect::CreateRelation(fork),
            TestEffect::Truncate(relation_fork, blocks) => Effect::TruncateRelation { relation_fork, blocks },
            TestEffect::Drop(locator) => Effect::DropRelation(locator),
            TestEffect::Copy(from, to) => Effect::CopyDatabase { from, to },
            TestEffect::DropDatabase(database) => Effect::DropDatabase(database),
            TestEffect::TruncateSlru(kind, first_kept_page) => Effect::TruncateSlru { kind, first_kept_page },
            TestEffect::Meta(key) => Effect::Meta(key),
            TestEffect::Unknown => return None,
        })
    }
}

/// The bytes of a record with these effects, of a server of this release; `resource_manager` 2 makes its page changes
/// leave pages alone that do not exist.
pub(super) fn record_bytes(
    server_version: ServerVersion,
    previous_start: Lsn,
    resource_manager: u8,
    effects: &[TestEffect],
) -> Vec<u8> {
    let data = postcard::to_stdvec(&(server_version, effects)).unwrap();
    let mut bytes = vec![0; 24];
    bytes[8..16].copy_from_slice(&previous_start.0.to_le_bytes());
    bytes[17] = resource_manager;
    bytes.push(254);
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&data);
    let total = bytes.len() as u32;
    bytes[..4].copy_from_slice(&total.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[24..]), &bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

pub(super) fn mix(value: u64, lsn: Lsn) -> u64 {
    (value ^ lsn.0).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) + 1
}

/// The page with this content.
pub(super) fn page_of(hash: u64) -> Box<PageBytes> {
    let mut page = Box::new([0; PAGE_SIZE]);
    page[..8].copy_from_slice(&hash.to_le_bytes());
    page[4000..4008].copy_from_slice(&hash.to_le_bytes());
    page
}

/// What a record does, if the store takes it for one of the release that wrote it.
fn effects_of(record: &Record<'_>) -> Vec<TestEffect> {
    let (server_version, effects): (ServerVersion, _) = postcard::from_bytes(record.main_data).unwrap();
    let start = record.span.start;
    assert_eq!(record.server_version, server_version, "the release of the record at {start}");
    effects
}

pub(super) struct TestRedo;

impl RedoEngine for TestRedo {
    fn verify(&self, bytes: &[u8], start: Lsn) -> Result<(), RecordError> {
        borealis_wal::verify_checksum(bytes, start)
    }

    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
        for effect in effects_of(record) {
            out.push(effect.real().ok_or(EffectError::Unknown {
                start: record.span.start,
                resource_manager: record.resource_manager,
                info: record.info,
            })?);
        }
        Ok(())
    }

    fn apply_page(&self, record: &Record<'_>, _: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
        effects_of(record);
        let hash = u64::from_le_bytes(page[..8].try_into().unwrap());
        *page = *page_of(mix(hash, record.span.end));
        Ok(())
    }

    fn apply_meta(
        &self,
        record: &Record<'_>,
        _: &MetaKey,
        value: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, RedoError> {
        effects_of(record);
        let hash =
            mix(value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap())), record.span.end);
        // Now and then the value goes.
        Ok((!hash.is_multiple_of(5)).then(|| hash.to_le_bytes().to_vec()))
    }

    fn counters(&self, value: Option<Vec<u8>>) -> Box<dyn CountersReplay + '_> {
        Box::new(TestCounters(value))
    }
}

struct TestCounters(Option<Vec<u8>>);

impl CountersReplay for TestCounters {
    fn apply(&mut self, record: &Record<'_>) -> Result<(), RedoError> {
        self.0 = TestRedo.apply_meta(record, &MetaKey::Counters, self.0.take())?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Option<Vec<u8>> {
        self.0
    }
}

pub(super) fn database(number: u32) -> DatabaseKey {
    DatabaseKey { tablespace: 1663, database: number }
}

pub(super) fn fork(database: u32, relation: u32) -> RelationFork {
    let locator = RelationLocator { tablespace: 1663, database, relation };
    RelationFork { locator, fork: Fork::Main }
}

pub(super) fn block(relation_fork: RelationFork, block: u32) -> PageKey {
    PageKey::Block(BlockKey { relation_fork, block })
}

pub(super) fn identity(group_count: u16) -> Identity {
    let placement = Placement::new(group_count).unwrap();
    Identity {
        volume: VolumeId(1),
        node: NodeId(3),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::V15,
        placement,
        groups: placement.groups().collect(),
        incarnation: 99,
    }
}

pub(super) fn options() -> Options {
    Options {
        memory_limit_bytes: 8 << 20,
        log_file_bytes: 4 << 10,
        log_retention_bytes: 1 << 30,
        quarantine_limit_bytes: 64 << 20,
        materialize_after_bytes: 16 << 10,
        // Fewer than there are log files.
        open_files_max: 2,
        free_space_min_bytes: None,
    }
}

/// The machine's disk and clock, and redo of test records.
pub(super) fn environment() -> Environment {
    Environment { redo: Arc::new(TestRedo), ..Environment::default() }
}

pub(super) fn create(path: &Path, group_count: u16) -> Store {
    Store::create_in(&environment(), path, identity(group_count), options()).unwrap()
}

pub(super) fn open(path: &Path) -> Result<Store, crate::StoreError> {
    Store::open_in(&environment(), path, options())
}

/// A record that a writer made.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub epoch: VolumeEpoch,
    pub span: RecordSpan,
    pub links: Vec<GroupLink>,
    pub form: RecordForm,
    pub bytes: Vec<u8>,
    /// Of a record that was cut: those of its last piece.
    pub effects: Vec<TestEffect>,
    pub existing_only: bool,
}

/// What a driver knows: the stream so far, and where each group's part of it ends.
pub(super) struct Writer {
    pub placement: Placement,
    pub promise: Promise,
    pub history: EpochHistory,
    pub records: Vec<Written>,
    pub durable: RecordSpan,
    pub minimum_read_point: Lsn,
}

impl Writer {
    /// The first writer of a volume; `store` is fenced and installed for it.
    pub(super) fn start(store: &Store) -> Writer {
        let promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(11) };
        let mut history = EpochHistory::default();
        history.push(EpochOpening {
            epoch: promise.epoch,
            last: RecordSpan::NONE,
            server_version: ServerVersion::NEWEST_TESTED,
        });
        store.fence(promise, &[]).unwrap();
        store.install(promise.writer, &history, &[], &[]).unwrap();
        Writer {
            placement: store.identity().placement,
            promise,
            history,
            records: Vec::new(),
            durable: RecordSpan::NONE,
            minimum_read_point: Lsn::ZERO,
        }
    }

    pub(super) fn tail_at(&self, group: GroupId, lsn: Lsn) -> Lsn {
        let of_group = self
            .records
            .iter()
            .rev()
            .find(|record| record.span.end <= lsn && record.links.iter().any(|link| link.group == group));
        of_group.map_or(Lsn::ZERO, |record| record.span.end)
    }

    pub(super) fn last(&self) -> RecordSpan {
        self.records.last().map_or(RecordSpan::NONE, |record| record.span)
    }

    pub(super) fn write(&mut self, effects: Vec<TestEffect>, existing_only: bool) -> &Written {
        let last = self.last();
        let resource_manager = if existing_only { 2 } else { 127 };
        let newest = self.history.newest().expect("a writer has an epoch");
        let bytes = record_bytes(newest.server_version, last.start, resource_manager, &effects);
        let start = Lsn(last.end.0 + 40);
        let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
        let groups = effects
            .iter()
            .filter_map(TestEffect::real)
            .fold(GroupSet::EMPTY, |set, effect| set.union(effect.groups(self.placement)));
        let groups = if groups.is_empty() { GroupSet::EMPTY.with(META_GROUP) } else { groups };
        let links = groups
            .iter()
            .map(|group| GroupLink { group, previous_end: self.tail_at(group, Lsn::MAX) })
            .collect();
        let epoch = self.promise.epoch;
        // After a piece the bytes name another place than that of the entry before.
        let after_piece = self.records.last().is_some_and(|record| record.form.part.is_piece());
        let form = RecordForm { part: Part::Whole, previous_start: after_piece.then_some(last.start) };
        self.records.push(Written { epoch, span, links, form, bytes, effects, existing_only });
        self.records.last().unwrap()
    }

    /// Cuts the record written last into so many pieces, at least two.
    pub(super) fn cut_last(&mut self, count: usize) {
        let whole = self.records.pop().expect("a record was written");
        let mut last = self.last();
        let mut start = whole.span.start;
        let contents: Vec<&[u8]> = whole.bytes.chunks(whole.bytes.len().div_ceil(count)).collect();
        for (at, content) in contents.iter().enumerate() {
            let ends = at + 1 == contents.len();
            let part = match at {
                0 => Part::First,
                _ if ends => Part::Last,
                _ => Part::Middle,
            };
            let mut bytes = vec![0; borealis_wal::piece::PIECE_PREFIX_BYTES];
            bytes.extend_from_slice(content);
            borealis_wal::piece::seal(&mut bytes, start);
            let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64 + 24).align_up() };
            let links = whole.links.iter().map(|link| match at {
                0 => *link,
                _ => GroupLink { previous_end: start, ..*link },
            });
            self.records.push(Written {
                span,
                links: links.collect(),
                form: RecordForm { part, previous_start: Some(last.start) },
                bytes,
                effects: if ends { whole.effects.clone() } else { Vec::new() },
                ..whole.clone()
            });
            (last, start) = (span, span.end);
        }
    }

    pub(super) fn header(&self) -> BatchHeader {
        let tails = self
            .placement
            .groups()
            .map(|group| GroupTail { group, last_end: self.tail_at(group, self.durable.end) });
        BatchHeader {
            volume_epoch: self.promise.epoch,
            durable: self.durable,
            minimum_read_point: self.minimum_read_point,
            tails: tails.collect(),
        }
    }

    pub(super) fn batch(&self, records: &[Written]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(&self.header());
        for record in records {
            builder.push_form(record.span, record.form, &record.links, &record.bytes);
        }
        builder.finish()
    }
}
