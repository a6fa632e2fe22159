//! `kill -9` of the whole server under load, to the first answered query.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{initialize, load, start};
use crate::Bench;
use crate::ledger::Ledger;
use crate::model::{DurabilityCheck, Event, Measurement, System};
use crate::pgbench::{Load, Script, now_us};
use crate::server::{Borealis, Server, connect, wait_for_answer};
use crate::workload_names::SIZES;
use borealis_testbed::cleanup;

const NAME: &str = "recovery";
const CLIENTS: u32 = 8;
/// How long the load runs before a kill that is not a situation's first, and after every kill.
const SHORT_SECONDS: u32 = 2;

/// A size: its name, the scale, and how long the load runs before the first kill.
struct Size {
    name: &'static str,
    scale: u32,
    seconds: u32,
}

fn sizes(bench: &Bench) -> Vec<Size> {
    let plan = bench.plan;
    let scale = if plan.quick { (plan.scale / 4).max(1) } else { (plan.scale / 5).max(1) };
    let mut sizes = vec![
        Size { name: SIZES[0], scale, seconds: plan.seconds },
        Size { name: SIZES[1], scale: scale * 10, seconds: plan.seconds },
    ];
    if !plan.quick {
        sizes.push(Size { name: SIZES[2], scale, seconds: plan.seconds * 10 });
    }
    sizes
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    for (number, size) in sizes(bench).into_iter().enumerate() {
        let servers = start(bench, &format!("{NAME}{number}"), &[System::Stock, System::Borealis])?;
        for mut server in servers {
            initialize(bench, &server, size.scale)?;
            Ledger::create(server.port())?;
            // Every later crash of A would find a short log, because a recovery ends with a checkpoint.
            let rounds = if server.system() == System::Stock { 1 } else { bench.plan.rounds.max(3) };
            for round in 1..=rounds {
                if !crash(bench, &mut server, &size, round)? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// One crash. Returns whether everything acknowledged was there.
fn crash(bench: &mut Bench, server: &mut Server, size: &Size, round: u32) -> anyhow::Result<bool> {
    let program = bench.program("pgbench");
    let seconds = if round == 1 { size.seconds } else { SHORT_SECONDS };
    let load = Load { seconds: seconds + 60, ..load(bench, server, CLIENTS, Script::TpcB) };
    let running = load.start(&program)?;
    let mut ledger = Ledger::start(server.port(), 2)?;
    std::thread::sleep(Duration::from_secs(u64::from(seconds)));
    let mut measurement = Measurement::new(NAME, size.name, server.system(), round);
    let killed_us = now_us();
    let answered_ms = match server {
        Server::Stock(stock) => {
            let begin = Instant::now();
            let replay_s = stock.crash_and_restart()?;
            let answered = begin.elapsed();
            if let Some(replay_s) = replay_s {
                measurement = measurement.with("replay_seconds", replay_s);
                measurement.events = stock_events(answered.as_secs_f64(), replay_s);
            }
            answered.as_secs_f64() * 1000.0
        }
        Server::Borealis(cluster) => {
            let answered = crash_cluster(cluster)?.as_secs_f64();
            measurement.events = recovery_events(cluster, answered)?;
            answered * 1000.0
        }
    };
    let before = running.finish_after_crash()?;
    ledger.stop();
    let mut connection = connect(server.port())?;
    let lost = ledger.missing(&mut connection)?;
    let after = Load { seconds: SHORT_SECONDS, ..load }.run(&program)?;
    // Throughput over time, with the kill at zero.
    let relative = |begin_us: u64, at_s: f64| begin_us as f64 / 1e6 + at_s - killed_us as f64 / 1e6;
    measurement.throughput = [&before, &after]
        .into_iter()
        .flat_map(|part| part.progress.iter().map(|(at, tps)| (relative(part.begin_us, *at), *tps)))
        .filter(|(at, _)| *at > -10.0)
        .collect();
    bench.say(&format!(
        "recovery, {}: {} answers after {answered_ms:.0} ms",
        size.name,
        server.system().name()
    ));
    bench.results.measurements.push(measurement.with("first_answer_ms", answered_ms));
    let kept = lost.is_none();
    if server.system() == System::Borealis {
        if let Some(lost) = &lost {
            bench.say(&format!("INVALID: acknowledged commits were lost: {lost}"));
        }
        bench.results.record_check(DurabilityCheck {
            workload: NAME.to_owned(),
            round,
            killed_nodes: Vec::new(),
            acknowledged: ledger.acknowledged(),
            workload_transactions: None,
            lost,
        });
    } else if let Some(lost) = lost {
        bench.results.failures.push(format!("{} lost commits: {lost}", server.system().name()));
    }
    Ok(kept)
}

/// Kills driver and postmaster, starts the instance again, and returns how long it took to an answered query.
fn crash_cluster(cluster: &Borealis) -> anyhow::Result<Duration> {
    let instance = cluster.instance_processes()?;
    let begin = Instant::now();
    for process in instance {
        cleanup::signal(process, Signal::SIGKILL);
    }
    cluster.command(&["instance", "start"])?;
    wait_for_answer(cluster.port(), || false)?;
    Ok(begin.elapsed())
}

/// What the driver says its phases took, one after the other, ended by the first answer.
fn recovery_events(cluster: &Borealis, answered_s: f64) -> anyhow::Result<Vec<Event>> {
    let status = cluster.status()?;
    let phases = &status["instances"][0]["driver"]["phases"];
    let named = [
        ("find the nodes", "connect_ms"),
        ("quorum recovery", "protocol_ms"),
        ("write a data directory", "directory_ms"),
        ("make the checkpoint durable", "checkpoint_ms"),
        ("start postgres", "server_ms"),
    ];
    let durations: Vec<f64> =
        named.iter().map(|(_, name)| phases[name].as_f64().unwrap_or(0.0) / 1000.0).collect();
    // What remains is before the driver's clock starts: clearing what was killed, starting the command.
    let mut at = (answered_s - durations.iter().sum::<f64>()).max(0.0);
    let mut events =
        vec![Event { label: "clear away, start the driver".to_owned(), begin_s: 0.0, end_s: at }];
    for ((label, _), duration) in named.into_iter().zip(durations) {
        events.push(Event { label: label.to_owned(), begin_s: at, end_s: at + duration });
        at += duration;
    }
    Ok(events)
}

fn stock_events(answered_s: f64, replay_s: f64) -> Vec<Event> {
    // The log has no finer clock than this; the end-of-recovery checkpoint is most of what follows the replay.
    let replay_s = replay_s.min(answered_s);
    vec![
        Event { label: "replay".to_owned(), begin_s: 0.0, end_s: replay_s },
        Event { label: "start, checkpoint".to_owned(), begin_s: replay_s, end_s: answered_s },
    ]
}
