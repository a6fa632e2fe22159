//! The read path's state: what PostgreSQL asked for, whom it was asked of, and what came back.
//!
//! A request of PostgreSQL is an *operation*. It needs one *part* from one group, or one from every group. A
//! part is asked of one node at a time, of a second one when the first is late, and of the next when one
//! fails; the first good answer counts.
//!
//! Invariant: an answer is matched by a request id that is never used twice, and requests of a connection
//! that is gone are forgotten, so an answer can reach only the request it belongs to (whatever reconnects).

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_quorum::read_routing::ReadRouter;
use borealis_types::server_request::{self, MAX_RELATION_ENTRIES};
use borealis_types::{
    BlockKey, Fork, GroupId, Lsn, META_GROUP, NodeId, PageKey, Placement, ReadPoint, RelationFork,
    VolumeEpoch, invariant,
};
use borealis_wal::Effect;
use borealis_wire::{Refusal, Reply, Request};

use super::answer::{
    Answer, Ask, Collected, answer, ask_slru_segment, ask_slru_segments, collect, list_cursor_to_fork,
};
use super::prefetch::{PrefetchCache, RecentChanges};

/// Hints that may be under way at a time.
const PREFETCHES_MAX: usize = 256;
/// How long to wait before the nodes are asked again after every one refused.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(200);
/// A node that has not answered for so long is treated as failed.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Who waits for an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiter<Slot> {
    Slot(Slot),
    /// A hint. PostgreSQL may ask for the block before the answer is here; then that slot waits.
    Prefetch {
        key: BlockKey,
        slot: Option<Slot>,
    },
}

#[derive(Debug)]
struct Operation<Slot> {
    waiter: Waiter<Slot>,
    what: server_request::Request,
    parts_left: u32,
    collected: Collected,
}

#[derive(Debug)]
struct Attempt {
    request_id: u64,
    node: NodeId,
    lsn: Lsn,
    sent: Duration,
}

#[derive(Debug)]
struct Part {
    operation: u64,
    group: GroupId,
    ask: Ask,
    begun: Duration,
    attempts: Vec<Attempt>,
    /// Nodes that were asked in this round.
    asked: Vec<NodeId>,
    hedge_at: Duration,
    /// Everyone was asked in vain; start over then.
    retry_at: Option<Duration>,
    pause: Duration,
    last_failure: String,
}

/// How reads reach the nodes.
pub trait Transport {
    /// Sends a request; `false` if there is no connection to the node.
    fn send(&mut self, node: NodeId, request_id: u64, request: &Request) -> bool;
    /// Up to where redo is durable: every answer is as of here or later.
    fn durable(&self) -> Lsn;
    /// Up to where a segment must have its group's records to answer as of now.
    fn needed(&self, group: GroupId) -> Lsn;
    /// The LSN to ask `node` at, which shows the group as of now: the durable point the node knows, or where
    /// the group's redo ends if that is later. It never is below a minimum read point that a node was told.
    fn read_point(&self, node: NodeId, group: GroupId) -> Lsn;
}

/// Counters of the read path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounters {
    /// Requests that PostgreSQL made, hints left out.
    pub operations: u64,
    /// Of these, how many were answered from pages fetched ahead.
    pub prefetch_hits: u64,
    /// Hints that led to a request.
    pub prefetches: u64,
    /// Requests sent to nodes, repetitions included.
    pub requests: u64,
    /// Of these, second requests because the first was late.
    pub hedges: u64,
    /// Requests that failed or were refused.
    pub failures: u64,
    /// Operations that ended with an error.
    pub errors: u64,
}

/// See the module. `Slot` is how the owner knows who waits.
#[derive(Debug)]
pub struct Reads<Slot> {
    epoch: VolumeEpoch,
    placement: Placement,
    timeout: Duration,
    operations: BTreeMap<u64, Operation<Slot>>,
    parts: BTreeMap<u64, Part>,
    /// Part of each request that is under way.
    requests: BTreeMap<u64, u64>,
    /// Operation of each block that is being fetched ahead and still wanted.
    prefetching: BTreeMap<BlockKey, u64>,
    cache: PrefetchCache,
    changes: RecentChanges,
    next_id: u64,
    counters: ReadCounters,
    done: Vec<(Slot, Answer)>,
}

impl<Slot: Copy> Reads<Slot> {
    /// No reads yet, of an instance that writes in `epoch`: every question says so, and a node that has not heard of
    /// that epoch, or of a newer one, refuses.
    #[must_use]
    pub fn new(
        epoch: VolumeEpoch,
        placement: Placement,
        timeout: Duration,
        prefetch_bytes: usize,
    ) -> Reads<Slot> {
        Reads {
            epoch,
            placement,
            timeout,
            operations: BTreeMap::new(),
            parts: BTreeMap::new(),
            requests: BTreeMap::new(),
            prefetching: BTreeMap::new(),
            cache: PrefetchCache::new(prefetch_bytes),
            changes: RecentChanges::new(),
            next_id: 1,
            counters: ReadCounters::default(),
            done: Vec::new(),
        }
    }

    /// Counters since these reads were made.
    #[must_use]
    pub fn counters(&self) -> ReadCounters {
        self.counters
    }

    /// Takes the answers that are ready, in the order they became so.
    pub fn take_done(&mut self) -> Vec<(Slot, Answer)> {
        std::mem::take(&mut self.done)
    }

    /// The lowest LSN of any request that is under way: no node may forget versions from there on.
    #[must_use]
    pub fn lowest_read_point(&self) -> Option<Lsn> {
        self.parts.values().flat_map(|part| part.attempts.iter().map(|attempt| attempt.lsn)).min()
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Takes a request of PostgreSQL.
    pub fn begin(
        &mut self,
        slot: Slot,
        what: server_request::Request,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) {
        self.counters.operations += 1;
        let meta = [META_GROUP];
        let waiter = Waiter::Slot(slot);
        match what {
            server_request::Request::ReadBlock(key) => {
                if let Some(page) = self.cache.take(&key) {
                    self.counters.prefetch_hits += 1;
                    self.done.push((slot, Answer::Page(Some(page))));
                    return;
                }
                // A hint for it is under way: wait for that answer.
                if let Some(operation) = self.prefetching.get(&key).and_then(|id| self.operations.get_mut(id))
                    && let Waiter::Prefetch { slot: waiting @ None, .. } = &mut operation.waiter
                {
                    *waiting = Some(slot);
                    return;
                }
                self.begin_page(waiter, what, PageKey::Block(key), router, transport, now);
            }
            server_request::Request::ReadSlruPage { kind, page } => {
                self.begin_page(waiter, what, PageKey::Slru { kind, page }, router, transport, now);
            }
            server_request::Request::RelationSize(fork) => {
                let init = RelationFork { fork: Fork::Init, ..fork };
                let mut asks: Vec<(GroupId, Ask)> =
                    self.placement.groups().map(|group| (group, Ask::Size(fork))).collect();
                if init != fork {
                    // Its creation is logged, and creations go to every group.
                    asks.push((META_GROUP, Ask::Size(init)));
                }
                let collected = Collected::Size { fork, blocks: None, has_init_fork: false };
                self.start(waiter, what, collected, asks, router, transport, now);
            }
            server_request::Request::ListRelations { database, cursor } => {
                let after = list_cursor_to_fork(database, cursor);
                let limit = MAX_RELATION_ENTRIES as u32;
                let ask = Ask::List { database, after, limit };
                let collected = Collected::List { limit, sizes: BTreeMap::new(), horizon: None };
                let asks = self.placement.groups().map(|group| (group, ask)).collect();
                self.start(waiter, what, collected, asks, router, transport, now);
            }
            server_request::Request::SlruSegment { kind, segment } => {
                let collected =
                    Collected::SlruPages { first_segment: Some(segment), only: true, pages: Vec::new() };
                let asks = meta.map(|group| (group, ask_slru_segment(kind, segment))).to_vec();
                self.start(waiter, what, collected, asks, router, transport, now);
            }
            server_request::Request::ListSlruSegments { kind, cursor } => {
                let first_segment = u32::try_from(cursor).ok();
                let collected = Collected::SlruPages { first_segment, only: false, pages: Vec::new() };
                let ask = ask_slru_segments(kind, first_segment.unwrap_or(u32::MAX));
                let asks = meta.map(|group| (group, ask)).to_vec();
                self.start(waiter, what, collected, asks, router, transport, now);
            }
        }
    }

    fn begin_page(
        &mut self,
        waiter: Waiter<Slot>,
        what: server_request::Request,
        key: PageKey,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) {
        let asks = vec![(self.placement.group_of(&key), Ask::Page(key))];
        self.start(waiter, what, Collected::Page(None), asks, router, transport, now);
    }

    /// Takes a hint that a block will be asked for.
    pub fn prefetch(
        &mut self,
        key: BlockKey,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) {
        let known = self.cache.contains(&key) || self.prefetching.contains_key(&key);
        if known || self.prefetching.len() >= PREFETCHES_MAX {
            return;
        }
        // Every answer is as of this point or later. What changes the block from here on drops the answer.
        if self.changes.last_change(&key) > transport.durable() {
            return;
        }
        self.counters.prefetches += 1;
        let waiter = Waiter::Prefetch { key, slot: None };
        let id = self.next_id;
        self.prefetching.insert(key, id);
        let what = server_request::Request::ReadBlock(key);
        self.begin_page(waiter, what, PageKey::Block(key), router, transport, now);
    }

    /// Drops what was fetched ahead, or is being fetched, and is changed by these effects of the record that ends at
    /// `lsn`.
    pub fn invalidate(&mut self, effects: &[Effect], lsn: Lsn) {
        self.changes.note(effects, lsn);
        self.cache.invalidate(effects);
        if self.prefetching.is_empty() {
            return;
        }
        for effect in effects {
            match effect {
                Effect::Page(PageKey::Block(key)) => {
                    self.prefetching.remove(key);
                }
                Effect::Page(PageKey::Slru { .. }) | Effect::TruncateSlru { .. } | Effect::Meta(_) => {}
                _ => self.prefetching.clear(),
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one private constructor, every argument used once")]
    fn start(
        &mut self,
        waiter: Waiter<Slot>,
        what: server_request::Request,
        collected: Collected,
        asks: Vec<(GroupId, Ask)>,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) {
        let operation = self.new_id();
        let parts_left = asks.len() as u32;
        self.operations.insert(operation, Operation { waiter, what, parts_left, collected });
        for (group, ask) in asks {
            let id = self.new_id();
            let part = Part {
                operation,
                group,
                ask,
                begun: now,
                attempts: Vec::new(),
                asked: Vec::new(),
                hedge_at: now,
                retry_at: None,
                pause: RETRY_PAUSE,
                last_failure: String::new(),
            };
            self.parts.insert(id, part);
            self.ask_next(id, router, transport, now);
        }
    }

    /// Asks the next best node for a part. If there is none, and nobody's answer is due, tries again later.
    fn ask_next(
        &mut self,
        id: u64,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) -> bool {
        let request_id = self.new_id();
        let Some(part) = self.parts.get_mut(&id) else { return false };
        let needed = transport.needed(part.group);
        while let Some(route) = router.choose(part.group, needed, &part.asked, now) {
            part.asked.push(route.node);
            let lsn = transport.read_point(route.node, part.group);
            // Below it the answer would lack records that are durable.
            invariant!(
                "read-shows-the-durable",
                lsn >= needed,
                "{lsn} asked of {}, {needed} is needed",
                route.node
            );
            if !transport.send(
                route.node,
                request_id,
                &part.ask.request(part.group, ReadPoint { epoch: self.epoch, lsn }),
            ) {
                continue;
            }
            router.sent(route.node);
            self.counters.requests += 1;
            part.attempts.push(Attempt { request_id, node: route.node, lsn, sent: now });
            part.hedge_at = now + route.hedge_after;
            part.retry_at = None;
            let asked = part.attempts.len();
            invariant!("asked-twice-at-most", asked <= 2, "{asked} nodes are asked for one part");
            let earlier = self.requests.insert(request_id, id);
            invariant!("request-id-is-new", earlier.is_none(), "request {request_id} is under way already");
            return true;
        }
        if part.attempts.is_empty() && part.retry_at.is_none() {
            part.retry_at = Some(now + part.pause);
            part.pause = (part.pause * 2).min(RETRY_PAUSE_MAX);
            if part.last_failure.is_empty() {
                part.last_failure = format!("no node has group {} complete to {needed}", part.group);
            }
        }
        false
    }

    /// Takes a node's reply. Replies to requests that are no longer wanted are ignored.
    pub fn answered(
        &mut self,
        node: NodeId,
        request_id: u64,
        reply: Reply,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) {
        let Some(id) = self.requests.remove(&request_id) else { return };
        let Some(part) = self.parts.get_mut(&id) else { return };
        let Some(place) = part.attempts.iter().position(|attempt| attempt.request_id == request_id) else {
            return;
        };
        if part.attempts[place].node != node {
            return;
        }
        let attempt = part.attempts.swap_remove(place);
        let waited = now.saturating_sub(attempt.sent);
        if !part.ask.is_answered_by(&reply) {
            router.failed(node, waited, now);
            // One that cannot be read right now may be in a moment, so it stays a candidate after a pause.
            if matches!(reply, Reply::Refused(Refusal::NoSegment(_))) {
                router.forget_segment(node, part.group);
            }
            self.counters.failures += 1;
            part.last_failure = match reply {
                Reply::Refused(refusal) => format!("node {node}: {refusal}"),
                _ => format!("node {node} gave an answer of the wrong kind"),
            };
            if part.attempts.is_empty() {
                self.ask_next(id, router, transport, now);
            }
            return;
        }
        router.answered(node, waited);
        self.finish_part(id, Some(reply), router, now);
    }

    /// A node's read connection is gone, and with it every answer that was due on it.
    pub fn disconnected(
        &mut self,
        node: NodeId,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) {
        router.disconnected(node, now);
        let hit: Vec<u64> = self
            .parts
            .iter()
            .filter(|(_, part)| part.attempts.iter().any(|attempt| attempt.node == node))
            .map(|(&id, _)| id)
            .collect();
        for id in hit {
            self.drop_attempts(id, |attempt| attempt.node == node);
            let Some(part) = self.parts.get_mut(&id) else { continue };
            self.counters.failures += 1;
            part.last_failure = format!("the connection to node {node} broke");
            if part.attempts.is_empty() {
                self.ask_next(id, router, transport, now);
            }
        }
    }

    fn drop_attempts(&mut self, id: u64, which: impl Fn(&Attempt) -> bool) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        let requests = &mut self.requests;
        part.attempts.retain(|attempt| {
            let drop = which(attempt);
            if drop {
                requests.remove(&attempt.request_id);
            }
            !drop
        });
    }

    /// Does what time has made due, and says when to come again.
    pub fn tick(
        &mut self,
        router: &mut ReadRouter,
        transport: &mut impl Transport,
        now: Duration,
    ) -> Option<Duration> {
        let ids: Vec<u64> = self.parts.keys().copied().collect();
        for id in ids {
            let Some(part) = self.parts.get_mut(&id) else { continue };
            if now.saturating_sub(part.begun) >= self.timeout {
                self.finish_part(id, None, router, now);
                continue;
            }
            let stuck = part.attempts.iter().filter(|a| now.saturating_sub(a.sent) >= ATTEMPT_TIMEOUT);
            for attempt in stuck {
                router.failed(attempt.node, ATTEMPT_TIMEOUT, now);
            }
            self.drop_attempts(id, |attempt| now.saturating_sub(attempt.sent) >= ATTEMPT_TIMEOUT);
            let Some(part) = self.parts.get_mut(&id) else { continue };
            if part.retry_at.is_some_and(|at| at <= now) {
                part.retry_at = None;
                part.asked.clear();
                self.ask_next(id, router, transport, now);
            } else if part.attempts.is_empty() && part.retry_at.is_none() {
                self.ask_next(id, router, transport, now);
            } else if part.attempts.len() == 1 && part.hedge_at <= now {
                // Not again before the attempt times out, even if nobody else can be asked.
                part.hedge_at = now + ATTEMPT_TIMEOUT;
                if self.ask_next(id, router, transport, now) {
                    self.counters.hedges += 1;
                }
            }
        }
        self.parts.values().map(|part| self.due(part)).min()
    }

    fn due(&self, part: &Part) -> Duration {
        let mut due = part.begun + self.timeout;
        if let Some(at) = part.retry_at {
            due = due.min(at);
        }
        if part.attempts.len() == 1 {
            due = due.min(part.hedge_at);
        }
        part.attempts.iter().map(|attempt| attempt.sent + ATTEMPT_TIMEOUT).fold(due, Duration::min)
    }

    /// When [`Reads::tick`] is due next.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.parts.values().map(|part| self.due(part)).min()
    }

    /// Ends a part: with an answer, or without one because the time is up.
    fn finish_part(&mut self, id: u64, reply: Option<Reply>, router: &mut ReadRouter, now: Duration) {
        let Some(part) = self.parts.remove(&id) else { return };
        for attempt in &part.attempts {
            self.requests.remove(&attempt.request_id);
            router.overtaken(attempt.node, now.saturating_sub(attempt.sent));
        }
        let Some(operation) = self.operations.get_mut(&part.operation) else { return };
        let Some(reply) = reply else {
            let seconds = self.timeout.as_secs();
            let text = format!("no storage node answered for {seconds} s: {}", part.last_failure);
            self.fail_operation(part.operation, text, router, now);
            return;
        };
        let left = operation.parts_left;
        invariant!("answered-part-was-open", left > 0, "operation {} has all its parts", part.operation);
        collect(&mut operation.collected, part.ask, reply);
        operation.parts_left = left - 1;
        if operation.parts_left == 0 {
            self.finish_operation(part.operation);
        }
    }

    fn fail_operation(&mut self, id: u64, text: String, router: &mut ReadRouter, now: Duration) {
        let Some(operation) = self.operations.remove(&id) else { return };
        self.counters.errors += 1;
        let rest: Vec<u64> =
            self.parts.iter().filter(|(_, part)| part.operation == id).map(|(&part, _)| part).collect();
        for part in rest.into_iter().filter_map(|part| self.parts.remove(&part)) {
            for attempt in &part.attempts {
                self.requests.remove(&attempt.request_id);
                router.overtaken(attempt.node, now.saturating_sub(attempt.sent));
            }
        }
        match operation.waiter {
            Waiter::Slot(slot) => self.done.push((slot, Answer::Error(text))),
            Waiter::Prefetch { key, slot } => {
                self.forget_prefetch(key, id);
                if let Some(slot) = slot {
                    self.done.push((slot, Answer::Error(text)));
                }
            }
        }
    }

    /// Whether this operation was still the wanted fetch of the block.
    fn forget_prefetch(&mut self, key: BlockKey, operation: u64) -> bool {
        let wanted = self.prefetching.get(&key) == Some(&operation);
        if wanted {
            self.prefetching.remove(&key);
        }
        wanted
    }

    fn finish_operation(&mut self, id: u64) {
        let Some(operation) = self.operations.remove(&id) else { return };
        let answer = answer(operation.what, operation.collected);
        match operation.waiter {
            Waiter::Slot(slot) => self.done.push((slot, answer)),
            Waiter::Prefetch { key, slot } => {
                let wanted = self.forget_prefetch(key, id);
                match (slot, answer) {
                    // The reader holds the block's buffer, so nothing has changed the block since it asked.
                    (Some(slot), answer) => self.done.push((slot, answer)),
                    (None, Answer::Page(Some(page))) if wanted => self.cache.insert(key, page),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
