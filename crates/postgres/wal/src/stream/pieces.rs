//! Cutting a long record into pieces while it is being written, without ever holding it whole.
//!
//! A piece ends at the end of a WAL page. A page is taken into a piece only when there are bytes after it: PostgreSQL
//! writes the last page of what it flushes before it is full, with whatever other backends have copied into it so far, but
//! never writes past a page whose bytes are not final (`XLogWrite`, `AdvanceXLInsertBuffer` in
//! `src/backend/access/transam/xlog.c`). So what leaves in a piece is final although the checksum of the whole record is
//! not known yet; it is verified before the last piece leaves.

use borealis_types::{Lsn, Part, RecordSpan};

use super::{Incomplete, RecordDecoder, Stop, StreamError, WalSource, incomplete};
use crate::ResourceManager;
use crate::bytes::Reader;
use crate::layout::common::wal_page::{
    FIRST_IS_CONTINUATION, FIRST_IS_OVERWRITE, SHORT_HEADER_BYTES, WAL_PAGE_BYTES,
};
use crate::layout::common::wal_record::RECORD_HEADER_BYTES;
use crate::page::page_start;
use crate::piece::{PIECE_PREFIX_BYTES, seal};
use crate::record::{RecordHeader, RunningChecksum};

/// The front of a record that is being cut: what its header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutRecord {
    /// Where the record starts.
    pub start: Lsn,
    /// All its bytes (`xl_tot_len`).
    pub total_bytes: usize,
    /// Which resource manager applies it.
    pub resource_manager: ResourceManager,
    /// `xl_info`.
    pub info: u8,
    /// Writing (sub)transaction, zero for none.
    pub xid: u32,
}

/// A piece of a record.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'r> {
    /// Where the piece stands; pieces of a record follow one another without a gap.
    pub span: RecordSpan,
    /// Which piece it is; never [`Part::Whole`].
    pub part: Part,
    /// The record that it is of.
    pub record: CutRecord,
    /// Its bytes, sealed (see [`crate::piece`]).
    pub bytes: &'r [u8],
}

impl<'r> Piece<'r> {
    /// Its part of the record's bytes.
    #[must_use]
    pub fn content(&self) -> &'r [u8] {
        self.bytes.get(PIECE_PREFIX_BYTES..).unwrap_or_default()
    }
}

/// How far a record is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cutting {
    record: CutRecord,
    /// Of the record's bytes in the pieces so far.
    checksum: RunningChecksum,
}

/// What [`RecordDecoder::next_piece`] found.
#[derive(Debug)]
pub enum NextPiece<'r> {
    /// No record is being cut, and none that is to be cut begins here.
    NotCut,
    /// The next piece; the decoder stands after it.
    Piece(Piece<'r>),
    /// There is no whole piece yet; the decoder stands where it stood.
    Incomplete {
        /// What was missing.
        reason: Incomplete,
        /// Nothing changes before there are bytes up to here.
        until: Lsn,
    },
}

impl RecordDecoder {
    /// The next piece, if a record that is longer than `piece_bytes` by more than a page stands at the decoder's position. Ask this where
    /// [`RecordDecoder::next`] found nothing whole, and alone until the last piece: the decoder stands inside a record
    /// until then.
    ///
    /// # Errors
    /// As [`RecordDecoder::next`].
    pub fn next_piece<'r, 'w: 'r>(
        &'r mut self,
        source: &impl WalSource<'w>,
        piece_bytes: usize,
    ) -> Result<NextPiece<'r>, StreamError> {
        let cutting = match self.cutting {
            Some(cutting) => cutting,
            None => match self.begin_cutting(source, piece_bytes) {
                Some(cutting) => cutting,
                None => return Ok(NextPiece::NotCut),
            },
        };
        match self.cut(source, cutting, piece_bytes) {
            Ok((span, part)) => {
                super::assert_forward(self.position, span);
                self.position = span.end;
                seal(&mut self.assembled, span.start);
                Ok(NextPiece::Piece(Piece { span, part, record: cutting.record, bytes: &self.assembled }))
            }
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Incomplete(reason)) => {
                Ok(NextPiece::Incomplete { reason, until: self.wanted_until(&cutting, piece_bytes) })
            }
            Err(Stop::Overwritten(page)) => {
                // The record was never finished; the stream goes on at this page.
                self.cutting = None;
                self.position = page;
                Ok(NextPiece::NotCut)
            }
        }
    }

    /// Up to where there must be bytes at least, or there is no next piece.
    fn wanted_until(&self, cutting: &Cutting, piece_bytes: usize) -> Lsn {
        let rest = cutting.record.total_bytes - cutting.checksum.counted_bytes();
        let content = rest.min(piece_bytes) as u64;
        let headers = content / WAL_PAGE_BYTES * SHORT_HEADER_BYTES as u64;
        let end = Lsn(self.position.0.saturating_add(content + headers));
        // A piece that is not the last ends with its page, and has something after it.
        let page_end = Lsn(page_start(end).0.saturating_add(WAL_PAGE_BYTES + 1));
        if rest > piece_bytes { page_end } else { end }
    }

    /// The record at the decoder's position, if it is to be cut and what its header says is final.
    fn begin_cutting<'w>(&self, source: &impl WalSource<'w>, piece_bytes: usize) -> Option<Cutting> {
        let page = page_start(self.position);
        let page_header = self.page_header(source, page).ok()?;
        let header_end = Lsn(page.0 + page_header.header_bytes() as u64);
        let start = if self.position == page { header_end } else { self.position };
        let begins =
            start >= header_end && !(page_header.flags & FIRST_IS_CONTINUATION != 0 && start == header_end);
        let total_bytes = Reader::new(self.rest_of_page(source, start)).u32()? as usize;
        // A first piece ends with the page on which it has become long enough, so then it is not the whole record.
        if !begins || total_bytes <= piece_bytes + WAL_PAGE_BYTES as usize {
            return None;
        }
        // The header may go on on the next page; that page is final if there is one after it.
        let mut header = [0; RECORD_HEADER_BYTES];
        let first = self.rest_of_page(source, start);
        let first = first.get(..RECORD_HEADER_BYTES).unwrap_or(first);
        let mut last_page = page;
        header[..first.len()].copy_from_slice(first);
        if first.len() < RECORD_HEADER_BYTES {
            last_page = page.checked_add(WAL_PAGE_BYTES)?;
            let next = self.page_header(source, last_page).ok()?;
            let rest = self.rest_of_page(source, Lsn(last_page.0 + next.header_bytes() as u64));
            header[first.len()..].copy_from_slice(rest.get(..RECORD_HEADER_BYTES - first.len())?);
        }
        if source.bytes(last_page.checked_add(WAL_PAGE_BYTES)?).is_empty() {
            return None;
        }
        self.check_header(&header, start).ok()?;
        let read = RecordHeader::read(&mut Reader::new(&header))?;
        let record = CutRecord {
            start,
            total_bytes,
            resource_manager: ResourceManager::from(read.resource_manager),
            info: read.info,
            xid: read.xid,
        };
        Some(Cutting { record, checksum: RunningChecksum::default() })
    }

    /// Cuts the next piece into the decoder's buffer, after room for its checksum.
    fn cut<'w>(
        &mut self,
        source: &impl WalSource<'w>,
        mut cutting: Cutting,
        piece_bytes: usize,
    ) -> Result<(RecordSpan, Part), Stop> {
        let record = cutting.record;
        let is_first = cutting.checksum.counted_bytes() == 0;
        let start = if is_first { record.start } else { self.position };
        self.assembled.clear();
        self.assembled.extend_from_slice(&[0; PIECE_PREFIX_BYTES]);
        let (mut page, mut timeline) = (page_start(start), self.timeline);
        loop {
            let header = self.page_header(source, page)?;
            if header.timeline < timeline {
                return Err(incomplete(page, "a leftover page of an older time line"));
            }
            timeline = header.timeline;
            let content_bytes = self.assembled.len() - PIECE_PREFIX_BYTES;
            let missing = record.total_bytes - cutting.checksum.counted_bytes() - content_bytes;
            let mut content = Lsn(page.0 + header.header_bytes() as u64);
            if is_first && page == page_start(start) {
                content = start;
            } else if header.flags & FIRST_IS_OVERWRITE != 0 {
                return Err(Stop::Overwritten(page));
            } else if header.flags & FIRST_IS_CONTINUATION == 0
                || header.continuation_bytes as usize != missing
            {
                return Err(incomplete(page, "the page does not continue the record"));
            }
            let page_end = page
                .checked_add(WAL_PAGE_BYTES)
                .ok_or_else(|| incomplete(page, "the end of the address space"))?;
            let wanted = missing.min((page_end.0 - content.0) as usize);
            let bytes = self.rest_of_page(source, content);
            let bytes = bytes.get(..wanted).ok_or_else(|| incomplete(content, "not all written yet"))?;
            self.assembled.extend_from_slice(bytes);
            if wanted == missing {
                cutting.checksum.count(&self.assembled[PIECE_PREFIX_BYTES..]);
                if !cutting.checksum.is_sound() {
                    return Err(incomplete(record.start, "the checksum does not match"));
                }
                self.cutting = None;
                self.timeline = timeline;
                self.previous_start = record.start;
                let end = Lsn(content.0 + wanted as u64).align_up();
                return Ok((RecordSpan { start, end }, Part::Last));
            }
            if source.bytes(page_end).is_empty() {
                return Err(incomplete(page, "nothing is written after the page yet"));
            }
            if self.assembled.len() - PIECE_PREFIX_BYTES >= piece_bytes {
                cutting.checksum.count(&self.assembled[PIECE_PREFIX_BYTES..]);
                self.cutting = Some(cutting);
                self.timeline = timeline;
                let part = if is_first { Part::First } else { Part::Middle };
                return Ok((RecordSpan { start, end: page_end }, part));
            }
            page = page_end;
        }
    }
}

#[cfg(test)]
mod tests;
