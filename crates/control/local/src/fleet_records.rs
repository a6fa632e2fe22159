//! What commands write into the controller's catalog.

use std::time::Duration;

use anyhow::bail;
use borealis_controller::catalog::records::{Fleet, NodeRecord, NodeState, Record, Settings};
use borealis_controller::catalog::{Catalog, Change, Condition, Outcome, TRANSACTION_PARTS_MAX, Transaction};
use borealis_types::NodeId;

use crate::cluster::Cluster;
use crate::embedded_catalog::EmbeddedCatalog;
use crate::local_host::missing_records;

/// How often a change is computed anew when somebody else was faster.
const ATTEMPTS_MAX: u32 = 5;
/// More changes than one transaction takes go in several, each with a condition for each of its changes.
const CHANGES_MAX: usize = TRANSACTION_PARTS_MAX;

/// Changes the catalog: `change` is given what it says, with everything in it that `cluster.json` knows, and says what to write.
///
/// # Errors
/// When the catalog cannot be used, `change` refuses, or others keep changing the same entries.
pub fn update(
    cluster: &Cluster,
    change: impl Fn(&Fleet) -> anyhow::Result<Vec<Change>>,
) -> anyhow::Result<Fleet> {
    let mut catalog = EmbeddedCatalog::new(cluster.directory());
    for _ in 0..ATTEMPTS_MAX {
        let fleet = Fleet::read(&catalog.list("")?)?;
        if !commit(&mut catalog, &fleet, &missing_records(cluster, &fleet))? {
            continue;
        }
        let fleet = Fleet::read(&catalog.list("")?)?;
        let changes = change(&fleet)?;
        if commit(&mut catalog, &fleet, &changes)? {
            return Ok(Fleet::read(&catalog.list("")?)?);
        }
    }
    bail!("others keep changing the same entries of the controller's catalog; try again");
}

fn commit(catalog: &mut EmbeddedCatalog, fleet: &Fleet, changes: &[Change]) -> anyhow::Result<bool> {
    for changes in changes.chunks(CHANGES_MAX) {
        let conditions: Vec<Condition> =
            changes.iter().map(|change| fleet.is_as_read(change.key())).collect();
        let transaction = Transaction { conditions, changes: changes.to_vec() };
        if catalog.commit(&transaction)? == Outcome::Conflict {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sets how long a node may be away before it is replaced; zero for ever.
///
/// # Errors
/// As [`update`].
pub fn set_replace_after(cluster: &Cluster, after: Duration) -> anyhow::Result<()> {
    let replace_after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    update(cluster, |fleet| {
        let mut settings = Settings { replace_after_ms, ..fleet.settings };
        if settings.replaces() {
            settings.silent_after_ms = Settings::local().silent_after_ms.min(replace_after_ms);
        }
        Ok(if settings == fleet.settings { Vec::new() } else { vec![settings.put()] })
    })?;
    Ok(())
}

/// Says what shall become of a node.
///
/// # Errors
/// As [`update`], and when there is no such node.
pub fn set_state(cluster: &Cluster, node: NodeId, state: NodeState) -> anyhow::Result<NodeRecord> {
    cluster.node(node)?;
    let fleet = update(cluster, |fleet| {
        let Some(record) = fleet.nodes.get(&node) else { bail!("the catalog has no node {node}") };
        Ok(vec![NodeRecord { state, ..record.clone() }.put()])
    })?;
    Ok(fleet.nodes[&node].clone())
}

#[cfg(test)]
mod tests {
    use borealis_spec::Membership;
    use borealis_types::{AvailabilityZone, Placement, PostgresVersion, VolumeId};

    use super::*;
    use crate::catalog::{Catalog as LocalCatalog, NodeEntry};

    fn cluster() -> (tempfile::TempDir, Cluster) {
        let directory = tempfile::tempdir().expect("temporary folder");
        let placement = Placement::new(2).expect("two groups");
        let mut catalog = LocalCatalog::new(VolumeId(7), placement, PostgresVersion::V15);
        catalog.nodes.extend((1..=6).map(|number: u16| NodeEntry {
            id: NodeId(number),
            zone: AvailabilityZone(format!("az{}", number.div_ceil(2))),
            incarnation: format!("{number:032x}"),
            port: None,
        }));
        let nodes: Vec<NodeId> = catalog.nodes.iter().map(|node| node.id).collect();
        catalog.groups = Membership::everyone_has_everything(placement, &nodes);
        catalog.save(directory.path()).expect("saved");
        let cluster = Cluster::open(directory.path()).expect("opened");
        (directory, cluster)
    }

    #[test]
    fn a_catalog_that_is_lost_is_made_anew_from_what_the_cluster_is() {
        let (directory, cluster) = cluster();
        assert_eq!(cluster.fleet().expect("nothing is wrong"), None);
        set_replace_after(&cluster, Duration::from_secs(7)).expect("written");
        let fleet = cluster.fleet().expect("it can be read").expect("it is there");
        assert_eq!((fleet.nodes.len(), fleet.volumes.len(), fleet.memberships.len()), (6, 1, 0));
        assert_eq!(fleet.settings, Settings { replace_after_ms: 7_000, ..Settings::local() });
        set_replace_after(&cluster, Duration::ZERO).expect("written");
        assert!(!cluster.fleet().expect("read").expect("there").settings.replaces());
        std::fs::remove_file(directory.path().join("fleet.json")).expect("it was there");
        let again = update(&cluster, |_| Ok(Vec::new())).expect("made anew");
        assert_eq!(again.nodes, fleet.nodes);
        assert_eq!(cluster.memberships(), cluster.first_memberships(), "nobody says anything else");
        assert_eq!(again.settings, Settings::local());
    }

    #[test]
    fn a_node_that_is_removed_is_not_wanted_and_what_is_known_of_it_stays() {
        let (_directory, mut cluster) = cluster();
        set_state(&cluster, NodeId(3), NodeState::Removed).expect("written");
        assert_eq!(cluster.wanted_nodes(), [1, 2, 4, 5, 6].map(NodeId));
        update(&cluster, |_| Ok(Vec::new())).expect("read again");
        assert_eq!(cluster.removed_nodes(), [NodeId(3)].into());
        cluster.strike_node(NodeId(3), false).expect("it does not run");
        assert!(cluster.node(NodeId(3)).is_err());
        let fleet = update(&cluster, |_| Ok(Vec::new())).expect("read again");
        assert_eq!(fleet.nodes[&NodeId(3)].state, NodeState::Removed, "its number is not given again");
        assert!(set_state(&cluster, NodeId(9), NodeState::Draining).is_err());
    }
}
