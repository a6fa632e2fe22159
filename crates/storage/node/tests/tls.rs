//! A volume whose nodes speak TLS: what its own parts may do, and what strangers cannot.

#![allow(clippy::unwrap_used)] // A broken step should stop the test.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use borealis_client::{Credentials, verify};
use borealis_fleet::{Fleet, Selection, Validity};
use borealis_spec::{Endpoint, Role};
use borealis_types::membership::{MembershipRequest, Replacement, Transition};
use borealis_types::{GroupId, InstanceId, MetaKey, NodeId, VolumeEpoch, VolumeId, WriterId};
use borealis_wire::frame::frame_header;
use borealis_wire::message::encode_message;
use borealis_wire::{Caller, Refusal, Request};
use common::{ALL, Cluster, VOLUME, Writer, block, image, wait_until};

fn tcp(cluster: &Cluster, index: usize) -> TcpStream {
    let Endpoint::Tls { host, port } = cluster.address(index) else { panic!("it speaks TLS") };
    TcpStream::connect((host.as_str(), *port)).unwrap()
}

#[test]
fn a_volume_is_written_read_caught_up_and_verified_over_tls() {
    let mut cluster = Cluster::start_over_tls(2);
    let mut writer = Writer::first(&cluster);
    for number in 0..200 {
        writer.put_page(block(1, number), &image(number));
    }
    writer.put_meta(MetaKey::SmallFile("x".into()), &[7; 400]);
    // Two nodes hear of it from their peers alone.
    writer.ship(&[0, 1, 2, 3]);
    for index in [4, 5] {
        wait_until("it has what its peers have", || {
            let complete =
                |group| cluster.summary(index, group).segment_complete_lsn == writer.group_ends[&group];
            complete(GroupId(0)) && complete(GroupId(1))
        });
    }
    cluster.kill_node(0);
    cluster.start_node(0);
    let mut client = cluster.client(0);
    for number in 0..200 {
        let group = cluster.placement.group_of(&block(1, number));
        let page = client.read_page(group, block(1, number), writer.group_ends[&group]).unwrap();
        assert!(page.as_deref() == Some(image(number).as_slice()), "page {number}");
    }
    let report = verify::verify_volume(&cluster.verify_target());
    assert!(report.unreachable.is_empty() && report.findings.is_empty(), "{report:?}");
}

#[test]
fn each_part_may_be_what_its_certificate_says_and_nothing_else() {
    let cluster = Cluster::start_over_tls(1);
    let writer = Caller::Writer { epoch: VolumeEpoch(1), writer: WriterId(7) };
    let reader = Caller::Reader { epoch: VolumeEpoch(1), writer: WriterId(7) };
    let own = Role::Instance(VOLUME, InstanceId(1));
    let other = Role::Instance(VolumeId(9), InstanceId(1));
    for (role, caller, is_allowed) in [
        (own, writer, true),
        (own, reader, true),
        (own, Caller::Recovery, true),
        (own, Caller::Client, true),
        (own, Caller::Peer(NodeId(2)), false),
        (other, writer, false),
        (other, Caller::Recovery, false),
        (other, Caller::Client, false),
        (Role::Node(NodeId(2)), Caller::Peer(NodeId(2)), true),
        (Role::Node(NodeId(2)), Caller::Peer(NodeId(3)), false),
        (Role::Node(NodeId(2)), Caller::Recovery, false),
        (Role::Client, Caller::Client, true),
        (Role::Client, writer, false),
        (Role::Client, Caller::Recovery, false),
        (Role::Client, Caller::Peer(NodeId(2)), false),
        (Role::Controller, Caller::Client, true),
        (Role::Controller, Caller::Controller, true),
        (own, Caller::Controller, false),
        (Role::Node(NodeId(2)), Caller::Controller, false),
        (Role::Client, Caller::Controller, false),
        (Role::Controller, Caller::Recovery, false),
    ] {
        match cluster.try_connect_as(0, caller, cluster.credentials(role).as_ref()) {
            Ok(mut client) => {
                assert!(is_allowed, "{role:?} was let in as {caller:?}");
                client.status().unwrap();
            }
            Err(error) => {
                assert!(!is_allowed, "{role:?} as {caller:?}: {error}");
                assert!(matches!(error.refusal(), Some(Refusal::Forbidden(_))), "{error}");
                assert!(error.to_string().contains("where that of"), "{error}");
            }
        }
    }
}

#[test]
fn members_are_changed_with_a_controllers_certificate() {
    let cluster = Cluster::start_over_tls(1);
    let first = common::members::first_memberships(&cluster)[&GroupId(0)].clone();
    let replacement = Replacement { old: NodeId(1), new: NodeId(7) };
    let begun = first.after(Transition::Begin(replacement)).unwrap();
    let mut clients = std::collections::BTreeMap::new();
    for node in 1..=3 {
        let request = MembershipRequest::Install(begun.clone());
        let (state, _) =
            common::members::ask(&cluster, &mut clients, NodeId(node), GroupId(0), &request).unwrap();
        assert_eq!(*state.unwrap().installed(), begun);
    }
    // The others hear of it over TLS, too.
    for index in ALL {
        wait_until("it learned who the members are", || {
            cluster.summary(index, GroupId(0)).membership_epoch == begun.epoch()
        });
    }
    let request = Request::Membership {
        group: GroupId(0),
        request: MembershipRequest::Install(begun.after(Transition::TakeBack(replacement)).unwrap()),
        nodes: Vec::new(),
    };
    let error = cluster.try_connect(0, Caller::Recovery).unwrap_err();
    let taught = matches!(error.refusal(), Some(Refusal::OtherMembership { .. }));
    assert!(taught, "whoever names no membership knows the first: {error}");
    let mut writer = cluster.try_connect_for(0, Caller::Recovery, &[(GroupId(0), begun.epoch())]).unwrap();
    let error = writer.call(&request).unwrap_err().to_string();
    assert!(error.contains("only a controller may ask this"), "{error}");
    assert_eq!(cluster.summary(0, GroupId(0)).membership_epoch, begun.epoch());
}

#[test]
fn nobody_without_a_certificate_of_the_fleet_is_let_in() {
    let cluster = Cluster::start_over_tls(1);
    let stranger = tempfile::tempdir().unwrap();
    let fleet =
        Fleet::init(&stranger.path().join("fleet"), "test".parse().unwrap(), Validity::days(1)).unwrap();
    let role = Role::Instance(VOLUME, InstanceId(1));
    let issued = fleet.issue(role, &[], Validity::days(1), &stranger.path().join("1")).unwrap();
    // It trusts the cluster's authority, so that it is the node who refuses.
    let mut trusted = std::fs::read(&issued.files.authorities).unwrap();
    trusted.extend(std::fs::read(cluster.fleet.as_ref().unwrap().authorities_file()).unwrap());
    std::fs::write(&issued.files.authorities, trusted).unwrap();
    let credentials = Credentials::load(issued.files).unwrap();
    let error = cluster.try_connect_as(0, Caller::Recovery, Some(&credentials)).unwrap_err();
    assert!(error.to_string().contains("refused this process's certificate"), "{error}");
    // An introduction in the clear is not answered but with an alert, and the connection ends.
    let mut plain = tcp(&cluster, 0);
    let hello = Request::Hello {
        protocol: borealis_wire::message::PROTOCOL_VERSION,
        volume: VOLUME,
        node: NodeId(1),
        caller: Caller::Client,
        memberships: Vec::new(),
    };
    let payload = encode_message(1, &hello);
    plain.write_all(&frame_header(&payload)).unwrap();
    plain.write_all(&payload).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).unwrap();
    assert!(answer.len() < 16, "{answer:?}");
    wait_until("both are counted", || cluster.metric(0, "strangers_refused") >= 2);
}

#[test]
fn an_instance_that_is_revoked_is_heard_no_more_and_the_others_go_on() {
    let cluster = Cluster::start_over_tls(1);
    let stolen = cluster.credentials(Role::Instance(VOLUME, InstanceId(2))).unwrap();
    let mut stands = cluster.try_connect_as(0, Caller::Recovery, Some(&stolen)).unwrap();
    stands.status().unwrap();
    // Instance 1, on connections that stand as well.
    let mut writer = Writer::first(&cluster);
    writer.put_page(block(1, 1), &image(1));
    writer.ship(&ALL);
    let fleet = cluster.fleet.as_ref().unwrap();
    let selection = Selection::Part(Role::Instance(VOLUME, InstanceId(2)));
    assert_eq!(fleet.revoke(&selection, SystemTime::now()).unwrap().len(), 1);
    stands.status().expect("the nodes do not know it yet");
    for config in &cluster.configs {
        std::fs::copy(fleet.authorities_file(), config.directory.join("tls/authorities.pem")).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1100));
    stands.status().expect_err("its connection has ended");
    for index in ALL {
        let error = cluster.try_connect_as(index, Caller::Recovery, Some(&stolen)).unwrap_err();
        assert!(error.to_string().contains("certificate: it was revoked"), "{error}");
    }
    for number in 2..20 {
        writer.put_page(block(1, number), &image(number));
        writer.ship(&ALL);
    }
    cluster.connect(0, Caller::Client).status().unwrap();
}

#[test]
fn a_node_says_when_its_certificate_ends() {
    let cluster = Cluster::start_over_tls(1);
    let issued = cluster.fleet.as_ref().unwrap().certificates().unwrap();
    for (index, config) in cluster.configs.iter().enumerate() {
        let own = |one: &&borealis_fleet::Standing| one.certificate.identity.role == Role::Node(config.node);
        let issued = issued.iter().find(own).expect("it was noted");
        assert_eq!(cluster.metric(index, "certificate_expires_seconds"), issued.certificate.until_seconds);
    }
}

#[test]
fn handshakes_that_hang_hold_nothing_that_others_need() {
    let cluster = Cluster::start_over_tls(1);
    let mut writer = Writer::first(&cluster);
    writer.put_page(block(1, 1), &image(1));
    writer.ship(&ALL);
    // More than there are places for strangers: silent ones, and some that begin a handshake and drip it.
    let mut hanging: Vec<TcpStream> = (0..100).map(|_| tcp(&cluster, 0)).collect();
    for stream in hanging.iter_mut().skip(50) {
        let _ = stream.write_all(&[22, 3, 1, 2, 0, 1, 0]);
    }
    let credentials: Arc<Credentials> = cluster.credentials(Role::Client).unwrap();
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut connected = 0;
    let mut slowest = Duration::ZERO;
    while Instant::now() < deadline {
        let began = Instant::now();
        // The writer at work is not disturbed, and whoever comes finds a place.
        writer.put_page(block(1, connected), &image(connected));
        writer.ship(&ALL);
        let client = cluster.try_connect_as(0, Caller::Client, Some(&credentials));
        connected += u32::from(client.is_ok());
        slowest = slowest.max(began.elapsed());
        for stream in &mut hanging {
            // Those that were closed come again.
            if stream.write_all(&[0]).is_err() {
                *stream = tcp(&cluster, 0);
            }
        }
    }
    assert!(connected > 10, "{connected} connections were had");
    println!("{connected} connections beside 100 that hang, the slowest round took {slowest:?}");
    drop(hanging);
    wait_until("the hanging are counted", || cluster.metric(0, "strangers_refused") > 0);
}

#[test]
fn a_node_without_its_own_certificate_does_not_start() {
    let mut cluster = Cluster::start_over_tls(1);
    cluster.kill_node(0);
    let mut config = cluster.configs[0].clone();
    let start = |config: &borealis_spec::NodeConfig| {
        format!("{:#}", borealis_node::Node::start(config.clone()).expect_err("it does not start"))
    };
    let others = cluster.configs[1].directory.join("tls");
    config.tls = Some(borealis_spec::TlsFiles::in_folder(&others));
    let said = start(&config);
    assert!(
        said.contains("is that of borealis://test/node/2, where that of borealis://test/node/1"),
        "{said}"
    );
    config.tls = Some(borealis_spec::TlsFiles::in_folder("nothing".as_ref()));
    let said = start(&config);
    assert!(said.contains("node 1 cannot speak TLS; see `tls` in") && said.contains("cannot read"), "{said}");
    config.tls = None;
    let said = start(&config);
    assert!(said.contains("`tls` with the files of a certificate is missing"), "{said}");
    cluster.start_node(0);
    cluster.connect(0, Caller::Client).status().unwrap();
}
