use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use borealis_types::AvailabilityZone;
use borealis_types::membership::{MembershipState, Replacement, Transition};
use borealis_wire::message::{decode_payload, encode_message};
use borealis_wire::{Payload, Reply, Request, Whereabouts, read_frame, write_frame};

use super::*;

const GROUP: GroupId = GroupId(0);
const VOLUME: VolumeId = VolumeId(1);
const PATIENCE: Timeouts = Timeouts { connect: Duration::from_secs(2), call: Duration::from_millis(500) };

fn address(folder: &Path, node: u16) -> NodeAddress {
    let address = folder.join(node.to_string()).display().to_string().parse().expect("a path");
    NodeAddress { node: NodeId(node), zone: AvailabilityZone("az1".into()), address }
}

/// A node that answers whoever asks it for memberships, for as long as the test runs.
fn node_that_stores(folder: &Path, node: u16, installed: &GroupMembership) {
    let listener = UnixListener::bind(folder.join(node.to_string())).expect("a free name");
    let state = MembershipState::new(installed.clone());
    let at = |node: NodeId| Whereabouts {
        node,
        zone: AvailabilityZone("az1".into()),
        address: folder.join(node.0.to_string()).display().to_string(),
    };
    let nodes: Vec<Whereabouts> = installed.members().into_iter().map(at).collect();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut payload = Vec::new();
            while let Ok(true) = read_frame(&mut stream, &mut payload) {
                let Ok(Payload::Message { request_id, message }) = decode_payload::<Request>(&payload) else {
                    break;
                };
                let reply = match message {
                    Request::Hello { .. } => Reply::Welcome { node: NodeId(node), segments: Vec::new() },
                    Request::Memberships => {
                        Reply::Memberships { states: vec![(GROUP, state.clone())], nodes: nodes.clone() }
                    }
                    other => panic!("nobody asks for {other:?}"),
                };
                if write_frame(&mut stream, &encode_message(request_id, &reply)).is_err() {
                    break;
                }
            }
        }
    });
}

fn step(from: &GroupMembership, finish: bool, old: u16, new: u16) -> GroupMembership {
    let replacement = Replacement { old: NodeId(old), new: NodeId(new) };
    let transition = if finish { Transition::Finish(replacement) } else { Transition::Begin(replacement) };
    from.after(transition).expect("it is allowed")
}

fn first() -> GroupMembership {
    GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes")
}

fn learn_from(folder: &Path) -> Learned {
    let addresses: Vec<NodeAddress> = (1..=6).map(|node| address(folder, node)).collect();
    learn(&BTreeMap::from([(GROUP, first())]), &addresses, None, VOLUME, PATIENCE)
}

#[test]
fn a_change_under_way_is_found_with_the_node_that_joins() {
    let folder = tempfile::tempdir().expect("a folder");
    let second = step(&first(), false, 6, 7);
    for node in [1, 2, 3, 4, 7] {
        node_that_stores(folder.path(), node, &second);
    }
    node_that_stores(folder.path(), 5, &first());
    let learned = learn_from(folder.path());
    assert_eq!(learned.memberships, BTreeMap::from([(GROUP, second)]));
    let nodes: Vec<u16> = learned.nodes.iter().map(|found| found.node.0).collect();
    assert_eq!(nodes, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(learned.silent.keys().map(|node| node.0).collect::<Vec<_>>(), [6]);
}

#[test]
fn a_group_of_which_no_member_stayed_is_followed_through_those_who_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut membership = first();
    for old in 1..=6 {
        membership = step(&membership, false, old, old + 10);
        membership = step(&membership, true, old, old + 10);
        // Who left stores the membership that it left with, and no two the same.
        node_that_stores(folder.path(), old, &membership);
    }
    for node in 11..=16 {
        node_that_stores(folder.path(), node, &membership);
    }
    let learned = learn_from(folder.path());
    assert_eq!(learned.memberships[&GROUP], membership);
    assert_eq!(learned.nodes, (11..=16).map(|node| address(folder.path(), node)).collect::<Vec<_>>());
    assert!(learned.silent.is_empty(), "{:?}", learned.silent);
}

#[test]
fn two_nodes_alone_are_not_believed() {
    let folder = tempfile::tempdir().expect("a folder");
    let invented = step(&step(&first(), false, 6, 7), true, 6, 7);
    for node in [1, 2] {
        node_that_stores(folder.path(), node, &invented);
    }
    for node in [3, 4, 5, 6] {
        node_that_stores(folder.path(), node, &first());
    }
    let learned = learn_from(folder.path());
    assert_eq!(learned.memberships[&GROUP], first());
    assert!(learned.silent.is_empty(), "who is only said to be a member is no member that is silent");
}
