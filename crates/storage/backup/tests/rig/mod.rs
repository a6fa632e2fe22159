//! Six nodes of one volume with uploaders, a store that fails as it is told, and a clock that is turned by hand.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use borealis_archive::chain::{Chain, Step};
use borealis_archive::duty::Candidate;
use borealis_archive::inventory::Inventory;
use borealis_archive::known::Known;
use borealis_archive::name::Name;
use borealis_archive::plan::plan;
use borealis_archive::redo::for_each_record;
use borealis_archive::sealing::Sealing;
use borealis_archive::{history, marks};
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::store::{Action, ErrorKind, Listing, ObjectStore, ObjectStoreError, Put, inventory};
use borealis_backup::upload::{
    DurablePoint, Now, Options, PageSource, RedoSource, SourceError, Tail, Uploader,
};
use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, NodeId, Placement, PostgresVersion, RecordForm, RecordSpan,
    ServerVersion, VolumeEpoch, VolumeId,
};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink};

pub const VOLUME: VolumeId = VolumeId(42);
pub const NODES: u16 = 6;
const WALL_MS: u64 = 1_800_000_000_000;
/// How often each node takes a step, at least.
pub const TICK_MS: u64 = 100;

#[derive(Clone)]
pub struct Written {
    pub epoch: VolumeEpoch,
    pub span: RecordSpan,
    pub links: Vec<GroupLink>,
}

/// What all nodes have, and which of them have not all of it.
pub struct Volume {
    pub placement: Placement,
    pub history: EpochHistory,
    pub line: Vec<Written>,
    pub durable: Lsn,
    /// No node has records that end at or before this any more, …
    pub log_floor: Lsn,
    /// … but for these nodes, which have all.
    pub has_all: Vec<NodeId>,
    /// Nobody has records that end in this range yet.
    pub hole: Range<Lsn>,
    pub incomplete: Vec<NodeId>,
    /// A group that nobody can read.
    pub unreadable: Cell<Option<GroupId>>,
    pub record_bytes: usize,
}

impl Volume {
    pub fn new(groups: u16) -> Volume {
        let mut volume = Volume {
            placement: Placement::new(groups).expect("a few groups"),
            history: EpochHistory::default(),
            line: Vec::new(),
            durable: Lsn::ZERO,
            log_floor: Lsn::ZERO,
            has_all: Vec::new(),
            hole: Lsn::ZERO..Lsn::ZERO,
            incomplete: Vec::new(),
            unreadable: Cell::new(None),
            record_bytes: 200,
        };
        volume.open(VolumeEpoch(1));
        volume
    }

    pub fn open(&mut self, epoch: VolumeEpoch) {
        let last = self.line.last().map_or(RecordSpan::NONE, |record| record.span);
        self.history.push(EpochOpening { epoch, last, server_version: ServerVersion::NEWEST_TESTED });
    }

    fn end(&self) -> Lsn {
        self.line.last().map_or(Lsn(64), |record| record.span.end)
    }

    /// End of a group's last record at or before a position.
    pub fn tail(&self, group: GroupId, at: Lsn) -> Lsn {
        let mut of_group = self.line.iter().rev().filter(|record| record.span.end <= at);
        of_group
            .find(|record| record.links.iter().any(|link| link.group == group))
            .map_or(Lsn::ZERO, |record| record.span.end)
    }

    /// A record of these groups; it is durable at once.
    pub fn write(&mut self, groups: &[u16]) {
        self.write_uncertain(groups);
        self.durable = self.end();
    }

    /// A record that is not durable.
    pub fn write_uncertain(&mut self, groups: &[u16]) {
        let start = self.end();
        let end = Lsn(start.0 + self.record_bytes as u64).align_up();
        let link = |&group: &u16| {
            let group = GroupId(group);
            GroupLink { group, previous_end: self.tail(group, Lsn::MAX) }
        };
        let links = groups.iter().map(link).collect();
        self.line.push(Written {
            epoch: self.history.newest_epoch(),
            span: RecordSpan { start, end },
            links,
        });
    }

    /// A recovery: what is not durable is cut.
    pub fn recover(&mut self) {
        let durable = self.durable;
        self.line.retain(|record| record.span.end <= durable);
        self.open(VolumeEpoch(self.history.newest_epoch().0 + 1));
    }
}

/// The volume as one node has it.
struct View<'a> {
    volume: &'a Volume,
    node: NodeId,
}

impl RedoSource for View<'_> {
    fn groups(&self) -> Vec<GroupId> {
        self.volume.placement.groups().collect()
    }

    fn history(&self) -> EpochHistory {
        self.volume.history.clone()
    }

    fn durable(&self, group: GroupId) -> Option<DurablePoint> {
        let (epoch, volume) = (self.volume.history.newest_epoch(), self.volume.durable);
        Some(DurablePoint { epoch, volume, group_tail: self.volume.tail(group, volume) })
    }

    fn tail(&self, group: GroupId, above: Lsn, limit_bytes: u32) -> Result<Tail, SourceError> {
        if self.volume.unreadable.get() == Some(group) {
            return Err(SourceError { group, what: "its log is damaged".to_owned() });
        }
        let above = above.max(self.log_floor(group));
        let first = self.volume.line.partition_point(|record| record.span.end <= above);
        let hole = &self.volume.hole;
        let is_of = |record: &&Written| {
            record.links.iter().any(|link| link.group == group) && !hole.contains(&record.span.end)
        };
        let (mut bytes, mut more, mut batches) = (0, false, Vec::new());
        let records: Vec<&Written> = self.volume.line[first..].iter().filter(is_of).collect();
        let count = records
            .iter()
            .take_while(|_| {
                more = bytes >= limit_bytes as usize;
                bytes += self.volume.record_bytes;
                !more
            })
            .count();
        for run in records[..count].chunk_by(|one, next| one.epoch == next.epoch) {
            let header = BatchHeader { volume_epoch: run[0].epoch, ..BatchHeader::default() };
            let mut batch = BatchBuilder::new(&header);
            for record in run {
                // Bytes that do not shrink.
                let mut value = record.span.end.0;
                let bytes: Vec<u8> = std::iter::repeat_with(|| {
                    value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (value >> 56) as u8
                })
                .take(self.volume.record_bytes)
                .collect();
                batch.push_form(record.span, RecordForm::default(), &record.links, &bytes);
            }
            batches.push(batch.finish());
        }
        Ok(Tail { batches, more })
    }

    fn log_floor(&self, _: GroupId) -> Lsn {
        if self.volume.has_all.contains(&self.node) { Lsn::ZERO } else { self.volume.log_floor }
    }

    fn candidates(&self, _: GroupId) -> Vec<Candidate> {
        let candidate = |node| Candidate {
            node: NodeId(node),
            complete: !self.volume.incomplete.contains(&NodeId(node)),
        };
        (1..=NODES).map(candidate).collect()
    }

    fn pages(&self) -> Option<Box<dyn PageSource + '_>> {
        None
    }
}

/// A store that fails as it is told.
#[derive(Debug, Default)]
pub struct FaultyStore {
    pub inner: MemoryStore,
    /// Everything fails like this.
    pub failing: Mutex<Option<ErrorKind>>,
    /// One in so many requests fails; zero for none. Half of those that make an object have made it.
    pub one_in: Mutex<u64>,
    pub requests: Mutex<u64>,
}

impl FaultyStore {
    fn fails(&self, action: Action, key: &str) -> Result<(), ObjectStoreError> {
        let mut requests = self.requests.lock().expect("no panic");
        *requests += 1;
        let failing = *self.failing.lock().expect("no panic");
        let one_in = *self.one_in.lock().expect("no panic");
        // Multiplicative hashing: every request its own luck, the same on every run.
        let luck = (*requests).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let by_luck = (one_in > 0 && luck.is_multiple_of(one_in.max(1))).then_some(ErrorKind::Down);
        match failing.or(by_luck) {
            None => Ok(()),
            Some(kind) => {
                Err(ObjectStoreError { kind, action, key: key.to_owned(), what: "as it was told".to_owned() })
            }
        }
    }
}

impl ObjectStore for FaultyStore {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        let failed = self.fails(Action::Make, key);
        let answer_is_lost = failed.is_err()
            && self.failing.lock().expect("no panic").is_none()
            && self.requests.lock().expect("no panic").is_multiple_of(2);
        if failed.is_ok() || answer_is_lost {
            let put = self.inner.put_new(key, bytes);
            return failed.and(put);
        }
        failed.map(|()| Put::Made)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.fails(Action::Read, key)?;
        self.inner.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        self.fails(Action::List, prefix)?;
        self.inner.list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.fails(Action::Delete, key)?;
        self.inner.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

pub struct Rig {
    pub volume: Volume,
    pub store: FaultyStore,
    pub uploaders: RefCell<BTreeMap<NodeId, (Uploader, u64)>>,
    pub now_ms: u64,
    pub sealing: Sealing,
}

impl Rig {
    pub fn new(groups: u16) -> Rig {
        Rig::with(groups, |_| {})
    }

    pub fn with(groups: u16, change: impl Fn(&mut Options)) -> Rig {
        let rig = Rig {
            volume: Volume::new(groups),
            store: FaultyStore::default(),
            uploaders: RefCell::default(),
            now_ms: 0,
            sealing: Sealing::Plain,
        };
        for node in (1..=NODES).map(NodeId) {
            rig.start(node, &change);
        }
        rig
    }

    pub fn start(&self, node: NodeId, change: &impl Fn(&mut Options)) {
        let mut options = Options::new(VOLUME, self.volume.placement, PostgresVersion::V15, node);
        options.sealing = self.sealing.clone();
        change(&mut options);
        let uploader = Uploader::new(options, self.now(), u64::from(node.0));
        self.uploaders.borrow_mut().insert(node, (uploader, self.now_ms));
    }

    pub fn stop(&self, node: NodeId) {
        self.uploaders.borrow_mut().remove(&node);
    }

    pub fn now(&self) -> Now {
        Now { steady_ms: self.now_ms, wall_ms: WALL_MS + self.now_ms }
    }

    /// Time passes, and every uploader does what is due.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += TICK_MS;
            self.store.inner.set_clock_ms(WALL_MS + self.now_ms);
            let now = self.now();
            for (&node, (uploader, due_ms)) in self.uploaders.borrow_mut().iter_mut() {
                let view = View { volume: &self.volume, node };
                // At once, a few times: the clock stands still meanwhile.
                for _ in 0..50 {
                    if *due_ms > self.now_ms {
                        break;
                    }
                    *due_ms = self.now_ms + uploader.step(now, &view, &self.store);
                }
            }
        }
    }

    pub fn inventory(&self) -> Inventory {
        inventory(&self.store.inner, VOLUME).expect("memory")
    }

    pub fn known(&self, inventory: &Inventory) -> Known {
        let get = |name: Name| self.store.inner.get(&name.key(VOLUME)).expect("it is listed");
        let newest = inventory.histories().last();
        let history = newest.map_or_else(EpochHistory::default, |name| {
            history::decode(&get(Name::History(name)), VOLUME, &name, &self.sealing).expect("sound")
        });
        let marks = inventory.marks().map(|name| {
            (name, marks::decode(&get(Name::Marks(name)), VOLUME, &name, &self.sealing).expect("sound"))
        });
        Known { placement: self.volume.placement, history, marks: marks.collect() }
    }

    /// The newest point that can be restored, and is, with the records that the volume kept to there.
    pub fn newest_restorable(&self) -> Lsn {
        let inventory = self.inventory();
        let known = self.known(&inventory);
        let points = borealis_archive::restorable::restorable(&inventory, &known);
        let Some(newest) = points.at_or_below(Lsn::MAX) else { return Lsn::ZERO };
        self.restore(&inventory, &known, newest);
        newest
    }

    pub fn restore(&self, inventory: &Inventory, known: &Known, point: Lsn) {
        let plan = plan(inventory, known, point).expect("restorable");
        for group in &plan.groups {
            let mut chain = Chain::new(group.group, Lsn::ZERO);
            let mut restored = Vec::new();
            for redo in &group.redo {
                let bytes = self.store.inner.get(&Name::Redo(redo.name).key(VOLUME)).expect("it is listed");
                for_each_record(&bytes, VOLUME, &redo.name, &self.sealing, |record| {
                    if record.span.end <= redo.through && chain.take(record).expect("no gap") == Step::Next {
                        restored.push((redo.name.epoch, record.span));
                    }
                })
                .expect("sound");
            }
            let is_of = |record: &&Written| record.links.iter().any(|link| link.group == group.group);
            let line = self.volume.line.iter().filter(is_of).filter(|record| record.span.end <= point);
            let expected: Vec<_> = line.map(|record| (record.epoch, record.span)).collect();
            assert_eq!(restored, expected, "group {} at {point}", group.group);
        }
    }

    /// Nodes whose redo is in the store, by group.
    pub fn uploaders_of(&self, group: u16, after: Lsn) -> Vec<NodeId> {
        let inventory = self.inventory();
        let redo = inventory.redo(GroupId(group)).filter(|redo| redo.last_end > after);
        let mut nodes: Vec<NodeId> = redo.map(|redo| redo.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}
