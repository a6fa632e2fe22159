//! The controller itself: rounds of looking, deciding and acting, for as long as it has the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use borealis_controller::catalog::records::{
    Fleet, FleetGroup, MembershipRecord, NodeRecord, NodeState, Record,
};
use borealis_controller::catalog::{
    Acquisition, Catalog, CatalogError, Change as Write, Condition, Lease, Outcome, TRANSACTION_PARTS_MAX,
    Transaction,
};
use borealis_controller::fleet::Observed;
use borealis_controller::reconcile::{Decision, Plan, Step, reconcile};
use borealis_quorum::membership::{GroupMembership, Replacement, Transition};
use borealis_types::membership::MembershipState;
use borealis_types::{AvailabilityZone, NodeId};

use crate::change::{self, carry_through};
use crate::counts::Counts;
use crate::host::Host;
use crate::nodes::Nodes;
use crate::observation::{HostReport, Memory, begun_after, claims, observed};
use crate::questions::{Answers, ask_everyone, whereabouts};

/// The name of the lease of whoever acts.
const LEASE_NAME: &str = "controller";
/// The most steps that are carried through at one time, each by a thread of its own.
const WORKERS_MAX: usize = 32;
/// The pauses between attempts to start a node where that fails.
const START_PAUSE: Duration = Duration::from_secs(2);
const START_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How a controller works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// What others see of who has the lease.
    pub name: String,
    /// For how long the lease is taken; it is kept three times in that time. A successor waits at most so long.
    pub lease_ms: u64,
    /// A step that is not made within this is decided anew.
    pub step_timeout: Duration,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub fn new(name: String) -> Options {
        Options { name, lease_ms: 4_500, step_timeout: Duration::from_secs(10) }
    }
}

/// What a round came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Round {
    /// Another controller has the lease.
    Waits {
        /// Which.
        holder: String,
    },
    /// The host is being changed by somebody else.
    Paused,
    /// It looked and acted: this was decided.
    Acted(Plan),
}

/// Everything that one round saw, and what it comes to.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What the catalog says.
    pub fleet: Arc<Fleet>,
    /// What nodes said.
    pub answers: Answers,
    /// What that means.
    pub observed: Observed,
    /// What is to be done.
    pub plan: Plan,
}

/// Looks once. `memory` learns of it; `now` is a monotonic clock's.
pub fn look(
    fleet: Fleet,
    nodes: &dyn Nodes,
    host: &mut dyn Host,
    memory: &mut Memory,
    now: impl Fn() -> Duration,
) -> Picture {
    let answers = ask_everyone(nodes, &fleet);
    let witnesses = host.witnesses(&fleet);
    let now = now();
    memory.take(&fleet, &answers, witnesses, now);
    let active = fleet.nodes.values().filter(|record| record.state != NodeState::Removed);
    let lost = active.filter_map(|record| Some((record.node, host.lost(record)?))).collect();
    let answered: BTreeSet<NodeId> = answers.keys().map(|(node, _)| *node).collect();
    let report = HostReport { lost, starting: host.starting(&fleet, &answered) };
    let observed = observed(&fleet, &answers, memory, &report, now);
    let plan = reconcile(&fleet, &observed);
    Picture { fleet: Arc::new(fleet), answers, observed, plan }
}

/// A controller.
pub struct Conductor {
    catalog: Box<dyn Catalog + Send>,
    nodes: Arc<dyn Nodes>,
    host: Box<dyn Host>,
    options: Options,
    begin: Instant,
    memory: Memory,
    lease: Option<(Lease, Instant)>,
    /// Groups that a thread carries a step through for.
    at_work: BTreeSet<FleetGroup>,
    ended: (SyncSender<FleetGroup>, Receiver<FleetGroup>),
    /// Zones where starting a node failed: when to try again, and the pause after that.
    start_pauses: BTreeMap<AvailabilityZone, (Instant, Duration)>,
    /// What was remarked in the last round, without its numbers: each remark is logged once.
    remarked: BTreeSet<String>,
    counts: Counts,
}

impl std::fmt::Debug for Conductor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conductor").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Conductor {
    /// A controller that has seen nothing yet.
    #[must_use]
    pub fn new(
        catalog: Box<dyn Catalog + Send>,
        nodes: Arc<dyn Nodes>,
        host: Box<dyn Host>,
        options: Options,
    ) -> Conductor {
        Conductor {
            catalog,
            nodes,
            host,
            options,
            begin: Instant::now(),
            memory: Memory::new(),
            lease: None,
            at_work: BTreeSet::new(),
            ended: sync_channel(WORKERS_MAX),
            start_pauses: BTreeMap::new(),
            remarked: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    /// What it counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// One round. It takes as long as the slowest node may take to answer; steps go on after it, on threads of their own.
    ///
    /// # Errors
    /// When the catalog cannot be used.
    pub fn round(&mut self) -> Result<Round, CatalogError> {
        let round = self.look_and_act();
        self.counts.round(matches!(round, Ok(Round::Acted(_))), round.is_err());
        round
    }

    fn look_and_act(&mut self) -> Result<Round, CatalogError> {
        if let Some(holder) = self.held_by_another()? {
            return Ok(Round::Waits { holder });
        }
        if !self.host.may_act() {
            return Ok(Round::Paused);
        }
        let fleet = self.fleet_with_news()?;
        let begin = self.begin;
        let picture = look(fleet, &*self.nodes, &mut *self.host, &mut self.memory, || begin.elapsed());
        self.counts.saw(&picture.fleet, &picture.observed, &picture.plan);
        self.note_memberships(&picture)?;
        self.remark(&picture.plan);
        // Looking may have taken long.
        if self.held_by_another()?.is_none() && self.host.may_act() {
            for decision in &picture.plan.decisions {
                self.carry_out(&picture, decision)?;
            }
        }
        Ok(Round::Acted(picture.plan))
    }

    /// Waits until a step has ended, at most for so long; whether one has.
    pub fn wait(&mut self, at_most: Duration) -> bool {
        let ended = self.ended.1.recv_timeout(at_most);
        if let Ok(group) = ended {
            self.at_work.remove(&group);
        }
        self.at_work_no_longer();
        ended.is_ok()
    }

    /// Whether a step is being carried through.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        !self.at_work.is_empty()
    }

    /// Gives the lease back, so that another controller need not wait for its end.
    ///
    /// # Errors
    /// When the catalog cannot be used.
    pub fn resign(&mut self) -> Result<(), CatalogError> {
        match self.lease.take() {
            Some((lease, _)) => self.catalog.release(&lease),
            None => Ok(()),
        }
    }

    fn at_work_no_longer(&mut self) {
        while let Ok(group) = self.ended.1.try_recv() {
            self.at_work.remove(&group);
        }
    }

    /// Takes or keeps the lease; who has it if that is somebody else.
    fn held_by_another(&mut self) -> Result<Option<String>, CatalogError> {
        if let Some((lease, kept_at)) = &mut self.lease {
            if kept_at.elapsed() < Duration::from_millis(self.options.lease_ms / 3) {
                return Ok(None);
            }
            let now = Instant::now();
            if self.catalog.keep(lease)? {
                *kept_at = now;
                return Ok(None);
            }
            tracing::warn!("lost the lease to another controller, or for having been away");
            self.lease = None;
        }
        let now = Instant::now();
        match self.catalog.acquire(LEASE_NAME, &self.options.name, self.options.lease_ms)? {
            Acquisition::Acquired(lease) => {
                tracing::info!(name = self.options.name, "this controller acts from here on");
                self.lease = Some((lease, now));
                Ok(None)
            }
            Acquisition::HeldBy(holder) => Ok(Some(holder)),
        }
    }

    /// What the catalog says, after what is known here was written there.
    fn fleet_with_news(&mut self) -> Result<Fleet, CatalogError> {
        let fleet = Fleet::read(&self.catalog.list("")?)?;
        let news = match self.host.news(&fleet) {
            Ok(news) => news,
            Err(why) => {
                tracing::warn!("cannot find out what is here: {why}");
                Vec::new()
            }
        };
        if news.is_empty() {
            return Ok(fleet);
        }
        for changes in news.chunks(TRANSACTION_PARTS_MAX / 2) {
            self.write(&fleet, changes.to_vec())?;
        }
        Fleet::read(&self.catalog.list("")?)
    }

    /// Writes entries that nobody else has written since `fleet` was read, if the lease is still held. What is not written
    /// now is found out again in the next round.
    fn write(&mut self, fleet: &Fleet, changes: Vec<Write>) -> Result<bool, CatalogError> {
        let mut conditions: Vec<Condition> =
            changes.iter().map(|change| fleet.is_as_read(change.key())).collect();
        conditions.extend(self.lease.as_ref().map(|(lease, _)| lease.is_held()));
        Ok(self.catalog.commit(&Transaction { conditions, changes })? != Outcome::Conflict)
    }

    /// Notes the memberships that were seen, for whoever has to know whom to ask.
    fn note_memberships(&mut self, picture: &Picture) -> Result<(), CatalogError> {
        let records = picture
            .observed
            .groups
            .iter()
            .map(|(&group, seen)| MembershipRecord { group, membership: seen.membership.clone() });
        let news: Vec<Write> = records
            .filter(|record| picture.fleet.memberships.get(&record.group) != Some(record))
            .map(|record| record.put())
            .collect();
        for changes in news.chunks(TRANSACTION_PARTS_MAX / 2) {
            self.write(&picture.fleet, changes.to_vec())?;
        }
        Ok(())
    }

    fn remark(&mut self, plan: &Plan) {
        let without_numbers =
            |remark: &String| remark.chars().filter(|char| !char.is_ascii_digit()).collect::<String>();
        for remark in &plan.remarks {
            if !self.remarked.contains(&without_numbers(remark)) {
                tracing::info!("{remark}");
            }
        }
        self.remarked = plan.remarks.iter().map(without_numbers).collect();
    }

    fn carry_out(&mut self, picture: &Picture, decision: &Decision) -> Result<(), CatalogError> {
        match &decision.step {
            Step::Settle(group) => self.settle(picture, *group, decision),
            Step::Change { group, transition, .. } => {
                self.change(picture, *group, *transition, decision);
            }
            Step::StartNode(zone) => self.start_node(&picture.fleet, zone, decision)?,
            Step::Adopt { node, incarnation } => {
                tracing::info!("{decision}");
                self.counts.began(&decision.step);
                self.rewrite(&picture.fleet, *node, |record| record.incarnation.clone_from(incarnation))?;
            }
            Step::Retire(node) => {
                tracing::info!("{decision}");
                self.counts.began(&decision.step);
                let is_written =
                    self.rewrite(&picture.fleet, *node, |record| record.state = NodeState::Removed)?;
                if is_written && let Err(why) = self.host.retire(*node) {
                    tracing::warn!(%node, "it is removed, and cannot be stopped: {why}");
                    self.counts.failed();
                }
            }
            Step::EndMove(record) => {
                tracing::info!("{decision}");
                self.counts.began(&decision.step);
                self.write(&picture.fleet, vec![Write::Delete(record.key())])?;
            }
        }
        Ok(())
    }

    fn rewrite(
        &mut self,
        fleet: &Fleet,
        node: NodeId,
        change: impl FnOnce(&mut NodeRecord),
    ) -> Result<bool, CatalogError> {
        let Some(record) = fleet.nodes.get(&node) else { return Ok(false) };
        let mut record = record.clone();
        change(&mut record);
        self.write(fleet, vec![record.put()])
    }

    fn settle(&mut self, picture: &Picture, group: FleetGroup, decision: &Decision) {
        let Some(seen) = picture.observed.groups.get(&group) else { return };
        let goal = settling(&seen.membership, &claims(group, &picture.answers));
        self.change(picture, group, goal, decision);
    }

    /// Has a thread carry a step through, unless one is at work for the group.
    fn change(&mut self, picture: &Picture, group: FleetGroup, goal: Transition, decision: &Decision) {
        self.at_work_no_longer();
        let Some(seen) = picture.observed.groups.get(&group) else { return };
        if self.at_work.len() >= WORKERS_MAX || self.at_work.contains(&group) {
            return;
        }
        let plan = change::Plan {
            group,
            known: seen.membership.clone(),
            goal,
            whereabouts: whereabouts(&picture.fleet),
            proposer: random_number(),
            give_up_after: self.options.step_timeout,
        };
        let (nodes, ended, counts) = (Arc::clone(&self.nodes), self.ended.0.clone(), self.counts());
        let work = move || {
            match carry_through(&*nodes, &plan) {
                Ok(membership) => tracing::info!(
                    "{group}: membership {} is with a write quorum: {}",
                    membership.epoch(),
                    in_words(&membership)
                ),
                Err(why) => {
                    counts.failed();
                    tracing::info!("{group}: the step was not made: {why}");
                }
            }
            let _ = ended.send(group);
        };
        tracing::info!("{decision}");
        match std::thread::Builder::new().name(format!("step-{}", group.group)).spawn(work) {
            Ok(_) => {
                self.counts.began(&decision.step);
                self.at_work.insert(group);
            }
            Err(error) => tracing::warn!("{group}: no thread can be started: {error}"),
        }
    }

    fn start_node(
        &mut self,
        fleet: &Fleet,
        zone: &AvailabilityZone,
        decision: &Decision,
    ) -> Result<(), CatalogError> {
        if self.start_pauses.get(zone).is_some_and(|(until, _)| Instant::now() < *until) {
            return Ok(());
        }
        tracing::info!("{decision}");
        self.counts.began(&decision.step);
        match self.host.start_node(zone) {
            Ok(record) => {
                tracing::info!("node {} was started in {}", record.node, zone.0);
                self.start_pauses.remove(zone);
                self.write(fleet, vec![record.put()])?;
            }
            Err(why) => {
                self.counts.failed();
                let pause = self.start_pauses.get(zone).map_or(START_PAUSE, |(_, pause)| *pause);
                tracing::warn!(
                    "no node can be started in {}: {why}; tried again after {} s",
                    zone.0,
                    pause.as_secs()
                );
                let next = (pause * 2).min(START_PAUSE_MAX);
                self.start_pauses.insert(zone.clone(), (Instant::now() + pause, next));
            }
        }
        Ok(())
    }
}

/// The step that carries through what was begun: the one that somebody acts on already, or else none but to have the members
/// know what was chosen last.
fn settling(current: &GroupMembership, claims: &BTreeMap<NodeId, MembershipState>) -> Transition {
    if let Some(step) = begun_after(current, claims).and_then(|next| current.transition_to(next)) {
        return step;
    }
    // This is reached already, so that all that is left to do is to establish it.
    let outsider = (0..).map(NodeId).find(|node| !current.contains(*node));
    Transition::Finish(Replacement { old: outsider.unwrap_or_default(), new: current.base()[0] })
}

/// The members, and who replaces whom.
fn in_words(membership: &GroupMembership) -> String {
    let base: Vec<String> = membership.base().iter().map(ToString::to_string).collect();
    let changes = membership.replacements().into_iter();
    let changes: String =
        changes.map(|change| format!(", node {} for node {}", change.new, change.old)).collect();
    format!("nodes {}{changes}", base.join(" "))
}

fn random_number() -> u64 {
    let mut bytes = [0; 8];
    // Two proposers with one number are told apart by nothing else; the process and the time are nearly as good.
    if File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).is_err() {
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        return u64::from(std::process::id()) << 32 | u64::from(nanos);
    }
    u64::from_le_bytes(bytes)
}
