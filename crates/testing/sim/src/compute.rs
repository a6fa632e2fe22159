//! A simulated instance: a real recovery that, once it is done, becomes a real writer.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use borealis_quorum::Promise;
use borealis_quorum::membership::{GroupMembership, MembershipState, credible_membership};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::{Command, Event, Recovery, RecoveryOptions};
use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId, ServerVersion};

use crate::Defect;
use crate::effects::Effects;
use crate::message::{Host, Message, SimRecord, to_tail_record};
use crate::random::Random;
use crate::writer::Writer;

/// How often unanswered requests are repeated.
const RETRY_MS: u64 = 150;

#[derive(Debug)]
enum Role {
    Recovering(Box<Recovery<Rc<SimRecord>>>),
    Writing(Box<Writer>),
    Stopped,
}

/// One instance.
#[derive(Debug)]
pub struct Compute {
    /// Counts instances in the order they start.
    pub id: u32,
    /// The epoch it recovers or writes in, and its name there.
    pub promise: Promise,
    /// The release of the server that writes once the recovery is done.
    pub server_version: ServerVersion,
    /// Goes on when told that it is fenced.
    pub stubborn: bool,
    members: Vec<QuorumSets>,
    /// The membership of each group as this instance knows it.
    memberships: Vec<GroupMembership>,
    /// What nodes said of a group's memberships when they refused something, in group order.
    claims: Vec<BTreeMap<NodeId, MembershipState>>,
    defect: Defect,
    role: Role,
}

/// Who takes over, and with which server.
#[derive(Debug)]
pub struct Start {
    /// Counts instances in the order they start.
    pub id: u32,
    /// The epoch it opens, and its name there.
    pub promise: Promise,
    /// The release of its server.
    pub server_version: ServerVersion,
    /// What it tells the recovery of that: the same unless something is broken on purpose.
    pub recorded: ServerVersion,
    /// Through which members it recovers, if not through all.
    pub survivors: Option<Vec<QuorumSets>>,
    /// The membership of each group as it knows it.
    pub memberships: Vec<GroupMembership>,
}

/// The sets that writes are counted in.
fn sets_written(membership: &GroupMembership, defect: Defect) -> QuorumSets {
    match defect {
        Defect::NewSetsNotWritten => QuorumSets::new(vec![*membership.base()]).expect("a set of it is one"),
        _ => QuorumSets::of(membership),
    }
}

/// The sets that a recovery goes through.
fn sets_recovered(membership: &GroupMembership, defect: Defect) -> QuorumSets {
    match defect {
        Defect::NewSetsNotRecovered => QuorumSets::new(vec![*membership.base()]).expect("a set of it is one"),
        _ => QuorumSets::of(membership),
    }
}

impl Compute {
    /// An instance that takes the volume over.
    #[must_use]
    pub fn start(start: Start, now_ms: u64, defect: Defect) -> (Compute, Effects) {
        let Start { id, promise, server_version, recorded, survivors, memberships } = start;
        let all = || memberships.iter().map(|membership| sets_recovered(membership, defect)).collect();
        let options = RecoveryOptions {
            promise,
            server_version: recorded,
            members: survivors.clone().unwrap_or_else(all),
            retry_after: Duration::from_millis(RETRY_MS),
            give_up_after: Some(Duration::from_millis(20 * RETRY_MS)),
        };
        let (recovery, commands) = Recovery::start(options, Duration::from_millis(now_ms));
        let role = Role::Recovering(Box::new(recovery));
        let of_groups = || memberships.iter().map(|membership| sets_written(membership, defect)).collect();
        let members = survivors.unwrap_or_else(of_groups);
        let claims = vec![BTreeMap::new(); memberships.len()];
        let stubborn = false;
        let mut compute =
            Compute { id, promise, server_version, stubborn, members, memberships, claims, defect, role };
        let mut effects = Effects::default();
        compute.carry_out(commands, now_ms, &mut effects);
        (compute, effects)
    }

    /// The membership of each group as it knows it.
    #[must_use]
    pub fn memberships(&self) -> &[GroupMembership] {
        &self.memberships
    }

    /// For which memberships what it asks now is made, in group order. Every other instance names none that is the first.
    #[must_use]
    pub fn made_for(&self) -> Rc<[Option<MembershipEpoch>]> {
        let names_all = self.id.is_multiple_of(2);
        let named = |epoch: &MembershipEpoch| names_all || *epoch > MembershipEpoch(1);
        self.memberships.iter().map(|membership| Some(membership.epoch()).filter(named)).collect()
    }

    /// A node refused something because it has newer memberships. What enough nodes say is learned.
    fn learn(
        &mut self,
        node: NodeId,
        told: Vec<(GroupId, MembershipState)>,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        for (group, state) in told {
            let position = usize::from(group.0);
            let (Some(known), Some(claims)) = (self.memberships.get(position), self.claims.get_mut(position))
            else {
                continue;
            };
            claims.insert(node, state);
            let Some(newer) = credible_membership(Some(known), claims) else { continue };
            self.memberships[position] = newer.clone();
            self.members[position] = sets_written(&newer, self.defect);
            match &mut self.role {
                Role::Recovering(recovery) => {
                    effects.count("memberships learned by recoveries");
                    let event = Event::MembershipChanged { group, membership: newer };
                    let commands = recovery.handle(event, Duration::from_millis(now_ms));
                    self.carry_out(commands, now_ms, effects);
                }
                Role::Writing(writer) => {
                    effects.count("memberships learned by writers");
                    let sets = self.members[position].clone();
                    writer.take_members(group, &sets, Duration::from_millis(now_ms), effects);
                }
                Role::Stopped => {}
            }
        }
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

    /// Its machine dies: nothing more is sent.
    pub fn stop(&mut self) {
        self.role = Role::Stopped;
    }

    /// Durable position and last shipped position, of a writer.
    #[must_use]
    pub fn positions(&self) -> Option<(Lsn, Lsn)> {
        match &self.role {
            Role::Writing(writer) => Some(writer.positions()),
            _ => None,
        }
    }

    fn carry_out(&mut self, commands: Vec<Command<Rc<SimRecord>>>, now_ms: u64, effects: &mut Effects) {
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
                    effects.recovered = Some(outcome.clone());
                    let members = self.members.clone();
                    let mut writer = Writer::new(
                        self.id,
                        outcome,
                        self.server_version,
                        members,
                        Duration::from_millis(now_ms),
                        self.defect,
                    );
                    writer.set_stubborn(self.stubborn);
                    self.role = Role::Writing(Box::new(writer));
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
        let message = match message {
            Message::OlderMembership(told) => {
                self.learn(node, told, now_ms, &mut effects);
                self.go_on(now_ms, &mut effects);
                return effects;
            }
            other => other,
        };
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
                let left_out = recovery.left_out().len();
                let commands = recovery.handle(event, Duration::from_millis(now_ms));
                effects.left_out = recovery.left_out().len() - left_out;
                self.carry_out(commands, now_ms, &mut effects);
            }
            Role::Writing(writer) => {
                if let Message::Line(line, content) = message
                    && !writer.receive(node, line, content, Duration::from_millis(now_ms), &mut effects)
                {
                    self.role = Role::Stopped;
                }
            }
            Role::Stopped => {}
        }
        self.go_on(now_ms, &mut effects);
        effects
    }

    /// Time passed: repeat what was not answered.
    pub fn tick(&mut self, now_ms: u64) -> Effects {
        let mut effects = Effects::default();
        let now = Duration::from_millis(now_ms);
        match &mut self.role {
            Role::Recovering(recovery) => {
                let commands = recovery.handle(Event::Tick, now);
                self.carry_out(commands, now_ms, &mut effects);
            }
            Role::Writing(writer) => {
                if !writer.tick(now, &mut effects) {
                    self.role = Role::Stopped;
                }
            }
            Role::Stopped => {}
        }
        self.go_on(now_ms, &mut effects);
        effects
    }

    /// What PostgreSQL does: one more record, now and then a read.
    pub fn write(&mut self, random: &mut Random, content: u64, now_ms: u64) -> Effects {
        let mut effects = Effects::default();
        let now = Duration::from_millis(now_ms);
        if let Role::Writing(writer) = &mut self.role {
            if random.chance(400) {
                writer.read(random, now, &mut effects);
            }
            writer.write(random, content, now, &mut effects);
        }
        self.go_on(now_ms, &mut effects);
        effects
    }

    fn go_on(&mut self, now_ms: u64, effects: &mut Effects) {
        if let Role::Writing(writer) = &mut self.role {
            writer.go_on(Duration::from_millis(now_ms), effects);
        }
    }

    /// The address of this instance.
    #[must_use]
    pub fn host(&self) -> Host {
        Host::Compute(self.id)
    }
}
