//! An instance's state and counters for Prometheus.

use borealis_metrics::exposition::{Exposition, Value};
use borealis_metrics::list::{INSTANCE, INSTANCE_PREFIX};
use borealis_types::{InstanceId, Lsn, VolumeId};

use crate::instance_socket::{Counters, Status};

/// Every state that a driver shows.
const STATES: [&str; 6] = ["starting", "recovering", "importing", "running", "stopping", "fenced"];

/// What a driver says of its instance.
pub(crate) fn exposition(volume: VolumeId, instance: InstanceId, status: &Status) -> Exposition {
    let mut exposition = Exposition::new(INSTANCE);
    let mut add = |name: &str, labels: &[&str], value: Value| {
        exposition.add(&format!("{INSTANCE_PREFIX}{name}"), labels, value);
    };
    let version = status.server_version.map_or_else(String::new, |version| version.to_string());
    add("info", &[&volume.to_string(), &instance.to_string(), &version], 1.into());
    for state in STATES {
        add("state", &[state], (state == status.state).into());
    }
    add("epoch", &[], status.epoch.into());
    // Positions are text in the status, for people; empty before the first recovery.
    let position = |text: &str| Value::Whole(text.parse::<Lsn>().map_or(0, |lsn| lsn.0));
    add("durable_lsn", &[], position(&status.vdl));
    add("shipped_lsn", &[], position(&status.shipped));
    for group in &status.groups {
        let id = group.id.to_string();
        add("group_complete_lsn", &[&id], position(&group.pgcl));
        add("membership_epoch", &[&id], group.membership_epoch.into());
        for member in &group.members {
            let node = member.node.to_string();
            add("segment_acknowledged_lsn", &[&id, &node], position(&member.scl));
            add("segment_connected", &[&id, &node], (member.state == "up").into());
        }
    }
    for node in &status.nodes {
        add("node_heard_seconds", &[&node.node.to_string()], Value::Fraction(node.heard_ms as f64 / 1e3));
    }
    add("certificate_expires_seconds", &[], status.certificate_expires_seconds.into());
    if let Some(ms) = status.last_recovery_ms {
        add("last_recovery_seconds", &[], Value::Fraction(ms / 1e3));
    }
    add("restarts", &[], u64::from(status.restarts).into());
    for (name, value) in counters(&status.counters) {
        add(name, &[], value.into());
    }
    exposition
}

fn counters(counters: &Counters) -> [(&'static str, u64); 17] {
    [
        ("records", counters.records),
        ("record_bytes", counters.record_bytes),
        ("batches_sent", counters.batches_sent),
        ("sent_bytes", counters.bytes_sent),
        ("batches_encoded", counters.batches_encoded),
        ("acknowledgements", counters.acknowledgements),
        ("retained_bytes", counters.retained_bytes),
        ("reads", counters.reads),
        ("prefetch_hits", counters.prefetch_hits),
        ("prefetches", counters.prefetches),
        ("read_requests", counters.read_requests),
        ("read_hedges", counters.read_hedges),
        ("read_failures", counters.read_failures),
        ("read_errors", counters.read_errors),
        ("cache_bytes", counters.cache_bytes),
        ("cache_limit_bytes", counters.cache_limit_bytes),
        ("cache_blocks_dropped", counters.cache_blocks_dropped),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance_socket::{GroupStatus, MemberStatus, NodeStatus};

    #[test]
    fn an_instance_says_everything_that_is_listed_and_nothing_else() {
        let member = MemberStatus { node: 4, scl: "0/1A".to_owned(), state: "up" };
        let group =
            GroupStatus { id: 2, membership_epoch: 3, pgcl: "0/1B".to_owned(), members: vec![member] };
        let node = NodeStatus { node: 4, heard_ms: 2500, connected: true };
        let status = Status {
            state: "running",
            vdl: "1/0".to_owned(),
            groups: vec![group],
            nodes: vec![node],
            last_recovery_ms: Some(1500.0),
            certificate_expires_seconds: 1_795_823_999,
            ..Status::default()
        };
        let exposition = exposition(VolumeId(1), InstanceId(1), &status);
        assert_eq!((exposition.unlisted(), exposition.missing()), (&[][..], vec![]));
        let text = exposition.text();
        for line in [
            "borealis_instance_state{state=\"running\"} 1",
            "borealis_instance_state{state=\"fenced\"} 0",
            "borealis_instance_durable_lsn 4294967296",
            "borealis_instance_shipped_lsn 0",
            "borealis_instance_segment_acknowledged_lsn{group=\"2\",node=\"4\"} 26",
            "borealis_instance_membership_epoch{group=\"2\"} 3",
            "borealis_instance_node_heard_seconds{node=\"4\"} 2.5",
            "borealis_instance_last_recovery_seconds 1.5",
            "borealis_instance_certificate_expires_seconds 1795823999",
        ] {
            assert!(text.lines().any(|said| said == line), "{line} is not in\n{text}");
        }
    }
}
