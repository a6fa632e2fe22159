//! Records beyond the durable point that peers send: one peer's word is not enough.
//!
//! What a volume has up to its durable point is on a write quorum. Beyond it, a record that one peer sends may be of no writer:
//! a node that takes it claims to be complete to where it is not, refuses the writer's own record there, and is a second
//! witness of it to the next recovery. Mostly nobody needs such records from a peer, for the writer's stream brings them.
//! It does not where a node had to let some of them pass (too many waited for a predecessor) and the write quorum needs
//! this very node. So they are taken once two peers send the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use borealis_types::{Lsn, NodeId};

/// From how many peers is remembered what they sent. With two, one that lies cannot keep two others from being compared.
const PEERS_REMEMBERED: usize = 2;

/// What peers last sent of one group beyond its durable point, by where each record starts.
#[derive(Clone, Debug)]
pub struct Corroboration<R> {
    sent: VecDeque<(NodeId, BTreeMap<Lsn, R>)>,
}

impl<R> Default for Corroboration<R> {
    fn default() -> Corroboration<R> {
        Corroboration { sent: VecDeque::new() }
    }
}

impl<R: PartialEq> Corroboration<R> {
    /// Which of the records that `from` sends, all beyond the durable point, another peer has sent before: by where they
    /// start. What it sent before is forgotten, so no peer takes more room than one answer.
    pub fn confirm(&mut self, from: NodeId, records: BTreeMap<Lsn, R>) -> BTreeSet<Lsn> {
        self.sent.retain(|(peer, _)| *peer != from);
        let is_confirmed = |(start, record): &(&Lsn, &R)| {
            self.sent.iter().any(|(_, others)| others.get(start) == Some(record))
        };
        let confirmed = records.iter().filter(is_confirmed).map(|(start, _)| *start).collect();
        if !records.is_empty() {
            self.sent.push_back((from, records));
            if self.sent.len() > PEERS_REMEMBERED {
                self.sent.pop_front();
            }
        }
        confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirmed(seen: &mut Corroboration<u8>, from: u16, records: &[(u64, u8)]) -> Vec<u64> {
        let records = records.iter().map(|&(start, record)| (Lsn(start), record)).collect();
        seen.confirm(NodeId(from), records).into_iter().map(|start| start.0).collect()
    }

    #[test]
    fn two_peers_have_to_send_the_same_record() {
        let mut seen = Corroboration::default();
        assert_eq!(confirmed(&mut seen, 2, &[(8, 1), (16, 2), (24, 3)]), [0; 0]);
        assert_eq!(confirmed(&mut seen, 2, &[(8, 1), (16, 2), (24, 3)]), [0; 0], "the same peer again");
        assert_eq!(
            confirmed(&mut seen, 3, &[(8, 1), (16, 9), (32, 3)]),
            [8],
            "another record, another place"
        );
        assert_eq!(confirmed(&mut seen, 4, &[(16, 9), (24, 3)]), [16, 24], "one of either");
    }

    #[test]
    fn a_liar_keeps_nobody_from_being_compared() {
        let mut seen = Corroboration::default();
        confirmed(&mut seen, 2, &[(8, 1)]);
        for number in 0..10 {
            assert_eq!(confirmed(&mut seen, 6, &[(8, 50 + number)]), [0; 0]);
        }
        assert_eq!(confirmed(&mut seen, 6, &[]), [0; 0]);
        assert_eq!(confirmed(&mut seen, 3, &[(8, 1)]), [8]);
        assert!(seen.sent.len() <= PEERS_REMEMBERED);
    }
}
