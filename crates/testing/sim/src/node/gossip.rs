//! What a simulated node takes from its peers: the product's rules of evidence decide.

use borealis_quorum::DurablePoint;
use borealis_quorum::evidence::{credible_durable, credible_history};
use borealis_quorum::segment::SegmentSummary;

use super::{Effects, SimNode};
use crate::message::{Host, Message};
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
            self.claims[usize::from(group.0)].insert(peer, summary.clone());
            let plan = self.segment(group).plan_gossip(summary);
            if plan.install_history {
                self.install_if_credible(summary, effects, coverage);
            }
            if plan.observe_durable {
                let (segment, claims) = (self.segment(group), &self.claims[usize::from(group.0)]);
                let epoch = segment.history().newest_epoch();
                let point = match self.defect {
                    Defect::DurableOnOneWord => Some(summary.known_durable),
                    _ => credible_durable(&self.members, self.id, segment, claims),
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

    fn install_if_credible(
        &mut self,
        summary: &SegmentSummary,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let group = summary.group;
        let (segment, claims) = (self.segment(group), &self.claims[usize::from(group.0)]);
        let history = match self.defect {
            Defect::HistoryOnOneWord => Some(summary.history.clone()),
            _ => credible_history(&self.members, self.id, segment, claims),
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
