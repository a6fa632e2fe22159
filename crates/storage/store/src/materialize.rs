//! Folding redo into pages, checkpoints, and letting go of the log.
//!
//! One round takes each segment from its base to a later one: every page with records in between is made as of
//! the target and written to its other slot, all of it is synced, a checkpoint names the new state, and only
//! then do readers see it and does the log before it become free. Relation and database events are folded at
//! the same time. A database copy is taken in a step of its own, from the state just before it, so that no
//! later change of the template is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;

use borealis_types::{BlockKey, GroupId, Lsn, META_GROUP, MetaKey, PageBytes, PageKey, RelationFork};

use crate::base::{Base, Extent, PAGES_PER_EXTENT, extent_of, in_database, next_generation};
use crate::checkpoint::{Checkpoint, CheckpointedSegment};
use crate::hosted::HostedSegment;
use crate::index::{DatabaseEvent, ForkEvent, Origin};
use crate::log::LogPosition;
use crate::log::entry::ENTRY_HEADER_BYTES;
use crate::metrics::count;
use crate::pace::{self, Backlog, PAUSE, PAUSES_MAX, PIECE_PAGES};
use crate::pages::{PageFiles, SlotAddress, SlotRun};
use crate::read::Overtaken;
use crate::store::Sequence;
use crate::{Store, StoreError};

/// So many records behind, the counters are worth preparing for their next reader. Few in tests, so that the model
/// comes to it.
const LONG_COUNTERS: usize = if cfg!(test) { 16 } else { 8192 };

/// When to work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// If enough redo or memory has piled up; slowly, unless somebody waits for it.
    IfDue,
    /// In any case.
    Now,
}

/// What a call of [`Store::materialize`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Some segment's materialized LSN moved.
    pub advanced: bool,
    /// Page versions written.
    pub pages_written: u64,
    /// Log files let go.
    pub log_files_freed: u64,
}

/// A segment's next base, on disk but not yet in use.
struct NextBase {
    base: Arc<Base>,
    files: Arc<PageFiles>,
    freed_regions: Vec<u32>,
    written_regions: BTreeSet<u32>,
    pages_written: u64,
}

/// What changes between a base and a target.
struct Changes {
    base: Arc<Base>,
    files: Arc<PageFiles>,
    /// In no order, and some more than once: that is put right without the lock.
    pages: Vec<PageKey>,
    relations: BTreeMap<RelationFork, Option<u32>>,
    meta: BTreeSet<MetaKey>,
}

impl Store {
    /// Folds redo that nobody reads below into pages, writes a checkpoint, and frees log. One caller works at
    /// a time; others wait for it.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] when a write or sync failed; [`StoreError::Corrupt`] when what pages are made
    /// from is damaged. Redo that cannot be applied stops its segment below that record and shows in
    /// [`Store::failure`].
    pub fn materialize(&self, policy: Policy) -> Result<Progress, StoreError> {
        self.fold(policy, || policy == Policy::Now || self.is_due())
    }

    /// Rounds for as long as `is_wanted` says, and there is something to apply.
    pub(crate) fn fold(&self, policy: Policy, is_wanted: impl Fn() -> bool) -> Result<Progress, StoreError> {
        let _working = self.maintenance.enter();
        let mut progress = Progress::default();
        self.prepare_for_readers();
        loop {
            self.check_poison()?;
            if !is_wanted() {
                return Ok(progress);
            }
            let targets = self.targets();
            if targets.is_empty() || self.maintenance.has_ended() {
                return Ok(progress);
            }
            let round = self.round(&targets, policy).map_err(|error| match error {
                StoreError::Io { .. } => self.poisoned(&error),
                error => {
                    self.note_damage(&error);
                    error
                }
            })?;
            progress.pages_written += round.pages_written;
            progress.log_files_freed += round.log_files_freed;
            if !round.advanced {
                return Ok(progress);
            }
            progress.advanced = true;
        }
    }

    /// Brings up to date what many records wait for, so that its next reader, a recovery above all, need not apply
    /// all of them. It is still folded once per round.
    fn prepare_for_readers(&self) {
        self.prepare_long_chains();
        self.prepare_counters();
    }

    fn prepare_long_chains(&self) {
        let mut pages = Vec::new();
        for hosted in self.lock().segments.values_mut() {
            let lsn = newest_durable(hosted);
            let group = hosted.group();
            pages.extend(hosted.index.long_chains.drain(..).map(|key| (group, key, lsn)));
        }
        pages.sort_unstable();
        pages.dedup();
        for (group, key, lsn) in pages {
            if let Err(error) = self.page_version(group, &key, lsn, Overtaken::Fail, &|state| {
                Store::readable(state, group, lsn.into())
            }) {
                tracing::debug!(%error, "a page with many records is not prepared");
            }
        }
    }

    fn prepare_counters(&self) {
        let (lsn, newest) = {
            let state = self.lock();
            let Some(hosted) = state.segments.get(&META_GROUP) else { return };
            let lsn = newest_durable(hosted);
            let (_, above) = hosted.counters_before(lsn);
            if hosted.index.all_records(above, lsn).len() < LONG_COUNTERS {
                return;
            }
            // Nothing of the meta group lies between the two: what is durable beyond is of other groups.
            (lsn, lsn.min(hosted.indexed_through))
        };
        let counters = self.meta_version(&MetaKey::Counters, lsn, Overtaken::Fail, &|state| {
            Store::readable(state, META_GROUP, lsn.into())
        });
        match counters {
            Ok(Some(counters)) => {
                let mut state = self.lock();
                if let Some(hosted) = state.segments.get_mut(&META_GROUP)
                    && hosted.indexed_through >= newest
                {
                    hosted.prepared_counters = Some((newest, counters));
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "the counters are not prepared"),
        }
    }

    fn is_due(&self) -> bool {
        self.backlog().is_due(&self.options)
    }

    pub(crate) fn backlog(&self) -> Backlog {
        let state = self.lock();
        Backlog {
            record_bytes: state.applicable_record_bytes(),
            memory_bytes: state.applicable_memory_bytes(),
        }
    }

    /// Pauses while the round is ahead of its pace, after a look at what has grown meanwhile.
    fn keep_pace(&self, share_done: f64, at_start: f64) {
        self.prepare_for_readers();
        for _ in 0..PAUSES_MAX {
            let urgent = self.maintenance.is_urgent();
            if urgent || !pace::is_ahead(share_done, at_start, self.backlog().share(&self.options)) {
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Before the store is closed: gives up a round under way, and begins none any more. What is not folded into
    /// pages then is indexed again by the next opening.
    pub fn end_materialization(&self) {
        self.maintenance.end();
    }

    /// How far each segment can go in one round; those that cannot are left out.
    fn targets(&self) -> Vec<(GroupId, Lsn)> {
        let state = self.lock();
        let mut targets = Vec::new();
        for hosted in state.segments.values() {
            let (base, target) = (hosted.base.materialized, hosted.materialization_target());
            let copies = hosted.index.database_events(base, target);
            let copy = copies
                .filter(|(.., event)| matches!(event, DatabaseEvent::CopyOf(_)))
                .map(|(at, ..)| at)
                .next();
            let target = match copy {
                // First everything before it, then it alone.
                Some(at) if base.0 < at.0 - 1 => Lsn(at.0 - 1),
                Some(at) => at,
                None => target,
            };
            if target > base {
                targets.push((hosted.group(), target));
            }
        }
        targets
    }

    /// About how much work each group is, in no unit.
    pub(crate) fn work_of(&self, targets: &[(GroupId, Lsn)]) -> Vec<f64> {
        let state = self.lock();
        let of = |group| state.segments.get(group).map_or(0, |hosted| hosted.index.work());
        targets.iter().map(|(group, _)| of(group) as f64).collect()
    }

    fn round(&self, targets: &[(GroupId, Lsn)], policy: Policy) -> Result<Progress, StoreError> {
        let mut next = BTreeMap::new();
        let at_start = self.backlog().share(&self.options);
        let parts = self.work_of(targets);
        let whole = parts.iter().sum::<f64>().max(1.0);
        let mut part_done = 0.0;
        for (&(group, target), part) in targets.iter().zip(parts) {
            let keep_pace = |share: f64| {
                if policy == Policy::IfDue {
                    self.keep_pace((part_done + share * part) / whole, at_start);
                }
            };
            match self.next_base(group, target, keep_pace) {
                Ok(Some(base)) => {
                    next.insert(group, base);
                }
                Ok(None) => return Ok(Progress::default()),
                // The segment has noted it, and its next target is below.
                Err(StoreError::Redo { .. }) => {}
                Err(error) => return Err(error),
            }
            part_done += part;
        }
        if next.is_empty() {
            return Ok(Progress::default());
        }
        for base in next.values() {
            base.files.sync(base.written_regions.iter().copied())?;
        }
        let replay_from = self.write_checkpoint(&next)?;
        let pages_written = next.values().map(|base| base.pages_written).sum();
        count(&self.counters.pages_written, pages_written);
        for replaced in self.take_over(next) {
            for region in replaced.freed_regions {
                replaced.files.free_region(region);
            }
        }
        let log_files_freed = self.free_log(replay_from)?;
        Ok(Progress { advanced: true, pages_written, log_files_freed })
    }

    /// Makes and writes everything that changes up to `target`; nothing if it was given up. Says now and then what
    /// share of the pages is done.
    fn next_base(
        &self,
        group: GroupId,
        target: Lsn,
        keep_pace: impl Fn(f64),
    ) -> Result<Option<NextBase>, StoreError> {
        let mut changes = {
            let state = self.lock();
            changes(Store::hosted(&state, group)?, target)
        };
        changes.pages.sort_unstable();
        changes.pages.dedup();
        let mut writer = PageWriter {
            next: NextBase {
                base: Arc::new((*changes.base).clone()),
                files: Arc::clone(&changes.files),
                freed_regions: Vec::new(),
                written_regions: BTreeSet::new(),
                pages_written: 0,
            },
            target,
            run: SlotRun::default(),
            unsynced_pages: 0,
        };
        for (at, key) in changes.pages.iter().enumerate() {
            if at > 0 && at % PIECE_PAGES == 0 {
                keep_pace(at as f64 / changes.pages.len() as f64);
                if self.maintenance.has_ended() {
                    return Ok(None);
                }
            }
            let page =
                self.page_version(group, key, target, Overtaken::Fail, &|state| Store::hosted(state, group))?;
            match page {
                Some(page) => writer.write(key, &page)?,
                None => writer.erase(key),
            }
        }
        let mut next = writer.finish()?;
        let base = Arc::make_mut(&mut next.base);
        for (fork, blocks) in changes.relations {
            match blocks {
                Some(blocks) => base.relations.insert(fork, blocks),
                None => base.relations.remove(&fork),
            };
        }
        for key in changes.meta {
            let value =
                self.meta_version(&key, target, Overtaken::Fail, &|state| Store::hosted(state, group))?;
            match value {
                Some(value) => base.meta.insert(key, value),
                None => base.meta.remove(&key),
            };
        }
        base.materialized = target;
        // Only now: the next round is the first that may take them, when the checkpoint that does not name
        // them any more is durable, their space is given back, and the version tells their readers.
        base.free_regions.extend(&next.freed_regions);
        // The lowest is taken first, which keeps the files few.
        base.free_regions.sort_unstable_by(|one, other| other.cmp(one));
        Ok(Some(next))
    }

    /// Writes a checkpoint with the next bases and returns from where it needs the log.
    fn write_checkpoint(&self, next: &BTreeMap<GroupId, NextBase>) -> Result<LogPosition, StoreError> {
        let (checkpoint, log_end) = {
            let state = self.lock_to_change()?;
            let base = |group: GroupId| -> &Arc<Base> {
                match (next.get(&group), state.segments.get(&group)) {
                    (Some(next), _) => &next.base,
                    (None, Some(hosted)) => &hosted.base,
                    (None, None) => unreachable!("only groups with a segment here are asked for"),
                }
            };
            let log_end = state.log.end();
            let needed = state.catalog.first_needed(|group| {
                let hosted = state.segments.contains_key(&group);
                if hosted { base(group).materialized } else { Lsn::MAX }
            });
            let entry_start = |payload: LogPosition| LogPosition(payload.0 - ENTRY_HEADER_BYTES as u64);
            let segments = state.segments.values().map(|hosted| CheckpointedSegment {
                chain: hosted.segment.checkpoint(),
                // Shared, because appends wait for this lock.
                base: Arc::clone(base(hosted.group())),
            });
            let files = state.catalog.files.iter().map(|(number, file)| (*number, file.ranges.clone()));
            let checkpoint = Checkpoint {
                incarnation: self.identity.incarnation,
                replay_from: needed.map_or(log_end, entry_start),
                log_end,
                segments: segments.collect(),
                files: files.collect(),
            };
            (checkpoint, log_end)
        };
        // The chains in it must not know more than the log.
        self.sync(Sequence(log_end))?;
        let bytes = checkpoint.write(&self.directory)?;
        count(&self.counters.checkpoints, 1);
        count(&self.counters.checkpoint_bytes, bytes);
        Ok(checkpoint.replay_from)
    }

    /// Puts the next bases in use and returns what was before in their place, with the regions that are free
    /// now.
    fn take_over(&self, next: BTreeMap<GroupId, NextBase>) -> Vec<NextBase> {
        let mut state = self.lock();
        let mut replaced = Vec::new();
        for (group, mut next) in next {
            let Some(hosted) = state.segments.get_mut(&group) else { continue };
            let target = next.base.materialized;
            hosted.index.drop_through(target);
            hosted.indexed_through = hosted.indexed_through.max(target);
            // The old one goes back to be dropped without the lock.
            std::mem::swap(&mut hosted.base, &mut next.base);
            hosted.version += 1;
            replaced.push(next);
        }
        replaced
    }

    /// Lets go of log files before `replay_from`, oldest first, unless a peer may need them and they are not
    /// too many.
    fn free_log(&self, replay_from: LogPosition) -> Result<u64, StoreError> {
        let mut state = self.lock_to_change()?;
        let mut freed = 0;
        let mut kept_bytes = self.files.total_bytes();
        for number in self.files.numbers() {
            if number >= replay_from.file() {
                break;
            }
            let ranges = state.catalog.files.get(&number).map(|file| file.ranges.clone()).unwrap_or_default();
            let floor = |group: &GroupId| state.peer_floors.get(group).copied().unwrap_or(Lsn::ZERO);
            let needed = ranges.iter().any(|range| range.last_end > floor(&range.group));
            if needed && kept_bytes <= self.options.log_retention_bytes {
                break;
            }
            if needed {
                count(&self.counters.log_files_lost_to_peers, 1);
            }
            state.log.release(number)?;
            state.catalog.files.remove(&number);
            kept_bytes = self.files.total_bytes();
            freed += 1;
        }
        // A peer that is gone keeps many files; where the redo in them is, is read again if it comes back.
        for (_, file) in state.catalog.files.range_mut(..replay_from.file()) {
            file.entries = None;
        }
        Ok(freed)
    }
}

/// The newest state that a reader may ask for and nothing can change any more.
fn newest_durable(hosted: &HostedSegment) -> Lsn {
    hosted.segment.readable_through().min(hosted.segment.known_durable().volume.end)
}

/// Writes versions of pages to their other slots.
struct PageWriter {
    next: NextBase,
    target: Lsn,
    run: SlotRun,
    /// Written since the last sync.
    unsynced_pages: u64,
}

/// Pages written between two syncs: one sync of everything at the end would keep the disk from the log's for as
/// long.
const SYNC_EVERY_PAGES: u64 = 1024;

impl PageWriter {
    fn write(&mut self, key: &PageKey, page: &PageBytes) -> Result<(), StoreError> {
        let (first, place) = extent_of(key);
        let base = Arc::make_mut(&mut self.next.base);
        let extent = base.extents.entry(first).or_insert_with(|| {
            // Only regions that were free at the last checkpoint: those freed since are still named by it.
            let region = base.free_regions.pop().unwrap_or_else(|| {
                base.next_region += 1;
                base.next_region - 1
            });
            Arc::new(Extent { region, generations: [0; PAGES_PER_EXTENT as usize] })
        });
        let extent = Arc::make_mut(extent);
        let generation = next_generation(extent.generations[place]);
        extent.generations[place] = generation;
        let address = SlotAddress { region: extent.region, place, generation };
        self.next.files.write(&mut self.run, key, address, self.target, page)?;
        self.next.written_regions.insert(address.region);
        self.next.pages_written += 1;
        self.unsynced_pages += 1;
        if self.unsynced_pages >= SYNC_EVERY_PAGES {
            self.unsynced_pages = 0;
            self.next.files.write_run(&mut self.run)?;
            self.next.files.sync(std::iter::once(address.region))?;
        }
        Ok(())
    }

    /// Writes what is left, not yet durable.
    fn finish(mut self) -> Result<NextBase, StoreError> {
        self.next.files.write_run(&mut self.run)?;
        Ok(self.next)
    }

    fn erase(&mut self, key: &PageKey) {
        let (first, place) = extent_of(key);
        let base = Arc::make_mut(&mut self.next.base);
        let Some(extent) = base.extents.get_mut(&first) else { return };
        let extent = Arc::make_mut(extent);
        extent.generations[place] = 0;
        if extent.generations.iter().all(|&generation| generation == 0) {
            self.next.freed_regions.push(extent.region);
            base.extents.remove(&first);
        }
    }
}

/// What is different at `target` from the segment's base.
fn changes(hosted: &HostedSegment, target: Lsn) -> Changes {
    let base = Arc::clone(&hosted.base);
    let above = base.materialized;
    let index = &hosted.index;
    let mut pages: Vec<PageKey> = index.changed_pages(target).copied().collect();
    let mut forks = BTreeSet::new();
    let mut meta: BTreeSet<MetaKey> = index.changed_meta(target).cloned().collect();
    for (fork, events) in index.changed_forks(above, target) {
        forks.insert(fork);
        let gone_from = events.iter().filter_map(|(_, event)| match event {
            ForkEvent::Truncate(blocks) => Some(*blocks),
            ForkEvent::Drop => Some(0),
            ForkEvent::Create | ForkEvent::Extend(_) => None,
        });
        if let Some(from) = gone_from.min() {
            let gone =
                base.fork_extents(fork, from).flat_map(|(first, extent)| Base::pages_of(first, extent));
            pages.extend(gone.filter(|key| matches!(key, PageKey::Block(block) if block.block >= from)));
        }
    }
    for (_, database, event) in index.database_events(above, target) {
        let all = |database| {
            base.database_extents(database).flat_map(|(first, extent)| Base::pages_of(first, extent))
        };
        pages.extend(all(database));
        forks.extend(base.relations.range(crate::base::database_range(database)).map(|(fork, _)| *fork));
        forks.extend(index.fork_candidates(&base, database, target));
        if hosted.group() == META_GROUP {
            meta.insert(MetaKey::RelationMap(database));
        }
        if let DatabaseEvent::CopyOf(from) = event {
            pages.extend(all(from).filter_map(|key| match key {
                PageKey::Block(block) => Some(PageKey::Block(BlockKey {
                    relation_fork: in_database(block.relation_fork, database),
                    ..block
                })),
                PageKey::Slru { .. } => None,
            }));
        }
    }
    for kind in index.truncated_slru(above, target) {
        let key = |page| PageKey::Slru { kind, page };
        let extents = base.extents.range(key(0)..=key(u32::MAX));
        let gone = extents.flat_map(|(first, extent)| Base::pages_of(first, extent));
        pages.extend(gone.filter(|page| index.page_origin(page, target) != Origin::Base));
    }
    if hosted.group() == META_GROUP && !index.all_records(Lsn::ZERO, target).is_empty() {
        meta.insert(MetaKey::Counters);
    }
    let relations =
        forks.into_iter().map(|fork| (fork, index.relation_blocks(&base, fork, target))).collect();
    Changes { base, files: Arc::clone(&hosted.pages), pages, relations, meta }
}
