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

use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_quorum::Promise;
use borealis_quorum::evidence::newest_installed;
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::{Command, Event, Failure, Outcome, Recovery, RecoveryOptions, TailRecord};
use borealis_spec::NodeAddress;
use borealis_types::{
    EPOCH_LIMIT, EPOCH_STEP_MAX, EpochHistory, GroupId, Lsn, NodeId, PostgresVersion, RecordForm,
    ServerVersion, VolumeEpoch, WRITE_QUORUM, WriterId,
};
use borealis_wal::record::previous_start;
use borealis_wire::{
    BatchBuilder, BatchHeader, BatchReader, BatchRecord, Caller, Refusal, Request, SegmentSummary,
};

use crate::config::Configured;

#[cfg(test)]
mod tests;

/// A request without an answer is repeated after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long to wait for the last nodes to introduce themselves once a write quorum has.
const STRAGGLERS: Duration = Duration::from_millis(100);
/// Bytes of one page of a tail.
const TAIL_PAGE_BYTES: u32 = 4 << 20;
/// Of a node that counts as absent, see `borealis_quorum::recovery::Recovery::left_out`.
const LEFT_OUT: &str = "left out of account: what it says of the volume is ruled out by the others; look at its disk, or rebuild it";
/// The size goal of a repair's batches.
const REPAIR_BATCH_BYTES: usize = 1 << 20;

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
    /// An answer that the recovery's state machine has to see.
    Event(Event<Handle>),
}

/// The members of every group, in group order.
///
/// # Errors
/// When they do not make quorum sets.
pub fn quorum_sets(config: &Configured) -> Result<Vec<QuorumSets>, RecoverError> {
    let configuration = |what: String| RecoverError::Configuration(what);
    config
        .placement
        .groups()
        .map(|group| {
            let members = config
                .groups
                .nodes_of(group)
                .try_into()
                .ok()
                .ok_or_else(|| configuration(format!("group {group} has not six members")))?;
            QuorumSets::new(vec![members]).map_err(|error| configuration(error.to_string()))
        })
        .collect()
}

/// What one driver has asked for so far.
#[derive(Debug, Default)]
pub struct OwnEpochs {
    /// The one that it opened last; zero before the first.
    opened: VolumeEpoch,
    /// All that it tried to open.
    tried: BTreeSet<VolumeEpoch>,
}

/// Takes the volume over for a server of this release, in an epoch above the one that this driver opened last, in case
/// nodes have lost what they promised it. On return, no older writer can have anything acknowledged any more, and
/// everything that was ever acknowledged is at or below the outcome's durable point.
///
/// # Errors
/// See [`RecoverError`]. Nothing is lost by a failure; it may be tried again at any time.
pub fn recover(
    config: &Configured,
    writer: WriterId,
    server_version: ServerVersion,
    own: &mut OwnEpochs,
) -> Result<Recovered, RecoverError> {
    recover_through(config, &quorum_sets(config)?, writer, server_version, own)
}

/// [`recover`] with these members of each group, for a volume that is opened without some of them.
pub(crate) fn recover_through(
    config: &Configured,
    members: &[QuorumSets],
    writer: WriterId,
    server_version: ServerVersion,
    own: &mut OwnEpochs,
) -> Result<Recovered, RecoverError> {
    let deadline = Instant::now() + Duration::from_millis(config.tuning.recovery_timeout_ms);
    let mut at_least = own.opened;
    let mut newest_history = own_history(own.opened);
    loop {
        let mut attempt = Attempt::begin(config, members, writer, server_version);
        match attempt.run(at_least, own, &mut newest_history, deadline) {
            Ok(recovered) => {
                own.opened = recovered.outcome.promise.epoch;
                return Ok(recovered);
            }
            // Another recovery came in between. Unless it finishes, ours goes on with a higher epoch.
            Err(RecoverError::Failed(Failure::Superseded { current })) if Instant::now() < deadline => {
                tracing::info!(epoch = current.0, "another recovery holds the volume; trying a higher epoch");
                at_least = at_least.max(current);
                // Different instances wait differently long, so that they do not beat each other for ever.
                std::thread::sleep(Duration::from_millis(5 + writer.0 % 50));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The epoch after one that somebody was promised; `None` if only damage can have promised it. Promising the next one to
/// everybody would carry that damage on to all nodes.
fn next_epoch(promised: VolumeEpoch) -> Option<VolumeEpoch> {
    promised.0.checked_add(1).map(VolumeEpoch).filter(|next| *next < EPOCH_LIMIT)
}

/// The epochs to have promised on the way from one to a later one that is further than a node goes at once.
fn fence_steps(promised: VolumeEpoch, wanted: VolumeEpoch) -> impl Iterator<Item = VolumeEpoch> {
    let first = promised.0.saturating_add(EPOCH_STEP_MAX);
    (first..wanted.0).step_by(EPOCH_STEP_MAX as usize).map(VolumeEpoch)
}

/// The newest history that a driver knows before it asks: its own, if it has opened the volume in the epoch `used`. A newer
/// one is of a writer that took the volume over, and must not lose it again to whom it replaced.
fn own_history(used: VolumeEpoch) -> Option<VolumeEpoch> {
    (used > VolumeEpoch(0)).then_some(used)
}

struct Attempt<'a> {
    config: &'a Configured,
    members: &'a [QuorumSets],
    writer: WriterId,
    server_version: ServerVersion,
    commands: BTreeMap<NodeId, Sender<Command<Handle>>>,
    reports: Receiver<Report>,
    begun: Instant,
    welcomes: BTreeMap<NodeId, Vec<SegmentSummary>>,
    unreachable: BTreeMap<NodeId, String>,
}

impl<'a> Attempt<'a> {
    fn begin(
        config: &'a Configured,
        members: &'a [QuorumSets],
        writer: WriterId,
        server_version: ServerVersion,
    ) -> Attempt<'a> {
        #[expect(
            clippy::disallowed_methods,
            reason = "a worker reports once for each command and each try to connect"
        )]
        let (report, reports) = channel();
        let mut commands = BTreeMap::new();
        for node in &config.nodes {
            #[expect(
                clippy::disallowed_methods,
                reason = "a recovery asks a node again only after its answer or a pause"
            )]
            let (command, receiver) = channel();
            commands.insert(node.node, command);
            let worker = Worker {
                config: config.clone(),
                address: node.clone(),
                report: report.clone(),
                client: None,
                writer_client: None,
                promised: VolumeEpoch(0),
                promise: None,
                reader_client: None,
            };
            let name = format!("recover-{}", node.node);
            // A thread that cannot be started counts as a node that does not answer.
            if let Err(error) = std::thread::Builder::new().name(name).spawn(move || worker.run(&receiver)) {
                let _ = report.send(Report::Unreachable(node.node, error.to_string()));
            }
        }
        Attempt {
            config,
            members,
            writer,
            server_version,
            commands,
            reports,
            begun: Instant::now(),
            welcomes: BTreeMap::new(),
            unreachable: BTreeMap::new(),
        }
    }

    fn run(
        &mut self,
        at_least: VolumeEpoch,
        own: &mut OwnEpochs,
        newest_history: &mut Option<VolumeEpoch>,
        deadline: Instant,
    ) -> Result<Recovered, RecoverError> {
        self.wait_for_welcomes(deadline)?;
        let connect = self.begun.elapsed();
        let summaries = || self.welcomes.values().flatten();
        let installed = newest_installed(newest_of_each(&self.welcomes, own));
        match newest_history {
            // A writer that finished its recovery while ours was running is newer than we are.
            Some(known) if installed > *known => return Err(RecoverError::TakenOver(installed)),
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
            members: self.members.to_vec(),
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
                        return Err(self.no_quorum(&groups));
                    }
                    Command::Failed(failure) => return Err(RecoverError::Failed(failure)),
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
    fn wait_for_welcomes(&mut self, deadline: Instant) -> Result<(), RecoverError> {
        let mut quorum_since = None;
        loop {
            let waiting: Vec<GroupId> = self
                .config
                .placement
                .groups()
                .zip(self.members)
                .filter(|(_, members)| !members.is_write_quorum(|node| self.welcomes.contains_key(&node)))
                .map(|(group, _)| group)
                .collect();
            let heard = self.welcomes.len() + self.unreachable.len();
            if waiting.is_empty() {
                let since = *quorum_since.get_or_insert_with(Instant::now);
                if heard >= self.config.nodes.len() || since.elapsed() >= STRAGGLERS {
                    return Ok(());
                }
            } else if Instant::now() >= deadline {
                return Err(self.no_quorum(&waiting));
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
                Ok(Report::Event(_)) | Err(_) => {}
            }
        }
    }

    /// Says which groups lack whom.
    fn no_quorum(&self, groups: &[GroupId]) -> RecoverError {
        let mut text = String::new();
        let mut absent = BTreeSet::new();
        for (group, members) in self.config.placement.groups().zip(self.members) {
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

/// The newest epoch that each node has the history of, leaving out what this driver itself tried to open: an attempt that
/// reached some nodes and died is no successor.
fn newest_of_each<'a>(
    welcomes: &'a BTreeMap<NodeId, Vec<SegmentSummary>>,
    own: &'a OwnEpochs,
) -> impl Iterator<Item = VolumeEpoch> + 'a {
    let newest = |segment: &SegmentSummary| {
        let openings = segment.history.openings().iter().rev().map(|opening| opening.epoch);
        openings.into_iter().find(|epoch| !own.tried.contains(epoch)).unwrap_or_default()
    };
    welcomes.values().map(move |segments| segments.iter().map(newest).max().unwrap_or_default())
}

/// Carries out the commands for one node.
struct Worker {
    config: Configured,
    address: NodeAddress,
    report: Sender<Report>,
    /// The connection for everything but appends; `None` until the first request, and after a failure.
    client: Option<NodeClient>,
    /// For repairs: introduced as the writer.
    writer_client: Option<NodeClient>,
    /// The newest epoch that the node is known to be promised to.
    promised: VolumeEpoch,
    /// What the node promised this recovery.
    promise: Option<Promise>,
    /// For the ends of logs: introduced as the reader of the writer to be, whose turns nobody else has.
    reader_client: Option<NodeClient>,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command<Handle>>) {
        let mut pause = Duration::from_millis(10);
        while let Err(error) = self.introduce() {
            if self.report.send(Report::Unreachable(self.address.node, error.to_string())).is_err() {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
            if let Err(std::sync::mpsc::TryRecvError::Disconnected) = self.probe(commands) {
                return;
            }
        }
        while let Ok(command) = commands.recv() {
            match self.carry_out(command) {
                Ok(event) => {
                    if self.report.send(Report::Event(event)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let event = match error.refusal() {
                        Some(Refusal::Fenced(current)) => {
                            Report::Event(Event::Refused { node: self.address.node, current: *current })
                        }
                        _ => Report::Unreachable(self.address.node, error.to_string()),
                    };
                    if self.report.send(event).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the owner is still there. A command that arrived for a node that cannot be reached is dropped;
    /// the state machine sends it again.
    fn probe(&self, commands: &Receiver<Command<Handle>>) -> Result<(), std::sync::mpsc::TryRecvError> {
        match commands.try_recv() {
            Ok(_) | Err(std::sync::mpsc::TryRecvError::Empty) => Ok(()),
            Err(gone) => Err(gone),
        }
    }

    fn timeouts() -> Timeouts {
        Timeouts { connect: Duration::from_secs(1), call: Duration::from_secs(5) }
    }

    fn connect(&self, caller: Caller) -> Result<NodeClient, ClientError> {
        let (route, node) = (self.config.route(&self.address), self.address.node);
        NodeClient::connect(route, self.config.volume, node, caller, Worker::timeouts())
    }

    fn introduce(&mut self) -> Result<(), ClientError> {
        let client = self.connect(Caller::Recovery)?;
        let promised = client.welcome().iter().map(|segment| segment.promised_epoch).max();
        self.promised = self.promised.max(promised.unwrap_or_default());
        // The owner may be gone; the next command tells.
        let _ = self.report.send(Report::Welcome(self.address.node, client.welcome().to_vec()));
        self.client = Some(client);
        Ok(())
    }

    fn client(&mut self) -> Result<&mut NodeClient, ClientError> {
        if self.client.as_ref().is_none_or(NodeClient::is_broken) {
            self.client = Some(self.connect(Caller::Recovery)?);
        }
        Ok(self.client.as_mut().expect("it was just put there"))
    }

    /// The connection for reading the ends of logs.
    fn reader(&mut self) -> Result<&mut NodeClient, ClientError> {
        let Some(Promise { epoch, writer }) = self.promise else { return self.client() };
        if self.reader_client.as_ref().is_none_or(NodeClient::is_broken) {
            self.reader_client = Some(self.connect(Caller::Reader { epoch, writer })?);
        }
        Ok(self.reader_client.as_mut().expect("it was just put there"))
    }

    fn carry_out(&mut self, command: Command<Handle>) -> Result<Event<Handle>, ClientError> {
        let node = self.address.node;
        match command {
            Command::Fence { promise, .. } => {
                // A node promises only so many epochs at once, and somebody may have led another one far ahead.
                for step in fence_steps(self.promised, promise.epoch) {
                    self.client()?.fence(step, promise.writer)?;
                    self.promised = step;
                }
                let summaries = self.client()?.fence(promise.epoch, promise.writer)?;
                self.promised = promise.epoch;
                self.promise = Some(promise);
                Ok(Event::Fenced { node, summaries: summaries.iter().map(Into::into).collect() })
            }
            Command::ReadTail { group, above, .. } => {
                let (batches, more) = self.reader()?.read_tail(group, above, TAIL_PAGE_BYTES)?;
                let mut records = Vec::new();
                for batch in &batches {
                    if !read_batch(self.config.version, batch, group, above, &mut records) {
                        let address = self.address.address.clone();
                        let what = format!("a malformed tail of group {group}");
                        return Err(ClientError::Protocol { node, address, what });
                    }
                }
                Ok(Event::TailPage { node, group, above, records, more })
            }
            Command::Repair { group, promise, history, records, .. } => {
                self.repair(promise, group, &history, &records)?;
                Ok(Event::Repaired { node, group })
            }
            Command::Install { promise: Promise { epoch, writer }, history, tails, .. } => {
                self.client()?.call(&Request::Install { epoch, writer, history, tails })?;
                Ok(Event::Installed { node })
            }
            Command::Done(_) | Command::Failed(_) => Ok(Event::Tick),
        }
    }

    fn repair(
        &mut self,
        promise: Promise,
        group: GroupId,
        history: &EpochHistory,
        records: &[TailRecord<Handle>],
    ) -> Result<(), ClientError> {
        let Promise { epoch, writer } = promise;
        if self.writer_client.as_ref().is_none_or(NodeClient::is_broken) {
            // A writer may send large frames.
            self.writer_client = Some(self.connect(Caller::Writer { epoch, writer })?);
        }
        let client = self.writer_client.as_mut().expect("it was just put there");
        let mut records = records;
        // A group without records to bring still has its history adopted.
        loop {
            let mut batches = Vec::new();
            if let Some(first) = records.first() {
                let (batch, rest) = repair_batch(first.epoch, records);
                batches.push(batch);
                records = rest;
            }
            client.call(&Request::Repair { epoch, writer, group, history: history.clone(), batches })?;
            if records.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A batch of the first records, which are of one epoch, and the records left. Beyond the size goal it holds at
/// most one record, so that it fits into a frame.
fn repair_batch(epoch: VolumeEpoch, mut records: &[TailRecord<Handle>]) -> (Vec<u8>, &[TailRecord<Handle>]) {
    let mut batch = BatchBuilder::new(&BatchHeader { volume_epoch: epoch, ..BatchHeader::default() });
    while let Some((record, rest)) = records.split_first()
        && record.epoch == epoch
        && (batch.record_count() == 0 || batch.size_bytes() + record.handle.bytes.len() <= REPAIR_BATCH_BYTES)
    {
        batch.push_form(record.span, record.handle.form, &record.links, &record.handle.bytes);
        records = rest;
    }
    (batch.finish(), records)
}

/// Adds the records of one batch of a tail; `false` if it is malformed.
fn read_batch(
    version: PostgresVersion,
    batch: &[u8],
    group: GroupId,
    above: Lsn,
    records: &mut Vec<TailRecord<Handle>>,
) -> bool {
    let Ok((header, reader)) = BatchReader::new(batch) else { return false };
    for record in reader {
        let Ok(record) = record else { return false };
        if record.span.end <= above || record.link(group).is_none() {
            continue;
        }
        let Some(previous_start) = sound_record(version, &record) else { return false };
        records.push(TailRecord {
            epoch: header.volume_epoch,
            span: record.span,
            previous_start,
            links: record.links,
            handle: Handle { form: record.form, bytes: Arc::from(record.bytes) },
        });
    }
    true
}

/// Start of the entry before a record in the volume, if the record's bytes are those that were written.
fn sound_record(version: PostgresVersion, record: &BatchRecord<'_>) -> Option<Lsn> {
    let start = record.span.start;
    if record.form.part.is_piece() {
        borealis_wal::piece::open(record.bytes, start).ok()?;
        return record.form.previous_start;
    }
    borealis_wal::verify_checksum(record.bytes, start).ok()?;
    let named = previous_start(version, record.span, record.bytes).ok()?;
    Some(record.form.previous_start.unwrap_or(named))
}
