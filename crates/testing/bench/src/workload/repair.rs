//! Everything that one node has comes to another, under TPC-B and beside a plain copy of the same bytes.
//!
//! A node is added and another one of its zone emptied: the newcomer takes each segment from all healthy peers, as after a loss, but the moment
//! in which it begins is known. Once as fast as it goes, and once at the rate that nodes have unless told otherwise.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::stretches::{Stretch, record};
use super::{end_round, initialize, load, start, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::model::System;
use crate::pgbench::{Load, Script, now_us};
use crate::server::{Borealis, Server};
use crate::workload_names::{COPY, HEALTHY, REPAIRS, Repair};

const NAME: &str = "repair";
const CLIENTS: u32 = 8;
/// The zone in which nodes come and go.
const ZONE: &str = "az2";
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for all segments to be elsewhere.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(900);
/// What a node counts of the pages that it gets from peers, in bytes.
const SENT: &str = "refill_fetched_bytes";
/// After a change, before its effect is measured.
const SETTLE: Duration = Duration::from_millis(500);

/// How much was copied or repaired, in MiB, and in how many seconds.
#[derive(Clone, Copy)]
struct Moved {
    mib: f64,
    seconds: f64,
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let servers = start(bench, NAME, &[System::Borealis])?;
    let [server] = &servers[..] else { return Ok(()) };
    let Server::Borealis(cluster) = server else { return Ok(()) };
    initialize(bench, server, bench.plan.scale)?;
    server.warm(&super::PGBENCH_RELATIONS)?;
    let mut acknowledged = warm_up(bench, server, Script::TpcB)?;
    for round in 1..=bench.plan.rounds {
        // Ended by hand after the last stretch; this is only its upper bound.
        let load = Load { seconds: 3600, sampling_rate: 1.0, ..load(bench, server, CLIENTS, Script::TpcB) };
        let running = load.start(&bench.program("pgbench"))?;
        std::thread::sleep(SETTLE);
        let (mut stretches, mut moved) = (Vec::new(), Vec::new());
        healthy(bench, &mut stretches);
        // Each kind comes first as often as the other.
        for place in super::rotated(REPAIRS.len(), round) {
            let repair = REPAIRS[place];
            bench.say(repair.text());
            moved.extend(replace_one(bench, cluster, repair, &mut stretches)?);
            healthy(bench, &mut stretches);
        }
        let outcome = running.end_now()?;
        acknowledged += outcome.samples.len() as u64;
        let names: Vec<&str> = [HEALTHY, COPY].into_iter().chain(REPAIRS.map(Repair::text)).collect();
        record(bench, (NAME, round), &names, &stretches, &outcome);
        note(bench, round, &moved);
        wait_for_six(cluster)?;
        let appended = Appended { table: "pgbench_history", acknowledged };
        if !end_round(bench, server, (NAME, round), Some(appended))? {
            return Ok(());
        }
        if round < bench.plan.rounds {
            cluster.wait_until_whole()?;
            server.warm(&super::PGBENCH_RELATIONS)?;
            acknowledged += warm_up(bench, server, Script::TpcB)?;
        }
    }
    Ok(())
}

fn healthy(bench: &Bench, stretches: &mut Vec<Stretch>) {
    std::thread::sleep(SETTLE);
    let begin = now_us();
    std::thread::sleep(Duration::from_secs(u64::from(bench.plan.seconds)));
    stretches.push((HEALTHY, begin, now_us()));
}

/// Has a new node take all that another has, after a plain copy of the same bytes.
fn replace_one(
    bench: &Bench,
    cluster: &Borealis,
    repair: Repair,
    stretches: &mut Vec<Stretch>,
) -> anyhow::Result<[(&'static str, Moved); 2]> {
    let leaving = hosting(&cluster.status()?)?;
    cluster.command(&["node", "add", "--az", ZONE])?;
    let newcomer = newest(&cluster.status()?)?;
    if repair == Repair::FullSpeed {
        cluster.command(&["node", "kill", &newcomer.to_string()])?;
        unthrottle(cluster, newcomer)?;
        cluster.command(&["node", "start", &newcomer.to_string()])?;
    }
    let copy = bench.environment.folder.join("copy");
    let moved = |bytes: f64, begin: Instant| Moved {
        mib: bytes / f64::from(1 << 20),
        seconds: begin.elapsed().as_secs_f64(),
    };
    let (began, begin) = (now_us(), Instant::now());
    let bytes = copy_pages(&cluster.store_folder(leaving), &copy)?;
    let copied = moved(bytes as f64, begin);
    stretches.push((COPY, began, now_us()));
    fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    std::thread::sleep(SETTLE);

    // Pages that peers sent, each once; the files that are copied have room for two versions of each.
    let sent = || Ok::<f64, anyhow::Error>(taken(&cluster.status()?, newcomer));
    let sent_before = sent()?;
    let (began, begin) = (now_us(), Instant::now());
    cluster.command(&["node", "drain", &leaving.to_string()])?;
    while segments(&cluster.status()?, leaving) > 0 {
        if begin.elapsed() > REPAIR_TIMEOUT {
            bail!("node {leaving} still has segments after {REPAIR_TIMEOUT:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let mut repaired = moved(0.0, begin);
    stretches.push((repair.text(), began, now_us()));
    repaired.mib = (sent()? - sent_before) / f64::from(1 << 20);
    cluster.wait_until_whole()?;
    Ok([(COPY, copied), (repair.text(), repaired)])
}

/// Waits until the nodes that were emptied have ended.
fn wait_for_six(cluster: &Borealis) -> anyhow::Result<()> {
    let begin = Instant::now();
    while cluster.nodes()?.len() != 6 {
        if begin.elapsed() > REPAIR_TIMEOUT {
            bail!("an emptied node still runs after {REPAIR_TIMEOUT:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Copies the pages of a store, everything but its log, and waits for the disk. Returns how many bytes they take.
fn copy_pages(store: &Path, to: &Path) -> anyhow::Result<u64> {
    fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut bytes = 0;
    for entry in fs::read_dir(store).with_context(|| format!("cannot list {}", store.display()))? {
        let entry = entry?;
        if entry.file_name() == "log" || !entry.file_type()?.is_dir() {
            continue;
        }
        // Pages come and go meanwhile; a file that is not there any more is nobody's loss.
        let copied =
            Command::new("cp").arg("-a").arg(entry.path()).arg(to).output().context("cannot start cp")?;
        let said = String::from_utf8_lossy(&copied.stderr);
        if !copied.status.success() && !said.lines().all(|line| line.contains("No such file")) {
            bail!("cp of {} failed: {said}", entry.path().display());
        }
    }
    sync_files(to, &mut bytes)?;
    Ok(bytes)
}

fn sync_files(folder: &Path, bytes: &mut u64) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_files(&path, bytes)?;
            continue;
        }
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        file.sync_all().with_context(|| format!("cannot synchronize {}", path.display()))?;
        *bytes += file.metadata()?.blocks() * 512;
    }
    Ok(())
}

/// Takes a node's bound on what it repairs in a second away.
fn unthrottle(cluster: &Borealis, node: u16) -> anyhow::Result<()> {
    let file = cluster.store_folder(node).with_file_name("node.json");
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut config: Value = serde_json::from_slice(&text).context("node.json is not JSON")?;
    config["refill_bytes_per_second"] = 0.into();
    fs::write(&file, config.to_string()).with_context(|| format!("cannot write {}", file.display()))
}

fn in_zone(status: &Value) -> impl Iterator<Item = (u16, u64)> + '_ {
    let nodes = status["nodes"].as_array().into_iter().flatten().filter(|node| node["az"] == ZONE);
    nodes.filter_map(|node| {
        let id = u16::try_from(node["id"].as_u64()?).ok()?;
        Some((id, node["groups"].as_u64().unwrap_or(0)))
    })
}

/// The oldest node of the zone that has segments.
fn hosting(status: &Value) -> anyhow::Result<u16> {
    let hosts = in_zone(status).filter(|(_, groups)| *groups > 0).map(|(id, _)| id);
    hosts.min().with_context(|| format!("no node of {ZONE} has a segment"))
}

fn newest(status: &Value) -> anyhow::Result<u16> {
    in_zone(status).map(|(id, _)| id).max().with_context(|| format!("{ZONE} has no node"))
}

fn segments(status: &Value, node: u16) -> u64 {
    // One that the status leaves out for a moment is not done.
    in_zone(status).find(|(id, _)| *id == node).map_or(1, |(_, groups)| groups)
}

/// What a node has got of pages from peers, in bytes.
fn taken(status: &Value, node: u16) -> f64 {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let mut of_node = nodes.filter(|entry| entry["id"] == node);
    of_node.next().and_then(|entry| entry["metrics"][SENT].as_f64()).unwrap_or(0.0)
}

/// Adds how much was moved, and how fast, to what was measured meanwhile.
fn note(bench: &mut Bench, round: u32, moved: &[(&'static str, Moved)]) {
    for measurement in &mut bench.results.measurements {
        if measurement.workload != NAME || measurement.round != round {
            continue;
        }
        let of_it = moved.iter().filter(|(name, _)| *name == measurement.situation).map(|(_, moved)| moved);
        let (mib, seconds) =
            of_it.fold((0.0, 0.0), |(mib, seconds), it| (mib + it.mib, seconds + it.seconds));
        if seconds > 0.0 {
            measurement.values.insert("moved_mib".to_owned(), mib);
            measurement.values.insert("moved_mib_per_s".to_owned(), mib / seconds);
        }
    }
}
