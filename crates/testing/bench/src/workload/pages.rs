//! Reading a page as of an LSN from one storage node over loopback: one request at a time, in random order, each page
//! once in every situation.
//!
//! * In the node's memory: its page cache has the version that is asked for.
//! * Needing 10 records: its page cache has an older version, and ten records have come since.
//! * On the node's disk: redo was folded into the page files, the node was started anew, and the operating system is
//!   made to forget them before each read: it reads ahead, and would have most of a small table soon.
//! * In the operating system's cache: the same page files, not forgotten.
//!
//! That a page really was there is checked with what the node counts. Beside it is what the machine takes for the same
//! without Borealis: an answer of a page's size over loopback, and a page from the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use borealis_client::{Endpoint, NodeClient, Timeouts};
use borealis_store::{Options, Policy, Store};
use borealis_types::{
    BlockKey, Fork, GroupId, Lsn, NodeId, PAGE_SIZE, PageKey, Placement, RelationFork, RelationLocator,
    VolumeId,
};
use borealis_wire::{Caller, Refusal};

use super::start;
use crate::Bench;
use crate::model::{Measurement, System};
use crate::server::{Borealis, Server, forget_file, forget_files};
use crate::statistics::{distribution, percentile};
use crate::workload_names::{PAGE_BEHIND, PAGE_IN_MEMORY, PAGE_ON_DISK};
use borealis_testbed::sql::Connection;

const NAME: &str = "pages";
const PAGE_IN_SYSTEM_CACHE: &str = "in the operating system's cache";
/// The node that is asked.
const NODE: NodeId = NodeId(1);
const PAGES: u32 = 3000;
const PAGES_QUICK: u32 = 1000;
/// So many rows of 440 bytes and their line pointers fill half a page.
const ROWS_PER_PAGE: u32 = 9;
/// Records that a page needs in one situation.
const RECORDS: u32 = 10;
/// After so many, a node keeps the version that the next reader made it make.
const RECORDS_TO_BE_CACHED: u32 = 16;
/// Longest wait for the node to have what is durable.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the disk and the loopback are measured alone.
const PROBES: u64 = 1000;
/// Size of the file with which the disk is measured alone.
const DISK_PROBE_BYTES: usize = 32 << 20;
/// About what a request for a page takes.
const REQUEST_BYTES: usize = 48;

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let servers = start(bench, NAME, &[System::Borealis])?;
    let [server @ Server::Borealis(cluster)] = &servers[..] else { return Ok(()) };
    let pages = if bench.plan.quick { PAGES_QUICK } else { PAGES };
    let mut table = Table::create(server.connect()?, pages)?;
    for round in 1..=bench.plan.rounds {
        let order = shuffled(table.pages, u64::from(round));
        let mut node = Node::connect(cluster)?;

        table.change(RECORDS_TO_BE_CACHED)?;
        node.catch_up(cluster)?;
        // Makes the node keep every page.
        node.read(&table, &order)?;
        let mut pass = node.read(&table, &order)?;
        pass.add_alone(["loopback_alone_p50_us", "loopback_alone_p99_us"], loopback_alone()?);
        record(bench, PAGE_IN_MEMORY, round, &pass, Expected { records: 0.0..0.05, hits: 0.95..1.05 })?;

        table.change(RECORDS)?;
        node.catch_up(cluster)?;
        let pass = node.read(&table, &order)?;
        // Now and then PostgreSQL prunes a page, which is one more.
        record(bench, PAGE_BEHIND, round, &pass, Expected { records: 9.9..12.5, hits: 0.95..1.05 })?;

        table.let_read_point_pass(&mut node, cluster)?;
        drop(node);
        fold(cluster)?;
        let mut node = Node::connect(cluster)?;
        node.catch_up(cluster)?;
        let files = cluster.store_folder(NODE.0);
        let mut pass = node.read_after(&table, &order, || forget_files(&files))?;
        let alone = disk_alone(&bench.environment.folder)?;
        pass.add_alone(["disk_alone_p50_us", "disk_alone_p99_us"], alone);
        let folded = || Expected { records: 0.0..0.05, hits: 0.0..0.05 };
        record(bench, PAGE_ON_DISK, round, &pass, folded())?;
        // Makes the operating system have every page.
        node.read(&table, &order)?;
        let pass = node.read(&table, &order)?;
        record(bench, PAGE_IN_SYSTEM_CACHE, round, &pass, folded())?;
    }
    Ok(())
}

/// Block numbers below `count`, in an order that depends on the seed alone.
fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_by_key(|&block| mixed(seed << 32 | u64::from(block)));
    order
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mixed(number: u64) -> u64 {
    let mut hash = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ hash >> 31
}

/// A table whose every page has a row that is changed, and room for many versions of it.
struct Table {
    connection: Connection,
    fork: RelationFork,
    pages: u32,
}

impl Table {
    fn create(mut connection: Connection, pages: u32) -> anyhow::Result<Table> {
        // The pages are half full; after that PostgreSQL must not believe that it has to keep them so, or it would
        // prune at nearly every change.
        connection.query(&format!(
            "CREATE TABLE page_reads (id int, count int, filler text) \
             WITH (fillfactor = 50, autovacuum_enabled = off); \
             CREATE TABLE page_reads_other (id int); \
             INSERT INTO page_reads SELECT id, 0, repeat('x', 400) FROM generate_series(0, {}) id; \
             ALTER TABLE page_reads SET (fillfactor = 100)",
            pages * ROWS_PER_PAGE - 1
        ))?;
        let rows = connection.query(
            "SELECT CASE reltablespace WHEN 0 THEN dattablespace ELSE reltablespace END, pg_database.oid, \
             pg_relation_filenode(pg_class.oid) FROM pg_class, pg_database \
             WHERE pg_class.oid = 'page_reads'::regclass AND datname = current_database()",
        )?;
        let numbers: Vec<u32> =
            rows.iter().flatten().filter_map(|value| value.as_ref()?.parse().ok()).collect();
        let [tablespace, database, relation] = numbers[..] else { bail!("the table's place is unclear") };
        let locator = RelationLocator { tablespace, database, relation };
        let mut table = Table { connection, fork: RelationFork { locator, fork: Fork::Main }, pages };
        let changed = table.connection.number(&format!(
            "SELECT count(DISTINCT (ctid::text::point)[0]) FROM page_reads WHERE id % {ROWS_PER_PAGE} = 0"
        ))?;
        let size = table.connection.number("SELECT pg_relation_size('page_reads')")?;
        ensure!(
            changed == f64::from(pages) && size == f64::from(pages) * PAGE_SIZE as f64,
            "the table has {size} bytes, and rows to change on {changed} pages, instead of {pages} of each"
        );
        Ok(table)
    }

    /// Changes one row in every page so often, each time in a transaction of its own.
    fn change(&mut self, times: u32) -> anyhow::Result<()> {
        for _ in 0..times {
            self.connection.query(&format!(
                "UPDATE page_reads SET count = count + 1, filler = '' WHERE id % {ROWS_PER_PAGE} = 0"
            ))?;
        }
        Ok(())
    }

    /// Waits until the node knows that nobody reads below what is durable now, which it learns along with new records.
    fn let_read_point_pass(&mut self, node: &mut Node, cluster: &Borealis) -> anyhow::Result<()> {
        let durable = durable_lsn(cluster)?;
        let begin = Instant::now();
        while node.minimum_read_point()? < durable {
            ensure!(begin.elapsed() < PATIENCE, "the minimum read point does not pass {durable}");
            self.connection.query("INSERT INTO page_reads_other VALUES (1)")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn block(&self, block: u32) -> PageKey {
        PageKey::Block(BlockKey { relation_fork: self.fork, block })
    }
}

/// The LSN up to which the volume is durable.
fn durable_lsn(cluster: &Borealis) -> anyhow::Result<Lsn> {
    let status = cluster.status()?;
    let text = status["volume"]["vdl"].as_str().context("status has no durable LSN")?;
    text.parse().with_context(|| format!("`{text}` is no LSN"))
}

/// One pass over all pages.
struct Pass {
    latencies_us: Vec<u64>,
    /// Records that the node applied, by page.
    records: f64,
    /// How many of the reads began from a version in the page cache.
    hits: f64,
    /// Figures of this pass alone.
    others: BTreeMap<&'static str, f64>,
}

impl Pass {
    /// Adds what the machine alone takes, in microseconds, under these names: median and 99th percentile.
    fn add_alone(&mut self, names: [&'static str; 2], mut latencies_us: Vec<u64>) {
        latencies_us.sort_unstable();
        for (name, fraction) in names.into_iter().zip([0.5, 0.99]) {
            self.others.insert(name, percentile(&latencies_us, fraction).unwrap_or(0) as f64);
        }
    }
}

/// What the node counts, if the pages are where they should be.
struct Expected {
    records: std::ops::Range<f64>,
    hits: std::ops::Range<f64>,
}

/// The node that is asked.
struct Node {
    client: NodeClient,
    placement: Placement,
    process: u64,
    lsn: Lsn,
}

impl Node {
    fn connect(cluster: &Borealis) -> anyhow::Result<Node> {
        let status = cluster.status()?;
        let volume: VolumeId =
            serde_json::from_value(status["volume"]["id"].clone()).context("status has no volume")?;
        let groups = status["protection_groups"].as_array().context("status lists no groups")?.len();
        let placement = u16::try_from(groups).ok().and_then(Placement::new).context("too many groups")?;
        let nodes = status["nodes"].as_array().context("status lists no nodes")?;
        let node = nodes.iter().find(|node| node["id"] == NODE.0).context("status does not list the node")?;
        let address: Endpoint = node["address"].as_str().context("the node has no address")?.parse()?;
        let process = node["pid"].as_u64().context("the node does not run")?;
        let client = NodeClient::connect(&address, volume, NODE, Caller::Client, Timeouts::default())?;
        Ok(Node { client, placement, process, lsn: Lsn::ZERO })
    }

    /// Waits until the node answers at what is durable now, and reads there from now on.
    fn catch_up(&mut self, cluster: &Borealis) -> anyhow::Result<()> {
        self.choose_lsn(durable_lsn(cluster)?)
    }

    /// Chooses the newest LSN at which the node answers for every group, not below `durable`.
    fn choose_lsn(&mut self, durable: Lsn) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let summaries = self.client.summaries()?;
            let through = summaries.iter().map(|segment| segment.readable_through).min();
            let from = summaries.iter().map(|segment| segment.minimum_read_point).max();
            let (through, from) = through.zip(from).context("the node has no segments")?;
            if from <= through && through >= durable {
                self.lsn = through;
                return Ok(());
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "node {NODE} answers from {from} through {through}, not {durable}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn minimum_read_point(&mut self) -> anyhow::Result<Lsn> {
        let summaries = self.client.summaries()?;
        let lowest = summaries.iter().map(|segment| segment.minimum_read_point).min();
        lowest.context("the node has no segments")
    }

    /// Reads every page once, in this order.
    fn read(&mut self, table: &Table, order: &[u32]) -> anyhow::Result<Pass> {
        self.read_after(table, order, || ())
    }

    /// Reads every page once, in this order, and does something before each read.
    fn read_after(&mut self, table: &Table, order: &[u32], prepare: impl Fn()) -> anyhow::Result<Pass> {
        let (before, bytes_before) = (self.counters()?, self.bytes_from_disk());
        let mut latencies_us = Vec::with_capacity(order.len());
        for &block in order {
            let key = table.block(block);
            prepare();
            latencies_us.push(self.read_page(self.placement.group_of(&key), key)?);
        }
        let (after, bytes_after) = (self.counters()?, self.bytes_from_disk());
        let rise = |name: &str| {
            let value = |counters: &BTreeMap<String, u64>| counters.get(name).copied().unwrap_or(0);
            value(&after).saturating_sub(value(&before)) as f64 / order.len() as f64
        };
        let mut others = BTreeMap::new();
        if let Some((before, after)) = bytes_before.zip(bytes_after) {
            others.insert("disk_read_per_page_bytes", (after - before) as f64 / order.len() as f64);
        }
        Ok(Pass {
            latencies_us,
            records: rise("store_records_applied_for_reads"),
            hits: rise("store_page_cache_hits"),
            others,
        })
    }

    /// Reads a page; returns what it took, in microseconds.
    fn read_page(&mut self, group: GroupId, key: PageKey) -> anyhow::Result<u64> {
        loop {
            let begin = Instant::now();
            let page = self.client.read_page(group, key, self.lsn);
            let elapsed = begin.elapsed();
            match page {
                Ok(Some(_)) => return Ok(u64::try_from(elapsed.as_micros())?),
                Ok(None) => bail!("page {key} does not exist as of {}", self.lsn),
                // Nobody holds the read point for us: the node may forget that LSN when the volume goes on.
                Err(error) if matches!(error.refusal(), Some(Refusal::NotReadable { .. })) => {
                    self.choose_lsn(self.lsn)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn counters(&mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        Ok(self.client.status()?.metrics.into_iter().collect())
    }

    /// What the node's process had read from disks until now (proc(5)).
    fn bytes_from_disk(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.process)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("read_bytes:"))?.trim().parse().ok()
    }
}

/// Puts a pass among the results.
///
/// # Errors
/// When the pages were not where the situation has them.
fn record(
    bench: &mut Bench,
    situation: &str,
    round: u32,
    pass: &Pass,
    expected: Expected,
) -> anyhow::Result<()> {
    let mut sorted = pass.latencies_us.clone();
    sorted.sort_unstable();
    let at = |fraction| percentile(&sorted, fraction).unwrap_or(0) as f64;
    let (p50, p99) = (at(0.5), at(0.99));
    bench.say(&format!(
        "pages, {situation}: p50 {p50:.0} µs, p99 {p99:.0} µs; by page {:.2} records, {:.2} cache hits",
        pass.records, pass.hits
    ));
    ensure!(
        expected.records.contains(&pass.records) && expected.hits.contains(&pass.hits),
        "{situation}: by page {:.2} records were applied and {:.2} versions were in the cache, not {:?} and {:?}",
        pass.records,
        pass.hits,
        expected.records,
        expected.hits
    );
    // The file system may ignore the wish to forget a file, or be one in memory.
    let on_disk = pass.others.get("disk_read_per_page_bytes").is_none_or(|&bytes| bytes >= PAGE_SIZE as f64);
    ensure!(
        on_disk || situation != PAGE_ON_DISK,
        "{situation}: the operating system had the pages in memory; is the working folder on a disk?"
    );
    let mut measurement = Measurement::new(NAME, situation, System::Borealis, round)
        .with("latency_p50_us", p50)
        .with("latency_p99_us", p99)
        .with("latency_max_us", at(1.0))
        .with("pages", sorted.len() as f64)
        .with("records_applied_per_page", pass.records)
        .with("cache_hits_per_page", pass.hits);
    for (name, value) in &pass.others {
        measurement = measurement.with(name, *value);
    }
    measurement.latencies_us = distribution(sorted);
    bench.results.measurements.push(measurement);
    Ok(())
}

/// Folds all redo of the node into its page files, and starts it anew.
fn fold(cluster: &Borealis) -> anyhow::Result<()> {
    let node = NODE.to_string();
    cluster.command(&["node", "kill", &node])?;
    // A running node folds only when much has piled up, and then at its leisure.
    let store = Store::open(&cluster.store_folder(NODE.0), Options::default())?;
    let progress = store.materialize(Policy::Now)?;
    drop(store);
    ensure!(progress.pages_written > 0, "nothing was folded into the pages of node {NODE}");
    cluster.command(&["node", "start", &node])?;
    cluster.wait_until_whole()
}

/// What reading a page at random takes on this disk without anything of Borealis, in microseconds.
fn disk_alone(folder: &Path) -> anyhow::Result<Vec<u64>> {
    let path = folder.join("read-probe");
    fs::write(&path, vec![0x5A; DISK_PROBE_BYTES])
        .with_context(|| format!("cannot write {}", path.display()))?;
    let file = File::open(&path)?;
    file.sync_all()?;
    let mut page = [0; PAGE_SIZE];
    let mut latencies_us = Vec::new();
    for number in 0..PROBES {
        let place = mixed(number) % (DISK_PROBE_BYTES / PAGE_SIZE) as u64 * PAGE_SIZE as u64;
        forget_file(&file);
        let begin = Instant::now();
        file.read_exact_at(&mut page, place)?;
        latencies_us.push(u64::try_from(begin.elapsed().as_micros())?);
    }
    fs::remove_file(&path)?;
    Ok(latencies_us)
}

/// What asking another thread over loopback for a page's worth of bytes takes on this machine without anything of
/// Borealis, in microseconds: mostly the system's waking of both sides.
fn loopback_alone() -> anyhow::Result<Vec<u64>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut asking = TcpStream::connect(listener.local_addr()?)?;
    let (mut answering, _) = listener.accept()?;
    for stream in [&asking, &answering] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let answerer = std::thread::spawn(move || -> io::Result<()> {
        let (mut request, answer) = ([0; REQUEST_BYTES], [0x5A; PAGE_SIZE]);
        for _ in 0..PROBES {
            answering.read_exact(&mut request)?;
            answering.write_all(&answer)?;
        }
        Ok(())
    });
    let mut answer = [0; PAGE_SIZE];
    let mut latencies_us = Vec::new();
    for _ in 0..PROBES {
        let begin = Instant::now();
        asking.write_all(&[0; REQUEST_BYTES])?;
        asking.read_exact(&mut answer)?;
        latencies_us.push(u64::try_from(begin.elapsed().as_micros())?);
    }
    answerer.join().expect("answering does not panic")?;
    Ok(latencies_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_read_once_in_an_order_of_its_own() {
        let mut order = shuffled(1000, 1);
        assert_ne!(order, shuffled(1000, 2));
        assert!(!order.is_sorted());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn the_loopback_answers_every_time() {
        assert_eq!(loopback_alone().unwrap().len() as u64, PROBES);
    }

    #[test]
    fn the_disk_is_measured_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let latencies_us = disk_alone(folder.path()).unwrap();
        assert_eq!(latencies_us.len() as u64, PROBES);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
