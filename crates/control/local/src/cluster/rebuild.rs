//! Making a lost catalog anew, from what each node's folder says of itself and of its peers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_spec::{DriverConfig, Endpoint, MetricsAddress, NodeConfig};
use borealis_types::NodeId;

use super::{GONE_ZONE, INSTANCE_CONFIG_NAME, WRITER};
use crate::catalog::{Catalog, InstanceEntry, NodeEntry};

/// The options of an instance whose folder is gone too.
#[derive(Clone, Debug)]
pub struct InstanceDefaults {
    /// TCP port of the database on 127.0.0.1.
    pub port: u16,
    /// Folder of PostgreSQL's programs.
    pub postgres_bin_dir: PathBuf,
    /// A memory file system's folder.
    pub memory_root: PathBuf,
}

/// Writes `cluster.json` anew in a directory that has lost it. Nothing else is written, and nothing is removed.
///
/// The volume, its nodes and their identities come from the nodes' configurations, which must agree; the instance's
/// options come from its last configuration, and from `defaults` where that is gone.
///
/// A node whose folder is not there at all is named without an identity, so that it is missed; it is never started so.
///
/// # Errors
/// When a node's folder is there and does not say who it is, or two nodes contradict each other. Nothing is written then.
pub fn rebuild_catalog(
    directory: &Path,
    defaults: impl FnOnce() -> anyhow::Result<InstanceDefaults>,
) -> anyhow::Result<Catalog> {
    let configs = read_node_configs(&directory.join("nodes"))?;
    let mut catalog = catalog_of_nodes(&configs)
        .with_context(|| format!("{} cannot be made anew from its nodes", directory.display()))?;
    let instance = match read_instance(directory, &catalog) {
        Some((instance, metrics_port)) => {
            catalog.metrics_port = metrics_port;
            instance
        }
        None => {
            let InstanceDefaults { port, postgres_bin_dir, memory_root } = defaults()?;
            InstanceEntry {
                id: WRITER,
                port,
                postgres_bin_dir,
                postgres_user: None,
                memory_root,
                cache_limit_bytes: None,
                settings: BTreeMap::new(),
            }
        }
    };
    catalog.instances.push(instance);
    catalog.save(directory)?;
    Ok(catalog)
}

fn read_node_configs(nodes: &Path) -> anyhow::Result<Vec<NodeConfig>> {
    let entries = fs::read_dir(nodes).with_context(|| format!("cannot look at {}", nodes.display()))?;
    let mut configs = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| name.parse::<u16>().is_err()) {
            continue;
        }
        let path = entry.path().join(borealis_spec::node::CONFIG_FILE_NAME);
        // A folder that is there and says nothing may be a store whose identity must not be lost, or a disk that is not
        // mounted.
        let text = fs::read(&path).with_context(|| {
            format!(
                "cannot read {}; bring it back (is the node's disk mounted?), or remove the folder if the node is lost for \
                 good",
                path.display()
            )
        })?;
        let config: NodeConfig = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a node configuration", path.display()))?;
        config.validate().with_context(|| format!("node configuration {} is wrong", path.display()))?;
        configs.push(config);
    }
    configs.sort_by_key(|config| config.node);
    Ok(configs)
}

/// The catalog that these configurations were written from, without its instances.
fn catalog_of_nodes(configs: &[NodeConfig]) -> anyhow::Result<Catalog> {
    let Some(first) = configs.first() else { bail!("none of its nodes has a configuration") };
    let mut catalog = Catalog::new(first.volume, first.placement, first.postgres_version);
    catalog.groups = first.groups.clone();
    catalog.backup.clone_from(&first.backup);
    catalog.groups.require_quorum_sets(first.placement)?;
    let mut nodes: BTreeMap<NodeId, NodeEntry> = BTreeMap::new();
    for config in configs {
        if (config.volume, config.placement, config.postgres_version)
            != (first.volume, first.placement, first.postgres_version)
        {
            bail!("node {} and node {} are not of one volume", first.node, config.node);
        }
        if config.groups != first.groups {
            bail!(
                "node {} and node {} do not say the same of which node has which group",
                first.node,
                config.node
            );
        }
        let entry = NodeEntry {
            id: config.node,
            zone: config.zone.clone(),
            incarnation: format!("{:032x}", config.incarnation),
            port: port_of(&config.listen),
        };
        if nodes.insert(config.node, entry).is_some() {
            bail!("two folders say that they are node {}", config.node);
        }
    }
    for peer in configs.iter().flat_map(|config| &config.peers) {
        if peer.zone.0 == GONE_ZONE {
            catalog.retired_nodes.insert(peer.node);
            continue;
        }
        // Its folder is gone, and with it its identity: it is named, so that it is missed, and never started.
        nodes.entry(peer.node).or_insert_with(|| NodeEntry {
            id: peer.node,
            zone: peer.zone.clone(),
            incarnation: format!("{:032x}", 0),
            port: port_of(&peer.address),
        });
    }
    // A configuration that was written before a node went names it still.
    nodes.retain(|node, _| !catalog.retired_nodes.contains(node));
    catalog.nodes = nodes.into_values().collect();
    Ok(catalog)
}

/// The port of a node that speaks TLS.
fn port_of(address: &Endpoint) -> Option<u16> {
    match address {
        Endpoint::Tls { port, .. } => Some(*port),
        Endpoint::Unix(_) => None,
    }
}

/// What the instance was started with last, and the first port for metrics; `None` if nothing says so for this volume.
fn read_instance(directory: &Path, catalog: &Catalog) -> Option<(InstanceEntry, Option<u16>)> {
    let path = directory.join("instances").join(WRITER.to_string()).join(INSTANCE_CONFIG_NAME);
    let config: DriverConfig = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    if config.volume != catalog.volume_id() {
        return None;
    }
    let metrics_port = match config.metrics_listen {
        Some(MetricsAddress::Loopback(address)) => Some(address.port()),
        Some(MetricsAddress::Unix(_)) | None => None,
    };
    let instance = InstanceEntry {
        id: WRITER,
        port: config.port,
        postgres_bin_dir: config.postgres_bin_dir,
        postgres_user: config.postgres_user,
        // The instance's own folder stands directly below it.
        memory_root: config.memory_dir.parent()?.to_path_buf(),
        cache_limit_bytes: config.tuning.cache_limit_bytes,
        settings: config.settings,
    };
    Some((instance, metrics_port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::{GroupMembers, Membership, NodeAddress};
    use borealis_types::{AvailabilityZone, GroupId, Placement, PostgresVersion, VolumeId};

    fn node(number: u16, volume: u128) -> NodeConfig {
        let placement = Placement::new(2).expect("two groups are allowed");
        let zone = |number: u16| AvailabilityZone(format!("az{}", number.div_ceil(2)));
        let address = |number: u16| format!("/somewhere/sockets/{number}").parse().expect("an address");
        let mut config = NodeConfig::new(
            PathBuf::new(),
            VolumeId(volume),
            NodeId(number),
            zone(number),
            u128::from(number) + 100,
            address(number),
            placement,
        );
        let others = (1..=6).filter(|other| *other != number);
        config.peers = others
            .map(|other| NodeAddress { node: NodeId(other), zone: zone(other), address: address(other) })
            .collect();
        let all: Vec<NodeId> = (1..=6).map(NodeId).collect();
        config.groups = Membership::everyone_has_everything(placement, &all);
        config
    }

    #[test]
    fn a_catalog_is_what_its_nodes_say() {
        let configs: Vec<NodeConfig> = (1..=6).map(|number| node(number, 7)).collect();
        let catalog = catalog_of_nodes(&configs).expect("they agree");
        assert_eq!((catalog.volume_id(), catalog.postgres_version), (VolumeId(7), PostgresVersion::NEWEST));
        assert_eq!(catalog.nodes.len(), 6);
        assert_eq!(catalog.nodes[2].incarnation, format!("{:032x}", 103));
        assert_eq!(catalog.nodes[5].zone, AvailabilityZone("az3".to_owned()));
    }

    #[test]
    fn a_node_without_a_folder_is_named_by_its_peers_and_has_no_identity() {
        let configs = [node(1, 7), node(2, 7)];
        let catalog = catalog_of_nodes(&configs).expect("they agree");
        assert_eq!(catalog.nodes.len(), 6);
        assert_eq!(catalog.nodes[4].incarnation, format!("{:032x}", 0));
    }

    #[test]
    fn a_node_that_is_gone_for_good_is_not_missed() {
        let mut configs = [node(1, 7), node(2, 7)];
        configs[1].peers[3].zone = AvailabilityZone(GONE_ZONE.to_owned());
        let catalog = catalog_of_nodes(&configs).expect("they agree");
        assert_eq!(catalog.nodes.len(), 5);
        assert_eq!(catalog.retired_nodes, [configs[1].peers[3].node].into());
    }

    #[test]
    fn which_node_has_which_group_comes_from_the_nodes() {
        let groups = |last: u16| -> Membership {
            let members = |group, nodes: [u16; 6]| GroupMembers {
                group: GroupId(group),
                nodes: nodes.map(NodeId).to_vec(),
            };
            [members(0, [1, 2, 3, 4, 5, 6]), members(1, [1, 2, 3, 4, 7, last])].into_iter().collect()
        };
        let config = |number: u16, last: u16| {
            let mut config = node(number, 7);
            for other in (7..=9).filter(|other| *other != number) {
                config.peers.push(NodeAddress { node: NodeId(other), ..config.peers[0].clone() });
            }
            config.groups = groups(last);
            config
        };
        let configs: Vec<NodeConfig> = (1..=8).map(|number| config(number, 8)).collect();
        let catalog = catalog_of_nodes(&configs).expect("they agree");
        assert_eq!((catalog.groups, catalog.nodes.len()), (groups(8), 9), "node 9 is known by its peers");
        let said = catalog_of_nodes(&[config(1, 8), config(2, 9)]).expect_err("they differ").to_string();
        assert!(said.contains("node 1 and node 2 do not say the same"), "{said}");
    }

    #[test]
    fn a_folder_that_does_not_say_who_it_is_stops_the_rebuilding() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let nodes = folder.path().join("nodes");
        for number in 1..=6 {
            let directory = nodes.join(number.to_string());
            fs::create_dir_all(&directory).expect("made");
            if number != 3 {
                let text = serde_json::to_vec(&node(number, 7)).expect("plain data");
                fs::write(directory.join("node.json"), text).expect("written");
            }
        }
        let defaults = || {
            let (postgres_bin_dir, memory_root) = ("/bin".into(), "/dev/shm".into());
            Ok(InstanceDefaults { port: 5432, postgres_bin_dir, memory_root })
        };
        let said = rebuild_catalog(folder.path(), defaults).expect_err("node 3 says nothing").to_string();
        assert!(said.contains("nodes/3/node.json") && said.contains("mounted"), "{said}");
        assert!(!folder.path().join("cluster.json").exists(), "its identity would be lost");
        fs::remove_dir(nodes.join("3")).expect("removed");
        let catalog = rebuild_catalog(folder.path(), defaults).expect("five are left");
        assert_eq!((catalog.nodes.len(), catalog.instances[0].port), (6, 5432));
    }

    #[test]
    fn nodes_of_two_volumes_make_no_catalog() {
        let said = catalog_of_nodes(&[node(1, 7), node(2, 8)]).expect_err("two volumes").to_string();
        assert!(said.contains("not of one volume"), "{said}");
        assert!(catalog_of_nodes(&[]).is_err());
    }
}
