//! A segment joins, stays, and leaves.

use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, MembershipEpoch, NodeId, ReadPoint, RecordSpan, ServerVersion,
    VolumeEpoch, WriterId,
};

use super::{BaseRefused, Offer, OtherMembership, Segment, Source, Standing};
use crate::membership::{
    Accepted, Ballot, Contradiction, GroupMembership, NotAccepted, Replacement, Transition,
};
use crate::{ChainLink, DurablePoint, Promise};

const GROUP: GroupId = GroupId(0);
const NEWCOMER: NodeId = NodeId(6);
const EPOCH: VolumeEpoch = VolumeEpoch(2);
const REPLACEMENT: Replacement = Replacement { old: NodeId(5), new: NEWCOMER };

fn created() -> GroupMembership {
    GroupMembership::created([0, 1, 2, 3, 4, 5].map(NodeId)).expect("six different nodes")
}

fn after(membership: &GroupMembership, transition: Transition) -> GroupMembership {
    membership.after(transition).expect("the step is possible")
}

fn begun() -> GroupMembership {
    after(&created(), Transition::Begin(REPLACEMENT))
}

fn history() -> EpochHistory {
    let mut history = EpochHistory::default();
    let last = RecordSpan::NONE;
    history.push(EpochOpening { epoch: EPOCH, last, server_version: ServerVersion::NEWEST_TESTED });
    history
}

/// A newcomer that took the history and a record which follows others that it does not have.
fn joining() -> Segment {
    let mut segment = Segment::absent(GROUP);
    let installed = segment.install_membership(NEWCOMER, &begun()).expect("the first one");
    assert!(installed.changed && !installed.left);
    segment.fence(Promise { epoch: EPOCH, writer: WriterId(1) }).expect("nobody else asked");
    segment.install(Some(WriterId(1)), &history(), DurablePoint::default()).expect("it is promised");
    assert_eq!(segment.offer(Source::Writer, EPOCH, link(40, 40, 60)), Offer::Held);
    assert_eq!(segment.offer(Source::Writer, EPOCH, link(60, 60, 80)), Offer::Held);
    segment
}

fn link(previous_end: u64, start: u64, end: u64) -> ChainLink {
    let span = RecordSpan { start: Lsn(start), end: Lsn(end) };
    ChainLink { previous_end: Lsn(previous_end), span }
}

fn point(start: u64, end: u64) -> DurablePoint {
    DurablePoint { volume: RecordSpan { start: Lsn(start), end: Lsn(end) }, group_tail: Lsn(end) }
}

#[test]
fn a_joining_segment_counts_for_nothing() {
    let mut segment = joining();
    assert_eq!(segment.standing(), Standing::Joining);
    assert_eq!(segment.segment_complete_lsn(), Lsn::ZERO);
    let summary = segment.summary();
    assert!(summary.joining && summary.complete == RecordSpan::NONE);
    assert!(segment.check_read(ReadPoint { epoch: EPOCH, lsn: Lsn(60) }).is_err());
    assert_eq!(segment.gap(), None);
    let mut peer = summary;
    peer.complete = RecordSpan { start: Lsn(60), end: Lsn(80) };
    assert_eq!(segment.plan_gossip(&peer).ask, None);
    // Not even what is complete from the very first record on.
    let mut from_zero = Segment::absent(GROUP);
    from_zero.install_membership(NEWCOMER, &begun()).expect("the first one");
    from_zero.fence(Promise { epoch: EPOCH, writer: WriterId(1) }).expect("nobody else asked");
    from_zero.install(Some(WriterId(1)), &history(), DurablePoint::default()).expect("it is promised");
    assert_eq!(from_zero.offer(Source::Writer, EPOCH, link(0, 0, 40)), Offer::Complete);
    assert_eq!(from_zero.acknowledgement(), Some((EPOCH, Lsn::ZERO)));
    assert!(from_zero.check_read(ReadPoint { epoch: EPOCH, lsn: Lsn(40) }).is_err());
    assert_eq!(from_zero.take_base(EPOCH, point(0, 40)), Ok(Vec::new()));
    assert_eq!(from_zero.acknowledgement(), Some((EPOCH, Lsn(40))));
    segment.take_base(EPOCH, point(20, 40)).expect("it has the history");
}

#[test]
fn a_base_makes_it_full_and_the_chain_goes_on_from_there() {
    let mut segment = joining();
    assert_eq!(segment.take_base(EPOCH, point(20, 40)), Ok(Vec::new()));
    assert_eq!((segment.standing(), segment.segment_complete_lsn()), (Standing::Full, Lsn(80)));
    assert_eq!(segment.known_durable(), point(20, 40));
    assert!(segment.check_read(ReadPoint { epoch: EPOCH, lsn: Lsn(60) }).is_ok());
    assert!(segment.check_read(ReadPoint { epoch: EPOCH, lsn: Lsn(39) }).is_err());
    // What the base contains is forgotten.
    let mut later = joining();
    let contained = later.take_base(EPOCH, point(40, 60)).expect("it has the history");
    assert_eq!(contained.iter().map(|record| record.link).collect::<Vec<_>>(), [link(40, 40, 60)]);
    assert_eq!(later.segment_complete_lsn(), Lsn(80));
    for segment in [segment, later, joining()] {
        assert_eq!(Segment::restore(segment.checkpoint()), Ok(segment));
    }
}

#[test]
fn a_joining_segment_takes_what_it_knows_to_be_durable_for_its_base_and_nothing_older_than_its_history() {
    let mut segment = joining();
    assert_eq!(segment.base_point(), Some(DurablePoint::default()), "the history opens an empty volume");
    assert!(segment.observe_durable(EPOCH, point(20, 40)));
    assert_eq!(segment.base_point(), Some(point(20, 40)));
    assert!(!segment.has_chain_to(point(20, 40)) && segment.has_chain_to(DurablePoint::default()));
    segment.fence(Promise { epoch: VolumeEpoch(3), writer: WriterId(2) }).expect("it is newer");
    assert_eq!(segment.base_point(), None, "a recovery is under way");
    let mut longer = history();
    let (epoch, last, server_version) = (VolumeEpoch(3), point(60, 80).volume, ServerVersion::NEWEST_TESTED);
    longer.push(EpochOpening { epoch, last, server_version });
    segment.install(None, &longer, DurablePoint::default()).expect("it is promised");
    assert_eq!(segment.base_point(), None, "the volume is durable through 80");
    assert!(segment.observe_durable(epoch, point(60, 80)));
    assert_eq!(segment.base_point(), Some(point(60, 80)));
    let base = segment.base_point().expect("just seen");
    segment.take_base(epoch, base).expect("it may");
    assert_eq!((segment.base_point(), segment.has_chain_to(base)), (None, true));
    assert_eq!(Segment::absent(GROUP).base_point(), None);
}

#[test]
fn a_full_segment_takes_no_base_and_gets_ahead_by_a_jump() {
    let mut segment = joining();
    segment.take_base(EPOCH, DurablePoint::default()).expect("a group without records");
    assert_eq!((segment.standing(), segment.segment_complete_lsn()), (Standing::Full, Lsn::ZERO));
    let full = segment.clone();
    assert_eq!(segment.take_base(EPOCH, point(20, 40)), Err(BaseRefused::NotJoining));
    // A base came on one peer's word; a member goes on only from what it knows to be durable.
    assert!(segment.jump(point(20, 40)).is_err());
    assert_eq!(segment, full);
    let promise = segment.promise();
    assert!(segment.observe_durable(EPOCH, point(20, 40)));
    segment.jump(point(20, 40)).expect("it is known to be durable");
    assert_eq!((segment.segment_complete_lsn(), segment.promise()), (Lsn(80), promise));
    // One that is further already stays where it is.
    assert!(segment.jump(point(20, 40)).is_err());
    assert_eq!(segment.segment_complete_lsn(), Lsn(80));
}

#[test]
fn a_base_that_cannot_be_of_this_volume_or_comes_too_early_is_refused() {
    let mut segment = joining();
    let before = segment.clone();
    assert_eq!(segment.take_base(EPOCH, point(40, 50)), Err(BaseRefused::Crosses(Lsn(60))));
    let beyond = DurablePoint { group_tail: Lsn(50), ..point(20, 40) };
    assert_eq!(segment.take_base(EPOCH, beyond), Err(BaseRefused::Crosses(Lsn(50))));
    let newer = VolumeEpoch(3);
    assert_eq!(segment.take_base(newer, point(20, 40)), Err(BaseRefused::NeedsHistory(newer)));
    // Of a recovery that died: the one that came after it continues another history, and may have cut what it kept.
    let dead = VolumeEpoch(EPOCH.0 - 1);
    assert_eq!(segment.take_base(dead, point(20, 40)), Err(BaseRefused::NeedsHistory(dead)));
    assert_eq!(segment, before);
    segment.fence(Promise { epoch: newer, writer: WriterId(2) }).expect("it is newer");
    assert_eq!(segment.take_base(EPOCH, point(20, 40)), Err(BaseRefused::Fenced));
    assert_eq!(Segment::absent(GROUP).take_base(EPOCH, point(20, 40)), Err(BaseRefused::NotJoining));
}

#[test]
fn whoever_leaves_keeps_only_the_membership_and_comes_back_empty() {
    let mut segment = joining();
    segment.take_base(EPOCH, point(20, 40)).expect("it has the history");
    let back = after(&begun(), Transition::TakeBack(REPLACEMENT));
    let installed = segment.install_membership(NEWCOMER, &back).expect("a newer one");
    assert!(installed.changed && installed.left);
    assert_eq!((segment.standing(), segment.promise()), (Standing::Absent, Promise::default()));
    assert_eq!(segment.uncertain().count() + segment.held_count(), 0);
    // An old message does not lead it back.
    assert_eq!(segment.install_membership(NEWCOMER, &begun()), Ok(super::MembershipInstalled::default()));
    assert_eq!(segment.check_membership(MembershipEpoch(2)), Err(OtherMembership::Newer(back.clone())));
    assert_eq!(segment.check_membership(MembershipEpoch(3)), Err(OtherMembership::NotLearned));
    assert_eq!(Segment::restore(segment.checkpoint()), Ok(segment.clone()));
    let again = after(&back, Transition::Begin(REPLACEMENT));
    segment.install_membership(NEWCOMER, &again).expect("a newer one");
    assert_eq!((segment.standing(), segment.segment_complete_lsn()), (Standing::Joining, Lsn::ZERO));
}

#[test]
fn requests_are_taken_for_the_installed_membership_and_the_one_after_it() {
    let mut segment = Segment::created(GROUP, created());
    segment.install_membership(NodeId(0), &begun()).expect("a newer one");
    assert_eq!(segment.standing(), Standing::Full);
    let check = |epoch| segment.check_membership(MembershipEpoch(epoch));
    assert_eq!(check(1), Err(OtherMembership::Newer(begun())));
    assert_eq!((check(2), check(3)), (Ok(()), Ok(())));
    assert_eq!(check(4), Err(OtherMembership::NotLearned));
    // Where configuration says who the members are, nothing is asked.
    assert_eq!(Segment::new(GROUP).check_membership(MembershipEpoch(9)), Ok(()));
}

#[test]
fn a_member_votes_once_for_each_attempt_and_only_for_the_next_step() {
    let mut segment = Segment::created(GROUP, created());
    let ballot = |counter| Ballot { counter, proposer: 7 };
    assert!(segment.prepare_membership(MembershipEpoch(1), ballot(2)));
    assert!(!segment.prepare_membership(MembershipEpoch(1), ballot(1)));
    assert!(!segment.prepare_membership(MembershipEpoch(2), ballot(3)));
    let proposed = |counter, membership| Accepted { ballot: ballot(counter), membership };
    let promised = ballot(2);
    assert_eq!(segment.accept_membership(&proposed(1, begun())), Err(NotAccepted::Promised { promised }));
    let two_steps = after(&begun(), Transition::Finish(REPLACEMENT));
    assert_eq!(segment.accept_membership(&proposed(2, two_steps)), Err(NotAccepted::NoStep));
    assert_eq!(segment.accept_membership(&proposed(2, begun())), Ok(true));
    assert_eq!(segment.accept_membership(&proposed(2, begun())), Ok(false));
    assert_eq!(Segment::restore(segment.checkpoint()), Ok(segment.clone()));
    assert!(!Segment::absent(GROUP).prepare_membership(MembershipEpoch(1), ballot(9)));
    segment.install_membership(NodeId(0), &begun()).expect("it was chosen");
    let state = segment.membership().expect("it was created with one");
    assert_eq!((state.promised(), state.accepted()), (Ballot::default(), None));
    let [old, new] = [0, 9].map(NodeId);
    let other = after(&created(), Transition::Begin(Replacement { old, new }));
    assert_eq!(segment.install_membership(NodeId(0), &other), Err(Contradiction));
}
