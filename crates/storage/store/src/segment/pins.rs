//! What peers and tools hold of one segment: see [`crate::pins`].

use std::collections::BTreeMap;
use std::time::Instant;

use borealis_types::{Lsn, NodeId};

/// Points that tools hold of one segment at a time, at most.
const TOOL_PINS_MAX: usize = 4;

/// For whom versions are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinHolder {
    /// A node that takes them.
    Peer(NodeId),
    /// A tool. There is no telling tools apart, so each point that one holds is a pin of its own.
    Tool,
}

impl From<NodeId> for PinHolder {
    fn from(node: NodeId) -> PinHolder {
        PinHolder::Peer(node)
    }
}

/// The pins of one segment: at most one for each peer, and one for each point that a tool takes.
#[derive(Default, Debug)]
pub(crate) struct Pins {
    peers: BTreeMap<NodeId, (Lsn, Instant)>,
    tools: BTreeMap<Lsn, Instant>,
}

impl Pins {
    /// Holds `lsn` until then, and nothing else that a peer held before. False if tools hold too many points already.
    #[must_use]
    pub(crate) fn hold(&mut self, holder: PinHolder, lsn: Lsn, now: Instant, until: Instant) -> bool {
        let PinHolder::Peer(peer) = holder else {
            self.tools.retain(|_, ends| now < *ends);
            if self.tools.len() >= TOOL_PINS_MAX && !self.tools.contains_key(&lsn) {
                return false;
            }
            let ends = self.tools.entry(lsn).or_insert(until);
            *ends = until.max(*ends);
            return true;
        };
        self.peers.insert(peer, (lsn, until));
        true
    }

    /// Ends a peer's pin, or that of the tools on a point.
    pub(crate) fn release(&mut self, holder: PinHolder, lsn: Lsn) {
        match holder {
            PinHolder::Peer(peer) => drop(self.peers.remove(&peer)),
            PinHolder::Tool => drop(self.tools.remove(&lsn)),
        }
    }

    /// Ends what tools hold; whether there was anything.
    pub(crate) fn release_tools(&mut self, now: Instant) -> bool {
        let held = self.tools.values().any(|until| now < *until);
        self.tools.clear();
        held
    }

    /// The lowest LSN that is held.
    pub(crate) fn floor(&self, now: Instant) -> Option<Lsn> {
        let peers = self.peers.values().map(|(lsn, until)| (*lsn, *until));
        let all = peers.chain(self.tools.iter().map(|(lsn, until)| (*lsn, *until)));
        all.filter(|(_, until)| now < *until).map(|(lsn, _)| lsn).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lease_that_is_not_renewed_ends() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let peer = |node| PinHolder::Peer(NodeId(node));
        assert!(pins.hold(peer(1), Lsn(100), now, after(10)));
        assert!(pins.hold(peer(2), Lsn(200), now, after(20)));
        assert_eq!(pins.floor(after(9)), Some(Lsn(100)));
        assert_eq!(pins.floor(after(10)), Some(Lsn(200)));
        assert!(pins.hold(peer(2), Lsn(300), now, after(30)));
        assert_eq!(pins.floor(after(20)), Some(Lsn(300)), "one pin for each peer");
        pins.release(peer(2), Lsn(300));
        assert_eq!(pins.floor(after(20)), None);
    }

    #[test]
    fn what_a_tool_holds_ends_with_its_own_lease_whatever_others_hold() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(pins.hold(PinHolder::Tool, Lsn(100), now, after(10)));
        assert!(pins.hold(PinHolder::Tool, Lsn(200), after(5), after(15)));
        assert_eq!(pins.floor(after(9)), Some(Lsn(100)));
        // The second one renews its own, and the first one is gone.
        assert!(pins.hold(PinHolder::Tool, Lsn(200), after(9), after(25)));
        assert_eq!(pins.floor(after(10)), Some(Lsn(200)));
        pins.release(PinHolder::Tool, Lsn(100));
        assert_eq!(pins.floor(after(20)), Some(Lsn(200)), "only its own is released");
    }

    #[test]
    fn tools_hold_few_points_and_go_before_peers() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        let until = now + Duration::from_secs(10);
        for point in 0..TOOL_PINS_MAX as u64 {
            assert!(pins.hold(PinHolder::Tool, Lsn(100 + point), now, until));
        }
        assert!(!pins.hold(PinHolder::Tool, Lsn(50), now, until));
        assert!(pins.hold(PinHolder::Tool, Lsn(100), now, until), "what is held can be renewed");
        assert!(
            pins.hold(PinHolder::Tool, Lsn(50), until, until + Duration::from_secs(1)),
            "leases have ended"
        );
        assert!(pins.hold(PinHolder::Peer(NodeId(1)), Lsn(70), now, until));
        assert!(pins.release_tools(until) && !pins.release_tools(until));
        assert_eq!(pins.floor(now), Some(Lsn(70)));
    }
}
