//! Refilling segments that no peer's log continues, and filling those that are joining: pages as of a durable point, from all peers that have them.
//!
//! What is asked of whom, and what is believed, is in [`plan`]; the connections are in [`sources`]; how it gets to disk, and
//! how the segment goes on from there, is the store's matter (`borealis_store::Refill`). Here is the thread that does one
//! segment after another, at a bounded rate: what is asked for takes the peers' disks from those who read and write.
//!
//! The point is what the segment itself knows to be durable: the writer said so, or a read quorum of members. Peers keep
//! everything as of it under leases. Everything that comes is what two of them say.

mod plan;
mod progress;
mod sources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::Credentials;
use borealis_quorum::segment::{Segment, Standing};
use borealis_spec::NodeConfig;
use borealis_store::{Refill, Store, StoreError};
use borealis_types::{GroupId, META_GROUP, NodeId, PAGE_SIZE, ReadPoint, VolumeId};

pub(crate) use self::progress::Refills;

use self::plan::{Plan, Step, Stuck};
use self::progress::Pace;
use self::sources::Sources;
use super::known::Known;
use super::pull::{CatchUpError, Puller};
use crate::materializer::lower_priority;
use crate::members::Members;
use crate::metrics::{Metrics, add};

/// Between two looks at whether a segment is cut off.
const INTERVAL: Duration = Duration::from_millis(250);
/// Before a refill that failed is tried again; doubles up to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// After a refill, the records that came meanwhile are waited for this long before the next segment; peers keep them until
/// their leases end.
const CHAIN_WITHIN: Duration = Duration::from_secs(5);
/// How much less of a busy processor the thread gets than those who answer.
const NICENESS: libc::c_int = 5;

/// Why a segment was not refilled.
#[derive(Debug, thiserror::Error)]
enum RefillError {
    #[error(transparent)]
    Own(#[from] CatchUpError),
    #[error(transparent)]
    Stuck(#[from] Stuck),
    #[error("no two peers agree on the sizes of relations or on small values")]
    NoAgreement,
    #[error("the disk is nearly full")]
    NoRoom,
    #[error("the node stops")]
    Stopping,
}

impl From<StoreError> for RefillError {
    fn from(error: StoreError) -> RefillError {
        RefillError::Own(error.into())
    }
}

/// Refills segments, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Refiller {
    volume: VolumeId,
    node: NodeId,
    members: Arc<Members>,
    credentials: Option<Arc<Credentials>>,
    bytes_per_second: u64,
    store: Arc<Store>,
    known: Arc<Known>,
    refills: Arc<Refills>,
    metrics: Arc<Metrics>,
    puller: Puller,
}

impl Refiller {
    pub(crate) fn new(
        config: &NodeConfig,
        (known, members): (&Arc<Known>, &Arc<Members>),
        refills: &Arc<Refills>,
        puller: Puller,
        credentials: Option<Arc<Credentials>>,
    ) -> Refiller {
        Refiller {
            volume: config.volume,
            node: config.node,
            members: Arc::clone(members),
            credentials,
            bytes_per_second: config.refill_bytes_per_second,
            store: Arc::clone(&puller.store),
            known: Arc::clone(known),
            refills: Arc::clone(refills),
            metrics: Arc::clone(&puller.metrics),
            puller,
        }
    }

    /// The body of the thread.
    pub(crate) fn run_until_stopped(&self) {
        lower_priority(NICENESS);
        let mut failed: BTreeMap<GroupId, (Instant, Duration)> = BTreeMap::new();
        let mut seen_wakes = 0;
        while self.known.wait(&mut seen_wakes, INTERVAL, false) {
            let here = self.store.groups().into_iter();
            let waiting: Vec<GroupId> =
                here.filter(|&group| self.is_joining(group) || self.is_cut_off(group)).collect();
            self.refills.note_cut_off(&waiting);
            for group in waiting {
                if self.is_joining(group) && !self.may_join(group) {
                    continue;
                }
                let waits = |(when, pause): &(Instant, Duration)| when.elapsed() < *pause;
                if failed.get(&group).is_some_and(waits) {
                    continue;
                }
                match self.refill(group) {
                    Ok(()) => drop(failed.remove(&group)),
                    Err(RefillError::Stopping) => return,
                    Err(_) if self.store.standing(group) == Standing::Absent => {
                        tracing::info!(%group, "a refill ended: the segment left");
                        failed.remove(&group);
                    }
                    Err(error) => {
                        let pause = failed
                            .get(&group)
                            .map_or(BACKOFF_MIN, |(_, pause)| (*pause * 2).min(BACKOFF_MAX));
                        failed.insert(group, (Instant::now(), pause));
                        tracing::warn!(%group, %error, "a segment that no log continues is not refilled yet");
                    }
                }
            }
        }
    }

    /// Whether a segment that is joining may take its base now: it knows a point, and has heard what so many others know to be
    /// durable that it is not an old one.
    fn may_join(&self, group: GroupId) -> bool {
        self.store.lacks_durable_records(group)
            && (self.store.is_refilling(group) || self.known.proof.is_heard(group))
    }

    /// Whether a segment is to be refilled. Ends a refill that is not needed any more.
    fn is_cut_off(&self, group: GroupId) -> bool {
        if !self.store.lacks_durable_records(group) {
            if self.store.is_refilling(group)
                && let Err(error) = self.store.end_refill_if_needless(group)
            {
                tracing::warn!(%group, %error, "a refill that is not needed any more cannot be ended yet");
            }
            return false;
        }
        let Ok(ours) = self.store.with_segment(group, Segment::segment_complete_lsn) else { return false };
        self.store.is_refilling(group)
            || self.known.is_refill_requested(group)
            || self.known.is_cut_off(group, ours)
    }

    fn refill(&self, group: GroupId) -> Result<(), RefillError> {
        let (begun, was_joining) = (Instant::now(), self.is_joining(group));
        let Some(refill) = self.store.refill(group)? else {
            // If a segment that was joining needed nothing, its writer has not heard of it.
            self.puller.jump(group, || Ok(()))?;
            self.note_if_joined(group, was_joining, begun);
            return Ok(());
        };
        if refill.is_whole() {
            self.puller.jump(group, || refill.finish_whole())?;
            self.note_refilled(group, was_joining, begun);
            return Ok(());
        }
        let mut sources = Sources::new(self.volume, self.node, group, self.credentials.clone());
        let Some(at) = self.refill_from(refill, group, &mut sources)? else { return Ok(()) };
        tracing::info!(%group, lsn = %at.lsn, seconds = begun.elapsed().as_secs_f32(), "a segment was refilled from peers");
        self.note_refilled(group, was_joining, begun);
        // The records since then come from the peers' logs.
        self.known.wake();
        if self.wait_for_chain(group) {
            sources.release(at);
        }
        Ok(())
    }

    fn note_refilled(&self, group: GroupId, was_joining: bool, begun: Instant) {
        self.known.note_refilled(group);
        self.refills.note_refilled(group);
        self.note_if_joined(group, was_joining, begun);
    }

    /// Brings everything, and lets the segment go on from there. Returns as of where; `None` if it is not needed any more.
    fn refill_from(
        &self,
        mut refill: Refill<'_>,
        group: GroupId,
        sources: &mut Sources,
    ) -> Result<Option<ReadPoint>, RefillError> {
        let (mut peers, mut pages) = sources.pin_all(&self.members.others(group), refill.at()?);
        if peers.len() < 2 {
            // What was begun, perhaps before a restart, cannot be had any more.
            refill.begin_again()?;
            (peers, pages) = sources.pin_all(&self.members.others(group), refill.at()?);
        }
        let at = refill.at()?;
        self.refills.begin(group, pages);
        let mut plan = Plan::new(peers, refill.through());
        match self.bring_pages(&mut refill, group, &mut plan, sources) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                // What came before it is not asked for again.
                if let Err(error) = refill.save() {
                    tracing::warn!(%group, %error, "what was brought for a segment is not saved");
                }
                return Err(error);
            }
        }
        let relations = sources.relations(&mut plan, at).ok_or(RefillError::NoAgreement)?;
        let values = match group {
            META_GROUP => sources.values(&mut plan, at).ok_or(RefillError::NoAgreement)?,
            _ => Vec::new(),
        };
        self.puller.jump(group, || refill.finish(&relations, values))?;
        Ok(Some(at))
    }

    /// Brings all pages; false if they are not needed any more.
    fn bring_pages(
        &self,
        refill: &mut Refill<'_>,
        group: GroupId,
        plan: &mut Plan,
        sources: &mut Sources,
    ) -> Result<bool, RefillError> {
        let at = refill.at()?;
        let mut pace = Pace::new(self.bytes_per_second);
        loop {
            if self.known.is_stopping() {
                return Err(RefillError::Stopping);
            }
            if !refill.is_needed()? {
                return Ok(false);
            }
            if !self.store.takes_redo() {
                return Err(RefillError::NoRoom);
            }
            sources.renew(plan, at);
            match plan.step()? {
                Step::Done => return Ok(true),
                Step::Settle { key, peers } => {
                    let answers = sources.page_of_each(plan, at, key, &peers);
                    plan.settled(key, &answers)?;
                }
                Step::Ask { survey, pages } => {
                    let (surveyed, bytes) = sources.ask_all(plan, at, &pages, survey);
                    self.refills.note_fetched(bytes);
                    if let (Some([one, other]), Some(survey)) = (surveyed, survey) {
                        let listed = plan.surveyed(survey.peers, [&one, &other]);
                        for (key, checksum) in &listed {
                            if refill.has(key, *checksum) {
                                plan.note_here(key);
                            }
                        }
                        pace.spend((listed.len() * PAGE_SIZE) as u64);
                    }
                }
            }
            while let Some(range) = plan.take_complete() {
                let (through, pages) = (range.through, range.into_pages());
                refill.take_range(through, &pages)?;
                self.refills.note_done(group, pages.len() as u64);
            }
            std::thread::sleep(pace.pause());
        }
    }

    /// Waits for the records behind the point; returns whether they came.
    fn wait_for_chain(&self, group: GroupId) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < CHAIN_WITHIN && !self.known.is_stopping() {
            if !self.store.lacks_durable_records(group) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn is_joining(&self, group: GroupId) -> bool {
        self.store.standing(group) == Standing::Joining
    }

    /// Says that a segment has everything of its group from now on, and lets whoever waits for it hear that.
    fn note_if_joined(&self, group: GroupId, was_joining: bool, begun: Instant) {
        if !was_joining || self.store.standing(group) != Standing::Full {
            return;
        }
        add(&self.metrics.segments_joined, 1);
        self.known.note_refilled(group);
        let seconds = begun.elapsed().as_secs_f32();
        tracing::info!(node = %self.node, %group, seconds, "a segment has everything of its group, and counts from now on");
        self.known.wake();
    }
}
