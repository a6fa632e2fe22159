//! TPC-B at several numbers of clients, on all four systems, with what a transaction costs.

use std::time::Duration;

use super::{PGBENCH_RELATIONS, end_round, initialize, load, measure, rotated, start, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::model::{System, SystemCalls};
use crate::pgbench::{Load, Script};
use crate::server::Server;
use crate::strace;
use crate::workload_names as names;

const NAME: &str = "tpcb";
const CLIENTS: [u32; 4] = [1, 8, 32, 128];
/// PostgreSQL's own means to flush more commits at once. The others keep their defaults: what they are compared with.
const COMMIT_DELAY: &str = "-c commit_delay=800 -c commit_siblings=12";
/// At which it is used too.
const DELAYED_CLIENTS: u32 = 32;
/// At which system calls are counted.
const TRACED_CLIENTS: u32 = 32;

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let systems = [System::Stock, System::Replicated, System::Ceiling, System::Borealis];
    let servers = start(bench, NAME, &systems)?;
    for server in &servers {
        bench.say(&format!("loading scale {} into {}", bench.plan.scale, server.system().name()));
        initialize(bench, server, bench.plan.scale)?;
        server.warm(&PGBENCH_RELATIONS)?;
    }
    // What Borealis acknowledged since its tables were loaded; each adds a row to the history.
    let mut acknowledged = 0;
    for server in &servers {
        let transactions = warm_up(bench, server, Script::TpcB)?;
        if server.system() == System::Borealis {
            acknowledged += transactions;
        }
    }
    for round in 1..=bench.plan.rounds {
        for clients in CLIENTS {
            for place in rotated(servers.len(), round) {
                let server = &servers[place];
                let load = load(bench, server, clients, Script::TpcB);
                let outcome = measure(bench, server, &load, (NAME, &format!("{clients} clients"), round))?;
                if server.system() == System::Borealis {
                    acknowledged += outcome.transactions;
                }
            }
        }
        for server in servers.iter().filter(|server| server.system() == System::Borealis) {
            let load = load(bench, server, DELAYED_CLIENTS, Script::TpcB);
            let load = Load { session_options: COMMIT_DELAY, ..load };
            acknowledged += measure(bench, server, &load, (NAME, names::COMMIT_DELAY, round))?.transactions;
        }
        let appended = Appended { table: "pgbench_history", acknowledged };
        for server in &servers {
            if !end_round(bench, server, (NAME, round), Some(appended))? {
                // What was lost would be found missing again in every later round.
                return Ok(());
            }
            if server.system() == System::Borealis && round < bench.plan.rounds {
                // A server that was killed begins with empty caches; the others did not have to.
                server.warm(&PGBENCH_RELATIONS)?;
                acknowledged += warm_up(bench, server, Script::TpcB)?;
            }
        }
    }
    count_system_calls(bench, &servers);
    Ok(())
}

/// System calls of each part of A and Borealis, one part after the other under the same load.
fn count_system_calls(bench: &mut Bench, servers: &[Server]) {
    if !strace::is_installed() {
        bench.results.notes.push("system calls: not measured, strace is not installed".to_owned());
        return;
    }
    for server in servers.iter().filter(|s| matches!(s.system(), System::Stock | System::Borealis)) {
        bench.say(&format!("counting system calls of {}", server.system().name()));
        // The last round's check left Borealis with empty caches.
        let traced = server.warm(&PGBENCH_RELATIONS).and_then(|()| trace(bench, server));
        match traced {
            Ok(counted) => bench.results.system_calls.extend(counted),
            Err(error) => bench.results.notes.push(format!("system calls: not measured: {error:#}")),
        }
    }
}

fn trace(bench: &Bench, server: &Server) -> anyhow::Result<Vec<SystemCalls>> {
    let parts = server.parts()?;
    let mut roles: Vec<_> = parts.iter().map(|(role, _)| *role).collect();
    roles.sort_unstable();
    roles.dedup();
    // Two seconds for each part, and some to begin, attach and detach.
    let seconds = 3 + 4 * u32::try_from(roles.len())?;
    let load = Load { seconds, sampling_rate: 1.0, ..load(bench, server, TRACED_CLIENTS, Script::TpcB) };
    let running = load.start(&bench.program("pgbench"))?;
    std::thread::sleep(Duration::from_secs(1));
    let mut traces = Vec::new();
    for role in roles {
        let processes: Vec<u32> =
            parts.iter().filter(|(other, _)| *other == role).map(|(_, process)| *process).collect();
        traces.push((role, strace::trace(&processes, &bench.environment.folder)?));
    }
    let outcome = running.finish()?;
    Ok(traces
        .into_iter()
        .filter_map(|(role, trace)| {
            let (per_transaction, most_frequent) = trace.per_transaction(&outcome.samples)?;
            let role = role.to_owned();
            Some(SystemCalls { role, system: server.system(), per_transaction, most_frequent })
        })
        .collect())
}
