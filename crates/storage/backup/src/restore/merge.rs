//! The chains of a volume's groups, put together to its one stream.

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::chain::{Chain, Step};
use borealis_archive::inventory::Inventory;
use borealis_archive::name::Name;
use borealis_archive::object::OBJECT_BYTES_MAX;
use borealis_archive::plan::{GroupPlan, PlannedRedo};
use borealis_types::{GroupId, Lsn, VolumeEpoch, VolumeId};
use borealis_wire::BatchRecord;

use super::fetch::{NotFetched, Records, Waiting, needed_at};
use super::{Ended, RestoreError};

/// An object of the plan, in the order in which objects are needed.
#[derive(Clone, Copy, Debug)]
struct Job {
    needed_at: Lsn,
    redo: PlannedRedo,
    /// The object's length.
    bytes: u64,
}

/// Where a group begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning<'a> {
    /// Its objects, in order.
    pub plan: &'a GroupPlan,
    /// Records that end at or before this are not wanted. What is wanted begins with the record after, of which the first object has to be.
    pub had_through: Lsn,
    /// End of the group's record before the first one of its first object, or of what it begins with.
    pub chain_end: Lsn,
}

impl<'a> Beginning<'a> {
    /// After the group's snapshot, or with its first record.
    pub(crate) fn of_restore(plan: &'a GroupPlan) -> Beginning<'a> {
        let base_end = plan.base.map_or(Lsn::ZERO, |base| base.tail_end);
        Beginning { plan, had_through: base_end, chain_end: base_end }
    }

    /// After `from`, with the first record of the group's first object, whatever it is.
    pub(crate) fn of_log(plan: &'a GroupPlan, from: Lsn) -> Beginning<'a> {
        let chain_end = plan.redo.first().map_or(from, |redo| redo.name.previous_end);
        Beginning { plan, had_through: from, chain_end }
    }
}

/// Takes the next record of the volume, and the epoch it was written in.
pub(crate) type Take<'a, E> = dyn FnMut(VolumeEpoch, &BatchRecord<'_>) -> Result<(), E> + 'a;

/// One group's chain.
#[derive(Debug)]
struct Line {
    chain: Chain,
    /// Records that end at or before this are passed over.
    had_through: Lsn,
    /// Its objects, by their numbers in the order of all, the next one last.
    rest: Vec<usize>,
    now: Option<(usize, Records)>,
    /// The next record of what is there now.
    next: usize,
}

/// The chains of all groups, which become the volume's stream: the next record is the one that ends first, and each of its groups has it.
#[derive(Debug)]
pub(crate) struct Merge {
    volume: VolumeId,
    jobs: Vec<Job>,
    lines: BTreeMap<GroupId, Line>,
    /// Where each group's next record ends.
    heads: BTreeSet<(Lsn, GroupId)>,
    has_begun: bool,
    /// Bytes of objects whose records or pages were taken.
    pub bytes: u64,
    /// Bytes of all that have records.
    pub plan_bytes: u64,
}

impl Merge {
    pub(crate) fn new<'a>(
        volume: VolumeId,
        inventory: &Inventory,
        beginnings: impl Iterator<Item = Beginning<'a>> + Clone,
    ) -> Merge {
        // None is longer than that, whatever a listing says.
        let listed = |redo: &PlannedRedo| {
            let stored = inventory.get(&Name::Redo(redo.name)).unwrap_or_default();
            stored.bytes.min(OBJECT_BYTES_MAX)
        };
        let mut jobs: Vec<Job> = Vec::new();
        for beginning in beginnings.clone() {
            let redo = &beginning.plan.redo;
            let needed = needed_at(redo).zip(redo);
            jobs.extend(needed.map(|(needed_at, redo)| Job { needed_at, redo: *redo, bytes: listed(redo) }));
        }
        // Stable: the objects of a group stay in order.
        jobs.sort_by_key(|job| job.needed_at);
        let line = |Beginning { plan, had_through, chain_end }: Beginning<'_>| {
            let of_group = jobs.iter().enumerate().filter(|(_, job)| job.redo.name.group == plan.group);
            let mut rest: Vec<usize> = of_group.map(|(number, _)| number).collect();
            rest.reverse();
            Line { chain: Chain::new(plan.group, chain_end), had_through, rest, now: None, next: 0 }
        };
        let lines = beginnings.map(|beginning| (beginning.plan.group, line(beginning))).collect();
        let plan_bytes = jobs.iter().map(|job| job.bytes).sum();
        Merge { volume, jobs, lines, heads: BTreeSet::new(), has_begun: false, bytes: 0, plan_bytes }
    }

    /// Its objects and their lengths.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (PlannedRedo, u64)> {
        self.jobs.iter().map(|job| (job.redo, job.bytes))
    }

    /// Takes records until another object is needed. Returns whether there are more.
    pub(crate) fn step<E: From<Ended>>(
        &mut self,
        waiting: &mut Waiting<'_>,
        take: &mut Take<'_, E>,
    ) -> Result<bool, E> {
        if !self.has_begun {
            self.has_begun = true;
            let groups: Vec<GroupId> = self.lines.keys().copied().collect();
            for group in groups {
                self.advance(group, waiting)?;
            }
        }
        let bytes = self.bytes;
        while bytes == self.bytes {
            let Some(&(end, group)) = self.heads.first() else { return Ok(false) };
            let groups = self.take_one(end, group, take)?;
            for group in groups {
                self.heads.remove(&(end, group));
                self.advance(group, waiting)?;
            }
        }
        Ok(true)
    }

    /// Brings the next record of the volume. Returns those of its groups that did not have it.
    fn take_one<E: From<Ended>>(
        &self,
        end: Lsn,
        group: GroupId,
        take: &mut Take<'_, E>,
    ) -> Result<Vec<GroupId>, E> {
        let (job, record) = self.head(group).ok_or_else(|| Ended::from(contradiction(end, group)))?;
        let mut groups = Vec::new();
        for link in &record.links {
            if self.lines.get(&link.group).is_some_and(|line| end <= line.had_through) {
                // Its snapshot has what the record did there.
                continue;
            }
            groups.push(link.group);
            let here = self.head(link.group).filter(|(_, other)| other.span == record.span);
            let Some((other_job, other)) = here else {
                let fault = format!(
                    "has a record of groups {group} and {} that ends at {end}, which the redo of group {} does not have",
                    link.group, link.group
                );
                return Err(Ended::Spoilt(Name::Redo(job.redo.name), fault).into());
            };
            let same = other == record && other_job.redo.name.epoch == job.redo.name.epoch;
            if !same {
                let what = format!(
                    "{} and {} have different records that end at {end}",
                    Name::Redo(job.redo.name).key(self.volume),
                    Name::Redo(other_job.redo.name).key(self.volume)
                );
                return Err(Ended::from(RestoreError::Contradiction(what)).into());
            }
        }
        take(job.redo.name.epoch, &record)?;
        Ok(groups)
    }

    /// A group's next record, and the object that it is in.
    fn head(&self, group: GroupId) -> Option<(&Job, BatchRecord<'_>)> {
        let line = self.lines.get(&group)?;
        let (number, records) = line.now.as_ref()?;
        Some((&self.jobs[*number], records.get(line.next.checked_sub(1)?)?))
    }

    /// Goes on to a group's next record, if it has one.
    fn advance(&mut self, group: GroupId, waiting: &mut Waiting<'_>) -> Result<(), Ended> {
        let Some(line) = self.lines.get_mut(&group) else { return Ok(()) };
        loop {
            while let Some((number, records)) = &line.now {
                let Some(record) = records.get(line.next) else { break };
                line.next += 1;
                let step = line.chain.take(&record).map_err(|fault| {
                    Ended::Spoilt(
                        Name::Redo(self.jobs[*number].redo.name),
                        format!("does not follow: {fault}"),
                    )
                })?;
                if step == Step::Next && record.span.end > line.had_through {
                    self.heads.insert((record.span.end, group));
                    return Ok(());
                }
            }
            (line.now, line.next) = (None, 0);
            let Some(number) = line.rest.pop() else { return Ok(()) };
            let records = waiting.take(number).map_err(|error| match error {
                NotFetched::Spoilt(fault) => Ended::Spoilt(Name::Redo(self.jobs[number].redo.name), fault),
                NotFetched::Store(error) => RestoreError::from(error).into(),
            })?;
            self.bytes += records.object_bytes;
            line.now = Some((number, records));
        }
    }
}

fn contradiction(end: Lsn, group: GroupId) -> RestoreError {
    RestoreError::Contradiction(format!("group {group} has no record that ends at {end}"))
}
