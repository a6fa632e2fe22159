//! Storage nodes of tests: they speak the protocol, check whose connections name which membership, and keep no pages.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use borealis_types::membership::{GroupMembership, MembershipState};
use borealis_types::{
    AvailabilityZone, EpochHistory, GroupId, Lsn, MembershipEpoch, NodeId, PAGE_SIZE, RecordSpan,
    VolumeEpoch, WriterId,
};
use borealis_wire::message::{decode_payload, encode_message};
use borealis_wire::{
    BatchReader, Payload, Refusal, Reply, Request, SegmentProgress, SegmentSummary, Whereabouts, read_frame,
    write_frame,
};

/// The one group of the volume that these nodes are of.
pub(crate) const GROUP: GroupId = GroupId(0);

/// What a node is told to do, and what it did.
#[derive(Debug)]
pub(crate) struct State {
    /// What it stores of the group's memberships.
    pub(crate) membership: MembershipState,
    /// It has a segment of the group, which may still be joining.
    pub(crate) hosts: bool,
    pub(crate) joining: bool,
    /// Where it says that others are, in place of the truth.
    pub(crate) lies: Vec<Whereabouts>,
    /// It leaves requests for pages unanswered.
    pub(crate) is_silent: bool,
    /// What its segment holds.
    pub(crate) promised: (VolumeEpoch, WriterId),
    pub(crate) history: EpochHistory,
    pub(crate) complete: Lsn,
    durable: RecordSpan,
    /// Introductions that it refused for another membership.
    pub(crate) refused: u32,
    /// Pages that it was asked for.
    pub(crate) pages_asked: u32,
}

/// A node, for as long as it is kept.
pub(crate) struct FakeNode {
    pub(crate) node: NodeId,
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

impl FakeNode {
    /// Listens at the node's place in `folder`.
    pub(crate) fn start(folder: &Path, node: u16, membership: &GroupMembership) -> FakeNode {
        let listener = UnixListener::bind(folder.join(node.to_string())).expect("a free name");
        let state = Arc::new(Mutex::new(State {
            membership: MembershipState::new(membership.clone()),
            hosts: membership.contains(NodeId(node)),
            joining: false,
            lies: Vec::new(),
            is_silent: false,
            promised: (VolumeEpoch(0), WriterId(0)),
            history: EpochHistory::default(),
            complete: Lsn::ZERO,
            durable: RecordSpan::NONE,
            refused: 0,
            pages_asked: 0,
        }));
        let fake = FakeNode { node: NodeId(node), folder: folder.to_owned(), state };
        let accepting = fake.another();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = accepting.another();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        fake
    }

    fn another(&self) -> FakeNode {
        FakeNode { node: self.node, folder: self.folder.clone(), state: Arc::clone(&self.state) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on a membership from now on.
    pub(crate) fn install(&self, membership: &GroupMembership) {
        let mut state = self.state();
        state.membership.install(membership).expect("one membership for each epoch");
        state.hosts = membership.contains(self.node);
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut payload = Vec::new();
        let mut made_for = None;
        while let Ok(true) = read_frame(&mut stream, &mut payload) {
            let (request_id, replies) = match decode_payload::<Request>(&payload) {
                Ok(Payload::Append { request_id, batch }) => (request_id, self.append(batch, made_for)),
                Ok(Payload::Message { request_id, message }) => {
                    (request_id, self.answer(message, &mut made_for))
                }
                Err(error) => panic!("a request that is none: {error}"),
            };
            let is_over = matches!(replies, Some(Reply::Refused(Refusal::OtherMembership { .. })));
            let Some(reply) = replies else { continue };
            if write_frame(&mut stream, &encode_message(request_id, &reply)).is_err() || is_over {
                return;
            }
        }
    }

    /// The refusal of what was meant for another membership than the one here or the next.
    fn other_membership(&self, state: &mut State, made_for: Option<MembershipEpoch>) -> Option<Reply> {
        let (made_for, installed) = (made_for?, state.membership.installed());
        if (installed.epoch()..=MembershipEpoch(installed.epoch().0 + 1)).contains(&made_for) {
            return None;
        }
        let is_newer = installed.epoch() > made_for;
        let states = if is_newer { vec![(GROUP, state.membership.clone())] } else { Vec::new() };
        state.refused += 1;
        Some(Reply::Refused(Refusal::OtherMembership { states, nodes: self.whereabouts(state) }))
    }

    fn whereabouts(&self, state: &State) -> Vec<Whereabouts> {
        if !state.lies.is_empty() {
            return state.lies.clone();
        }
        let at = |node: NodeId| Whereabouts {
            node,
            zone: AvailabilityZone("az1".into()),
            address: self.folder.join(node.0.to_string()).display().to_string(),
        };
        state.membership.installed().members().into_iter().map(at).collect()
    }

    fn summaries(state: &State) -> Vec<SegmentSummary> {
        let summary = SegmentSummary {
            group: GROUP,
            promised_epoch: state.promised.0,
            promised_writer: state.promised.1,
            history: state.history.clone(),
            segment_complete_lsn: if state.joining { Lsn::ZERO } else { state.complete },
            known_durable: state.durable,
            known_durable_tail: state.durable.end,
            readable_through: state.complete,
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
            joining: state.joining,
            membership_epoch: state.membership.installed().epoch(),
        };
        if state.hosts { vec![summary] } else { Vec::new() }
    }

    fn append(&self, batch: &[u8], made_for: Option<MembershipEpoch>) -> Option<Reply> {
        let mut state = self.state();
        if let Some(refused) = self.other_membership(&mut state, made_for) {
            return Some(refused);
        }
        let (header, reader) = BatchReader::new(batch).expect("a batch");
        for record in reader {
            let record = record.expect("a record");
            if record.link(GROUP).is_some_and(|link| link.previous_end == state.complete) {
                state.complete = record.span.end;
            }
        }
        state.durable = header.durable;
        let complete = if state.joining { Lsn::ZERO } else { state.complete };
        Some(Reply::Appended(vec![SegmentProgress { group: GROUP, segment_complete_lsn: complete }]))
    }

    fn answer(&self, request: Request, made_for: &mut Option<MembershipEpoch>) -> Option<Reply> {
        let mut state = self.state();
        if let Request::Hello { memberships, node, .. } = &request {
            assert_eq!(*node, self.node, "another node was meant");
            *made_for = memberships.iter().find(|(group, _)| *group == GROUP).map(|(_, epoch)| *epoch);
        }
        let is_checked = !matches!(request, Request::ReadPage { .. } | Request::Memberships);
        if let Some(refused) = self.other_membership(&mut state, made_for.filter(|_| is_checked)) {
            return Some(refused);
        }
        Some(match request {
            Request::Hello { .. } => {
                Reply::Welcome { node: self.node, segments: FakeNode::summaries(&state) }
            }
            Request::Fence { epoch, .. } if epoch < state.promised.0 => {
                Reply::Refused(Refusal::Fenced(state.promised.0))
            }
            Request::Fence { epoch, writer } => {
                state.promised = (epoch, writer);
                Reply::Summaries(FakeNode::summaries(&state))
            }
            Request::Install { history, .. } | Request::Repair { history, .. } => {
                state.history = history;
                Reply::Summaries(FakeNode::summaries(&state))
            }
            Request::ReadTail { .. } => Reply::Tail { batches: Vec::new(), more: false },
            Request::Confirm { .. } => Reply::Confirmed,
            Request::ReadPage { .. } => {
                state.pages_asked += 1;
                if state.is_silent {
                    return None;
                }
                Reply::Page(Some(vec![7; PAGE_SIZE]))
            }
            Request::Memberships => Reply::Memberships {
                states: vec![(GROUP, state.membership.clone())],
                nodes: self.whereabouts(&state),
            },
            Request::Summaries => Reply::Summaries(FakeNode::summaries(&state)),
            other => panic!("nobody asks these nodes for {other:?}"),
        })
    }
}
