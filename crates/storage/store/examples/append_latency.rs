//! How long appends wait: `cargo run --release -p borealis-store --example append_latency -- DIRECTORY [APPENDS [MIB]]`. The
//! directory must not exist yet.
//!
//! A writer appends eight page images at a time and syncs, as fast as it can, so that a log file lasts for some 1,000
//! appends; meanwhile pages are materialized, log files are released, and a reader reads pages from memory every
//! millisecond. With `MIB`, the writer appends a prepared transaction of so many mebibytes, in pieces, in the middle of it. A
//! second connection notes positions every millisecond, as a peer's does. Prints percentiles of the append, of the append
//! with its sync, of the read and of the note.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use borealis_quorum::Promise;
use borealis_store::{Identity, Options, Origin, Policy, Store};
use borealis_types::{
    AvailabilityZone, BlockKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, NodeId, PAGE_SIZE, PageKey,
    Part, Placement, PostgresVersion, RecordForm, RecordSpan, RelationFork, RelationLocator, ServerVersion,
    VolumeEpoch, VolumeId, WriterId,
};
use borealis_wal::ResourceManager;
use borealis_wal::encode::RecordBuilder;
use borealis_wal::layout::transaction::PREPARE;
use borealis_wal::native::Native;
use borealis_wal::piece::{self, PIECE_BYTES, PIECE_PREFIX_BYTES};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};

const GROUP: GroupId = GroupId(0);
const APPENDS: u32 = 20_000;
const PAGES_PER_APPEND: u32 = 8;
const BLOCKS: u32 = 20_000;
const READ_EVERY: Duration = Duration::from_millis(1);
const MATERIALIZE_EVERY: Duration = Duration::from_millis(100);
const PROMISE: Promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(1) };

fn create(directory: &Path) -> Result<Store> {
    let identity = Identity {
        volume: VolumeId(1),
        node: NodeId(1),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::V15,
        placement: Placement::new(1).context("one group is a valid number")?,
        groups: vec![GROUP],
        incarnation: 1,
    };
    let options = Options { log_retention_bytes: 256 << 20, ..Options::default() };
    let store = Store::create(directory, identity, options)?;
    let mut history = EpochHistory::default();
    history.push(EpochOpening {
        epoch: PROMISE.epoch,
        last: RecordSpan::NONE,
        server_version: ServerVersion::NEWEST_TESTED,
    });
    store.fence(PROMISE, &[])?;
    store.install(PROMISE.writer, &history, &[], &[])?;
    store.set_peer_floor(GROUP, Lsn::MAX);
    Ok(store)
}

fn block(number: u32) -> PageKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
    PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block: number })
}

fn header(last: RecordSpan) -> BatchHeader {
    BatchHeader {
        volume_epoch: PROMISE.epoch,
        durable: last,
        minimum_read_point: last.end,
        tails: vec![GroupTail { group: GROUP, last_end: last.end }],
    }
}

/// A prepared transaction of this many mebibytes after `last`: a batch for each piece, and the last piece's place.
fn long_record(last: RecordSpan, mebibytes: usize) -> (Vec<Vec<u8>>, RecordSpan) {
    // A state file that says nothing but whose transaction it is: see `borealis_wal::layout::transaction::Prepare`.
    let mut state = vec![0; mebibytes << 20];
    state[8..12].copy_from_slice(&1000u32.to_le_bytes());
    let record = RecordBuilder::new(ResourceManager::Transaction, PREPARE)
        .xid(1000)
        .previous_start(last.start)
        .main_data(&state)
        .finish();
    let count = record.len().div_ceil(PIECE_BYTES);
    let mut before = last;
    let batches = (0..count).map(|at| {
        let content = &record[at * PIECE_BYTES..record.len().min((at + 1) * PIECE_BYTES)];
        let mut bytes = vec![0; PIECE_PREFIX_BYTES];
        bytes.extend_from_slice(content);
        let start = before.end.align_up();
        piece::seal(&mut bytes, start);
        let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
        let part = match at {
            _ if count == 1 => Part::Whole,
            0 => Part::First,
            at if at + 1 == count => Part::Last,
            _ => Part::Middle,
        };
        let form = RecordForm { part, previous_start: Some(before.start) };
        let mut batch = BatchBuilder::new(&header(before));
        batch.push_form(span, form, &[GroupLink { group: GROUP, previous_end: before.end }], &bytes);
        before = span;
        batch.finish()
    });
    (batches.collect(), before)
}

/// Appends and syncs; returns how long the appends took alone, and with their syncs.
fn write(store: &Store, appends: u32, mebibytes: usize, durable: &AtomicU64) -> Result<[Vec<Duration>; 2]> {
    let (mut appended, mut synced) = (Vec::new(), Vec::new());
    let mut last = RecordSpan::NONE;
    for number in 0..appends {
        if mebibytes > 1 && number == appends / 2 {
            let (pieces, end) = long_record(last, mebibytes);
            let mut longest = Duration::ZERO;
            for batch in pieces {
                let begin = Instant::now();
                store.sync(store.append(&batch, Origin::Writer(PROMISE), &[])?.sequence)?;
                longest = longest.max(begin.elapsed());
            }
            last = end;
            println!("the slowest of its pieces: {:.2} ms", longest.as_secs_f64() * 1e3);
        }
        let mut batch = BatchBuilder::new(&header(last));
        for page in 0..PAGES_PER_APPEND {
            let key = block((number * PAGES_PER_APPEND + page) % BLOCKS);
            let bytes = Native::PutPage { key, image: &[number as u8; PAGE_SIZE] }.encode(last.start);
            let start = Lsn(last.end.0 + 8);
            let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
            batch.push(span, &[GroupLink { group: GROUP, previous_end: last.end }], &bytes);
            last = span;
        }
        let batch = batch.finish();
        let begin = Instant::now();
        let sequence = store.append(&batch, Origin::Writer(PROMISE), &[])?.sequence;
        appended.push(begin.elapsed());
        store.sync(sequence)?;
        synced.push(begin.elapsed());
        durable.store(last.end.0, Ordering::Relaxed);
    }
    Ok([appended, synced])
}

/// Reads a page every now and then until `is_over`; returns how long the reads took.
fn read(store: &Store, durable: &AtomicU64, is_over: &AtomicBool) -> Vec<Duration> {
    let mut reads = Vec::new();
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let lsn = Lsn(durable.load(Ordering::Relaxed));
        let begin = Instant::now();
        // Refused when the read point has passed it by now; what counts is how long the answer took.
        let _ = store.read_page(GROUP, &block(number * 7 % BLOCKS), lsn);
        reads.push(begin.elapsed());
        thread::sleep(READ_EVERY);
    }
    reads
}

/// Notes positions that everybody knows every now and then until `is_over`; returns how long that took.
fn note(store: &Store, is_over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut notes = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        store.note_positions(&header(RecordSpan::NONE), &[])?;
        notes.push(begin.elapsed());
        thread::sleep(READ_EVERY);
    }
    Ok(notes)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, slowest {:.2} ms, of {}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        times.len()
    );
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory =
        arguments.next().map(PathBuf::from).context("name a directory that does not exist yet")?;
    let appends = arguments.next().map_or(Ok(APPENDS), |number| number.parse())?;
    let mebibytes = arguments.next().map_or(Ok(0), |number| number.parse())?;
    let store = create(&directory)?;
    let (durable, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let ([appended, synced], reads, notes) = thread::scope(|scope| -> Result<_> {
        scope.spawn(|| store.prepare_log_files());
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                if let Err(error) = store.materialize(Policy::IfDue) {
                    eprintln!("materialization failed: {error}");
                }
                thread::sleep(MATERIALIZE_EVERY);
            }
        });
        let reader = scope.spawn(|| read(&store, &durable, &is_over));
        let noter = scope.spawn(|| note(&store, &is_over));
        let written = write(&store, appends, mebibytes, &durable);
        is_over.store(true, Ordering::Relaxed);
        store.end_materialization();
        let reads = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        let notes = noter.join().map_err(|_| anyhow::anyhow!("who notes positions panicked"))?;
        Ok((written?, reads, notes?))
    })?;
    report("append", appended);
    report("append and sync", synced);
    report("page read", reads);
    report("note of positions", notes);
    Ok(())
}
