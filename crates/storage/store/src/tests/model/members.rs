//! The model's part about memberships: segments come, leave and come again; and whatever the power loss, what was stored of
//! a group's memberships is there, and nothing of an earlier stay is.

use std::collections::{BTreeMap, BTreeSet};

use borealis_quorum::membership::{Accepted, Ballot, GroupMembership, Replacement, Transition};
use borealis_quorum::segment::{Segment, Standing};
use borealis_types::{GroupId, Lsn, META_GROUP, MembershipEpoch, MetaKey, NodeId, PageKey};
use borealis_wire::RelationSize;

use super::{Run, World};
use crate::disk::Disk;
use crate::disk::memory::Operation;
use crate::tests::records::page_of;
use crate::{Origin, Refill, Store, StoreError};

/// The node that the store is of.
const OWN: NodeId = NodeId(3);

/// What the model knows of one group.
#[derive(Clone)]
struct Group {
    /// The newest membership that was chosen, which the node need not have heard of.
    chosen: GroupMembership,
    /// What the node has to have of it: a segment without records.
    stored: Segment,
    /// The folder of its segment, if it has one.
    folder: Option<String>,
}

/// Which memberships there were, and what this node must have stored of them.
pub(super) struct Members {
    groups: BTreeMap<GroupId, Group>,
    /// The number of the next node that was never a member.
    next_node: u16,
    next_ballot: u64,
}

/// What happened in the runs.
#[derive(Default, Debug)]
pub(super) struct MembersCoverage {
    joined: u64,
    joined_again: u64,
    left: u64,
    left_joining: u64,
    prepared: u64,
    accepted: u64,
    skipped_a_membership: u64,
    bases: u64,
    bases_of_own: u64,
    refills_crashed: u64,
    failures: u64,
    failures_undone: u64,
}

impl MembersCoverage {
    fn all(&mut self) -> [&mut u64; 12] {
        let MembersCoverage {
            joined,
            joined_again,
            left,
            left_joining,
            prepared,
            accepted,
            skipped_a_membership,
            bases,
            bases_of_own,
            refills_crashed,
            failures,
            failures_undone,
        } = self;
        [
            joined,
            joined_again,
            left,
            left_joining,
            prepared,
            accepted,
            skipped_a_membership,
            bases,
            bases_of_own,
            refills_crashed,
            failures,
            failures_undone,
        ]
    }

    pub(super) fn add(&mut self, other: &MembersCoverage) {
        let mut other = MembersCoverage { ..*other };
        for (total, count) in self.all().into_iter().zip(other.all()) {
            *total += *count;
        }
    }

    /// Everything happened.
    pub(super) fn check(mut self) {
        let text = format!("{self:?}");
        assert!(self.all().into_iter().all(|count| *count > 0), "the runs do not cover everything: {text}");
    }
}

impl Members {
    /// Gives a new store the first memberships.
    pub(super) fn configure(store: &Store) -> Members {
        let set = [NodeId(0), NodeId(1), NodeId(2), OWN, NodeId(4), NodeId(5)];
        let first = GroupMembership::created(set).unwrap();
        let configured: BTreeMap<_, _> =
            store.groups().into_iter().map(|group| (group, first.clone())).collect();
        store.configure_memberships(&configured).unwrap();
        store.configure_memberships(&configured).unwrap();
        let group = |group: GroupId| Group {
            chosen: first.clone(),
            stored: Segment::created(group, first.clone()),
            folder: Some(group.to_string()),
        };
        let groups = configured.keys().map(|&of| (of, group(of))).collect();
        Members { groups, next_node: 10, next_ballot: 1 }
    }

    /// A store was made of another one's segments: their folders are as those of any new store.
    pub(super) fn gathered(&mut self) {
        for (group, known) in &mut self.groups {
            known.folder = Some(group.to_string());
        }
    }

    fn group(&mut self, group: GroupId) -> &mut Group {
        self.groups.get_mut(&group).unwrap()
    }
}

/// What a change does to the model's segment, and whether the same is done to the store's.
enum Change {
    Prepare(MembershipEpoch, Ballot),
    Accept(Accepted),
    Install(GroupMembership),
}

impl Change {
    fn apply(&self, known: &mut Group) {
        match self {
            Change::Prepare(installed, ballot) => {
                known.stored.prepare_membership(*installed, *ballot);
            }
            Change::Accept(proposed) => {
                let _ = known.stored.accept_membership(proposed);
            }
            Change::Install(membership) => {
                let (group, before) = (known.stored.group(), known.stored.standing());
                known.stored.install_membership(OWN, membership).unwrap();
                match (before, known.stored.standing()) {
                    (_, Standing::Absent) => known.folder = None,
                    (Standing::Absent, _) => known.folder = Some(format!("{group}.{}", membership.epoch().0)),
                    _ => {}
                }
            }
        }
    }

    fn ask(&self, store: &Store, group: GroupId) -> Result<(), StoreError> {
        match self {
            Change::Prepare(installed, ballot) => store.prepare_membership(group, *installed, *ballot),
            Change::Accept(proposed) => store.accept_membership(group, proposed),
            Change::Install(membership) => store.install_membership(group, membership).map(drop),
        }
    }
}

impl Run {
    pub(super) fn is_full(&self, group: GroupId) -> bool {
        self.members.groups[&group].stored.standing() == Standing::Full
    }

    fn is_here(&self, group: GroupId) -> bool {
        self.members.groups[&group].folder.is_some()
    }

    fn random_group(&mut self) -> GroupId {
        GroupId(self.random.below(u64::from(self.writer.placement.group_count())) as u16)
    }

    /// What is stored is what was, and which segments are here is what follows from it.
    pub(super) fn check_members(&self) {
        let store = self.store();
        let known = &self.members.groups;
        let expected: Vec<_> = known
            .iter()
            .filter_map(|(group, known)| Some((*group, known.stored.membership()?.clone())))
            .collect();
        assert_eq!(store.memberships().unwrap(), expected);
        for (group, known) in known {
            assert_eq!(store.standing(*group), known.stored.standing(), "group {group}");
            let here = store.with_segment(*group, |segment| segment.segment_complete_lsn());
            match known.stored.standing() {
                Standing::Full => drop(here.unwrap()),
                Standing::Joining => assert_eq!(here.unwrap(), Lsn::ZERO, "group {group} counts for nothing"),
                Standing::Absent => assert!(here.is_err(), "group {group} left"),
            }
            if known.stored.standing() != Standing::Full {
                assert!(store.page_checksums(*group, Lsn::ZERO, None, 1).is_err(), "group {group} is read");
            }
        }
        self.check_folders(false);
    }

    /// Every segment has its folder, and what left has none once a checkpoint was written.
    pub(super) fn check_folders(&self, is_checkpointed: bool) {
        let folders = self.disk.list(&self.path.join("segments")).unwrap();
        let folders: BTreeSet<String> = folders.into_iter().collect();
        let named: BTreeSet<String> =
            self.members.groups.values().filter_map(|known| known.folder.clone()).collect();
        assert!(folders.is_superset(&named), "{folders:?}, and segments have {named:?}");
        let may_have_more = !is_checkpointed || self.coverage.disk_failures > 0;
        assert!(may_have_more || folders == named, "{folders:?}, and segments have {named:?}");
    }

    /// Asks the store for a change and the model, too; sometimes the disk fails meanwhile, or the power does afterwards.
    fn change(&mut self, group: GroupId, change: &Change) {
        // Above all while a segment comes.
        let comes = !self.is_here(group) && matches!(change, Change::Install(next) if next.contains(OWN));
        if self.random.chance(if comes { 2 } else { 8 }) {
            return self.change_while_disk_fails(group, change);
        }
        change.ask(self.store(), group).unwrap();
        change.apply(self.members.group(group));
        if self.random.chance(3) {
            let lose_power = self.random.chance(2);
            self.crash(lose_power);
        }
    }

    /// What was refused, or not confirmed, is stored or is not: nothing in between.
    fn change_while_disk_fails(&mut self, group: GroupId, change: &Change) {
        let stops = self.random.chance(2);
        if stops {
            self.disk.stop_after(self.random.below(12) as u32);
        } else {
            let operations = [Operation::Write, Operation::Sync, Operation::SyncFolder, Operation::Remove];
            let operation = operations[self.random.below(4) as usize];
            let part = ["/log", "/segments", ""][self.random.below(3) as usize];
            self.disk.fail(operation, part, self.random.below(2) as u32);
        }
        let failed_before = self.coverage.disk_failures;
        let asked = change.ask(self.store(), group);
        self.coverage.disk_failures = u64::from(self.disk.heal());
        if !stops && self.coverage.disk_failures == failed_before {
            asked.unwrap();
            return change.apply(self.members.group(group));
        }
        self.coverage.members.failures += 1;
        let passes = !stops && self.store().failure().is_none() && self.random.chance(2);
        if !passes {
            self.lose_power_in_between();
        }
        self.take_stored(group, change, asked.is_ok());
        if passes {
            change.ask(self.store(), group).unwrap();
            change.apply(self.members.group(group));
        } else {
            self.crash(false);
        }
    }

    fn lose_power_in_between(&mut self) {
        drop(self.store.take());
        let random = &mut self.random;
        self.disk.lose_power(|bound| random.below(bound));
        self.reopen();
    }

    /// Sees whether a change was stored that failed, or was confirmed.
    fn take_stored(&mut self, group: GroupId, change: &Change, is_confirmed: bool) {
        let mut changed = self.members.groups[&group].clone();
        change.apply(&mut changed);
        let stored = self.store().membership(group).unwrap();
        let is_done = stored.as_ref() == changed.stored.membership();
        assert!(is_done || !is_confirmed, "group {group} lost what was confirmed: {stored:?}");
        if is_done {
            *self.members.group(group) = changed;
        } else {
            self.coverage.members.failures_undone += 1;
        }
        if !self.store().groups().contains(&group) {
            self.synced.remove(&group);
        }
        self.check_members();
    }

    /// The next membership of a group is chosen, and the node hears of it, perhaps.
    pub(super) fn change_members(&mut self) {
        let group = self.random_group();
        for _ in 0..[1, 1, 2, 3][self.random.below(4) as usize] {
            let transition = self.random_transition(group);
            let known = self.members.group(group);
            if let Ok(next) = known.chosen.after(transition) {
                known.chosen = next;
            }
        }
        let known = self.members.group(group);
        let (before, chosen) = (known.stored.standing(), known.chosen.clone());
        let installed =
            known.stored.membership().map_or(MembershipEpoch(0), |state| state.installed().epoch());
        let (was_member, skipped) = (known.folder.is_some(), chosen.epoch().0 > installed.0 + 1);
        self.change(group, &Change::Install(chosen));
        // An older one, and the same again, change nothing.
        self.coverage.members.skipped_a_membership += u64::from(skipped);
        let after = self.members.group(group).stored.standing();
        let coverage = &mut self.coverage.members;
        match (before, after) {
            (Standing::Absent, Standing::Joining) => {
                coverage.joined += 1;
                coverage.joined_again += u64::from(!was_member && coverage.left > 0);
            }
            (Standing::Full, Standing::Absent) => coverage.left += 1,
            (Standing::Joining, Standing::Absent) => coverage.left_joining += 1,
            _ => {}
        }
        if after == Standing::Absent {
            self.synced.remove(&group);
        }
        let again = self.members.group(group).stored.membership().unwrap().installed().clone();
        assert!(!self.store().install_membership(group, &again).unwrap().changed);
    }

    fn random_transition(&mut self, group: GroupId) -> Transition {
        let chosen = self.members.groups[&group].chosen.clone();
        let under_way = chosen.replacements();
        // A newcomer is taken back, or becomes a member, before it is full.
        let own = under_way.iter().find(|replacement| replacement.new == OWN);
        if let Some(&replacement) = own.filter(|_| self.random.chance(3)) {
            return Transition::TakeBack(replacement);
        }
        if !under_way.is_empty() && self.random.chance(2) {
            let replacement = under_way[self.random.below(under_way.len() as u64) as usize];
            return match self.random.chance(3) {
                true => Transition::TakeBack(replacement),
                false => Transition::Finish(replacement),
            };
        }
        let old = match chosen.contains(OWN) && self.random.chance(2) {
            true => OWN,
            false => chosen.base()[self.random.below(6) as usize],
        };
        let new = if chosen.contains(OWN) {
            self.members.next_node += 1;
            NodeId(self.members.next_node)
        } else {
            OWN
        };
        Transition::Begin(Replacement { old, new })
    }

    /// The node takes part in the choice of a membership that need not be chosen.
    pub(super) fn vote(&mut self) {
        let group = self.random_group();
        let installed = self.members.group(group).stored.membership().unwrap().installed().clone();
        self.members.next_ballot += self.random.below(3);
        let ballot = Ballot { counter: self.members.next_ballot, proposer: self.random.below(5) };
        let before = self.members.group(group).stored.membership().cloned();
        if self.random.chance(2) {
            self.change(group, &Change::Prepare(installed.epoch(), ballot));
            self.coverage.members.prepared +=
                u64::from(self.members.group(group).stored.membership() != before.as_ref());
        } else if let Ok(membership) =
            installed.after(Transition::Begin(Replacement { old: installed.base()[0], new: NodeId(999) }))
        {
            self.change(group, &Change::Accept(Accepted { ballot, membership }));
            self.coverage.members.accepted +=
                u64::from(self.members.group(group).stored.membership() != before.as_ref());
        }
    }

    /// Peers bring a joining segment what it needs to become full, or some of it.
    pub(super) fn bring_base(&mut self) {
        let joining: Vec<GroupId> = self
            .members
            .groups
            .iter()
            .filter(|(_, known)| known.stored.standing() == Standing::Joining)
            .map(|(group, _)| *group)
            .collect();
        if joining.is_empty() {
            return;
        }
        let group = joining[self.random.below(joining.len() as u64) as usize];
        let history = self.writer.history.clone();
        self.store().install_from_peers(group, &history).unwrap();
        self.store().note_positions(&self.writer.header(), &[]).unwrap();
        if self.random.chance(8) {
            // Somebody had all of the log after all.
            self.deliver_everything();
        }
        let fault =
            [Fault::None, Fault::None, Fault::Checkpoint, Fault::Power][self.random.below(4) as usize];
        let store = self.store.take().unwrap();
        let has_chain = |segment: &Segment| segment.base_point().is_some_and(|at| segment.has_chain_to(at));
        let is_of_own = store.with_segment(group, has_chain).unwrap();
        if is_of_own {
            self.plant(fault, 0);
        }
        let refilled = store.refill(group).and_then(|refill| match refill {
            Some(refill) => self.refill(group, refill, fault),
            None => Ok(store.standing(group) == Standing::Full),
        });
        self.store = Some(store);
        self.coverage.disk_failures = u64::from(self.disk.heal());
        let refilled = match fault {
            Fault::Power => {
                self.lose_power_in_between();
                let is_full = self.store().standing(group) == Standing::Full;
                assert!(is_full || !matches!(refilled, Ok(true)), "group {group} lost its base");
                is_full
            }
            Fault::None | Fault::Checkpoint => refilled.unwrap(),
        };
        if !refilled {
            self.coverage.members.refills_crashed += 1;
            return self.crash(true);
        }
        let coverage = &mut self.coverage.members;
        coverage.bases += 1;
        coverage.bases_of_own += u64::from(is_of_own);
        let membership = self.members.group(group).stored.membership().unwrap().clone();
        self.members.group(group).stored = full(group, membership);
        self.check_members();
        self.deliver_everything();
        if self.random.chance(2) {
            self.sync();
            let lose_power = self.random.chance(2);
            self.crash(lose_power);
        }
        let readable = self.store().summaries().unwrap().into_iter().find(|summary| summary.group == group);
        let readable = readable.expect("it is here");
        if readable.minimum_read_point <= readable.readable_through {
            self.compare(group, readable.readable_through);
        }
    }

    /// `writes` to the checkpoint succeed before the one that is to fail.
    fn plant(&mut self, fault: Fault, writes: u32) {
        match fault {
            Fault::None => {}
            Fault::Checkpoint => self.disk.fail(Operation::Write, "/checkpoint.new", writes),
            Fault::Power => self.disk.stop_after(self.random.below(16) as u32),
        }
    }

    fn deliver_everything(&mut self) {
        self.delayed = self.writer.records.clone();
        self.catch_up(self.writer.promise.epoch);
        let batch = self.writer.batch(&std::mem::take(&mut self.delayed));
        self.store().append(&batch, Origin::Writer(self.writer.promise), &[]).unwrap();
    }

    /// Brings what the model has as of the refill's point. False if it is not finished.
    fn refill(&mut self, group: GroupId, mut refill: Refill<'_>, fault: Fault) -> Result<bool, StoreError> {
        if refill.is_whole() {
            self.plant(fault, 0);
            refill.finish_whole()?;
            return Ok(true);
        }
        let lsn = refill.at().unwrap().lsn;
        let last = self.writer.records.iter().rev().find(|record| record.span.end <= lsn);
        if last.is_some_and(|last| !last.form.part.ends_record()) {
            return Ok(false);
        }
        let world: World = self.world(lsn);
        let here = |key: &&PageKey| self.writer.placement.group_of(key) == group;
        let mut keys: Vec<PageKey> = world.pages.keys().filter(here).copied().collect();
        keys.retain(|key| refill.through().is_none_or(|through| *key > through));
        let mut ranges = keys.chunks(4).peekable();
        loop {
            let range = ranges.next().unwrap_or_default();
            let is_last = ranges.peek().is_none();
            let brought: Vec<_> = range
                .iter()
                .map(|key| {
                    let page = page_of(world.pages[key]);
                    (*key, (!refill.has(key, crc32c::crc32c(&page[..]))).then_some(page))
                })
                .collect();
            refill.take_range(if is_last { None } else { range.last().copied() }, &brought).unwrap();
            if self.random.chance(3) {
                refill.save().unwrap();
            }
            if self.random.chance(12) {
                return Ok(false);
            }
            if is_last {
                break;
            }
        }
        let sizes = world.relations.iter().filter(|((of, _), _)| *of == group);
        let sizes: Vec<RelationSize> = sizes
            .map(|((_, relation_fork), blocks)| RelationSize {
                relation_fork: *relation_fork,
                blocks: *blocks,
            })
            .collect();
        let is_meta = group == META_GROUP;
        let values = world.meta.iter().filter(|_| is_meta);
        let values: Vec<(MetaKey, Vec<u8>)> =
            values.map(|(key, hash)| (key.clone(), hash.to_le_bytes().to_vec())).collect();
        // One checkpoint names everything, and the other comes after the base.
        self.plant(fault, CHECKPOINT_WRITES);
        refill.finish(&sizes, values)?;
        Ok(true)
    }
}

/// What happens while a segment takes its base.
#[derive(Clone, Copy)]
enum Fault {
    None,
    /// The checkpoint after it cannot be written: the log has the base all the same.
    Checkpoint,
    /// The power is gone.
    Power,
}

/// A checkpoint is written in so many pieces.
const CHECKPOINT_WRITES: u32 = 2;

/// A segment with this membership that is a full member.
fn full(group: GroupId, membership: borealis_quorum::membership::MembershipState) -> Segment {
    let mut checkpoint = Segment::created(group, membership.installed().clone()).checkpoint();
    checkpoint.membership = Some(membership);
    Segment::restore(checkpoint).unwrap()
}
