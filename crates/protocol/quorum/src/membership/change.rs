//! One step of a group's membership, carried out by a controller: event in, command out.
//!
//! 1. **Learn** what the members have installed: a newer membership than the one known is taken up first.
//! 2. For a step that drops members: wait until every set that stays has what the **bar** asks for (`bar.rs`).
//! 3. **Prepare** and **accept** at a write quorum of the membership as it is: the next one is *chosen*.
//! 4. **Install** it at everyone concerned. When a write quorum of it has it, it is *established*: no write quorum of the one
//!    before is left, whichever of the two has more sets.
//!
//! Any number of changes may be under way for a group, each by another controller, and each may stop anywhere: one that
//! begins later knows nothing but the members' answers. What an earlier one got accepted is finished first. Every answer
//! is a member's whole state, so that it does not matter which request it answers, or how often.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use borealis_types::{GroupId, NodeId, invariant};

use super::bar::Bar;
use super::evidence::credible_membership;
use super::{Accepted, Ballot, MembershipState, Request};
use super::{GroupMembership, InvalidTransition, Transition};
use crate::quorum_set::QuorumSets;
use crate::segment::SegmentSummary;

/// So many repetitions after it began, an attempt is begun anew: who promised in it may be gone. Twice as many if it has come
/// so far as to propose something.
const ATTEMPT_REPETITIONS: u32 = 4;

/// What a change is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A member's state, after it carried out a request, durably.
    Answer(Answer),
    /// Time passed. Requests without an answer are sent again.
    Tick,
}

/// A member's whole state.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The member.
    pub node: NodeId,
    /// What it stores of memberships; `None` if it never heard of the group.
    pub membership: Option<MembershipState>,
    /// Its segment; `None` if it has none (any more).
    pub summary: Option<SegmentSummary>,
}

/// What the caller does next. Each may come again; carrying it out twice does no harm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Send a request to a node.
    Send {
        /// The node to ask.
        node: NodeId,
        /// What to ask of it.
        request: Request,
    },
    /// Finished: the step was made, or somebody else made it, and the membership is established.
    Done(GroupMembership),
    /// Given up. Another change may take up whatever this one began.
    Failed(ChangeFailure),
}

/// Why a change was given up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeFailure {
    /// The membership, as it is by now, does not allow the step.
    #[error("the step is not possible (membership epoch {}): {why}", .membership.epoch())]
    Impossible {
        /// As it is by now.
        membership: GroupMembership,
        /// What stands in the way.
        why: InvalidTransition,
    },
    /// Too few members answered in time, or the sets that stay did not get what they lack.
    #[error("the change was not finished in time (membership epoch {})", .membership.epoch())]
    TimedOut {
        /// As far as it came.
        membership: GroupMembership,
    },
}

/// How a change is set up.
#[derive(Clone, Debug)]
pub struct ChangeOptions {
    /// The group.
    pub group: GroupId,
    /// A membership that it had: where to begin asking. The newer, the quicker.
    pub known: GroupMembership,
    /// The step to make.
    pub goal: Transition,
    /// A random number of this change.
    pub proposer: u64,
    /// A request without an answer is repeated after this long.
    pub retry_after: Duration,
    /// Give up this long after the start; never, if `None`.
    pub give_up_after: Option<Duration>,
}

/// One attempt to have the next membership chosen.
#[derive(Clone, Debug)]
struct Attempt {
    ballot: Ballot,
    begun: Duration,
    /// Who promised, and what each had accepted before.
    promises: BTreeMap<NodeId, Option<Accepted>>,
    /// What is proposed, once a write quorum promised.
    value: Option<GroupMembership>,
    accepts: BTreeSet<NodeId>,
}

/// One step of a group's membership.
#[derive(Debug)]
pub struct Change {
    options: ChangeOptions,
    /// The newest membership that is known to have been chosen.
    current: GroupMembership,
    /// The last answer of each node.
    answers: BTreeMap<NodeId, Answer>,
    /// The first summary of each member since it has the current membership installed: the bar is taken from these.
    first: BTreeMap<NodeId, SegmentSummary>,
    attempt: Option<Attempt>,
    /// The highest counter of any ballot seen.
    counter: u64,
    /// No new attempt before this, so that two controllers do not stop each other for ever.
    next_attempt_at: Duration,
    /// What was asked of each node last, and when.
    sent: BTreeMap<NodeId, (Request, Duration)>,
    deadline: Option<Duration>,
    finished: bool,
}

impl Change {
    /// Starts at `now` (any monotonic clock).
    #[must_use]
    pub fn start(options: ChangeOptions, now: Duration) -> (Change, Vec<Command>) {
        let deadline = options.give_up_after.and_then(|after| now.checked_add(after));
        let mut change = Change {
            current: options.known.clone(),
            options,
            answers: BTreeMap::new(),
            first: BTreeMap::new(),
            attempt: None,
            counter: 0,
            next_attempt_at: now,
            sent: BTreeMap::new(),
            deadline,
            finished: false,
        };
        let mut commands = Vec::new();
        change.send_requests(now, &mut commands);
        (change, commands)
    }

    /// The newest membership that is known to have been chosen.
    #[must_use]
    pub fn membership(&self) -> &GroupMembership {
        &self.current
    }

    /// What the sets that stay must have before members are dropped, once enough members answered.
    #[must_use]
    pub fn bar(&self) -> Option<Bar> {
        Bar::of(self.current.base(), |node| self.first.get(&node))
    }

    /// The membership that is proposed to follow, once an attempt has come so far.
    #[must_use]
    pub fn proposed(&self) -> Option<&GroupMembership> {
        self.attempt.as_ref()?.value.as_ref()
    }

    /// Takes one event and says what to do next. After [`Command::Done`] or [`Command::Failed`] every further event is
    /// ignored.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.finished {
            return commands;
        }
        if let Event::Answer(answer) = event {
            self.take_answer(answer);
        }
        if let Some(end) = self.advance(now) {
            // Whoever leaves is told, as far as it can be reached.
            self.send_requests(now, &mut commands);
            commands.retain(|command| matches!(command, Command::Send { request: Request::Install(_), .. }));
            self.finished = true;
            commands.push(end);
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.finished = true;
            commands.push(Command::Failed(ChangeFailure::TimedOut { membership: self.current.clone() }));
        } else {
            self.send_requests(now, &mut commands);
        }
        commands
    }

    fn take_answer(&mut self, answer: Answer) {
        let is_older = |known: &Answer| match (&known.membership, &answer.membership) {
            (Some(known), Some(state)) => known.is_after(state),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if self.answers.get(&answer.node).is_some_and(is_older) {
            return;
        }
        if let Some(state) = &answer.membership {
            let counters = [state.promised().counter, state.accepted().map_or(0, |a| a.ballot.counter)];
            self.counter = self.counter.max(counters[0]).max(counters[1]);
        }
        self.note_first(&answer);
        self.answers.insert(answer.node, answer);
    }

    fn note_first(&mut self, answer: &Answer) {
        if let (Some(state), Some(summary)) = (&answer.membership, &answer.summary)
            && *state.installed() == self.current
        {
            self.first.entry(answer.node).or_insert_with(|| summary.clone());
        }
    }

    fn state_of(&self, node: NodeId) -> Option<&MembershipState> {
        self.answers.get(&node)?.membership.as_ref()
    }

    fn has_installed(&self, node: NodeId) -> bool {
        self.state_of(node).is_some_and(|state| *state.installed() == self.current)
    }

    /// Does whatever has become possible; says how it ended, if it did.
    fn advance(&mut self, now: Duration) -> Option<Command> {
        loop {
            let claims: BTreeMap<NodeId, MembershipState> = self
                .answers
                .iter()
                .filter_map(|(&node, answer)| Some((node, answer.membership.clone()?)))
                .collect();
            if let Some(newer) = credible_membership(Some(&self.current), &claims) {
                self.go_on_with(newer);
                continue;
            }
            if let Some(end) = self.end() {
                return Some(end);
            }
            match self.advance_attempt(now) {
                Some(chosen) => self.go_on_with(chosen),
                None => return None,
            }
        }
    }

    /// A newer membership was chosen.
    fn go_on_with(&mut self, membership: GroupMembership) {
        self.current = membership;
        self.attempt = None;
        self.first.clear();
        self.sent.clear();
        for answer in self.answers.values().cloned().collect::<Vec<_>>() {
            self.note_first(&answer);
        }
    }

    /// Whether the goal is reached and established, or cannot be reached.
    fn end(&self) -> Option<Command> {
        let is_reached = match self.options.goal {
            Transition::Begin(r) => self.current.contains(r.new),
            Transition::Finish(r) => self.current.contains(r.new) && !self.current.contains(r.old),
            Transition::TakeBack(r) => self.current.contains(r.old) && !self.current.contains(r.new),
        };
        let is_established =
            || QuorumSets::of(&self.current).is_write_quorum(|node| self.has_installed(node));
        if is_reached {
            return is_established().then(|| Command::Done(self.current.clone()));
        }
        match self.current.after(self.options.goal) {
            Ok(_) => None,
            // What others have begun may make it possible, or make it so.
            Err(_) if self.is_begun() => None,
            // Of a membership that is not established, a newer one may be out of sight.
            Err(_) if !is_established() => None,
            Err(why) => {
                let membership = self.current.clone();
                Some(Command::Failed(ChangeFailure::Impossible { membership, why }))
            }
        }
    }

    /// Whether somebody has begun to have a next membership chosen.
    fn is_begun(&self) -> bool {
        self.answers.values().filter_map(|answer| answer.membership.as_ref()).any(|state| {
            state.installed().epoch() > self.current.epoch()
                || (*state.installed() == self.current && state.accepted().is_some())
        })
    }

    /// The membership to propose if nobody else has begun, and it may be proposed now. `is_here`: whether a member is there
    /// still, though its answer may be old.
    fn own_value(&self, is_here: impl Fn(NodeId) -> bool) -> Option<GroupMembership> {
        let next = self.current.after(self.options.goal).ok()?;
        let may = match self.options.goal {
            Transition::Begin(_) => self.leaves_writes(&next, is_here),
            Transition::Finish(_) => self.meets_bar(&next),
            Transition::TakeBack(_) => true,
        };
        may.then_some(next)
    }

    /// Whether members that have everything, and are there, are a write quorum of each set to come: writes would wait
    /// for newcomers otherwise, for as long as those copy, and a recovery for ever. Should the newcomer be lost as well, not
    /// even the replacement can be taken back.
    fn leaves_writes(&self, next: &GroupMembership, is_here: impl Fn(NodeId) -> bool) -> bool {
        QuorumSets::of(next).is_write_quorum(|node| {
            let summary = self.answers.get(&node).and_then(|answer| answer.summary.as_ref());
            self.has_installed(node) && is_here(node) && summary.is_some_and(|summary| !summary.joining)
        })
    }

    /// Whether a write quorum of each set that stays has what the bar asks for, as its members said last.
    fn meets_bar(&self, next: &GroupMembership) -> bool {
        let Some(bar) = self.bar() else { return false };
        QuorumSets::of(next).is_write_quorum(|node| {
            let summary = self.answers.get(&node).and_then(|answer| answer.summary.as_ref());
            self.has_installed(node) && summary.is_some_and(|summary| bar.is_met_by(summary))
        })
    }

    /// Goes on with the attempt, or begins one. Returns what was chosen.
    fn advance_attempt(&mut self, now: Duration) -> Option<GroupMembership> {
        if self.attempt.is_none() {
            let has_own = || self.own_value(|_| true).is_some();
            if now < self.next_attempt_at || !(self.is_begun() || has_own()) {
                return None;
            }
            self.counter += 1;
            let ballot = Ballot { counter: self.counter, proposer: self.options.proposer };
            let (promises, accepts) = (BTreeMap::new(), BTreeSet::new());
            self.attempt = Some(Attempt { ballot, begun: now, promises, value: None, accepts });
        }
        self.count_votes(now);
        if self.attempt.as_ref().is_some_and(|attempt| self.is_overdue(attempt, now)) {
            self.postpone(now);
        }
        let (attempt, sets) = (self.attempt.as_ref()?, QuorumSets::of(&self.current));
        if attempt.value.is_none() && sets.is_write_quorum(|node| attempt.promises.contains_key(&node)) {
            self.choose_value();
            self.count_votes(now);
        }
        let attempt = self.attempt.as_ref()?;
        let value = attempt.value.as_ref()?;
        if !sets.is_write_quorum(|node| attempt.accepts.contains(&node)) {
            return None;
        }
        self.assert_chosen(value);
        Some(value.clone())
    }

    /// Counted anew from what the members said last.
    fn assert_chosen(&self, value: &GroupMembership) {
        let accepted = |node| self.state_of(node).is_some_and(|state| state.supports(value));
        let quorum = QuorumSets::of(&self.current).is_write_quorum(accepted);
        invariant!("membership-chosen-by-a-write-quorum", quorum, "{value:?}: {:?}", self.answers.keys());
    }

    /// Of what nobody else had begun: members may go.
    fn assert_may_propose(&self, value: &GroupMembership) {
        let drops = matches!(self.current.transition_to(value), Some(Transition::Finish(_)));
        invariant!("finish-follows-the-bar", !drops || self.meets_bar(value), "{value:?}, {:?}", self.bar());
    }

    /// Whether an attempt takes so long that members on whose promises it goes may be gone. What it got accepted, the next one
    /// finds.
    fn is_overdue(&self, attempt: &Attempt, now: Duration) -> bool {
        let repetitions = ATTEMPT_REPETITIONS * if attempt.value.is_some() { 2 } else { 1 };
        now >= attempt.begun.saturating_add(self.options.retry_after.saturating_mul(repetitions))
    }

    /// What must be proposed: what the highest attempt before got accepted, or else what this change is for. If neither is
    /// there to propose, what was seen to be begun was not chosen, and more members have to promise first, or to have what the
    /// bar asks for.
    fn choose_value(&mut self) {
        let Some(attempt) = &self.attempt else { return };
        // Of a member that promised, the promise says that it was there when the attempt had begun.
        let own = self.own_value(|node| attempt.promises.contains_key(&node));
        let accepted = attempt.promises.values().flatten().max_by_key(|accepted| accepted.ballot);
        let begun = accepted.map(|accepted| accepted.membership.clone());
        if let (None, Some(own)) = (&begun, &own) {
            self.assert_may_propose(own);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.value = begun.or(own);
        }
    }

    fn postpone(&mut self, now: Duration) {
        self.attempt = None;
        let steps = 1 + (self.options.proposer ^ self.counter) % 4;
        self.next_attempt_at = now + self.options.retry_after * steps as u32;
    }

    /// Sorts the last answers into promises and acceptances of the attempt; gives it up if a newer one is under way.
    fn count_votes(&mut self, now: Duration) {
        let Some(mut attempt) = self.attempt.take() else { return };
        let mut overtaken = false;
        for (&node, answer) in &self.answers {
            let Some(state) = &answer.membership else { continue };
            if let Some(ahead) = self.chosen_ahead(state) {
                // It was chosen, so whoever has it installed votes for it and for nothing else.
                if attempt.value.as_ref() == Some(&ahead.membership) {
                    attempt.accepts.insert(node);
                }
                attempt.promises.entry(node).or_insert(Some(ahead));
                continue;
            }
            if *state.installed() != self.current {
                continue;
            }
            overtaken |= state.promised() > attempt.ballot;
            if state.promised() == attempt.ballot {
                attempt.promises.entry(node).or_insert_with(|| state.accepted().cloned());
                if state.accepted().is_some_and(|accepted| accepted.ballot == attempt.ballot) {
                    attempt.accepts.insert(node);
                }
            }
        }
        self.attempt = Some(attempt);
        if overtaken {
            self.postpone(now);
        }
    }

    /// The membership after the current one that a member has installed, if a second member bears it out and none speaks
    /// for another; or two more do.
    fn chosen_ahead(&self, state: &MembershipState) -> Option<Accepted> {
        let membership = state.installed();
        self.current.transition_to(membership)?;
        let others = || self.answers.values().filter_map(|answer| answer.membership.as_ref());
        let support = others().filter(|other| other.supports(membership)).count();
        let next = membership.epoch();
        let contradicts = |other: &MembershipState| {
            (other.installed().epoch() == next && other.installed() != membership)
                || other
                    .accepted()
                    .is_some_and(|a| a.membership.epoch() == next && a.membership != *membership)
        };
        let is_chosen = support >= 3 || (support == 2 && !others().any(contradicts));
        let ballot = Ballot { counter: u64::MAX, proposer: u64::MAX };
        is_chosen.then(|| Accepted { ballot, membership: membership.clone() })
    }

    /// What to ask of a node now.
    fn wanted(&self, node: NodeId) -> Request {
        let Some(answer) = self.answers.get(&node) else {
            // What was chosen meanwhile is news to everyone.
            let is_news = self.current.epoch() > self.options.known.epoch();
            return if is_news { Request::Install(self.current.clone()) } else { Request::Ask };
        };
        let installed = answer.membership.as_ref().map(|state| state.installed().epoch());
        if installed.is_none_or(|installed| installed < self.current.epoch()) {
            return Request::Install(self.current.clone());
        }
        let Some(attempt) = &self.attempt else { return Request::Ask };
        if !self.has_installed(node) || !self.current.contains(node) {
            return Request::Ask;
        }
        match &attempt.value {
            Some(membership) if !attempt.accepts.contains(&node) => {
                let (ballot, membership) = (attempt.ballot, membership.clone());
                Request::Accept(Accepted { ballot, membership })
            }
            None if !attempt.promises.contains_key(&node) => {
                Request::Prepare { installed: self.current.clone(), ballot: attempt.ballot }
            }
            _ => Request::Ask,
        }
    }

    fn send_requests(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let nodes: BTreeSet<NodeId> =
            self.current.members().into_iter().chain(self.answers.keys().copied()).collect();
        for node in nodes {
            let request = self.wanted(node);
            // The same again, also just to look, costs as long as a repetition.
            let is_sent = |(last, at): &(Request, Duration)| {
                *last == request && now < at.saturating_add(self.options.retry_after)
            };
            if !self.sent.get(&node).is_some_and(is_sent) {
                self.sent.insert(node, (request.clone(), now));
                commands.push(Command::Send { node, request });
            }
        }
    }
}

/// Broken on purpose, so that the assertions are seen to fail.
#[cfg(test)]
impl Change {
    pub(super) fn count_everyone_as_accepting(&mut self) {
        let value = self.current.after(self.options.goal).expect("the test asks for a possible step");
        self.assert_chosen(&value);
    }

    pub(super) fn propose_without_looking(&mut self, current: GroupMembership) {
        self.current = current;
        let value = self.current.after(self.options.goal).expect("the test asks for a possible step");
        self.assert_may_propose(&value);
    }
}
