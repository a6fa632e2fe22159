//! A volume's life and what its nodes uploaded of it, from a seed: epochs, records, recoveries that cut, peers that overlap, page
//! snapshots, marks, and fenced writers' tails that should never have been uploaded.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::history;
use borealis_archive::inventory::{Inventory, Stored};
use borealis_archive::known::Known;
use borealis_archive::manifest::{Entry, ManifestBuilder, for_each_entry};
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::{ManifestName, Name, PagesName, RedoName};
use borealis_archive::pages::{ExtentPages, PagesBuilder};
use borealis_archive::plan::Plan;
use borealis_archive::redo::{RedoBuilder, for_each_record};
use borealis_archive::sealing::Sealing;
use borealis_types::{
    BlockKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, NodeId, PAGE_SIZE, PageKey, Placement,
    RecordForm, RecordSpan, RelationFork, RelationLocator, ServerVersion, VolumeEpoch, VolumeId,
};
use borealis_wire::{BatchRecord, GroupLink, GroupTail};

pub const VOLUME: VolumeId = VolumeId(77);
pub const FIRST_MS: u64 = 1_000_000;
pub const STEP_MS: u64 = 500;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let value = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ value >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    pub epoch: VolumeEpoch,
    pub span: RecordSpan,
    pub links: Vec<GroupLink>,
}

impl Written {
    pub fn link(&self, group: GroupId) -> Option<GroupLink> {
        self.links.iter().copied().find(|link| link.group == group)
    }
}

pub struct World {
    pub placement: Placement,
    pub history: EpochHistory,
    /// Every record that is still there, in order.
    pub line: Vec<Written>,
    pub durable: Lsn,
    pub objects: BTreeMap<Name, (Vec<u8>, u64)>,
    pub clock_ms: u64,
    pub fenced_tails: BTreeSet<Name>,
    uploaded: BTreeMap<GroupId, Lsn>,
}

fn last_end(line: &[Written]) -> Lsn {
    line.last().map_or(Lsn::ZERO, |record| record.span.end)
}

impl World {
    pub fn new(random: &mut Random) -> World {
        let placement = Placement::new(1 + random.below(3) as u16).expect("at most three groups");
        let mut world = World {
            placement,
            history: EpochHistory::default(),
            line: Vec::new(),
            durable: Lsn::ZERO,
            objects: BTreeMap::new(),
            clock_ms: FIRST_MS,
            fenced_tails: BTreeSet::new(),
            uploaded: placement.groups().map(|group| (group, Lsn::ZERO)).collect(),
        };
        let epochs = 1 + random.below(4);
        for number in 1..=epochs {
            world.live_through(VolumeEpoch(number * 2), random, number < epochs);
        }
        world.settle(random);
        world
    }

    /// An epoch: an opening, writing and uploading, and if there is a next one, the cut.
    fn live_through(&mut self, epoch: VolumeEpoch, random: &mut Random, is_cut: bool) {
        let last = self.line.last().map_or(RecordSpan::NONE, |record| record.span);
        self.history.push(EpochOpening { epoch, last, server_version: ServerVersion::NEWEST_TESTED });
        let (name, bytes) = history::encode(VOLUME, &self.history, &Sealing::Plain);
        self.put(Name::History(name), bytes);
        for _ in 0..random.below(12) {
            self.clock_ms += STEP_MS;
            for _ in 0..random.below(5) {
                self.write(epoch, random);
            }
            let candidates: Vec<Lsn> =
                self.line.iter().map(|record| record.span.end).filter(|end| *end >= self.durable).collect();
            if !candidates.is_empty() {
                self.durable = candidates[random.below(candidates.len() as u64) as usize];
            }
            self.upload_something(random);
        }
        if is_cut {
            if random.one_in(2) {
                self.upload_fenced_tail(epoch, random);
            }
            let kept = self.line.iter().filter(|record| record.span.end <= self.durable).count();
            let length = kept + random.below((self.line.len() - kept + 1) as u64) as usize;
            self.line.truncate(length);
            self.durable = last_end(&self.line);
        }
    }

    fn write(&mut self, epoch: VolumeEpoch, random: &mut Random) {
        let start = Lsn(last_end(&self.line).0.max(64) + random.below(3) * 8);
        let end = Lsn(start.0 + 32 + random.below(4) * 8);
        let mut groups: BTreeSet<u16> = BTreeSet::new();
        for _ in 0..=random.below(2) {
            groups.insert(random.below(u64::from(self.placement.group_count())) as u16);
        }
        let links = groups.into_iter().map(|group| {
            let group = GroupId(group);
            GroupLink { group, previous_end: self.tail(group, Lsn::MAX) }
        });
        let links = links.collect();
        self.line.push(Written { epoch, span: RecordSpan { start, end }, links });
    }

    /// End of a group's last record at or before a position.
    pub fn tail(&self, group: GroupId, at: Lsn) -> Lsn {
        let mut before =
            self.line.iter().filter(|record| record.span.end <= at && record.link(group).is_some());
        before.next_back().map_or(Lsn::ZERO, |record| record.span.end)
    }

    fn put(&mut self, name: Name, bytes: Vec<u8>) {
        self.objects.entry(name).or_insert((bytes, self.clock_ms));
    }

    fn upload_something(&mut self, random: &mut Random) {
        for group in self.placement.groups() {
            let node = NodeId(1 + random.below(3) as u16);
            if random.one_in(2) {
                let back = if random.one_in(3) { 1 + random.below(4) as usize } else { 0 };
                self.upload(group, node, back);
            }
            if random.one_in(6) {
                self.snapshot(group, node);
            }
        }
        if random.one_in(2) {
            let all: Vec<GroupId> = self.placement.groups().collect();
            let some: Vec<GroupId> = all.into_iter().filter(|_| !random.one_in(4)).collect();
            self.mark(NodeId(1), &some);
        }
    }

    /// Uploads what is durable and not there yet, and `back` records before it, an object for each epoch.
    fn upload(&mut self, group: GroupId, node: NodeId, back: usize) {
        let from = self.uploaded[&group];
        let of_group: Vec<Written> =
            self.line.iter().filter(|record| record.link(group).is_some()).cloned().collect();
        let mut first = of_group.partition_point(|record| record.span.end <= from);
        let last = of_group.partition_point(|record| record.span.end <= self.durable);
        if first >= last {
            return;
        }
        for _ in 0..back {
            if first > 0 && of_group[first - 1].epoch == of_group[first].epoch {
                first -= 1;
            }
        }
        for run in of_group[first..last].chunk_by(|one, next| one.epoch == next.epoch) {
            // Only the last object says that the group is complete beyond its own last record.
            let through = if run.last() == of_group[..last].last() { self.durable } else { Lsn::ZERO };
            let (name, bytes) = object(group, node, run, through);
            self.put(Name::Redo(name), bytes);
        }
        self.uploaded.insert(group, of_group[last - 1].span.end);
    }

    /// A writer's records that nobody acknowledged, which no node should upload.
    fn upload_fenced_tail(&mut self, epoch: VolumeEpoch, random: &mut Random) {
        for group in self.placement.groups() {
            let of_group =
                self.line.iter().filter(|record| record.link(group).is_some() && record.epoch == epoch);
            let run: Vec<Written> = of_group.cloned().collect();
            if run.is_empty() {
                continue;
            }
            let first = random.below(run.len() as u64) as usize;
            let (name, bytes) = object(group, NodeId(4), &run[first..], Lsn::ZERO);
            self.fenced_tails.insert(Name::Redo(name));
            self.put(Name::Redo(name), bytes);
        }
    }

    fn snapshot(&mut self, group: GroupId, node: NodeId) {
        let (lsn, epoch) = (self.durable, self.history.newest_epoch());
        if lsn == Lsn::ZERO {
            return;
        }
        // Some page that is the group's. It says as of when it is.
        let key = (16384..)
            .map(block)
            .find(|key| self.placement.group_of(key) == group)
            .expect("groups have pages");
        let mut extent = ExtentPages::new(&key);
        let mut page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&lsn.0.to_le_bytes());
        assert!(extent.push(&key, &page));
        let mut pages = PagesBuilder::new(VOLUME, group, node, epoch, lsn);
        assert!(pages.push(&extent));
        let (pages, bytes, placed) = pages.finish(&Sealing::Plain).expect("an extent");
        self.put(Name::Pages(pages), bytes);
        let tail = self.tail(group, lsn);
        let last = RecordSpan { start: Lsn(lsn.0 - 1), end: lsn };
        let mut manifest = ManifestBuilder::new(VOLUME, group, node, epoch, (last, tail));
        manifest.push(&Entry::Object(pages)).expect("first");
        let (first, content) = (extent.first(), extent.content());
        let entry = Entry::Extent { first, object: 0, block: placed[0].block, content };
        manifest.push(&entry).expect("in the object before it");
        let (manifest, bytes) = manifest.finish(&Sealing::Plain).expect("whole");
        self.put(Name::Manifest(manifest), bytes);
    }

    fn mark(&mut self, node: NodeId, groups: &[GroupId]) {
        let durable = self.durable;
        let tails = groups.iter().map(|&group| GroupTail { group, last_end: self.tail(group, durable) });
        let epoch = self.history.newest_epoch();
        let mark = Mark { clock_ms: self.clock_ms, epoch, durable, tails: tails.collect() };
        let (name, bytes) = marks::encode(VOLUME, node, &[mark], &Sealing::Plain).expect("a mark");
        self.put(Name::Marks(name), bytes);
    }

    /// A mark of what is durable, at some time of a node's clock.
    pub fn late_mark(&self, clock_ms: u64) -> (Name, Vec<u8>) {
        let durable = self.durable;
        let groups = self.placement.groups();
        let tails = groups.map(|group| GroupTail { group, last_end: self.tail(group, durable) });
        let epoch = self.history.newest_epoch();
        let mark = Mark { clock_ms, epoch, durable, tails: tails.collect() };
        let (name, bytes) = marks::encode(VOLUME, NodeId(1), &[mark], &Sealing::Plain).expect("a mark");
        (Name::Marks(name), bytes)
    }

    /// Everything that is durable is uploaded.
    fn settle(&mut self, random: &mut Random) {
        self.clock_ms += STEP_MS;
        for group in self.placement.groups() {
            self.upload(group, NodeId(1 + random.below(3) as u16), 0);
        }
        let all: Vec<GroupId> = self.placement.groups().collect();
        self.mark(NodeId(1), &all);
    }

    pub fn inventory(&self) -> Inventory {
        let listing = self.objects.iter().map(|(name, (bytes, modified_ms))| {
            (name.key(VOLUME), Stored { bytes: bytes.len() as u64, modified_ms: *modified_ms })
        });
        let inventory = Inventory::of(VOLUME, listing);
        assert!(inventory.strangers().is_empty());
        inventory
    }

    /// What a reader of the objects of an inventory knows.
    pub fn known(&self, inventory: &Inventory) -> Known {
        let bytes = |name: &Name| &self.objects[name].0[..];
        let newest = inventory.histories().last();
        let history = newest.map_or_else(EpochHistory::default, |name| {
            history::decode(bytes(&Name::History(name)), VOLUME, &name, &Sealing::Plain).expect("sound")
        });
        let marks = inventory.marks().map(|name| {
            (name, marks::decode(bytes(&Name::Marks(name)), VOLUME, &name, &Sealing::Plain).expect("sound"))
        });
        Known { placement: self.placement, history, marks: marks.collect() }
    }

    pub fn references(&self, inventory: &Inventory) -> BTreeMap<ManifestName, BTreeSet<PagesName>> {
        let manifests = self.placement.groups().flat_map(|group| inventory.manifests(group));
        manifests.map(|name| (name, self.pages_of(&name))).collect()
    }

    fn pages_of(&self, name: &ManifestName) -> BTreeSet<PagesName> {
        let mut pages = BTreeSet::new();
        let bytes = &self.objects[&Name::Manifest(*name)].0;
        for_each_entry(bytes, VOLUME, name, &Sealing::Plain, |entry| {
            if let Entry::Object(name) = entry {
                pages.insert(name);
            }
        })
        .expect("sound");
        pages
    }

    /// Follows a plan with the bytes of its objects. The result is the records that are kept to the point, no more and no less, or this panics.
    pub fn restore(&self, plan: &Plan, inventory: &Inventory) {
        for group in &plan.groups {
            let (from, mut chain) = match group.base {
                None => (Lsn::ZERO, borealis_archive::chain::Chain::new(group.group, Lsn::ZERO)),
                Some(base) => {
                    for pages in self.pages_of(&base) {
                        assert!(inventory.get(&Name::Pages(pages)).is_some(), "pages of {base:?} are gone");
                    }
                    (base.lsn, borealis_archive::chain::Chain::new(base.group, base.tail_end))
                }
            };
            let mut restored = Vec::new();
            for redo in &group.redo {
                assert!(inventory.get(&Name::Redo(redo.name)).is_some());
                let bytes = &self.objects[&Name::Redo(redo.name)].0;
                for_each_record(bytes, VOLUME, &redo.name, &Sealing::Plain, |record| {
                    if record.span.end <= redo.through {
                        let step = chain.take(record).expect("a plan has no gap");
                        if step == borealis_archive::chain::Step::Next {
                            restored.push((redo.name.epoch, record.span));
                        }
                    }
                })
                .expect("sound");
            }
            let expected: Vec<(VolumeEpoch, RecordSpan)> = self
                .line
                .iter()
                .filter(|record| record.link(group.group).is_some())
                .filter(|record| record.span.end > from && record.span.end <= plan.point)
                .map(|record| (record.epoch, record.span))
                .collect();
            assert_eq!(restored, expected, "group {} at {}", group.group, plan.point);
        }
    }
}

fn block(relation: u32) -> PageKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation };
    PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block: 0 })
}

fn object(group: GroupId, node: NodeId, run: &[Written], through: Lsn) -> (RedoName, Vec<u8>) {
    let previous = run[0].link(group).expect("of the group").previous_end;
    let mut builder = RedoBuilder::new(VOLUME, group, node, run[0].epoch, previous);
    for record in run {
        let bytes = vec![record.span.end.0 as u8; (record.span.end.0 - record.span.start.0) as usize];
        let (span, links) = (record.span, record.links.clone());
        let record = BatchRecord { span, links, form: RecordForm::default(), bytes: &bytes };
        builder.push(run[0].epoch, &record).expect("the next one");
    }
    builder.finish(through, &Sealing::Plain).expect("records")
}
