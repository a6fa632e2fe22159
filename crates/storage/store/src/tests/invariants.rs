//! Defects, planted one by one: each must run into the assertion that is named after what it breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use borealis_quorum::segment::{Installed, SegmentRecord};
use borealis_quorum::{ChainLink, Promise};
use borealis_types::{
    EpochHistory, GroupId, GroupSet, Lsn, PAGE_SIZE, Part, RecordSpan, VolumeEpoch, WriterId,
};

use super::records::{TestEffect, Writer, block, environment, fork, identity, options};
use crate::checkpoint::Checkpoint;
use crate::disk::memory::MemoryDisk;
use crate::log::position::{LogPosition, RecordRef};
use crate::materialize::page_writer::{NextState, PageWriter};
use crate::pages::page_files::SlotRun;
use crate::pages::region::RegionClass;
use crate::promises::check_fenced;
use crate::read::check_steps;
use crate::segment::hosted::{HostedSegment, release_of};
use crate::segment::record_effects::RecordEffects;
use crate::segment::state::EnteredRecord;
use crate::{Environment, Origin, Policy, Store};

const GROUP: GroupId = GroupId(0);

/// A store with a hundred records, all durable, of which the first ninety are below every read; and its writer.
fn store() -> (Store, Writer) {
    let environment = Environment { disk: Arc::new(MemoryDisk::default()), ..environment() };
    let store = Store::create_in(&environment, Path::new("/node"), identity(1), options()).unwrap();
    let mut writer = Writer::start(&store);
    for number in 0..100 {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false);
    }
    for records in writer.records.chunks(10) {
        let appended = store.append(&writer.batch(records), Origin::Writer(writer.promise), &[]).unwrap();
        store.sync(appended.sequence).unwrap();
    }
    writer.durable = writer.last();
    writer.minimum_read_point = writer.records[89].span.end;
    store.note_positions(&writer.header(), &[]).unwrap();
    (store, writer)
}

/// Looks at the one segment, with a defect planted.
fn with_segment(store: &Store, plant: impl FnOnce(&mut HostedSegment)) {
    plant(store.lock().segments.get_mut(&GROUP).unwrap());
}

/// The state that the store has, as if it were the next one.
fn next(store: &Store) -> NextState {
    let state = store.lock();
    let hosted = &state.segments[&GROUP];
    NextState {
        materialized: Arc::clone(&hosted.materialized),
        files: Arc::clone(&hosted.pages),
        freed_regions: Vec::new(),
        run: SlotRun::default(),
        pages_written: 0,
        mended: Vec::new(),
        pages_moved: 0,
        synced: true,
    }
}

fn checkpoint(store: &Store, log_end: LogPosition) -> Checkpoint {
    let replay_from = store.lock().replay_from;
    Checkpoint { seal: 99, replay_from, log_end, segments: Vec::new(), absent: Vec::new(), files: Vec::new() }
}

/// A record that does nothing, at this place.
fn record(span: RecordSpan, position: LogPosition) -> (RecordRef, RecordEffects) {
    let effects = RecordEffects { effects: Ok(0..0), changes_only_existing_pages: false };
    (RecordRef { span, position, length: 8, part: Part::Whole }, effects)
}

fn index(store: &Store, span: RecordSpan) {
    with_segment(store, |hosted| {
        let (reference, effects) = record(span, LogPosition::new(1, 64));
        hosted.index_record(store.context(), &store.files, reference, &effects, &[], &[]).unwrap();
    });
}

fn span(start: u64, end: u64) -> RecordSpan {
    RecordSpan { start: Lsn(start), end: Lsn(end) }
}

#[test]
fn without_a_defect_every_assertion_holds() {
    let (store, writer) = store();
    assert!(store.materialize(Policy::Now).unwrap().advanced);
    store.set_peer_floor(GROUP, Lsn::MAX);
    assert!(store.read_page(GROUP, &block(fork(1, 16_384), 0), writer.durable.end).unwrap().is_some());
}

#[test]
#[should_panic(expected = "invariant log-released-below-checkpoint is broken")]
fn log_that_the_checkpoint_needs_is_not_released() {
    let (store, _) = store();
    store.set_peer_floor(GROUP, Lsn::MAX);
    let end = store.lock().log.end();
    assert!(end.file() > 1);
    let _ = store.release_log(end);
}

#[test]
#[should_panic(expected = "invariant replay-start-never-goes-back is broken")]
fn a_checkpoint_does_not_need_log_that_the_one_before_let_go() {
    let (store, _) = store();
    store.note_checkpoint(LogPosition(0));
}

#[test]
#[should_panic(expected = "invariant checkpoint-within-durable-log is broken")]
fn a_checkpoint_knows_no_more_than_the_durable_log() {
    let (store, _) = store();
    let beyond = store.lock().log.end().plus(8);
    let _ = store.make_durable(&checkpoint(&store, beyond), &BTreeMap::new());
}

#[test]
#[should_panic(expected = "invariant pages-synced-before-checkpoint is broken")]
fn a_checkpoint_names_no_page_that_was_not_synced() {
    let (store, _) = store();
    let next = NextState { synced: false, ..next(&store) };
    let checkpoint = checkpoint(&store, store.commit.durable());
    let _ = store.make_durable(&checkpoint, &BTreeMap::from([(GROUP, next)]));
}

#[test]
#[should_panic(expected = "invariant punched-region-is-free is broken")]
fn no_hole_is_punched_where_pages_are() {
    let (store, writer) = store();
    let mut next = next(&store);
    Arc::make_mut(&mut next.materialized).lsn = writer.minimum_read_point;
    let region = Arc::make_mut(&mut next.materialized).regions.take(RegionClass::holding(1));
    next.freed_regions.push(region);
    store.publish_states(BTreeMap::from([(GROUP, next)]));
}

#[test]
#[should_panic(expected = "invariant checkpointed-slot-untouched is broken")]
fn a_page_is_written_once_between_two_checkpoints() {
    let (store, writer) = store();
    store.materialize(Policy::Now).unwrap();
    let next = next(&store);
    let target = writer.minimum_read_point;
    let mut pages = PageWriter::new(&next.materialized, &next.files, target, BTreeSet::new());
    let key = block(fork(1, 16_384), 0);
    for _ in 0..2 {
        let _ = pages.write(&key, &key, &[0; PAGE_SIZE]);
    }
}

#[test]
#[should_panic(expected = "invariant taken-region-is-free is broken")]
fn no_region_is_taken_that_the_checkpoint_names() {
    let (store, writer) = store();
    store.materialize(Policy::Now).unwrap();
    let next = next(&store);
    let mut pages =
        PageWriter::new(&next.materialized, &next.files, writer.minimum_read_point, BTreeSet::new());
    let state = Arc::make_mut(&mut pages.next.materialized);
    let named = state.extents.values().next().unwrap().region;
    state.regions.release(&[named]);
    // Another relation of the same size.
    let (key, last) = (block(fork(1, 16_385), 0), block(fork(1, 16_385), named.class.pages() - 1));
    let _ = pages.write(&key, &last, &[0; PAGE_SIZE]);
}

#[test]
#[should_panic(expected = "invariant materialized-never-goes-back is broken")]
fn what_is_materialized_is_not_taken_back() {
    let (store, _) = store();
    store.materialize(Policy::Now).unwrap();
    with_segment(&store, |hosted| hosted.check_next(Lsn(hosted.materialized.lsn.0 - 1)));
}

#[test]
#[should_panic(expected = "invariant materialized-below-reads is broken")]
fn nothing_is_materialized_that_somebody_may_read_below() {
    let (store, writer) = store();
    with_segment(&store, |hosted| hosted.check_next(writer.durable.end));
}

#[test]
#[should_panic(expected = "invariant materialized-below-reads is broken")]
fn no_read_is_admitted_below_what_is_materialized() {
    let (store, _) = store();
    store.materialize(Policy::Now).unwrap();
    with_segment(&store, |hosted| hosted.check_admitted(Lsn::ZERO));
}

#[test]
#[should_panic(expected = "invariant materialized-is-durable is broken")]
fn no_history_truncates_what_is_materialized() {
    let (store, writer) = store();
    store.materialize(Policy::Now).unwrap();
    let link = ChainLink { previous_end: writer.records[4].span.end, span: writer.records[5].span };
    let cut = vec![SegmentRecord { epoch: VolumeEpoch(1), link }];
    with_segment(&store, |hosted| hosted.drop_truncated(&Installed { changed: true, cut }));
}

#[test]
#[should_panic(expected = "invariant read-within-readable is broken")]
fn no_read_is_admitted_above_what_is_complete() {
    let (store, writer) = store();
    with_segment(&store, |hosted| hosted.check_admitted(Lsn(writer.durable.end.0 + 1)));
}

#[test]
#[should_panic(expected = "invariant kept-state-is-durable is broken")]
fn a_version_that_a_history_may_truncate_is_not_kept() {
    let (store, writer) = store();
    with_segment(&store, |hosted| hosted.check_certain("a cached page", Lsn(writer.durable.end.0 + 1)));
}

#[test]
#[should_panic(expected = "invariant records-indexed-in-order is broken")]
fn a_record_is_not_indexed_after_a_later_one() {
    let (store, writer) = store();
    index(&store, writer.records[3].span);
}

#[test]
#[should_panic(expected = "invariant only-complete-is-indexed is broken")]
fn a_record_is_not_indexed_before_its_chain_reaches_it() {
    let (store, writer) = store();
    let end = writer.last().end.0;
    index(&store, span(end + 100, end + 200));
}

#[test]
#[should_panic(expected = "invariant index-above-materialized is broken")]
fn no_record_that_is_materialized_stays_in_the_index() {
    let (store, writer) = store();
    with_segment(&store, |hosted| hosted.index.check_above(writer.records[3].span.end));
}

#[test]
#[should_panic(expected = "invariant indexed-is-in-log is broken")]
fn a_record_is_not_indexed_before_it_is_in_the_log() {
    let (store, writer) = store();
    let mut state = store.lock();
    let (reference, effects) = record(writer.records[3].span, state.log.end());
    let entered = EnteredRecord { reference, groups: GroupSet::EMPTY, record_effects: effects };
    let _ = state.enter(store.context(), &store.files, vec![entered], &[], &[]);
}

#[test]
#[should_panic(expected = "invariant one-release-per-record is broken")]
fn a_record_that_no_history_admits_has_no_release() {
    release_of(&EpochHistory::default(), span(100, 200));
}

#[test]
#[should_panic(expected = "invariant redo-in-order is broken")]
fn a_record_is_not_applied_twice() {
    let (reference, _) = record(span(100, 200), LogPosition::new(1, 64));
    check_steps(&[((), reference), ((), reference)], Lsn(300));
}

#[test]
#[should_panic(expected = "invariant redo-within-version is broken")]
fn a_record_is_not_applied_to_a_version_before_it() {
    let (reference, _) = record(span(100, 200), LogPosition::new(1, 64));
    check_steps(&[((), reference)], Lsn(199));
}

#[test]
#[should_panic(expected = "invariant fence-covers-every-segment is broken")]
fn a_fence_that_misses_a_segment_is_not_reported() {
    let (store, _) = store();
    check_fenced(&store.lock(), Promise { epoch: VolumeEpoch(2), writer: WriterId(12) });
}
