//! Who the members of each group are, as the segments here have it installed, and where other nodes are: the one owner of
//! both in this process. The store says what is stored; what follows from a membership, everybody here hears from [`Members`]:
//! whom to gossip with, for whom log is kept, whose word counts, which segment is to be filled.
//!
//! A membership comes from a controller ([`Members::take_step`]), or from peers of which enough say that it was chosen
//! ([`Members::take_claims`]). Peers are asked when their summaries name another membership than is known here; and whoever
//! calls as a peer and is none is refused with what is stored, and called back: one of the two has something to learn.

mod addresses;
mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use borealis_quorum::segment::Standing as SegmentStanding;
use borealis_spec::{NodeAddress, NodeConfig};
use borealis_store::{Store, StoreError};
use borealis_types::membership::{GroupMembership, MembershipRequest, MembershipState};
use borealis_types::{GroupId, MembershipEpoch, NodeId};
use borealis_wire::{PeerHeard, Refusal, SegmentSummary, Whereabouts};

use self::addresses::{AddressBook, Source, save};
use self::claims::Claims;
use crate::catch_up::Known;
use crate::group::Group;
use crate::line_throttle::LineThrottle;
use crate::metrics::{Metrics, add};
use crate::refusals::Refusals;
use crate::standing::Standing;

/// A node that calls as a peer and is none is called back for this long after its last attempt.
const KNOCK_LASTS: Duration = Duration::from_secs(60);
/// So many of these at one time.
const KNOCKS_MAX: usize = 16;
/// Where nobody answers is tried for this long before another place.
const TURN_AFTER: Duration = Duration::from_secs(3);

/// What a node says of memberships: what it stores of each, and where nodes are.
pub(crate) type Told = (Vec<(GroupId, MembershipState)>, Vec<Whereabouts>);

/// Who is a member of what, and where nodes are.
#[derive(Debug)]
pub(crate) struct Members {
    node: NodeId,
    group_count: u16,
    store: Arc<Store>,
    known: Arc<Known>,
    standing: Arc<Standing>,
    metrics: Arc<Metrics>,
    /// Held by whoever installs a membership, until everybody here has heard of it.
    installing: Mutex<()>,
    /// Held by whoever writes the file of addresses.
    saving: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    save_lines: LineThrottle,
}

#[derive(Debug)]
struct State {
    /// Groups that have a segment here, or had one.
    groups: BTreeMap<GroupId, Group>,
    claims: Claims,
    book: AddressBook,
    /// Who called and says that it is a peer, and is none.
    knocks: BTreeMap<NodeId, Knock>,
    /// When another place was last tried for a node.
    turned: BTreeMap<NodeId, Instant>,
    /// When each other node was last heard.
    heard: BTreeMap<NodeId, Instant>,
    /// Raised with every change of whom to gossip with.
    version: u64,
}

/// A node that called as a peer and is none.
#[derive(Clone, Copy, Debug)]
struct Knock {
    last: Instant,
    /// It was called back, and says the same: neither is a peer of the other, and nobody has anything to learn.
    is_settled: bool,
}

impl State {
    /// The other members of the groups here.
    fn fellows(&self, own: NodeId) -> BTreeSet<NodeId> {
        let here = self.groups.values().filter(|group| group.is_here);
        here.flat_map(|group| group.members.iter().copied()).filter(|node| *node != own).collect()
    }

    /// The nodes of which it matters where they are.
    fn wanted(&self) -> BTreeSet<NodeId> {
        let mut wanted: BTreeSet<NodeId> =
            self.groups.values().flat_map(|group| group.members.iter().copied()).collect();
        wanted.extend(self.claims.members());
        wanted.extend(self.knocks.keys());
        wanted
    }

    fn epoch_of(&self, group: GroupId) -> Option<MembershipEpoch> {
        self.groups.get(&group).map(|group| group.epoch)
    }
}

impl Members {
    /// As the store has it; a store without memberships takes the configured ones, which are the first.
    ///
    /// # Errors
    /// When the configuration contradicts what is stored.
    pub(crate) fn new(
        config: &NodeConfig,
        store: Arc<Store>,
        known: Arc<Known>,
        standing: Arc<Standing>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Members> {
        match store.configure_memberships(&config.groups.first_memberships()) {
            // It goes on answering, to say so.
            Ok(()) | Err(StoreError::Poisoned(_)) => {}
            Err(error) => return Err(error).context("the configured members of a group are not taken"),
        }
        let own = config.node;
        let mut groups: BTreeMap<GroupId, Group> = BTreeMap::new();
        for (group, state) in store.memberships().unwrap_or_default() {
            groups.insert(group, Group::of(state.installed(), own));
        }
        for group in store.groups() {
            let stored = store.with_segment(group, |segment| segment.membership().cloned())?;
            let fixed = || Group::fixed(config.groups.nodes_of(group), own);
            groups.insert(group, stored.map_or_else(fixed, |state| Group::of(state.installed(), own)));
        }
        for (group, now) in &groups {
            known.follow(*group, now.is_here.then_some(now), own, &store);
        }
        let state = State {
            groups,
            claims: Claims::default(),
            book: AddressBook::open(config),
            knocks: BTreeMap::new(),
            turned: BTreeMap::new(),
            heard: BTreeMap::new(),
            version: 1,
        };
        standing.set_peers(state.fellows(own));
        Ok(Members {
            node: own,
            group_count: config.placement.group_count(),
            store,
            known,
            standing,
            metrics,
            installing: Mutex::new(()),
            saving: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
            save_lines: LineThrottle::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Whether a node is a member of a group that has a segment here.
    pub(crate) fn is_fellow(&self, node: NodeId) -> bool {
        let state = self.lock();
        node != self.node && state.groups.values().any(|group| group.is_here && group.members.contains(&node))
    }

    /// Whether a node is a member of this group, which has a segment here.
    pub(crate) fn is_member(&self, group: GroupId, node: NodeId) -> bool {
        let state = self.lock();
        state.groups.get(&group).is_some_and(|group| group.is_here && group.members.contains(&node))
    }

    /// The other members of a group, as far as it is known where they are. Who asks begins with the next number after its
    /// own, so that peers share the work.
    pub(crate) fn others(&self, group: GroupId) -> Vec<NodeAddress> {
        let state = self.lock();
        let Some(members) = state.groups.get(&group).map(|group| &group.members) else { return Vec::new() };
        let mut others: Vec<NodeAddress> = members
            .iter()
            .filter(|node| **node != self.node)
            .filter_map(|node| state.book.of(*node).cloned())
            .collect();
        others.sort_by_key(|peer| (peer.node < self.node, peer.node));
        others
    }

    /// Whom to gossip with: the members of the groups here, and whoever called not long ago as if it were one.
    pub(crate) fn peers_to_ask(&self) -> BTreeMap<NodeId, NodeAddress> {
        let mut state = self.lock();
        state.knocks.retain(|_, knock| knock.last.elapsed() < KNOCK_LASTS);
        let knocks = state.knocks.iter().filter(|(_, knock)| !knock.is_settled).map(|(node, _)| *node);
        let asked = state.fellows(self.node).into_iter().chain(knocks);
        asked.filter_map(|node| Some((node, state.book.of(node)?.clone()))).collect()
    }

    /// Waits until whom to gossip with may have changed since `seen`, or for this long.
    pub(crate) fn wait(&self, seen: &mut u64, timeout: Duration) {
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, |state| state.version == *seen);
        *seen = waited.expect("nothing panics while it holds this lock").0.version;
    }

    /// Makes [`Members::wait`] return.
    pub(crate) fn wake(&self) {
        self.lock().version += 1;
        self.changed.notify_all();
    }

    /// Notes that a node called that says it is a peer and is none, as far as is known here. One of the two is behind.
    pub(crate) fn note_knock(&self, node: NodeId) {
        let mut state = self.lock();
        if node == self.node || (state.knocks.len() >= KNOCKS_MAX && !state.knocks.contains_key(&node)) {
            return;
        }
        let (last, before) = (Instant::now(), state.knocks.get(&node).copied());
        if before.is_some_and(|knock| knock.is_settled && knock.last.elapsed() < KNOCK_LASTS) {
            return;
        }
        state.knocks.insert(node, Knock { last, is_settled: false });
        if before.is_none_or(|knock| knock.is_settled) {
            state.version += 1;
            self.changed.notify_all();
        }
    }

    /// Notes that a node that was called refuses to be a peer. If it is none, and nothing is left to learn, it is not called
    /// again until members change: two such nodes would call each other back for ever.
    pub(crate) fn note_refused_by(&self, node: NodeId) {
        let mut state = self.lock();
        let is_open = |group| state.claims.has_newer(self.node, group, state.epoch_of(group));
        if state.fellows(self.node).contains(&node) || state.claims.groups().any(is_open) {
            return;
        }
        state.knocks.insert(node, Knock { last: Instant::now(), is_settled: true });
        state.version += 1;
        self.changed.notify_all();
    }

    /// Notes that nobody answered where a node is said to be.
    pub(crate) fn note_unreached(&self, node: NodeId) {
        let mut state = self.lock();
        let was_turned = state.turned.get(&node).is_some_and(|when| when.elapsed() < TURN_AFTER);
        if !was_turned && state.book.turn(node) {
            state.turned.insert(node, Instant::now());
            state.version += 1;
            self.changed.notify_all();
        }
    }

    /// Notes that a node answered.
    pub(crate) fn note_heard(&self, node: NodeId) {
        self.lock().heard.insert(node, Instant::now());
    }

    /// The members of a group that has a segment here, and of each whether it was heard within this time; of this node itself it always was.
    pub(crate) fn of_group(&self, group: GroupId, within: Duration) -> Vec<(NodeId, bool)> {
        let state = self.lock();
        let members = state.groups.get(&group).filter(|group| group.is_here).map(|group| &group.members);
        let lately = |node: NodeId| state.heard.get(&node).is_some_and(|heard| heard.elapsed() < within);
        let said = |node: &NodeId| (*node, *node == self.node || lately(*node));
        members.into_iter().flatten().map(said).collect()
    }

    /// When each member of the groups here was last heard; one that never was, since this was first asked of it: a newcomer has not
    /// been missed for as long as this node runs.
    pub(crate) fn heard(&self) -> Vec<PeerHeard> {
        let mut state = self.lock();
        let (now, fellows) = (Instant::now(), state.fellows(self.node));
        let heard = |node: NodeId| {
            let since = *state.heard.entry(node).or_insert(now);
            PeerHeard { node, ms_ago: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) }
        };
        fellows.into_iter().map(heard).collect()
    }

    /// How many segments here do not have everything yet.
    pub(crate) fn joining(&self) -> u64 {
        let here: Vec<GroupId> = {
            let state = self.lock();
            state.groups.iter().filter(|(_, group)| group.is_here).map(|(group, _)| *group).collect()
        };
        let is_joining = |group: &GroupId| self.store.standing(*group) == SegmentStanding::Joining;
        here.iter().filter(|group| is_joining(group)).count() as u64
    }

    /// Carries out what a controller asks. Returns what is stored then, and the segment; all of it is durable.
    ///
    /// # Errors
    /// What the store says. Whatever was not carried out may be asked again.
    pub(crate) fn take_step(
        &self,
        group: GroupId,
        request: &MembershipRequest,
        nodes: &[Whereabouts],
    ) -> Result<(Option<MembershipState>, Option<SegmentSummary>), StoreError> {
        // Before anybody acts on it: whoever hears of a member wants to call it.
        self.learn(Source::Controller, nodes);
        match request {
            MembershipRequest::Ask => {}
            MembershipRequest::Prepare { installed, ballot } => {
                self.store.prepare_membership(group, installed.epoch(), *ballot)?;
            }
            MembershipRequest::Accept(proposed) => self.store.accept_membership(group, proposed)?,
            MembershipRequest::Install(membership) => {
                self.install(group, membership, "the controller says that it was chosen")?;
            }
        }
        // In this order: the segment is as it was at the membership, or later.
        let membership = self.store.membership(group)?;
        let segments = self.store.summaries()?;
        Ok((membership, segments.into_iter().find(|segment| segment.group == group)))
    }

    /// Whether a peer that says this of its segments is to be asked what it stores of memberships: it acts on a newer one, or
    /// somebody does of whom it is not known yet whether that was chosen.
    pub(crate) fn wants_memberships(&self, peer: NodeId, segments: &[SegmentSummary]) -> bool {
        let state = self.lock();
        let is_news = |said: &SegmentSummary| {
            said.membership_epoch > state.epoch_of(said.group).unwrap_or_default()
                && state.claims.epoch_of(said.group, peer) != Some(said.membership_epoch)
        };
        let is_open = |group| state.claims.has_newer(self.node, group, state.epoch_of(group));
        segments.iter().any(is_news) || state.claims.groups().any(is_open)
    }

    /// Takes what a peer says that it stores, and acts on what enough of them say.
    ///
    /// # Errors
    /// What the store says. The claims are kept.
    pub(crate) fn take_claims(
        &self,
        peer: NodeId,
        states: &[(GroupId, MembershipState)],
        nodes: &[Whereabouts],
    ) -> Result<(), StoreError> {
        let newer: Vec<GroupId> = {
            let mut state = self.lock();
            let (fellows, knocks) = (state.fellows(self.node), state.knocks.clone());
            state.claims.keep(|peer| fellows.contains(&peer) || knocks.contains_key(&peer));
            for (group, claim) in states.iter().filter(|(group, _)| group.0 < self.group_count) {
                state.claims.note(peer, *group, claim.clone());
            }
            let claimed: Vec<GroupId> = state.claims.groups().collect();
            let has_newer =
                |group: &GroupId| state.claims.has_newer(self.node, *group, state.epoch_of(*group));
            claimed.into_iter().filter(has_newer).collect()
        };
        self.learn(Source::Peer, nodes);
        for group in newer {
            let stored = self.store.membership(group)?;
            let believed = self.lock().claims.believed(self.node, group, stored.as_ref());
            if let Some((membership, said)) = believed {
                let said: Vec<String> = said.iter().map(ToString::to_string).collect();
                self.install(group, &membership, &format!("nodes {} act on it", said.join(", ")))?;
            }
        }
        Ok(())
    }

    /// Acts on a membership that was chosen.
    fn install(&self, group: GroupId, membership: &GroupMembership, why: &str) -> Result<(), StoreError> {
        let _turn = self.installing.lock().expect("nothing panics while it holds this lock");
        if self.store.install_membership(group, membership)?.changed {
            add(&self.metrics.memberships_installed, 1);
            self.follow(group, Group::of(membership, self.node), why);
        }
        Ok(())
    }

    /// Lets everybody here hear who the members of a group are now.
    fn follow(&self, group: GroupId, now: Group, why: &str) {
        let (before, fellows) = {
            let mut state = self.lock();
            let before = state.groups.insert(group, now.clone());
            // Who is a peer may be another question now.
            state.knocks.retain(|_, knock| !knock.is_settled);
            state.version += 1;
            (before, state.fellows(self.node))
        };
        self.known.follow(group, now.is_here.then_some(&now), self.node, &self.store);
        self.standing.follow(group, fellows, &now.members);
        let was_here = before.as_ref().is_some_and(|before| before.is_here);
        for gone in before.iter().flat_map(|before| before.members.difference(&now.members)) {
            // Nobody would give up what is kept for it.
            self.store.unpin(group, *gone);
        }
        let (node, epoch) = (self.node, now.epoch);
        let members: Vec<String> = now.members.iter().map(ToString::to_string).collect();
        let members = members.join(" ");
        match (was_here, now.is_here) {
            (false, true) => {
                tracing::info!(%node, %group, %epoch, members, why, "a segment comes here and takes what it lacks from the others");
                self.known.request_refill(group);
            }
            (true, false) => {
                add(&self.metrics.segments_left, 1);
                tracing::info!(%node, %group, %epoch, members, why, "the segment leaves, and its space is freed");
            }
            (true, true) | (false, false) => {
                tracing::info!(%node, %group, %epoch, members, why, "a group has other members");
            }
        }
        self.changed.notify_all();
        self.known.wake();
    }

    /// Takes what somebody says of where nodes are, and keeps it for the next start.
    fn learn(&self, source: Source, nodes: &[Whereabouts]) {
        {
            let mut state = self.lock();
            let mut wanted = state.wanted();
            if source == Source::Controller {
                wanted.extend(nodes.iter().map(|told| told.node));
            }
            if !state.book.learn(source, nodes, &wanted) {
                return;
            }
            state.version += 1;
        }
        self.changed.notify_all();
        let _turn = self.saving.lock().expect("nothing panics while it holds this lock");
        // What another wrote meanwhile is in it, too.
        let (file, text) = self.lock().book.to_save();
        if let Err(error) = save(&file, &text)
            && let Some(suppressed) = self.save_lines.admit()
        {
            tracing::warn!(%error, file = %file.display(), suppressed, "where other nodes are is not kept for the next start");
        }
    }

    /// What is stored of all memberships, and where all nodes are that this one knows of. It is durable.
    ///
    /// # Errors
    /// When the store failed.
    pub(crate) fn told(&self) -> Result<Told, StoreError> {
        let states = self.store.memberships()?;
        Ok((states, self.lock().book.whereabouts(|_| true)))
    }

    /// What to tell a caller about an error of the store: one that knows an older membership learns the newer.
    pub(crate) fn refusal(&self, error: &StoreError, refusals: &Refusals) -> Refusal {
        let StoreError::OtherMembership { newer, .. } = error else { return refusals.of(error) };
        self.taught(|group| newer.contains(&group)).unwrap_or_else(|error| refusals.of(&error))
    }

    /// What to tell a node that says it is a peer and is none.
    pub(crate) fn refusal_of_stranger(&self, refusals: &Refusals) -> Refusal {
        self.taught(|_| true).unwrap_or_else(|error| refusals.of(&error))
    }

    fn taught(&self, is_told: impl Fn(GroupId) -> bool) -> Result<Refusal, StoreError> {
        add(&self.metrics.memberships_refused, 1);
        let mut states = self.store.memberships()?;
        states.retain(|(group, _)| is_told(*group));
        let members: BTreeSet<NodeId> =
            states.iter().flat_map(|(_, state)| state.installed().members()).collect();
        let nodes = self.lock().book.whereabouts(|node| members.contains(&node));
        Ok(Refusal::OtherMembership { states, nodes })
    }
}
