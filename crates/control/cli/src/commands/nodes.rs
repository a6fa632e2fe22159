//! Nodes come and go: added, emptied, removed.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use borealis_controller::catalog::records::NodeState;
use borealis_local::cluster::{Cluster, Left};
use borealis_local::fleet_records;
use borealis_local::status::Status;
use borealis_local::supervision::{controlling, detached};
use borealis_types::{AvailabilityZone, NodeId};

/// Adds a node to a zone and starts it.
pub fn add(dir: &Path, zone: &str) -> anyhow::Result<ExitCode> {
    let (mut cluster, _lock) = Cluster::open_locked(dir)?;
    let node = cluster.add_node(&AvailabilityZone(zone.to_owned()))?;
    cluster.start_nodes(&[node])?;
    fleet_records::update(&cluster, |_| Ok(Vec::new()))?;
    watch_over(&cluster)?;
    println!("node {node} added in {zone}");
    eprintln!("it hosts nothing yet; `borealis rebalance` says what could be moved to it");
    Ok(ExitCode::SUCCESS)
}

fn watch_over(cluster: &Cluster) -> anyhow::Result<()> {
    detached::start(cluster)?;
    controlling::start(cluster)
}

/// Has a node emptied, or calls that off.
pub fn drain(dir: &Path, id: u16, undo: bool) -> anyhow::Result<ExitCode> {
    let node = NodeId(id);
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    cluster.node(node)?;
    let known = cluster.fleet()?.and_then(|fleet| fleet.nodes.get(&node).map(|record| record.state));
    if undo {
        fleet_records::set_state(&cluster, node, NodeState::Active)?;
        if known == Some(NodeState::Removed) {
            cluster.start_nodes(&[node])?;
        }
        watch_over(&cluster)?;
        println!("node {node} stays");
        return Ok(ExitCode::SUCCESS);
    }
    if known == Some(NodeState::Removed) {
        bail!("node {node} was emptied already; `borealis node remove {node}` strikes it from the cluster");
    }
    fleet_records::set_state(&cluster, node, NodeState::Draining)?;
    println!("node {node} is being emptied");
    explain_drain(&cluster, node)?;
    Ok(ExitCode::SUCCESS)
}

fn explain_drain(cluster: &Cluster, node: NodeId) -> anyhow::Result<()> {
    let segments = cluster.memberships().into_values().filter(|membership| membership.contains(node));
    let zone = &cluster.node(node)?.zone;
    let staying = cluster
        .wanted_nodes()
        .into_iter()
        .filter(|&other| other != node && cluster.node(other).is_ok_and(|entry| entry.zone == *zone));
    if staying.count() < 2 {
        eprintln!(
            "it waits for a node to go to: add one with `borealis node add --az {}`; a group needs two nodes in each zone",
            zone.0
        );
    }
    eprintln!(
        "{} segments go to other nodes of {}, then it is stopped; `borealis status` says how far it is",
        segments.count(),
        zone.0
    );
    if controlling::process(cluster.directory()).is_none() {
        eprintln!("the cluster does not run; it begins when it does");
    }
    Ok(())
}

/// Strikes a node from the cluster that hosts nothing.
pub fn remove(dir: &Path, id: u16, deletes: bool) -> anyhow::Result<ExitCode> {
    let node = NodeId(id);
    let (mut cluster, _lock) = Cluster::open_locked(dir)?;
    cluster.node(node)?;
    let hosted = hosted(&cluster, node);
    if !hosted.is_empty() {
        let groups: Vec<String> = hosted.iter().map(ToString::to_string).collect();
        bail!(
            "node {node} has segments of groups {}; empty it first with `borealis node drain {node}`",
            groups.join(", ")
        );
    }
    // First, so that nothing is moved to it.
    fleet_records::set_state(&cluster, node, NodeState::Removed)?;
    cluster.stop_nodes(&[node])?;
    match cluster.strike_node(node, deletes)? {
        Left::Nothing => println!("node {node} removed"),
        Left::Deleted => println!("node {node} removed, and its folder deleted"),
        Left::SetAside(folder) => println!("node {node} removed; its folder is now {}", folder.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The groups that have a segment on a node, or are about to: as the nodes say now, and as it was seen last.
fn hosted(cluster: &Cluster, node: NodeId) -> Vec<u16> {
    let seen = cluster.memberships().into_iter().filter(|(_, membership)| membership.contains(node));
    let seen = seen.map(|(group, _)| group.0);
    let status = Status::collect(cluster);
    let now = status.protection_groups.iter();
    let now = now.filter(|group| group.members.iter().any(|member| member.node == node.0));
    let mut hosted: Vec<u16> = match status.nodes.iter().any(|state| state.state == "up") {
        // What nodes say now is newer than what was written down.
        true => now.map(|group| group.id).collect(),
        false => seen.collect(),
    };
    hosted.sort_unstable();
    hosted
}
