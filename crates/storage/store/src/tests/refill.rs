//! A segment that no log continues gets everything as of a durable point, or stays as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use borealis_types::{GroupId, Lsn, META_GROUP, MetaKey, NodeId, PageKey, ReadPoint, SlruKind};

use super::records::{TestEffect, Writer, block, database, environment, fork, identity, options};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::{Environment, Options, Origin, Policy, Refill, Store, StoreError};

const GROUPS: u16 = 2;
const HOLDER: NodeId = NodeId(4);
const LEASE: Duration = Duration::from_secs(60);
/// Pages brought at a time: so few that ranges end inside of extents.
const RANGE: usize = 7;

fn on(disk: &MemoryDisk) -> Environment {
    Environment { disk: Arc::new(disk.clone()), ..environment() }
}

fn limits() -> Options {
    // Backlog is no reason for a round here.
    Options { materialize_after_bytes: 1 << 30, ..options() }
}

fn open(disk: &MemoryDisk) -> Store {
    Store::open_in(&on(disk), Path::new("/node"), limits()).unwrap()
}

/// A store that has everything, one that has only the beginning, and their writer.
struct Two {
    source: Store,
    lagging: Option<Store>,
    disk: MemoryDisk,
    writer: Writer,
    seed: u64,
}

impl Two {
    /// The lagging one has the first `shared` of 400 records, and some of the last, which wait.
    fn new(seed: u64, shared: usize) -> Two {
        let create = |disk: &MemoryDisk| {
            Store::create_in(&on(disk), Path::new("/node"), identity(GROUPS), limits()).unwrap()
        };
        let disk = MemoryDisk::default();
        let (source, lagging) = (create(&MemoryDisk::default()), create(&disk));
        let writer = Writer::start(&source);
        let mut two = Two { source, lagging: Some(lagging), disk, writer, seed };
        two.lagging().fence(two.writer.promise, &[]).unwrap();
        two.lagging().install(two.writer.promise.writer, &two.writer.history, &[], &[]).unwrap();
        two.write(shared);
        two.deliver(0, true);
        two.announce(true);
        two.lagging().materialize(Policy::Now).unwrap();
        two.source.materialize(Policy::Now).unwrap();
        let first = two.writer.records.len();
        two.write(300);
        two.deliver(first, false);
        two.announce(true);
        let first = two.writer.records.len();
        two.write(60);
        two.deliver(first, true);
        two
    }

    fn lagging(&self) -> &Store {
        self.lagging.as_ref().unwrap()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % bound
    }

    fn effect(&mut self) -> TestEffect {
        let relation = fork(1 + self.below(2) as u32, 16_384 + self.below(3) as u32);
        match self.below(40) {
            0 => TestEffect::Truncate(relation, self.below(200) as u32),
            1 => TestEffect::Drop(relation.locator),
            2 => TestEffect::Copy(database(1), database(3)),
            3 => TestEffect::Create(relation),
            4 => TestEffect::TruncateSlru(SlruKind::Transactions, self.below(4) as u32 * 32),
            5..9 => TestEffect::Meta(MetaKey::PreparedTransaction(self.below(3) as u32)),
            9..14 => {
                let page = self.below(130) as u32;
                TestEffect::Page(PageKey::Slru { kind: SlruKind::Transactions, page })
            }
            14..30 => TestEffect::Page(block(relation, self.below(300) as u32)),
            _ => TestEffect::Page(block(relation, self.below(8) as u32)),
        }
    }

    fn write(&mut self, count: usize) {
        for _ in 0..count {
            let effect = self.effect();
            self.writer.write(vec![effect], false);
        }
    }

    fn deliver(&self, first: usize, to_both: bool) {
        let batch = self.writer.batch(&self.writer.records[first..]);
        for store in [Some(&self.source), self.lagging.as_ref().filter(|_| to_both)].into_iter().flatten() {
            let appended = store.append(&batch, Origin::Writer(self.writer.promise), &[]).unwrap();
            store.sync(appended.sequence).unwrap();
        }
    }

    /// All is durable, and nobody reads below it.
    fn announce(&mut self, to_both: bool) {
        self.writer.durable = self.writer.last();
        self.writer.minimum_read_point = self.writer.durable.end;
        self.source.note_positions(&self.writer.header(), &[]).unwrap();
        if to_both {
            self.lagging().note_positions(&self.writer.header(), &[]).unwrap();
        }
    }

    fn pin(&self, group: GroupId, at: ReadPoint) -> Result<u64, StoreError> {
        self.source.pin(group, at, HOLDER, LEASE)
    }

    /// Brings the next range of pages; false after the last one.
    fn bring(&self, refill: &mut Refill<'_>, group: GroupId) -> Result<bool, StoreError> {
        let at = refill.at()?;
        let listed = self.source.page_checksums(group, at, refill.through().as_ref(), RANGE).unwrap();
        let pages: Vec<_> = listed
            .iter()
            .map(|sum| {
                let here = refill.has(&sum.key, sum.checksum.unwrap());
                (sum.key, (!here).then(|| self.source.read_page(group, &sum.key, at).unwrap().unwrap()))
            })
            .collect();
        let goes_on = listed.len() == RANGE;
        let through = goes_on.then(|| listed.last().unwrap().key);
        refill.take_range(through, &pages)?;
        Ok(goes_on)
    }

    fn finish(&self, refill: Refill<'_>, group: GroupId) -> Result<(), StoreError> {
        let at = refill.at()?;
        let mut relations = Vec::new();
        loop {
            let after = relations.last().map(|size: &borealis_wire::RelationSize| size.relation_fork);
            let some = self.source.list_forks(group, at, after, 3).unwrap();
            let ended = some.len() < 3;
            relations.extend(some);
            if ended {
                break;
            }
        }
        let values = if group == META_GROUP { self.values(&self.source, at) } else { Vec::new() };
        refill.finish(&relations, values)
    }

    fn values(&self, store: &Store, at: ReadPoint) -> Vec<(MetaKey, Vec<u8>)> {
        let (listed, _) = store.list_meta(at, None, 1000).unwrap();
        let keys = listed.into_iter().map(|(key, _)| key);
        let keys = keys.chain([MetaKey::Counters, MetaKey::ControlFileTemplate]);
        keys.filter_map(|key| Some((key.clone(), store.read_meta(&key, at).unwrap()?))).collect()
    }

    /// Refills a group from where the refill stands, with a pin on its point, or begins again if there is none.
    fn refill(&self, group: GroupId) -> Result<(), StoreError> {
        let Some(mut refill) = self.lagging().refill(group)? else { return Ok(()) };
        if refill.is_whole() {
            return refill.finish_whole();
        }
        if self.pin(group, refill.at()?).is_err() {
            refill.begin_again()?;
            self.pin(group, refill.at()?).unwrap();
        }
        while self.bring(&mut refill, group)? {}
        self.finish(refill, group)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.writer.placement.groups().collect()
    }

    /// What no segment of the lagging store has may be read there, and everything else is the same.
    fn check_hidden(&self, group: GroupId) {
        let summaries = self.lagging().summaries().unwrap();
        let summary = summaries.iter().find(|summary| summary.group == group).unwrap();
        assert!(summary.segment_complete_lsn < summary.known_durable_tail);
        for lsn in [summary.minimum_read_point, summary.known_durable.end] {
            let read = self.lagging().page_checksums(group, lsn, None, 10);
            assert!(matches!(read, Err(StoreError::Refused(_))), "{read:?}");
        }
    }

    /// Both stores read the same at `lsn`, or where the group's records end before it.
    fn compare(&self, lsn: Lsn) {
        let summaries = self.lagging().summaries().unwrap();
        for summary in summaries {
            let group = summary.group;
            assert!(summary.readable_through >= self.writer.tail_at(group, lsn), "group {group}");
            let at = ReadPoint::from(lsn.min(summary.readable_through));
            let pages = |store: &Store| store.page_checksums(group, at, None, 10_000).unwrap();
            assert_eq!(pages(self.lagging()), pages(&self.source), "group {group} as of {lsn}");
            let forks = |store: &Store| store.list_forks(group, at, None, 1000).unwrap();
            assert_eq!(forks(self.lagging()), forks(&self.source), "group {group} as of {lsn}");
            if group == META_GROUP {
                assert_eq!(self.values(self.lagging(), at), self.values(&self.source, at), "as of {lsn}");
            }
        }
    }

    fn complete(&self) -> BTreeMap<GroupId, Lsn> {
        let summaries = self.lagging().summaries().unwrap();
        summaries.iter().map(|summary| (summary.group, summary.segment_complete_lsn)).collect()
    }

    fn reopen(&mut self, lose_power: bool) {
        drop(self.lagging.take());
        if lose_power {
            let mut random = self.seed;
            self.disk.lose_power(|bound| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                (random >> 33) % bound
            });
            self.seed = random;
        }
        self.lagging = Some(open(&self.disk));
    }

    /// The volume goes on, and both follow it; then they are compared, also after a restart.
    fn go_on(&mut self) {
        for materializes in [false, true] {
            let first = self.writer.records.len();
            self.write(50);
            self.deliver(first, true);
            self.compare(self.writer.last().end);
            if materializes {
                self.announce(true);
                for group in self.groups() {
                    self.source.unpin(group, HOLDER);
                }
                self.source.materialize(Policy::Now).unwrap();
                assert!(self.lagging().materialize(Policy::Now).unwrap().advanced);
                self.compare(self.writer.last().end);
            }
            self.reopen(true);
            assert_eq!(
                self.complete(),
                self.groups().into_iter().map(|g| (g, self.writer.tail_at(g, Lsn::MAX))).collect()
            );
            self.compare(self.writer.last().end);
        }
    }
}

#[test]
fn a_segment_that_lacks_log_goes_on_from_a_durable_point() {
    for seed in 0..8 {
        let mut two = Two::new(seed, 40);
        for group in two.groups() {
            two.check_hidden(group);
            two.refill(group).unwrap();
            assert!(!two.lagging().is_refilling(group) && !two.lagging().lacks_durable_records(group));
        }
        // The records that waited connect.
        let tails: BTreeMap<_, _> =
            two.groups().into_iter().map(|group| (group, two.writer.tail_at(group, Lsn::MAX))).collect();
        assert_eq!(two.complete(), tails);
        two.compare(two.writer.durable.end);
        two.compare(two.writer.last().end);
        two.go_on();
    }
}

#[test]
fn an_empty_segment_is_filled_the_same_way() {
    for seed in 20..24 {
        let mut two = Two::new(seed, 0);
        for group in two.groups() {
            two.refill(group).unwrap();
        }
        two.compare(two.writer.durable.end);
        two.go_on();
    }
}

#[test]
fn a_pin_keeps_what_is_read_while_the_volume_goes_on_and_not_longer() {
    let mut two = Two::new(30, 40);
    let group = GroupId(1);
    let at = two.lagging().refill(group).unwrap().unwrap().at().unwrap();
    assert!(two.pin(group, at).unwrap() > 0);
    let before = two.source.page_checksums(group, at, None, 1000).unwrap();
    let first = two.writer.records.len();
    two.write(100);
    two.deliver(first, false);
    two.announce(false);
    assert!(two.source.materialize(Policy::Now).unwrap().advanced, "to the pin");
    let materialized = |two: &Two| two.source.summaries().unwrap()[1].materialized_lsn;
    assert_eq!(materialized(&two), at.lsn);
    assert_eq!(two.source.page_checksums(group, at, None, 1000).unwrap(), before);
    let refused = two.source.page_checksums(group, Lsn(at.lsn.0 - 1), None, 10);
    assert!(matches!(refused, Err(StoreError::Refused(_))), "older ones are gone");
    two.source.unpin(group, HOLDER);
    assert!(two.source.page_checksums(group, at, None, 10).is_err());
    assert!(two.source.materialize(Policy::Now).unwrap().advanced);
    assert!(materialized(&two) > at.lsn);
    assert!(matches!(two.pin(group, at), Err(StoreError::Refused(_))), "it is too late");
}

#[test]
fn all_pages_are_read_in_parts_as_of_a_pin_while_rounds_go_on() {
    let mut two = Two::new(31, 40);
    for group in two.groups() {
        let durable = two.source.with_segment(group, |segment| segment.known_durable()).unwrap();
        let at = ReadPoint::from(durable.volume.end);
        two.pin(group, at).unwrap();
        let sums = two.source.page_checksums(group, at, None, 10_000).unwrap();
        assert!(sums.len() > 3 * RANGE, "{} pages", sums.len());
        let mut read = Vec::new();
        loop {
            let after = read.last().map(|(key, _)| *key);
            let some = two.source.read_pages(group, at, after.as_ref(), RANGE).unwrap();
            let is_last = some.len() < RANGE;
            read.extend(some.into_iter().map(|(key, page)| (key, crc32c::crc32c(&page[..]))));
            if is_last {
                break;
            }
            let first = two.writer.records.len();
            two.write(10);
            two.deliver(first, false);
            two.announce(false);
            two.source.materialize(Policy::Now).unwrap();
        }
        let sums: Vec<_> = sums.into_iter().map(|sum| (sum.key, sum.checksum.unwrap())).collect();
        assert_eq!(read, sums, "group {group}");
        two.source.unpin(group, HOLDER);
        two.source.materialize(Policy::Now).unwrap();
        assert!(
            two.source.read_pages(group, at, None, RANGE).is_err(),
            "a part of another state is no answer"
        );
    }
}

#[test]
fn an_empty_store_begins_with_a_state_as_of_a_point_that_it_is_told() {
    let mut two = Two::new(32, 40);
    two.disk = MemoryDisk::default();
    let made = Store::create_in(&on(&two.disk), Path::new("/node"), identity(GROUPS), limits()).unwrap();
    two.lagging = Some(made);
    for group in two.groups() {
        let durable = two.source.with_segment(group, |segment| segment.known_durable()).unwrap();
        two.lagging().install_as_of(group, &two.writer.history, durable).unwrap();
        let read = two.lagging().page_checksums(group, durable.volume.end, None, 10);
        assert!(matches!(read, Err(StoreError::Refused(_))), "{read:?}");
    }
    two.reopen(true);
    for group in two.groups() {
        two.refill(group).unwrap();
    }
    two.compare(two.writer.durable.end);
    two.reopen(true);
    two.compare(two.writer.durable.end);
}

#[test]
fn a_refill_that_lost_its_point_begins_again_at_a_newer_one() {
    for seed in 40..46 {
        let mut two = Two::new(seed, 40);
        for group in two.groups() {
            let at = {
                let mut refill = two.lagging().refill(group).unwrap().unwrap();
                let at = refill.at().unwrap();
                two.pin(group, at).unwrap();
                for _ in 0..6 {
                    if !two.bring(&mut refill, group).unwrap() {
                        break;
                    }
                }
                refill.save().unwrap();
                at
            };
            two.source.unpin(group, HOLDER);
            let first = two.writer.records.len();
            two.write(80);
            two.deliver(first, false);
            two.announce(true);
            two.source.materialize(Policy::Now).unwrap();
            assert!(two.pin(group, at).is_err());
            two.check_hidden(group);
            two.refill(group).unwrap();
        }
        two.refill(GroupId(0)).unwrap();
        two.compare(two.writer.durable.end);
        two.go_on();
    }
}

#[test]
fn a_power_loss_at_any_step_costs_at_most_the_steps_since_the_last_save() {
    for steps in 0..24 {
        let mut two = Two::new(60 + steps, 30 + steps as usize);
        let complete = two.complete();
        for group in two.groups() {
            {
                let mut refill = two.lagging().refill(group).unwrap().unwrap();
                two.pin(group, refill.at().unwrap()).unwrap();
                let mut goes_on = true;
                for step in 0..steps {
                    goes_on = goes_on && two.bring(&mut refill, group).unwrap();
                    if step % 5 == 4 {
                        refill.save().unwrap();
                    }
                }
            }
            two.reopen(true);
            assert_eq!(two.complete()[&group], complete[&group], "it has what it acknowledged, and not more");
            two.check_hidden(group);
            let tail = two.lagging().read_tail(group, Lsn::ZERO, 1 << 20).unwrap();
            assert!(!tail.batches.is_empty(), "and hands it out");
            two.refill(group).unwrap();
            two.reopen(true);
        }
        two.compare(two.writer.durable.end);
        two.go_on();
    }
}

#[test]
fn a_disk_that_fails_at_any_step_makes_nothing_of_it_true_that_is_not() {
    let operations = [
        (Operation::Write, "segments"),
        (Operation::Sync, "segments"),
        (Operation::Write, "checkpoint.new"),
        (Operation::Sync, "checkpoint.new"),
        (Operation::Rename, "checkpoint"),
        (Operation::Write, "log"),
        (Operation::Sync, "log"),
    ];
    for (operation, part) in operations {
        let mut failures = 0;
        for nth in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
            let mut two = Two::new(100 + nth, 40);
            let group = GroupId((nth % u64::from(GROUPS)) as u16);
            two.disk.fail(operation, part, nth as u32);
            let refilled = two.refill(group);
            if two.disk.heal() == 0 {
                refilled.unwrap();
                break;
            }
            failures += 1;
            if two.lagging().failure().is_some() || nth % 3 == 0 {
                two.reopen(nth % 2 == 0);
            }
            for group in two.groups() {
                two.refill(group).unwrap();
            }
            two.compare(two.writer.durable.end);
            two.go_on();
        }
        assert!(failures > 0, "{operation:?} {part}");
    }
}

#[test]
fn a_sync_that_failed_is_not_made_good_by_the_next() {
    let two = Two::new(190, 40);
    let group = GroupId(0);
    {
        let mut refill = two.lagging().refill(group).unwrap().unwrap();
        two.pin(group, refill.at().unwrap()).unwrap();
        two.bring(&mut refill, group).unwrap();
        two.disk.fail(Operation::Sync, "segments", 0);
        assert!(matches!(refill.save(), Err(StoreError::Io { .. })));
        assert_eq!(two.disk.heal(), 1);
        assert!(matches!(refill.save(), Err(StoreError::Refused(_))), "nobody knows what is on disk");
        assert!(refill.take_range(None, &[]).is_err());
    }
    two.refill(group).unwrap();
    two.refill(GroupId(1)).unwrap();
    two.compare(two.writer.durable.end);
}

#[test]
fn a_refill_that_is_needed_no_more_lets_rounds_go_on() {
    let mut two = Two::new(200, 40);
    let group = GroupId(0);
    {
        let mut refill = two.lagging().refill(group).unwrap().unwrap();
        two.pin(group, refill.at().unwrap()).unwrap();
        two.bring(&mut refill, group).unwrap();
        refill.save().unwrap();
    }
    two.lagging().end_refill_if_needless(group).unwrap();
    assert!(two.lagging().is_refilling(group), "it lacks records still");
    // A peer had them after all.
    let batch = two.writer.batch(&two.writer.records);
    two.lagging().append(&batch, Origin::Writer(two.writer.promise), &[]).unwrap();
    two.lagging().end_refill_if_needless(group).unwrap();
    assert!(!two.lagging().is_refilling(group));
    two.lagging().materialize(Policy::Now).unwrap();
    two.compare(two.writer.durable.end);
    two.go_on();
}

#[test]
#[should_panic(expected = "invariant refilled-in-order is broken")]
fn pages_are_brought_in_order() {
    let two = Two::new(210, 40);
    let group = GroupId(0);
    let mut refill = two.lagging().refill(group).unwrap().unwrap();
    two.pin(group, refill.at().unwrap()).unwrap();
    two.bring(&mut refill, group).unwrap();
    let again = refill.through().unwrap();
    let _ = refill.take_range(None, &[(again, None)]);
}

#[test]
#[should_panic(expected = "invariant refilled-as-of-its-point is broken")]
fn a_segment_does_not_go_on_with_a_state_of_another_point() {
    let two = Two::new(220, 40);
    let group = GroupId(1);
    let mut refill = two.lagging().refill(group).unwrap().unwrap();
    two.pin(group, refill.at().unwrap()).unwrap();
    while two.bring(&mut refill, group).unwrap() {}
    refill.save().unwrap();
    two.lagging().lock().segments.get_mut(&group).unwrap().refilled.as_mut().unwrap().is_whole = true;
    let _ = refill.finish_whole();
}

#[test]
#[should_panic(expected = "invariant pinned-is-kept is broken")]
fn no_round_goes_beyond_a_pin() {
    let two = Two::new(230, 40);
    let lsn = two.writer.records[40].span.end;
    let mut state = two.source.lock();
    let hosted = state.segments.get_mut(&GroupId(0)).unwrap();
    let now = std::time::Instant::now();
    assert!(hosted.pins.hold(HOLDER.into(), lsn, now, now + LEASE));
    hosted.check_next(two.writer.durable.end);
}
