//! The state of a cluster, for people and scripts.

use borealis_client::{NodeClient, Timeouts};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{GroupId, Lsn, NodeId, VolumeEpoch};
use borealis_wire::{Caller, NodeStatus};
use serde::Serialize;

use crate::catalog::InstanceEntry;
use crate::cluster::Cluster;
use crate::driver_socket::ask_driver;

/// State of everything. Field names are part of the command-line contract.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The volume as a whole.
    pub volume: VolumeState,
    /// Every node of the catalog, also those that are down.
    pub nodes: Vec<NodeState>,
    /// Every protection group, by its number.
    pub protection_groups: Vec<GroupState>,
    /// Every instance of the catalog, also those that are down.
    pub instances: Vec<InstanceState>,
}

/// The volume, as the writer knows it, or as the nodes do when there is none.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeState {
    /// Its identity, as 32 hexadecimal digits.
    pub id: String,
    /// The newest epoch a node promised.
    pub epoch: u64,
    /// Volume durable LSN, like `0/1A2B3C`.
    pub vdl: String,
    /// Volume complete LSN, like `0/1A2B3C`.
    pub vcl: String,
}

/// A storage node, and what it says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct NodeState {
    /// Number of the protection group, from 0.
    pub id: u16,
    /// Name of its availability zone.
    pub az: String,
    /// Its process id; none if it does not run.
    pub pid: Option<u32>,
    /// `up`, `down`, `unresponsive` or `failed`.
    pub state: &'static str,
    /// TCP address on which it listens.
    pub address: String,
    /// What stopped it from storing anything more; left out if nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Its counters and gauges, by the names the node gives them.
    pub metrics: serde_json::Map<String, serde_json::Value>,
}

/// A protection group, over what its segments say.
#[derive(Debug, Clone, Serialize)]
pub struct GroupState {
    /// Number of the node, from 1.
    pub id: u16,
    /// Four of six have everything up to here.
    pub pgcl: String,
    /// One entry for each of its six segments.
    pub members: Vec<MemberState>,
}

/// One node's copy of a group.
#[derive(Debug, Clone, Serialize)]
pub struct MemberState {
    /// Number of the node that hosts it.
    pub node: u16,
    /// It has everything of its group up to here.
    pub scl: Option<String>,
    /// `up`, `behind` (less than the group's PGCL) or `down`.
    pub state: &'static str,
}

/// A database instance, and what its driver says.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceState {
    /// Number of the instance, from 1.
    pub id: u16,
    /// What it does: `writer`.
    pub role: &'static str,
    /// `up`, `starting`, `down` or what the driver says.
    pub state: String,
    /// TCP port of its database.
    pub port: u16,
    /// The release of its server, like `15.18`.
    pub server_version: Option<String>,
    /// What a user should know of it, one sentence or more each.
    pub warnings: Vec<String>,
    /// Process id of the postmaster, if the driver says that it runs.
    pub postgres_pid: Option<u64>,
    /// Process id of the driver, if it runs.
    pub driver_pid: Option<u32>,
    /// Where its data directory is, on a memory file system.
    pub data_dir: String,
    /// How long the last recovery took, from the driver's start to the server's.
    pub last_recovery_ms: Option<f64>,
    /// Everything else the driver says.
    pub driver: serde_json::Value,
}

impl Status {
    /// Asks every node, all at the same time, and every driver.
    #[must_use]
    pub fn collect(cluster: &Cluster) -> Status {
        let answers = ask_nodes(cluster);
        let instances: Vec<InstanceState> =
            cluster.catalog.instances.iter().map(|instance| instance_state(cluster, instance)).collect();
        let groups = group_states(cluster, &answers);
        let segments = || answers.iter().filter_map(|(_, answer)| answer.as_ref()).flat_map(|a| &a.segments);
        let known_durable = segments().map(|segment| segment.known_durable.end).max().unwrap_or_default();
        let epoch = segments().map(|segment| segment.promised_epoch).max().unwrap_or(VolumeEpoch::default());
        let from_driver = |name: &str| {
            let driver = instances.iter().find(|instance| instance.state == "up")?;
            Some(driver.driver.get(name)?.as_str()?.to_owned())
        };
        Status {
            volume: VolumeState {
                id: cluster.catalog.volume.clone(),
                epoch: epoch.0,
                vdl: from_driver("vdl").unwrap_or_else(|| known_durable.to_string()),
                vcl: from_driver("vcl").unwrap_or_else(|| known_durable.to_string()),
            },
            nodes: answers.into_iter().map(|(node, _)| node).collect(),
            protection_groups: groups,
            instances,
        }
    }

    /// The status for a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "volume {}  epoch {}  durable to {}\n\nnode  zone  state         process   address\n",
            self.volume.id, self.volume.epoch, self.volume.vdl
        );
        let or_dash = |id: Option<u64>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        for node in &self.nodes {
            text += &format!(
                "{:<5} {:<5} {:<13} {:<9} {}\n",
                node.id,
                node.az,
                node.state,
                or_dash(node.pid.map(u64::from)),
                node.address
            );
            if let Some(failure) = &node.failure {
                text += &format!("      {failure}\n");
            }
        }
        text += "\ngroup  complete to      segments\n";
        for group in &self.protection_groups {
            let members: Vec<String> =
                group.members.iter().map(|member| format!("{}:{}", member.node, member.state)).collect();
            text += &format!("{:<6} {:<16} {}\n", group.id, group.pgcl, members.join(" "));
        }
        text += "\ninstance  role    state     port   PostgreSQL  process   driver   last recovery\n";
        for instance in &self.instances {
            let recovery =
                instance.last_recovery_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
            text += &format!(
                "{:<9} {:<7} {:<9} {:<6} {:<11} {:<9} {:<8} {recovery}\n",
                instance.id,
                instance.role,
                instance.state,
                instance.port,
                instance.server_version.as_deref().unwrap_or("-"),
                or_dash(instance.postgres_pid),
                or_dash(instance.driver_pid.map(u64::from)),
            );
            for warning in &instance.warnings {
                text += &format!("          warning: {warning}\n");
            }
        }
        text
    }
}

/// An instance, as its driver says.
fn instance_state(cluster: &Cluster, instance: &InstanceEntry) -> InstanceState {
    let process = cluster.driver_process(instance.id);
    let answer = ask_driver(&cluster.instance_directory(instance.id)).filter(|_| process.is_some());
    let text = |name: &str| Some(answer.as_ref()?.get(name)?.as_str()?.to_owned());
    let state = match (&process, text("state")) {
        (None, _) => "down".to_owned(),
        (Some(_), Some(state)) if state == "running" => "up".to_owned(),
        (Some(_), Some(state)) => state,
        (Some(_), None) => "starting".to_owned(),
    };
    InstanceState {
        id: instance.id.0,
        role: "writer",
        state,
        port: instance.port,
        server_version: text("server_version"),
        warnings: answer
            .as_ref()
            .and_then(|a| a.get("warnings")?.as_array())
            .into_iter()
            .flatten()
            .filter_map(|warning| Some(warning.as_str()?.to_owned()))
            .collect(),
        postgres_pid: answer.as_ref().and_then(|a| a.get("postgres_pid")?.as_u64()),
        driver_pid: process.map(|process| process.process_id),
        data_dir: cluster.memory_directory(instance).join("data").display().to_string(),
        last_recovery_ms: answer.as_ref().and_then(|a| a.get("last_recovery_ms")?.as_f64()),
        driver: answer.unwrap_or(serde_json::Value::Null),
    }
}

/// Every group, over what the nodes say of their segments.
fn group_states(cluster: &Cluster, answers: &[(NodeState, Option<NodeStatus>)]) -> Vec<GroupState> {
    let state = |group: GroupId| {
        let complete: Vec<(u16, Option<Lsn>)> = answers
            .iter()
            .map(|(node, answer)| {
                let segment = answer
                    .as_ref()
                    .and_then(|status| status.segments.iter().find(|segment| segment.group == group));
                (node.id, segment.map(|segment| segment.segment_complete_lsn))
            })
            .collect();
        let group_complete = write_quorum_lsn(&complete);
        let members = complete
            .into_iter()
            .map(|(node, lsn)| MemberState {
                node,
                scl: lsn.map(|lsn| lsn.to_string()),
                state: match lsn {
                    None => "down",
                    Some(lsn) if lsn < group_complete => "behind",
                    Some(_) => "up",
                },
            })
            .collect();
        GroupState { id: group.0, pgcl: group_complete.to_string(), members }
    };
    cluster.catalog.protection_groups.groups().map(state).collect()
}

/// The highest LSN that a write quorum has reached, given each node's own; zero if too few answered.
fn write_quorum_lsn(complete: &[(u16, Option<Lsn>)]) -> Lsn {
    let nodes: Vec<NodeId> = complete.iter().map(|(node, _)| NodeId(*node)).collect();
    let sets = nodes.try_into().ok().and_then(|nodes| QuorumSets::new(vec![nodes]).ok());
    let reached = |node: NodeId| complete.iter().find(|(id, _)| *id == node.0).and_then(|(_, lsn)| *lsn);
    sets.map_or(Lsn::ZERO, |sets| sets.write_quorum_reached(|node| reached(node).unwrap_or_default()))
}

fn ask_nodes(cluster: &Cluster) -> Vec<(NodeState, Option<NodeStatus>)> {
    // In parallel: one that hangs must not add its time-out to every other's.
    std::thread::scope(|scope| {
        let questions: Vec<_> = cluster
            .catalog
            .nodes
            .iter()
            .map(|node| {
                scope.spawn(move || {
                    let process = cluster.node_process(node.id);
                    let answer = process.and_then(|_| {
                        NodeClient::connect(
                            &cluster.endpoint(node.id),
                            cluster.catalog.volume_id(),
                            node.id,
                            Caller::Client,
                            Timeouts::default(),
                        )
                        .and_then(|mut client| client.status())
                        .ok()
                    });
                    let failure = answer.as_ref().and_then(|status| status.failure.clone());
                    let state = match (&process, &answer, &failure) {
                        (None, ..) => "down",
                        (Some(_), None, _) => "unresponsive",
                        (Some(_), Some(_), Some(_)) => "failed",
                        (Some(_), Some(_), None) => "up",
                    };
                    let metrics = answer
                        .iter()
                        .flat_map(|status| &status.metrics)
                        .map(|(name, value)| (name.clone(), (*value).into()))
                        .collect();
                    let state = NodeState {
                        id: node.id.0,
                        az: node.zone.0.clone(),
                        pid: process.map(|process| process.process_id),
                        state,
                        address: cluster.endpoint(node.id).to_string(),
                        failure,
                        metrics,
                    };
                    (state, answer)
                })
            })
            .collect();
        questions.into_iter().map(|question| question.join().expect("asking a node does not panic")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_complete_where_four_of_six_are() {
        // Of six nodes, those that are listed have answered.
        let lsns = |list: &[u64]| {
            let answers = list.iter().map(|&lsn| Some(Lsn(lsn))).chain(std::iter::repeat(None));
            write_quorum_lsn(&(1..=6).zip(answers).collect::<Vec<_>>())
        };
        assert_eq!(lsns(&[10, 20, 30, 40, 50, 60]), Lsn(30));
        assert_eq!(lsns(&[50, 50, 50, 50]), Lsn(50));
        assert_eq!(lsns(&[50, 50, 50]), Lsn(0));
    }
}
