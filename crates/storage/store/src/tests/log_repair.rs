//! A damaged log entry is replaced only when everything that it held is known and here again.

use std::path::Path;

use borealis_types::{Lsn, NodeId, Part, RecordForm};
use borealis_wire::{BatchBuilder, BatchReader, GroupLink, Refusal};

use super::mend::{Fixture, ROOT, from_peers, page};
use super::records::{TestEffect, Written, options};
use crate::disk::memory::Operation;
use crate::disk::{Disk, OpenMode};
use crate::log::batch_locations::BatchLocation;
use crate::log_repair::EntryToRepair;
use crate::{Origin, Store, StoreError};

impl Fixture {
    /// Appends the records from the one with this number on, each as a batch of its own.
    fn append_from(&self, first: usize) -> Vec<BatchLocation> {
        let append = |record: &Written| {
            let batch = self.writer.batch(std::slice::from_ref(record));
            let appended = self.store().append(&batch, Origin::Writer(self.writer.promise), &[]).unwrap();
            self.store().sync(appended.sequence).unwrap();
            let state = self.store().lock();
            *state
                .batch_locations
                .files
                .values()
                .filter_map(|file| file.batches.as_ref())
                .flatten()
                .last()
                .unwrap()
        };
        self.writer.records[first..].iter().map(append).collect()
    }

    /// Flips bytes of an entry, and returns it as the scrubber finds it.
    fn damage_entry(&self, location: BatchLocation) -> EntryToRepair {
        let path = format!("{ROOT}/log/{:010}.log", location.position.file());
        let file = self.disk.open(Path::new(&path), OpenMode::Write).unwrap();
        file.write_at(&[0x5A; 3], u64::from(location.position.offset()) + 40).unwrap();
        self.scrub();
        let mut entries = self.store().entries_to_repair();
        assert_eq!(entries.len(), 1);
        entries.remove(0)
    }

    fn first_batch(&self) -> BatchLocation {
        let state = self.store().lock();
        let first = state.batch_locations.files.values().find_map(|file| file.batches.as_ref()?.first());
        *first.expect("a batch")
    }

    /// All records, as these peers have them.
    fn all_from(&self, peers: &[u16]) -> Vec<(NodeId, Vec<u8>)> {
        from_peers(peers, &self.writer.batch(&self.writer.records))
    }

    /// The records that peers are given of the first page's group: where each starts, its form and its links.
    fn tail(&self) -> Vec<(Lsn, RecordForm, Vec<GroupLink>)> {
        let tail = self.store().read_tail(self.group(0), Lsn::ZERO, 1 << 20).unwrap();
        let records = |batch: &Vec<u8>| {
            let (_, reader) = BatchReader::new(batch).unwrap();
            reader
                .map(|record| record.unwrap())
                .map(|it| (it.span.start, it.form, it.links))
                .collect::<Vec<_>>()
        };
        tail.batches.iter().flat_map(records).collect()
    }
}

#[test]
fn pieces_in_a_damaged_entry_are_got_again() {
    for victim in 0..4 {
        let mut fixture = Fixture::new(options());
        fixture.write(3).unwrap();
        let first = fixture.writer.records.len();
        fixture.writer.write(vec![TestEffect::Page(page(0))], false);
        fixture.writer.cut_last(3);
        // Its bytes name another place than that of the entry before.
        fixture.writer.write(vec![TestEffect::Page(page(0))], false);
        let locations = fixture.append_from(first);
        fixture.write(3).unwrap();
        fixture.assert_reads(0);
        let before = fixture.tail();

        let entry = fixture.damage_entry(locations[victim]);
        assert!(!fixture.store().repair_entry(&entry, &[]).unwrap(), "entry {victim} is given up");
        assert!(fixture.store().repair_entry(&entry, &fixture.all_from(&[1, 2])).unwrap(), "entry {victim}");
        assert_eq!(fixture.store().damage(), None);
        fixture.assert_reads(0);
        assert_eq!(fixture.tail(), before, "peers are given the same, with its form");
        fixture.reopen();
        fixture.assert_reads(0);
        assert_eq!(fixture.tail(), before);
        fixture.materialize();
        fixture.reopen();
        fixture.assert_reads(0);
    }
}

#[test]
fn a_piece_whose_record_is_not_whole_is_got_again() {
    for victim in 0..2 {
        let mut fixture = Fixture::new(options());
        fixture.write(3).unwrap();
        let first = fixture.writer.records.len();
        fixture.writer.write(vec![TestEffect::Page(page(0))], false);
        fixture.writer.cut_last(3);
        let last = fixture.writer.records.pop().unwrap();
        assert_eq!(last.form.part, Part::Last);
        let locations = fixture.append_from(first);
        let entry = fixture.damage_entry(locations[victim]);
        assert!(!fixture.store().repair_entry(&entry, &[]).unwrap(), "entry {victim} is given up");
        assert!(fixture.store().repair_entry(&entry, &fixture.all_from(&[1, 2])).unwrap(), "entry {victim}");
        fixture.reopen();
        fixture.writer.records.push(last);
        fixture.append_from(fixture.writer.records.len() - 1);
        fixture.write(3).unwrap();
        fixture.assert_reads(0);
    }
}

#[test]
fn a_record_that_cannot_be_applied_is_got_again() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    let first = fixture.writer.records.len();
    fixture.writer.write(vec![TestEffect::Page(page(0)), TestEffect::Unknown], false);
    let location = fixture.append_from(first)[0];
    fixture.write(3).unwrap();
    assert!(fixture.store().failure().is_some());
    let entry = fixture.damage_entry(location);
    assert!(!fixture.store().repair_entry(&entry, &[]).unwrap(), "it is given up");
    assert!(fixture.store().repair_entry(&entry, &fixture.all_from(&[1, 2])).unwrap());
    fixture.reopen();
    assert!(fixture.store().failure().is_some(), "the record is passed over");
    assert!(fixture.read(0).is_err());
}

#[test]
fn an_entry_of_which_nothing_is_known_is_left_as_it_is() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    let location = fixture.first_batch();
    let entry = fixture.damage_entry(location);
    // As if the segments had forgotten what they took.
    let forgotten: Vec<_> = {
        let mut state = fixture.store().lock();
        state.segments.values_mut().map(|hosted| std::mem::take(&mut hosted.index)).collect()
    };
    let all = fixture.all_from(&[1, 2]);
    let refused = fixture.store().repair_entry(&entry, &all).unwrap_err();
    assert!(
        matches!(&refused, StoreError::Corrupt { .. })
            && refused.to_string().contains("nothing else is known")
    );
    assert!(fixture.store().damage().unwrap().contains("nothing else is known"), "status says so");
    for (hosted, index) in fixture.store().lock().segments.values_mut().zip(forgotten) {
        hosted.index = index;
    }
    assert!(fixture.store().repair_entry(&entry, &all).unwrap());
    fixture.reopen();
    (0..3).for_each(|number| fixture.assert_reads(number));
}

#[test]
fn a_store_whose_log_lacks_records_does_not_open() {
    let mut fixture = Fixture::new(options());
    fixture.write(3).unwrap();
    fixture.write(3).unwrap();
    let location = fixture.first_batch();
    fixture.damage_entry(location);
    fixture.store().write_checkpoint(&std::collections::BTreeMap::new()).unwrap();
    fixture.store().void_entry(location.position).unwrap();
    drop(fixture.store.take());
    let error = Store::open_in(&fixture.environment, Path::new(ROOT), fixture.options.clone()).err().unwrap();
    assert!(error.to_string().contains("the log lacks records of group"), "{error}");
}

#[test]
fn a_place_that_peers_do_not_agree_on_or_that_is_wrong_is_not_taken() {
    let mut fixture = Fixture::new(options());
    fixture.write(10).unwrap();
    fixture.materialize();
    fixture.write(10).unwrap();
    let last = {
        let state = fixture.store().lock();
        *state
            .batch_locations
            .files
            .values()
            .filter_map(|file| file.batches.as_ref())
            .flatten()
            .last()
            .unwrap()
    };
    let entry = fixture.damage_entry(last);
    let with_links = |change: &dyn Fn(&mut GroupLink)| {
        let mut builder = BatchBuilder::new(&fixture.writer.header());
        for record in &fixture.writer.records {
            let mut links = record.links.clone();
            links.iter_mut().for_each(change);
            builder.push_form(record.span, record.form, &links, &record.bytes);
        }
        builder.finish()
    };
    let wrong = with_links(&|link| link.previous_end = Lsn(link.previous_end.0.saturating_sub(8)));
    let right = with_links(&|_| {});
    let repair = |batches: &[(NodeId, Vec<u8>)]| fixture.store().repair_entry(&entry, batches).unwrap();
    assert!(!repair(&from_peers(&[1, 2], &wrong)), "the chain here says otherwise");
    let disagreeing = [from_peers(&[1], &wrong), from_peers(&[2], &right)].concat();
    assert!(!repair(&disagreeing), "one peer is not enough");
    let agreeing = [disagreeing, from_peers(&[3], &right)].concat();
    assert!(repair(&agreeing));
    fixture.reopen();
    (0..10).for_each(|number| fixture.assert_reads(number));
}

#[test]
fn without_room_for_the_records_nothing_happens() {
    let mut was_refused = false;
    for more in 0..30 {
        let mut fixture = Fixture::new(options());
        fixture.write(10).unwrap();
        (0..more).for_each(|_| fixture.write(1).unwrap());
        let entry = fixture.damage_entry(fixture.first_batch());
        fixture.disk.keep_failing(Operation::Grow, "/log/", nix::libc::ENOSPC);
        let repaired = fixture.store().repair_entry(&entry, &fixture.all_from(&[1, 2]));
        fixture.disk.heal();
        assert_eq!(fixture.store().failure(), None, "{more} more: {repaired:?}");
        if let Err(error) = repaired {
            assert!(matches!(error, StoreError::Refused(Refusal::NotNow(_))), "{error}");
            was_refused = true;
            assert!(fixture.store().repair_entry(&entry, &fixture.all_from(&[1, 2])).unwrap());
        }
        fixture.reopen();
        (0..10).for_each(|number| fixture.assert_reads(number));
    }
    assert!(was_refused, "the log never had to grow");
}

#[test]
fn a_sync_of_the_void_entry_that_fails_stops_the_store() {
    let mut fixture = Fixture::new(options());
    fixture.write(10).unwrap();
    let entry = fixture.damage_entry(fixture.first_batch());
    // The records that are appended again are synced before.
    fixture.disk.fail(Operation::Sync, "/log/", 1);
    let failed = fixture.store().repair_entry(&entry, &fixture.all_from(&[1, 2]));
    assert!(matches!(failed, Err(StoreError::Poisoned(_))), "{failed:?}");
    assert_eq!(fixture.disk.heal(), 1);
    assert!(matches!(fixture.write(1), Err(StoreError::Poisoned(_))), "the same sync was to tell of appends");
}
