//! Controllers: they replace members, finish, take back, die at any step, and work at the same time.

use std::time::Duration;

use borealis_quorum::membership::{
    Answer, Change, ChangeOptions, Command, Event as ChangeEvent, GroupMembership, MembershipState,
    Replacement, Request, Transition,
};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::segment::Standing;
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId, RecordSpan, WRITE_QUORUM};

use super::{Event, World};
use crate::Defect;
use crate::message::{Host, Message};
use crate::oracle::Counted;

/// How often unanswered requests are repeated.
const RETRY_MS: u64 = 120;
/// Until a controller gives a change up.
const GIVE_UP_MS: u64 = 4_000;
/// Changes under way at once, while there are faults.
const CONTROLLERS_MAX: usize = 4;

/// A controller that carries out one change.
#[derive(Debug)]
pub(super) struct Controller {
    group: GroupId,
    change: Change,
}

impl World {
    /// The newest membership of each group that a node acts on.
    pub(super) fn newest_memberships(&self) -> Vec<GroupMembership> {
        self.groups().map(|group| self.newest_membership(group)).collect()
    }

    fn newest_membership(&self, group: GroupId) -> GroupMembership {
        self.oracle.memberships(group).next().cloned().expect("every group was made with a membership")
    }

    pub(super) fn newest_sets(&self) -> Vec<QuorumSets> {
        self.newest_memberships().iter().map(QuorumSets::of).collect()
    }

    /// The sets in which what an instance counts as durable must be: those of the membership it knows. Of them, those that are
    /// left when a newer one was chosen meanwhile: a member that left has made sure that they have everything.
    pub(super) fn sets_that_count(&self, instance: u32) -> Counted {
        let compute = &self.computes[&instance];
        let left = self.rescue.as_ref().and_then(|rescue| rescue.members_left(instance));
        let of_group = |known: &GroupMembership, group: GroupId| {
            let newest = self.newest_membership(group);
            let sets = known.sets().iter().filter(|set| newest.sets().contains(set)).copied().collect();
            QuorumSets::new(sets).unwrap_or_else(|_| only_base(&newest))
        };
        let known = compute.memberships().iter().zip(self.groups());
        Counted { sets: known.map(|(known, group)| of_group(known, group)).collect(), left }
    }

    /// What a catalog would say of each group: a membership that it had, often the newest.
    pub(super) fn hinted_memberships(&mut self) -> Vec<GroupMembership> {
        self.groups().map(|group| self.hinted_membership(group)).collect()
    }

    fn hinted_membership(&mut self, group: GroupId) -> GroupMembership {
        let back = if self.changes && self.random.chance(300) { self.random.between(1, 3) } else { 0 };
        let known: Vec<&GroupMembership> = self.oracle.memberships(group).collect();
        if back > 0 && known.len() > 1 {
            self.coverage.count("old lists of members given out");
        }
        known[(back as usize).min(known.len() - 1)].clone()
    }

    /// Whether every set that counts, or may soon, has a write quorum of full members without this node.
    pub(super) fn can_lose(&self, position: usize) -> bool {
        let id = NodeId(position as u16);
        let is_left = |group: GroupId, node: NodeId| {
            let at = usize::from(node.0);
            node != id
                && self.nodes.get(at).is_some_and(|n| n.segment(group).standing() == Standing::Full)
                && !self.lost[at]
        };
        let suffices = |group: GroupId, membership: &GroupMembership| {
            membership.sets().iter().all(|set| {
                let left = set.iter().filter(|&&node| is_left(group, node)).count();
                !set.contains(&id) || left >= WRITE_QUORUM
            })
        };
        let spare = self.nodes.iter().zip(&self.lost).filter(|(_, lost)| !**lost).count() > 6;
        !self.lost[position]
            && (spare || !self.changes)
            && self.groups().all(|group| {
                let accepted = self
                    .nodes
                    .iter()
                    .filter_map(|node| node.segment(group).membership().and_then(MembershipState::accepted));
                let recent = self.oracle.memberships(group).take(2);
                let accepted = accepted.map(|accepted| &accepted.membership);
                recent.chain(accepted).chain(self.proposed(group)).all(|m| suffices(group, m))
            })
    }

    /// What may be chosen though no member has accepted it yet: it is on its way. As many members may be lost of a set as it
    /// can spare, and nothing can be made of more; a controller that proposes has seen that they are there, and cannot see
    /// what is lost while its proposal travels.
    fn proposed(&self, group: GroupId) -> impl Iterator<Item = &GroupMembership> {
        let at_work = self.controllers.values().filter(move |controller| controller.group == group);
        let travelling = self.events.values().filter_map(move |event| match event {
            Event::Deliver { message: Message::Membership(of, Request::Accept(proposed)), .. }
                if *of == group =>
            {
                Some(&proposed.membership)
            }
            _ => None,
        });
        at_work.filter_map(|controller| controller.change.proposed()).chain(travelling)
    }

    pub(super) fn crash_controller(&mut self) {
        let ids: Vec<u32> = self.controllers.keys().copied().collect();
        if !ids.is_empty() {
            let id = ids[self.random.below(ids.len() as u64) as usize];
            self.controllers.remove(&id);
            self.coverage.count("controllers crashed");
        }
    }

    /// Somebody looks at the groups and begins a change.
    pub(super) fn manage(&mut self) {
        let delay = if self.chaos() { self.random.between(30, 250) } else { 300 };
        self.schedule(delay, Event::Manage);
        if self.chaos() {
            if self.controllers.len() >= CONTROLLERS_MAX {
                return;
            }
            let group = GroupId(self.random.below(u64::from(self.group_count)) as u16);
            if let Some(goal) = self.any_goal(group) {
                if self.controllers.values().any(|controller| controller.group == group) {
                    self.coverage.count("controllers at work on one group");
                }
                self.start_change(group, goal);
            }
            return;
        }
        for group in self.groups() {
            let is_idle = self.controllers.values().all(|controller| controller.group != group);
            if let Some(goal) = self.needed_goal(group).filter(|_| is_idle) {
                self.start_change(group, goal);
            }
        }
    }

    /// A step that makes sense to somebody who does not see everything.
    fn any_goal(&mut self, group: GroupId) -> Option<Transition> {
        let known = self.hinted_membership(group);
        let begun = known.replacements();
        if !begun.is_empty() && self.random.chance(850) {
            let replacement = begun[self.random.below(begun.len() as u64) as usize];
            let finish = self.random.chance(700);
            return Some(if finish {
                Transition::Finish(replacement)
            } else {
                Transition::TakeBack(replacement)
            });
        }
        let members: Vec<NodeId> = known.members().into_iter().collect();
        let gone: Vec<NodeId> =
            members.iter().copied().filter(|node| self.lost[usize::from(node.0)]).collect();
        let old = match gone.first().filter(|_| self.random.chance(700)) {
            Some(&gone) => gone,
            None => members[self.random.below(members.len() as u64) as usize],
        };
        let new = self.spare_for(&known)?;
        Some(Transition::Begin(Replacement { old, new }))
    }

    /// Any node that is not a member and not lost.
    fn spare_for(&mut self, membership: &GroupMembership) -> Option<NodeId> {
        let spares: Vec<NodeId> = self
            .nodes
            .iter()
            .zip(&self.lost)
            .filter(|(node, lost)| !**lost && !membership.contains(node.id))
            .map(|(node, _)| node.id)
            .collect();
        (!spares.is_empty()).then(|| spares[self.random.below(spares.len() as u64) as usize])
    }

    /// The step that brings a group nearer to six members that are there.
    fn needed_goal(&mut self, group: GroupId) -> Option<Transition> {
        let membership = self.newest_membership(group);
        if let Some(&begun) = membership.replacements().first() {
            // A newcomer that cannot join because a recovery waits for one more full member is taken back, and the volume
            // opens. Each attempt to finish takes until it is given up, so every other one is to take back.
            let is_lost = self.lost[usize::from(begun.new.0)] || self.random.chance(500);
            return Some(if is_lost { Transition::TakeBack(begun) } else { Transition::Finish(begun) });
        }
        let lost = membership.members().into_iter().find(|node| self.lost[usize::from(node.0)]);
        if let Some(old) = lost
            && let Some(new) = self.spare_for(&membership)
        {
            return Some(Transition::Begin(Replacement { old, new }));
        }
        // A controller died while it installed the last step: another makes the same step.
        let is_established = QuorumSets::of(&membership).is_write_quorum(|id| {
            let state = self.nodes[usize::from(id.0)].segment(group).membership();
            state.is_some_and(|state| *state.installed() == membership)
        });
        let before = self.oracle.memberships(group).nth(1).filter(|_| !is_established)?;
        before.transition_to(&membership)
    }

    fn start_change(&mut self, group: GroupId, goal: Transition) {
        let id = self.next_controller;
        self.next_controller += 1;
        let options = ChangeOptions {
            group,
            known: self.hinted_membership(group),
            goal,
            proposer: self.random.number(),
            retry_after: Duration::from_millis(RETRY_MS),
            give_up_after: Some(Duration::from_millis(GIVE_UP_MS)),
        };
        self.coverage.count("changes begun");
        let (change, commands) = Change::start(options, Duration::from_millis(self.now));
        self.controllers.insert(id, Controller { group, change });
        self.carry_out(id, group, commands);
        self.schedule(RETRY_MS / 2, Event::ControllerTick(id));
    }

    pub(super) fn controller_tick(&mut self, id: u32) {
        if let Some(controller) = self.controllers.get_mut(&id) {
            let group = controller.group;
            let commands = controller.change.handle(ChangeEvent::Tick, Duration::from_millis(self.now));
            self.carry_out(id, group, commands);
            self.schedule(RETRY_MS / 2, Event::ControllerTick(id));
        }
    }

    pub(super) fn controller_receive(&mut self, id: u32, message: Message) {
        let Some(controller) = self.controllers.get_mut(&id) else { return };
        let Message::MembershipAnswer(answer) = message else { return };
        let (group, answer) = (controller.group, doctored(answer, self.defect));
        let commands = controller.change.handle(ChangeEvent::Answer(answer), Duration::from_millis(self.now));
        self.carry_out(id, group, commands);
    }

    fn carry_out(&mut self, id: u32, group: GroupId, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Send { node, request } => {
                    self.send(Host::Controller(id), Host::Node(node), Message::Membership(group, request));
                }
                Command::Done(_) => {
                    self.coverage.count("changes done");
                    self.controllers.remove(&id);
                }
                Command::Failed(_) => {
                    self.coverage.count("changes given up");
                    self.controllers.remove(&id);
                }
            }
        }
    }

    /// A group with each member of its newest membership that is left, by its position.
    pub(super) fn members_left(&self, group: GroupId) -> Vec<(GroupId, usize)> {
        let members = self.newest_membership(group).members();
        let positions = members.into_iter().map(|node| usize::from(node.0));
        positions.filter(|&position| !self.lost[position]).map(|position| (group, position)).collect()
    }

    /// Whether nothing has to change any more, everybody knows, and whoever left has nothing.
    pub(super) fn memberships_are_settled(&mut self) -> bool {
        if !self.changes {
            return true;
        }
        self.groups().collect::<Vec<_>>().into_iter().all(|group| {
            let membership = self.newest_membership(group);
            let settled = self.needed_goal(group).is_none();
            let mut left = self.nodes.iter().zip(&self.lost).filter(|(_, lost)| !**lost);
            settled
                && left.all(|(node, _)| {
                    let segment = node.segment(group);
                    let knows = segment.membership().is_some_and(|state| *state.installed() == membership);
                    match membership.contains(node.id) {
                        true => knows && segment.standing() == Standing::Full,
                        false => segment.standing() == Standing::Absent,
                    }
                })
        })
    }
}

/// What a controller makes of a member's answer: nothing, unless it is broken on purpose.
fn doctored(mut answer: Answer, defect: Defect) -> Answer {
    if defect == Defect::FinishWithoutBar
        && let Some(summary) = &mut answer.summary
    {
        // Everybody has as much as anybody.
        summary.promised = Default::default();
        summary.history = EpochHistory::default();
        summary.complete = RecordSpan { start: Lsn::ZERO, end: Lsn(u64::MAX) };
        summary.joining = false;
    }
    answer
}

fn only_base(membership: &GroupMembership) -> QuorumSets {
    QuorumSets::new(vec![*membership.base()]).expect("a set of a membership is one")
}
