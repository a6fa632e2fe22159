//! Filling gaps from peers, without the writer's help.
//!
//! One thread for each peer. It compares summaries and, where the peer is ahead, takes what is missing from the
//! peer's log: first the epoch history, so that nothing is taken that a recovery cut, then the records.
//!
//! A peer is ahead most of the time only because its copy of the writer's stream came sooner. So records are
//! asked for when they are known to be missing (a later one is here already), when nothing moved for a while, or
//! when this is the first exchange after a start.
//!
//! The exchanges are frequent while segments differ and rare when all agree, so an idle volume costs next to
//! nothing; and rare while the writer's stream moves ours, so a busy one costs little more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_quorum::segment::{InstallError, Segment};
use borealis_quorum::{DurablePoint, Promise};
use borealis_spec::{NodeAddress, NodeConfig};
use borealis_store::{Origin, StoreError};
use borealis_types::{GroupId, Lsn, NodeId, VolumeEpoch};
use borealis_wire::{BatchHeader, Caller, GroupTail, SegmentSummary};

use crate::log_limit::LogLimit;
use crate::metrics::add;
use crate::node::Shared;

/// Between exchanges while something is missing or about to be agreed.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Between exchanges while the writer's stream moves our segments: there is little to learn from peers then, and
/// every exchange takes time from that stream.
const INTERVAL_FED: Duration = Duration::from_millis(500);
/// A peer is ahead, and our segment has not moved for this long: what it lacks will not come by itself. Under a
/// heavy load a batch takes a tenth of a second; asking for it meanwhile makes the load heavier.
const STUCK_AFTER: Duration = Duration::from_millis(500);
/// Between exchanges while nothing does.
const INTERVAL_MAX: Duration = Duration::from_millis(1600);
/// However often it is woken, a thread does not ask its peer sooner than this.
const SPACING: Duration = Duration::from_millis(20);
/// Before a peer that failed is asked again; doubles up to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// For a peer to answer.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(5) };
/// A peer that did not keep the log we need is asked again after this, in case it was a misunderstanding.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Log asked for at a time.
const PULL_BYTES: u32 = 1 << 20;

/// What the threads know together.
#[derive(Debug)]
pub(crate) struct Gossip {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by the thread that pulls a group's records, so that no two ask for the same ones.
    pulling: BTreeMap<GroupId, Mutex<()>>,
    rebuild_log: LogLimit,
}

#[derive(Debug)]
struct State {
    stopping: bool,
    /// How often the threads were woken.
    wakes: u64,
    /// The last that was heard of each member's segment; a member never heard of holds the floor at zero.
    members: BTreeMap<GroupId, BTreeMap<NodeId, Member>>,
    /// Peers that do not keep log old enough for a segment of ours: where that segment stood, and when it was
    /// noticed.
    collected: BTreeMap<(GroupId, NodeId), (Lsn, Instant)>,
}

/// A member's segment.
#[derive(Clone, Copy, Default, Debug)]
struct Member {
    complete: Lsn,
    /// Complete to here, whatever a recovery that it has not heard of may have cut.
    safe: Lsn,
}

impl Gossip {
    pub(crate) fn new(config: &NodeConfig) -> Gossip {
        let own = config.own_groups();
        let others = |group: GroupId| {
            config
                .peers
                .iter()
                .map(|peer| peer.node)
                .filter(move |node| config.groups.is_member(*node, group))
        };
        let unheard = |group| others(group).map(|node| (node, Member::default())).collect();
        let members = own.iter().map(|&group| (group, unheard(group))).collect();
        Gossip {
            state: Mutex::new(State { stopping: false, wakes: 0, members, collected: BTreeMap::new() }),
            changed: Condvar::new(),
            pulling: own.into_iter().map(|group| (group, Mutex::new(()))).collect(),
            rebuild_log: LogLimit::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Starts an exchange with every peer now.
    pub(crate) fn wake(&self) {
        self.lock().wakes += 1;
        self.changed.notify_all();
    }

    /// Makes the threads end.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Waits until woken since `seen_wakes`, stopped, or `timeout` has passed; false when stopping.
    fn wait(&self, seen_wakes: &mut u64, timeout: Duration, wakeable: bool) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| {
                let woken = wakeable && state.wakes != *seen_wakes;
                !state.stopping && !woken
            })
            .expect("nothing panics while it holds this lock");
        if wakeable {
            *seen_wakes = state.wakes;
        }
        !state.stopping
    }

    /// Notes a peer's segment; returns up to where every other member has the group's records.
    fn note_peer(&self, peer: NodeId, summary: &SegmentSummary) -> Option<Lsn> {
        let mut state = self.lock();
        let members = state.members.get_mut(&summary.group)?;
        let complete = summary.segment_complete_lsn;
        *members.get_mut(&peer)? = Member { complete, safe: complete.min(summary.known_durable.end) };
        members.values().map(|member| member.safe).min()
    }

    /// Notes that a peer had no record after `ours`, where our segment stood when it was asked and still stands.
    /// True if the peer must have had one and has collected it; a peer that is not ahead has nothing to give, as
    /// when the writer's stream brought meanwhile what was missing.
    fn note_nothing_came(&self, peer: NodeId, group: GroupId, ours: Lsn) -> bool {
        let mut state = self.lock();
        let member = state.members.get(&group).and_then(|members| members.get(&peer));
        if member.is_none_or(|member| member.complete <= ours) {
            return false;
        }
        state.collected.insert((group, peer), (ours, Instant::now()));
        true
    }

    /// Whether asking the peer for records after `ours` was in vain not long ago.
    fn is_collected(&self, peer: NodeId, group: GroupId, ours: Lsn) -> bool {
        let noticed = self.lock().collected.get(&(group, peer)).copied();
        noticed.is_some_and(|(stood_at, when)| stood_at == ours && when.elapsed() < ASK_AGAIN_AFTER)
    }

    /// Says which segment cannot catch up from any peer's log, if one cannot.
    pub(crate) fn rebuild_needed(&self, ours: &[SegmentSummary]) -> Option<String> {
        let state = self.lock();
        ours.iter().find_map(|segment| {
            let stands_at = segment.segment_complete_lsn;
            let members = state.members.get(&segment.group)?;
            let ahead: BTreeSet<NodeId> = members
                .iter()
                .filter(|(_, member)| member.complete > stands_at)
                .map(|(node, _)| *node)
                .collect();
            let collected = |node: &NodeId| {
                let noticed = state.collected.get(&(segment.group, *node));
                noticed.is_some_and(|(stood_at, _)| *stood_at == stands_at)
            };
            let hopeless = !ahead.is_empty() && ahead.iter().all(collected);
            hopeless.then(|| {
                format!(
                    "the segment of group {} stands at {stands_at} and no peer keeps log that old any more; \
                     rebuild this node",
                    segment.group
                )
            })
        })
    }
}

/// What an exchange with a peer brought.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Exchanged {
    /// The segments agree and did not move.
    Quiet,
    /// Ours moves without the peer's doing, and lacks nothing that it knows of.
    Fed,
    /// Something else moved or differs.
    Moving,
}

/// Why an exchange ended early.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error(transparent)]
    Peer(#[from] ClientError),
    #[error("own store: {0}")]
    Store(#[from] StoreError),
}

/// Where a segment and the peer's ended at the last exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ends {
    ours: Lsn,
    theirs: Lsn,
    /// Up to where ours knew the volume to be durable.
    durable: Lsn,
    /// Since when ours has stood there while the peer's was ahead.
    behind_since: Option<Instant>,
}

impl Ends {
    /// What is known now, after `before`.
    fn after(before: Option<&Ends>, ours: Lsn, theirs: Lsn, durable: Lsn, now: Instant) -> Ends {
        let stood = before.filter(|before| before.ours == ours).and_then(|before| before.behind_since);
        Ends { ours, theirs, durable, behind_since: (theirs > ours).then(|| stood.unwrap_or(now)) }
    }

    /// Whether ours moved between the two exchanges, whoever moved it.
    fn moved_since(&self, before: &Ends) -> bool {
        self.ours > before.ours || self.durable > before.durable
    }

    /// Whether what ours lacks has not come by itself for long enough.
    fn is_stuck(&self, now: Instant) -> bool {
        self.behind_since.is_some_and(|since| now.duration_since(since) >= STUCK_AFTER)
    }
}

/// Whom a segment serves.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing {
    promise: Promise,
    newest_epoch: VolumeEpoch,
}

impl Standing {
    fn of(segment: &Segment) -> Standing {
        Standing { promise: segment.promise(), newest_epoch: segment.history().newest_epoch() }
    }

    /// The writer whose stream the segment's records are of; `None` while a recovery is under way.
    fn live_writer(self) -> Option<Promise> {
        (self.promise.epoch == self.newest_epoch).then_some(self.promise)
    }
}

/// The body of one peer's thread.
pub(crate) fn gossip_until_stopped(shared: &Shared, peer: &NodeAddress) {
    let mut pulls = Puller { shared, peer, client: None, ends: BTreeMap::new() };
    let mut interval = INTERVAL_MIN;
    let mut backoff = BACKOFF_MIN;
    let mut seen_wakes = 0;
    loop {
        let failed = match pulls.exchange() {
            Ok(Exchanged::Moving) => {
                interval = INTERVAL_MIN;
                None
            }
            Ok(Exchanged::Fed) => {
                interval = INTERVAL_FED;
                None
            }
            Ok(Exchanged::Quiet) => {
                interval = (interval * 2).min(INTERVAL_MAX);
                None
            }
            Err(error) => Some(error),
        };
        let waited = match failed {
            None => {
                add(&shared.metrics.gossip_exchanges, 1);
                backoff = BACKOFF_MIN;
                shared.gossip.wait(&mut seen_wakes, SPACING, false)
                    && shared.gossip.wait(&mut seen_wakes, interval - SPACING, true)
            }
            Some(error) => {
                add(&shared.metrics.gossip_failures, 1);
                tracing::debug!(peer = %peer.node, %error, "gossip failed");
                pulls.client = None;
                let pause = backoff;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                shared.gossip.wait(&mut seen_wakes, pause, false)
            }
        };
        if !waited {
            return;
        }
    }
}

/// One peer's side of the gossip.
struct Puller<'a> {
    shared: &'a Shared,
    peer: &'a NodeAddress,
    client: Option<NodeClient>,
    ends: BTreeMap<GroupId, Ends>,
}

impl Puller<'_> {
    /// Compares all segments with the peer's and takes what is missing.
    fn exchange(&mut self) -> Result<Exchanged, ExchangeError> {
        let Some(client) = &mut self.client else {
            self.client = Some(self.connect(self.peer.address)?);
            return self.exchange();
        };
        let mut exchanged = Exchanged::Quiet;
        for theirs in client.summaries()? {
            if !self.shared.gossip.pulling.contains_key(&theirs.group) {
                continue;
            }
            exchanged = exchanged.max(self.compare(&theirs)?);
        }
        Ok(exchanged)
    }

    fn connect(&self, address: SocketAddr) -> Result<NodeClient, ClientError> {
        let config = &self.shared.config;
        NodeClient::connect(address, config.volume, self.peer.node, Caller::Peer(config.node), TIMEOUTS)
    }

    /// Compares one segment with the peer's and takes what is missing.
    fn compare(&mut self, theirs: &SegmentSummary) -> Result<Exchanged, ExchangeError> {
        let store = &self.shared.store;
        let group = theirs.group;
        let plan = store.with_segment(group, |segment| segment.plan_gossip(&theirs.into()))?;
        if plan.install_history && !self.install_history(theirs)? {
            return Ok(Exchanged::Moving);
        }
        let before = self.ends.get(&group).copied();
        let (ours, durable, has_hole, newest_epoch) = store.with_segment(group, |segment| {
            let durable = segment.known_durable().volume.end;
            let newest_epoch = segment.history().newest_epoch();
            (segment.segment_complete_lsn(), durable, has_hole(segment), newest_epoch)
        })?;
        let asked = Instant::now();
        let now = Ends::after(before.as_ref(), ours, theirs.segment_complete_lsn, durable, asked);
        self.ends.insert(group, now);
        let fed = before.is_some_and(|before| now.moved_since(&before));
        // Whoever moves ours says with each batch how far the volume is durable, too.
        if plan.observe_durable && !fed {
            store.note_positions(&BatchHeader {
                volume_epoch: theirs.history.newest_epoch(),
                durable: theirs.known_durable,
                minimum_read_point: theirs.minimum_read_point,
                tails: vec![GroupTail { group, last_end: theirs.known_durable_tail }],
            })?;
        }
        if let Some(floor) = self.shared.gossip.note_peer(self.peer.node, theirs) {
            store.set_peer_floor(group, floor);
        }
        let otherwise = if fed { Exchanged::Fed } else { Exchanged::Moving };
        if now.theirs <= now.ours {
            let still = before == Some(now) && now.theirs == now.ours && !plan.observe_durable;
            return Ok(if still { Exchanged::Quiet } else { otherwise });
        }
        let stuck = before.is_none() || now.is_stuck(asked);
        let hopeless = self.shared.gossip.is_collected(self.peer.node, group, ours);
        // A peer that is behind in history may hold records that were cut, and learns that from us first. One
        // that is ahead in history, but not as far as our promise, has to wait for the same recovery as we.
        let agreed = newest_epoch == theirs.history.newest_epoch();
        if (stuck || has_hole) && agreed && !hopeless {
            self.pull(group)?;
            // What we took ourselves does not count as having been fed.
            let ours = self.shared.store.with_segment(group, Segment::segment_complete_lsn)?;
            self.ends.insert(group, Ends { ours, ..now });
            return Ok(Exchanged::Moving);
        }
        Ok(if agreed { otherwise } else { Exchanged::Moving })
    }

    /// Takes over the peer's newer history; false if that has to wait.
    fn install_history(&self, theirs: &SegmentSummary) -> Result<bool, ExchangeError> {
        let durable = DurablePoint { volume: theirs.known_durable, group_tail: theirs.known_durable_tail };
        match self.shared.store.install_from_peer(theirs.group, &theirs.history, durable) {
            Ok(_) => {
                let (group, epoch) = (theirs.group, theirs.history.newest_epoch());
                tracing::info!(%group, %epoch, peer = %self.peer.node, "learned of a recovery");
                Ok(true)
            }
            Err(StoreError::Install { error: InstallError::Fenced(_), .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the records after our segment's end from the peer's log, unless another thread is at it.
    fn pull(&mut self, group: GroupId) -> Result<(), ExchangeError> {
        let Shared { gossip, store, metrics, connections, .. } = self.shared;
        let Some(Ok(_pulling)) = gossip.pulling.get(&group).map(Mutex::try_lock) else { return Ok(()) };
        let complete = |segment: &Segment| segment.segment_complete_lsn();
        while !gossip.is_stopping() {
            let Some(client) = &mut self.client else { return Ok(()) };
            let above = store.with_segment(group, complete)?;
            let (batches, more) = client.read_tail(group, above, PULL_BYTES)?;
            let standing = store.with_segment(group, Standing::of)?;
            let mut appended_bytes = 0;
            let mut progress = Vec::new();
            let mut sequence = None;
            for batch in &batches {
                let appended = store.append(batch, Origin::Peer(group))?;
                if appended.taken > 0 {
                    sequence = sequence.max(Some(appended.sequence));
                    progress = appended.progress;
                }
                appended_bytes += batch.len();
            }
            add(&metrics.gossip_pulled_batches, batches.len() as u64);
            add(&metrics.gossip_pulled_bytes, appended_bytes as u64);
            if let Some(sequence) = sequence {
                store.sync(sequence)?;
            }
            // Whose stream the SCL is of must not be in doubt: were it told to the writer of another epoch, that
            // one would take its own records at these positions for acknowledged. Standings only ever advance,
            // so when it is the same before and after, it was that in between.
            if store.with_segment(group, Standing::of)? == standing
                && let Some(writer) = standing.live_writer()
            {
                connections.push_progress(writer, &progress);
            }
            self.shared.background.note_appended(appended_bytes);
            if store.with_segment(group, complete)? <= above {
                self.note_nothing_came(group, above);
                return Ok(());
            }
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    fn note_nothing_came(&self, group: GroupId, ours: Lsn) {
        if !self.shared.gossip.note_nothing_came(self.peer.node, group, ours) {
            return;
        }
        if let Some(suppressed) = self.shared.gossip.rebuild_log.admit() {
            tracing::warn!(
                peer = %self.peer.node, %group, segment_complete_lsn = %ours, suppressed,
                "the peer does not keep log that old any more"
            );
        }
    }
}

/// Whether records are missing before one that is here. That the volume is known to be durable beyond what is here
/// is another thing: while this node is the slowest, every batch says so, and brings more.
pub(crate) fn has_hole(segment: &Segment) -> bool {
    segment.held_count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::Membership;
    use borealis_types::{AvailabilityZone, EpochHistory, Placement, RecordSpan, VolumeId, WriterId};

    const GROUP: GroupId = GroupId(0);

    fn gossip() -> Gossip {
        let zone = AvailabilityZone("az1".to_owned());
        let address = "127.0.0.1:1".parse().unwrap();
        let placement = Placement::new(1).unwrap();
        let mut config =
            NodeConfig::new("unused".into(), VolumeId(1), NodeId(1), zone.clone(), 1, address, placement);
        config.peers =
            (2..=3).map(|node| NodeAddress { node: NodeId(node), zone: zone.clone(), address }).collect();
        config.groups = Membership::everyone_has_everything(placement, &[1, 2, 3].map(NodeId));
        Gossip::new(&config)
    }

    fn segment(complete: u64) -> SegmentSummary {
        SegmentSummary {
            group: GROUP,
            promised_epoch: VolumeEpoch(1),
            promised_writer: WriterId(1),
            history: EpochHistory::default(),
            segment_complete_lsn: Lsn(complete),
            known_durable: RecordSpan { start: Lsn(350), end: Lsn(400) },
            known_durable_tail: Lsn(400),
            readable_through: Lsn(complete),
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
        }
    }

    #[test]
    fn a_segment_is_stuck_only_when_it_stood_still_behind_a_peer_for_a_while() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let first = Ends::after(None, Lsn(100), Lsn(200), Lsn(90), at(0));
        assert!(!first.is_stuck(at(100)), "a batch may be on its way");
        let same = Ends::after(Some(&first), Lsn(100), Lsn(300), Lsn(90), at(300));
        assert!(!same.moved_since(&first) && !same.is_stuck(at(300)));
        assert!(same.is_stuck(at(500)), "the time counts from when it was first behind");
        let moved = Ends::after(Some(&same), Lsn(250), Lsn(300), Lsn(240), at(600));
        assert!(moved.moved_since(&same) && !moved.is_stuck(at(900)), "it only lags");
        let caught_up = Ends::after(Some(&moved), Lsn(300), Lsn(300), Lsn(300), at(700));
        let behind = Ends::after(Some(&caught_up), Lsn(300), Lsn(400), Lsn(300), at(5000));
        assert!(!behind.is_stuck(at(5100)), "it stood still because there was nothing");
    }

    #[test]
    fn log_is_kept_for_a_peer_that_was_never_heard_of() {
        let gossip = gossip();
        assert_eq!(gossip.note_peer(NodeId(2), &segment(500)), Some(Lsn::ZERO));
        assert_eq!(gossip.note_peer(NodeId(3), &segment(300)), Some(Lsn(300)));
        assert_eq!(
            gossip.note_peer(NodeId(3), &segment(600)),
            Some(Lsn(400)),
            "what may be cut does not count"
        );
        assert_eq!(gossip.note_peer(NodeId(9), &segment(1)), None, "a stranger does not count");
    }

    #[test]
    fn a_peer_that_is_not_ahead_has_not_collected_anything() {
        let gossip = gossip();
        gossip.note_peer(NodeId(2), &segment(500));
        // We stood at 400 when we decided to ask, and the writer's stream came before the peer's answer.
        assert!(!gossip.note_nothing_came(NodeId(2), GROUP, Lsn(500)));
        assert!(!gossip.is_collected(NodeId(2), GROUP, Lsn(500)));
        assert!(!gossip.note_nothing_came(NodeId(3), GROUP, Lsn(500)), "never heard of");
    }

    #[test]
    fn a_rebuild_is_needed_when_every_peer_that_is_ahead_collected_its_log() {
        let gossip = gossip();
        let ours = [segment(100)];
        gossip.note_peer(NodeId(2), &segment(500));
        gossip.note_peer(NodeId(3), &segment(400));
        assert!(gossip.note_nothing_came(NodeId(2), GROUP, Lsn(100)));
        assert!(gossip.is_collected(NodeId(2), GROUP, Lsn(100)));
        assert_eq!(gossip.rebuild_needed(&ours), None, "node 3 may still have it");
        assert!(gossip.note_nothing_came(NodeId(3), GROUP, Lsn(100)));
        assert!(gossip.rebuild_needed(&ours).is_some_and(|why| why.contains("group 0")));
        // Once the segment moves, what was noticed before is void.
        assert_eq!(gossip.rebuild_needed(&[segment(200)]), None);
        assert!(!gossip.is_collected(NodeId(2), GROUP, Lsn(200)));
    }
}
