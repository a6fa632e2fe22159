//! What a simulated node takes from its peers: the product's rules of evidence decide.

use std::rc::Rc;

use borealis_quorum::DurablePoint;
use borealis_quorum::evidence::{credible_durable, credible_history};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::segment::{SegmentSummary, Source, Standing};
use borealis_types::GroupId;

use super::{Effects, SimNode};
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
                effects.send.push((from, Message::GossipAsk(group, gap)));
            }
        }
    }

    pub(super) fn take_from_peer(
        &mut self,
        group: GroupId,
        records: Vec<Rc<SimRecord>>,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let before = self.segment(group).segment_complete_lsn();
        for mut record in records {
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
