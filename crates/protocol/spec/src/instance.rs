//! What a driver is told, as the file `instance.json` holds it: the volume, its nodes, and the instance to run on it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use borealis_types::membership::GroupMembership;
use borealis_types::{
    GroupId, InstanceId, MAX_GROUPS, NodeId, Placement, PostgresVersion, SEGMENTS_PER_GROUP, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::identity::require_files;
use crate::{Contradiction, Membership, MetricsAddress, NodeAddress, TlsFiles, require};

/// The most nodes that a volume can have: one for each segment of the most groups.
pub const NODES_MAX: usize = SEGMENTS_PER_GROUP * MAX_GROUPS as usize;

/// Bounds and knobs of the driver. Every one has a default that fits a small machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// How far PostgreSQL may write log ahead of the durable point before its next log write waits (LAL).
    /// More than the largest record, which can only become durable when all of it is written.
    pub log_ahead_limit_bytes: u64,
    /// How much of that log the driver holds in its own memory at a time; the rest stays in the files.
    pub shipped_ahead_bytes: u64,
    /// Batches a node may have unacknowledged.
    pub batches_in_flight: usize,
    /// Send in rounds (see `ShipperLimits::in_rounds`).
    pub in_rounds: bool,
    /// The goal for a batch's size; one record may exceed it.
    pub batch_bytes: usize,
    /// Durable log kept for nodes that lag; a node further behind is left to its peers.
    pub retained_bytes: usize,
    /// Memory for pages fetched ahead.
    pub prefetch_bytes: usize,
    /// How much memory the local page cache should take at most; `None` for a share of what is free when the server
    /// starts. What must stay in it stays, even beyond.
    pub cache_limit_bytes: Option<u64>,
    /// How long after the last write the nodes are told the final durable point.
    pub quiet_ms: u64,
    /// A page request that no node answered for so long fails.
    pub read_timeout_ms: u64,
    /// How long a recovery waits for enough nodes before it gives up.
    pub recovery_timeout_ms: u64,
    /// How long an instance shows what it has cached without a read quorum's word that no newer writer was promised
    /// anything: the most that its answers can be behind a successor's.
    pub lease_ms: u64,
    /// How long newer promises may take the write quorum away before the instance takes the volume over again, if no
    /// recovery of them finishes.
    pub outvoted_ms: u64,
    /// Spins of a waiting backend before it sleeps.
    pub spin: u32,
    /// Restarts of an instance that keeps failing, in a row, before the driver gives up.
    pub restarts_max: u32,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            log_ahead_limit_bytes: 96 << 20,
            shipped_ahead_bytes: 16 << 20,
            batches_in_flight: 1,
            in_rounds: false,
            batch_bytes: 512 << 10,
            retained_bytes: 8 << 20,
            prefetch_bytes: 16 << 20,
            cache_limit_bytes: None,
            quiet_ms: 20,
            read_timeout_ms: 30_000,
            recovery_timeout_ms: 10_000,
            lease_ms: 10_000,
            outvoted_ms: 5_000,
            spin: 0,
            restarts_max: 5,
        }
    }
}

/// Everything a driver needs, as `instance.json` holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriverConfig {
    /// The volume whose writer it is.
    pub volume: VolumeId,
    /// How its pages are placed.
    pub placement: Placement,
    /// The major version of PostgreSQL that writes it.
    pub version: PostgresVersion,
    /// Every storage node of the volume.
    pub nodes: Vec<NodeAddress>,
    /// Its certificate, if a node is spoken to over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Which nodes have which group, or had it when the volume was made.
    #[serde(default)]
    pub groups: Membership,
    /// Of groups whose members are others by now, the newest membership that is known. A group that is not listed has its first
    /// one, which `groups` says. All of it is a hint, of any age: the members say who the members are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub memberships: BTreeMap<GroupId, GroupMembership>,
    /// This instance's number, from 1.
    pub instance: InstanceId,
    /// Where its socket, log file and configuration are.
    pub instance_dir: PathBuf,
    /// A folder of this instance alone on a memory file system; emptied at each start.
    pub memory_dir: PathBuf,
    /// Folder with `postgres` and `initdb`.
    pub postgres_bin_dir: PathBuf,
    /// The shim library that is preloaded into `postgres`.
    pub shim_library: PathBuf,
    /// TCP port of the database on 127.0.0.1.
    pub port: u16,
    /// System user that `postgres` runs as; `None` means the driver's own.
    pub postgres_user: Option<String>,
    /// Settings of the user (`--pg-set`).
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Where its driver shows its metrics to Prometheus; absent for nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<MetricsAddress>,
    /// Bounds and knobs; what the file leaves out has its default.
    #[serde(default)]
    pub tuning: Tuning,
}

/// A driver's configuration that contradicts itself.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("the instance's configuration is unusable: {0}")]
pub struct UnusableInstance(Contradiction);

impl DriverConfig {
    /// Checks that the parts agree: every group of the placement has six members, and every member an address.
    ///
    /// # Errors
    /// Names the first contradiction.
    pub fn validate(&self) -> Result<(), UnusableInstance> {
        self.check().map_err(UnusableInstance)
    }

    fn check(&self) -> Result<(), Contradiction> {
        let count = self.nodes.len();
        require!((1..=NODES_MAX).contains(&count), "{count} nodes; a volume has 1 to {NODES_MAX}");
        for (index, node) in self.nodes.iter().enumerate() {
            let again = self.nodes.iter().skip(index + 1).any(|other| other.node == node.node);
            require!(!again, "node {} is listed twice", node.node);
        }
        require_files(self.tls.as_ref(), self.nodes.iter().map(|node| &node.address))?;
        self.groups.validate(self.placement, |_| true)?;
        let count = self.placement.group_count();
        for group in self.memberships.keys() {
            require!(group.0 < count, "group {group} has a membership, but the volume has {count} groups");
        }
        for (group, membership) in self.known_memberships()? {
            let has_address = |node: &NodeId| self.nodes.iter().any(|known| known.node == *node);
            let missing = membership.members().into_iter().find(|node| !has_address(node));
            if let Some(node) = missing {
                return Err(Contradiction(format!(
                    "group {group} has node {node}, which is not among the nodes"
                )));
            }
        }
        require!(self.tuning.batches_in_flight > 0, "batches_in_flight is 0; nothing could ever be sent");
        Ok(())
    }

    /// The newest known membership of every group of the volume.
    ///
    /// # Errors
    /// Names a group that has none.
    pub fn group_memberships(&self) -> Result<BTreeMap<GroupId, GroupMembership>, UnusableInstance> {
        self.known_memberships().map_err(UnusableInstance)
    }

    fn known_memberships(&self) -> Result<BTreeMap<GroupId, GroupMembership>, Contradiction> {
        let of_group = |group| match self.memberships.get(&group) {
            Some(membership) => Ok((group, membership.clone())),
            None => Ok((group, self.groups.created(group)?)),
        };
        self.placement.groups().map(of_group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::AvailabilityZone;
    use borealis_types::membership::{Replacement, Transition};

    fn config() -> DriverConfig {
        let placement = Placement::new(2).expect("2 groups");
        let nodes: Vec<NodeId> = (1..=6).map(NodeId).collect();
        let address = |node: &NodeId| NodeAddress {
            node: *node,
            zone: AvailabilityZone("az1".into()),
            address: "/somewhere/sockets/1".parse().expect("an address"),
        };
        DriverConfig {
            volume: VolumeId(1),
            placement,
            version: PostgresVersion::V15,
            nodes: nodes.iter().map(address).collect(),
            tls: None,
            groups: Membership::everyone_has_everything(placement, &nodes),
            memberships: BTreeMap::new(),
            instance: InstanceId(1),
            instance_dir: "instance".into(),
            memory_dir: "memory".into(),
            postgres_bin_dir: "bin".into(),
            shim_library: "shim".into(),
            port: 5432,
            postgres_user: None,
            settings: BTreeMap::new(),
            metrics_listen: Some("127.0.0.1:9187".parse().expect("a loopback address")),
            tuning: Tuning::default(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = serde_json::to_string(&config()).expect("plain data");
        assert_eq!(serde_json::from_str::<DriverConfig>(&text).expect("the same build wrote it"), config());
    }

    #[test]
    fn a_file_without_memberships_means_the_first_ones() {
        let mut config = config();
        let text = serde_json::to_string(&config).expect("plain data");
        assert!(!text.contains("memberships"), "{text}");
        let first = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
        let of_both = BTreeMap::from([(GroupId(0), first.clone()), (GroupId(1), first.clone())]);
        assert_eq!(config.group_memberships(), Ok(of_both));
        let replacement = Replacement { old: NodeId(6), new: NodeId(7) };
        let second = first.after(Transition::Begin(replacement)).expect("6 is a member");
        let address = NodeAddress { node: NodeId(7), ..config.nodes[5].clone() };
        config.nodes.push(address);
        config.memberships.insert(GroupId(1), second.clone());
        assert_eq!(config.validate(), Ok(()));
        let text = serde_json::to_string(&config).expect("plain data");
        let read: DriverConfig = serde_json::from_str(&text).expect("the same build wrote it");
        let of_both = BTreeMap::from([(GroupId(0), first), (GroupId(1), second)]);
        assert_eq!(read.group_memberships(), Ok(of_both));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let refused = |expected: &str, break_it: &dyn Fn(&mut DriverConfig)| {
            let mut config = config();
            break_it(&mut config);
            let message = config.validate().expect_err(expected).to_string();
            assert!(message.contains(expected) && message.contains("configuration is unusable"), "{message}");
        };
        assert_eq!(config().validate(), Ok(()));
        refused("0 nodes", &|c| c.nodes.clear());
        refused("385 nodes; a volume has 1 to 384", &|c| c.nodes = vec![c.nodes[0].clone(); 385]);
        refused("node 2 is listed twice", &|c| c.nodes[2].node = NodeId(2));
        refused("group 0 has node 6, which is not among the nodes", &|c| drop(c.nodes.pop()));
        refused("group 2 has a membership, but the volume has 2", &|c| {
            let membership = c.groups.created(GroupId(0)).expect("six nodes");
            c.memberships.insert(GroupId(2), membership);
        });
        refused("group 1 has node 9, which is not among the nodes", &|c| {
            let membership = GroupMembership::created([1, 2, 3, 4, 5, 9].map(NodeId)).expect("six nodes");
            c.memberships.insert(GroupId(1), membership);
        });
        refused("`tls` with the files of a certificate is missing", &|c| {
            c.nodes[3].address = "tls:host4:7004".parse().expect("an address");
        });
        refused("group 0 has 0 members", &|c| c.groups = Membership::default());
        refused("batches_in_flight", &|c| c.tuning.batches_in_flight = 0);
    }
}
