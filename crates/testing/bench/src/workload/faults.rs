//! Latency while storage nodes are slow or dead, against the same run's healthy stretches.
//!
//! A slow node is one that is stopped (SIGSTOP) for 100 ms, goes on for 5 ms, and so on: nearly everything sent to it
//! waits for up to 100 ms. The fault is in the process, so it needs no right to change the network and delays
//! replies, acknowledgements and the node's own gossip alike.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::stretches::{Stretch, record};
use super::{end_round, initialize, load, start, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::model::System;
use crate::pgbench::{Load, Script, now_us};
use crate::server::{Borealis, Server};
use crate::workload_names::FAULTS;
use borealis_testbed::cleanup::{self, Item};

const NAME: &str = "faults";
const CLIENTS: u32 = 8;
const STOPPED: Duration = Duration::from_millis(100);
const RUNNING: Duration = Duration::from_millis(5);
/// After a change, before its effect is measured: the moment of a death is not the time after it.
const SETTLE: Duration = Duration::from_millis(500);

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let servers = start(bench, NAME, &[System::Borealis])?;
    let [server] = &servers[..] else { return Ok(()) };
    let Server::Borealis(cluster) = server else { return Ok(()) };
    initialize(bench, server, bench.plan.scale)?;
    server.warm(&super::PGBENCH_RELATIONS)?;
    let mut acknowledged = warm_up(bench, server, Script::TpcB)?;
    let stretch = Duration::from_secs(u64::from(bench.plan.seconds));
    for round in 1..=bench.plan.rounds {
        // Ended by hand after the last stretch; this is only its upper bound.
        let seconds = bench.plan.seconds * 8 + 150;
        let load = Load { seconds, sampling_rate: 1.0, ..load(bench, server, CLIENTS, Script::TpcB) };
        let running = load.start(&bench.program("pgbench"))?;
        std::thread::sleep(SETTLE);
        let stretches = inflict(bench, cluster, round, stretch)?;
        let outcome = running.end_now()?;
        acknowledged += outcome.samples.len() as u64;
        record(
            bench,
            (NAME, round),
            &["healthy"].into_iter().chain(FAULTS).collect::<Vec<_>>(),
            &stretches,
            &outcome,
        );
        if !end_round(
            bench,
            server,
            (NAME, round),
            Some(Appended { table: "pgbench_history", acknowledged }),
        )? {
            return Ok(());
        }
        if round < bench.plan.rounds {
            server.warm(&super::PGBENCH_RELATIONS)?;
            acknowledged += warm_up(bench, server, Script::TpcB)?;
        }
    }
    Ok(())
}

/// Inflicts one fault after the other, with healthy stretches between them.
fn inflict(bench: &Bench, cluster: &Borealis, round: u32, stretch: Duration) -> anyhow::Result<Vec<Stretch>> {
    let mut stretches = Vec::new();
    let mut during = |name: &'static str| {
        std::thread::sleep(SETTLE);
        let begin = now_us();
        std::thread::sleep(stretch);
        stretches.push((name, begin, now_us()));
    };
    let nodes = cluster.nodes()?;
    let (slow, process) = nodes[round as usize % nodes.len()];
    during("healthy");

    bench.say(&format!("node {slow} is slow"));
    with_slow(process, || during(FAULTS[0]));
    cluster.wait_until_whole()?;
    during("healthy");

    bench.say("nodes 2 and 5 are dead");
    cluster.command(&["node", "kill", "2", "5"])?;
    during(FAULTS[1]);
    cluster.command(&["node", "start", "2", "5"])?;
    cluster.wait_until_whole()?;
    during("healthy");

    bench.say("az3 is dead");
    cluster.command(&["az", "kill", "az3"])?;
    during(FAULTS[2]);
    cluster.command(&["az", "start", "az3"])?;
    cluster.wait_until_whole()?;
    Ok(stretches)
}

/// Does something while a process is stopped most of the time.
fn with_slow(process: u32, during: impl FnOnce()) {
    let done = AtomicBool::new(false);
    cleanup::add(Item::Frozen(process));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                cleanup::signal(process, Signal::SIGSTOP);
                std::thread::sleep(STOPPED);
                cleanup::signal(process, Signal::SIGCONT);
                std::thread::sleep(RUNNING);
            }
        });
        during();
        done.store(true, Ordering::Relaxed);
    });
    cleanup::remove(&Item::Frozen(process));
}
