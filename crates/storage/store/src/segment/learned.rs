//! What records change that came in pieces, learned before the state is locked.
//!
//! To put a record together takes as long as the record is: a second for a gibibyte. Whoever appends its last piece does that
//! first, from the pieces that are in the log by then, and nobody waits for it who only needs the lock. What is learned
//! counts only where a segment has the record of those very pieces. A segment that has others (it was behind, and got
//! some from a peer) puts the record together itself.

use borealis_types::RecordSpan;
use borealis_wal::Effect;

use crate::log::position::RecordRef;
use crate::segment::record_effects::RecordEffects;

/// A record that was put together.
#[derive(Clone, Debug)]
pub(crate) struct LearnedRecord {
    /// Its pieces that were in the log, in order.
    pub in_log: Vec<RecordRef>,
    /// Where those are in the stream that the last batch brought, in order.
    pub brought: Vec<RecordSpan>,
    /// What it changes; its range is in `effects`.
    pub record_effects: RecordEffects,
    pub effects: Vec<Effect>,
}

impl LearnedRecord {
    /// Whether it is the record of these pieces.
    pub(crate) fn is_of(&self, pieces: &[RecordRef]) -> bool {
        let Some((in_log, brought)) = pieces.split_at_checked(self.in_log.len()) else { return false };
        in_log == self.in_log && brought.iter().map(|piece| piece.span).eq(self.brought.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::{Lsn, Part};

    use super::*;
    use crate::log::position::LogPosition;

    #[test]
    fn what_was_learned_counts_for_the_same_pieces_only() {
        let piece = |file: u32, start: u64, part| RecordRef {
            span: RecordSpan { start: Lsn(start), end: Lsn(start + 8) },
            position: LogPosition::new(file, start as u32),
            length: 8,
            part,
        };
        let pieces = [piece(1, 8, Part::First), piece(1, 16, Part::Middle), piece(1, 24, Part::Last)];
        let learned = LearnedRecord {
            in_log: pieces[..2].to_vec(),
            brought: vec![pieces[2].span],
            record_effects: RecordEffects::of_piece(),
            effects: Vec::new(),
        };
        assert!(learned.is_of(&pieces));
        assert!(!learned.is_of(&pieces[1..]) && !learned.is_of(&pieces[..2]) && !learned.is_of(&[]));
        // From a peer, before or after it was learned: nobody has looked at these bytes.
        let elsewhere = [pieces[0], piece(2, 16, Part::Middle), pieces[2]];
        assert!(!learned.is_of(&elsewhere));
        let longer = [pieces[0], pieces[1], piece(1, 32, Part::Last)];
        assert!(!learned.is_of(&longer));
    }
}
