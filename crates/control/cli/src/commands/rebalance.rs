//! Moving segments until every node of a zone has as many as the others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use borealis_controller::catalog::records::{Fleet, FleetGroup, MoveRecord, NodeState, Record};
use borealis_local::cluster::Cluster;
use borealis_local::fleet_records;
use borealis_local::local_host::lost;
use borealis_spec::assignment::{Host, Move, plan};
use borealis_types::NodeId;

/// Plans the moves, and enters them in the controller's catalog if `yes`.
pub fn rebalance(dir: &Path, yes: bool) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let fleet = fleet_records::update(&cluster, |_| Ok(Vec::new()))?;
    let moves = moves(&cluster, &fleet)?;
    if moves.is_empty() {
        println!("nothing to move: the nodes of each zone have as many segments as can be");
        return Ok(ExitCode::SUCCESS);
    }
    for Move { group, from, to } in &moves {
        println!("group {group}: node {from} -> node {to}");
    }
    if !yes {
        eprintln!("nothing was changed; `borealis rebalance --yes` moves {} segments", moves.len());
        return Ok(ExitCode::SUCCESS);
    }
    let volume = cluster.catalog.volume_id();
    let record =
        |&Move { group, from, to }: &Move| MoveRecord { group: FleetGroup { volume, group }, from, to };
    fleet_records::update(&cluster, |fleet| {
        // What was wanted before and is not any more.
        let wanted: BTreeSet<MoveRecord> = moves.iter().map(record).collect();
        let of_volume = fleet.moves.iter().filter(|known| known.group.volume == volume);
        let ended = of_volume.filter(|known| wanted.iter().all(|wanted| wanted.key() != known.key()));
        let ended = ended.map(|known| borealis_controller::catalog::Change::Delete(known.key()));
        Ok(wanted.iter().map(Record::put).chain(ended).collect())
    })?;
    eprintln!(
        "{} segments are moved while everything goes on; `borealis status` says how far it is",
        moves.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// As few moves as there can be. Those of nodes that are emptied or lost are the controller's own matter.
fn moves(cluster: &Cluster, fleet: &Fleet) -> anyhow::Result<Vec<Move>> {
    let is_leaving = |node: NodeId| {
        let state = fleet.nodes.get(&node).map(|record| record.state);
        state != Some(NodeState::Active) || lost(cluster, node).is_some()
    };
    let host = |node: NodeId| {
        let entry = cluster.node(node)?;
        let (zone, is_leaving) = (entry.zone.clone(), is_leaving(node));
        Ok(Host { node, zone, used_bytes: 0, is_leaving })
    };
    let hosts: anyhow::Result<Vec<Host>> = cluster.wanted_nodes().into_iter().map(host).collect();
    let mut moves = plan(&cluster.complete_members(), cluster.catalog.protection_groups, &hosts?)?;
    moves.retain(|planned| !is_leaving(planned.from));
    Ok(moves)
}
