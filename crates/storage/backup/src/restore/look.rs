//! What a backup has, before anything is restored from it: the volume, its history, its marks, and what they say can be reached.

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::inventory::Inventory;
use borealis_archive::known::Known;
use borealis_archive::marks;
use borealis_archive::name::{HistoryName, MarksName, Name};
use borealis_archive::plan::{NotRestorable, Plan, plan};
use borealis_archive::ranges::LsnRange;
use borealis_archive::restorable::restorable;
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::VolumeFacts;
use borealis_archive::{FormatError, history, settings};
use borealis_types::{EpochHistory, Lsn, VolumeId};

use super::RestoreError;
use crate::store::{ErrorKind, ObjectStore, ObjectStoreError, inventory};

/// Everything of a volume's backup that is read before a point is chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backup {
    /// The volume that the backup is of.
    pub volume: VolumeId,
    /// What the volume is.
    pub facts: VolumeFacts,
    /// The objects that there are, without those that are known to be damaged.
    pub inventory: Inventory,
    /// What history and marks say.
    pub known: Known,
    /// Lists of marks that cannot be read, and why: seconds that they alone knew cannot be asked for.
    pub damaged_marks: BTreeMap<MarksName, String>,
}

/// Points that can be restored, without a gap between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// The points.
    pub range: LsnRange,
    /// The first and the last time, in milliseconds since 1970, of which a mark says that the volume was in the range; `None` if no
    /// mark does.
    pub clock_ms: Option<(u64, u64)>,
}

/// The volumes that have a backup in a store, in number order.
///
/// # Errors
/// When the store does not list them.
pub fn volumes(store: &dyn ObjectStore) -> Result<Vec<VolumeId>, ObjectStoreError> {
    let mut volumes: Vec<VolumeId> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let part = store.list("", after.as_deref())?;
        let found = part.objects.iter().filter_map(|listed| Name::of_key(&listed.key).ok());
        volumes.extend(found.map(|(volume, _)| volume));
        volumes.sort_unstable();
        volumes.dedup();
        let Some(last) = part.objects.last().filter(|_| part.more) else { return Ok(volumes) };
        // Past everything else of that volume: a tilde is after all that a name has.
        after = Some(match last.key.split_once('/') {
            Some((folder, _)) => format!("{folder}/~"),
            None => last.key.clone(),
        });
    }
}

/// An object, or why it is as good as absent.
fn read<T>(
    store: &dyn ObjectStore,
    volume: VolumeId,
    name: &Name,
    decode: impl FnOnce(&[u8]) -> Result<T, FormatError>,
) -> Result<Result<T, String>, ObjectStoreError> {
    match store.get(&name.key(volume)) {
        Ok(bytes) => Ok(decode(&bytes).map_err(|fault| fault.to_string())),
        Err(error) if error.kind == ErrorKind::Missing => Ok(Err("is not there".to_owned())),
        Err(error) => Err(error),
    }
}

/// The history with the newest epoch. An older one would not do: what a later recovery cut would count.
fn read_history(
    store: &dyn ObjectStore,
    volume: VolumeId,
    inventory: &Inventory,
    sealing: &Sealing,
) -> Result<EpochHistory, RestoreError> {
    let newest = inventory.histories().map(|name| name.epoch).max();
    let newest: Vec<HistoryName> = inventory.histories().filter(|name| Some(name.epoch) == newest).collect();
    let mut found: Option<EpochHistory> = None;
    for history_name in newest {
        let name = Name::History(history_name);
        let history =
            read(store, volume, &name, |bytes| history::decode(bytes, volume, &history_name, sealing))?;
        let history = history.map_err(|fault| RestoreError::Unusable { object: name.key(volume), fault })?;
        if found.as_ref().is_some_and(|other| *other != history) {
            let fault = "contradicts another history of the same epoch".to_owned();
            return Err(RestoreError::Unusable { object: name.key(volume), fault });
        }
        found = Some(history);
    }
    found.ok_or(RestoreError::NoHistory(volume))
}

impl Backup {
    /// Looks at the backup of a volume.
    ///
    /// # Errors
    /// When the store does not answer, or what says what the volume is, or what its recoveries decided, is missing or damaged.
    pub fn look(
        store: &dyn ObjectStore,
        volume: VolumeId,
        sealing: &Sealing,
    ) -> Result<Backup, RestoreError> {
        let facts = read(store, volume, &Name::Volume, |bytes| settings::decode(bytes, volume, sealing))?;
        let facts: VolumeFacts =
            facts.map_err(|fault| RestoreError::Unusable { object: Name::Volume.key(volume), fault })?;
        let listed = inventory(store, volume)?;
        let history = read_history(store, volume, &listed, sealing)?;
        let (mut marks, mut damaged_marks) = (BTreeMap::new(), BTreeMap::new());
        for name in listed.marks() {
            let of_name = Name::Marks(name);
            match read(store, volume, &of_name, |bytes| marks::decode(bytes, volume, &name, sealing))? {
                Ok(list) => drop(marks.insert(name, list)),
                Err(fault) => drop(damaged_marks.insert(name, fault)),
            }
        }
        // Restoring begins with the volume's first record: snapshots are not read.
        let unused = listed.objects().map(|(name, _)| name).filter(|name| match name {
            Name::Manifest(_) => true,
            Name::Marks(name) => damaged_marks.contains_key(name),
            _ => false,
        });
        let unused: BTreeSet<Name> = unused.cloned().collect();
        let known = Known { placement: facts.placement, history, marks };
        Ok(Backup { volume, facts, inventory: listed.without(&unused), known, damaged_marks })
    }

    /// The newest point that can be restored; `None` if there is none.
    #[must_use]
    pub fn newest(&self) -> Option<Lsn> {
        restorable(&self.inventory, &self.known).at_or_below(Lsn::MAX).filter(|point| *point > Lsn::ZERO)
    }

    /// What can be restored, in order.
    #[must_use]
    pub fn reach(&self) -> Vec<Reach> {
        let clock_ms = |range: &LsnRange| {
            let inside = self.known.admitted_marks().map(|(_, mark)| mark);
            let inside = inside.filter(|mark| range.from <= mark.durable && mark.durable <= range.through);
            inside.map(|mark| mark.clock_ms).fold(None, |times: Option<(u64, u64)>, clock| {
                Some(times.map_or((clock, clock), |(first, last)| (first.min(clock), last.max(clock))))
            })
        };
        let points = restorable(&self.inventory, &self.known);
        points.ranges().iter().map(|range| Reach { range: *range, clock_ms: clock_ms(range) }).collect()
    }

    /// What the volume had reached at a time, in milliseconds since 1970.
    ///
    /// # Errors
    /// When the backup does not reach that far, in either direction, or a list of marks that may know better is damaged.
    pub fn point_at(&self, clock_ms: u64) -> Result<Lsn, RestoreError> {
        let clocks = || self.known.admitted_marks().map(|(_, mark)| mark.clock_ms);
        let before = clocks().filter(|clock| *clock <= clock_ms).max();
        let (Some(first_ms), Some(last_ms)) = (clocks().min(), clocks().max()) else {
            return Err(RestoreError::NoTimes);
        };
        let point = self.known.point_at(clock_ms).zip(before).filter(|_| clock_ms <= last_ms);
        let (point, at_ms) = point.ok_or(RestoreError::NotThen { clock_ms, first_ms, last_ms })?;
        let knows_better = |name: &&MarksName| name.from_ms <= clock_ms && name.to_ms > at_ms;
        if let Some(name) = self.damaged_marks.keys().find(knows_better) {
            let object = Name::Marks(*name).key(self.volume);
            return Err(RestoreError::DamagedMarks { object, fault: self.damaged_marks[name].clone() });
        }
        Ok(point)
    }

    /// What a restore to a point reads.
    ///
    /// # Errors
    /// When not all of it is there.
    pub fn plan(&self, point: Lsn) -> Result<Plan, NotRestorable> {
        plan(&self.inventory, &self.known, point)
    }
}
