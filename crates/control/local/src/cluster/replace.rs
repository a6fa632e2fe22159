//! Replacing nodes that are lost for good by copies of one that is left.
//!
//! The nodes that are left first agree on the end of the volume and refuse every older writer
//! ([`borealis_driver::rescue`]); then one of them that has everything is stopped and copied. A copy gets its node's
//! number and an incarnation of its own: what was lost is another node from then on, and is refused should it come back.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_driver::rescue::agree_without;
use borealis_types::{Lsn, NodeId, READ_QUORUM};

use super::create::random_number;
use super::{Cluster, WRITER, save_node_config};
use crate::process;

/// Nodes to replace, and those that must answer for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replacement {
    /// Given up, in number order.
    pub lost: Vec<NodeId>,
    /// All others, in number order: every acknowledged commit is on at least one of them.
    pub left: Vec<NodeId>,
}

/// What a replacement did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// The node that was copied.
    pub source: NodeId,
    /// Where the volume ends: every acknowledged commit is before it.
    pub end: Lsn,
    /// What was left of the lost nodes, under new names.
    pub set_aside: Vec<PathBuf>,
}

impl Cluster {
    /// Checks that nodes can be replaced; nothing is changed.
    ///
    /// # Errors
    /// When a node does not exist or runs, the instance runs, or too few nodes are left.
    pub fn plan_replacement(&self, lost: &[NodeId]) -> anyhow::Result<Replacement> {
        let lost: BTreeSet<NodeId> = lost.iter().copied().collect();
        for &id in &lost {
            self.node(id)?;
        }
        let left: Vec<NodeId> =
            self.catalog.nodes.iter().map(|node| node.id).filter(|id| !lost.contains(id)).collect();
        if left.len() < READ_QUORUM {
            bail!(
                "{} of {} nodes would be left, and {READ_QUORUM} are needed to see every acknowledged commit; nothing was \
                 changed. Bring back the folder of one more node, on whatever disk it is",
                left.len(),
                self.catalog.nodes.len()
            );
        }
        if let Some(&running) = lost.iter().find(|&&id| self.node_process(id).is_some()) {
            bail!(
                "node {running} runs; only a node that is lost for good is replaced. If it is to be given up, kill it first: \
                 `borealis node kill {running}`"
            );
        }
        if self.driver_process(WRITER).is_some() {
            bail!(
                "instance {WRITER} runs; stop it first with `borealis instance stop`, or kill it if it hangs"
            );
        }
        Ok(Replacement { lost: lost.into_iter().collect(), left })
    }

    /// Replaces nodes by copies of one that is left. All nodes run afterwards. May be repeated after a failure.
    ///
    /// # Errors
    /// When a node that is left does not start, those that are left cannot agree, or a copy cannot be made. No node's
    /// data is removed in any case.
    pub fn replace_nodes(&mut self, replacement: &Replacement) -> anyhow::Result<Replaced> {
        // Whoever watches over the cluster must not start them, or the instance, in between.
        self.stop_nodes(&replacement.lost)?;
        self.stop_instance(WRITER)?;
        self.start_nodes(&replacement.left)?;
        let config = self.driver_config(self.instance(WRITER)?)?;
        let lost: BTreeSet<NodeId> = replacement.lost.iter().copied().collect();
        let agreed = agree_without(&config, &lost)?;
        let source = *agreed.complete.first().context("a node that has everything was just found")?;
        self.stop_nodes(&[source])?;
        let made = self.copy_and_exchange(&replacement.lost, source);
        // Whatever became of the copies, the source goes on.
        self.start_nodes(&[source])?;
        let set_aside = made?;
        self.start_nodes(&replacement.lost)?;
        Ok(Replaced { source, end: agreed.durable.end, set_aside })
    }

    /// Makes all copies beside the nodes' folders, then puts them in their places.
    fn copy_and_exchange(&mut self, lost: &[NodeId], source: NodeId) -> anyhow::Result<Vec<PathBuf>> {
        let store = self.node_config(self.node(source)?)?.store_directory();
        let mut made = Vec::new();
        for &id in lost {
            let incarnation = format!("{:032x}", random_number()?);
            let folder = self.node_directory(id).with_extension("new");
            self.copy_node(id, &incarnation, &store, &folder)
                .with_context(|| format!("cannot copy node {source} for node {id}"))?;
            made.push((id, incarnation, folder));
        }
        let mut set_aside = Vec::new();
        for (id, incarnation, folder) in made {
            let place = self.node_directory(id);
            if place.exists() {
                let name = free_name(&place)?;
                rename(&place, &name)?;
                set_aside.push(name);
            }
            rename(&folder, &place)?;
            let entry = self.catalog.nodes.iter_mut().find(|node| node.id == id);
            entry.with_context(|| format!("there is no node {id}"))?.incarnation = incarnation;
        }
        let nodes = self.directory.join("nodes");
        fs::File::open(&nodes)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot sync {}", nodes.display()))?;
        self.catalog.save(&self.directory)?;
        Ok(set_aside)
    }

    fn copy_node(&self, id: NodeId, incarnation: &str, store: &Path, folder: &Path) -> anyhow::Result<()> {
        if folder.exists() {
            // A copy that was never put in its place, and so never ran.
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut entry = self.node(id)?.clone();
        incarnation.clone_into(&mut entry.incarnation);
        let mut config = self.node_config(&entry)?;
        folder.clone_into(&mut config.directory);
        let config_file = save_node_config(&config)?;
        let from = store.to_str().context("the cluster's directory has a name that is not UTF-8")?;
        process::run_to_end(&["internal", "copy-node", "--from", from], &config_file)?;
        Ok(())
    }
}

/// A name beside a lost node's folder that nothing has yet.
fn free_name(place: &Path) -> anyhow::Result<PathBuf> {
    let names = (1..=999).map(|number| place.with_extension(format!("lost-{number}")));
    names.into_iter().find(|name| !name.exists()).with_context(|| {
        format!("{} has been replaced too often; remove what is kept beside it", place.display())
    })
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}
