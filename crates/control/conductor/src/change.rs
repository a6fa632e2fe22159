//! Carrying one step of a group's membership through, over connections to its members.
//!
//! What to ask whom, and when it is done, is decided by [`borealis_quorum::membership::Change`]. Here its questions are sent,
//! one at a time to each node and to all of them at once, and its clock is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use borealis_controller::catalog::records::FleetGroup;
use borealis_quorum::membership::{
    Answer, Change, ChangeFailure, ChangeOptions, Command, Event, GroupMembership, Request, Transition,
};
use borealis_types::{MembershipEpoch, NodeId};
use borealis_wire::{Reply, Whereabouts};

use crate::nodes::{Addressee, Nodes};

/// How often a change looks at its clock.
const TICK: Duration = Duration::from_millis(50);
/// A request without an answer is repeated after this long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a node that leaves is waited for before it is told; it learns of it from others, too.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// More nodes than a change ever speaks to: the members of two memberships.
const ANSWERS_WAITING: usize = 32;

/// A step to carry through.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The group.
    pub group: FleetGroup,
    /// Its membership as it was seen.
    pub known: GroupMembership,
    /// What changes.
    pub goal: Transition,
    /// Where nodes are to be found; those that are not in it are not asked.
    pub whereabouts: Vec<Whereabouts>,
    /// A random number of this attempt.
    pub proposer: u64,
    /// Give up after this long.
    pub give_up_after: Duration,
}

/// Why a step was not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotMade {
    /// Somebody else was faster: what the step was decided on is no more.
    #[error("the group has membership {0} by now")]
    Overtaken(MembershipEpoch),
    /// It is not possible, or was not finished in time.
    #[error(transparent)]
    Failed(#[from] ChangeFailure),
}

/// Carries a step through; returns the membership that is established then. It blocks until it is done, found impossible, or
/// given up.
///
/// # Errors
/// When the step was not made. Whatever it began, the next attempt takes up.
pub fn carry_through(nodes: &dyn Nodes, plan: &Plan) -> Result<GroupMembership, NotMade> {
    let begin = Instant::now();
    let options = ChangeOptions {
        group: plan.group.group,
        known: plan.known.clone(),
        goal: plan.goal,
        proposer: plan.proposer,
        retry_after: RETRY_AFTER,
        give_up_after: Some(plan.give_up_after),
    };
    let (mut change, commands) = Change::start(options, begin.elapsed());
    let (sender, receiver) = sync_channel(ANSWERS_WAITING);
    std::thread::scope(|scope| {
        let mut sending = Sending { nodes, plan, sender, asked: BTreeSet::new(), next: BTreeMap::new() };
        let mut end = sending.carry_out(scope, commands);
        while end.is_none() {
            if is_overtaken(plan, &change) {
                return Err(NotMade::Overtaken(change.membership().epoch()));
            }
            let event = sending.wait(scope, &receiver);
            end = sending.carry_out(scope, change.handle(event, begin.elapsed()));
        }
        sending.finish(scope, &receiver);
        match end {
            Some(Command::Failed(failure)) => Err(failure.into()),
            Some(Command::Done(membership)) => Ok(membership),
            Some(Command::Send { .. }) | None => unreachable!("only an end ends the loop"),
        }
    })
}

/// Whether the group went on from what the step was decided on by another step than this one.
fn is_overtaken(plan: &Plan, change: &Change) -> bool {
    let current = change.membership();
    let is_made = plan.known.after(plan.goal).is_ok_and(|next| next == *current);
    // A step that only waits for what was chosen already is made by whatever comes.
    let is_possible = plan.known.after(plan.goal).is_ok();
    is_possible && current.epoch() > plan.known.epoch() && !is_made
}

/// What a node answered; `None` if it did not.
type Answered = (NodeId, Option<Answer>);

/// The requests of one change on their way.
struct Sending<'a> {
    nodes: &'a dyn Nodes,
    plan: &'a Plan,
    sender: SyncSender<Answered>,
    /// Nodes whose answer is awaited.
    asked: BTreeSet<NodeId>,
    /// What to ask of them then. Only the last request counts: each asks for the whole state.
    next: BTreeMap<NodeId, Request>,
}

impl<'a> Sending<'a> {
    /// Sends what is to be sent; returns the end, if it is one.
    fn carry_out<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, 'a>,
        commands: Vec<Command>,
    ) -> Option<Command>
    where
        'a: 'scope,
    {
        let mut end = None;
        for command in commands {
            match command {
                Command::Send { node, request } => self.send(scope, node, request),
                Command::Done(_) | Command::Failed(_) => end = Some(command),
            }
        }
        end
    }

    fn send<'scope>(&mut self, scope: &'scope std::thread::Scope<'scope, 'a>, node: NodeId, request: Request)
    where
        'a: 'scope,
    {
        let Some(place) = self.plan.whereabouts.iter().find(|place| place.node == node) else { return };
        if !self.asked.insert(node) {
            self.next.insert(node, request);
            return;
        }
        let group = self.plan.group;
        let addressee = Addressee { volume: group.volume, node, address: place.address.clone() };
        let nodes_named = self.nodes_named(&request);
        let request = borealis_wire::Request::Membership { group: group.group, request, nodes: nodes_named };
        let (nodes, sender) = (self.nodes, self.sender.clone());
        scope.spawn(move || {
            let answer = match nodes.ask(&addressee, &request) {
                Ok(Reply::Member { membership, segment }) => {
                    let summary = segment.as_ref().map(Into::into);
                    Some(Answer { node, membership, summary })
                }
                Ok(_) => None,
                Err(error) => {
                    tracing::debug!(group = %group.group, %node, %error, "a member did not answer");
                    None
                }
            };
            // Nobody waits for it any more once the change has ended.
            let _ = sender.try_send((node, answer));
        });
    }

    /// Where the nodes are to be found that a request, or the step itself, names.
    fn nodes_named(&self, request: &Request) -> Vec<Whereabouts> {
        let replacement = self.plan.goal.replacement();
        let mut named = self.plan.known.members();
        named.extend([replacement.old, replacement.new]);
        if let Request::Install(membership) = request {
            named.extend(membership.members());
        }
        if let Request::Accept(accepted) = request {
            named.extend(accepted.membership.members());
        }
        self.plan.whereabouts.iter().filter(|place| named.contains(&place.node)).cloned().collect()
    }

    /// After the end: who leaves is told, once it has answered what it was asked before.
    fn finish<'scope>(&mut self, scope: &'scope std::thread::Scope<'scope, 'a>, receiver: &Receiver<Answered>)
    where
        'a: 'scope,
    {
        self.next.retain(|_, request| matches!(request, Request::Install(_)));
        let deadline = Instant::now() + FAREWELL_MAX;
        while !self.next.is_empty() && Instant::now() < deadline {
            self.wait(scope, receiver);
        }
    }

    /// Waits for an answer, or for a little.
    fn wait<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, 'a>,
        receiver: &Receiver<Answered>,
    ) -> Event
    where
        'a: 'scope,
    {
        match receiver.recv_timeout(TICK) {
            Ok((node, answer)) => {
                self.asked.remove(&node);
                if let Some(request) = self.next.remove(&node) {
                    self.send(scope, node, request);
                }
                answer.map_or(Event::Tick, Event::Answer)
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Event::Tick,
        }
    }
}
