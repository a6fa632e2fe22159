//! PostgreSQL's own LZ format, as `src/common/pg_lzcompress.c` describes it.
//!
//! A control byte announces the next eight items, lowest bit first: 0 is a literal byte, 1 a match of two or
//! three bytes: length minus 3 in the low nibble, then a 12-bit distance whose high nibble comes first; a
//! length nibble of 15 adds a third byte to the length.

/// Decompresses `source` into exactly the whole of `target`; `false` when it does not fit or is malformed
/// (`target` is then unspecified).
#[must_use]
pub fn decompress(source: &[u8], target: &mut [u8]) -> bool {
    let mut input = source.iter().copied();
    let mut filled = 0;
    while filled < target.len() {
        let Some(mut control) = input.next() else { return false };
        for _ in 0..8 {
            // Either end stops the group; whether both ends agree is judged after the loop.
            if filled == target.len() || input.len() == 0 {
                break;
            }
            let Some(first) = input.next() else { return false };
            if control & 1 == 0 {
                target[filled] = first;
                filled += 1;
            } else {
                let Some(second) = input.next() else { return false };
                let distance = usize::from(first & 0xF0) << 4 | usize::from(second);
                let mut length = usize::from(first & 0x0F) + 3;
                if length == 18 {
                    let Some(more) = input.next() else { return false };
                    length += usize::from(more);
                }
                if distance == 0 || distance > filled {
                    return false;
                }
                let end = target.len().min(filled + length);
                // A match may overlap what it produces, so each step copies no more than one distance.
                while filled < end {
                    let step = distance.min(end - filled);
                    target.copy_within(filled - distance..filled - distance + step, filled);
                    filled += step;
                }
            }
            control >>= 1;
        }
    }
    input.len() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_and_an_overlapping_match() {
        let source = [0b0001_0000, b'a', b'b', b'c', b'd', 0x01, 0x02];
        let mut target = [0; 8];
        assert!(decompress(&source, &mut target));
        assert_eq!(&target, b"abcdcdcd");
    }

    #[test]
    fn a_long_match_takes_an_extension_byte() {
        let source = [0b0000_0010, b'x', 0x0F, 0x01, 200];
        let mut target = [0; 219];
        assert!(decompress(&source, &mut target));
        assert!(target.iter().all(|&byte| byte == b'x'));
    }

    #[test]
    fn too_short_too_long_and_a_match_before_the_start_are_refused() {
        assert!(!decompress(&[0, b'a'], &mut [0; 2]));
        assert!(!decompress(&[0, b'a', b'b'], &mut [0; 1]));
        assert!(!decompress(&[0b10, b'a', 0x00, 0x02], &mut [0; 4]));
        assert!(!decompress(&[0b10, b'a', 0x00, 0x00], &mut [0; 4]));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(source: Vec<u8>, length in 0usize..9000) {
            let _ = decompress(&source, &mut vec![0; length]);
        }
    }
}
