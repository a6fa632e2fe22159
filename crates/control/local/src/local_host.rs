//! What the machine of a local cluster knows and does for the controller: which nodes there are, whose folder is gone, what
//! writers say, and new node processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use borealis_conductor::{Host, Witness};
use borealis_controller::catalog::Change;
use borealis_controller::catalog::records::{
    Fleet, InstanceRecord, NodeRecord, NodeState, Record, Settings, VolumeRecord,
};
use borealis_types::{AvailabilityZone, InstanceId, NodeId, VolumeId};

use crate::catalog::{Catalog, NodeEntry};
use crate::cluster::Cluster;
use crate::driver_socket::ask_driver;
use crate::supervision::{Ended, Restarts};

/// The machine that all parts of a cluster are on.
#[derive(Debug)]
pub struct LocalHost {
    directory: PathBuf,
}

impl LocalHost {
    /// For the cluster in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> LocalHost {
        LocalHost { directory: directory.to_path_buf() }
    }

    fn open(&self) -> Result<Cluster, String> {
        Cluster::open(&self.directory).map_err(|error| format!("{error:#}"))
    }

    fn open_locked(&self) -> Result<(Cluster, crate::catalog::CatalogLock), String> {
        Cluster::open_locked(&self.directory).map_err(|error| format!("{error:#}"))
    }

    /// Nodes that the catalog says are removed, and that are still here: whoever removed them was interrupted.
    fn finish_retiring(&self, cluster: &Cluster, fleet: &Fleet) -> Result<(), String> {
        let is_left = |node: &NodeEntry| {
            let is_removed =
                fleet.nodes.get(&node.id).is_some_and(|record| record.state == NodeState::Removed);
            let runs = cluster.node_process(node.id).or_else(|| cluster.stopping_node(node.id)).is_some();
            is_removed && (runs || cluster.store_is_gone(node.id))
        };
        for node in cluster.catalog.nodes.iter().filter(|node| is_left(node)) {
            let (mut cluster, _lock) = self.open_locked()?;
            cluster.retire_node(node.id).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }

    /// Starts nodes that were made and are in no record yet: whoever made them was interrupted.
    fn start_new(&self, cluster: &Cluster, fleet: &Fleet) -> Result<(), String> {
        // While nothing runs, nothing is to be started.
        if !cluster.anything_is_wanted() || fleet.nodes.is_empty() {
            return Ok(());
        }
        let is_new = |node: &&NodeEntry| {
            !fleet.nodes.contains_key(&node.id) && !cluster.node_process_file(node.id).exists()
        };
        for node in cluster.catalog.nodes.iter().filter(is_new) {
            let (cluster, _lock) = self.open_locked()?;
            cluster.spawn_node(node.id).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }
}

/// What `cluster.json` says of a node, as the controller's catalog has it.
pub(crate) fn node_record(cluster: &Cluster, node: &NodeEntry, known: Option<&NodeRecord>) -> NodeRecord {
    NodeRecord {
        node: node.id,
        zone: node.zone.clone(),
        address: cluster.endpoint(node.id).to_string(),
        incarnation: node.incarnation.clone(),
        state: known.map_or(NodeState::Active, |known| known.state),
    }
}

/// What of `cluster.json` the controller's catalog lacks, or has as it was. Memberships are left to the controller, who notes
/// what it sees: where none is noted, it is known that nobody knows.
#[must_use]
pub fn missing_records(cluster: &Cluster, fleet: &Fleet) -> Vec<Change> {
    let volume = cluster.catalog.volume_id();
    let mut missing = Vec::new();
    if fleet.volumes.is_empty() && fleet.settings == Settings::default() {
        missing.push(Settings::local().put());
    }
    let record = VolumeRecord {
        volume,
        postgres_version: cluster.catalog.postgres_version,
        placement: cluster.catalog.protection_groups,
    };
    if fleet.volumes.get(&volume) != Some(&record) {
        missing.push(record.put());
    }
    for node in &cluster.catalog.nodes {
        let known = fleet.nodes.get(&node.id);
        let record = node_record(cluster, node, known);
        if known != Some(&record) {
            missing.push(record.put());
        }
    }
    for instance in &cluster.catalog.instances {
        let address = cluster.instance_directory(instance.id).display().to_string();
        let record = InstanceRecord { volume, instance: instance.id, address };
        if fleet.instances.get(&(volume, instance.id)) != Some(&record) {
            missing.push(record.put());
        }
    }
    missing
}

/// Why a node of the cluster cannot come back, if it cannot.
#[must_use]
pub fn lost(cluster: &Cluster, node: NodeId) -> Option<String> {
    if cluster.node(node).is_err() {
        return Some("it is no node of this cluster any more".to_owned());
    }
    if cluster.store_is_gone(node) {
        return Some(format!("its store in {} is gone", cluster.node_directory(node).display()));
    }
    let folder = cluster.node_directory(node);
    let restarts = Restarts::load(&folder).filter(|restarts| restarts.given_up)?;
    // One that somebody stopped is only away.
    let was_stopped = Ended::load(&folder).is_some_and(|ended| ended.is_final);
    let runs = cluster.node_process(node).is_some();
    (!runs && !was_stopped).then(|| format!("it cannot be started any more: {}", restarts.sentence()))
}

/// Node processes that are to run and have not answered, of nodes that host nothing, by zone.
#[must_use]
pub fn starting(
    cluster: &Cluster,
    fleet: &Fleet,
    answered: &BTreeSet<NodeId>,
) -> BTreeMap<AvailabilityZone, usize> {
    let mut starting = BTreeMap::new();
    let hosts_something = |node| fleet.memberships.values().any(|record| record.membership.contains(node));
    for record in fleet.nodes.values().filter(|record| record.state == NodeState::Active) {
        let node = record.node;
        let is_wanted = cluster.node_process_file(node).exists() && lost(cluster, node).is_none();
        if is_wanted && !answered.contains(&node) && !hosts_something(node) {
            *starting.entry(record.zone.clone()).or_default() += 1;
        }
    }
    starting
}

/// What a driver's answer to `status` says of the nodes; `None` unless its server runs.
#[must_use]
pub fn witness(volume: VolumeId, instance: InstanceId, status: &serde_json::Value) -> Option<Witness> {
    if status["state"] != "running" {
        return None;
    }
    let node = |value: &serde_json::Value| {
        let number = u16::try_from(value["node"].as_u64()?).ok()?;
        Some((NodeId(number), value["heard_ms"].as_u64()?))
    };
    let heard_ms_ago = status["nodes"].as_array()?.iter().filter_map(node).collect();
    Some(Witness { volume, instance, heard_ms_ago })
}

/// Asks the drivers that can be asked from here: those whose folder, the record's address, is on this machine.
#[must_use]
pub fn ask_witnesses(fleet: &Fleet) -> Vec<Witness> {
    let ask = |record: &InstanceRecord| {
        witness(record.volume, record.instance, &ask_driver(Path::new(&record.address))?)
    };
    fleet.instances.values().filter_map(ask).collect()
}

impl Host for LocalHost {
    fn may_act(&mut self) -> bool {
        !Catalog::is_locked(&self.directory)
    }

    fn news(&mut self, fleet: &Fleet) -> Result<Vec<Change>, String> {
        let cluster = self.open()?;
        self.finish_retiring(&cluster, fleet)?;
        self.start_new(&cluster, fleet)?;
        Ok(missing_records(&self.open()?, fleet))
    }

    fn witnesses(&mut self, fleet: &Fleet) -> Vec<Witness> {
        ask_witnesses(fleet)
    }

    fn lost(&mut self, node: &NodeRecord) -> Option<String> {
        lost(&self.open().ok()?, node.node)
    }

    fn starting(&mut self, fleet: &Fleet, answered: &BTreeSet<NodeId>) -> BTreeMap<AvailabilityZone, usize> {
        self.open().map_or_else(|_| BTreeMap::new(), |cluster| starting(&cluster, fleet, answered))
    }

    fn start_node(&mut self, zone: &AvailabilityZone) -> Result<NodeRecord, String> {
        let (mut cluster, _lock) = self.open_locked()?;
        let node = cluster.add_node(zone).map_err(|error| format!("{error:#}"))?;
        cluster.spawn_node(node).map_err(|error| format!("{error:#}"))?;
        let entry = cluster.node(node).map_err(|error| format!("{error:#}"))?;
        Ok(node_record(&cluster, entry, None))
    }

    fn retire(&mut self, node: NodeId) -> Result<(), String> {
        let (mut cluster, _lock) = self.open_locked()?;
        cluster.retire_node(node).map_err(|error| format!("{error:#}"))
    }
}

/// A host that has no nodes of the fleet, and perhaps an instance.
#[derive(Clone, Copy, Debug)]
pub struct RemoteHost;

impl Host for RemoteHost {
    fn witnesses(&mut self, fleet: &Fleet) -> Vec<Witness> {
        ask_witnesses(fleet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_serves_says_whom_it_hears() {
        let mut status = serde_json::json!({"state": "running", "nodes": [
            {"node": 1, "heard_ms": 20, "connected": true},
            {"node": 2, "heard_ms": 61_000, "connected": false},
            {"node": "nonsense", "heard_ms": 3},
        ]});
        let said = witness(VolumeId(7), InstanceId(1), &status).expect("it runs");
        assert_eq!(said.heard_ms_ago, BTreeMap::from([(NodeId(1), 20), (NodeId(2), 61_000)]));
        status["state"] = "recovering".into();
        assert_eq!(witness(VolumeId(7), InstanceId(1), &status), None);
    }
}
