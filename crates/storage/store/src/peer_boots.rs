//! What a store remembers of its peers' boots, and what it does when they remember more of it than there is.

use std::sync::PoisonError;

use borealis_types::NodeId;
use borealis_wire::Boot;

use crate::boots::{write_peer_boots, write_renounced};
use crate::{Store, StoreError};

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
        write_peer_boots(&self.directory, &boots)
    }

    /// The store is known to have lost what it acknowledged: from here on it promises nothing, in this process and in every
    /// later one. It goes on serving reads of what it has.
    pub fn renounce(&self, why: &str) {
        self.poisoned(&StoreError::Poisoned(why.to_owned()));
        if let Err(error) = write_renounced(&self.directory, why) {
            tracing::error!(%error, "cannot note that this store may not vote; its peers will say so again");
        }
    }
}
