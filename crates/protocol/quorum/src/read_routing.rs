//! Which one peer to ask for a page.
//!
//! A [`ReadRouter`] knows, for every node, how fast and how reliably it answers, and for every segment, how
//! far it is complete. It picks the node with the lowest smoothed latency among those complete to the read
//! point, now and then another one so that estimates stay fresh, and says after which time a second node
//! should be asked. Choices depend on counters, never on chance, so a run can be repeated.
//!
//! Latencies are smoothed as TCP smooths round-trip times (RFC 6298): mean by an eighth, mean deviation by a
//! quarter. The hedge delay is the mean plus four deviations, which an ordinary answer seldom exceeds.

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_types::{GroupId, Lsn, NodeId, invariant};

/// Every how many choices another node than the best is asked.
pub const PROBE_INTERVAL: u64 = 64;
/// The hedge delay while a node has not answered yet, and its upper bound.
pub const HEDGE_AFTER_MAX: Duration = Duration::from_millis(100);
/// The lower bound of the hedge delay: below it, asking twice costs more than it saves.
pub const HEDGE_AFTER_MIN: Duration = Duration::from_micros(500);
/// How long a node is left alone after its first failure; doubles with each further one.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest a node is left alone.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    /// Smoothed latency and mean deviation, in nanoseconds; `None` before the first answer.
    latency: Option<(u64, u64)>,
    /// Failures since the last answer.
    failures: u32,
    /// Not asked before this time, unless nobody else is left.
    avoid_until: Duration,
    /// Requests sent and neither answered, failed nor overtaken.
    in_flight: u32,
    /// The choice (by number) in which it was last picked.
    last_picked: u64,
}

impl Health {
    fn observe(&mut self, latency: Duration) {
        let sample = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX >> 8).min(u64::MAX >> 8);
        self.latency = Some(match self.latency {
            None => (sample, sample / 2),
            Some((mean, deviation)) => ((mean * 7 + sample) / 8, (deviation * 3 + mean.abs_diff(sample)) / 4),
        });
    }
}

/// The peer chosen for a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The peer that should answer soonest.
    pub node: NodeId,
    /// Ask another one if no answer came after this long.
    pub hedge_after: Duration,
    /// Chosen to refresh an estimate rather than for speed.
    pub probe: bool,
}

/// Latency, health and completeness of peers, as a reader sees them.
#[derive(Clone, Debug, Default)]
pub struct ReadRouter {
    nodes: BTreeMap<NodeId, Health>,
    /// How far each segment can be read, by group and node.
    readable: BTreeMap<GroupId, BTreeMap<NodeId, Lsn>>,
    choices: u64,
}

impl ReadRouter {
    /// A router that knows nobody.
    #[must_use]
    pub fn new() -> ReadRouter {
        ReadRouter::default()
    }

    /// Makes `node` a candidate for `group`, readable to `through`. Never lowers what was known before.
    pub fn observe_readable(&mut self, node: NodeId, group: GroupId, through: Lsn) {
        self.nodes.entry(node).or_default();
        let known = self.readable.entry(group).or_default().entry(node).or_default();
        *known = (*known).max(through);
    }

    /// Forgets how far a segment can be read: it said that it is behind, or was cut, or left the group.
    pub fn forget_segment(&mut self, node: NodeId, group: GroupId) {
        if let Some(group) = self.readable.get_mut(&group) {
            group.remove(&node);
        }
    }

    /// The node to ask for something of `group` that must be as of `needed`, leaving out `asked_already`.
    ///
    /// `needed` is the position up to which the segment must have its group's records: the read point, or
    /// lower if the group's log is known to end earlier. `None` if no candidate is complete enough. If all
    /// that are complete fail, the one whose pause ends first is picked: asking is better than giving up.
    pub fn choose(
        &mut self,
        group: GroupId,
        needed: Lsn,
        asked_already: &[NodeId],
        now: Duration,
    ) -> Option<Route> {
        let candidates: Vec<(NodeId, Health)> = self
            .readable
            .get(&group)?
            .iter()
            .filter(|&(node, &through)| through >= needed && !asked_already.contains(node))
            .filter_map(|(&node, _)| Some((node, *self.nodes.get(&node)?)))
            .collect();
        self.choices += 1;
        // An unknown latency counts as zero, so that every node is tried once; a queue counts as latency.
        let cost = |health: &Health| {
            let (mean, _) = health.latency.unwrap_or_default();
            mean.saturating_mul(u64::from(health.in_flight) + 1)
        };
        let healthy = candidates.iter().filter(|(_, health)| health.avoid_until <= now);
        let best = healthy.clone().min_by_key(|(node, health)| (cost(health), health.in_flight, *node));
        let (mut node, mut probe) = match best {
            Some(&(node, _)) => (node, false),
            None => (candidates.iter().min_by_key(|(node, health)| (health.avoid_until, *node))?.0, false),
        };
        if self.choices.is_multiple_of(PROBE_INTERVAL) && asked_already.is_empty() {
            let stale = healthy.filter(|(other, _)| *other != node);
            if let Some((other, _)) = stale.min_by_key(|(other, health)| (health.last_picked, *other)) {
                (node, probe) = (*other, true);
            }
        }
        if let Some(health) = self.nodes.get_mut(&node) {
            health.last_picked = self.choices;
        }
        self.assert_may_answer(node, group, needed);
        Some(Route { node, hedge_after: self.hedge_after(node), probe })
    }

    fn assert_may_answer(&self, node: NodeId, group: GroupId, needed: Lsn) {
        let through = self.readable.get(&group).and_then(|group| group.get(&node));
        let may_answer = through.is_some_and(|&through| through >= needed);
        invariant!(
            "asked-peer-is-complete",
            may_answer,
            "node {node} has group {group} to {through:?}, not {needed}"
        );
    }

    /// When to ask a second node: later than this node answers nearly always.
    #[must_use]
    pub fn hedge_after(&self, node: NodeId) -> Duration {
        match self.nodes.get(&node).and_then(|health| health.latency) {
            None => HEDGE_AFTER_MAX,
            Some((mean, deviation)) => Duration::from_nanos(mean.saturating_add(deviation.saturating_mul(4)))
                .clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX),
        }
    }

    /// A request went to the node.
    pub fn sent(&mut self, node: NodeId) {
        let health = self.nodes.entry(node).or_default();
        health.in_flight = health.in_flight.saturating_add(1);
    }

    /// The node answered a request, `latency` after it was sent.
    pub fn answered(&mut self, node: NodeId, latency: Duration) {
        let health = self.nodes.entry(node).or_default();
        health.in_flight = health.in_flight.saturating_sub(1);
        health.failures = 0;
        health.avoid_until = Duration::ZERO;
        health.observe(latency);
    }

    /// A request to the node failed or was given up after `waited`.
    pub fn failed(&mut self, node: NodeId, waited: Duration, now: Duration) {
        let health = self.nodes.entry(node).or_default();
        health.in_flight = health.in_flight.saturating_sub(1);
        let pause = BACKOFF_MIN.saturating_mul(1 << health.failures.min(16)).min(BACKOFF_MAX);
        health.failures = health.failures.saturating_add(1);
        health.avoid_until = now.saturating_add(pause);
        // A slow failure is a latency too; a fast one must not make the node look fast.
        if health.latency.is_some_and(|(mean, _)| u128::from(mean) < waited.as_nanos()) {
            health.observe(waited);
        }
    }

    /// Another node's answer came first, so this one's is not waited for. It took at least `waited`.
    pub fn overtaken(&mut self, node: NodeId, waited: Duration) {
        let health = self.nodes.entry(node).or_default();
        health.in_flight = health.in_flight.saturating_sub(1);
        if health.latency.is_none_or(|(mean, _)| u128::from(mean) < waited.as_nanos()) {
            health.observe(waited);
        }
    }

    /// The connection is gone: nothing sent will be answered.
    pub fn disconnected(&mut self, node: NodeId, now: Duration) {
        self.failed(node, Duration::ZERO, now);
        if let Some(health) = self.nodes.get_mut(&node) {
            health.in_flight = 0;
        }
    }

    /// The smoothed latency of a node, once it answered.
    #[must_use]
    pub fn latency(&self, node: NodeId) -> Option<Duration> {
        self.nodes.get(&node)?.latency.map(|(mean, _)| Duration::from_nanos(mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(0);
    const MILLISECOND: Duration = Duration::from_millis(1);

    fn router(latencies_ms: &[u32]) -> ReadRouter {
        let mut router = ReadRouter::new();
        for (node, &latency) in (0..).zip(latencies_ms) {
            router.observe_readable(NodeId(node), GROUP, Lsn(100));
            for _ in 0..20 {
                router.sent(NodeId(node));
                router.answered(NodeId(node), latency * MILLISECOND);
            }
        }
        router
    }

    #[test]
    #[should_panic(expected = "invariant asked-peer-is-complete is broken")]
    fn a_node_asked_for_what_it_lacks_is_noticed() {
        router(&[1]).assert_may_answer(NodeId(0), GROUP, Lsn(101));
    }

    #[test]
    fn the_fastest_complete_node_is_asked() {
        let mut router = router(&[3, 1, 2]);
        let now = Duration::ZERO;
        assert_eq!(router.choose(GROUP, Lsn(100), &[], now).map(|r| r.node), Some(NodeId(1)));
        assert_eq!(router.choose(GROUP, Lsn(100), &[NodeId(1)], now).map(|r| r.node), Some(NodeId(2)));
        router.observe_readable(NodeId(0), GROUP, Lsn(150));
        assert_eq!(router.choose(GROUP, Lsn(120), &[], now).map(|r| r.node), Some(NodeId(0)));
        assert_eq!(router.choose(GROUP, Lsn(200), &[], now), None);
        assert_eq!(router.choose(GroupId(9), Lsn(0), &[], now), None);
    }

    #[test]
    fn every_node_is_probed_sooner_or_later_and_a_recovered_one_is_preferred_again() {
        let mut router = router(&[1, 2, 30]);
        let mut asked = [0u32; 3];
        for _ in 0..PROBE_INTERVAL * 100 {
            let node = router.choose(GROUP, Lsn(1), &[], Duration::ZERO).expect("all are complete").node;
            asked[usize::from(node.0)] += 1;
            router.sent(node);
            // Node 2 has become the fastest meanwhile.
            let latency = [1000, 2000, 100][usize::from(node.0)];
            router.answered(node, Duration::from_micros(latency));
        }
        assert!(asked.iter().all(|&n| n >= 5), "not probed: {asked:?}");
        assert_eq!(router.choose(GROUP, Lsn(1), &[], Duration::ZERO).map(|r| r.node), Some(NodeId(2)));
    }

    #[test]
    fn a_failing_node_is_left_alone_ever_longer_then_tried_again() {
        let mut router = router(&[1, 2]);
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..4 {
            router.sent(NodeId(0));
            router.failed(NodeId(0), MILLISECOND, now);
            let mut pause = Duration::ZERO;
            while router.choose(GROUP, Lsn(1), &[], now).map(|r| r.node) != Some(NodeId(0)) {
                now += MILLISECOND;
                pause += MILLISECOND;
            }
            pauses.push(pause);
        }
        assert!(pauses.windows(2).all(|pair| pair[1] > pair[0]), "{pauses:?}");
        router.failed(NodeId(1), MILLISECOND, now);
        router.failed(NodeId(0), MILLISECOND, now);
        let last_resort = router.choose(GROUP, Lsn(1), &[], now).map(|r| r.node);
        assert_eq!(last_resort, Some(NodeId(1)), "its pause ends first");
    }

    #[test]
    fn the_hedge_delay_follows_the_tail() {
        let steady = router(&[2]);
        assert!(steady.hedge_after(NodeId(0)) < 3 * MILLISECOND);
        let mut jumpy = router(&[2]);
        for round in 0..40 {
            jumpy.answered(NodeId(0), if round % 4 == 0 { 20 * MILLISECOND } else { 2 * MILLISECOND });
        }
        assert!(jumpy.hedge_after(NodeId(0)) > 15 * MILLISECOND);
        assert_eq!(steady.hedge_after(NodeId(7)), HEDGE_AFTER_MAX);
    }

    #[test]
    fn a_queue_makes_a_node_less_attractive() {
        let mut router = router(&[10, 11]);
        router.sent(NodeId(0));
        assert_eq!(router.choose(GROUP, Lsn(1), &[], Duration::ZERO).map(|r| r.node), Some(NodeId(1)));
    }
}
