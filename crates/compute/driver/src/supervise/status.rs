//! What the instance's socket shows while a server runs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Supervisor;
use super::server::RunningServer;
use crate::engine::Engine;
use crate::evict::Evictor;
use crate::instance_socket::{Counters, GroupStatus, MemberStatus, NodeStatus, StartPhases, Status};

impl Supervisor {
    pub(super) fn show(
        &self,
        engine: &Engine,
        server: &RunningServer,
        evictor: &Evictor,
        state: &'static str,
        phases: StartPhases,
    ) {
        let shipper = engine.shipper();
        let durable = shipper.durable().end.to_string();
        let groups = self
            .config
            .placement
            .groups()
            .map(|group| GroupStatus {
                id: group.0,
                membership_epoch: engine.memberships().of(group).map_or(0, |membership| membership.epoch().0),
                pgcl: shipper.tracker().group_complete(group).to_string(),
                members: engine
                    .members(group)
                    .map(|member| MemberStatus {
                        node: member.node.0,
                        scl: member.segment_complete_lsn.to_string(),
                        state: match member.fenced_by {
                            Some(_) => "fenced",
                            None if member.connected => "up",
                            None => "down",
                        },
                    })
                    .collect(),
            })
            .collect();
        let nodes = engine
            .node_views()
            .map(|view| NodeStatus {
                node: view.node.0,
                heard_ms: u64::try_from(view.heard.as_millis()).unwrap_or(u64::MAX),
                connected: view.connected,
            })
            .collect();
        let before = self.shared.shown();
        self.shared.show(Status {
            state,
            epoch: shipper.tracker().epoch().0,
            vcl: durable.clone(),
            vdl: durable,
            shipped: shipper.last_shipped().end.to_string(),
            groups,
            nodes,
            driver_pid: std::process::id(),
            server_version: before.server_version,
            certificate_expires_seconds: self.config.certificate_expires_seconds(),
            warnings: before.warnings,
            postgres_pid: Some(server.server.process_id()),
            last_recovery_ms: before.last_recovery_ms,
            phases,
            restarts: before.restarts,
            last_failure: before.last_failure,
            counters: counters(engine, evictor),
        });
    }
}

/// What was done since the last recovery.
fn counters(engine: &Engine, evictor: &Evictor) -> Counters {
    let (ship, read) = (engine.ship_counters(), engine.read_counters());
    Counters {
        records: ship.records,
        record_bytes: ship.record_bytes,
        batches_sent: ship.batches_sent,
        bytes_sent: ship.bytes_sent,
        batches_encoded: ship.batches_encoded,
        acknowledgements: ship.acknowledgements,
        retained_bytes: engine.shipper().retained_bytes() as u64,
        reads: read.operations,
        prefetch_hits: read.prefetch_hits,
        prefetches: read.prefetches,
        read_requests: read.requests,
        read_hedges: read.hedges,
        read_failures: read.failures,
        read_errors: read.errors,
        cache_bytes: evictor.figures().bytes.load(Ordering::Relaxed),
        cache_limit_bytes: evictor.limit_bytes(),
        cache_blocks_dropped: evictor.figures().dropped_blocks.load(Ordering::Relaxed),
    }
}

/// Milliseconds, to the microsecond.
pub(super) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
