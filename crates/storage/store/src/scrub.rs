//! Reading everything once in a while, so that damage is found while peers still have good copies.
//!
//! A pass reads every page slot that the materialized states name, then every entry of the log. It changes nothing: what
//! it finds is noted where reads note it, and repaired the same way. Bytes that the operating system has in memory are
//! read from there, so damage below it is found when they have left its cache.

use std::ops::Bound;
use std::sync::Arc;

use borealis_types::{GroupId, PageKey};

use crate::log::entry::{ENTRY_HEADER_BYTES, file_seed};
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};
use crate::log::scan::{Checked, check_entry};
use crate::metrics::count;
use crate::pages::held::HeldPage;
use crate::pages::materialized_state::{MaterializedState, SlotAddress, extent_of};
use crate::pages::page_files::{PageFiles, SLOT_BYTES};
use crate::read::hold::is_damage;
use crate::segment::trouble::{Cause, Trouble};
use crate::{Store, StoreError};

/// Pages looked up under the lock at a time.
const PAGES_AT_ONCE: usize = 64;

/// Where the scrubber is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrubCursor(Stage);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// The pages of a group after a key.
    Pages { group: GroupId, after: Option<PageKey> },
    /// The log from a position on.
    Log { from: LogPosition },
}

impl Default for ScrubCursor {
    fn default() -> ScrubCursor {
        ScrubCursor(Stage::Pages { group: GroupId(0), after: None })
    }
}

/// What a piece of scrubbing did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Bytes that were read and checked.
    pub bytes: u64,
    /// Everything has been read; the next piece begins anew.
    pub pass_ended: bool,
}

/// A page slot to check.
struct Slot {
    key: PageKey,
    address: SlotAddress,
}

impl Store {
    /// About how many bytes a pass reads.
    #[must_use]
    pub fn scrub_bytes(&self) -> u64 {
        let materialized: Vec<Arc<MaterializedState>> = {
            let state = self.lock();
            state.segments.values().map(|hosted| Arc::clone(&hosted.materialized)).collect()
        };
        let pages = |state: &Arc<MaterializedState>| -> u64 {
            let present = |generations: &[u8]| generations.iter().filter(|one| **one != 0).count() as u64;
            state.extents.values().map(|extent| present(&extent.generations)).sum()
        };
        materialized.iter().map(pages).sum::<u64>() * SLOT_BYTES as u64 + self.files.total_bytes()
    }

    /// Reads and checks about `budget_bytes` from where the cursor stands, and moves it.
    ///
    /// # Errors
    /// When the disk cannot be asked. Damage is no error: it is noted, for [`Store::damage`].
    pub fn scrub(&self, cursor: &mut ScrubCursor, budget_bytes: u64) -> Result<Scrubbed, StoreError> {
        let mut done = Scrubbed::default();
        while done.bytes < budget_bytes && !done.pass_ended && !self.maintenance.has_ended() {
            let (bytes, next) = match cursor.0.clone() {
                Stage::Pages { group, after } => self.scrub_pages(group, after)?,
                Stage::Log { from } => self.scrub_log(from, budget_bytes - done.bytes)?,
            };
            done.bytes += bytes;
            done.pass_ended = next.is_none();
            *cursor = next.map(ScrubCursor).unwrap_or_default();
        }
        count(&self.counters.scrubbed_bytes, done.bytes);
        count(&self.counters.scrub_passes, u64::from(done.pass_ended));
        Ok(done)
    }

    /// Checks the next pages of a group, or of the first one after it that is here.
    fn scrub_pages(
        &self,
        group: GroupId,
        after: Option<PageKey>,
    ) -> Result<(u64, Option<Stage>), StoreError> {
        let (group, version, materialized, files) = {
            let state = self.lock();
            let Some((&found, hosted)) = state.segments.range(group..).next() else {
                return Ok((0, Some(Stage::Log { from: LogPosition(0) })));
            };
            (found, hosted.version, Arc::clone(&hosted.materialized), Arc::clone(&hosted.pages))
        };
        let slots = slots_after(&materialized, after);
        for slot in &slots {
            self.check_slot(group, version, &materialized, &files, slot)?;
        }
        let next = match slots.last() {
            Some(last) => Stage::Pages { group, after: Some(last.key) },
            None => Stage::Pages { group: GroupId(group.0 + 1), after: None },
        };
        Ok((slots.len() as u64 * SLOT_BYTES as u64, Some(next)))
    }

    fn check_slot(
        &self,
        group: GroupId,
        version: u64,
        materialized: &MaterializedState,
        files: &PageFiles,
        slot: &Slot,
    ) -> Result<(), StoreError> {
        let read = match materialized.held.get(&slot.key) {
            Some(HeldPage::Damaged { reason }) => {
                Err(StoreError::corrupt("what a page was made from", reason.clone()))
            }
            _ => files.read(&slot.key, slot.address, materialized.lsn).map(|_| ()),
        };
        let error = match read {
            Ok(()) => return Ok(()),
            Err(error) if is_damage(&error) => error,
            Err(error) => return Err(error),
        };
        // Rounds write slots that the state of before named. The next pass comes to the page again.
        let mut state = self.lock();
        if let Some(hosted) = state.segments.get_mut(&group)
            && hosted.version == version
        {
            let trouble =
                Trouble { cause: Cause::Damage, since: materialized.lsn, reason: error.to_string() };
            hosted.note_trouble(&slot.key, trouble);
        }
        Ok(())
    }

    /// Checks the entries of one log file, or a part of them.
    fn scrub_log(&self, from: LogPosition, budget_bytes: u64) -> Result<(u64, Option<Stage>), StoreError> {
        // What is not durable may be half written.
        let durable = self.commit.durable();
        let Some(number) = self.files.numbers().into_iter().find(|number| *number >= from.file()) else {
            return Ok((0, None));
        };
        let Some(file) = self.files.get(number) else { return Ok((0, None)) };
        let seed = file_seed(self.seal, number);
        let start = if number == from.file() {
            from.offset().max(FILE_HEADER_BYTES as u32)
        } else {
            FILE_HEADER_BYTES as u32
        };
        let mut offset = start;
        while u64::from(offset - start) < budget_bytes && LogPosition::new(number, offset) < durable {
            match check_entry(&file, seed, offset)? {
                Checked::Whole { next } => offset = next,
                // After the last entry of a file there is none.
                Checked::End => return Ok((u64::from(offset - start), Some(next_file(number)))),
                Checked::Damaged { next } => {
                    if self.files.get(number).is_none() {
                        break; // It was released meanwhile, and may be another file by now.
                    }
                    let position = LogPosition::new(number, offset).plus(ENTRY_HEADER_BYTES);
                    let place = format!("{} at offset {offset}", file.path.display());
                    let error = StoreError::corrupt(place, "an entry is damaged");
                    self.lock().note_damaged_entry(position, &error);
                    offset = next;
                }
            }
        }
        let read = u64::from(offset - start);
        if LogPosition::new(number, offset) >= durable {
            return Ok((read, None));
        }
        Ok((read, Some(Stage::Log { from: LogPosition::new(number, offset) })))
    }
}

fn next_file(number: u32) -> Stage {
    Stage::Log { from: LogPosition::new(number + 1, 0) }
}

/// The next pages that have a slot, in key order.
fn slots_after(materialized: &MaterializedState, after: Option<PageKey>) -> Vec<Slot> {
    let from = after.map_or(Bound::Unbounded, |key| Bound::Included(extent_of(&key).0));
    let mut slots = Vec::new();
    for (first, extent) in materialized.extents.range((from, Bound::Unbounded)) {
        for key in MaterializedState::pages_of(first, extent) {
            if after.is_some_and(|after| key <= after) {
                continue;
            }
            let Some(address) = materialized.locate(&key) else { continue };
            slots.push(Slot { key, address });
        }
        if slots.len() >= PAGES_AT_ONCE {
            break;
        }
    }
    slots
}
