//! Opening the volume for writing: the recovery protocol, carried out over blocking connections.
//!
//! One thread per node carries out commands and reports; one owner runs the state machine of
//! `borealis_quorum::recovery`. Threads end by themselves when the owner is gone: their channel closes, and a
//! call to a dead node ends by its timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use borealis_client::{Memberships, Timeouts};
use borealis_quorum::Promise;
use borealis_quorum::evidence::newest_installed;
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::{Command, Event, Failure, Outcome, Recovery, RecoveryOptions};
use borealis_types::{
    EPOCH_LIMIT, GroupId, NodeId, RecordForm, ServerVersion, VolumeEpoch, WRITE_QUORUM, WriterId,
};
use borealis_wire::{Refusal, SegmentSummary};

use crate::config::Configured;
use crate::memberships::{in_words, remember};
use worker::Worker;

#[cfg(test)]
mod tests;
mod worker;

/// A request without an answer is repeated after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long to wait for the last nodes to introduce themselves once a write quorum has.
const STRAGGLERS: Duration = Duration::from_millis(100);
/// Of a node that counts as absent, see `borealis_quorum::recovery::Recovery::left_out`.
const LEFT_OUT: &str = "left out of account: what it says of the volume is ruled out by the others; look at its disk, or rebuild it";
/// How often one recovery begins anew because the members of groups are others than it knew. Each time takes a change of
/// members, which is rare.
const BEGINNINGS_MAX: u32 = 32;
/// How long a newer membership may be claimed without being believed before everyone is asked, and how often everyone is.
const ASK_AFTER: Duration = Duration::from_millis(500);
const ASKS_MAX: u32 = 3;
/// How long a node may take then.
const ASK_TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_millis(500), call: Duration::from_millis(1000) };

/// How long each phase of a recovery took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryPhases {
    /// Until a write quorum of every group had introduced itself.
    pub connect: Duration,
    /// From there until the new history was installed.
    pub protocol: Duration,
}

/// The volume is open for writing.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Epoch, history, last durable record, and where each group's log ends.
    pub outcome: Outcome,
    /// How long each step took, for the log and `borealis status`.
    pub phases: RecoveryPhases,
}

/// Why the volume could not be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Fewer than four of six nodes of some group answer, so nothing can be decided.
    #[error("{0}")]
    NoQuorum(String),
    /// Another instance finished a recovery after this one began.
    #[error("another instance took the volume over with epoch {0}")]
    TakenOver(VolumeEpoch),
    /// A node is promised to an epoch that no volume reaches.
    #[error(
        "{0} promised epoch {1}, which no volume reaches: no writer ever asked for it, so what holds it is damaged. Stop it, \
         so that the others can be asked"
    )]
    NoEpochLeft(String, VolumeEpoch),
    /// The state machine gave up.
    #[error("the volume cannot be opened for writing: {0}")]
    Failed(Failure),
    /// The configuration does not make quorums.
    #[error("the instance's configuration is unusable: {0}")]
    Configuration(String),
    /// Whenever a recovery was under way, the members of a group changed.
    #[error(
        "the members of groups changed {0} times while the volume was being opened; it is tried again when they rest"
    )]
    MembersChange(u32),
}

/// A record as it is sent to whom it lacks.
#[derive(Clone, Debug)]
struct Handle {
    form: RecordForm,
    bytes: Arc<[u8]>,
}

/// What a node's thread reports.
enum Report {
    /// The node accepted the connection, and says where its segments stand.
    Welcome(NodeId, Vec<SegmentSummary>),
    /// The node does not answer; the thread goes on trying.
    Unreachable(NodeId, String),
    /// The node stores other memberships than the recovery is made for.
    OtherMembership(NodeId, Refusal),
    /// An answer that the recovery's state machine has to see.
    Event(Event<Handle>),
}

/// Why an attempt ended without a result.
enum Ended {
    /// The members of these groups are others than it was made for.
    Learned(Vec<GroupId>),
    Error(RecoverError),
}

impl From<RecoverError> for Ended {
    fn from(error: RecoverError) -> Ended {
        Ended::Error(error)
    }
}

/// The members of every group as quorums, in group order. Those that are `lost` for good count as members that the others
/// stand in for.
///
/// # Errors
/// When too few are left.
fn quorum_sets(memberships: &Memberships, lost: &BTreeSet<NodeId>) -> Result<Vec<QuorumSets>, RecoverError> {
    let survivors = |membership| {
        let sets = QuorumSets::of(membership);
        sets.survivors(lost).map_err(|error| RecoverError::Configuration(error.to_string()))
    };
    memberships.groups().values().map(survivors).collect()
}

/// What one driver has asked for so far.
#[derive(Debug, Default)]
pub struct OwnEpochs {
    /// The one that it opened last; zero before the first.
    opened: VolumeEpoch,
    /// All that it tried to open.
    tried: BTreeSet<VolumeEpoch>,
}

/// Takes the volume over through the members of its groups, for a server of this release, in an epoch above the one that
/// this driver opened last, in case nodes have lost what they promised it. On return, no older writer can have anything
/// acknowledged any more, and everything that was ever acknowledged is at or below the outcome's durable point.
///
/// When nodes know of newer memberships, and enough of them say so, it begins anew with those; `memberships` then has them.
///
/// # Errors
/// See [`RecoverError`]. Nothing is lost by a failure; it may be tried again at any time.
pub fn recover(
    config: &Configured,
    memberships: &mut Memberships,
    writer: WriterId,
    server_version: ServerVersion,
    own: &mut OwnEpochs,
) -> Result<Recovered, RecoverError> {
    recover_without(&BTreeSet::new(), config, memberships, writer, server_version, own)
}

/// [`recover`] for a volume that is opened without some of its members.
pub(crate) fn recover_without(
    lost: &BTreeSet<NodeId>,
    config: &Configured,
    memberships: &mut Memberships,
    writer: WriterId,
    server_version: ServerVersion,
    own: &mut OwnEpochs,
) -> Result<Recovered, RecoverError> {
    let deadline = Instant::now() + Duration::from_millis(config.tuning.recovery_timeout_ms);
    let mut at_least = own.opened;
    let mut newest_history = own_history(own.opened);
    let (mut beginnings, mut asks_left) = (0, ASKS_MAX);
    loop {
        let members = quorum_sets(memberships, lost)?;
        let mut attempt = Attempt::begin(config, memberships, members, writer, server_version);
        attempt.asks_left = asks_left;
        let result = attempt.run(at_least, own, &mut newest_history, deadline);
        asks_left = attempt.asks_left;
        match result {
            Ok(recovered) => {
                own.opened = recovered.outcome.promise.epoch;
                return Ok(recovered);
            }
            Err(Ended::Learned(groups)) => {
                beginnings += 1;
                if beginnings > BEGINNINGS_MAX {
                    return Err(RecoverError::MembersChange(beginnings));
                }
                let learned = in_words(memberships, &groups);
                tracing::info!("the recovery begins anew, for members have changed; {learned}");
                remember(config, memberships);
            }
            // Another recovery came in between. Unless it finishes, ours goes on with a higher epoch.
            Err(Ended::Error(RecoverError::Failed(Failure::Superseded { current })))
                if Instant::now() < deadline =>
            {
                tracing::info!(epoch = current.0, "another recovery holds the volume; trying a higher epoch");
                at_least = at_least.max(current);
                // Different instances wait differently long, so that they do not beat each other for ever.
                std::thread::sleep(Duration::from_millis(5 + writer.0 % 50));
            }
            Err(Ended::Error(error)) => return Err(error),
        }
    }
}

/// The epoch after one that somebody was promised; `None` if only damage can have promised it. Promising the next one to
/// everybody would carry that damage on to all nodes.
fn next_epoch(promised: VolumeEpoch) -> Option<VolumeEpoch> {
    promised.0.checked_add(1).map(VolumeEpoch).filter(|next| *next < EPOCH_LIMIT)
}

/// The newest history that a driver knows before it asks: its own, if it has opened the volume in the epoch `used`. A newer
/// one is of a writer that took the volume over, and must not lose it again to whom it replaced.
fn own_history(used: VolumeEpoch) -> Option<VolumeEpoch> {
    (used > VolumeEpoch(0)).then_some(used)
}

struct Attempt<'a> {
    config: &'a Configured,
    memberships: &'a mut Memberships,
    /// Those of `memberships` as quorums, in group order.
    members: Vec<QuorumSets>,
    writer: WriterId,
    server_version: ServerVersion,
    commands: BTreeMap<NodeId, Sender<Command<Handle>>>,
    reports: Receiver<Report>,
    begun: Instant,
    welcomes: BTreeMap<NodeId, Vec<SegmentSummary>>,
    unreachable: BTreeMap<NodeId, String>,
    /// Since when a newer membership is claimed that is not believed.
    claimed_since: Option<Instant>,
    /// How often everyone may still be asked.
    asks_left: u32,
}

impl<'a> Attempt<'a> {
    fn begin(
        config: &'a Configured,
        memberships: &'a mut Memberships,
        members: Vec<QuorumSets>,
        writer: WriterId,
        server_version: ServerVersion,
    ) -> Attempt<'a> {
        #[expect(
            clippy::disallowed_methods,
            reason = "a worker reports once for each command and each try to connect"
        )]
        let (report, reports) = channel();
        let mut commands = BTreeMap::new();
        let mut unreachable = BTreeMap::new();
        let nodes: BTreeSet<NodeId> = members.iter().flat_map(QuorumSets::members).collect();
        for node in nodes {
            let addresses = memberships.addresses().all(node).into_iter().cloned().collect();
            let worker = Worker::new(config.clone(), addresses, memberships.made_for(), report.clone());
            let Some(worker) = worker else {
                unreachable.insert(node, "no node has said where it is".to_owned());
                continue;
            };
            #[expect(
                clippy::disallowed_methods,
                reason = "a recovery asks a node again only after its answer or a pause"
            )]
            let (command, receiver) = channel();
            commands.insert(node, command);
            let name = format!("recover-{node}");
            // A thread that cannot be started counts as a node that does not answer.
            if let Err(error) = std::thread::Builder::new().name(name).spawn(move || worker.run(&receiver)) {
                unreachable.insert(node, error.to_string());
            }
        }
        Attempt {
            config,
            memberships,
            members,
            writer,
            server_version,
            commands,
            reports,
            begun: Instant::now(),
            welcomes: BTreeMap::new(),
            unreachable,
            claimed_since: None,
            asks_left: 0,
        }
    }

    fn run(
        &mut self,
        at_least: VolumeEpoch,
        own: &mut OwnEpochs,
        newest_history: &mut Option<VolumeEpoch>,
        deadline: Instant,
    ) -> Result<Recovered, Ended> {
        self.wait_for_welcomes(deadline)?;
        let connect = self.begun.elapsed();
        let summaries = || self.welcomes.values().flatten();
        let installed = newest_installed(opened_of_each(&self.welcomes, own));
        match newest_history {
            // A writer that finished its recovery while ours was running is newer than we are.
            Some(known) if installed > *known => return Err(RecoverError::TakenOver(installed).into()),
            known => *known = Some(installed),
        }
        let promised = summaries().map(|s| s.promised_epoch).max().unwrap_or_default().max(at_least);
        let epoch = next_epoch(promised).ok_or_else(|| {
            let holders: Vec<String> = self
                .welcomes
                .iter()
                .filter(|(_, segments)| segments.iter().any(|segment| segment.promised_epoch == promised))
                .map(|(node, _)| format!("node {node}"))
                .collect();
            let holders = if holders.is_empty() { "a node".to_owned() } else { holders.join(", ") };
            RecoverError::NoEpochLeft(holders, promised)
        })?;
        own.tried.insert(epoch);
        let promise = Promise { epoch, writer: self.writer };
        let options = RecoveryOptions {
            promise,
            server_version: self.server_version,
            members: self.members.clone(),
            retry_after: RETRY_AFTER,
            give_up_after: Some(deadline.saturating_duration_since(self.begun)),
        };
        let (mut recovery, mut commands) = Recovery::start(options, self.begun.elapsed());
        loop {
            for command in std::mem::take(&mut commands) {
                match command {
                    Command::Done(outcome) => {
                        for node in recovery.left_out() {
                            tracing::warn!(node = node.0, "{LEFT_OUT}");
                        }
                        let protocol = self.begun.elapsed() - connect;
                        return Ok(Recovered { outcome, phases: RecoveryPhases { connect, protocol } });
                    }
                    Command::Failed(Failure::NoQuorum { groups }) => {
                        for &node in recovery.left_out() {
                            self.welcomes.remove(&node);
                            self.unreachable.insert(node, LEFT_OUT.to_owned());
                        }
                        return Err(self.no_quorum(&groups).into());
                    }
                    Command::Failed(failure) => return Err(RecoverError::Failed(failure).into()),
                    command => self.dispatch(command),
                }
            }
            let event = match self.reports.recv_timeout(Duration::from_millis(50)) {
                Ok(Report::Event(event)) => event,
                Ok(Report::Welcome(node, _)) => {
                    self.unreachable.remove(&node);
                    Event::Tick
                }
                Ok(Report::Unreachable(node, why)) => {
                    self.unreachable.insert(node, why);
                    Event::Tick
                }
                Ok(Report::OtherMembership(node, refusal)) => {
                    self.unreachable.insert(node, refusal.to_string());
                    self.take_claims(node, &refusal)?;
                    Event::Tick
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Event::Tick,
            };
            commands = recovery.handle(event, self.begun.elapsed());
        }
    }

    fn dispatch(&mut self, command: Command<Handle>) {
        let node = match &command {
            Command::Fence { node, .. }
            | Command::ReadTail { node, .. }
            | Command::Repair { node, .. }
            | Command::Install { node, .. } => *node,
            Command::Done(_) | Command::Failed(_) => return,
        };
        if let Some(sender) = self.commands.get(&node)
            && sender.send(command).is_err()
        {
            // The thread outlives its sender unless it failed; the node is then as good as down.
            self.unreachable.insert(node, "the thread that talks to it failed".to_owned());
        }
    }

    /// Waits until every node has introduced itself or failed to; or a write quorum of every group has, and
    /// the others had a moment.
    fn wait_for_welcomes(&mut self, deadline: Instant) -> Result<(), Ended> {
        let mut quorum_since = None;
        let nodes = self.members.iter().flat_map(QuorumSets::members).collect::<BTreeSet<NodeId>>().len();
        loop {
            let waiting: Vec<GroupId> = self
                .config
                .placement
                .groups()
                .zip(&self.members)
                .filter(|(_, members)| !members.is_write_quorum(|node| self.welcomes.contains_key(&node)))
                .map(|(group, _)| group)
                .collect();
            let heard = self.welcomes.len() + self.unreachable.len();
            if waiting.is_empty() {
                let since = *quorum_since.get_or_insert_with(Instant::now);
                if heard >= nodes || since.elapsed() >= STRAGGLERS {
                    return Ok(());
                }
            } else if Instant::now() >= deadline {
                return Err(self.no_quorum(&waiting).into());
            } else {
                self.ask_everyone()?;
            }
            match self.reports.recv_timeout(Duration::from_millis(20)) {
                Ok(Report::Welcome(node, summaries)) => {
                    self.unreachable.remove(&node);
                    self.welcomes.insert(node, summaries);
                }
                Ok(Report::Unreachable(node, why)) => {
                    self.welcomes.remove(&node);
                    self.unreachable.insert(node, why);
                }
                Ok(Report::OtherMembership(node, refusal)) => {
                    self.welcomes.remove(&node);
                    self.unreachable.insert(node, refusal.to_string());
                    self.take_claims(node, &refusal)?;
                }
                Ok(Report::Event(_)) | Err(_) => {}
            }
        }
    }

    /// A node refused because it stores other memberships. Ends the attempt if they are believed.
    fn take_claims(&mut self, node: NodeId, refusal: &Refusal) -> Result<(), Ended> {
        let Refusal::OtherMembership { states, nodes } = refusal else { return Ok(()) };
        let changed = self.memberships.take(node, states, nodes);
        if !changed.is_empty() {
            return Err(Ended::Learned(changed));
        }
        if self.memberships.has_newer_claims() && self.claimed_since.is_none() {
            self.claimed_since = Some(Instant::now());
        }
        Ok(())
    }

    /// Asks everyone who is or may be a member for memberships, if one is claimed for a while and too few of those who are
    /// known can say so: they may all have left since.
    fn ask_everyone(&mut self) -> Result<(), Ended> {
        if self.asks_left == 0 || self.claimed_since.is_none_or(|since| since.elapsed() < ASK_AFTER) {
            return Ok(());
        }
        self.asks_left -= 1;
        self.claimed_since = Some(Instant::now());
        tracing::info!("a node knows of newer members; all that may be members are asked");
        let credentials = self.config.credentials.as_ref();
        let changed = self.memberships.ask(credentials, self.config.volume, ASK_TIMEOUTS);
        if changed.is_empty() { Ok(()) } else { Err(Ended::Learned(changed)) }
    }

    /// Says which groups lack whom.
    fn no_quorum(&self, groups: &[GroupId]) -> RecoverError {
        let mut text = String::new();
        let mut absent = BTreeSet::new();
        for (group, members) in self.config.placement.groups().zip(&self.members) {
            if !groups.contains(&group) {
                continue;
            }
            let here =
                |node: &NodeId| self.welcomes.contains_key(node) && !self.unreachable.contains_key(node);
            let present = members.members().filter(here).count();
            let all = members.members().count();
            absent.extend(members.members().filter(|node| !here(node)));
            // Writing into a string cannot fail.
            let _ = write!(text, "group {group} has {present} of {all} segments; ");
        }
        let needed = self.members.iter().map(QuorumSets::write_quorum_size).max().unwrap_or(WRITE_QUORUM);
        let _ = write!(text, "{needed} are needed to open the volume for writing");
        if !absent.is_empty() {
            let names: Vec<String> = absent.iter().map(ToString::to_string).collect();
            let _ = write!(text, "; start one or more of node {}", names.join(", "));
        }
        let left_out = self.unreachable.iter().find(|(_, why)| *why == LEFT_OUT);
        if let Some((node, why)) = left_out.or_else(|| self.unreachable.iter().next()) {
            let _ = write!(text, " (node {node}: {why})");
        }
        RecoverError::NoQuorum(text)
    }
}

/// The epochs that each node has the history of, leaving out what this driver itself tried to open: an attempt that
/// reached some nodes and died is no successor.
fn opened_of_each<'a>(
    welcomes: &'a BTreeMap<NodeId, Vec<SegmentSummary>>,
    own: &'a OwnEpochs,
) -> impl Iterator<Item = BTreeSet<VolumeEpoch>> + 'a {
    let opened = |segment: &'a SegmentSummary| segment.history.openings().iter().map(|opening| opening.epoch);
    let of_node = move |segments: &'a Vec<SegmentSummary>| {
        segments.iter().flat_map(opened).filter(|epoch| !own.tried.contains(epoch)).collect()
    };
    welcomes.values().map(of_node)
}
