//! A fleet on many hosts as a person writes it down, and what each part of it is told.
//!
//! ```toml
//! name = "north"
//! groups = 16
//!
//! [[node]]
//! id = 1
//! zone = "az1"
//! host = "10.0.0.1"
//!
//! [[instance]]
//! id = 1
//! host = "10.0.1.1"
//!
//! [[controller]]
//! host = "10.0.2.1"
//! ```
//!
//! What is random is made once and kept ([`Chosen`]): planning again, after a host was added or a certificate is to be renewed,
//! gives the same volume and the same nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use borealis_spec::assignment::{AssignmentError, Host, assign};
use borealis_spec::{
    BackupConfig, DriverConfig, Endpoint, FleetName, Membership, MetricsAddress, NodeAddress, NodeConfig,
    TlsFiles, Tuning,
};
use borealis_types::{AvailabilityZone, InstanceId, NodeId, Placement, PostgresVersion, VolumeId};
use serde::{Deserialize, Serialize};

/// The folder of a part's certificate, beside its configuration.
const TLS_NAME: &str = "tls";
/// TCP port of a node, where nothing else is said.
const NODE_PORT: u16 = 7001;
/// TCP port of a database, where nothing else is said.
const DATABASE_PORT: u16 = 5432;

/// What is wrong with an inventory.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It is not TOML, or has other entries.
    #[error("{0}")]
    Malformed(#[from] toml::de::Error),
    /// It contradicts itself.
    #[error("{0}")]
    Contradiction(String),
    /// The nodes make no volume.
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    /// A part's configuration would be unusable.
    #[error("{part}: {reason}")]
    Unusable {
        /// Which part.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A fleet on many hosts.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Its name, which stands in every certificate.
    pub name: FleetName,
    /// How many protection groups its volume is striped over. They never change.
    #[serde(default = "default_groups")]
    pub groups: Placement,
    /// The folder on each host below which its parts have theirs.
    #[serde(default = "default_directory")]
    pub directory: PathBuf,
    /// The shim library on the hosts of instances.
    #[serde(default = "default_shim_library")]
    pub shim_library: PathBuf,
    /// Where the nodes back the volume up, `s3://BUCKET/PREFIX` (or `gs://`, `az://`) or a folder that all hosts share as `file:///FOLDER`;
    /// absent for nowhere.
    #[serde(default)]
    pub backup: Option<String>,
    /// The file on each node's host with the key that the backup is encrypted with; absent for none.
    #[serde(default)]
    pub backup_key: Option<PathBuf>,
    /// The command that prints that key on each node's host, run by `sh -c` as the node's user; absent for none.
    #[serde(default)]
    pub backup_key_command: Option<String>,
    /// The storage nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeLine>,
    /// The database instances: one runs at a time, and any of them takes the volume over.
    #[serde(rename = "instance", default)]
    pub instances: Vec<InstanceLine>,
    /// The controllers: one acts at a time.
    #[serde(rename = "controller", default)]
    pub controllers: Vec<ControllerLine>,
}

/// A storage node.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLine {
    /// Its number, which no other node of the fleet ever had.
    pub id: NodeId,
    /// The availability zone in which it stands.
    pub zone: AvailabilityZone,
    /// The name or address that others call it by.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_node_port")]
    pub port: u16,
    /// Where it shows its metrics; absent for nowhere.
    #[serde(default)]
    pub metrics: Option<MetricsAddress>,
}

/// A database instance.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceLine {
    /// Its number.
    pub id: InstanceId,
    /// Its host's name: the folder that it is given is named after it.
    pub host: String,
    /// TCP port of the database on 127.0.0.1.
    #[serde(default = "default_database_port")]
    pub port: u16,
    /// Folder with `postgres` and `initdb`; absent for where Debian puts the newest version.
    #[serde(default)]
    pub postgres_bin: Option<PathBuf>,
    /// System user that runs PostgreSQL when root starts the instance.
    #[serde(default = "default_postgres_user")]
    pub postgres_user: String,
    /// Folder on a memory file system.
    #[serde(default = "default_memory")]
    pub memory: PathBuf,
    /// Settings of PostgreSQL.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Where its driver shows its metrics; absent for nowhere.
    #[serde(default)]
    pub metrics: Option<MetricsAddress>,
}

/// A controller.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerLine {
    /// Its host's name.
    pub host: String,
    /// Where it shows its metrics; absent for nowhere.
    #[serde(default)]
    pub metrics: Option<MetricsAddress>,
}

fn default_groups() -> Placement {
    Placement::new(16).expect("16 groups are allowed")
}

fn default_directory() -> PathBuf {
    PathBuf::from("/var/lib/borealis")
}

fn default_shim_library() -> PathBuf {
    PathBuf::from("/usr/lib/borealis/libborealis_shim.so")
}

fn default_node_port() -> u16 {
    NODE_PORT
}

fn default_database_port() -> u16 {
    DATABASE_PORT
}

fn default_postgres_user() -> String {
    "postgres".to_owned()
}

fn default_memory() -> PathBuf {
    PathBuf::from("/dev/shm")
}

/// What is chosen once for a fleet: it stays whatever is added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// The volume.
    pub volume: VolumeId,
    /// How many groups it has.
    pub groups: Placement,
    /// The identity of each node's store, 32 hexadecimal digits.
    pub incarnations: BTreeMap<NodeId, String>,
    /// Which nodes host which group as the volume was created. What became of it since, the nodes know.
    pub created: Membership,
}

/// What the parts of a fleet are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// To be kept for the next time.
    pub chosen: Chosen,
    /// Where each node listens, in the order of the inventory.
    pub addresses: Vec<NodeAddress>,
    /// Every node's configuration, and the host that it is for.
    pub nodes: Vec<(String, NodeConfig)>,
    /// Every instance's configuration, and the host that it is for.
    pub instances: Vec<(String, DriverConfig)>,
}

impl Inventory {
    /// Reads what a person wrote.
    ///
    /// # Errors
    /// With the line that is wrong, or the first contradiction.
    pub fn parse(text: &str) -> Result<Inventory, InventoryError> {
        let inventory: Inventory = toml::from_str(text)?;
        inventory.check()?;
        Ok(inventory)
    }

    fn check(&self) -> Result<(), InventoryError> {
        let refuse = |what: String| Err(InventoryError::Contradiction(what));
        let (mut numbers, mut places) = (BTreeSet::new(), BTreeSet::new());
        for node in &self.nodes {
            if !numbers.insert(node.id) {
                return refuse(format!("node {} is listed twice", node.id));
            }
            if !places.insert((&node.host, node.port)) {
                return refuse(format!(
                    "two nodes listen on port {} of {}; give one another `port`",
                    node.port, node.host
                ));
            }
            is_host(&node.host)?;
        }
        let mut instances = BTreeSet::new();
        for instance in &self.instances {
            if !instances.insert(instance.id) {
                return refuse(format!("instance {} is listed twice", instance.id));
            }
            is_host(&instance.host)?;
        }
        self.controllers.iter().try_for_each(|controller| is_host(&controller.host))?;
        if !self.directory.is_absolute() || !self.shim_library.is_absolute() {
            return refuse("`directory` and `shim_library` are absolute paths on the hosts".to_owned());
        }
        Ok(())
    }

    /// What each part is told. `chosen`: of an earlier plan of this fleet. `random`: numbers for what is new.
    ///
    /// # Errors
    /// When the nodes make no volume, or the number of groups is another than before.
    pub fn plan(
        &self,
        chosen: Option<Chosen>,
        mut random: impl FnMut() -> u128,
    ) -> Result<Plan, InventoryError> {
        let mut chosen = match chosen {
            Some(chosen) if chosen.groups != self.groups => {
                let what = format!(
                    "the volume has {} groups, and they never change; the file says {}",
                    chosen.groups.group_count(),
                    self.groups.group_count()
                );
                return Err(InventoryError::Contradiction(what));
            }
            Some(chosen) => chosen,
            None => Chosen {
                volume: VolumeId(random()),
                groups: self.groups,
                incarnations: BTreeMap::new(),
                created: assign(self.groups, &self.hosts())?,
            },
        };
        for node in &self.nodes {
            chosen.incarnations.entry(node.id).or_insert_with(|| format!("{:032x}", random()));
        }
        let addresses = self.nodes.iter().map(address_of).collect::<Result<Vec<NodeAddress>, _>>()?;
        let nodes = self.nodes.iter().map(|node| {
            let config = self.node_config(node, &chosen, &addresses)?;
            Ok((node.host.clone(), config))
        });
        let nodes = nodes.collect::<Result<Vec<_>, InventoryError>>()?;
        let instances = self.instances.iter().map(|instance| {
            let config = self.driver_config(instance, &chosen, &addresses)?;
            Ok((instance.host.clone(), config))
        });
        let instances = instances.collect::<Result<Vec<_>, InventoryError>>()?;
        Ok(Plan { chosen, addresses, nodes, instances })
    }

    fn hosts(&self) -> Vec<Host> {
        let host = |node: &NodeLine| Host {
            node: node.id,
            zone: node.zone.clone(),
            used_bytes: 0,
            is_leaving: false,
        };
        self.nodes.iter().map(host).collect()
    }

    fn node_config(
        &self,
        node: &NodeLine,
        chosen: &Chosen,
        addresses: &[NodeAddress],
    ) -> Result<NodeConfig, InventoryError> {
        let unusable =
            |reason: String| InventoryError::Unusable { part: format!("node {}", node.id), reason };
        let incarnation = chosen.incarnations.get(&node.id).map(String::as_str).unwrap_or_default();
        let incarnation = u128::from_str_radix(incarnation, 16)
            .map_err(|_| unusable(format!("`{incarnation}` is no incarnation")))?;
        // On every address of its host; others call it by its name.
        let listen = format!("tls:0.0.0.0:{}", node.port);
        let listen = listen.parse().map_err(|error| unusable(format!("{error}")))?;
        let directory = self.directory.join(format!("node-{}", node.id));
        let mut config = NodeConfig::new(
            directory,
            chosen.volume,
            node.id,
            node.zone.clone(),
            incarnation,
            listen,
            chosen.groups,
        );
        config.tls = Some(TlsFiles::in_folder(Path::new(TLS_NAME)));
        config.peers = addresses.iter().filter(|peer| peer.node != node.id).cloned().collect();
        config.groups = chosen.created.clone();
        config.metrics_listen.clone_from(&node.metrics);
        if let Some(url) = &self.backup {
            config.backup = Some(BackupConfig {
                url: url.clone(),
                key_file: self.backup_key.clone(),
                key_command: self.backup_key_command.clone(),
            });
        }
        config.validate().map_err(|error| unusable(error.to_string()))?;
        Ok(config)
    }

    fn driver_config(
        &self,
        instance: &InstanceLine,
        chosen: &Chosen,
        addresses: &[NodeAddress],
    ) -> Result<DriverConfig, InventoryError> {
        let version = PostgresVersion::NEWEST;
        let debian = || PathBuf::from(format!("/usr/lib/postgresql/{}/bin", version.facts().number));
        let name = format!("borealis-{}-{}", chosen.volume, instance.id);
        let config = DriverConfig {
            volume: chosen.volume,
            placement: chosen.groups,
            version,
            nodes: addresses.to_vec(),
            tls: Some(TlsFiles::in_folder(Path::new(TLS_NAME))),
            groups: chosen.created.clone(),
            // Those that the volume was created with: the nodes tell of newer ones.
            memberships: BTreeMap::new(),
            instance: instance.id,
            instance_dir: self.directory.join(format!("instance-{}", instance.id)),
            memory_dir: instance.memory.join(name),
            postgres_bin_dir: instance.postgres_bin.clone().unwrap_or_else(debian),
            shim_library: self.shim_library.clone(),
            port: instance.port,
            postgres_user: Some(instance.postgres_user.clone()),
            settings: instance.settings.clone(),
            metrics_listen: instance.metrics.clone(),
            tuning: Tuning::default(),
        };
        config.validate().map_err(|error| InventoryError::Unusable {
            part: format!("instance {}", instance.id),
            reason: error.to_string(),
        })?;
        Ok(config)
    }
}

fn address_of(node: &NodeLine) -> Result<NodeAddress, InventoryError> {
    let host = match node.host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => node.host.clone(),
    };
    let address: Result<Endpoint, _> = format!("tls:{host}:{}", node.port).parse();
    let address = address.map_err(|error| InventoryError::Unusable {
        part: format!("node {}", node.id),
        reason: error.to_string(),
    })?;
    Ok(NodeAddress { node: node.id, zone: node.zone.clone(), address })
}

/// A host's name becomes a folder's name.
fn is_host(host: &str) -> Result<(), InventoryError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:_".contains(&byte);
    let is_name =
        !host.is_empty() && host.len() <= 253 && host.bytes().all(is_allowed) && !host.starts_with('.');
    if is_name {
        Ok(())
    } else {
        Err(InventoryError::Contradiction(format!("`{host}` is no name or address of a host")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nodes: u16) -> String {
        let mut text = "name = \"north\"\ngroups = 4\n".to_owned();
        for id in 1..=nodes {
            let zone = (id - 1) % 3 + 1;
            text += &format!("[[node]]\nid = {id}\nzone = \"az{zone}\"\nhost = \"10.0.0.{id}\"\n");
        }
        text + "[[instance]]\nid = 1\nhost = \"db1\"\n[[instance]]\nid = 2\nhost = \"db2\"\n[[controller]]\nhost = \"c1\"\n"
    }

    fn counting() -> impl FnMut() -> u128 {
        let mut last = 0;
        move || {
            last += 1;
            last
        }
    }

    #[test]
    fn each_part_is_told_what_it_needs() {
        let plan = Inventory::parse(&text(6)).expect("a fleet").plan(None, counting()).expect("planned");
        assert_eq!((plan.nodes.len(), plan.instances.len()), (6, 2));
        let (host, first) = &plan.nodes[0];
        assert_eq!((host.as_str(), first.listen.to_string().as_str()), ("10.0.0.1", "tls:0.0.0.0:7001"));
        assert_eq!(first.peers[0].address.to_string(), "tls:10.0.0.2:7001");
        assert!(plan.nodes.iter().all(|(_, config)| config.validate().is_ok() && config.peers.len() == 5));
        let (host, second) = &plan.instances[1];
        assert_eq!((host.as_str(), second.instance, second.nodes.len()), ("db2", InstanceId(2), 6));
        assert_eq!(second.volume, first.volume);
        assert_ne!(plan.instances[0].1.memory_dir, second.memory_dir);
    }

    #[test]
    fn planning_again_keeps_what_was_chosen() {
        let inventory = Inventory::parse(&text(6)).expect("a fleet");
        let first = inventory.plan(None, counting()).expect("planned");
        let mut other = || 99;
        assert_eq!(inventory.plan(Some(first.chosen.clone()), &mut other).expect("planned"), first);
        let grown = Inventory::parse(&text(7)).expect("a fleet");
        let grown = grown.plan(Some(first.chosen.clone()), &mut other).expect("planned");
        assert_eq!(grown.chosen.created, first.chosen.created, "a node that comes later hosts nothing yet");
        assert_eq!(grown.nodes[6].1.incarnation, 99);
        assert!(grown.nodes[6].1.own_groups().is_empty());
        let fewer_groups = text(6).replace("groups = 4", "groups = 2");
        let refused = Inventory::parse(&fewer_groups).expect("a fleet").plan(Some(first.chosen), other);
        assert!(refused.expect_err("they never change").to_string().contains("has 4 groups"));
    }

    #[test]
    fn contradictions_are_named() {
        for (before, after, expected) in [
            ("id = 2\nzone", "id = 1\nzone", "node 1 is listed twice"),
            ("10.0.0.2", "10.0.0.1", "two nodes listen on port 7001 of 10.0.0.1"),
            ("\"db1\"", "\"../etc\"", "`../etc` is no name"),
            ("host = \"db2\"", "host = \"db2\"\ncolour = \"red\"", "unknown field `colour`"),
            ("id = 2\nhost = \"db2\"", "id = 1\nhost = \"db2\"", "instance 1 is listed twice"),
        ] {
            let text = text(6).replace(before, after);
            let refused = Inventory::parse(&text).expect_err(expected).to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let few = Inventory::parse(&text(5)).expect("it reads").plan(None, counting());
        assert!(few.expect_err("two in each zone").to_string().contains("zone az3"));
    }
}
