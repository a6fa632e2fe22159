//! Log sequence numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A position in the volume's redo stream, in bytes, as PostgreSQL counts them.
///
/// Unless a name says otherwise an LSN is the **end** of a record, aligned up to eight bytes: the value
/// PostgreSQL stamps on the pages that record changed (`EndRecPtr`). Zero means "before everything".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before every record: no log yet, or nothing known.
    pub const ZERO: Lsn = Lsn(0);
    /// After every record: no bound.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position rounded up to PostgreSQL's maximal alignment of eight bytes.
    ///
    /// Saturates at the largest aligned position, so bytes from outside cannot overflow it.
    #[must_use]
    pub fn align_up(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// `self + bytes`, or `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to `self`; zero when `earlier` is not earlier.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    /// PostgreSQL's own notation: two hexadecimal halves, `16/B374D848`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an LSN in PostgreSQL's notation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an LSN; write it as PostgreSQL does, for example 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLsnError(text.chars().take(64).collect());
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let half = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().ok_or_else(error)
        };
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

/// Where one record stands in the stream.
///
/// `start` is the position of its header (what the next record's `xl_prev` names); `end` is the aligned
/// position after it (what pages are stamped with). As "the last durable record" the pair is what a
/// recovery needs to continue the stream: new log goes at `end` and links back to `start`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
pub struct RecordSpan {
    /// Position of the record's header.
    pub start: Lsn,
    /// Aligned position after the record's last byte.
    pub end: Lsn,
}

impl RecordSpan {
    /// No record yet: both ends are zero.
    pub const NONE: RecordSpan = RecordSpan { start: Lsn::ZERO, end: Lsn::ZERO };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>(), Ok(Lsn(value)));
        }

        #[test]
        fn hostile_text_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Lsn>();
        }
    }

    #[test]
    fn parse_refuses_what_postgres_would_not_print() {
        for text in ["", "/", "1/", "/1", "+1/2", "1/2/3", "100000000/0", "g/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was accepted");
        }
    }
}
