//! What many small relations cost on disk: `cargo run --release -p borealis-store --example small_relations --
//! DIRECTORY [RELATIONS]`. The directory must not exist yet; the default is 48,000 relations, as 12,000 tables have
//! with their indexes and the tables for their long values.
//!
//! Every fourth relation has two pages, the others one. Three rounds of materialization: all relations are new, all
//! are changed, and every tenth grows to twelve pages. After each it prints the page files' number, their size as
//! listed and as allocated, the size of the pages in them, and how long the round took.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use borealis_quorum::Promise;
use borealis_store::{Identity, Options, Origin, Policy, Store};
use borealis_types::{
    AvailabilityZone, BlockKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, NodeId, PAGE_SIZE, PageKey,
    Placement, PostgresVersion, RecordSpan, RelationFork, RelationLocator, ServerVersion, VolumeEpoch,
    VolumeId, WriterId,
};
use borealis_wal::native::Native;
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};

const GROUP: GroupId = GroupId(0);
const RELATIONS: u32 = 48_000;
const GROWN_PAGES: u32 = 12;
/// Bytes that the file system allocates in, as `stat` counts them.
const ALLOCATION_UNIT: u64 = 512;

struct Workload {
    store: Store,
    promise: Promise,
    last: RecordSpan,
    pages: u64,
}

impl Workload {
    /// Writes these blocks of these relations, durable and below every read.
    fn write(&mut self, blocks: impl Iterator<Item = (u32, u32)>) -> Result<()> {
        for blocks in blocks.collect::<Vec<_>>().chunks(64) {
            let mut batch = BatchBuilder::new(&self.header());
            for &(relation, number) in blocks {
                let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 + relation };
                let relation_fork = RelationFork { locator, fork: Fork::Main };
                let key = PageKey::Block(BlockKey { relation_fork, block: number });
                let image = [relation as u8 | 1; PAGE_SIZE];
                let bytes = Native::PutPage { key, image: &image }.encode(self.last.start);
                let start = Lsn(self.last.end.0 + 8);
                let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
                batch.push(span, &[GroupLink { group: GROUP, previous_end: self.last.end }], &bytes);
                self.last = span;
            }
            self.store.append(&batch.finish(), Origin::Writer(self.promise), &[])?;
            self.store.note_positions(&self.header(), &[])?;
        }
        Ok(())
    }

    fn header(&self) -> BatchHeader {
        BatchHeader {
            volume_epoch: self.promise.epoch,
            durable: self.last,
            minimum_read_point: self.last.end,
            tails: vec![GroupTail { group: GROUP, last_end: self.last.end }],
        }
    }

    fn round(&self, what: &str, folder: &Path) -> Result<()> {
        let begin = Instant::now();
        let progress = self.store.materialize(Policy::Now)?;
        let took = begin.elapsed();
        let (mut files, mut listed, mut allocated) = (0, 0, 0);
        for entry in fs::read_dir(folder)? {
            let metadata = entry?.metadata()?;
            files += 1;
            listed += metadata.len();
            allocated += metadata.blocks() * ALLOCATION_UNIT;
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "{what}: {} pages written in {:.1} s; {files} files of {:.0} MiB, allocated {:.0} MiB, for {:.0} MiB of \
             pages",
            progress.pages_written,
            took.as_secs_f64(),
            mib(listed),
            mib(allocated),
            mib(self.pages * PAGE_SIZE as u64)
        );
        Ok(())
    }
}

fn pages_of(relation: u32) -> u32 {
    if relation.is_multiple_of(4) { 2 } else { 1 }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory =
        arguments.next().map(PathBuf::from).context("name a directory that does not exist yet")?;
    let relations = arguments.next().map_or(Ok(RELATIONS), |number| number.parse())?;
    let identity = Identity {
        volume: VolumeId(1),
        node: NodeId(1),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::V15,
        placement: Placement::new(1).context("one group is a valid number")?,
        groups: vec![GROUP],
        incarnation: 1,
    };
    // No round but those that are asked for.
    let options = Options {
        memory_limit_bytes: 4 << 30,
        materialize_after_bytes: 64 << 30,
        log_retention_bytes: 0,
        ..Options::default()
    };
    let store = Store::create(&directory, identity, options)?;
    let promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(1) };
    let mut history = EpochHistory::default();
    history.push(EpochOpening {
        epoch: promise.epoch,
        last: RecordSpan::NONE,
        server_version: ServerVersion::NEWEST_TESTED,
    });
    store.fence(promise, &[])?;
    store.install(promise.writer, &history, &[], &[])?;
    let mut workload = Workload { store, promise, last: RecordSpan::NONE, pages: 0 };
    let folder = directory.join("segments").join(GROUP.to_string());

    let all =
        || (0..relations).flat_map(|relation| (0..pages_of(relation)).map(move |block| (relation, block)));
    workload.pages = all().count() as u64;
    workload.write(all())?;
    workload.round("new", &folder)?;
    workload.write(all())?;
    workload.round("changed", &folder)?;
    let grown = (0..relations)
        .step_by(10)
        .flat_map(|relation| (pages_of(relation)..GROWN_PAGES).map(move |block| (relation, block)));
    workload.pages += grown.clone().count() as u64;
    workload.write(grown)?;
    workload.round("a tenth grown", &folder)?;
    Ok(())
}
