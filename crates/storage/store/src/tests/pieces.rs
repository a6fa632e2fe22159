//! Records that come in pieces: who puts them together, and who waits for it.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use borealis_redo::RedoError;
use borealis_types::{GroupId, Lsn, MetaKey, PageBytes, PageKey};
use borealis_wal::{Effect, EffectError, Record, RecordError};

use super::records::{
    TestEffect, TestRedo, Writer, block, environment, fork, identity, mix, options, page_of,
};
use crate::{CountersReplay, Environment, Origin, RedoEngine, Store};

/// Redo of test records that notes whether the store's lock was free each time it was asked what a record changes.
#[derive(Default)]
struct Watching {
    store: OnceLock<Weak<Store>>,
    was_free: Mutex<Vec<bool>>,
}

impl RedoEngine for Watching {
    fn verify(&self, bytes: &[u8], start: Lsn) -> Result<(), RecordError> {
        TestRedo.verify(bytes, start)
    }

    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
        if let Some(store) = self.store.get().and_then(Weak::upgrade) {
            self.was_free.lock().unwrap().push(store.state.try_lock().is_ok());
        }
        TestRedo.effects(record, out)
    }

    fn apply_page(&self, record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
        TestRedo.apply_page(record, key, page)
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
        const REDO: &TestRedo = &TestRedo;
        REDO.counters(value)
    }
}

/// A store of two groups, a page of each, and a record of both pages in three pieces, which nobody has yet.
fn volume() -> (tempfile::TempDir, Arc<Watching>, Arc<Store>, Writer, [PageKey; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let redo = Arc::new(Watching::default());
    let environment = Environment { redo: redo.clone(), ..environment() };
    let path = folder.path().join("node");
    let store = Arc::new(Store::create_in(&environment, &path, identity(2), options()).unwrap());
    redo.store.set(Arc::downgrade(&store)).unwrap();
    let mut writer = Writer::start(&store);
    let page_of_group = |group| {
        let pages = (0..).map(|number| block(fork(1, 16_384), number));
        pages.into_iter().find(|page| writer.placement.group_of(page) == GroupId(group)).unwrap()
    };
    let pages = [0, 1].map(page_of_group);
    writer.write(pages.map(TestEffect::Page).to_vec(), false);
    writer.cut_last(3);
    (folder, redo, store, writer, pages)
}

fn assert_applied(store: &Store, writer: &Writer, pages: [PageKey; 2]) {
    let end = writer.last().end;
    for (group, page) in (0..).zip(pages) {
        let read = store.read_page(GroupId(group), &page, end).unwrap();
        assert_eq!(read.unwrap(), page_of(mix(0, end)), "group {group}");
    }
}

#[test]
fn who_brings_the_last_piece_puts_the_record_together_before_the_lock_is_taken() {
    let (_folder, redo, store, writer, pages) = volume();
    for record in &writer.records {
        let batch = writer.batch(std::slice::from_ref(record));
        store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    }
    assert_eq!(*redo.was_free.lock().unwrap(), [true], "once, for both groups");
    assert_applied(&store, &writer, pages);
}

#[test]
fn pieces_that_come_together_are_put_together_before_the_lock_is_taken_too() {
    for together in [2, 3] {
        let (_folder, redo, store, writer, pages) = volume();
        for records in writer.records.chunks(together) {
            store.append(&writer.batch(records), Origin::Writer(writer.promise), &[]).unwrap();
        }
        assert_eq!(*redo.was_free.lock().unwrap(), [true]);
        assert_applied(&store, &writer, pages);
    }
}

#[test]
fn a_segment_that_has_other_pieces_puts_the_record_together_itself() {
    let (_folder, redo, store, writer, pages) = volume();
    let [first, middle, last] = &writer.records[..] else { panic!("three pieces") };
    let batch = |record| writer.batch(std::slice::from_ref(record));
    store.append(&batch(first), Origin::Writer(writer.promise), &[]).unwrap();
    // Each group's copy is elsewhere in the log.
    store.append(&batch(middle), Origin::Peer(GroupId(0)), &[]).unwrap();
    store.append(&batch(middle), Origin::Peer(GroupId(1)), &[]).unwrap();
    store.append(&batch(last), Origin::Writer(writer.promise), &[]).unwrap();
    assert_eq!(*redo.was_free.lock().unwrap(), [true, false], "what was learned is of group 0's pieces");
    assert_applied(&store, &writer, pages);
}
