//! WAL pages out of records: the way back from [`crate::stream`], to the bytes of PostgreSQL's segment files.
//!
//! The rules are those of `CopyXLogRecordToWAL` and `AdvanceXLInsertBuffer` (`src/backend/access/transam/xlog.c`). All that
//! stands in a page follows from the records before it and from what all pages of a stream have in common:
//!
//! * a header, long in the first page of a segment file, else short, which says how much of an earlier record goes on in the page;
//! * records, each at a multiple of eight bytes, with zeros before it; one that does not fit goes on after the next header;
//! * after a segment switch (`XLOG_SWITCH`) zeros to the end of the segment file. The pages that it skips have no header.
//!
//! Two things do not follow from records:
//!
//! * **One flag of each page**, `XLP_BKP_REMOVABLE`. PostgreSQL sets it in a page that it begins while no base backup is being made
//!   (`forcePageWrites`), and it begins pages ahead of the records. Nothing of PostgreSQL's own reads it. It is set here, as by a server without such a backup
//!   ([`PageAssembler::with_backup_removable`] says otherwise), but not in a page that begins with a log's very first record:
//!   `initdb` and `pg_resetwal` write that page without it.
//! * **What a crash left of a record that was never finished.** PostgreSQL goes on at the page that was to hold its rest, marks the page,
//!   and begins it with an `XLOG_OVERWRITE_CONTRECORD` record. The front of the unfinished one is no record, so nobody has it. In its
//!   place stands the front of a record that has no effect, so that readers of the log get over it as they do over the original; how often that
//!   happened is [`PageAssembler::stand_ins`]. A server of Borealis writes no such log, because it never replays: it goes on from the end
//!   of what a recovery kept (`encode::shutdown_checkpoint`).
//!
//! A log of Borealis has two things that no reader of PostgreSQL's gets over. Both can be exchanged for a record that has no effect and the
//! same place, and what is exchanged is not what PostgreSQL wrote:
//!
//! * Records of Borealis's own ([`crate::native`]), of a resource manager that PostgreSQL does not have: [`without_effect`].
//! * Pieces of a record whose last ones a recovery cut off. The record that follows begins where the rest would, and names the last piece as
//!   the record before it: [`PageAssembler::append_without_effect`], then [`relinked`]. Where a recovery cut is known beforehand, from the
//!   volume's history. Unasked, such a log is refused ([`AssembleError::Unfinished`]).
//!
//! [`crate::volume_log`] does both, for the entries of a volume's chain.

mod filler;
mod stand_in;

use borealis_types::{Lsn, PageBytes, Part, RecordSpan, ServerVersion};

use crate::bytes::Reader;
use crate::layout::common::wal_page::{BACKUP_REMOVABLE, FIRST_IS_OVERWRITE, WAL_PAGE_BYTES};
use crate::layout::common::wal_record::{CHECKSUM_OFFSET, RECORD_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::layout::{OverwriteContinuation, xlog};
use crate::page::{WalLayout, page_start, segment_end};
use crate::record::{RecordHeader, RunningChecksum, verify_checksum};
use crate::{Record, RecordError, ResourceManager};

pub use filler::record_span;
use filler::{Give, PAGE_BYTES, file_header_page, is_between_records};
pub(crate) use filler::{PageFiller, content_end, record_start};
use stand_in::{data_header, front_without_effect};
pub use stand_in::{relinked, without_effect};

/// Positions from here on are refused, so that no end of a record or segment file overflows.
pub(crate) const POSITION_MAX: Lsn = Lsn(u64::MAX - (2 << 30));

/// What stands in the first page before the first record, if that record begins inside a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Front {
    /// The page is left out: every page that is given out is whole.
    LeftOut,
    /// Zeros, which the page's header says are the rest of an earlier record, so that tools that read a page from its start
    /// step over them. The first page of the segment file comes before it, if it is another one: PostgreSQL reads it to know
    /// the file. So a server can begin at a record anywhere.
    Zeros,
}

/// Records that make no log. Nothing is filled in for what is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// Not a position after a record.
    #[error(
        "no record ends at {position}: that is inside a page header, not a multiple of eight, or too high"
    )]
    Position {
        /// The position.
        position: Lsn,
    },
    /// Records are missing, or come twice.
    #[error(
        "the next log record begins at {expected}, and the one that was brought at {found}: records are missing or out of order"
    )]
    Gap {
        /// Where the record before it ends, after the page header that may stand there.
        expected: Lsn,
        /// Where this one says that it begins.
        found: Lsn,
    },
    /// It is of another history.
    #[error(
        "the log record at {start} names one at {named} as the one before it, which begins at {previous_start}: they are of \
         different histories"
    )]
    Unlinked {
        /// Where the record begins.
        start: Lsn,
        /// What it names.
        named: Lsn,
        /// Where the record before it begins.
        previous_start: Lsn,
    },
    /// The end that was said of a record or piece is not the one that follows from its length.
    #[error(
        "the log record or piece at {start} ends at {end} by its length, and at {said} by what is said of it"
    )]
    End {
        /// Where it begins.
        start: Lsn,
        /// Where it ends.
        end: Lsn,
        /// Where it was said to end.
        said: Lsn,
    },
    /// A record in pieces lacks its last ones: a recovery cut them off.
    #[error("the log record at {start} has not all its pieces, and another record follows at {next}")]
    Unfinished {
        /// Where the record begins.
        start: Lsn,
        /// Where the next one does.
        next: Lsn,
    },
    /// A piece goes on with a record that was not begun.
    #[error("a piece of a log record at {start}, and no record was begun before it")]
    NotBegun {
        /// Where the piece begins.
        start: Lsn,
    },
    /// It is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A record of which pieces are still to come.
#[derive(Clone, Debug)]
struct Begun {
    start: Lsn,
    rest_bytes: usize,
    checksum: RunningChecksum,
}

/// Makes pages of records that are brought in the order of the log. Holds one page.
///
/// Pages are given to a function as they become full, each with the position of its first byte, in order; those of a
/// [`Front`] first. A call that returns an error of that function leaves the assembler of no further use.
#[derive(Clone, Debug)]
pub struct PageAssembler {
    filler: PageFiller,
    previous_start: Lsn,
    /// Pages before this one are not given out.
    first_page: Lsn,
    /// The first page of the segment file, if it is still to be given out before all others.
    file_header: Option<Lsn>,
    begun: Option<Begun>,
    stand_ins: u64,
}

impl PageAssembler {
    /// An assembler of the records from `position` on, which is the end of a record. `previous_start` is the start of the
    /// record before `position`, which the first one must name; zero if it is not known. Compare
    /// [`crate::stream::RecordDecoder::new`].
    ///
    /// # Errors
    /// When no record can begin at `position`.
    pub fn new(
        layout: WalLayout,
        position: Lsn,
        previous_start: Lsn,
        front: Front,
    ) -> Result<PageAssembler, AssembleError> {
        if !is_between_records(&layout, position) || position > POSITION_MAX {
            return Err(AssembleError::Position { position });
        }
        let page = page_start(position);
        let mut filler = PageFiller::new(layout, position);
        filler.flags = BACKUP_REMOVABLE;
        let is_inside = page != position;
        let (mut first_page, mut file_header) = (page, None);
        match front {
            Front::LeftOut if is_inside => first_page = Lsn(page.0 + WAL_PAGE_BYTES),
            Front::LeftOut => {}
            Front::Zeros => {
                let segment = Lsn(position.0 - position.0 % u64::from(layout.segment_bytes));
                file_header = (segment != page).then_some(segment);
                if is_inside {
                    filler.declare_front();
                }
            }
        }
        Ok(PageAssembler { filler, previous_start, first_page, file_header, begun: None, stand_ins: 0 })
    }

    /// Whether pages have the flag `XLP_BKP_REMOVABLE`, which does not follow from records. They have it unless this says otherwise.
    #[must_use]
    pub fn with_backup_removable(mut self, is_set: bool) -> PageAssembler {
        self.filler.flags = if is_set { BACKUP_REMOVABLE } else { 0 };
        self
    }

    /// Where the next record or piece is to follow: the end of the last one.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.filler.position
    }

    /// Start of the last whole record.
    #[must_use]
    pub fn previous_start(&self) -> Lsn {
        self.previous_start
    }

    /// How many records were never finished, so that something else stands in their place.
    #[must_use]
    pub fn stand_ins(&self) -> u64 {
        self.stand_ins
    }

    /// Takes the next record, or the next piece of one (its content, see [`crate::piece::open`]), and gives out the pages that are full.
    ///
    /// # Errors
    /// When it is not the next one, or not whole, before anything of it is written: the same assembler can go on with the right
    /// one. The exception is the checksum of a record in pieces, which is known with its last one. Else what `give` returns.
    pub fn append<E: From<AssembleError>>(
        &mut self,
        span: RecordSpan,
        part: Part,
        bytes: &[u8],
        mut give: impl FnMut(Lsn, &PageBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        self.giving(&mut give, |assembler, give| match part {
            Part::Whole => assembler.append_whole(span, bytes, give),
            Part::First => assembler.append_first(span, bytes, give),
            Part::Middle | Part::Last => assembler.append_piece(span, part, bytes, give),
        })
    }

    /// Does something with pages being given out that are wanted, the first one of the segment file before all others.
    fn giving<E>(
        &mut self,
        give: &mut Give<'_, E>,
        work: impl FnOnce(&mut Self, &mut Give<'_, E>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (layout, first_page, mut file_header) = (self.filler.layout, self.first_page, self.file_header);
        let done = work(self, &mut |page, content| {
            if let Some(at) = file_header.take() {
                give(at, &file_header_page(&layout, at))?;
            }
            if page < first_page { Ok(()) } else { give(page, content) }
        });
        self.file_header = file_header;
        done
    }

    /// Writes a record without effect (`XLOG_NOOP`) that ends at `end`, in the place of what a recovery left of a record that began here.
    /// The record that follows has to name it: see [`relinked`]. Returns where it begins.
    ///
    /// # Errors
    /// When pieces of the record were taken already, or none without effect fits there; else what `give` returns.
    pub fn append_without_effect<E: From<AssembleError>>(
        &mut self,
        end: Lsn,
        mut give: impl FnMut(Lsn, &PageBytes) -> Result<(), E>,
    ) -> Result<Lsn, E> {
        self.check_room()?;
        let start = record_start(&self.filler.layout, self.filler.position);
        self.check_start(start)?;
        let malformed = |what| E::from(AssembleError::from(RecordError::Malformed { start, what }));
        let room = self.filler.room_until(page_start(end)).filter(|_| page_start(end) == end);
        let total_bytes =
            room.ok_or_else(|| malformed("it does not end at the end of a page that follows"))?;
        let body_bytes = total_bytes.checked_sub(RECORD_HEADER_BYTES);
        let data = body_bytes.and_then(data_header);
        let data = data.ok_or_else(|| malformed("no record is as short as the place to fill"))?;
        let total = u32::try_from(total_bytes).unwrap_or(u32::MAX);
        let mut front = front_without_effect(total, self.previous_start).to_vec();
        let mut sum = RunningChecksum::default();
        sum.count(&front);
        sum.count(&data);
        front.extend_from_slice(&data);
        let mut zeros_left = total_bytes - front.len();
        while zeros_left > 0 {
            let part = zeros_left.min(PAGE_BYTES);
            sum.count(&[0; PAGE_BYTES][..part]);
            zeros_left -= part;
        }
        front[CHECKSUM_OFFSET..RECORD_HEADER_BYTES].copy_from_slice(&sum.expected().to_le_bytes());
        self.giving(&mut give, |assembler, give| {
            assembler.filler.begin_record(0, assembler.previous_start == Lsn::ZERO);
            assembler.filler.put(&front, total_bytes, give)?;
            assembler.filler.put_zeros(total_bytes - front.len(), total_bytes - front.len(), give)
        })?;
        self.previous_start = start;
        Ok(start)
    }

    /// Gives out the last page, of which nothing is written after the last record, as far as there is one.
    ///
    /// # Errors
    /// What `give` returns.
    pub fn finish<E>(self, mut give: impl FnMut(Lsn, &PageBytes) -> Result<(), E>) -> Result<(), E> {
        let page = page_start(self.filler.position);
        if self.filler.in_page() == 0 || page < self.first_page {
            return Ok(());
        }
        if let Some(at) = self.file_header {
            give(at, &file_header_page(&self.filler.layout, at))?;
        }
        give(page, self.filler.page())
    }

    fn append_whole<E: From<AssembleError>>(
        &mut self,
        span: RecordSpan,
        bytes: &[u8],
        give: &mut Give<'_, E>,
    ) -> Result<(), E> {
        let header = self.begin(span.start, bytes)?;
        let malformed = |what| RecordError::Malformed { start: span.start, what };
        if header.total_bytes as usize != bytes.len() {
            return Err(AssembleError::from(malformed("not as long as its header says")).into());
        }
        verify_checksum(bytes, span.start).map_err(AssembleError::from)?;
        let overwrites = self.overwritten(span, &header, bytes)?;
        let mut end = content_end(&self.filler.layout, span.start, bytes.len()).align_up();
        let is_switch = is_xlog(&header, xlog::SWITCH);
        if is_switch {
            let position = AssembleError::Position { position: end };
            end = segment_end(end, self.filler.layout.segment_bytes).ok_or(position)?;
        }
        check_end(span, end)?;
        if overwrites {
            self.stand_in(page_start(span.start), give)?;
        }
        let flags = if overwrites { FIRST_IS_OVERWRITE } else { 0 };
        self.filler.begin_record(flags, header.previous_start == Lsn::ZERO);
        self.filler.put(bytes, bytes.len(), give)?;
        self.filler.align(give)?;
        if is_switch {
            self.filler.skip_to(end, give)?;
        }
        self.previous_start = span.start;
        Ok(())
    }

    fn append_first<E: From<AssembleError>>(
        &mut self,
        span: RecordSpan,
        bytes: &[u8],
        give: &mut Give<'_, E>,
    ) -> Result<(), E> {
        let header = self.begin(span.start, bytes)?;
        self.check_start(span.start)?;
        let total_bytes = header.total_bytes as usize;
        let rest_bytes = total_bytes.checked_sub(bytes.len()).filter(|&rest| rest > 0);
        let Some(rest_bytes) = rest_bytes.filter(|_| total_bytes <= RECORD_BYTES_MAX) else {
            let what = "the first piece of a record is not shorter than it, or the record longer than any";
            return Err(AssembleError::from(RecordError::Malformed { start: span.start, what }).into());
        };
        check_piece_end(&self.filler.layout, span, span.start, bytes.len())?;
        let mut checksum = RunningChecksum::default();
        checksum.count(bytes);
        self.filler.begin_record(0, header.previous_start == Lsn::ZERO);
        self.filler.put(bytes, total_bytes, give)?;
        self.begun = Some(Begun { start: span.start, rest_bytes, checksum });
        Ok(())
    }

    fn append_piece<E: From<AssembleError>>(
        &mut self,
        span: RecordSpan,
        part: Part,
        bytes: &[u8],
        give: &mut Give<'_, E>,
    ) -> Result<(), E> {
        let Some(begun) = &mut self.begun else {
            return Err(AssembleError::NotBegun { start: span.start }.into());
        };
        if span.start != self.filler.position {
            return Err(AssembleError::Gap { expected: self.filler.position, found: span.start }.into());
        }
        let rest_after = begun.rest_bytes.checked_sub(bytes.len());
        let fits = if part.ends_record() { rest_after == Some(0) } else { rest_after > Some(0) };
        let (Some(rest_after), true) = (rest_after, fits && !bytes.is_empty()) else {
            let what = "the lengths of its pieces do not add up to its own";
            return Err(AssembleError::from(RecordError::Malformed { start: begun.start, what }).into());
        };
        let content = record_start(&self.filler.layout, span.start);
        if part.ends_record() {
            check_end(span, content_end(&self.filler.layout, content, bytes.len()).align_up())?;
        } else {
            check_piece_end(&self.filler.layout, span, content, bytes.len())?;
        }
        let mut sum = begun.checksum;
        sum.count(bytes);
        if part.ends_record() && !sum.is_sound() {
            return Err(AssembleError::from(RecordError::Checksum { start: begun.start }).into());
        }
        let rest_before = begun.rest_bytes;
        begun.rest_bytes = rest_after;
        begun.checksum = sum;
        let start = begun.start;
        self.filler.put(bytes, rest_before, give)?;
        if part.ends_record() {
            self.filler.align(give)?;
            self.previous_start = start;
            self.begun = None;
        }
        Ok(())
    }

    /// Reads the header of a record that begins here and checks its link.
    fn begin(&self, start: Lsn, bytes: &[u8]) -> Result<RecordHeader, AssembleError> {
        self.check_room()?;
        let what = "shorter than a record header";
        let header = RecordHeader::read(&mut Reader::new(bytes))
            .ok_or(AssembleError::Record(RecordError::Malformed { start, what }))?;
        if let Some(begun) = &self.begun
            && !is_xlog(&header, xlog::OVERWRITE_CONTINUATION)
        {
            return Err(AssembleError::Unfinished { start: begun.start, next: start });
        }
        let named = header.previous_start;
        let is_linked = match self.previous_start {
            Lsn::ZERO => named < start,
            previous_start => named == previous_start,
        };
        if is_linked {
            Ok(header)
        } else {
            Err(AssembleError::Unlinked { start, named, previous_start: self.previous_start })
        }
    }

    fn check_room(&self) -> Result<(), AssembleError> {
        let position = self.filler.position;
        if position > POSITION_MAX { Err(AssembleError::Position { position }) } else { Ok(()) }
    }

    /// A record that overwrites nothing begins where the last one ends.
    fn check_start(&self, start: Lsn) -> Result<(), AssembleError> {
        if let Some(begun) = &self.begun {
            return Err(AssembleError::Unfinished { start: begun.start, next: start });
        }
        let expected = record_start(&self.filler.layout, self.filler.position);
        if start == expected { Ok(()) } else { Err(AssembleError::Gap { expected, found: start }) }
    }

    /// Whether the record begins a later page because the one that was to go on there was never finished. Any other record
    /// begins where the last one ends.
    fn overwritten(
        &self,
        span: RecordSpan,
        header: &RecordHeader,
        bytes: &[u8],
    ) -> Result<bool, AssembleError> {
        let layout = &self.filler.layout;
        let page = page_start(span.start);
        let lost = self.filler.room_until(page);
        let begins_later_page = span.start == record_start(layout, page)
            && (lost.is_some_and(|lost| lost > 0) || self.begun.is_some());
        if !is_xlog(header, xlog::OVERWRITE_CONTINUATION) || !begins_later_page {
            self.check_start(span.start)?;
            return Ok(false);
        }
        let expected = record_start(layout, self.filler.position);
        let unfinished = self.begun.as_ref().map_or(expected, |begun| begun.start);
        let record = Record::parse(ServerVersion::any_of(layout.version), span, bytes)?;
        let named = OverwriteContinuation::parse(&record)?.overwritten;
        // The unfinished record has bytes that were to stand on the page.
        let limit_bytes = RECORD_BYTES_MAX - RECORD_HEADER_BYTES;
        let rest_bytes = self.begun.as_ref().map_or(limit_bytes, |begun| begun.rest_bytes);
        if named == unfinished && lost.is_some_and(|lost| lost < rest_bytes) {
            Ok(true)
        } else {
            Err(AssembleError::Gap { expected: named, found: unfinished })
        }
    }

    /// Goes on to the page `until`, to which a record that was never finished would have gone on. What there is of it stays;
    /// if that is nothing, the front of a record without effect takes its place.
    fn stand_in<E>(&mut self, until: Lsn, give: &mut Give<'_, E>) -> Result<(), E> {
        let lost_bytes = self.filler.room_until(until).unwrap_or_default();
        let (front, rest_bytes) = match self.begun.take() {
            Some(begun) => (Vec::new(), begun.rest_bytes),
            None => {
                // It goes on behind `until`: so a reader looks there, and sees that it was overwritten.
                let total_bytes = lost_bytes + RECORD_HEADER_BYTES;
                let total = u32::try_from(total_bytes).unwrap_or(u32::MAX);
                (front_without_effect(total, self.previous_start).to_vec(), total_bytes)
            }
        };
        self.stand_ins += u64::from(lost_bytes > 0);
        let front = &front[..front.len().min(lost_bytes)];
        if !front.is_empty() {
            self.filler.begin_record(0, false);
        }
        self.filler.put(front, rest_bytes, give)?;
        self.filler.put_zeros(lost_bytes - front.len(), rest_bytes - front.len(), give)
    }
}

fn is_xlog(header: &RecordHeader, operation: u8) -> bool {
    header.resource_manager == ResourceManager::Xlog.number() && header.info & 0xF0 == operation
}

fn check_end(span: RecordSpan, end: Lsn) -> Result<(), AssembleError> {
    if span.end == end { Ok(()) } else { Err(AssembleError::End { start: span.start, end, said: span.end }) }
}

/// A piece that is not a record's last ends at the end of a page. Its bytes begin at `content`.
fn check_piece_end(
    layout: &WalLayout,
    span: RecordSpan,
    content: Lsn,
    bytes: usize,
) -> Result<(), AssembleError> {
    let end = content_end(layout, content, bytes);
    check_end(span, end)?;
    let what = "a piece that is not its last does not end with a page";
    let malformed = RecordError::Malformed { start: span.start, what };
    if page_start(end) == end { Ok(()) } else { Err(malformed.into()) }
}

#[cfg(test)]
pub(crate) mod tests;
