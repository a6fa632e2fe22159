//! Manifests: what makes page objects a snapshot of a group as of one LSN.
//!
//! ```text
//! facts = group start lsn tail_end epoch node extents relations values
//! block = postcard(entry)*         about 256 KiB of them
//! ```
//!
//! Entries are in order: page objects, then extents, relations and values, each kind in key order. An extent that did not change
//! since an earlier snapshot is named in the object of that one, so a snapshot costs what changed. What an extent has is summed: whoever
//! makes the next snapshot compares without reading the objects, and whoever restores proves each extent that it read alone. A value that is long (a
//! prepared transaction can be) comes in parts. The manifest is uploaded last: when it is there, everything that it names was there
//! before it.

use borealis_types::{
    GroupId, Lsn, MAX_GROUPS, MetaKey, NodeId, PageKey, RecordSpan, RelationFork, VolumeEpoch, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::name::{ManifestName, PagesName};
use crate::object::{Digest, Facts, Kind, Object, ObjectWriter};
use crate::pages::extent_of;
use crate::sealing::Sealing;

/// A block is full when it has so many bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// The longest part of a value, in bytes.
pub const VALUE_PART_BYTES_MAX: usize = 1 << 20;

/// What a manifest says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestFacts {
    /// The group whose snapshot it completes.
    pub group: GroupId,
    /// Where the volume's record begins that ends at `lsn`: a volume that is restored to there links back to it.
    pub start: Lsn,
    /// As of which it is.
    pub lsn: Lsn,
    /// End of the group's last record at or before `lsn`; zero if there is none.
    pub tail_end: Lsn,
    /// The epoch in which `lsn` was durable.
    pub epoch: VolumeEpoch,
    /// Who made it.
    pub node: NodeId,
    /// How many extents it names.
    pub extents: u64,
    /// How many forks it has sizes of.
    pub relations: u64,
    /// How many parts of values it has.
    pub value_parts: u64,
}

impl Facts for ManifestFacts {
    const KIND: Kind = Kind::Manifest;

    fn check(&self) -> Result<(), &'static str> {
        let good = self.group.0 < MAX_GROUPS && self.tail_end <= self.lsn && self.start <= self.lsn;
        if good { Ok(()) } else { Err("positions of a manifest out of order") }
    }
}

impl ManifestFacts {
    /// The name of the object with these facts.
    #[must_use]
    pub fn name(&self, digest: Digest) -> ManifestName {
        let ManifestFacts { group, lsn, tail_end, epoch, node, .. } = *self;
        ManifestName { group, lsn, tail_end, epoch, node, digest }
    }
}

/// One line of a manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// A page object that extents are in. They are numbered from zero, in this order.
    Object(PagesName),
    /// Where an extent is.
    Extent {
        /// Its first page.
        first: PageKey,
        /// The number of the page object that has it.
        object: u32,
        /// The number of the block there.
        block: u32,
        /// Of what it has ([`crate::pages::ExtentPages::content`]).
        content: Digest,
    },
    /// A fork, with its size as the group knows it.
    Relation {
        /// Which one.
        fork: RelationFork,
        /// Its highest block in this group, plus one.
        blocks: u32,
    },
    /// A value, or a part of one; parts follow one another.
    Value {
        /// Its name.
        key: MetaKey,
        /// Length of the whole value, in bytes.
        total_bytes: u64,
        /// The value from where the part before ended, at most [`VALUE_PART_BYTES_MAX`].
        part: Vec<u8>,
    },
}

/// What must rise from entry to entry.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    Object(PagesName),
    Extent(PageKey),
    Relation(RelationFork),
    /// With how much of the value came before.
    Value(MetaKey, u64),
}

/// What came so far.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    objects: u32,
    extents: u64,
    relations: u64,
    value_parts: u64,
    /// Of a value that has not all of its parts yet: how much came, and how long it is.
    open_value: Option<(u64, u64)>,
}

/// Checks that entries follow one another as they must.
#[derive(Debug, Default)]
struct Order {
    last: Option<Place>,
    counts: Counts,
}

impl Order {
    /// Takes an entry; one that is refused changes nothing.
    ///
    /// # Errors
    /// Says what is out of order.
    fn take(&mut self, group: GroupId, lsn: Lsn, entry: &Entry) -> Result<(), &'static str> {
        let mut counts = self.counts;
        let place = match entry {
            Entry::Object(name) => {
                counts.objects += 1;
                if name.group != group || name.lsn > lsn {
                    return Err("a page object of another group, or of a later point");
                }
                Place::Object(*name)
            }
            Entry::Extent { first, object, .. } => {
                counts.extents += 1;
                if *object >= counts.objects || extent_of(first).1 != 0 {
                    return Err("an extent that is in no object, or begins in the middle");
                }
                Place::Extent(*first)
            }
            Entry::Relation { fork, .. } => {
                counts.relations += 1;
                Place::Relation(*fork)
            }
            Entry::Value { key, total_bytes, part } => {
                counts.value_parts += 1;
                let before = self.before_part(key, *total_bytes)?;
                let came = before + part.len() as u64;
                let is_empty = part.is_empty() && *total_bytes > 0;
                if part.len() > VALUE_PART_BYTES_MAX || came > *total_bytes || is_empty {
                    return Err("parts of a value that do not add up");
                }
                counts.open_value = (came < *total_bytes).then_some((came, *total_bytes));
                Place::Value(key.clone(), before)
            }
        };
        let value_ended = self.counts.open_value.is_none() || matches!(place, Place::Value(..));
        if !value_ended || self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err("entries out of order");
        }
        self.last = Some(place);
        self.counts = counts;
        Ok(())
    }

    /// How much of a value came before a part of it.
    fn before_part(&self, key: &MetaKey, total_bytes: u64) -> Result<u64, &'static str> {
        match (self.counts.open_value, &self.last) {
            (None, _) => Ok(0),
            (Some((came, total)), Some(Place::Value(last, _))) if last == key && total == total_bytes => {
                Ok(came)
            }
            _ => Err("a value that does not end"),
        }
    }
}

/// Collects entries for one manifest.
#[derive(Debug)]
pub struct ManifestBuilder {
    writer: ObjectWriter,
    facts: ManifestFacts,
    order: Order,
    block: Vec<u8>,
}

/// An entry that cannot stand where it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a manifest cannot have this entry here: {0}")]
pub struct EntryError(&'static str);

impl ManifestBuilder {
    /// A manifest of a group's snapshot as of the end of `last`, a record of the volume that was durable in `epoch`. The group's last
    /// record until there ends at `tail_end`.
    #[must_use]
    pub fn new(
        volume: VolumeId,
        group: GroupId,
        node: NodeId,
        epoch: VolumeEpoch,
        (last, tail_end): (RecordSpan, Lsn),
    ) -> ManifestBuilder {
        let RecordSpan { start, end: lsn } = last;
        let counts = Counts::default();
        let Counts { extents, relations, value_parts, .. } = counts;
        let facts =
            ManifestFacts { group, start, lsn, tail_end, epoch, node, extents, relations, value_parts };
        ManifestBuilder {
            writer: ObjectWriter::new(volume),
            facts,
            order: Order::default(),
            block: Vec::new(),
        }
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// When it does not follow the one before, or names an object that was not added.
    pub fn push(&mut self, entry: &Entry) -> Result<(), EntryError> {
        self.order.take(self.facts.group, self.facts.lsn, entry).map_err(EntryError)?;
        let block = std::mem::take(&mut self.block);
        self.block = postcard::to_extend(entry, block)
            .expect("plain numbers and lists always encode into a growing buffer");
        if self.block.len() >= BLOCK_BYTES {
            self.end_block();
        }
        Ok(())
    }

    /// Adds a whole value, in as many parts as it takes.
    ///
    /// # Errors
    /// As [`ManifestBuilder::push`].
    pub fn push_value(&mut self, key: &MetaKey, value: &[u8]) -> Result<(), EntryError> {
        let total_bytes = value.len() as u64;
        let mut rest = value;
        loop {
            let (part, after) = rest.split_at(rest.len().min(VALUE_PART_BYTES_MAX));
            self.push(&Entry::Value { key: key.clone(), total_bytes, part: part.to_vec() })?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn end_block(&mut self) {
        self.writer.push(&self.block);
        self.block.clear();
    }

    /// The manifest.
    ///
    /// # Errors
    /// When a value has not all of its parts, or the positions are out of order.
    pub fn finish(mut self, sealing: &Sealing) -> Result<(ManifestName, Vec<u8>), EntryError> {
        if self.order.counts.open_value.is_some() {
            return Err(EntryError("a value that does not end"));
        }
        self.facts.check().map_err(EntryError)?;
        if !self.block.is_empty() {
            self.end_block();
        }
        let Counts { extents, relations, value_parts, .. } = self.order.counts;
        let facts = ManifestFacts { extents, relations, value_parts, ..self.facts };
        let encoded = self.writer.finish(facts, sealing);
        Ok((facts.name(encoded.digest), encoded.bytes))
    }
}

/// Calls `take` with each entry of a manifest, in order.
///
/// # Errors
/// When it is not the manifest with that name, or its entries are out of order or missing. What was taken before was in order.
pub fn for_each_entry(
    bytes: &[u8],
    volume: VolumeId,
    name: &ManifestName,
    sealing: &Sealing,
    mut take: impl FnMut(Entry),
) -> Result<ManifestFacts, FormatError> {
    let object = Object::<ManifestFacts>::decode_named(bytes, volume, name.digest, sealing)?;
    let facts = *object.facts();
    if facts.name(name.digest) != *name {
        return Err(FormatError::Name);
    }
    let mut order = Order::default();
    for block in object.blocks() {
        let block = block?;
        let mut rest = &block[..];
        while !rest.is_empty() {
            let (entry, after): (Entry, _) = postcard::take_from_bytes(rest)
                .map_err(|_| FormatError::Malformed("an entry does not decode"))?;
            rest = after;
            order.take(facts.group, facts.lsn, &entry).map_err(FormatError::Malformed)?;
            take(entry);
        }
    }
    let order = order.counts;
    let counts = (order.extents, order.relations, order.value_parts);
    if counts != (facts.extents, facts.relations, facts.value_parts) || order.open_value.is_some() {
        return Err(FormatError::Malformed("entries are missing"));
    }
    Ok(facts)
}
