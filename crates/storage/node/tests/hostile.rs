//! What strangers can send, and folders that are not what they should be.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_node::Node;
use borealis_types::{GroupId, Lsn, NodeId, VolumeId};
use borealis_wire::message::{PROTOCOL_VERSION, decode_payload, encode_message};
use borealis_wire::{Caller, Payload, Refusal, Reply, Request, read_frame, write_frame};
use common::{ALL, Cluster, VOLUME, Writer, block, image, wait_until};

/// Whether the node closes the connection within `limit`.
fn is_closed_within(stream: &mut TcpStream, limit: Duration) -> bool {
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
        let mut stream = TcpStream::connect(cluster.address(0)).unwrap();
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
    };
    for garbage in [&noise, &announced_gigabyte, &bad_checksum] {
        let mut stream = TcpStream::connect(cluster.address(0)).unwrap();
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
    let mut stream = TcpStream::connect(cluster.address(0)).unwrap();
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
    let idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(cluster.address(0)).unwrap()).collect();
    wait_until("some are refused", || cluster.metric(0, "connections_refused") > 0);
    // Those that are in stay in, and once the silent ones are cut off, others come in.
    drop(idle);
    wait_until("a caller gets in", || {
        NodeClient::connect(cluster.address(0), VOLUME, NodeId(1), Caller::Client, Timeouts::default())
            .is_ok()
    });
}

#[test]
fn a_caller_that_means_another_node_is_told_so() {
    let cluster = Cluster::start(1);
    let attempt = |volume, node| {
        NodeClient::connect(cluster.address(0), volume, node, Caller::Client, Timeouts::default())
            .unwrap_err()
    };
    for error in [attempt(VOLUME, NodeId(2)), attempt(VolumeId(5), NodeId(1))] {
        match error.refusal() {
            Some(Refusal::Identity { volume, node }) => assert_eq!((*volume, *node), (VOLUME, NodeId(1))),
            other => panic!("answered with {other:?}"),
        }
    }
    for protocol in [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1] {
        let mut stream = TcpStream::connect(cluster.address(0)).unwrap();
        let hello = Request::Hello { protocol, volume: VOLUME, node: NodeId(1), caller: Caller::Client };
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
        "127.0.0.1:1".parse().unwrap(),
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
