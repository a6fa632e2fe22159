//! Who gets one of the node's connections. Pure: who is there and who comes decide.
//!
//! Every kind of caller has places of its own, so that no kind can take those of another: idle strangers cannot keep the
//! writer out. A kind whose places are all taken gives the newcomer the place of whoever has been silent longest, if that
//! is long enough: a caller that is at work keeps its place, and one that only sits there does not.

use std::time::Duration;

use borealis_types::NodeId;

/// What kind of caller has a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// It has not said yet who it is.
    Stranger,
    /// The writer that the node promised its epoch to, and its reader.
    PromisedWriter,
    /// A recovery, or somebody who says that it is a writer.
    OtherWriter,
    Client,
    Peer(NodeId),
}

impl Kind {
    /// How many there may be, and how long the most silent of them must have been silent to be closed for another.
    fn bounds(self) -> (usize, Duration) {
        match self {
            Kind::Stranger => (64, Duration::from_millis(100)),
            // Two for the writer, three for the recovery before it, and those that broke and are still listed.
            Kind::PromisedWriter => (12, Duration::from_millis(500)),
            // Six recoveries at once, each with a connection for redo and one for the rest, fit twelve.
            Kind::OtherWriter => (12, Duration::from_millis(500)),
            Kind::Client => (128, Duration::from_millis(500)),
            // A peer's gossip has one connection, what mends and what refills another each; those that broke may still be
            // listed when the next ones come.
            Kind::Peer(_) => (6, Duration::from_millis(500)),
        }
    }
}

/// Most connections that are open at one time, those that are being closed included. Reached only if callers come faster
/// than the threads of closed connections end.
pub(crate) const CONNECTIONS_MAX: usize = 512;

/// A connection that has a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupant {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    /// Since its last whole request, or since it came.
    pub(crate) silent_for: Duration,
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// There is a place for it.
    Free,
    /// There is one once this connection is closed.
    InsteadOf(u64),
    /// All places of its kind are taken by callers that are at work.
    Full,
}

/// Finds a place for a newcomer of this kind among those who are there.
pub(crate) fn find(kind: Kind, occupants: impl Iterator<Item = Occupant>) -> Verdict {
    let (places, silence) = kind.bounds();
    let (mut taken, mut most_silent) = (0, None::<Occupant>);
    for occupant in occupants.filter(|occupant| occupant.kind == kind) {
        taken += 1;
        if most_silent.is_none_or(|other| occupant.silent_for > other.silent_for) {
            most_silent = Some(occupant);
        }
    }
    match most_silent {
        Some(occupant) if taken >= places && occupant.silent_for >= silence => {
            Verdict::InsteadOf(occupant.id)
        }
        Some(_) if taken >= places => Verdict::Full,
        _ => Verdict::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupants(kind: Kind, count: u64, silent_ms: u64) -> Vec<Occupant> {
        let one = |id| Occupant { id, kind, silent_for: Duration::from_millis(silent_ms + id) };
        (1..=count).map(one).collect()
    }

    #[test]
    fn no_kind_takes_the_places_of_another() {
        let mut there = occupants(Kind::Client, 128, 0);
        there.extend(occupants(Kind::Stranger, 64, 0));
        there.extend(occupants(Kind::OtherWriter, 12, 0));
        there.extend(occupants(Kind::Peer(NodeId(2)), 6, 0));
        let verdict = |kind| find(kind, there.iter().copied());
        for full in [Kind::Client, Kind::Stranger, Kind::OtherWriter, Kind::Peer(NodeId(2))] {
            assert_eq!(verdict(full), Verdict::Full, "{full:?}");
        }
        assert_eq!(verdict(Kind::PromisedWriter), Verdict::Free);
        assert_eq!(verdict(Kind::Peer(NodeId(3))), Verdict::Free);
    }

    #[test]
    fn whoever_was_silent_longest_gives_way() {
        let mut there = occupants(Kind::Client, 128, 10_000);
        assert_eq!(find(Kind::Client, there.iter().copied()), Verdict::InsteadOf(128));
        there.pop();
        assert_eq!(find(Kind::Client, there.iter().copied()), Verdict::Free);
        let busy = occupants(Kind::Client, 128, 0);
        assert_eq!(find(Kind::Client, busy.into_iter()), Verdict::Full);
    }

    #[test]
    fn all_kinds_together_stay_below_the_most_that_are_open() {
        let kinds = [Kind::Stranger, Kind::PromisedWriter, Kind::OtherWriter, Kind::Client];
        let places: usize = kinds.iter().map(|kind| kind.bounds().0).sum();
        // Five others in each of a node's groups, of which there are fewer the more nodes share them.
        let groups_on_a_node = |nodes: usize| (6 * usize::from(borealis_types::MAX_GROUPS)).div_ceil(nodes);
        let peers = (6..400).map(|nodes| (nodes - 1).min(5 * groups_on_a_node(nodes))).max();
        let peers = peers.expect("fleets of every size");
        assert!(places + peers * Kind::Peer(NodeId(1)).bounds().0 < CONNECTIONS_MAX, "{peers} peers");
    }
}
