//! What a simulated node takes from its peers: the product's rules of evidence decide.

use std::rc::Rc;

use borealis_quorum::DurablePoint;
use borealis_quorum::evidence::{credible_durable, credible_history};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::segment::{Gap, SegmentSummary, Source, Standing};
use borealis_types::{GroupId, Lsn};

use super::{Effects, PAGE_RECORDS, SimNode};
use crate::message::{Host, Message, SimRecord};
use crate::{Coverage, Defect};

impl SimNode {
    pub(super) fn gossip(
        &mut self,
        from: Host,
        summaries: &[SegmentSummary],
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let Host::Node(peer) = from else { return };
        for summary in summaries {
            let group = summary.group;
            let Some(members) = self.members(group) else { continue };
            if self.segment(group).standing() == Standing::Absent {
                continue;
            }
            self.claims[usize::from(group.0)].insert(peer, summary.clone());
            let plan = self.segment(group).plan_gossip(summary);
            if plan.install_history {
                self.install_if_credible(summary, &members, effects, coverage);
            }
            if plan.observe_durable {
                let (segment, claims) = (self.segment(group), &self.claims[usize::from(group.0)]);
                let epoch = segment.history().newest_epoch();
                let point = match self.defect {
                    Defect::DurableOnOneWord => Some(summary.known_durable),
                    _ => credible_durable(&members, self.id, segment, claims),
                };
                match point {
                    Some(point) => {
                        coverage.count("durable points learned from peers");
                        self.observe(group, epoch, point);
                    }
                    None => coverage.count("durable points of peers without proof"),
                }
            }
            if let Some(gap) = plan.ask {
                let durable = self.segment(group).known_durable().group_tail;
                effects.send.push((from, Message::GossipAsk(group, gap, durable)));
            }
        }
    }

    /// Gives a peer what the log has of what it lacks.
    pub(super) fn give_log(
        &mut self,
        from: Host,
        group: GroupId,
        gap: Gap,
        durable: Lsn,
        effects: &mut Effects,
    ) {
        let after = gap.after.max(self.log_kept_from(group));
        let range = |r: &&Rc<SimRecord>| r.span.end > after && r.span.end <= gap.through;
        let sent = |record: &Rc<SimRecord>| match self.lie {
            Some(lie) if record.span.end > durable => lie.sent(record),
            _ => Rc::clone(record),
        };
        let found = self.records(group).values().filter(range).take(PAGE_RECORDS).map(sent).collect();
        // Only durable bytes leave a node.
        self.answer(from, Message::GossipRecords(group, durable, found), effects);
    }

    /// Of the records that a peer sends, those that this node takes: what it knew to be durable when it asked, and what two
    /// peers send.
    pub(super) fn believed(
        &mut self,
        from: Host,
        group: GroupId,
        durable: Lsn,
        records: Vec<Rc<SimRecord>>,
        coverage: &mut Coverage,
    ) -> Vec<Rc<SimRecord>> {
        let Host::Node(peer) = from else { return Vec::new() };
        if self.defect == Defect::RecordsOnOneWord {
            return records;
        }
        let beyond = records.iter().filter(|record| record.span.end > durable);
        let beyond = beyond.map(|record| (record.span.start, Rc::clone(record))).collect();
        let confirmed = self.unconfirmed[usize::from(group.0)].confirm(peer, beyond);
        coverage.add("records confirmed by a second peer", confirmed.len() as u64);
        let (believed, left): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.span.end <= durable || confirmed.contains(&record.span.start));
        coverage.add("records of one peer left", left.len() as u64);
        believed
    }

    pub(super) fn take_from_peer(
        &mut self,
        from: Host,
        (group, durable): (GroupId, Lsn),
        records: Vec<Rc<SimRecord>>,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let before = self.segment(group).segment_complete_lsn();
        for mut record in self.believed(from, group, durable, records, coverage) {
            if self.defect == Defect::GossipIgnoresHistory {
                let epoch = self.segment(group).history().newest_epoch();
                record = Rc::new(SimRecord { epoch, ..(*record).clone() });
            }
            if self.offer(group, Source::Peer, &record, effects, coverage).must_persist() {
                coverage.count("records taken from peers");
            }
        }
        if self.segment(group).segment_complete_lsn() > before {
            self.push_progress(group, effects, coverage);
        } else {
            self.refill_from(from, group, effects, coverage);
        }
    }

    fn install_if_credible(
        &mut self,
        summary: &SegmentSummary,
        members: &QuorumSets,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let group = summary.group;
        let (segment, claims) = (self.segment(group), &self.claims[usize::from(group.0)]);
        let history = match self.defect {
            Defect::HistoryOnOneWord => Some(summary.history.clone()),
            _ => credible_history(members, self.id, segment, claims),
        };
        let Some(history) = history else {
            return coverage.count("histories of peers without proof");
        };
        coverage.count("histories learned from peers");
        if self.install(group, None, &history, DurablePoint::default(), effects, coverage).is_err() {
            effects.impossible = Some(format!("node {} planned a fenced history", self.id));
        }
    }
}
