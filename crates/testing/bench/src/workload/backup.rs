//! TPC-B with a backup and without, on two clusters of one machine in alternation.
//!
//! Two clusters rather than one that is switched: a backup that begins anew makes snapshots of everything, which is not what it costs day by day.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_types::Lsn;

use super::{PGBENCH_RELATIONS, end_round, initialize, load, measure, rotated, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::pgbench::Script;
use crate::server::{Borealis, Server};
use crate::workload_names::{self as names, BACKUP_CLIENTS, Backup};

const NAME: &str = "backup";
/// Longest wait for what was written to be in the backup.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// A cluster of the comparison.
struct Side {
    server: Server,
    backup: Backup,
    /// What it acknowledged since its tables were loaded; each adds a row to the history.
    acknowledged: u64,
}

impl Side {
    fn cluster(&self) -> anyhow::Result<&Borealis> {
        match &self.server {
            Server::Borealis(cluster) => Ok(cluster),
            Server::Stock(_) => bail!("only a cluster has a backup"),
        }
    }

    /// Waits until everything that is durable now can be restored, and says how long; nothing to wait for without a backup.
    fn wait_until_uploaded(&self) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        if self.backup == Backup::Off {
            return Ok(Duration::ZERO);
        }
        let cluster = self.cluster()?;
        let durable = durable(cluster)?;
        while cluster.newest_restorable()?.is_none_or(|newest| newest < durable) {
            if begin.elapsed() > UPLOAD_TIMEOUT {
                bail!("the backup has not reached {durable} after {UPLOAD_TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(begin.elapsed())
    }
}

fn durable(cluster: &Borealis) -> anyhow::Result<Lsn> {
    let status = cluster.status()?;
    let text = status["volume"]["vdl"].as_str().context("status has no durable LSN")?;
    text.parse().with_context(|| format!("`{text}` is no LSN"))
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut sides = Vec::new();
    for backup in Backup::BOTH {
        bench.say(&format!("setting up Borealis, {}", backup.text()));
        let folder = bench.environment.folder.join(format!("{NAME}-{}", sides.len()));
        let kept = bench.environment.folder.join(format!("{NAME}-kept"));
        let kept = (backup == Backup::On).then_some(kept);
        let cluster = Borealis::start_with_backup(&bench.environment, &folder, kept.as_deref())?;
        let mut side = Side { server: Server::Borealis(cluster), backup, acknowledged: 0 };
        initialize(bench, &side.server, bench.plan.scale)?;
        side.server.warm(&PGBENCH_RELATIONS)?;
        side.acknowledged = warm_up(bench, &side.server, Script::TpcB)?;
        sides.push(side);
    }
    for round in 1..=bench.plan.rounds {
        for clients in BACKUP_CLIENTS {
            for place in rotated(sides.len(), round) {
                // What one still uploads would be uploaded while the other is measured.
                for side in &sides {
                    side.wait_until_uploaded()?;
                }
                run_once(bench, &mut sides[place], clients, round)?;
            }
        }
        for side in &mut sides {
            let appended = Appended { table: "pgbench_history", acknowledged: side.acknowledged };
            if !end_round(bench, &side.server, (NAME, round), Some(appended))? {
                // What was lost would be found missing again in every later round.
                return Ok(());
            }
            if round < bench.plan.rounds {
                // A server that was killed begins with empty caches.
                side.cluster()?.wait_until_whole()?;
                side.server.warm(&PGBENCH_RELATIONS)?;
                side.acknowledged += warm_up(bench, &side.server, Script::TpcB)?;
            }
        }
    }
    Ok(())
}

/// One load, and what the backup made of it.
fn run_once(bench: &mut Bench, side: &mut Side, clients: u32, round: u32) -> anyhow::Result<()> {
    let before = side.server.counters()?;
    let load = load(bench, &side.server, clients, Script::TpcB);
    let situation = names::with_backup(clients, side.backup);
    side.acknowledged += measure(bench, &side.server, &load, (NAME, &situation, round))?.transactions;
    if side.backup == Backup::Off {
        return Ok(());
    }
    // The last second's redo is uploaded after the load.
    let uploaded_after = side.wait_until_uploaded()?;
    let after = side.server.counters()?;
    let rise = |name: &str| {
        let value =
            |counters: &std::collections::BTreeMap<String, f64>| counters.get(name).copied().unwrap_or(0.0);
        value(&after) - value(&before)
    };
    let figures = &mut bench.results.measurements.last_mut().context("it was measured")?.values;
    figures.insert("backup_complete_ms".to_owned(), uploaded_after.as_secs_f64() * 1000.0);
    figures.insert("backup_snapshots".to_owned(), rise("nodes_backup_snapshots"));
    figures.insert("backup_failures".to_owned(), rise("nodes_backup_failures"));
    if rise("wal_bytes") > 0.0 {
        let uploaded = rise("nodes_backup_bytes") / rise("wal_bytes");
        figures.insert("uploaded_bytes_per_wal_byte".to_owned(), uploaded);
    }
    Ok(())
}
