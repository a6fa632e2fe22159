//! Recoveries that begin with the members of another day, among nodes that speak the protocol.

use std::path::Path;

use borealis_types::MembershipEpoch;
use borealis_types::membership::{GroupMembership, Replacement, Transition};

use super::super::*;
use crate::fake_nodes::{FakeNode, GROUP};
use crate::memberships::known;
use crate::memberships::tests::{configured, seven_for_six};
use crate::rescue::agree_without;

fn first() -> GroupMembership {
    GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes")
}

fn step(membership: &GroupMembership, old: u16, new: u16) -> [GroupMembership; 2] {
    let replacement = Replacement { old: NodeId(old), new: NodeId(new) };
    let begun = membership.after(Transition::Begin(replacement)).expect("the old one is a member");
    let finished = begun.after(Transition::Finish(replacement)).expect("it is under way");
    [begun, finished]
}

fn open(folder: &Path) -> (Result<Recovered, RecoverError>, Memberships) {
    let config = configured(folder, 1);
    let mut memberships = known(&config).expect("the configuration is sound");
    let release = ServerVersion::NEWEST_TESTED;
    let recovered = recover(&config, &mut memberships, WriterId(5), release, &mut OwnEpochs::default());
    (recovered, memberships)
}

/// Whether the node has the history of the recovery that was carried out.
fn is_open(fake: &FakeNode) -> bool {
    let state = fake.state();
    state.promised == (state.history.newest_epoch(), WriterId(5)) && state.promised.0 > VolumeEpoch(0)
}

#[test]
fn a_recovery_begins_anew_with_the_members_that_nodes_tell_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let [_, third] = step(&first(), 6, 7);
    let nodes: Vec<FakeNode> =
        [1, 2, 3, 5, 7].into_iter().map(|node| FakeNode::start(folder.path(), node, &third)).collect();
    let left = FakeNode::start(folder.path(), 6, &seven_for_six(&first()));
    let (recovered, memberships) = open(folder.path());
    let recovered = recovered.expect("five of six members are there");
    assert_eq!(memberships.of(GROUP), Some(&third));
    assert_eq!(recovered.outcome.promise.writer, WriterId(5));
    assert!(nodes.iter().filter(|fake| is_open(fake)).count() >= 4);
    assert!(nodes.iter().all(|fake| fake.state().promised.0 == recovered.outcome.promise.epoch));
    assert_eq!(left.state().promised.0, VolumeEpoch(0), "who left is not fenced");
    let again = known(&configured(folder.path(), 1)).expect("the configuration is sound");
    assert_eq!(again.of(GROUP), Some(&third), "the next start begins with it");
}

#[test]
fn a_file_that_is_put_back_to_older_members_leads_nobody_to_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = configured(folder.path(), 1);
    remember(&config, &known(&config).expect("the configuration is sound"));
    let file = folder.path().join("memberships.json");
    let older = std::fs::read(&file).expect("it was written");
    let [_, third] = step(&first(), 6, 7);
    let _nodes: Vec<FakeNode> =
        [1, 2, 3, 5, 7].into_iter().map(|node| FakeNode::start(folder.path(), node, &third)).collect();
    let left = FakeNode::start(folder.path(), 6, &third);
    let (mut opened, mut left_alone) = (VolumeEpoch(0), true);
    for _ in 0..2 {
        std::fs::write(&file, &older).expect("a folder to write to");
        let (recovered, memberships) = open(folder.path());
        let epoch = recovered.expect("five of six members are there").outcome.promise.epoch;
        assert!(epoch > opened);
        opened = epoch;
        left_alone &= left.state().promised.0 == VolumeEpoch(0);
        assert_eq!(memberships.of(GROUP), Some(&third));
        assert_eq!(known(&config).expect("sound").of(GROUP), Some(&third), "it is put right");
    }
    assert!(left_alone, "who left is not asked for a promise");
}

#[test]
fn a_volume_of_which_no_configured_member_is_left_is_opened_through_those_it_has_now() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut membership = first();
    let mut left = Vec::new();
    for old in 1..=6 {
        let [_, finished] = step(&membership, old, old + 10);
        membership = finished;
        left.push(FakeNode::start(folder.path(), old, &membership));
    }
    let nodes: Vec<FakeNode> =
        (11..=16).map(|node| FakeNode::start(folder.path(), node, &membership)).collect();
    let (recovered, memberships) = open(folder.path());
    recovered.expect("all members of today are there");
    assert_eq!(memberships.of(GROUP).map(GroupMembership::epoch), Some(MembershipEpoch(13)));
    assert!(nodes.iter().filter(|fake| is_open(fake)).count() >= 4);
    assert!(left.iter().all(|fake| fake.state().promised.0 == VolumeEpoch(0)));
}

#[test]
fn a_membership_that_two_nodes_invent_opens_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let [_, invented] = step(&first(), 6, 7);
    let liars: Vec<FakeNode> =
        [1, 2].into_iter().map(|node| FakeNode::start(folder.path(), node, &invented)).collect();
    let nodes: Vec<FakeNode> = (3..=6).map(|node| FakeNode::start(folder.path(), node, &first())).collect();
    let (recovered, memberships) = open(folder.path());
    recovered.expect("four members are there");
    assert_eq!(memberships.of(GROUP), Some(&first()));
    assert!(nodes.iter().all(is_open) && !liars.iter().any(is_open));
}

#[test]
fn a_rescue_goes_through_the_members_of_today_that_are_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let [_, third] = step(&first(), 6, 7);
    let nodes: Vec<FakeNode> =
        [1, 2, 7].into_iter().map(|node| FakeNode::start(folder.path(), node, &third)).collect();
    for fake in &nodes {
        // A rescue is of a volume that was open before.
        let mut state = fake.state();
        state.promised = (VolumeEpoch(1), WriterId(1));
        let server_version = ServerVersion::NEWEST_TESTED;
        let last = borealis_types::RecordSpan::NONE;
        state.history.push(borealis_types::EpochOpening { epoch: VolumeEpoch(1), last, server_version });
    }
    let config = configured(folder.path(), 1);
    let rescued = agree_without(&config, &[3, 4, 5].map(NodeId).into()).expect("three members are left");
    assert_eq!(rescued.complete, BTreeMap::from([(GROUP, [1, 2, 7].map(NodeId).to_vec())]));
    assert_eq!(rescued.memberships, BTreeMap::from([(GROUP, third)]), "whose copies are to be made");
    assert!(nodes.iter().all(|fake| fake.state().promised.0 == rescued.epoch));
    // Node 6 is no member any more, so nobody asks for it.
    let error = agree_without(&config, &[4, 5].map(NodeId).into()).expect_err("node 3 is not there");
    assert!(error.to_string().contains("node 3"), "{error}");
}
