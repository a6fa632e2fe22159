//! What a listing of a store says is there.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{GroupId, Lsn, NodeId, VolumeEpoch, VolumeId};

use crate::name::{HistoryName, ManifestName, MarksName, Name, PagesName, RedoName};
use crate::object::Digest;

/// What names of one group's objects begin and end with in their order.
struct Bound {
    lsn: Lsn,
    epoch: VolumeEpoch,
    node: NodeId,
    digest: Digest,
}

const LOWEST: Bound =
    Bound { lsn: Lsn::ZERO, epoch: VolumeEpoch(0), node: NodeId(0), digest: Digest([0; 16]) };
const HIGHEST: Bound =
    Bound { lsn: Lsn::MAX, epoch: VolumeEpoch(u64::MAX), node: NodeId(u16::MAX), digest: Digest([0xFF; 16]) };

/// What a store says of an object beside its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// Its length.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970, by the store's clock.
    pub modified_ms: u64,
}

/// The objects of one volume in a store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    objects: BTreeMap<Name, Stored>,
    strangers: Vec<String>,
}

impl Inventory {
    /// Of a listing: keys, with what the store says of each. What is no object of this volume is a stranger.
    #[must_use]
    pub fn of(volume: VolumeId, listing: impl IntoIterator<Item = (String, Stored)>) -> Inventory {
        let mut inventory = Inventory::default();
        for (key, stored) in listing {
            match Name::of_key(&key) {
                Ok((of, name)) if of == volume => inventory.insert(name, stored),
                _ => inventory.strangers.push(key),
            }
        }
        inventory
    }

    /// Adds an object.
    pub fn insert(&mut self, name: Name, stored: Stored) {
        self.objects.insert(name, stored);
    }

    /// Takes an object away, if it is there.
    pub fn remove(&mut self, name: &Name) {
        self.objects.remove(name);
    }

    /// The same without these objects.
    #[must_use]
    pub fn without(&self, names: &BTreeSet<Name>) -> Inventory {
        let mut rest = self.clone();
        rest.objects.retain(|name, _| !names.contains(name));
        rest
    }

    /// The same without those manifests of which it is known that they name a page object that is not there: a listing shows
    /// the manifest, and not that it is worth nothing.
    #[must_use]
    pub fn without_broken(&self, references: &BTreeMap<ManifestName, BTreeSet<PagesName>>) -> Inventory {
        let is_there = |pages: &PagesName| self.objects.contains_key(&Name::Pages(*pages));
        let broken = references.iter().filter(|(_, pages)| !pages.iter().all(is_there));
        self.without(&broken.map(|(manifest, _)| Name::Manifest(*manifest)).collect())
    }

    /// Every object, by name.
    pub fn objects(&self) -> impl Iterator<Item = (&Name, Stored)> {
        self.objects.iter().map(|(name, stored)| (name, *stored))
    }

    /// What the store says of an object; `None` if it is not there.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<Stored> {
        self.objects.get(name).copied()
    }

    /// Keys that no object of the volume has. They are left alone.
    #[must_use]
    pub fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Redo objects of a group, in the order of their ends.
    pub fn redo(&self, group: GroupId) -> impl Iterator<Item = RedoName> {
        let bound = |Bound { lsn, epoch, node, digest }| {
            let (last_end, previous_end, complete_through) = (lsn, lsn, lsn);
            Name::Redo(RedoName { group, last_end, previous_end, epoch, complete_through, node, digest })
        };
        self.objects.range(bound(LOWEST)..=bound(HIGHEST)).filter_map(|(name, _)| match name {
            Name::Redo(redo) => Some(*redo),
            _ => None,
        })
    }

    /// Manifests of a group, in the order of their points.
    pub fn manifests(&self, group: GroupId) -> impl Iterator<Item = ManifestName> {
        let bound = |Bound { lsn, epoch, node, digest }| {
            Name::Manifest(ManifestName { group, lsn, tail_end: lsn, epoch, node, digest })
        };
        self.objects.range(bound(LOWEST)..=bound(HIGHEST)).filter_map(|(name, _)| match name {
            Name::Manifest(manifest) => Some(*manifest),
            _ => None,
        })
    }

    /// Histories, the newest epoch last.
    pub fn histories(&self) -> impl Iterator<Item = HistoryName> {
        self.objects.keys().filter_map(|name| match name {
            Name::History(history) => Some(*history),
            _ => None,
        })
    }

    /// Lists of marks, in the order of their times.
    pub fn marks(&self) -> impl Iterator<Item = MarksName> {
        self.objects.keys().filter_map(|name| match name {
            Name::Marks(marks) => Some(*marks),
            _ => None,
        })
    }

    /// The revision of the retention that counts; `None` if none was ever set.
    #[must_use]
    pub fn retention_revision(&self) -> Option<u64> {
        let revisions = self.objects.keys().filter_map(|name| match name {
            Name::Retention { revision } => Some(*revision),
            _ => None,
        });
        revisions.max()
    }
}
