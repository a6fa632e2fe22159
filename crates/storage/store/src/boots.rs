//! Which boots peers were heard in, and that this store is known to have lost something.
//!
//! A node whose disk was put back to an earlier state (a restored snapshot) has less than it acknowledged, and does not
//! know it. Its peers do: they remember in which boot of which incarnation they last heard it. See `Standing` in the node.
//!
//! Two small files, replaced as a whole (see [`crate::directory`]): `boots` with the peers' boots, and `renounced`, which
//! exists once this store is known to have lost what it acknowledged, and says why. It keeps the store from voting in every
//! later process, too.

use std::collections::BTreeMap;

use borealis_types::NodeId;
use borealis_wire::Boot;

use crate::StoreError;
use crate::directory::{Directory, decode, encode};

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

/// Replaces what is remembered of the peers' boots.
pub(crate) fn write_peer_boots(directory: &Directory, boots: &PeerBoots) -> Result<(), StoreError> {
    directory.replace_file(&directory.boots(), BOOTS_MAGIC, &encode(boots))
}

/// Notes why the store may not vote from here on.
pub(crate) fn write_renounced(directory: &Directory, why: &str) -> Result<(), StoreError> {
    directory.replace_file(&directory.renounced(), RENOUNCED_MAGIC, why.as_bytes())
}
