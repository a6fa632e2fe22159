//! What a simulated node does for a recovery: it promises, and takes what it lacks.

use std::rc::Rc;

use borealis_quorum::Promise;
use borealis_quorum::segment::{Offer, Source};
use borealis_types::{EpochHistory, GroupId, VolumeEpoch};
use borealis_wire::{Caller, Refusal, Reply};

use super::{Effects, Entry, SimNode};
use crate::message::{Host, Message, SimRecord};
use crate::{Coverage, Defect};

impl SimNode {
    pub(super) fn fence(
        &mut self,
        from: Host,
        promise: Promise,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let mut summaries = Vec::new();
        let mut refused = None;
        for group in self.groups() {
            let before = self.segment(group).clone();
            match self.segment_mut(group).fence(promise) {
                Ok(_) => {
                    summaries.push(self.told(self.summary(group)));
                    if self.defect == Defect::NoFence {
                        *self.segment_mut(group) = before;
                    } else if *self.segment(group) != before {
                        self.log.push(Entry::Fence(group, promise));
                    }
                }
                Err(fenced) => refused = refused.max(Some(fenced.current.epoch)),
            }
        }
        if refused.is_none() {
            self.tell_fenced(promise.epoch, effects, coverage);
        }
        let answer = match refused {
            None => Message::Fenced(summaries),
            Some(current) => {
                coverage.count("fences refused");
                Message::Refused(current)
            }
        };
        self.answer(from, answer, effects);
    }

    /// Tells connected writers of older epochs, unasked.
    fn tell_fenced(&mut self, promised: VolumeEpoch, effects: &mut Effects, coverage: &mut Coverage) {
        for (line, (host, caller)) in self.lines.clone() {
            if matches!(caller, Caller::Writer { epoch, .. } if epoch < promised) {
                coverage.count("writers told of a fence");
                self.reply(host, line, 0, Reply::Refused(Refusal::Fenced(promised)), effects);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message, and where results go")]
    pub(super) fn repair(
        &mut self,
        from: Host,
        group: GroupId,
        promise: Promise,
        history: &EpochHistory,
        records: &[Rc<SimRecord>],
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        match self.segment_mut(group).adopt_for_recovery(promise, history) {
            Ok(adopted) => {
                if adopted.changed {
                    self.log.push(Entry::Adopt(group, promise, history.clone()));
                    coverage.count("histories adopted for a repair");
                }
                coverage.add("records cut", adopted.cut.len() as u64);
                self.state.forget(group, &adopted.cut);
            }
            // A repeated repair that arrives after the installation: the recovery has its answer already.
            Err(_) => {
                return self.answer(from, Message::Refused(self.segment(group).promise().epoch), effects);
            }
        }
        if self.defect != Defect::NoRepair {
            for record in records {
                coverage.count("records repaired");
                let offer = self.offer(group, Source::Recovery, record, effects, coverage);
                if !offer.must_persist() && offer != Offer::Duplicate {
                    effects.impossible = Some(format!("node {} refused a repair: {offer:?}", self.id));
                }
            }
        }
        self.answer(from, Message::Repaired(group), effects);
    }
}
