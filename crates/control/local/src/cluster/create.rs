//! Making a cluster, and what must be true of the machine before one is made.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_driver::shim_library::ShimLibrary;
use borealis_instance::{Binaries, OperatingSystemUser, Settings, memory_directory};
use borealis_types::{AvailabilityZone, NodeId, Placement, SEGMENTS_PER_GROUP, VolumeId, invariant};

use super::{Cluster, WRITER, ZONES, save_node_config, shim_library};
use crate::catalog::{Catalog, InstanceEntry, NodeEntry};
use crate::{ports, process};

/// How a new cluster is made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Protection groups of the new volume, which never change.
    pub protection_groups: Placement,
    /// TCP port of the writer.
    pub port: u16,
    /// Folder of PostgreSQL's programs, if not where distributions put it.
    pub postgres_bin_dir: Option<PathBuf>,
    /// System user of the server when started by root.
    pub postgres_user: Option<String>,
    /// A memory file system's folder.
    pub memory_root: PathBuf,
    /// Have the nodes speak TLS on 127.0.0.1, each on a port that is free now.
    pub tls: bool,
    /// How much memory cached pages should take at most; `None` for a share of what is free.
    pub cache_limit_bytes: Option<u64>,
    /// PostgreSQL settings by name, checked before anything is made.
    pub settings: BTreeMap<String, String>,
}

impl Cluster {
    /// Makes a new cluster in `directory`, which must be empty or not exist: six nodes, one writer.
    ///
    /// # Errors
    /// When the directory cannot be used, PostgreSQL is missing or a setting is refused. Nothing is left then.
    pub fn create(directory: &Path, options: &CreateOptions) -> anyhow::Result<Cluster> {
        let binaries = Binaries::find(options.postgres_bin_dir.as_deref())?;
        OperatingSystemUser::choose(options.postgres_user.as_deref())?;
        Settings::check(options.settings.clone())?;
        let memory_root = options
            .memory_root
            .canonicalize()
            .with_context(|| format!("cannot use {} for --memory-dir", options.memory_root.display()))?;
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let directory = directory.canonicalize().context("cannot resolve the cluster's directory")?;
        Catalog::begin_creation(&directory)?;
        let volume = VolumeId(random_number()?);
        let mut catalog = Catalog::new(volume, options.protection_groups, binaries.server_version.major());
        let free = if options.tls { ports::find_free(SEGMENTS_PER_GROUP)? } else { Vec::new() };
        for index in 0..SEGMENTS_PER_GROUP {
            catalog.nodes.push(NodeEntry {
                id: NodeId(index as u16 + 1),
                zone: AvailabilityZone(ZONES[index / 2].to_owned()),
                incarnation: format!("{:032x}", random_number()?),
                port: free.get(index).copied(),
            });
        }
        require_two_in_each_zone(&catalog.nodes);
        catalog.instances.push(InstanceEntry {
            id: WRITER,
            port: options.port,
            postgres_bin_dir: binaries.folder,
            postgres_user: options.postgres_user.clone(),
            memory_root,
            cache_limit_bytes: options.cache_limit_bytes,
            settings: options.settings.clone(),
        });
        let cluster = Cluster::new(directory, catalog);
        for node in &cluster.catalog.nodes {
            let config = cluster.node_config(node)?;
            fs::create_dir_all(&config.directory)
                .with_context(|| format!("cannot create {}", config.directory.display()))?;
            let config_file = save_node_config(&config)?;
            process::run_to_end(&["internal", "create-node"], &config_file)
                .with_context(|| format!("cannot create node {}", node.id))?;
        }
        // The catalog comes last: a creation that was interrupted left nothing that looks like a cluster.
        cluster.catalog.save(&cluster.directory)?;
        Catalog::end_creation(&cluster.directory)?;
        Ok(cluster)
    }
}

/// Checks what can be checked before a cluster is made, so that a machine it cannot run on is left as it was: that the
/// shim belongs to this program, and that the user, the cluster's directory and the memory folder will do.
///
/// # Errors
/// The first thing that would keep an instance from starting.
pub fn check_machine(directory: &Path, memory_root: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    ShimLibrary::load(&shim_library()?)?;
    user.require_name()?;
    let directory = std::path::absolute(directory).context("cannot find out where this is")?;
    for path in [directory.as_path(), memory_root] {
        if path.to_str().is_none() {
            bail!("the name of {} is not UTF-8; use a folder whose whole path is text", path.display());
        }
    }
    let memory_root = memory_root
        .canonicalize()
        .with_context(|| format!("cannot use {} for --memory-dir", memory_root.display()))?;
    memory_directory::check_root(&memory_root, user, memory_directory::NEEDED_MIB)?;
    Ok(())
}

pub(super) fn random_number() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random numbers from /dev/urandom")?;
    Ok(u128::from_le_bytes(bytes))
}

/// A volume that outlives a zone and one node more needs its six segments two by two in three zones.
fn require_two_in_each_zone(nodes: &[NodeEntry]) {
    for zone in ZONES {
        let count = nodes.iter().filter(|node| node.zone.0 == zone).count();
        invariant!("two-nodes-in-each-zone", count == SEGMENTS_PER_GROUP / ZONES.len(), "{count} in {zone}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant two-nodes-in-each-zone is broken: 3 in az1")]
    fn three_nodes_in_one_zone_are_noticed() {
        let node = |(index, zone): (usize, &&str)| NodeEntry {
            id: NodeId(index as u16 + 1),
            zone: AvailabilityZone((*zone).to_owned()),
            incarnation: String::new(),
            port: None,
        };
        let nodes = |zones: [&str; 6]| zones.iter().enumerate().map(node).collect::<Vec<_>>();
        require_two_in_each_zone(&nodes(["az1", "az1", "az2", "az2", "az3", "az3"]));
        require_two_in_each_zone(&nodes(["az1", "az1", "az1", "az2", "az3", "az3"]));
    }
}
