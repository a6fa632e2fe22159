//! Changes carried out against real segments, with controllers that stop at any step and others that know nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, MembershipEpoch, NodeId, RecordSpan, ServerVersion,
    VolumeEpoch, WriterId,
};

use super::Request;
use super::change::{Answer, Change, ChangeFailure, ChangeOptions, Command, Event};
use super::{Accepted, Ballot, GroupMembership, InvalidTransition, MembershipState, Replacement, Transition};
use crate::segment::{Segment, Source, Standing};
use crate::{ChainLink, DurablePoint, Promise};

const GROUP: GroupId = GroupId(0);
const FIRST: Replacement = Replacement { old: NodeId(5), new: NodeId(6) };
const SECOND: Replacement = Replacement { old: NodeId(4), new: NodeId(7) };
const RETRY: Duration = Duration::from_millis(100);

/// Nodes with their segments; what happens is decided by the test alone.
struct Group {
    segments: BTreeMap<NodeId, Segment>,
    /// Nodes that do not answer.
    down: BTreeSet<NodeId>,
    /// Every membership that a node ever acted on.
    chosen: BTreeMap<MembershipEpoch, GroupMembership>,
    now: Duration,
}

fn created() -> GroupMembership {
    GroupMembership::created([0, 1, 2, 3, 4, 5].map(NodeId)).expect("six different nodes")
}

fn promise(epoch: u64) -> Promise {
    Promise { epoch: VolumeEpoch(epoch), writer: WriterId(epoch) }
}

impl Group {
    /// Six members that have one history and one record, and two nodes that are none.
    fn new() -> Group {
        let mut history = EpochHistory::default();
        let (last, server_version) = (RecordSpan::NONE, ServerVersion::NEWEST_TESTED);
        history.push(EpochOpening { epoch: VolumeEpoch(1), last, server_version });
        let member = || {
            let mut segment = Segment::created(GROUP, created());
            segment.fence(promise(1)).expect("the first");
            segment.install(Some(WriterId(1)), &history, DurablePoint::default()).expect("it is promised");
            let span = RecordSpan { start: Lsn(8), end: Lsn(40) };
            segment.offer(Source::Writer, VolumeEpoch(1), ChainLink { previous_end: Lsn::ZERO, span });
            segment
        };
        let segment = |id| if id < 6 { member() } else { Segment::absent(GROUP) };
        let segments = (0..8).map(|id| (NodeId(id), segment(id))).collect();
        let chosen = BTreeMap::from([(MembershipEpoch(1), created())]);
        Group { segments, down: BTreeSet::new(), chosen, now: Duration::ZERO }
    }

    fn start(&self, goal: Transition, proposer: u64) -> (Change, Vec<Command>) {
        let options = ChangeOptions {
            group: GROUP,
            known: created(),
            goal,
            proposer,
            retry_after: RETRY,
            give_up_after: Some(RETRY * 50),
        };
        Change::start(options, self.now)
    }

    fn carry_out(&mut self, node: NodeId, request: &Request) -> Option<Answer> {
        if self.down.contains(&node) {
            return None;
        }
        let segment = self.segments.get_mut(&node)?;
        match request {
            Request::Ask => {}
            Request::Prepare { installed, ballot } => {
                segment.prepare_membership(installed.epoch(), *ballot);
            }
            Request::Accept(proposed) => {
                let _ = segment.accept_membership(proposed);
            }
            Request::Install(membership) => {
                segment.install_membership(node, membership).expect("one membership per epoch");
                let first = self.chosen.entry(membership.epoch()).or_insert_with(|| membership.clone());
                assert_eq!(first, membership, "two memberships of one epoch");
            }
        }
        let here = segment.standing() != Standing::Absent;
        let summary = here.then(|| segment.summary());
        Some(Answer { node, membership: segment.membership().cloned(), summary })
    }

    /// Carries out what is asked, in order, until the change ends or `steps` requests are through.
    fn run(&mut self, change: &mut Change, commands: Vec<Command>, steps: &mut usize) -> Option<Command> {
        let mut queue = VecDeque::from(commands);
        loop {
            let Some(command) = queue.pop_front() else {
                self.now += RETRY;
                queue.extend(change.handle(Event::Tick, self.now));
                continue;
            };
            let Command::Send { node, request } = command else { return Some(command) };
            if *steps == 0 {
                return None;
            }
            *steps -= 1;
            if let Some(answer) = self.carry_out(node, &request) {
                queue.extend(change.handle(Event::Answer(answer), self.now));
            }
        }
    }

    fn make(&mut self, goal: Transition, proposer: u64) -> Command {
        let (mut change, commands) = self.start(goal, proposer);
        self.run(&mut change, commands, &mut usize::MAX.clone()).expect("it ends")
    }

    /// Newcomers get promise, history, and everything up to the record's end.
    fn join(&mut self) {
        let history = self.segments[&NodeId(0)].history().clone();
        for segment in self.segments.values_mut() {
            if segment.standing() == Standing::Joining {
                let _ = segment.fence(promise(1));
                let volume = RecordSpan { start: Lsn(8), end: Lsn(40) };
                let point = DurablePoint { volume, group_tail: Lsn(40) };
                segment
                    .install(Some(WriterId(1)), &history, DurablePoint::default())
                    .expect("it is promised");
                segment.take_base(VolumeEpoch(1), point).expect("it has the history");
            }
        }
    }

    fn standing(&self, node: u16) -> Standing {
        self.segments[&NodeId(node)].standing()
    }
}

fn done(command: &Command) -> &GroupMembership {
    match command {
        Command::Done(membership) => membership,
        other => panic!("it ended with {other:?}"),
    }
}

#[test]
fn a_member_that_is_gone_is_replaced_and_dropped_when_the_others_have_everything() {
    let mut group = Group::new();
    group.down.insert(NodeId(5));
    let begun = group.make(Transition::Begin(FIRST), 1);
    assert_eq!(done(&begun).replacements(), [FIRST]);
    assert_eq!(group.standing(6), Standing::Joining);
    // Five have everything, four of each set: the newcomer may be copying still.
    let finished = group.make(Transition::Finish(FIRST), 2);
    assert_eq!(done(&finished).sets(), [[0, 1, 2, 3, 4, 6].map(NodeId)]);
    group.down.clear();
    // It was away, and is told by the next who asks.
    let (node, membership) = (NodeId(5), done(&finished).clone());
    group.carry_out(node, &Request::Install(membership)).expect("it is there");
    assert_eq!(group.standing(5), Standing::Absent);
}

#[test]
fn two_members_are_replaced_at_once_and_one_of_them_is_taken_back() {
    let mut group = Group::new();
    done(&group.make(Transition::Begin(FIRST), 1));
    let both = group.make(Transition::Begin(SECOND), 2);
    assert_eq!((done(&both).sets().len(), done(&both).replacements()), (4, vec![FIRST, SECOND]));
    group.join();
    assert_eq!(done(&group.make(Transition::TakeBack(SECOND), 3)).replacements(), [FIRST]);
    assert_eq!(group.standing(7), Standing::Absent);
    let finished = group.make(Transition::Finish(FIRST), 4);
    assert_eq!(done(&finished).sets(), [[0, 1, 2, 3, 4, 6].map(NodeId)]);
    assert_eq!((group.standing(5), group.standing(6)), (Standing::Absent, Standing::Full));
}

#[test]
fn a_step_that_the_membership_does_not_allow_ends_with_the_reason() {
    let mut group = Group::new();
    let to_member = Transition::Begin(Replacement { old: NodeId(0), new: NodeId(1) });
    // The new one is a member: to whoever asks, that is done.
    assert_eq!(done(&group.make(to_member, 1)), &created());
    let of_stranger = Transition::Begin(Replacement { old: NodeId(6), new: NodeId(7) });
    let why = InvalidTransition::NotMember(NodeId(6));
    let failure = ChangeFailure::Impossible { membership: created(), why };
    assert_eq!(group.make(of_stranger, 2), Command::Failed(failure));
}

#[test]
fn nothing_begins_that_would_leave_a_set_without_four_members_that_have_everything() {
    let mut group = Group::new();
    done(&group.make(Transition::Begin(FIRST), 1));
    done(&group.make(Transition::Finish(FIRST), 2));
    done(&group.make(Transition::Begin(SECOND), 3));
    // Nodes 6 and 7 copy; a third newcomer would leave three.
    let third = Transition::Begin(Replacement { old: NodeId(3), new: NodeId(5) });
    assert!(matches!(group.make(third, 4), Command::Failed(ChangeFailure::TimedOut { .. })));
    group.join();
    assert_eq!(done(&group.make(third, 5)).sets().len(), 4);
}

/// Two members promise, and are lost before the others answer: what they said was true when they said it.
#[test]
fn nothing_begins_for_which_members_are_counted_that_are_gone_since() {
    let mut group = Group::new();
    let (mut change, mut commands) = group.start(Transition::Begin(FIRST), 1);
    for is_prepare in [false, true] {
        let asked = std::mem::take(&mut commands);
        for command in asked {
            let Command::Send { node, request } = command else { panic!("it ends too early: {command:?}") };
            let answers =
                !is_prepare || (matches!(request, Request::Prepare { .. }) && [3, 4].contains(&node.0));
            if let Some(answer) = answers.then(|| group.carry_out(node, &request)).flatten() {
                commands.extend(change.handle(Event::Answer(answer), group.now));
            }
        }
    }
    let promised = |node| group.segments[&NodeId(node)].membership().expect("a member").promised().counter;
    assert_eq!([2, 3, 4].map(promised), [0, 1, 1]);
    group.down = [3, 4].map(NodeId).into();
    group.now += RETRY * 5;
    let commands = change.handle(Event::Tick, group.now);
    let end = group.run(&mut change, commands, &mut usize::MAX.clone());
    assert!(matches!(end, Some(Command::Failed(ChangeFailure::TimedOut { .. }))), "{end:?}");
    assert_eq!(group.chosen.len(), 1, "with node 6 lost too, three of its set would be left");
}

/// What some segments get, and others do not.
type Gift<'a> = &'a dyn Fn(&mut Segment);

#[test]
fn nobody_is_dropped_while_the_sets_that_stay_lack_a_promise_a_history_or_a_record() {
    let span = RecordSpan { start: Lsn(40), end: Lsn(80) };
    let record = ChainLink { previous_end: Lsn(40), span };
    // Four of the old set: that of the one that goes, and only three of those that stay.
    let had_by = [0, 1, 2, 5].map(NodeId);
    let lacks: [(&str, Gift<'_>); 3] = [
        ("a record", &|segment| {
            segment.offer(Source::Writer, VolumeEpoch(1), record);
        }),
        ("a history", &|segment| {
            let mut history = segment.history().clone();
            let last = RecordSpan { start: Lsn(8), end: Lsn(40) };
            let server_version = ServerVersion::NEWEST_TESTED;
            history.push(EpochOpening { epoch: VolumeEpoch(2), last, server_version });
            segment.install(Some(WriterId(2)), &history, DurablePoint::default()).expect("it is newer");
        }),
        ("a promise", &|segment| {
            segment.fence(promise(2)).expect("it is newer");
        }),
    ];
    for (what, give) in lacks {
        let mut group = Group::new();
        had_by.iter().for_each(|node| give(group.segments.get_mut(node).expect("a member")));
        done(&group.make(Transition::Begin(FIRST), 1));
        assert!(
            matches!(
                group.make(Transition::Finish(FIRST), 2),
                Command::Failed(ChangeFailure::TimedOut { .. })
            ),
            "{what}"
        );
        give(group.segments.get_mut(&NodeId(3)).expect("a member"));
        assert_eq!(done(&group.make(Transition::Finish(FIRST), 3)).sets().len(), 1, "{what}");
    }
}

/// Every way to stop a controller after some of its requests, with another after it that wants the same, or the opposite.
#[test]
fn a_controller_may_stop_after_any_request_and_another_takes_up_what_it_began() {
    let goals = [Transition::Begin(FIRST), Transition::Finish(FIRST), Transition::TakeBack(FIRST)];
    for first in goals {
        for second in goals {
            for stop_after in 0..60 {
                let mut group = Group::new();
                group.down.insert(NodeId(4));
                if first != Transition::Begin(FIRST) {
                    done(&group.make(Transition::Begin(FIRST), 9));
                    group.join();
                }
                let (mut change, commands) = group.start(first, 1);
                group.run(&mut change, commands, &mut stop_after.clone());
                let end = group.make(second, 2);
                let is_settled = |membership: &GroupMembership| match second {
                    Transition::Begin(r) => membership.contains(r.new),
                    Transition::Finish(r) => !membership.contains(r.old),
                    Transition::TakeBack(r) => !membership.contains(r.new),
                };
                match &end {
                    Command::Done(membership) => assert!(is_settled(membership), "{first:?} {stop_after}"),
                    // The other one was quicker, and what it did cannot be undone.
                    Command::Failed(ChangeFailure::Impossible { membership, .. }) => {
                        assert!(!is_settled(membership), "{first:?} {stop_after}");
                    }
                    other => panic!("{first:?}, stopped after {stop_after}, then {second:?}: {other:?}"),
                }
            }
        }
    }
}

/// Two controllers take turns, one request at a time, in every pattern of eight turns, for ever repeated.
#[test]
fn a_finish_and_a_taking_back_at_the_same_time_end_with_one_of_the_two() {
    let mut ends = BTreeMap::new();
    for pattern in 0..256u32 {
        let mut group = Group::new();
        done(&group.make(Transition::Begin(FIRST), 9));
        group.join();
        let goals = [Transition::Finish(FIRST), Transition::TakeBack(FIRST)];
        let mut changes: Vec<(Change, VecDeque<Command>, bool)> = goals
            .iter()
            .zip(1..)
            .map(|(&goal, proposer)| {
                let (change, commands) = group.start(goal, proposer);
                (change, VecDeque::from(commands), false)
            })
            .collect();
        for turn in 0.. {
            if changes.iter().all(|(_, _, ended)| *ended) {
                break;
            }
            assert!(turn < 10_000, "pattern {pattern:08b} does not end");
            let whose = (pattern >> (turn % 8) & 1) as usize ^ ((turn / 400) % 2);
            let (change, queue, ended) = &mut changes[whose];
            group.now += RETRY / 20;
            match queue.pop_front() {
                Some(Command::Send { node, request }) => {
                    if let Some(answer) = group.carry_out(node, &request) {
                        queue.extend(change.handle(Event::Answer(answer), group.now));
                    }
                }
                Some(_) => *ended = true,
                None => queue.extend(change.handle(Event::Tick, group.now)),
            }
        }
        let last = group.chosen.last_key_value().expect("it was created").1;
        assert_eq!((last.sets().len(), last.epoch()), (1, MembershipEpoch(3)), "{pattern:08b}");
        *ends.entry(last.contains(FIRST.new)).or_insert(0) += 1;
    }
    assert_eq!(ends.len(), 2, "each of them wins sometimes: {ends:?}");
}

#[test]
#[should_panic(expected = "invariant membership-chosen-by-a-write-quorum is broken")]
fn a_membership_that_too_few_accepted_is_noticed() {
    let group = Group::new();
    let (mut change, _) = group.start(Transition::Begin(FIRST), 1);
    change.count_everyone_as_accepting();
}

#[test]
#[should_panic(expected = "invariant finish-follows-the-bar is broken")]
fn a_finish_without_the_bar_is_noticed() {
    let mut group = Group::new();
    done(&group.make(Transition::Begin(FIRST), 1));
    let (mut change, _) = group.start(Transition::Finish(FIRST), 2);
    let during = group.chosen[&MembershipEpoch(2)].clone();
    change.propose_without_looking(during);
}

#[test]
fn an_older_answer_does_not_undo_a_newer_one() {
    let older = MembershipState::new(created());
    let mut newer = older.clone();
    assert!(newer.prepare(Ballot { counter: 1, proposer: 1 }));
    assert!(newer.is_after(&older) && !older.is_after(&newer));
    let membership = created().after(Transition::Begin(FIRST)).expect("node 6 is new");
    let mut accepted = newer.clone();
    accepted
        .accept(&Accepted { ballot: Ballot { counter: 1, proposer: 1 }, membership })
        .expect("it follows");
    assert!(accepted.is_after(&newer));
}
