//! What may be believed of what the members of a group say of themselves.
//!
//! A member may be damaged, or may have been lied to by a stranger. So what it says is a *claim*, and a segment takes
//! over from its peers only what so many of them claim that a write quorum must have stored it:
//!
//! * a **history**, when a write quorum of members has it (or one that continues it). That is what the recovery that
//!   made it had to reach before its writer could start. With fewer the writer itself brings it, which is authorized
//!   by its promise and needs nobody's word. Perhaps nobody has just this one any more: members continue it
//!   differently where later recoveries died while they installed;
//! * a **durable point**, when a read quorum of members claims the very same point under the very same history, and has
//!   the group's records up to it. While the stream moves they rarely agree on one; then a read quorum that is at least
//!   as far makes durable what this segment has itself: the point is then a record of its own chain.
//!
//! Two liars of six can so make no honest segment believe anything. What is not defended: three liars for durable
//! points, four for histories.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{EpochHistory, EpochOutOfBounds, Lsn, NodeId, VolumeEpoch, check_epoch};

use crate::DurablePoint;
use crate::quorum_set::QuorumSets;
use crate::segment::{Segment, SegmentSummary};

/// Openings of a history at most. A history of this length, once for each of a volume's groups, fits into one frame and
/// one log entry.
pub const HISTORY_OPENINGS_MAX: usize = 16_384;

/// What was last heard of each member but this one.
pub type Claims = BTreeMap<NodeId, SegmentSummary>;

/// Why a history cannot be of a volume, whoever sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Implausible {
    /// It has more openings than any node keeps.
    #[error("a history of {0} openings; a volume has at most {HISTORY_OPENINGS_MAX}")]
    TooLong(usize),
    /// Its epoch is far from what is known.
    #[error(transparent)]
    Epoch(#[from] EpochOutOfBounds),
}

/// Checks the bounds of a history that came from outside, at a segment that knows of epoch `known`.
///
/// # Errors
/// If it is beyond one of them.
pub fn check_history(known: VolumeEpoch, history: &EpochHistory) -> Result<(), Implausible> {
    let count = history.openings().len();
    if count > HISTORY_OPENINGS_MAX {
        return Err(Implausible::TooLong(count));
    }
    Ok(check_epoch(known, history.newest_epoch())?)
}

/// What members have of one member's history: all of it, or only the beginning.
///
/// A completed recovery is on a write quorum, and need not be the *end* of any history there: every later recovery that died
/// while it installed may have left its own opening on some of these members, each on others. So members do not bear witness to a
/// history as a whole but to its beginning, as far as theirs is the same.
pub(crate) struct Witnessed<'a, Witness> {
    history: &'a EpochHistory,
    /// How many openings each witness has of it, from the first on: a member, or one of the histories that a member has.
    count_of: BTreeMap<Witness, usize>,
}

impl<'a, Witness: Ord> Witnessed<'a, Witness> {
    pub(crate) fn new(
        history: &'a EpochHistory,
        witnesses: impl IntoIterator<Item = (Witness, &'a EpochHistory)>,
    ) -> Witnessed<'a, Witness> {
        let same = |other: &EpochHistory| {
            let pairs = history.openings().iter().zip(other.openings());
            pairs.take_while(|(opening, other)| opening == other).count()
        };
        let count_of = witnesses.into_iter().map(|(witness, other)| (witness, same(other))).collect();
        Witnessed { history, count_of }
    }

    /// The longest beginning that so many have that they suffice, given a test whether a witness is among them.
    pub(crate) fn longest(&self, suffice: impl Fn(&dyn Fn(Witness) -> bool) -> bool) -> Option<EpochHistory> {
        let mut counts: Vec<usize> = self.count_of.values().copied().filter(|count| *count > 0).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.dedup();
        let has = |count: usize| move |witness| self.count_of.get(&witness).is_some_and(|has| *has >= count);
        let count = counts.into_iter().find(|&count| suffice(&has(count)))?;
        let mut beginning = EpochHistory::default();
        self.history.openings()[..count].iter().for_each(|opening| beginning.push(*opening));
        Some(beginning)
    }
}

/// The newest epoch that two of those who answered have the history of, given all that each has. A recovery that completed
/// has its history on a write quorum, two of which are among any other, and every later history continues it; what one member
/// alone has, nobody finished. The newest of each would not do: of two recoveries that died, each after it installed at
/// one member, the older would pass for finished.
#[must_use]
pub fn newest_installed(opened_of_each: impl IntoIterator<Item = BTreeSet<VolumeEpoch>>) -> VolumeEpoch {
    let (mut once, mut twice) = (BTreeSet::new(), VolumeEpoch::default());
    for epoch in opened_of_each.into_iter().flatten() {
        // Of one member an epoch comes once: so the second time it is another's.
        if !once.insert(epoch) {
            twice = twice.max(epoch);
        }
    }
    twice
}

/// The newest history that is above what the segment of `own` has and that a write quorum of members has stored, each perhaps
/// with more behind it.
#[must_use]
pub fn credible_history(
    members: &QuorumSets,
    own: NodeId,
    segment: &Segment,
    claims: &Claims,
) -> Option<EpochHistory> {
    let (known, promised) = (segment.history().newest_epoch(), segment.promise().epoch);
    // Our own does not count: it is older.
    let others =
        || claims.iter().filter(|(node, _)| **node != own).map(|(&node, claim)| (node, &claim.history));
    let bounded = |history: &EpochHistory| check_history(promised, history).is_ok();
    let witnessed =
        others().filter(|(_, history)| history.newest_epoch() > known && bounded(history)).filter_map(
            |(_, history)| Witnessed::new(history, others()).longest(|has| members.is_write_quorum(has)),
        );
    witnessed
        // The recovery that a newer promise was given to decides about all that is older.
        .filter(|history| history.newest_epoch() > known && history.newest_epoch() >= promised)
        .max_by_key(EpochHistory::newest_epoch)
}

/// The furthest durable point that a read quorum of other members vouches for, if it is news to the segment of `own`.
#[must_use]
pub fn credible_durable(
    members: &QuorumSets,
    own: NodeId,
    segment: &Segment,
    claims: &Claims,
) -> Option<DurablePoint> {
    let known = segment.known_durable().volume.end;
    let vouched: BTreeMap<NodeId, DurablePoint> = claims
        .iter()
        .filter(|(node, claim)| **node != own && claim.history == *segment.history() && is_possible(claim))
        .map(|(&node, claim)| (node, claim.known_durable))
        .filter(|(_, point)| point.volume.end > known)
        .collect();
    let mut ends: Vec<Lsn> = vouched.values().map(|point| point.volume.end).collect();
    ends.sort_unstable();
    let reached = |end: Lsn| {
        members.is_read_quorum(|node| vouched.get(&node).is_some_and(|point| point.volume.end >= end))
    };
    let through = ends.into_iter().rev().find(|&end| reached(end))?;
    let same = |point: &DurablePoint| members.is_read_quorum(|node| vouched.get(&node) == Some(point));
    let agreed = vouched.values().copied().filter(same).max_by_key(|point| point.volume.end);
    // All up to there is durable, so also our own last record that is not after it: and that one we know exactly.
    let of_chain = segment
        .last_uncertain_through(through)
        .map(|span| DurablePoint { volume: span, group_tail: span.end });
    agreed.into_iter().chain(of_chain).max_by_key(|point| point.volume.end)
}

/// The highest position below which nobody reads any more, as a read quorum of other members says; never above what the
/// segment of `own` knows to be durable.
#[must_use]
pub fn credible_minimum_read_point(
    members: &QuorumSets,
    own: NodeId,
    segment: &Segment,
    claims: &Claims,
) -> Option<Lsn> {
    let said = |node: NodeId| {
        let claim = claims.get(&node).filter(|_| node != own)?;
        (claim.history == *segment.history()).then_some(claim.minimum_read_point)
    };
    let mut points: Vec<Lsn> = claims.keys().filter_map(|&node| said(node)).collect();
    points.sort_unstable();
    points
        .into_iter()
        .rev()
        .find(|&point| members.is_read_quorum(|node| said(node).is_some_and(|own| own >= point)))
        .map(|point| point.min(segment.known_durable().volume.end))
        .filter(|&point| point > segment.minimum_read_point())
}

/// Whether a member can truthfully vouch for its durable point: it has the group's records up to there, and the group
/// does not end after the volume.
fn is_possible(claim: &SegmentSummary) -> bool {
    let DurablePoint { volume, group_tail } = claim.known_durable;
    group_tail <= volume.end && volume.start <= volume.end && claim.complete.end >= group_tail
}

#[cfg(test)]
mod tests;
