use borealis_controller::catalog::records::{MembershipRecord, NodeRecord, Record, Settings, VolumeRecord};
use borealis_controller::catalog::table::MemoryCatalog;
use borealis_controller::catalog::{Catalog, Transaction};
use borealis_types::membership::{Accepted, Ballot, Replacement, Transition};
use borealis_types::{
    EpochHistory, GroupId, InstanceId, Placement, PostgresVersion, RecordSpan, VolumeEpoch, WriterId,
};
use borealis_wire::{PeerHeard, RefillProgress};

use super::*;

const VOLUME: VolumeId = VolumeId(7);
const GROUP: FleetGroup = FleetGroup { volume: VOLUME, group: GroupId(0) };
const FAR: u64 = 1 << 30;

fn created() -> GroupMembership {
    GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes")
}

fn replacement() -> Replacement {
    Replacement { old: NodeId(6), new: NodeId(7) }
}

fn begun() -> GroupMembership {
    created().after(Transition::Begin(replacement())).expect("node 6 is a member")
}

fn fleet() -> Fleet {
    let mut changes: Vec<_> = (1..=7)
        .map(|number| {
            NodeRecord {
                node: NodeId(number),
                zone: AvailabilityZone("az1".to_owned()),
                address: format!("/nodes/{number}"),
                incarnation: format!("{number:032x}"),
                state: NodeState::Active,
            }
            .put()
        })
        .collect();
    changes.push(Settings::local().put());
    let placement = Placement::new(1).expect("one group");
    changes.push(VolumeRecord { volume: VOLUME, postgres_version: PostgresVersion::V15, placement }.put());
    changes.push(MembershipRecord { group: GROUP, membership: created() }.put());
    let mut catalog = MemoryCatalog::default();
    catalog.commit(&Transaction { conditions: vec![], changes }).expect("no limit is broken");
    Fleet::read(&catalog.list("").expect("listed")).expect("read")
}

fn segment(complete: u64, joining: bool) -> SegmentSummary {
    SegmentSummary {
        group: GROUP.group,
        promised_epoch: VolumeEpoch(1),
        promised_writer: WriterId(1),
        history: EpochHistory::default(),
        segment_complete_lsn: Lsn(complete),
        known_durable: RecordSpan { start: Lsn(FAR), end: Lsn(FAR) },
        known_durable_tail: Lsn(FAR),
        readable_through: Lsn(complete),
        minimum_read_point: Lsn(0),
        materialized_lsn: Lsn(complete),
        joining,
        membership_epoch: created().epoch(),
    }
}

fn answer(node: u16, state: Option<MembershipState>) -> Answer {
    let status = NodeStatus {
        node: NodeId(node),
        zone: AvailabilityZone("az1".to_owned()),
        process_id: 1,
        failure: None,
        damage: None,
        segments: state.iter().map(|_| segment(FAR, false)).collect(),
        metrics: Vec::new(),
        hindrance: None,
        incarnation: u128::from(node),
        free_bytes: 1 << 40,
        heard: Vec::new(),
        refills: Vec::new(),
    };
    Answer { status, memberships: state.into_iter().map(|state| (GROUP.group, state)).collect() }
}

/// Nodes 1 to 7 answer; each has this installed, as far as there is something for it.
fn answers(installed: &[&GroupMembership]) -> Answers {
    let states = installed.iter().map(|membership| Some(MembershipState::new((*membership).clone())));
    let states = states.chain(std::iter::repeat(None));
    (1..=7).zip(states).map(|(node, state)| ((NodeId(node), VOLUME), answer(node, state))).collect()
}

fn seen(answers: &Answers) -> Option<GroupObservation> {
    let now = Duration::from_secs(1);
    observed(&fleet(), answers, &Memory::new(), &HostReport::default(), now).groups.remove(&GROUP)
}

#[test]
fn a_group_is_as_its_members_say_and_not_as_one_of_them_says() {
    let (old, new) = (&created(), &begun());
    let healthy = seen(&answers(&[old; 6])).expect("they answer");
    assert_eq!((&healthy.membership, healthy.is_established), (old, true));
    assert_eq!(healthy.members.len(), 6, "node 7 has no segment");
    assert!(healthy.members.values().all(|progress| *progress == MemberProgress::Complete));
    let alone = seen(&answers(&[new, old, old, old, old, old])).expect("they answer");
    assert_eq!((&alone.membership, alone.is_established), (old, true), "nobody bears it out");
    let three = seen(&answers(&[new, new, new, old, old, old])).expect("they answer");
    assert_eq!((&three.membership, three.is_established), (new, false));
    let all = seen(&answers(&[new; 7])).expect("they answer");
    assert_eq!((&all.membership, all.is_established, all.members.len()), (new, true, 7));
    assert_eq!(seen(&answers(&[])), None, "nobody has a segment of it");
}

#[test]
fn what_one_member_acts_on_and_another_accepted_is_carried_through() {
    let (old, new) = (&created(), &begun());
    let mut answers = answers(&[new, old, old, old, old, old]);
    let mut accepting = MembershipState::new(old.clone());
    let ballot = Ballot { counter: 1, proposer: 9 };
    accepting.accept(&Accepted { ballot, membership: new.clone() }).expect("the next step");
    answers.insert((NodeId(2), VOLUME), answer(2, Some(accepting)));
    let group = seen(&answers).expect("they answer");
    assert_eq!((&group.membership, group.is_established), (old, false));
    assert_eq!(begun_after(old, &claims(GROUP, &answers)), Some(new));
}

#[test]
fn what_enough_members_say_counts_more_than_a_catalog_of_the_same_epoch() {
    let other = GroupMembership::created([1, 2, 3, 4, 5, 7].map(NodeId)).expect("six nodes");
    let said = claims(GROUP, &answers(&[&created(); 6]));
    assert_eq!(newest_membership(Some(&other), &said), Some(created()));
    assert_eq!(newest_membership(Some(&begun()), &said), Some(begun()), "an older one does not");
    assert_eq!(newest_membership(None, &claims(GROUP, &answers(&[&created(); 2]))), None);
}

#[test]
fn a_member_is_complete_when_it_lacks_no_more_than_what_is_in_flight() {
    let progress = |segment: &SegmentSummary, refill: Option<(u64, u64)>| {
        let mut status = answer(1, None).status;
        status.refills.extend(refill.map(|(done_bytes, total_bytes)| RefillProgress {
            group: GROUP.group,
            done_bytes,
            total_bytes,
        }));
        super::progress(segment, &status, Lsn(FAR))
    };
    let catching_up = |done_bytes, total_bytes| MemberProgress::CatchingUp { done_bytes, total_bytes };
    assert_eq!(progress(&segment(FAR - IN_FLIGHT_BYTES, false), None), MemberProgress::Complete);
    assert_eq!(progress(&segment(FAR - IN_FLIGHT_BYTES - 1, false), None), catching_up(0, 0));
    assert_eq!(progress(&segment(FAR, true), None), catching_up(0, 0));
    assert_eq!(progress(&segment(FAR, false), Some((3, 9))), catching_up(3, 9));
}

#[test]
fn every_observer_says_how_long_ago_by_its_own_clock() {
    let fleet = fleet();
    let at = Duration::from_millis;
    let old = &created();
    let mut memory = Memory::new();
    memory.take(&fleet, &answers(&[old; 6]), Vec::new(), at(1_000));
    let mut without_3 = answers(&[old; 6]);
    without_3.remove(&(NodeId(3), VOLUME));
    let peer = without_3.get_mut(&(NodeId(1), VOLUME)).expect("it answers");
    peer.status.heard = vec![PeerHeard { node: NodeId(3), ms_ago: 700 }];
    memory.take(&fleet, &without_3, Vec::new(), at(4_000));
    let heard = |memory: &Memory| {
        observed(&fleet, &without_3, memory, &HostReport::default(), at(4_500)).nodes[&NodeId(3)]
            .heard_ms_ago
            .clone()
    };
    let expected = BTreeMap::from([(Observer::Controller, 3_500), (Observer::Peer(NodeId(1)), 700)]);
    assert_eq!(heard(&memory), expected);
    let mut started_late = Memory::new();
    started_late.take(&fleet, &without_3, Vec::new(), at(4_000));
    assert_eq!(heard(&started_late)[&Observer::Controller], 500, "it could not have heard it before");
}

#[test]
fn a_writer_that_says_nothing_is_no_witness() {
    let fleet = fleet();
    let mut memory = Memory::new();
    let witness = Witness { volume: VOLUME, instance: InstanceId(1), heard_ms_ago: [(NodeId(1), 20)].into() };
    let heard = |memory: &Memory| memory.heard_ms_ago(NodeId(1), &Answers::new(), Duration::from_secs(3));
    let writer = Observer::Writer(VOLUME, InstanceId(1));
    memory.take(&fleet, &Answers::new(), vec![witness], Duration::from_secs(1));
    assert_eq!(heard(&memory)[&writer], 20);
    memory.take(&fleet, &Answers::new(), Vec::new(), Duration::from_secs(2));
    assert!(!heard(&memory).contains_key(&writer));
}
