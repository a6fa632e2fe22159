//! What a node is told about itself and its peers: the file `node.json` in its folder.

use std::path::PathBuf;

use borealis_types::{AvailabilityZone, GroupId, NodeId, Placement, PostgresVersion, VolumeId};
use serde::{Deserialize, Serialize};

use crate::identity::require_files;
use crate::{Contradiction, Endpoint, Membership, MetricsAddress, NodeAddress, TlsFiles, require};

/// The file's name inside the node's folder.
pub const CONFIG_FILE_NAME: &str = "node.json";
/// The store's folder inside the node's folder.
pub const STORE_FOLDER_NAME: &str = "store";
/// The version of the file this build writes and reads.
const FORMAT: u32 = 1;

/// Everything a node is told, as `node.json` holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Version of this file; [`NodeConfig::validate`] refuses others.
    pub format: u32,
    /// The volume it serves; callers that mean another are refused.
    #[serde(with = "hexadecimal_volume")]
    pub volume: VolumeId,
    /// Its number in the volume.
    pub node: NodeId,
    /// Its availability zone; two nodes of a group share one.
    pub zone: AvailabilityZone,
    /// A random number made with the store; a folder that lost its data and was made anew has another one, so
    /// that an empty disk cannot vote under an old identity.
    #[serde(with = "hexadecimal")]
    pub incarnation: u128,
    /// Where it listens.
    pub listen: Endpoint,
    /// Its certificate, if it or a peer is spoken to over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// The other nodes of the volume, as far as they are known from the beginning.
    pub peers: Vec<NodeAddress>,
    /// Which nodes have which group from the beginning. The segments store what follows (`borealis_quorum::membership`);
    /// this node is in none while it waits to be given a segment.
    pub groups: Membership,
    /// How many groups the volume has, and so which page is in which.
    pub placement: Placement,
    /// Which PostgreSQL writes the volume.
    pub postgres_version: PostgresVersion,
    /// Memory for indexes and caches of the store.
    #[serde(default = "default_memory_limit_bytes")]
    pub memory_limit_bytes: u64,
    /// Redo log kept for peers that are behind; one that is further behind takes pages instead.
    #[serde(default = "default_log_retention_bytes")]
    pub log_retention_bytes: u64,
    /// How fast a segment that no peer's log continues is refilled, in bytes of pages that are compared or brought in a
    /// second; zero for as fast as it goes. It takes the peers' disks and processors.
    #[serde(default = "default_refill_bytes_per_second")]
    pub refill_bytes_per_second: u64,
    /// Below this much free space on its file system the node takes no redo; absent for 1 GiB, or a twentieth of the file
    /// system if that is less; zero for no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_space_min_bytes: Option<u64>,
    /// Everything on disk is read once in this time, to find damage while peers have good copies.
    #[serde(default = "default_scrub_period_seconds")]
    pub scrub_period_seconds: u64,
    /// Where it shows its metrics to Prometheus; absent for nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<MetricsAddress>,
    /// Where it uploads redo to; absent for nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupConfig>,
    /// Redo in the backup since a group's last snapshot that is little for any group, in bytes.
    #[serde(default = "default_backup_snapshot_bytes")]
    pub backup_snapshot_bytes: u64,
    /// How often what nobody can need any more is deleted from the backup, in seconds.
    #[serde(default = "default_backup_deletion_seconds")]
    pub backup_deletion_seconds: u64,
    /// Started in the background: an interrupt from a terminal (SIGINT) is not meant for it.
    #[serde(default)]
    pub detached: bool,
    /// The node's folder. Not in the file: it is where the file is.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// Where a node's backup is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupConfig {
    /// `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`. Credentials are never in it: they come from the
    /// node's environment.
    pub url: String,
    /// The file with the key that objects are encrypted with; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The command that prints that key, run by `sh -c`; absent for none. Not beside a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_command: Option<String>,
}

fn default_memory_limit_bytes() -> u64 {
    512 << 20
}

fn default_log_retention_bytes() -> u64 {
    2 << 30
}

fn default_refill_bytes_per_second() -> u64 {
    64 << 20
}

fn default_backup_snapshot_bytes() -> u64 {
    64 << 20
}

/// An hour.
fn default_backup_deletion_seconds() -> u64 {
    3600
}

/// A week.
fn default_scrub_period_seconds() -> u64 {
    7 * 24 * 3600
}

impl NodeConfig {
    /// A configuration with the default limits, to be completed with `peers`, `groups` and, if the volume is not of the
    /// newest version, `postgres_version`.
    #[must_use]
    pub fn new(
        directory: PathBuf,
        volume: VolumeId,
        node: NodeId,
        zone: AvailabilityZone,
        incarnation: u128,
        listen: Endpoint,
        placement: Placement,
    ) -> NodeConfig {
        NodeConfig {
            format: FORMAT,
            volume,
            node,
            zone,
            incarnation,
            listen,
            tls: None,
            peers: Vec::new(),
            groups: Membership::default(),
            placement,
            postgres_version: PostgresVersion::NEWEST,
            memory_limit_bytes: default_memory_limit_bytes(),
            log_retention_bytes: default_log_retention_bytes(),
            refill_bytes_per_second: default_refill_bytes_per_second(),
            free_space_min_bytes: None,
            scrub_period_seconds: default_scrub_period_seconds(),
            metrics_listen: None,
            backup: None,
            backup_snapshot_bytes: default_backup_snapshot_bytes(),
            backup_deletion_seconds: default_backup_deletion_seconds(),
            detached: false,
            directory,
        }
    }

    /// The folder with the node's log, pages and checkpoints.
    #[must_use]
    pub fn store_directory(&self) -> PathBuf {
        self.directory.join(STORE_FOLDER_NAME)
    }

    /// The file that this configuration is read from.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join(CONFIG_FILE_NAME)
    }

    /// The groups this node has a segment of, in group order.
    #[must_use]
    pub fn own_groups(&self) -> Vec<GroupId> {
        self.groups.groups_on(self.node).iter().collect()
    }

    /// Checks that the parts agree.
    ///
    /// # Errors
    /// Names the first contradiction.
    pub fn validate(&self) -> Result<(), Contradiction> {
        require!(
            self.format == FORMAT,
            "it has format {}, this build reads {FORMAT}; run the version of Borealis that wrote it",
            self.format
        );
        require!(
            !self.peers.iter().any(|peer| peer.node == self.node),
            "node {} is listed among its own peers",
            self.node
        );
        for (index, peer) in self.peers.iter().enumerate() {
            let again = self.peers.iter().skip(index + 1).any(|other| other.node == peer.node);
            require!(!again, "peer {} is listed twice", peer.node);
        }
        let has_two_keys = |backup: &BackupConfig| backup.key_file.is_some() && backup.key_command.is_some();
        require!(
            !self.backup.as_ref().is_some_and(has_two_keys),
            "the backup has a key_file and a key_command; choose one of the two"
        );
        let endpoints = self.peers.iter().map(|peer| &peer.address).chain([&self.listen]);
        require_files(self.tls.as_ref(), endpoints)?;
        self.groups.validate(self.placement, |node| {
            node == self.node || self.peers.iter().any(|peer| peer.node == node)
        })?;
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
    use crate::GroupMembers;

    fn config() -> NodeConfig {
        let mut config = NodeConfig::new(
            "somewhere".into(),
            VolumeId(0xFEED_0000_0000_0000_0000_0000_0000_0001),
            NodeId(2),
            AvailabilityZone("az1".into()),
            u128::MAX,
            "/somewhere/sockets/2".parse().expect("an address"),
            Placement::new(2).expect("2 groups"),
        );
        config.peers.push(NodeAddress {
            node: NodeId(1),
            zone: AvailabilityZone("az1".into()),
            address: "/somewhere/sockets/1".parse().expect("an address"),
        });
        config.groups = Membership::everyone_has_everything(config.placement, &[NodeId(1), NodeId(2)]);
        config
    }

    #[test]
    fn what_is_written_is_read_but_for_the_folder() {
        let text = serde_json::to_string(&config()).expect("plain data");
        assert!(text.contains("\"volume\":\"feed0000000000000000000000000001\""), "{text}");
        let read: NodeConfig = serde_json::from_str(&text).expect("the same build wrote it");
        assert_eq!(NodeConfig { directory: "somewhere".into(), ..read }, config());
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let refused = |expected: &str, break_it: &dyn Fn(&mut NodeConfig)| {
            let mut config = config();
            break_it(&mut config);
            let message = config.validate().expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        };
        assert_eq!(config().validate(), Ok(()));
        let mut spare = config();
        spare.groups = Membership::default();
        assert_eq!(spare.validate(), Ok(()), "a node may wait to be given a segment");
        let members = |group: u16, nodes: &[u16]| GroupMembers {
            group: GroupId(group),
            nodes: nodes.iter().copied().map(NodeId).collect(),
        };
        refused("format 9", &|c| c.format = 9);
        refused("own peers", &|c| c.peers[0].node = NodeId(2));
        refused("peer 1 is listed twice", &|c| c.peers.push(c.peers[0].clone()));
        refused("`tls` with the files of a certificate is missing", &|c| {
            c.peers[0].address = "tls:host1:7001".parse().expect("an address");
        });
        refused("tls:[::1]:7002 is spoken to over TLS", &|c| {
            c.listen = "tls:[::1]:7002".parse().expect("an address");
        });
        refused("listed twice", &|c| {
            c.groups = [members(0, &[1, 2]), members(0, &[2])].into_iter().collect()
        });
        refused("not among the peers", &|c| c.groups = [members(1, &[1, 2, 6])].into_iter().collect());
    }
}
