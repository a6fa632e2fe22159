//! Makes the committed corpus anew: runs a workload on a stock server, replays its log, and keeps for each operation
//! the smallest records together with the pages and values they were applied to.
//!
//! ```text
//! cargo run --release -p borealis-fuzz --example collect_corpus
//! ```

#![allow(clippy::unwrap_used)] // A tool that stops at the first surprise.

#[path = "../../../postgres/redo/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use borealis_fuzz::{Sample, corpus};
use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_redo::names::operation_name;
use borealis_redo::{apply_meta, apply_page, meta_before};
use borealis_types::{DatabaseKey, Lsn, MetaKey, PAGE_SIZE, PageBytes, PageKey};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{Effect, Record, effects};
use support::Cluster;

/// Samples kept for each operation.
const KEPT: usize = 3;
/// Parts of a sample: more would not be read back.
const PARTS_MAX: usize = 40;

const WORKLOAD: &str = include_str!("workload.sql");

/// The samples of each operation by their size and the order of the log.
type Samples = BTreeMap<(u8, &'static str), BTreeMap<(usize, Lsn), Vec<u8>>>;

struct Replay {
    pages: BTreeMap<PageKey, Box<PageBytes>>,
    values: BTreeMap<MetaKey, Vec<u8>>,
    samples: Samples,
}

impl Replay {
    fn feed(&mut self, record: &Record<'_>) {
        let mut changes = Vec::new();
        effects(record, &mut changes).unwrap();
        changes.retain(|effect| *effect != Effect::Meta(MetaKey::Counters));
        changes.push(Effect::Meta(MetaKey::Counters));
        let mut sample = Sample::of_record(record);
        for effect in changes {
            match effect {
                Effect::Page(key) => {
                    let before = self.pages.get(&key).cloned().unwrap_or_else(|| Box::new([0; PAGE_SIZE]));
                    sample.pages.push((key, before.clone()));
                    let mut after = before;
                    apply_page(record, &key, &mut after).unwrap();
                    self.pages.insert(key, after);
                }
                Effect::Meta(key) => self.apply_value(record, key, &mut sample),
                Effect::DropRelation(locator) => self.pages.retain(|key, _| match key {
                    PageKey::Block(block) => block.relation_fork.locator != locator,
                    PageKey::Slru { .. } => true,
                }),
                Effect::TruncateRelation { relation_fork, blocks } => self.pages.retain(|key, _| match key {
                    PageKey::Block(key) => key.relation_fork != relation_fork || key.block < blocks,
                    PageKey::Slru { .. } => true,
                }),
                _ => {}
            }
        }
        self.keep(record, &sample);
    }

    fn apply_value(&mut self, record: &Record<'_>, key: MetaKey, sample: &mut Sample) {
        let from = meta_before(record, &key).unwrap().unwrap_or_else(|| key.clone());
        let before = self.values.get(&from).cloned();
        // Every record changes the counters; those whose purpose it is not need no copy of them.
        if let Some(value) = before.clone().filter(|_| key != MetaKey::Counters || sample.pages.is_empty()) {
            sample.values.push((from, value));
        }
        match apply_meta(record, &key, before).unwrap() {
            Some(value) => self.values.insert(key, value),
            None => self.values.remove(&key),
        };
    }

    fn keep(&mut self, record: &Record<'_>, sample: &Sample) {
        let fits = sample.blocks.len().max(sample.pages.len()).max(sample.values.len()) <= PARTS_MAX;
        if !fits || sample.main_data.len() > usize::from(u16::MAX) {
            return;
        }
        let name = operation_name(record.resource_manager, record.info).unwrap();
        let bytes = sample.encode();
        let kept = self.samples.entry((record.resource_manager.number(), name)).or_default();
        kept.insert((bytes.len(), record.span.start), bytes);
        if kept.len() > KEPT {
            kept.pop_last();
        }
    }
}

/// Every relation map file of the cluster.
fn relation_maps(data: &Path) -> BTreeMap<MetaKey, Vec<u8>> {
    let mut folders = vec![(DatabaseKey { tablespace: 1664, database: 0 }, data.join("global"))];
    for entry in fs::read_dir(data.join("base")).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let database = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        folders.push((DatabaseKey { tablespace: 1663, database }, path));
    }
    let map = |(key, folder): (DatabaseKey, PathBuf)| {
        (MetaKey::RelationMap(key), fs::read(folder.join("pg_filenode.map")).unwrap())
    };
    folders.into_iter().map(map).collect()
}

fn main() {
    let mut cluster = Cluster::create("full_page_writes = off\nwal_level = logical");
    let control = ControlFile::decode(&fs::read(cluster.data().join("global/pg_control")).unwrap()).unwrap();
    let mut replay = Replay {
        pages: cluster.pages().into_iter().collect(),
        values: relation_maps(&cluster.data()),
        samples: Samples::new(),
    };
    replay.values.insert(MetaKey::Counters, Counters::from_control_file(&control).encode());
    cluster.start();
    cluster.sql("postgres", WORKLOAD);
    let place = cluster.folder().join("place");
    fs::create_dir(&place).unwrap();
    cluster.give_to_server(&place);
    cluster.sql("postgres", &format!("create tablespace place location '{}';", place.display()));
    cluster.sql(
        "postgres",
        "drop tablespace place; create database by_file template template0 strategy file_copy;",
    );
    cluster.sql("postgres", "drop database by_file;");
    cluster.stop();

    let (start, bytes) = cluster.wal_bytes();
    let window = WalWindow { start, bytes: &bytes };
    let mut decoder = RecordDecoder::new(cluster.release(), control.checkpoint, Lsn::ZERO);
    while let Next::Record(record) = decoder.next(&window).unwrap() {
        replay.feed(&record);
    }
    let mut all = Vec::new();
    for ((resource_manager, name), samples) in replay.samples {
        println!(
            "{resource_manager:3} {name}: {:?} bytes",
            samples.keys().map(|key| key.0).collect::<Vec<_>>()
        );
        all.extend(samples.into_values());
    }
    let packed = corpus::pack(&all);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/samples.lz4");
    fs::write(&path, &packed).unwrap();
    println!(
        "{} samples, {} bytes, {} packed",
        all.len(),
        all.iter().map(Vec::len).sum::<usize>(),
        packed.len()
    );
}
