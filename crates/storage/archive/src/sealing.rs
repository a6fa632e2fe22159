//! Encryption of objects before they leave the node.
//!
//! Each object has a key of its own, derived from the archive's key and a salt; block *n* is sealed with AES-256-GCM under the
//! nonce *n* and bound to the object's preamble and header. The salt is a keyed hash of everything in the object. So a key and a nonce come
//! together again only for the same bytes, no randomness is needed, and two nodes make the same object of the same content.
//!
//! What somebody without the key sees: names and headers, that is positions, times, lengths and numbers of blocks. What they can do:
//! remove objects. An object that they change or make does not open.

use ring::{aead, hkdf, hmac};

use crate::error::FormatError;

/// What encryption adds to a block, in bytes.
pub(crate) const SEAL_BYTES: usize = 16;

/// Whether objects are encrypted.
#[derive(Debug, Clone, Default)]
pub enum Sealing {
    /// They are not. With this no encrypted object is read.
    #[default]
    Plain,
    /// They are. With a key no other object is read, or who has none could add some.
    Key(Box<SealingKey>),
}

impl From<SealingKey> for Sealing {
    fn from(key: SealingKey) -> Sealing {
        Sealing::Key(Box::new(key))
    }
}

impl Sealing {
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Sealing::Plain)
    }

    /// The number that stands for it in an object's first bytes.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Sealing::Plain => 0,
            Sealing::Key(_) => 1,
        }
    }
}

/// The key of an archive.
#[derive(Clone)]
pub struct SealingKey {
    derive: hkdf::Prk,
    salt: hmac::Key,
}

impl std::fmt::Debug for SealingKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey")
    }
}

/// The text of a key file that has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key file has 64 hexadecimal digits and nothing else, as `openssl rand -hex 32` prints them")]
pub struct KeyFileError;

impl SealingKey {
    /// A key of these bytes, which are random.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> SealingKey {
        let derive = hkdf::Salt::new(hkdf::HKDF_SHA256, b"borealis archive 1").extract(&secret);
        let info = [&b"salt of an object"[..]];
        let okm = derive.expand(&info, hmac::HMAC_SHA256).expect("a hash's length can be derived");
        SealingKey { salt: okm.into(), derive }
    }

    /// The key that a key file has.
    ///
    /// # Errors
    /// When its text is anything else than 64 hexadecimal digits, with white space around them or without.
    pub fn of_text(text: &str) -> Result<SealingKey, KeyFileError> {
        let digits = text.trim();
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(KeyFileError);
        }
        let mut secret = [0; 32];
        for (byte, at) in secret.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| KeyFileError)?;
        }
        Ok(SealingKey::new(secret))
    }

    /// A hash, which nobody makes without the key, of what an object has.
    pub(crate) fn salt_of<'a>(
        &self,
        kind: u8,
        header: &[u8],
        blocks: impl Iterator<Item = &'a [u8]>,
    ) -> [u8; 32] {
        // The header has the lengths of all that follows, so no two contents are hashed as the same bytes.
        let mut context = hmac::Context::with_key(&self.salt);
        context.update(&[kind]);
        context.update(&(header.len() as u64).to_le_bytes());
        context.update(header);
        blocks.for_each(|block| context.update(block));
        *context.sign().as_ref().first_chunk().expect("a SHA-256 has 32 bytes")
    }

    /// Whether it is the salt of an object without blocks that has this header.
    pub(crate) fn is_salt_of(&self, kind: u8, header: &[u8], salt: &[u8; 32]) -> bool {
        let length = (header.len() as u64).to_le_bytes();
        let hashed = [&[kind], &length[..], header].concat();
        hmac::verify(&self.salt, &hashed, salt).is_ok()
    }

    pub(crate) fn of_object(&self, salt: &[u8; 32]) -> ObjectKey {
        let info = [&b"key of an object"[..], salt];
        let okm = self.derive.expand(&info, &aead::AES_256_GCM).expect("a key's length can be derived");
        ObjectKey(aead::LessSafeKey::new(okm.into()))
    }
}

/// The key of one object.
#[derive(Debug)]
pub(crate) struct ObjectKey(aead::LessSafeKey);

fn nonce(block: u32) -> aead::Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[..4].copy_from_slice(&block.to_le_bytes());
    aead::Nonce::assume_unique_for_key(bytes)
}

impl ObjectKey {
    pub(crate) fn seal(&self, block: u32, bound_to: &[u8], bytes: &mut Vec<u8>) {
        self.0
            .seal_in_place_append_tag(nonce(block), aead::Aad::from(bound_to), bytes)
            .expect("a block is far shorter than what AES-GCM can seal");
    }

    pub(crate) fn open<'a>(
        &self,
        block: u32,
        bound_to: &[u8],
        bytes: &'a mut [u8],
    ) -> Result<&'a [u8], FormatError> {
        let opened = self.0.open_in_place(nonce(block), aead::Aad::from(bound_to), bytes);
        opened.map(|plain| &*plain).map_err(|_| FormatError::WrongKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_has_its_digits_and_nothing_else() {
        let digits = "00ff".repeat(16);
        for good in [digits.clone(), format!("{digits}\n"), digits.to_uppercase()] {
            assert!(SealingKey::of_text(&good).is_ok(), "{good:?}");
        }
        for bad in
            ["", &digits[1..], &format!("{digits}0"), &digits.replace('f', "g"), &digits.replace("00", "+0")]
        {
            assert!(SealingKey::of_text(bad).is_err(), "{bad:?}");
        }
        assert_eq!(format!("{:?}", SealingKey::of_text(&digits).unwrap()), "SealingKey");
    }
}
