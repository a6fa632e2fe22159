//! Which build a driver or a shim library is of, so that the two of one instance are of the same.
//!
//! The shim library carries its fingerprint between two fixed texts, as [`ShimMark`]. The driver looks for it in
//! the file before it starts a server, and the library compares itself with the driver when it is loaded.

/// Fingerprint of the sources that both sides share, computed by the build script. Never zero in practice; zero
/// stands for "nobody reported".
pub const BUILD_FINGERPRINT: u64 = parse_hexadecimal(env!("BOREALIS_SHARED_SOURCES"));

const MARK_BEFORE: [u8; 16] = *b"borealis-shim:v=";
const MARK_AFTER: [u8; 8] = *b":borealS";

/// What the shim library keeps in a static of its own.
#[repr(C)]
pub struct ShimMark {
    before: [u8; 16],
    fingerprint: [u8; 8],
    after: [u8; 8],
}

impl ShimMark {
    /// The mark of this build.
    #[must_use]
    pub const fn of_this_build() -> ShimMark {
        ShimMark { before: MARK_BEFORE, fingerprint: BUILD_FINGERPRINT.to_le_bytes(), after: MARK_AFTER }
    }

    /// The fingerprint as it stands in the loaded file: read so that the compiler cannot put the number it knows in
    /// its place.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        // SAFETY: the reference is valid for the read.
        u64::from_le_bytes(unsafe { (&raw const self.fingerprint).read_volatile() })
    }
}

/// The fingerprint in the bytes of a shim library; `None` if they are of no shim, or of one from before there were
/// fingerprints.
#[must_use]
pub fn fingerprint_in(library: &[u8]) -> Option<u64> {
    const LENGTH: usize = size_of::<ShimMark>();
    // The first byte is looked for alone: the library has megabytes of debugging information.
    let mut rest = library;
    loop {
        let at = rest.iter().position(|&byte| byte == MARK_BEFORE[0])?;
        rest = rest.get(at..)?;
        if let Some(mark) = rest.get(..LENGTH)
            && mark.starts_with(&MARK_BEFORE)
            && mark.ends_with(&MARK_AFTER)
        {
            return mark.get(16..24)?.try_into().ok().map(u64::from_le_bytes);
        }
        rest = rest.get(1..)?;
    }
}

const fn parse_hexadecimal(text: &str) -> u64 {
    let (bytes, mut value, mut at) = (text.as_bytes(), 0u64, 0);
    while at < bytes.len() {
        let digit = match bytes[at] {
            byte @ b'0'..=b'9' => byte - b'0',
            byte @ b'a'..=b'f' => byte - b'a' + 10,
            _ => panic!("the build script writes hexadecimal digits"),
        };
        value = value << 4 | digit as u64;
        at += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(mark: &ShimMark) -> Vec<u8> {
        [&mark.before[..], &mark.fingerprint, &mark.after].concat()
    }

    #[test]
    fn a_mark_is_found_among_other_bytes() {
        let mark = bytes_of(&ShimMark::of_this_build());
        let mut library = b"\x7fELF borealis-shim: borealis-shim:v=1234567 ".repeat(100);
        assert_eq!(fingerprint_in(&library), None, "a text that only begins like a mark");
        library.extend_from_slice(&mark);
        library.extend_from_slice(b"more");
        assert_eq!(fingerprint_in(&library), Some(BUILD_FINGERPRINT));
        assert_eq!(fingerprint_in(&library[..library.len() - 5]), None, "cut short");
        assert_eq!(ShimMark::of_this_build().fingerprint(), BUILD_FINGERPRINT);
    }
}
