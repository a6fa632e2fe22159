//! One round of questions: to every node, all at the same time.

use std::collections::BTreeMap;

use borealis_controller::catalog::records::{Fleet, NodeRecord, NodeState};
use borealis_types::membership::MembershipState;
use borealis_types::{GroupId, NodeId, VolumeId};
use borealis_wire::{NodeStatus, Reply, Request, Whereabouts};

use crate::nodes::{Addressee, Nodes};

/// What a node said of one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its state.
    pub status: NodeStatus,
    /// What it stores of the memberships of its groups.
    pub memberships: BTreeMap<GroupId, MembershipState>,
}

/// What every node said that answered.
pub type Answers = BTreeMap<(NodeId, VolumeId), Answer>;

/// Asks every node of the fleet that is not removed. It takes as long as the slowest of them may.
#[must_use]
pub fn ask_everyone(nodes: &dyn Nodes, fleet: &Fleet) -> Answers {
    let volumes: Vec<VolumeId> = fleet.volumes.keys().copied().collect();
    let asked = fleet.nodes.values().filter(|record| record.state != NodeState::Removed);
    std::thread::scope(|scope| {
        let volumes = &volumes;
        let questions: Vec<_> = asked
            .filter_map(|record| {
                let thread = std::thread::Builder::new().name(format!("ask-{}", record.node));
                // One that cannot be asked for want of a thread has not answered.
                thread.spawn_scoped(scope, move || ask_node(nodes, record, volumes)).ok()
            })
            .collect();
        questions.into_iter().flat_map(|question| question.join().expect("asking does not panic")).collect()
    })
}

/// A node belongs to one volume, and refuses those who mean another.
fn ask_node(nodes: &dyn Nodes, record: &NodeRecord, volumes: &[VolumeId]) -> Answers {
    let ask = |&volume: &VolumeId| {
        let addressee = Addressee { volume, node: record.node, address: record.address.clone() };
        let Ok(Reply::Status(status)) = nodes.ask(&addressee, &Request::Status) else { return None };
        let memberships = match nodes.ask(&addressee, &Request::Memberships) {
            Ok(Reply::Memberships { states, .. }) => states.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        Some(((record.node, volume), Answer { status, memberships }))
    };
    volumes.iter().find_map(ask).into_iter().collect()
}

/// Where the fleet's nodes are to be found, as messages say it.
#[must_use]
pub fn whereabouts(fleet: &Fleet) -> Vec<Whereabouts> {
    let nodes = fleet.nodes.values().filter(|record| record.state != NodeState::Removed);
    let whereabouts = |record: &NodeRecord| Whereabouts {
        node: record.node,
        zone: record.zone.clone(),
        address: record.address.clone(),
    };
    nodes.map(whereabouts).collect()
}
