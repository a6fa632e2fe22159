//! A list of ascending record numbers: a few inline, many on the heap.

use borealis_types::invariant;

/// Numbers that need no allocation. Most pages change a few times between two rounds.
const INLINE: usize = 5;

/// Numbers of the records that change one page, ascending, in little memory.
#[derive(Clone, Debug)]
pub(crate) enum RecordList {
    /// Only the first `count` numbers are used.
    Few {
        count: u8,
        numbers: [u32; INLINE],
    },
    Many(Vec<u32>),
}

impl Default for RecordList {
    fn default() -> RecordList {
        RecordList::Few { count: 0, numbers: [0; INLINE] }
    }
}

impl RecordList {
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            RecordList::Few { count, numbers } => &numbers[..usize::from(*count)],
            RecordList::Many(numbers) => numbers,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Appends a number, which must be higher than all others.
    pub(crate) fn push(&mut self, number: u32) {
        let last = self.as_slice().last();
        invariant!(
            "record-numbers-ascend",
            last.is_none_or(|&last| last < number),
            "{number} after {last:?}"
        );
        match self {
            RecordList::Few { count, numbers } => match numbers.get_mut(usize::from(*count)) {
                Some(place) => {
                    *place = number;
                    *count += 1;
                }
                None => {
                    let mut many = Vec::with_capacity(4 * INLINE);
                    many.extend_from_slice(numbers);
                    many.push(number);
                    *self = RecordList::Many(many);
                }
            },
            RecordList::Many(numbers) => numbers.push(number),
        }
    }

    /// Drops the numbers below `gone`, and subtracts `gone` from the others: the first `gone` records were
    /// removed. Returns how many numbers were dropped.
    pub(crate) fn drop_first(&mut self, gone: u32) -> u64 {
        let first = self.as_slice().partition_point(|&number| number < gone);
        let last = self.len();
        self.keep(first, last, gone);
        first as u64
    }

    /// Drops the numbers from `kept` on. Returns how many were dropped.
    pub(crate) fn drop_from(&mut self, kept: u32) -> u64 {
        let before = self.len();
        let last = self.as_slice().partition_point(|&number| number < kept);
        self.keep(0, last, 0);
        (before - last) as u64
    }

    /// Keeps the numbers in `first..last`, each reduced by `subtract`.
    fn keep(&mut self, first: usize, last: usize, subtract: u32) {
        match self {
            RecordList::Many(numbers) if last - first > INLINE => {
                numbers.truncate(last);
                numbers.drain(..first);
                numbers.iter_mut().for_each(|number| *number -= subtract);
                if numbers.capacity() > 2 * numbers.len() + 16 {
                    numbers.shrink_to_fit();
                }
            }
            _ => {
                let mut few = [0; INLINE];
                let kept = &self.as_slice()[first..last];
                for (place, number) in few.iter_mut().zip(kept) {
                    *place = number - subtract;
                }
                *self = RecordList::Few { count: kept.len() as u8, numbers: few };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[should_panic(expected = "invariant record-numbers-ascend is broken")]
    fn a_number_is_not_entered_after_a_higher_one() {
        let mut list = RecordList::default();
        list.push(7);
        list.push(7);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u32),
        DropFirst(u32),
        DropFrom(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1u32..5).prop_map(Step::Push),
            1 => (0u32..40).prop_map(Step::DropFirst),
            1 => (0u32..60).prop_map(Step::DropFrom),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_list_does(steps in prop::collection::vec(step(), 0..80)) {
            let mut list = RecordList::default();
            let mut model: Vec<u32> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(gap) => {
                        let number = model.last().map_or(0, |last| last + gap);
                        list.push(number);
                        model.push(number);
                    }
                    Step::DropFirst(gone) => {
                        let before = model.len();
                        model.retain(|&number| number >= gone);
                        model.iter_mut().for_each(|number| *number -= gone);
                        prop_assert_eq!(list.drop_first(gone), (before - model.len()) as u64);
                    }
                    Step::DropFrom(kept) => {
                        let before = model.len();
                        model.retain(|&number| number < kept);
                        prop_assert_eq!(list.drop_from(kept), (before - model.len()) as u64);
                    }
                }
                prop_assert_eq!(list.as_slice(), &model[..]);
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
        }
    }
}
