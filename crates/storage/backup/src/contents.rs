//! Reading what a backup has, proving it, and deleting what nobody can need: decisions are `borealis_archive`'s, this asks the store.

use std::collections::BTreeMap;

use borealis_archive::FormatError;
use borealis_archive::history;
use borealis_archive::inventory::Inventory;
use borealis_archive::known::Known;
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::{MarksName, Name};
use borealis_archive::ranges::LsnRanges;
use borealis_archive::restorable::restorable;
use borealis_archive::retention::Phases;
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::{self, VolumeFacts};
use borealis_archive::verify::{Report, Verification};
use borealis_types::{EpochHistory, Lsn, VolumeId};

use crate::store::{ErrorKind, ObjectStore, ObjectStoreError, inventory};

/// What is there of one volume, and what must be known to decide anything about it.
#[derive(Debug)]
pub struct Contents {
    /// The volume.
    pub volume: VolumeId,
    /// What it is.
    pub facts: VolumeFacts,
    /// Every object.
    pub inventory: Inventory,
    /// The history, and the marks of each list that could be read.
    pub known: Known,
}

/// Why a backup cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] ObjectStoreError),
    /// An object without which nothing can be decided is damaged. With an older history, what a recovery cut would count.
    #[error("{name} {error}; without it nothing of this backup can be restored")]
    Object {
        /// The object.
        name: String,
        /// What is wrong with it.
        error: FormatError,
    },
    /// There is no backup of this volume.
    #[error("there is no backup of volume {0}")]
    Nothing(VolumeId),
}

/// Volumes that a store has a backup of, in order.
///
/// # Errors
/// When the store does not say.
pub fn volumes(store: &dyn ObjectStore) -> Result<Vec<VolumeId>, ObjectStoreError> {
    let mut found: Vec<VolumeId> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let part = store.list("", after.as_deref())?;
        let names = part.objects.iter().filter_map(|object| Name::of_key(&object.key).ok());
        found.extend(names.map(|(volume, _)| volume));
        found.dedup();
        match part.objects.last() {
            // On to the next folder: nothing in a name comes after a tilde.
            Some(last) if part.more => {
                let folder = last.key.split_once('/').map_or(last.key.as_str(), |(folder, _)| folder);
                after = Some(format!("{folder}/~"));
            }
            _ => return Ok(found),
        }
    }
}

/// The newest point that can be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewestPoint {
    /// Its position.
    pub lsn: Lsn,
    /// When the volume had reached it, or not more than it, in milliseconds since 1970; zero if no mark says it.
    pub clock_ms: u64,
}

impl Contents {
    /// To which points the volume can be restored, if nothing is damaged. The volume's beginning, which is nothing, is none of them.
    #[must_use]
    pub fn restorable(&self) -> LsnRanges {
        let all = restorable(&self.inventory, &self.known);
        let ranges = all.ranges().iter().filter(|range| range.through > Lsn::ZERO);
        ranges.copied().collect()
    }

    /// The newest point that can be restored; `None` if there is none.
    #[must_use]
    pub fn newest(&self) -> Option<NewestPoint> {
        let lsn = self.restorable().ranges().last()?.through;
        let reached = self.known.admitted_marks().map(|(_, mark)| mark).filter(|mark| mark.durable <= lsn);
        Some(NewestPoint { lsn, clock_ms: reached.map(|mark| mark.clock_ms).max().unwrap_or(0) })
    }

    /// How many bytes all objects have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inventory.objects().map(|(_, stored)| stored.bytes).sum()
    }
}

/// Reads what is there of a volume.
///
/// # Errors
/// When the store does not answer, or the descriptor or the newest history is missing or damaged.
pub fn read(store: &dyn ObjectStore, volume: VolumeId, sealing: &Sealing) -> Result<Contents, ReadError> {
    let inventory = inventory(store, volume)?;
    if inventory.objects().next().is_none() {
        return Err(ReadError::Nothing(volume));
    }
    let get = |name: &Name| store.get(&name.key(volume));
    let damaged = |name: &Name| {
        let name = name.to_string();
        move |error| ReadError::Object { name, error }
    };
    let facts: VolumeFacts =
        settings::decode(&get(&Name::Volume)?, volume, sealing).map_err(damaged(&Name::Volume))?;
    let known = Known {
        placement: facts.placement,
        history: read_history(store, volume, &inventory, sealing)?,
        marks: read_marks(store, volume, &inventory, sealing)?,
    };
    Ok(Contents { volume, facts, inventory, known })
}

/// Whether this object cannot be read, and others may: it is gone, too long, or on a damaged place of a disk.
fn is_lost(error: &ObjectStoreError) -> bool {
    matches!(error.kind, ErrorKind::Missing | ErrorKind::Broken)
}

/// The history with the newest epoch; of several with that epoch, any that is sound: they are equal.
fn read_history(
    store: &dyn ObjectStore,
    volume: VolumeId,
    inventory: &Inventory,
    sealing: &Sealing,
) -> Result<EpochHistory, ReadError> {
    let Some(newest) = inventory.histories().last().map(|name| name.epoch) else {
        return Err(ReadError::Nothing(volume));
    };
    let mut failed = ReadError::Nothing(volume);
    for name in inventory.histories().filter(|name| name.epoch == newest) {
        let bytes = store.get(&Name::History(name).key(volume))?;
        match history::decode(&bytes, volume, &name, sealing) {
            Ok(history) => return Ok(history),
            Err(error) => failed = ReadError::Object { name: Name::History(name).to_string(), error },
        }
    }
    Err(failed)
}

/// Every list of marks that is sound and not a part of another: a verification names the others, and what is lost with them.
fn read_marks(
    store: &dyn ObjectStore,
    volume: VolumeId,
    inventory: &Inventory,
    sealing: &Sealing,
) -> Result<BTreeMap<MarksName, Vec<Mark>>, ObjectStoreError> {
    let mut lists = BTreeMap::new();
    let listed: Vec<MarksName> = inventory.marks().collect();
    let superseded = marks::superseded(&listed);
    // The longer ones first: where one of them is damaged, what it superseded is read after all.
    for name in listed.iter().rev().copied() {
        let has_all = |long: &&MarksName| {
            (long.node, long.from_ms) == (name.node, name.from_ms) && long.to_ms > name.to_ms
        };
        if superseded.contains(&name) && lists.keys().any(|read| has_all(&read)) {
            continue;
        }
        match store.get(&Name::Marks(name).key(volume)) {
            Ok(bytes) => {
                if let Ok(marks) = marks::decode(&bytes, volume, &name, sealing) {
                    lists.insert(name, marks);
                }
            }
            // Deleted since it was listed, or damaged.
            Err(error) if is_lost(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lists)
}

/// Reads every object back, and says what is damaged and what is lost by it. `progress` is told how many objects were read.
///
/// # Errors
/// When the store does not answer: then nothing is known of the rest.
pub fn verify(
    store: &dyn ObjectStore,
    contents: &Contents,
    sealing: &Sealing,
    mut progress: impl FnMut(u64),
) -> Result<Report, ObjectStoreError> {
    let Contents { volume, inventory, known, .. } = contents;
    let mut verification = Verification::new(*volume, inventory, known, sealing);
    for (count, (name, _)) in (1..).zip(inventory.objects()) {
        match store.get(&name.key(*volume)) {
            Ok(bytes) => verification.check(name, Some(&bytes)),
            Err(error) if is_lost(&error) => verification.check(name, None),
            Err(error) => return Err(error),
        }
        progress(count);
    }
    Ok(verification.finish())
}

/// Deletes objects, phase after phase ([`borealis_archive::retention`]); how many. It stops where the store does not answer: the
/// next deletion begins with a new listing.
///
/// # Errors
/// When the store does not answer.
pub fn delete(store: &dyn ObjectStore, volume: VolumeId, phases: &Phases) -> Result<u64, ObjectStoreError> {
    let mut deleted = 0;
    for name in phases.iter().flatten() {
        store.delete(&name.key(volume))?;
        deleted += 1;
    }
    Ok(deleted)
}
