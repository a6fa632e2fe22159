//! Bulk load: rows through `COPY`, and the primary keys of the loaded tables.

use super::{end_round, initialize, rotated, start};
use crate::Bench;
use crate::durability::Appended;
use crate::model::{Measurement, System};

const NAME: &str = "bulk";
/// Rows of `pgbench_accounts` for each unit of scale.
const ROWS_PER_SCALE: u64 = 100_000;

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let servers = start(bench, NAME, &[System::Stock, System::Replicated, System::Borealis])?;
    let scale = bench.plan.scale;
    for round in 1..=bench.plan.rounds {
        for place in rotated(servers.len(), round) {
            let server = &servers[place];
            let steps = initialize(bench, server, scale)?;
            bench.say(&format!(
                "bulk, scale {scale}: {} COPY {:.2} s, indexes {:.2} s",
                server.system().name(),
                steps.copy_seconds,
                steps.index_seconds
            ));
            for (situation, seconds) in [
                ("COPY", steps.copy_seconds),
                ("index build", steps.index_seconds),
                ("VACUUM", steps.vacuum_seconds),
                ("writing pages afterwards", steps.settle_seconds),
            ] {
                let measurement = Measurement::new(NAME, situation, server.system(), round);
                bench.results.measurements.push(measurement.with("seconds", seconds));
            }
        }
        let rows = Appended { table: "pgbench_accounts", acknowledged: u64::from(scale) * ROWS_PER_SCALE };
        for server in &servers {
            if !end_round(bench, server, (NAME, round), Some(rows))? {
                return Ok(());
            }
        }
    }
    Ok(())
}
