//! Records out of a stream of WAL pages that may still be growing.
//!
//! The rules are those of `XLogDecodeNextRecord` (`src/backend/access/transam/xlogreader.c`). What differs is
//! the tail. PostgreSQL writes whole pages, of which the end may be zeros or records that other backends are
//! only just copying there; it writes them again when they are whole. So at the tail nothing that looks wrong
//! is wrong: it is [`Next::Incomplete`], the position stays, and the same bytes are read again when there are
//! more. Only what no later write can mend is an error.

mod pieces;

use borealis_types::{Lsn, RecordSpan, ServerVersion, invariant};

use crate::bytes::Reader;
use crate::layout::common::wal_page::{FIRST_IS_CONTINUATION, FIRST_IS_OVERWRITE, WAL_PAGE_BYTES};
use crate::layout::common::wal_record::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::layout::xlog;
use crate::page::{PageHeader, WalLayout, is_segment_start, page_magic, page_start, segment_end};
use crate::record::{RecordHeader, verify_checksum};
use crate::{Record, RecordError, ResourceManager};

pub use pieces::{CutRecord, NextPiece, Piece};

/// Where the bytes of the log come from.
pub trait WalSource<'w> {
    /// The bytes from `position` on, as many as stand contiguously in memory; empty if there are none yet.
    /// Nothing past the end of the page `position` is on is looked at.
    fn bytes(&self, position: Lsn) -> &'w [u8];
}

impl<'w, F: Fn(Lsn) -> &'w [u8]> WalSource<'w> for F {
    fn bytes(&self, position: Lsn) -> &'w [u8] {
        self(position)
    }
}

/// A contiguous piece of the log.
#[derive(Clone, Copy, Debug)]
pub struct WalWindow<'w> {
    /// Position of its first byte.
    pub start: Lsn,
    /// The bytes from `start` on, contiguous.
    pub bytes: &'w [u8],
}

impl<'w> WalSource<'w> for WalWindow<'w> {
    fn bytes(&self, position: Lsn) -> &'w [u8] {
        let offset = position.0.checked_sub(self.start.0).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| self.bytes.get(offset..)).unwrap_or_default()
    }
}

/// What a decoder found at its position.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a record is the usual case, and boxing it would allocate")]
pub enum Next<'r> {
    /// The next record; the decoder stands after it.
    Record(Record<'r>),
    /// There is no whole record yet; the decoder stands where it stood.
    Incomplete(Incomplete),
}

/// Why there is no record yet. At the tail of a live stream every one of these is ordinary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Incomplete {
    /// The position that was looked at in vain.
    pub at: Lsn,
    /// What was missing or wrong there.
    pub why: &'static str,
}

/// What no later write can mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The page is a good one of another cluster or of one with other sizes.
    #[error("WAL page at {page} does not belong to this stream: {what}")]
    ForeignPage {
        /// Where the page begins in the log.
        page: Lsn,
        /// What in its header does not fit.
        what: &'static str,
    },
    /// A record that has the right checksum breaks the layout.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Decodes records one after the other.
#[derive(Clone, Debug)]
pub struct RecordDecoder {
    server_version: ServerVersion,
    segment_bytes: u32,
    system_identifier: Option<u64>,
    /// Pages of older time lines are leftovers.
    timeline: u32,
    position: Lsn,
    previous_start: Lsn,
    /// Holds the record in one piece when it stands on more than one page; or a piece of one that is cut.
    assembled: Vec<u8>,
    /// The record that is being cut into pieces.
    cutting: Option<pieces::Cutting>,
}

/// The last page that is looked at: no position on it, nor the end of it, overflows.
const LAST_PAGE: Lsn = Lsn(u64::MAX - 2 * WAL_PAGE_BYTES);

/// Whoever reads the log asks for the next record until there is none.
fn assert_forward(position: Lsn, span: RecordSpan) {
    let forward = position <= span.start && span.start < span.end;
    invariant!("decoder-moves-forward", forward, "from {position} to {}, {}", span.start, span.end);
}

/// A failed attempt at a record.
enum Stop {
    Incomplete(Incomplete),
    Error(StreamError),
    /// The record was never finished; the stream goes on at this page.
    Overwritten(Lsn),
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Stop {
        Stop::Error(error)
    }
}

fn incomplete(at: Lsn, why: &'static str) -> Stop {
    Stop::Incomplete(Incomplete { at, why })
}

/// Where a record was found: in the source, or put together in the decoder's buffer.
struct Found<'w> {
    span: RecordSpan,
    in_place: Option<&'w [u8]>,
    timeline: u32,
}

impl RecordDecoder {
    /// A decoder of the records from `start` on, which is the end of a record (or the start of a page whose
    /// first record is wanted). `previous_start` is the start of the record before `start`, which the first
    /// record must name; zero if it is not known. `server_version` is the release
    /// that wrote all of them. Segment files have the default size.
    #[must_use]
    pub fn new(server_version: ServerVersion, start: Lsn, previous_start: Lsn) -> RecordDecoder {
        RecordDecoder {
            server_version,
            segment_bytes: WalLayout::DEFAULT_SEGMENT_BYTES,
            system_identifier: None,
            timeline: 0,
            position: start.align_up(),
            previous_start,
            assembled: Vec::new(),
            cutting: None,
        }
    }

    /// Sets the size of segment files.
    ///
    /// # Panics
    /// Unless it is a power of two from 1 MiB to 1 GiB.
    #[must_use]
    pub fn with_segment_bytes(mut self, segment_bytes: u32) -> RecordDecoder {
        let valid = segment_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&segment_bytes);
        assert!(valid, "{segment_bytes} bytes is no size for a segment file");
        self.segment_bytes = segment_bytes;
        self
    }

    /// Refuses pages of other clusters.
    #[must_use]
    pub fn with_system_identifier(mut self, system_identifier: u64) -> RecordDecoder {
        self.system_identifier = Some(system_identifier);
        self
    }

    /// Where the next record is looked for: the end of the last one. With [`Self::previous_start`] this is
    /// all that is needed to go on with another decoder.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Start of the last record.
    #[must_use]
    pub fn previous_start(&self) -> Lsn {
        self.previous_start
    }

    /// The next record, checked, its end being what PostgreSQL calls its `EndRecPtr`.
    ///
    /// The record borrows the source's bytes if it stands on one page, else the decoder's.
    ///
    /// # Errors
    /// When something stands there that no later write can mend; the decoder does not move.
    #[inline]
    pub fn next<'r, 'w: 'r>(&'r mut self, source: &impl WalSource<'w>) -> Result<Next<'r>, StreamError> {
        let found = match self.find_next(source) {
            Ok(found) => found,
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Incomplete(reason)) => return Ok(Next::Incomplete(reason)),
            Err(Stop::Overwritten(_)) => unreachable!("the search goes on there"),
        };
        let bytes = found.in_place.unwrap_or(&self.assembled);
        match Record::parse(self.server_version, found.span, bytes) {
            Ok(record) => {
                assert_forward(self.position, found.span);
                self.position = found.span.end;
                self.previous_start = found.span.start;
                self.timeline = found.timeline;
                Ok(Next::Record(record))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Finds the next record, past those that were never finished.
    fn find_next<'w>(&mut self, source: &impl WalSource<'w>) -> Result<Found<'w>, Stop> {
        let mut position = self.position;
        loop {
            match self.find(source, position) {
                // The page is a later one each time, so this ends where the source does.
                Err(Stop::Overwritten(page)) => position = page,
                found => return found,
            }
        }
    }

    /// Moves a decoder that stands at the start of a page past the rest of a record that began before it.
    /// `None` when the pages are not all there.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn skip_continuation<'w>(&mut self, source: &impl WalSource<'w>) -> Result<Option<Lsn>, StreamError> {
        let mut page = page_start(self.position);
        loop {
            let header = match self.page_header(source, page) {
                Ok(header) => header,
                Err(Stop::Error(error)) => return Err(error),
                Err(_) => return Ok(None),
            };
            let continuation =
                if header.flags & FIRST_IS_CONTINUATION == 0 { 0 } else { header.continuation_bytes };
            let content = WAL_PAGE_BYTES - header.header_bytes() as u64;
            if u64::from(continuation) <= content {
                let rest = page.0 + header.header_bytes() as u64 + u64::from(continuation);
                self.position = if continuation == 0 { page } else { Lsn(rest).align_up() };
                return Ok(Some(self.position));
            }
            match page.checked_add(WAL_PAGE_BYTES) {
                Some(next) => page = next,
                None => return Ok(None),
            }
        }
    }

    /// Finds the record at `position`, checks it and puts it together if need be.
    fn find<'w>(&mut self, source: &impl WalSource<'w>, position: Lsn) -> Result<Found<'w>, Stop> {
        let page = page_start(position);
        let header = self.page_header(source, page)?;
        let header_end = Lsn(page.0 + header.header_bytes() as u64);
        let start = if position == page { header_end } else { position };
        if start < header_end {
            return Err(incomplete(start, "the position is inside a page header"));
        }
        if header.flags & FIRST_IS_CONTINUATION != 0 && start == header_end {
            return Err(incomplete(start, "the rest of another record stands where a record should begin"));
        }

        let in_page = self.rest_of_page(source, start);
        // Records are aligned, so the length is never split between pages.
        let total_bytes = Reader::new(in_page).u32().ok_or_else(|| incomplete(start, "not written yet"))?;
        if total_bytes == 0 {
            return Err(incomplete(start, "not written yet"));
        }
        let total_bytes = usize::try_from(total_bytes).unwrap_or(usize::MAX);
        if !(RECORD_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&total_bytes) {
            return Err(incomplete(start, "no record has this length"));
        }
        let to_page_end = (page.0 + WAL_PAGE_BYTES - start.0) as usize;
        let mut found =
            Found { span: RecordSpan { start, end: Lsn::ZERO }, in_place: None, timeline: header.timeline };
        let bytes = if total_bytes <= to_page_end {
            let bytes = in_page.get(..total_bytes).ok_or_else(|| incomplete(start, "not all written yet"))?;
            found.in_place = Some(bytes);
            found.span.end = Lsn(start.0 + total_bytes as u64).align_up();
            self.check_header(bytes, start)?;
            bytes
        } else {
            if in_page.len() < to_page_end {
                return Err(incomplete(start, "not all written yet"));
            }
            if let Some(header_bytes) = in_page.get(..RECORD_HEADER_BYTES) {
                self.check_header(header_bytes, start)?;
            }
            let (end, timeline) = self.assemble(source, start, in_page, total_bytes, header.timeline)?;
            found.span.end = end;
            found.timeline = timeline;
            self.check_header(&self.assembled, start)?;
            &self.assembled
        };
        verify_checksum(bytes, start).map_err(|_| incomplete(start, "the checksum does not match"))?;
        if is_segment_switch(bytes) {
            // The rest of the segment file is skipped, and counts as part of the record.
            found.span.end = segment_end(found.span.end, self.segment_bytes)
                .ok_or_else(|| incomplete(start, "the end of the address space"))?;
        }
        Ok(found)
    }

    /// Puts a record together that stands on several pages; the result is where it ends and the time line of
    /// the page it ends on.
    fn assemble<'w>(
        &mut self,
        source: &impl WalSource<'w>,
        start: Lsn,
        first: &[u8],
        total_bytes: usize,
        mut timeline: u32,
    ) -> Result<(Lsn, u32), Stop> {
        self.assembled.clear();
        self.assembled.extend_from_slice(first);
        let mut page = page_start(start);
        loop {
            page = page
                .checked_add(WAL_PAGE_BYTES)
                .ok_or_else(|| incomplete(start, "the end of the address space"))?;
            let header = self.page_header(source, page)?;
            if header.timeline < timeline {
                return Err(incomplete(page, "a leftover page of an older time line"));
            }
            timeline = header.timeline;
            if header.flags & FIRST_IS_OVERWRITE != 0 {
                return Err(Stop::Overwritten(page));
            }
            let missing = total_bytes - self.assembled.len();
            let announced = header.continuation_bytes as usize;
            if header.flags & FIRST_IS_CONTINUATION == 0 || announced != missing {
                return Err(incomplete(page, "the page does not continue the record"));
            }
            let content = Lsn(page.0 + header.header_bytes() as u64);
            let room = (WAL_PAGE_BYTES as usize) - header.header_bytes();
            let wanted = missing.min(room);
            let bytes = self.rest_of_page(source, content);
            let bytes = bytes.get(..wanted).ok_or_else(|| incomplete(content, "not all written yet"))?;
            self.assembled.extend_from_slice(bytes);
            if wanted == missing {
                return Ok((Lsn(content.0 + wanted as u64).align_up(), timeline));
            }
        }
    }

    /// The bytes from `position` to the end of its page, as far as there are any.
    fn rest_of_page<'w>(&self, source: &impl WalSource<'w>, position: Lsn) -> &'w [u8] {
        let to_page_end = (page_start(position).0 + (WAL_PAGE_BYTES - 1) - position.0) as usize + 1;
        let bytes = source.bytes(position);
        bytes.get(..to_page_end).unwrap_or(bytes)
    }

    /// Reads and checks the header of a page.
    fn page_header<'w>(&self, source: &impl WalSource<'w>, page: Lsn) -> Result<PageHeader, Stop> {
        if page > LAST_PAGE {
            return Err(incomplete(page, "the end of the address space"));
        }
        let header = PageHeader::decode(self.rest_of_page(source, page))
            .ok_or_else(|| incomplete(page, "the page is not there yet"))?;
        if header.magic != page_magic(self.server_version.major()) {
            return Err(incomplete(page, "not a WAL page of this version"));
        }
        if !header.flags_are_known() {
            return Err(incomplete(page, "unknown page flags"));
        }
        if header.page_address != page {
            return Err(incomplete(page, "a leftover page of another position"));
        }
        if header.timeline < self.timeline {
            return Err(incomplete(page, "a leftover page of an older time line"));
        }
        let Some(long) = header.long else {
            if is_segment_start(page, self.segment_bytes) {
                let what = "a segment file begins here for this stream, and not for the page";
                return Err(StreamError::ForeignPage { page, what }.into());
            }
            return Ok(header);
        };
        if long.page_bytes == 0 {
            // The header's last field: what is zero here was caught while it was being written.
            return Err(incomplete(page, "the page's header is not all written yet"));
        }
        let foreign = |what| Stop::Error(StreamError::ForeignPage { page, what });
        if self.system_identifier.is_some_and(|own| own != long.system_identifier) {
            return Err(foreign("another cluster's system identifier"));
        }
        if long.segment_bytes != self.segment_bytes {
            return Err(foreign("another segment file size"));
        }
        if u64::from(long.page_bytes) != WAL_PAGE_BYTES {
            return Err(foreign("another WAL page size"));
        }
        Ok(header)
    }

    /// Checks what can be known of a record's header before its checksum is.
    fn check_header(&self, bytes: &[u8], start: Lsn) -> Result<(), Stop> {
        let header = RecordHeader::read(&mut Reader::new(bytes))
            .ok_or_else(|| incomplete(start, "the record's header is not all there"))?;
        let linked = if self.previous_start == Lsn::ZERO {
            header.previous_start < start
        } else {
            header.previous_start == self.previous_start
        };
        if !linked {
            return Err(incomplete(start, "the record does not link to the one before"));
        }
        if let ResourceManager::Other(0..128) = ResourceManager::from(header.resource_manager) {
            return Err(incomplete(start, "no resource manager has this number"));
        }
        Ok(())
    }
}

fn is_segment_switch(bytes: &[u8]) -> bool {
    RecordHeader::read(&mut Reader::new(bytes)).is_some_and(|header| {
        header.resource_manager == ResourceManager::Xlog.number() && header.info & 0xF0 == xlog::SWITCH
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant decoder-moves-forward is broken")]
    fn a_decoder_that_would_stand_still_is_noticed() {
        assert_forward(Lsn(64), RecordSpan { start: Lsn(64), end: Lsn(64) });
    }
}
