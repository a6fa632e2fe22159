//! What a node is told about itself and its peers: the file `node.json` in its folder.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use borealis_types::{AvailabilityZone, GroupId, NodeId, Placement, PostgresVersion, VolumeId};
use serde::{Deserialize, Serialize};

/// The file's name inside the node's folder.
pub const CONFIG_FILE_NAME: &str = "node.json";
/// The store's folder inside the node's folder.
pub const STORE_FOLDER_NAME: &str = "store";
/// The version of the file this build writes and reads.
const CONFIG_FORMAT: u32 = 1;

/// Another node of the volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Its number.
    pub node: NodeId,
    /// Its zone.
    pub zone: AvailabilityZone,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Which nodes have a segment of a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupMembers {
    /// The group.
    pub group: GroupId,
    /// Its six nodes.
    pub nodes: Vec<NodeId>,
}

/// A node's configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Version of this file; [`NodeConfig::load`] refuses others.
    pub format: u32,
    /// The volume it serves.
    #[serde(with = "hexadecimal_volume")]
    pub volume: VolumeId,
    /// Its number in the volume.
    pub node: NodeId,
    /// Its availability zone.
    pub zone: AvailabilityZone,
    /// A random number made with the store; a folder that lost its data and was made anew has another one, so
    /// that an empty disk cannot vote under an old identity.
    #[serde(with = "hexadecimal")]
    pub incarnation: u128,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Every other node of the volume.
    pub peers: Vec<PeerConfig>,
    /// Which nodes have which group, this one included.
    pub groups: Vec<GroupMembers>,
    /// How many groups the volume has, and so which page is in which.
    pub placement: Placement,
    /// Which PostgreSQL writes the volume.
    pub postgres_version: PostgresVersion,
    /// Memory for indexes and caches of the store.
    #[serde(default = "default_memory_limit_bytes")]
    pub memory_limit_bytes: u64,
    /// Redo log kept for peers that are behind; one that is further behind has to be rebuilt.
    #[serde(default = "default_log_retention_bytes")]
    pub log_retention_bytes: u64,
    /// Started in the background: an interrupt from a terminal (SIGINT) is not meant for it.
    #[serde(default)]
    pub detached: bool,
    /// The node's folder. Not in the file: it is where the file is.
    #[serde(skip)]
    pub directory: PathBuf,
}

fn default_memory_limit_bytes() -> u64 {
    512 << 20
}

fn default_log_retention_bytes() -> u64 {
    2 << 30
}

impl NodeConfig {
    /// A configuration with the default limits, to be completed with `peers` and `groups`.
    #[must_use]
    pub fn new(
        directory: PathBuf,
        volume: VolumeId,
        node: NodeId,
        zone: AvailabilityZone,
        incarnation: u128,
        listen: SocketAddr,
        placement: Placement,
    ) -> NodeConfig {
        NodeConfig {
            format: CONFIG_FORMAT,
            volume,
            node,
            zone,
            incarnation,
            listen,
            peers: Vec::new(),
            groups: Vec::new(),
            placement,
            postgres_version: PostgresVersion::V15,
            memory_limit_bytes: default_memory_limit_bytes(),
            log_retention_bytes: default_log_retention_bytes(),
            detached: false,
            directory,
        }
    }

    /// Reads and checks a configuration file; the node's folder is the one the file is in.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON of the right shape, or contradicts itself.
    pub fn load(path: &Path) -> anyhow::Result<NodeConfig> {
        let text =
            fs::read(path).with_context(|| format!("cannot read node configuration {}", path.display()))?;
        let mut config: NodeConfig = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a node configuration", path.display()))?;
        config.directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
        config.validate().with_context(|| format!("node configuration {} is wrong", path.display()))?;
        Ok(config)
    }

    /// Writes the file into the node's folder, whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(CONFIG_FILE_NAME);
        let temporary = self.directory.join(format!("{CONFIG_FILE_NAME}.new"));
        let mut text = serde_json::to_vec_pretty(self).context("a node configuration always encodes")?;
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().with_context(|| format!("cannot write node configuration {}", path.display()))?;
        Ok(path)
    }

    /// Where the store is.
    #[must_use]
    pub fn store_directory(&self) -> PathBuf {
        self.directory.join(STORE_FOLDER_NAME)
    }

    /// The groups this node has a segment of, in group order.
    #[must_use]
    pub fn own_groups(&self) -> Vec<GroupId> {
        let mut own: Vec<GroupId> =
            self.groups.iter().filter(|g| g.nodes.contains(&self.node)).map(|g| g.group).collect();
        own.sort_unstable();
        own
    }

    /// Whether `node` has a segment of `group`.
    #[must_use]
    pub fn is_member(&self, node: NodeId, group: GroupId) -> bool {
        self.groups.iter().any(|members| members.group == group && members.nodes.contains(&node))
    }

    /// Checks that the parts agree.
    ///
    /// # Errors
    /// Names the first contradiction.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.format == CONFIG_FORMAT,
            "it has format {}, this build reads {CONFIG_FORMAT}; run the version of Borealis that wrote it",
            self.format
        );
        anyhow::ensure!(
            !self.peers.iter().any(|peer| peer.node == self.node),
            "node {} is listed among its own peers",
            self.node
        );
        anyhow::ensure!(!self.own_groups().is_empty(), "node {} is a member of no group", self.node);
        for (index, members) in self.groups.iter().enumerate() {
            anyhow::ensure!(
                members.group.0 < self.placement.group_count(),
                "group {} is listed, but the volume has {} groups",
                members.group,
                self.placement.group_count()
            );
            anyhow::ensure!(
                !self.groups.iter().skip(index + 1).any(|other| other.group == members.group),
                "group {} is listed twice",
                members.group
            );
            for node in &members.nodes {
                anyhow::ensure!(
                    *node == self.node || self.peers.iter().any(|peer| peer.node == *node),
                    "group {} has node {node}, which is not among the peers",
                    members.group
                );
            }
        }
        Ok(())
    }
}

/// JSON has no 128-bit numbers that every tool reads, so they are hexadecimal text.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(|_| D::Error::custom("expected 32 hexadecimal digits"))
    }
}

mod hexadecimal_volume {
    use borealis_types::VolumeId;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(volume: &VolumeId, serializer: S) -> Result<S::Ok, S::Error> {
        super::hexadecimal::serialize(&volume.0, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VolumeId, D::Error> {
        super::hexadecimal::deserialize(deserializer).map(VolumeId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> NodeConfig {
        let mut config = NodeConfig::new(
            directory.to_owned(),
            VolumeId(0xFEED_0000_0000_0000_0000_0000_0000_0001),
            NodeId(2),
            AvailabilityZone("az1".into()),
            u128::MAX,
            "127.0.0.1:7002".parse().unwrap(),
            Placement::new(2).unwrap(),
        );
        config.peers.push(PeerConfig {
            node: NodeId(1),
            zone: AvailabilityZone("az1".into()),
            address: "127.0.0.1:7001".parse().unwrap(),
        });
        config.groups = (0..2)
            .map(|group| GroupMembers { group: GroupId(group), nodes: vec![NodeId(1), NodeId(2)] })
            .collect();
        config
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let path = config.save().unwrap();
        assert_eq!(NodeConfig::load(&path).unwrap(), config);
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let good = config(directory.path());
        let refused = |expected: &str, break_it: &dyn Fn(&mut NodeConfig)| {
            let mut config = good.clone();
            break_it(&mut config);
            let path = config.save().unwrap();
            let message = format!("{:#}", NodeConfig::load(&path).unwrap_err());
            assert!(message.contains(expected), "{message}");
        };
        refused("format 9", &|c| c.format = 9);
        refused("own peers", &|c| c.peers[0].node = NodeId(2));
        refused("member of no group", &|c| c.groups.iter_mut().for_each(|g| g.nodes.retain(|n| n.0 != 2)));
        refused("listed twice", &|c| c.groups[1].group = GroupId(0));
        refused("not among the peers", &|c| c.groups[1].nodes.push(NodeId(6)));
    }
}
