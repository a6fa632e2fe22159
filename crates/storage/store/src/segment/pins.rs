//! What peers hold of one segment: see [`crate::pins`].

use std::collections::BTreeMap;
use std::time::Instant;

use borealis_types::{Lsn, NodeId};

/// The pins of one segment, at most one for each peer.
#[derive(Default, Debug)]
pub(crate) struct Pins(BTreeMap<NodeId, (Lsn, Instant)>);

impl Pins {
    /// Holds `lsn` for a peer until then, and nothing else that it held before.
    pub(crate) fn hold(&mut self, holder: NodeId, lsn: Lsn, until: Instant) {
        self.0.insert(holder, (lsn, until));
    }

    pub(crate) fn release(&mut self, holder: NodeId) {
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
        pins.hold(NodeId(1), Lsn(100), after(10));
        pins.hold(NodeId(2), Lsn(200), after(20));
        assert_eq!(pins.floor(after(9)), Some(Lsn(100)));
        assert_eq!(pins.floor(after(10)), Some(Lsn(200)));
        pins.hold(NodeId(2), Lsn(300), after(30));
        assert_eq!(pins.floor(after(20)), Some(Lsn(300)), "one pin for each peer");
        pins.release(NodeId(2));
        assert_eq!(pins.floor(after(20)), None);
    }
}
