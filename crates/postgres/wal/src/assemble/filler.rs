//! Where records stand among pages, and one page that is being filled.

use borealis_types::{Lsn, PAGE_SIZE, PageBytes, RecordSpan, invariant};

use crate::layout::common::wal_page::WAL_PAGE_BYTES;
use crate::layout::common::wal_record::RECORD_BYTES_MAX;
use crate::page::{WalLayout, page_start};

pub(super) const PAGE_BYTES: usize = WAL_PAGE_BYTES as usize;
const _: () = assert!(PAGE_BYTES == PAGE_SIZE, "a WAL page has the type of a relation's page");

/// Where a record of `total_bytes` stands that is the next one after a record that ends at `at`. A segment switch ends at the
/// end of its segment file instead.
///
/// # Panics
/// If no record can end at `at`: it is not aligned or inside a page header.
#[must_use]
pub fn record_span(layout: &WalLayout, at: Lsn, total_bytes: usize) -> RecordSpan {
    invariant!("record-begins-where-one-may", is_between_records(layout, at), "at {at}");
    let start = record_start(layout, at);
    RecordSpan { start, end: content_end(layout, start, total_bytes).align_up() }
}

/// Where the next record begins after one that ends at `at`.
pub(crate) fn record_start(layout: &WalLayout, at: Lsn) -> Lsn {
    if page_start(at) == at { Lsn(at.0 + layout.header_bytes(at) as u64) } else { at }
}

/// Where the last of so many bytes ends that begin at `start`, with headers between.
pub(crate) fn content_end(layout: &WalLayout, start: Lsn, mut bytes: usize) -> Lsn {
    let mut position = start;
    loop {
        let page_end = Lsn(page_start(position).0 + WAL_PAGE_BYTES);
        let room = (page_end.0 - position.0) as usize;
        if bytes <= room {
            return Lsn(position.0 + bytes as u64);
        }
        bytes -= room;
        position = record_start(layout, page_end);
    }
}

/// Whether a record can end at this position, and another one begin there.
pub(crate) fn is_between_records(layout: &WalLayout, position: Lsn) -> bool {
    let (page, is_aligned) = (page_start(position), position.0.is_multiple_of(8));
    let in_page = (position.0 - page.0) as usize;
    is_aligned && (in_page == 0 || in_page >= layout.header_bytes(page))
}

/// Takes a full page, and the position of its first byte.
pub(super) type Give<'a, E> = dyn FnMut(Lsn, &PageBytes) -> Result<(), E> + 'a;

/// One page that is being filled, and what all pages have in common.
#[derive(Clone, Debug)]
pub(crate) struct PageFiller {
    pub(super) layout: WalLayout,
    page: Box<PageBytes>,
    /// Where the next byte goes. At the start of a page that page has no header yet.
    pub(super) position: Lsn,
    /// Flags of the next headers.
    pub(super) flags: u16,
}

impl PageFiller {
    /// What stands in the page before `position` is zeros.
    pub(crate) fn new(layout: WalLayout, position: Lsn) -> PageFiller {
        PageFiller { layout, page: Box::new([0; PAGE_SIZE]), position, flags: 0 }
    }

    pub(super) fn in_page(&self) -> usize {
        (self.position.0 % WAL_PAGE_BYTES) as usize
    }

    /// Says in the first page's header that all before the position is the rest of an earlier record.
    pub(super) fn declare_front(&mut self) {
        let page = page_start(self.position);
        let before = self.in_page().saturating_sub(self.layout.header_bytes(page));
        let header = self.layout.encode_header(page, before as u32);
        self.page[..header.len()].copy_from_slice(&header);
    }

    /// Before a record is written: begins a page if the position is at the start of one. `is_first`: no record has begun before, in
    /// all the log.
    pub(crate) fn begin_record(&mut self, extra_flags: u16, is_first: bool) {
        if self.in_page() == 0 {
            let flags = if is_first { 0 } else { self.flags } | extra_flags;
            self.begin_page(0, flags);
        }
    }

    fn begin_page(&mut self, continuation_bytes: usize, flags: u16) {
        let continuation_bytes = u32::try_from(continuation_bytes).unwrap_or(u32::MAX);
        let header = self.layout.encode_header_with(self.position, continuation_bytes, flags);
        self.page[..header.len()].copy_from_slice(&header);
        self.position.0 += header.len() as u64;
    }

    /// Writes the next bytes of a record, of which `rest_bytes` are still to come, these included.
    pub(crate) fn put<E>(
        &mut self,
        mut bytes: &[u8],
        mut rest_bytes: usize,
        give: &mut Give<'_, E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.in_page() == 0 {
                self.begin_page(rest_bytes, self.flags);
            }
            let at = self.in_page();
            let (fits, later) = bytes.split_at(bytes.len().min(PAGE_BYTES - at));
            self.page[at..at + fits.len()].copy_from_slice(fits);
            bytes = later;
            rest_bytes = rest_bytes.saturating_sub(fits.len());
            self.advance(fits.len(), give)?;
        }
        Ok(())
    }

    /// Writes so many zeros as the next bytes of a record, of which `rest_bytes` are still to come, these included.
    pub(super) fn put_zeros<E>(
        &mut self,
        mut bytes: usize,
        mut rest_bytes: usize,
        give: &mut Give<'_, E>,
    ) -> Result<(), E> {
        let zeros = [0; PAGE_BYTES];
        while bytes > 0 {
            let part = &zeros[..bytes.min(PAGE_BYTES)];
            self.put(part, rest_bytes, give)?;
            bytes -= part.len();
            rest_bytes -= part.len();
        }
        Ok(())
    }

    /// How many bytes of a record have room before the page `until`; `None` if that is before the position, or further than any
    /// record reaches.
    pub(super) fn room_until(&self, until: Lsn) -> Option<usize> {
        let distance = until.0.checked_sub(self.position.0)?;
        if distance > RECORD_BYTES_MAX as u64 {
            return None;
        }
        let (mut position, mut room) = (self.position, 0);
        while position < until {
            let content = record_start(&self.layout, position);
            position = Lsn(page_start(content).0 + WAL_PAGE_BYTES);
            room += (position.0 - content.0) as usize;
        }
        Some(room)
    }

    /// Leaves zeros up to the place where the next record may begin.
    pub(super) fn align<E>(&mut self, give: &mut Give<'_, E>) -> Result<(), E> {
        let padding = self.position.align_up().0 - self.position.0;
        self.advance(padding as usize, give)
    }

    /// Leaves zeros to the end of the segment file: the pages of which nothing is written have no header.
    pub(super) fn skip_to<E>(&mut self, end: Lsn, give: &mut Give<'_, E>) -> Result<(), E> {
        while self.position < end {
            self.advance(PAGE_BYTES - self.in_page(), give)?;
        }
        Ok(())
    }

    fn advance<E>(&mut self, bytes: usize, give: &mut Give<'_, E>) -> Result<(), E> {
        let page = page_start(self.position);
        self.position.0 += bytes as u64;
        if page_start(self.position) != page {
            give(page, &self.page)?;
            self.page.fill(0);
        }
        Ok(())
    }

    /// The page that the position is on; zeros if nothing of it is written.
    pub(crate) fn page(&self) -> &PageBytes {
        &self.page
    }
}

/// The first page of a segment file, of which nothing else is there.
pub(super) fn file_header_page(layout: &WalLayout, page: Lsn) -> Box<PageBytes> {
    let header = layout.encode_header(page, 0);
    let mut bytes = Box::new([0; PAGE_SIZE]);
    bytes[..header.len()].copy_from_slice(&header);
    bytes
}
