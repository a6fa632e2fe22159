//! Marks: how far the volume was durable, and its groups complete, at some time of some node's clock.
//!
//! ```text
//! facts = node from_ms to_ms lsn marks
//! block = postcard(mark)*
//! ```
//!
//! A mark answers two questions. *When was it?* A second is asked for, and marks translate it into a position: a commit record
//! that ends at or before a mark's position was durable at its time. *Is anything missing?* A group that had nothing to do has no redo
//! object near a position; a mark that names where its redo ends as of that position says that there is nothing more.
//!
//! A node writes a list again with each new mark, for some minutes, and removes the one before: so that there are few to read. A list of the same
//! node with the same first mark and a later last one has all of it ([`superseded`]).

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{Lsn, MAX_GROUPS, NodeId, VolumeEpoch, VolumeId};
use borealis_wire::GroupTail;
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::name::MarksName;
use crate::object::{Digest, Facts, Kind, Object, ObjectWriter};
use crate::sealing::Sealing;

/// Marks of one object at most: a day of one every second, about.
pub const MARKS_MAX: usize = 100_000;

/// A block is full when it has so many bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// One look at the clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// The node's clock, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The epoch in which the position was durable.
    pub epoch: VolumeEpoch,
    /// The volume was durable to here (VDL).
    pub durable: Lsn,
    /// Where the redo of those groups that the node has ends as of `durable`; in group order.
    #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
    pub tails: Vec<GroupTail>,
}

impl Mark {
    fn check(&self) -> Result<(), FormatError> {
        let ordered = self.tails.windows(2).all(|pair| pair[0].group < pair[1].group);
        let within = self.tails.iter().all(|tail| tail.group.0 < MAX_GROUPS && tail.last_end <= self.durable);
        if ordered && within { Ok(()) } else { Err(FormatError::Malformed("the tails of a mark")) }
    }
}

/// What a list of marks says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MarksFacts {
    /// Whose clock it is.
    pub node: NodeId,
    /// Clock of the first mark.
    pub from_ms: u64,
    /// Clock of the last mark.
    pub to_ms: u64,
    /// The highest position of a mark.
    pub lsn: Lsn,
    /// How many marks there are.
    pub marks: u64,
}

impl Facts for MarksFacts {
    const KIND: Kind = Kind::Marks;

    fn check(&self) -> Result<(), &'static str> {
        let good = self.from_ms <= self.to_ms && (1..=MARKS_MAX as u64).contains(&self.marks);
        if good { Ok(()) } else { Err("times of marks out of order") }
    }
}

impl MarksFacts {
    /// The name of the object with these facts.
    #[must_use]
    pub fn name(&self, digest: Digest) -> MarksName {
        let MarksFacts { node, from_ms, to_ms, lsn, marks: _ } = *self;
        MarksName { to_ms, from_ms, lsn, node, digest }
    }
}

/// Lists that another of the same node has all of.
#[must_use]
pub fn superseded<'a>(lists: impl IntoIterator<Item = &'a MarksName>) -> BTreeSet<MarksName> {
    let mut longest: BTreeMap<(NodeId, u64), MarksName> = BTreeMap::new();
    let mut superseded = BTreeSet::new();
    for list in lists {
        let place = longest.entry((list.node, list.from_ms)).or_insert(*list);
        if place.to_ms < list.to_ms {
            superseded.insert(std::mem::replace(place, *list));
        } else if list.to_ms < place.to_ms {
            superseded.insert(*list);
        }
    }
    superseded
}

/// The object of these marks of one node; `None` if there are none, more than [`MARKS_MAX`], or they are not in the order of their times.
#[must_use]
pub fn encode(
    volume: VolumeId,
    node: NodeId,
    marks: &[Mark],
    sealing: &Sealing,
) -> Option<(MarksName, Vec<u8>)> {
    let (first, last) = (marks.first()?, marks.last()?);
    let in_order = marks.is_sorted_by_key(|mark| mark.clock_ms);
    if !in_order || marks.len() > MARKS_MAX || marks.iter().any(|mark| mark.check().is_err()) {
        return None;
    }
    let mut writer = ObjectWriter::new(volume);
    let mut block = Vec::new();
    for mark in marks {
        block = postcard::to_extend(mark, block)
            .expect("plain numbers and lists always encode into a growing buffer");
        if block.len() >= BLOCK_BYTES {
            writer.push(&block);
            block.clear();
        }
    }
    if !block.is_empty() {
        writer.push(&block);
    }
    let lsn = marks.iter().map(|mark| mark.durable).max()?;
    let (from_ms, to_ms) = (first.clock_ms, last.clock_ms);
    let facts = MarksFacts { node, from_ms, to_ms, lsn, marks: marks.len() as u64 };
    let encoded = writer.finish(facts, sealing);
    Some((facts.name(encoded.digest), encoded.bytes))
}

/// The marks in an object, in the order of their times.
///
/// # Errors
/// When the object is not the one with that name, or its marks are not what it says.
pub fn decode(
    bytes: &[u8],
    volume: VolumeId,
    name: &MarksName,
    sealing: &Sealing,
) -> Result<Vec<Mark>, FormatError> {
    let object = Object::<MarksFacts>::decode_named(bytes, volume, name.digest, sealing)?;
    let facts = *object.facts();
    let mut marks: Vec<Mark> = Vec::new();
    for block in object.blocks() {
        let block = block?;
        let mut rest = &block[..];
        while !rest.is_empty() {
            let (mark, after): (Mark, _) = postcard::take_from_bytes(rest)
                .map_err(|_| FormatError::Malformed("a mark does not decode"))?;
            mark.check()?;
            rest = after;
            if marks.len() as u64 >= facts.marks
                || marks.last().is_some_and(|last| last.clock_ms > mark.clock_ms)
            {
                return Err(FormatError::Malformed("marks out of order"));
            }
            marks.push(mark);
        }
    }
    let clocks = marks.first().zip(marks.last()).map(|(first, last)| (first.clock_ms, last.clock_ms));
    let whole = clocks == Some((facts.from_ms, facts.to_ms))
        && marks.len() as u64 == facts.marks
        && marks.iter().map(|mark| mark.durable).max() == Some(facts.lsn);
    if !whole {
        return Err(FormatError::Malformed("marks are missing"));
    }
    if facts.name(name.digest) == *name { Ok(marks) } else { Err(FormatError::Name) }
}
