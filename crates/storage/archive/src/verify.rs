//! Reading a backup back: what is damaged or missing, and which points are lost by it.
//!
//! The caller hands over the bytes of every object, in any order, one at a time. An object that is not what its name says is as good as
//! absent. What a listing cannot show is checked here too: that objects of a chain meet at ends of records, and that what manifests
//! name is there.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{GroupId, Lsn, PageKey, VolumeId};

use crate::error::FormatError;
use crate::history;
use crate::inventory::Inventory;
use crate::known::{Known, kept_of};
use crate::manifest::{Entry, for_each_entry};
use crate::marks;
use crate::name::{ManifestName, Name, PagesName, RedoName};
use crate::object::Object;
use crate::pages::{PagesFacts, for_each_extent};
use crate::ranges::{LsnRange, LsnRanges};
use crate::redo::for_each_record;
use crate::restorable::{restorable, stretch_of};
use crate::sealing::Sealing;
use crate::settings::{self, NamedSnapshot, Retention, VolumeFacts};

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The listing had it, and it could not be read.
    #[error("is not there, or cannot be read")]
    Missing,
    /// Its bytes.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Redo begins inside what should be one record of another object, or where that has none.
    #[error("begins at {0}, where the object before it has no end of a record")]
    DoesNotMeet(Lsn),
    /// A snapshot names a page object that is not there or is damaged.
    #[error("names {0}, which is missing or damaged")]
    NamesMissing(PagesName),
    /// A snapshot names an extent that is not where it says.
    #[error("names an extent that {0} does not have there")]
    NamesOther(PagesName),
    /// A page of a group that does not own it.
    #[error("has a page of another group")]
    OtherGroup,
}

/// Points that could be restored if nothing were damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The points.
    pub range: LsnRange,
    /// About when they were reached ([`Known::clock_of`]).
    pub clock_ms: (u64, u64),
}

/// What a verification found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// How many objects were read.
    pub objects: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// What is wrong, by object.
    pub faults: BTreeMap<Name, Fault>,
    /// What can be restored all the same.
    pub restorable: LsnRanges,
    /// What cannot because of the faults.
    pub lost: Vec<Lost>,
    /// Between points that can be restored: what no object that is listed could ever restore.
    pub gaps: Vec<Lost>,
}

impl Report {
    /// The gaps that nobody wanted: between named points that are older than the retention's window, which begins at `start`, nothing is kept.
    pub fn gaps_since(&self, start: Lsn) -> impl Iterator<Item = &Lost> {
        self.gaps.iter().filter(move |gap| gap.range.through >= start)
    }
}

/// Where an extent should be.
type Reference = (PagesName, PageKey, u32);

/// A verification under way.
#[derive(Debug)]
pub struct Verification<'a> {
    volume: VolumeId,
    inventory: &'a Inventory,
    known: &'a Known,
    sealing: &'a Sealing,
    objects: u64,
    bytes: u64,
    faults: BTreeMap<Name, Fault>,
    /// Of each group: where objects and snapshots go on with the chain, and which.
    joints: BTreeMap<GroupId, BTreeMap<Lsn, Vec<Name>>>,
    references: BTreeMap<ManifestName, Vec<Reference>>,
    extents: BTreeMap<PagesName, BTreeMap<PageKey, u32>>,
}

impl<'a> Verification<'a> {
    /// Of what is in an inventory.
    #[must_use]
    pub fn new(
        volume: VolumeId,
        inventory: &'a Inventory,
        known: &'a Known,
        sealing: &'a Sealing,
    ) -> Verification<'a> {
        let mut joints: BTreeMap<GroupId, BTreeMap<Lsn, Vec<Name>>> = BTreeMap::new();
        for group in known.placement.groups() {
            let at = joints.entry(group).or_default();
            for redo in inventory.redo(group).filter(|redo| stretch_of(redo, &known.history).is_some()) {
                at.entry(redo.previous_end).or_default().push(Name::Redo(redo));
            }
            for manifest in inventory.manifests(group) {
                at.entry(manifest.tail_end).or_default().push(Name::Manifest(manifest));
            }
        }
        Verification {
            volume,
            inventory,
            known,
            sealing,
            objects: 0,
            bytes: 0,
            faults: BTreeMap::new(),
            joints,
            references: BTreeMap::new(),
            extents: BTreeMap::new(),
        }
    }

    /// Checks an object; `None` says that it could not be read.
    pub fn check(&mut self, name: &Name, bytes: Option<&[u8]>) {
        self.objects += 1;
        let Some(bytes) = bytes else {
            self.faults.insert(name.clone(), Fault::Missing);
            return;
        };
        self.bytes += bytes.len() as u64;
        if let Err(fault) = self.check_bytes(name, bytes) {
            self.faults.insert(name.clone(), fault);
        }
    }

    fn check_bytes(&mut self, name: &Name, bytes: &[u8]) -> Result<(), Fault> {
        let (volume, sealing) = (self.volume, self.sealing);
        match name {
            Name::Volume => {
                settings::decode::<VolumeFacts>(bytes, volume, sealing)?;
            }
            Name::Retention { .. } => {
                settings::decode::<Retention>(bytes, volume, sealing)?;
            }
            Name::Snapshot(name) => {
                let snapshot: NamedSnapshot = settings::decode(bytes, volume, sealing)?;
                if snapshot.name != *name {
                    return Err(FormatError::Name.into());
                }
            }
            Name::History(name) => {
                history::decode(bytes, volume, name, sealing)?;
            }
            Name::Marks(name) => {
                marks::decode(bytes, volume, name, sealing)?;
            }
            Name::Redo(name) => self.check_redo(name, bytes)?,
            Name::Pages(name) => self.check_pages(name, bytes)?,
            Name::Manifest(name) => self.check_manifest(name, bytes)?,
        }
        Ok(())
    }

    fn check_redo(&mut self, name: &RedoName, bytes: &[u8]) -> Result<(), Fault> {
        let through = kept_of(&self.known.history, name.epoch).map_or(Lsn::ZERO, |kept| kept.through);
        let inside = |end: Lsn| name.previous_end < end && end < name.last_end && end <= through;
        let group = self.joints.get(&name.group);
        let joints = group.into_iter().flat_map(|at| at.range(name.previous_end..name.last_end));
        let mut open: BTreeSet<Lsn> = joints.map(|(end, _)| *end).filter(|end| inside(*end)).collect();
        for_each_record(bytes, self.volume, name, self.sealing, |record| {
            open.remove(&record.span.end);
        })?;
        for end in open {
            let who = self.joints.get(&name.group).and_then(|at| at.get(&end)).into_iter().flatten();
            for name in who {
                self.faults.entry(name.clone()).or_insert(Fault::DoesNotMeet(end));
            }
        }
        Ok(())
    }

    fn check_pages(&mut self, name: &PagesName, bytes: &[u8]) -> Result<(), Fault> {
        let object = Object::<PagesFacts>::decode_named(bytes, self.volume, name.digest, self.sealing)?;
        if object.facts().name(name.digest) != *name {
            return Err(FormatError::Name.into());
        }
        let mut extents = BTreeMap::new();
        let mut strangers = false;
        for (number, block) in (0..).zip(object.blocks()) {
            for_each_extent(&block?, |extent| {
                strangers |= self.known.placement.group_of(&extent.first()) != name.group;
                extents.insert(extent.first(), number);
            })?;
        }
        if extents.len() as u64 != object.facts().extents {
            return Err(FormatError::Malformed("extents are missing").into());
        }
        if strangers {
            return Err(Fault::OtherGroup);
        }
        self.extents.insert(*name, extents);
        Ok(())
    }

    fn check_manifest(&mut self, name: &ManifestName, bytes: &[u8]) -> Result<(), Fault> {
        let mut objects = Vec::new();
        let mut references = Vec::new();
        for_each_entry(bytes, self.volume, name, self.sealing, |entry| match entry {
            Entry::Object(pages) => objects.push(pages),
            // Checked: it is one of those that came before.
            Entry::Extent { first, object, block, .. } => {
                references.push((objects[object as usize], first, block))
            }
            Entry::Relation { .. } | Entry::Value { .. } => {}
        })?;
        self.references.insert(*name, references);
        Ok(())
    }

    /// Which page objects each manifest names, of those that were read: what a deletion needs to know.
    #[must_use]
    pub fn references(&self) -> BTreeMap<ManifestName, BTreeSet<PagesName>> {
        let of = |references: &Vec<Reference>| references.iter().map(|(pages, ..)| *pages).collect();
        self.references.iter().map(|(manifest, references)| (*manifest, of(references))).collect()
    }

    /// What was found, now that every object of the inventory was checked.
    #[must_use]
    pub fn finish(mut self) -> Report {
        for (manifest, references) in &self.references {
            let fault = references.iter().find_map(|(pages, first, block)| match self.extents.get(pages) {
                None => Some(Fault::NamesMissing(*pages)),
                Some(extents) if extents.get(first) != Some(block) => Some(Fault::NamesOther(*pages)),
                Some(_) => None,
            });
            if let Some(fault) = fault {
                self.faults.entry(Name::Manifest(*manifest)).or_insert(fault);
            }
        }
        let damaged: BTreeSet<Name> = self.faults.keys().cloned().collect();
        let sound_known = Known {
            marks: self
                .known
                .marks
                .iter()
                .filter(|(name, _)| !damaged.contains(&Name::Marks(**name)))
                .map(|(name, marks)| (*name, marks.clone()))
                .collect(),
            ..self.known.clone()
        };
        let listed = restorable(self.inventory, self.known);
        let sound = restorable(&self.inventory.without(&damaged), &sound_known);
        let lost = |ranges: &LsnRanges| {
            let lost = ranges.ranges().iter();
            lost.map(|range| Lost { range: *range, clock_ms: self.known.clock_of(*range) }).collect()
        };
        let bounds = listed.ranges().first().zip(listed.ranges().last());
        let whole = bounds.map(|(first, last)| LsnRange { from: first.from, through: last.through });
        let gaps = whole.into_iter().collect::<LsnRanges>().without(&listed);
        Report {
            objects: self.objects,
            bytes: self.bytes,
            lost: lost(&listed.without(&sound)),
            gaps: lost(&gaps),
            restorable: sound,
            faults: self.faults,
        }
    }
}
