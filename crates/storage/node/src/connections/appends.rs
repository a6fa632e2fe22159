//! Appends take the shortest way there is: the connection's own thread reads the frame, appends it, makes it durable and
//! acknowledges it, without handing it to anyone. Frames that have already arrived are appended together before one
//! sync, so a busy connection shares the cost of the disk among them; nothing ever waits for more frames to come.

use std::sync::Arc;
use std::time::Instant;

use borealis_quorum::Promise;
use borealis_store::{Origin, Sequence, Store, StoreError};
use borealis_types::{GroupId, GroupSet, MembershipEpoch, invariant};
use borealis_wire::{Caller, Refusal, Reply, SegmentProgress};

use crate::catch_up::{Known, has_hole};
use crate::durability::assert_durable;
use crate::materializer::Materializer;
use crate::members::Members;
use crate::metrics::{Metrics, add};
use crate::refusals::Refusals;

/// Appends that share one sync stop being collected beyond this, so that the first of them is not kept waiting.
const GROUPED_APPEND_BYTES: usize = 8 << 20;

/// What an append needs, and whom it concerns.
#[derive(Debug)]
pub(crate) struct AppendPath {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Arc<Refusals>,
    /// Woken when an append shows that something is missing here.
    pub(crate) known: Arc<Known>,
    pub(crate) members: Arc<Members>,
    pub(crate) materializer: Arc<Materializer>,
}

/// An append that was taken but is not durable yet.
struct PendingAppend {
    request_id: u64,
    received: Instant,
    /// The sync that must return before it is acknowledged; `None` if it was refused.
    sequence: Option<Sequence>,
    outcome: Result<Vec<SegmentProgress>, Refusal>,
}

/// Appends that were answered; their replies are on their way.
#[must_use]
pub(super) struct Answered {
    received: Vec<Instant>,
    appended_bytes: usize,
    /// The groups that the appends concern.
    concerned: GroupSet,
}

/// The appends of one caller.
pub(super) struct Appends<'a> {
    path: &'a AppendPath,
    caller: Caller,
    /// The memberships that the caller knows.
    made_for: &'a [(GroupId, MembershipEpoch)],
    /// In the order they came, all answered after one sync to `sequence`.
    pending: Vec<PendingAppend>,
    pending_bytes: usize,
    sequence: Option<Sequence>,
    /// The groups that the pending appends concern.
    concerned: GroupSet,
}

impl<'a> Appends<'a> {
    pub(super) fn new(
        path: &'a AppendPath,
        caller: Caller,
        made_for: &'a [(GroupId, MembershipEpoch)],
    ) -> Appends<'a> {
        Appends {
            path,
            caller,
            made_for,
            pending: Vec::new(),
            pending_bytes: 0,
            sequence: None,
            concerned: GroupSet::EMPTY,
        }
    }

    /// Whether none waits for its answer.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether those that wait may not wait for more.
    pub(super) fn is_full(&self) -> bool {
        self.pending_bytes >= GROUPED_APPEND_BYTES
    }

    /// Takes an append. It is answered by the next [`Appends::answer`].
    pub(super) fn take(&mut self, request_id: u64, batch: &[u8], received: Instant) {
        let metrics = &self.path.metrics;
        add(&metrics.append_frames, 1);
        add(&metrics.append_bytes, batch.len() as u64);
        let appended = match self.caller {
            Caller::Writer { epoch, writer } => self.append(batch, Promise { epoch, writer }),
            Caller::Client
            | Caller::Reader { .. }
            | Caller::Peer(_)
            | Caller::Recovery
            | Caller::Controller => {
                Err(Refusal::Misuse("only a writer may append; say so in the introduction".to_owned()))
            }
        };
        let (sequence, outcome) = match appended {
            Ok((sequence, progress)) => (Some(sequence), Ok(progress)),
            Err(refusal) => (None, Err(refusal)),
        };
        self.sequence = self.sequence.max(sequence);
        self.pending_bytes += batch.len();
        self.pending.push(PendingAppend { request_id, received, sequence, outcome });
    }

    fn append(
        &mut self,
        batch: &[u8],
        promise: Promise,
    ) -> Result<(Sequence, Vec<SegmentProgress>), Refusal> {
        match self.path.store.append(batch, Origin::Writer(promise), self.made_for) {
            Ok(appended) => {
                self.concerned =
                    appended.progress.iter().fold(self.concerned, |set, moved| set.with(moved.group));
                Ok((appended.sequence, appended.progress))
            }
            Err(error) => {
                if matches!(error, StoreError::NeedsHistory { .. }) {
                    // A peer has it, if the writer does not bring it itself.
                    self.path.known.wake();
                }
                Err(self.path.members.refusal(&error, &self.path.refusals))
            }
        }
    }

    /// Makes the pending appends durable and answers them in order.
    pub(super) fn answer(&mut self, mut reply: impl FnMut(u64, &Reply)) -> Answered {
        let metrics = &self.path.metrics;
        let sequence = self.sequence.take();
        let synced = match sequence {
            Some(sequence) => {
                add(&metrics.append_syncs, 1);
                self.path.store.sync(sequence).map_err(|error| self.path.refusals.of(&error))
            }
            None => Ok(()),
        };
        let mut received = Vec::with_capacity(self.pending.len());
        for pending in std::mem::take(&mut self.pending) {
            // A failed sync says nothing about which entries are safe, so it fails every append that waited for it.
            let answer = match (pending.outcome, &synced) {
                (Ok(progress), Ok(())) => {
                    assert_durable(pending.sequence, sequence);
                    Reply::Appended(progress)
                }
                (Ok(_), Err(refusal)) => Reply::Refused(refusal.clone()),
                (Err(refusal), _) => Reply::Refused(refusal),
            };
            if matches!(answer, Reply::Refused(_)) {
                add(&metrics.append_refused, 1);
            }
            received.push(pending.received);
            reply(pending.request_id, &answer);
        }
        Answered {
            received,
            appended_bytes: std::mem::take(&mut self.pending_bytes),
            concerned: std::mem::take(&mut self.concerned),
        }
    }

    /// What remains to be done once the replies were sent, so that no caller waits for it.
    pub(super) fn after_replies(&self, answered: Answered) {
        for received in answered.received {
            self.path.metrics.acknowledgements.record(received.elapsed());
        }
        let has_hole = |group| self.path.store.with_segment(group, has_hole);
        if answered.concerned.iter().any(|group| has_hole(group).unwrap_or(false)) {
            self.path.known.wake();
        }
        self.path.materializer.note_appended(answered.appended_bytes);
    }

    /// Before a request of another kind is answered: answers keep the order of the requests.
    pub(super) fn assert_none_pending(&self) {
        invariant!(
            "answers-keep-the-order-of-requests",
            self.pending.is_empty(),
            "{} appends came earlier and are not answered",
            self.pending.len()
        );
    }
}
