//! Records that the writer cut into pieces, as one segment has them.
//!
//! Each piece is a record of the chain, and has no effect. With the last piece the record itself enters the index, under the
//! place of all its pieces together ([`RecordRef`] with [`Part::First`]); it is put together from the log whenever it is
//! applied, and never kept. What was begun and is followed by anything else has no effect, ever: its rest was truncated by
//! a recovery.
//!
//! A piece's bytes are needed until its record is materialized, so no segment is materialized to a place inside a record:
//! then every piece stays above the materialized LSN, where the log is kept and replayed. Nor inside of one that was given
//! up, or a replay would begin with a piece that goes on with nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_types::{Lsn, Part, RecordSpan};

use crate::log::position::{LogPosition, RecordRef};

/// The pieces of indexed records, by the end of the record.
///
/// Readers share them, and a change while somebody reads makes a copy.
pub(crate) type Pieces = Arc<BTreeMap<Lsn, Arc<[RecordRef]>>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct CutRecords {
    /// Pieces of the record that the chain ends with and whose last piece is not there.
    begun: Vec<RecordRef>,
    /// Pieces of each record that something else followed before it was whole, in order.
    given_up: Vec<Vec<RecordRef>>,
    indexed: Pieces,
}

/// What the next entry of the chain is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// A whole record.
    Whole,
    /// A piece whose record is not all there.
    Piece,
    /// The last piece of this record.
    Record(RecordRef, Arc<[RecordRef]>),
    /// A piece that goes on with nothing.
    Loose,
}

impl CutRecords {
    /// Takes the next entry of the chain.
    pub(crate) fn next(&mut self, reference: RecordRef) -> Next {
        let before = self.begun.last().map(|before| (before.part, before.span.end));
        if reference.part.begins_record() {
            let left = std::mem::take(&mut self.begun);
            self.given_up.extend((!left.is_empty()).then_some(left));
        } else if before.is_none_or(|(part, end)| !reference.part.continues(part, end, reference.span.start))
        {
            let left = std::mem::take(&mut self.begun);
            self.given_up.extend((!left.is_empty()).then_some(left));
            return Next::Loose;
        }
        if reference.part == Part::Whole {
            return Next::Whole;
        }
        self.begun.push(reference);
        if !reference.part.ends_record() {
            return Next::Piece;
        }
        let pieces: Arc<[RecordRef]> = std::mem::take(&mut self.begun).into();
        Next::Record(whole(&pieces), pieces)
    }

    /// The record with these pieces cannot be put together now: its last piece is not taken.
    pub(crate) fn put_back(&mut self, pieces: &[RecordRef]) {
        self.begun = pieces.split_last().map_or_else(Vec::new, |(_, before)| before.to_vec());
    }

    /// The record with these pieces was indexed.
    pub(crate) fn indexed(&mut self, record: RecordRef, pieces: Arc<[RecordRef]>) {
        Arc::make_mut(&mut self.indexed).insert(record.span.end, pieces);
    }

    /// The pieces of the record that the chain ends with, if its last one is not there.
    pub(crate) fn begun(&self) -> &[RecordRef] {
        &self.begun
    }

    /// The pieces of every indexed record that has some.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.indexed
    }

    /// Every piece that is known.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &RecordRef> {
        let indexed = self.indexed.values().flat_map(|pieces| pieces.iter());
        self.given_up.iter().flatten().chain(&self.begun).chain(indexed)
    }

    /// Notes that the bytes of some pieces are elsewhere in the log now.
    pub(crate) fn repoint(&mut self, moved: &BTreeMap<LogPosition, LogPosition>) {
        for piece in self.given_up.iter_mut().flatten().chain(&mut self.begun) {
            piece.repoint(moved);
        }
        for pieces in Arc::make_mut(&mut self.indexed).values_mut() {
            if pieces.iter().any(|piece| moved.contains_key(&piece.position)) {
                let mut moved_pieces = pieces.to_vec();
                moved_pieces.iter_mut().for_each(|piece| piece.repoint(moved));
                *pieces = moved_pieces.into();
            }
        }
    }

    /// Where to stop instead of at `target`, so as not to stop inside a record. `is_given_up` says whether the rest of a
    /// record of which pieces through a place are here can never come.
    pub(crate) fn outside(&self, target: Lsn, is_given_up: impl Fn(Lsn) -> bool) -> Lsn {
        let mut target = target;
        if let (Some(first), Some(last)) = (self.begun.first(), self.begun.last())
            && (target < last.span.end || !is_given_up(last.span.end))
        {
            target = target.min(first.span.start);
        }
        for pieces in &self.given_up {
            let RecordSpan { start, end } = whole(pieces).span;
            if start < target && target < end {
                target = start;
            }
        }
        match self.indexed.range(Lsn(target.0.saturating_add(1))..).next() {
            Some((_, pieces)) => target.min(whole(pieces).span.start),
            None => target,
        }
    }

    /// Forgets what is materialized through `lsn`.
    pub(crate) fn drop_through(&mut self, lsn: Lsn) {
        if self.indexed.first_key_value().is_some_and(|(end, _)| *end <= lsn) {
            let indexed = Arc::make_mut(&mut self.indexed);
            *indexed = indexed.split_off(&Lsn(lsn.0.saturating_add(1)));
        }
        if self.begun.first().is_some_and(|first| first.span.start < lsn) {
            self.begun.clear();
        }
        self.given_up.retain(|pieces| whole(pieces).span.end > lsn);
    }

    /// Drops what ends above `lsn`: a recovery truncated it. What stays of a record is begun, for the next recovery may
    /// know the rest.
    pub(crate) fn drop_above(&mut self, lsn: Lsn) {
        let is_above = self.indexed.last_key_value().is_some_and(|(end, _)| *end > lsn);
        let mut dropped = match is_above {
            true => Arc::make_mut(&mut self.indexed).split_off(&Lsn(lsn.0.saturating_add(1))),
            false => BTreeMap::new(),
        };
        if let Some((_, pieces)) = dropped.pop_first()
            && whole(&pieces).span.start < lsn
        {
            self.begun = pieces.to_vec();
        }
        self.given_up.retain(|pieces| whole(pieces).span.start < lsn);
        if self.given_up.last().is_some_and(|pieces| whole(pieces).span.end >= lsn) {
            self.begun = self.given_up.pop().unwrap_or_default();
        }
        self.begun.retain(|piece| piece.span.end <= lsn);
    }
}

/// The record that these pieces are.
fn whole(pieces: &[RecordRef]) -> RecordRef {
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        unreachable!("a record has a piece: it is made from what was begun and the piece that ends it")
    };
    let length = pieces.iter().map(|piece| u64::from(piece.length)).sum::<u64>();
    RecordRef {
        span: RecordSpan { start: first.span.start, end: last.span.end },
        position: first.position,
        // PostgreSQL's own lengths have as many bits.
        length: u32::try_from(length).unwrap_or(u32::MAX),
        part: Part::First,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::position::LogPosition;

    fn entry(start: u64, part: Part) -> RecordRef {
        let span = RecordSpan { start: Lsn(start), end: Lsn(start + 100) };
        RecordRef { span, position: LogPosition::new(1, start as u32), length: 90, part }
    }

    fn take(cut: &mut CutRecords, entries: &[(u64, Part)]) -> Vec<Option<RecordSpan>> {
        let taken = entries.iter().map(|&(start, part)| match cut.next(entry(start, part)) {
            Next::Record(record, pieces) => {
                cut.indexed(record, pieces);
                Some(record.span)
            }
            Next::Whole => Some(entry(start, part).span),
            Next::Piece | Next::Loose => None,
        });
        taken.collect()
    }

    #[test]
    fn a_record_takes_effect_with_its_last_piece_only() {
        use Part::{First, Last, Middle, Whole};
        let whole = |start, end| Some(RecordSpan { start: Lsn(start), end: Lsn(end) });
        let mut cut = CutRecords::default();
        let log = [(100, Whole), (200, First), (300, Middle), (400, Last), (500, Whole)];
        assert_eq!(take(&mut cut, &log), [whole(100, 200), None, None, whole(200, 500), whole(500, 600)]);
        // A recovery cut the record after its second piece.
        let mut cut = CutRecords::default();
        assert_eq!(
            take(&mut cut, &[(200, First), (300, Middle), (400, Whole)]),
            [None, None, whole(400, 500)]
        );
        assert_eq!(take(&mut cut, &[(500, Last)]), [None], "the rest of nothing");
        assert_eq!(take(&mut cut, &[(600, First), (800, Last)]), [None, None], "a gap");
    }

    #[test]
    fn nothing_is_materialized_to_a_place_inside_a_record() {
        use Part::{First, Last, Middle, Whole};
        let mut cut = CutRecords::default();
        let never = |_| false;
        take(&mut cut, &[(100, Whole), (200, First), (300, Middle)]);
        assert_eq!(cut.outside(Lsn(350), never), Lsn(200));
        assert_eq!(cut.outside(Lsn(900), never), Lsn(200), "the last piece may come");
        assert_eq!(cut.outside(Lsn(900), |end| end == Lsn(400)), Lsn(900), "it was truncated");
        assert_eq!(cut.outside(Lsn(150), never), Lsn(150));
        take(&mut cut, &[(400, Last), (500, Whole)]);
        assert_eq!(cut.outside(Lsn(350), never), Lsn(200));
        assert_eq!(cut.outside(Lsn(499), never), Lsn(200));
        assert_eq!(cut.outside(Lsn(500), never), Lsn(500));
        cut.drop_through(Lsn(500));
        assert_eq!(cut.outside(Lsn(499), never), Lsn(499));
    }

    #[test]
    fn nor_inside_one_that_was_given_up() {
        use Part::{First, Last, Middle, Whole};
        let mut cut = CutRecords::default();
        let given_up = |end| end == Lsn(400);
        take(&mut cut, &[(200, First), (300, Middle)]);
        assert_eq!(
            cut.outside(Lsn(300), given_up),
            Lsn(200),
            "a replay from there would begin with its rest"
        );
        take(&mut cut, &[(400, Whole), (500, Whole)]);
        for (target, expected) in [(200, 200), (201, 200), (300, 200), (399, 200), (400, 400), (600, 600)] {
            assert_eq!(cut.outside(Lsn(target), given_up), Lsn(expected));
        }
        // Whoever truncates what followed it may know the rest.
        cut.drop_above(Lsn(400));
        assert_eq!(cut.outside(Lsn(900), |_| false), Lsn(200));
        let record = RecordSpan { start: Lsn(200), end: Lsn(500) };
        assert_eq!(take(&mut cut, &[(400, Last)]), [Some(record)]);
        cut.drop_through(Lsn(500));
        assert!(cut.given_up.is_empty());
    }

    #[test]
    fn what_a_truncation_leaves_of_a_record_is_begun() {
        use Part::{First, Last, Middle};
        let mut cut = CutRecords::default();
        take(&mut cut, &[(200, First), (300, Middle), (400, Last)]);
        cut.drop_above(Lsn(400));
        assert!(cut.pieces().is_empty());
        assert_eq!(cut.outside(Lsn(400), |_| false), Lsn(200));
        assert_eq!(
            take(&mut cut, &[(400, Last)]),
            [Some(RecordSpan { start: Lsn(200), end: Lsn(500) })],
            "a later recovery knew the rest"
        );
        cut.drop_above(Lsn(200));
        assert_eq!(cut.outside(Lsn(900), |_| false), Lsn(900));
    }
}
