//! A simulated node and the memberships of its groups: what it refuses, what it learns, how a segment joins.

use std::collections::BTreeMap;
use std::rc::Rc;

use borealis_quorum::DurablePoint;
use borealis_quorum::membership::{
    Accepted, Answer, Ballot, GroupMembership, MembershipState, Request, credible_membership,
};
use borealis_quorum::segment::{OtherMembership, Segment, SegmentSummary, Standing};
use borealis_types::{GroupId, MembershipEpoch, NodeId, ReadPoint, VolumeEpoch};

use super::lies::Lie;
use super::{Effects, Entry, Records, SimNode, State};
use crate::message::{Host, Message, OnLine, SimRecord};
use crate::random::Random;
use crate::{Coverage, Defect};

impl State {
    /// Applies an entry about memberships that was accepted when it was written.
    pub(super) fn apply_membership(&mut self, entry: &Entry) {
        match entry {
            Entry::Prepare(group, installed, ballot) => {
                self.segments[usize::from(group.0)].prepare_membership(*installed, *ballot);
            }
            Entry::Accept(group, proposed) => {
                self.segments[usize::from(group.0)]
                    .accept_membership(proposed)
                    .expect("it was accepted before");
            }
            Entry::Members(group, membership) => self.install_members(*group, membership),
            Entry::Base(group, epoch, point, records) => {
                let segment = &mut self.segments[usize::from(group.0)];
                let contained = segment.take_base(*epoch, *point).expect("it was taken before");
                self.forget(*group, &contained);
                let all = &mut self.records[usize::from(group.0)];
                all.extend(records.iter().map(|record| (record.span.start, Rc::clone(record))));
            }
            _ => {}
        }
    }

    fn install_members(&mut self, group: GroupId, membership: &GroupMembership) {
        let segment = &mut self.segments[usize::from(group.0)];
        let installed = segment.install_membership(self.own, membership).expect("one membership per epoch");
        if installed.left {
            self.records[usize::from(group.0)] = Records::new();
        }
    }
}

impl SimNode {
    /// Whether what an instance asks was made for the memberships of the groups here; if not, it is told, or this node has
    /// to learn first.
    pub(super) fn is_for(
        &mut self,
        from: Host,
        message: &Message,
        made_for: &[Option<MembershipEpoch>],
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> bool {
        if self.defect == Defect::OlderMembershipServed {
            return true;
        }
        let mut newer = Vec::new();
        let mut unlearned = false;
        for segment in &self.state.segments {
            let group = segment.group();
            let named = made_for.get(usize::from(group.0)).copied().flatten();
            if named.is_none() && self.defect == Defect::UnnamedMembershipServed {
                continue;
            }
            let checked = segment.check_membership(named.unwrap_or(MembershipEpoch(1)));
            if named.is_none() && checked.is_err() {
                coverage.count("requests without a membership refused");
            }
            match checked {
                Err(OtherMembership::Newer(_)) => newer.push((group, self.told_membership(group))),
                Err(OtherMembership::NotLearned) => unlearned |= segment.standing() != Standing::Absent,
                Ok(()) => {}
            }
        }
        if newer.is_empty() && !unlearned {
            return true;
        }
        if let Message::Fence(promise) | Message::Install { promise, .. } | Message::Repair { promise, .. } =
            message
        {
            let newest = self.groups().map(|group| self.segment(group).promise().epoch).max();
            if let Some(current) = newest.filter(|newest| *newest > promise.epoch) {
                // Whoever is fenced hears that first: it need not learn where to go on.
                self.answer(from, Message::Refused(current), effects);
                return false;
            }
        }
        coverage.count(if unlearned {
            "requests for memberships not learned yet"
        } else {
            "requests for older memberships refused"
        });
        let told: Vec<(GroupId, MembershipState)> =
            newer.into_iter().filter_map(|(group, state)| Some((group, state?))).collect();
        // What is told must be what is stored: the synced state decides.
        self.answer(from, Message::OlderMembership(told), effects);
        if let Message::Line(line, content) = message {
            self.lines.remove(line);
            if !matches!(content, OnLine::Closed) {
                self.answer(from, Message::Line(*line, OnLine::Closed), effects);
            }
        }
        false
    }

    /// Its segments, for the message of a run that does not end.
    #[must_use]
    pub fn in_words(&self, lost: bool) -> String {
        let in_words = |segment: &Segment| {
            let SegmentSummary { group, promised, history, complete, known_durable, .. } = segment.summary();
            let (newest, standing) = (history.newest_epoch(), segment.standing());
            let members =
                segment.membership().map(|state| (state.installed().epoch(), state.installed().sets()));
            format!(
                "\n  node {} (lost: {lost}) group {group}: {standing:?} {promised:?} {newest:?} {complete:?} \
                 {known_durable:?} {members:?}",
                self.id
            )
        };
        self.state.segments.iter().map(in_words).collect()
    }

    fn told_membership(&self, group: GroupId) -> Option<MembershipState> {
        let state = self.segment(group).membership()?.clone();
        Some(self.lie.map_or(state.clone(), |lie| lie.told_members(state)))
    }

    /// What it says of memberships to peers, true or not.
    #[must_use]
    pub fn told_memberships(&self) -> Vec<(GroupId, MembershipState)> {
        let groups = self.state.segments.iter().map(|segment| segment.group());
        groups.filter_map(|group| Some((group, self.told_membership(group)?))).collect()
    }

    /// Whom it talks to: the members of its groups, as it knows them.
    #[must_use]
    pub fn peers(&self) -> Vec<NodeId> {
        let states = self.state.segments.iter().filter_map(|segment| segment.membership());
        let mut peers: Vec<NodeId> = states.flat_map(|state| state.installed().members()).collect();
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|peer| *peer != self.id);
        peers
    }

    /// A joining segment of this node, if it has one, which asks for its base.
    #[must_use]
    pub fn joining_group(&self, random: &mut Random) -> Option<GroupId> {
        let joining: Vec<GroupId> =
            self.groups().filter(|group| self.segment(*group).standing() == Standing::Joining).collect();
        (!joining.is_empty()).then(|| joining[random.below(joining.len() as u64) as usize])
    }

    pub(super) fn take_membership(
        &mut self,
        from: Host,
        group: GroupId,
        request: &Request,
        effects: &mut Effects,
    ) {
        match request {
            Request::Ask => {}
            Request::Prepare { installed, ballot } => self.prepare_members(group, installed, *ballot),
            Request::Accept(proposed) => self.accept_members(group, proposed),
            Request::Install(membership) => self.install_members(group, membership, effects),
        }
        let here = self.segment(group).standing() != Standing::Absent;
        // That it has what it lacks, a controller would believe, as a writer believes an acknowledgement.
        let denies = self.lie == Some(Lie::RolledBack);
        let told = |summary| if denies { self.told(summary) } else { summary };
        let summary = here.then(|| told(self.summary(group)));
        let membership =
            self.segment(group).membership().cloned().map(|state| self.told_votes(state, request));
        self.answer(from, Message::MembershipAnswer(Answer { node: self.id, membership, summary }), effects);
    }

    /// What it tells a controller it stores, which is the truth unless something is broken on purpose.
    fn told_votes(&self, state: MembershipState, request: &Request) -> MembershipState {
        let Request::Prepare { installed, ballot } = request else { return state };
        let forgets = self.defect == Defect::AcceptedForgotten && state.promised() == *ballot;
        let pretends = self.defect == Defect::BallotIgnored && state.promised() < *ballot;
        if !(forgets || pretends) || state.installed() != installed {
            return state;
        }
        let mut promised = Segment::created(GroupId(0), installed.clone());
        promised.prepare_membership(installed.epoch(), *ballot);
        if let Some(accepted) = state.accepted().filter(|_| pretends) {
            promised = Segment::created(GroupId(0), installed.clone());
            promised.prepare_membership(installed.epoch(), accepted.ballot);
            let _ = promised.accept_membership(accepted);
            promised.prepare_membership(installed.epoch(), *ballot);
        }
        promised.membership().cloned().unwrap_or(state)
    }

    fn prepare_members(&mut self, group: GroupId, installed: &GroupMembership, ballot: Ballot) {
        let epoch = installed.epoch();
        if self.defect == Defect::BallotIgnored {
            return;
        }
        if self.segment_mut(group).prepare_membership(epoch, ballot) {
            self.log.push(Entry::Prepare(group, epoch, ballot));
        }
    }

    fn accept_members(&mut self, group: GroupId, proposed: &Accepted) {
        if self.segment_mut(group).accept_membership(proposed) == Ok(true) {
            self.log.push(Entry::Accept(group, proposed.clone()));
        }
    }

    fn install_members(&mut self, group: GroupId, membership: &GroupMembership, effects: &mut Effects) {
        let own = self.id;
        match self.segment_mut(group).install_membership(own, membership) {
            Ok(installed) => {
                if !installed.changed {
                    return;
                }
                self.log.push(Entry::Members(group, membership.clone()));
                if installed.left {
                    self.state.records[usize::from(group.0)] = Records::new();
                    self.claims[usize::from(group.0)].clear();
                }
                self.keep_for_members(group, membership, installed.left);
                effects.members.push((group, membership.clone()));
            }
            Err(contradiction) => {
                effects.impossible = Some(format!("node {own} group {group}: {contradiction}"));
            }
        }
    }

    pub(super) fn gossip_membership(
        &mut self,
        from: Host,
        claims: Vec<(GroupId, MembershipState)>,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let Host::Node(peer) = from else { return };
        let mut behind = Vec::new();
        for (group, claim) in claims {
            let own = self.segment(group).membership().cloned();
            let installed = own.as_ref().map(MembershipState::installed);
            if installed.is_some_and(|own| claim.installed().epoch() < own.epoch()) {
                behind.extend(self.told_membership(group).map(|told| (group, told)));
            }
            let known = &mut self.membership_claims[usize::from(group.0)];
            known.insert(peer, claim.clone());
            let mut with_own: BTreeMap<NodeId, MembershipState> = known.clone();
            with_own.extend(own.clone().map(|own| (self.id, own)));
            let newer = match self.defect {
                Defect::MembershipOnOneWord => Some(claim.installed().clone()),
                _ => credible_membership(installed, &with_own),
            };
            let is_news = |newer: &GroupMembership| match installed {
                Some(own) => newer.epoch() > own.epoch(),
                // Of a group that it never heard of, it wants to know only when it is a member.
                None => newer.contains(self.id),
            };
            match newer.filter(is_news) {
                Some(newer) => {
                    coverage.count("memberships learned from peers");
                    self.install_members(group, &newer, effects);
                }
                None if is_news(claim.installed()) => coverage.count("memberships of peers without proof"),
                None => {}
            }
        }
        if !behind.is_empty() {
            // Whoever is behind learns from those who know better.
            self.answer(from, Message::GossipMembership(behind), effects);
        }
    }

    /// Gives a joining peer everything as of the durable point that this node knows. In one message, where a refill has
    /// many: what is given needs no pin. Like any refill it is refused under a newer promise: a recovery that died may have left a
    /// point here that is of no completed epoch, and the next one may have put the history back to before it.
    pub(super) fn give_base(&mut self, from: Host, group: GroupId, effects: &mut Effects) {
        let segment = self.segment(group);
        let (point, epoch) = (segment.known_durable(), segment.history().newest_epoch());
        let at = ReadPoint { epoch, lsn: point.volume.end };
        if segment.permit_pinned_read(at, at.lsn).is_err() {
            return;
        }
        let of_base = |record: &&Rc<SimRecord>| record.span.end <= point.group_tail;
        let mut records: Vec<Rc<SimRecord>> = self.records(group).values().filter(of_base).cloned().collect();
        if self.defect == Defect::BaseIncomplete {
            records.pop();
        }
        self.answer(from, Message::Base { group, epoch, point, records }, effects);
    }

    pub(super) fn take_base(
        &mut self,
        group: GroupId,
        epoch: VolumeEpoch,
        point: DurablePoint,
        records: Vec<Rc<SimRecord>>,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        if self.segment(group).standing() != Standing::Joining {
            return;
        }
        match self.segment_mut(group).take_base(epoch, point) {
            Ok(contained) => {
                self.state.forget(group, &contained);
                let here = &mut self.state.records[usize::from(group.0)];
                here.extend(records.iter().map(|record| (record.span.start, Rc::clone(record))));
                self.log.push(Entry::Base(group, epoch, point, records));
                self.begin_log_at(group, point);
                coverage.count("segments that joined");
                self.push_progress(group, effects, coverage);
            }
            Err(_) => coverage.count("bases that came too early"),
        }
    }
}
