use borealis_types::PostgresVersion;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::encode::{RecordBuilder, lay_out};
use crate::page::PageHeader;
use crate::record::checksum;
use crate::stream::{Next, NextPiece, RecordDecoder, WalWindow};

pub(crate) const MEBIBYTE: u32 = 1 << 20;

pub(crate) fn layout(segment_bytes: u32) -> WalLayout {
    WalLayout { version: PostgresVersion::NEWEST, timeline: 3, system_identifier: 77, segment_bytes }
}

/// A record of an operation that is no switch, as long as asked for: 24 or from 27 on.
pub(crate) fn record(total_bytes: usize, previous_start: Lsn) -> Vec<u8> {
    let builder = RecordBuilder::new(ResourceManager::Heap, 0).previous_start(previous_start);
    let fill = vec![0x5A; total_bytes];
    let bytes = match total_bytes - RECORD_HEADER_BYTES {
        0 => builder.finish(),
        body @ 3..=257 => builder.main_data(&fill[..body - 2]).finish(),
        // A length of one byte does not reach that far, and one of four bytes is not used for less.
        body @ 258..=260 => builder.origin(Some(1)).main_data(&fill[..body - 5]).finish(),
        body => builder.main_data(&fill[..body - 5]).finish(),
    };
    assert_eq!(bytes.len(), total_bytes);
    bytes
}

fn switch(previous_start: Lsn) -> Vec<u8> {
    RecordBuilder::new(ResourceManager::Xlog, xlog::SWITCH).previous_start(previous_start).finish()
}

/// Pages in order, with where they begin.
#[derive(Default, PartialEq, Debug)]
pub(crate) struct Given(pub(crate) Vec<(Lsn, Box<PageBytes>)>);

impl Given {
    pub(crate) fn take(&mut self) -> impl FnMut(Lsn, &PageBytes) -> Result<(), AssembleError> {
        |page, bytes| {
            if let Some((last, _)) = self.0.last() {
                assert_eq!(last.0 + WAL_PAGE_BYTES, page.0, "a page is missing, or comes twice");
            }
            self.0.push((page, Box::new(*bytes)));
            Ok(())
        }
    }

    pub(crate) fn start(&self) -> Lsn {
        self.0.first().map_or(Lsn::ZERO, |(page, _)| *page)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }
}

/// How long the next record is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    Bytes(usize),
    /// So that it ends so many steps of eight bytes before the end of a page, so many pages on: the next record's
    /// header does not fit there.
    BeforePageEnd {
        pages: usize,
        steps: usize,
    },
    Switch,
}

fn any_size() -> impl Strategy<Value = Size> {
    prop_oneof![
        8 => (27usize..400).prop_map(Size::Bytes),
        4 => (27usize..40_000).prop_map(Size::Bytes),
        6 => (0usize..4, 0usize..4).prop_map(|(pages, steps)| Size::BeforePageEnd { pages, steps }),
        1 => Just(Size::Switch),
    ]
}

/// The next record after `last`.
pub(crate) fn next_record(layout: &WalLayout, last: RecordSpan, size: Size) -> (RecordSpan, Vec<u8>) {
    let start = record_start(layout, last.end);
    let bytes = match size {
        Size::Bytes(bytes) => record(bytes, last.start),
        Size::Switch => switch(last.start),
        Size::BeforePageEnd { pages, steps } => {
            let mut room = (WAL_PAGE_BYTES - start.0 % WAL_PAGE_BYTES) as usize;
            let mut page = page_start(start);
            for _ in 0..pages.max(usize::from(room < 60)) {
                page.0 += WAL_PAGE_BYTES;
                room += PAGE_BYTES - layout.header_bytes(page);
            }
            record(room - 8 * steps, last.start)
        }
    };
    let mut span = record_span(layout, last.end, bytes.len());
    if matches!(size, Size::Switch) {
        span.end = segment_end(span.end, layout.segment_bytes).unwrap();
    }
    (span, bytes)
}

/// Some record after which the ones of a test follow: its end is one where a record can end.
pub(crate) fn last_record(layout: &WalLayout, steps_before_segment_end: u64) -> RecordSpan {
    let end = Lsn(u64::from(layout.segment_bytes) * 5 - steps_before_segment_end * 8);
    let end = if is_between_records(layout, end) { end } else { page_start(end) };
    RecordSpan { start: Lsn(end.0 - 100_000), end }
}

/// With the page that the first record is on, and without the file's first page far before it.
fn assembler_with_front(layout: &WalLayout, last: RecordSpan) -> PageAssembler {
    let mut assembler = PageAssembler::new(*layout, last.end, last.start, Front::Zeros).unwrap();
    assembler.file_header = None;
    assembler
}

pub(crate) fn decoder(layout: &WalLayout, start: Lsn, previous_start: Lsn) -> RecordDecoder {
    RecordDecoder::new(ServerVersion::NEWEST_TESTED, start, previous_start)
        .with_segment_bytes(layout.segment_bytes)
        .with_system_identifier(layout.system_identifier)
}

fn decode(mut decoder: RecordDecoder, given: &Given) -> Vec<(RecordSpan, Vec<u8>)> {
    let (bytes, mut found) = (given.bytes(), Vec::new());
    let source = WalWindow { start: given.start(), bytes: &bytes };
    while let Next::Record(record) = decoder.next(&source).unwrap() {
        found.push((record.span, record.bytes.to_vec()));
    }
    found
}

/// The same pages, of records that are cut wherever they are longer than two pages.
fn assemble_in_pieces(layout: &WalLayout, last: RecordSpan, given: &Given) -> (Given, usize) {
    let mut assembler = assembler_with_front(layout, last);
    let (mut again, mut pieces) = (Given::default(), 0);
    let mut decoder = decoder(layout, last.end, last.start);
    let bytes = given.bytes();
    let source = WalWindow { start: given.start(), bytes: &bytes };
    loop {
        match decoder.next_piece(&source, 2 * PAGE_BYTES).unwrap() {
            NextPiece::Piece(piece) => {
                let content = crate::piece::open(piece.bytes, piece.span.start).unwrap();
                assembler.append(piece.span, piece.part, content, again.take()).unwrap();
                pieces += 1;
                if !piece.part.ends_record() {
                    continue;
                }
            }
            NextPiece::Incomplete { .. } => break,
            NextPiece::NotCut => {}
        }
        match decoder.next(&source).unwrap() {
            Next::Record(record) => {
                assembler.append(record.span, Part::Whole, record.bytes, again.take()).unwrap();
            }
            Next::Incomplete(_) => match decoder.next_piece(&source, 2 * PAGE_BYTES).unwrap() {
                NextPiece::Piece(piece) => {
                    let content = crate::piece::open(piece.bytes, piece.span.start).unwrap();
                    assembler.append(piece.span, piece.part, content, again.take()).unwrap();
                    pieces += 1;
                }
                _ => break,
            },
        }
    }
    assembler.finish(again.take()).unwrap();
    (again, pieces)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_assembled_is_decoded_to_the_same_records(
        sizes in vec(any_size(), 1..40),
        default_size: bool,
        steps in prop_oneof![0u64..8000, 0u64..12],
    ) {
        let layout = layout(if default_size { WalLayout::DEFAULT_SEGMENT_BYTES } else { MEBIBYTE });
        // A segment file of 16 MiB that is skipped is 2048 pages to look at.
        let sizes: Vec<Size> =
            sizes.into_iter().filter(|size| !default_size || !matches!(size, Size::Switch)).collect();
        let first = last_record(&layout, steps);
        let mut assembler = PageAssembler::new(layout, first.end, first.start, Front::LeftOut).unwrap();
        let mut with_front = assembler_with_front(&layout, first);
        let (mut given, mut front_given) = (Given::default(), Given::default());
        let (mut last, mut expected) = (first, Vec::new());
        for size in sizes {
            let (span, bytes) = next_record(&layout, last, size);
            assembler.append(span, Part::Whole, &bytes, given.take()).unwrap();
            with_front.append(span, Part::Whole, &bytes, front_given.take()).unwrap();
            prop_assert_eq!((assembler.position(), assembler.previous_start()), (span.end, span.start));
            expected.push((span, bytes));
            last = span;
        }
        assembler.finish(given.take()).unwrap();
        with_front.finish(front_given.take()).unwrap();

        prop_assert_eq!(decode(decoder(&layout, first.end, first.start), &front_given), expected.clone());
        let (again, pieces) = assemble_in_pieces(&layout, first, &front_given);
        prop_assert!(again == front_given, "in {} pieces other pages", pieces);

        // The first page, which is not whole, is what one has and the other has not.
        let has_front = page_start(first.end) != first.end;
        prop_assert_eq!(&given.0[..], &front_given.0[usize::from(has_front)..]);
        if !given.0.is_empty() {
            let bytes = given.bytes();
            let source = WalWindow { start: given.start(), bytes: &bytes };
            let mut decoder = decoder(&layout, given.start(), Lsn::ZERO);
            // Nothing if one record fills all pages.
            let begins = decoder.skip_continuation(&source).unwrap().unwrap_or(Lsn::MAX);
            // Nor is a switch recognized by its last bytes, of which nobody knows then that they skip a file.
            let is_skipped = expected.iter().any(|(span, bytes)| {
                span.start < begins && begins < span.end && *bytes == switch(Lsn(
                    u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
                ))
            });
            expected.retain(|(span, _)| span.start >= begins && !is_skipped);
            prop_assert_eq!(decode(decoder, &given), expected);
        }
    }

    #[test]
    fn a_record_without_effect_is_as_long_as_the_one_it_stands_for(bytes in 0usize..600, previous_start: u64) {
        let original = match bytes + RECORD_HEADER_BYTES {
            short @ 25..=26 => {
                // No such record can be made; what would be as long is refused or has no data.
                let mut header = front_without_effect(short as u32, Lsn(previous_start)).to_vec();
                header.resize(short, 0);
                let sum = checksum(&header).to_le_bytes();
                header[CHECKSUM_OFFSET..RECORD_HEADER_BYTES].copy_from_slice(&sum);
                header
            }
            total_bytes => record(total_bytes, Lsn(previous_start)),
        };
        let span = RecordSpan { start: Lsn(800), end: Lsn(800 + original.len() as u64).align_up() };
        match without_effect(&original, span.start) {
            Ok(stands_in) => {
                prop_assert_eq!(stands_in.len(), original.len());
                verify_checksum(&stands_in, span.start).unwrap();
                let record = Record::parse(ServerVersion::NEWEST_TESTED, span, &stands_in).unwrap();
                prop_assert_eq!(record.previous_start, Lsn(previous_start));
                prop_assert_eq!((record.resource_manager, record.operation()), (ResourceManager::Xlog, xlog::NOOP));
            }
            Err(_) => prop_assert_eq!(original.len(), 25),
        }
    }

    #[test]
    fn hostile_records_never_panic(
        position: u64,
        start: u64,
        length in 0u64..100_000,
        number in 0u8..4,
        bytes in vec(any::<u8>(), 0..100),
        follows: bool,
        announced in prop::option::of(0u32..200_000),
    ) {
        let layout = layout(MEBIBYTE);
        for position in [Lsn(position), Lsn(position & !7), Lsn((position % 1_000_000) & !7)] {
            let Ok(mut assembler) = PageAssembler::new(layout, position, Lsn::ZERO, Front::Zeros) else { continue };
            let start = if follows { record_start(&layout, position) } else { Lsn(start) };
            let mut bytes = bytes.clone();
            if let (Some(announced), Some(first)) = (announced, bytes.first_chunk_mut()) {
                *first = announced.to_le_bytes();
            }
            let span = RecordSpan { start, end: Lsn(start.0.saturating_add(length)) };
            let _ = assembler.append(span, Part::from_bits(number), &bytes, |_, _| Ok::<(), AssembleError>(()));
            let _ = without_effect(&bytes, start);
        }
    }
}

/// An assembler that stands after a record, and that record.
fn after_one() -> (PageAssembler, RecordSpan) {
    let layout = layout(MEBIBYTE);
    // No segment file begins among what follows.
    let last = last_record(&layout, 20_000);
    let mut assembler = PageAssembler::new(layout, last.end, last.start, Front::LeftOut).unwrap();
    let (span, bytes) = next_record(&layout, last, Size::Bytes(100));
    assembler.append(span, Part::Whole, &bytes, |_, _| Ok::<(), AssembleError>(())).unwrap();
    (assembler, span)
}

#[test]
fn only_the_next_record_is_taken_and_it_is_still_taken_after_a_wrong_one() {
    let (mut assembler, last) = after_one();
    let layout = layout(MEBIBYTE);
    let mut append =
        |span, bytes: &[u8]| assembler.append(span, Part::Whole, bytes, |_, _| Ok::<(), AssembleError>(()));
    let (right, bytes) = next_record(&layout, last, Size::Bytes(200));

    let moved = |by: u64| RecordSpan { start: Lsn(right.start.0 + by), end: Lsn(right.end.0 + by) };
    assert!(matches!(append(moved(8), &bytes), Err(AssembleError::Gap { .. })), "a gap");
    assert!(append(moved(0), &record(200, Lsn(last.start.0 - 8))).is_err(), "a link to another record");
    let longer = RecordSpan { end: Lsn(right.end.0 + 8), ..right };
    assert!(matches!(append(longer, &bytes), Err(AssembleError::End { .. })), "another end");
    let mut damaged = bytes.clone();
    damaged[60] ^= 1;
    let damaged = append(right, &damaged);
    assert_eq!(damaged, Err(AssembleError::Record(RecordError::Checksum { start: right.start })));
    assert!(append(right, &bytes[..150]).is_err(), "a part of a record");
    assert!(append(right, &bytes[..10]).is_err(), "less than a header");

    assert_eq!(append(right, &bytes), Ok(()));
    assert!(append(right, &bytes).is_err(), "the same one again");
}

#[test]
fn pieces_are_taken_in_order_and_all_of_them() {
    let (assembler, last) = after_one();
    let layout = layout(MEBIBYTE);
    let (whole, bytes) = next_record(&layout, last, Size::BeforePageEnd { pages: 4, steps: 2 });
    let room = (WAL_PAGE_BYTES - whole.start.0 % WAL_PAGE_BYTES) as usize;
    let per_page = PAGE_BYTES - 24;
    let page = |number: u64| Lsn(page_start(whole.start).0 + number * WAL_PAGE_BYTES);
    let (first, rest) = bytes.split_at(room);
    let (middle, end) = rest.split_at(2 * per_page);
    let first_span = RecordSpan { start: whole.start, end: page(1) };
    let middle_span = RecordSpan { start: page(1), end: page(3) };
    let end_span = RecordSpan { start: page(3), end: whole.end };
    let give = |_: Lsn, _: &PageBytes| Ok::<(), AssembleError>(());

    let mut all = assembler.clone();
    let not_begun = all.append(middle_span, Part::Middle, middle, give);
    assert_eq!(not_begun, Err(AssembleError::NotBegun { start: page(1) }));
    assert!(all.append(whole, Part::First, &bytes, give).is_err(), "a first piece that is all");
    let short = RecordSpan { end: Lsn(whole.start.0 + 104), ..whole };
    assert!(all.append(short, Part::First, &bytes[..100], give).is_err(), "a piece ends inside a page");
    all.append(first_span, Part::First, first, give).unwrap();
    assert!(matches!(all.append(end_span, Part::Last, end, give), Err(AssembleError::Gap { .. })));
    assert!(all.append(middle_span, Part::Last, middle, give).is_err(), "a last piece that is not the end");
    let (after, next) =
        next_record(&layout, RecordSpan { start: whole.start, end: page(1) }, Size::Bytes(80));
    let unfinished = all.append(after, Part::Whole, &next, give);
    assert_eq!(unfinished, Err(AssembleError::Unfinished { start: whole.start, next: after.start }));
    all.append(middle_span, Part::Middle, middle, give).unwrap();
    let mut damaged = end.to_vec();
    damaged[5] ^= 1;
    assert!(all.append(end_span, Part::Last, &damaged, give).is_err(), "the checksum of the whole record");
    all.append(end_span, Part::Last, end, give).unwrap();
    assert_eq!((all.position(), all.previous_start()), (whole.end, whole.start));
}

#[test]
fn a_position_where_no_record_ends_is_refused() {
    let new = |position| PageAssembler::new(layout(MEBIBYTE), Lsn(position), Lsn::ZERO, Front::Zeros);
    for position in [8, 4, 8192 + 16, (1 << 20) + 32, u64::MAX, !7] {
        assert_eq!(new(position).unwrap_err(), AssembleError::Position { position: Lsn(position) });
    }
    for position in [0, 40, 8192, 8192 + 24, 1 << 20, (1 << 20) + 40] {
        assert!(new(position).is_ok(), "{position}");
    }
}

/// `CreateOverwriteContrecordRecord`: the log goes on at the page that was to hold the rest of a record.
#[test]
fn what_overwrites_an_unfinished_record_is_found_behind_a_stand_in() {
    // The unfinished record fills the rest of its page, only a few bytes of it, or pages after it.
    for (steps, pages) in [(500, 1), (2, 1), (1, 1), (700, 4), (0, 3), (3, 2)] {
        let layout = layout(MEBIBYTE);
        let page_end = u64::from(MEBIBYTE) * 5 + 10 * WAL_PAGE_BYTES;
        let end = Lsn(page_end - steps * 8);
        let last = RecordSpan { start: Lsn(end.0 - 4000), end };
        let unfinished = record_start(&layout, end);
        let page = Lsn(page_start(unfinished).0 + pages * WAL_PAGE_BYTES);
        let overwrite = |overwritten: Lsn| {
            let body = [overwritten.0.to_le_bytes(), 9u64.to_le_bytes()].concat();
            RecordBuilder::new(ResourceManager::Xlog, xlog::OVERWRITE_CONTINUATION)
                .previous_start(last.start)
                .main_data(&body)
                .finish()
        };
        let record = overwrite(unfinished);
        let span = record_span(&layout, page, record.len());
        let mut assembler = assembler_with_front(&layout, last);
        let mut given = Given::default();
        let other = overwrite(Lsn(unfinished.0 + 8));
        assert!(assembler.append(span, Part::Whole, &other, given.take()).is_err(), "it overwrites another");
        let inside = RecordSpan { start: Lsn(span.start.0 + 8), end: Lsn(span.end.0 + 8) };
        assert!(
            assembler.append(inside, Part::Whole, &record, given.take()).is_err(),
            "not at a page's start"
        );
        assembler.append(span, Part::Whole, &record, given.take()).unwrap();
        assert_eq!(assembler.stand_ins(), 1);
        let (next_span, next) = next_record(&layout, span, Size::Bytes(300));
        assembler.append(next_span, Part::Whole, &next, given.take()).unwrap();
        assembler.finish(given.take()).unwrap();
        let found = decode(decoder(&layout, last.end, last.start), &given);
        assert_eq!(found, [(span, record), (next_span, next)], "{steps} steps before the end, {pages} pages");
    }
}

/// A recovery cut a record between its pieces; what was written then names the last piece as the record before it.
#[test]
fn what_a_recovery_left_of_a_record_is_exchanged_for_one_without_effect() {
    let (assembler, last) = after_one();
    let layout = layout(MEBIBYTE);
    let (whole, bytes) = next_record(&layout, last, Size::BeforePageEnd { pages: 9, steps: 2 });
    let room = (WAL_PAGE_BYTES - whole.start.0 % WAL_PAGE_BYTES) as usize;
    let page = |number: u64| Lsn(page_start(whole.start).0 + number * WAL_PAGE_BYTES);
    let first = RecordSpan { start: whole.start, end: page(1) };
    let second = RecordSpan { start: page(1), end: page(4) };
    let (next_span, next) = next_record(&layout, second, Size::Bytes(300));
    let give = |_: Lsn, _: &PageBytes| Ok::<(), AssembleError>(());

    let mut as_it_is = assembler.clone();
    as_it_is.append(first, Part::First, &bytes[..room], give).unwrap();
    let three = &bytes[room..room + 3 * (PAGE_BYTES - 24)];
    as_it_is.append(second, Part::Middle, three, give).unwrap();
    let refused = as_it_is.append(next_span, Part::Whole, &next, give);
    assert_eq!(refused, Err(AssembleError::Unfinished { start: whole.start, next: next_span.start }));
    assert!(as_it_is.append_without_effect(page(5), give).is_err(), "some of it was taken");

    let mut given = Given::default();
    let mut exchanged = assembler_with_front(&layout, last);
    assert!(exchanged.append_without_effect(Lsn(second.end.0 - 8), given.take()).is_err(), "inside a page");
    assert!(exchanged.append_without_effect(last.end, given.take()).is_err(), "nothing to fill");
    assert_eq!(exchanged.append_without_effect(second.end, given.take()), Ok(whole.start));
    assert!(exchanged.append(next_span, Part::Whole, &next, given.take()).is_err(), "its link is to a piece");
    let next = relinked(&next, next_span.start, whole.start).unwrap();
    exchanged.append(next_span, Part::Whole, &next, given.take()).unwrap();
    exchanged.finish(given.take()).unwrap();
    let found = decode(decoder(&layout, last.end, last.start), &given);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].0, RecordSpan { start: whole.start, end: second.end });
    assert_eq!(found[1], (next_span, next));
    let record = Record::parse(ServerVersion::NEWEST_TESTED, found[0].0, &found[0].1).unwrap();
    assert_eq!((record.resource_manager, record.operation()), (ResourceManager::Xlog, xlog::NOOP));
}

#[test]
fn a_server_finds_its_files_first_page_and_a_front_to_step_over() {
    let layout = layout(MEBIBYTE);
    let last = last_record(&layout, 3000);
    let segment = Lsn(u64::from(MEBIBYTE) * 4);
    let page = page_start(last.end);
    let (span, bytes) = next_record(&layout, last, Size::Bytes(100));
    let mut pages = Vec::new();
    let mut give = |at: Lsn, bytes: &PageBytes| {
        pages.push((at, PageHeader::decode(bytes).unwrap()));
        Ok::<(), AssembleError>(())
    };
    let mut assembler = PageAssembler::new(layout, last.end, last.start, Front::Zeros).unwrap();
    assembler.append(span, Part::Whole, &bytes, &mut give).unwrap();
    assembler.finish(&mut give).unwrap();
    assert_eq!(pages.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [segment, page]);
    assert!(pages[0].1.long.is_some());
    let before = (last.end.0 - page.0) as u32 - 24;
    assert_eq!((pages[1].1.continuation_bytes, pages[1].1.flags), (before, 1));
}

#[test]
fn pages_say_that_no_base_backup_is_made_unless_they_begin_the_log() {
    let layout = layout(MEBIBYTE);
    let flags = |previous_start: Lsn, is_set: bool| {
        let at = Lsn(u64::from(MEBIBYTE));
        let mut assembler = PageAssembler::new(layout, at, Lsn::ZERO, Front::LeftOut).unwrap();
        assembler = assembler.with_backup_removable(is_set);
        let bytes = record(9000, previous_start);
        let mut flags = Vec::new();
        let mut give = |_: Lsn, page: &PageBytes| {
            flags.push(PageHeader::decode(page).unwrap().flags & BACKUP_REMOVABLE != 0);
            Ok::<(), AssembleError>(())
        };
        assembler.append(record_span(&layout, at, 9000), Part::Whole, &bytes, &mut give).unwrap();
        assembler.finish(&mut give).unwrap();
        flags
    };
    assert_eq!(flags(Lsn(800), true), [true, true]);
    assert_eq!(flags(Lsn::ZERO, true), [false, true]);
    assert_eq!(flags(Lsn(800), false), [false, false]);
}

#[test]
fn what_cannot_be_given_out_ends_the_call() {
    let (mut assembler, last) = after_one();
    let (span, bytes) = next_record(&layout(MEBIBYTE), last, Size::BeforePageEnd { pages: 3, steps: 0 });
    #[derive(Debug)]
    struct Full;
    impl From<AssembleError> for Full {
        fn from(error: AssembleError) -> Full {
            panic!("{error}");
        }
    }
    assert!(matches!(assembler.append(span, Part::Whole, &bytes, |_, _| Err(Full)), Err(Full)));
}

#[test]
fn a_record_stands_where_it_is_laid_out() {
    let layout = layout(MEBIBYTE);
    for end in [40, 8184, 8192, (1 << 20) - 8, 1 << 20] {
        for length in [24, 32, 8128, 8152, 8168, 9000, 20_000, 1 << 20] {
            let bytes = record(length, Lsn::ZERO);
            assert_eq!(record_span(&layout, Lsn(end), length), lay_out(&layout, &bytes, Lsn(end)).0);
        }
    }
}
