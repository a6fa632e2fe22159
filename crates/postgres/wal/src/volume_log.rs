//! The log of a volume as pages that PostgreSQL reads: entries as they were shipped, with what PostgreSQL does not know exchanged.

use borealis_types::{EpochHistory, Lsn, PageBytes, Part, RecordSpan, VolumeEpoch};

use crate::assemble::{
    AssembleError, Front, POSITION_MAX, PageAssembler, content_end, relinked, without_effect,
};
use crate::bytes::Reader;
use crate::layout::common::wal_record::RECORD_BYTES_MAX;
use crate::page::{WalLayout, page_start};
use crate::piece::open;
use crate::record::RecordHeader;
use crate::{RecordError, ResourceManager};

/// What was exchanged, so that the log is not what a server wrote: see [`crate::assemble`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exchanged {
    /// Records of Borealis's own, each now one without effect.
    pub own_records: u64,
    /// Records of which a recovery left some pieces, now one without effect.
    pub cut_records: u64,
    /// Records that now name another one as the one before them.
    pub relinked: u64,
}

/// Pieces that are there of a record that a recovery cut.
#[derive(Clone, Copy, Debug)]
struct CutRecord {
    start: Lsn,
    /// Start of the last piece so far.
    piece_start: Lsn,
    /// Where the last one ends that is there.
    until: Lsn,
}

/// Another link for the next record.
#[derive(Clone, Copy, Debug)]
struct Relink {
    from: Lsn,
    to: Lsn,
}

/// Makes pages of the entries of a volume's chain: records and pieces of records, in the order of the volume, as they are in its backup.
/// Pages are whole ones only ([`Front::LeftOut`]), from the first record on that begins among the entries.
#[derive(Clone, Debug)]
pub struct VolumeLog {
    layout: WalLayout,
    history: EpochHistory,
    assembler: Option<PageAssembler>,
    cut: Option<CutRecord>,
    relink: Option<Relink>,
    exchanged: Exchanged,
}

impl VolumeLog {
    /// Of a volume with this history: it says which records were cut, before they are seen to lack something.
    #[must_use]
    pub fn new(layout: WalLayout, history: EpochHistory) -> VolumeLog {
        let exchanged = Exchanged::default();
        VolumeLog { layout, history, assembler: None, cut: None, relink: None, exchanged }
    }

    /// What was exchanged so far.
    #[must_use]
    pub fn exchanged(&self) -> Exchanged {
        self.exchanged
    }

    /// Takes the next entry, which was written in `epoch`: a record, or a sealed piece of one. Pieces of a record that began
    /// before the first entry are passed over.
    ///
    /// # Errors
    /// As [`PageAssembler::append`].
    pub fn append<E: From<AssembleError>>(
        &mut self,
        epoch: VolumeEpoch,
        span: RecordSpan,
        part: Part,
        bytes: &[u8],
        mut give: impl FnMut(Lsn, &PageBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let sound = |error: RecordError| E::from(AssembleError::from(error));
        let content = if part.is_piece() { open(bytes, span.start).map_err(sound)? } else { bytes };
        if self.assembler.is_none() && !part.begins_record() {
            return Ok(());
        }
        if let Some(cut) = &mut self.cut {
            if part.begins_record() || span.start < cut.piece_start || span.end > cut.until {
                return Err(AssembleError::Unfinished { start: cut.start, next: span.start }.into());
            }
            cut.piece_start = span.start;
            return self.end_of_cut(span.end, give);
        }
        if self.assembler.is_none() {
            // A record that begins right after a page header follows one that ends at the page's start, or before.
            let page = page_start(span.start);
            let is_first = span.start.0 - page.0 == self.layout.header_bytes(page) as u64;
            let position = if is_first { page } else { span.start };
            self.assembler = Some(PageAssembler::new(self.layout, position, Lsn::ZERO, Front::LeftOut)?);
        }
        match part {
            Part::First => {
                if let Some(until) = self.cut_at(epoch, span.start, content).map_err(sound)? {
                    let start = span.start;
                    self.cut = Some(CutRecord { start, piece_start: start, until });
                    return self.end_of_cut(span.end, give);
                }
            }
            Part::Whole => {
                let exchanged = self.exchange(span.start, content).map_err(sound)?;
                let content = exchanged.as_deref().unwrap_or(content);
                return self.assembler(span.start)?.append(span, part, content, &mut give);
            }
            Part::Middle | Part::Last => {}
        }
        self.assembler(span.start)?.append(span, part, content, give)
    }

    /// Gives out the last page, as [`PageAssembler::finish`].
    ///
    /// # Errors
    /// What `give` returns.
    pub fn finish<E>(self, give: impl FnMut(Lsn, &PageBytes) -> Result<(), E>) -> Result<(), E> {
        self.assembler.map_or(Ok(()), |assembler| assembler.finish(give))
    }

    fn assembler(&mut self, start: Lsn) -> Result<&mut PageAssembler, AssembleError> {
        self.assembler.as_mut().ok_or(AssembleError::NotBegun { start })
    }

    /// Where a recovery cut a record of which this is the beginning; `None` if it is all there.
    fn cut_at(&self, epoch: VolumeEpoch, start: Lsn, front: &[u8]) -> Result<Option<Lsn>, RecordError> {
        let what = "no record begins like this, or not there";
        let header = RecordHeader::read(&mut Reader::new(front))
            .filter(|header| header.total_bytes as usize <= RECORD_BYTES_MAX && start <= POSITION_MAX);
        let header = header.ok_or(RecordError::Malformed { start, what })?;
        // Openings never fall: the first one after the record's epoch cut it, or none did.
        let next = self.history.openings().iter().find(|opening| opening.epoch > epoch);
        let kept = next.map(|opening| opening.last.end);
        let end = content_end(&self.layout, start, header.total_bytes as usize);
        Ok(kept.filter(|kept| *kept < end))
    }

    /// A piece of a cut record ends here; with the last one that is there the record is exchanged.
    fn end_of_cut<E: From<AssembleError>>(
        &mut self,
        end: Lsn,
        give: impl FnMut(Lsn, &PageBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(cut) = self.cut.filter(|cut| cut.until <= end) else { return Ok(()) };
        self.cut = None;
        self.assembler(cut.start)?.append_without_effect(end, give)?;
        self.exchanged.cut_records += 1;
        self.relink =
            (cut.piece_start != cut.start).then_some(Relink { from: cut.piece_start, to: cut.start });
        Ok(())
    }

    /// What a record is exchanged for, if it is.
    fn exchange(&mut self, start: Lsn, record: &[u8]) -> Result<Option<Vec<u8>>, RecordError> {
        let Some(header) = RecordHeader::read(&mut Reader::new(record)) else { return Ok(None) };
        let mut exchanged = None;
        if let Some(relink) = self.relink.take().filter(|relink| relink.from == header.previous_start) {
            exchanged = Some(relinked(record, start, relink.to)?);
            self.exchanged.relinked += 1;
        }
        if ResourceManager::from(header.resource_manager) == ResourceManager::Borealis {
            exchanged = Some(without_effect(exchanged.as_deref().unwrap_or(record), start)?);
            self.exchanged.own_records += 1;
        }
        Ok(exchanged)
    }
}

#[cfg(test)]
mod tests;
