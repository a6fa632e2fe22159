//! What a driver is told: the volume, its nodes, and the instance to run on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use borealis_types::{
    AvailabilityZone, GroupId, GroupSet, InstanceId, NodeId, Placement, PostgresVersion, VolumeId,
};
use serde::{Deserialize, Serialize};

/// One storage node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its number.
    pub node: NodeId,
    /// Its zone.
    pub zone: AvailabilityZone,
    /// Where it listens.
    pub address: SocketAddr,
}

/// The six nodes of one protection group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupMembers {
    /// The group.
    pub group: GroupId,
    /// Its nodes.
    pub members: Vec<NodeId>,
}

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
            spin: 0,
            restarts_max: 5,
        }
    }
}

/// Everything a driver needs, as `instance.json` holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriverConfig {
    /// The volume.
    pub volume: VolumeId,
    /// How its pages are placed.
    pub placement: Placement,
    /// Whose redo it holds.
    pub version: PostgresVersion,
    /// Every storage node.
    pub nodes: Vec<NodeAddress>,
    /// Who holds which group.
    pub groups: Vec<GroupMembers>,
    /// This instance.
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
    /// Bounds and knobs.
    #[serde(default)]
    pub tuning: Tuning,
}

/// A configuration that contradicts itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the instance's configuration is unusable: {0}")]
pub struct ConfigError(String);

impl DriverConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When it cannot be read, is not JSON of the right shape, or contradicts itself.
    pub fn load(path: &Path) -> anyhow::Result<DriverConfig> {
        let text = std::fs::read(path)
            .with_context(|| format!("cannot read instance configuration {}", path.display()))?;
        let config: DriverConfig = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not an instance configuration", path.display()))?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration, if it is consistent: every group of the placement has members, and every member is
    /// a known node.
    ///
    /// # Errors
    /// [`ConfigError`] says what contradicts what.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |what: String| Err(ConfigError(what));
        if self.nodes.is_empty() || self.nodes.len() > 64 {
            return error(format!("{} nodes; a volume has 1 to 64", self.nodes.len()));
        }
        for group in self.placement.groups() {
            let count = self.groups.iter().filter(|g| g.group == group).count();
            if count != 1 {
                return error(format!("group {group} is listed {count} times"));
            }
        }
        for group in &self.groups {
            if group.group.0 >= self.placement.group_count() {
                return error(format!(
                    "group {} is beyond the volume's {}",
                    group.group,
                    self.placement.group_count()
                ));
            }
            if group.members.len() != borealis_types::SEGMENTS_PER_GROUP {
                return error(format!("group {} has {} members, not six", group.group, group.members.len()));
            }
            for member in &group.members {
                if !self.nodes.iter().any(|n| n.node == *member) {
                    return error(format!("group {} is on node {member}, which has no address", group.group));
                }
            }
        }
        if self.tuning.batches_in_flight == 0 {
            return error("batches_in_flight is 0; nothing could ever be sent".into());
        }
        Ok(())
    }

    /// The groups that have a segment on `node`.
    #[must_use]
    pub fn groups_on(&self, node: NodeId) -> GroupSet {
        self.groups
            .iter()
            .filter(|g| g.members.contains(&node))
            .fold(GroupSet::EMPTY, |set, g| set.with(g.group))
    }
}
