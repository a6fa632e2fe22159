//! Reading what a backup has, and proving it: decisions are `borealis_archive`'s, this asks the store.
//!
//! A backup is read while nodes go on uploading: between the listing and the reading a list of marks is replaced by a longer one, and a recovery
//! brings a new history. Neither is damage, and neither is taken for it.

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::FormatError;
use borealis_archive::history;
use borealis_archive::inventory::{Inventory, Stored};
use borealis_archive::known::Known;
use borealis_archive::manifest::for_each_entry;
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::{HistoryName, MarksName, Name};
use borealis_archive::plan::{NotRestorable, Plan, plan};
use borealis_archive::ranges::{LsnRange, LsnRanges};
use borealis_archive::redo::for_each_record;
use borealis_archive::restorable::restorable;
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::{self, VolumeFacts};
use borealis_archive::verify::{Report, Verification};
use borealis_types::{EpochHistory, Lsn, VolumeEpoch, VolumeId};

use crate::store::{ObjectStore, ObjectStoreError, inventory, list_names};

/// How often marks are listed again because what was listed had been replaced by the time that it was read.
const MARKS_LOOKS_MAX: u32 = 8;

/// What is there of one volume, and what must be known to decide anything about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    /// The volume.
    pub volume: VolumeId,
    /// What it is.
    pub facts: VolumeFacts,
    /// Every object.
    pub inventory: Inventory,
    /// The history, and the marks of each list that could be read.
    pub known: Known,
    /// Histories and lists of marks that cannot be read, and why. Of such a history another object is sound; times that such a list alone
    /// knew cannot be asked for.
    pub damaged: BTreeMap<Name, String>,
}

/// Why a backup cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] ObjectStoreError),
    /// An object without which nothing can be decided is missing or damaged. With an older history, what a recovery cut would count.
    #[error("{object} {fault}; without it nothing of this backup can be restored")]
    Unusable {
        /// The object.
        object: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Two sound objects tell different histories.
    #[error(
        "{one} and {other} are both the history of one epoch, and differ: which one is of this volume is not known, so nothing of this backup \
         can be restored"
    )]
    Contradiction {
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// Nobody uploaded the history.
    #[error("the backup of volume {0} has no history: nothing of it can be restored")]
    NoHistory(VolumeId),
    /// What is there was made under a newer history than any that is there.
    #[error(
        "{object} is of epoch {epoch}, and the newest history ends with epoch {newest}: a newer one is missing, and without it nothing of this \
         backup can be restored. A node of the volume that is started again uploads the history that it has"
    )]
    NewestHistoryMissing {
        /// An object of the newer epoch.
        object: String,
        /// Its epoch.
        epoch: VolumeEpoch,
        /// The newest epoch of which there is a history.
        newest: VolumeEpoch,
    },
    /// There is no backup of this volume.
    #[error("there is no backup of volume {0}")]
    Nothing(VolumeId),
}

/// Why a time does not say a point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// There are no marks.
    #[error("the backup has no mark of any time: choose a position")]
    NoTimes,
    /// A time that the backup does not have.
    #[error("the backup knows what the volume had reached between two times only, and this is none of them")]
    NotThen {
        /// What was asked for, in milliseconds since 1970.
        clock_ms: u64,
        /// The first time that it knows.
        first_ms: u64,
        /// The last one.
        last_ms: u64,
    },
    /// What may know better what the volume had reached then is damaged.
    #[error("{object} {fault}; it may know what the volume had reached then: choose a position")]
    DamagedMarks {
        /// The object.
        object: String,
        /// What is wrong with it.
        fault: String,
    },
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

/// Points that can be restored, without a gap between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// The points.
    pub range: LsnRange,
    /// The first and the last time, in milliseconds since 1970, of which a mark says that the volume was in the range; `None` if no
    /// mark does.
    pub clock_ms: Option<(u64, u64)>,
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

    /// The points that can be restored, in order, and when the volume was there.
    #[must_use]
    pub fn reach(&self) -> Vec<Reach> {
        let clock_ms = |range: &LsnRange| {
            let inside = self.known.admitted_marks().map(|(_, mark)| mark);
            let inside = inside.filter(|mark| (range.from..=range.through).contains(&mark.durable));
            inside.map(|mark| mark.clock_ms).fold(None, |times: Option<(u64, u64)>, clock| {
                Some(times.map_or((clock, clock), |(first, last)| (first.min(clock), last.max(clock))))
            })
        };
        let points = self.restorable();
        points.ranges().iter().map(|range| Reach { range: *range, clock_ms: clock_ms(range) }).collect()
    }

    /// What the volume had reached at a time, in milliseconds since 1970.
    ///
    /// # Errors
    /// When the marks do not reach that far, in either direction, or a list of them that may know better is damaged.
    pub fn point_at(&self, clock_ms: u64) -> Result<Lsn, TimeError> {
        let clocks = || self.known.admitted_marks().map(|(_, mark)| mark.clock_ms);
        let (first_ms, last_ms) = (clocks().min(), clocks().max());
        let at_ms = clocks().filter(|clock| *clock <= clock_ms).max().unwrap_or(0);
        for (name, fault) in &self.damaged {
            let Name::Marks(list) = name else { continue };
            // A shorter list has the beginning of this one.
            let shorter = self.known.marks.keys().filter(|shorter| list.supersedes(shorter));
            let unknown_from_ms = shorter.map(|shorter| shorter.to_ms).max().unwrap_or(list.from_ms);
            let is_within = clock_ms <= list.to_ms.max(last_ms.unwrap_or(0));
            if is_within && unknown_from_ms <= clock_ms && list.to_ms > at_ms {
                let (object, fault) = (name.key(self.volume), fault.clone());
                return Err(TimeError::DamagedMarks { object, fault });
            }
        }
        let (first_ms, last_ms) = first_ms.zip(last_ms).ok_or(TimeError::NoTimes)?;
        let point = self.known.point_at(clock_ms).filter(|_| clock_ms <= last_ms);
        point.ok_or(TimeError::NotThen { clock_ms, first_ms, last_ms })
    }

    /// What a restore to a point reads.
    ///
    /// # Errors
    /// When not all of it is there.
    pub fn plan(&self, point: Lsn) -> Result<Plan, NotRestorable> {
        plan(&self.inventory, &self.known, point)
    }

    /// How many bytes all objects have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inventory.objects().fold(0, |sum, (_, stored)| sum.saturating_add(stored.bytes))
    }
}

/// Reads what is there of a volume.
///
/// # Errors
/// When the store does not answer, or the descriptor or the newest history is missing, damaged or in doubt.
pub fn read(store: &dyn ObjectStore, volume: VolumeId, sealing: &Sealing) -> Result<Contents, ReadError> {
    let mut inventory = inventory(store, volume)?;
    if inventory.objects().next().is_none() {
        return Err(ReadError::Nothing(volume));
    }
    let reader = Reader { store, volume, sealing };
    let facts = facts(store, volume, sealing)?;
    let mut damaged = BTreeMap::new();
    let marks = reader.marks(&mut inventory, &mut damaged)?;
    let history = reader.history(&mut inventory, &marks, &mut damaged)?;
    let known = Known { placement: facts.placement, history, marks };
    Ok(Contents { volume, facts, inventory, known, damaged })
}

/// What a volume is.
pub(crate) fn facts(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
) -> Result<VolumeFacts, ReadError> {
    let reader = Reader { store, volume, sealing };
    match reader.get(&Name::Volume, |bytes| settings::decode(bytes, volume, sealing))? {
        Found::Sound(facts) => Ok(facts),
        Found::Gone => Err(reader.unusable(&Name::Volume, NOT_THERE)),
        Found::Damaged(fault) => Err(reader.unusable(&Name::Volume, fault)),
    }
}

/// The history that the store has, with nothing else read: it may be that what is there was made under a newer one.
pub(crate) fn newest_history(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
) -> Result<EpochHistory, ReadError> {
    let mut inventory = Inventory::default();
    for (name, stored) in list_names(store, &format!("{volume}/history/"), None)? {
        inventory.insert(name, stored);
    }
    Reader { store, volume, sealing }.newest_history(&inventory, &mut BTreeMap::new())
}

/// What is wrong with an object that was listed, or must be there, and is not.
pub(crate) const NOT_THERE: &str = "is not there";

/// An object that was asked for.
enum Found<T> {
    Sound(T),
    Gone,
    Damaged(String),
}

type Lists = BTreeMap<MarksName, Vec<Mark>>;

/// Reads objects of one volume.
struct Reader<'a> {
    store: &'a dyn ObjectStore,
    volume: VolumeId,
    sealing: &'a Sealing,
}

impl Reader<'_> {
    fn get<T>(
        &self,
        name: &Name,
        decode: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<Found<T>, ObjectStoreError> {
        match self.store.get(&name.key(self.volume)) {
            Ok(bytes) => {
                Ok(decode(&bytes).map_or_else(|fault| Found::Damaged(fault.to_string()), Found::Sound))
            }
            Err(error) if error.is_missing() => Ok(Found::Gone),
            Err(error) if error.is_of_object() => {
                Ok(Found::Damaged(format!("cannot be read: {}", error.what)))
            }
            Err(error) => Err(error),
        }
    }

    fn unusable(&self, name: &Name, fault: impl Into<String>) -> ReadError {
        ReadError::Unusable { object: name.key(self.volume), fault: fault.into() }
    }

    /// The history of everything that is there.
    fn history(
        &self,
        inventory: &mut Inventory,
        marks: &Lists,
        damaged: &mut BTreeMap<Name, String>,
    ) -> Result<EpochHistory, ReadError> {
        let history = self.newest_history(inventory, damaged)?;
        if newer(inventory, marks, history.newest_epoch()).next().is_none() {
            return Ok(history);
        }
        // A history is uploaded before anything of its epoch: what was made while the rest was listed is listed now.
        let prefix = format!("{}/history/", self.volume);
        for (name, stored) in list_names(self.store, &prefix, None)? {
            inventory.insert(name, stored);
        }
        let history = self.newest_history(inventory, damaged)?;
        let newest = history.newest_epoch();
        for (name, epoch) in newer(inventory, marks, newest) {
            // Anybody can make a name.
            if self.is_sound(&name)? {
                return Err(ReadError::NewestHistoryMissing { object: name.key(self.volume), epoch, newest });
            }
        }
        Ok(history)
    }

    /// The history with the newest epoch. An older one would not do: what a later recovery cut would count.
    fn newest_history(
        &self,
        inventory: &Inventory,
        damaged: &mut BTreeMap<Name, String>,
    ) -> Result<EpochHistory, ReadError> {
        let newest = inventory.histories().last().ok_or(ReadError::NoHistory(self.volume))?;
        let mut sound: Option<(HistoryName, EpochHistory)> = None;
        for name in inventory.histories().filter(|name| name.epoch == newest.epoch) {
            let object = Name::History(name);
            match self.get(&object, |bytes| history::decode(bytes, self.volume, &name, self.sealing))? {
                Found::Sound(history) => match &sound {
                    Some((other, different)) if *different != history => {
                        let (one, other) = (object.key(self.volume), Name::History(*other).key(self.volume));
                        return Err(ReadError::Contradiction { one, other });
                    }
                    _ => sound = Some((name, history)),
                },
                Found::Gone => drop(damaged.insert(object, NOT_THERE.to_owned())),
                Found::Damaged(fault) => drop(damaged.insert(object, fault)),
            }
        }
        let newest = Name::History(newest);
        let fault = || damaged.get(&newest).cloned().unwrap_or_default();
        sound.map(|(_, history)| history).ok_or_else(|| self.unusable(&newest, fault()))
    }

    /// Whether an object is what its name says.
    fn is_sound(&self, name: &Name) -> Result<bool, ObjectStoreError> {
        let (volume, sealing) = (self.volume, self.sealing);
        let found = self.get(name, |bytes| match name {
            Name::Redo(redo) => for_each_record(bytes, volume, redo, sealing, |_| ()).map(drop),
            Name::Manifest(manifest) => for_each_entry(bytes, volume, manifest, sealing, |_| ()).map(drop),
            Name::Marks(list) => marks::decode(bytes, volume, list, sealing).map(drop),
            _ => Err(FormatError::Name),
        })?;
        Ok(matches!(found, Found::Sound(())))
    }

    /// Every list of marks that is sound and not a part of another.
    fn marks(
        &self,
        inventory: &mut Inventory,
        damaged: &mut BTreeMap<Name, String>,
    ) -> Result<Lists, ObjectStoreError> {
        let mut lists = Lists::new();
        let mut unread: BTreeSet<MarksName> = inventory.marks().collect();
        for _ in 0..MARKS_LOOKS_MAX {
            let gone = self.read_lists(&unread, &mut lists, damaged)?;
            unread.clear();
            let Some(first) = gone.first() else { break };
            // What an uploader removes it has replaced before.
            let longer = longer_marks(self.store, self.volume, first)?;
            for list in gone {
                let mut replaced_by = longer.iter().filter(|(longer, _)| longer.supersedes(&list)).peekable();
                if replaced_by.peek().is_none() {
                    damaged.insert(Name::Marks(list), NOT_THERE.to_owned());
                    continue;
                }
                inventory.remove(&Name::Marks(list));
                for (list, stored) in replaced_by {
                    inventory.insert(Name::Marks(*list), *stored);
                    unread.insert(*list);
                }
            }
            unread.retain(|list| !lists.contains_key(list) && !damaged.contains_key(&Name::Marks(*list)));
        }
        let fault = "was replaced again and again while the backup was read";
        damaged.extend(unread.into_iter().map(|list| (Name::Marks(list), fault.to_owned())));
        Ok(lists)
    }

    /// Reads these lists, but for those that another of them has all of. Returns those that are not there.
    fn read_lists(
        &self,
        unread: &BTreeSet<MarksName>,
        lists: &mut Lists,
        damaged: &mut BTreeMap<Name, String>,
    ) -> Result<BTreeSet<MarksName>, ObjectStoreError> {
        let superseded = marks::superseded(unread);
        let mut gone = BTreeSet::new();
        // The longer ones first: where one of them is damaged, what it superseded is read after all.
        for name in unread.iter().rev().copied() {
            if superseded.contains(&name) && lists.keys().any(|read| read.supersedes(&name)) {
                continue;
            }
            let object = Name::Marks(name);
            match self.get(&object, |bytes| marks::decode(bytes, self.volume, &name, self.sealing))? {
                Found::Sound(marks) => drop(lists.insert(name, marks)),
                Found::Gone => drop(gone.insert(name)),
                Found::Damaged(fault) => drop(damaged.insert(object, fault)),
            }
        }
        Ok(gone)
    }
}

/// Objects that were made in an epoch after this one, and their epochs.
fn newer(
    inventory: &Inventory,
    marks: &Lists,
    newest: VolumeEpoch,
) -> impl Iterator<Item = (Name, VolumeEpoch)> {
    let of_names = inventory.objects().filter_map(|(name, _)| match name {
        Name::Redo(redo) => Some((name.clone(), redo.epoch)),
        Name::Manifest(manifest) => Some((name.clone(), manifest.epoch)),
        _ => None,
    });
    let of_marks = marks
        .iter()
        .filter_map(|(name, marks)| Some((Name::Marks(*name), marks.iter().map(|mark| mark.epoch).max()?)));
    of_names.chain(of_marks).filter(move |(_, epoch)| *epoch > newest)
}

/// Lists of marks that come after this one in a listing: those that have all of it are among them.
fn longer_marks(
    store: &dyn ObjectStore,
    volume: VolumeId,
    list: &MarksName,
) -> Result<Vec<(MarksName, Stored)>, ObjectStoreError> {
    // Everything that ends later comes after it.
    let listed = list_names(store, &format!("{volume}/marks/"), Some(Name::Marks(*list).key(volume)))?;
    Ok(listed
        .into_iter()
        .filter_map(|(name, stored)| match name {
            Name::Marks(marks) => Some((marks, stored)),
            _ => None,
        })
        .collect())
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
            Err(error) if error.is_of_object() => {
                if !(error.is_missing() && is_replaced(store, *volume, name)?) {
                    verification.check(name, None);
                }
            }
            Err(error) => return Err(error),
        }
        progress(count);
    }
    Ok(verification.finish())
}

/// Whether an object that is not there any more is a list of marks that its uploader replaced by a longer one.
fn is_replaced(store: &dyn ObjectStore, volume: VolumeId, name: &Name) -> Result<bool, ObjectStoreError> {
    let Name::Marks(list) = name else { return Ok(false) };
    Ok(longer_marks(store, volume, list)?.iter().any(|(longer, _)| longer.supersedes(list)))
}
