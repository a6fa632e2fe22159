//! Random numbers from a seed (SplitMix64), so that a history can be had again.

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    /// Below `bound`, which is not zero.
    pub fn below(&mut self, bound: u32) -> u32 {
        (self.next() % u64::from(bound)) as u32
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    pub fn pick<I: IntoIterator>(&mut self, choices: I) -> Option<I::Item> {
        let mut choices: Vec<I::Item> = choices.into_iter().collect();
        if choices.is_empty() {
            return None;
        }
        let chosen = self.below(choices.len() as u32) as usize;
        Some(choices.swap_remove(chosen))
    }
}
