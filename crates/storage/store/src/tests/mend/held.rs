//! What is held, why, for how long, and that it is not forgotten; and that a read which fails once costs nothing.

use std::thread;
use std::time::{Duration, Instant};

use borealis_quorum::ChainLink;
use borealis_quorum::segment::{Installed, SegmentRecord};
use nix::libc::{EIO, EMFILE};

use super::*;
use crate::pages::held::HeldPage;
use crate::segment::hosted::Stalled;

impl Fixture {
    /// One record for a page, durable and below every read.
    fn write_page(&mut self, number: u32) {
        let first = self.writer.records.len();
        self.writer.write(vec![TestEffect::Page(page(number))], false);
        self.deliver(first);
    }

    /// Appends the records from `first` on, each in a batch of its own, all durable and below every read.
    fn deliver(&mut self, first: usize) {
        self.writer.durable = self.writer.last();
        self.writer.minimum_read_point = self.writer.durable.end;
        for record in &self.writer.records[first..] {
            let batch = self.writer.batch(std::slice::from_ref(record));
            let appended = self.store().append(&batch, Origin::Writer(self.writer.promise), &[]).unwrap();
            self.store().sync(appended.sequence).unwrap();
        }
    }

    fn held(&self) -> Vec<HeldPage> {
        let state = self.store().lock();
        state.segments.values().flat_map(|hosted| hosted.materialized.held.values().cloned()).collect()
    }
}

#[test]
fn a_read_that_fails_in_a_round_costs_no_page() {
    for (part, errno) in [("/log/", EIO), ("pages", EIO), ("/log/", EMFILE), ("pages", EMFILE)] {
        let mut fixture = Fixture::new(options());
        fixture.write(30).unwrap();
        fixture.materialize();
        fixture.write(30).unwrap();
        fixture.disk.keep_failing(Operation::Read, part, errno);
        let round = fixture.store().materialize(Policy::Now);
        assert!(matches!(round, Err(StoreError::Io { .. })), "{part}: {round:?}");
        assert_eq!(fixture.store().failure(), None);
        fixture.disk.heal();
        (0..30).for_each(|number| fixture.assert_reads(number));
        fixture.materialize();
        assert_eq!(fixture.held(), [], "{part}");
        fixture.reopen();
        (0..30).for_each(|number| fixture.assert_reads(number));
        assert_eq!(fixture.store().damage(), None);
    }
}

#[test]
fn an_extent_whose_pages_cannot_be_read_moves_when_they_can_or_when_peers_brought_them() {
    for is_for_good in [false, true] {
        let mut fixture = Fixture::new(options());
        fixture.write(4).unwrap();
        fixture.materialize();
        // The extent has to move, with pages that have no new record.
        fixture.write_page(60);
        fixture.disk.keep_failing(Operation::Read, "pages", EIO);
        assert!(fixture.store().materialize(Policy::Now).is_err());
        if is_for_good {
            let done = (0..10).any(|_| {
                fixture.heal();
                fixture.store().materialize(Policy::Now).is_ok()
            });
            assert!(done, "{:?}", fixture.store().damage());
        }
        fixture.disk.heal();
        fixture.materialize();
        assert_eq!(fixture.materialized()[0], fixture.writer.durable.end);
        fixture.reopen();
        [0, 1, 2, 3, 60].into_iter().for_each(|number| fixture.assert_reads(number));
        fixture.scrub();
        assert_eq!((fixture.held(), fixture.store().damage()), (Vec::new(), None));
    }
}

#[test]
fn a_record_in_pieces_whose_redo_fails_is_kept_whole() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    fixture.materialize();
    fixture.fault.store(FAILS, Ordering::Relaxed);
    let first = fixture.writer.records.len();
    fixture.writer.write(vec![TestEffect::Page(page(1))], false);
    fixture.writer.cut_last(3);
    fixture.deliver(first);
    fixture.write(3).unwrap();
    fixture.materialize();
    let held = fixture.held();
    assert!(matches!(&held[..], [HeldPage::Failed { steps, .. }] if steps.len() == 2), "{held:?}");
    assert_eq!(fixture.store().entries_to_repair(), []);
    // A release that can apply it.
    fixture.fault.store(WELL, Ordering::Relaxed);
    fixture.reopen();
    fixture.assert_reads(1);
    fixture.materialize();
    fixture.assert_reads(1);
}

#[test]
fn a_page_held_as_damaged_is_asked_for_after_a_restart_though_nobody_reads_it() {
    let mut fixture = Fixture::new(options());
    fixture.write(30).unwrap();
    fixture.materialize();
    fixture.damage(7);
    fixture.write(30).unwrap();
    fixture.materialize();
    fixture.reopen();
    assert!(fixture.store().damage().unwrap().contains("1 damaged pages"));
    // Nor does the scrubber take the zeros in its slot for a page.
    for hosted in fixture.store().lock().segments.values_mut() {
        hosted.troubles.pages.clear();
    }
    fixture.scrub();
    assert!(fixture.store().damage().unwrap().contains("1 damaged pages"));
    assert_eq!(fixture.heal(), 1);
    assert!(fixture.store().materialize(Policy::IfDue).unwrap().advanced);
    fixture.reopen();
    fixture.assert_reads(7);
    assert_eq!(fixture.store().damage(), None);
}

#[test]
fn the_reason_of_a_held_page_does_not_grow_from_round_to_round() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    fixture.materialize();
    fixture.damage(1);
    fixture.write(3).unwrap();
    fixture.materialize();
    let first = fixture.held();
    assert_eq!(first.len(), 1);
    for _ in 0..5 {
        fixture.write(3).unwrap();
        fixture.materialize();
    }
    assert_eq!(fixture.held(), first);
}

/// Whether redo of page 0 is refused for now.
fn assert_put_off(fixture: &mut Fixture) {
    assert_eq!(fixture.store().failure(), None, "the store goes on");
    assert!(matches!(fixture.read(0).unwrap_err().to_refusal(), Refusal::NotNow(_)));
    let first = fixture.writer.records.len();
    fixture.writer.write(vec![TestEffect::Page(page(0))], false);
    let batch = fixture.writer.batch(&fixture.writer.records[first..]);
    let refused = fixture.store().append(&batch, Origin::Writer(fixture.writer.promise), &[]).unwrap_err();
    assert!(matches!(refused.to_refusal(), Refusal::NotNow(_)), "{refused}");
    let _ = fixture.store().materialize(Policy::Now);
    let group = usize::from(fixture.group(0).0);
    assert!(fixture.materialized()[group] < fixture.writer.durable.end, "not all of it is known");
}

#[test]
fn a_record_whose_pieces_cannot_be_read_back_waits_until_they_can() {
    for errno in [EIO, EMFILE] {
        let mut fixture = Fixture::new(options());
        fixture.write(3).unwrap();
        fixture.materialize();
        let first = fixture.writer.records.len();
        fixture.writer.write(vec![TestEffect::Page(page(0))], false);
        fixture.writer.cut_last(3);
        fixture.disk.keep_failing(Operation::Read, "/log/", errno);
        fixture.deliver(first);
        assert_put_off(&mut fixture);
        fixture.disk.heal();
        fixture.deliver(fixture.writer.records.len() - 1);
        fixture.assert_reads(0);
        fixture.materialize();
        fixture.reopen();
        fixture.assert_reads(0);
        assert_eq!(fixture.store().damage(), None);
    }
}

#[test]
fn a_record_that_waited_and_cannot_be_read_back_waits_until_it_can() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    let first = fixture.writer.records.len();
    for _ in 0..2 {
        fixture.writer.write(vec![TestEffect::Page(page(0))], false);
    }
    fixture.deliver(first + 1);
    fixture.disk.keep_failing(Operation::Read, "/log/", EIO);
    let batch = fixture.writer.batch(&fixture.writer.records[first..=first]);
    fixture.store().append(&batch, Origin::Writer(fixture.writer.promise), &[]).unwrap();
    assert_put_off(&mut fixture);
    fixture.disk.heal();
    // Nobody writes: the next look for work is enough.
    fixture.store().materialize(Policy::IfDue).unwrap();
    fixture.writer.records.pop();
    fixture.assert_reads(0);
}

#[test]
fn metrics_do_not_make_others_wait_for_the_disk() {
    let fixture = Fixture::new(options());
    let store = fixture.store();
    let note = store.note.lock().unwrap();
    thread::scope(|scope| {
        let metrics = thread::Builder::new().name("metrics".to_owned());
        let metrics = metrics.spawn_scoped(scope, || store.metrics().len()).unwrap();
        thread::sleep(Duration::from_millis(100));
        assert!(store.state.try_lock().is_ok(), "the state is locked while the note is synced");
        drop(note);
        assert!(metrics.join().unwrap() > 0);
    });
}

#[test]
fn a_segment_that_a_round_left_is_tried_again_after_a_while() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    let stall = |seconds| {
        let since =
            Instant::now().checked_sub(Duration::from_secs(seconds)).expect("the machine runs longer");
        for hosted in fixture.store().lock().segments.values_mut() {
            hosted.stalled = Some(Stalled { reason: "something".to_owned(), since });
        }
    };
    stall(1);
    assert!(!fixture.store().materialize(Policy::Now).unwrap().advanced);
    assert!(fixture.store().damage().unwrap().contains("something"));
    stall(61);
    assert!(fixture.store().materialize(Policy::Now).unwrap().advanced);
    assert_eq!(fixture.store().damage(), None);
}

#[test]
fn what_failed_in_a_record_ends_with_its_last_piece() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    let first = fixture.writer.records.len();
    fixture.writer.write(vec![TestEffect::Page(page(0)), TestEffect::Unknown], false);
    fixture.writer.cut_last(3);
    for record in &fixture.writer.records[first..] {
        let batch = fixture.writer.batch(std::slice::from_ref(record));
        fixture.store().append(&batch, Origin::Writer(fixture.writer.promise), &[]).unwrap();
    }
    assert!(fixture.store().failure().is_some());
    // A recovery that knew only the first two pieces.
    let last = fixture.writer.records.last().unwrap();
    let previous_end = fixture.writer.records[first + 1].span.end;
    let link = ChainLink { previous_end, span: last.span };
    let cut = vec![SegmentRecord { link, epoch: fixture.writer.promise.epoch }];
    let group = fixture.group(0);
    let mut state = fixture.store().lock();
    state.segments.get_mut(&group).unwrap().drop_truncated(&Installed { changed: true, cut });
    assert_eq!(state.segments[&group].failure, None);
}
