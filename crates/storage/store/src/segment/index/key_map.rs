//! Maps by page and relation, with a hash that costs a few multiplications.
//!
//! The standard library's hash is made so that whoever chooses the keys cannot make them collide. These keys are
//! chosen by the database's one writer, whose records every node has to believe anyway, and each append looks up
//! several of them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by a key of a few small numbers.
pub(crate) type KeyMap<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// Odd, and its bits look random: the golden ratio's.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Mixes small numbers one after another.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct KeyHasher(u64);

impl KeyHasher {
    fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(number));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.add(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.add(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.add(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.add(number as u64);
    }

    fn finish(&self) -> u64 {
        // A product's low bits know nothing of its factors' high bits, and the map uses both ends.
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(MULTIPLIER);
        mixed ^ mixed >> 29
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault};

    use borealis_types::{BlockKey, Fork, PageKey, RelationFork, RelationLocator};

    use super::*;

    #[test]
    fn neighbouring_pages_spread_over_both_ends_of_the_hash() {
        let hasher = BuildHasherDefault::<KeyHasher>::default();
        let mut low = vec![0u32; 1 << 10];
        let mut high = vec![0u32; 1 << 7];
        for relation in 16_384..16_394 {
            for block in 0..10_240 {
                let locator = RelationLocator { tablespace: 1663, database: 5, relation };
                let relation_fork = RelationFork { locator, fork: Fork::Main };
                let hash = hasher.hash_one(PageKey::Block(BlockKey { relation_fork, block }));
                low[(hash & 0x3FF) as usize] += 1;
                high[(hash >> 57) as usize] += 1;
            }
        }
        // 100 and 800 in each place on average.
        assert!(low.iter().all(|&count| (40..200).contains(&count)), "{:?}", low.iter().max());
        assert!(high.iter().all(|&count| (600..1000).contains(&count)), "{:?}", high.iter().max());
    }
}
