//! Every kind of object: what is written is read, by this version and by later ones, and nothing else is.

mod samples;

use std::collections::BTreeSet;

use borealis_archive::manifest::{Entry, ManifestBuilder, VALUE_PART_BYTES_MAX, for_each_entry};
use borealis_archive::name::{MarksName, Name};
use borealis_archive::object::{BLOCK_BYTES_MAX, Digest, HEAD_BYTES, Object, ObjectWriter};
use borealis_archive::pages::{self, ExtentPages, PagesBuilder, find_extent, for_each_extent};
use borealis_archive::redo::{NotAdded, RedoBuilder, for_each_record};
use borealis_archive::sealing::{Sealing, SealingKey};
use borealis_archive::settings::{self, NamedSnapshot, Retention, VolumeFacts};
use borealis_archive::{FormatError, Part, history, marks};
use borealis_types::{
    GroupId, Lsn, MetaKey, NodeId, PAGE_SIZE, PageKey, RecordForm, RecordSpan, VolumeEpoch, VolumeId,
};
use borealis_wire::{BatchRecord, GroupLink};
use proptest::prelude::*;
use samples::{EPOCH, GROUP, NODE, VOLUME};

/// Reads all of an object, and compares it with the sample of its kind if it is to be that.
fn read(
    name: &Name,
    bytes: &[u8],
    volume: VolumeId,
    sealing: &Sealing,
    compare: bool,
) -> Result<(), FormatError> {
    match name {
        Name::Redo(name) => {
            let mut number = 0;
            let records = samples::records();
            let facts = for_each_record(bytes, volume, name, sealing, |record| {
                assert!(!compare || *record == records[number]);
                number += 1;
            })?;
            assert!(!compare || (number, facts.records) == (5, 5));
        }
        Name::Pages(name) => {
            let head = pages::decode_head(&bytes[..bytes.len().min(HEAD_BYTES)], volume, name, sealing)?;
            let object = Object::<pages::PagesFacts>::decode_named(bytes, volume, name.digest, sealing)?;
            let mut read = Vec::new();
            for block in 0..head.block_count() {
                for_each_extent(&object.block(block)?, |extent| read.push(extent))?;
            }
            assert!(!compare || read == samples::extents());
        }
        Name::Manifest(name) => {
            let mut read = Vec::new();
            for_each_entry(bytes, volume, name, sealing, |entry| read.push(entry))?;
            let mut expected = samples::entries();
            // Of an encrypted snapshot the page object is another one.
            expected[0] = read.first().cloned().unwrap_or(expected[0].clone());
            assert!(!compare || read == expected);
        }
        Name::History(name) => {
            let history = history::decode(bytes, volume, name, sealing)?;
            assert!(!compare || history == samples::openings());
        }
        Name::Marks(name) => {
            let marks = marks::decode(bytes, volume, name, sealing)?;
            assert!(!compare || marks == samples::mark_list());
        }
        Name::Volume => {
            let facts: VolumeFacts = settings::decode(bytes, volume, sealing)?;
            assert!(!compare || facts == samples::volume_facts());
        }
        Name::Snapshot(_) => {
            let facts: NamedSnapshot = settings::decode(bytes, volume, sealing)?;
            assert!(!compare || facts == samples::snapshot_facts());
        }
        Name::Retention { .. } => {
            let facts: Retention = settings::decode(bytes, volume, sealing)?;
            assert!(!compare || facts == samples::retention_facts());
        }
    }
    Ok(())
}

macro_rules! golden {
    ($($kind:literal)*) => {
        [$(
            (include_str!(concat!("golden/", $kind, ".name")), &include_bytes!(concat!("golden/", $kind))[..]),
        )*]
    };
}

#[test]
fn what_format_1_wrote_is_read() {
    let plain =
        golden!["redo-1" "pages-1" "manifest-1" "history-1" "marks-1" "volume-1" "snapshot-1" "retention-1"];
    for (name, bytes) in plain {
        read(&name.parse().unwrap(), bytes, VOLUME, &Sealing::Plain, true).unwrap();
    }
    let sealed = golden!["redo-1-sealed" "pages-1-sealed" "manifest-1-sealed" "history-1-sealed" "marks-1-sealed" "volume-1-sealed" "snapshot-1-sealed" "retention-1-sealed"];
    for (name, bytes) in sealed {
        read(&name.parse().unwrap(), bytes, VOLUME, &samples::sealed(), true).unwrap();
    }
}

#[test]
fn the_same_content_has_the_same_bytes_and_name() {
    for sealing in [Sealing::Plain, samples::sealed()] {
        assert_eq!(samples::all(&sealing), samples::all(&sealing));
    }
}

#[test]
fn a_later_format_is_refused_by_name() {
    for (_, name, mut bytes) in samples::all(&Sealing::Plain) {
        bytes[9] += 1;
        let error = read(&name, &bytes, VOLUME, &Sealing::Plain, false).unwrap_err();
        assert!(matches!(error, FormatError::Format { found: 2, supported: 1, .. }), "{error}");
    }
}

#[test]
fn an_object_in_the_place_of_another_is_refused() {
    let all = samples::all(&Sealing::Plain);
    for (kind, name, _) in &all {
        for (other, _, bytes) in all.iter().filter(|(other, ..)| other != kind) {
            let error = read(name, bytes, VOLUME, &Sealing::Plain, false).unwrap_err();
            assert!(matches!(error, FormatError::OtherKind { .. }), "{other} as {kind}: {error}");
        }
    }
    for (kind, name, bytes) in &all {
        let error = read(name, bytes, VolumeId(1), &Sealing::Plain, false).unwrap_err();
        assert!(matches!(error, FormatError::OtherVolume { .. }), "{kind}: {error}");
    }
    let Name::Redo(redo) = &all[0].1 else { unreachable!() };
    let other = Name::Redo(borealis_archive::name::RedoName { previous_end: Lsn(992), ..*redo });
    assert_eq!(read(&other, &all[0].2, VOLUME, &Sealing::Plain, false), Err(FormatError::Name));
    let other = Name::Redo(borealis_archive::name::RedoName { digest: Digest([0; 16]), ..*redo });
    assert_eq!(read(&other, &all[0].2, VOLUME, &Sealing::Plain, false), Err(FormatError::Digest));
}

#[test]
fn every_cut_and_every_flipped_bit_is_noticed() {
    for sealing in [Sealing::Plain, samples::sealed()] {
        for (kind, name, bytes) in samples::all(&sealing) {
            for length in 0..bytes.len() {
                assert!(
                    read(&name, &bytes[..length], VOLUME, &sealing, false).is_err(),
                    "{kind} cut to {length}"
                );
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(read(&name, &longer, VOLUME, &sealing, false), Err(FormatError::TooLong(1)), "{kind}");
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    read(&name, &damaged, VOLUME, &sealing, false).is_err(),
                    "{kind} with bit {bit} flipped"
                );
            }
        }
    }
}

/// Whoever can write to the store and has no key can make any checksum and any name, and nothing that opens.
#[test]
fn without_the_key_nothing_is_read_and_nothing_made() {
    let sealed = samples::sealed();
    for ((kind, name, encrypted), (_, _, plain)) in
        samples::all(&sealed).into_iter().zip(samples::all(&Sealing::Plain))
    {
        let none = read(&name, &encrypted, VOLUME, &Sealing::Plain, false);
        assert_eq!(none, Err(FormatError::Sealed), "{kind}");
        let other = Sealing::from(SealingKey::new([1; 32]));
        assert_eq!(read(&name, &encrypted, VOLUME, &other, false), Err(FormatError::WrongKey), "{kind}");
        assert_eq!(read(&name, &plain, VOLUME, &sealed, false), Err(FormatError::NotSealed), "{kind}");
    }
    let retention = Retention { window_ms: 1, unfinished_ms: 1 };
    let mut forged = settings::encode(VOLUME, retention, &Sealing::from(SealingKey::new([9; 32])));
    assert_eq!(settings::decode::<Retention>(&forged, VOLUME, &sealed), Err(FormatError::WrongKey));
    // The real one, with another number and the checksum made right.
    forged = settings::encode(VOLUME, samples::retention_facts(), &sealed);
    let end = forged.len() - 4;
    forged[end - 2] ^= 1;
    let checksum = crc32c(&forged[..end]);
    forged[end..].copy_from_slice(&checksum);
    assert_eq!(settings::decode::<Retention>(&forged, VOLUME, &sealed), Err(FormatError::WrongKey));
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let table =
        |crc: u32| (0..8).fold(crc, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 });
    (!bytes.iter().fold(!0, |crc, byte| table(crc ^ u32::from(*byte)))).to_le_bytes()
}

#[test]
fn what_does_not_follow_is_not_added_to_redo() {
    let records = samples::records();
    let mut builder = RedoBuilder::new(VOLUME, GROUP, NODE, EPOCH, Lsn(1000));
    assert!(builder.is_empty());
    assert!(matches!(builder.push(EPOCH, &records[1]), Err(NotAdded::Break(_))));
    builder.push(EPOCH, &records[0]).unwrap();
    assert!(matches!(builder.push(VolumeEpoch(3), &records[1]), Err(NotAdded::OtherEpoch { .. })));
    assert!(builder.push(EPOCH, &records[0]).is_ok(), "what it has is passed over");
    let long = vec![0; BLOCK_BYTES_MAX];
    let span = RecordSpan { start: Lsn(1088), end: Lsn(1088 + BLOCK_BYTES_MAX as u64) };
    let links = records[1].links.clone();
    let record = BatchRecord { span, links, form: RecordForm::default(), bytes: &long };
    assert!(matches!(builder.push(EPOCH, &record), Err(NotAdded::TooLong { .. })));
    builder.push(EPOCH, &records[1]).unwrap();
    assert_eq!((builder.last_end(), builder.epoch()), (Lsn(1152), EPOCH));
    let (name, _) = builder.finish(Lsn(1152), &Sealing::Plain).unwrap();
    assert_eq!((name.previous_end, name.last_end, name.complete_through), (Lsn(1000), Lsn(1152), Lsn(1152)));
    assert!(RedoBuilder::new(VOLUME, GROUP, NODE, EPOCH, Lsn(9)).finish(Lsn(9), &Sealing::Plain).is_none());
}

#[test]
fn a_redo_object_of_many_blocks_is_one_chain() {
    let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
    let mut builder = RedoBuilder::new(VOLUME, GROUP, NODE, EPOCH, Lsn::ZERO);
    for number in 0..50 {
        let start = Lsn((1 << 20) + number * 100_008);
        let span = RecordSpan { start, end: Lsn(start.0 + 100_008) };
        let links = vec![GroupLink { group: GROUP, previous_end: builder.last_end() }];
        builder
            .push(EPOCH, &BatchRecord { span, links, form: RecordForm::default(), bytes: &bytes })
            .unwrap();
    }
    assert!(builder.size_bytes() < 3 << 20, "blocks are compressed as they fill up");
    let (name, object) = builder.finish(Lsn::MAX, &samples::sealed()).unwrap();
    let mut records = 0;
    for_each_record(&object, VOLUME, &name, &samples::sealed(), |record| {
        assert_eq!(record.bytes, bytes);
        records += 1;
    })
    .unwrap();
    assert_eq!(records, 50);
}

#[test]
fn one_block_of_a_page_object_is_read_by_its_range() {
    let mut builder = PagesBuilder::new(VOLUME, GROUP, NODE, EPOCH, Lsn(99));
    let mut expected = Vec::new();
    for number in 0..40 {
        let key = samples::block(16384, number * 128);
        let mut extent = ExtentPages::new(&key);
        for place in 0..=number % 5 * 20 {
            assert!(extent.push(&samples::block(16384, number * 128 + place), &[number as u8; PAGE_SIZE]));
        }
        assert!(builder.push(&extent) && !builder.push(&extent), "each once");
        expected.push(extent);
    }
    assert!(!builder.push(&ExtentPages::new(&samples::block(16385, 0))), "an extent without a page is none");
    assert!(builder.size_bytes() > 0);
    let (name, bytes, placed) = builder.finish(&samples::sealed()).unwrap();
    let head =
        pages::decode_head(&bytes[..HEAD_BYTES.min(bytes.len())], VOLUME, &name, &samples::sealed()).unwrap();
    assert!(head.block_count() > 3, "{} blocks", head.block_count());
    assert_eq!(head.object_bytes(), bytes.len() as u64);
    for (extent, place) in expected.iter().zip(&placed) {
        let range = head.range_of(place.block).unwrap();
        let block = head.open_block(place.block, &bytes[range.start as usize..range.end as usize]).unwrap();
        assert_eq!(find_extent(&block, &place.first).unwrap(), *extent);
    }
    assert_eq!(head.range_of(head.block_count()), None);
}

#[test]
fn an_extent_takes_its_pages_in_order_and_no_others() {
    let mut extent = ExtentPages::new(&samples::block(7, 300));
    assert_eq!(extent.first(), samples::block(7, 256));
    assert!(extent.push(&samples::block(7, 300), &[1; PAGE_SIZE]));
    for other in
        [samples::block(7, 300), samples::block(7, 299), samples::block(7, 384), samples::block(8, 301)]
    {
        assert!(!extent.push(&other, &[2; PAGE_SIZE]), "{other}");
    }
    assert!(extent.push(&samples::block(7, 383), &[3; PAGE_SIZE]));
    let pages: Vec<(PageKey, u8)> = extent.pages().map(|(key, page)| (key, page[0])).collect();
    assert_eq!(pages, [(samples::block(7, 300), 1), (samples::block(7, 383), 3)]);
}

#[test]
fn long_values_come_in_parts_and_entries_in_order() {
    let value: Vec<u8> = (0..VALUE_PART_BYTES_MAX * 2 + 5).map(|at| (at % 253) as u8).collect();
    let key = MetaKey::PreparedTransaction(7);
    let last = RecordSpan { start: Lsn(1900), end: Lsn(2000) };
    let new = || ManifestBuilder::new(VOLUME, GROUP, NODE, EPOCH, (last, Lsn(1000)));
    let mut builder = new();
    builder.push_value(&MetaKey::Counters, &[]).unwrap();
    builder.push_value(&key, &value).unwrap();
    assert!(builder.push_value(&MetaKey::Counters, &[1]).is_err(), "out of order");
    let (name, bytes) = builder.finish(&Sealing::Plain).unwrap();
    let mut read = Vec::new();
    let facts = for_each_entry(&bytes, VOLUME, &name, &Sealing::Plain, |entry| {
        if let Entry::Value { key: of, part, total_bytes } = entry
            && of == key
        {
            assert_eq!(total_bytes, value.len() as u64);
            read.extend(part);
        }
    })
    .unwrap();
    assert_eq!((read, facts.value_parts), (value, 4));

    let mut open = new();
    open.push(&Entry::Value { key: key.clone(), total_bytes: 9, part: vec![1; 4] }).unwrap();
    assert!(
        open.push(&Entry::Value { key: key.clone(), total_bytes: 9, part: vec![1; 6] }).is_err(),
        "too much"
    );
    assert!(open.finish(&Sealing::Plain).is_err(), "a value that does not end");
    let (first, content) = (samples::block(1, 0), Digest([0; 16]));
    let extent = Entry::Extent { first, object: 0, block: 0, content };
    assert!(new().push(&extent).is_err(), "in an object that is not named");
    let (object, _) = samples::pages(&Sealing::Plain);
    let other = borealis_archive::name::PagesName { group: GroupId(1), ..object };
    assert!(new().push(&Entry::Object(other)).is_err(), "of another group");
    let later = borealis_archive::name::PagesName { lsn: Lsn(2001), ..object };
    assert!(new().push(&Entry::Object(later)).is_err(), "of a later point");
}

#[test]
fn marks_that_are_out_of_order_are_not_written() {
    let mut marks = samples::mark_list();
    assert!(marks::encode(VOLUME, NODE, &[], &Sealing::Plain).is_none());
    marks.reverse();
    assert!(marks::encode(VOLUME, NODE, &marks, &Sealing::Plain).is_none());
    let mut marks = samples::mark_list();
    marks[0].tails.reverse();
    assert!(marks::encode(VOLUME, NODE, &marks, &Sealing::Plain).is_none());
    let mut marks = samples::mark_list();
    marks[0].tails[0].last_end = Lsn(1089);
    assert!(marks::encode(VOLUME, NODE, &marks, &Sealing::Plain).is_none());
}

#[test]
fn a_longer_list_of_the_same_node_from_the_same_mark_on_supersedes_a_shorter() {
    let list = |node, from_ms, to_ms| MarksName {
        to_ms,
        from_ms,
        lsn: Lsn(to_ms),
        node: NodeId(node),
        digest: Digest([node as u8; 16]),
    };
    let lists = [list(1, 5, 5), list(1, 5, 9), list(1, 5, 7), list(2, 5, 6), list(1, 6, 8)];
    let expected = BTreeSet::from([list(1, 5, 5), list(1, 5, 7)]);
    assert_eq!(marks::superseded(&lists), expected);
    assert_eq!(marks::superseded(lists.iter().rev()), expected, "in any order");
    let twins = [list(1, 5, 5), MarksName { digest: Digest([9; 16]), ..list(1, 5, 5) }];
    assert!(marks::superseded(&twins).is_empty(), "of two that are equal neither goes");
}

proptest! {
    #[test]
    fn blocks_are_read_as_they_were_written(
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8),
        is_sealed: bool,
    ) {
        let sealing = if is_sealed { samples::sealed() } else { Sealing::Plain };
        let mut writer = ObjectWriter::new(VOLUME);
        for block in &blocks {
            writer.push(block);
        }
        let encoded = writer.finish(Retention::default(), &sealing);
        let object = Object::<Retention>::decode_named(&encoded.bytes, VOLUME, encoded.digest, &sealing).unwrap();
        let read: Vec<Vec<u8>> = object.blocks().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read, blocks);
    }

    #[test]
    fn a_chain_of_any_records_is_read_as_it_was_written(
        records in prop::collection::vec((1u64..5000, prop::collection::vec(any::<u8>(), 1..200), 0u16..3), 1..60),
        through in 0u64..1000,
    ) {
        let group = GroupId(2);
        let mut builder = RedoBuilder::new(VOLUME, group, NodeId(9), EPOCH, Lsn(8));
        let (mut at, mut expected) = (64, Vec::new());
        for (gap, bytes, others) in &records {
            let start = Lsn(at + gap);
            let end = Lsn(start.0 + bytes.len() as u64).align_up();
            let mut links = vec![GroupLink { group, previous_end: builder.last_end() }];
            links.extend((0..*others).map(|other| GroupLink { group: GroupId(3 + other), previous_end: Lsn(at) }));
            let record = BatchRecord { span: RecordSpan { start, end }, links, form: RecordForm::default(), bytes };
            builder.push(EPOCH, &record).unwrap();
            expected.push(record);
            at = end.0;
        }
        let (name, bytes) = builder.finish(Lsn(at + through), &Sealing::Plain).unwrap();
        let mut number = 0;
        for_each_record(&bytes, VOLUME, &name, &Sealing::Plain, |record| {
            assert_eq!(*record, expected[number]);
            number += 1;
        }).unwrap();
        prop_assert_eq!(number, expected.len());
        prop_assert_eq!((name.last_end, name.complete_through), (Lsn(at), Lsn(at + through)));
    }

    #[test]
    fn hostile_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..8) {
        let (_, name, real) = &samples::all(&Sealing::Plain)[kind];
        prop_assert!(read(name, &bytes, VOLUME, &Sealing::Plain, false).is_err());
        let headed = [&real[..12], &bytes[..]].concat();
        prop_assert!(read(name, &headed, VOLUME, &Sealing::Plain, false).is_err() || headed == *real);
    }
}

#[test]
fn a_damaged_block_is_named() {
    let (Name::Redo(name), mut bytes) =
        (samples::all(&Sealing::Plain)[0].1.clone(), samples::redo(&Sealing::Plain).1)
    else {
        unreachable!()
    };
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let object =
        Object::<borealis_archive::redo::RedoFacts>::decode(&bytes, VOLUME, &Sealing::Plain).unwrap();
    assert_eq!(object.block(0), Err(FormatError::Checksum(Part::Block(0))));
    assert_eq!(object.facts().name(name.digest), name);
}
