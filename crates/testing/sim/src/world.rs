//! The event loop: virtual time, and what each event makes its party do.

mod faults;
mod instances;
mod membership;
mod network;
mod rescue;
mod tenure;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::discriminant;
use std::rc::Rc;

use borealis_quorum::membership::GroupMembership;
use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId, ReadPoint, ServerVersion, VolumeEpoch};
use borealis_wire::Reply;

use self::faults::Faults;
use self::membership::Controller;
use self::rescue::Rescue;
use crate::compute::Compute;
use crate::message::{Host, LineId, Message, OnLine};
use crate::node::{self, SimNode};
use crate::oracle::Oracle;
use crate::random::Random;
use crate::{Coverage, Defect, Options, Report, Violation};

/// Members of every group at first.
const NODES: u16 = 6;
/// Nodes without a segment at first, in runs with changes of membership.
const SPARES: u16 = 4;
/// In so many of a thousand runs, members are replaced.
const CHANGES: u64 = 600;
/// Writers run one of this many releases, so that volumes often move between two and back.
const RELEASES: u64 = 3;
/// In so many of a thousand of those, each group has members of its own, and nodes host only some groups.
const SPREAD: u64 = 400;
/// In so many of a thousand other runs, three nodes are lost for good at once.
const RESCUES: u64 = 800;
/// Between the epochs of instances: nobody is ever promised what lies between, and only a liar speaks of it.
const EPOCH_STEP: u64 = 2;
/// Faults happen until here.
const CHAOS_MS: u64 = 4_000;
/// After the faults, the volume must be well again before this.
const HEALED_BY_MS: u64 = 60_000;

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most events are deliveries")]
enum Event {
    /// What an instance sends names the memberships it was made for, in group order; not all of the first ones.
    Deliver {
        from: Host,
        to: Host,
        message: Message,
        made_for: Option<Rc<[Option<MembershipEpoch>]>>,
    },
    NodeTick(usize),
    Synced {
        node: usize,
        life: u64,
        position: usize,
    },
    Restart(usize),
    ComputeTick(u32),
    Write(u32),
    Fault,
    Rescue,
    Supervise,
    /// Somebody looks whether a membership has to change.
    Manage,
    ControllerTick(u32),
}

/// One simulated history.
#[derive(Debug)]
pub struct World {
    random: Random,
    defect: Defect,
    faults: Faults,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    nodes: Vec<SimNode>,
    lost: Vec<bool>,
    rescue: Option<Rescue>,
    computes: BTreeMap<u32, Compute>,
    group_count: u16,
    /// Whether members are replaced in this run.
    changes: bool,
    /// Nodes that were members of a group, and are not or came back.
    left: BTreeSet<(NodeId, GroupId)>,
    controllers: BTreeMap<u32, Controller>,
    next_controller: u32,
    oracle: Oracle,
    coverage: Coverage,
    trace: DefaultHasher,
    /// The newest epoch that each node ever had the history of.
    installed: Vec<VolumeEpoch>,
    /// When the recovery of each epoch completed, the newest of its time.
    opened: BTreeMap<VolumeEpoch, u64>,
    /// The node that has said what is not true, if one has.
    liar: Option<usize>,
    /// Who cannot reach whom: hosts on different sides, in one or in both directions.
    sides: Option<(u64, bool)>,
    /// Until when they cannot for certain; zero if that may end at any time.
    parted_until: u64,
    /// Connections that broke: nothing arrives on them any more.
    broken: BTreeSet<LineId>,
    /// When the last message of a connection arrives, in each direction (`true`: at the node).
    arrivals: BTreeMap<(LineId, bool), u64>,
    next_compute: u32,
    last_epoch: VolumeEpoch,
    /// What the instance started last runs.
    last_release: ServerVersion,
    next_content: u64,
    /// Durable position when the supervisor last looked after the faults, and since when it stands still.
    stuck: (Lsn, u64),
    /// Since when, after the faults, some segment is not complete.
    unwell_since: u64,
}

/// Who holds each group at first: the same six nodes, or six of all for each.
fn first_members(random: &mut Random, group_count: u16, changes: bool) -> Vec<GroupMembership> {
    let is_spread = changes && random.chance(SPREAD);
    let mut members = || {
        let mut nodes: Vec<u16> = (0..if is_spread { NODES + SPARES } else { NODES }).collect();
        while nodes.len() > usize::from(NODES) {
            nodes.swap_remove(random.below(nodes.len() as u64) as usize);
        }
        let six = nodes.first_chunk::<6>().expect("so many are left");
        GroupMembership::created(six.map(NodeId)).expect("six different nodes")
    };
    (0..group_count).map(|_| members()).collect()
}

impl World {
    /// A world at time zero.
    #[must_use]
    pub fn new(options: Options) -> World {
        let mut random = Random::new(options.seed);
        let group_count = random.between(1, 4) as u16;
        let changes = random.chance(CHANGES);
        let memberships = first_members(&mut random, group_count, changes);
        let faults = Faults::draw(&mut random);
        let count = if changes { NODES + SPARES } else { NODES };
        let nodes: Vec<SimNode> =
            (0..count).map(|id| SimNode::new(NodeId(id), &memberships, options.defect)).collect();
        let mut oracle = Oracle::default();
        for (membership, id) in memberships.iter().zip(0..) {
            oracle.created(GroupId(id), membership);
        }
        World {
            random,
            defect: options.defect,
            faults,
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            lost: vec![false; nodes.len()],
            installed: vec![VolumeEpoch(0); nodes.len()],
            nodes,
            rescue: None,
            computes: BTreeMap::new(),
            group_count,
            changes,
            left: BTreeSet::new(),
            controllers: BTreeMap::new(),
            next_controller: 0,
            oracle,
            coverage: Coverage::default(),
            trace: DefaultHasher::new(),
            opened: BTreeMap::new(),
            liar: None,
            sides: None,
            parted_until: 0,
            broken: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            next_compute: 0,
            last_epoch: VolumeEpoch(0),
            last_release: ServerVersion::NEWEST_TESTED,
            next_content: 1,
            stuck: (Lsn::ZERO, 0),
            unwell_since: CHAOS_MS,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn run(mut self) -> Result<Report, Violation> {
        for node in 0..self.nodes.len() {
            self.schedule(node as u64 * 3, Event::NodeTick(node));
        }
        self.schedule(0, Event::Supervise);
        self.schedule(50, Event::Fault);
        if self.changes {
            self.schedule(100, Event::Manage);
        } else if self.random.chance(RESCUES) {
            let at = self.random.between(500, CHAOS_MS);
            self.schedule(at, Event::Rescue);
        }
        loop {
            let ((at, _), event) = self.events.pop_first().expect("somebody always has a timer");
            self.now = at;
            self.note(&event);
            let done = self.step(event).map_err(|what| Violation { at_ms: at, what })?;
            if done {
                return Ok(Report { trace_hash: self.trace.finish(), coverage: self.coverage });
            }
        }
    }

    fn chaos(&self) -> bool {
        self.now < CHAOS_MS
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    fn note(&mut self, event: &Event) {
        self.now.hash(&mut self.trace);
        discriminant(event).hash(&mut self.trace);
        if let Event::Deliver { from, to, message, .. } = event {
            format!("{from:?}{to:?}").hash(&mut self.trace);
            discriminant(message).hash(&mut self.trace);
            if let Message::Line(line, content) = message {
                line.hash(&mut self.trace);
                discriminant(content).hash(&mut self.trace);
            }
        }
        self.oracle.durable_end().hash(&mut self.trace);
    }

    fn step(&mut self, event: Event) -> Result<bool, String> {
        match event {
            Event::Deliver { from, to: Host::Node(id), message, made_for } => {
                let position = usize::from(id.0);
                // A list that somebody made up may have nodes that do not exist.
                if self.nodes.get(position).is_none_or(|node| !node.running) {
                    if let Message::Line(line, _) = message {
                        self.break_line(line, from, Host::Node(id));
                    }
                } else {
                    let made_for = made_for.as_deref();
                    let effects = self.nodes[position].receive(from, message, made_for, &mut self.coverage);
                    self.finish_node(position, from, effects)?;
                }
            }
            Event::Deliver { from: Host::Node(_), to: Host::Controller(id), message, .. } => {
                self.controller_receive(id, message);
            }
            Event::Deliver { from: Host::Node(node), to: Host::Compute(id), message, .. } => {
                if let Message::Line(_, OnLine::Reply(_, reply)) = &message {
                    self.check_claims(node, id, reply)?;
                }
                if let Some(compute) = self.computes.get_mut(&id) {
                    let effects = compute.receive(node, message, self.now);
                    self.finish_compute(id, effects)?;
                }
            }
            Event::Deliver { .. } => return Err("only nodes answer".to_owned()),
            Event::NodeTick(position) => self.node_tick(position),
            Event::Synced { node, life, position } => self.synced(node, life, position),
            Event::Restart(position) => {
                if !self.nodes[position].running && !self.lost[position] {
                    self.nodes[position].restart();
                    self.coverage.count("node restarts");
                    self.oracle.check_releases(&self.nodes[position], &mut self.coverage)?;
                }
            }
            Event::ComputeTick(id) => {
                if let Some(compute) = self.computes.get_mut(&id).filter(|compute| !compute.is_stopped()) {
                    let effects = compute.tick(self.now);
                    self.finish_compute(id, effects)?;
                    self.check_lease(id)?;
                    let delay = self.random.between(60, 120);
                    self.schedule(delay, Event::ComputeTick(id));
                }
            }
            Event::Write(id) => {
                if let Some(compute) = self.computes.get_mut(&id).filter(|compute| !compute.is_stopped()) {
                    let effects = compute.write(&mut self.random, self.next_content, self.now);
                    self.next_content += 1;
                    self.finish_compute(id, effects)?;
                    let delay = if self.chaos() { self.random.between(2, 40) } else { 200 };
                    self.schedule(delay, Event::Write(id));
                }
            }
            Event::Fault => {
                if self.chaos() {
                    self.fault();
                    let delay = self.random.between(10, 80);
                    self.schedule(delay, Event::Fault);
                } else {
                    self.heal();
                }
            }
            Event::Rescue => self.rescue_step()?,
            Event::Manage => self.manage(),
            Event::ControllerTick(id) => self.controller_tick(id),
            Event::Supervise => return self.supervise(),
        }
        self.check_random_read()?;
        Ok(false)
    }

    /// What a node claims to have in a reply to a writer, it must have, durably.
    fn check_claims(&self, node: NodeId, instance: u32, reply: &Reply) -> Result<(), String> {
        let Some(epoch) = self.computes.get(&instance).map(|compute| compute.promise.epoch) else {
            return Ok(());
        };
        let claims: Vec<(GroupId, Lsn)> = match reply {
            Reply::Appended(progress) | Reply::Progress(progress) => {
                progress.iter().map(|claim| (claim.group, claim.segment_complete_lsn)).collect()
            }
            Reply::Welcome { segments, .. } | Reply::Summaries(segments) => segments
                .iter()
                .filter(|claim| claim.promised_epoch == epoch && claim.history.newest_epoch() == epoch)
                .map(|claim| (claim.group, claim.segment_complete_lsn))
                .collect(),
            _ => return Ok(()),
        };
        let node = &self.nodes[usize::from(node.0)];
        for (group, complete) in claims {
            // Only while nothing newer was promised can the claim be compared with what is there now. A segment that left
            // since it made the claim has made sure that others have what it had.
            let has_left = self.left.contains(&(node.id, group));
            if node.running && !has_left && node.segment(group).promise().epoch == epoch {
                self.oracle.check_complete(node, group, epoch, complete)?;
            }
        }
        Ok(())
    }

    /// A reader of any epoch asks any node, whatever an instance would do.
    fn check_random_read(&mut self) -> Result<(), String> {
        let group = GroupId(self.random.below(u64::from(self.group_count)) as u16);
        let newest = self.oracle.newest_epoch();
        // Those that missed a recovery are few, and the ones that could be wrong: they are asked more often.
        let is_behind =
            |node: &SimNode| node.running && node.segment(group).history().newest_epoch() < newest;
        let behind = self.nodes.iter().position(is_behind);
        if !self.random.chance(if behind.is_some() { 300 } else { 100 }) {
            return Ok(());
        }
        let behind = behind.filter(|_| self.random.chance(700));
        let position = behind.unwrap_or_else(|| self.random.below(self.nodes.len() as u64) as usize);
        // A replaced instance knows of nothing after the opening that replaced it.
        let older = self.random.chance(250).then(|| self.oracle.older_reader(&mut self.random)).flatten();
        let (epoch, end) = older.unwrap_or((newest, self.oracle.durable_end()));
        let lsn = if self.random.chance(500) { end } else { Lsn(self.random.below(end.0 + 1)) };
        let (node, at) = (&self.nodes[position], ReadPoint { epoch, lsn });
        if node.running && node.permit_read(group, at).is_ok() {
            self.coverage.count("reads checked");
            self.oracle.check_read(node, group, at)?;
        } else {
            self.coverage.count("reads refused");
        }
        Ok(())
    }

    fn finish_node(&mut self, position: usize, asked_by: Host, effects: node::Effects) -> Result<(), String> {
        if let Some(what) = effects.impossible {
            return Err(what);
        }
        for (group, record) in &effects.stored {
            self.oracle.stored(&self.nodes[position], *group, record)?;
        }
        for (group, at) in effects.read {
            self.coverage.count("pages read by instances");
            let node = &self.nodes[position];
            self.oracle.check_read(node, group, at).map_err(|what| format!("{asked_by:?}: {what}"))?;
        }
        for (group, membership) in &effects.members {
            let id = self.nodes[position].id;
            if !membership.contains(id) {
                self.left.insert((id, *group));
            }
            self.oracle.acts_on(*group, membership, &self.nodes, &mut self.coverage)?;
        }
        self.note_installed(position);
        let from = Host::Node(self.nodes[position].id);
        for (to, message) in effects.send {
            self.send(from, to, message);
        }
        self.start_sync(position);
        Ok(())
    }

    fn start_sync(&mut self, position: usize) {
        let node = &mut self.nodes[position];
        if node.running && !node.syncing && node.wants_sync() {
            node.syncing = true;
            let event = Event::Synced { node: position, life: node.life, position: node.log_position() };
            let delay = self.random.between(1, 12);
            self.schedule(delay, event);
        }
    }

    fn synced(&mut self, position: usize, life: u64, log_position: usize) {
        let node = &mut self.nodes[position];
        if node.life != life {
            return;
        }
        node.syncing = false;
        let from = Host::Node(node.id);
        for (to, message) in node.synced_to(log_position) {
            self.send(from, to, message);
        }
        self.start_sync(position);
    }

    fn node_tick(&mut self, position: usize) {
        let delay = self.random.between(40, 100);
        self.schedule(delay, Event::NodeTick(position));
        if !self.nodes[position].running {
            return;
        }
        if self.random.chance(100) && self.nodes[position].store_checkpoint(&mut self.coverage) {
            self.coverage.count("checkpoints");
        }
        let peers = self.nodes[position].peers();
        let from = Host::Node(self.nodes[position].id);
        if let Some(&peer) = peers.get(self.random.below(peers.len().max(1) as u64) as usize) {
            let (summaries, memberships) =
                (self.nodes[position].told_summaries(), self.nodes[position].told_memberships());
            self.send(from, Host::Node(peer), Message::GossipSummary(summaries));
            if self.changes {
                self.send(from, Host::Node(peer), Message::GossipMembership(memberships));
            }
            if let Some(group) = self.nodes[position].joining_group(&mut self.random) {
                self.send(from, Host::Node(peer), Message::AskBase(group));
            }
        }
    }

    /// Starts an instance when none is left; after the faults also when the volume stands still.
    /// Returns whether the run is over.
    fn supervise(&mut self) -> Result<bool, String> {
        let delay = self.random.between(100, 300);
        self.schedule(delay, Event::Supervise);
        if self.chaos() {
            if self.computes.values().all(Compute::is_stopped) {
                self.start_compute(VolumeEpoch(self.last_epoch.0 + EPOCH_STEP));
            }
            return Ok(false);
        }
        if self.now > HEALED_BY_MS {
            let states: String =
                self.nodes.iter().zip(&self.lost).map(|(n, lost)| n.in_words(*lost)).collect();
            return Err(format!("not well again after the faults: {states}"));
        }
        if self.now < CHAOS_MS + 3_000 {
            return Ok(false);
        }
        let durable = self.oracle.durable_end();
        if durable > self.stuck.0 {
            self.stuck = (durable, self.now);
        } else if self.now > self.stuck.1 + 3_000 {
            self.stuck.1 = self.now;
            self.start_compute(VolumeEpoch(self.last_epoch.0 + EPOCH_STEP));
        }
        if self.now > self.unwell_since + 15_000 {
            // A recovery that died after it fenced a minority leaves those segments waiting for the next one,
            // while the writer goes on with the others.
            self.coverage.count("takeovers to release a fenced minority");
            self.unwell_since = self.now;
            self.start_compute(VolumeEpoch(self.last_epoch.0 + EPOCH_STEP));
        }
        let newest = self.oracle.newest_epoch();
        let current = self.computes.values().find(|c| c.promise.epoch == newest && !c.is_stopped());
        let caught_up =
            current.and_then(Compute::positions).is_some_and(|(durable, shipped)| durable == shipped);
        if !caught_up || self.now < CHAOS_MS + 5_000 || self.stuck.1 + 1_000 < self.now {
            return Ok(false);
        }
        self.finally(durable)
    }

    fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.group_count).map(GroupId)
    }

    /// Whether every segment that is left has everything; then nothing acknowledged is lost.
    fn finally(&mut self, durable: Lsn) -> Result<bool, String> {
        let epoch = self.oracle.newest_epoch();
        if !self.memberships_are_settled() {
            return Ok(false);
        }
        let left: Vec<(GroupId, usize)> = self.groups().flat_map(|group| self.members_left(group)).collect();
        for &(group, position) in &left {
            if self.nodes[position].segment(group).check_read(ReadPoint { epoch, lsn: durable }).is_err() {
                return Ok(false);
            }
        }
        for (group, position) in left {
            let node = &self.nodes[position];
            self.oracle.check_read(node, group, ReadPoint { epoch, lsn: durable })?;
            self.oracle.check_releases(node, &mut self.coverage)?;
        }
        self.coverage.count("runs");
        Ok(true)
    }
}
