//! Reading little-endian fields from bytes that may be too short.

use crate::fault::{Fault, Redo};

/// A cursor over a record's data. Every read is checked.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

const TOO_SHORT: Fault = Fault::Failed("the record's data is too short");

impl<'a> Reader<'a> {
    /// A cursor at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, position: 0 }
    }

    /// The next `length` bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Redo<&'a [u8]> {
        let end = self.position.checked_add(length).ok_or(TOO_SHORT)?;
        let taken = self.bytes.get(self.position..end).ok_or(TOO_SHORT)?;
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Redo<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// Takes one byte, or fails at the end.
    pub(crate) fn u8(&mut self) -> Redo<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes two bytes as a number, the lowest first.
    pub(crate) fn u16(&mut self) -> Redo<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes four bytes as a number, the lowest first.
    pub(crate) fn u32(&mut self) -> Redo<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes eight bytes as a number, the lowest first.
    pub(crate) fn u64(&mut self) -> Redo<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The `read` bytes before the cursor and the `length` after it, as one.
    pub(crate) fn rejoin(&mut self, read: usize, length: usize) -> Redo<&'a [u8]> {
        let start = self.position.checked_sub(read).ok_or(TOO_SHORT)?;
        self.skip(length)?;
        self.bytes.get(start..self.position).ok_or(TOO_SHORT)
    }

    /// Passes over padding that C's structures have.
    pub(crate) fn skip(&mut self, length: usize) -> Redo {
        self.bytes(length).map(|_| ())
    }

    /// Moves to the next multiple of `alignment`, counted from the start of the data.
    pub(crate) fn align(&mut self, alignment: usize) -> Redo {
        self.skip(self.position.next_multiple_of(alignment) - self.position)
    }

    /// Takes all bytes that are left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.position..];
        self.position = self.bytes.len();
        rest
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }
}

/// Offset numbers as a record stores them: two bytes each, perhaps not aligned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OffsetNumbers<'a>(&'a [[u8; 2]]);

impl<'a> OffsetNumbers<'a> {
    /// The numbers that `bytes` has room for.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        OffsetNumbers(bytes.as_chunks::<2>().0)
    }

    /// The next `count` numbers.
    pub(crate) fn read(data: &mut Reader<'a>, count: u16) -> Redo<Self> {
        data.bytes(usize::from(count) * 2).map(Self::new)
    }

    /// In the order of the record.
    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + Clone + 'a {
        self.0.iter().map(|number| u16::from_le_bytes(*number))
    }

    /// Whether the record stores no number.
    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// Two bytes at `offset`.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Redo<u16> {
    Reader::new(bytes.get(offset..).ok_or(TOO_SHORT)?).u16()
}

/// Four bytes at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Redo<u32> {
    Reader::new(bytes.get(offset..).ok_or(TOO_SHORT)?).u32()
}

/// Overwrites `bytes` from `offset` on with `value`.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) -> Redo {
    let end = offset.checked_add(value.len()).ok_or(TOO_SHORT)?;
    bytes
        .get_mut(offset..end)
        .ok_or(Fault::Failed("a field lies outside its structure"))?
        .copy_from_slice(value);
    Ok(())
}
