//! What this instance knows of the members of each group, from one start to the next.
//!
//! The configuration says it first. What is learned later, while a server runs, is kept in a file in the instance's folder, which
//! is a hint like the configuration: of each group the newer of the two counts, and the members have the last word. Losing
//! the file loses nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use borealis_client::Memberships;
use borealis_spec::NodeAddress;
use borealis_types::membership::GroupMembership;
use borealis_types::{GroupId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::config::Configured;

/// The file's name in the instance's folder.
const FILE_NAME: &str = "memberships.json";
/// A longer file is none of ours: 64 groups with four sets each, and an address for each member, are far below this.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the file holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Hint {
    /// Of another volume it says nothing.
    volume: VolumeId,
    groups: BTreeMap<GroupId, GroupMembership>,
    nodes: Vec<NodeAddress>,
}

/// What the configuration says of the members of each group, or the file if that is newer.
///
/// # Errors
/// When the configuration does not say who the members of a group are.
pub fn known(config: &Configured) -> anyhow::Result<Memberships> {
    let mut memberships = Memberships::new(config.group_memberships()?, config.nodes.iter().cloned());
    let path = path(&config.instance_dir);
    match read(&path) {
        Ok(hint) if hint.volume == config.volume => {
            memberships.add_addresses(hint.nodes);
            memberships.adopt(&hint.groups);
        }
        Ok(_) => tracing::warn!("{} is of another volume and is passed over", path.display()),
        Err(error) if is_missing(&error) => {}
        Err(error) => tracing::warn!("{error:#}; the nodes will say who the members are"),
    }
    Ok(memberships)
}

/// Puts down what is known for the next start. That it cannot be is no failure.
pub fn remember(config: &Configured, memberships: &Memberships) {
    let hint =
        Hint { volume: config.volume, groups: memberships.groups().clone(), nodes: memberships.nodes() };
    if let Err(error) = write(&path(&config.instance_dir), &hint) {
        tracing::warn!("{error:#}; the next start has to learn the memberships from the nodes again");
    }
}

/// What has changed, for the log: each group's members and their epoch.
#[must_use]
pub fn in_words(memberships: &Memberships, groups: &[GroupId]) -> String {
    let of_group = |group: &GroupId| {
        let membership = memberships.of(*group)?;
        let members: Vec<String> = membership.members().iter().map(ToString::to_string).collect();
        Some(format!("group {group}: membership {} of nodes {}", membership.epoch(), members.join(", ")))
    };
    groups.iter().filter_map(of_group).collect::<Vec<_>>().join("; ")
}

fn path(instance_dir: &Path) -> PathBuf {
    instance_dir.join(FILE_NAME)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read(path: &Path) -> anyhow::Result<Hint> {
    use std::io::Read;
    let cannot = || format!("cannot read {}", path.display());
    let mut text = Vec::new();
    let file = std::fs::File::open(path).with_context(cannot)?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).with_context(cannot)?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Replaces the file as a whole. Nothing is synced: after a loss of power it may be gone, or be damaged.
fn write(path: &Path, hint: &Hint) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let text = serde_json::to_vec_pretty(hint).context("memberships as JSON")?;
    std::fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use borealis_spec::{DriverConfig, Membership, Tuning};
    use borealis_types::membership::{MembershipState, Replacement, Transition};
    use borealis_types::{AvailabilityZone, InstanceId, MembershipEpoch, NodeId, Placement, PostgresVersion};

    /// An instance of a volume with this many groups on nodes 1 to 6, whose sockets and its own files are in `folder`.
    pub(crate) fn configured(folder: &Path, groups: u16) -> Configured {
        let placement = Placement::new(groups).expect("a number of groups that is allowed");
        let members = [1, 2, 3, 4, 5, 6].map(NodeId);
        let told = DriverConfig {
            volume: VolumeId(1),
            placement,
            version: PostgresVersion::V15,
            nodes: members.iter().map(|node| address(folder, node.0)).collect(),
            tls: None,
            groups: Membership::everyone_has_everything(placement, &members),
            memberships: BTreeMap::new(),
            instance: InstanceId(1),
            instance_dir: folder.to_owned(),
            memory_dir: "/nonexistent".into(),
            postgres_bin_dir: "/nonexistent".into(),
            shim_library: "/nonexistent".into(),
            port: 0,
            postgres_user: None,
            settings: BTreeMap::new(),
            metrics_listen: None,
            tuning: Tuning::default(),
        };
        Configured::new(told).expect("it names no certificate")
    }

    /// Where a node of such a volume listens.
    pub(crate) fn address(folder: &Path, node: u16) -> NodeAddress {
        let address = folder.join(node.to_string()).display().to_string().parse().expect("a path");
        NodeAddress { node: NodeId(node), zone: AvailabilityZone("az1".into()), address }
    }

    /// The second membership of a group of nodes 1 to 6: node 7 is about to replace node 6.
    pub(crate) fn seven_for_six(first: &GroupMembership) -> GroupMembership {
        let replacement = Replacement { old: NodeId(6), new: NodeId(7) };
        first.after(Transition::Begin(replacement)).expect("6 is a member")
    }

    #[test]
    fn what_was_learned_is_known_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = configured(folder.path(), 2);
        let mut memberships = known(&config).expect("the configuration is sound");
        assert_eq!(memberships.made_for(), [0, 1].map(|group| (GroupId(group), MembershipEpoch(1))));
        let second = seven_for_six(&memberships.groups()[&GroupId(1)]);
        let state = MembershipState::new(second.clone());
        let at = borealis_wire::Whereabouts {
            node: NodeId(7),
            zone: AvailabilityZone("az1".into()),
            address: folder.path().join("7").display().to_string(),
        };
        for node in [1, 2, 3] {
            memberships.take(NodeId(node), &[(GroupId(1), state.clone())], std::slice::from_ref(&at));
        }
        assert_eq!(
            in_words(&memberships, &[GroupId(1)]),
            "group 1: membership 2 of nodes 1, 2, 3, 4, 5, 6, 7"
        );
        remember(&config, &memberships);
        let again = known(&config).expect("the configuration is sound");
        assert_eq!(again.groups(), memberships.groups());
        assert_eq!(again.nodes(), memberships.nodes());
        assert!(again.nodes().contains(&address(folder.path(), 7)));
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_volume_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = configured(folder.path(), 1);
        let first = known(&config).expect("the configuration is sound");
        let groups = BTreeMap::from([(GroupId(0), seven_for_six(&first.groups()[&GroupId(0)]))]);
        let mut hint = Hint { volume: VolumeId(2), groups, nodes: Vec::new() };
        write(&path(folder.path()), &hint).expect("a folder to write to");
        assert_eq!(known(&config).expect("sound").groups(), first.groups());
        std::fs::write(path(folder.path()), "{").expect("a folder to write to");
        assert_eq!(known(&config).expect("sound").groups(), first.groups());
        hint.volume = config.volume;
        write(&path(folder.path()), &hint).expect("a folder to write to");
        assert_eq!(known(&config).expect("sound").groups(), &hint.groups);
    }

    #[test]
    fn a_configuration_that_is_newer_than_the_file_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = configured(folder.path(), 1);
        remember(&config, &known(&config).expect("sound"));
        let second = seven_for_six(&config.group_memberships().expect("sound")[&GroupId(0)]);
        config.told.memberships.insert(GroupId(0), second.clone());
        assert_eq!(known(&config).expect("sound").of(GroupId(0)), Some(&second));
    }
}
