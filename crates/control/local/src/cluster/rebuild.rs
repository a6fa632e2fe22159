//! Making a lost catalog anew, from what each node's folder says of itself and of its peers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_spec::{DriverConfig, NodeConfig};
use borealis_types::NodeId;

use super::{INSTANCE_CONFIG_NAME, WRITER};
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
/// # Errors
/// When no node's configuration can be read, or two of them contradict each other.
pub fn rebuild_catalog(directory: &Path, defaults: &InstanceDefaults) -> anyhow::Result<Catalog> {
    let configs = read_node_configs(&directory.join("nodes"))?;
    let mut catalog = catalog_of_nodes(&configs)
        .with_context(|| format!("{} cannot be made anew from its nodes", directory.display()))?;
    catalog.instances.push(read_instance(directory, &catalog).unwrap_or_else(|| InstanceEntry {
        id: WRITER,
        port: defaults.port,
        postgres_bin_dir: defaults.postgres_bin_dir.clone(),
        postgres_user: None,
        memory_root: defaults.memory_root.clone(),
        cache_limit_bytes: None,
        settings: BTreeMap::new(),
    }));
    catalog.save(directory)?;
    Ok(catalog)
}

fn read_node_configs(nodes: &Path) -> anyhow::Result<Vec<NodeConfig>> {
    let entries = fs::read_dir(nodes).with_context(|| format!("cannot look at {}", nodes.display()))?;
    let mut configs = Vec::new();
    for entry in entries {
        let path = entry?.path().join(borealis_spec::node::CONFIG_FILE_NAME);
        let Ok(text) = fs::read(&path) else { continue };
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
    let mut nodes: BTreeMap<NodeId, NodeEntry> = BTreeMap::new();
    for config in configs {
        if (config.volume, config.placement, config.postgres_version)
            != (first.volume, first.placement, first.postgres_version)
        {
            bail!("node {} and node {} are not of one volume", first.node, config.node);
        }
        let entry = NodeEntry {
            id: config.node,
            zone: config.zone.clone(),
            address: config.listen,
            incarnation: format!("{:032x}", config.incarnation),
        };
        if nodes.insert(config.node, entry).is_some() {
            bail!("two folders say that they are node {}", config.node);
        }
    }
    for peer in configs.iter().flat_map(|config| &config.peers) {
        // Its folder is gone, and with it its identity: it is named, so that it is missed, and never started.
        nodes.entry(peer.node).or_insert_with(|| NodeEntry {
            id: peer.node,
            zone: peer.zone.clone(),
            address: peer.address,
            incarnation: format!("{:032x}", 0),
        });
    }
    catalog.nodes = nodes.into_values().collect();
    Ok(catalog)
}

/// What the instance was started with last; `None` if nothing says so for this volume.
fn read_instance(directory: &Path, catalog: &Catalog) -> Option<InstanceEntry> {
    let path = directory.join("instances").join(WRITER.to_string()).join(INSTANCE_CONFIG_NAME);
    let config: DriverConfig = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    if config.volume != catalog.volume_id() {
        return None;
    }
    Some(InstanceEntry {
        id: WRITER,
        port: config.port,
        postgres_bin_dir: config.postgres_bin_dir,
        postgres_user: config.postgres_user,
        // The instance's own folder stands directly below it.
        memory_root: config.memory_dir.parent()?.to_path_buf(),
        cache_limit_bytes: config.tuning.cache_limit_bytes,
        settings: config.settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::{Membership, NodeAddress};
    use borealis_types::{AvailabilityZone, Placement, PostgresVersion, VolumeId};

    fn node(number: u16, volume: u128) -> NodeConfig {
        let placement = Placement::new(2).expect("two groups are allowed");
        let zone = |number: u16| AvailabilityZone(format!("az{}", number.div_ceil(2)));
        let address = |number: u16| format!("127.0.0.1:{}", 7000 + number).parse().expect("an address");
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
    fn nodes_of_two_volumes_make_no_catalog() {
        let said = catalog_of_nodes(&[node(1, 7), node(2, 8)]).expect_err("two volumes").to_string();
        assert!(said.contains("not of one volume"), "{said}");
        assert!(catalog_of_nodes(&[]).is_err());
    }
}
