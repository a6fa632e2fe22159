//! What is held, why, for how long, and that it is not forgotten; and that a read which fails once costs nothing.

use nix::libc::{EIO, EMFILE};

use super::*;
use crate::pages::held::HeldPage;

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
            let appended = self.store().append(&batch, Origin::Writer(self.writer.promise)).unwrap();
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
