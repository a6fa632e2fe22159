//! A simulated instance: a real recovery that, once it is done, becomes a real writer.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::{Command, Event, Failure, Outcome, Recovery, RecoveryOptions};
use borealis_quorum::writer::{Acknowledgement, WriterTracker};
use borealis_quorum::{GroupTail, Promise};
use borealis_types::{GroupId, GroupSet, Lsn, NodeId, RecordSpan, ServerVersion};

use crate::Defect;
use crate::message::{Host, Message, SimRecord, to_tail_record};
use crate::random::Random;

/// How far a writer runs ahead of its durable position.
const LOG_AHEAD_MAX_BYTES: u64 = 1500;
/// How often unanswered requests are repeated.
const RETRY_MS: u64 = 150;

/// What an instance did.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages to send.
    pub send: Vec<(NodeId, Message)>,
    /// The recovery completed.
    pub recovered: Option<Outcome>,
    /// The recovery gave up.
    pub failed: Option<Failure>,
    /// A record was made.
    pub shipped: Option<Rc<SimRecord>>,
    /// The durable position rose to here.
    pub durable: Option<Lsn>,
    /// A contradiction that a correct protocol rules out.
    pub impossible: Option<String>,
}

#[derive(Debug)]
struct Writer {
    tracker: WriterTracker,
    outcome: Outcome,
    /// Records that may have to be sent again.
    retained: VecDeque<Rc<SimRecord>>,
    /// Nodes that installed the history.
    installed: BTreeMap<NodeId, bool>,
}

#[derive(Debug)]
enum Role {
    Recovering(Box<Recovery<Rc<SimRecord>>>),
    Writing(Box<Writer>),
    Stopped,
}

/// One instance.
#[derive(Debug)]
pub struct Compute {
    /// Its number.
    pub id: u32,
    /// Its promise.
    pub promise: Promise,
    /// The release of the server that writes once the recovery is done.
    pub server_version: ServerVersion,
    /// Goes on when told that it is fenced.
    pub stubborn: bool,
    members: Vec<QuorumSets>,
    nodes: Vec<NodeId>,
    defect: Defect,
    role: Role,
}

impl Compute {
    /// An instance that takes the volume over. Its server runs `server_version`, and it tells the recovery
    /// `recorded`, which is the same unless something is broken on purpose.
    #[must_use]
    pub fn start(
        id: u32,
        promise: Promise,
        server_version: ServerVersion,
        recorded: ServerVersion,
        members: Vec<QuorumSets>,
        now_ms: u64,
        defect: Defect,
    ) -> (Compute, Effects) {
        let options = RecoveryOptions {
            promise,
            server_version: recorded,
            members: members.clone(),
            retry_after: Duration::from_millis(RETRY_MS),
            give_up_after: Some(Duration::from_millis(20 * RETRY_MS)),
        };
        let (recovery, commands) = Recovery::start(options, Duration::from_millis(now_ms));
        let nodes = members[0].members().collect();
        let role = Role::Recovering(Box::new(recovery));
        let mut compute =
            Compute { id, promise, server_version, stubborn: false, members, nodes, defect, role };
        let mut effects = Effects::default();
        compute.carry_out(commands, &mut effects);
        (compute, effects)
    }

    /// Whether it has stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self.role, Role::Stopped)
    }

    /// Whether it is still recovering.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        matches!(self.role, Role::Recovering(_))
    }

    /// Stops at once.
    pub fn stop(&mut self) {
        self.role = Role::Stopped;
    }

    /// Durable position and last shipped position, of a writer.
    #[must_use]
    pub fn positions(&self) -> Option<(Lsn, Lsn)> {
        match &self.role {
            Role::Writing(writer) => {
                Some((writer.tracker.volume_durable().end, writer.tracker.shipped().end))
            }
            _ => None,
        }
    }

    fn carry_out(&mut self, commands: Vec<Command<Rc<SimRecord>>>, effects: &mut Effects) {
        for command in commands {
            match command {
                Command::Fence { node, promise } => effects.send.push((node, Message::Fence(promise))),
                Command::ReadTail { node, group, above } => {
                    effects.send.push((node, Message::ReadTail { group, above }));
                }
                Command::Repair { node, group, promise, history, records } => {
                    let records = records.into_iter().map(|record| record.handle).collect();
                    effects.send.push((node, Message::Repair { group, promise, history, records }));
                }
                Command::Install { node, promise, history, tails } => {
                    effects.send.push((node, Message::Install { promise, history, tails }));
                }
                Command::Done(outcome) => {
                    let tracker = WriterTracker::new(
                        outcome.promise.epoch,
                        self.members.clone(),
                        outcome.durable,
                        &outcome.tails,
                    );
                    effects.recovered = Some(outcome.clone());
                    let installed = self.nodes.iter().map(|&node| (node, false)).collect();
                    let writer = Writer { tracker, outcome, retained: VecDeque::new(), installed };
                    self.role = Role::Writing(Box::new(writer));
                    self.heartbeat(effects);
                }
                Command::Failed(failure) => {
                    effects.failed = Some(failure);
                    self.role = Role::Stopped;
                }
            }
        }
    }

    /// Takes a message from a node.
    pub fn receive(&mut self, node: NodeId, message: Message, now_ms: u64) -> Effects {
        let mut effects = Effects::default();
        match &mut self.role {
            Role::Recovering(recovery) => {
                let event = match message {
                    Message::Fenced(summaries) => Event::Fenced { node, summaries },
                    Message::Refused(current) => Event::Refused { node, current },
                    Message::Tail { group, above, records, more } => {
                        let records = records.iter().map(to_tail_record).collect();
                        Event::TailPage { node, group, above, records, more }
                    }
                    Message::Repaired(group) => Event::Repaired { node, group },
                    Message::Installed(_) => Event::Installed { node },
                    _ => return effects,
                };
                let commands = recovery.handle(event, Duration::from_millis(now_ms));
                self.carry_out(commands, &mut effects);
            }
            Role::Writing(writer) => match message {
                Message::Installed(epoch) if epoch == self.promise.epoch => {
                    writer.installed.insert(node, true);
                }
                Message::NeedsHistory => {
                    writer.installed.insert(node, false);
                    effects.send.push((node, install(writer)));
                }
                Message::Acknowledge(progress) => {
                    for (group, epoch, complete) in progress {
                        let mut count = |node| match writer.tracker.acknowledge(node, group, epoch, complete)
                        {
                            Ok(Acknowledgement::Durable(span)) => effects.durable = Some(span.end),
                            Ok(_) => {}
                            Err(error) => effects.impossible = Some(error.to_string()),
                        };
                        count(node);
                        if self.defect == Defect::AcknowledgeAtThree && node == NodeId(0) {
                            count(NodeId(5));
                        }
                    }
                    let from = writer.tracker.retain_from();
                    while writer.retained.front().is_some_and(|record| record.span.end <= from) {
                        writer.retained.pop_front();
                    }
                }
                Message::Refused(current) if current > self.promise.epoch && !self.stubborn => {
                    self.role = Role::Stopped;
                }
                _ => {}
            },
            Role::Stopped => {}
        }
        effects
    }

    /// Time passed: repeat what was not answered.
    pub fn tick(&mut self, now_ms: u64) -> Effects {
        let mut effects = Effects::default();
        if let Role::Recovering(recovery) = &mut self.role {
            let commands = recovery.handle(Event::Tick, Duration::from_millis(now_ms));
            self.carry_out(commands, &mut effects);
        }
        self.heartbeat(&mut effects);
        effects
    }

    /// Tells every node the durable position, and sends again what it may lack.
    fn heartbeat(&mut self, effects: &mut Effects) {
        let Role::Writing(writer) = &mut self.role else { return };
        for (&node, &installed) in &writer.installed {
            if !installed {
                effects.send.push((node, install(writer)));
                continue;
            }
            let lacks = |record: &&Rc<SimRecord>| {
                let lacks = |group: GroupId| writer.tracker.segment_complete(node, group) < record.span.end;
                record.links.iter().any(|link| lacks(link.group))
            };
            let records = writer.retained.iter().filter(lacks).take(20).cloned().collect();
            effects.send.push((node, append(writer, records)));
        }
    }

    /// Makes one more record, unless the log is too far ahead.
    pub fn write(&mut self, random: &mut Random, content: u64) -> Effects {
        let mut effects = Effects::default();
        let Role::Writing(writer) = &mut self.role else { return effects };
        if writer.tracker.log_ahead_bytes() > LOG_AHEAD_MAX_BYTES {
            return effects;
        }
        let group_count = self.members.len() as u64;
        let mut groups = GroupSet::EMPTY.with(GroupId(random.below(group_count) as u16));
        while random.chance(300) {
            groups = groups.with(GroupId(random.below(group_count) as u16));
        }
        let previous = writer.tracker.shipped();
        // Now and then a page header lies between two records; the first record is never at zero.
        let skip = if previous == RecordSpan::NONE || random.chance(100) { 24 } else { 0 };
        let start = Lsn(previous.end.0 + skip);
        let span = RecordSpan { start, end: Lsn(start.0 + 8 * random.between(3, 12)) };
        let mut links = Vec::new();
        writer.tracker.ship(span, groups, &mut links);
        let record = Rc::new(SimRecord {
            epoch: self.promise.epoch,
            span,
            previous_start: previous.start,
            links,
            content,
            truth: self.server_version,
        });
        writer.retained.push_back(Rc::clone(&record));
        // Only members of the record's groups need it; here every node is a member of every group.
        for &node in &self.nodes {
            if writer.installed.get(&node) == Some(&true) {
                effects.send.push((node, append(writer, vec![Rc::clone(&record)])));
            }
        }
        effects.shipped = Some(record);
        effects
    }

    /// The address of this instance.
    #[must_use]
    pub fn host(&self) -> Host {
        Host::Compute(self.id)
    }
}

fn install(writer: &Writer) -> Message {
    Message::Install {
        promise: writer.outcome.promise,
        history: writer.outcome.history.clone(),
        tails: writer.outcome.tails.clone(),
    }
}

fn append(writer: &Writer, records: Vec<Rc<SimRecord>>) -> Message {
    let tails: Vec<GroupTail> = writer.tracker.durable_tails().collect();
    let durable = writer.tracker.volume_durable();
    Message::Append { epoch: writer.tracker.epoch(), records, durable, tails }
}
