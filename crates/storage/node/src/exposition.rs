//! A node's state and counters for Prometheus.

use borealis_metrics::exposition::{Exposition, Value};
use borealis_metrics::list::{NODE, NODE_PREFIX};
use borealis_types::VolumeId;
use borealis_wire::NodeStatus;

use crate::metrics::Metrics;

/// What a node says: its status, and the durations that the status only has summaries of.
pub(crate) fn exposition(volume: VolumeId, status: &NodeStatus, metrics: &Metrics) -> Exposition {
    let mut exposition = Exposition::new(NODE);
    let mut add = |name: &str, labels: &[&str], value: Value| {
        exposition.add(&format!("{NODE_PREFIX}{name}"), labels, value);
    };
    add("info", &[&volume.to_string(), &status.node.to_string(), &status.zone.0], 1.into());
    add("failed", &[], status.failure.is_some().into());
    add("hindered", &[], status.hindrance.is_some().into());
    add("damaged", &[], status.damage.is_some().into());
    for segment in &status.segments {
        let group = segment.group.to_string();
        add("segment_complete_lsn", &[&group], segment.segment_complete_lsn.0.into());
        add("segment_durable_lsn", &[&group], segment.known_durable.end.0.into());
        add("segment_materialized_lsn", &[&group], segment.materialized_lsn.0.into());
        add("segment_promised_epoch", &[&group], segment.promised_epoch.0.into());
    }
    add("acknowledgement_seconds", &[], Value::Durations(metrics.acknowledgements.durations()));
    add("page_read_seconds", &[], Value::Durations(metrics.page_reads.durations()));
    // Quantiles in microseconds are for people; Prometheus computes them from the durations.
    for (name, value) in status.metrics.iter().filter(|(name, _)| !name.ends_with("_us")) {
        match name.strip_suffix("_ms") {
            // In Prometheus's own unit.
            Some(stem) => add(&format!("{stem}_seconds"), &[], Value::Fraction(*value as f64 / 1e3)),
            None => add(name, &[], (*value).into()),
        }
    }
    exposition
}
