//! Kill and start single parts, as failures and operators do.

use std::path::Path;
use std::process::ExitCode;

use borealis_local::cluster::Cluster;
use borealis_local::status::ask_some_nodes;
use borealis_local::supervision::{controlling, detached};
use borealis_types::{InstanceId, NodeId};

use crate::progress::Step;

/// SIGKILLs nodes.
pub fn kill_nodes(dir: &Path, ids: &[u16]) -> anyhow::Result<ExitCode> {
    let ids: Vec<NodeId> = ids.iter().copied().map(NodeId).collect();
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    report_killed(&cluster, &ids)
}

/// SIGKILLs the nodes of a zone.
pub fn kill_zone(dir: &Path, zone: &str) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let nodes = cluster.nodes_in_zone(zone)?;
    report_killed(&cluster, &nodes)
}

fn report_killed(cluster: &Cluster, ids: &[NodeId]) -> anyhow::Result<ExitCode> {
    let killed = cluster.kill_nodes(ids)?;
    for id in ids {
        if killed.contains(id) {
            println!("node {id} killed");
        } else {
            println!("node {id} was not running");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts nodes; all that are down if none is named.
pub fn start_nodes(dir: &Path, ids: &[u16]) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let ids: Vec<NodeId> =
        if ids.is_empty() { cluster.wanted_nodes() } else { ids.iter().copied().map(NodeId).collect() };
    report_started(&cluster, &ids)
}

/// Starts the nodes of a zone.
pub fn start_zone(dir: &Path, zone: &str) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let nodes = cluster.nodes_in_zone(zone)?;
    report_started(&cluster, &nodes)
}

fn report_started(cluster: &Cluster, ids: &[NodeId]) -> anyhow::Result<ExitCode> {
    let step = Step::begin("starting nodes");
    let started = cluster.start_nodes(ids);
    step.done();
    // Also when one of several did not start.
    if cluster.anything_runs() {
        detached::start(cluster)?;
        controlling::start(cluster)?;
    }
    started?;
    // A process that runs and answers may have failed all the same, now or long ago.
    let mut all_up = true;
    for node in ask_some_nodes(cluster, ids) {
        println!("node {} {}", node.id, node.state);
        if node.state != "up" {
            all_up = false;
            let advice = match node.state {
                "failed" => format!(
                    ". It keeps no promise any more: end it with `borealis node kill {}`, mend the cause, and start it again",
                    node.id
                ),
                _ => "; `borealis status` says how it goes on".to_owned(),
            };
            let reason = node.failure.as_deref().unwrap_or("it does not say why");
            eprintln!("borealis: node {} {}: {reason}{advice}", node.id, node.state);
        }
    }
    Ok(if all_up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// SIGKILLs an instance.
pub fn kill_instance(dir: &Path, id: u16) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let killed = cluster.kill_instance(InstanceId(id))?;
    println!("instance {id} {}", if killed { "killed" } else { "was not running" });
    Ok(ExitCode::SUCCESS)
}

/// Stops an instance in order.
pub fn stop_instance(dir: &Path, id: u16) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let stopped = cluster.stop_instance(InstanceId(id))?;
    println!("instance {id} {}", if stopped { "stopped" } else { "was not running" });
    Ok(ExitCode::SUCCESS)
}

/// Starts an instance.
pub fn start_instance(dir: &Path, id: u16) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    let instance = cluster.instance(InstanceId(id))?;
    let step = Step::begin("recovering and starting PostgreSQL");
    let elapsed = cluster.start_instance(InstanceId(id))?;
    step.done();
    detached::start(&cluster)?;
    controlling::start(&cluster)?;
    eprintln!("instance {id} answered its first query {} ms after the start", elapsed.as_millis());
    println!("{}", Cluster::url(instance));
    Ok(ExitCode::SUCCESS)
}
