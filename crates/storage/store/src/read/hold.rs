//! What happens when a version cannot be made: what is noted, and how a round keeps a page that it leaves behind.

use std::collections::btree_map::Entry;

use borealis_types::{EpochHistory, GroupId, Lsn, PAGE_SIZE, PageBytes, PageKey};
use borealis_wal::Record;
use nix::libc::{EBADMSG, EILSEQ, EIO, ENODATA, EUCLEAN};

use super::{MakeError, Overtaken, PageRecipe, Source, Subject, check_steps};
use crate::log::record_reader::RecordReader;
use crate::pages::held::{HeldPage, HeldStep};
use crate::segment::hosted::release_of;
use crate::segment::state::State;
use crate::segment::trouble::{Cause, Trouble};
use crate::{Store, StoreError};

/// Most bytes of why a page is damaged that a checkpoint keeps.
const REASON_BYTES_MAX: usize = 1024;

/// A page as a round writes it.
pub(crate) enum RoundPage {
    /// As of the target; `None` if it does not exist then.
    Made(Option<Box<PageBytes>>),
    /// It could not be made. The image is what its slot shall have.
    Held(HeldPage, Box<PageBytes>),
}

/// Notes why a version could not be made, and returns the error for whoever asked for it.
pub(super) fn note_failure(
    state: &mut State,
    group: GroupId,
    subject: Subject<'_>,
    error: MakeError,
) -> StoreError {
    // If the disk was not asked at all, nothing is known of what is on it.
    if let MakeError::Damaged { record: Some(reference), error } = &error
        && is_damage(error)
    {
        state.note_damaged_record(reference, error);
    }
    let Some(hosted) = state.segments.get_mut(&group) else {
        return borealis_wire::Refusal::NoSegment(group).into();
    };
    match (subject, error) {
        (Subject::Page(key), MakeError::Redo { lsn, reason }) => {
            hosted.note_trouble(key, Trouble { cause: Cause::Redo, since: lsn, reason: reason.clone() });
            StoreError::RedoOfPage { group, key: *key, lsn, reason }
        }
        (Subject::Page(key), MakeError::Damaged { record, error }) if is_damage(&error) => {
            let since = record.map_or(hosted.materialized.lsn, |reference| reference.span.end);
            hosted.note_trouble(key, Trouble { cause: Cause::Damage, since, reason: error.to_string() });
            error
        }
        (Subject::Meta, MakeError::Redo { lsn, reason }) => {
            hosted.fail(lsn, lsn, reason.clone());
            StoreError::Redo { group, lsn, reason }
        }
        (_, MakeError::Damaged { error, .. }) => error,
    }
}

/// Whether bytes on disk are not what was written: asking again does not help.
pub(crate) fn is_corrupt(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt { .. })
}

/// Whether an error may say that bytes on disk are lost, so that peers are asked for them. What a disk could not read it
/// may read the next time, so nothing is given up for that alone: see [`is_corrupt`]. And without a descriptor, for
/// example, the disk was not asked at all.
pub(crate) fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } => true,
        StoreError::Io { operation: "read", source, .. } => {
            matches!(source.raw_os_error(), Some(EIO | ENODATA | EILSEQ | EBADMSG | EUCLEAN))
        }
        _ => false,
    }
}

impl Store {
    /// A page as a round through `target` writes it. Neither damage nor failing redo of one page ends the round; a failed
    /// read does, for it may pass, and a page that is held as damaged is lost here.
    pub(crate) fn page_of_round(
        &self,
        group: GroupId,
        key: &PageKey,
        target: Lsn,
    ) -> Result<RoundPage, StoreError> {
        let made =
            self.page_version(group, key, target, Overtaken::Fail, &|state| Store::hosted(state, group));
        let made = match made {
            Err(StoreError::RedoOfPage { lsn, reason, .. }) => {
                return match self.hold_before(group, key, target, lsn, &reason) {
                    Ok((held, page)) => Ok(RoundPage::Held(held, page)),
                    Err(error) if is_corrupt(&error) => Ok(self.damaged(group, key, &error)),
                    Err(error) => Err(error),
                };
            }
            made => made,
        };
        match made {
            Ok(page) => Ok(RoundPage::Made(page)),
            Err(error) if is_corrupt(&error) => Ok(self.damaged(group, key, &error)),
            Err(error) => Err(error),
        }
    }

    /// A page that only peers know. Its slot gets zeros, so that the damage is not found there again.
    fn damaged(&self, group: GroupId, key: &PageKey, error: &StoreError) -> RoundPage {
        let known = {
            let state = self.lock();
            let hosted = state.segments.get(&group);
            hosted.and_then(|hosted| hosted.materialized.held.get(key).cloned())
        };
        // What was found first stays the reason: to quote it again in every round would have no end.
        let held = known.filter(|held| matches!(held, HeldPage::Damaged { .. }));
        let held = held.unwrap_or_else(|| {
            let mut reason = error.to_string();
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            HeldPage::Damaged { reason }
        });
        RoundPage::Held(held, Box::new([0; PAGE_SIZE]))
    }

    /// A page as it was before the record that ends at `failed`, and the records from that one through `target`.
    fn hold_before(
        &self,
        group: GroupId,
        key: &PageKey,
        target: Lsn,
        failed: Lsn,
        reason: &str,
    ) -> Result<(HeldPage, Box<PageBytes>), StoreError> {
        self.consistent(
            group,
            Subject::Page(key),
            Overtaken::Fail,
            || {
                let state = self.lock();
                Ok(self.page_recipe(Store::hosted(&state, group)?, key, target))
            },
            |recipe| recipe.version,
            |recipe| {
                let (page, steps) = self.split_recipe(recipe, failed)?;
                let existed = page.is_some();
                let held = HeldPage::Failed { reason: reason.to_owned(), existed, steps };
                Ok((held, page.unwrap_or_else(|| Box::new([0; PAGE_SIZE]))))
            },
        )
    }

    /// Makes a page through the last record before `failed`, and collects the records after that.
    fn split_recipe(
        &self,
        recipe: &PageRecipe,
        failed: Lsn,
    ) -> Result<(Option<Box<PageBytes>>, Vec<HeldStep>), MakeError> {
        let mut steps = Vec::new();
        let mut page = match &recipe.source {
            Source::Held { held: HeldPage::Failed { existed, steps: kept, .. }, slot } => {
                let mut page = self.first_version(slot, &recipe.history)?.filter(|_| *existed);
                for step in kept {
                    if step.span.end < failed {
                        let record = self.parse_kept(&recipe.history, step).map_err(MakeError::in_image)?;
                        self.apply(&record, &step.key, &mut page)?;
                    } else {
                        steps.push(step.clone());
                    }
                }
                page
            }
            source => self.first_version(source, &recipe.history)?,
        };
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (key, reference)) in recipe.steps.iter().enumerate() {
            let bytes = self.step_bytes(&mut reader, &recipe.pieces, &recipe.steps[at..]);
            let bytes = bytes.map_err(MakeError::in_record(reference))?;
            let bytes = bytes.as_ref();
            let record = self.parse(&recipe.history, reference, bytes);
            let record = record.map_err(MakeError::in_record(reference))?;
            if reference.span.end < failed {
                self.apply(&record, key, &mut page)?;
            } else {
                steps.push(HeldStep { key: *key, span: reference.span, bytes: bytes.to_vec() });
            }
        }
        Ok((page, steps))
    }

    /// Verifies and parses a record that a held page kept.
    pub(super) fn parse_kept<'a>(
        &self,
        history: &EpochHistory,
        step: &'a HeldStep,
    ) -> Result<Record<'a>, StoreError> {
        let place = || format!("the record kept for page {} at {}", step.key, step.span.start);
        let damaged = |error: borealis_wal::RecordError| StoreError::corrupt(place(), error.to_string());
        self.environment.redo.verify(&step.bytes, step.span.start).map_err(damaged)?;
        Record::parse(release_of(history, step.span), step.span, &step.bytes).map_err(damaged)
    }
}

impl State {
    /// Notes that a record cannot be read back from the log.
    fn note_damaged_record(&mut self, reference: &crate::log::position::RecordRef, error: &StoreError) {
        let Some(location) = self.batch_locations.containing(reference.position) else { return };
        self.note_damaged_entry(location.position, error);
    }

    /// Notes that the entry whose payload is at `position` is damaged.
    pub(crate) fn note_damaged_entry(
        &mut self,
        position: crate::log::position::LogPosition,
        error: &StoreError,
    ) {
        if let Entry::Vacant(entry) = self.damaged_entries.entry(position) {
            tracing::error!(file = position.file(), offset = position.offset(), %error, "a log entry is damaged");
            entry.insert(error.to_string());
        }
    }
}
