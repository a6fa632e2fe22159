//! What one segment must remember and decide.
//!
//! The storage node owns a [`Segment`] for every protection group it serves. It asks the segment about every
//! record, appends to its log what the segment took, and makes the log durable **before** any answer leaves
//! the node: an acknowledgement is [`Segment::acknowledgement`] as it was when the last synced log entry had
//! been applied.
//!
//! Everything that changes a segment goes through the log, in the order it was applied: records
//! ([`Segment::offer`]), promises ([`Segment::fence`]), histories ([`Segment::install`],
//! [`Segment::adopt_for_recovery`]), and durable points ([`Segment::observe_durable`]). Replaying the log over
//! the last [`SegmentCheckpoint`] gives the same state again; replay offers records as [`Source::Replay`].
//!
//! What the caller must keep: the bytes of every record that the segment has (complete or held) until it is
//! both applied and not after the known durable position, so that peers and recoveries can ask for it.

use std::collections::{BTreeMap, VecDeque};

use borealis_types::{EpochHistory, GroupId, Lsn, ReadPoint, RecordSpan, VolumeEpoch, WriterId, invariant};
use borealis_wire::Refusal;

use crate::membership::MembershipState;
use crate::{ChainLink, DurablePoint, Promise};

mod membership;
#[cfg(test)]
mod membership_tests;
mod refill;
#[cfg(test)]
mod tests;
mod types;

pub use membership::{BaseRefused, MembershipInstalled, OtherMembership};
pub use refill::JumpRefused;
pub use types::{
    CheckpointError, Fenced, Gap, GossipPlan, InstallError, Installed, Offer, ReadRefusal, SegmentCheckpoint,
    SegmentRecord, SegmentSummary, Source, Standing,
};

/// How many records from the writer or from peers wait for a predecessor before more are refused.
pub const HELD_RECORDS_MAX: usize = 65_536;

/// One peer's copy of one protection group: promises, history, and how far its chain is unbroken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    group: GroupId,
    promised: Promise,
    history: EpochHistory,
    known_durable: DurablePoint,
    minimum_read_point: Lsn,
    /// The last record of the chain that is not after `known_durable`: as far back as a truncation can ever reach.
    floor: RecordSpan,
    /// The unbroken chain above `floor`. Its length is bounded by how far a writer may run ahead of the durable
    /// position.
    recent: VecDeque<SegmentRecord>,
    /// Records whose predecessor is missing, by the end of that predecessor.
    held: BTreeMap<Lsn, SegmentRecord>,
    /// What it stores of the group's memberships; `None` where configuration fixes the members.
    membership: Option<MembershipState>,
    standing: Standing,
}

impl Segment {
    /// An empty segment, promised to nobody.
    #[must_use]
    pub fn new(group: GroupId) -> Segment {
        Segment {
            group,
            promised: Promise::default(),
            history: EpochHistory::default(),
            known_durable: DurablePoint::default(),
            minimum_read_point: Lsn::ZERO,
            floor: RecordSpan::NONE,
            recent: VecDeque::new(),
            held: BTreeMap::new(),
            membership: None,
            standing: Standing::Full,
        }
    }

    /// The protection group that this is one of six copies of.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The newest promise; of epoch zero before the first one.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.promised
    }

    /// The history by which records are admitted; empty before the first installation.
    #[must_use]
    pub fn history(&self) -> &EpochHistory {
        &self.history
    }

    /// SCL: this segment has every record of its group that ends here or before.
    #[must_use]
    pub fn segment_complete_lsn(&self) -> Lsn {
        self.complete().end
    }

    /// What may be acknowledged: the epoch whose writer may count it, and SCL.
    ///
    /// `None` between a fence and the installation that follows it: SCL may count records then that the
    /// recovery is about to truncate. An acknowledgement must go to the writer of exactly this epoch, and only
    /// after the log is synced up to the moment this was called.
    #[must_use]
    pub fn acknowledgement(&self) -> Option<(VolumeEpoch, Lsn)> {
        let epoch = self.promised.epoch;
        (epoch == self.history.newest_epoch()).then(|| (epoch, self.segment_complete_lsn()))
    }

    /// The last record of the unbroken chain, whose end is SCL; none while the segment is joining.
    #[must_use]
    pub fn complete(&self) -> RecordSpan {
        match self.standing {
            Standing::Full => self.chain_end(),
            Standing::Joining | Standing::Absent => RecordSpan::NONE,
        }
    }

    /// The last record of the chain, whatever it counts for.
    fn chain_end(&self) -> RecordSpan {
        self.recent.back().map_or(self.floor, |record| record.link.span)
    }

    /// The highest durable position heard of.
    #[must_use]
    pub fn known_durable(&self) -> DurablePoint {
        self.known_durable
    }

    /// The lowest position anyone may still read at (PGMRPL).
    #[must_use]
    pub fn minimum_read_point(&self) -> Lsn {
        self.minimum_read_point
    }

    /// How many records wait for a predecessor.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Records after the known durable position, complete ones first, then held ones: what a later history may
    /// still truncate.
    pub fn uncertain(&self) -> impl Iterator<Item = SegmentRecord> {
        self.recent.iter().chain(self.held.values()).copied()
    }

    /// The last record of the unbroken chain that is above the known durable position and not after `through`.
    #[must_use]
    pub fn last_uncertain_through(&self, through: Lsn) -> Option<RecordSpan> {
        let count = self.recent.partition_point(|record| record.link.span.end <= through);
        self.recent.get(count.checked_sub(1)?).map(|record| record.link.span)
    }

    /// What this segment says about itself.
    #[must_use]
    pub fn summary(&self) -> SegmentSummary {
        SegmentSummary {
            group: self.group,
            promised: self.promised,
            history: self.history.clone(),
            complete: self.complete(),
            known_durable: self.known_durable,
            minimum_read_point: self.minimum_read_point,
            joining: self.standing != Standing::Full,
        }
    }

    /// Decides about one record and takes it if it belongs here.
    pub fn offer(&mut self, source: Source, epoch: VolumeEpoch, link: ChainLink) -> Offer {
        let newest = self.history.newest_epoch();
        if source == Source::Writer && epoch < self.promised.epoch.max(newest) {
            return Offer::Stale;
        }
        if epoch > newest || (source == Source::Writer && epoch != self.promised.epoch) {
            return Offer::NeedsHistory;
        }
        if !self.history.admits(epoch, link.span.end) {
            return Offer::Stale;
        }
        if link.span.start < link.previous_end || link.span.end <= link.span.start {
            return Offer::Conflict;
        }
        let record = SegmentRecord { epoch, link };
        let complete = self.chain_end().end;
        if link.span.end <= complete {
            return self.compare_with_recent(record);
        }
        if link.previous_end < complete {
            return Offer::Conflict;
        }
        if link.previous_end == complete {
            if self.held.first_key_value().is_some_and(|(&next, _)| next < link.span.end) {
                return Offer::Conflict;
            }
            self.extend(record);
            self.connect_held();
            self.assert_consistent();
            return Offer::Complete;
        }
        self.hold(source, record)
    }

    /// A record at or below SCL: the same again, or a contradiction where the chain is still remembered.
    fn compare_with_recent(&self, record: SegmentRecord) -> Offer {
        let position = self.recent.partition_point(|known| known.link.span.end < record.link.span.end);
        match self.recent.get(position) {
            Some(known) if record.link.span.end > self.floor.end && *known != record => Offer::Conflict,
            _ => Offer::Duplicate,
        }
    }

    fn hold(&mut self, source: Source, record: SegmentRecord) -> Offer {
        let key = record.link.previous_end;
        if let Some(known) = self.held.get(&key) {
            return if *known == record { Offer::Duplicate } else { Offer::Conflict };
        }
        let before = self.held.range(..key).next_back();
        let after = self.held.range(key..).next();
        if before.is_some_and(|(_, known)| known.link.span.end > key)
            || after.is_some_and(|(&next, _)| next < record.link.span.end)
        {
            return Offer::Conflict;
        }
        let bounded = matches!(source, Source::Writer | Source::Peer);
        if bounded && self.held.len() >= HELD_RECORDS_MAX {
            return Offer::TooFarAhead;
        }
        self.held.insert(key, record);
        Offer::Held
    }

    /// Appends a record to the unbroken chain.
    fn extend(&mut self, record: SegmentRecord) {
        let complete = self.chain_end().end;
        let previous_end = record.link.previous_end;
        invariant!(
            "no-hole-below-scl",
            previous_end == complete,
            "{previous_end} does not continue {complete}"
        );
        if record.link.span.end <= self.known_durable.volume.end {
            invariant!("durable-before-uncertain", self.recent.is_empty(), "{:?}", record.link.span);
            self.floor = record.link.span;
        } else {
            self.recent.push_back(record);
        }
    }

    /// Moves held records to the chain as far as they connect.
    fn connect_held(&mut self) {
        while let Some(record) = self.held.remove(&self.chain_end().end) {
            self.extend(record);
        }
    }

    /// What must hold between any two calls. It costs a few comparisons, so every change ends with it.
    fn assert_consistent(&self) {
        let durable = self.known_durable.volume.end;
        let newest = self.history.newest_epoch();
        invariant!("promise-covers-history", self.promised.epoch >= newest, "{:?}, {newest}", self.promised);
        invariant!("floor-is-durable", self.floor.end <= durable, "{} above {durable}", self.floor.end);
        let uncertain = self.recent.front().is_none_or(|first| first.link.span.end > durable);
        invariant!("durable-before-uncertain", uncertain, "{:?} is not above {durable}", self.recent.front());
        // What connects is in the chain and does not wait.
        let waits = self.held.first_key_value().is_none_or(|(&after, _)| after > self.chain_end().end);
        invariant!("no-hole-below-scl", waits, "{:?} waits for what is here", self.held.first_key_value());
    }

    /// Changes the promise: only to a newer epoch, or within the same one to the writer that got the quorum.
    fn set_promise(&mut self, promise: Promise) {
        let current = self.promised.epoch;
        invariant!("promise-never-falls", promise.epoch >= current, "{} after {current}", promise.epoch);
        self.promised = promise;
    }

    /// Promises to refuse every writer before `wanted`. The same promise twice is fine.
    ///
    /// Persist the promise before the summary leaves the node: the summary must also cover every record that
    /// was ever acknowledged, which holds because they are earlier in the same log.
    ///
    /// # Errors
    /// If the segment is promised to a newer epoch, or the same epoch to another writer.
    pub fn fence(&mut self, wanted: Promise) -> Result<SegmentSummary, Fenced> {
        if wanted != self.promised {
            if wanted.epoch <= self.promised.epoch {
                return Err(Fenced { current: self.promised });
            }
            self.set_promise(wanted);
        }
        self.assert_consistent();
        Ok(self.summary())
    }

    /// Replaces the history by a newer one: from the recovery that made it, from the writer that it let start,
    /// or from a peer that has it already (`writer` is `None` if it does not know whose it is). Also notes
    /// `durable`, which must be true under that history.
    ///
    /// Refused while the segment is promised to a newer epoch: that recovery may have counted on records
    /// that this history truncates, and will bring its own. A promise of the same epoch to another writer does not
    /// stand in the way: whoever installs was promised that epoch by a write quorum, so the other cannot be.
    ///
    /// # Errors
    /// If the promise forbids it, or if the history cannot be of this volume. The segment is unchanged then.
    pub fn install(
        &mut self,
        writer: Option<WriterId>,
        history: &EpochHistory,
        durable: DurablePoint,
    ) -> Result<Installed, InstallError> {
        let epoch = history.newest_epoch();
        if history.newest().is_none() {
            return Err(InstallError::Empty);
        }
        if epoch < self.promised.epoch.max(self.history.newest_epoch()) {
            return Err(Fenced { current: self.promised }.into());
        }
        let mut installed = self.replace_history(history, true)?;
        let same_epoch_writer = (epoch == self.promised.epoch).then_some(self.promised.writer);
        let promised = Promise { epoch, writer: writer.or(same_epoch_writer).unwrap_or_default() };
        installed.changed |= self.promised != promised;
        self.set_promise(promised);
        installed.changed |= self.observe_durable(epoch, durable);
        self.assert_consistent();
        Ok(installed)
    }

    /// Replaces the history on behalf of the recovery that holds the promise, before it brings records that
    /// older histories did not admit. The promise stays.
    ///
    /// The history here may even be newer, left by a recovery that did not complete: the one that holds the
    /// promise fenced a write quorum without it, so it never will.
    ///
    /// # Errors
    /// If the promise is another's, if that recovery has installed its outcome here already (a late repeat),
    /// or if the history cannot be of this volume.
    pub fn adopt_for_recovery(
        &mut self,
        promise: Promise,
        history: &EpochHistory,
    ) -> Result<Installed, InstallError> {
        let installed = self.history.newest_epoch() == promise.epoch;
        if promise != self.promised || installed || history.newest_epoch() >= promise.epoch {
            return Err(Fenced { current: self.promised }.into());
        }
        let installed = self.replace_history(history, false)?;
        self.assert_consistent();
        Ok(installed)
    }

    /// `is_outcome`: it is what a recovery ended with, not what one that goes on found.
    fn replace_history(
        &mut self,
        history: &EpochHistory,
        is_outcome: bool,
    ) -> Result<Installed, InstallError> {
        let epoch = history.newest_epoch();
        if epoch == self.history.newest_epoch() {
            return if *history == self.history {
                Ok(Installed::default())
            } else {
                Err(InstallError::Contradiction { epoch })
            };
        }
        let durable = self.known_durable.volume.end;
        let cuts_durable =
            history.openings().iter().any(|t| t.epoch > self.history.newest_epoch() && t.last.end < durable);
        if cuts_durable {
            return Err(InstallError::CutsDurable { epoch, durable });
        }
        // A durable record may be applied already, by what its writer's release does: that never changes.
        if !history.same_releases_through(&self.history, durable) {
            return Err(InstallError::ChangesRelease { epoch, durable });
        }
        if is_outcome && !same_openings_below(history, &self.history, durable) {
            return Err(InstallError::RewritesDurable { epoch, durable });
        }
        let admitted = |record: &SegmentRecord| history.admits(record.epoch, record.link.span.end);
        // Records of later epochs lie after every truncation of an earlier one, so what is truncated is a suffix.
        let keep = self.recent.iter().position(|record| !admitted(record)).unwrap_or(self.recent.len());
        if self.recent.range(keep..).any(admitted) {
            return Err(InstallError::Contradiction { epoch });
        }
        let same_release = |record: &SegmentRecord| {
            let end = record.link.span.end;
            history.server_version_at(end) == self.history.server_version_at(end)
        };
        let stays = self.recent.range(..keep).chain(self.held.values().filter(|record| admitted(record)));
        if !stays.into_iter().all(same_release) {
            return Err(InstallError::ChangesRelease { epoch, durable });
        }
        self.history = history.clone();
        let mut cut: Vec<SegmentRecord> = self.recent.drain(keep..).collect();
        // The chain's records ascend, so the first one truncated speaks for all.
        let spared = cut.first().is_none_or(|first| first.link.span.end > durable);
        invariant!("nothing-durable-is-truncated", spared, "{:?} is not above {durable}", cut.first());
        self.held.retain(|_, record| {
            let keep = admitted(record);
            if !keep {
                cut.push(*record);
            }
            keep
        });
        self.connect_held();
        Ok(Installed { changed: true, cut })
    }

    /// Notes that everything up to `point` is durable, as the writer of `epoch` (or a peer whose history ends
    /// with `epoch`) says. Returns whether that is news.
    ///
    /// A claim of an epoch this segment has not installed is ignored: records here that a recovery truncated could
    /// otherwise pass for durable. So is every claim between a fence and the installation that follows it: what
    /// the summary told the recovery must stay true, or the caller could drop records it is about to ask for.
    pub fn observe_durable(&mut self, epoch: VolumeEpoch, point: DurablePoint) -> bool {
        let newest = self.history.newest_epoch();
        let fenced = self.promised.epoch > newest;
        if fenced || epoch > newest || point.volume.end <= self.known_durable.volume.end {
            return false;
        }
        self.known_durable = point;
        while let Some(first) = self.recent.front() {
            if first.link.span.end > point.volume.end {
                break;
            }
            self.floor = first.link.span;
            self.recent.pop_front();
        }
        self.assert_consistent();
        true
    }

    /// Notes the lowest position anyone may still read at; it never falls. Returns whether it rose.
    pub fn observe_minimum_read_point(&mut self, epoch: VolumeEpoch, point: Lsn) -> bool {
        let newest = self.history.newest_epoch();
        if self.promised.epoch > newest || epoch > newest || point <= self.minimum_read_point {
            return false;
        }
        self.minimum_read_point = point;
        true
    }

    /// The highest position at which this segment has every record of its group.
    ///
    /// More than SCL when the volume went on without this group: complete to the group's last record as of
    /// the known durable position means complete to that position.
    #[must_use]
    pub fn readable_through(&self) -> Lsn {
        if self.standing != Standing::Full {
            return Lsn::ZERO;
        }
        let complete = self.segment_complete_lsn();
        if complete >= self.known_durable.group_tail {
            complete.max(self.known_durable.volume.end)
        } else {
            complete
        }
    }

    /// Whether a reader may read at this point here: the one rule for reads, of nodes and of the simulator.
    ///
    /// # Errors
    /// If the segment does not have exactly the versions of the reader's stream as of that LSN, or is promised to a
    /// newer writer: a fenced instance must not go on reading what the new one is about to change.
    pub fn check_read(&self, at: ReadPoint) -> Result<(), ReadRefusal> {
        let ReadPoint { epoch, lsn } = at;
        if epoch > VolumeEpoch(0) && epoch < self.promised.epoch {
            return Err(Fenced { current: self.promised }.into());
        }
        let known = self.history.newest_epoch();
        if known < epoch {
            return Err(ReadRefusal::HistoryBehind { wanted: epoch, known });
        }
        let (from, through) = (self.minimum_read_point, self.readable_through());
        if lsn > through || self.standing != Standing::Full {
            return Err(ReadRefusal::Behind { from, through });
        }
        if lsn < from {
            return Err(ReadRefusal::TooOld { from, through });
        }
        Ok(())
    }

    /// [`Segment::check_read`], in the words of the protocol.
    ///
    /// # Errors
    /// What to answer the reader.
    pub fn permit_read(&self, at: ReadPoint) -> Result<(), Refusal> {
        self.check_read(at).map_err(|refusal| match refusal {
            ReadRefusal::Fenced(fenced) => Refusal::Fenced(fenced.current.epoch),
            ReadRefusal::HistoryBehind { wanted, known } => {
                Refusal::HistoryBehind { group: self.group, wanted, known }
            }
            ReadRefusal::Behind { from, through } | ReadRefusal::TooOld { from, through } => {
                Refusal::NotReadable { asked: at.lsn, from, through }
            }
        })
    }

    /// What this segment knows it lacks, if anything. A joining segment lacks everything before its base, which nobody's
    /// log reaches: it does not ask for records before it has one.
    #[must_use]
    pub fn gap(&self) -> Option<Gap> {
        if self.standing != Standing::Full {
            return None;
        }
        let after = self.segment_complete_lsn();
        let through = match self.held.first_key_value() {
            Some((&first, _)) => first,
            None => self.known_durable.group_tail,
        };
        (through > after).then_some(Gap { after, through })
    }

    /// What to take from a peer of the same group, given what it says about itself.
    #[must_use]
    pub fn plan_gossip(&self, peer: &SegmentSummary) -> GossipPlan {
        if peer.group != self.group {
            return GossipPlan::default();
        }
        let theirs = peer.history.newest_epoch();
        let ours = self.history.newest_epoch();
        let install_history = theirs > ours;
        if install_history && theirs < self.promised.epoch {
            // Its records may be of a stream that the recovery we are promised to will truncate or keep; wait for it.
            return GossipPlan::default();
        }
        let after = self.segment_complete_lsn();
        let through = match self.gap() {
            Some(gap) => gap.through,
            None => peer.complete.end,
        };
        let may_ask = self.standing == Standing::Full && peer.complete.end > after && through > after;
        let ask = may_ask.then_some(Gap { after, through });
        GossipPlan {
            install_history,
            observe_durable: peer.known_durable.volume.end > self.known_durable.volume.end,
            ask,
        }
    }

    /// The state to store in a checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> SegmentCheckpoint {
        self.assert_consistent();
        SegmentCheckpoint {
            summary: SegmentSummary { complete: self.chain_end(), ..self.summary() },
            membership: self.membership.clone(),
            standing: self.standing,
            floor: self.floor,
            recent: self.recent.iter().copied().collect(),
            held: self.held.values().copied().collect(),
        }
    }

    /// The segment a checkpoint describes.
    ///
    /// # Errors
    /// If the checkpoint contradicts itself.
    pub fn restore(checkpoint: SegmentCheckpoint) -> Result<Segment, CheckpointError> {
        let SegmentCheckpoint { summary, membership, standing, floor, recent, held } = checkpoint;
        if summary.promised.epoch < summary.history.newest_epoch() {
            return Err(CheckpointError("the promise is older than the history"));
        }
        let durable = summary.known_durable.volume.end;
        if floor.end > durable {
            return Err(CheckpointError("the floor is above the durable position"));
        }
        let in_history = |record: &SegmentRecord| {
            record.epoch <= summary.history.newest_epoch()
                && summary.history.admits(record.epoch, record.link.span.end)
                && record.link.previous_end <= record.link.span.start
                && record.link.span.start < record.link.span.end
        };
        let mut complete = floor;
        for record in &recent {
            let span = record.link.span;
            if record.link.previous_end != complete.end || !in_history(record) || span.end <= durable {
                return Err(CheckpointError("the chain is broken"));
            }
            complete = span;
        }
        if complete != summary.complete {
            return Err(CheckpointError("the chain does not end at the segment complete LSN"));
        }
        let mut last_end = complete.end;
        for (position, record) in held.iter().enumerate() {
            let connects = position == 0 && record.link.previous_end == complete.end;
            if record.link.previous_end < last_end || connects || !in_history(record) {
                return Err(CheckpointError("the held records are not in order"));
            }
            last_end = record.link.span.end;
        }
        let segment = Segment {
            group: summary.group,
            promised: summary.promised,
            history: summary.history,
            known_durable: summary.known_durable,
            minimum_read_point: summary.minimum_read_point,
            floor,
            recent: recent.into(),
            held: held.into_iter().map(|record| (record.link.previous_end, record)).collect(),
            membership,
            standing,
        };
        // Everything above was checked and refused if it is wrong; this says that the checks were complete.
        segment.assert_consistent();
        Ok(segment)
    }
}

/// Whether two histories have the same openings below a position that is known to be durable: a record after each of
/// them is durable, so its writer's recovery completed, and every later history continues it.
pub(crate) fn same_openings_below(a: &EpochHistory, b: &EpochHistory, durable: Lsn) -> bool {
    let below =
        |history: &EpochHistory| history.openings().partition_point(|opening| opening.last.end < durable);
    a.openings()[..below(a)] == b.openings()[..below(b)]
}
