//! What passes with its cause: no descriptors, no space, a nearly full disk. Nothing of it may be final.

use std::path::Path;
use std::sync::Arc;

use borealis_quorum::Promise;
use borealis_types::{GroupId, VolumeEpoch, WriterId};
use borealis_wire::Refusal;
use nix::libc::{EIO, EMFILE, ENOSPC};

use super::records::{TestEffect, Writer, Written, block, environment, fork, identity, options};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::{Environment, Options, Origin, Policy, Store, StoreError};

const PATH: &str = "/node";

struct OnDisk {
    disk: MemoryDisk,
    environment: Environment,
    store: Store,
    writer: Writer,
}

impl OnDisk {
    fn new(options: Options) -> OnDisk {
        let disk = MemoryDisk::default();
        let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
        let store = Store::create_in(&environment, Path::new(PATH), identity(1), options).unwrap();
        let writer = Writer::start(&store);
        OnDisk { disk, environment, store, writer }
    }

    /// The next record of block `number`, not delivered.
    fn record(&mut self, number: u32) -> Written {
        self.writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false).clone()
    }

    fn deliver(&self, record: &Written) -> Result<(), StoreError> {
        let batch = self.writer.batch(std::slice::from_ref(record));
        let appended = self.store.append(&batch, Origin::Writer(self.writer.promise), &[])?;
        self.store.sync(appended.sequence)
    }

    fn make_all_durable(&mut self) {
        self.writer.durable = self.writer.last();
        self.writer.minimum_read_point = self.writer.durable.end;
        self.store.note_positions(&self.writer.header(), &[]).unwrap();
    }

    /// Everything that was written is there, now and after a power loss.
    fn check_complete(self) {
        let OnDisk { disk, environment, store, writer } = self;
        assert_eq!(store.failure(), None);
        assert_eq!(store.hindrance(), None);
        assert_eq!(store.summaries().unwrap()[0].segment_complete_lsn, writer.last().end);
        drop(store);
        disk.lose_power(|_| 0);
        let store = Store::open_in(&environment, Path::new(PATH), options()).unwrap();
        assert_eq!(store.summaries().unwrap()[0].segment_complete_lsn, writer.last().end);
        store.read_page(GroupId(0), &block(fork(1, 16_384), 0), writer.last().end).unwrap().unwrap();
    }
}

fn assert_not_now(error: &StoreError) {
    assert!(matches!(error.to_refusal(), Refusal::NotNow(_)), "{error}");
}

#[test]
fn appends_are_refused_while_the_log_cannot_grow_and_taken_when_it_can() {
    for (operation, errno) in [
        (Operation::Grow, ENOSPC),
        (Operation::Grow, EIO),
        (Operation::Open, EMFILE),
        (Operation::Open, ENOSPC),
    ] {
        let mut node = OnDisk::new(options());
        let part = if operation == Operation::Open { "spare" } else { "/log/" };
        node.disk.keep_failing(operation, part, errno);
        let mut refused = 0;
        for number in 0..60 {
            let record = node.record(number);
            // An entry's own write that fails is final. It does not come to that: room is made before it.
            while let Err(error) = node.deliver(&record) {
                assert_not_now(&error);
                assert_eq!(node.store.failure(), None);
                refused += 1;
                if refused % 3 == 0 {
                    node.disk.heal();
                }
            }
        }
        assert!(refused > 0, "{operation:?} was never needed");
        node.check_complete();
    }
}

#[test]
fn a_round_that_the_disk_does_not_take_is_done_again() {
    for (operation, part, errno) in [
        (Operation::Write, "pages", ENOSPC),
        (Operation::Sync, "pages", ENOSPC),
        (Operation::Open, "pages", EMFILE),
        (Operation::Open, "checkpoint", EMFILE),
        (Operation::Write, "checkpoint", ENOSPC),
        (Operation::Sync, "checkpoint", EIO),
        (Operation::SyncFolder, "segments", EIO),
    ] {
        let mut node = OnDisk::new(options());
        for number in 0..20 {
            let record = node.record(number);
            node.deliver(&record).unwrap();
        }
        node.make_all_durable();
        node.disk.keep_failing(operation, part, errno);
        let error = node.store.materialize(Policy::Now).unwrap_err();
        assert_not_now(&error);
        let hindrance = node.store.hindrance().expect("it says so");
        assert!(hindrance.contains("could not apply redo") && node.store.failure().is_none(), "{hindrance}");
        let record = node.record(0);
        node.deliver(&record).unwrap();
        assert!(node.disk.heal() > 0);
        node.make_all_durable();
        assert!(node.store.materialize(Policy::Now).unwrap().advanced);
        node.check_complete();
    }
}

#[test]
fn a_read_that_fails_for_want_of_a_descriptor_damages_nothing() {
    let mut node = OnDisk::new(options());
    let record = node.record(0);
    node.deliver(&record).unwrap();
    node.make_all_durable();
    node.store.materialize(Policy::Now).unwrap();
    drop(node.store);
    node.store = Store::open_in(&node.environment, Path::new(PATH), options()).unwrap();
    let (key, lsn) = (block(fork(1, 16_384), 0), node.writer.durable.end);
    for (operation, errno) in [(Operation::Open, EMFILE), (Operation::Read, EIO)] {
        node.disk.keep_failing(operation, "pages", errno);
        assert_not_now(&node.store.read_page(GroupId(0), &key, lsn).unwrap_err());
        assert_eq!(node.store.failure(), None, "an error of the system is no damage");
        node.disk.heal();
    }
    node.store.read_page(GroupId(0), &key, lsn).unwrap().unwrap();
    node.check_complete();
}

#[test]
fn a_nearly_full_disk_takes_promises_and_serves_reads_and_takes_redo_again_when_there_is_room() {
    let mut node = OnDisk::new(Options { free_space_min_bytes: Some(1000), ..options() });
    let record = node.record(0);
    node.deliver(&record).unwrap();
    node.disk.set_available_bytes(999);
    assert!(!node.store.check_space());
    let record = node.record(0);
    let error = node.deliver(&record).unwrap_err();
    assert_not_now(&error);
    assert!(error.to_string().contains("node 3 takes no redo"), "{error}");
    assert_eq!((node.store.failure(), node.store.hindrance().is_some()), (None, true));
    // Reads, and what a recovery needs.
    let lsn = node.writer.records[0].span.end;
    node.writer.durable = node.writer.records[0].span;
    node.store.note_positions(&node.writer.header(), &[]).unwrap();
    node.store.read_page(GroupId(0), &block(fork(1, 16_384), 0), lsn).unwrap().unwrap();
    node.store.fence(Promise { epoch: VolumeEpoch(1), writer: WriterId(11) }, &[]).unwrap();
    // A little more room is not enough, or it would change again and again.
    node.disk.set_available_bytes(1100);
    assert!(!node.store.check_space());
    assert_not_now(&node.deliver(&record).unwrap_err());
    node.disk.set_available_bytes(1250);
    assert!(node.store.check_space());
    node.deliver(&record).unwrap();
    node.check_complete();
}

#[test]
fn what_a_recovery_brings_leaves_half_of_the_room_that_is_kept_free() {
    let mut node = OnDisk::new(Options { free_space_min_bytes: Some(1000), ..options() });
    let history = node.store.with_segment(GroupId(0), |segment| segment.history().clone()).unwrap();
    let promise = Promise { epoch: VolumeEpoch(2), writer: WriterId(11) };
    node.store.fence(promise, &[]).unwrap();
    let mut bring = |available_bytes| {
        node.disk.set_available_bytes(available_bytes);
        // More than a log file has room for.
        for _ in 0..100 {
            let record = node.record(0);
            let batch = node.writer.batch(std::slice::from_ref(&record));
            node.store.repair(promise, GroupId(0), &history, &[batch], &[])?;
        }
        Ok(())
    };
    bring(600).unwrap();
    let error: StoreError = bring(400).unwrap_err();
    assert_not_now(&error);
    assert!(error.to_string().contains("no room for what others bring back"), "{error}");
    assert_eq!(node.store.failure(), None);
}

#[test]
fn a_log_that_grows_sees_for_itself_that_the_disk_is_nearly_full() {
    let mut node = OnDisk::new(Options { free_space_min_bytes: Some(1000), ..options() });
    node.disk.set_available_bytes(10);
    let mut taken = 0;
    let error = loop {
        let record = node.record(0);
        match node.deliver(&record) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_not_now(&error);
    assert!(taken < 100, "a log file has room for fewer");
}
