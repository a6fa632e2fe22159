//! Where other nodes are to be found: the file `addresses.json` beside the store's files, and what is told since.
//!
//! An address is a hint. The handshake, and over TLS the certificate, decide whether it is that node that answers there, so a
//! wrong one costs time and nothing else. Of each node the last word of everyone is kept, and who says it decides which is tried
//! first: the controller's, who knows where a node moved to, then that of `node.json`, then a peer's; the next one when nobody
//! answers there. A peer is asked only about nodes that are wanted, and may not lead from
//! TLS to a socket, behind which nobody shows a certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use borealis_spec::{Endpoint, NodeAddress, NodeConfig};
use borealis_types::{AvailabilityZone, NodeId};
use borealis_wire::Whereabouts;
use borealis_wire::message::WHEREABOUTS_MAX;
use serde::{Deserialize, Serialize};

/// Longer names of zones, and longer addresses, are not taken: the longest name of a host has 253 bytes.
const TEXT_BYTES_MAX: usize = 300;
/// The version of the file.
const FORMAT: u32 = 1;
/// The file's name in the store's folder, which the node may write whoever it runs as.
const FILE_NAME: &str = "addresses.json";

/// Who said where a node is; whoever stands later here is believed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    Peer,
    Configuration,
    Controller,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    source: Source,
    address: NodeAddress,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    nodes: Vec<Entry>,
}

/// The folder of sockets that a node without the right to walk to it holds open, and the way that leads there.
#[derive(Clone, Debug, Default)]
struct HeldFolder(Option<(PathBuf, PathBuf)>);

impl HeldFolder {
    /// As the node's own socket is named; see `privileges.rs`.
    fn of(listen: &Endpoint) -> HeldFolder {
        let Endpoint::Unix(path) = listen else { return HeldFolder(None) };
        let by_descriptor = path.parent().filter(|folder| folder.starts_with("/proc/self/fd"));
        HeldFolder(by_descriptor.and_then(|way| Some((std::fs::read_link(way).ok()?, way.to_owned()))))
    }

    fn exchanged(endpoint: &Endpoint, from: &Path, to: &Path) -> Option<Endpoint> {
        let Endpoint::Unix(path) = endpoint else { return None };
        let name = path.file_name().filter(|_| path.parent() == Some(from))?;
        Some(Endpoint::Unix(to.join(name)))
    }

    /// An address as others call it, as this process can reach it.
    fn reached(&self, endpoint: Endpoint) -> Endpoint {
        let exchanged = self.0.as_ref().and_then(|(real, way)| Self::exchanged(&endpoint, real, way));
        exchanged.unwrap_or(endpoint)
    }

    /// An address as this process reaches it, as others call it.
    fn named(&self, endpoint: &Endpoint) -> Endpoint {
        let exchanged = self.0.as_ref().and_then(|(real, way)| Self::exchanged(endpoint, way, real));
        exchanged.unwrap_or_else(|| endpoint.clone())
    }
}

/// Where other nodes are, as far as this one was told.
#[derive(Debug)]
pub(crate) struct AddressBook {
    own: NodeAddress,
    held: HeldFolder,
    /// Of each node one entry from each source, the one to try first at the front.
    nodes: BTreeMap<NodeId, Vec<Entry>>,
    file: PathBuf,
}

impl AddressBook {
    /// What the configuration says and what was told to earlier processes.
    pub(crate) fn open(config: &NodeConfig) -> AddressBook {
        let own =
            NodeAddress { node: config.node, zone: config.zone.clone(), address: config.listen.clone() };
        let mut book = AddressBook {
            held: HeldFolder::of(&own.address),
            own,
            nodes: BTreeMap::new(),
            file: config.store_directory().join(FILE_NAME),
        };
        for peer in &config.peers {
            book.take(Source::Configuration, peer.clone());
        }
        for Entry { source, address } in read(&book.file) {
            let address = NodeAddress { address: book.held.reached(address.address), ..address };
            book.take(source, address);
        }
        book
    }

    /// Where a node is to be found, most likely; `None` if nobody said.
    pub(crate) fn of(&self, node: NodeId) -> Option<&NodeAddress> {
        self.nodes.get(&node)?.first().map(|entry| &entry.address)
    }

    /// Nobody answered where a node was said to be: the next place is tried. Returns whether there is another.
    pub(crate) fn turn(&mut self, node: NodeId) -> bool {
        let Some(entries) = self.nodes.get_mut(&node).filter(|entries| entries.len() > 1) else {
            return false;
        };
        entries.rotate_left(1);
        true
    }

    /// Where these nodes are, this one among them if it is asked for, as others call the places.
    pub(crate) fn whereabouts(&self, wanted: impl Fn(NodeId) -> bool) -> Vec<Whereabouts> {
        let firsts = self.nodes.values().filter_map(|entries| entries.first());
        let all = firsts.map(|entry| &entry.address).chain([&self.own]);
        let told = |known: &NodeAddress| Whereabouts {
            node: known.node,
            zone: known.zone.clone(),
            address: self.held.named(&known.address).to_string(),
        };
        all.filter(|known| wanted(known.node)).take(WHEREABOUTS_MAX).map(told).collect()
    }

    /// Takes what somebody says; of a peer's word what is about `wanted` nodes. Returns whether anything is news.
    pub(crate) fn learn(&mut self, source: Source, said: &[Whereabouts], wanted: &BTreeSet<NodeId>) -> bool {
        let mut is_news = false;
        for Whereabouts { node, zone, address } in said {
            if zone.0.len() > TEXT_BYTES_MAX || address.len() > TEXT_BYTES_MAX {
                continue;
            }
            let Ok(address) = address.parse::<Endpoint>() else { continue };
            let leaves_tls =
                matches!((&self.own.address, &address), (Endpoint::Tls { .. }, Endpoint::Unix(_)));
            if source == Source::Peer && (leaves_tls || !wanted.contains(node)) {
                continue;
            }
            if self.nodes.len() >= WHEREABOUTS_MAX - 1 && !self.nodes.contains_key(node) {
                // Whoever is of no use makes room.
                let useless = self.nodes.keys().copied().find(|node| !wanted.contains(node));
                let Some(useless) = useless else { continue };
                self.nodes.remove(&useless);
            }
            let (zone, address) = (AvailabilityZone(zone.0.clone()), self.held.reached(address));
            is_news |= self.take(source, NodeAddress { node: *node, zone, address });
        }
        is_news
    }

    fn take(&mut self, source: Source, address: NodeAddress) -> bool {
        let node = address.node;
        if node == self.own.node {
            return false;
        }
        let entries = self.nodes.entry(node).or_default();
        let is_known = |known: &Entry| known.source >= source && known.address == address;
        if entries.iter().any(is_known) {
            return false;
        }
        entries.retain(|known| known.source != source && known.address != address);
        let before = entries.partition_point(|known| known.source > source);
        entries.insert(before, Entry { source, address });
        true
    }

    /// What to write to the file, and where that is.
    pub(crate) fn to_save(&self) -> (PathBuf, Vec<u8>) {
        let told = self.nodes.values().flatten().filter(|entry| entry.source != Source::Configuration);
        let named = |entry: &Entry| {
            let NodeAddress { node, zone, address } = entry.address.clone();
            let address = NodeAddress { node, zone, address: self.held.named(&address) };
            Entry { source: entry.source, address }
        };
        let stored = Stored { format: FORMAT, nodes: told.map(named).collect() };
        (self.file.clone(), serde_json::to_vec_pretty(&stored).expect("plain data encodes"))
    }
}

/// What the file holds, if it can be read. Nothing depends on it.
fn read(file: &Path) -> Vec<Entry> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "where other nodes are is not known from before");
            return Vec::new();
        }
    };
    match serde_json::from_slice::<Stored>(&text) {
        Ok(stored) if stored.format == FORMAT && stored.nodes.len() <= WHEREABOUTS_MAX => stored.nodes,
        Ok(_) => {
            tracing::warn!(file = %file.display(), "where other nodes are was written by another version");
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "where other nodes are is begun anew");
            Vec::new()
        }
    }
}

/// Replaces the file as a whole, durably: a crash leaves the one before, or this.
///
/// # Errors
/// What the system said. The one before stands.
pub(crate) fn save(file: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = file.with_extension("new");
    let mut written = File::create(&temporary)?;
    written.write_all(text)?;
    written.sync_all()?;
    std::fs::rename(&temporary, file)?;
    file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{Placement, VolumeId};

    fn config(folder: &Path, listen: &str) -> NodeConfig {
        let zone = AvailabilityZone("az1".into());
        let (listen, placement) = (listen.parse().unwrap(), Placement::new(1).unwrap());
        let mut config =
            NodeConfig::new(folder.to_owned(), VolumeId(1), NodeId(1), zone.clone(), 1, listen, placement);
        std::fs::create_dir_all(config.store_directory()).unwrap();
        config.peers = vec![NodeAddress { node: NodeId(2), zone, address: "tls:two:7".parse().unwrap() }];
        config
    }

    fn said(node: u16, address: &str) -> Whereabouts {
        Whereabouts { node: NodeId(node), zone: AvailabilityZone("az2".into()), address: address.to_owned() }
    }

    fn address(book: &AddressBook, node: u16) -> Option<String> {
        book.of(NodeId(node)).map(|known| known.address.to_string())
    }

    #[test]
    fn the_controller_is_believed_before_the_file_and_both_before_a_peer() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = AddressBook::open(&config(folder.path(), "tls:one:7"));
        let wanted = [2, 3, 4].map(NodeId).into();
        assert!(book.learn(Source::Peer, &[said(2, "tls:elsewhere:7")], &wanted));
        assert_eq!(address(&book, 2).as_deref(), Some("tls:two:7"));
        assert!(book.learn(Source::Peer, &[said(3, "tls:three:7")], &wanted));
        assert!(book.learn(Source::Controller, &[said(2, "tls:moved:8"), said(9, "tls:nine:7")], &wanted));
        assert!(!book.learn(Source::Controller, &[said(2, "tls:moved:8")], &wanted), "no news");
        let (file, text) = book.to_save();
        save(&file, &text).unwrap();
        let again = AddressBook::open(&config(folder.path(), "tls:one:7"));
        for (node, expected) in [(2, "tls:moved:8"), (3, "tls:three:7"), (9, "tls:nine:7")] {
            assert_eq!(address(&again, node).as_deref(), Some(expected));
        }
        std::fs::write(&file, "{").unwrap();
        let anew = AddressBook::open(&config(folder.path(), "tls:one:7"));
        assert_eq!((address(&anew, 2).as_deref(), address(&anew, 3)), (Some("tls:two:7"), None));
    }

    #[test]
    fn where_nobody_answers_the_next_place_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = AddressBook::open(&config(folder.path(), "tls:one:7"));
        let wanted = [2].map(NodeId).into();
        assert!(!book.turn(NodeId(2)), "there is one place");
        book.learn(Source::Peer, &[said(2, "tls:heard:7")], &wanted);
        book.learn(Source::Controller, &[said(2, "tls:moved:7")], &wanted);
        let mut tried = Vec::new();
        for _ in 0..4 {
            tried.extend(address(&book, 2));
            assert!(book.turn(NodeId(2)));
        }
        assert_eq!(tried, ["tls:moved:7", "tls:two:7", "tls:heard:7", "tls:moved:7"]);
        assert!(book.learn(Source::Controller, &[said(2, "tls:again:7")], &wanted));
        assert_eq!(address(&book, 2).as_deref(), Some("tls:again:7"), "news is tried first");
        assert!(!book.turn(NodeId(9)));
    }

    #[test]
    fn what_is_of_no_use_or_no_address_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = AddressBook::open(&config(folder.path(), "tls:one:7"));
        let wanted = [3].map(NodeId).into();
        let long = format!("/{}", "x".repeat(TEXT_BYTES_MAX));
        for bad in [said(4, "tls:four:7"), said(3, "three"), said(3, "/a/socket"), said(3, &long)] {
            assert!(!book.learn(Source::Peer, std::slice::from_ref(&bad), &wanted), "{bad:?}");
        }
        assert!(!book.learn(Source::Controller, &[said(1, "tls:not-me:7")], &wanted), "it knows itself");
        let many: Vec<Whereabouts> = (10..3000).map(|node| said(node, "tls:many:7")).collect();
        book.learn(Source::Controller, &many, &wanted);
        assert!(book.learn(Source::Peer, &[said(3, "tls:three:7")], &wanted), "who is wanted finds room");
        assert_eq!(book.whereabouts(|_| true).len(), WHEREABOUTS_MAX);
        assert_eq!(
            book.whereabouts(|node| node == NodeId(1)),
            [Whereabouts {
                node: NodeId(1),
                zone: AvailabilityZone("az1".into()),
                address: "tls:one:7".to_owned()
            }]
        );
    }

    #[test]
    fn sockets_in_a_folder_that_is_held_open_are_reached_through_it() {
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let sockets = folder.path().join("sockets").canonicalize().unwrap_or(folder.path().join("sockets"));
        std::fs::create_dir(&sockets).unwrap();
        let sockets = sockets.canonicalize().unwrap();
        let held = File::open(&sockets).unwrap();
        let way = format!("/proc/self/fd/{}", held.as_raw_fd());
        let mut book = AddressBook::open(&config(folder.path(), &format!("{way}/1")));
        let named = sockets.join("5").display().to_string();
        assert!(book.learn(Source::Controller, &[said(5, &named)], &BTreeSet::new()));
        assert_eq!(address(&book, 5), Some(format!("{way}/5")));
        assert_eq!(book.whereabouts(|node| node == NodeId(5))[0].address, named);
        let (_, text) = book.to_save();
        assert!(String::from_utf8(text).unwrap().contains(&named), "the descriptor is this process's");
    }
}
