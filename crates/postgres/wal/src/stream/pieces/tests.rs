use borealis_types::{PostgresVersion, ServerVersion};
use proptest::prelude::*;

use super::*;
use crate::encode::{RecordBuilder, lay_out};
use crate::layout::common::wal_page::LONG_HEADER_BYTES;
use crate::page::WalLayout;
use crate::piece::Assembly;
use crate::stream::{Next, WalWindow};

const LAYOUT: WalLayout =
    WalLayout { version: PostgresVersion::V15, timeline: 1, system_identifier: 77, segment_bytes: 1 << 20 };
const START: Lsn = Lsn(3 << 20);
/// As small as a page or two, so that a test cuts often.
const PIECE: usize = 20_000;

/// A log of records with these lengths of data, and the records.
fn log(lengths: &[usize]) -> (Vec<u8>, Vec<(RecordSpan, Vec<u8>)>) {
    let (mut log, mut records) = (Vec::new(), Vec::new());
    let (mut at, mut previous) = (START, Lsn(START.0 - 64));
    for (number, length) in lengths.iter().enumerate() {
        let data: Vec<u8> = (0..*length).map(|byte| (byte * 31 + number) as u8).collect();
        let bytes = RecordBuilder::new(ResourceManager::LogicalMessage, 0)
            .xid(900 + number as u32)
            .previous_start(previous)
            .main_data(&data)
            .finish();
        let (span, laid_out) = lay_out(&LAYOUT, &bytes, at);
        log.extend(laid_out);
        log.resize((span.end.0 - START.0) as usize, 0);
        records.push((span, bytes));
        (at, previous) = (span.end, span.start);
    }
    (log, records)
}

fn decoder() -> RecordDecoder {
    RecordDecoder::new(ServerVersion::NEWEST_TESTED, START, Lsn(START.0 - 64)).with_segment_bytes(1 << 20)
}

/// Everything that can be had of these bytes, each piece checked against the one before it.
fn drain(decoder: &mut RecordDecoder, bytes: &[u8], out: &mut Vec<(RecordSpan, Part, Vec<u8>)>) {
    let window = WalWindow { start: START, bytes };
    loop {
        let position = decoder.position();
        match decoder.next_piece(&window, PIECE).unwrap() {
            NextPiece::Piece(piece) => {
                assert!(piece.content().len() >= PIECE || piece.part == Part::Last);
                assert!(piece.content().len() < PIECE + WAL_PAGE_BYTES as usize);
                assert!(
                    piece.span.end.0 - piece.span.start.0 >= piece.bytes.len() as u64,
                    "it fits its span"
                );
                let content = crate::piece::open(piece.bytes, piece.span.start).unwrap();
                assert!(piece.part == Part::First || piece.span.start == position, "no gap");
                out.push((piece.span, piece.part, content.to_vec()));
                continue;
            }
            NextPiece::Incomplete { .. } => return,
            NextPiece::NotCut => {}
        }
        match decoder.next(&window).unwrap() {
            Next::Record(record) => out.push((record.span, Part::Whole, record.bytes.to_vec())),
            Next::Incomplete(_) => return,
        }
    }
}

fn assembled(entries: &[(RecordSpan, Part, Vec<u8>)]) -> Vec<(RecordSpan, Vec<u8>)> {
    let mut assembly = Assembly::default();
    let mut records = Vec::new();
    for (span, part, content) in entries {
        if assembly.take(*span, *part, content) {
            let (span, bytes) = assembly.record();
            records.push((span, bytes.to_vec()));
        }
    }
    records
}

#[test]
fn a_page_with_nothing_after_it_stays_out_of_a_piece() {
    let (log, _) = log(&[PIECE * 3]);
    let mut out = Vec::new();
    let pages = PIECE.div_ceil(8168) * 8192;
    drain(&mut decoder(), &log[..pages], &mut out);
    assert!(out.is_empty(), "PostgreSQL may write the last page again");
    let window = WalWindow { start: START, bytes: &log[..8192 + 24] };
    let mut looked = decoder();
    let NextPiece::Incomplete { until, .. } = looked.next_piece(&window, PIECE).unwrap() else {
        panic!("two pages are no piece")
    };
    assert!((START.0 + 20_000..START.0 + pages as u64 + 24).contains(&until.0), "{until} is not too late");
    drain(&mut decoder(), &log[..pages + 24], &mut out);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].0.end, Lsn(START.0 + pages as u64));
}

#[test]
fn a_record_that_fails_its_checksum_gets_no_last_piece() {
    let (mut log, _) = log(&[PIECE * 3]);
    let last = log.len() - 20;
    log[last] ^= 1;
    let (mut decoder, mut out) = (decoder(), Vec::new());
    let window = WalWindow { start: START, bytes: &log };
    loop {
        match decoder.next_piece(&window, PIECE).unwrap() {
            NextPiece::Piece(piece) => out.push(piece.part),
            NextPiece::Incomplete { reason, .. } => {
                assert_eq!(reason.why, "the checksum does not match");
                break;
            }
            NextPiece::NotCut => panic!("it is being cut"),
        }
    }
    assert_eq!(out, [Part::First, Part::Middle]);
    // The last page is written again, and right.
    log[last] ^= 1;
    let window = WalWindow { start: START, bytes: &log };
    let NextPiece::Piece(piece) = decoder.next_piece(&window, PIECE).unwrap() else { panic!("it is whole") };
    assert_eq!(piece.part, Part::Last);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn records_are_cut_as_the_log_grows_and_put_together_again(
        lengths in prop::collection::vec(prop_oneof![1usize..300, 15_000usize..130_000], 1..6),
        steps in prop::collection::vec(prop_oneof![1 => 1usize..50, 4 => 1usize..40_000], 1..30),
        tail in any::<u8>(),
    ) {
        let (log, records) = log(&lengths);
        let (mut decoder, mut out, mut written) = (decoder(), Vec::new(), 0);
        for step in steps.into_iter().chain([log.len()]) {
            written += step;
            // Like PostgreSQL's: whole pages, of which the header is final and the end may be anything.
            let of_last_page = written % WAL_PAGE_BYTES as usize;
            if of_last_page > 0 {
                let begins_segment = (written - of_last_page).is_multiple_of(LAYOUT.segment_bytes as usize);
                let header = if begins_segment { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
                written += header.saturating_sub(of_last_page);
            }
            written = written.min(log.len());
            let mut bytes = log[..written].to_vec();
            if written < log.len() {
                bytes.resize(written.next_multiple_of(8192), tail);
            }
            drain(&mut decoder, &bytes, &mut out);
        }
        prop_assert_eq!(assembled(&out), records);
    }
}
