//! Crash recovery: fence the old writer, find the volume durable LSN, cut what is after it.
//!
//! 1. **Fence** a write quorum of every group. What is acknowledged to an older writer from now on cannot
//!    reach a write quorum.
//! 2. **Read the tails** of the fenced segments above what each group knows to be durable, from a write quorum
//!    of every group. (Three of six would find every acknowledged record; the fourth is needed for step 4.)
//! 3. **Decide.** Only records that the newest history admits count. From a durable record that two members know,
//!    follow `xl_prev` as long as every group of a record has it, connected to that group's chain. Where the
//!    walk stops is the new VDL. An acknowledged record never stops it: it was complete on four segments of
//!    each of its groups, and two of them are among those read.
//! 4. **Repair**: every record up to the VDL gets to a write quorum of each of its groups.
//! 5. **Install** the history with the new epoch's opening (where it cuts, and which release writes in it) at a write quorum of every group.
//!
//! Every step may be repeated, and a new recovery (with a higher epoch) may start at any point of an older
//! one. Two recoveries with one epoch cannot both finish step 1. Members that answer late join in, so a
//! recovery goes on as long as any four of six members of each group answer. What is done about a member whose words
//! are not true is in `witness.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use borealis_types::{EpochHistory, EpochOpening, GroupId, Lsn, NodeId, RecordSpan, VolumeEpoch, invariant};

use crate::GroupTail;
use crate::quorum_set::QuorumSets;
use crate::segment::SegmentSummary;

#[cfg(test)]
mod tests;
mod types;
mod witness;

pub use types::{Command, Event, Failure, Outcome, RecoveryOptions, TailRecord};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Request {
    Fence(NodeId),
    ReadTail(NodeId, GroupId),
    Repair(NodeId, GroupId),
    Install(NodeId),
}

#[derive(Clone, Debug)]
struct Tail {
    /// Read so far to here.
    above: Lsn,
    complete: bool,
    /// What the segment has, by start position: the epoch.
    has: BTreeMap<Lsn, VolumeEpoch>,
    /// Whether it has every needed record; found once, after the decision.
    suffices: Option<bool>,
}

#[derive(Debug)]
struct Group<Handle> {
    members: QuorumSets,
    summaries: BTreeMap<NodeId, SegmentSummary>,
    tails: BTreeMap<NodeId, Tail>,
    /// Every admitted record of any tail, by start position.
    union: BTreeMap<Lsn, TailRecord<Handle>>,
    /// Nodes that answered a repair.
    repaired: BTreeSet<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Decision {
    /// VDL: the last record of the volume that stays.
    durable: RecordSpan,
    /// Where each group ends at it.
    tails: Vec<Lsn>,
    /// Where each group ended as of what was known: records after it are brought to a write quorum.
    known_tails: Vec<Lsn>,
    /// The history that is installed: the one found, and the opening of the promised epoch.
    history: EpochHistory,
}

/// One attempt to take a volume over.
#[derive(Debug)]
pub struct Recovery<Handle> {
    options: RecoveryOptions,
    groups: Vec<Group<Handle>>,
    /// The newest history of those that answered before the decision, a write quorum in every group.
    base_history: Option<EpochHistory>,
    decision: Option<Decision>,
    /// All groups have everything up to VDL at a write quorum, so installing has begun.
    installing: bool,
    installed: BTreeSet<NodeId>,
    /// When each node was first asked to install: if it has, it was promised to nobody newer then.
    install_asked: BTreeMap<NodeId, Duration>,
    /// Requests under way, and when they were last sent.
    outstanding: BTreeMap<Request, Duration>,
    /// Members that count as absent, because what they say cannot be true.
    left_out: BTreeSet<NodeId>,
    deadline: Option<Duration>,
    finished: bool,
}

impl<Handle: Clone> Recovery<Handle> {
    /// Starts at `now` (any monotonic clock). The first commands ask every member for its promise.
    ///
    /// # Panics
    /// If there is no group: every quorum of none is reached, and nothing would be found of what was acknowledged.
    #[must_use]
    pub fn start(options: RecoveryOptions, now: Duration) -> (Recovery<Handle>, Vec<Command<Handle>>) {
        let has_groups = !options.members.is_empty();
        invariant!("recovery-knows-members", has_groups, "{:?} asks nobody", options.promise);
        let groups = options
            .members
            .iter()
            .map(|members| Group {
                members: members.clone(),
                summaries: BTreeMap::new(),
                tails: BTreeMap::new(),
                union: BTreeMap::new(),
                repaired: BTreeSet::new(),
            })
            .collect();
        let deadline = options.give_up_after.and_then(|after| now.checked_add(after));
        let mut recovery = Recovery {
            options,
            groups,
            base_history: None,
            decision: None,
            installing: false,
            installed: BTreeSet::new(),
            install_asked: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            left_out: BTreeSet::new(),
            deadline,
            finished: false,
        };
        let nodes: BTreeSet<NodeId> = recovery.options.members.iter().flat_map(QuorumSets::members).collect();
        let mut commands = Vec::new();
        for node in nodes {
            recovery.request(Request::Fence(node), now, &mut commands);
        }
        (recovery, commands)
    }

    /// Takes one event and says what to do next. After [`Command::Done`] or [`Command::Failed`] every further
    /// event is ignored.
    pub fn handle(&mut self, event: Event<Handle>, now: Duration) -> Vec<Command<Handle>> {
        let mut commands = Vec::new();
        if self.finished {
            return commands;
        }
        let result = self.apply(event, now, &mut commands).and_then(|()| self.advance(now, &mut commands));
        if let Err(failure) = result {
            self.finished = true;
            commands.push(Command::Failed(failure));
        }
        commands
    }

    fn apply(
        &mut self,
        event: Event<Handle>,
        now: Duration,
        commands: &mut Vec<Command<Handle>>,
    ) -> Result<(), Failure> {
        match event {
            Event::Fenced { node, summaries } => {
                self.outstanding.remove(&Request::Fence(node));
                if self.left_out.contains(&node) {
                    return Ok(());
                }
                for summary in summaries {
                    let Some(group) = self.groups.get_mut(usize::from(summary.group.0)) else { continue };
                    if group.members.contains(node) && summary.promised == self.options.promise {
                        // The first answer counts: what it says was true at the fence.
                        group.summaries.entry(node).or_insert(summary);
                    }
                }
                Ok(())
            }
            Event::Refused { current, .. } => {
                let ours = self.options.promise.epoch;
                // Once fenced, a refusal in our own epoch is only about a member that promised it to a
                // competitor, who cannot have a write quorum.
                if current > ours || (current == ours && self.base_history.is_none()) {
                    return Err(Failure::Superseded { current });
                }
                Ok(())
            }
            Event::TailPage { node, group, above, records, more } => {
                self.apply_tail(node, group, above, records, more)
            }
            Event::Repaired { node, group } => {
                if self.outstanding.remove(&Request::Repair(node, group)).is_some() {
                    self.groups[usize::from(group.0)].repaired.insert(node);
                }
                Ok(())
            }
            Event::Installed { node } => {
                if self.outstanding.remove(&Request::Install(node)).is_some() {
                    self.installed.insert(node);
                }
                Ok(())
            }
            Event::MembershipChanged { group, membership } => {
                Err(Failure::MembershipChanged { group, membership })
            }
            Event::Tick => {
                if self.deadline.is_some_and(|deadline| now >= deadline) {
                    return Err(Failure::NoQuorum { groups: self.groups_waiting() });
                }
                let due: Vec<Request> = self
                    .outstanding
                    .iter()
                    .filter(|&(_, &sent)| now >= sent.saturating_add(self.options.retry_after))
                    .map(|(&request, _)| request)
                    .collect();
                for request in due {
                    self.request(request, now, commands);
                }
                Ok(())
            }
        }
    }

    fn apply_tail(
        &mut self,
        node: NodeId,
        group_id: GroupId,
        above: Lsn,
        records: Vec<TailRecord<Handle>>,
        more: bool,
    ) -> Result<(), Failure> {
        let Some(base) = &self.base_history else { return Ok(()) };
        let Some(group) = self.groups.get_mut(usize::from(group_id.0)) else { return Ok(()) };
        let Some(tail) = group.tails.get_mut(&node) else { return Ok(()) };
        if tail.complete || tail.above != above {
            return Ok(());
        }
        self.outstanding.remove(&Request::ReadTail(node, group_id));
        for record in records {
            let end = record.span.end;
            if end <= tail.above || record.span.start >= end || record.previous_end(group_id).is_none() {
                return Err(Failure::Contradiction { group: group_id, position: end, what: "order" });
            }
            tail.above = end;
            if record.epoch > base.newest_epoch() || !base.admits(record.epoch, end) {
                continue;
            }
            tail.has.insert(record.span.start, record.epoch);
            let known = group.union.entry(record.span.start).or_insert_with(|| record.clone());
            if !known.is_same(&record) {
                return Err(Failure::Contradiction { group: group_id, position: end, what: "record" });
            }
        }
        // A page that says there is more but brings nothing would be asked for endlessly.
        tail.complete = !more || tail.above == above;
        Ok(())
    }

    /// Does whatever has become possible.
    fn advance(&mut self, now: Duration, commands: &mut Vec<Command<Handle>>) -> Result<(), Failure> {
        while self.decision.is_none() {
            if !self.find_base_history()? {
                return Ok(());
            }
            self.request_tails(now, commands);
            let is_read = |g: &Group<Handle>, node| g.tails.get(&node).is_some_and(|tail| tail.complete);
            if !self.groups.iter().all(|g| g.members.is_write_quorum(|node| is_read(g, node))) {
                return Ok(());
            }
            if let Some(node) = self.member_of_another_past() {
                self.leave_out(node);
                continue;
            }
            let decision = self.decide()?;
            if let Some(node) = self.implausible_member(&decision) {
                self.leave_out(node);
                continue;
            }
            self.check_group_ends(&decision)?;
            self.decision = Some(decision);
        }
        self.request_tails(now, commands);
        self.compare_tails();
        self.request_repairs(now, commands);
        if !self.installing {
            let ready = self
                .group_ids()
                .all(|id| self.group(id).members.is_write_quorum(|node| self.suffices(node, id)));
            if !ready {
                return Ok(());
            }
            self.installing = true;
        }
        self.request_installs(now, commands);
        let done = self.group_ids().all(|id| {
            self.group(id)
                .members
                .is_write_quorum(|node| self.installed.contains(&node) && self.suffices(node, id))
        });
        if done {
            self.finished = true;
            commands.push(Command::Done(self.outcome(now)));
        }
        Ok(())
    }

    /// Whether the history is known by which records count: when a write quorum of every group has answered. Until the
    /// decision, one that answers later may be the second that vouches for a newer one; the tails are read again then.
    /// Durable points are taken from all that answered, and they hold under the newest history of the same members only.
    fn find_base_history(&mut self) -> Result<bool, Failure> {
        let answered = |g: &Group<Handle>| g.members.is_write_quorum(|node| g.summaries.contains_key(&node));
        if !self.groups.iter().all(answered) {
            return Ok(false);
        }
        if self.base_history.is_none() {
            self.refuse_premature_openings()?;
        }
        let newest = self.newest_history()?;
        if self.base_history.as_ref().is_some_and(|known| *known != newest) {
            self.forget_tails();
        }
        self.base_history = Some(newest);
        Ok(true)
    }

    fn outcome(&self, now: Duration) -> Outcome {
        let decision = self.decision.as_ref().expect("installing follows the decision");
        for (id, group) in self.group_ids().zip(&self.groups) {
            let quorum = group.members.is_write_quorum(|node| self.installed.contains(&node));
            invariant!("writer-starts-at-write-quorum", quorum, "group {id}: only {:?}", self.installed);
        }
        let (newest, promise) = (decision.history.newest_epoch(), self.options.promise);
        invariant!("opening-is-of-the-promise", newest == promise.epoch, "{newest}, {promise:?}");
        Outcome {
            promise,
            durable: decision.durable,
            history: decision.history.clone(),
            tails: self.outcome_tails(decision),
            confirmed_before: now.saturating_sub(self.confirmed()),
        }
    }

    /// Since when no successor can have begun, at the earliest: a read quorum of each set of each group installed what it was
    /// asked for then or later, and would have refused after a newer promise.
    fn confirmed(&self) -> Duration {
        let asked = |node| self.install_asked.get(&node).filter(|_| self.installed.contains(&node)).copied();
        let of_group = |group: &Group<Handle>| {
            let mut times: Vec<Duration> = group.members.members().filter_map(asked).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            let is_since = |time: &Duration| {
                group.members.is_read_quorum_of_each(|node| asked(node).is_some_and(|at| at >= *time))
            };
            times.into_iter().find(is_since).unwrap_or_default()
        };
        self.groups.iter().map(of_group).min().unwrap_or_default()
    }

    fn group_ids(&self) -> impl Iterator<Item = GroupId> + use<Handle> {
        (0..self.groups.len()).map(|position| GroupId(position as u16))
    }

    fn group(&self, id: GroupId) -> &Group<Handle> {
        &self.groups[usize::from(id.0)]
    }

    fn request_tails(&mut self, now: Duration, commands: &mut Vec<Command<Handle>>) {
        for id in self.group_ids() {
            let above = self.known_durable(id).group_tail;
            let group = &mut self.groups[usize::from(id.0)];
            let new: Vec<NodeId> =
                group.summaries.keys().filter(|node| !group.tails.contains_key(node)).copied().collect();
            for &node in &new {
                group
                    .tails
                    .insert(node, Tail { above, complete: false, has: BTreeMap::new(), suffices: None });
            }
            let unfinished: Vec<NodeId> =
                group.tails.iter().filter(|(_, tail)| !tail.complete).map(|(&node, _)| node).collect();
            for node in unfinished {
                self.request_once(Request::ReadTail(node, id), now, commands);
            }
        }
    }

    /// Step 3: how far the volume reaches, from the tails of a write quorum of every group.
    fn decide(&self) -> Result<Decision, Failure> {
        for (id, group) in self.group_ids().zip(&self.groups) {
            let is_read = |node| group.tails.get(&node).is_some_and(|tail: &Tail| tail.complete);
            let quorum = group.members.is_write_quorum(is_read);
            invariant!("decision-has-read-a-write-quorum", quorum, "group {id}");
        }
        let known = self
            .group_ids()
            .map(|id| self.known_durable(id).volume)
            .max_by_key(|span| span.end)
            .unwrap_or(RecordSpan::NONE);
        let known_tails: Vec<Lsn> = self.group_ids().map(|id| self.known_durable(id).group_tail).collect();
        for (group, &tail) in self.group_ids().zip(&known_tails) {
            // Nobody's group ends after the durable point it is told with; nodes that say so are damaged.
            if tail > known.end {
                let what = "a durable point below the group's own end";
                return Err(Failure::Contradiction { group, position: tail, what });
            }
        }
        let mut tails = Vec::with_capacity(known_tails.len());
        for (id, &from) in self.group_ids().zip(&known_tails) {
            tails.push(self.group_tail_at(id, from, known.end)?);
        }
        let mut durable = known;
        let mut by_previous_start: BTreeMap<Lsn, &TailRecord<Handle>> = BTreeMap::new();
        for group in &self.groups {
            for record in group.union.values().filter(|record| record.span.start >= known.end) {
                by_previous_start.insert(record.previous_start, record);
            }
        }
        while let Some(record) = by_previous_start.get(&durable.start) {
            let everywhere = record.span.start >= durable.end
                && record.links.iter().all(|link| {
                    let position = usize::from(link.group.0);
                    self.groups.get(position).is_some_and(|group| {
                        group.union.get(&record.span.start).is_some_and(|same| same.is_same(record))
                            && link.previous_end == tails[position]
                    })
                });
            if !everywhere {
                break;
            }
            for link in &record.links {
                tails[usize::from(link.group.0)] = record.span.end;
            }
            durable = record.span;
        }
        let mut history = self.base_history.clone().unwrap_or_default();
        if let Some(newest) = history.newest()
            && newest.last.end > durable.end
        {
            let what = "the newest opening";
            return Err(Failure::Contradiction { group: GroupId(0), position: newest.last.end, what });
        }
        let RecoveryOptions { promise, server_version, .. } = self.options;
        history.push(EpochOpening { epoch: promise.epoch, last: durable, server_version });
        assert_keeps_durable(durable, known, &tails, &known_tails);
        Ok(Decision { durable, tails, known_tails, history })
    }

    /// Where a group ends at `known`, which other groups may have heard of before this one did.
    fn group_tail_at(&self, id: GroupId, from: Lsn, known: Lsn) -> Result<Lsn, Failure> {
        let mut tail = from;
        for record in self.group(id).union.values() {
            if record.span.end <= tail || record.span.end > known {
                continue;
            }
            if record.previous_end(id) != Some(tail) {
                return Err(Failure::DurableRecordMissing { group: id, after: tail });
            }
            tail = record.span.end;
        }
        Ok(tail)
    }

    /// Records of the group that a write quorum must get.
    fn needed<'a>(
        &'a self,
        id: GroupId,
        decision: &Decision,
    ) -> impl Iterator<Item = &'a TailRecord<Handle>> {
        let from = decision.known_tails[usize::from(id.0)];
        let through = decision.durable.end;
        self.group(id)
            .union
            .values()
            .filter(move |record| record.span.end > from && record.span.end <= through)
    }

    fn missing(&self, node: NodeId, id: GroupId) -> Vec<TailRecord<Handle>> {
        let (Some(decision), Some(tail)) = (&self.decision, self.group(id).tails.get(&node)) else {
            return Vec::new();
        };
        let lacks = |record: &&TailRecord<Handle>| tail.has.get(&record.span.start) != Some(&record.epoch);
        self.needed(id, decision).filter(lacks).cloned().collect()
    }

    /// Whether the segment counts as a copy of what is needed. A joining one has it, and lacks what is older. Only if the
    /// volume
    /// is opened through all members that are left, a newcomer among them need be none.
    fn suffices(&self, node: NodeId, id: GroupId) -> bool {
        let group = self.group(id);
        let is_joining = group.summaries.get(&node).is_some_and(|summary| summary.joining);
        self.needs_nothing(node, id) && (!is_joining || group.members.excuses_newcomer(node))
    }

    /// Whether the segment has every needed record, as it said or because it was brought.
    fn needs_nothing(&self, node: NodeId, id: GroupId) -> bool {
        let group = self.group(id);
        group.repaired.contains(&node)
            || group.tails.get(&node).is_some_and(|tail| tail.suffices == Some(true))
    }

    /// Compares newly read tails with what is needed.
    fn compare_tails(&mut self) {
        for id in self.group_ids() {
            let unknown: Vec<NodeId> = self
                .group(id)
                .tails
                .iter()
                .filter(|(_, tail)| tail.complete && tail.suffices.is_none())
                .map(|(&node, _)| node)
                .collect();
            for node in unknown {
                let suffices = self.missing(node, id).is_empty();
                if let Some(tail) = self.groups[usize::from(id.0)].tails.get_mut(&node) {
                    tail.suffices = Some(suffices);
                }
            }
        }
    }

    fn request_repairs(&mut self, now: Duration, commands: &mut Vec<Command<Handle>>) {
        for id in self.group_ids() {
            let read: Vec<NodeId> = self
                .group(id)
                .tails
                .iter()
                .filter(|(_, tail)| tail.suffices == Some(false))
                .map(|(&node, _)| node)
                .collect();
            for node in read {
                if !self.needs_nothing(node, id) {
                    self.request_once(Request::Repair(node, id), now, commands);
                }
            }
        }
    }

    fn request_installs(&mut self, now: Duration, commands: &mut Vec<Command<Handle>>) {
        let fenced: BTreeSet<NodeId> =
            self.groups.iter().flat_map(|group| group.summaries.keys().copied()).collect();
        for node in fenced {
            // A segment that has the new history refuses repairs under the old one. So a node gets it when none
            // of its segments needs any; one that answers after the end learns it from the writer or its peers.
            let complete = self
                .group_ids()
                .all(|id| !self.group(id).summaries.contains_key(&node) || self.needs_nothing(node, id));
            if complete && !self.installed.contains(&node) {
                self.request_once(Request::Install(node), now, commands);
            }
        }
    }

    fn outcome_tails(&self, decision: &Decision) -> Vec<GroupTail> {
        self.group_ids()
            .zip(&decision.tails)
            .map(|(group, &last_end)| GroupTail { group, last_end })
            .collect()
    }

    fn request_once(&mut self, request: Request, now: Duration, commands: &mut Vec<Command<Handle>>) {
        if !self.outstanding.contains_key(&request) {
            self.request(request, now, commands);
        }
    }

    fn request(&mut self, request: Request, now: Duration, commands: &mut Vec<Command<Handle>>) {
        let promise = self.options.promise;
        let command = match request {
            Request::Fence(node) => Command::Fence { node, promise },
            Request::ReadTail(node, group) => {
                let tail =
                    self.group(group).tails.get(&node).expect("a tail is registered before it is asked");
                Command::ReadTail { node, group, above: tail.above }
            }
            Request::Repair(node, group) => Command::Repair {
                node,
                group,
                promise,
                history: self.base_history.clone().expect("repairs follow the fence"),
                records: self.missing(node, group),
            },
            Request::Install(node) => {
                invariant!("install-follows-repair", self.installing, "node {node}");
                let decision = self.decision.as_ref().expect("installing follows the decision");
                let tails = self.outcome_tails(decision);
                Command::Install { node, promise, history: decision.history.clone(), tails }
            }
        };
        if let Request::Install(node) = request {
            self.install_asked.entry(node).or_insert(now);
        }
        self.outstanding.insert(request, now);
        commands.push(command);
    }

    /// The groups that hold the recovery up, for people and for [`Failure::NoQuorum`].
    #[must_use]
    pub fn groups_waiting(&self) -> Vec<GroupId> {
        self.group_ids()
            .filter(|&id| {
                let group = self.group(id);
                !group.members.is_write_quorum(|node| {
                    if self.installing {
                        self.installed.contains(&node) && self.suffices(node, id)
                    } else if self.decision.is_some() {
                        self.suffices(node, id)
                    } else if self.base_history.is_some() {
                        group.tails.get(&node).is_some_and(|tail| tail.complete)
                    } else {
                        group.summaries.contains_key(&node)
                    }
                })
            })
            .collect()
    }
}

/// What any member knew to be durable stays, for the volume and for each group, and no group ends after the volume.
fn assert_keeps_durable(durable: RecordSpan, known: RecordSpan, tails: &[Lsn], known_tails: &[Lsn]) {
    invariant!("recovery-keeps-durable", durable.end >= known.end, "{durable:?}, known {known:?}");
    let within = tails.iter().zip(known_tails).all(|(tail, known)| known <= tail && *tail <= durable.end);
    invariant!("recovery-keeps-durable", within, "groups end at {tails:?}, known {known_tails:?}");
}
