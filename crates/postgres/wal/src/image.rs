//! Full-page images: reading their header, and restoring the page.
//!
//! Source of the format: `XLogRecordBlockImageHeader` in `src/include/access/xlogrecord.h`.

use borealis_types::{PAGE_SIZE, PageBytes};

use crate::bytes::Reader;
use crate::layout::common::wal_record::{IMAGE_APPLY, IMAGE_HAS_HOLE, IMAGE_LZ4, IMAGE_PGLZ, IMAGE_ZSTD};
use crate::pglz;
use crate::record::{BlockImage, ImageCompression, RecordError};

/// The largest window a Zstandard frame may ask for. A page needs 8 KiB; the frame's own word is not enough
/// to allocate more than this.
const ZSTD_WINDOW_BYTES_MAX: u64 = 1 << 20;

impl<'a> BlockImage<'a> {
    /// Reads the image header that follows a block header; the second value is the stored length in bytes.
    pub(crate) fn parse_header(reader: &mut Reader<'a>) -> Result<(BlockImage<'a>, u16), &'static str> {
        const SHORT: &str = "an image header is cut short";
        let image_bytes = reader.u16().ok_or(SHORT)?;
        let stored_bytes = usize::from(image_bytes);
        let hole_offset = reader.u16().ok_or(SHORT)?;
        let info = reader.u8().ok_or(SHORT)?;
        let compression = match info & (IMAGE_PGLZ | IMAGE_LZ4 | IMAGE_ZSTD) {
            0 => ImageCompression::None,
            IMAGE_PGLZ => ImageCompression::Pglz,
            IMAGE_LZ4 => ImageCompression::Lz4,
            IMAGE_ZSTD => ImageCompression::Zstd,
            _ => return Err("an image has two compression methods"),
        };
        let has_hole = info & IMAGE_HAS_HOLE != 0;
        let hole_length = if compression == ImageCompression::None {
            let hole = PAGE_SIZE.checked_sub(stored_bytes).ok_or("an image is larger than a page")?;
            u16::try_from(hole).map_err(|_| "an image is larger than a page")?
        } else if stored_bytes >= PAGE_SIZE {
            return Err("a compressed image is no smaller than a page");
        } else if has_hole {
            reader.u16().ok_or(SHORT)?
        } else {
            0
        };
        if has_hole && (hole_offset == 0 || hole_length == 0) {
            return Err("an image announces a hole and has none");
        }
        if !has_hole && (hole_offset != 0 || hole_length != 0) {
            return Err("an image has a hole it does not announce");
        }
        if usize::from(hole_offset) + usize::from(hole_length) > PAGE_SIZE {
            return Err("an image's hole reaches beyond the page");
        }
        let image =
            BlockImage { bytes: &[], hole_offset, hole_length, compression, apply: info & IMAGE_APPLY != 0 };
        Ok((image, image_bytes))
    }

    /// Rebuilds the page, its hole filled with zeros.
    ///
    /// # Errors
    /// [`RecordError::Image`] when the bytes do not decompress to exactly a page without its hole. `page` is
    /// then unspecified.
    pub fn restore(&self, page: &mut PageBytes) -> Result<(), RecordError> {
        let hole_offset = usize::from(self.hole_offset);
        let hole_length = usize::from(self.hole_length);
        let wrong = |what| RecordError::Image { what };
        let hole_end = hole_offset + hole_length;
        if hole_end > PAGE_SIZE {
            return Err(wrong("its hole reaches beyond the page"));
        }
        let solid_bytes = PAGE_SIZE - hole_length;

        // Decompressed to the front of the page; what follows the hole is then moved into place.
        let solid = &mut page[..solid_bytes];
        let complete = match self.compression {
            ImageCompression::None => {
                let fits = self.bytes.len() == solid_bytes;
                if fits {
                    solid.copy_from_slice(self.bytes);
                }
                fits
            }
            ImageCompression::Pglz => pglz::decompress(self.bytes, solid),
            ImageCompression::Lz4 => {
                lz4_flex::block::decompress_into(self.bytes, solid).is_ok_and(|n| n == solid_bytes)
            }
            ImageCompression::Zstd => {
                zstd_frame_is_small(self.bytes)
                    && ruzstd::decoding::FrameDecoder::new()
                        .decode_all(self.bytes, solid)
                        .is_ok_and(|n| n == solid_bytes)
            }
        };
        if !complete {
            return Err(wrong("it does not unpack to one page"));
        }
        page.copy_within(hole_offset..solid_bytes, hole_end);
        page[hole_offset..hole_end].fill(0);
        Ok(())
    }
}

/// Whether the frame asks for a window that a page image can need (RFC 8878, section 3.1.1.1).
fn zstd_frame_is_small(frame: &[u8]) -> bool {
    let mut reader = Reader::new(frame);
    let (Some(0xFD2F_B528), Some(descriptor)) = (reader.u32(), reader.u8()) else { return false };
    let window_bytes = if descriptor & 0x20 == 0 {
        reader.u8().map(|window| {
            let base = 1u64 << (10 + u32::from(window >> 3));
            base + base / 8 * u64::from(window & 7)
        })
    } else {
        let dictionary_id_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
        reader.take(dictionary_id_bytes).and_then(|_| match descriptor >> 6 {
            0 => reader.u8().map(u64::from),
            1 => reader.u16().map(|size| u64::from(size) + 256),
            2 => reader.u32().map(u64::from),
            _ => reader.u64(),
        })
    };
    window_bytes.is_some_and(|bytes| bytes <= ZSTD_WINDOW_BYTES_MAX)
}
