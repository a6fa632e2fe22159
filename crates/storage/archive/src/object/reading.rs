//! Reading an object, or parts of one.

use std::ops::Range;

use borealis_types::VolumeId;

use super::{
    BLOCK_BYTES_MAX, CHECKSUM_BYTES, Digest, Facts, HEADER_BYTES_MAX, Header, Kind, MAGIC, OBJECT_BYTES_MAX,
    PREAMBLE_BYTES,
};
use crate::error::{FormatError, Part};
use crate::sealing::{ObjectKey, SEAL_BYTES, Sealing};

/// The beginning of an object: what it is, and where its blocks are. Blocks are read with it, one by one. Of an encrypted object
/// with blocks, what the head says is certain only once one of them was opened.
#[derive(Debug)]
pub struct Head<F> {
    header: Header<F>,
    /// Where each block begins, and where the last one ends.
    starts: Vec<u64>,
    /// What each encrypted block is bound to: preamble and header.
    bound_to: Vec<u8>,
    key: Option<ObjectKey>,
}

/// How many bytes an object's head has, its checksum included, given its first sixteen bytes.
fn head_bytes<F: Facts>(bytes: &[u8]) -> Result<usize, FormatError> {
    let cut = FormatError::Cut { needed: PREAMBLE_BYTES as u64, have: bytes.len() as u64 };
    let preamble: &[u8; PREAMBLE_BYTES] = bytes.first_chunk().ok_or(cut)?;
    if preamble[..8] != MAGIC {
        return Err(FormatError::NotAnObject);
    }
    let kind = Kind::of_number(preamble[8]).ok_or(FormatError::Malformed("a kind that there is not"))?;
    if kind != F::KIND {
        return Err(FormatError::OtherKind { expected: F::KIND, found: kind });
    }
    let format = preamble[9];
    if format == 0 || format > F::FORMAT {
        return Err(FormatError::Format { kind, found: format, supported: F::FORMAT });
    }
    let header = u32::from_le_bytes([preamble[12], preamble[13], preamble[14], preamble[15]]) as usize;
    if header > HEADER_BYTES_MAX || preamble[11] != 0 {
        return Err(FormatError::Malformed("length of the header"));
    }
    Ok(PREAMBLE_BYTES + header + CHECKSUM_BYTES)
}

impl<F: Facts> Head<F> {
    /// Reads a head from an object's first bytes; more of them do no harm.
    ///
    /// # Errors
    /// When it is not that of such an object of this volume; [`FormatError::Cut`] says how many bytes it takes if there are
    /// too few.
    pub fn decode(bytes: &[u8], volume: VolumeId, sealing: &Sealing) -> Result<Head<F>, FormatError> {
        let length = head_bytes::<F>(bytes)?;
        let cut = FormatError::Cut { needed: length as u64, have: bytes.len() as u64 };
        let (bound_to, checksum) =
            bytes.get(..length).and_then(|head| head.split_last_chunk::<CHECKSUM_BYTES>()).ok_or(cut)?;
        if crc32c::crc32c(bound_to) != u32::from_le_bytes(*checksum) {
            return Err(FormatError::Checksum(Part::Header));
        }
        let (mut header, rest): (Header<F>, _) = postcard::take_from_bytes(&bound_to[PREAMBLE_BYTES..])
            .map_err(|_| FormatError::Malformed("the header does not decode"))?;
        if !rest.is_empty() {
            return Err(FormatError::Malformed("bytes after the header"));
        }
        header.facts.check().map_err(FormatError::Malformed)?;
        if header.volume != volume {
            return Err(FormatError::OtherVolume { expected: volume, found: header.volume });
        }
        let key = opening_key(bytes[10], header.salt, sealing)?;
        check_without_blocks(&mut header, sealing)?;
        let extra = if key.is_some() { SEAL_BYTES } else { 0 };
        if header
            .blocks
            .iter()
            .any(|block| block.plain as usize > BLOCK_BYTES_MAX || (block.stored as usize) < extra)
        {
            return Err(FormatError::Malformed("length of a block"));
        }
        let mut starts = vec![length as u64];
        let mut end = length as u64;
        for block in &header.blocks {
            end += u64::from(block.stored) + CHECKSUM_BYTES as u64;
            starts.push(end);
        }
        let head = Head { header, starts, bound_to: bound_to.to_vec(), key };
        if head.object_bytes() > OBJECT_BYTES_MAX {
            return Err(FormatError::Malformed("length of the object"));
        }
        Ok(head)
    }

    /// What the object says of itself.
    #[must_use]
    pub fn facts(&self) -> &F {
        &self.header.facts
    }

    /// How many blocks it has.
    #[must_use]
    pub fn block_count(&self) -> u32 {
        self.header.blocks.len() as u32
    }

    /// How long the whole object is.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Where in the object a block is, its checksum included; `None` if there is no such block.
    #[must_use]
    pub fn range_of(&self, block: u32) -> Option<Range<u64>> {
        let block = block as usize;
        Some(*self.starts.get(block)?..*self.starts.get(block + 1)?)
    }

    /// Unpacks a block, given the bytes of its range ([`Head::range_of`]).
    ///
    /// # Errors
    /// When it is damaged, or was not made with this key.
    pub fn open_block(&self, block: u32, bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
        let lengths =
            self.header.blocks.get(block as usize).ok_or(FormatError::Malformed("no such block"))?;
        let needed = u64::from(lengths.stored) + CHECKSUM_BYTES as u64;
        if bytes.len() as u64 != needed {
            return Err(FormatError::Cut { needed, have: bytes.len() as u64 });
        }
        let (checksum, stored) = bytes.split_at(CHECKSUM_BYTES);
        if crc32c::crc32c(stored).to_le_bytes() != checksum {
            return Err(FormatError::Checksum(Part::Block(block)));
        }
        let mut opened = Vec::new();
        let packed = match &self.key {
            None => stored,
            Some(key) => {
                opened.extend_from_slice(stored);
                key.open(block, &self.bound_to, &mut opened)?
            }
        };
        let plain = zstd::bulk::decompress(packed, lengths.plain as usize)
            .map_err(|_| FormatError::Malformed("a block does not unpack"))?;
        if plain.len() != lengths.plain as usize {
            return Err(FormatError::Malformed("a block unpacks to another length"));
        }
        Ok(plain)
    }
}

/// The key of an object that says by its number and salt whether and how it is encrypted.
fn opening_key(
    number: u8,
    salt: Option<[u8; 32]>,
    sealing: &Sealing,
) -> Result<Option<ObjectKey>, FormatError> {
    match (number, salt, sealing) {
        (0, None, Sealing::Plain) => Ok(None),
        (0, None, Sealing::Key(_)) => Err(FormatError::NotSealed),
        (1, Some(_), Sealing::Plain) => Err(FormatError::Sealed),
        (1, Some(salt), Sealing::Key(key)) => Ok(Some(key.of_object(&salt))),
        _ => Err(FormatError::Malformed("an encryption that there is not")),
    }
}

/// Of an encrypted object without blocks: that its facts are those of somebody who had the key. Where there are blocks, each of
/// them is bound to the facts.
fn check_without_blocks<F: Facts>(header: &mut Header<F>, sealing: &Sealing) -> Result<(), FormatError> {
    let Sealing::Key(key) = sealing else { return Ok(()) };
    if !header.blocks.is_empty() {
        return Ok(());
    }
    let salt = header.salt.take();
    let bare =
        postcard::to_stdvec(header).expect("plain numbers and lists always encode into a growing buffer");
    let good = salt.is_some_and(|salt| key.is_salt_of(F::KIND as u8, &bare, &salt));
    header.salt = salt;
    if good { Ok(()) } else { Err(FormatError::WrongKey) }
}

/// All bytes of an object, with its head.
#[derive(Debug)]
pub struct Object<'a, F> {
    head: Head<F>,
    bytes: &'a [u8],
}

impl<'a, F: Facts> Object<'a, F> {
    /// Reads an object's head and sees that all of it is there.
    ///
    /// # Errors
    /// When it is not such an object of this volume, or was cut. Blocks are checked as they are opened.
    pub fn decode(
        bytes: &'a [u8],
        volume: VolumeId,
        sealing: &Sealing,
    ) -> Result<Object<'a, F>, FormatError> {
        let head = Head::<F>::decode(bytes, volume, sealing)?;
        let (needed, have) = (head.object_bytes(), bytes.len() as u64);
        if have < needed {
            return Err(FormatError::Cut { needed, have });
        }
        if have > needed {
            return Err(FormatError::TooLong(have - needed));
        }
        Ok(Object { head, bytes })
    }

    /// As [`Object::decode`], of bytes that were stored under a name with this digest.
    ///
    /// # Errors
    /// As [`Object::decode`]; [`FormatError::Digest`] if the bytes are others but look right.
    pub fn decode_named(
        bytes: &'a [u8],
        volume: VolumeId,
        digest: Digest,
        sealing: &Sealing,
    ) -> Result<Object<'a, F>, FormatError> {
        let object = Object::<F>::decode(bytes, volume, sealing)?;
        if Digest::of(bytes) != digest {
            return Err(FormatError::Digest);
        }
        Ok(object)
    }

    /// What the object says of itself.
    #[must_use]
    pub fn facts(&self) -> &F {
        self.head.facts()
    }

    /// Its head.
    #[must_use]
    pub fn head(&self) -> &Head<F> {
        &self.head
    }

    /// Unpacks a block.
    ///
    /// # Errors
    /// When it is damaged, or there is no such block.
    pub fn block(&self, block: u32) -> Result<Vec<u8>, FormatError> {
        let range = self.head.range_of(block).ok_or(FormatError::Malformed("no such block"))?;
        // Within what is there: the object's length was checked.
        self.head.open_block(block, &self.bytes[range.start as usize..range.end as usize])
    }

    /// All blocks, one after the other.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Vec<u8>, FormatError>> + '_ {
        (0..self.head.block_count()).map(|block| self.block(block))
    }
}
