//! Records in pieces: what part of a record an entry of a volume's chain is.

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// What part of a PostgreSQL record an entry of the chain is.
///
/// A record that is longer than an entry should be is cut into *pieces*, which follow one another in the chain without a
/// gap and go to the same groups. For durability, for every chain and for a recovery each piece is a record. For redo the
/// pieces of one record count together, and only once the last one is there: what a recovery leaves of a record that it
/// cut has no effect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Part {
    /// A whole record.
    #[default]
    Whole,
    /// The first piece of one: it holds the record's header and those of its blocks.
    First,
    /// A piece that is neither the first nor the last.
    Middle,
    /// The last piece: with it the record takes effect.
    Last,
}

impl Part {
    /// Whether it is a piece of a record.
    #[must_use]
    pub fn is_piece(self) -> bool {
        self != Part::Whole
    }

    /// Whether a record begins with it.
    #[must_use]
    pub fn begins_record(self) -> bool {
        matches!(self, Part::Whole | Part::First)
    }

    /// Whether a record ends with it.
    #[must_use]
    pub fn ends_record(self) -> bool {
        matches!(self, Part::Whole | Part::Last)
    }

    /// Whether an entry that starts at `start` goes on with the record of the group's entry before it, which ends at
    /// `before_end`. Everything else ends what was begun before it: that record was never finished.
    #[must_use]
    pub fn continues(self, before: Part, before_end: Lsn, start: Lsn) -> bool {
        !self.begins_record() && !before.ends_record() && before_end == start
    }

    /// The number that stands for it in encodings.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Part::Whole => 0,
            Part::First => 1,
            Part::Middle => 2,
            Part::Last => 3,
        }
    }

    /// The part that the two lowest bits stand for.
    #[must_use]
    pub fn from_bits(bits: u8) -> Part {
        match bits & 3 {
            0 => Part::Whole,
            1 => Part::First,
            2 => Part::Middle,
            _ => Part::Last,
        }
    }
}

/// What an entry of the chain is, beyond its place and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecordForm {
    /// What part of a record it is.
    pub part: Part,
    /// Start of the entry before it in the volume, where its bytes do not say that: they do not in a piece, and the
    /// record after a cut one names the start of the whole record.
    pub previous_start: Option<Lsn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_piece_goes_on_with_a_record() {
        let parts = [Part::Whole, Part::First, Part::Middle, Part::Last];
        for before in parts {
            for next in parts {
                let expected =
                    matches!(before, Part::First | Part::Middle) && matches!(next, Part::Middle | Part::Last);
                assert_eq!(next.continues(before, Lsn(80), Lsn(80)), expected, "{next:?} after {before:?}");
                assert!(!next.continues(before, Lsn(80), Lsn(88)), "there is a gap");
            }
            assert_eq!(Part::from_bits(before.number()), before);
        }
    }
}
