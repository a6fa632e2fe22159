//! Snapshots that a restore begins with: their manifests, and their pages on the way to the new store.
//!
//! Of an object only those blocks are read that the snapshot names, several at once where they follow one another, and several such
//! stretches at a time. What an extent has is compared with what the manifest says of it, so nothing else has to be believed of the object.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::thread::Builder;

use borealis_archive::FormatError;
use borealis_archive::name::{ManifestName, Name, PagesName};
use borealis_archive::object::{HEAD_BYTES, Head};
use borealis_archive::pages::{ExtentPages, PagesFacts, decode_head, find_extent};
use borealis_archive::snapshot::{Placed, Snapshot, SnapshotPoint};
use borealis_quorum::DurablePoint;
use borealis_store::{Refill, Store};
use borealis_types::{GroupId, Lsn, PAGE_SIZE, PageKey, RecordSpan, RelationFork};
use borealis_wire::RelationSize;

use super::{Ended, RestoreError, Source, cannot_start};
use crate::store::{ErrorKind, ObjectStore, ObjectStoreError};

/// Bytes of an object that are read at once, about.
const READ_BYTES: u64 = 4 << 20;
/// Such reads under way at a time.
const READS: usize = 8;
/// Heads of objects that are remembered.
const HEADS: usize = 1024;

/// A snapshot, and what it is called.
#[derive(Debug)]
struct Base {
    name: ManifestName,
    snapshot: Snapshot,
}

/// Every snapshot of a plan.
#[derive(Debug)]
pub(super) struct Bases<'a> {
    source: &'a Source<'a>,
    bases: Vec<Base>,
    /// How long the objects are that they name, and the manifests.
    lengths: BTreeMap<Name, u64>,
    /// Bytes of objects that are done with.
    pub(super) bytes: u64,
}

/// Extents that follow one another in one object, by the range of its bytes that has them.
#[derive(Debug)]
struct Stretch {
    object: PagesName,
    range: Range<u64>,
    extents: Vec<(PageKey, Placed)>,
}

impl<'a> Bases<'a> {
    /// Reads the manifests of a plan.
    pub(super) fn read(source: &'a Source<'a>) -> Result<Bases<'a>, Ended> {
        let (mut bases, mut lengths, mut bytes) = (Vec::new(), BTreeMap::new(), 0);
        for name in source.plan.groups.iter().filter_map(|group| group.base) {
            let of_name = Name::Manifest(name);
            let got = get(source.objects, &of_name.key(source.volume), None);
            let got = got.map_err(|fault| fault.of(&name, None))?;
            let snapshot = Snapshot::decode(&got, source.volume, &name, source.sealing);
            let snapshot = snapshot.map_err(|fault| Fault::from(fault).of(&name, None))?;
            let listed = |name: &Name| source.inventory.get(name).unwrap_or_default().bytes;
            for (first, placed) in snapshot.extents.iter() {
                if source.placement.group_of(&first) != name.group {
                    return Err(Ended::Spoilt(of_name, format!("has page {first} of another group")));
                }
                let pages = Name::Pages(placed.object);
                lengths.entry(pages).or_insert_with_key(listed);
            }
            lengths.insert(of_name, got.len() as u64);
            bytes += got.len() as u64;
            bases.push(Base { name, snapshot });
        }
        Ok(Bases { source, bases, lengths, bytes })
    }

    /// How long all objects are.
    pub(super) fn total_bytes(&self) -> u64 {
        self.lengths.values().sum()
    }

    /// How long the forks are of which the snapshots have pages. Every group that has a page of a fork knows how long it is up to its own
    /// last one.
    pub(super) fn page_bytes(&self) -> u64 {
        let mut forks: BTreeMap<RelationFork, u32> = BTreeMap::new();
        for (fork, blocks) in self.bases.iter().flat_map(|base| &base.snapshot.relations) {
            let known = forks.entry(*fork).or_default();
            *known = (*known).max(*blocks);
        }
        let blocks: u64 = forks.into_values().map(u64::from).fold(0, u64::saturating_add);
        blocks.saturating_mul(PAGE_SIZE as u64)
    }

    /// As of what each is.
    pub(super) fn points(&self) -> Vec<SnapshotPoint> {
        let point = |base: &Base| {
            let ManifestName { group, lsn, tail_end, epoch, .. } = base.name;
            let last = RecordSpan { start: base.snapshot.facts.start, end: lsn };
            SnapshotPoint { group, epoch, last, tail_end }
        };
        self.bases.iter().map(point).collect()
    }

    /// Brings everything to a store whose segments know these points to be durable.
    pub(super) fn bring(&mut self, store: &Store, progress: &mut dyn FnMut(u64)) -> Result<(), Ended> {
        let bases = std::mem::take(&mut self.bases);
        // An object is done with when every extent of it is here that any of the snapshots names.
        let mut waited_for: BTreeMap<PagesName, u64> = BTreeMap::new();
        for (_, placed) in bases.iter().flat_map(|base| base.snapshot.extents.iter()) {
            *waited_for.entry(placed.object).or_default() += 1;
        }
        for base in &bases {
            let Some(mut refill) = store.refill(base.name.group)? else {
                check_empty(base)?;
                continue;
            };
            let mut heads = Heads::default();
            let stretches = self.stretches(base, &mut heads)?;
            for stretches in stretches.chunks(READS) {
                for (stretch, extents) in stretches.iter().zip(self.fetch_all(base, stretches, &heads)?) {
                    extents.iter().try_for_each(|extent| take(&mut refill, extent))?;
                    let left = waited_for.entry(stretch.object).or_default();
                    *left = left.saturating_sub(stretch.extents.len() as u64);
                    if *left == 0 {
                        self.bytes += self.lengths.get(&Name::Pages(stretch.object)).copied().unwrap_or(0);
                    }
                    progress(self.bytes);
                }
            }
            let size = |&(relation_fork, blocks)| RelationSize { relation_fork, blocks };
            let relations: Vec<RelationSize> = base.snapshot.relations.iter().map(size).collect();
            refill.finish(&relations, base.snapshot.values.clone())?;
        }
        Ok(())
    }

    /// Which bytes of which objects have a snapshot's extents, in key order.
    fn stretches(&self, base: &Base, heads: &mut Heads) -> Result<Vec<Stretch>, Ended> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for (first, placed) in base.snapshot.extents.iter() {
            let head = heads.get(self, &base.name, placed.object)?;
            let range = head.range_of(placed.block).ok_or(FormatError::Malformed("no such block"));
            let range = range.map_err(|fault| Fault::from(fault).of(&base.name, Some(placed.object)))?;
            match stretches.last_mut() {
                Some(last)
                    if last.object == placed.object
                        && (range.start == last.range.end || range.end == last.range.end)
                        && range.end - last.range.start <= READ_BYTES =>
                {
                    last.range.end = range.end;
                    last.extents.push((first, placed));
                }
                _ => stretches.push(Stretch { object: placed.object, range, extents: vec![(first, placed)] }),
            }
        }
        Ok(stretches)
    }

    /// The extents of some stretches, each read in a thread of its own.
    fn fetch_all(
        &self,
        base: &Base,
        stretches: &[Stretch],
        heads: &Heads,
    ) -> Result<Vec<Vec<ExtentPages>>, Ended> {
        std::thread::scope(|scope| {
            let start = |stretch| {
                let fetch = move || self.fetch(stretch, heads);
                Builder::new().name("fetch-pages".to_owned()).spawn_scoped(scope, fetch)
            };
            let threads: Result<Vec<_>, _> = stretches.iter().map(start).collect();
            let threads = threads.map_err(cannot_start)?;
            let fetched = threads.into_iter().zip(stretches).map(|(thread, stretch)| {
                let died = || Err(Fault::Damaged("was not read: its thread ended".to_owned()));
                let extents = thread.join().unwrap_or_else(|_| died());
                extents.map_err(|fault| fault.of(&base.name, Some(stretch.object)))
            });
            fetched.collect()
        })
    }

    fn fetch(&self, stretch: &Stretch, heads: &Heads) -> Result<Vec<ExtentPages>, Fault> {
        let Stretch { object, range, extents } = stretch;
        let head = self.head(heads, *object)?;
        let key = Name::Pages(*object).key(self.source.volume);
        let bytes = get(self.source.objects, &key, Some(range.clone()))?;
        let mut block: Option<(u32, Vec<u8>)> = None;
        let mut found = Vec::new();
        for (first, placed) in extents {
            if block.as_ref().is_none_or(|(number, _)| *number != placed.block) {
                let of_block = head.range_of(placed.block).ok_or(FormatError::Malformed("no such block"))?;
                let place = (of_block.start - range.start) as usize..(of_block.end - range.start) as usize;
                let (needed, have) = (range.end - range.start, bytes.len() as u64);
                let packed = bytes.get(place).ok_or(FormatError::Cut { needed, have })?;
                block = Some((placed.block, head.open_block(placed.block, packed)?));
            }
            let bytes = block.as_ref().map_or(&[][..], |(_, bytes)| bytes);
            let extent = find_extent(bytes, first)?;
            if extent.content() != placed.content {
                let what = "has other pages than the manifest says".to_owned();
                return Err(Fault::Damaged(what));
            }
            found.push(extent);
        }
        Ok(found)
    }

    /// A head that is remembered, or that is read again.
    fn head(&self, heads: &Heads, object: PagesName) -> Result<Arc<Head<PagesFacts>>, Fault> {
        match heads.0.get(&object) {
            Some(head) => Ok(Arc::clone(head)),
            None => self.read_head(object).map(Arc::new),
        }
    }

    fn read_head(&self, object: PagesName) -> Result<Head<PagesFacts>, Fault> {
        let key = Name::Pages(object).key(self.source.volume);
        let mut bytes = get(self.source.objects, &key, Some(0..HEAD_BYTES as u64))?;
        let mut head = decode_head(&bytes, self.source.volume, &object, self.source.sealing);
        if let Err(FormatError::Cut { needed, .. }) = head {
            bytes = get(self.source.objects, &key, Some(0..needed))?;
            head = decode_head(&bytes, self.source.volume, &object, self.source.sealing);
        }
        Ok(head?)
    }
}

/// Heads of objects.
#[derive(Debug, Default)]
struct Heads(BTreeMap<PagesName, Arc<Head<PagesFacts>>>);

impl Heads {
    fn get(
        &mut self,
        bases: &Bases<'_>,
        manifest: &ManifestName,
        object: PagesName,
    ) -> Result<Arc<Head<PagesFacts>>, Ended> {
        let head = bases.head(self, object).map_err(|fault| fault.of(manifest, Some(object)))?;
        if self.0.len() >= HEADS {
            self.0.clear();
        }
        self.0.insert(object, Arc::clone(&head));
        Ok(head)
    }
}

/// Why a part of a snapshot is not here.
#[derive(Debug)]
enum Fault {
    Damaged(String),
    Store(ObjectStoreError),
}

impl From<FormatError> for Fault {
    fn from(error: FormatError) -> Fault {
        Fault::Damaged(error.to_string())
    }
}

impl Fault {
    /// A snapshot is as good as absent without one of its objects.
    fn of(self, manifest: &ManifestName, object: Option<PagesName>) -> Ended {
        match (self, object) {
            (Fault::Store(error), _) => RestoreError::from(error).into(),
            (Fault::Damaged(fault), None) => Ended::Spoilt(Name::Manifest(*manifest), fault),
            (Fault::Damaged(fault), Some(object)) => {
                Ended::Spoilt(Name::Manifest(*manifest), format!("names {object}, which {fault}"))
            }
        }
    }
}

fn get(objects: &dyn ObjectStore, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, Fault> {
    let got = match range {
        Some(range) => objects.get_range(key, range),
        None => objects.get(key),
    };
    got.map_err(|error| match error.kind {
        ErrorKind::Missing => Fault::Damaged("is not there".to_owned()),
        _ if error.is_of_object() => Fault::Damaged(format!("cannot be read: {}", error.what)),
        _ => Fault::Store(error),
    })
}

fn take(refill: &mut Refill<'_>, extent: &ExtentPages) -> Result<(), Ended> {
    let pages: Vec<_> = extent.pages().map(|(key, page)| (key, Some(Box::new(*page)))).collect();
    let through = pages.last().map(|(key, _)| *key);
    Ok(refill.take_range(through, &pages)?)
}

/// A segment that lacks nothing is that of a group without a record.
fn check_empty(base: &Base) -> Result<(), RestoreError> {
    let Snapshot { extents, relations, values, .. } = &base.snapshot;
    let is_empty = extents.iter().next().is_none() && relations.is_empty() && values.is_empty();
    if is_empty && base.name.tail_end == Lsn::ZERO {
        return Ok(());
    }
    let what = format!("{} has pages of a group that has no record there", Name::Manifest(base.name));
    Err(RestoreError::Contradiction(what))
}

/// What a segment of a group knows that begins with its snapshot, or with its first record.
pub(super) fn durable_in(points: &[SnapshotPoint], group: GroupId) -> DurablePoint {
    let of_group = points.iter().find(|point| point.group == group);
    let durable = |point: &SnapshotPoint| DurablePoint { volume: point.last, group_tail: point.tail_end };
    of_group.map(durable).unwrap_or_default()
}
