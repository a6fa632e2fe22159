//! Sees everything, and says when a promise is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use borealis_compute::read::Answer;
use borealis_quorum::membership::{GroupMembership, Transition};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::Outcome;
use borealis_types::{
    EpochHistory, GroupId, Lsn, MembershipEpoch, NodeId, ReadPoint, RecordSpan, SEGMENTS_PER_GROUP,
    VolumeEpoch, WRITE_QUORUM,
};

use crate::Coverage;
use crate::effects::Asked;
use crate::message::{SimRecord, page_lsn, page_of};
use crate::node::SimNode;
use crate::random::Random;

/// Where what counts as durable has to be.
#[derive(Debug)]
pub struct Counted {
    /// At a write quorum of each group's sets.
    pub sets: Vec<QuorumSets>,
    /// In a rescue, at so many members: as many as are left.
    pub left: Option<usize>,
}

impl Counted {
    /// Where what was at a write quorum before has to be: under earlier memberships, or when more nodes were left. Of a
    /// write quorum of six all that are lost may have been among the four that had it.
    fn bases(&self) -> Result<Counted, String> {
        let bases = self.sets.iter().map(|sets| QuorumSets::new(sets.sets()[..1].to_vec()));
        let sets = bases.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let left = self.left.map(|left| WRITE_QUORUM - (SEGMENTS_PER_GROUP - left));
        Ok(Counted { sets, left })
    }
}

/// The truth about one volume.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Everything ever shipped, by epoch and start.
    streams: BTreeMap<VolumeEpoch, BTreeMap<Lsn, Rc<SimRecord>>>,
    /// What clients were told is durable or what a recovery made visible, by start. Nothing ever leaves.
    durable: BTreeMap<Lsn, Rc<SimRecord>>,
    durable_end: Lsn,
    /// The history of the newest recovery that completed.
    history: EpochHistory,
    /// Records that a completed recovery cut, and by which epoch.
    cut: BTreeMap<u64, VolumeEpoch>,
    /// Where each epoch was opened, whether or not its recovery completed.
    opened: BTreeMap<VolumeEpoch, Lsn>,
    /// Every membership that a node ever acted on.
    chosen: BTreeMap<(GroupId, MembershipEpoch), GroupMembership>,
}

impl Oracle {
    /// A writer made a record.
    pub fn shipped(&mut self, record: &Rc<SimRecord>) {
        self.streams.entry(record.epoch).or_default().insert(record.span.start, Rc::clone(record));
        for opening in self.history.openings() {
            if opening.epoch > record.epoch && record.span.end > opening.last.end {
                self.cut.entry(record.content).or_insert(opening.epoch);
            }
        }
    }

    /// The position up to which everything was acknowledged or recovered.
    #[must_use]
    pub fn durable_end(&self) -> Lsn {
        self.durable_end
    }

    /// The epoch of the newest completed recovery.
    #[must_use]
    pub fn newest_epoch(&self) -> VolumeEpoch {
        self.history.newest_epoch()
    }

    /// Whether a record is durably on enough members of each of its groups, counting only segments that have joined.
    fn check_copies(record: &SimRecord, members: &Counted, nodes: &[SimNode]) -> Result<(), String> {
        for link in &record.links {
            let (group, sets) = (link.group, &members.sets[usize::from(link.group.0)]);
            let has = |id: NodeId| {
                nodes.get(usize::from(id.0)).is_some_and(|node| node.has_copy_durably(group, record))
            };
            let suffices = match members.left {
                Some(left) => sets.sets()[0].iter().filter(|&&node| has(node)).count() >= left,
                None => sets.is_write_quorum(has),
            };
            if !suffices {
                let at: Vec<NodeId> = sets.members().filter(|&node| has(node)).collect();
                let sets = sets.sets();
                let copies_in =
                    |set: &[NodeId; SEGMENTS_PER_GROUP]| set.iter().filter(|&node| at.contains(node)).count();
                let copies = sets.iter().map(copies_in).min().unwrap_or_default();
                return Err(format!(
                    "{record:?} counts as durable with {copies} copies in group {group}: {at:?} of {sets:?}"
                ));
            }
        }
        Ok(())
    }

    /// A node acts on a membership: it must be the only one of its epoch, and at the first of them it must have been chosen
    /// by a write quorum of the one before, and everything acknowledged must be at four of its base.
    ///
    /// # Errors
    /// If it is not.
    pub fn acts_on(
        &mut self,
        group: GroupId,
        membership: &GroupMembership,
        nodes: &[SimNode],
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let epoch = membership.epoch();
        if let Some(known) = self.chosen.get(&(group, epoch)) {
            return match known == membership {
                true => Ok(()),
                false => Err(format!("group {group}: both {known:?} and {membership:?} were chosen")),
            };
        }
        let before = self.chosen.get(&(group, MembershipEpoch(epoch.0 - 1)));
        let before = before.ok_or_else(|| format!("group {group}: nobody acted before {membership:?}"))?;
        let voted = |id: NodeId| {
            let node = nodes.get(usize::from(id.0));
            node.and_then(|node| node.durable_membership(group))
                .is_some_and(|state| state.supports(membership))
        };
        if !QuorumSets::of(before).is_write_quorum(voted) {
            return Err(format!("group {group}: {membership:?} was not chosen by {before:?}"));
        }
        coverage.count(match before.transition_to(membership) {
            Some(Transition::Begin(_)) if membership.sets().len() == 4 => "second replacements begun",
            Some(Transition::Begin(_)) => "replacements begun",
            Some(Transition::Finish(_)) => "replacements finished",
            Some(Transition::TakeBack(_)) => "replacements taken back",
            None => return Err(format!("group {group}: {membership:?} does not follow {before:?}")),
        });
        self.chosen.insert((group, epoch), membership.clone());
        self.check_members(group, vec![*membership.base()], nodes)
    }

    /// Whether every durable record of a group is at enough members of these sets.
    ///
    /// # Errors
    /// If one is not.
    pub fn check_members(
        &self,
        group: GroupId,
        sets: Vec<[NodeId; SEGMENTS_PER_GROUP]>,
        nodes: &[SimNode],
    ) -> Result<(), String> {
        let sets = QuorumSets::new(sets).map_err(|error| error.to_string())?;
        for record in self.durable.values().filter(|record| record.link(group).is_some()) {
            let has = |id: NodeId| {
                nodes.get(usize::from(id.0)).is_some_and(|node| node.has_copy_durably(group, record))
            };
            if !sets.is_write_quorum(has) {
                let holders: Vec<NodeId> = nodes
                    .iter()
                    .filter(|node| node.has_copy_durably(group, record))
                    .map(|node| node.id)
                    .collect();
                return Err(format!(
                    "group {group}: the members {sets:?} have {record:?} at {holders:?} only"
                ));
            }
        }
        Ok(())
    }

    /// A node has a history.
    pub fn noted(&mut self, history: &EpochHistory) {
        if let Some(newest) = history.newest() {
            self.opened.insert(newest.epoch, newest.last.end);
        }
    }

    /// A group was made with these members.
    pub fn created(&mut self, group: GroupId, membership: &GroupMembership) {
        self.chosen.insert((group, membership.epoch()), membership.clone());
    }

    /// The newest membership of a group that anyone acts on, and those before it, newest first.
    pub fn memberships(&self, group: GroupId) -> impl Iterator<Item = &GroupMembership> {
        let of_group = (group, MembershipEpoch(0))..=(group, MembershipEpoch(u64::MAX));
        self.chosen.range(of_group).rev().map(|(_, membership)| membership)
    }

    /// The volume as `history` leaves it, up to `last`.
    fn stream_of(&self, history: &EpochHistory, last: RecordSpan) -> Result<Vec<Rc<SimRecord>>, String> {
        let mut stream = Vec::new();
        let mut at = RecordSpan::NONE;
        for (epoch, records) in &self.streams {
            for record in records.values() {
                if record.span.end > last.end || !history.admits(*epoch, record.span.end) {
                    continue;
                }
                if record.previous_start != at.start || record.span.start < at.end {
                    return Err(format!("{record:?} does not follow {at:?} under {history:?}"));
                }
                at = record.span;
                stream.push(Rc::clone(record));
            }
        }
        if at == last { Ok(stream) } else { Err(format!("the stream ends at {at:?} instead of {last:?}")) }
    }

    /// A recovery completed: it must continue every one that did before, whatever that one's writer acknowledged. Not where a
    /// member lied: one that denies what it has leaves, with two away, one witness of a history, which may be forged as well.
    /// Then it is enough that nothing acknowledged is lost.
    ///
    /// # Errors
    /// If it does not.
    pub fn continues(&self, outcome: &Outcome) -> Result<(), String> {
        let is_newer = outcome.promise.epoch > self.history.newest_epoch();
        if is_newer && !outcome.history.openings().starts_with(self.history.openings()) {
            return Err(format!("{outcome:?} completed, but does not continue {:?}", self.history));
        }
        Ok(())
    }

    /// A recovery completed: nothing acknowledged may be missing, and what it kept must be durable there.
    ///
    /// # Errors
    /// What is wrong.
    pub fn recovered(
        &mut self,
        outcome: &Outcome,
        members: &Counted,
        nodes: &[SimNode],
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        if outcome.promise.epoch <= self.history.newest_epoch() {
            // The last answer of an older recovery was late. What it installed, the newer one must have seen.
            coverage.count("recoveries completed after a newer one");
            return if self.history.openings().starts_with(outcome.history.openings()) {
                Ok(())
            } else {
                Err(format!("{outcome:?} completed, but {:?} does not continue it", self.history))
            };
        }
        let stream = self.stream_of(&outcome.history, outcome.durable)?;
        let kept: BTreeMap<Lsn, &Rc<SimRecord>> = stream.iter().map(|r| (r.span.start, r)).collect();
        for (start, record) in &self.durable {
            if kept.get(start).is_none_or(|same| same.content != record.content) {
                return Err(format!("epoch {} lost {record:?}", outcome.promise.epoch));
            }
        }
        // A recovery that stopped while it installed had brought what it kept to a write quorum of the members of its time.
        let before = ..outcome.promise.epoch;
        let opened = self.opened.range(before).map(|(_, end)| *end).max().unwrap_or_default();
        for record in stream.iter().filter(|r| r.span.end > self.durable_end) {
            coverage.count("unacknowledged records kept by a recovery");
            if record.span.end > opened {
                Oracle::check_copies(record, members, nodes)?;
            } else {
                Oracle::check_copies(record, &members.bases()?, nodes)?;
            }
        }
        for tail in &outcome.tails {
            let of_group = stream.iter().rev().find(|r| r.link(tail.group).is_some());
            if of_group.map_or(Lsn::ZERO, |r| r.span.end) != tail.last_end {
                return Err(format!("epoch {} has a wrong tail {tail:?}", outcome.promise.epoch));
            }
        }
        let cut_before = self.cut.len();
        for (epoch, records) in &self.streams {
            for record in records.values() {
                if *epoch < outcome.promise.epoch && record.span.end > outcome.durable.end {
                    self.cut.entry(record.content).or_insert(outcome.promise.epoch);
                }
            }
        }
        coverage.add("written records cut by a recovery", (self.cut.len() - cut_before) as u64);
        self.history = outcome.history.clone();
        self.durable = stream.into_iter().map(|record| (record.span.start, record)).collect();
        self.durable_end = outcome.durable.end;
        Ok(())
    }

    /// A writer told its clients that everything up to `through` is durable: it must be there.
    ///
    /// # Errors
    /// What is wrong.
    pub fn acknowledged(
        &mut self,
        epoch: VolumeEpoch,
        through: Lsn,
        members: &Counted,
        nodes: &[SimNode],
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let Some(stream) = self.streams.get(&epoch) else { return Ok(()) };
        for record in stream.values().filter(|r| r.span.end <= through) {
            if let Some(known) = self.durable.get(&record.span.start) {
                if known.content != record.content {
                    return Err(format!("acknowledged {record:?}, but {known:?} was durable there"));
                }
                continue;
            }
            if epoch != self.history.newest_epoch() {
                return Err(format!(
                    "{record:?} acknowledged after epoch {} completed without it",
                    self.history.newest_epoch()
                ));
            }
            if record.span.start < self.durable_end {
                return Err(format!("{record:?} acknowledged below the durable end {}", self.durable_end));
            }
            Oracle::check_copies(record, members, nodes)?;
            coverage.count("records acknowledged");
            self.durable.insert(record.span.start, Rc::clone(record));
            self.durable_end = record.span.end;
        }
        Ok(())
    }

    /// Lost nodes were replaced: everything that was acknowledged must be on a write quorum again, the copies counted.
    ///
    /// # Errors
    /// If a record is not.
    pub fn rescued(&self, members: &Counted, nodes: &[SimNode]) -> Result<(), String> {
        self.durable.values().try_for_each(|record| Oracle::check_copies(record, members, nodes))
    }

    /// A node stored a record.
    ///
    /// # Errors
    /// If a recovery that the segment knows of cut that record.
    pub fn stored(&self, node: &SimNode, group: GroupId, record: &SimRecord) -> Result<(), String> {
        let newest = node.segment(group).history().newest_epoch();
        match self.cut.get(&record.content) {
            Some(&by) if by <= newest => {
                Err(format!("node {} took {record:?}, which epoch {by} cut", node.id))
            }
            _ => Oracle::check_release(node, group, record),
        }
    }

    /// A node must apply a record it holds as the release does that its writer ran.
    fn check_release(node: &SimNode, group: GroupId, record: &SimRecord) -> Result<(), String> {
        let known = node.server_version(group, record);
        if known == Some(record.truth) {
            return Ok(());
        }
        Err(format!("node {} group {group} applies {record:?} as release {known:?}", node.id))
    }

    /// The same of every record a node holds, durable or not.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_releases(&self, node: &SimNode, coverage: &mut Coverage) -> Result<(), String> {
        for summary in node.summaries() {
            for record in node.records(summary.group).values() {
                Oracle::check_release(node, summary.group, record)?;
                coverage.count("releases of records checked");
                if summary.history.newest().is_some_and(|newest| newest.server_version != record.truth) {
                    coverage.count("records of another release than the newest");
                }
            }
        }
        Ok(())
    }

    /// An epoch before the newest, and up to where an instance that wrote in it may ask: where the next one opened.
    #[must_use]
    pub fn older_reader(&self, random: &mut Random) -> Option<(VolumeEpoch, Lsn)> {
        let openings = self.history.openings();
        let at = random.below(openings.len().checked_sub(1)? as u64 + 1) as usize;
        Some((openings.get(at)?.epoch, openings.get(at + 1)?.last.end))
    }

    /// What PostgreSQL was answered: the truth as of the position the page says, which shows all that was durable when
    /// it asked.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_answer(&self, asked: Asked, answer: &Answer) -> Result<(), String> {
        let page = match answer {
            Answer::Page(Some(page)) => page,
            // Within the time a read has, a volume in trouble need not answer.
            Answer::Error(_) => return Ok(()),
            other => return Err(format!("{asked:?} was answered with {other:?}")),
        };
        let (lsn, Asked { group, durable }) = (page_lsn(page), asked);
        let all = || self.durable.values().map(Rc::as_ref).filter(|r| r.link(group).is_some());
        // A record in pieces is there with its last piece; what a recovery left of one never is.
        let effective = all().filter(|r| r.span.end <= lsn && r.part.ends_record());
        if *page != page_of(lsn, effective) {
            return Err(format!("a page of group {group} as of {lsn} is not the volume's"));
        }
        match all().find(|r| r.span.end > lsn && r.span.end <= durable) {
            Some(missed) => Err(format!("a page of group {group} as of {lsn} does not show {missed:?}")),
            None => Ok(()),
        }
    }

    /// What a node answers a read with must be the truth, and it must not be promised to a newer writer than the reader
    /// (epoch zero reads whatever is there).
    ///
    /// # Errors
    /// If it lacks a record, or has one that is not of the volume; or if the reader is fenced.
    pub fn check_read(&self, node: &SimNode, group: GroupId, at: ReadPoint) -> Result<(), String> {
        let ReadPoint { epoch, lsn } = at;
        let promised = node.segment(group).promise().epoch;
        if epoch > VolumeEpoch(0) && epoch < promised {
            let id = node.id;
            return Err(format!(
                "node {id} group {group} answered epoch {epoch} after its promise to {promised}"
            ));
        }
        let truth: BTreeSet<u64> = self
            .durable
            .values()
            .filter(|r| r.span.end <= lsn && r.link(group).is_some())
            .map(|r| r.content)
            .collect();
        let here: BTreeSet<u64> =
            node.records(group).values().filter(|r| r.span.end <= lsn).map(|r| r.content).collect();
        if truth == here {
            let mut readable = node.records(group).values().filter(|record| record.span.end <= lsn);
            return readable.try_for_each(|record| Oracle::check_release(node, group, record));
        }
        let missing: Vec<_> = truth.difference(&here).collect();
        let extra: Vec<_> = here.difference(&truth).collect();
        Err(format!("node {} group {group} read at {lsn}: lacks {missing:?}, has {extra:?}", node.id))
    }

    /// A segment claims to be complete to `lsn`, in the epoch of a live writer.
    ///
    /// # Errors
    /// If it lacks a record of that writer's volume, durably.
    pub fn check_complete(
        &self,
        node: &SimNode,
        group: GroupId,
        epoch: VolumeEpoch,
        lsn: Lsn,
    ) -> Result<(), String> {
        if epoch != self.history.newest_epoch() {
            return Ok(());
        }
        let pending = self.streams.get(&epoch).into_iter().flat_map(BTreeMap::values);
        for record in self.durable.values().chain(pending) {
            if record.span.end > lsn || record.link(group).is_none() {
                continue;
            }
            if !node.has_durably(group, record) {
                return Err(format!("node {} group {group} claims {lsn} but lacks {record:?}", node.id));
            }
            Oracle::check_release(node, group, record)?;
        }
        Ok(())
    }
}
