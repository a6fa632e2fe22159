//! Reading fields out of bytes from outside: every read is checked, none can panic.

use borealis_types::RelationLocator;

/// A cursor over bytes. PostgreSQL writes fields in the machine's order, which is little-endian on every
/// platform Borealis supports.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A cursor at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// How many bytes have not been read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The bytes that have not been read yet; none is taken.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes; `None` (and nothing is read) if there are fewer.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    /// Takes one byte; `None` at the end.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    /// Takes two bytes as a number, the lowest first.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes four bytes as a number, the lowest first.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next four bytes, signed.
    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    /// Takes eight bytes as a number, the lowest first.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next eight bytes, signed.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A `RelFileNode`: tablespace, database, relation.
    pub fn locator(&mut self) -> Option<RelationLocator> {
        Some(RelationLocator { tablespace: self.u32()?, database: self.u32()?, relation: self.u32()? })
    }

    /// A `bool` as C stores it; anything but 0 is true.
    pub fn flag(&mut self) -> Option<bool> {
        self.u8().map(|byte| byte != 0)
    }

    /// The next four bytes as a count of items of `item_bytes` each, then their bytes. The count is checked
    /// against what is there, so nothing is allocated for items that do not exist.
    pub fn counted(&mut self, item_bytes: usize) -> Option<&'a [u8]> {
        let count = usize::try_from(self.i32()?).ok()?;
        self.take(count.checked_mul(item_bytes)?)
    }
}

/// The four-byte numbers in `bytes`; a tail shorter than four bytes is ignored.
pub fn u32s(bytes: &[u8]) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + Clone + '_ {
    bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk))
}
