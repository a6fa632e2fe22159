//! Whether an instance still is the volume's writer, from what the nodes say of their promises.
//!
//! A node that is promised to a newer epoch takes nothing from this writer any more. One such node says little: the
//! recovery that asked for the promise may have died, or the node may be broken. So the writer goes on with the others,
//! and ends only
//!
//! * as **replaced**, when two nodes have the history of a newer epoch, and newer promises leave no write quorum. A
//!   recovery that completed has stored it at four of six of each group, two of which are among any four that a writer
//!   needs; a single node can claim it falsely;
//! * as **outvoted**, when newer promises have taken its write quorum for a while, and no such history has come. Then the
//!   recovery that asked for them did not finish, and one with a higher epoch brings those nodes back;
//! * when its **lease** is over: no read quorum has confirmed for so long that it is not promised to anyone newer. Until
//!   then no successor can have begun, for it must first be promised by a write quorum, which meets that read quorum.
//!   What this instance shows of its pages, from whatever cache, is so at most one lease older than a successor's first
//!   change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{GroupId, GroupSet, NodeId, VolumeEpoch};

/// Of a lease: how often the nodes are asked to confirm it.
const ASKS_IN_A_LEASE: u32 = 4;

/// How long things may last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TenureLimits {
    /// Without confirmation by a read quorum for longer than this, the instance ends.
    pub lease: Duration,
    /// Without a write quorum for longer than this, because of newer promises, it ends: long enough for a recovery that
    /// is under way to finish, and to be heard of.
    pub outvoted: Duration,
}

/// Why a writer has to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TenureEnd {
    /// A newer writer has the volume: starting again would take it back.
    Replaced(VolumeEpoch),
    /// Nodes are promised to this newer epoch, of which no recovery finished. A recovery above it brings them back.
    Outvoted(VolumeEpoch),
    /// Too few nodes have confirmed for so long. It passes when they can be reached again.
    LeaseOver(Duration),
}

/// The last that a node said.
#[derive(Clone, Copy, Debug)]
struct Word {
    /// The newer epoch that it is promised to, if any.
    promised: Option<VolumeEpoch>,
    /// The newer epoch that it has the history of, if any.
    installed: Option<VolumeEpoch>,
    /// When it said that.
    heard: Duration,
    /// When the last question was sent that it answered with a confirmation.
    confirmed: Duration,
}

/// One writer's tenure.
#[derive(Debug)]
pub struct Tenure {
    epoch: VolumeEpoch,
    members: Vec<QuorumSets>,
    limits: TenureLimits,
    words: BTreeMap<NodeId, Word>,
    /// The groups that a node has segments of, and since when that is known: it confirms nothing of others, and nothing of these
    /// in answer to a question from before.
    hosted: BTreeMap<NodeId, BTreeMap<GroupId, Duration>>,
    outvoted_since: Option<Duration>,
    asked: Option<Duration>,
    looked: Duration,
    /// Not before this is the lease over: this instance itself stood still, and has to ask first.
    excused_until: Duration,
    /// The lease that was excused last, by when it began: it is not excused again. A process that stands still again and
    /// again would otherwise never end, although nobody confirms anything.
    excused_lease: Option<Duration>,
}

impl Tenure {
    /// That of the writer whose recovery just completed. `confirmed`: when it was last certain that there is no successor
    /// ([`Outcome::confirmed_before`](borealis_quorum::recovery::Outcome::confirmed_before)).
    #[must_use]
    pub fn new(
        epoch: VolumeEpoch,
        members: Vec<QuorumSets>,
        limits: TenureLimits,
        confirmed: Duration,
        now: Duration,
    ) -> Tenure {
        let word = Word { promised: None, installed: None, heard: now, confirmed };
        let words = members.iter().flat_map(QuorumSets::members).map(|node| (node, word)).collect();
        let mut hosted: BTreeMap<NodeId, BTreeMap<GroupId, Duration>> = BTreeMap::new();
        for (group, members) in members.iter().enumerate() {
            for node in members.members() {
                hosted.entry(node).or_default().insert(GroupId(group as u16), Duration::ZERO);
            }
        }
        Tenure {
            epoch,
            members,
            limits,
            words,
            hosted,
            outvoted_since: None,
            asked: None,
            looked: now,
            excused_until: now,
            excused_lease: None,
        }
    }

    /// Replaces a group's members, at a step of its membership. A new member confirms nothing of the group until it has
    /// introduced itself with a segment.
    ///
    /// # Panics
    /// If the group does not exist.
    pub fn set_members(&mut self, group: GroupId, members: QuorumSets, now: Duration) {
        let of_group = self.members.get_mut(usize::from(group.0)).expect("the group is one of the volume's");
        let before: BTreeSet<NodeId> = std::mem::replace(of_group, members).members().collect();
        let after: BTreeSet<NodeId> = of_group.members().collect();
        for node in before.symmetric_difference(&after) {
            // Who comes again comes with another segment.
            self.hosted.entry(*node).or_default().remove(&group);
        }
        let nodes: BTreeSet<NodeId> = self.members.iter().flat_map(QuorumSets::members).collect();
        self.words.retain(|node, _| nodes.contains(node));
        self.hosted.retain(|node, _| nodes.contains(node));
        for node in nodes {
            let word = Word { promised: None, installed: None, heard: now, confirmed: Duration::ZERO };
            self.words.entry(node).or_insert(word);
        }
    }

    /// A node refused something because it is promised to this epoch.
    pub fn refused(&mut self, node: NodeId, promised: VolumeEpoch, now: Duration) {
        if promised > self.epoch
            && let Some(word) = self.words.get_mut(&node)
        {
            word.promised = word.promised.max(Some(promised));
            word.heard = now;
        }
    }

    /// A node introduced itself: it is promised to `promised`, and has the history of `installed`.
    pub fn introduced(&mut self, node: NodeId, promised: VolumeEpoch, installed: VolumeEpoch, now: Duration) {
        let newer = |epoch: VolumeEpoch| (epoch > self.epoch).then_some(epoch);
        let (promised, installed) = (newer(promised), newer(installed));
        if let Some(word) = self.words.get_mut(&node) {
            *word = Word { promised, installed, heard: now, ..*word };
        }
    }

    /// A node introduced itself with segments of these groups. A member that has not joined yet has none to be promised to
    /// anyone, so what it confirms says nothing of that group. A member of the recovery's counts until it introduces itself
    /// without.
    ///
    /// A segment that came takes nothing from what the node confirmed of its others: while many groups change at once, every
    /// node gains one again and again.
    pub fn hosts(&mut self, node: NodeId, groups: GroupSet, now: Duration) {
        let before = self.hosted.remove(&node).unwrap_or_default();
        let since = |group: GroupId| before.get(&group).copied().unwrap_or(now);
        self.hosted.insert(node, groups.iter().map(|group| (group, since(group))).collect());
    }

    /// The last question that a node confirmed with a segment of this group; `None` if it has none.
    fn confirmed_of(&self, node: NodeId, group: GroupId) -> Option<Duration> {
        let (confirmed, since) = (self.words.get(&node)?.confirmed, *self.hosted.get(&node)?.get(&group)?);
        Some(if confirmed > since { confirmed } else { Duration::ZERO })
    }

    /// A node confirmed, in answer to a question that was sent at `asked`.
    pub fn confirmed(&mut self, node: NodeId, asked: Duration) {
        if let Some(word) = self.words.get_mut(&node) {
            word.confirmed = word.confirmed.max(asked);
        }
    }

    /// The newer epoch that a node is promised to, if it is.
    #[must_use]
    pub fn fenced_by(&self, node: NodeId) -> Option<VolumeEpoch> {
        self.words.get(&node)?.promised
    }

    /// Whether the nodes are to be asked to confirm now.
    pub fn take_ask(&mut self, now: Duration) -> bool {
        let due = self.asked.is_none_or(|asked| now >= asked + self.limits.lease / ASKS_IN_A_LEASE);
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// Since when the lease runs: a read quorum of each set of each group confirmed a question that was sent then or later.
    /// Of each set, for a successor may be promised by a write quorum of the only one that stays.
    #[must_use]
    pub fn lease_begun(&self) -> Duration {
        let of_group = |(members, id): (&QuorumSets, u16)| {
            let confirmed = |node: NodeId| self.confirmed_of(node, GroupId(id));
            let mut times: Vec<Duration> = members.members().filter_map(confirmed).collect();
            times.sort_unstable();
            let is_since = |time: &Duration| {
                members.is_read_quorum_of_each(|node| confirmed(node).is_some_and(|at| at >= *time))
            };
            times.into_iter().rev().find(is_since).unwrap_or_default()
        };
        self.members.iter().zip(0..).map(of_group).min().unwrap_or_default()
    }

    /// Looks whether it is over. `is_connected`: whether a node takes batches.
    ///
    /// # Errors
    /// Why this writer has to end.
    pub fn check(&mut self, is_connected: impl Fn(NodeId) -> bool, now: Duration) -> Result<(), TenureEnd> {
        let step = self.limits.lease / ASKS_IN_A_LEASE;
        if now.saturating_sub(self.looked) > step {
            let lease = self.lease_begun();
            if self.excused_lease != Some(lease) {
                self.excused_lease = Some(lease);
                self.excused_until = now + 2 * step;
            }
        }
        self.looked = now;
        let mut installed: Vec<VolumeEpoch> = self.words.values().filter_map(|word| word.installed).collect();
        installed.sort_unstable();
        // The second highest: what one node alone claims is not believed.
        if let Some(&epoch) = installed.iter().rev().nth(1)
            && !self
                .members
                .iter()
                .all(|members| members.is_write_quorum(|node| self.fenced_by(node).is_none()))
        {
            return Err(TenureEnd::Replaced(epoch));
        }
        if let Some(epoch) = self.taken_by(&is_connected, now) {
            let since = *self.outvoted_since.get_or_insert(now);
            if now.saturating_sub(since) >= self.limits.outvoted {
                return Err(TenureEnd::Outvoted(epoch));
            }
        } else {
            self.outvoted_since = None;
        }
        let unconfirmed = now.saturating_sub(self.lease_begun());
        if unconfirmed > self.limits.lease && now >= self.excused_until {
            return Err(TenureEnd::LeaseOver(unconfirmed));
        }
        Ok(())
    }

    /// The newest epoch of the promises that take the write quorum of some group, if they do: the nodes left do not
    /// suffice, and would with those.
    fn taken_by(&self, is_connected: &impl Fn(NodeId) -> bool, now: Duration) -> Option<VolumeEpoch> {
        let word = |node: NodeId| self.words.get(&node);
        let is_ours = |node| is_connected(node) && word(node).is_some_and(|word| word.promised.is_none());
        let is_fenced = |node| {
            word(node).is_some_and(|word| {
                word.promised.is_some() && now.saturating_sub(word.heard) <= self.limits.outvoted
            })
        };
        let is_taken = |members: &QuorumSets| {
            !members.is_write_quorum(is_ours)
                && members.is_write_quorum(|node| is_ours(node) || is_fenced(node))
        };
        if !self.members.iter().any(is_taken) {
            return None;
        }
        self.words.values().filter_map(|word| word.promised).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: VolumeEpoch = VolumeEpoch(7);
    const LIMITS: TenureLimits =
        TenureLimits { lease: Duration::from_millis(1000), outvoted: Duration::from_millis(300) };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn tenure() -> Tenure {
        let set = QuorumSets::new(vec![[0, 1, 2, 3, 4, 5].map(NodeId)]).unwrap();
        Tenure::new(EPOCH, vec![set; 2], LIMITS, at(0), at(0))
    }

    /// Checks at every 50 ms; `nodes` confirm each time. The first end, and when.
    fn run(tenure: &mut Tenure, ms: std::ops::Range<u64>, nodes: &[u16]) -> Option<(u64, TenureEnd)> {
        ms.step_by(50).find_map(|now| {
            for &node in nodes {
                tenure.confirmed(NodeId(node), at(now));
            }
            tenure.check(|_| true, at(now)).err().map(|end| (now, end))
        })
    }

    #[test]
    fn a_minority_that_is_promised_to_a_newer_epoch_ends_nothing() {
        let mut tenure = tenure();
        tenure.refused(NodeId(1), VolumeEpoch(8), at(0));
        tenure.introduced(NodeId(4), VolumeEpoch(9), VolumeEpoch(9), at(0));
        assert_eq!(run(&mut tenure, 0..5000, &[0, 2, 3, 5]), None);
        assert_eq!(tenure.fenced_by(NodeId(1)), Some(VolumeEpoch(8)));
        assert_eq!(tenure.fenced_by(NodeId(0)), None);
        // A node whose store was made anew, say.
        tenure.introduced(NodeId(1), VolumeEpoch(0), VolumeEpoch(0), at(5000));
        assert_eq!(tenure.fenced_by(NodeId(1)), None);
    }

    #[test]
    fn two_nodes_with_a_newer_history_end_it_for_good_if_no_write_quorum_is_left() {
        let mut tenure = tenure();
        tenure.introduced(NodeId(4), VolumeEpoch(8), VolumeEpoch(8), at(0));
        assert_eq!(tenure.check(|_| true, at(1)), Ok(()));
        tenure.introduced(NodeId(2), VolumeEpoch(9), VolumeEpoch(9), at(0));
        assert_eq!(tenure.check(|_| true, at(1)), Ok(()), "four are left to it");
        tenure.refused(NodeId(3), VolumeEpoch(9), at(1));
        assert_eq!(tenure.check(|_| true, at(2)), Err(TenureEnd::Replaced(VolumeEpoch(8))));
    }

    #[test]
    fn promises_that_take_the_write_quorum_end_it_when_no_history_follows() {
        let mut tenure = tenure();
        for now in (0..).step_by(50) {
            for node in [1, 2, 3] {
                tenure.refused(NodeId(node), VolumeEpoch(8), at(now));
            }
            for node in [0, 4, 5] {
                tenure.confirmed(NodeId(node), at(now));
            }
            match tenure.check(|_| true, at(now)) {
                Ok(()) => assert!(now < 300, "{now} ms"),
                Err(end) => {
                    assert_eq!((now, end), (300, TenureEnd::Outvoted(VolumeEpoch(8))));
                    break;
                }
            }
        }
    }

    #[test]
    fn nodes_that_are_down_do_not_outvote_but_a_promise_among_the_four_left_does() {
        let mut tenure = tenure();
        let down = |node: NodeId| node.0 > 2;
        for now in (0..2000).step_by(50) {
            for node in [0, 1, 2] {
                tenure.confirmed(NodeId(node), at(now));
            }
            assert_eq!(tenure.check(down, at(now)), Ok(()), "three are down: it waits for one");
        }
        let mut tenure = self::tenure();
        let is_up = |node: NodeId| node.0 > 1;
        let ends = (0..2000).step_by(50).find(|&now| {
            for node in [2, 3, 4] {
                tenure.confirmed(NodeId(node), at(now));
            }
            tenure.refused(NodeId(5), VolumeEpoch(8), at(now));
            tenure.check(is_up, at(now)).is_err()
        });
        assert_eq!(ends, Some(300));
    }

    #[test]
    fn a_lease_is_confirmed_by_three_and_counts_from_the_question() {
        let mut tenure = tenure();
        assert!(tenure.take_ask(at(0)) && !tenure.take_ask(at(200)) && tenure.take_ask(at(250)));
        assert_eq!(run(&mut tenure, 0..2000, &[0, 3, 5]), None);
        let over = run(&mut tenure, 2000..9000, &[0, 3]);
        assert_eq!(over, Some((3000, TenureEnd::LeaseOver(at(1050)))));
    }

    #[test]
    fn a_lease_begins_before_the_tenure_when_the_recovery_ended_late() {
        let set = QuorumSets::new(vec![[0, 1, 2, 3, 4, 5].map(NodeId)]).unwrap();
        let begun = |now| Tenure::new(EPOCH, vec![set.clone()], LIMITS, at(0), at(now));
        assert_eq!(run(&mut begun(900), 900..2000, &[]), Some((1050, TenureEnd::LeaseOver(at(1050)))));
        assert_eq!(begun(1500).check(|_| true, at(1500)), Err(TenureEnd::LeaseOver(at(1500))));
    }

    #[test]
    fn while_members_change_a_lease_is_confirmed_by_three_of_each_set() {
        let mut tenure = tenure();
        let sets = vec![[0, 1, 2, 3, 4, 5].map(NodeId), [0, 1, 2, 3, 4, 6].map(NodeId)];
        let during = QuorumSets::new(sets).expect("six different nodes");
        tenure.set_members(GroupId(0), during, at(0));
        assert!(
            run(&mut tenure, 0..2000, &[0, 3, 5, 6]).is_some(),
            "node 6 has not said that it has a segment"
        );
        tenure.hosts(NodeId(6), GroupSet::EMPTY.with(GroupId(0)), at(2000));
        assert_eq!(run(&mut tenure, 2050..4000, &[0, 3, 5, 6]), None);
        // Three of the old set, two of the new: a successor of the new set alone would not meet them.
        let over = run(&mut tenure, 4000..9000, &[0, 3, 5]);
        assert_eq!(over, Some((5000, TenureEnd::LeaseOver(at(1050)))));
    }

    #[test]
    fn a_member_without_a_segment_of_a_group_confirms_nothing_of_it() {
        let mut tenure = tenure();
        let both = GroupSet::EMPTY.with(GroupId(0)).with(GroupId(1));
        tenure.hosts(NodeId(3), both, at(0));
        assert_eq!(run(&mut tenure, 0..2000, &[0, 3, 5]), None);
        tenure.hosts(NodeId(3), GroupSet::EMPTY.with(GroupId(0)), at(2000));
        assert!(run(&mut tenure, 2000..9000, &[0, 3, 5]).is_some());
        // It has one again: what it was asked before that, it answered without.
        let mut tenure = self::tenure();
        tenure.hosts(NodeId(3), GroupSet::EMPTY.with(GroupId(0)), at(0));
        assert_eq!(run(&mut tenure, 0..500, &[0, 3, 4, 5]), None);
        tenure.hosts(NodeId(3), both, at(500));
        for node in [0, 3, 5] {
            tenure.confirmed(NodeId(node), at(500));
        }
        assert_eq!(tenure.lease_begun(), at(450), "of group 1 three others confirmed that");
        tenure.confirmed(NodeId(3), at(501));
        tenure.confirmed(NodeId(0), at(501));
        tenure.confirmed(NodeId(5), at(501));
        assert_eq!(tenure.lease_begun(), at(501));
    }

    #[test]
    fn a_segment_that_comes_takes_nothing_from_what_was_confirmed_of_others() {
        let set = QuorumSets::new(vec![[0, 1, 2, 3, 4, 5].map(NodeId)]).unwrap();
        let mut tenure = Tenure::new(EPOCH, vec![set], LIMITS, at(0), at(0));
        let mut hosted = GroupSet::EMPTY.with(GroupId(0));
        let mut asked = None;
        for now in (0..3000).step_by(50) {
            // Each question is answered once.
            if let Some(asked) = asked.take() {
                (0..6).for_each(|node| tenure.confirmed(NodeId(node), asked));
            }
            asked = tenure.take_ask(at(now)).then_some(at(now));
            if now % 100 == 0 {
                hosted = hosted.with(GroupId(1 + now as u16 / 100));
                (0..6).for_each(|node| tenure.hosts(NodeId(node), hosted, at(now)));
            }
            assert_eq!(tenure.check(|_| true, at(now)), Ok(()), "at {now} ms");
        }
    }

    #[test]
    fn an_instance_that_stood_still_asks_before_it_ends() {
        let mut tenure = tenure();
        assert_eq!(run(&mut tenure, 0..500, &[0, 1, 2]), None);
        assert_eq!(tenure.check(|_| true, at(60_000)), Ok(()), "nobody was asked meanwhile");
        assert_eq!(run(&mut tenure, 60_050..70_000, &[0, 1, 2]), None);
        assert_eq!(tenure.check(|_| true, at(90_000)), Ok(()));
        let over = run(&mut tenure, 90_050..99_000, &[]).map(|(now, _)| now);
        assert_eq!(over, Some(90_500), "and does not wait longer than for the answers");
    }

    #[test]
    fn an_instance_that_stands_still_again_and_again_is_excused_once_until_it_is_confirmed() {
        let stall_ms = LIMITS.lease.as_millis() as u64 / 4 + 50;
        let stalls = |tenure: &mut Tenure, from: u64| {
            let mut times = (from..from + 20_000).step_by(stall_ms as usize);
            times.find(|&now| tenure.check(|_| true, at(now)).is_err())
        };
        let mut tenure = tenure();
        assert_eq!(stalls(&mut tenure, stall_ms), Some(1200), "nobody confirmed for longer than the lease");
        let mut tenure = self::tenure();
        assert_eq!(tenure.check(|_| true, at(60_000)), Ok(()), "the first");
        for node in [0, 1, 2] {
            tenure.confirmed(NodeId(node), at(60_050));
        }
        assert_eq!(tenure.check(|_| true, at(90_000)), Ok(()), "one after a confirmation");
        assert_eq!(tenure.check(|_| true, at(90_400)), Ok(()), "it has the time to ask");
        assert!(tenure.check(|_| true, at(90_800)).is_err(), "and no more than that");
    }
}
