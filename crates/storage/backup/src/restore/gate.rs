//! How far ahead objects are read: a bound on their number, and on the memory that they take until they are needed.

use std::collections::BTreeMap;

/// Which objects may be read now. Objects have numbers in the order in which they will be needed.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Objects before this one may be read, as far as there is room.
    open_before: usize,
    /// The last one that somebody waits for may be read whatever the others take, and all before it: its records may be in none of those.
    needed: Option<usize>,
    /// The next one that nobody reads.
    next: usize,
    /// What each object takes that was begun and not taken yet, in bytes.
    held: BTreeMap<usize, u64>,
    held_bytes: u64,
    is_over: bool,
}

/// What somebody who reads objects does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Reads the object with this number.
    Read(usize),
    /// Waits until something changes.
    Wait,
    /// Ends: there is none left, or nobody wants any.
    End,
}

impl Gate {
    /// Begins with the next object if it may be read now. `bytes` is how long objects are, as far as that is known.
    pub(super) fn begin(&mut self, bytes: &[u64], held_bytes_max: u64) -> Turn {
        let Some(expected) = bytes.get(self.next).filter(|_| !self.is_over) else { return Turn::End };
        let has_room = self.held.is_empty() || self.held_bytes.saturating_add(*expected) <= held_bytes_max;
        let is_needed = self.needed.is_some_and(|needed| self.next <= needed);
        if self.next >= self.open_before || !(has_room || is_needed) {
            return Turn::Wait;
        }
        let number = self.next;
        self.next += 1;
        self.hold(number, *expected);
        Turn::Read(number)
    }

    fn hold(&mut self, number: usize, bytes: u64) {
        self.held_bytes += bytes;
        self.held.insert(number, bytes);
    }

    /// An object was read, and takes so much: what is in it may be far longer than what was read.
    pub(super) fn read(&mut self, number: usize, bytes: u64) {
        self.taken(number);
        self.hold(number, bytes);
    }

    /// Somebody waits for an object; `ahead` others may be read beside it.
    pub(super) fn need(&mut self, number: usize, open_before: usize) {
        self.open_before = self.open_before.max(number + 1).max(open_before);
        self.needed = self.needed.max(Some(number));
    }

    /// An object was taken: whoever took it has it in memory now.
    pub(super) fn taken(&mut self, number: usize) {
        self.held_bytes -= self.held.remove(&number).unwrap_or(0);
    }

    /// Nobody wants any more.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins with as many as may be; their numbers.
    fn begin(gate: &mut Gate, bytes: &[u64]) -> Vec<usize> {
        let next = || match gate.begin(bytes, 100) {
            Turn::Read(number) => Some(number),
            Turn::Wait | Turn::End => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn short_objects_are_bounded_by_their_number_and_long_ones_by_their_bytes() {
        let (mut gate, short) = (Gate::default(), [1; 20]);
        assert_eq!(gate.begin(&short, 100), Turn::Wait, "nobody needs one yet");
        gate.need(0, 6);
        assert_eq!(begin(&mut gate, &short), [0, 1, 2, 3, 4, 5]);

        let (mut gate, long) = (Gate::default(), [40; 20]);
        gate.need(0, 6);
        assert_eq!(begin(&mut gate, &long), [0, 1]);
        // One was shorter than that, and one is gone.
        gate.read(1, 20);
        assert_eq!(begin(&mut gate, &long), [2]);
        gate.taken(0);
        assert_eq!(begin(&mut gate, &long), [3]);
    }

    #[test]
    fn what_grows_when_it_is_read_stops_the_others() {
        let (mut gate, bytes) = (Gate::default(), [10; 20]);
        gate.need(0, 16);
        assert_eq!(gate.begin(&bytes, 100), Turn::Read(0));
        gate.read(0, 1000);
        assert_eq!(gate.begin(&bytes, 100), Turn::Wait);
        gate.taken(0);
        assert_eq!(begin(&mut gate, &bytes).len(), 10);
    }

    #[test]
    fn what_somebody_waits_for_is_read_whatever_the_others_take() {
        let (mut gate, huge) = (Gate::default(), [500; 8]);
        gate.need(0, 4);
        assert_eq!(begin(&mut gate, &huge), [0], "one, or nothing would ever be read");
        // The one that is needed now comes after some that nobody asked for.
        gate.need(3, 4);
        assert_eq!(begin(&mut gate, &huge), [1, 2, 3]);
        (0..4).for_each(|number| gate.taken(number));
        gate.need(4, 8);
        assert_eq!(begin(&mut gate, &huge), [4]);
        gate.taken(4);
        assert_eq!(begin(&mut gate, &huge), [5]);
        gate.end();
        assert_eq!(gate.begin(&huge, 100), Turn::End);
    }

    #[test]
    fn it_ends_with_the_last_object() {
        let mut gate = Gate::default();
        gate.need(0, 6);
        assert_eq!(begin(&mut gate, &[1, 1]), [0, 1]);
        assert_eq!(gate.begin(&[1, 1], 100), Turn::End);
    }
}
