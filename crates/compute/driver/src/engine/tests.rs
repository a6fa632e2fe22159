//! The defect: an engine that goes on after its stream stopped. And what it does when members change.

mod members;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use borealis_client::Memberships;
use borealis_quorum::Promise;
use borealis_quorum::recovery::Outcome;
use borealis_spec::{Membership, Tuning};
use borealis_types::{
    EpochHistory, EpochOpening, InstanceId, NodeId, Placement, PostgresVersion, RecordSpan, ServerVersion,
    VolumeEpoch, VolumeId, WriterId,
};

use super::Engine;
use crate::config::{Configured, DriverConfig};

/// An engine of a volume whose nodes have no addresses, so that it connects to nobody.
fn engine() -> Engine {
    let members = [0, 1, 2, 3, 4, 5].map(NodeId);
    let config = DriverConfig {
        volume: VolumeId(1),
        placement: Placement::new(1).expect("one group is allowed"),
        version: PostgresVersion::V15,
        nodes: Vec::new(),
        tls: None,
        groups: Membership::everyone_has_everything(
            Placement::new(1).expect("one group is allowed"),
            &members,
        ),
        memberships: BTreeMap::new(),
        instance: InstanceId(1),
        instance_dir: "/nonexistent".into(),
        memory_dir: "/nonexistent".into(),
        postgres_bin_dir: "/nonexistent".into(),
        shim_library: "/nonexistent".into(),
        port: 0,
        postgres_user: None,
        settings: BTreeMap::new(),
        metrics_listen: None,
        tuning: Tuning::default(),
    };
    let promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(1) };
    let mut history = EpochHistory::default();
    history.push(EpochOpening {
        epoch: promise.epoch,
        last: RecordSpan::NONE,
        server_version: ServerVersion::NEWEST_TESTED,
    });
    let confirmed_before = Duration::ZERO;
    let outcome =
        Outcome { promise, history, durable: RecordSpan::NONE, tails: Vec::new(), confirmed_before };
    let config = Configured::new(config).expect("it names no certificate");
    let memberships = Memberships::new(config.group_memberships().expect("six nodes"), Vec::new());
    Engine::new(Arc::new(config), outcome, memberships, 3).expect("the system has a poll")
}

#[test]
#[should_panic(expected = "invariant stopped-stream-rests is broken")]
fn a_turn_after_the_stream_stopped() {
    let mut engine = engine();
    engine.turn(Duration::ZERO).expect("nothing is wrong yet");
    engine.stopped = true;
    let _ = engine.turn(Duration::ZERO);
}

#[test]
#[should_panic(expected = "invariant stopped-stream-rests is broken")]
fn a_publication_after_the_stream_stopped() {
    let mut engine = engine();
    engine.stopped = true;
    engine.publish();
}
