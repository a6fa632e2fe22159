//! WAL pages: records of any content with the right checksums, on pages of which some bytes are then changed.

use borealis_types::{Lsn, PostgresVersion, RecordSpan, ServerVersion};
use borealis_wal::encode::lay_out;
use borealis_wal::layout::wal_record::{CHECKSUM_OFFSET, RECORD_HEADER_BYTES};
use borealis_wal::page::{FIRST_IS_OVERWRITE, WAL_PAGE_BYTES, WalLayout, page_start};
use borealis_wal::piece::{self, Assembly};
use borealis_wal::stream::{Next, NextPiece, RecordDecoder, WalWindow};
use borealis_wal::{ResourceManager, highest_xid};

use crate::redo::check_effects;
use crate::sample::release;
use crate::{Input, Sample};

/// Streams end here.
const STREAM_BYTES_MAX: usize = 2 << 20;
/// Items of one stream.
const ITEMS_MAX: usize = 64;
/// Content of a piece, at least.
const PIECE_BYTES: usize = 9000;
/// Changed bytes of one stream.
const CHANGES_MAX: u8 = 15;

/// A stream that is being made.
struct Stream {
    server_version: ServerVersion,
    layout: WalLayout,
    start: Lsn,
    bytes: Vec<u8>,
    previous_start: Lsn,
}

impl Stream {
    fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// Appends a record with the right checksum, link and page headers. Returns its start.
    fn push(&mut self, mut record: Vec<u8>) -> Lsn {
        record[8..16].copy_from_slice(&self.previous_start.0.to_le_bytes());
        seal(&mut record);
        let (span, bytes) = lay_out(&self.layout, &record, self.end());
        self.bytes.extend_from_slice(&bytes);
        self.previous_start = span.start;
        span.start
    }
}

/// Makes the record's length and checksum right.
fn seal(record: &mut Vec<u8>) {
    record.resize(record.len().max(RECORD_HEADER_BYTES), 0);
    let length = record.len() as u32;
    record[..4].copy_from_slice(&length.to_le_bytes());
    let checksum =
        crc32c::crc32c_append(crc32c::crc32c(&record[RECORD_HEADER_BYTES..]), &record[..CHECKSUM_OFFSET]);
    record[CHECKSUM_OFFSET..RECORD_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Cuts every record that is longer than a page or two: pieces open where they stand, without a gap, and together they are
/// records with the right checksum.
fn check_pieces(decoder: &mut RecordDecoder, window: &WalWindow<'_>) {
    let mut assembly = Assembly::default();
    let mut end = None;
    while let Ok(next) = decoder.next_piece(window, PIECE_BYTES) {
        match next {
            NextPiece::Piece(piece) => {
                let RecordSpan { start, .. } = piece.span;
                assert!(end.is_none_or(|end| end == start), "a gap before {start}");
                end = (!piece.part.ends_record()).then_some(piece.span.end);
                let content = piece::open(piece.bytes, start).expect("a piece opens where it stands");
                if assembly.take(piece.span, piece.part, content) {
                    let (span, bytes) = assembly.record();
                    borealis_wal::verify_checksum(bytes, span.start)
                        .expect("the last piece is of a sound record");
                }
            }
            NextPiece::Incomplete { .. } => return,
            NextPiece::NotCut => {
                end = None;
                match decoder.next(window) {
                    Ok(Next::Record(_)) => {}
                    Ok(Next::Incomplete(_)) | Err(_) => return,
                }
            }
        }
    }
}

/// Decoding a stream, in one go and as it grows.
///
/// # Panics
/// When the two ways disagree, or what must hold of records does not.
pub fn wal_stream(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut stream, cuts) = make(&mut input);
    stream.bytes.truncate(STREAM_BYTES_MAX);

    let window = WalWindow { start: stream.start, bytes: &stream.bytes };
    let mut decoder = decoder(&stream);
    let (whole, whole_failed) = decode_all(&mut decoder, &window);
    check_continuation(&stream, &window);
    check_pieces(&mut self::decoder(&stream), &window);

    let mut decoder = self::decoder(&stream);
    let (mut grown, mut failed) = (Vec::new(), false);
    for cut in cuts.into_iter().chain([stream.bytes.len()]) {
        let bytes = stream.bytes.get(..cut).unwrap_or(&stream.bytes);
        if !failed {
            let (more, now_failed) = decode_all(&mut decoder, &WalWindow { start: stream.start, bytes });
            grown.extend(more);
            failed = now_failed;
        }
    }
    assert_eq!((whole, whole_failed), (grown, failed), "a growing stream decodes to something else");
}

fn decoder(stream: &Stream) -> RecordDecoder {
    RecordDecoder::new(stream.server_version, stream.start, Lsn::ZERO)
        .with_segment_bytes(stream.layout.segment_bytes)
        .with_system_identifier(stream.layout.system_identifier)
}

/// Every record up to the first position where there is none, with a checksum of its bytes; and whether that is an
/// error.
fn decode_all(decoder: &mut RecordDecoder, window: &WalWindow<'_>) -> (Vec<(RecordSpan, u32)>, bool) {
    let mut found = Vec::new();
    loop {
        let before = decoder.position();
        let record = match decoder.next(window) {
            Ok(Next::Record(record)) => record,
            Ok(Next::Incomplete(_)) => {
                assert_eq!(decoder.position(), before, "an incomplete record moves the decoder");
                return (found, false);
            }
            Err(_) => {
                assert_eq!(decoder.position(), before, "an error moves the decoder");
                return (found, true);
            }
        };
        assert!(record.span.start >= before && record.span.end > record.span.start, "{:?}", record.span);
        check_effects(&record);
        let _ = highest_xid(&record);
        found.push((record.span, crc32c::crc32c(record.bytes)));
    }
}

fn check_continuation(stream: &Stream, window: &WalWindow<'_>) {
    for page in [0, WAL_PAGE_BYTES, 2 * WAL_PAGE_BYTES] {
        let mut decoder = RecordDecoder::new(stream.server_version, Lsn(stream.start.0 + page), Lsn::ZERO)
            .with_segment_bytes(stream.layout.segment_bytes);
        let _ = decoder.skip_continuation(window);
    }
}

/// Makes a stream, and the lengths at which it is looked at while it grows, ascending.
fn make(input: &mut Input<'_>) -> (Stream, Vec<usize>) {
    let flags = input.u8();
    let segment_bytes: u32 = if flags & 1 == 0 { 1 << 20 } else { 16 << 20 };
    let server_version = release(flags & 2 != 0);
    // A few pages before or after a segment file begins.
    let page = i64::from(input.u8() % 16) - 8;
    let start = Lsn((u64::from(segment_bytes) * 5).wrapping_add_signed(page * WAL_PAGE_BYTES as i64));
    let layout =
        WalLayout { version: PostgresVersion::NEWEST, timeline: 1, system_identifier: 42, segment_bytes };
    let mut stream = Stream { server_version, layout, start, bytes: Vec::new(), previous_start: Lsn(0x28) };
    let cuts = [input.u16(), input.u16(), input.u16()];
    let changes: Vec<_> =
        (0..input.u8() % (CHANGES_MAX + 1)).map(|_| (input.u8(), input.u32() as usize, input.u8())).collect();
    for _ in 0..ITEMS_MAX {
        if input.is_empty() || stream.bytes.len() > STREAM_BYTES_MAX / 2 {
            break;
        }
        push_item(&mut stream, input);
    }
    for (region, offset, value) in changes {
        let at = match region % 2 {
            // In a page's header.
            0 => (offset >> 8) * WAL_PAGE_BYTES as usize + (offset & 0xFF) % 40,
            _ => offset,
        };
        if let Some(at) = at.checked_rem(stream.bytes.len()) {
            stream.bytes[at] = value;
        }
    }
    let length = stream.bytes.len() as u64;
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| (length * u64::from(*cut) / u64::from(u16::MAX)) as usize).collect();
    cuts.sort_unstable();
    (stream, cuts)
}

fn push_item(stream: &mut Stream, input: &mut Input<'_>) {
    match input.u8() % 6 {
        0 => {
            let sample = Sample::decode(input);
            stream.push(sample.record_bytes(Lsn::ZERO));
        }
        1 => {
            // A header, and anything after it.
            let (xid, info, resource_manager) = (input.u32(), input.u8(), input.u8());
            let mut record = vec![0; RECORD_HEADER_BYTES];
            record[4..8].copy_from_slice(&xid.to_le_bytes());
            record[16..18].copy_from_slice(&[info, resource_manager]);
            record.extend_from_slice(input.counted());
            stream.push(record);
        }
        2 => {
            // A record of many pages: a logical message, whose content is nobody's business.
            let content = vec![input.u8(); usize::from(input.u16()) * 4];
            stream.push(long_record(&content));
        }
        3 => {
            // After a switch the rest of the segment file is skipped.
            let mut record = vec![0; RECORD_HEADER_BYTES];
            record[16..18].copy_from_slice(&[0x40, ResourceManager::Xlog.number()]);
            stream.push(record);
            let segment_bytes = u64::from(stream.layout.segment_bytes);
            let rest = stream.end().0.next_multiple_of(segment_bytes) - stream.end().0;
            if stream.bytes.len() as u64 + rest <= STREAM_BYTES_MAX as u64 {
                stream.bytes.resize(stream.bytes.len() + rest as usize, 0);
            }
        }
        4 => push_overwritten(stream, input),
        _ => {
            let mut bytes = input.counted().to_vec();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            // Not into the middle of a page header.
            let room = page_start(stream.end()).0 + WAL_PAGE_BYTES - stream.end().0;
            if stream.end() != page_start(stream.end()) {
                bytes.truncate(room as usize);
                stream.bytes.extend_from_slice(&bytes);
            }
        }
    }
}

fn long_record(content: &[u8]) -> Vec<u8> {
    borealis_wal::encode::RecordBuilder::new(ResourceManager::LogicalMessage, 0).main_data(content).finish()
}

/// A record whose end was never written: the page where it would go on begins with another.
fn push_overwritten(stream: &mut Stream, input: &mut Input<'_>) {
    let previous_start = stream.previous_start;
    let kept_pages = 1 + usize::from(input.u8() % 3);
    stream.push(long_record(&vec![7; (kept_pages + 1) * WAL_PAGE_BYTES as usize]));
    // Whole pages of it, up to a page boundary.
    let first_page = page_start(stream.start).0 / WAL_PAGE_BYTES;
    let last_page = (stream.end().0 / WAL_PAGE_BYTES).saturating_sub(1).max(first_page + 1);
    stream.bytes.truncate(((last_page - first_page) * WAL_PAGE_BYTES) as usize);
    stream.previous_start = previous_start;
    let header = stream.bytes.len();
    stream.push(long_record(&[1; 64]));
    stream.bytes[header + 2] |= FIRST_IS_OVERWRITE as u8;
}

/// Inputs to start from: the records of a few samples at a time.
pub(crate) fn seeds(samples: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = samples
        .chunks(6)
        .map(|samples| {
            let mut seed = vec![0, 7, 0, 16, 0, 90, 0, 200, 0];
            for bytes in samples {
                let mut sample = Sample::decode(&mut Input::new(bytes));
                sample.pages.clear();
                sample.values.clear();
                seed.push(0);
                seed.extend_from_slice(&sample.encode());
            }
            seed
        })
        .collect();
    let start = [0, 6, 0, 16, 0, 90, 0, 200, 0];
    for items in
        [&[2, 9, 0xFF, 0x20, 3, 2, 1, 4, 0][..], &[4, 2, 2, 1, 0, 1], &[2, 0, 0, 0xFF, 4, 1, 3, 4, 0]]
    {
        seeds.push([&start[..], items].concat());
    }
    seeds
}
