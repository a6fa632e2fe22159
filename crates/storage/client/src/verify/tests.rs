use super::*;
use borealis_types::membership::{Replacement, Transition};
use borealis_types::{EpochHistory, RecordSpan, VolumeEpoch, WriterId};

fn summary(from: u64, through: u64) -> SegmentSummary {
    SegmentSummary {
        group: META_GROUP,
        promised_epoch: VolumeEpoch(1),
        promised_writer: WriterId(1),
        history: EpochHistory::default(),
        segment_complete_lsn: Lsn(through),
        known_durable: RecordSpan::NONE,
        known_durable_tail: Lsn::ZERO,
        readable_through: Lsn(through),
        minimum_read_point: Lsn(from),
        materialized_lsn: Lsn::ZERO,
        joining: false,
        membership_epoch: borealis_types::MembershipEpoch(1),
    }
}

#[test]
#[should_panic(expected = "invariant compared-where-every-peer-can-answer is broken")]
fn a_comparison_below_a_read_point_is_noticed() {
    let summaries = [(NodeId(1), summary(100, 200)), (NodeId(2), summary(150, 250))];
    assert_readable_on_all(&summaries, Lsn(160));
    assert_readable_on_all(&summaries, Lsn(120));
}

fn target() -> Target {
    let placement = Placement::new(2).expect("2 groups");
    let nodes = [1, 2, 3, 4, 5, 6].map(NodeId);
    let address = |node: NodeId| NodeAddress {
        node,
        zone: borealis_types::AvailabilityZone("az1".into()),
        address: format!("/nonexistent/{node}").parse().expect("a path"),
    };
    Target {
        volume: VolumeId(1),
        nodes: nodes.map(address).to_vec(),
        credentials: None,
        groups: Membership::everyone_has_everything(placement, &nodes),
        memberships: BTreeMap::new(),
        placement,
        lsn: None,
        timeouts: Timeouts::default(),
    }
}

#[test]
fn the_members_of_today_are_those_of_each_group() {
    let mut target = target();
    let first = target.groups.created(META_GROUP).expect("six nodes");
    let replacement = Replacement { old: NodeId(6), new: NodeId(7) };
    let second = first.after(Transition::Begin(replacement)).expect("6 is a member");
    target.memberships.insert(GroupId(1), second);
    let (members, addresses) = members_of_today(&target);
    assert_eq!((members[&META_GROUP].len(), members[&GroupId(1)].len()), (6, 7));
    assert_eq!(addresses[&NodeId(7)], None, "nobody says where it is");
    assert_eq!(addresses[&NodeId(6)], "/nonexistent/6".parse().ok());
    let report = verify_volume(&target);
    assert_eq!((report.nodes, report.unreachable.len()), (7, 7));
    assert_eq!(report.verdict(), Verdict::Incomplete);
}

#[test]
fn a_member_that_is_joining_is_not_compared() {
    let target = target();
    let (members, addresses) = members_of_today(&target);
    let mut verifier = Verifier {
        target: &target,
        clients: BTreeMap::new(),
        left_out: BTreeSet::new(),
        refusing: BTreeSet::new(),
        report: Report { nodes: 6, ..Report::default() },
        members,
        addresses,
    };
    let joining = SegmentSummary { joining: true, ..summary(0, 0) };
    let summaries = vec![(NodeId(1), summary(100, 200)), (NodeId(2), joining)];
    let full = verifier.leave_out_joining(META_GROUP, summaries);
    assert_eq!(full.iter().map(|(node, _)| node.0).collect::<Vec<_>>(), [1]);
    assert_eq!(verifier.report.verdict(), Verdict::Incomplete, "it was not compared on every node");
    assert!(verifier.report.not_compared[0].why.contains("joining"));
}
