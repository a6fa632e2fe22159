//! How long points stay, and which have a name: read from the store by whoever deletes, changed by people.

use borealis_archive::name::{Name, SnapshotName};
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::{self, NamedSnapshot, Retention};
use borealis_types::VolumeId;

use super::RetentionError;
use crate::contents::NOT_THERE;
use crate::store::{ObjectStore, ObjectStoreError, Put, list_names};

/// What people said about how long points stay.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Which change of it this is; zero if nobody ever said anything.
    pub revision: u64,
    /// How long points stay.
    pub retention: Retention,
    /// Points with a name, by name.
    pub named: Vec<NamedSnapshot>,
}

/// Reads them.
///
/// # Errors
/// When the store does not answer, or one of them is damaged: what it kept is not known then.
pub fn settings(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
) -> Result<Settings, RetentionError> {
    let (revisions, names) = listed(store, volume)?;
    let mut settings = Settings::default();
    if let Some(revision) = revisions.last().copied() {
        settings.revision = revision;
        settings.retention = read(store, volume, &Name::Retention { revision }, sealing)?;
    }
    for name in names {
        let named: NamedSnapshot = read(store, volume, &Name::Snapshot(name.clone()), sealing)?;
        if named.name != name {
            let (object, fault) = (Name::Snapshot(name).key(volume), "has another name inside".to_owned());
            return Err(RetentionError::Damaged { object, fault });
        }
        settings.named.push(named);
    }
    Ok(settings)
}

/// Revisions of the retention and named points that are there, in order.
pub(super) fn listed(
    store: &dyn ObjectStore,
    volume: VolumeId,
) -> Result<(Vec<u64>, Vec<SnapshotName>), ObjectStoreError> {
    let revisions = list_names(store, &format!("{volume}/retention/"), None)?;
    let revisions = revisions.into_iter().filter_map(|(name, _)| match name {
        Name::Retention { revision } => Some(revision),
        _ => None,
    });
    let names = list_names(store, &format!("{volume}/snapshots/"), None)?;
    let names = names.into_iter().filter_map(|(name, _)| match name {
        Name::Snapshot(name) => Some(name),
        _ => None,
    });
    Ok((revisions.collect(), names.collect()))
}

fn read<F: borealis_archive::object::Facts + Clone>(
    store: &dyn ObjectStore,
    volume: VolumeId,
    name: &Name,
    sealing: &Sealing,
) -> Result<F, RetentionError> {
    let object = name.key(volume);
    match store.get(&object) {
        Ok(bytes) => settings::decode(&bytes, volume, sealing)
            .map_err(|fault| RetentionError::Damaged { object, fault: fault.to_string() }),
        Err(error) if error.is_missing() => {
            Err(RetentionError::Damaged { object, fault: NOT_THERE.to_owned() })
        }
        Err(error) if error.is_of_object() => Err(RetentionError::Damaged { object, fault: error.what }),
        Err(error) => Err(error.into()),
    }
}

/// Says how long points stay from now on.
///
/// # Errors
/// When the store does not answer, or somebody else changed it since `before` was read.
pub fn set_retention(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
    before: &Settings,
    retention: Retention,
) -> Result<(), RetentionError> {
    let revision = before.revision.saturating_add(1);
    let bytes = settings::encode(volume, retention, sealing);
    match store.put_new(&Name::Retention { revision }.key(volume), &bytes)? {
        Put::Made => Ok(()),
        Put::Exists => Err(RetentionError::ChangedMeanwhile),
    }
}

/// Gives a point a name.
///
/// # Errors
/// When the store does not answer, or the name is taken.
pub fn name_point(
    store: &dyn ObjectStore,
    volume: VolumeId,
    sealing: &Sealing,
    named: &NamedSnapshot,
) -> Result<(), RetentionError> {
    let bytes = settings::encode(volume, named.clone(), sealing);
    match store.put_new(&Name::Snapshot(named.name.clone()).key(volume), &bytes)? {
        Put::Made => Ok(()),
        Put::Exists => Err(RetentionError::NameTaken(named.name.clone())),
    }
}

/// Takes a name away: the point stays for as long as points without one do. Also where the object is damaged.
///
/// # Errors
/// When the store does not answer, or there is no such name.
pub fn forget_name(
    store: &dyn ObjectStore,
    volume: VolumeId,
    name: &SnapshotName,
) -> Result<(), RetentionError> {
    let (_, names) = listed(store, volume)?;
    if !names.contains(name) {
        return Err(RetentionError::NoSuchName(name.clone()));
    }
    Ok(store.delete(&Name::Snapshot(name.clone()).key(volume))?)
}
