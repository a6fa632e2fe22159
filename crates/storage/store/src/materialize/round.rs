//! One round: each segment goes from its materialized state to a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use borealis_types::{GroupId, Lsn, PageKey};
use borealis_wire::Refusal;

use crate::materialize::Progress;
use crate::materialize::changes::changes;
use crate::materialize::pace::PIECE_PAGES;
use crate::materialize::page_writer::{NextState, PageWriter};
use crate::metrics::count;
use crate::pages::materialized_state::extent_of;
use crate::read::Overtaken;
use crate::read::hold::{RoundPage, is_corrupt, is_damage};
use crate::segment::index::relations::DatabaseEvent;
use crate::{Policy, Store, StoreError};

impl Store {
    /// The target of each segment that can advance.
    pub(super) fn targets(&self) -> Vec<(GroupId, Lsn)> {
        let mut state = self.lock();
        let mut targets = Vec::new();
        for hosted in state.segments.values_mut() {
            let (materialized, target) = (hosted.materialized.lsn, hosted.materialization_target());
            let copies = hosted.index.relations.database_events(materialized, target);
            let copy = copies
                .filter(|(.., event)| matches!(event, DatabaseEvent::CopyOf(_)))
                .map(|(at, ..)| at)
                .next();
            let target = match copy.map(|at| (at, hosted.outside_records(Lsn(at.0 - 1)))) {
                // First everything before the copy, then the copy alone.
                Some((_, before)) if materialized < before => before,
                Some((at, _)) => at,
                None => target,
            };
            hosted.materializing_to = target;
            let mends = !hosted.is_refilling && !hosted.pages_to_mend(target).is_empty();
            if target > materialized || mends {
                targets.push((hosted.group(), target));
            }
        }
        targets
    }

    /// Approximate amount of work for each group; only the proportions mean something.
    pub(crate) fn work_of(&self, targets: &[(GroupId, Lsn)]) -> Vec<f64> {
        let state = self.lock();
        let of = |group| state.segments.get(group).map_or(0, |hosted| hosted.index.work());
        targets.iter().map(|(group, _)| of(group) as f64).collect()
    }

    pub(super) fn round(&self, targets: &[(GroupId, Lsn)], policy: Policy) -> Result<Progress, StoreError> {
        let mut next = BTreeMap::new();
        let at_start = self.backlog().share(&self.options);
        let parts = self.work_of(targets);
        let whole = parts.iter().sum::<f64>().max(1.0);
        let mut part_done = 0.0;
        let mut unread = None;
        for (&(group, target), part) in targets.iter().zip(parts) {
            let keep_pace = |share: f64| {
                if policy == Policy::IfDue {
                    self.keep_pace((part_done + share * part) / whole, at_start);
                }
            };
            match self.next_state(group, target, keep_pace) {
                Ok(Some(materialized)) => {
                    next.insert(group, materialized);
                }
                Ok(None) => return Ok(Progress::default()),
                // It left, and its pages are nobody's.
                Err(StoreError::Refused(Refusal::NoSegment(_))) => {}
                // The segment has noted the failure, and its next target is below the failed record.
                Err(StoreError::Redo { .. }) => {}
                // The segment stays where it is until the damage is repaired. Others go on.
                Err(error) if is_corrupt(&error) => self.note_stalled(group, &error),
                // This round is none for the segment. The disk may read it the next time, or peers bring it.
                Err(error) if is_damage(&error) => unread = Some(error),
                Err(error) => return Err(error),
            }
            part_done += part;
        }
        if next.is_empty() {
            return unread.map_or(Ok(Progress::default()), Err);
        }
        for materialized in next.values_mut() {
            materialized.sync()?;
        }
        let replay_from = self.write_checkpoint(&next)?;
        let pages_written = next.values().map(|materialized| materialized.pages_written).sum();
        count(&self.counters.pages_written, pages_written);
        count(&self.counters.pages_moved, next.values().map(|materialized| materialized.pages_moved).sum());
        for replaced in self.publish_states(next) {
            replaced.files.punch(replaced.freed_regions);
        }
        let log_files_freed = match self.release_log(replay_from) {
            Ok(freed) => freed,
            Err(error @ StoreError::Io { .. }) => {
                tracing::warn!(node = self.identity.node.0, %error, "log that nobody needs is kept until the next round");
                0
            }
            Err(error) => return Err(error),
        };
        unread.map_or(Ok(Progress { advanced: true, pages_written, log_files_freed }), Err)
    }

    /// Makes and writes everything that changes up to `target`. `None` if the round was abandoned. Calls
    /// `keep_pace` after each piece with the share of the pages that is done.
    fn next_state(
        &self,
        group: GroupId,
        target: Lsn,
        keep_pace: impl Fn(f64),
    ) -> Result<Option<NextState>, StoreError> {
        let (mut changes, mut in_trouble) = {
            let state = self.lock();
            let hosted = Store::hosted(&state, group)?;
            if hosted.materializing_to != target {
                // It left since the target was set, and came again.
                return Err(Refusal::NoSegment(group).into());
            }
            let mut changes = changes(hosted, target);
            changes.pages.extend(hosted.pages_to_mend(target));
            let troubles = &hosted.troubles;
            let in_trouble: BTreeSet<PageKey> =
                troubles.pages.keys().chain(troubles.healed.keys()).copied().collect();
            (changes, in_trouble)
        };
        changes.files.begin_round();
        changes.pages.sort_unstable();
        changes.pages.dedup();
        in_trouble.retain(|key| changes.pages.binary_search(key).is_ok());
        let mut writer = PageWriter::new(&changes.materialized, &changes.files, target, in_trouble);
        for (at, key) in changes.pages.iter().enumerate() {
            if at > 0 && at % PIECE_PAGES == 0 {
                keep_pace(at as f64 / changes.pages.len() as f64);
                if self.maintenance.has_ended() {
                    return Ok(None);
                }
            }
            let last = last_in_extent(&changes.pages, at);
            let written = match self.page_of_round(group, key, target)? {
                RoundPage::Made(page) => writer.put(key, last, page.as_deref()),
                RoundPage::Held(held, image) => {
                    self.check_quarantine(group, key, &held, &writer)?;
                    writer.hold(key, last, held, &image)
                }
            };
            if let (Err(error), Some(unread)) = (&written, writer.unread) {
                self.note_unread(group, &unread, error);
            }
            written?;
        }
        let mut next = writer.next;
        let materialized = Arc::make_mut(&mut next.materialized);
        for (fork, blocks) in changes.relations {
            match blocks {
                Some(blocks) => materialized.relations.insert(fork, blocks),
                None => materialized.relations.remove(&fork),
            };
        }
        for key in changes.meta {
            let value =
                self.meta_version(&key, target, Overtaken::Fail, &|state| Store::hosted(state, group))?;
            match value {
                Some(value) => materialized.meta.insert(key, value),
                None => materialized.meta.remove(&key),
            };
        }
        materialized.lsn = target;
        // Freed regions become available to the next round only: by then the checkpoint that no longer names
        // them is durable, their space is freed, and readers have noticed the new version.
        materialized.regions.release(&next.freed_regions);
        Ok(Some(next))
    }
}

/// The last page of the same extent as the page at `at`, in a sorted list.
fn last_in_extent(pages: &[PageKey], at: usize) -> &PageKey {
    let (first, _) = extent_of(&pages[at]);
    let count = pages[at..].iter().take_while(|key| extent_of(key).0 == first).count();
    &pages[at + count - 1]
}
