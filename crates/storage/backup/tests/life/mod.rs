//! A volume in a real store, whose records are test records, with an uploader that is asked by hand. Redo is a hash over what was there and
//! the record's LSN, so that a missing, repeated or reordered record shows.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use borealis_archive::due::Rule;
use borealis_archive::duty::Candidate;
use borealis_archive::snapshot::SnapshotPoint;
use borealis_backup::store::ObjectStore;
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::upload::{
    DurablePoint, Now, Options as UploadOptions, PageSource, RedoSource, SourceError, Status, StorePages,
    Tail, Uploader,
};
use borealis_quorum::Promise;
use borealis_redo::RedoError;
use borealis_store::{CountersReplay, Environment, Identity, Options, Origin, Policy, RedoEngine, Store};
use borealis_types::{
    AvailabilityZone, BlockKey, EpochHistory, EpochOpening, Fork, GroupId, GroupSet, Lsn, META_GROUP,
    MetaKey, NodeId, PAGE_SIZE, PageBytes, PageKey, Placement, PostgresVersion, RecordForm, RecordSpan,
    RelationFork, RelationLocator, ServerVersion, VolumeEpoch, VolumeId, WriterId,
};
use borealis_wal::{Effect, EffectError, Record, RecordError};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};
use serde::{Deserialize, Serialize};

pub const VOLUME: VolumeId = VolumeId(42);

/// An effect, in a form that can be stored in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    Page { relation: u32, block: u32 },
    Truncate { relation: u32, blocks: u32 },
    Drop { relation: u32 },
    Counters,
}

pub fn fork(relation: u32) -> RelationFork {
    let locator = RelationLocator { tablespace: 1663, database: 1, relation };
    RelationFork { locator, fork: Fork::Main }
}

pub fn page(relation: u32, block: u32) -> PageKey {
    PageKey::Block(BlockKey { relation_fork: fork(relation), block })
}

impl Change {
    fn effect(self) -> Effect {
        match self {
            Change::Page { relation, block } => Effect::Page(page(relation, block)),
            Change::Truncate { relation, blocks } => {
                Effect::TruncateRelation { relation_fork: fork(relation), blocks }
            }
            Change::Drop { relation } => Effect::DropRelation(fork(relation).locator),
            Change::Counters => Effect::Meta(MetaKey::Counters),
        }
    }
}

/// A record with these changes, as PostgreSQL would frame it, and some bytes to make it longer.
fn record_bytes(previous_start: Lsn, changes: &[Change], padding: usize) -> Vec<u8> {
    let data = postcard::to_stdvec(&(changes, vec![0u8; padding])).unwrap();
    let mut bytes = vec![0; 24];
    bytes[8..16].copy_from_slice(&previous_start.0.to_le_bytes());
    bytes[17] = 127;
    bytes.push(254);
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&data);
    let total = bytes.len() as u32;
    bytes[..4].copy_from_slice(&total.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[24..]), &bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn mix(value: u64, lsn: Lsn) -> u64 {
    (value ^ lsn.0).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) + 1
}

fn changes_of(record: &Record<'_>) -> Vec<Change> {
    let (changes, _): (Vec<Change>, Vec<u8>) = postcard::from_bytes(record.main_data).unwrap();
    changes
}

struct TestRedo;

impl RedoEngine for TestRedo {
    fn verify(&self, bytes: &[u8], start: Lsn) -> Result<(), RecordError> {
        borealis_wal::verify_checksum(bytes, start)
    }

    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
        // A record of PostgreSQL names a page once, however much it does to it; two changes of these may be of one.
        let first = out.len();
        for effect in changes_of(record).into_iter().map(Change::effect) {
            if !out[first..].contains(&effect) {
                out.push(effect);
            }
        }
        Ok(())
    }

    fn apply_page(&self, record: &Record<'_>, _: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
        let hash = mix(u64::from_le_bytes(page[..8].try_into().unwrap()), record.span.end);
        *page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&hash.to_le_bytes());
        page[4000..4008].copy_from_slice(&hash.to_le_bytes());
        Ok(())
    }

    fn apply_meta(
        &self,
        record: &Record<'_>,
        _: &MetaKey,
        value: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, RedoError> {
        let before = value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()));
        Ok(Some(mix(before, record.span.end).to_le_bytes().to_vec()))
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

pub fn environment() -> Environment {
    Environment { redo: Arc::new(TestRedo), ..Environment::default() }
}

pub fn identity(volume: VolumeId, groups: u16) -> Identity {
    let placement = Placement::new(groups).unwrap();
    Identity {
        volume,
        node: NodeId(1),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::V15,
        placement,
        groups: placement.groups().collect(),
        incarnation: volume.0 + 1,
    }
}

pub fn options() -> Options {
    Options { log_file_bytes: 64 << 10, materialize_after_bytes: 64 << 10, ..Options::default() }
}

/// A generator of numbers (SplitMix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % bound
    }
}

#[derive(Clone)]
struct Written {
    span: RecordSpan,
    links: Vec<GroupLink>,
}

/// A volume with one store, which keeps every version of everything.
pub struct Life {
    pub store: Store,
    pub history: EpochHistory,
    pub durable: RecordSpan,
    pub objects: MemoryStore,
    pub pages: BTreeSet<PageKey>,
    records: Vec<Written>,
    groups: u16,
    random: Random,
    now_ms: Cell<u64>,
    /// How often somebody began to make a snapshot.
    pub holds: Cell<u32>,
}

impl Life {
    /// A life with three writers. Of the first two a tail was cut, and both tails are in the backup.
    pub fn of_three_writers(folder: &Path, groups: u16, seed: u64) -> Life {
        let mut life = Life::begin(folder, groups, seed);
        for writer in 0..3 {
            for _ in 0..4 {
                life.write(40);
                life.upload(1, false);
            }
            if writer < 2 {
                life.write_uncertain(10);
                life.upload(2, true);
                life.recover();
            }
        }
        life
    }

    pub fn begin(folder: &Path, groups: u16, seed: u64) -> Life {
        let store = Store::create_in(&environment(), folder, identity(VOLUME, groups), options()).unwrap();
        let mut life = Life {
            store,
            history: EpochHistory::default(),
            durable: RecordSpan::NONE,
            objects: MemoryStore::default(),
            pages: BTreeSet::new(),
            records: Vec::new(),
            groups,
            random: Random(seed),
            now_ms: Cell::new(0),
            holds: Cell::new(0),
        };
        life.recover();
        life
    }

    fn placement(&self) -> Placement {
        Placement::new(self.groups).unwrap()
    }

    fn promise(&self) -> Promise {
        Promise { epoch: self.history.newest_epoch(), writer: WriterId(7) }
    }

    fn tail(&self, group: GroupId, at: Lsn) -> Lsn {
        let mut before = self.records.iter().rev().filter(|record| record.span.end <= at);
        let found = before.find(|record| record.links.iter().any(|link| link.group == group));
        found.map_or(Lsn::ZERO, |record| record.span.end)
    }

    fn tails(&self) -> Vec<GroupTail> {
        let tail = |group| GroupTail { group, last_end: self.tail(group, self.durable.end) };
        self.placement().groups().map(tail).collect()
    }

    /// What a recovery does: records that are not durable are cut.
    pub fn recover(&mut self) {
        let durable = self.durable;
        self.records.retain(|record| record.span.end <= durable.end);
        // Now and then one did not get so far as to open its epoch.
        let epoch = VolumeEpoch(self.history.newest_epoch().0 + 1 + self.random.below(2));
        self.history.push(EpochOpening {
            epoch,
            last: durable,
            server_version: ServerVersion::NEWEST_TESTED,
        });
        self.store.fence(self.promise(), &[]).unwrap();
        self.store.install(self.promise().writer, &self.history, &self.tails(), &[]).unwrap();
    }

    fn change(&mut self) -> Change {
        let relation = 16_384 + self.random.below(4) as u32;
        match self.random.below(40) {
            0 => Change::Drop { relation },
            1 | 2 => Change::Truncate { relation, blocks: self.random.below(300) as u32 },
            3..8 => Change::Counters,
            _ => Change::Page { relation, block: self.random.below(500) as u32 },
        }
    }

    /// So many records, which are not durable yet.
    pub fn write_uncertain(&mut self, count: usize) {
        let header = BatchHeader {
            volume_epoch: self.promise().epoch,
            durable: self.durable,
            ..BatchHeader::default()
        };
        let mut batch = BatchBuilder::new(&header);
        for _ in 0..count {
            let changes: Vec<Change> = (0..=self.random.below(3)).map(|_| self.change()).collect();
            let last = self.records.last().map_or(self.durable, |record| record.span);
            let padding = self.random.below(2000) as usize;
            let bytes = record_bytes(last.start, &changes, padding);
            let start = Lsn(last.end.0 + 40);
            let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
            let effects = changes.iter().map(|change| change.effect());
            let placement = self.placement();
            let groups = effects.fold(GroupSet::EMPTY, |set, effect| {
                if let Effect::Page(key) = &effect {
                    self.pages.insert(*key);
                }
                set.union(effect.groups(placement))
            });
            let groups = if groups.is_empty() { GroupSet::EMPTY.with(META_GROUP) } else { groups };
            let links =
                groups.iter().map(|group| GroupLink { group, previous_end: self.tail(group, Lsn::MAX) });
            let links: Vec<GroupLink> = links.collect();
            batch.push_form(span, RecordForm::default(), &links, &bytes);
            self.records.push(Written { span, links });
        }
        let appended = self.store.append(&batch.finish(), Origin::Writer(self.promise()), &[]).unwrap();
        assert_eq!(appended.taken, count);
        self.store.sync(appended.sequence).unwrap();
    }

    /// So many records, which are durable.
    pub fn write(&mut self, count: usize) {
        self.write_uncertain(count);
        self.durable = self.records.last().map_or(self.durable, |record| record.span);
        let header = BatchHeader {
            volume_epoch: self.promise().epoch,
            durable: self.durable,
            minimum_read_point: Lsn::ZERO,
            tails: self.tails(),
        };
        self.store.note_positions(&header, &[]).unwrap();
    }

    /// Everything that is durable gets to the backup. One who `lies` uploads what is not durable, too.
    pub fn upload(&self, node: u16, lies: bool) {
        let status = self.take_turn(&Turn { node, lies, ..self.turn() }, &self.objects);
        assert!(status.last_failure.is_none(), "{status:?}");
    }

    /// The same, and a snapshot of each of these groups that changed since its last.
    pub fn snapshot(&self, node: u16, groups: &[GroupId]) -> Status {
        let status = self
            .take_turn(&Turn { node, groups: groups.to_vec(), rule: ALWAYS, ..self.turn() }, &self.objects);
        assert!(status.last_failure.is_none() && status.snapshot_trouble.is_none(), "{status:?}");
        status
    }

    /// Of node 1 and all groups, until there is nothing more to do.
    pub fn turn(&self) -> Turn {
        Turn {
            node: 1,
            lies: false,
            groups: self.placement().groups().collect(),
            rule: Rule::default(),
            steps: 200,
            pages_fail_one_in: 0,
            log_floor: Lsn::ZERO,
            step_ms: 1,
        }
    }

    /// An uploader begins, and ends after some steps.
    pub fn take_turn(&self, turn: &Turn, objects: &dyn ObjectStore) -> Status {
        let node = NodeId(turn.node);
        let mut options = UploadOptions::new(VOLUME, self.placement(), PostgresVersion::V15, node);
        options.object_bytes = 16 << 10;
        options.snapshot_rule = turn.rule;
        options.snapshot_bytes_per_second = 0;
        let now = |ms| Now { steady_ms: ms, wall_ms: 1_800_000_000_000 + ms };
        let mut now_ms = self.now_ms.get();
        let mut uploader = Uploader::new(options, now(now_ms), u64::from(turn.node));
        let luck = RefCell::new(Random(now_ms));
        let view = View { life: self, turn, luck: &luck };
        for _ in 0..turn.steps {
            self.objects.set_clock_ms(now(now_ms).wall_ms);
            now_ms += uploader.step(now(now_ms), &view, objects).min(1000).max(turn.step_ms);
        }
        self.now_ms.set(now_ms);
        uploader.status(now(now_ms))
    }

    /// Nobody reads anything older any more: pages are made of the redo, and older versions are not there any more.
    pub fn forget(&self) {
        let header = BatchHeader {
            volume_epoch: self.promise().epoch,
            durable: self.durable,
            minimum_read_point: self.durable.end,
            tails: self.tails(),
        };
        self.store.note_positions(&header, &[]).unwrap();
        while self.store.materialize(Policy::Now).unwrap().advanced {}
    }

    /// All records that there ever were and that no recovery cut.
    pub fn spans(&self) -> Vec<RecordSpan> {
        self.records.iter().map(|record| record.span).collect()
    }

    /// Ends of all records that count.
    pub fn ends(&self) -> Vec<Lsn> {
        self.records.iter().map(|record| record.span.end).filter(|end| *end <= self.durable.end).collect()
    }
}

/// When a snapshot is made of whatever changed.
pub const ALWAYS: Rule = Rule { redo_bytes: 0, redo_percent: 0, longest_ms: u64::MAX };

/// What an uploader does.
#[derive(Clone, Debug)]
pub struct Turn {
    pub node: u16,
    /// It says that everything is durable.
    pub lies: bool,
    pub groups: Vec<GroupId>,
    pub rule: Rule,
    pub steps: usize,
    /// One in so many attempts to read pages fails; zero for none.
    pub pages_fail_one_in: u64,
    /// Redo that ends at or before this is not in the log any more.
    pub log_floor: Lsn,
    /// How long a step takes at least.
    pub step_ms: u64,
}

struct View<'a> {
    life: &'a Life,
    turn: &'a Turn,
    luck: &'a RefCell<Random>,
}

/// Pages that cannot be read now and then.
struct Unlucky<'a> {
    life: &'a Life,
    pages: StorePages<&'a Store>,
    luck: &'a RefCell<Random>,
    one_in: u64,
}

impl Unlucky<'_> {
    fn check(&self, group: GroupId) -> Result<(), SourceError> {
        if self.one_in > 0 && self.luck.borrow_mut().below(self.one_in) == 0 {
            return Err(SourceError { group, what: "bad luck".to_owned() });
        }
        Ok(())
    }
}

impl PageSource for Unlucky<'_> {
    fn size_bytes(&self, group: GroupId) -> u64 {
        self.pages.size_bytes(group)
    }

    fn hold(&self, group: GroupId) -> Result<SnapshotPoint, SourceError> {
        self.check(group)?;
        self.life.holds.set(self.life.holds.get() + 1);
        self.pages.hold(group)
    }

    fn renew(&self, group: GroupId, lsn: Lsn) -> Result<(), SourceError> {
        self.check(group)?;
        self.pages.renew(group, lsn)
    }

    fn release(&self, group: GroupId) {
        self.pages.release(group);
    }

    fn pages(
        &self,
        group: GroupId,
        lsn: Lsn,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<Vec<(PageKey, Box<PageBytes>)>, SourceError> {
        self.check(group)?;
        self.pages.pages(group, lsn, after, limit)
    }

    fn relations(&self, group: GroupId, lsn: Lsn) -> Result<Vec<(RelationFork, u32)>, SourceError> {
        self.check(group)?;
        self.pages.relations(group, lsn)
    }

    fn values(&self, group: GroupId, lsn: Lsn) -> Result<Vec<(MetaKey, Vec<u8>)>, SourceError> {
        self.check(group)?;
        self.pages.values(group, lsn)
    }
}

impl RedoSource for View<'_> {
    fn groups(&self) -> Vec<GroupId> {
        self.turn.groups.clone()
    }

    fn history(&self) -> EpochHistory {
        self.life.history.clone()
    }

    fn durable(&self, group: GroupId) -> Option<DurablePoint> {
        let epoch = self.life.history.newest_epoch();
        if self.turn.lies {
            let last = self.life.records.last()?.span.end;
            return Some(DurablePoint { epoch, volume: last, group_tail: self.life.tail(group, last) });
        }
        let known = self.life.store.with_segment(group, |segment| segment.known_durable()).unwrap();
        Some(DurablePoint { epoch, volume: known.volume.end, group_tail: known.group_tail })
    }

    fn tail(&self, group: GroupId, above: Lsn, limit_bytes: u32) -> Result<Tail, SourceError> {
        let tail = self.life.store.read_tail(group, above.max(self.turn.log_floor), limit_bytes).unwrap();
        Ok(Tail { batches: tail.batches, more: tail.more })
    }

    fn log_floor(&self, _: GroupId) -> Lsn {
        self.turn.log_floor
    }

    fn candidates(&self, _: GroupId) -> Vec<Candidate> {
        vec![Candidate { node: NodeId(self.turn.node), complete: true }]
    }

    fn pages(&self) -> Option<Box<dyn PageSource + '_>> {
        let Turn { node, pages_fail_one_in: one_in, lies, .. } = *self.turn;
        let pages = StorePages { store: &self.life.store, node: NodeId(node) };
        (!lies).then(|| Box::new(Unlucky { life: self.life, pages, luck: self.luck, one_in }) as _)
    }
}
