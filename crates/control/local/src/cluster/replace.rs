//! Replacing nodes that are lost for good by copies of one that is left.
//!
//! The nodes that are left first agree on the end of the volume and refuse every older writer
//! ([`borealis_driver::rescue`]); then one of them that has everything is stopped and copied. A copy gets its node's
//! number and an incarnation of its own: what was lost is another node from then on, and is refused should it come back.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_client::Timeouts;
use borealis_driver::Configured;
use borealis_driver::rescue::agree_without;
use borealis_types::{Lsn, NodeId, READ_QUORUM};
use nix::sys::statvfs::statvfs;

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
    /// What is wrong with the node that was copied, and so with its copies, when no better one was left.
    pub warning: Option<String>,
}

/// What a node that has everything says of itself.
struct Candidate {
    node: NodeId,
    damage: Option<String>,
    failure: Option<String>,
}

/// The node to copy: one that nothing is wrong with, or else one whose damage concerns single pages or log entries only,
/// with a warning.
///
/// # Errors
/// When every one of them has failed.
fn choose_source(candidates: &[Candidate]) -> anyhow::Result<(NodeId, Option<String>)> {
    let working = || candidates.iter().filter(|candidate| candidate.failure.is_none());
    if let Some(sound) = working().find(|candidate| candidate.damage.is_none()) {
        return Ok((sound.node, None));
    }
    if let Some(Candidate { node, damage: Some(damage), .. }) = working().next() {
        let warning = format!(
            "no node that has everything is free of damage. Node {node} was copied, and its copies have its damage until \
             the other nodes have mended it; look at `borealis status` and run `borealis verify`: {damage}"
        );
        return Ok((*node, Some(warning)));
    }
    let failures: Vec<String> = candidates
        .iter()
        .filter_map(|candidate| Some(format!("node {}: {}", candidate.node, candidate.failure.as_ref()?)))
        .collect();
    bail!("every node that has everything has failed, so none is copied: {}", failures.join("; "))
}

/// Removes copies that were never put in their places, and so never ran.
fn remove_unfinished_copies(nodes: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(nodes).with_context(|| format!("cannot list {}", nodes.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", nodes.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The bytes that a folder and everything in it take of the disk.
fn allocated_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Of the entry itself: a link is not followed.
        let metadata = entry.metadata()?;
        sum += metadata.blocks() * 512;
        if metadata.is_dir() {
            sum += allocated_bytes(&entry.path())?;
        }
    }
    Ok(sum)
}

/// Checks that so many copies of a store fit.
fn require_space(store: &Path, nodes: &Path, copies: usize) -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let one = allocated_bytes(store).with_context(|| format!("cannot measure {}", store.display()))?;
    let needed = one.saturating_mul(copies as u64);
    let found =
        statvfs(nodes).with_context(|| format!("cannot see how much of {} is free", nodes.display()))?;
    let available = found.blocks_available().saturating_mul(found.fragment_size());
    if available < needed {
        bail!(
            "{copies} copies of {} take {} MiB and {} MiB are free in {}; make room and repeat the command. Nothing was \
             replaced",
            store.display(),
            needed.div_ceil(MIB),
            available / MIB,
            nodes.display()
        );
    }
    Ok(())
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
        remove_unfinished_copies(&self.directory.join("nodes"))?;
        // Whoever watches over the cluster must not start them, or the instance, in between.
        self.stop_nodes(&replacement.lost)?;
        self.stop_instance(WRITER)?;
        self.start_nodes(&replacement.left)?;
        self.issue_for_instance(self.instance(WRITER)?)?;
        let config = Configured::new(self.driver_config(self.instance(WRITER)?)?)?;
        let lost: BTreeSet<NodeId> = replacement.lost.iter().copied().collect();
        let agreed = agree_without(&config, &lost)?;
        let candidates: Vec<Candidate> =
            agreed.complete.iter().map(|&node| self.ask_candidate(node)).collect();
        let (source, warning) = choose_source(&candidates)?;
        self.stop_nodes(&[source])?;
        let made = self.copy_and_exchange(&replacement.lost, source);
        // Whatever became of the copies, the source goes on.
        self.start_nodes(&[source])?;
        let set_aside = made?;
        self.start_nodes(&replacement.lost)?;
        Ok(Replaced { source, end: agreed.durable.end, set_aside, warning })
    }

    /// Asks a node that has everything how it is; one that does not answer is as good as failed.
    fn ask_candidate(&self, node: NodeId) -> Candidate {
        let asked = self.node_client(node, Timeouts::default()).and_then(|mut client| client.status());
        match asked {
            Ok(status) => Candidate { node, damage: status.damage, failure: status.failure },
            Err(error) => Candidate { node, damage: None, failure: Some(error.to_string()) },
        }
    }

    /// Makes all copies beside the nodes' folders, then puts them in their places.
    fn copy_and_exchange(&mut self, lost: &[NodeId], source: NodeId) -> anyhow::Result<Vec<PathBuf>> {
        let store = self.node_config(self.node(source)?)?.store_directory();
        let nodes = self.directory.join("nodes");
        require_space(&store, &nodes, lost.len())?;
        let made = self.make_copies(lost, source, &store).inspect_err(|_| {
            // They would fill the disk for the next attempt, and for the nodes that are left.
            let _ = remove_unfinished_copies(&nodes);
        })?;
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
        fs::File::open(&nodes)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot sync {}", nodes.display()))?;
        self.catalog.save(&self.directory)?;
        Ok(set_aside)
    }

    /// Copies a store for each of these nodes; their new incarnations and where the copies are.
    fn make_copies(
        &self,
        lost: &[NodeId],
        source: NodeId,
        store: &Path,
    ) -> anyhow::Result<Vec<(NodeId, String, PathBuf)>> {
        let mut made = Vec::new();
        for &id in lost {
            let incarnation = format!("{:032x}", random_number()?);
            let folder = self.node_directory(id).with_extension("new");
            self.copy_node(id, &incarnation, store, &folder)
                .with_context(|| format!("cannot copy node {source} for node {id}"))?;
            made.push((id, incarnation, folder));
        }
        Ok(made)
    }

    fn copy_node(&self, id: NodeId, incarnation: &str, store: &Path, folder: &Path) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: u16, damage: Option<&str>, failure: Option<&str>) -> Candidate {
        let text = |text: &str| text.to_owned();
        Candidate { node: NodeId(node), damage: damage.map(text), failure: failure.map(text) }
    }

    #[test]
    fn a_node_without_fault_is_copied_before_a_damaged_one_and_a_failed_one_never() {
        let (failed, damaged, sound) = (
            || candidate(1, None, Some("its disk failed")),
            || candidate(2, Some("page 7 is damaged"), None),
            || candidate(3, None, None),
        );
        assert_eq!(choose_source(&[failed(), damaged(), sound()]).unwrap(), (NodeId(3), None));
        let (node, warning) = choose_source(&[failed(), damaged()]).unwrap();
        assert_eq!(node, NodeId(2));
        assert!(warning.is_some_and(|warning| warning.contains("page 7 is damaged")));
        let error = choose_source(&[failed()]).unwrap_err();
        assert!(error.to_string().contains("node 1: its disk failed"), "{error}");
    }

    #[test]
    fn unfinished_copies_are_removed_and_nothing_else() {
        let nodes = tempfile::tempdir().unwrap();
        for name in ["1/store", "1.lost-1/store", "2.new/store/log", "3.new"] {
            fs::create_dir_all(nodes.path().join(name)).unwrap();
        }
        remove_unfinished_copies(nodes.path()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(nodes.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["1", "1.lost-1"]);
    }

    #[test]
    fn copies_that_do_not_fit_are_refused_with_how_much_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, nodes) = (folder.path().join("store"), folder.path());
        fs::create_dir_all(store.join("log")).unwrap();
        fs::write(store.join("log/1"), vec![1; 3 << 20]).unwrap();
        let sparse = fs::File::create(store.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let bytes = allocated_bytes(&store).unwrap();
        assert!((3 << 20..4 << 20).contains(&bytes), "{bytes} bytes: holes take none");
        require_space(&store, nodes, 2).unwrap();
        let error = require_space(&store, nodes, usize::MAX).unwrap_err().to_string();
        assert!(error.contains("make room and repeat the command"), "{error}");
    }
}
