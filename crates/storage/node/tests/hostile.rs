//! What strangers can send, and folders that are not what they should be.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_node::Node;
use borealis_types::{
    EPOCH_STEP_MAX, EpochHistory, EpochOpening, GroupId, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch,
    VolumeId, WriterId,
};
use borealis_wire::message::{PROTOCOL_VERSION, decode_payload, encode_message};
use borealis_wire::{Caller, Payload, Refusal, Reply, Request, read_frame, write_frame};
use common::{ALL, Cluster, VOLUME, Writer, block, image, wait_until};

/// Whether the node closes the connection within `limit`.
fn is_closed_within(stream: &mut UnixStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn garbage_closes_its_own_connection_and_no_other() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    let oversized_hello = {
        let mut frame = Vec::new();
        write_frame(&mut frame, &vec![7; 2000]).unwrap();
        frame
    };
    let request_without_hello = {
        let mut frame = Vec::new();
        write_frame(&mut frame, &encode_message(1, &Request::Status)).unwrap();
        frame
    };
    let bad_checksum = {
        let mut frame = request_without_hello.clone();
        frame[4] ^= 1;
        frame
    };
    let announced_gigabyte = [0x40u32.to_be_bytes(), [0; 4]].concat();
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for garbage in [&oversized_hello, &request_without_hello, &bad_checksum, &announced_gigabyte, &noise] {
        let mut stream = cluster.socket(0);
        stream.write_all(garbage).unwrap();
        assert!(
            is_closed_within(&mut stream, Duration::from_secs(2)),
            "{:?}…",
            &garbage[..16.min(garbage.len())]
        );
    }
    // After a proper introduction, too.
    let hello = Request::Hello {
        protocol: PROTOCOL_VERSION,
        volume: VOLUME,
        node: NodeId(1),
        caller: Caller::Client,
        memberships: Vec::new(),
    };
    for garbage in [&noise, &announced_gigabyte, &bad_checksum] {
        let mut stream = cluster.socket(0);
        write_frame(&mut stream, &encode_message(1, &hello)).unwrap();
        let mut payload = Vec::new();
        assert!(read_frame(&mut stream, &mut payload).unwrap());
        stream.write_all(garbage).unwrap();
        assert!(is_closed_within(&mut stream, Duration::from_secs(2)));
    }
    assert_eq!(cluster.metric(0, "frames_refused"), 8);
    writer.put_page(block(1, 0), &image(0));
    writer.ship(&ALL);
}

#[test]
fn a_batch_of_garbage_from_the_writer_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    writer.put_page(block(1, 0), &image(0));
    let good = writer.take_batch();
    let client = writer.clients.get_mut(&0).unwrap();
    let cut = &good[..good.len() - 100];
    for garbage in [&b"nonsense"[..], &[], cut] {
        let refused = client.append(garbage).unwrap_err();
        assert!(matches!(refused.refusal(), Some(Refusal::Misuse(_))), "{refused}");
    }
    assert_eq!(cluster.summary(0, GroupId(0)).segment_complete_lsn, Lsn::ZERO);
    client.append(&good).unwrap();
    assert_eq!(cluster.summary(0, GroupId(0)).segment_complete_lsn, writer.last.end);
}

#[test]
fn an_introduction_that_drips_in_is_cut_off() {
    let cluster = Cluster::start(1);
    let mut stream = cluster.socket(0);
    let start = Instant::now();
    let mut closed = false;
    while start.elapsed() < Duration::from_secs(8) && !closed {
        closed = stream.write_all(&[0]).is_err();
        std::thread::sleep(Duration::from_millis(200));
        // Eight bytes announce an empty frame; stop before that so that only the time can be the reason.
        if start.elapsed() > Duration::from_millis(1000) {
            closed = is_closed_within(&mut stream, Duration::from_secs(7));
            break;
        }
    }
    assert!(closed, "the connection is still open after {:?}", start.elapsed());
}

#[test]
fn strangers_cannot_use_up_all_connections() {
    let cluster = Cluster::start(1);
    let idle: Vec<UnixStream> = (0..300).map(|_| cluster.socket(0)).collect();
    wait_until("some are refused", || cluster.metric(0, "connections_refused") > 0);
    // The silent ones give way, long before they are cut off.
    wait_until("a caller gets in", || attempt(&cluster, Caller::Client).is_ok());
    drop(idle);
}

fn attempt(cluster: &Cluster, caller: Caller) -> Result<NodeClient, ClientError> {
    NodeClient::connect(cluster.address(0), VOLUME, NodeId(1), caller, Timeouts::default())
}

#[test]
fn callers_of_one_kind_that_only_sit_there_keep_nobody_out() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    let wrong = Caller::Writer { epoch: VolumeEpoch(900), writer: WriterId(5) };
    let mut idle = Vec::new();
    for caller in [Caller::Client, Caller::Recovery, wrong, Caller::Peer(NodeId(2))] {
        for _ in 0..150 {
            idle.extend(attempt(&cluster, caller).ok());
        }
    }
    assert!(idle.len() > 128, "{} got in", idle.len());
    // Another writer's work goes on, on its old connection and on a new one.
    writer.put_page(block(1, 0), &image(0));
    writer.ship(&ALL);
    writer.connect(&cluster, 0);
    writer.put_page(block(1, 1), &image(1));
    writer.ship(&ALL);
    // And everyone else comes in once those that sit there have been silent for half a second.
    std::thread::sleep(Duration::from_millis(600));
    for caller in [Caller::Client, Caller::Recovery, Caller::Peer(NodeId(2)), Caller::Peer(NodeId(3))] {
        attempt(&cluster, caller).unwrap().summaries().unwrap();
    }
}

#[test]
fn a_number_that_is_no_peers_is_no_peer() {
    let cluster = Cluster::start(1);
    for node in [NodeId(7), NodeId(u16::MAX)] {
        let error = attempt(&cluster, Caller::Peer(node)).unwrap_err();
        // It may have been one, and is told who the members are.
        let Some(Refusal::OtherMembership { states, nodes }) = error.refusal() else { panic!("{error}") };
        assert_eq!((states.len(), nodes.len()), (1, 6), "{error}");
    }
    let error = attempt(&cluster, Caller::Peer(NodeId(1))).unwrap_err().to_string();
    assert!(error.contains("is no peer of itself"), "{error}");
}

#[test]
fn only_writers_and_recoveries_change_what_a_node_promises() {
    let cluster = Cluster::start(1);
    let writer = Writer::first(&cluster);
    let (epoch, name) = (VolumeEpoch(writer.epoch.0 + 1), WriterId(9));
    for caller in [Caller::Client, Caller::Peer(NodeId(2))] {
        let mut client = attempt(&cluster, caller).unwrap();
        let refused = [
            client.fence(epoch, name).unwrap_err(),
            client.install(epoch, name, &writer.history, &[]).unwrap_err(),
            client.repair(epoch, name, GroupId(0), &writer.history, Vec::new()).unwrap_err(),
        ];
        for error in refused {
            assert!(error.to_string().contains("only a writer or a recovery may ask this"), "{error}");
        }
    }
    assert_eq!(cluster.summary(0, GroupId(0)).promised_epoch, writer.epoch);
}

#[test]
fn an_epoch_out_of_bounds_is_promised_to_nobody() {
    let cluster = Cluster::start(1);
    let writer = Writer::first(&cluster);
    let mut recovery = attempt(&cluster, Caller::Recovery).unwrap();
    for wanted in [u64::MAX, 1 << 48, writer.epoch.0 + EPOCH_STEP_MAX + 1] {
        let epoch = VolumeEpoch(wanted);
        let error = recovery.fence(epoch, WriterId(9)).unwrap_err();
        assert!(error.to_string().contains("out of bounds"), "{error}");
        let mut history = writer.history.clone();
        history.push(EpochOpening {
            epoch,
            last: writer.durable,
            server_version: ServerVersion::NEWEST_TESTED,
        });
        let error = recovery.install(epoch, WriterId(9), &history, &writer.durable_tails).unwrap_err();
        assert!(error.to_string().contains("out of bounds"), "{error}");
    }
    assert_eq!(cluster.summary(0, GroupId(0)).promised_epoch, writer.epoch);
    recovery.fence(VolumeEpoch(writer.epoch.0 + EPOCH_STEP_MAX), WriterId(9)).unwrap();
}

/// The frame of a message that [`borealis_client`] would not send.
fn frame(message: &Request) -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(&mut frame, &encode_message(2, message)).unwrap();
    frame
}

/// A connection of this caller, as a bare socket.
fn introduced(cluster: &Cluster, caller: Caller) -> UnixStream {
    let mut stream = cluster.socket(0);
    let hello = Request::Hello {
        protocol: PROTOCOL_VERSION,
        volume: VOLUME,
        node: NodeId(1),
        caller,
        memberships: Vec::new(),
    };
    write_frame(&mut stream, &encode_message(1, &hello)).unwrap();
    assert!(read_frame(&mut stream, &mut Vec::new()).unwrap());
    stream
}

#[test]
fn frames_larger_than_their_sender_may_send_are_cut_off_early() {
    let cluster = Cluster::start(4);
    let writer = Writer::first(&cluster);
    let (epoch, name, group) = (writer.epoch, writer.writer, GroupId(0));
    let mut history = EpochHistory::default();
    for number in 1..=1_600_000 {
        let last = RecordSpan { start: Lsn(number << 24), end: Lsn((number << 24) + 56) };
        history.push(EpochOpening {
            epoch: VolumeEpoch(number),
            last,
            server_version: ServerVersion::NEWEST_TESTED,
        });
    }
    let install =
        Request::Install { epoch: history.newest_epoch(), writer: name, history, tails: Vec::new() };
    let of_nothing = |count| Request::Repair {
        epoch,
        writer: name,
        group,
        history: EpochHistory::default(),
        batches: vec![Vec::new(); count],
    };
    let promised = writer.caller();
    let wrong = Caller::Writer { epoch: VolumeEpoch(900), writer: WriterId(5) };
    let attempts = [
        (frame(&install), Caller::Recovery),
        (frame(&install), promised),
        (frame(&of_nothing(60_000_000)), Caller::Recovery),
        (frame(&of_nothing(60_000_000)), wrong),
        // The promised writer may send so much; the list itself is over its bound.
        (frame(&of_nothing(60_000_000)), promised),
        (frame(&of_nothing(300)), promised),
        (frame(&of_nothing(10_000)), Caller::Client),
        (frame(&of_nothing(10_000)), Caller::Peer(NodeId(3))),
    ];
    let before = cluster.metric(0, "resident_bytes");
    for (bytes, caller) in attempts {
        let mut stream = introduced(&cluster, caller);
        // The node may have closed it before all was sent.
        let _ = stream.write_all(&bytes);
        assert!(is_closed_within(&mut stream, Duration::from_secs(5)), "{caller:?}, {} bytes", bytes.len());
    }
    assert_eq!(cluster.metric(0, "frames_refused"), 8);
    let grown = cluster.metric(0, "resident_bytes").saturating_sub(before);
    assert!(grown < 200 << 20, "the node grew by {grown} bytes");
}

#[test]
fn a_frame_that_never_ends_does_not_keep_its_place() {
    let cluster = Cluster::start(1);
    let status = frame(&Request::Status);
    let mut dripping: Vec<UnixStream> = (0..128).map(|_| introduced(&cluster, Caller::Client)).collect();
    for stream in &mut dripping {
        stream.write_all(&status[..status.len() - 1]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(600));
    attempt(&cluster, Caller::Client).unwrap().status().unwrap();
}

#[test]
fn a_caller_that_means_another_node_is_told_so() {
    let cluster = Cluster::start(1);
    let attempt = |volume, node| {
        NodeClient::connect(cluster.address(0), volume, node, Caller::Client, Timeouts::default())
            .unwrap_err()
    };
    for error in [attempt(VOLUME, NodeId(2)), attempt(VolumeId(5), NodeId(1))] {
        // Nothing of who it is: whoever knows the volume's identity may call.
        assert!(error.to_string().ends_with(&Refusal::Identity.to_string()), "{error}");
    }
    for protocol in [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1] {
        let mut stream = cluster.socket(0);
        let hello = Request::Hello {
            protocol,
            volume: VOLUME,
            node: NodeId(1),
            caller: Caller::Client,
            memberships: Vec::new(),
        };
        write_frame(&mut stream, &encode_message(1, &hello)).unwrap();
        let mut payload = Vec::new();
        assert!(read_frame(&mut stream, &mut payload).unwrap());
        match decode_payload::<Reply>(&payload).unwrap() {
            Payload::Message { message: Reply::Refused(refusal @ Refusal::Protocol(version)), .. } => {
                assert_eq!(version, PROTOCOL_VERSION);
                assert!(
                    refusal.to_string().contains("run the same version of Borealis on both"),
                    "{refusal}"
                );
            }
            other => panic!("answered with {other:?}"),
        }
    }
    let nobody = NodeClient::connect(
        &"/nowhere/1".parse().unwrap(),
        VOLUME,
        NodeId(1),
        Caller::Client,
        Timeouts::default(),
    );
    assert!(matches!(nobody, Err(ClientError::Connect { .. })));
}

#[test]
fn a_node_does_not_start_on_a_folder_that_is_not_its_own() {
    let cluster = Cluster::create(1);
    let config = &cluster.configs[0];
    let message = |config: &borealis_spec::NodeConfig| match Node::start(config.clone()) {
        Ok(_) => panic!("the node started"),
        Err(error) => format!("{error:#}"),
    };
    // Another node's folder, another volume's, one that was made anew.
    let mut other = config.clone();
    other.directory = cluster.configs[1].directory.clone();
    assert!(message(&other).contains("belongs to node 2"), "{}", message(&other));
    let mut other = config.clone();
    other.volume = VolumeId(9);
    assert!(message(&other).contains("of volume"), "{}", message(&other));
    let mut other = config.clone();
    other.incarnation += 1;
    assert!(message(&other).contains("incarnation"), "{}", message(&other));
    // One in use.
    let running = Node::start(config.clone()).unwrap();
    assert!(message(config).contains("in use"), "{}", message(config));
    drop(running);
    // One that is gone: never an empty store under the old identity.
    std::fs::remove_dir_all(config.store_directory()).unwrap();
    assert!(message(config).contains("store"), "{}", message(config));
    assert!(!config.store_directory().join("identity").exists());
    // And creation does not overwrite.
    assert!(borealis_node::create(&cluster.configs[2]).is_err());
}

/// Asks until the node takes no more questions, and reads no answer.
fn ask_without_reading(stream: &mut UnixStream, question: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while stream.write_all(&question.repeat(100)).is_ok() {}
}

#[test]
fn callers_that_do_not_read_hold_up_nobody() {
    let cluster = Cluster::start(1);
    let writer = Writer::first(&cluster);
    let status = frame(&Request::Status);
    let mut unread: Vec<UnixStream> = (0..128).map(|_| introduced(&cluster, Caller::Client)).collect();
    std::thread::scope(|scope| {
        for stream in &mut unread {
            scope.spawn(|| ask_without_reading(stream, &status));
        }
    });
    std::thread::sleep(Duration::from_millis(600));
    // All places for clients are taken, by callers whose threads wait for room. Each of these has one of them closed.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| attempt(&cluster, Caller::Client).unwrap().status().unwrap());
        }
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        let epoch = VolumeEpoch(writer.epoch.0 + 1);
        attempt(&cluster, Caller::Recovery).unwrap().fence(epoch, WriterId(9)).unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "a fence took {took:?}");
    });
    assert!(cluster.metric(0, "connections") >= 100, "those who do not read were there all the time");
}

#[test]
fn the_writer_reads_although_clients_at_work_have_all_their_places() {
    let cluster = Cluster::start(1);
    let writer = Writer::first(&cluster);
    let mut at_work: Vec<NodeClient> = (0..128).map(|_| attempt(&cluster, Caller::Client).unwrap()).collect();
    let (epoch, someone) = (writer.epoch, WriterId(writer.writer.0 + 1));
    for client in &mut at_work {
        client.status().unwrap();
    }
    for caller in [Caller::Client, Caller::Reader { epoch, writer: someone }] {
        let refused = attempt(&cluster, caller).unwrap_err().to_string();
        assert!(refused.contains("all places for Client are taken"), "{refused}");
    }
    let mut reader = attempt(&cluster, Caller::Reader { epoch, writer: writer.writer }).unwrap();
    reader.summaries().unwrap();
    // It looks, and that is all.
    let refused = reader.fence(VolumeEpoch(epoch.0 + 1), someone).unwrap_err().to_string();
    assert!(refused.contains("only a writer or a recovery may ask this"), "{refused}");
}
