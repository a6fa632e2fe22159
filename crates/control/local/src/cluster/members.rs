//! Who has which group by now, and nodes that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use borealis_client::Timeouts;
use borealis_conductor::observation::newest_membership;
use borealis_controller::catalog::CatalogError;
use borealis_controller::catalog::records::{Fleet, FleetGroup, NodeState};
use borealis_quorum::membership::GroupMembership;
use borealis_spec::{GroupMembers, Membership};
use borealis_types::membership::MembershipState;
use borealis_types::{AvailabilityZone, GroupId, NodeId};

use super::create::random_number;
use super::folders::{free_name, rename};
use super::{Cluster, save_node_config};
use crate::catalog::NodeEntry;
use crate::embedded_catalog::EmbeddedCatalog;
use crate::process;

/// A node that does not answer within this is one that does not run.
const ASK_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(2) };

/// What became of a node's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Left {
    /// There was none.
    Nothing,
    /// It has another name now.
    SetAside(PathBuf),
    /// It is gone.
    Deleted,
}

/// Which six nodes have everything of each group.
pub(super) fn complete_members_of(memberships: &BTreeMap<GroupId, GroupMembership>) -> Membership {
    let members = |(&group, membership): (&GroupId, &GroupMembership)| GroupMembers {
        group,
        nodes: membership.base().to_vec(),
    };
    memberships.iter().map(members).collect()
}

impl Cluster {
    /// What the controller's catalog says, `fleet.json`; `None` if there is none yet, or it is lost.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn fleet(&self) -> Result<Option<Fleet>, CatalogError> {
        EmbeddedCatalog::peek(&self.directory)?.map(|listing| Fleet::read(&listing)).transpose()
    }

    /// The membership of every group: as it was seen last. It is a hint: the segments know better, and tell whoever asks any of
    /// them. Where nothing is noted, because `fleet.json` is new or lost, the nodes that run are asked.
    #[must_use]
    pub fn memberships(&self) -> BTreeMap<GroupId, GroupMembership> {
        let mut memberships = self.first_memberships();
        let volume = self.catalog.volume_id();
        // What cannot be read is no worse than what is lost.
        let noted = self.fleet().ok().flatten().map(|fleet| fleet.memberships).unwrap_or_default();
        let mut said: Option<BTreeMap<GroupId, BTreeMap<NodeId, MembershipState>>> = None;
        for (&group, known) in &mut memberships {
            let newest = match noted.get(&FleetGroup { volume, group }) {
                Some(record) => Some(record.membership.clone()),
                None => {
                    let said = said.get_or_insert_with(|| self.ask_memberships());
                    said.get(&group).and_then(|claims| newest_membership(Some(known), claims))
                }
            };
            if let Some(newest) = newest.filter(|newest| newest.epoch() > known.epoch()) {
                *known = newest;
            }
        }
        memberships
    }

    /// What every node that runs stores of each group's memberships.
    fn ask_memberships(&self) -> BTreeMap<GroupId, BTreeMap<NodeId, MembershipState>> {
        let ask = |node: NodeId| {
            let mut client = self.node_client(node, ASK_TIMEOUTS)?;
            client.memberships().map(|(states, _)| states)
        };
        let mut said: BTreeMap<GroupId, BTreeMap<NodeId, MembershipState>> = BTreeMap::new();
        std::thread::scope(|scope| {
            let questions: Vec<_> = self
                .catalog
                .nodes
                .iter()
                .filter_map(|node| {
                    let thread = std::thread::Builder::new().name(format!("ask-{}", node.id));
                    let question = thread.spawn_scoped(scope, move || ask(node.id).unwrap_or_default());
                    // One that cannot be asked for want of a thread has not answered.
                    Some((node.id, question.ok()?))
                })
                .collect();
            for (node, question) in questions {
                for (group, state) in question.join().expect("asking does not panic") {
                    said.entry(group).or_default().insert(node, state);
                }
            }
        });
        said
    }

    /// The memberships that the volume was made with.
    #[must_use]
    pub fn first_memberships(&self) -> BTreeMap<GroupId, GroupMembership> {
        self.catalog.groups.first_memberships()
    }

    /// Which six nodes have everything of each group by now, as far as is known.
    #[must_use]
    pub fn complete_members(&self) -> Membership {
        complete_members_of(&self.memberships())
    }

    /// Nodes that were emptied and are not to run any more, though their folders are still there.
    #[must_use]
    pub fn removed_nodes(&self) -> BTreeSet<NodeId> {
        let Ok(Some(fleet)) = self.fleet() else { return BTreeSet::new() };
        let removed = fleet.nodes.values().filter(|record| record.state == NodeState::Removed);
        removed.map(|record| record.node).collect()
    }

    /// The nodes that are to run.
    #[must_use]
    pub fn wanted_nodes(&self) -> Vec<NodeId> {
        let removed = self.removed_nodes();
        self.catalog.nodes.iter().map(|node| node.id).filter(|node| !removed.contains(node)).collect()
    }

    /// Of these nodes those whose stores are gone, and which are not worth starting therefore.
    #[must_use]
    pub fn without_store(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.iter().copied().filter(|&node| self.store_is_gone(node)).collect()
    }

    /// Whether there is no store where a node's should be.
    #[must_use]
    pub fn store_is_gone(&self, node: NodeId) -> bool {
        let store = self.node_directory(node).join(borealis_spec::node::STORE_FOLDER_NAME);
        fs::metadata(store).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Makes a node that hosts nothing yet, with a number that no node ever had, and enters it in `cluster.json`. It is not
    /// started.
    ///
    /// # Errors
    /// When there is no such zone, or it cannot be made. What is left then is made anew by the next attempt.
    pub fn add_node(&mut self, zone: &AvailabilityZone) -> anyhow::Result<NodeId> {
        self.nodes_in_zone(&zone.0)?;
        let node = self.next_node()?;
        let port = match self.speaks_tls() {
            true => crate::ports::find_free(1)?.first().copied(),
            false => None,
        };
        let entry = NodeEntry {
            id: node,
            zone: zone.clone(),
            incarnation: format!("{:032x}", random_number()?),
            port,
        };
        let place = self.node_directory(node);
        let folder = place.with_extension("new");
        for leftover in [&place, &folder] {
            // Of an attempt that was interrupted before it was entered anywhere: it never ran.
            if leftover.exists() {
                fs::remove_dir_all(leftover)
                    .with_context(|| format!("cannot remove {}", leftover.display()))?;
            }
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        self.catalog.nodes.push(entry.clone());
        let mut config = self.node_config(&entry)?;
        config.directory.clone_from(&folder);
        let config_file = save_node_config(&config)?;
        process::run_to_end(&["internal", "create-node"], &config_file)
            .with_context(|| format!("cannot create node {node}"))?;
        rename(&folder, &place)?;
        fs::File::open(self.directory.join("nodes"))
            .and_then(|nodes| nodes.sync_all())
            .context("cannot sync the nodes' folder")?;
        self.catalog.save(&self.directory)?;
        Ok(node)
    }

    /// Above every number that `cluster.json` or the controller's catalog has a record of.
    fn next_node(&self) -> anyhow::Result<NodeId> {
        let next = self.catalog.next_node()?;
        let known = self.fleet()?.and_then(|fleet| fleet.nodes.keys().next_back().copied());
        let after = known.map(|last| last.0.checked_add(1).context("there are no numbers left for nodes"));
        let after = after.transpose()?.map_or(next, NodeId);
        Ok(next.max(after))
    }

    /// Stops a node that hosts nothing. If its store is gone, it is struck from `cluster.json`, too, and what is left of its
    /// folder is set aside.
    ///
    /// # Errors
    /// When it does not end, or something cannot be written.
    pub fn retire_node(&mut self, node: NodeId) -> anyhow::Result<()> {
        if self.node(node).is_err() {
            return Ok(());
        }
        self.stop_nodes(&[node])?;
        if self.store_is_gone(node) {
            self.strike_node(node, false)?;
        }
        Ok(())
    }

    /// Strikes a node that does not run from `cluster.json`. Its folder is set aside, or deleted.
    ///
    /// # Errors
    /// When it runs, or something cannot be written.
    pub fn strike_node(&mut self, node: NodeId, deletes: bool) -> anyhow::Result<Left> {
        if self.node_process(node).or_else(|| self.stopping_node(node)).is_some() {
            bail!("node {node} runs");
        }
        // First, so that nobody starts it, or misses it, whatever becomes of its folder.
        self.catalog.retired_nodes.insert(node);
        self.catalog.nodes.retain(|entry| entry.id != node);
        self.catalog.save(&self.directory)?;
        let place = self.node_directory(node);
        if !place.exists() {
            return Ok(Left::Nothing);
        }
        if deletes {
            fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
            return Ok(Left::Deleted);
        }
        let name = free_name(&place)?;
        rename(&place, &name)?;
        Ok(Left::SetAside(name))
    }
}
