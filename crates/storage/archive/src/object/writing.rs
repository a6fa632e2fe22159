//! Making an object.

use borealis_types::{VolumeId, invariant};

use super::{
    BLOCK_BYTES_MAX, BLOCKS_MAX, BlockLengths, Digest, Facts, HEADER_BYTES_MAX, Header, MAGIC,
    OBJECT_BYTES_MAX, PREAMBLE_BYTES,
};
use crate::sealing::{SEAL_BYTES, Sealing};

/// zstd's fastest ordinary level: nodes compress beside their foreground work.
const COMPRESSION_LEVEL: i32 = 1;

/// An object, ready to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// All of it.
    pub bytes: Vec<u8>,
    /// What its name says of its bytes.
    pub digest: Digest,
}

/// Takes blocks, and makes an object of them.
#[derive(Debug)]
pub struct ObjectWriter {
    volume: VolumeId,
    /// Compressed, and how long they were before.
    blocks: Vec<(Vec<u8>, u32)>,
    stored_bytes: usize,
}

impl ObjectWriter {
    /// An object of this volume, without a block.
    #[must_use]
    pub fn new(volume: VolumeId) -> ObjectWriter {
        ObjectWriter { volume, blocks: Vec::new(), stored_bytes: 0 }
    }

    /// The volume that it is of.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Adds a block; its number.
    ///
    /// # Panics
    /// If a reader would refuse it: it is longer than [`BLOCK_BYTES_MAX`], or the object has [`BLOCKS_MAX`].
    pub fn push(&mut self, plain: &[u8]) -> u32 {
        let number = self.blocks.len();
        invariant!(
            "block-within-limit",
            plain.len() <= BLOCK_BYTES_MAX && number < BLOCKS_MAX,
            "block {number} of {} bytes",
            plain.len()
        );
        let packed = zstd::bulk::compress(plain, COMPRESSION_LEVEL)
            .expect("compression into a buffer of the size that zstd asks for cannot fail");
        self.stored_bytes += packed.len();
        self.blocks.push((packed, plain.len() as u32));
        number as u32
    }

    /// How many bytes its blocks take so far, compressed.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.stored_bytes
    }

    /// How many blocks it has so far.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The object.
    ///
    /// # Panics
    /// If a reader would refuse it.
    #[must_use]
    pub fn finish<F: Facts>(self, facts: F, sealing: &Sealing) -> Encoded {
        let extra = if sealing.is_plain() { 0 } else { SEAL_BYTES };
        let lengths = |(packed, plain): &(Vec<u8>, u32)| BlockLengths {
            stored: (packed.len() + extra) as u32,
            plain: *plain,
        };
        let mut header = Header {
            volume: self.volume,
            salt: None,
            facts,
            blocks: self.blocks.iter().map(lengths).collect(),
        };
        let encode = |header: &Header<F>| {
            postcard::to_stdvec(header).expect("plain numbers and lists always encode into a growing buffer")
        };
        let mut sealer = None;
        if let Sealing::Key(key) = sealing {
            let packed = self.blocks.iter().map(|(packed, _)| &**packed);
            header.salt = Some(key.salt_of(F::KIND as u8, &encode(&header), packed));
            sealer = header.salt.map(|salt| key.of_object(&salt));
        }
        let encoded = encode(&header);
        let mut bytes = Vec::with_capacity(PREAMBLE_BYTES + encoded.len() + self.stored_bytes + 64);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[F::KIND as u8, F::FORMAT, sealing.number(), 0]);
        bytes.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&encoded);
        let head = bytes.clone();
        bytes.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        for (number, (mut block, _)) in self.blocks.into_iter().enumerate() {
            if let Some(sealer) = &sealer {
                sealer.seal(number as u32, &head, &mut block);
            }
            bytes.extend_from_slice(&crc32c::crc32c(&block).to_le_bytes());
            bytes.extend_from_slice(&block);
        }
        assert_within_limit(encoded.len(), bytes.len());
        Encoded { digest: Digest::of(&bytes), bytes }
    }
}

fn assert_within_limit(header_bytes: usize, object_bytes: usize) {
    invariant!(
        "object-within-limit",
        header_bytes <= HEADER_BYTES_MAX && object_bytes as u64 <= OBJECT_BYTES_MAX,
        "a header of {header_bytes} bytes, {object_bytes} in all"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant block-within-limit is broken")]
    fn a_block_that_no_reader_takes_is_not_written() {
        ObjectWriter::new(VolumeId(1)).push(&vec![0; BLOCK_BYTES_MAX + 1]);
    }

    #[test]
    #[should_panic(expected = "invariant object-within-limit is broken")]
    fn an_object_that_no_reader_takes_is_not_written() {
        assert_within_limit(100, OBJECT_BYTES_MAX as usize + 1);
    }
}
