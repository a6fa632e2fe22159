//! The state of a cluster, for people and scripts.

mod backup;
mod certificates;
mod healing;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use borealis_client::Timeouts;
use borealis_conductor::questions::Answer;
use borealis_quorum::membership::GroupMembership;
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{GroupId, Lsn, NodeId};
use serde::Serialize;

use crate::catalog::{InstanceEntry, NodeEntry};
use crate::cluster::{Cluster, is_not_listening};
use crate::driver_socket::driver_status;
use crate::process::is_closed_to_us;
use crate::supervision::{Ended, Restarts, controlling, detached, serving};
pub use backup::BackupState;
pub use certificates::CertificateState;
pub use healing::{ChangeState, Healing};

/// What is said where there is no backup (decision 33).
const NO_BACKUP: &str = "backup: none; `borealis up --backup URL` begins one";

/// Whoever looks does not want to wait for a node that stands still.
const ANSWER_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(1), call: Duration::from_secs(3) };

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
    /// How far the backup is; left out if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupState>,
    /// The certificate of each part that runs, and of the commands; empty if all nodes listen on sockets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateState>,
    /// What changes of who has which group, and what the controller makes of what is not as it should be.
    pub healing: Healing,
    /// The process that starts again what dies, if it is one of its own: `borealis up` without `--detach` does it itself.
    pub supervisor_pid: Option<u32>,
    /// The `borealis up` that serves in the foreground, and does the same.
    pub serving_pid: Option<u32>,
    /// The controller, which has lost nodes replaced.
    pub controller_pid: Option<u32>,
    /// Something of the cluster is to run, and nobody starts it again when it dies.
    pub unwatched: bool,
}

/// The volume, as the writer knows it, or as the nodes do when there is none.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeState {
    /// Its identity, as 32 hexadecimal digits.
    pub id: String,
    /// `up`, `degraded`, `no write quorum`, `no read quorum`, `down` or `unknown`.
    pub state: &'static str,
    /// What is not as it should be; left out while it is `up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The newest epoch a node promised; `None` if no node answers.
    pub epoch: Option<u64>,
    /// Volume durable LSN, like `0/1A2B3C`; `None` if neither the writer nor a node answers.
    pub vdl: Option<String>,
    /// Volume complete LSN, like `0/1A2B3C`; as above.
    pub vcl: Option<String>,
}

/// A storage node, and what it says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct NodeState {
    /// Number of the node, from 1.
    pub id: u16,
    /// Name of its availability zone.
    pub az: String,
    /// Its process id; none if it does not run.
    pub pid: Option<u32>,
    /// `up`; `starting`: it runs, and does not listen yet; `stopping`: a command was to end it, and it has not ended;
    /// `failed`: it runs and stores nothing more, or has died too often; `unresponsive`; `down`; `removed`: it was emptied, and
    /// is not to run any more; or `unknown`: this user may not ask.
    pub state: &'static str,
    /// TCP address on which it listens.
    pub address: String,
    /// Why it is not `up`, if that is known; or why it was started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What keeps it from some of its work for now, such as a disk that is nearly full; left out if nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hindrance: Option<String>,
    /// What is damaged or in quarantine on it and not repaired yet, while it goes on; left out if nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// Groups that it has a segment of, as a member or to become one.
    pub groups: usize,
    /// Its segments are to go to other nodes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// How far it is with taking pages from its peers, for what no log continues any more; left out if there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catching_up: Option<String>,
    /// Its counters and gauges, by the names the node gives them.
    pub metrics: serde_json::Map<String, serde_json::Value>,
}

/// A protection group, over what its segments say.
#[derive(Debug, Clone, Serialize)]
pub struct GroupState {
    /// Number of the protection group, from 0.
    pub id: u16,
    /// Four of six have everything up to here; `None` if fewer answer and the writer does not know, either.
    pub pgcl: Option<String>,
    /// Which membership of the group it is, counted from 1.
    pub membership: u64,
    /// One entry for each of its six segments, and one for each that is to take the place of another.
    pub members: Vec<MemberState>,
}

/// One node's copy of a group.
#[derive(Debug, Clone, Serialize)]
pub struct MemberState {
    /// Number of the node that hosts it.
    pub node: u16,
    /// It has everything of its group up to here.
    pub scl: Option<String>,
    /// `up`, `behind` (less than the group's PGCL), `joining` (it does not count yet), or why the node says nothing of it: `down`, `starting`,
    /// `stopping`, `failed`, `unresponsive`, `unknown`.
    pub state: &'static str,
}

/// A database instance, and what its driver says.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceState {
    /// Number of the instance, from 1.
    pub id: u16,
    /// What it does: `writer`.
    pub role: &'static str,
    /// `up`; `waiting`: it runs, and commits wait for the write quorum; `starting`; `stopping`, as a node; `down`; `failed`:
    /// it has died and is not started again; `unresponsive`; `unknown`: this user may not ask; or what the driver says.
    pub state: String,
    /// Why it is not `up`, or was started again; left out if there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
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
        let picture = healing::picture(cluster, &answers);
        let memberships = healing::memberships(cluster, &picture);
        let condition = volume::condition(&answers, &memberships);
        let instances: Vec<InstanceState> = cluster
            .catalog
            .instances
            .iter()
            .map(|instance| instance_state(cluster, instance, &condition))
            .collect();
        let driver = instances.iter().find(|instance| matches!(instance.state.as_str(), "up" | "waiting"));
        let driver = driver.map(|instance| &instance.driver);
        let groups = group_states(&memberships, &answers, driver);
        let healing = healing::Healing::of(&picture, &answers);
        let answered = answers.iter().any(|(_, answer)| answer.is_some());
        let segments =
            || answers.iter().filter_map(|(_, answer)| answer.as_ref()).flat_map(|a| &a.status.segments);
        let known_durable = segments().map(|segment| segment.known_durable.end).max();
        let epoch = segments().map(|segment| segment.promised_epoch).max();
        let position = |name: &str| {
            let said = driver.and_then(|driver| Some(driver.get(name)?.as_str()?.to_owned()));
            said.or_else(|| known_durable.map(|lsn| lsn.to_string()))
        };
        let supervisor_pid = detached::process(cluster.directory()).map(|process| process.process_id);
        let serving_pid = serving::process(cluster.directory()).map(|process| process.process_id);
        let controller_pid = controlling::process(cluster.directory()).map(|process| process.process_id);
        let unwatched = cluster.anything_is_wanted() && supervisor_pid.is_none() && serving_pid.is_none();
        let nodes = healing::described(answers, &picture, &memberships);
        let certificates = certificates::all(cluster, &nodes, &instances, controller_pid.is_some());
        let group_count = u64::from(cluster.catalog.protection_groups.group_count());
        let backup = cluster.catalog.backup.as_ref();
        let backup = backup.map(|backup| BackupState::of(&backup.url, &nodes, group_count));
        Status {
            volume: VolumeState {
                id: cluster.catalog.volume.clone(),
                state: condition.state,
                reason: condition.reason,
                epoch: epoch.filter(|_| answered).map(|epoch| epoch.0),
                vdl: position("vdl"),
                vcl: position("vcl"),
            },
            nodes,
            protection_groups: groups,
            instances,
            backup,
            certificates,
            healing,
            supervisor_pid,
            serving_pid,
            controller_pid,
            unwatched,
        }
    }

    /// The status for a person.
    #[must_use]
    pub fn text(&self) -> String {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        let volume = &self.volume;
        let mut text = format!(
            "volume {}  epoch {}  durable to {}\nstate  {}{}\n\nnode  zone  state         process   address\n",
            volume.id,
            or_unknown(volume.epoch.map(|epoch| epoch.to_string())),
            or_unknown(volume.vdl.clone()),
            volume.state,
            volume.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"))
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
            for complaint in node.failure.iter().chain(&node.hindrance) {
                text += &format!("      {complaint}\n");
            }
            for note in node.damage.iter().chain(&node.catching_up) {
                text += &format!("      {note}\n");
            }
            if node.draining {
                text += &format!("      being emptied: {} segments are left\n", node.groups);
            }
        }
        let backup = self.backup.as_ref().map(BackupState::line);
        text += &format!("\n{}\n", backup.as_deref().unwrap_or(NO_BACKUP));
        text += "\ngroup  complete to      segments\n";
        for group in &self.protection_groups {
            let members: Vec<String> =
                group.members.iter().map(|member| format!("{}:{}", member.node, member.state)).collect();
            text +=
                &format!("{:<6} {:<16} {}\n", group.id, or_unknown(group.pgcl.clone()), members.join(" "));
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
            if let Some(reason) = &instance.reason {
                text += &format!("          {reason}\n");
            }
            for warning in &instance.warnings {
                text += &format!("          warning: {warning}\n");
            }
        }
        text += &certificates::text(&self.certificates);
        text += &self.healing.text();
        if self.unwatched {
            text += "\nnobody starts again what dies; `borealis up --detach` does\n";
        }
        text
    }
}

/// An instance, as its driver says.
fn instance_state(cluster: &Cluster, instance: &InstanceEntry, volume: &volume::Condition) -> InstanceState {
    let folder = cluster.instance_directory(instance.id);
    let process = cluster.driver_process(instance.id);
    let stopping = cluster.stopping_driver(instance.id);
    let (answer, silence) = match driver_status(&folder) {
        Ok(answer) if process.is_some() => (Some(answer), None),
        Ok(_) => (None, None),
        Err(error) => (None, Some(error)),
    };
    let text = |name: &str| Some(answer.as_ref()?.get(name)?.as_str()?.to_owned());
    let restarts = Restarts::load(&folder);
    let history = || restarts.as_ref().map(Restarts::sentence);
    let may_not_ask = |error: &io::Error| Some(format!("you may not ask its driver: {error}"));
    let (state, reason) = match (&process, text("state"), silence) {
        (None, ..) if is_closed_to_us(&cluster.driver_process_file(instance.id)) => {
            ("unknown".to_owned(), Some(format!("you may not read {}", folder.display())))
        }
        (None, ..) if stopping.is_some() => ("stopping".to_owned(), None),
        (None, ..) => (dead_state(&folder).to_owned(), history().or_else(|| left_reason(&folder))),
        (Some(_), Some(state), _) if state == "running" => match volume.has_write_quorum {
            true => ("up".to_owned(), history()),
            false => (
                "waiting".to_owned(),
                Some("commits wait for a write quorum; what is cached can be read".to_owned()),
            ),
        },
        (Some(_), Some(state), _) => (state, text("last_failure")),
        (Some(_), None, Some(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            ("unknown".to_owned(), may_not_ask(&error))
        }
        // Its socket is made a moment after the process.
        (Some(_), None, Some(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            ("starting".to_owned(), history())
        }
        (Some(_), None, error) => ("unresponsive".to_owned(), error.map(|error| error.to_string())),
    };
    InstanceState {
        id: instance.id.0,
        role: "writer",
        state,
        reason,
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
        driver_pid: process.or(stopping).map(|process| process.process_id),
        data_dir: cluster.memory_directory(instance).join("data").display().to_string(),
        last_recovery_ms: answer.as_ref().and_then(|a| a.get("last_recovery_ms")?.as_f64()),
        driver: answer.unwrap_or(serde_json::Value::Null),
    }
}

/// The word for a part without a process.
fn dead_state(folder: &Path) -> &'static str {
    if Restarts::load(folder).is_some_and(|restarts| restarts.given_up) { "failed" } else { "down" }
}

/// Why a part ended that ended by itself.
fn left_reason(folder: &Path) -> Option<String> {
    Ended::load(folder).map(|ended| ended.reason)
}

/// Every group, over what the nodes say of their segments, and what the writer's driver says where too few do.
fn group_states(
    memberships: &BTreeMap<GroupId, GroupMembership>,
    answers: &[NodeAnswer],
    driver: Option<&serde_json::Value>,
) -> Vec<GroupState> {
    let state = |(&group, membership): (&GroupId, &GroupMembership)| {
        let segment = |node: NodeId| {
            let (state, answer) = answers.iter().find(|(state, _)| state.id == node.0)?;
            let segments = answer.as_ref().map(|answer| &answer.status.segments);
            let segment = segments.and_then(|all| all.iter().find(|segment| segment.group == group));
            Some((state.state, segment))
        };
        // A segment that does not have everything yet is no copy, whatever it has.
        let complete = |node: NodeId| {
            let segment = segment(node)?.1?;
            Some(if segment.joining { Lsn::ZERO } else { segment.segment_complete_lsn })
        };
        let group_complete = write_quorum_lsn(membership, complete);
        let said_by_driver = || {
            let groups = driver?.get("groups")?.as_array()?;
            let own = groups.iter().find(|known| known.get("id").is_some_and(|id| *id == group.0))?;
            Some(own.get("pgcl")?.as_str()?.to_owned())
        };
        let newcomers = membership.replacements().into_iter().map(|replacement| replacement.new);
        let nodes = membership.base().iter().copied().chain(newcomers);
        let members = nodes
            .map(|node| {
                let (node_state, segment) = segment(node).unwrap_or(("down", None));
                let state = match segment {
                    // It answers, and has no segment to speak of.
                    None if node_state == "up" => "failed",
                    None => node_state,
                    Some(segment) if segment.joining => "joining",
                    Some(segment)
                        if group_complete.is_some_and(|complete| segment.segment_complete_lsn < complete) =>
                    {
                        "behind"
                    }
                    Some(_) => "up",
                };
                let scl = segment.map(|segment| segment.segment_complete_lsn.to_string());
                MemberState { node: node.0, scl, state }
            })
            .collect();
        let pgcl = group_complete.map(|lsn| lsn.to_string()).or_else(said_by_driver);
        GroupState { id: group.0, pgcl, membership: membership.epoch().0, members }
    };
    memberships.iter().map(state).collect()
}

/// The highest LSN that a write quorum has reached, given each node's own; `None` if too few answered to know.
fn write_quorum_lsn(membership: &GroupMembership, complete: impl Fn(NodeId) -> Option<Lsn>) -> Option<Lsn> {
    let sets = QuorumSets::of(membership);
    let answered = sets.is_write_quorum(|node| complete(node).is_some());
    answered.then(|| sets.write_quorum_reached(|node| complete(node).unwrap_or_default()))
}

/// A node's state, and what it said itself.
type NodeAnswer = (NodeState, Option<Answer>);

/// Asks some nodes how they are, all at the same time.
pub fn ask_some_nodes(cluster: &Cluster, ids: &[NodeId]) -> Vec<NodeState> {
    let answers = ask_nodes(cluster).into_iter().map(|(node, _)| node);
    answers.filter(|node| ids.contains(&NodeId(node.id))).collect()
}

fn ask_nodes(cluster: &Cluster) -> Vec<NodeAnswer> {
    let removed = &cluster.removed_nodes();
    // In parallel: one that hangs must not add its time-out to every other's.
    std::thread::scope(|scope| {
        let questions: Vec<_> = cluster
            .catalog
            .nodes
            .iter()
            .map(|node| scope.spawn(move || ask_node(cluster, node, removed)))
            .collect();
        questions.into_iter().map(|question| question.join().expect("asking a node does not panic")).collect()
    })
}

/// Asks one node how it is.
fn ask_node(cluster: &Cluster, node: &NodeEntry, removed: &BTreeSet<NodeId>) -> NodeAnswer {
    let folder = cluster.node_directory(node.id);
    let process = cluster.node_process(node.id);
    let stopping = cluster.stopping_node(node.id);
    let is_hidden = is_closed_to_us(&cluster.node_process_file(node.id));
    let asked = (process.is_some() || is_hidden).then(|| {
        let mut client = cluster.node_client(node.id, ANSWER_TIMEOUTS)?;
        let status = client.status()?;
        // One that does not say is taken at its word that it has what it has.
        let memberships = client.memberships().map(|(states, _)| states).unwrap_or_default();
        Ok(Answer { status, memberships: memberships.into_iter().collect() })
    });

    let restarts = Restarts::load(&folder);
    let history = || restarts.as_ref().map(Restarts::sentence);
    let (state, failure) = match &asked {
        None if stopping.is_some() => ("stopping", None),
        None if removed.contains(&node.id) => ("removed", None),
        None => (dead_state(&folder), history().or_else(|| left_reason(&folder))),
        Some(Ok(answer)) if answer.status.failure.is_some() => ("failed", answer.status.failure.clone()),
        Some(Ok(_)) => ("up", history()),
        Some(Err(error)) if is_hidden => ("unknown", Some(format!("you may not see its process; {error}"))),
        Some(Err(error)) if is_not_listening(error) => ("starting", history()),
        Some(Err(error)) => ("unresponsive", Some(error.to_string())),
    };
    let answer = asked.and_then(Result::ok);
    let metrics = answer
        .iter()
        .flat_map(|answer| &answer.status.metrics)
        .map(|(name, value)| (name.clone(), (*value).into()))
        .collect();
    let said_by_itself = answer.as_ref().map(|answer| answer.status.process_id);
    let pid = process.or(stopping).map(|process| process.process_id).or(said_by_itself);
    let address = cluster.endpoint(node.id).to_string();
    let (id, az) = (node.id.0, node.zone.0.clone());
    let hindrance = answer.as_ref().and_then(|answer| answer.status.hindrance.clone());
    let damage = answer.as_ref().and_then(|answer| answer.status.damage.clone());
    let catching_up = answer.as_ref().and_then(|answer| catching_up(&answer.status.metrics));
    let state = NodeState {
        id,
        az,
        pid,
        state,
        address,
        failure,
        hindrance,
        damage,
        groups: 0,
        draining: false,
        catching_up,
        metrics,
    };
    (state, answer)
}

/// How far a node's segments are refilled, by its metrics; `None` if none is.
fn catching_up(metrics: &[(String, u64)]) -> Option<String> {
    let value = |name: &str| metrics.iter().find(|(of, _)| of == name).map_or(0, |(_, value)| *value);
    let groups = value("refill_groups");
    if groups == 0 {
        return None;
    }
    let (done, total) = (value("refill_done_bytes"), value("refill_total_bytes"));
    if total == 0 {
        return Some(format!("catching up: {groups} groups wait for pages from peers"));
    }
    let (gib, mib) = ((1u64 << 30) as f64, (1u64 << 20) as f64);
    let size = match total as f64 >= gib {
        true => format!("{:.1} GiB", total as f64 / gib),
        false => format!("{:.1} MiB", total as f64 / mib),
    };
    let rate = value("refill_bytes_per_second") as f64 / mib;
    Some(format!("catching up: {} % of {size}, {rate:.0} MiB/s", done * 100 / total))
}

#[cfg(test)]
mod tests {
    use borealis_quorum::membership::{Replacement, Transition};

    use super::*;

    #[test]
    fn a_group_is_complete_where_four_of_each_six_are() {
        let membership = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
        // Of the nodes, those that are listed have answered.
        let reached = |membership: &GroupMembership, list: &[u64]| {
            write_quorum_lsn(membership, |node| list.get(usize::from(node.0) - 1).copied().map(Lsn))
        };
        let lsns = |list: &[u64]| reached(&membership, list);
        assert_eq!(lsns(&[10, 20, 30, 40, 50, 60]), Some(Lsn(30)));
        assert_eq!(lsns(&[50, 50, 50, 50]), Some(Lsn(50)));
        assert_eq!(lsns(&[50, 50, 50]), None, "zero would be a claim");
        let replacement = Replacement { old: NodeId(4), new: NodeId(7) };
        let changing = membership.after(Transition::Begin(replacement)).expect("node 4 is a member");
        let lsns = |list: &[u64]| reached(&changing, list);
        assert_eq!(lsns(&[50, 50, 50, 50, 50, 20, 0]), Some(Lsn(50)));
        assert_eq!(lsns(&[50, 50, 50, 50, 20, 20, 0]), Some(Lsn(20)), "with the newcomer three are further");
    }

    #[test]
    fn a_node_that_takes_pages_says_how_far_it_is() {
        let said = |groups, done, total| {
            let metrics =
                [("refill_groups", groups), ("refill_done_bytes", done), ("refill_total_bytes", total)];
            let rate = ("refill_bytes_per_second", 85 << 20);
            catching_up(
                &metrics
                    .into_iter()
                    .chain([rate])
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(said(0, 0, 0), None);
        assert_eq!(said(1, 41 << 20, 100 << 20).as_deref(), Some("catching up: 41 % of 100.0 MiB, 85 MiB/s"));
        assert_eq!(said(1, 3 << 28, 3 << 29).as_deref(), Some("catching up: 50 % of 1.5 GiB, 85 MiB/s"));
        assert_eq!(said(2, 0, 0).as_deref(), Some("catching up: 2 groups wait for pages from peers"));
    }
}
