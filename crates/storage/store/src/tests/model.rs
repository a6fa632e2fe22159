//! Random histories against a model that keeps every version of everything.

mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use borealis_quorum::Promise;
use borealis_quorum::segment::Standing;
use borealis_types::{
    EpochOpening, GroupId, Lsn, META_GROUP, MetaKey, PageKey, RelationFork, ServerVersion, SlruKind,
    VolumeEpoch, WriterId,
};
use borealis_wire::{GroupTail, RelationSize};

use self::members::{Members, MembersCoverage};
use super::records::{
    TestEffect, Writer, Written, block, database, environment, fork, identity, mix, options, page_of,
};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::disk::{Disk, OpenMode};
use crate::pages::materialized_state::{MaterializedState, database_of, in_database};
use crate::pages::region::Region;
use crate::segment::index::slru::slru_page_is_gone;
use crate::{Environment, Identity, Origin, Policy, SegmentSource, Store, StoreError};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ value >> 31) % bound
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

/// Everything as of one LSN, pages and values as their hashes.
#[derive(Clone, Default)]
struct World {
    pages: BTreeMap<PageKey, u64>,
    relations: BTreeMap<(GroupId, RelationFork), u32>,
    meta: BTreeMap<MetaKey, u64>,
}

impl World {
    fn apply(&mut self, record: &Written, writer: &Writer) {
        let lsn = record.span.end;
        let placement = writer.placement;
        let value =
            |old: Option<u64>| Some(mix(old.unwrap_or(0), lsn)).filter(|hash| !hash.is_multiple_of(5));
        if record.links.iter().any(|link| link.group == META_GROUP) {
            let counters = value(self.meta.get(&MetaKey::Counters).copied());
            self.set_meta(MetaKey::Counters, counters);
        }
        for effect in &record.effects {
            match effect {
                TestEffect::Page(key) => {
                    if record.existing_only && !self.pages.contains_key(key) {
                        continue;
                    }
                    let hash = self.pages.entry(*key).or_default();
                    *hash = mix(*hash, lsn);
                    if let (PageKey::Block(block), false) = (key, record.existing_only) {
                        let size = self.relations.entry((placement.group_of(key), block.relation_fork)).or_default();
                        *size = (*size).max(block.block + 1);
                    }
                }
                TestEffect::Create(fork) => {
                    for group in placement.groups() {
                        self.relations.entry((group, *fork)).or_default();
                    }
                }
                TestEffect::Truncate(fork, blocks) => {
                    for group in placement.groups() {
                        if let Some(size) = self.relations.get_mut(&(group, *fork)) {
                            *size = (*size).min(*blocks);
                        }
                    }
                    self.pages.retain(|key, _| !matches!(key, PageKey::Block(block) if block.relation_fork == *fork && block.block >= *blocks));
                }
                TestEffect::Drop(locator) => self.drop_where(|fork| fork.locator == *locator),
                TestEffect::DropDatabase(gone) => {
                    self.drop_where(|fork| database_of(fork.locator) == *gone);
                    self.meta.remove(&MetaKey::RelationMap(*gone));
                }
                TestEffect::Copy(from, to) => {
                    let before = self.clone();
                    self.drop_where(|fork| database_of(fork.locator) == *to);
                    for (key, hash) in &before.pages {
                        if let PageKey::Block(original) = key
                            && database_of(original.relation_fork.locator) == *from
                        {
                            let copy = in_database(original.relation_fork, *to);
                            self.pages.insert(block(copy, original.block), *hash);
                        }
                    }
                    for ((group, fork), size) in &before.relations {
                        if database_of(fork.locator) == *from {
                            self.relations.insert((*group, in_database(*fork, *to)), *size);
                        }
                    }
                    let map = before.meta.get(&MetaKey::RelationMap(*from)).copied();
                    self.set_meta(MetaKey::RelationMap(*to), map);
                }
                TestEffect::TruncateSlru(kind, first_kept) => self.pages.retain(|key, _| {
                    !matches!(key, PageKey::Slru { kind: of, page } if of == kind && slru_page_is_gone(*kind, *page, *first_kept))
                }),
                TestEffect::Meta(key) => {
                    let hash = value(self.meta.get(key).copied());
                    self.set_meta(key.clone(), hash);
                }
                TestEffect::Unknown => unreachable!("the model makes none"),
            }
        }
    }

    fn set_meta(&mut self, key: MetaKey, hash: Option<u64>) {
        match hash {
            Some(hash) => self.meta.insert(key, hash),
            None => self.meta.remove(&key),
        };
    }

    fn drop_where(&mut self, gone: impl Fn(&RelationFork) -> bool) {
        self.pages.retain(|key, _| !matches!(key, PageKey::Block(block) if gone(&block.relation_fork)));
        self.relations.retain(|(_, fork), _| !gone(fork));
    }
}

/// What happened in all runs, to see that they happened.
#[derive(Default, Debug)]
struct Coverage {
    reads: u64,
    crashes: u64,
    power_losses: u64,
    disk_failures: u64,
    disk_failures_passed: u64,
    rounds_abandoned: u64,
    recoveries: u64,
    materialized: u64,
    moved: u64,
    copies: u64,
    pages_damaged: u64,
    pages_healed: u64,
    log_files_freed: u64,
    /// Records that came in pieces.
    cut_records: u64,
    /// Recoveries that left the first pieces of a record and not its last.
    records_cut_by_a_recovery: u64,
    /// Stores that were made of another one's segments.
    gathered: u64,
    members: MembersCoverage,
}

struct Run {
    random: Random,
    /// Which memberships there were, and what this node must have stored of them.
    members: Members,
    disk: MemoryDisk,
    /// Where the store lies: a store that is made of another one's segments lies elsewhere.
    path: PathBuf,
    store: Option<Store>,
    writer: Writer,
    /// As of each record.
    versions: Vec<(Lsn, World)>,
    /// Records that are not delivered yet.
    delayed: Vec<Written>,
    /// SCL of each group at the last sync.
    synced: BTreeMap<GroupId, Lsn>,
    coverage: Coverage,
}

const DATABASES: u64 = 3;

fn on(disk: &MemoryDisk) -> Environment {
    Environment { disk: Arc::new(disk.clone()), ..environment() }
}

impl Run {
    fn new(seed: u64) -> Run {
        let disk = MemoryDisk::default();
        let path = PathBuf::from("/node");
        let store = Store::create_in(&on(&disk), &path, identity(3), options()).unwrap();
        let members = Members::configure(&store);
        let writer = Writer::start(&store);
        Run {
            random: Random(seed),
            members,
            disk,
            path,
            store: Some(store),
            writer,
            versions: Vec::new(),
            delayed: Vec::new(),
            synced: BTreeMap::new(),
            coverage: Coverage::default(),
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn world(&self, lsn: Lsn) -> World {
        let at = self.versions.partition_point(|(version, _)| *version <= lsn);
        at.checked_sub(1).map_or_else(World::default, |at| self.versions[at].1.clone())
    }

    fn random_fork(&mut self) -> RelationFork {
        fork(1 + self.random.below(DATABASES) as u32, 16_384 + self.random.below(3) as u32)
    }

    fn random_effect(&mut self) -> TestEffect {
        match self.random.below(60) {
            0 => TestEffect::Truncate(self.random_fork(), self.random.below(300) as u32),
            1 => TestEffect::Drop(self.random_fork().locator),
            2 => {
                let from = 1 + self.random.below(DATABASES) as u32;
                let to = 1 + (from + self.random.below(DATABASES - 1) as u32) % DATABASES as u32;
                self.coverage.copies += 1;
                TestEffect::Copy(database(from), database(to))
            }
            3 => TestEffect::DropDatabase(database(1 + self.random.below(DATABASES) as u32)),
            4 => TestEffect::TruncateSlru(SlruKind::Transactions, self.random.below(4) as u32 * 32),
            5..8 => TestEffect::Create(self.random_fork()),
            8..11 => {
                TestEffect::Meta(MetaKey::RelationMap(database(1 + self.random.below(DATABASES) as u32)))
            }
            11..14 => TestEffect::Meta(MetaKey::PreparedTransaction(self.random.below(3) as u32)),
            14..18 => TestEffect::Page(PageKey::Slru {
                kind: SlruKind::Transactions,
                page: self.random.below(130) as u32,
            }),
            18..30 => {
                let fork = self.random_fork();
                TestEffect::Page(block(fork, self.random.below(600) as u32))
            }
            _ => {
                let fork = self.random_fork();
                TestEffect::Page(block(fork, self.random.below(4) as u32))
            }
        }
    }

    fn write(&mut self) {
        for _ in 0..1 + self.random.below(8) {
            let mut effects = Vec::new();
            let existing_only = self.random.chance(10);
            for _ in 0..self.random.below(4) {
                let effect = self.random_effect();
                let alone = !matches!(effect, TestEffect::Page(_) | TestEffect::Meta(_));
                let status = matches!(effect, TestEffect::Page(PageKey::Slru { .. }));
                let unreal = (existing_only && (alone || status)) || (alone && !effects.is_empty());
                if unreal || effects.contains(&effect) {
                    continue;
                }
                effects.push(effect);
                if alone {
                    break;
                }
            }
            let before = self.writer.records.len();
            self.writer.write(effects, existing_only);
            if self.random.chance(6) {
                self.writer.cut_last(2 + self.random.below(4) as usize);
                self.coverage.cut_records += 1;
            }
            for record in self.writer.records[before..].iter().cloned() {
                let mut world = self.versions.last().map_or_else(World::default, |(_, world)| world.clone());
                if record.form.part.ends_record() {
                    world.apply(&record, &self.writer);
                }
                self.versions.push((record.span.end, world));
                self.delayed.push(record);
            }
        }
    }

    fn deliver(&mut self) {
        let count = self.random.below(self.delayed.len() as u64 + 1) as usize;
        let skip = if self.random.chance(4) { self.random.below(count as u64 + 1) as usize } else { 0 };
        let batch: Vec<Written> = self.delayed.drain(skip..count).collect();
        let encoded = self.writer.batch(&batch);
        let again = self.random.chance(5);
        let origin = Origin::Writer(self.writer.promise);
        let appended = self.store().append(&encoded, origin, &[]).unwrap();
        if again {
            let repeated = self.store().append(&encoded, origin, &[]).unwrap();
            assert_eq!(repeated.taken, 0, "the same batch was taken twice");
            assert_eq!(repeated.progress, appended.progress);
        }
    }

    fn sync(&mut self) {
        for summary in self.store().summaries().unwrap() {
            self.synced.insert(summary.group, summary.segment_complete_lsn);
        }
    }

    fn raise_positions(&mut self) {
        let above = |records: &[Written], lsn: Lsn| -> Vec<borealis_types::RecordSpan> {
            records.iter().map(|record| record.span).filter(|span| span.end > lsn).collect()
        };
        // A quorum may be ahead of this store.
        let choices = above(&self.writer.records, self.writer.durable.end);
        if !choices.is_empty() {
            self.writer.durable = choices[self.random.below(choices.len() as u64) as usize];
        }
        let choices = above(&self.writer.records, self.writer.minimum_read_point);
        if let Some(choice) = choices.get(self.random.below(choices.len() as u64 + 1) as usize)
            && choice.end <= self.writer.durable.end
            && self.random.chance(2)
        {
            self.writer.minimum_read_point = choice.end;
        }
    }

    fn read(&mut self) {
        let mut summaries = self.store().summaries().unwrap();
        summaries.retain(|summary| self.is_full(summary.group));
        if summaries.is_empty() {
            return;
        }
        let summary = &summaries[self.random.below(summaries.len() as u64) as usize];
        let (from, through) = (summary.minimum_read_point, summary.readable_through);
        if from > through {
            return;
        }
        let mut lsn = Lsn(from.0 + self.random.below(through.0 - from.0 + 1));
        if self.random.chance(3) {
            lsn = through;
        }
        self.coverage.reads += 1;
        self.compare(summary.group, lsn);
    }

    fn compare(&mut self, group: GroupId, lsn: Lsn) {
        let world = self.world(lsn);
        let store = self.store();
        let here = |key: &PageKey| self.writer.placement.group_of(key) == group;
        let ever: BTreeSet<PageKey> =
            self.versions.iter().flat_map(|(_, world)| world.pages.keys()).copied().collect();
        let mut hidden = Vec::new();
        for key in ever.iter().filter(|key| here(key)) {
            let page = match store.read_page(group, key, lsn) {
                // Damage may hide a page, and never changes one.
                Err(StoreError::Corrupt { .. }) if self.coverage.pages_damaged > 0 => {
                    hidden.push((*key, None));
                    continue;
                }
                page => page.unwrap(),
            };
            let expected = world.pages.get(key).map(|hash| page_of(*hash));
            assert_eq!(page, expected, "page {key} of group {group} as of {lsn}");
        }
        let checksums = store.page_checksums(group, lsn, None, 100_000).unwrap();
        let checksums: BTreeMap<_, _> = checksums.into_iter().map(|sum| (sum.key, sum.checksum)).collect();
        let expected = world.pages.iter().filter(|(key, _)| here(key));
        let mut expected: BTreeMap<_, _> =
            expected.map(|(key, hash)| (*key, Some(crc32c::crc32c(&page_of(*hash)[..])))).collect();
        expected.extend(hidden);
        assert_eq!(checksums, expected, "checksums of group {group} as of {lsn}");
        for number in 1..=DATABASES as u32 {
            let listed = store.list_relations(group, database(number), lsn, None, 1000).unwrap();
            let expected = world
                .relations
                .iter()
                .filter(|((of, fork), _)| *of == group && database_of(fork.locator) == database(number));
            let expected: Vec<_> = expected
                .map(|((_, relation_fork), blocks)| RelationSize {
                    relation_fork: *relation_fork,
                    blocks: *blocks,
                })
                .collect();
            assert_eq!(listed, expected, "relations of database {number} in group {group} as of {lsn}");
            for size in expected {
                let blocks = store.relation_size(group, size.relation_fork, lsn).unwrap();
                assert_eq!(blocks, Some(size.blocks));
            }
        }
        if group == META_GROUP {
            let bytes = |hash: &u64| hash.to_le_bytes().to_vec();
            let counters = store.read_meta(&MetaKey::Counters, lsn).unwrap();
            assert_eq!(counters, world.meta.get(&MetaKey::Counters).map(bytes), "counters as of {lsn}");
            let listed = store.list_meta(lsn, None, 1000).unwrap();
            let expected = world.meta.iter().filter(|(key, _)| **key != MetaKey::Counters);
            let expected: Vec<_> = expected.map(|(key, hash)| (key.clone(), bytes(hash))).collect();
            let listed: Vec<_> = listed.0.into_iter().map(|(key, part)| (key, part.bytes)).collect();
            assert_eq!(listed, expected, "small values as of {lsn}");
            let pages = store.slru_pages(SlruKind::Transactions, lsn, 0, usize::MAX).unwrap();
            let expected = world.pages.keys().filter_map(|key| match key {
                PageKey::Slru { page, .. } => Some(*page),
                PageKey::Block(_) => None,
            });
            assert_eq!(pages, expected.collect::<Vec<_>>(), "status pages as of {lsn}");
        }
    }

    /// The disk fails once, in the middle of something: nothing is promised from then on, unless it was only pages that
    /// could not be written.
    fn fail_disk(&mut self) {
        let operations = [Operation::Write, Operation::Sync, Operation::SyncFolder, Operation::Rename];
        let operation = operations[self.random.below(operations.len() as u64) as usize];
        let parts = ["", "/log", "/segments", "/checkpoint.new"];
        let part = parts[self.random.below(parts.len() as u64) as usize];
        self.disk.fail(operation, part, self.random.below(4) as u32);
        let frees = !self.store().lock().left_folders.is_empty();
        let failed_before = self.coverage.disk_failures;
        let batch = self.writer.batch(&self.delayed);
        let appended = self.store().append(&batch, Origin::Writer(self.writer.promise), &[]);
        let synced = appended.and_then(|appended| self.store().sync(appended.sequence));
        let materialized = self.store().materialize(Policy::Now);
        self.coverage.disk_failures = u64::from(self.disk.heal());
        if self.coverage.disk_failures > failed_before {
            // Log that nobody needs may stay for longer; and what an abandoned round left is synced for nobody when its
            // file has to be closed.
            // Folders of segments that left may stay for longer, too.
            let may_be_silent = operation == Operation::Rename
                || (operation == Operation::Sync && part != "/log")
                || (operation == Operation::SyncFolder && frees);
            if !may_be_silent {
                assert!(synced.is_err() || materialized.is_err(), "{operation:?} failed, and nobody said so");
            }
            let is_final = self.store().failure().is_some();
            let is_checkpoint = part.contains("checkpoint") && operation != Operation::Rename;
            if part.contains("segments") || is_checkpoint {
                assert!(materialized.is_err() || may_be_silent, "{operation:?} failed in {part}");
                assert!(!is_final, "{operation:?} failed in {part}: nothing that was promised depends on it");
                self.coverage.rounds_abandoned += 1;
            }
            // The disk works again, and nobody is told.
            if !is_final {
                return self.after_passing_failure();
            }
            assert!(self.store().summaries().is_err());
            // Also when only the process is started again: what a failed sync left in the page cache looks like what
            // is on disk, and may never get there (hazard 28). The cache may drop it, too.
            let lose_power = self.random.chance(2);
            if !lose_power && self.random.chance(2) {
                self.disk.drop_cache();
            }
            self.crash(lose_power);
        }
        self.sync();
    }

    /// Nothing was promised that is not kept: what was refused is taken now, and the next round succeeds, whatever the
    /// one left that failed.
    fn after_passing_failure(&mut self) {
        self.coverage.disk_failures_passed += 1;
        self.store().summaries().expect("nothing that was promised is affected");
        if self.random.chance(3) {
            self.crash(true);
        }
        self.sync();
        self.store().materialize(Policy::Now).expect("the disk works again");
        assert_eq!((self.store().failure(), self.store().hindrance()), (None, None));
        self.sync();
        if self.random.chance(2) {
            self.crash(true);
        }
    }

    /// Kills the process, or takes the power from the machine: then what was not synced is lost, in part or in whole.
    fn crash(&mut self, lose_power: bool) {
        self.coverage.crashes += 1;
        drop(self.store.take());
        let random = &mut self.random;
        if lose_power {
            self.coverage.power_losses += 1;
            self.disk.lose_power(|bound| random.below(bound));
        }
        self.reopen();
        self.check_members();
        let summaries = self.store().summaries().unwrap();
        for summary in summaries {
            let synced = self.synced.get(&summary.group).copied().unwrap_or_default();
            let complete = summary.segment_complete_lsn;
            assert!(complete >= synced, "group {} lost what was acknowledged", summary.group);
        }
        // As a driver does when it connects again.
        self.delayed = self.writer.records.clone();
        let epoch = self.writer.promise.epoch;
        self.catch_up(epoch);
    }

    fn reopen(&mut self) {
        self.store = Some(Store::open_in(&on(&self.disk), &self.path, options()).unwrap());
    }

    /// Goes on with a store that is made of the segments of this one, as a node that replaces a lost one does.
    fn gather(&mut self) {
        if !self.writer.placement.groups().all(|group| self.is_full(group)) {
            return;
        }
        self.coverage.gathered += 1;
        let before = self.store().summaries().unwrap();
        drop(self.store.take());
        let source = |groups: &[u16]| SegmentSource {
            store: self.path.clone(),
            groups: groups.iter().copied().map(GroupId).collect(),
        };
        let number = self.coverage.gathered;
        let path = PathBuf::from(format!("/node-{number}"));
        let identity = Identity { incarnation: u128::from(1000 + number), ..identity(3) };
        let sources = [source(&[1]), source(&[0, 2])];
        Store::gather_in(&on(&self.disk), &sources, &path, identity, &options()).unwrap();
        self.path = path;
        self.reopen();
        assert_eq!(self.store().summaries().unwrap(), before, "what was promised and complete");
        self.members.gathered();
        self.check_members();
    }

    /// Brings records of earlier epochs as a peer would, so that the writer need not.
    fn catch_up(&mut self, epoch: VolumeEpoch) {
        let (old, new): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.delayed).into_iter().partition(|record| record.epoch < epoch);
        self.delayed = new;
        for run in old.chunk_by(|record, next| record.epoch == next.epoch) {
            let mut builder = borealis_wire::BatchBuilder::new(&borealis_wire::BatchHeader {
                volume_epoch: run[0].epoch,
                ..Default::default()
            });
            for record in run {
                builder.push_form(record.span, record.form, &record.links, &record.bytes);
            }
            let batch = builder.finish();
            for group in self.writer.placement.groups() {
                // A segment that came asks for nothing before it has a history.
                let known = self.store().with_segment(group, |segment| segment.history().newest_epoch());
                if known.is_ok_and(|known| known >= run[0].epoch) {
                    self.store().append(&batch, Origin::Peer(group), &[]).unwrap();
                }
            }
        }
    }

    /// A new writer truncates at some record that is not known to be durable.
    fn recover(&mut self) {
        self.coverage.recoveries += 1;
        let writer = &mut self.writer;
        let keep = writer.records.partition_point(|record| record.span.end <= writer.durable.end);
        let kept = keep + self.random.below((writer.records.len() - keep) as u64 + 1) as usize;
        let release = ServerVersion::NEWEST_TESTED.server_version_num() - self.random.below(3) as u32;
        let server_version = ServerVersion::new(release).unwrap();
        let promise = Promise {
            epoch: VolumeEpoch(writer.promise.epoch.0 + 1),
            writer: WriterId(self.random.below(1000) + 1),
        };
        let old = std::mem::replace(&mut writer.promise, promise);
        let store = self.store.as_ref().unwrap();
        store.fence(promise, &[]).unwrap();
        let mut builder = borealis_wire::BatchBuilder::new(&borealis_wire::BatchHeader {
            volume_epoch: old.epoch,
            ..Default::default()
        });
        let concerns_a_segment =
            |record: &&Written| record.links.iter().any(|link| store.standing(link.group) == Standing::Full);
        let of_old = writer.records.iter().filter(|record| record.epoch == old.epoch);
        if let Some(record) = of_old.into_iter().find(concerns_a_segment) {
            builder.push_form(record.span, record.form, &record.links, &record.bytes);
            assert!(
                store.append(&builder.finish(), Origin::Writer(old), &[]).is_err(),
                "fenced, and not refused"
            );
        }
        let inside = writer.records.get(kept).is_some_and(|record| !record.form.part.begins_record());
        self.coverage.records_cut_by_a_recovery += u64::from(inside);
        writer.records.truncate(kept);
        self.versions.truncate(kept);
        writer.durable = writer.last();
        writer.history.push(EpochOpening { epoch: promise.epoch, last: writer.durable, server_version });
        let tails: Vec<GroupTail> = writer
            .placement
            .groups()
            .map(|group| GroupTail { group, last_end: writer.tail_at(group, Lsn::MAX) })
            .collect();
        store.install(promise.writer, &writer.history, &tails, &[]).unwrap();
        for summary in store.summaries().unwrap() {
            assert!(summary.segment_complete_lsn <= writer.durable.end, "something survived the cut");
            self.synced.insert(summary.group, summary.segment_complete_lsn);
        }
        self.delayed = writer.records.clone();
        self.catch_up(promise.epoch);
    }

    /// What the store hands to peers is what it has, exactly.
    fn check_tail(&mut self) {
        let summaries = self.store().chain_summaries().unwrap();
        for summary in summaries {
            let above = Lsn(self.random.below(self.writer.last().end.0 + 1));
            let materialized = self.store().summaries().unwrap();
            let released = materialized.iter().map(|s| s.materialized_lsn).max().unwrap();
            let mut from = above.max(released);
            let mut found = Vec::new();
            loop {
                let tail = self.store().read_tail(summary.group, from, 2000).unwrap();
                for batch in &tail.batches {
                    let (header, reader) = borealis_wire::BatchReader::new(batch).unwrap();
                    for record in reader {
                        let record = record.unwrap();
                        assert!(record.span.end > from, "the tail goes back");
                        from = record.span.end;
                        found.push((header.volume_epoch, record.span, record.bytes.to_vec()));
                    }
                }
                if !tail.more {
                    break;
                }
            }
            let complete = summary.complete.end;
            let expected = self.writer.records.iter().filter(|record| {
                record.links.iter().any(|link| link.group == summary.group)
                    && record.span.end > above.max(released)
                    && record.span.end <= complete
            });
            let expected: Vec<_> =
                expected.map(|record| (record.epoch, record.span, record.bytes.clone())).collect();
            let connected: Vec<_> =
                found.iter().filter(|(_, span, _)| span.end <= complete).cloned().collect();
            assert_eq!(connected, expected);
            for (epoch, span, bytes) in found {
                let real = self.writer.records.iter().find(|record| record.span == span);
                assert!(real.is_some_and(|record| record.bytes == bytes && record.epoch == epoch));
            }
        }
    }

    fn materialize(&mut self) {
        if self.random.chance(3) {
            let floor = Lsn(self.random.below(self.writer.last().end.0 + 1));
            for group in self.writer.placement.groups() {
                self.store().set_peer_floor(group, floor);
            }
        }
        let moved = |store: &Store| store.counters.pages_moved.load(Ordering::Relaxed);
        let moved_before = moved(self.store());
        let progress = self.store().materialize(Policy::Now).unwrap();
        self.coverage.moved += moved(self.store()) - moved_before;
        self.coverage.materialized += u64::from(progress.advanced);
        self.coverage.log_files_freed += progress.log_files_freed;
        self.sync();
        self.check_regions();
        self.check_folders(true);
    }

    /// Every region that was ever used is in use or free, and not both.
    fn check_regions(&self) {
        for hosted in self.store().lock().segments.values() {
            let state = &hosted.materialized;
            let mut used: Vec<Region> = state.extents.values().map(|extent| extent.region).collect();
            used.sort_unstable();
            let taken = state.regions.all().filter(|(_, is_free)| !is_free).map(|(region, _)| region);
            assert!(taken.eq(used), "group {}", hosted.group());
            for (first, extent) in &state.extents {
                let last = extent.generations.iter().rposition(|&generation| generation != 0);
                let room = extent.region.class.pages() as usize;
                assert!(last.is_some_and(|last| last < room), "the extent of {first} in {:?}", extent.region);
            }
        }
    }

    /// A page's newest image rots on the disk.
    fn damage(&mut self) {
        let slots: Vec<(PathBuf, u64)> = {
            let state = self.store().lock();
            let of_group = state.segments.values().flat_map(|hosted| {
                let pages = hosted.materialized.extents.iter();
                let keys = pages.flat_map(|(first, extent)| MaterializedState::pages_of(first, extent));
                keys.filter_map(|key| Some(hosted.pages.file_and_offset(hosted.materialized.locate(&key)?)))
            });
            of_group.collect()
        };
        if slots.is_empty() {
            return;
        }
        let (path, offset) = &slots[self.random.below(slots.len() as u64) as usize];
        let file = self.disk.open(path, OpenMode::Write).unwrap();
        file.write_at(&[0xA5; 16], offset + self.random.below(8000)).unwrap();
        self.coverage.pages_damaged += 1;
    }

    /// Peers bring what is known to be damaged, as the model has it.
    fn heal(&mut self) {
        let newest = self.random.chance(2);
        for page in self.store().pages_to_heal(100, newest) {
            let world = self.world(page.at.lsn);
            let answer = world.pages.get(&page.key).map(|hash| page_of(*hash));
            let taken = self.store().heal_page(page.group, &page.key, page.at, answer);
            self.coverage.pages_healed += u64::from(taken);
        }
    }

    fn step(&mut self) {
        if self.random.chance(10) {
            self.store().preparation.prepare().unwrap();
        }
        match self.random.below(31) {
            24 => self.damage(),
            26 | 27 => self.change_members(),
            28 => self.vote(),
            29 | 30 => self.bring_base(),
            25 => self.heal(),
            0..7 => self.write(),
            7..13 => self.deliver(),
            13..15 => self.sync(),
            15..18 => self.raise_positions(),
            18..20 => self.read(),
            20 => self.materialize(),
            21 if self.random.chance(10) => self.gather(),
            21 => self.check_tail(),
            22 if self.random.chance(4) => self.fail_disk(),
            22 if self.random.chance(2) => {
                let lose_power = self.random.chance(2);
                self.crash(lose_power);
            }
            23 if self.random.chance(4) => self.recover(),
            _ => {}
        }
        assert_eq!(self.store().failure(), None);
        self.check_members();
    }
}

fn remember(total: &mut Coverage, run: &Coverage) {
    total.reads += run.reads;
    total.crashes += run.crashes;
    total.power_losses += run.power_losses;
    total.disk_failures += run.disk_failures;
    total.disk_failures_passed += run.disk_failures_passed;
    total.rounds_abandoned += run.rounds_abandoned;
    total.recoveries += run.recoveries;
    total.materialized += run.materialized;
    total.moved += run.moved;
    total.copies += run.copies;
    total.pages_damaged += run.pages_damaged;
    total.pages_healed += run.pages_healed;
    total.log_files_freed += run.log_files_freed;
    total.cut_records += run.cut_records;
    total.records_cut_by_a_recovery += run.records_cut_by_a_recovery;
    total.gathered += run.gathered;
    total.members.add(&run.members);
}

fn runs(seeds: std::ops::Range<u64>, steps: usize) -> Coverage {
    let mut total = Coverage::default();
    for seed in seeds {
        let mut run = Run::new(seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..steps {
                run.step();
            }
        }));
        if let Err(panic) = result {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
        remember(&mut total, &run.coverage);
    }
    total
}

#[test]
fn random_histories_read_as_the_model_does() {
    let seeds = std::env::var("BOREALIS_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let total = runs(0..seeds, 400);
    eprintln!("{total:?}");
    let Coverage {
        reads,
        crashes,
        power_losses,
        disk_failures,
        disk_failures_passed,
        rounds_abandoned,
        recoveries,
        materialized,
        moved,
        copies,
        pages_damaged,
        pages_healed,
        log_files_freed,
        cut_records,
        records_cut_by_a_recovery,
        gathered,
        members,
    } = total;
    let poisoned = disk_failures - disk_failures_passed;
    for happened in [
        reads,
        crashes,
        power_losses,
        poisoned,
        disk_failures_passed,
        rounds_abandoned,
        recoveries,
        materialized,
        moved,
        copies,
        pages_damaged,
        pages_healed,
        log_files_freed,
        cut_records,
        records_cut_by_a_recovery,
        gathered,
    ] {
        assert!(happened > 0, "the runs do not cover everything");
    }
    members.check();
}
