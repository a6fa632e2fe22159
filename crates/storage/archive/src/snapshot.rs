//! Making a snapshot of a group: pages go in, in key order; page objects come out, and last the manifest. And reading one.
//!
//! The pages are all of the group's as of one position. An extent that has what it had in the snapshot before is named in the object of that
//! one, and an extent that an attempt put into the store which did not get to its end is named there, too. Nothing is believed of
//! what changed: every page comes, and is compared by the sum of its extent.

use std::collections::BTreeMap;

use borealis_types::{
    GroupId, Lsn, MetaKey, NodeId, PageBytes, PageKey, RecordSpan, RelationFork, VolumeEpoch, VolumeId,
    invariant,
};

use crate::error::FormatError;
use crate::manifest::{Entry, EntryError, ManifestBuilder, ManifestFacts, for_each_entry};
use crate::name::{ManifestName, PagesName};
use crate::object::Digest;
use crate::pages::{ExtentPages, PagesBuilder, extent_of};
use crate::sealing::Sealing;

/// Where an extent's pages are, and what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The object.
    pub object: PagesName,
    /// The block of it.
    pub block: u32,
    /// What the extent has ([`ExtentPages::content`]).
    pub content: Digest,
}

/// An extent's place, with the object by its number: there are very many extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    object: u32,
    block: u32,
    content: Digest,
}

/// Where extents are, by their first pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extents {
    objects: Vec<PagesName>,
    numbers: BTreeMap<PagesName, u32>,
    places: BTreeMap<PageKey, Place>,
}

impl Extents {
    /// Where the extent is that begins with a page.
    #[must_use]
    pub fn get(&self, first: &PageKey) -> Option<Placed> {
        self.places.get(first).map(|place| self.placed(place))
    }

    /// Every extent, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (PageKey, Placed)> {
        self.places.iter().map(|(first, place)| (*first, self.placed(place)))
    }

    fn placed(&self, place: &Place) -> Placed {
        let Place { object, block, content } = *place;
        Placed { object: self.objects[object as usize], block, content }
    }

    /// Notes where an extent is, instead of where it was.
    pub fn insert(&mut self, first: PageKey, placed: Placed) {
        let Placed { object, block, content } = placed;
        let objects = &mut self.objects;
        let object = *self.numbers.entry(object).or_insert_with(|| {
            objects.push(object);
            (objects.len() - 1) as u32
        });
        self.places.insert(first, Place { object, block, content });
    }

    /// Takes what another has in some objects, instead of what was here of the same extents.
    pub fn extend(&mut self, other: &Extents, mut is_taken: impl FnMut(&PagesName) -> bool) {
        let taken = other.iter().filter(|(_, placed)| is_taken(&placed.object));
        taken.for_each(|(first, placed)| self.insert(first, placed));
    }
}

/// A snapshot, as its manifest describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// What the manifest says of itself.
    pub facts: ManifestFacts,
    /// Where its pages are.
    pub extents: Extents,
    /// Every fork that exists, with its size as the group knows it.
    pub relations: Vec<(RelationFork, u32)>,
    /// Every value.
    pub values: Vec<(MetaKey, Vec<u8>)>,
}

impl Snapshot {
    /// Reads a manifest.
    ///
    /// # Errors
    /// As [`for_each_entry`].
    pub fn decode(
        bytes: &[u8],
        volume: VolumeId,
        name: &ManifestName,
        sealing: &Sealing,
    ) -> Result<Snapshot, FormatError> {
        let (mut objects, mut extents) = (Vec::new(), Extents::default());
        let (mut relations, mut values) = (Vec::new(), Vec::<(MetaKey, Vec<u8>)>::new());
        let facts = for_each_entry(bytes, volume, name, sealing, |entry| match entry {
            Entry::Object(object) => objects.push(object),
            Entry::Extent { first, object, block, content } => {
                // Checked: it is one of those that came before.
                extents.insert(first, Placed { object: objects[object as usize], block, content });
            }
            Entry::Relation { fork, blocks } => relations.push((fork, blocks)),
            Entry::Value { key, mut part, .. } => match values.last_mut().filter(|(last, _)| *last == key) {
                Some((_, value)) => value.append(&mut part),
                None => values.push((key, part)),
            },
        })?;
        Ok(Snapshot { facts, extents, relations, values })
    }
}

/// As of what a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotPoint {
    /// The group.
    pub group: GroupId,
    /// The epoch in which the point was durable.
    pub epoch: VolumeEpoch,
    /// The volume's last record that is in it.
    pub last: RecordSpan,
    /// End of the group's last record that is in it; zero if there is none.
    pub tail_end: Lsn,
}

/// A page that does not come after the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page {0} does not come after the one before it")]
pub struct OutOfOrder(PageKey);

/// A page object that is ready to be stored.
pub type PageObject = (PagesName, Vec<u8>);

/// Makes one snapshot.
#[derive(Debug)]
pub struct SnapshotMaker {
    volume: VolumeId,
    node: NodeId,
    sealing: Sealing,
    point: SnapshotPoint,
    /// An object is full when its content takes so many bytes.
    object_bytes: usize,
    /// Extents that are in the store.
    known: Extents,
    made: Extents,
    /// The extent whose pages come.
    open: Option<ExtentPages>,
    builder: PagesBuilder,
    /// What the extents in the builder have.
    contents: Vec<Digest>,
    last: Option<PageKey>,
}

impl SnapshotMaker {
    /// For a snapshot as of `point`. `known` are extents that are in the store, of objects as of the point or an earlier one.
    #[must_use]
    pub fn new(
        (volume, node): (VolumeId, NodeId),
        sealing: Sealing,
        point: SnapshotPoint,
        object_bytes: usize,
        known: Extents,
    ) -> SnapshotMaker {
        let SnapshotPoint { group, epoch, last, .. } = point;
        SnapshotMaker {
            volume,
            node,
            sealing,
            point,
            object_bytes,
            known,
            made: Extents::default(),
            open: None,
            builder: PagesBuilder::new(volume, group, node, epoch, last.end),
            contents: Vec::new(),
            last: None,
        }
    }

    /// As of what it is.
    #[must_use]
    pub fn point(&self) -> SnapshotPoint {
        self.point
    }

    /// The last page that it took.
    #[must_use]
    pub fn last(&self) -> Option<PageKey> {
        self.last
    }

    /// Takes the next page that exists. Returns an object if one became full: it has to be in the store before the snapshot ends.
    ///
    /// # Errors
    /// When the page does not come after the last one. Nothing has changed then.
    pub fn take(&mut self, key: &PageKey, page: &PageBytes) -> Result<Option<PageObject>, OutOfOrder> {
        if self.last.is_some_and(|last| last >= *key) {
            return Err(OutOfOrder(*key));
        }
        let is_next = self.open.as_ref().is_some_and(|open| open.first() != extent_of(key).0);
        let full = if is_next { self.close_extent() } else { None };
        let taken = self.open.get_or_insert_with(|| ExtentPages::new(key)).push(key, page);
        must_be_taken(taken, key);
        self.last = Some(*key);
        Ok(full)
    }

    /// No page comes after the last one. Returns the last object, if there is one.
    pub fn end_pages(&mut self) -> Option<PageObject> {
        let full = self.close_extent();
        full.or_else(|| self.end_object())
    }

    fn close_extent(&mut self) -> Option<PageObject> {
        let extent = self.open.take()?;
        let (first, content) = (extent.first(), extent.content());
        let same = self
            .known
            .get(&first)
            .filter(|placed| placed.content == content && placed.object.lsn <= self.point.last.end);
        if let Some(placed) = same {
            self.made.insert(first, placed);
            return None;
        }
        let mut full = None;
        if !self.builder.push(&extent) {
            // It has as many blocks as an object may have.
            full = self.end_object();
            must_be_taken(self.builder.push(&extent), &first);
        }
        self.contents.push(content);
        if full.is_none() && self.builder.size_bytes() >= self.object_bytes {
            full = self.end_object();
        }
        full
    }

    fn end_object(&mut self) -> Option<PageObject> {
        let SnapshotPoint { group, epoch, last, .. } = self.point;
        let next = PagesBuilder::new(self.volume, group, self.node, epoch, last.end);
        let builder = std::mem::replace(&mut self.builder, next);
        let (object, bytes, places) = builder.finish(&self.sealing)?;
        for (place, content) in places.into_iter().zip(std::mem::take(&mut self.contents)) {
            self.made.insert(place.first, Placed { object, block: place.block, content });
        }
        Some((object, bytes))
    }

    /// The snapshot does not get to its end: what the next attempt need not put into the store again. `lost` is not in the store.
    #[must_use]
    pub fn abandon(self, lost: Option<PagesName>) -> Extents {
        let mut known = self.known;
        let made = self.made.iter().filter(|(_, placed)| Some(placed.object) != lost);
        made.for_each(|(first, placed)| known.insert(first, placed));
        known
    }

    /// The manifest, once every object is in the store. `relations` are all forks that exist, and `values` all values, both in key order.
    ///
    /// # Errors
    /// When they are not in order.
    ///
    /// # Panics
    /// When pages were taken after [`SnapshotMaker::end_pages`], or it was not called: the manifest would lack them.
    pub fn finish(
        &self,
        relations: &[(RelationFork, u32)],
        values: &[(MetaKey, Vec<u8>)],
    ) -> Result<(ManifestName, Vec<u8>), EntryError> {
        invariant!(
            "snapshot-has-all-its-pages",
            self.open.is_none() && self.contents.is_empty(),
            "{} extents are in no object",
            self.contents.len() + usize::from(self.open.is_some())
        );
        let SnapshotPoint { group, epoch, last, tail_end } = self.point;
        let mut manifest = ManifestBuilder::new(self.volume, group, self.node, epoch, (last, tail_end));
        let mut numbers: BTreeMap<PagesName, u32> =
            self.made.iter().map(|(_, placed)| (placed.object, 0)).collect();
        for (number, (object, of)) in (0..).zip(&mut numbers) {
            *of = number;
            manifest.push(&Entry::Object(*object))?;
        }
        for (first, Placed { object, block, content }) in self.made.iter() {
            manifest.push(&Entry::Extent { first, object: numbers[&object], block, content })?;
        }
        for &(fork, blocks) in relations {
            manifest.push(&Entry::Relation { fork, blocks })?;
        }
        for (key, value) in values {
            manifest.push_value(key, value)?;
        }
        manifest.finish(&self.sealing)
    }
}

/// A page that came is in the snapshot, or a restore would not know of it.
fn must_be_taken(taken: bool, key: &PageKey) {
    invariant!("snapshot-has-all-its-pages", taken, "page {key} is in no extent, or its extent in no object");
}
