//! The watermark of free disk space, below which no redo is taken.
//!
//! A store that ran into a full disk could not write the checkpoints that let go of its log, and nothing would ever get
//! better. So it stops taking redo while there is still room for pages, checkpoints and promises, goes on serving reads,
//! and takes redo again when there is more room. Its peers and the writer have meanwhile what it lacks.

use std::sync::PoisonError;

use borealis_types::disk_room::node_watermark_bytes;
use borealis_wire::Refusal;

use crate::disk::Space;
use crate::metrics::count;
use crate::segment::state::State;
use crate::{Store, StoreError};

/// While this much is free beyond the watermark, a large entry cannot run into a full disk.
const AMPLE_BYTES: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

/// What an entry is written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Redo, which others have, too: not below the watermark.
    Redo,
    /// What a recovery or peers bring back: it may need this very node. Not below half of the watermark, for it may be much, and pages
    /// and checkpoints need room to let go of log.
    Repair,
    /// A promise or positions: little, and recoveries need it.
    Promise,
}

/// How much room the file system has.
struct Room {
    available_bytes: u64,
    /// Of these, what is above the watermark.
    above_bytes: u64,
    /// Redo is taken.
    takes_redo: bool,
    /// What others bring back is taken.
    takes_repair: bool,
    /// A large entry might run into a full disk.
    is_tight: bool,
}

/// Below how many free bytes no redo is taken, and from how many on it is taken again.
fn watermark(configured: Option<u64>, space: Space) -> (u64, u64) {
    let stop = configured.unwrap_or_else(|| node_watermark_bytes(space.size_bytes));
    (stop, stop.saturating_add(stop / 4))
}

impl Store {
    /// Looks how much room the file system has, and returns whether redo is taken. To be called from time to time: it is
    /// how the store notices that there is room again.
    pub fn check_space(&self) -> bool {
        self.look_at_space().takes_redo
    }

    /// Looks how much room there is, and notes whether it is too little for redo.
    fn look_at_space(&self) -> Room {
        let space = match self.directory.disk().space(self.directory.root()) {
            Ok(space) => space,
            Err(error) => {
                tracing::debug!(%error, "cannot see how much room the disk has");
                let takes_redo = self.takes_redo();
                let (takes_repair, is_tight) = (true, true);
                return Room { available_bytes: 0, above_bytes: 0, takes_redo, takes_repair, is_tight };
            }
        };
        let (stop, resume) = watermark(self.options.free_space_min_bytes, space);
        let mut hindrances = self.hindrances.lock().unwrap_or_else(PoisonError::into_inner);
        let was_full = hindrances.full.is_some();
        let is_full = space.available_bytes < if was_full { resume } else { stop };
        let node = self.identity.node;
        hindrances.full = is_full.then(|| {
            format!(
                "node {node} takes no redo: {} MiB of disk are free where {} are kept free; make room in {}, and it \
                 goes on by itself",
                space.available_bytes / MIB,
                if was_full { resume } else { stop } / MIB,
                self.directory.root().display()
            )
        });
        match (&hindrances.full, was_full) {
            (Some(why), false) => tracing::warn!("{why}"),
            (None, true) => {
                tracing::info!(free_mib = space.available_bytes / MIB, "takes redo again: there is room")
            }
            _ => {}
        }
        let available_bytes = space.available_bytes;
        Room {
            available_bytes,
            above_bytes: available_bytes.saturating_sub(stop),
            takes_redo: !is_full,
            takes_repair: available_bytes >= stop / 2,
            is_tight: available_bytes < stop.saturating_add(AMPLE_BYTES),
        }
    }

    /// What may still be written before no more redo is taken, in bytes; zero when that cannot be seen.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.look_at_space().above_bytes
    }

    /// Whether so much room is free that a file can be filled ahead.
    pub(crate) fn has_ample_space(&self) -> bool {
        !self.look_at_space().is_tight
    }

    /// Whether redo is taken: the disk had room when it was last looked at.
    #[must_use]
    pub fn takes_redo(&self) -> bool {
        self.hindrances.lock().unwrap_or_else(PoisonError::into_inner).full.is_none()
    }

    /// Why redo is not taken now, as a refusal.
    ///
    /// # Errors
    /// [`Refusal::NotNow`] while it is not.
    pub fn check_takes_redo(&self) -> Result<(), Refusal> {
        let hindrances = self.hindrances.lock().unwrap_or_else(PoisonError::into_inner);
        hindrances.full.clone().map_or(Ok(()), |why| Err(Refusal::NotNow(why)))
    }

    /// What hinders the store for now, if anything: a disk that is nearly full, or an error of the system during the last
    /// round of materialization. It keeps its promises and answers reads.
    #[must_use]
    pub fn hindrance(&self) -> Option<String> {
        let hindrances = self.hindrances.lock().unwrap_or_else(PoisonError::into_inner);
        hindrances.full.clone().or_else(|| hindrances.round.clone())
    }

    /// Notes how a round of materialization ended. An error of the system passes with its cause: the next round writes
    /// everything again that this one wrote, so nothing is built on what may be lost.
    pub(crate) fn note_round(&self, error: Option<&StoreError>) {
        let why = error.filter(|error| matches!(error, StoreError::Io { .. })).map(|error| {
            format!("node {} could not apply redo to pages and tries again: {error}", self.identity.node)
        });
        if let Some(why) = &why {
            count(&self.counters.rounds_abandoned, 1);
            tracing::error!("{why}");
        }
        self.hindrances.lock().unwrap_or_else(PoisonError::into_inner).round = why;
    }

    /// Refuses an append that would need a round, when the last one failed: whoever materializes tries again in its own
    /// time, and a whole round for each append would keep the disk from recovering.
    pub(crate) fn refuse_while_rounds_fail(&self) -> Result<(), Refusal> {
        let hindrances = self.hindrances.lock().unwrap_or_else(PoisonError::into_inner);
        hindrances.round.clone().map_or(Ok(()), |why| Err(Refusal::NotNow(why)))
    }

    /// Why not even what others bring back is taken.
    fn no_repair(&self, room: &Room) -> Refusal {
        Refusal::NotNow(format!(
            "node {} has no room for what others bring back: {} MiB of disk are free; make room in {}",
            self.identity.node,
            room.available_bytes / MIB,
            self.directory.root().display()
        ))
    }

    /// Makes room in the log for an entry with a payload of at most `payload_bytes`, before anything is changed that it is
    /// about.
    ///
    /// # Errors
    /// [`Refusal::NotNow`] when there is no room or no descriptor now, [`StoreError::Poisoned`] when a sync failed.
    pub(crate) fn reserve(
        &self,
        state: &mut State,
        payload_bytes: usize,
        purpose: Purpose,
    ) -> Result<(), StoreError> {
        let mut is_tight = false;
        if state.log.would_grow(payload_bytes) {
            let room = self.look_at_space();
            is_tight = room.is_tight;
            match purpose {
                Purpose::Redo if !room.takes_redo => self.check_takes_redo()?,
                Purpose::Repair if !room.takes_repair => return Err(self.no_repair(&room).into()),
                _ => {}
            }
        } else if purpose == Purpose::Redo {
            self.check_takes_redo()?;
        }
        state.log.reserve(payload_bytes, is_tight).map_err(|error| match error {
            StoreError::Io { .. } => Refusal::NotNow(error.to_string()).into(),
            error => self.poisoned(&error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_is_a_gibibyte_or_a_twentieth_and_it_takes_more_to_go_on() {
        let of = |size_bytes| Space { available_bytes: 0, size_bytes };
        assert_eq!(watermark(None, of(1 << 40)), (1 << 30, (1 << 30) + (1 << 28)));
        assert_eq!(watermark(None, of(200 * MIB)), (10 * MIB, 10 * MIB + 10 * MIB / 4));
        assert_eq!(watermark(Some(80), of(1 << 40)), (80, 100));
        assert_eq!(watermark(Some(0), of(0)), (0, 0), "none");
    }
}
