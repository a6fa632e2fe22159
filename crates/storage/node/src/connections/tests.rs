//! Defects that are planted into the order of things on a connection, and noticed.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use borealis_client::stream::Stream;
use borealis_spec::{Membership, NodeConfig};
use borealis_store::{Identity, Options, Store};
use borealis_types::{AvailabilityZone, NodeId, Placement, PostgresVersion, VolumeEpoch, VolumeId};
use borealis_wire::{Caller, Refusal, Reply, Request};

use super::appends::{AppendPath, Appends};
use super::frame_memory::FrameMemory;
use super::large_answers::LargeAnswers;
use super::receiver::{Fill, Receiver};
use super::requests::Requests;
use super::session::Session;
use crate::catch_up::Known;
use crate::materializer::Materializer;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::open_connections::{Connection, OpenConnections};
use crate::refusals::Refusals;
use crate::standing::Standing;

/// What one connection of a node needs. The node has no peers, and nothing materializes.
struct Parts {
    _folder: tempfile::TempDir,
    requests: Requests,
    append_path: AppendPath,
}

fn parts() -> Parts {
    let folder = tempfile::tempdir().unwrap();
    let (volume, node, zone) = (VolumeId(1), NodeId(1), AvailabilityZone("az1".to_owned()));
    let placement = Placement::new(1).unwrap();
    let address = "/nowhere/1".parse().unwrap();
    let mut config =
        NodeConfig::new(folder.path().to_owned(), volume, node, zone.clone(), 1, address, placement);
    config.groups = Membership::everyone_has_everything(placement, &[node]);
    let identity = Identity {
        volume,
        node,
        zone: zone.clone(),
        version: PostgresVersion::V15,
        placement,
        groups: config.own_groups(),
        incarnation: config.incarnation,
    };
    let options = Options { memory_limit_bytes: 64 << 20, ..Options::default() };
    let store = Arc::new(Store::create(&config.store_directory(), identity, options).unwrap());
    let (metrics, refusals) = (Arc::new(Metrics::default()), Arc::new(Refusals::default()));
    let known = Arc::new(Known::new(node, placement));
    let standing = Arc::new(Standing::new(store.clone()));
    let members =
        Members::new(&config, store.clone(), known.clone(), standing.clone(), metrics.clone()).unwrap();
    let members = Arc::new(members);
    let materializer = Arc::new(Materializer::new(store.clone(), metrics.clone(), refusals.clone()));
    let requests = Requests {
        node,
        zone,
        store: store.clone(),
        metrics: metrics.clone(),
        refusals: refusals.clone(),
        connections: Arc::new(OpenConnections::default()),
        known: known.clone(),
        members: members.clone(),
        refills: Arc::default(),
        standing,
        large_answers: LargeAnswers::default(),
        backup: None,
        credentials: None,
    };
    Parts {
        _folder: folder,
        requests,
        append_path: AppendPath { store, metrics, refusals, known, members, materializer },
    }
}

/// Both ends of a connection.
fn pair() -> (Stream, UnixStream) {
    let (stream, caller) = UnixStream::pair().unwrap();
    (stream.into(), caller)
}

#[test]
fn appends_of_anyone_but_a_writer_are_answered_with_a_refusal_each() {
    let parts = parts();
    let mut appends = Appends::new(&parts.append_path, Caller::Client, &[]);
    appends.take(7, b"first", Instant::now());
    appends.take(8, b"second", Instant::now());
    let mut answers = Vec::new();
    let answered = appends.answer(|request_id, reply| {
        answers.push((request_id, matches!(reply, Reply::Refused(Refusal::Misuse(_)))));
    });
    appends.after_replies(answered);
    assert_eq!(answers, [(7, true), (8, true)]);
    appends.assert_none_pending();
}

#[test]
fn a_node_that_keeps_no_promise_any_more_confirms_nothing() {
    let Parts { _folder, requests, .. } = parts();
    let confirm = || requests.answer(&Caller::Client, &[], Request::Confirm { epoch: VolumeEpoch(1) });
    assert_eq!(confirm(), Reply::Confirmed);
    requests.store.renounce("its disk was put back");
    assert!(matches!(confirm(), Reply::Refused(Refusal::Failed(_))), "{:?}", confirm());
}

#[test]
#[should_panic(expected = "invariant answers-keep-the-order-of-requests is broken")]
fn a_request_does_not_overtake_an_append() {
    let parts = parts();
    let mut appends = Appends::new(&parts.append_path, Caller::Client, &[]);
    appends.take(7, b"first", Instant::now());
    appends.assert_none_pending();
}

#[test]
#[should_panic(expected = "invariant served-after-introduction is broken")]
fn a_stranger_is_not_served() {
    let parts = parts();
    let (stream, _caller) = pair();
    let connection = Connection::new(stream, "a test".to_owned());
    let appends = Appends::new(&parts.append_path, Caller::Client, &[]);
    let memory = FrameMemory::default();
    let _ = Session::new(Caller::Client, &memory, &parts.requests, appends, &connection);
}

#[test]
#[should_panic(expected = "invariant received-bytes-are-accounted-for is broken")]
fn bytes_that_nobody_counted_are_noticed() {
    let (stream, mut caller) = pair();
    borealis_wire::write_frame(&mut caller, b"counted").unwrap();
    let mut receiver = Receiver::new(stream, 1 << 10, 1 << 10);
    assert_eq!(receiver.wait().unwrap(), Fill::Bytes);
    receiver.forget_pending();
    let _ = receiver.next_frame();
}
