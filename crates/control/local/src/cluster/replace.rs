//! Replacing nodes that are lost for good by ones made of the segments that are left.
//!
//! The nodes that are left first agree on the end of the volume and refuse every older writer
//! ([`borealis_driver::rescue`]). Then, for each group that a lost node hosted, one that has everything of the group is
//! chosen; those are stopped, and the lost node's store is made of their segments. It gets the node's number and an
//! incarnation of its own: what was lost is another node from then on, and is refused should it come back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_client::Timeouts;
use borealis_driver::Configured;
use borealis_driver::rescue::agree_without;
use borealis_spec::node::STORE_FOLDER_NAME;
use borealis_spec::{GroupMembers, Membership};
use borealis_types::{GroupId, GroupSet, Lsn, MembershipEpoch, NodeId, READ_QUORUM};
use nix::sys::statvfs::statvfs;

use super::create::random_number;
use super::folders::{free_name, rename};
use super::members::complete_members_of;
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
    /// The nodes whose segments were copied.
    pub sources: BTreeSet<NodeId>,
    /// Where the volume ends: every acknowledged commit is before it.
    pub end: Lsn,
    /// What was left of the lost nodes, under new names.
    pub set_aside: Vec<PathBuf>,
    /// What is wrong with nodes that were copied, and so with the copies, where no better ones were left.
    pub warnings: BTreeSet<String>,
}

/// Where the segments of a node that is to be made anew come from.
type Sources = BTreeMap<GroupId, NodeId>;

/// A node's store that was made, and not yet put in its place.
struct Made {
    node: NodeId,
    incarnation: String,
    folder: PathBuf,
}

/// What a node that has everything of a group says of itself.
#[derive(Clone)]
struct Candidate {
    node: NodeId,
    damage: Option<String>,
    failure: Option<String>,
    /// Which membership of each group its segment acts on.
    memberships: BTreeMap<GroupId, MembershipEpoch>,
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
            "of some group no node that has everything is free of damage. Node {node} was copied, and the copies have its \
             damage until the other nodes have mended it; look at `borealis status` and run `borealis verify`: {damage}"
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
pub(super) fn allocated_bytes(folder: &Path) -> std::io::Result<u64> {
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

/// The folders that a store has for a group's segment: one, and those of earlier stays that are still to be removed.
fn segment_folders(store: &Path, group: GroupId) -> anyhow::Result<Vec<PathBuf>> {
    let segments = store.join("segments");
    let cannot = || format!("cannot list {}", segments.display());
    let mut folders = Vec::new();
    for entry in fs::read_dir(&segments).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        // A segment that came later has the epoch of its membership in the name.
        if entry.file_name().to_string_lossy().split('.').next() == Some(group.to_string().as_str()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// The bytes that making stores of these segments takes at most: the segments themselves, and each source's log.
fn bytes_needed<'a>(sources: impl Iterator<Item = &'a (GroupId, PathBuf)>) -> anyhow::Result<u64> {
    let measure = |folder: PathBuf| {
        allocated_bytes(&folder).with_context(|| format!("cannot measure {}", folder.display()))
    };
    let (mut sum, mut stores) = (0, BTreeSet::new());
    for (group, store) in sources {
        for folder in segment_folders(store, *group)? {
            sum += measure(folder)?;
        }
        if stores.insert(store) {
            sum += measure(store.join("log"))?;
        }
    }
    Ok(sum)
}

/// Checks that so much fits.
pub(super) fn require_space(needed: u64, nodes: &Path) -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let found =
        statvfs(nodes).with_context(|| format!("cannot see how much of {} is free", nodes.display()))?;
    let available = found.blocks_available().saturating_mul(found.fragment_size());
    if available < needed {
        bail!(
            "the copies take {} MiB and {} MiB are free in {}; make room and repeat the command. Nothing else was changed",
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
        let left: Vec<NodeId> = self.wanted_nodes().into_iter().filter(|id| !lost.contains(id)).collect();
        for GroupMembers { group, nodes } in self.complete_members().iter() {
            let count = nodes.iter().filter(|node| left.contains(node)).count();
            if count < READ_QUORUM {
                bail!(
                    "{count} of {} nodes of group {group} would be left, and {READ_QUORUM} are needed to see every \
                     acknowledged commit; nothing was changed. Bring back the folder of one more node, on whatever disk it is",
                    nodes.len()
                );
            }
        }
        let runs = |id| self.node_process(id).or_else(|| self.stopping_node(id)).is_some();
        if let Some(&running) = lost.iter().find(|&&id| runs(id)) {
            bail!(
                "node {running} runs; only a node that is lost for good is replaced. If it is to be given up, kill it first: \
                 `borealis node kill {running}`"
            );
        }
        if self.driver_process(WRITER).or_else(|| self.stopping_driver(WRITER)).is_some() {
            bail!(
                "instance {WRITER} runs; stop it first with `borealis instance stop`, or kill it if it hangs"
            );
        }
        Ok(Replacement { lost: lost.into_iter().collect(), left })
    }

    /// Replaces nodes by ones made of the segments of those that are left. All nodes run afterwards. May be repeated after a
    /// failure.
    ///
    /// # Errors
    /// When a node that is left does not start, those that are left cannot agree, or a store cannot be made. No node's
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
        // What the segments say, for what is noted of it may be old.
        let groups = complete_members_of(&agreed.memberships);
        let (by_group, warnings) = self.choose_sources(&groups, &agreed.complete, &lost)?;
        let sources: BTreeSet<NodeId> = by_group.values().copied().collect();
        let stopped: Vec<NodeId> = sources.iter().copied().collect();
        self.stop_nodes(&stopped)?;
        let made = self.make_and_exchange(&replacement.lost, &groups, &by_group);
        // Whatever became of the copies, the sources go on.
        self.start_nodes(&stopped)?;
        let set_aside = made?;
        self.start_nodes(&replacement.lost)?;
        Ok(Replaced { sources, end: agreed.durable.end, set_aside, warnings })
    }

    /// For each group that a lost node hosts the node to copy, of those that have everything of it; and what is wrong with
    /// the chosen ones.
    fn choose_sources(
        &self,
        groups: &Membership,
        complete: &BTreeMap<GroupId, Vec<NodeId>>,
        lost: &BTreeSet<NodeId>,
    ) -> anyhow::Result<(Sources, BTreeSet<String>)> {
        let mut known: BTreeMap<NodeId, Candidate> = BTreeMap::new();
        let (mut sources, mut warnings) = (Sources::new(), BTreeSet::new());
        for GroupMembers { group, .. } in
            groups.iter().filter(|of| of.nodes.iter().any(|node| lost.contains(node)))
        {
            let members = complete.get(group).into_iter().flatten();
            let mut candidates: Vec<Candidate> = members
                .map(|&node| known.entry(node).or_insert_with(|| self.ask_candidate(node)).clone())
                .collect();
            // Who has learned of the newest membership first: the copies tell of what they are made of.
            candidates.sort_by_key(|candidate| Reverse(candidate.memberships.get(group).copied()));
            let (source, warning) = choose_source(&candidates)
                .with_context(|| format!("no node can be copied for group {group}"))?;
            sources.insert(*group, source);
            warnings.extend(warning);
        }
        Ok((sources, warnings))
    }

    /// Asks a node that has everything how it is; one that does not answer is as good as failed.
    fn ask_candidate(&self, node: NodeId) -> Candidate {
        let asked = self.node_client(node, Timeouts::default()).and_then(|mut client| client.status());
        match asked {
            Ok(status) => Candidate {
                node,
                damage: status.damage,
                failure: status.failure,
                memberships: status
                    .segments
                    .iter()
                    .map(|segment| (segment.group, segment.membership_epoch))
                    .collect(),
            },
            Err(error) => Candidate {
                node,
                damage: None,
                failure: Some(error.to_string()),
                memberships: BTreeMap::new(),
            },
        }
    }

    /// Makes all stores beside the nodes' folders, then puts them in their places.
    fn make_and_exchange(
        &mut self,
        lost: &[NodeId],
        groups: &Membership,
        by_group: &Sources,
    ) -> anyhow::Result<Vec<PathBuf>> {
        let nodes = self.directory.join("nodes");
        let segments: Vec<(NodeId, Vec<(GroupId, PathBuf)>)> =
            lost.iter().map(|&node| (node, self.segments_for(groups.groups_on(node), by_group))).collect();
        require_space(bytes_needed(segments.iter().flat_map(|(_, of_node)| of_node))?, &nodes)?;
        let made = self.make_stores(&segments).inspect_err(|_| {
            // They would fill the disk for the next attempt, and for the nodes that are left.
            let _ = remove_unfinished_copies(&nodes);
        })?;
        let mut set_aside = Vec::new();
        for Made { node, incarnation, folder } in made {
            let place = self.node_directory(node);
            if place.exists() {
                let name = free_name(&place)?;
                rename(&place, &name)?;
                set_aside.push(name);
            }
            rename(&folder, &place)?;
            let entry = self.catalog.nodes.iter_mut().find(|entry| entry.id == node);
            entry.with_context(|| format!("there is no node {node}"))?.incarnation = incarnation;
        }
        fs::File::open(&nodes)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot sync {}", nodes.display()))?;
        self.catalog.save(&self.directory)?;
        Ok(set_aside)
    }

    /// The groups that a node hosts, and the store that each is to be taken from.
    fn segments_for(&self, groups: GroupSet, by_group: &Sources) -> Vec<(GroupId, PathBuf)> {
        let store_of = |source| self.node_directory(source).join(STORE_FOLDER_NAME);
        groups.iter().filter_map(|group| Some((group, store_of(*by_group.get(&group)?)))).collect()
    }

    /// Makes a store for each of these nodes.
    fn make_stores(&self, segments: &[(NodeId, Vec<(GroupId, PathBuf)>)]) -> anyhow::Result<Vec<Made>> {
        let mut made = Vec::new();
        for (node, of_node) in segments {
            let incarnation = format!("{:032x}", random_number()?);
            let folder = self.node_directory(*node).with_extension("new");
            self.make_store(*node, &incarnation, of_node, &folder)
                .with_context(|| format!("cannot make node {node} of the other nodes' segments"))?;
            made.push(Made { node: *node, incarnation, folder });
        }
        Ok(made)
    }

    fn make_store(
        &self,
        id: NodeId,
        incarnation: &str,
        segments: &[(GroupId, PathBuf)],
        folder: &Path,
    ) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut entry = self.node(id)?.clone();
        incarnation.clone_into(&mut entry.incarnation);
        let mut config = self.node_config(&entry)?;
        folder.clone_into(&mut config.directory);
        let config_file = save_node_config(&config)?;
        let mut words = vec!["internal".to_owned(), "gather-node".to_owned()];
        for (group, store) in segments {
            let store = store.to_str().context("the cluster's directory has a name that is not UTF-8")?;
            words.extend(["--segment".to_owned(), format!("{group}={store}")]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        process::run_to_end(&words, &config_file)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: u16, damage: Option<&str>, failure: Option<&str>) -> Candidate {
        let text = |text: &str| text.to_owned();
        Candidate {
            node: NodeId(node),
            damage: damage.map(text),
            failure: failure.map(text),
            memberships: BTreeMap::new(),
        }
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
        // Group 0 was made with the store, group 7 came later, and group 77 is another one.
        for (folder, mib) in [("0", 1), ("7.3", 2), ("77", 8), ("77.7", 8)] {
            let segment = store.join("segments").join(folder);
            fs::create_dir_all(&segment).unwrap();
            fs::write(segment.join("pages"), vec![1; mib << 20]).unwrap();
        }
        let segments = [0, 7].map(|group| (GroupId(group), store.clone()));
        let bytes = bytes_needed(segments.iter()).unwrap();
        assert!((6 << 20..7 << 20).contains(&bytes), "{bytes} bytes: both segments, and the log once");
        require_space(bytes, nodes).unwrap();
        let error = require_space(u64::MAX, nodes).unwrap_err().to_string();
        assert!(error.contains("make room and repeat the command"), "{error}");
    }
}
