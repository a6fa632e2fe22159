//! Asking the members who the members are, for whoever waits for the answer: tools, controllers, and instances that start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use borealis_spec::NodeAddress;
use borealis_types::membership::GroupMembership;
use borealis_types::{GroupId, NodeId, VolumeId};
use borealis_wire::Caller;

use super::Memberships;
use crate::blocking::{ClientError, NodeClient, Timeouts, ToldMemberships};
use crate::tls::{Credentials, Route};

/// Nodes that are asked at once.
const ASKED_AT_ONCE: usize = 16;
/// Nodes that are asked at most: as many as a volume can have. Somebody may name nodes without end.
const ASKED_MAX: usize = borealis_spec::instance::NODES_MAX;

/// What [`learn`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Learned {
    /// Of each group that was known the newest membership that enough members have: the known one, if there is no other.
    pub memberships: BTreeMap<GroupId, GroupMembership>,
    /// The likeliest address of every member of those, as far as one is known, in the order of their numbers.
    pub nodes: Vec<NodeAddress>,
    /// Members that did not answer, and why. What they would have said is missing in the rest.
    pub silent: BTreeMap<NodeId, String>,
}

/// Asks the members of groups who the members are, and follows what is believed until nothing newer is found.
///
/// `known` says of every group of interest a membership, of any age: configuration, a catalog, or the answer before. The
/// members of those are asked, then those that they name. Of `addresses` only a hint is taken, like of what nodes say.
///
/// It waits for as long as the slowest node takes, at most `timeouts` for each of the rounds, of which there is one for
/// each change of members that nobody of those asked before has heard of. Nodes that do not answer are no error: what
/// the others say is believed by the same rule as everywhere ([`borealis_quorum::membership::credible_membership`]), and
/// a change that nobody reachable has heard of is not found.
#[must_use]
pub fn learn(
    known: &BTreeMap<GroupId, GroupMembership>,
    addresses: &[NodeAddress],
    credentials: Option<&Arc<Credentials>>,
    volume: VolumeId,
    timeouts: Timeouts,
) -> Learned {
    let mut memberships = Memberships::new(known.clone(), addresses.iter().cloned());
    let asker = Asker { credentials, volume, timeouts };
    let silent = asker.follow(&mut memberships);
    Learned { nodes: memberships.nodes(), memberships: memberships.groups().clone(), silent }
}

impl Memberships {
    /// Asks as [`learn`] does, from what is known here; what is found is known afterwards. Returns the groups whose members are
    /// others now.
    pub fn ask(
        &mut self,
        credentials: Option<&Arc<Credentials>>,
        volume: VolumeId,
        timeouts: Timeouts,
    ) -> Vec<GroupId> {
        let before = self.groups().clone();
        Asker { credentials, volume, timeouts }.follow(self);
        let is_new =
            |(group, membership): &(&GroupId, &GroupMembership)| before.get(group) != Some(membership);
        self.groups().iter().filter(is_new).map(|(&group, _)| group).collect()
    }
}

struct Asker<'a> {
    credentials: Option<&'a Arc<Credentials>>,
    volume: VolumeId,
    timeouts: Timeouts,
}

impl Asker<'_> {
    /// Asks members and those that they name, each once, until there is nobody new. Returns the members that said nothing.
    fn follow(&self, memberships: &mut Memberships) -> BTreeMap<NodeId, String> {
        let mut asked = BTreeSet::new();
        let mut silent = BTreeMap::new();
        loop {
            // Who is believed to be a member before who is only said to be one.
            let is_new = |node: &NodeId| !asked.contains(node);
            let mut round: Vec<NodeId> = memberships.members().into_iter().filter(is_new).collect();
            if round.is_empty() {
                round = memberships.claimed().into_iter().filter(is_new).collect();
            }
            round.truncate(ASKED_MAX - asked.len());
            if round.is_empty() {
                break;
            }
            asked.extend(round.iter().copied());
            for (node, said) in self.ask_all(memberships, &round) {
                match said {
                    Ok((states, nodes)) => drop(memberships.take(node, &states, &nodes)),
                    Err(why) => drop(silent.insert(node, why)),
                }
            }
        }
        let members = memberships.members();
        silent.retain(|node, _| members.contains(node));
        silent
    }

    /// What each of these nodes says, or why it says nothing.
    fn ask_all(
        &self,
        memberships: &Memberships,
        nodes: &[NodeId],
    ) -> BTreeMap<NodeId, Result<ToldMemberships, String>> {
        let said = Mutex::new(BTreeMap::new());
        let put = |node, word| {
            said.lock().unwrap_or_else(PoisonError::into_inner).insert(node, word);
        };
        for some in nodes.chunks(ASKED_AT_ONCE) {
            std::thread::scope(|scope| {
                for &node in some {
                    let ask = move || put(node, self.ask(memberships, node));
                    let name = format!("ask-{node}");
                    if let Err(error) = std::thread::Builder::new().name(name).spawn_scoped(scope, ask) {
                        put(node, Err(format!("a thread to ask it cannot be started: {error}")));
                    }
                }
            });
        }
        said.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one node, at all addresses that it may have.
    fn ask(&self, memberships: &Memberships, node: NodeId) -> Result<ToldMemberships, String> {
        let mut failure = "nobody has said where it is".to_owned();
        for address in memberships.addresses().all(node) {
            match self.ask_at(address) {
                Ok(word) => return Ok(word),
                Err(error) => failure = error.to_string(),
            }
        }
        Err(failure)
    }

    fn ask_at(&self, address: &NodeAddress) -> Result<ToldMemberships, ClientError> {
        let route = Route::new(&address.address, self.credentials);
        NodeClient::connect(route, self.volume, address.node, Caller::Client, self.timeouts)?.memberships()
    }
}

#[cfg(test)]
mod tests;
