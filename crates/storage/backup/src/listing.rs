//! What a store lists of one group's snapshots.

use std::collections::BTreeMap;

use borealis_archive::inventory::Stored;
use borealis_archive::name::{ManifestName, Name, PagesName};
use borealis_types::{GroupId, Lsn, VolumeId};

use crate::store::{ObjectStore, ObjectStoreError, list_names};

/// The page objects of a group.
pub(crate) fn pages_of(
    store: &dyn ObjectStore,
    volume: VolumeId,
    group: GroupId,
) -> Result<BTreeMap<PagesName, Stored>, ObjectStoreError> {
    let (prefix, after) = Name::pages_of(volume, group);
    let listed = list_names(store, &prefix, Some(after))?.into_iter();
    let pages = listed.filter_map(|(name, stored)| match name {
        Name::Pages(pages) => Some((pages, stored)),
        _ => None,
    });
    Ok(pages.collect())
}

/// The manifests of a group as of positions above `lsn`.
pub(crate) fn manifests_above(
    store: &dyn ObjectStore,
    volume: VolumeId,
    group: GroupId,
    lsn: Lsn,
) -> Result<BTreeMap<ManifestName, Stored>, ObjectStoreError> {
    let (prefix, after) = Name::manifests_above(volume, group, lsn);
    let listed = list_names(store, &prefix, Some(after))?.into_iter();
    let manifests = listed.filter_map(|(name, stored)| match name {
        Name::Manifest(manifest) => Some((manifest, stored)),
        _ => None,
    });
    Ok(manifests.collect())
}
