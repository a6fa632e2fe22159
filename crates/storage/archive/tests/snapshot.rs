//! A snapshot has every page that was put into it, whatever the one before had, and costs what changed.

#![allow(clippy::unwrap_used)] // All of this is test code.

mod samples;

use std::collections::BTreeMap;

use borealis_archive::name::PagesName;
use borealis_archive::object::Object;
use borealis_archive::pages::{PAGES_PER_EXTENT, PagesFacts, extent_of, find_extent};
use borealis_archive::sealing::Sealing;
use borealis_archive::snapshot::{Extents, PageObject, Snapshot, SnapshotMaker, SnapshotPoint};
use borealis_types::{Lsn, MetaKey, PAGE_SIZE, PageKey, RecordSpan, SlruKind};
use samples::{EPOCH, GROUP, NODE, VOLUME, block};

type Pages = BTreeMap<PageKey, u8>;
type Objects = BTreeMap<PagesName, Vec<u8>>;

/// A generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % bound
    }
}

fn point(end: u64) -> SnapshotPoint {
    let last = RecordSpan { start: Lsn(end - 40), end: Lsn(end) };
    SnapshotPoint { group: GROUP, epoch: EPOCH, last, tail_end: Lsn(end - 100) }
}

fn maker(end: u64, sealing: &Sealing, known: Extents) -> SnapshotMaker {
    SnapshotMaker::new((VOLUME, NODE), sealing.clone(), point(end), 3_000, known)
}

/// A page that does not shrink.
fn page(key: &PageKey, version: u8) -> Box<[u8; PAGE_SIZE]> {
    let mut random = Random(u64::from(version) * 1_000_003 + extent_of(key).1 as u64);
    Box::new([(); PAGE_SIZE].map(|()| random.below(256) as u8))
}

fn put(objects: &mut Objects, made: Option<PageObject>) -> usize {
    made.map_or(0, |(name, bytes)| {
        assert!(objects.insert(name, bytes).is_none(), "an object is made once");
        1
    })
}

/// Everything that the extents name, page by page.
fn read(snapshot: &Snapshot, objects: &Objects, sealing: &Sealing) -> BTreeMap<PageKey, Vec<u8>> {
    let mut pages = BTreeMap::new();
    for (first, placed) in snapshot.extents.iter() {
        let bytes = &objects[&placed.object];
        let object =
            Object::<PagesFacts>::decode_named(bytes, VOLUME, placed.object.digest, sealing).unwrap();
        let extent = find_extent(&object.block(placed.block).unwrap(), &first).unwrap();
        assert_eq!(extent.content(), placed.content);
        pages.extend(extent.pages().map(|(key, page)| (key, page.to_vec())));
    }
    pages
}

fn change(pages: &mut Pages, random: &mut Random) {
    for _ in 0..random.below(20) {
        let number = random.below(6 * u64::from(PAGES_PER_EXTENT)) as u32;
        let key = match random.below(4) {
            0 => PageKey::Slru { kind: SlruKind::Transactions, page: number },
            relation => block(16_384 + relation as u32, number),
        };
        match random.below(4) {
            0 => drop(pages.remove(&key)),
            _ => drop(pages.insert(key, random.below(256) as u8)),
        }
    }
}

#[test]
fn each_snapshot_has_every_page_and_only_extents_that_changed_are_made_again() {
    for (seed, sealing) in (0..12).zip([Sealing::Plain, samples::sealed()].into_iter().cycle()) {
        let mut random = Random(seed);
        let (mut pages, mut objects, mut known) = (Pages::new(), Objects::new(), Extents::default());
        let (mut before, mut abandoned) = (BTreeMap::new(), 0);
        for number in 1..8 {
            change(&mut pages, &mut random);
            let mut maker = maker(number * 1_000, &sealing, known.clone());
            let ends_early = random.below(3) == 0;
            let through =
                if ends_early { random.below(pages.len() as u64 + 1) as usize } else { pages.len() };
            let mut lost = None;
            for (key, version) in pages.iter().take(through) {
                let made = maker.take(key, &page(key, *version)).unwrap();
                if let Some((name, _)) = &made
                    && ends_early
                    && random.below(3) == 0
                {
                    // The store did not take it.
                    lost = Some(*name);
                    break;
                }
                put(&mut objects, made);
            }
            if ends_early {
                known = maker.abandon(lost);
                abandoned += 1;
                continue;
            }
            put(&mut objects, maker.end_pages());
            let values = [(MetaKey::Counters, vec![number as u8; 9])];
            let (name, bytes) = maker.finish(&[], &values).unwrap();
            let snapshot = Snapshot::decode(&bytes, VOLUME, &name, &sealing).unwrap();
            let expected: BTreeMap<PageKey, Vec<u8>> =
                pages.iter().map(|(key, version)| (*key, page(key, *version).to_vec())).collect();
            assert_eq!(read(&snapshot, &objects, &sealing), expected, "seed {seed}, snapshot {number}");
            assert_eq!(
                (name.lsn, name.tail_end, snapshot.facts.start),
                (Lsn(number * 1_000), Lsn(number * 1_000 - 100), Lsn(number * 1_000 - 40))
            );
            assert_eq!(snapshot.values, values);
            for (first, placed) in snapshot.extents.iter() {
                let of_extent = |pages: &Pages| -> Pages {
                    pages
                        .iter()
                        .filter(|(key, _)| extent_of(key).0 == first)
                        .map(|(key, version)| (*key, *version))
                        .collect()
                };
                let was = of_extent(&before);
                if !was.is_empty() && was == of_extent(&pages) {
                    assert!(placed.object.lsn < name.lsn, "what did not change is in an older object");
                }
            }
            before.clone_from(&pages);
            known = snapshot.extents;
        }
        assert!(abandoned < 7, "seed {seed}");
    }
}

#[test]
fn pages_come_in_order_and_an_object_of_a_later_point_is_not_named() {
    let mut later = maker(9_000, &Sealing::Plain, Extents::default());
    let (one, other) = (block(16_384, 3), block(16_384, 4));
    assert!(later.take(&other, &[1; PAGE_SIZE]).unwrap().is_none());
    assert!(later.take(&one, &[1; PAGE_SIZE]).is_err() && later.take(&other, &[1; PAGE_SIZE]).is_err());
    assert_eq!(later.last(), Some(other));
    let (object, _) = later.end_pages().expect("an extent");
    let known = later.abandon(None);
    assert_eq!(known.iter().map(|(_, placed)| placed.object).collect::<Vec<_>>(), [object]);
    // A recovery cut the point, and the next attempt is as of an earlier one.
    let mut earlier = maker(5_000, &Sealing::Plain, known);
    earlier.take(&other, &[1; PAGE_SIZE]).unwrap();
    let (again, _) = earlier.end_pages().expect("made again");
    assert_eq!((again.lsn, object.lsn), (Lsn(5_000), Lsn(9_000)));
    assert!(earlier.finish(&[], &[]).is_ok());
}

#[test]
#[should_panic(expected = "invariant snapshot-has-all-its-pages is broken")]
fn a_manifest_is_not_made_before_its_pages_are_in_objects() {
    let mut maker = maker(9_000, &Sealing::Plain, Extents::default());
    maker.take(&block(16_384, 3), &[1; PAGE_SIZE]).unwrap();
    drop(maker.finish(&[], &[]));
}

#[test]
fn a_long_value_is_read_whole_and_a_group_without_pages_has_a_snapshot() {
    let mut maker = maker(9_000, &Sealing::Plain, Extents::default());
    assert!(maker.end_pages().is_none());
    let long: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let values = [
        (MetaKey::Counters, Vec::new()),
        (MetaKey::PreparedTransaction(1), long),
        (MetaKey::PreparedTransaction(2), vec![1]),
    ];
    let (name, bytes) = maker.finish(&[], &values).unwrap();
    let snapshot = Snapshot::decode(&bytes, VOLUME, &name, &Sealing::Plain).unwrap();
    assert_eq!(snapshot.values, values);
    assert_eq!(snapshot.extents, Extents::default());
}
