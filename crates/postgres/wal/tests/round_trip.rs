//! Property tests: what is encoded decodes to the same, and bytes nobody encoded never do harm.

use borealis_types::{
    BlockKey, DatabaseKey, Fork, Lsn, MetaKey, PAGE_SIZE, PageBytes, PageKey, PostgresVersion, RecordSpan,
    RelationFork, RelationLocator, ServerVersion, SlruKind,
};
use borealis_wal::encode::{RecordBuilder, full_page_images, lay_out, shutdown_checkpoint};
use borealis_wal::layout::CheckPointRecord;
use borealis_wal::native::{CreatedRelation, Native};
use borealis_wal::page::{WAL_PAGE_BYTES, WalLayout};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{
    BlockImage, BlockReference, Effect, EffectError, ImageCompression, Record, RecordError, ResourceManager,
    effects, highest_xid, verify_checksum,
};
use proptest::collection::vec;
use proptest::prelude::*;

const SEGMENT_BYTES: u32 = 1024 * 1024;

const LAYOUT: WalLayout = WalLayout {
    version: PostgresVersion::V15,
    timeline: 1,
    system_identifier: 0x1234_5678_9ABC_DEF0,
    segment_bytes: SEGMENT_BYTES,
};

fn span(start: u64, bytes: &[u8]) -> RecordSpan {
    RecordSpan { start: Lsn(start), end: Lsn(start + bytes.len() as u64).align_up() }
}

fn parse(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    Record::parse(ServerVersion::NEWEST_TESTED, span(64, bytes), bytes)
}

/// The parts of a record, owned.
#[derive(Clone, Debug)]
struct Parts {
    resource_manager: u8,
    info: u8,
    xid: u32,
    origin: Option<u16>,
    top_level_xid: Option<u32>,
    main_data: Vec<u8>,
    blocks: Vec<BlockParts>,
}

/// Id, which block, whether it is made anew, data, image.
type BlockParts = (u8, BlockKey, bool, Vec<u8>, Option<Image>);

#[derive(Clone, Debug)]
struct Image {
    hole_offset: u16,
    hole_length: u16,
    compression: ImageCompression,
    apply: bool,
    bytes: Vec<u8>,
}

impl Parts {
    fn encode(&self, previous_start: Lsn) -> Vec<u8> {
        let resource_manager = ResourceManager::from(self.resource_manager);
        let mut builder = RecordBuilder::new(resource_manager, self.info)
            .xid(self.xid)
            .previous_start(previous_start)
            .origin(self.origin)
            .top_level_xid(self.top_level_xid)
            .main_data(&self.main_data);
        for (id, key, will_init, data, image) in &self.blocks {
            let image = image.as_ref().map(|image| BlockImage {
                bytes: &image.bytes,
                hole_offset: image.hole_offset,
                hole_length: image.hole_length,
                compression: image.compression,
                apply: image.apply,
            });
            builder =
                builder.block(BlockReference { id: *id, key: *key, will_init: *will_init, image, data });
        }
        builder.finish()
    }
}

fn any_key() -> impl Strategy<Value = BlockKey> {
    // Few relations, so that neighbours often share one.
    (0u32..3, 0usize..4, any::<u32>()).prop_map(|(relation, fork, block)| BlockKey {
        relation_fork: RelationFork {
            locator: RelationLocator { tablespace: 1663, database: 5, relation },
            fork: Fork::ALL[fork],
        },
        block,
    })
}

fn any_image() -> impl Strategy<Value = Image> {
    let hole = prop_oneof![Just((0u16, 0u16)), (1u16..4000, 1u16..4000)];
    let compression = prop_oneof![
        Just(ImageCompression::None),
        Just(ImageCompression::Pglz),
        Just(ImageCompression::Lz4),
        Just(ImageCompression::Zstd),
    ];
    (hole, compression, any::<bool>(), vec(any::<u8>(), 0..64)).prop_map(
        |((hole_offset, hole_length), compression, apply, mut bytes)| {
            if compression == ImageCompression::None {
                bytes.resize(PAGE_SIZE - usize::from(hole_length), 7);
            }
            Image { hole_offset, hole_length, compression, apply, bytes }
        },
    )
}

fn any_parts() -> impl Strategy<Value = Parts> {
    let block = (any_key(), any::<bool>(), vec(any::<u8>(), 0..40), proptest::option::of(any_image()));
    let blocks = (proptest::sample::subsequence((0u8..=32).collect::<Vec<_>>(), 0..8), vec(block, 8));
    let header = (any::<u8>(), any::<u8>(), any::<u32>(), any::<Option<u16>>(), any::<Option<u32>>());
    (header, vec(any::<u8>(), 0..400), blocks).prop_map(|(header, main_data, (ids, blocks))| {
        let (resource_manager, info, xid, origin, top_level_xid) = header;
        let blocks =
            ids.into_iter().zip(blocks).map(|(id, (key, init, data, image))| (id, key, init, data, image));
        Parts { resource_manager, info, xid, origin, top_level_xid, main_data, blocks: blocks.collect() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_encoded_record_parses_to_its_parts(parts in any_parts()) {
        let bytes = parts.encode(Lsn(24));
        prop_assert_eq!(verify_checksum(&bytes, Lsn(64)), Ok(()));
        let record = parse(&bytes).expect("an encoded record is well-formed");
        prop_assert_eq!(record.resource_manager.number(), parts.resource_manager);
        prop_assert_eq!((record.info, record.xid, record.previous_start), (parts.info, parts.xid, Lsn(24)));
        prop_assert_eq!((record.origin, record.top_level_xid), (parts.origin, parts.top_level_xid));
        prop_assert_eq!(record.main_data, &parts.main_data[..]);
        prop_assert_eq!(record.blocks.len(), parts.blocks.len());
        for (block, (id, key, will_init, data, image)) in record.blocks.iter().zip(&parts.blocks) {
            prop_assert_eq!((block.id, block.key), (*id, *key));
            prop_assert_eq!((block.will_init, block.data), (*will_init, &data[..]));
            prop_assert_eq!(block.image.is_some(), image.is_some());
            if let (Some(found), Some(image)) = (block.image, image) {
                prop_assert_eq!(found.bytes, &image.bytes[..]);
                let hole = (found.hole_offset, found.hole_length);
                prop_assert_eq!(hole, (image.hole_offset, image.hole_length));
                prop_assert_eq!((found.compression, found.apply), (image.compression, image.apply));
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed(parts in any_parts(), place: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = parts.encode(Lsn(24));
        let place = place.index(bytes.len());
        // Bytes 18 and 19 are padding; PostgreSQL's checksum covers them, too.
        bytes[place] ^= 1 << bit;
        prop_assert_eq!(verify_checksum(&bytes, Lsn(64)), Err(RecordError::Checksum { start: Lsn(64) }));
    }

    #[test]
    fn hostile_records_never_panic(
        parts in any_parts(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = parts.encode(Lsn(24));
        for (place, value) in damage {
            // The length field stays, or nothing after it would be looked at.
            let place = 4 + place.index(bytes.len() - 4);
            bytes[place] = value;
        }
        if let Ok(record) = parse(&bytes) {
            let mut out = Vec::new();
            let _ = effects(&record, &mut out);
            let _ = highest_xid(&record);
            for image in record.blocks.iter().filter_map(|block| block.image) {
                let _ = image.restore(&mut [0; PAGE_SIZE]);
            }
        }
    }

    #[test]
    fn hostile_main_data_never_panics(
        resource_manager in 0u8..=128, info: u8, main_data in vec(any::<u8>(), 0..120)
    ) {
        let parts = Parts {
            resource_manager, info, xid: 9, origin: None, top_level_xid: None, main_data, blocks: Vec::new(),
        };
        let bytes = parts.encode(Lsn(24));
        let record = parse(&bytes).expect("only the main data is hostile");
        let mut out = vec![Effect::Meta(MetaKey::Counters)];
        if effects(&record, &mut out).is_err() {
            prop_assert_eq!(out.len(), 1);
        }
        prop_assert!(highest_xid(&record).is_some());
    }

    /// Random records laid out one after the other, over page and segment boundaries, are found again,
    /// however little of the log is there at first.
    #[test]
    fn laid_out_records_are_found_again(
        all in vec((any_parts(), 0usize..20_000), 1..12),
        first in (0u64..200).prop_map(|steps| u64::from(SEGMENT_BYTES) * 2 - steps * 1000 / 8 * 8),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
        seed: u64,
    ) {
        let page_offset = first % WAL_PAGE_BYTES;
        let first = if (1..40).contains(&page_offset) { first - page_offset } else { first };
        let window_start = Lsn(first - first % WAL_PAGE_BYTES);
        let mut log = vec![0; (first - window_start.0) as usize];
        if !log.is_empty() {
            let header = LAYOUT.encode_header(window_start, 0);
            log[..header.len()].copy_from_slice(&header);
        }
        let mut last = RecordSpan { start: Lsn(8), end: Lsn(first) };
        let mut expected = Vec::new();
        for (mut parts, more) in all {
            parts.resource_manager %= 22;
            if parts.resource_manager == 0 && parts.info & 0xF0 == 0x40 {
                // A segment switch has a test of its own.
                parts.info = 0;
            }
            parts.main_data.resize(parts.main_data.len() + more, 1);
            let bytes = parts.encode(last.start);
            let (span, laid_out) = lay_out(&LAYOUT, &bytes, last.end);
            log.extend_from_slice(&laid_out);
            expected.push((span, bytes));
            last = span;
        }

        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len())).collect();
        ends.sort_unstable();
        ends.push(log.len());
        let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, Lsn(first), Lsn(8))
            .with_segment_bytes(SEGMENT_BYTES)
            .with_system_identifier(LAYOUT.system_identifier);
        let mut found = Vec::new();
        for end in ends {
            // What is not written yet reads as zeros up to the end of the page, as in a new segment file.
            let mut visible = log[..end].to_vec();
            visible.resize(end.next_multiple_of(WAL_PAGE_BYTES as usize), 0);
            // Or some of it is already there, because others are just copying their records in. The page's
            // header is whole before that begins.
            let page = end - end % WAL_PAGE_BYTES as usize;
            for place in end.max(page + 40)..visible.len().min(log.len()) {
                if (seed >> (place / 8 % 64)) & 1 == 1 {
                    visible[place] = log[place];
                }
            }
            let source = WalWindow { start: window_start, bytes: &visible };
            while let Next::Record(record) = decoder.next(&source).expect("nothing here is beyond mending") {
                found.push((record.span, record.bytes.to_vec()));
            }
            prop_assert_eq!(&found[..], &expected[..found.len()]);
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!((decoder.position(), decoder.previous_start()), (last.end, last.start));
    }

    #[test]
    fn hostile_streams_never_panic(
        start: u64,
        noise in vec(any::<u8>(), 0..200),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        length in 0usize..30_000,
    ) {
        let start = Lsn(start & !7);
        let window_start = Lsn(start.0 - start.0 % WAL_PAGE_BYTES);
        let mut log = vec![0; length];
        for (index, page) in log.chunks_mut(WAL_PAGE_BYTES as usize).enumerate() {
            let position = Lsn(window_start.0.wrapping_add(index as u64 * WAL_PAGE_BYTES));
            for (byte, value) in page.iter_mut().zip(LAYOUT.encode_header(position, 0)) {
                *byte = value;
            }
        }
        for (index, value) in noise.iter().enumerate() {
            if let Some(byte) = log.get_mut(index + 24) {
                *byte = *value;
            }
        }
        for (place, value) in damage {
            if !log.is_empty() {
                let place = place.index(log.len());
                log[place] = value;
            }
        }
        let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, start, Lsn::ZERO)
            .with_segment_bytes(SEGMENT_BYTES);
        let source = WalWindow { start: window_start, bytes: &log };
        while let Ok(Next::Record(_)) = decoder.next(&source) {}
        let _ = decoder.skip_continuation(&source);
    }

    #[test]
    fn a_damaged_stream_yields_only_records_that_were_written(
        all in vec(any_parts(), 1..6), place: prop::sample::Index, value: u8,
    ) {
        let mut log = Vec::new();
        let mut last = RecordSpan { start: Lsn::ZERO, end: Lsn(u64::from(SEGMENT_BYTES)) };
        let mut written = Vec::new();
        for mut parts in all {
            parts.resource_manager = ResourceManager::Heap.number();
            let bytes = parts.encode(last.start);
            let (span, laid_out) = lay_out(&LAYOUT, &bytes, last.end);
            log.extend_from_slice(&laid_out);
            written.push(bytes);
            last = span;
        }
        let place = place.index(log.len());
        log[place] = value;
        let source = WalWindow { start: Lsn(u64::from(SEGMENT_BYTES)), bytes: &log };
        let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, source.start, Lsn::ZERO)
            .with_segment_bytes(SEGMENT_BYTES);
        let mut expected = written.iter();
        while let Ok(Next::Record(record)) = decoder.next(&source) {
            prop_assert_eq!(Some(record.bytes), expected.next().map(Vec::as_slice));
        }
    }

    #[test]
    fn native_records_round_trip(
        key in any_key(), page: u32, path in "[a-z/_]{0,30}", value in vec(any::<u8>(), 0..600), number: u32,
    ) {
        let image: &PageBytes = &[number as u8; PAGE_SIZE];
        let database = DatabaseKey { tablespace: number, database: page };
        let relations = vec![CreatedRelation { relation_fork: key.relation_fork, blocks: page }; 3];
        let put = Native::PutPage { key: PageKey::Block(key), image };
        let mut all = vec![put, Native::CreateRelations(relations)];
        all.extend(SlruKind::ALL.map(|kind| Native::PutPage { key: PageKey::Slru { kind, page }, image }));
        for key in [
            MetaKey::Counters, MetaKey::ControlFileTemplate, MetaKey::RelationMap(database),
            MetaKey::Database(database), MetaKey::Tablespace(number), MetaKey::PreparedTransaction(number),
            MetaKey::SmallFile(path),
        ] {
            all.push(Native::PutMeta { key: key.clone(), value: Some(&value) });
            all.push(Native::PutMeta { key, value: None });
        }
        for native in all {
            let bytes = native.encode(Lsn(24));
            let record = parse(&bytes).expect("an encoded record is well-formed");
            prop_assert_eq!(record.resource_manager, ResourceManager::Borealis);
            prop_assert_eq!(Native::parse(&record), Ok(native));
            let mut out = Vec::new();
            prop_assert_eq!(effects(&record, &mut out), Ok(()));
            prop_assert!(!out.is_empty());
        }
    }

    #[test]
    fn full_page_images_restore_to_the_pages_given(
        bytes in vec(any::<u8>(), 1..200), lower in 0u16..9000, upper in 0u16..9000, clear: bool,
    ) {
        let mut page: PageBytes = [0; PAGE_SIZE];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = bytes[index % bytes.len()];
        }
        page[12..14].copy_from_slice(&lower.to_le_bytes());
        page[14..16].copy_from_slice(&upper.to_le_bytes());
        if clear && let Some(free) = page.get_mut(usize::from(lower).max(24)..usize::from(upper)) {
            free.fill(0);
        }
        let zero: PageBytes = [0; PAGE_SIZE];
        let locator = RelationLocator { tablespace: 1, database: 2, relation: 3 };
        let fork = RelationFork { locator, fork: Fork::Main };
        let key = |block| BlockKey { relation_fork: fork, block };
        let record_bytes = full_page_images(&[(key(0), &page), (key(7), &zero)], Lsn(24));
        let record = parse(&record_bytes).expect("an encoded record is well-formed");
        let mut out = Vec::new();
        effects(&record, &mut out).expect("full-page images are known");
        prop_assert_eq!(out, [0, 7].map(|block| Effect::Page(PageKey::Block(key(block)))));
        for (block, original) in record.blocks.iter().zip([page, zero]) {
            let mut restored = [0xEE; PAGE_SIZE];
            block.image.expect("every block has one").restore(&mut restored).expect("it unpacks");
            prop_assert!(restored == original);
        }
    }
}

#[test]
fn compressed_images_are_restored_around_their_hole() {
    let mut page: PageBytes = [0; PAGE_SIZE];
    for (index, byte) in page.iter_mut().enumerate() {
        if !(1000..5000).contains(&index) {
            *byte = (index % 13) as u8 + 1;
        }
    }
    let solid = [&page[..1000], &page[5000..]].concat();
    let zstd = ruzstd::encoding::compress_to_vec(&solid[..], ruzstd::encoding::CompressionLevel::Fastest);
    let lz4 = lz4_flex::block::compress(&solid);
    for (compression, bytes) in
        [(ImageCompression::None, &solid), (ImageCompression::Lz4, &lz4), (ImageCompression::Zstd, &zstd)]
    {
        let image = BlockImage { bytes, hole_offset: 1000, hole_length: 4000, compression, apply: true };
        let mut restored = [0xEE; PAGE_SIZE];
        assert_eq!(image.restore(&mut restored), Ok(()), "{compression:?}");
        assert!(restored == page, "{compression:?}");
        let short = BlockImage { hole_length: 4001, ..image };
        assert!(short.restore(&mut restored).is_err(), "{compression:?} of another length was accepted");
        let cut = BlockImage { bytes: &bytes[..bytes.len() - 1], ..image };
        assert!(cut.restore(&mut restored).is_err(), "{compression:?} cut short was accepted");
    }
}

#[test]
fn a_segment_switch_ends_at_the_segment_boundary_and_the_next_record_is_found_there() {
    let first = Lsn(u64::from(SEGMENT_BYTES));
    let switch = RecordBuilder::new(ResourceManager::Xlog, 0x40).finish();
    let (span, mut log) = lay_out(&LAYOUT, &switch, first);
    log.resize(SEGMENT_BYTES as usize, 0);
    let after = Lsn(first.0 + u64::from(SEGMENT_BYTES));
    let next =
        RecordBuilder::new(ResourceManager::Heap, 0).previous_start(span.start).main_data(&[0; 3]).finish();
    let (next_span, bytes) = lay_out(&LAYOUT, &next, after);
    log.extend_from_slice(&bytes);

    let source = WalWindow { start: first, bytes: &log };
    let mut decoder =
        RecordDecoder::new(ServerVersion::NEWEST_TESTED, first, Lsn::ZERO).with_segment_bytes(SEGMENT_BYTES);
    let Ok(Next::Record(record)) = decoder.next(&source) else { panic!("no switch found") };
    assert_eq!(record.span, RecordSpan { start: Lsn(first.0 + 40), end: after });
    let Ok(Next::Record(record)) = decoder.next(&source) else { panic!("nothing after the switch") };
    assert_eq!(record.span, next_span);
}

#[test]
fn a_page_of_another_cluster_is_an_error_and_a_leftover_page_is_not() {
    let first = Lsn(u64::from(SEGMENT_BYTES));
    let record = RecordBuilder::new(ResourceManager::Heap, 0).main_data(&[0; 3]).finish();
    let (_, log) = lay_out(&LAYOUT, &record, first);
    let foreign = WalLayout { system_identifier: 1, ..LAYOUT };
    let (_, foreign_log) = lay_out(&foreign, &record, first);
    let (_, leftover) = lay_out(&LAYOUT, &record, Lsn(first.0 * 2));
    let next = |bytes: &[u8]| {
        let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, first, Lsn::ZERO)
            .with_segment_bytes(SEGMENT_BYTES)
            .with_system_identifier(LAYOUT.system_identifier);
        let next = decoder.next(&WalWindow { start: first, bytes });
        next.map(|next| matches!(next, Next::Record(_)))
    };
    assert_eq!(next(&log), Ok(true));
    assert_eq!(next(&leftover), Ok(false));
    assert!(next(&foreign_log).is_err());
}

/// `CreateOverwriteContrecordRecord`: after a crash in the middle of a record, the page that was to hold
/// its rest begins with another record.
#[test]
fn a_record_that_was_never_finished_is_passed_over() {
    let first = Lsn(u64::from(SEGMENT_BYTES));
    let unfinished = RecordBuilder::new(ResourceManager::Heap, 0).main_data(&[0; 9000]).finish();
    let (_, mut log) = lay_out(&LAYOUT, &unfinished, first);
    log.truncate(WAL_PAGE_BYTES as usize);
    let overwrite = RecordBuilder::new(ResourceManager::Xlog, 0xD0).main_data(&[0; 16]).finish();
    let page = Lsn(first.0 + WAL_PAGE_BYTES);
    let (span, mut bytes) = lay_out(&LAYOUT, &overwrite, page);
    bytes[2] |= 0x08;
    log.extend_from_slice(&bytes);
    let mut decoder =
        RecordDecoder::new(ServerVersion::NEWEST_TESTED, first, Lsn::ZERO).with_segment_bytes(SEGMENT_BYTES);
    let Ok(Next::Record(record)) = decoder.next(&WalWindow { start: first, bytes: &log }) else {
        panic!("the record after the unfinished one was not found")
    };
    assert_eq!((record.span, record.operation()), (span, 0xD0));
}

#[test]
fn a_shutdown_checkpoint_is_found_wherever_it_is_written() {
    let segment = u64::from(SEGMENT_BYTES);
    // In the middle of a page, at its start, before its end so that it crosses, and at and over a segment's
    // end.
    for end in
        [5 * segment + 20_000, 5 * segment + 8192, 5 * segment + 8192 * 3 - 64, 5 * segment, 6 * segment - 8]
    {
        let last = RecordSpan { start: Lsn(end - 200), end: Lsn(end) };
        let checkpoint = CheckPointRecord {
            timeline: 1,
            next_full_xid: 7 << 32 | 1000,
            next_oid: 99,
            ..Default::default()
        };
        let written = shutdown_checkpoint(&LAYOUT, last, checkpoint);
        let source = |position: Lsn| {
            let home = Lsn(position.0 - position.0 % WAL_PAGE_BYTES);
            let page = written.pages.iter().find(|(page, _)| *page == home);
            page.map_or(&[][..], |(_, bytes)| &bytes[(position.0 - home.0) as usize..])
        };
        let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, last.end, last.start)
            .with_segment_bytes(SEGMENT_BYTES)
            .with_system_identifier(LAYOUT.system_identifier);
        let Ok(Next::Record(record)) = decoder.next(&source) else {
            panic!("no checkpoint after {}", last.end)
        };
        assert_eq!(record.span, written.span);
        assert_eq!(record.bytes, written.record);
        assert_eq!(record.previous_start, last.start);
        assert_eq!(record.bytes.len(), 114);
        let found = CheckPointRecord::parse(&record).expect("a whole checkpoint");
        assert_eq!(found, CheckPointRecord { redo: record.span.start, ..checkpoint });
        assert_eq!(highest_xid(&record), Some(999));
        let first_page = Lsn(last.end.0 - last.end.0 % segment);
        assert!(
            written.pages.iter().any(|(page, _)| *page == first_page),
            "no first page of the segment file"
        );
        let Ok(Next::Incomplete(_)) = decoder.next(&source) else { panic!("something after the checkpoint") };
    }
}

#[test]
fn an_unknown_operation_is_an_error_that_names_it() {
    for (resource_manager, info) in [
        (ResourceManager::Xlog, 0xC0),
        (ResourceManager::Btree, 0xF0),
        (ResourceManager::Other(60), 0x00),
        (ResourceManager::Transaction, 0x70),
        (ResourceManager::Storage, 0x00),
        (ResourceManager::Gin, 0x00),
        (ResourceManager::Borealis, 0x90),
        (ResourceManager::Sequence, 0x10),
    ] {
        let bytes = RecordBuilder::new(resource_manager, info).xid(5).main_data(&[0; 64]).finish();
        let record = parse(&bytes).expect("an encoded record is well-formed");
        let expected = EffectError::Unknown { start: Lsn(64), resource_manager, info };
        assert_eq!(effects(&record, &mut Vec::new()), Err(expected));
    }
}

#[test]
fn an_extensions_record_is_refused_by_number_and_by_name_where_there_is_one() {
    for (number, said) in [(134, "134 (reserved for Neon)"), (200, "custom resource manager 200,")] {
        let bytes = RecordBuilder::new(ResourceManager::Other(number), 0x30).main_data(&[0; 64]).finish();
        let record = parse(&bytes).expect("an encoded record is well-formed");
        let mut out = Vec::new();
        let error = effects(&record, &mut out).expect_err("nobody knows what it does");
        assert_eq!(error, EffectError::Custom { start: Lsn(64), number, info: 0x30 });
        assert!(out.is_empty());
        let text = error.to_string();
        assert!(text.contains(said) && text.contains("shared_preload_libraries"), "{text}");
    }
}
