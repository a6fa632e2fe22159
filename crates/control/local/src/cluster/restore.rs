//! Making a cluster of a backup.
//!
//! One store with everything as of the chosen point is made of what was uploaded (`borealis_backup::restore`), and the nodes' stores of its
//! segments, as a lost node's is of others'. It lies among the nodes' folders, so an attempt that was interrupted leaves nothing that the
//! next one does not remove. The cluster has a volume of its own, in an epoch above all that the old one had, and its first start is a
//! recovery like any other.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use borealis_archive::sealing::Sealing;
use borealis_backup::contents::Contents;
use borealis_backup::restore::{Order, Progress, Restored, restore};
use borealis_backup::store::ObjectStore;
use borealis_store::{Environment, Identity, Options};
use borealis_types::{AvailabilityZone, Lsn, NodeId, PostgresVersion, SEGMENTS_PER_GROUP};

use super::create::random_number;
use super::replace::{allocated_bytes, require_space};
use super::{Cluster, CreateOptions};
use crate::catalog::{Catalog, NodeEntry};
use crate::process;

/// The store that the nodes' stores are made of, beside their folders.
const REFERENCE_NAME: &str = "restored";

/// What to restore.
#[derive(Debug)]
pub struct FromBackup<'a> {
    /// Where objects are.
    pub objects: &'a dyn ObjectStore,
    /// How they are encrypted.
    pub sealing: &'a Sealing,
    /// What there is.
    pub contents: &'a Contents,
    /// The point.
    pub point: Lsn,
}

/// How the cluster is made; groups and version are the backup's.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// As for a new cluster. The number of groups is not looked at.
    pub create: CreateOptions,
}

impl Cluster {
    /// Makes a cluster of a backup in `directory`, which must be empty, not exist, or have what an interrupted restore left.
    ///
    /// # Errors
    /// As [`Cluster::create`]; when PostgreSQL's major version is another than the backup's; or when the point cannot be restored.
    pub fn restore(
        directory: &Path,
        options: &RestoreOptions,
        from: &FromBackup<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<(Cluster, Restored)> {
        let facts = from.contents.facts;
        let options = CreateOptions { protection_groups: facts.placement, ..options.create.clone() };
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Catalog::begin_restore(directory)?;
        let mut restored = None;
        let cluster = Cluster::make(directory, &options, |cluster, version| {
            if version != facts.version {
                bail!(
                    "the backup is of PostgreSQL {}, and the programs found are of {version}; name others with --pg-bin",
                    facts.version
                );
            }
            restored = Some(cluster.fill(from, version, progress)?);
            Ok(())
        })?;
        let restored = restored.context("nothing was restored")?;
        Ok((cluster, restored))
    }

    fn fill(
        &self,
        from: &FromBackup<'_>,
        version: PostgresVersion,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<Restored> {
        let nodes = self.directory.join("nodes");
        fs::create_dir_all(&nodes).with_context(|| format!("cannot create {}", nodes.display()))?;
        let reference = nodes.join(REFERENCE_NAME);
        let placement = self.catalog.protection_groups;
        let identity = Identity {
            volume: self.catalog.volume_id(),
            // Nobody is node 0: it is of no node.
            node: NodeId(0),
            zone: AvailabilityZone("none".to_owned()),
            version,
            placement,
            groups: placement.groups().collect(),
            incarnation: random_number()?,
        };
        let environment = Environment::default();
        let order = Order {
            point: from.point,
            sealing: from.sealing,
            environment: &environment,
            folder: &reference,
            identity: &identity,
            // No peer asks this store for log.
            options: Options { log_retention_bytes: 0, ..Options::default() },
            // Each segment is on six nodes.
            copies: SEGMENTS_PER_GROUP as u64,
        };
        let restored = restore(&order, from.objects, from.contents, progress)?;
        if !restored.has_template {
            bail!(
                "{} is before the end of the import that made the volume: there is no database yet",
                from.point
            );
        }
        self.spread(&reference)?;
        fs::remove_dir_all(&reference).with_context(|| format!("cannot remove {}", reference.display()))?;
        Ok(restored)
    }

    /// Makes every node's store of the segments of one store.
    fn spread(&self, reference: &Path) -> anyhow::Result<()> {
        let bytes =
            allocated_bytes(reference).with_context(|| format!("cannot measure {}", reference.display()))?;
        require_space(bytes.saturating_mul(SEGMENTS_PER_GROUP as u64), &self.directory)?;
        let store = reference.to_str().context("the cluster's directory has a name that is not UTF-8")?;
        // One after another: each has the store that it is made of for itself.
        self.catalog.nodes.iter().try_for_each(|node| self.gather(node, store))
    }

    /// Makes a node's store of the segments of one store.
    fn gather(&self, node: &NodeEntry, store: &str) -> anyhow::Result<()> {
        let mut words = vec!["internal".to_owned(), "gather-node".to_owned()];
        for group in self.catalog.groups.groups_on(node.id).iter() {
            words.extend(["--segment".to_owned(), format!("{group}={store}")]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let config_file = self.prepare_node(node)?;
        process::run_to_end(&words, &config_file)
            .with_context(|| format!("cannot make node {} of what was restored", node.id))
    }
}
