//! A page that cannot be made costs that page: others go on, peers bring it back, and nothing is put off without bound.

mod held;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use borealis_redo::RedoError;
use borealis_types::{GroupId, Lsn, MetaKey, NodeId, PageBytes, PageKey};
use borealis_wal::{Effect, EffectError, Record, RecordError};
use borealis_wire::Refusal;

use super::records::{
    TestEffect, TestRedo, Writer, block, environment, fork, identity, mix, options, page_of,
};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::disk::{Disk, OpenMode};
use crate::environment::Clock;
use crate::materialize::pace::{MENDING_PAUSES_MAX, PAUSES_MAX, PIECE_PAGES};
use crate::pages::materialized_state::SlotAddress;
use crate::{
    CountersReplay, Environment, Options, Origin, Policy, RedoEngine, ScrubCursor, Store, StoreError,
};

const GROUP: GroupId = GroupId(0);
pub(super) const ROOT: &str = "/node";

/// What [`FaultyRedo`] does to the page it has something against.
const WELL: u8 = 0;
const FAILS: u8 = 1;
const PANICS: u8 = 2;

/// Redo of test records that can fail for one page.
struct FaultyRedo {
    page: PageKey,
    fault: Arc<AtomicU8>,
}

impl RedoEngine for FaultyRedo {
    fn verify(&self, bytes: &[u8], start: Lsn) -> Result<(), RecordError> {
        TestRedo.verify(bytes, start)
    }

    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
        TestRedo.effects(record, out)
    }

    fn apply_page(&self, record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
        match self.fault.load(Ordering::Relaxed) {
            PANICS if *key == self.page => panic!("a planted panic"),
            FAILS if *key == self.page => {
                let what = RedoError::Failed {
                    start: record.span.start,
                    resource_manager: record.resource_manager,
                    info: record.info,
                    key: key.to_string(),
                    what: "a planted failure",
                };
                Err(what)
            }
            _ => TestRedo.apply_page(record, key, page),
        }
    }

    fn apply_meta(
        &self,
        record: &Record<'_>,
        key: &MetaKey,
        value: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, RedoError> {
        TestRedo.apply_meta(record, key, value)
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

pub(super) fn page(number: u32) -> PageKey {
    block(fork(1, 16_384), number)
}

/// The same batch from some peers.
pub(super) fn from_peers(peers: &[u16], batch: &[u8]) -> Vec<(NodeId, Vec<u8>)> {
    peers.iter().map(|&peer| (NodeId(peer), batch.to_vec())).collect()
}

/// A store in memory, whose redo can be made to fail for page 1.
pub(super) struct Fixture {
    pub(super) disk: MemoryDisk,
    pub(super) environment: Environment,
    fault: Arc<AtomicU8>,
    pub(super) options: Options,
    pub(super) store: Option<Store>,
    pub(super) writer: Writer,
}

impl Fixture {
    pub(super) fn new(options: Options) -> Fixture {
        let (disk, fault) = (MemoryDisk::default(), Arc::new(AtomicU8::new(WELL)));
        let redo = Arc::new(FaultyRedo { page: page(1), fault: Arc::clone(&fault) });
        let environment = Environment { disk: Arc::new(disk.clone()), redo, ..environment() };
        let store = Store::create_in(&environment, Path::new(ROOT), identity(2), options.clone()).unwrap();
        let writer = Writer::start(&store);
        Fixture { disk, environment, fault, options, store: Some(store), writer }
    }

    pub(super) fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    pub(super) fn reopen(&mut self) {
        drop(self.store.take());
        let store = Store::open_in(&self.environment, Path::new(ROOT), self.options.clone());
        self.store = Some(store.unwrap());
    }

    /// One record for each of the first `pages` pages, all durable and below every read.
    pub(super) fn write(&mut self, pages: u32) -> Result<(), StoreError> {
        let first = self.writer.records.len();
        for number in 0..pages {
            self.writer.write(vec![TestEffect::Page(page(number))], false);
        }
        self.writer.durable = self.writer.last();
        self.writer.minimum_read_point = self.writer.durable.end;
        let batch = self.writer.batch(&self.writer.records[first..]);
        let appended = self.store().append(&batch, Origin::Writer(self.writer.promise), &[])?;
        self.store().sync(appended.sequence)
    }

    pub(super) fn materialize(&self) {
        self.store().materialize(Policy::Now).unwrap();
        self.store().set_peer_floor(GROUP, self.writer.durable.end);
    }

    /// The page as of the newest record, by redo of all its records.
    pub(super) fn expected(&self, key: &PageKey) -> Box<PageBytes> {
        let changes = |record: &&super::records::Written| record.effects.contains(&TestEffect::Page(*key));
        let of_page = self.writer.records.iter().filter(changes);
        page_of(of_page.fold(0, |hash, record| mix(hash, record.span.end)))
    }

    pub(super) fn group(&self, number: u32) -> GroupId {
        self.writer.placement.group_of(&page(number))
    }

    pub(super) fn read(&self, number: u32) -> Result<Option<Box<PageBytes>>, StoreError> {
        self.store().read_page(self.group(number), &page(number), self.writer.durable.end)
    }

    pub(super) fn assert_reads(&self, number: u32) {
        assert_eq!(self.read(number).unwrap(), Some(self.expected(&page(number))), "page {number}");
    }

    fn materialized(&self) -> Vec<Lsn> {
        self.store().summaries().unwrap().iter().map(|summary| summary.materialized_lsn).collect()
    }

    /// Flips bytes of both slots of a page, whichever is current.
    fn damage(&self, number: u32) {
        let group = self.group(number);
        let state = self.store().lock();
        let hosted = &state.segments[&group];
        let located = hosted.materialized.locate(&page(number)).expect("the page has a slot");
        for generation in 1..3 {
            let (path, offset) = hosted.pages.file_and_offset(SlotAddress { generation, ..located });
            let file = self.disk.open(&path, OpenMode::Write).unwrap();
            file.write_at(&[0xA5; 64], offset + 500).unwrap();
        }
    }

    /// What a peer's answer does: each page that is asked for comes as redo of all records makes it.
    fn heal(&self) -> usize {
        let wanted = self.store().pages_to_heal(100, false);
        for page in &wanted {
            assert!(page.at.lsn >= self.writer.minimum_read_point, "peers refuse to read below it");
            let expected = Some(self.expected(&page.key));
            assert!(self.store().heal_page(page.group, &page.key, page.at, expected));
        }
        wanted.len()
    }

    pub(super) fn metric(&self, name: &str) -> u64 {
        self.store().metrics().into_iter().find(|(of, _)| *of == name).expect(name).1
    }
}

#[test]
fn a_damaged_page_is_left_out_of_a_round_and_comes_back_from_a_peer() {
    let mut fixture = Fixture::new(options());
    fixture.write(300).unwrap();
    fixture.materialize();
    fixture.damage(1);
    fixture.write(300).unwrap();
    fixture.materialize();
    let newest = fixture.writer.durable.end;
    assert_eq!(fixture.materialized(), [newest; 2], "every group went on");
    for number in [0, 2, 150, 299] {
        fixture.assert_reads(number);
    }
    assert!(matches!(fixture.read(1), Err(StoreError::Corrupt { .. })));
    assert!(fixture.store().damage().unwrap().contains("1 damaged pages"));
    // The mark is in the checkpoint: the slot alone would be taken for the state that the round made.
    fixture.reopen();
    assert!(matches!(fixture.read(1), Err(StoreError::Corrupt { .. })));

    assert_eq!(fixture.heal(), 1);
    fixture.assert_reads(1);
    assert_eq!(fixture.store().damage(), None, "it can be served");
    // The volume is idle: the round that writes the page has no record to apply.
    assert!(fixture.store().materialize(Policy::IfDue).unwrap().advanced);
    assert_eq!(fixture.materialized(), [newest; 2]);
    assert!(!fixture.store().materialize(Policy::IfDue).unwrap().advanced, "once is enough");
    fixture.reopen();
    fixture.assert_reads(1);
    assert_eq!(fixture.store().damage(), None);
    fixture.write(300).unwrap();
    fixture.materialize();
    fixture.assert_reads(1);
}

#[test]
fn a_page_found_damaged_by_a_read_is_written_anew_while_the_volume_goes_on() {
    let mut fixture = Fixture::new(options());
    fixture.write(200).unwrap();
    fixture.materialize();
    fixture.damage(7);
    fixture.damage(140);
    assert!(fixture.read(7).is_err() && fixture.read(140).is_err());
    assert_eq!(fixture.heal(), 2);
    // Records that came after the LSN that peers were asked at.
    fixture.write(200).unwrap();
    fixture.assert_reads(7);
    fixture.assert_reads(140);
    fixture.materialize();
    fixture.reopen();
    fixture.assert_reads(7);
    fixture.assert_reads(140);
    assert_eq!(fixture.store().damage(), None);
}

/// Counts the pauses of rounds instead of making them.
#[derive(Debug, Default)]
struct Pauses(AtomicU32);

impl Clock for Pauses {
    fn sleep(&self, _: Duration) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_round_is_in_more_of_a_hurry_while_pages_from_peers_are_in_memory_alone() {
    let mut fixture = Fixture::new(Options { materialize_after_bytes: 8 << 10, ..options() });
    let pauses = Arc::new(Pauses::default());
    fixture.environment.clock = pauses.clone();
    fixture.reopen();
    let round = |fixture: &Fixture| {
        assert!(fixture.store().materialize(Policy::IfDue).unwrap().advanced);
        pauses.0.swap(0, Ordering::Relaxed)
    };
    fixture.write(300).unwrap();
    let pages_of = |group| (0..300).filter(|&number| fixture.group(number) == GroupId(group)).count();
    let between_pieces = [0, 1].map(|group| (pages_of(group) - 1) / PIECE_PAGES).iter().sum::<usize>() as u32;
    assert!(between_pieces > 2);
    assert_eq!(round(&fixture), between_pieces * PAUSES_MAX);
    fixture.damage(1);
    fixture.write(300).unwrap();
    assert!(fixture.read(1).is_err());
    assert_eq!(fixture.heal(), 1);
    assert_eq!(round(&fixture), between_pieces * MENDING_PAUSES_MAX);
    fixture.write(300).unwrap();
    assert_eq!(round(&fixture), between_pieces * PAUSES_MAX, "nothing is left to mend");
    fixture.reopen();
    fixture.assert_reads(1);
}

#[test]
fn an_answer_that_came_too_late_is_not_taken() {
    let mut fixture = Fixture::new(options());
    fixture.write(10).unwrap();
    fixture.materialize();
    fixture.damage(3);
    assert!(fixture.read(3).is_err());
    let wanted = fixture.store().pages_to_heal(10, false).remove(0);
    let old = Some(fixture.expected(&wanted.key));
    fixture.write(10).unwrap();
    fixture.materialize();
    let take = |at, page| fixture.store().heal_page(wanted.group, &wanted.key, at, page);
    assert!(!take(wanted.at, old), "it lacks the records that are materialized now");
    let now = fixture.store().pages_to_heal(10, true).remove(0).at;
    let other = borealis_types::ReadPoint { epoch: borealis_types::VolumeEpoch(7), ..now };
    assert!(!take(other, Some(fixture.expected(&wanted.key))), "of another stream");
    let beyond = borealis_types::ReadPoint { lsn: Lsn(now.lsn.0 + 8), ..now };
    assert!(!take(beyond, Some(fixture.expected(&wanted.key))), "a recovery might cut it");
    assert!(take(now, Some(fixture.expected(&wanted.key))));
    fixture.assert_reads(3);
}

#[test]
fn a_page_whose_redo_fails_or_panics_is_kept_as_it_was_and_others_go_on() {
    for fault in [FAILS, PANICS] {
        let mut fixture = Fixture::new(options());
        fixture.write(300).unwrap();
        fixture.materialize();
        let good = fixture.writer.durable.end;
        fixture.fault.store(fault, Ordering::Relaxed);
        for _ in 0..5 {
            fixture.write(300).unwrap();
            fixture.materialize();
        }
        assert!(fixture.materialized().iter().all(|lsn| *lsn == fixture.writer.durable.end && *lsn > good));
        assert!(
            fixture.metric("log_files") < 10,
            "the log is kept for it: {} files",
            fixture.metric("log_files")
        );
        for number in [0, 2, 299] {
            fixture.assert_reads(number);
        }
        let refused = fixture.read(1).unwrap_err();
        assert!(matches!(refused, StoreError::RedoOfPage { .. }) && refused.to_string().contains("planted"));
        assert!(fixture.store().damage().unwrap().contains("1 pages are in quarantine"));
        fixture.reopen();
        assert!(fixture.read(1).is_err(), "forgotten by a restart");
        fixture.write(300).unwrap();
        fixture.materialize();

        // A release that can apply the records.
        fixture.fault.store(WELL, Ordering::Relaxed);
        fixture.reopen();
        fixture.assert_reads(1);
        fixture.materialize();
        assert_eq!(fixture.store().damage(), None);
        fixture.reopen();
        fixture.write(300).unwrap();
        fixture.assert_reads(1);
    }
}

#[test]
fn a_new_page_whose_first_record_fails_is_found_by_those_who_drop_and_copy() {
    let mut fixture = Fixture::new(options());
    fixture.fault.store(PANICS, Ordering::Relaxed);
    fixture.write(3).unwrap();
    fixture.materialize();
    assert!(fixture.read(1).is_err());
    let group = fixture.group(1);
    let sums = fixture.store().page_checksums(group, fixture.writer.durable.end, None, 10).unwrap();
    assert!(sums.iter().any(|sum| sum.key == page(1) && sum.checksum.is_none()), "{sums:?}");
    fixture.writer.write(vec![TestEffect::Drop(fork(1, 16_384).locator)], false);
    fixture.write(0).unwrap();
    let last = fixture.writer.records.len() - 1;
    let batch = fixture.writer.batch(&fixture.writer.records[last..]);
    fixture.store().append(&batch, Origin::Writer(fixture.writer.promise), &[]).unwrap();
    fixture.materialize();
    assert_eq!(fixture.read(1).unwrap(), None);
    assert_eq!(fixture.store().damage(), None, "the page is gone, and with it what was wrong");
}

#[test]
fn records_for_pages_in_quarantine_are_bounded_and_then_appends_are_refused() {
    let mut fixture = Fixture::new(Options { quarantine_limit_bytes: 1 << 10, ..options() });
    fixture.write(300).unwrap();
    fixture.materialize();
    fixture.fault.store(FAILS, Ordering::Relaxed);
    let refused = (0..200).find_map(|_| {
        let written = fixture.write(300);
        fixture.store().materialize(Policy::Now).unwrap();
        written.err()
    });
    let refused = refused.expect("it went on taking redo without bound");
    assert!(matches!(refused, StoreError::Refused(Refusal::Failed(_))), "{refused}");
    assert!(refused.to_string().contains("no more is taken"), "{refused}");
    let held = fixture.store().lock().segments[&fixture.group(1)].materialized.held_bytes();
    assert!(held <= 1 << 10, "{held} bytes");
    assert!(fixture.metric("appends_refused_for_backlog") > 0);
}

impl Fixture {
    /// Reads everything once, in small pieces.
    pub(super) fn scrub(&self) {
        let mut cursor = ScrubCursor::default();
        for _ in 0..10_000 {
            if self.store().scrub(&mut cursor, 50_000).unwrap().pass_ended {
                return;
            }
        }
        panic!("a pass has no end");
    }
}

#[test]
fn the_scrubber_finds_what_nobody_reads() {
    let mut fixture = Fixture::new(options());
    fixture.write(300).unwrap();
    fixture.materialize();
    fixture.scrub();
    assert_eq!(fixture.store().damage(), None);
    fixture.damage(1);
    fixture.damage(150);
    fixture.scrub();
    assert!(fixture.store().damage().unwrap().contains("2 damaged pages"));
    assert_eq!(fixture.heal(), 2);
    fixture.store().materialize(Policy::IfDue).unwrap();
    fixture.scrub();
    assert_eq!(fixture.store().damage(), None);
    assert!(fixture.metric("scrub_passes") == 3 && fixture.metric("scrubbed_bytes") > 3 * 300 * 8256);
}

#[test]
fn a_damaged_log_entry_gets_its_records_again_before_it_is_made_void() {
    for inside in [-28i64, 40] {
        let mut fixture = Fixture::new(options());
        fixture.write(10).unwrap();
        fixture.write(10).unwrap();
        let location = {
            let state = fixture.store().lock();
            let first = state.batch_locations.files.values().find_map(|file| file.batches.as_ref()?.first());
            *first.expect("a batch")
        };
        let path = format!("{ROOT}/log/{:010}.log", location.position.file());
        let file = fixture.disk.open(Path::new(&path), OpenMode::Write).unwrap();
        let offset = i64::from(location.position.offset()) + inside;
        file.write_at(&[0x5A; 3], offset as u64).unwrap();
        fixture.scrub();
        let entries = fixture.store().entries_to_repair();
        assert_eq!(entries.len(), 1);
        assert!(fixture.store().damage().unwrap().contains("1 log entries"));

        assert!(!fixture.store().repair_entry(&entries[0], &[]).unwrap(), "nothing is given up");
        let some = fixture.writer.batch(&fixture.writer.records[1..20]);
        let some = from_peers(&[1, 2], &some);
        assert!(!fixture.store().repair_entry(&entries[0], &some).unwrap(), "the first record is missing");
        assert!(fixture.store().damage().is_some());
        let all = fixture.writer.batch(&fixture.writer.records);
        let one = from_peers(&[1, 1], &all);
        assert!(!fixture.store().repair_entry(&entries[0], &one).unwrap(), "nobody confirms it");
        assert!(fixture.store().repair_entry(&entries[0], &from_peers(&[1, 2], &all)).unwrap());
        assert_eq!(fixture.store().damage(), None);
        (0..10).for_each(|number| fixture.assert_reads(number));
        fixture.scrub();
        assert_eq!(fixture.store().damage(), None, "the void entry is whole");
        let tail = |fixture: &Fixture| -> usize {
            let all = [GroupId(0), GroupId(1)]
                .map(|group| fixture.store().read_tail(group, Lsn::ZERO, 1 << 20).unwrap());
            all.iter().flat_map(|tail| &tail.batches).map(|batch| batch.len()).sum()
        };
        let before = tail(&fixture);
        assert!(before > 20 * 40, "peers are served: {before} bytes");

        fixture.reopen();
        (0..10).for_each(|number| fixture.assert_reads(number));
        assert_eq!(tail(&fixture), before);
        fixture.write(10).unwrap();
        fixture.materialize();
        fixture.reopen();
        (0..10).for_each(|number| fixture.assert_reads(number));
    }
}

#[test]
fn a_disk_that_was_not_asked_is_not_taken_for_damaged() {
    let mut fixture = Fixture::new(options());
    fixture.write(10).unwrap();
    fixture.materialize();
    fixture.reopen();
    // As when the process has no file descriptor left.
    fixture.disk.fail(Operation::Open, "pages", 0);
    assert!(matches!(fixture.read(1), Err(StoreError::Io { operation: "open", .. })));
    assert_eq!(fixture.disk.heal(), 1);
    assert_eq!(fixture.store().damage(), None);
    fixture.assert_reads(1);
}
