//! A simulated storage node: real segments over a log that loses what was not synced.

mod gossip;
pub mod lies;
mod lines;
mod membership;
mod pieces;
mod recovery;
mod refill;
mod state;

use std::collections::BTreeMap;
use std::rc::Rc;

use borealis_quorum::DurablePoint;
use borealis_quorum::corroboration::Corroboration;
use borealis_quorum::evidence::Claims;
use borealis_quorum::membership::{GroupMembership, MembershipState};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::segment::{
    InstallError, Offer, Segment, SegmentCheckpoint, SegmentSummary, Source, Standing,
};
use borealis_types::{
    EpochHistory, GroupId, Lsn, MembershipEpoch, NodeId, ReadPoint, ServerVersion, VolumeEpoch, WriterId,
};
use borealis_wire::{Caller, Reply, SegmentProgress};

use self::lies::Lie;
use self::refill::{Kept, Refill};
use self::state::{Entry, Records, State, checkpoint_of};
use crate::message::{Host, LineId, Message, SimRecord, durable_point};
use crate::random::Random;
use crate::{Coverage, Defect};

/// How many records one answer carries at most.
const PAGE_RECORDS: usize = 8;

/// A storage node.
#[derive(Debug)]
pub struct SimNode {
    /// Its number.
    pub id: NodeId,
    /// Whether it runs.
    pub running: bool,
    /// Raised with every crash: timers of earlier lives are void.
    pub life: u64,
    /// Whether a sync is under way.
    pub syncing: bool,
    defect: Defect,
    state: State,
    /// What is durable, kept beside the log so that the oracle can look at it at any time.
    durable: State,
    /// The durable state the log continues from.
    checkpoint: (Vec<SegmentCheckpoint>, Vec<Records>),
    log: Vec<Entry>,
    synced: usize,
    /// Answers that wait until this much of the log is synced.
    answers: Vec<(usize, Host, Message)>,
    /// Open connections. Writers among them hear of progress they did not cause.
    lines: BTreeMap<LineId, (Host, Caller)>,
    /// What was last heard of each other node's segments, in group order.
    claims: Vec<Claims>,
    /// What it keeps of each group, and for whom, in group order.
    kept: Vec<Kept>,
    /// What it brings from peers, in group order.
    refills: Vec<Option<Refill>>,
    /// Records that peers sent and that nobody has confirmed, in group order.
    unconfirmed: Vec<Corroboration<Rc<SimRecord>>>,
    /// What each other node last said of a group's memberships, in group order.
    membership_claims: Vec<BTreeMap<NodeId, MembershipState>>,
    /// How it lies to its peers and to recoveries, if it does.
    pub lie: Option<Lie>,
}

/// What a node does in answer to something.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages to send now.
    pub send: Vec<(Host, Message)>,
    /// Records newly stored, with the history they were stored under; the oracle checks them.
    pub stored: Vec<(GroupId, Rc<SimRecord>)>,
    /// Reads that were answered with a page.
    pub read: Vec<(GroupId, ReadPoint)>,
    /// Memberships that it acts on from now on.
    pub members: Vec<(GroupId, GroupMembership)>,
    /// A contradiction that a correct protocol rules out.
    pub impossible: Option<String>,
}

impl SimNode {
    /// An empty node with a segment of every group that it is a member of.
    #[must_use]
    pub fn new(id: NodeId, memberships: &[GroupMembership], defect: Defect) -> SimNode {
        let state = State::new(id, memberships);
        SimNode {
            id,
            running: true,
            life: 0,
            syncing: false,
            defect,
            durable: state.clone(),
            checkpoint: checkpoint_of(&state),
            state,
            log: Vec::new(),
            synced: 0,
            answers: Vec::new(),
            lines: BTreeMap::new(),
            claims: vec![Claims::new(); memberships.len()],
            kept: vec![Kept::default(); memberships.len()],
            refills: vec![None; memberships.len()],
            unconfirmed: vec![Corroboration::default(); memberships.len()],
            membership_claims: vec![BTreeMap::new(); memberships.len()],
            lie: None,
        }
    }

    /// A segment as the node sees it.
    #[must_use]
    pub fn segment(&self, group: GroupId) -> &Segment {
        &self.state.segments[usize::from(group.0)]
    }

    /// The records of a group as the node sees them.
    #[must_use]
    pub fn records(&self, group: GroupId) -> &Records {
        &self.state.records[usize::from(group.0)]
    }

    /// The release that this node would apply a record as.
    #[must_use]
    pub fn server_version(&self, group: GroupId, record: &SimRecord) -> Option<ServerVersion> {
        let (history, end) = (self.segment(group).history(), record.span.end);
        match self.defect {
            Defect::ReleaseBoundaryOffByOne => history.server_version_at(Lsn(end.0 + 1)),
            Defect::NewestReleaseForAll => history.newest().map(|newest| newest.server_version),
            Defect::FirstOfEqualOpeningsCounts => {
                let before = history.openings().iter().rev().find(|opening| opening.last.end < end)?.last.end;
                let mut openings = history.openings().iter();
                openings.find(|opening| opening.last.end == before).map(|opening| opening.server_version)
            }
            _ => history.server_version_at(end),
        }
    }

    /// Whether a record would survive a crash of this node now.
    #[must_use]
    pub fn has_durably(&self, group: GroupId, record: &SimRecord) -> bool {
        let records = &self.durable.records[usize::from(group.0)];
        records.get(&record.span.start).is_some_and(|known| known.content == record.content)
    }

    /// The same of a segment that counts.
    #[must_use]
    pub fn has_copy_durably(&self, group: GroupId, record: &SimRecord) -> bool {
        let segment = &self.durable.segments[usize::from(group.0)];
        segment.standing() == Standing::Full && self.has_durably(group, record)
    }

    /// What it stores of a group's memberships, durably.
    #[must_use]
    pub fn durable_membership(&self, group: GroupId) -> Option<&MembershipState> {
        self.durable.segments[usize::from(group.0)].membership()
    }

    /// SCL of a segment as it would be after a crash of this node now.
    #[must_use]
    pub fn durable_complete(&self, group: GroupId) -> Lsn {
        self.durable.segments[usize::from(group.0)].segment_complete_lsn()
    }

    /// A node with what this one has on disk, in the place of `replaced`, which is lost.
    #[must_use]
    pub fn copy_as(&self, replaced: &SimNode) -> SimNode {
        let durable = State { own: replaced.id, ..self.durable.clone() };
        let mut copy = SimNode {
            id: replaced.id,
            running: false,
            life: replaced.life + 1,
            syncing: false,
            defect: self.defect,
            state: durable.clone(),
            durable,
            checkpoint: self.checkpoint.clone(),
            log: self.log[..self.synced].to_vec(),
            synced: self.synced,
            answers: Vec::new(),
            lines: BTreeMap::new(),
            claims: vec![Claims::new(); self.claims.len()],
            kept: self.kept.iter().map(Kept::after_restart).collect(),
            refills: vec![None; self.refills.len()],
            unconfirmed: vec![Corroboration::default(); self.unconfirmed.len()],
            membership_claims: vec![BTreeMap::new(); self.claims.len()],
            lie: None,
        };
        copy.restart();
        copy
    }

    /// Whether there is anything to sync or anyone waiting for it.
    #[must_use]
    pub fn wants_sync(&self) -> bool {
        self.synced < self.log.len() || !self.answers.is_empty()
    }

    /// How much log there is: a sync that starts now covers it.
    #[must_use]
    pub fn log_position(&self) -> usize {
        self.log.len()
    }

    /// Everything up to `position` is durable; answers that waited for it leave.
    pub fn synced_to(&mut self, position: usize) -> Vec<(Host, Message)> {
        for entry in &self.log[self.synced.min(position)..position] {
            self.durable.apply(entry);
        }
        self.synced = self.synced.max(position);
        let mut ready = Vec::new();
        let synced = self.synced;
        self.answers.retain(|(wanted, host, message)| {
            if *wanted <= synced {
                ready.push((*host, message.clone()));
            }
            *wanted > synced
        });
        ready
    }

    /// Stores a checkpoint and starts a new log, if everything is synced.
    pub fn store_checkpoint(&mut self, coverage: &mut Coverage) -> bool {
        if self.synced < self.log.len() || !self.answers.is_empty() || self.log.is_empty() {
            return false;
        }
        self.checkpoint = checkpoint_of(&self.state);
        self.log.clear();
        self.synced = 0;
        self.collect(coverage);
        true
    }

    /// The machine dies. Of the entries not synced, some first ones may have reached the disk.
    pub fn crash(&mut self, random: &mut Random, coverage: &mut Coverage) {
        let unsynced = self.log.len() - self.synced;
        let survive = self.synced + random.below(unsynced as u64 + 1) as usize;
        coverage.add("log entries lost in a crash", (self.log.len() - survive) as u64);
        self.synced_to(survive);
        self.log.truncate(survive);
        self.answers.clear();
        self.lines.clear();
        self.claims.iter_mut().for_each(Claims::clear);
        self.kept.iter_mut().for_each(|kept| *kept = kept.after_restart());
        self.refills.iter_mut().for_each(|refill| *refill = None);
        self.unconfirmed.iter_mut().for_each(|unconfirmed| *unconfirmed = Corroboration::default());
        self.membership_claims.iter_mut().for_each(BTreeMap::clear);
        self.running = false;
        self.syncing = false;
        self.life += 1;
    }

    /// The machine starts again, from its checkpoint and log.
    ///
    /// # Panics
    /// If that does not give the state that was durable.
    pub fn restart(&mut self) {
        let (segments, records) = self.checkpoint.clone();
        let segments =
            segments.into_iter().map(|c| Segment::restore(c).expect("a segment restores its own state"));
        let mut state = State { own: self.id, segments: segments.collect(), records };
        for entry in &self.log {
            state.apply(entry);
        }
        assert_eq!(state.segments, self.durable.segments, "replay must give the same segments");
        self.state = state;
        self.running = true;
    }

    /// An answer that waits until everything logged so far is durable.
    fn answer(&mut self, to: Host, message: Message, effects: &mut Effects) {
        if self.defect == Defect::AcknowledgeBeforeSync {
            effects.send.push((to, message));
        } else {
            self.answers.push((self.log.len(), to, message));
        }
    }

    /// The state of every segment that is here.
    #[must_use]
    pub fn summaries(&self) -> Vec<SegmentSummary> {
        self.groups().map(|group| self.summary(group)).collect()
    }

    fn summary(&self, group: GroupId) -> SegmentSummary {
        let mut summary = self.segment(group).summary();
        // What a segment that does not know that it is joining would say.
        summary.joining &= self.defect != Defect::JoiningCounts;
        summary
    }

    /// What it says of itself to peers, true or not.
    #[must_use]
    pub fn told_summaries(&self) -> Vec<SegmentSummary> {
        self.summaries().into_iter().map(|summary| self.told(summary)).collect()
    }

    /// What it says of what it has on disk, which is what a copy of it would have, true or not.
    #[must_use]
    pub fn told_of_disk(&self) -> Vec<SegmentSummary> {
        self.durable.segments.iter().map(|segment| self.told(segment.summary())).collect()
    }

    fn told(&self, summary: SegmentSummary) -> SegmentSummary {
        match self.lie {
            Some(lie) => lie.told(summary),
            None => summary,
        }
    }

    /// The groups that have a segment here.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        let here = |segment: &&Segment| segment.standing() != Standing::Absent;
        let groups: Vec<GroupId> = self.state.segments.iter().filter(here).map(Segment::group).collect();
        groups.into_iter()
    }

    /// What the segment of a group knows of its members.
    fn members(&self, group: GroupId) -> Option<QuorumSets> {
        Some(QuorumSets::of(self.segment(group).membership()?.installed()))
    }

    fn segment_mut(&mut self, group: GroupId) -> &mut Segment {
        &mut self.state.segments[usize::from(group.0)]
    }

    fn offer(
        &mut self,
        group: GroupId,
        source: Source,
        record: &Rc<SimRecord>,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> Offer {
        let Some(link) = record.link(group) else { return Offer::Conflict };
        if self.segment(group).standing() == Standing::Absent {
            return Offer::Stale;
        }
        let offer = self.segment_mut(group).offer(source, record.epoch, link);
        if offer.must_persist() {
            self.log.push(Entry::Record(group, Rc::clone(record)));
            let known = self.state.records[usize::from(group.0)].insert(record.span.start, Rc::clone(record));
            if known.is_some() {
                effects.impossible =
                    Some(format!("node {} group {group}: {record:?} is applied twice", self.id));
            }
            effects.stored.push((group, Rc::clone(record)));
        }
        match offer {
            Offer::Complete => {}
            Offer::Held => coverage.count("records held for a predecessor"),
            Offer::Duplicate => coverage.count("duplicate records"),
            Offer::Stale => coverage.count("stale records refused"),
            Offer::NeedsHistory => coverage.count("records refused for want of history"),
            Offer::TooFarAhead => coverage.count("records too far ahead"),
            Offer::Conflict => {
                effects.impossible = Some(format!("node {} group {group}: conflict {record:?}", self.id));
            }
        }
        offer
    }

    fn install(
        &mut self,
        group: GroupId,
        writer: Option<WriterId>,
        history: &EpochHistory,
        durable: DurablePoint,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> Result<(), VolumeEpoch> {
        match self.segment_mut(group).install(writer, history, durable) {
            Ok(installed) => {
                if installed.changed {
                    self.log.push(Entry::Install(group, writer, history.clone(), durable));
                }
                coverage.add("records cut", installed.cut.len() as u64);
                self.state.forget(group, &installed.cut);
                Ok(())
            }
            Err(InstallError::Fenced(fenced)) => Err(fenced.current.epoch),
            Err(other) => {
                effects.impossible = Some(format!("node {} group {group}: {other}", self.id));
                Ok(())
            }
        }
    }

    fn observe(&mut self, group: GroupId, epoch: VolumeEpoch, point: DurablePoint) {
        if self.segment_mut(group).observe_durable(epoch, point) {
            self.log.push(Entry::Observe(group, epoch, point));
        }
    }

    /// Takes one message; an instance says with each which memberships it was made for, in group order: where it names none,
    /// the first.
    pub fn receive(
        &mut self,
        from: Host,
        message: Message,
        made_for: Option<&[Option<MembershipEpoch>]>,
        coverage: &mut Coverage,
    ) -> Effects {
        let mut effects = Effects::default();
        if made_for.is_some_and(|made_for| !self.is_for(from, &message, made_for, &mut effects, coverage)) {
            return effects;
        }
        match message {
            Message::Fence(promise) => self.fence(from, promise, &mut effects, coverage),
            Message::ReadTail { group, above } => {
                let records = &self.state.records[usize::from(group.0)];
                // A real node may have dropped what it applied up to its known durable position, so a
                // recovery must not depend on getting it.
                let floor = above.max(self.segment(group).known_durable().volume.end);
                let mut after: Vec<_> = records.values().filter(|r| r.span.end > floor).cloned().collect();
                let more = after.len() > PAGE_RECORDS;
                after.truncate(PAGE_RECORDS);
                if self.defect == Defect::TailsIgnored {
                    after.clear();
                }
                self.answer(from, Message::Tail { group, above, records: after, more }, &mut effects);
            }
            Message::Repair { group, promise, history, records } => {
                self.repair(from, group, promise, &history, &records, &mut effects, coverage);
            }
            Message::Install { promise, history, tails } => {
                let last = history.newest().expect("an installed history is not empty").last;
                let mut result = Ok(());
                for group in self.groups() {
                    let point = durable_point(last, &tails, group);
                    let one =
                        self.install(group, Some(promise.writer), &history, point, &mut effects, coverage);
                    result = result.and(one);
                }
                let answer = match result {
                    Ok(()) => Message::Installed(promise.epoch),
                    Err(current) => Message::Refused(current),
                };
                self.answer(from, answer, &mut effects);
            }
            Message::Line(line, content) => {
                if let Err(what) = self.receive_on_line(from, line, content, &mut effects, coverage) {
                    effects.impossible = Some(format!("node {}: {what}", self.id));
                }
            }
            Message::GossipSummary(summaries) => self.gossip(from, &summaries, &mut effects, coverage),
            Message::GossipAsk(group, gap, durable) => self.give_log(from, group, gap, durable, &mut effects),
            Message::Membership(group, request) => self.take_membership(from, group, &request, &mut effects),
            Message::GossipMembership(claims) => {
                self.gossip_membership(from, claims, &mut effects, coverage);
            }
            Message::AskBase(group) => self.give_base(from, group, &mut effects),
            Message::Base { group, epoch, point, records } => {
                self.take_base(group, epoch, point, records, &mut effects, coverage);
            }
            Message::GossipRecords(group, durable, records) => {
                self.take_from_peer(from, (group, durable), records, &mut effects, coverage);
            }
            Message::RefillAsk { group, at, part } => {
                self.give_part(from, (group, at, part), &mut effects, coverage);
            }
            Message::RefillPart { group, lsn, part, records } => {
                self.take_part((group, lsn, part), records, &mut effects, coverage);
            }
            Message::RefillGone(group, lsn) => self.begin_refill_again(group, lsn, coverage),
            other => effects.impossible = Some(format!("node {} got {other:?}", self.id)),
        }
        effects
    }

    /// Tells connected writers that a segment got further through its peers: only the writer it serves.
    fn push_progress(&mut self, group: GroupId, effects: &mut Effects, coverage: &mut Coverage) {
        for (line, (host, caller)) in self.lines.clone() {
            let Caller::Writer { epoch, .. } = caller else { continue };
            let segment = self.segment(group);
            let segment_complete_lsn = segment.segment_complete_lsn();
            let serves = segment.acknowledgement() == Some((epoch, segment_complete_lsn));
            if serves || self.defect == Defect::ProgressToFencedWriter {
                coverage.count("progress pushed to a writer");
                let progress = vec![SegmentProgress { group, segment_complete_lsn }];
                self.reply(host, line, 0, Reply::Progress(progress), effects);
            }
        }
    }
}
