use borealis_types::{EpochOpening, PAGE_SIZE, ServerVersion};

use super::*;
use crate::assemble::record_span;
use crate::assemble::tests::{Given, MEBIBYTE, Size, decoder, last_record, layout, next_record};
use crate::encode::{RecordBuilder, lay_out};
use crate::stream::{Next, NextPiece, WalWindow};

/// An entry of a volume's chain.
struct Entry {
    epoch: VolumeEpoch,
    span: RecordSpan,
    part: Part,
    bytes: Vec<u8>,
}

/// Entries of a volume: two records, one in pieces of which a recovery cut all but `kept`, and what the next server wrote; with what is
/// to be found in the pages.
fn life_with_a_cut_record(kept: usize) -> (EpochHistory, Vec<Entry>, Vec<(RecordSpan, ResourceManager)>) {
    let layout = layout(MEBIBYTE);
    let epoch = VolumeEpoch(3);
    let opening = |epoch, last| EpochOpening { epoch, last, server_version: ServerVersion::NEWEST_TESTED };
    let mut history = EpochHistory::default();
    // It ends with a page: all pages are given out.
    let first = last_record(&layout, 59 * 1024);
    history.push(opening(epoch, first));
    let (mut entries, mut expected) = (Vec::new(), Vec::new());
    let (before, bytes) = next_record(&layout, first, Size::Bytes(300));
    expected.push((before, ResourceManager::Heap));
    entries.push(Entry { epoch, span: before, part: Part::Whole, bytes });

    let (whole, bytes) = next_record(&layout, before, Size::BeforePageEnd { pages: 20, steps: 3 });
    let (_, log) = lay_out(&layout, &bytes, before.end);
    let page = page_start(before.end);
    let mut window = vec![0; (before.end.0 - page.0) as usize];
    window[..24].copy_from_slice(&layout.encode_header(page, 0));
    window.extend_from_slice(&log);
    let source = WalWindow { start: page, bytes: &window };
    let mut decoder = decoder(&layout, before.end, before.start);
    let mut last = before;
    for _ in 0..kept {
        let NextPiece::Piece(piece) = decoder.next_piece(&source, 2 * PAGE_SIZE).unwrap() else {
            panic!("no piece after {last:?}")
        };
        last = piece.span;
        entries.push(Entry { epoch, span: piece.span, part: piece.part, bytes: piece.bytes.to_vec() });
    }
    let is_whole = last.end == whole.end;
    let left = RecordSpan { start: whole.start, end: last.end };
    if kept > 0 {
        let manager = if is_whole { ResourceManager::Heap } else { ResourceManager::Xlog };
        expected.push((left, manager));
    }

    let epoch = VolumeEpoch(5);
    history.push(opening(epoch, last));
    // After a whole record in pieces a server names the start of the record.
    let named = if is_whole { RecordSpan { start: whole.start, ..last } } else { last };
    let own = RecordBuilder::new(ResourceManager::Borealis, 0).previous_start(named.start).main_data(b"own");
    let own = own.finish();
    let span = record_span(&layout, last.end, own.len());
    expected.push((span, ResourceManager::Xlog));
    entries.push(Entry { epoch, span, part: Part::Whole, bytes: own });
    let (after, bytes) = next_record(&layout, span, Size::Bytes(200));
    expected.push((after, ResourceManager::Heap));
    entries.push(Entry { epoch, span: after, part: Part::Whole, bytes });
    (history, entries, expected)
}

#[test]
fn a_volumes_log_is_one_that_postgresql_reads() {
    let layout = layout(MEBIBYTE);
    // The record has seven pieces.
    for kept in 0..=7 {
        let (history, entries, expected) = life_with_a_cut_record(kept);
        let mut log = VolumeLog::new(layout, history);
        let mut given = Given::default();
        for Entry { epoch, span, part, bytes } in &entries {
            log.append(*epoch, *span, *part, bytes, given.take()).unwrap();
        }
        let is_cut = (1..7).contains(&kept);
        let (cut_records, relinked) = (u64::from(is_cut), u64::from(is_cut && kept > 1));
        assert_eq!(log.exchanged(), Exchanged { own_records: 1, cut_records, relinked });
        log.finish(given.take()).unwrap();
        let bytes = given.bytes();
        let source = WalWindow { start: given.start(), bytes: &bytes };
        let mut decoder = decoder(&layout, given.start(), Lsn::ZERO);
        let mut found = Vec::new();
        while let Next::Record(record) = decoder.next(&source).unwrap() {
            found.push((record.span, record.resource_manager));
        }
        assert_eq!(found, expected, "{kept} pieces");
    }
}

#[test]
fn entries_of_a_record_that_began_before_are_passed_over_and_hostile_ones_refused() {
    let layout = layout(MEBIBYTE);
    let (history, entries, _) = life_with_a_cut_record(7);
    let mut log = VolumeLog::new(layout, history.clone());
    let give = |_: Lsn, _: &PageBytes| Ok::<(), AssembleError>(());
    for Entry { epoch, span, part, bytes } in &entries[3..] {
        log.append(*epoch, *span, *part, bytes, give).unwrap();
    }
    let mut log = VolumeLog::new(layout, history.clone());
    for (number, Entry { epoch, span, part, bytes }) in entries.iter().enumerate() {
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let mut other = log.clone();
        assert!(other.append(*epoch, *span, *part, &damaged, give).is_err(), "{number}");
        log.append(*epoch, *span, *part, bytes, give).unwrap();
    }
    // A record that was cut, by a history in which it was not.
    let (_, entries, _) = life_with_a_cut_record(4);
    let mut log = VolumeLog::new(layout, EpochHistory::default());
    let mut taken = Ok(());
    for Entry { epoch, span, part, bytes } in &entries {
        taken = taken.and_then(|()| log.append(*epoch, *span, *part, bytes, give));
    }
    assert!(matches!(taken, Err(AssembleError::Unfinished { .. })), "{taken:?}");
    for start in [u64::MAX, u64::MAX - 8191, 0] {
        let span = RecordSpan { start: Lsn(start), end: Lsn(start) };
        for part in [Part::First, Part::Whole, Part::Last] {
            let mut piece = vec![0, 0, 0, 0, 255, 255, 255, 255];
            piece.resize(60, 7);
            crate::piece::seal(&mut piece, span.start);
            assert!(
                VolumeLog::new(layout, history.clone())
                    .append(VolumeEpoch(3), span, part, &piece, give)
                    .is_err()
                    || part == Part::Last
            );
        }
    }
}
