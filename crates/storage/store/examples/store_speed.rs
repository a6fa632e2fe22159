//! How fast one store is: `cargo run --release -p borealis-store --example store_speed -- [directory]`.
//!
//! Appends and syncs small batches as a writer would, materializes, and reads pages in various states. Prints
//! one line a figure to standard output.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use borealis_quorum::Promise;
use borealis_store::{Identity, Options, Origin, Policy, Store};
use borealis_types::{
    AvailabilityZone, BlockKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, NodeId, PAGE_SIZE, PageKey,
    Placement, PostgresVersion, RecordSpan, RelationFork, RelationLocator, ServerVersion, SlruKind,
    VolumeEpoch, VolumeId, WriterId,
};
use borealis_wal::ResourceManager;
use borealis_wal::encode::RecordBuilder;
use borealis_wal::native::Native;
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};

const GROUP: GroupId = GroupId(0);
const BLOCKS: u32 = 10_000;

struct Writer {
    promise: Promise,
    last: RecordSpan,
    durable: RecordSpan,
}

impl Writer {
    fn header(&self) -> BatchHeader {
        BatchHeader {
            volume_epoch: self.promise.epoch,
            durable: self.durable,
            minimum_read_point: self.durable.end,
            tails: vec![GroupTail { group: GROUP, last_end: self.durable.end }],
        }
    }

    fn push(&mut self, batch: &mut BatchBuilder, bytes: &[u8]) {
        let start = Lsn(self.last.end.0 + 8);
        let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
        batch.push(span, &[GroupLink { group: GROUP, previous_end: self.last.end }], bytes);
        self.last = span;
    }

    /// A batch of `count` commits.
    fn commits(&mut self, count: usize) -> Vec<u8> {
        let mut batch = BatchBuilder::new(&self.header());
        for _ in 0..count {
            let commit = RecordBuilder::new(ResourceManager::Transaction, 0)
                .xid(1000)
                .previous_start(self.last.start)
                .main_data(&[0; 8])
                .finish();
            self.push(&mut batch, &commit);
        }
        batch.finish()
    }
}

fn block(number: u32) -> PageKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
    PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block: number })
}

fn report(what: &str, count: u64, took: Duration) {
    let each = took.as_secs_f64() / count as f64;
    println!("{what}: {:.0} a second, {:.1} microseconds each", 1.0 / each, each * 1e6);
}

/// Commits one after the other, with and without a thread that notes once a second how far the log is durable, as a node
/// does.
fn measure_notes(store: &Store, writer: &mut Writer, origin: Origin) -> Result<()> {
    const ARM: Duration = Duration::from_secs(4);
    for is_noting in [false, true, false, true, false, true] {
        let mut latencies_us = Vec::new();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            if is_noting {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        let _ = store.note_synced();
                        std::thread::sleep(Duration::from_secs(1));
                    }
                });
            }
            let begin = Instant::now();
            while begin.elapsed() < ARM {
                let commit = Instant::now();
                let appended = store.append(&writer.commits(1), origin, &[])?;
                store.sync(appended.sequence)?;
                writer.durable = writer.last;
                latencies_us.push(commit.elapsed().as_micros());
            }
            ended.store(true, Ordering::Relaxed);
            Ok(())
        })?;
        latencies_us.sort_unstable();
        let at = |share: f64| latencies_us[(latencies_us.len() as f64 * share) as usize];
        println!(
            "commits {} notes: {:.0} a second, p50 {} us, p99 {} us, p99.9 {} us",
            if is_noting { "with" } else { "without" },
            latencies_us.len() as f64 / ARM.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one measurement after the other")]
fn main() -> Result<()> {
    let directory = std::env::args().nth(1).map(PathBuf::from);
    let directory = directory.context("name a directory that does not exist yet")?;
    let placement = Placement::new(1).context("one group is a valid number")?;
    let identity = Identity {
        volume: VolumeId(1),
        node: NodeId(1),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::V15,
        placement,
        groups: vec![GROUP],
        incarnation: 1,
    };
    let store = Store::create(&directory, identity, Options::default())?;
    let promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(1) };
    let mut history = EpochHistory::default();
    history.push(EpochOpening {
        epoch: promise.epoch,
        last: RecordSpan::NONE,
        server_version: ServerVersion::NEWEST_TESTED,
    });
    store.fence(promise, &[])?;
    store.install(promise.writer, &history, &[], &[])?;
    let origin = Origin::Writer(promise);
    let mut writer = Writer { promise, last: RecordSpan::NONE, durable: RecordSpan::NONE };

    let begin = Instant::now();
    for numbers in (0..BLOCKS).collect::<Vec<_>>().chunks(64) {
        let mut batch = BatchBuilder::new(&writer.header());
        for &number in numbers {
            let image = [number as u8; PAGE_SIZE];
            let put = Native::PutPage { key: block(number), image: &image }.encode(writer.last.start);
            writer.push(&mut batch, &put);
        }
        let appended = store.append(&batch.finish(), origin, &[])?;
        store.sync(appended.sequence)?;
        writer.durable = writer.last;
    }
    report("page images appended and synced, 64 a batch", u64::from(BLOCKS), begin.elapsed());

    let lsn = writer.last.end;
    store.note_positions(&writer.header(), &[])?;
    let begin = Instant::now();
    for number in 0..BLOCKS {
        ensure!(store.read_page(GROUP, &block(number), lsn)?.is_some());
    }
    report("page reads, from one record in the log", u64::from(BLOCKS), begin.elapsed());
    let begin = Instant::now();
    let progress = store.materialize(Policy::Now)?;
    report("pages materialized", progress.pages_written, begin.elapsed());
    let begin = Instant::now();
    for number in 0..BLOCKS {
        ensure!(store.read_page(GROUP, &block(number), lsn)?.is_some());
    }
    report("page reads, from the page file (cached by the system)", u64::from(BLOCKS), begin.elapsed());

    for (count, rounds) in [(1, 3000), (50, 1000)] {
        let begin = Instant::now();
        let mut synced = Duration::ZERO;
        for _ in 0..rounds {
            let batch = writer.commits(count);
            let appended = store.append(&batch, origin, &[])?;
            let sync = Instant::now();
            store.sync(appended.sequence)?;
            synced += sync.elapsed();
            writer.durable = writer.last;
        }
        report(&format!("batches of {count} commits, appended and synced"), rounds, begin.elapsed());
        report("  of that, in the sync", rounds, synced);
    }
    measure_notes(&store, &mut writer, origin)?;
    let begin = Instant::now();
    let rounds = 1000;
    let mut taken = 0;
    for _ in 0..rounds {
        let batch = writer.commits(100);
        taken += store.append(&batch, origin, &[])?.taken as u64;
        writer.durable = writer.last;
    }
    report("records appended, not synced, 100 a batch", taken, begin.elapsed());

    let status = PageKey::Slru { kind: SlruKind::Transactions, page: 0 };
    store.note_positions(&writer.header(), &[])?;
    let begin = Instant::now();
    let progress = store.materialize(Policy::Now)?;
    println!(
        "materializing {} pages of {taken} and more records: {:?}",
        progress.pages_written,
        begin.elapsed()
    );
    let begin = Instant::now();
    let rounds = 1000;
    let appended = store.append(&writer.commits(10), origin, &[])?;
    store.sync(appended.sequence)?;
    for _ in 0..rounds {
        ensure!(store.read_page(GROUP, &status, writer.last.end)?.is_some());
    }
    report("page reads with 10 records", rounds, begin.elapsed());
    let appended = store.append(&writer.commits(2000), origin, &[])?;
    store.sync(appended.sequence)?;
    writer.durable = writer.last;
    store.note_positions(&writer.header(), &[])?;
    let begin = Instant::now();
    ensure!(store.read_page(GROUP, &status, writer.last.end)?.is_some());
    report("first page read with 2,010 records", 1, begin.elapsed());
    let begin = Instant::now();
    for _ in 0..rounds {
        ensure!(store.read_page(GROUP, &status, writer.last.end)?.is_some());
    }
    report("later page reads with 2,010 records", rounds, begin.elapsed());
    drop(store);
    let begin = Instant::now();
    let store = Store::open(&directory, Options::default())?;
    println!("opened again in {:?}", begin.elapsed());
    for (name, value) in store.metrics() {
        println!("  {name} {value}");
    }
    Ok(())
}
