//! How nodes are asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use borealis_client::{ClientError, Credentials, Endpoint, NodeClient, Route, Timeouts};
use borealis_types::{NodeId, VolumeId};
use borealis_wire::{Caller, Reply, Request};

/// The most connections to one node that are kept for the next question.
const KEPT_PER_NODE: usize = 4;

/// Why a node gave no answer, in words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);

/// Whom a question is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Addressee {
    /// The volume that it is about.
    pub volume: VolumeId,
    /// The node.
    pub node: NodeId,
    /// Where it listens, as in its configuration.
    pub address: String,
}

/// Asks nodes. Calls come from several threads at once, and end within a bounded time.
pub trait Nodes: Send + Sync {
    /// Asks one thing.
    ///
    /// # Errors
    /// When the node is not there, is another one, refuses, or does not answer in time.
    fn ask(&self, addressee: &Addressee, request: &Request) -> Result<Reply, NoAnswer>;
}

/// Connections to nodes, which are kept as long as they are good.
#[derive(Debug)]
pub struct Connections {
    caller: Caller,
    credentials: Option<Arc<Credentials>>,
    timeouts: Timeouts,
    kept: Mutex<BTreeMap<Addressee, Vec<NodeClient>>>,
}

impl Connections {
    /// None yet. `credentials` are the caller's; `None` if every node listens on a socket of this machine.
    #[must_use]
    pub fn new(caller: Caller, credentials: Option<Arc<Credentials>>, timeouts: Timeouts) -> Connections {
        Connections { caller, credentials, timeouts, kept: Mutex::new(BTreeMap::new()) }
    }

    fn take(&self, addressee: &Addressee) -> Option<NodeClient> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_mut(addressee)?.pop()
    }

    fn keep(&self, addressee: &Addressee, client: NodeClient) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A node that listens elsewhere now is not spoken to where it was any more.
        kept.retain(|known, _| known.node != addressee.node || known == addressee);
        let clients = kept.entry(addressee.clone()).or_default();
        if clients.len() < KEPT_PER_NODE {
            clients.push(client);
        }
    }

    fn connect(&self, addressee: &Addressee) -> Result<NodeClient, NoAnswer> {
        let endpoint: Endpoint = addressee
            .address
            .parse()
            .map_err(|error| NoAnswer(format!("`{}`: {error}", addressee.address)))?;
        let route = Route::new(&endpoint, self.credentials.as_ref());
        NodeClient::connect(route, addressee.volume, addressee.node, self.caller, self.timeouts)
            .map_err(|error| NoAnswer(error.to_string()))
    }

    fn call(
        &self,
        addressee: &Addressee,
        mut client: NodeClient,
        request: &Request,
    ) -> Result<Reply, ClientError> {
        let answer = client.call(request);
        if !client.is_broken() {
            self.keep(addressee, client);
        }
        answer
    }
}

impl Nodes for Connections {
    fn ask(&self, addressee: &Addressee, request: &Request) -> Result<Reply, NoAnswer> {
        if let Some(client) = self.take(addressee) {
            match self.call(addressee, client, request) {
                // The node was started again since the last question.
                Err(ClientError::Closed { .. } | ClientError::Broken { .. }) => {
                    let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.remove(addressee);
                }
                other => return other.map_err(|error| NoAnswer(error.to_string())),
            }
        }
        let client = self.connect(addressee)?;
        self.call(addressee, client, request).map_err(|error| NoAnswer(error.to_string()))
    }
}
