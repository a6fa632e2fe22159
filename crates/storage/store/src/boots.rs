//! Which boots peers were heard in, and that this store is known to have lost something.
//!
//! A node whose disk was put back to an earlier state (a restored snapshot) has less than it acknowledged, and does not
//! know it. Its peers do: they remember in which boot of which incarnation they last heard it. See `Standing` in the node.
//!
//! Two small files, replaced as a whole (see [`crate::directory`]): `boots` with the peers' boots, and `renounced`, which
//! exists once this store is known to have lost what it acknowledged, and says why. It keeps the store from voting in every
//! later process, too.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use borealis_types::NodeId;
use borealis_wire::Boot;

use crate::directory::{Directory, decode, encode};
use crate::{Store, StoreError};

const BOOTS_MAGIC: [u8; 8] = *b"BORBOOT\x01";
const RENOUNCED_MAGIC: [u8; 8] = *b"BORLOST\x01";

/// The boots that peers were last heard in.
pub(crate) type PeerBoots = BTreeMap<NodeId, Boot>;

/// What was remembered of the peers' boots. No promise depends on it: a file that cannot be read is begun anew.
pub(crate) fn read_peer_boots(directory: &Directory) -> PeerBoots {
    let path = directory.boots();
    if !directory.disk().exists(&path) {
        return PeerBoots::new();
    }
    let read = directory.read_file(&path, BOOTS_MAGIC).and_then(|bytes| decode(&bytes, &path));
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "what was remembered of the peers' boots is lost");
        PeerBoots::new()
    })
}

/// Why the store may not vote, if an earlier process found that it lost what it had acknowledged.
pub(crate) fn read_renounced(directory: &Directory) -> Option<String> {
    let path = directory.renounced();
    directory.disk().exists(&path).then(|| {
        let read = directory.read_file(&path, RENOUNCED_MAGIC);
        let text = read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        text.unwrap_or_else(|error| format!("it was found to have lost what it acknowledged ({error})"))
    })
}

impl Store {
    /// The boot that a peer was last heard in.
    #[must_use]
    pub fn peer_boot(&self, peer: NodeId) -> Option<Boot> {
        self.peer_boots.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).copied()
    }

    /// Remembers the boot that a peer was heard in, durably, unless a later one of the same incarnation is known.
    ///
    /// # Errors
    /// When it cannot be written. It is remembered for as long as the process lives, all the same.
    pub fn remember_peer_boot(&self, peer: NodeId, boot: Boot) -> Result<(), StoreError> {
        let mut boots = self.peer_boots.lock().unwrap_or_else(PoisonError::into_inner);
        let known = boots.get(&peer);
        if known.is_some_and(|known| known.incarnation == boot.incarnation && known.number >= boot.number) {
            return Ok(());
        }
        boots.insert(peer, boot);
        self.directory.replace_file(&self.directory.boots(), BOOTS_MAGIC, &encode(&*boots))
    }

    /// The store is known to have lost what it acknowledged: from here on it promises nothing, in this process and in every
    /// later one. It goes on serving reads of what it has.
    pub fn renounce(&self, why: &str) {
        self.poisoned(&StoreError::Poisoned(why.to_owned()));
        let path = self.directory.renounced();
        if let Err(error) = self.directory.replace_file(&path, RENOUNCED_MAGIC, why.as_bytes()) {
            tracing::error!(%error, "cannot note that this store may not vote; its peers will say so again");
        }
    }
}
