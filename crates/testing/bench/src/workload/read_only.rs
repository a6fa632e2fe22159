//! One row by its key, with the pages in three places.
//!
//! * In shared buffers: they hold everything.
//! * In the local cache: shared buffers of 16 MB; the operating system's cache (A) or Borealis's page files have the
//!   rest.
//! * Only in storage: shared buffers of 16 MB and nothing else. Borealis runs with `--cache-limit 0`; A's files are
//!   dropped from the operating system's cache four times a second. The caches of the storage nodes stay: they are
//!   other machines' memory wherever it matters.

use super::{PGBENCH_RELATIONS, initialize, load, measure, rotated, start, warm_up};
use crate::Bench;
use crate::model::System;
use crate::pgbench::Script;
use crate::server::Memory;

const NAME: &str = "readonly";
const CLIENTS: u32 = 8;

/// The situations, as the targets name them.
const SITUATIONS: [(&str, Memory); 3] = [
    ("in shared buffers", Memory::SharedBuffers),
    ("in the local cache", Memory::LocalCache),
    ("only in storage", Memory::StorageOnly),
];

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut servers = start(bench, NAME, &[System::Stock, System::Borealis])?;
    for server in &servers {
        initialize(bench, server, bench.plan.scale)?;
    }
    for (situation, memory) in SITUATIONS {
        for server in &mut servers {
            if memory != Memory::SharedBuffers {
                server.restart_with(memory)?;
            }
            server.warm(&PGBENCH_RELATIONS)?;
            warm_up(bench, server, Script::ReadOnly)?;
        }
        for round in 1..=bench.plan.rounds {
            for place in rotated(servers.len(), round) {
                let load = load(bench, &servers[place], CLIENTS, Script::ReadOnly);
                measure(bench, &servers[place], &load, (NAME, situation, round))?;
            }
        }
    }
    Ok(())
}
