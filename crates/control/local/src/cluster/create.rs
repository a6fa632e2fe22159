//! Making a cluster, and what must be true of the machine before one is made.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_driver::shim_library::ShimLibrary;
use borealis_instance::{Binaries, OperatingSystemUser, Settings, memory_directory};
use borealis_spec::BackupConfig;
use borealis_spec::assignment::{Host, assign};
use borealis_types::{AvailabilityZone, NodeId, Placement, PostgresVersion, VolumeId};

use super::{Cluster, WRITER, ZONES, save_node_config, shim_library};
use crate::catalog::{Catalog, InstanceEntry, NodeEntry};
use crate::{ports, process};

/// How a new cluster is made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Storage nodes, six or more; spread over the three zones.
    pub nodes: u16,
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
    /// The first port for metrics on 127.0.0.1; `None` for none.
    pub metrics_port: Option<u16>,
    /// Where the nodes upload redo; `None` for nowhere.
    pub backup: Option<BackupConfig>,
    /// PostgreSQL settings by name, checked before anything is made.
    pub settings: BTreeMap<String, String>,
}

impl Cluster {
    /// Makes a new cluster in `directory`, which must be empty or not exist: its nodes, and one writer.
    ///
    /// # Errors
    /// When the directory cannot be used, PostgreSQL is missing or a setting is refused. Nothing is left then.
    pub fn create(directory: &Path, options: &CreateOptions) -> anyhow::Result<Cluster> {
        if Catalog::is_restoring(directory)? {
            bail!(
                "a restore into {} was interrupted; repeat it, or remove the folder. Nothing was changed",
                directory.display()
            );
        }
        Cluster::make(directory, options, |cluster, _| {
            for node in &cluster.catalog.nodes {
                let config_file = cluster.prepare_node(node)?;
                process::run_to_end(&["internal", "create-node"], &config_file)
                    .with_context(|| format!("cannot create node {}", node.id))?;
            }
            Ok(())
        })
    }

    /// Makes a new cluster whose nodes `fill` makes; it gets the release that will serve it, too. What an interrupted attempt left is
    /// removed before.
    pub(super) fn make(
        directory: &Path,
        options: &CreateOptions,
        fill: impl FnOnce(&Cluster, PostgresVersion) -> anyhow::Result<()>,
    ) -> anyhow::Result<Cluster> {
        let binaries = Binaries::find(options.postgres_bin_dir.as_deref())?;
        OperatingSystemUser::choose(options.postgres_user.as_deref())?;
        Settings::check(options.settings.clone())?;
        let memory_root = options
            .memory_root
            .canonicalize()
            .with_context(|| format!("cannot use {} for --memory-dir", options.memory_root.display()))?;
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let directory = directory.canonicalize().context("cannot resolve the cluster's directory")?;
        let zones = zones_of_nodes(options.nodes);
        let groups = assign(options.protection_groups, &hosts(&zones))?;
        Catalog::begin_creation(&directory)?;
        let (volume, version) = (VolumeId(random_number()?), binaries.server_version.major());
        let mut catalog = Catalog::new(volume, options.protection_groups, version);
        let free = if options.tls { ports::find_free(zones.len())? } else { Vec::new() };
        for (index, (node, zone)) in zones.into_iter().enumerate() {
            catalog.nodes.push(NodeEntry {
                id: node,
                zone,
                incarnation: format!("{:032x}", random_number()?),
                port: free.get(index).copied(),
            });
        }
        catalog.groups = groups;
        catalog.instances.push(InstanceEntry {
            id: WRITER,
            port: options.port,
            postgres_bin_dir: binaries.folder,
            postgres_user: options.postgres_user.clone(),
            memory_root,
            cache_limit_bytes: options.cache_limit_bytes,
            settings: options.settings.clone(),
        });
        catalog.metrics_port = options.metrics_port;
        catalog.backup.clone_from(&options.backup);
        let cluster = Cluster::new(directory, catalog);
        fill(&cluster, version)?;
        // The catalog comes last: a creation that was interrupted left nothing that looks like a cluster.
        cluster.catalog.save(&cluster.directory)?;
        Catalog::end_creation(&cluster.directory)?;
        Ok(cluster)
    }

    /// Makes a node's folder and configuration. Returns the file with that.
    pub(super) fn prepare_node(&self, node: &NodeEntry) -> anyhow::Result<PathBuf> {
        let config = self.node_config(node)?;
        fs::create_dir_all(&config.directory)
            .with_context(|| format!("cannot create {}", config.directory.display()))?;
        save_node_config(&config)
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

/// Checks that so many nodes and groups make a volume.
///
/// # Errors
/// When there are fewer than six nodes, or so many that some would host nothing.
pub fn check_fleet(nodes: u16, groups: Placement) -> anyhow::Result<()> {
    assign(groups, &hosts(&zones_of_nodes(nodes)))?;
    Ok(())
}

/// The nodes from 1 on and where each stands: neighbouring numbers in one zone, as evenly as the number allows.
fn zones_of_nodes(count: u16) -> Vec<(NodeId, AvailabilityZone)> {
    let of_zone = |(index, zone): (usize, &&str)| {
        let extra = usize::from(index < usize::from(count) % ZONES.len());
        std::iter::repeat_n(AvailabilityZone((*zone).to_owned()), usize::from(count) / ZONES.len() + extra)
    };
    (1..).map(NodeId).zip(ZONES.iter().enumerate().flat_map(of_zone)).collect()
}

fn hosts(zones: &[(NodeId, AvailabilityZone)]) -> Vec<Host> {
    let host = |(node, zone): &(NodeId, AvailabilityZone)| Host {
        node: *node,
        zone: zone.clone(),
        used_bytes: 0,
        is_leaving: false,
    };
    zones.iter().map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_spread_over_the_zones_evenly() {
        let zones = |count: u16| -> Vec<u16> {
            let zones = zones_of_nodes(count);
            assert!(zones.iter().map(|(node, _)| node.0).eq(1..=count));
            zones.iter().map(|(_, zone)| zone.0[2..].parse().expect("az1 to az3")).collect()
        };
        assert_eq!(zones(6), [1, 1, 2, 2, 3, 3]);
        assert_eq!(zones(8), [1, 1, 1, 2, 2, 2, 3, 3]);
        assert_eq!(zones(10), [1, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    }

    #[test]
    fn six_nodes_have_every_group() {
        let placement = Placement::new(4).expect("4 groups");
        let groups = assign(placement, &hosts(&zones_of_nodes(6))).expect("two in each zone");
        let all: Vec<NodeId> = (1..=6).map(NodeId).collect();
        assert_eq!(groups, borealis_spec::Membership::everyone_has_everything(placement, &all));
    }
}
