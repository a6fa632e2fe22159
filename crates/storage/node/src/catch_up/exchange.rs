//! Exchanges with one peer: summaries are compared, and what is missing is fetched.
//!
//! A peer is ahead most of the time only because its copy of the writer's stream arrived sooner. So records are asked for
//! only when they are known to be missing (a later one is here already), when nothing moved for a while, or when this is
//! the first exchange after a start.
//!
//! A peer that acts on another membership of a group than this node is asked what it stores of memberships, and so is everyone
//! while it is open whether a newer one was chosen. A node that refuses to be a peer says so with the same.
//!
//! Exchanges are frequent while segments differ, and rare when all agree, so that an idle volume costs next to nothing.
//! They are also less frequent while the writer's stream moves our segments, so that a busy volume costs little more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use borealis_client::handshake::kind_of;
use borealis_client::{ClientError, Credentials, NodeClient, Route, Timeouts};
use borealis_quorum::segment::{InstallError, Segment, Standing as SegmentStanding};
use borealis_spec::NodeAddress;
use borealis_store::{Store, StoreError};
use borealis_types::{GroupId, Lsn, NodeId, VolumeId, invariant};
use borealis_wire::{Caller, Refusal, Reply, Request, SegmentSummary};

use super::known::{Known, has_hole};
use super::pull::{CatchUpError, Puller};
use crate::members::{Members, Told};
use crate::metrics::{Metrics, add};
use crate::standing::Standing;

/// Between exchanges while something is missing or about to be agreed.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Between exchanges while the writer's stream moves our segments: there is little to learn from peers then, and
/// every exchange takes time from that stream.
const INTERVAL_FED: Duration = Duration::from_millis(500);
/// Longest time between exchanges, reached when nothing moves.
const INTERVAL_MAX: Duration = Duration::from_millis(1600);
/// A peer is ahead, and our segment has not moved for this long: what it lacks will not come by itself. Under a
/// heavy load a batch takes a tenth of a second; asking for it meanwhile makes the load heavier.
const STUCK_AFTER: Duration = Duration::from_millis(500);
/// However often it is woken, a thread does not ask its peer sooner than this.
const SPACING: Duration = Duration::from_millis(20);
/// Before a peer that failed is asked again; doubles up to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// A node that is no peer, as it says, is asked again after this.
const STRANGER_PAUSE: Duration = Duration::from_secs(3);
/// For a peer to answer.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(5) };

/// What an exchange with a peer brought.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Exchanged {
    /// The segments agree and did not move.
    Quiet,
    /// Our segments advance from the writer's stream and have no known gap: exchange seldom.
    Fed,
    /// Something else moved, or the segments differ.
    Moving,
}

/// The time between exchanges with one peer, by what they bring.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    backoff: Duration,
}

impl Pace {
    fn new() -> Pace {
        Pace { interval: INTERVAL_MIN, backoff: BACKOFF_MIN }
    }

    /// Notes an exchange that worked; returns how long to wait for a reason before the next, [`SPACING`] left out.
    fn after(&mut self, exchanged: Exchanged) -> Duration {
        self.backoff = BACKOFF_MIN;
        self.interval = match exchanged {
            Exchanged::Moving => INTERVAL_MIN,
            Exchanged::Fed => INTERVAL_FED,
            Exchanged::Quiet => (self.interval * 2).min(INTERVAL_MAX),
        };
        self.beyond_spacing()
    }

    /// Notes an exchange that failed; returns how long to leave the peer alone.
    fn after_failure(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        pause
    }

    fn beyond_spacing(&self) -> Duration {
        invariant!(
            "exchanges-keep-their-spacing",
            self.interval >= SPACING,
            "an interval of {:?} between exchanges, at least {SPACING:?} apart",
            self.interval
        );
        self.interval - SPACING
    }
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
        invariant!(
            "only-a-segment-behind-can-be-stuck",
            self.behind_since.is_none() || self.theirs > self.ours,
            "ours ends at {}, the peer's at {}",
            self.ours,
            self.theirs
        );
        self.behind_since.is_some_and(|since| now.duration_since(since) >= STUCK_AFTER)
    }
}

/// What the threads that catch up have in common.
#[derive(Debug)]
pub(crate) struct CatchUp {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) known: Arc<Known>,
    pub(crate) members: Arc<Members>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) puller: Puller,
}

impl CatchUp {
    /// The body of one peer's thread. It ends when all do, or when it `has_ended` alone.
    pub(crate) fn run_until_stopped(&self, peer: &NodeAddress, has_ended: &AtomicBool) {
        let mut exchanges = Exchanges { parts: self, peer, client: None, ends: BTreeMap::new() };
        let mut pace = Pace::new();
        let mut seen_wakes = 0;
        let wait = |seen: &mut u64, pause, wakeable| self.known.wait_unless(has_ended, seen, pause, wakeable);
        loop {
            let goes_on = match exchanges.exchange() {
                Ok(exchanged) => {
                    add(&self.metrics.gossip_exchanges, 1);
                    self.members.note_heard(peer.node);
                    let pause = pace.after(exchanged);
                    wait(&mut seen_wakes, SPACING, false) && wait(&mut seen_wakes, pause, true)
                }
                Err(error) => {
                    tracing::debug!(peer = %peer.node, %error, "gossip failed");
                    let pause = match exchanges.learn_from(&error) {
                        true => STRANGER_PAUSE,
                        false => {
                            add(&self.metrics.gossip_failures, 1);
                            pace.after_failure()
                        }
                    };
                    wait(&mut seen_wakes, pause, false)
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// The exchanges with one peer.
struct Exchanges<'a> {
    parts: &'a CatchUp,
    peer: &'a NodeAddress,
    /// Taken out during an exchange, and put back if that worked.
    client: Option<NodeClient>,
    ends: BTreeMap<GroupId, Ends>,
}

impl Exchanges<'_> {
    /// Compares all segments with the peer's and takes what is missing.
    fn exchange(&mut self) -> Result<Exchanged, CatchUpError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let caller = Caller::Peer(self.parts.node);
                let mut client = NodeClient::connect(
                    Route::new(&self.peer.address, self.parts.credentials.as_ref()),
                    self.parts.volume,
                    self.peer.node,
                    caller,
                    TIMEOUTS,
                )?;
                let (boot, remembered) = client.acquaint(self.parts.node)?;
                self.parts.standing.note_answer(self.peer.node, boot, remembered.as_ref());
                client
            }
        };
        let mut exchanged = Exchanged::Quiet;
        let segments = client.summaries()?;
        if self.parts.members.wants_memberships(self.peer.node, &segments) {
            let (states, nodes) = self.ask_memberships(&mut client)?;
            self.parts.members.take_claims(self.peer.node, &states, &nodes)?;
            exchanged = Exchanged::Moving;
        }
        for theirs in segments {
            if self.parts.known.is_own(theirs.group) {
                exchanged = exchanged.max(self.compare(&mut client, &theirs)?);
            }
        }
        self.client = Some(client);
        Ok(exchanged)
    }

    fn ask_memberships(&self, client: &mut NodeClient) -> Result<Told, ClientError> {
        match client.call(&Request::Memberships)? {
            Reply::Memberships { states, nodes } => Ok((states, nodes)),
            other => Err(ClientError::Protocol {
                node: self.peer.node,
                address: self.peer.address.clone(),
                what: format!("a reply of kind {} to a question for memberships", kind_of(&other)),
            }),
        }
    }

    /// Takes what a node says that refuses to be a peer; false if the error is another. Where nobody answers, the node may be
    /// somewhere else.
    fn learn_from(&self, error: &CatchUpError) -> bool {
        let CatchUpError::Peer(error) = error else { return false };
        if error.refusal().is_none() {
            self.parts.members.note_unreached(self.peer.node);
        }
        let Some(Refusal::OtherMembership { states, nodes }) = error.refusal() else { return false };
        if let Err(error) = self.parts.members.take_claims(self.peer.node, states, nodes) {
            tracing::warn!(peer = %self.peer.node, %error, "what a node says of memberships cannot be acted on yet");
        }
        self.parts.members.note_refused_by(self.peer.node);
        true
    }

    /// Compares one segment with the peer's and takes what is missing.
    fn compare(
        &mut self,
        client: &mut NodeClient,
        theirs: &SegmentSummary,
    ) -> Result<Exchanged, CatchUpError> {
        let CatchUp { store, known, .. } = self.parts;
        let group = theirs.group;
        known.proof.note(self.peer.node, theirs);
        let plan = store.with_segment(group, |segment| segment.plan_gossip(&theirs.into()))?;
        if plan.install_history && !self.install_history(group)? {
            return Ok(Exchanged::Moving);
        }
        let before = self.ends.get(&group).copied();
        let (ours, durable, has_hole, newest_epoch, standing) = store.with_segment(group, |segment| {
            let durable = segment.known_durable().volume.end;
            let newest_epoch = segment.history().newest_epoch();
            let ours = segment.segment_complete_lsn();
            (ours, durable, has_hole(segment), newest_epoch, segment.standing())
        })?;
        let asked = Instant::now();
        let now = Ends::after(before.as_ref(), ours, theirs.segment_complete_lsn, durable, asked);
        self.ends.insert(group, now);
        let fed = before.is_some_and(|before| now.moved_since(&before));
        // A segment that the writer feeds learns the durable position with every batch; take the peer's only if it is
        // not fed.
        if plan.observe_durable
            && !fed
            && let Some(positions) = store.with_segment(group, |segment| known.proof.positions(segment))?
        {
            store.note_positions(&positions, &[])?;
        }
        self.parts.standing.note_segment(self.peer.node, theirs);
        known.note_peer(self.peer.node, theirs, |floor| store.set_peer_floor(group, floor));
        let otherwise = if fed { Exchanged::Fed } else { Exchanged::Moving };
        if now.theirs <= now.ours {
            let still = before == Some(now) && now.theirs == now.ours && !plan.observe_durable;
            return Ok(if still { Exchanged::Quiet } else { otherwise });
        }
        let stuck = before.is_none() || now.is_stuck(asked);
        let in_vain = known.is_collected(self.peer.node, group, ours)
            || known.unconfirmed.was_left(self.peer.node, group, (ours, durable));
        // A peer whose history is older than ours may hold records that a recovery truncated; it learns of that from us
        // first. A peer whose history is newer, but not as new as our promise, waits for the same recovery as we do.
        let agreed = newest_epoch == theirs.history.newest_epoch();
        // A segment that is joining takes what is old from its base, and no log continues it before.
        let is_full = standing == SegmentStanding::Full;
        if (stuck || has_hole) && agreed && !in_vain && is_full && store.takes_redo() {
            self.parts.puller.pull(client, self.peer.node, group)?;
            // What we took ourselves does not count as having been fed.
            let ours = store.with_segment(group, Segment::segment_complete_lsn)?;
            self.ends.insert(group, Ends { ours, ..now });
            return Ok(Exchanged::Moving);
        }
        Ok(if agreed { otherwise } else { Exchanged::Moving })
    }

    /// Installs a newer history that a write quorum of members has; false if there is none yet, or it has to wait for a
    /// recovery under way. The writer brings its own without waiting for that.
    fn install_history(&self, group: GroupId) -> Result<bool, CatchUpError> {
        let CatchUp { store, known, .. } = self.parts;
        let Some(history) = store.with_segment(group, |segment| known.proof.history(segment))? else {
            return Ok(false);
        };
        match store.install_from_peers(group, &history) {
            Ok(_) => {
                let epoch = history.newest_epoch();
                tracing::info!(%group, %epoch, peer = %self.peer.node, "learned of a recovery");
                self.parts.puller.connections.tell_fenced(epoch);
                Ok(true)
            }
            Err(StoreError::Install { error: InstallError::Fenced(_), .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    #[should_panic(expected = "invariant only-a-segment-behind-can-be-stuck is broken")]
    fn a_segment_that_lacks_nothing_is_not_stuck() {
        let now = Instant::now();
        let ends = Ends { ours: Lsn(300), theirs: Lsn(300), durable: Lsn(300), behind_since: Some(now) };
        let _ = ends.is_stuck(now);
    }

    #[test]
    fn exchanges_become_rare_when_nothing_moves_and_frequent_when_something_does() {
        let mut pace = Pace::new();
        for expected in [200, 400, 800, 1600, 1600] {
            assert_eq!(pace.after(Exchanged::Quiet), Duration::from_millis(expected) - SPACING);
        }
        assert_eq!(pace.after(Exchanged::Fed), INTERVAL_FED - SPACING);
        assert_eq!(pace.after(Exchanged::Moving), INTERVAL_MIN - SPACING);
        let pauses: Vec<u64> = (0..7).map(|_| pace.after_failure().as_millis() as u64).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3000, 3000]);
        pace.after(Exchanged::Quiet);
        assert_eq!(pace.after_failure(), BACKOFF_MIN, "a peer that answered begins anew");
    }

    #[test]
    #[should_panic(expected = "invariant exchanges-keep-their-spacing is broken")]
    fn a_pace_without_spacing_is_noticed() {
        Pace { interval: SPACING / 2, backoff: BACKOFF_MIN }.beyond_spacing();
    }
}
