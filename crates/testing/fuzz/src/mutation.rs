//! Deterministic mutations for the bounded run: the same seed gives the same bytes.

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// The generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> SplitMix {
        SplitMix(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }
}

/// Numbers at which code goes wrong.
const INTERESTING: [u64; 14] =
    [0, 1, 2, 7, 8, 24, 127, 128, 255, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, u64::MAX];

/// Longest input a mutation makes.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// A mutation of `seed`, which may take bytes from `other`.
#[must_use]
pub fn mutated(random: &mut SplitMix, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    // Mostly few changes: one that gets past the checks is worth more than ten that do not.
    let magnitude = random.below(4);
    let changes = 1 + random.below(1 << magnitude);
    for _ in 0..changes {
        change(random, &mut bytes, other);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// A position among `length` bytes: every second one near the front, where headers are.
fn position(random: &mut SplitMix, length: usize) -> usize {
    let end = if random.below(2) == 0 { length.min(160) } else { length };
    random.below(end.max(1))
}

fn change(random: &mut SplitMix, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = position(random, bytes.len());
    match random.below(10) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.next_u64() as u8;
            }
        }
        2 | 3 => {
            let number = INTERESTING[random.below(INTERESTING.len())];
            overwrite(bytes, at, &number.to_le_bytes()[..1 << random.below(4)]);
        }
        4 => {
            // A number a little above or below what was there.
            let width = 1 << random.below(3);
            if let Some(old) = bytes.get(at..at + width) {
                let mut number = [0; 8];
                number[..width].copy_from_slice(old);
                let delta = (random.below(65) as u64).wrapping_sub(32);
                let number = u64::from_le_bytes(number).wrapping_add(delta);
                overwrite(bytes, at, &number.to_le_bytes()[..width]);
            }
        }
        5 => {
            let number = random.next_u64();
            overwrite(bytes, at, &number.to_le_bytes()[..1 << random.below(4)]);
        }
        6 => {
            // Bytes from elsewhere.
            let from = position(random, other.len());
            let length = (1 + random.below(64)).min(other.len() - from.min(other.len()));
            overwrite(bytes, at, &other[from.min(other.len())..][..length]);
        }
        7 => {
            let end = (at + 1 + random.below(32)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        8 => {
            let filler = random.next_u64().to_le_bytes();
            let length = 1 + random.below(8);
            let at = at.min(bytes.len());
            bytes.splice(at..at, filler[..length].iter().copied());
        }
        _ => {
            if random.below(8) == 0 {
                bytes.truncate(at);
            } else {
                bytes.push(random.next_u64() as u8);
            }
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(with) {
        *byte = *new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let run = |seed| {
            let mut random = SplitMix::new(seed);
            (0..200).map(|_| mutated(&mut random, &[7; 300], &[9; 40])).collect::<Vec<_>>()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }
}
