//! TPC-B for longer than anything can be put off: A comes to a checkpoint, and storage nodes fold redo into pages.

use super::{PGBENCH_RELATIONS, end_round, initialize, load, measure, start, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::model::System;
use crate::pgbench::{Load, Script};

const NAME: &str = "sustained";
const CLIENTS: u32 = 8;
/// Storage nodes fold for the first time after about half of this.
const SECONDS: u32 = 300;
const ROUND: u32 = 1;
/// Latencies of a long run are written down more rarely.
const SAMPLING_RATE: f64 = 0.02;

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    if bench.plan.quick {
        bench.results.notes.push("sustained TPC-B: takes too long for a quick run".to_owned());
        return Ok(());
    }
    let situation = format!("{CLIENTS} clients, {SECONDS} s");
    for server in start(bench, NAME, &[System::Stock, System::Borealis])? {
        initialize(bench, &server, bench.plan.scale)?;
        server.warm(&PGBENCH_RELATIONS)?;
        let mut acknowledged = warm_up(bench, &server, Script::TpcB)?;
        let load = Load {
            seconds: SECONDS,
            sampling_rate: SAMPLING_RATE,
            ..load(bench, &server, CLIENTS, Script::TpcB)
        };
        acknowledged += measure(bench, &server, &load, (NAME, &situation, ROUND))?.transactions;
        let appended = Appended { table: "pgbench_history", acknowledged };
        end_round(bench, &server, (NAME, ROUND), Some(appended))?;
    }
    Ok(())
}
