//! A volume's log out of its backup: every record that the history kept, in the order of the log, each once.
//!
//! Redo objects have the records of one group; a record of several groups is in the objects of each. What puts them together is what a restore
//! uses (`restore/merge.rs`), and no snapshot is needed: redo alone has the log. Memory is bounded by the objects that are read ahead.
//!
//! Each group's chain is followed, so that nothing is missing of any. Whoever makes pages of the records (`borealis_wal::volume_log`) sees the
//! volume's chain as well: each names the one before it and begins where that ends.
//!
//! A damaged object is passed over if others have what it had: records that were handed out before are not handed out again.

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::name::Name;
use borealis_archive::plan::{RedoMissing, plan_log};
use borealis_archive::sealing::Sealing;
use borealis_types::{Lsn, VolumeEpoch};
use borealis_wire::BatchRecord;

use crate::contents::Contents;
use crate::restore::fetch::Fetching;
use crate::restore::merge::{Beginning, Merge, Take};
use crate::restore::{Ended, RestoreError, cannot_start};
use crate::store::ObjectStore;

/// Why a log cannot be read from a backup.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not all of it is there.
    #[error(transparent)]
    Missing(#[from] RedoMissing),
    /// Without an object that is damaged it is not all there.
    #[error("{object} {fault}; without it, {missing}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        fault: String,
        /// What is missing then.
        missing: RedoMissing,
    },
    /// The store of the backup does not answer, or what it has contradicts itself.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Why a pass over the log ended: what reading it says, or whoever takes the records.
enum Stopped<E> {
    Reading(Ended),
    Taking(E),
}

impl<E> From<Ended> for Stopped<E> {
    fn from(ended: Ended) -> Stopped<E> {
        Stopped::Reading(ended)
    }
}

/// Hands out every record of the volume that ends after `from`, at or before `through`, and that no recovery cut, in the order of
/// the log, with the epoch it was written in. A long record comes in pieces, as it was shipped. Returns the end of the last one; `from`
/// if there is none.
///
/// # Errors
/// When not all of it is there and sound; or what `take` returns. What was handed out before is right all the same.
pub fn for_each_record<E: From<LogError>>(
    objects: &dyn ObjectStore,
    contents: &Contents,
    sealing: &Sealing,
    from: Lsn,
    through: Lsn,
    mut take: impl FnMut(VolumeEpoch, &BatchRecord<'_>) -> Result<(), E>,
) -> Result<Lsn, E> {
    let mut spoilt: BTreeMap<Name, String> = BTreeMap::new();
    let mut usable = contents.inventory.clone();
    let mut at = from;
    let mut groups = plan_log(&usable, &contents.known, at, through).map_err(LogError::from)?;
    loop {
        let beginnings = groups.iter().map(|plan| Beginning::of_log(plan, at));
        let merge = Merge::new(contents.volume, &usable, beginnings);
        let mut reached = at;
        let ended = pass(objects, contents, sealing, merge, &mut |epoch, record| {
            take(epoch, record).map_err(Stopped::Taking)?;
            reached = record.span.end;
            Ok(())
        });
        at = reached;
        let (name, fault) = match ended {
            Ok(()) => return Ok(at),
            Err(Stopped::Taking(error)) => return Err(error),
            Err(Stopped::Reading(Ended::Failed(error))) => return Err(LogError::from(error).into()),
            Err(Stopped::Reading(Ended::Spoilt(name, fault))) => (name, fault),
        };
        let object = name.key(contents.volume);
        tracing::warn!(object, fault, "a damaged object of a backup is passed over, if that is possible");
        spoilt.insert(name, fault.clone());
        let names: BTreeSet<Name> = spoilt.keys().cloned().collect();
        usable = contents.inventory.without(&names);
        groups = plan_log(&usable, &contents.known, at, through).map_err(|missing| LogError::Damaged {
            object,
            fault,
            missing,
        })?;
    }
}

/// Takes the records of a plan's objects until one of them is no good.
fn pass<E>(
    objects: &dyn ObjectStore,
    contents: &Contents,
    sealing: &Sealing,
    mut merge: Merge,
    take: &mut Take<'_, Stopped<E>>,
) -> Result<(), Stopped<E>> {
    let fetching = Fetching::new(objects, contents.volume, sealing, merge.in_order());
    std::thread::scope(|scope| {
        let waiting = fetching.start(scope).map_err(|error| Ended::Failed(cannot_start(error)));
        let mut waiting = waiting?;
        while merge.step(&mut waiting, take)? {}
        Ok(())
    })
}
