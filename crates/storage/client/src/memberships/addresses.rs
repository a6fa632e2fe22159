//! Where nodes are to be found, as far as anyone said. Every word of it is a hint: the handshake shows who answers.

use std::collections::{BTreeMap, BTreeSet};

use borealis_spec::{Endpoint, NodeAddress};
use borealis_types::NodeId;
use borealis_wire::Whereabouts;
use borealis_wire::message::WHEREABOUTS_MAX;

/// The longest text that is looked at as an address: the longest path that the system has.
const ADDRESS_BYTES_MAX: usize = 4096;
/// The nodes whose words about others are kept: as many as one message may name, which is more than a volume has members.
const TELLERS_MAX: usize = WHEREABOUTS_MAX;
/// The places of one node that are tried: each costs time, and anyone may invent one.
const PLACES_MAX: usize = 8;
/// The longest name of a zone that is kept.
const ZONE_BYTES_MAX: usize = 255;

/// Addresses of nodes: those that were configured, and those that nodes told. A node can say something false of others, so
/// what each says is kept apart, and all of it is tried.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AddressBook {
    /// By configuration.
    configured: BTreeMap<NodeId, NodeAddress>,
    /// What each node said last.
    told: BTreeMap<NodeId, BTreeMap<NodeId, NodeAddress>>,
}

impl AddressBook {
    /// With these addresses.
    #[must_use]
    pub fn new(configured: impl IntoIterator<Item = NodeAddress>) -> AddressBook {
        let configured = configured.into_iter().map(|address| (address.node, address)).collect();
        AddressBook { configured, told: BTreeMap::new() }
    }

    /// Adds addresses that are known from before, of nodes whose address is not configured.
    pub fn add(&mut self, addresses: impl IntoIterator<Item = NodeAddress>) {
        for address in addresses {
            self.configured.entry(address.node).or_insert(address);
        }
    }

    /// A node said where others are. Only what it says of `wanted` nodes is kept, in place of what it said before, and no
    /// Unix socket of a node that is itself found on the network: its machine has another file system.
    pub fn told(&mut self, teller: NodeId, wanted: &BTreeSet<NodeId>, nodes: &[Whereabouts]) {
        let is_network = |address: &Endpoint| matches!(address, Endpoint::Tls { .. });
        let from_network = self.all(teller).iter().any(|known| is_network(&known.address));
        let mut words = BTreeMap::new();
        for Whereabouts { node, zone, address } in nodes {
            if !wanted.contains(node) || address.len() > ADDRESS_BYTES_MAX || zone.0.len() > ZONE_BYTES_MAX {
                continue;
            }
            let Ok(address) = address.parse::<Endpoint>() else { continue };
            if is_network(&address) || !from_network {
                words.insert(*node, NodeAddress { node: *node, zone: zone.clone(), address });
            }
        }
        if self.told.len() < TELLERS_MAX || self.told.contains_key(&teller) {
            self.told.insert(teller, words);
        }
    }

    /// Forgets what is said of nodes, and by nodes, that are not among these.
    pub fn retain(&mut self, nodes: &BTreeSet<NodeId>) {
        self.told.retain(|teller, _| nodes.contains(teller));
        for words in self.told.values_mut() {
            words.retain(|node, _| nodes.contains(node));
        }
    }

    /// The addresses that a node may have, at most eight, the likeliest first: that which was configured, then those that most
    /// nodes say.
    #[must_use]
    pub fn all(&self, node: NodeId) -> Vec<&NodeAddress> {
        let mut found: Vec<(usize, &NodeAddress)> = Vec::new();
        if let Some(configured) = self.configured.get(&node) {
            found.push((usize::MAX / 2, configured));
        }
        for told in self.told.values().filter_map(|words| words.get(&node)) {
            match found.iter_mut().find(|(_, known)| known.address == told.address) {
                Some((count, _)) => *count += 1,
                None => found.push((1, told)),
            }
        }
        found.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        found.into_iter().map(|(_, address)| address).take(PLACES_MAX).collect()
    }

    /// The address to try after so many attempts in a row that failed: all that are known take turns.
    #[must_use]
    pub fn attempt(&self, node: NodeId, failures: usize) -> Option<&NodeAddress> {
        let all = self.all(node);
        all.get(failures.checked_rem(all.len())?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::AvailabilityZone;

    fn whereabouts(node: u16, address: &str) -> Whereabouts {
        Whereabouts { node: NodeId(node), zone: AvailabilityZone("az1".into()), address: address.into() }
    }

    fn configured(node: u16, address: &str) -> NodeAddress {
        let (node, zone) = (NodeId(node), AvailabilityZone("az1".into()));
        NodeAddress { node, zone, address: address.parse().expect("an address") }
    }

    fn found(book: &AddressBook, node: u16) -> Vec<String> {
        book.all(NodeId(node)).iter().map(|address| address.address.to_string()).collect()
    }

    #[test]
    fn what_most_say_is_tried_before_what_one_says_and_nothing_is_dropped() {
        let mut book = AddressBook::new([configured(1, "/s/1")]);
        let wanted = [1, 2].map(NodeId).into();
        book.told(NodeId(1), &wanted, &[whereabouts(2, "/false/2"), whereabouts(1, "/s/1")]);
        book.told(NodeId(3), &wanted, &[whereabouts(2, "/s/2"), whereabouts(1, "/false/1")]);
        book.told(NodeId(4), &wanted, &[whereabouts(2, "/s/2")]);
        assert_eq!(found(&book, 2), ["/s/2", "/false/2"]);
        assert_eq!(found(&book, 1), ["/s/1", "/false/1"]);
        let tried = |failures| book.attempt(NodeId(2), failures).map(|found| found.address.to_string());
        assert_eq!([0, 1, 2].map(tried), ["/s/2", "/false/2", "/s/2"].map(|path| Some(path.to_owned())));
        assert_eq!(book.attempt(NodeId(9), 0), None);
        book.retain(&[2, 3].map(NodeId).into());
        assert_eq!(found(&book, 2), ["/s/2"]);
        assert_eq!(found(&book, 1), ["/s/1"], "a configured address stays");
    }

    #[test]
    fn a_node_cannot_fill_the_book_nor_lead_from_the_network_to_a_file() {
        let mut book = AddressBook::new([configured(1, "tls:host1:7001")]);
        let wanted = [1, 2, 3].map(NodeId).into();
        let long = format!("/{}", "x".repeat(ADDRESS_BYTES_MAX));
        let words = [whereabouts(2, "/tmp/2"), whereabouts(3, &long), whereabouts(8, "tls:host8:7001")];
        book.told(NodeId(1), &wanted, &words);
        assert!([2, 3, 8].iter().all(|&node| found(&book, node).is_empty()), "{book:?}");
        book.told(NodeId(1), &wanted, &[whereabouts(2, "nonsense"), whereabouts(3, "tls:host3:7001")]);
        assert_eq!((found(&book, 2).len(), found(&book, 3).len()), (0, 1));
        for teller in 0..2000 {
            book.told(NodeId(teller), &wanted, &[whereabouts(2, "tls:host2:7001")]);
        }
        assert_eq!(book.told.len(), TELLERS_MAX);
        for teller in 2..20 {
            book.told(NodeId(teller), &wanted, &[whereabouts(2, &format!("tls:host{teller}:7001"))]);
        }
        assert_eq!(found(&book, 2).len(), PLACES_MAX);
        assert_eq!(found(&book, 2)[0], "tls:host2:7001", "what most say comes first");
    }
}
