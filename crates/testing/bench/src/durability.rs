//! Is what was acknowledged still there when the instance and two nodes are gone?
//!
//! Killing alone would hardly ever show a writer that acknowledges too early: the other nodes have the same bytes
//! a moment later. So the check makes that moment long:
//!
//! 1. Ledger clients commit on the whole cluster.
//! 2. Four nodes are stopped (SIGSTOP), and the clients go on trying. A writer that needs four of six now
//!    acknowledges nothing. One that is content with less goes on, on the two nodes that run.
//! 3. The instance and those two nodes are killed (SIGKILL). The four go on (SIGCONT), alone.
//! 4. The instance is started on them, and everything that was ever acknowledged must be there.
//!
//! A write quorum of four leaves at least two of the four with every acknowledged record, so a correct system passes
//! whatever the timing, and one that acknowledges at one or two of six fails every time.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::ledger::Ledger;
use crate::model::DurabilityCheck;
use crate::server::{Borealis, connect};
use borealis_testbed::cleanup::{self, Item};

/// Clients of the ledger.
const CLIENTS: usize = 4;
/// How long they commit on the whole cluster, and how long with four nodes stopped.
const HEALTHY: Duration = Duration::from_millis(700);
const STOPPED: Duration = Duration::from_millis(700);

/// A table that the workload only ever adds one row to per transaction, and how many it was told were committed.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Name of the table that grows by one row a transaction.
    pub table: &'static str,
    /// Acknowledged transactions since it was made.
    pub acknowledged: u64,
}

/// The two nodes that die in a round: of different zones, others each time.
fn victims(round: u32) -> [u16; 2] {
    let first = u16::try_from(round % 6).expect("below six");
    [first + 1, (first + 3) % 6 + 1]
}

/// Stopped processes, which go on when this is dropped.
struct Frozen(Vec<u32>);

impl Frozen {
    fn stop(processes: Vec<u32>) -> Frozen {
        for &process in &processes {
            cleanup::add(Item::Frozen(process));
            cleanup::signal(process, Signal::SIGSTOP);
        }
        Frozen(processes)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &process in &self.0 {
            cleanup::signal(process, Signal::SIGCONT);
            cleanup::remove(&Item::Frozen(process));
        }
    }
}

/// Runs the check. Afterwards the cluster runs again, all six nodes of it, unless something was lost in such a way
/// that it cannot.
///
/// # Errors
/// When the check itself cannot be carried out. A cluster that does not start again is no such error: it is a loss.
pub fn check(
    cluster: &Borealis,
    workload: &str,
    round: u32,
    appended: Option<Appended>,
) -> anyhow::Result<DurabilityCheck> {
    Ledger::create(cluster.port())?;
    cluster.wait_until_whole()?;
    let nodes = cluster.nodes()?;
    ensure!(nodes.len() == 6, "the durability check needs six nodes, and {} run", nodes.len());
    // By their places among those that there are: some may have been replaced.
    let victims = victims(round).map(|place| nodes[usize::from(place) - 1].0);
    let (dying, staying): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|(node, _)| victims.contains(node));
    let instance = cluster.instance_processes()?;
    let mut ledger = Ledger::start(cluster.port(), CLIENTS)?;
    std::thread::sleep(HEALTHY);
    {
        let _frozen = Frozen::stop(staying.into_iter().map(|(_, process)| process).collect());
        std::thread::sleep(STOPPED);
        for process in instance.into_iter().chain(dying.into_iter().map(|(_, process)| process)) {
            cleanup::signal(process, Signal::SIGKILL);
        }
        // Killed processes are gone once their sockets are; the others must not hear from them any more.
        std::thread::sleep(Duration::from_millis(100));
    }
    let lost = match cluster.command(&["instance", "start"]) {
        Ok(_) => {
            let mut connection = connect(cluster.port())?;
            let mut lost = ledger.missing(&mut connection)?;
            if let (None, Some(Appended { table, acknowledged })) = (&lost, appended) {
                let there = connection
                    .number(&format!("SELECT count(*) FROM {table}"))
                    .with_context(|| format!("{table} cannot be counted"))?;
                if there < acknowledged as f64 {
                    lost = Some(format!("{table} has {there} rows, but {acknowledged} were acknowledged"));
                }
            }
            lost
        }
        Err(error) => Some(format!("the instance does not start on the four remaining nodes: {error:#}")),
    };
    let started = cluster.command(&["node", "start"]);
    if lost.is_none() {
        started?;
        cluster.wait_until_whole()?;
    }
    Ok(DurabilityCheck {
        workload: workload.to_owned(),
        round,
        killed_nodes: victims.to_vec(),
        acknowledged: ledger.acknowledged(),
        workload_transactions: appended.map(|appended| appended.acknowledged),
        lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_of_different_zones_die_and_every_node_has_its_turn() {
        let mut died = std::collections::BTreeSet::new();
        for round in 0..12 {
            let [a, b] = victims(round);
            assert!((1..=6).contains(&a) && (1..=6).contains(&b) && a != b);
            assert_ne!((a - 1) / 2, (b - 1) / 2, "nodes {a} and {b} are in one zone");
            died.extend([a, b]);
        }
        assert_eq!(died.len(), 6);
    }
}
