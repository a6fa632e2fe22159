//! Which of a group's peers uploads.
//!
//! There is no election: each peer computes the same order of those that are complete, and the store says who made the newest
//! object. Whoever made it goes on; when nothing has come for a while although there is something to upload, the first of the others takes over,
//! then the second, and so on. Two who upload at once do no harm: what they make overlaps.

use borealis_types::{GroupId, NodeId, VolumeId};

/// A peer that might upload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The peer.
    pub node: NodeId,
    /// It is a full member of the group, and has everything that is durable, as far as this node has heard lately.
    pub complete: bool,
}

/// How far the store has got with a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Who made the newest redo object or manifest of the group; `None` if there is none.
    pub newest_by: Option<NodeId>,
    /// For how long this node has seen redo that is durable and not in the store, and nothing new in the store; zero if the store
    /// has all.
    pub stalled_ms: u64,
}

/// What a peer is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// It uploads.
    Upload,
    /// Another does. If the store stands still, this one takes over when that has lasted so long.
    Wait {
        /// Milliseconds of standstill.
        takeover_after_ms: u64,
    },
    /// It has not everything itself.
    Unfit,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// The order in which peers of a group come, the same on every node: another one for each group, so that groups spread over nodes.
#[must_use]
pub fn order(volume: VolumeId, group: GroupId, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let seed = mix(volume.0 as u64 ^ (volume.0 >> 64) as u64) ^ mix(u64::from(group.0) + 1);
    let mut order: Vec<NodeId> = nodes.into_iter().collect();
    order.sort_by_key(|node| (mix(seed ^ mix(u64::from(node.0))), *node));
    order.dedup();
    order
}

/// What `me` is to do for a group. `takeover_ms` is how long the store may stand still for each peer that comes before.
#[must_use]
pub fn duty(
    (volume, group): (VolumeId, GroupId),
    me: NodeId,
    candidates: &[Candidate],
    progress: Progress,
    takeover_ms: u64,
) -> Duty {
    let complete = candidates.iter().filter(|candidate| candidate.complete).map(|candidate| candidate.node);
    let order = order(volume, group, complete);
    if !order.contains(&me) {
        return Duty::Unfit;
    }
    let incumbent = progress.newest_by.filter(|node| order.contains(node)).unwrap_or(order[0]);
    if me == incumbent {
        return Duty::Upload;
    }
    let before = order.iter().filter(|&&node| node != incumbent).take_while(|&&node| node != me).count();
    let takeover_after_ms = takeover_ms.saturating_mul(before as u64 + 1);
    if progress.stalled_ms >= takeover_after_ms { Duty::Upload } else { Duty::Wait { takeover_after_ms } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAKEOVER_MS: u64 = 10_000;

    fn all(candidates: &[Candidate], progress: Progress) -> Vec<NodeId> {
        let of = (VolumeId(7), GroupId(3));
        let uploads = |node: &NodeId| duty(of, *node, candidates, progress, TAKEOVER_MS) == Duty::Upload;
        candidates.iter().map(|candidate| candidate.node).filter(uploads).collect()
    }

    fn candidates(complete: &[bool]) -> Vec<Candidate> {
        let numbered = (1..).zip(complete);
        numbered.map(|(node, &complete)| Candidate { node: NodeId(node), complete }).collect()
    }

    proptest! {
        #[test]
        fn one_uploads_while_the_store_moves_and_one_more_for_each_time_it_stands_still(
            complete in prop::collection::vec(any::<bool>(), 6),
            newest in prop::option::of(1u16..9),
            stalled_ms in 0u64..80_000,
        ) {
            let candidates = candidates(&complete);
            let fit = complete.iter().filter(|complete| **complete).count();
            let newest_by = newest.map(NodeId);
            let uploading = all(&candidates, Progress { newest_by, stalled_ms });
            let expected = fit.min(1 + (stalled_ms / TAKEOVER_MS) as usize);
            prop_assert_eq!(uploading.len(), expected);
            let incumbent = newest_by.filter(|node| candidates.contains(&Candidate { node: *node, complete: true }));
            prop_assert!(incumbent.is_none_or(|node| uploading.contains(&node)), "it goes on");
            prop_assert!(uploading.iter().all(|node| complete[usize::from(node.0) - 1]));
        }
    }

    #[test]
    fn whoever_took_over_goes_on_and_the_one_before_stops() {
        let candidates = candidates(&[true; 6]);
        let first = all(&candidates, Progress::default());
        let both = all(&candidates, Progress { newest_by: Some(first[0]), stalled_ms: TAKEOVER_MS });
        let second = *both.iter().find(|node| **node != first[0]).unwrap();
        assert_eq!(all(&candidates, Progress { newest_by: Some(second), stalled_ms: 0 }), [second]);
    }

    #[test]
    fn groups_spread_over_nodes() {
        let mut first = [0; 7];
        for group in 0..64 {
            first[usize::from(order(VolumeId(9), GroupId(group), (1..=6).map(NodeId))[0].0)] += 1;
        }
        assert!(first[1..].iter().all(|&groups| (4..20).contains(&groups)), "{first:?}");
    }
}
