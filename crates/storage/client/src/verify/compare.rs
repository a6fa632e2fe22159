//! Compares the answers of several peers, key by key.

use borealis_types::{NodeId, invariant};

use super::Difference;

/// One peer's answer: entries in key order.
pub(super) struct PeerList<K, V> {
    pub(super) node: NodeId,
    pub(super) entries: Vec<(K, V)>,
    /// The peer has nothing after these.
    pub(super) ended: bool,
}

pub(super) struct Compared<K> {
    /// Every key that was compared, ascending.
    pub(super) keys: Vec<K>,
    /// No peer has anything after these.
    pub(super) ended: bool,
    pub(super) differences: Vec<(K, NodeId, Difference)>,
}

/// Merges the lists up to the last key that all of them cover, and compares each key by majority.
pub(super) fn compare<K: Ord + Clone, V: PartialEq>(
    lists: Vec<PeerList<K, V>>,
    unreadable: &dyn Fn(&V) -> bool,
) -> Compared<K> {
    // A list that was cut short says nothing about keys after its last one.
    let bound: Option<K> = lists
        .iter()
        .filter(|list| !list.ended)
        .filter_map(|list| list.entries.last().map(|(key, _)| key.clone()))
        .min();
    let mut keys: Vec<K> = lists
        .iter()
        .flat_map(|list| list.entries.iter().map(|(key, _)| key.clone()))
        .filter(|key| bound.as_ref().is_none_or(|bound| key <= bound))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let mut differences = Vec::new();
    let mut positions = vec![0; lists.len()];
    for key in &keys {
        let values: Vec<Option<&V>> = lists
            .iter()
            .zip(&mut positions)
            .map(|(list, position)| match list.entries.get(*position) {
                Some((found, value)) if found == key => {
                    *position += 1;
                    Some(value)
                }
                _ => None,
            })
            .collect();
        for (list, difference) in lists.iter().zip(judge(&values, unreadable)) {
            if let Some(difference) = difference {
                differences.push((key.clone(), list.node, difference));
            }
        }
    }
    for (list, position) in lists.iter().zip(positions) {
        let next = list.entries.get(position).map(|(key, _)| key);
        invariant!(
            "every-answer-is-compared",
            next.is_none_or(|next| bound.as_ref().is_some_and(|bound| next > bound)),
            "entry {position} of node {} was passed over",
            list.node
        );
    }
    Compared { keys, ended: bound.is_none(), differences }
}

/// For each peer's value of one key, what is wrong with it. A peer that cannot read its copy has no vote.
fn judge<V: PartialEq>(values: &[Option<&V>], unreadable: &dyn Fn(&V) -> bool) -> Vec<Option<Difference>> {
    let is_unreadable = |value: &Option<&V>| value.is_some_and(unreadable);
    let votes: Vec<&Option<&V>> = values.iter().filter(|value| !is_unreadable(value)).collect();
    let majority = votes
        .iter()
        .find(|candidate| votes.iter().filter(|vote| vote == candidate).count() * 2 > votes.len())
        .copied();
    values
        .iter()
        .map(|value| {
            if is_unreadable(value) {
                return Some(Difference::Unreadable);
            }
            match (majority, value) {
                (None, _) => Some(Difference::NoMajority),
                (Some(majority), value) if majority == value => None,
                (Some(_), None) => Some(Difference::Missing),
                (Some(None), Some(_)) => Some(Difference::Extra),
                (Some(Some(_)), Some(_)) => Some(Difference::Differs),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn lists(contents: &[&[(u32, Option<u32>)]]) -> Vec<PeerList<u32, Option<u32>>> {
        contents
            .iter()
            .enumerate()
            .map(|(node, entries)| PeerList {
                node: NodeId(node as u16),
                entries: entries.to_vec(),
                ended: true,
            })
            .collect()
    }

    fn differences(contents: &[&[(u32, Option<u32>)]]) -> Vec<(u32, u16, Difference)> {
        let compared = compare(lists(contents), &|value| value.is_none());
        compared.differences.into_iter().map(|(key, node, difference)| (key, node.0, difference)).collect()
    }

    #[test]
    fn the_odd_one_out_is_named() {
        let good: &[_] = &[(1, Some(10)), (2, Some(20))];
        assert_eq!(differences(&[good, good, good]), []);
        assert_eq!(
            differences(&[good, &[(1, Some(10)), (2, Some(21))], good]),
            [(2, 1, Difference::Differs)]
        );
        assert_eq!(differences(&[good, good, &[(2, Some(20))]]), [(1, 2, Difference::Missing)]);
        let more: &[_] = &[(1, Some(10)), (2, Some(20)), (3, Some(1))];
        assert_eq!(differences(&[more, good, good]), [(3, 0, Difference::Extra)]);
        assert_eq!(differences(&[good, &[(1, None), (2, Some(20))]]), [(1, 1, Difference::Unreadable)]);
    }

    #[test]
    fn two_against_two_has_no_majority() {
        let (one, other): (&[_], &[_]) = (&[(1, Some(10))], &[(1, Some(11))]);
        assert_eq!(differences(&[one, other, one, other]).len(), 4);
    }

    /// Lists out of order are left out before they get here.
    #[test]
    #[should_panic(expected = "invariant every-answer-is-compared is broken")]
    fn a_list_out_of_order_is_not_taken_for_compared() {
        differences(&[&[(2, Some(20)), (1, Some(10))], &[(1, Some(10)), (2, Some(20))]]);
    }

    proptest! {
        /// Reading in stretches of any size finds the same as reading all at once.
        #[test]
        fn cutting_into_steps_changes_nothing(
            peers in prop::collection::vec(prop::collection::btree_map(0u32..40, 0u32..3, 0..30), 1..6),
            limit in 1usize..8,
        ) {
            let whole = compare(
                peers.iter().enumerate().map(|(node, map)| PeerList {
                    node: NodeId(node as u16),
                    entries: map.clone().into_iter().collect(),
                    ended: true,
                }).collect(),
                &|_| false,
            );
            let mut keys = Vec::new();
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let answer = |map: &BTreeMap<u32, u32>| -> Vec<(u32, u32)> {
                    map.iter().map(|(k, v)| (*k, *v)).filter(|(k, _)| after.is_none_or(|a| *k > a)).take(limit).collect()
                };
                let step = compare(
                    peers.iter().enumerate().map(|(node, map)| {
                        let entries = answer(map);
                        PeerList { node: NodeId(node as u16), ended: entries.len() < limit, entries }
                    }).collect(),
                    &|_| false,
                );
                after = step.keys.last().copied().or(after);
                keys.extend(step.keys);
                found.extend(step.differences);
                if step.ended {
                    break;
                }
            }
            prop_assert_eq!(keys, whole.keys);
            prop_assert_eq!(found, whole.differences);
        }
    }
}
