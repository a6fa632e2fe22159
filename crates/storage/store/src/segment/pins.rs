//! What peers hold of one segment: see [`crate::pins`].

use std::collections::BTreeMap;
use std::time::Instant;

use borealis_types::{Lsn, NodeId};

/// For whom versions are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinHolder {
    /// A node that takes them.
    Peer(NodeId),
    /// Tools, all together: there is no telling them apart, so each may only add to what is kept.
    Tools,
}

impl From<NodeId> for PinHolder {
    fn from(node: NodeId) -> PinHolder {
        PinHolder::Peer(node)
    }
}

/// The pins of one segment, at most one for each peer, and one for all tools.
#[derive(Default, Debug)]
pub(crate) struct Pins(BTreeMap<PinHolder, (Lsn, Instant)>);

impl Pins {
    /// Holds `lsn` until then, and nothing else that a peer held before. What a tool held stays held, for it may be
    /// another's; only the lease ends it.
    pub(crate) fn hold(&mut self, holder: PinHolder, lsn: Lsn, now: Instant, until: Instant) {
        let before = self.0.get(&holder).filter(|_| holder == PinHolder::Tools);
        let (lsn, until) = match before {
            Some(&(held, ends)) if now < ends => (lsn.min(held), until.max(ends)),
            _ => (lsn, until),
        };
        self.0.insert(holder, (lsn, until));
    }

    pub(crate) fn release(&mut self, holder: PinHolder) {
        self.0.remove(&holder);
    }

    /// The lowest LSN that is held.
    pub(crate) fn floor(&self, now: Instant) -> Option<Lsn> {
        self.0.values().filter(|(_, until)| now < *until).map(|(lsn, _)| *lsn).min()
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
        pins.hold(peer(1), Lsn(100), now, after(10));
        pins.hold(peer(2), Lsn(200), now, after(20));
        assert_eq!(pins.floor(after(9)), Some(Lsn(100)));
        assert_eq!(pins.floor(after(10)), Some(Lsn(200)));
        pins.hold(peer(2), Lsn(300), now, after(30));
        assert_eq!(pins.floor(after(20)), Some(Lsn(300)), "one pin for each peer");
        pins.release(peer(2));
        assert_eq!(pins.floor(after(20)), None);
    }

    #[test]
    fn one_tool_does_not_give_up_what_another_holds() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        pins.hold(PinHolder::Tools, Lsn(100), now, after(10));
        pins.hold(PinHolder::Tools, Lsn(200), after(5), after(15));
        assert_eq!(pins.floor(after(14)), Some(Lsn(100)));
        pins.hold(PinHolder::Tools, Lsn(300), after(20), after(30));
        assert_eq!(pins.floor(after(20)), Some(Lsn(300)), "the lease of the first has ended");
    }
}
