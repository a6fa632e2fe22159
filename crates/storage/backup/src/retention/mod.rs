//! Deleting what nobody can need any more: decisions are [`borealis_archive::retention`]'s, this asks the store.
//!
//! One node does it, now and then ([`delete_old`]). If two do, nothing is lost: each deletes by what it sees, and what one deletes
//! the other does not need either. Between its requests a person may give a name to a point or lengthen the window. So
//! both are listed again before every hundred deletions, and a name is only given to a point within the window, which stays in any case. What a
//! longer window would have kept may go in the moment in which it is made longer.

mod group;
mod settings;

use std::collections::BTreeMap;

use borealis_archive::inventory::Stored;
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::{MarksName, Name, SnapshotName};
use borealis_archive::retention::{Window, admitted, evidence_for, lists_before, trusted_now_ms};
use borealis_archive::sealing::Sealing;
use borealis_types::{EpochHistory, GroupId, Lsn, VolumeId};

pub use self::settings::{Settings, forget_name, name_point, set_retention, settings};

use self::group::GroupSweep;
use crate::contents::{self, ReadError};
use crate::store::{ObjectStore, ObjectStoreError, list_names};

/// Lists of marks that are read for each named point: what they say of it stays.
const EVIDENCE_MAX: usize = 12;
/// Objects that are deleted between two looks at what people said.
const DELETED_BETWEEN_LOOKS: usize = 100;

/// Why nothing is deleted, or a setting not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    /// What must be known first cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What says which points stay is damaged.
    #[error(
        "{object} {fault}: which points must stay is not known, so nothing is deleted until it can be read again"
    )]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Somebody gave a name or changed the retention while it was read.
    #[error("the retention or the named snapshots have just been changed by somebody else; try again")]
    ChangedMeanwhile,
    /// There is a snapshot of this name.
    #[error("there is a snapshot called {0} already")]
    NameTaken(SnapshotName),
    /// There is none.
    #[error("there is no snapshot called {0}")]
    NoSuchName(SnapshotName),
}

impl From<ObjectStoreError> for RetentionError {
    fn from(error: ObjectStoreError) -> RetentionError {
        RetentionError::Read(error.into())
    }
}

/// What was deleted, and of which groups nothing could be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Deleted {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Groups of which what must stay was not all seen to be there, and why. All of them stays, and all marks.
    pub kept_whole: BTreeMap<GroupId, String>,
}

/// From when on points stay, as of now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    /// The window.
    pub window: Window,
    /// What was durable when it began; zero if the backup is younger than it, and nothing can go.
    pub lsn: Lsn,
}

/// What is read before anything is decided.
struct Situation<'a> {
    store: &'a dyn ObjectStore,
    volume: VolumeId,
    sealing: &'a Sealing,
    settings: Settings,
    history: EpochHistory,
    window: Window,
    start: Lsn,
    lists: Vec<(MarksName, Stored)>,
    /// Of lists that were read, what the history admits.
    marks: BTreeMap<MarksName, Vec<Mark>>,
}

impl<'a> Situation<'a> {
    /// `wall_ms` is the time by the clock of whoever asks, in milliseconds since 1970.
    fn read(
        store: &'a dyn ObjectStore,
        volume: VolumeId,
        sealing: &'a Sealing,
        wall_ms: u64,
    ) -> Result<Situation<'a>, RetentionError> {
        let settings = settings(store, volume, sealing)?;
        let history = contents::newest_history(store, volume, sealing)?;
        let listed = list_names(store, &format!("{volume}/marks/"), None)?.into_iter();
        let lists: Vec<(MarksName, Stored)> = listed
            .filter_map(|(name, stored)| match name {
                Name::Marks(list) => Some((list, stored)),
                _ => None,
            })
            .collect();
        // With a clock that is ahead, everything would look old.
        let modified_ms = lists.iter().map(|(_, stored)| stored.modified_ms);
        let now_ms = trusted_now_ms(modified_ms, settings.retention).min(wall_ms);
        let window = Window { now_ms, retention: settings.retention };
        let mut situation = Situation {
            store,
            volume,
            sealing,
            settings,
            history,
            window,
            start: Lsn::ZERO,
            lists,
            marks: BTreeMap::new(),
        };
        for list in lists_before(&situation.lists, &window) {
            let Some(marks) = situation.read_list(&list)? else { continue };
            if let Some(start) = marks.iter().map(|mark| mark.durable).max() {
                situation.start = start;
                situation.marks.insert(list, marks);
                break;
            }
        }
        Ok(situation)
    }

    /// The marks of a list that the history admits; `None` if it is damaged, or was replaced.
    fn read_list(&self, list: &MarksName) -> Result<Option<Vec<Mark>>, ObjectStoreError> {
        match self.store.get(&Name::Marks(*list).key(self.volume)) {
            Ok(bytes) => {
                let marks = marks::decode(&bytes, self.volume, list, self.sealing).ok();
                Ok(marks.map(|marks| admitted(marks, &self.history)))
            }
            Err(error) if error.is_of_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads what may say that groups were complete to named points and to the window's beginning.
    fn read_evidence(&mut self) -> Result<(), ObjectStoreError> {
        let points = self.settings.named.iter().map(|named| named.lsn).filter(|lsn| *lsn < self.start);
        let points: Vec<Lsn> = points.chain([self.start]).collect();
        for point in points {
            for list in evidence_for(&self.lists, point, EVIDENCE_MAX) {
                if !self.marks.contains_key(&list)
                    && let Some(marks) = self.read_list(&list)?
                {
                    self.marks.insert(list, marks);
                }
            }
        }
        Ok(())
    }

    /// Deletes some objects, which all belong to one phase.
    fn delete(&self, objects: &[(Name, Stored)], deleted: &mut Deleted) -> Result<(), RetentionError> {
        for some in objects.chunks(DELETED_BETWEEN_LOOKS) {
            let (revisions, names) = settings::listed(self.store, self.volume)?;
            let is_same = revisions.last().copied().unwrap_or(0) == self.settings.revision
                && names.iter().eq(self.settings.named.iter().map(|named| &named.name));
            if !is_same {
                return Err(RetentionError::ChangedMeanwhile);
            }
            for (name, stored) in some {
                self.store.delete(&name.key(self.volume))?;
                deleted.objects += 1;
                deleted.bytes = deleted.bytes.saturating_add(stored.bytes);
            }
        }
        Ok(())
    }

    /// Marks of before the window, and older histories. Settings stay: they are few, and tell what was wished when.
    fn delete_small(&self, deleted: &mut Deleted) -> Result<(), RetentionError> {
        let mut superfluous = Vec::new();
        if deleted.kept_whole.is_empty() {
            // What was read for some point is what says it.
            let can_go = |(list, stored): &&(MarksName, Stored)| {
                self.window.can_go(list, *stored, self.start) && !self.marks.contains_key(list)
            };
            let old = self.lists.iter().filter(can_go);
            superfluous.extend(old.map(|(list, stored)| (Name::Marks(*list), *stored)));
        }
        let newest = self.history.newest_epoch();
        for (name, stored) in list_names(self.store, &format!("{}/history/", self.volume), None)? {
            let is_older = matches!(&name, Name::History(history) if history.epoch < newest);
            if is_older && self.window.is_settled(stored) {
                superfluous.push((name, stored));
            }
        }
        self.delete(&superfluous, deleted)
    }
}

/// From when on points of a volume stay. `wall_ms` is the time, in milliseconds since 1970.
///
/// # Errors
/// When it cannot be read.
pub fn window_start(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
    wall_ms: u64,
) -> Result<Start, RetentionError> {
    let situation = Situation::read(store, volume, sealing, wall_ms)?;
    Ok(Start { window: situation.window, lsn: situation.start })
}

/// Deletes what nobody can need any more. `wall_ms` is the time, in milliseconds since 1970. Page objects that no snapshot names any more are
/// looked for where a snapshot went, and everywhere if it is `thorough`: that takes reading every manifest.
///
/// # Errors
/// When the store does not answer, what must be known is damaged, or a person changed it meanwhile. What was deleted before that was
/// superfluous, and the next deletion goes on.
pub fn delete_old(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
    wall_ms: u64,
    thorough: bool,
) -> Result<Deleted, RetentionError> {
    let mut situation = Situation::read(store, volume, sealing, wall_ms)?;
    let mut deleted = Deleted::default();
    if situation.start == Lsn::ZERO {
        return Ok(deleted);
    }
    situation.read_evidence()?;
    let placement = contents::facts(store, volume, sealing)?.placement;
    for group in placement.groups() {
        if let Err(why) = GroupSweep::new(&situation, group).run(thorough, &mut deleted)? {
            deleted.kept_whole.insert(group, why);
        }
    }
    situation.delete_small(&mut deleted)?;
    Ok(deleted)
}
