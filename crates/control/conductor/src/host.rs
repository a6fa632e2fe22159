//! What only the host of some parts knows and can do.

use std::collections::{BTreeMap, BTreeSet};

use borealis_controller::catalog::Change;
use borealis_controller::catalog::records::{Fleet, NodeRecord};
use borealis_types::{AvailabilityZone, InstanceId, NodeId, VolumeId};

/// What the driver of a writer said of the nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Witness {
    /// The volume that it writes.
    pub volume: VolumeId,
    /// Which instance it is.
    pub instance: InstanceId,
    /// How many milliseconds ago it heard each node that has a segment.
    pub heard_ms_ago: BTreeMap<NodeId, u64>,
}

/// The place where a controller runs, as far as it can do more than ask nodes. Unless
/// said otherwise it has no part of the fleet.
pub trait Host: Send {
    /// Whether anything may be changed now: another command may be about to.
    fn may_act(&mut self) -> bool {
        true
    }

    /// What is known here and should stand in the catalog, each with what it is to be now.
    ///
    /// # Errors
    /// Says why it cannot be found out.
    fn news(&mut self, _fleet: &Fleet) -> Result<Vec<Change>, String> {
        Ok(Vec::new())
    }

    /// What writers say that can be asked from here.
    fn witnesses(&mut self, _fleet: &Fleet) -> Vec<Witness> {
        Vec::new()
    }

    /// Why it is of no use to wait for a node, if that is known here.
    fn lost(&mut self, _node: &NodeRecord) -> Option<String> {
        None
    }

    /// Node processes that were started here and have not answered yet, by zone, given those that did in this round.
    fn starting(
        &mut self,
        _fleet: &Fleet,
        _answered: &BTreeSet<NodeId>,
    ) -> BTreeMap<AvailabilityZone, usize> {
        BTreeMap::new()
    }

    /// Makes a node of the zone and starts its process.
    ///
    /// # Errors
    /// Says why it cannot.
    fn start_node(&mut self, zone: &AvailabilityZone) -> Result<NodeRecord, String> {
        Err(format!("nothing can be started in {} from here", zone.0))
    }

    /// Stops a node's process for good, if it runs here. It holds nothing.
    ///
    /// # Errors
    /// Says why it cannot.
    fn retire(&mut self, _node: NodeId) -> Result<(), String> {
        Ok(())
    }
}

/// A host that has no part of the fleet.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoHost;

impl Host for NoHost {}
