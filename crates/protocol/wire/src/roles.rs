//! Which caller may ask what, and how large a frame it may send: judged by a frame's first bytes, before the rest of it
//! is received and before anything is decoded.
//!
//! ```text
//! request                    writer  recovery  reader  client  peer  controller  payload at most
//! Append                       x                                                 MAX_PAYLOAD_BYTES
//! Repair                       x        x                                        MAX_PAYLOAD_BYTES
//! Install                      x        x                                        INSTALL_LIMIT_BYTES
//! Fence                        x        x                                        REQUEST_LIMIT_BYTES
//! Summaries, reads, Status,    x        x        x       x      x        x       REQUEST_LIMIT_BYTES
//! Acquaint, Confirm,
//! Memberships
//! Pin                                                    x      x                REQUEST_LIMIT_BYTES
//! Membership                                                             x       MEMBERSHIP_LIMIT_BYTES
//! ```
//!
//! The largest frames are for the writer that a node has promised its epoch to. Everyone else's are bounded by
//! [`ORDINARY_LIMIT_BYTES`]: claiming to be a writer costs nothing and must not buy memory.

use crate::frame::MAX_PAYLOAD_BYTES;
use crate::message::{KIND_APPEND, KIND_MESSAGE, PAYLOAD_HEADER_BYTES};
use crate::{Caller, Request};

/// The largest introduction: version, volume, node and caller take some sixty bytes, the membership of each group at most 12.
pub const HELLO_LIMIT_BYTES: usize = 1 << 10;
/// The largest request that carries neither redo nor a history. The longest has a file's path in it.
pub const REQUEST_LIMIT_BYTES: usize = 8 << 10;
/// The largest [`Request::Install`]: a history of some 60,000 openings. A node writes it into its log once for each of
/// its groups, all in one entry, so 64 groups must fit one.
pub const INSTALL_LIMIT_BYTES: usize = 1 << 20;
/// The largest [`Request::Membership`]: four sets of members, and an address for each.
pub const MEMBERSHIP_LIMIT_BYTES: usize = REQUEST_LIMIT_BYTES;
/// The largest frame of a writer or recovery that does not hold the node's promise. Ordinary batches are smaller: larger
/// ones hold one large record alone, and wait until the node has heard of the writer.
pub const ORDINARY_LIMIT_BYTES: usize = 2 << 20;
/// How much of a payload [`judge`] has to see: its header, and the first byte of its body.
pub const JUDGED_BYTES: usize = PAYLOAD_HEADER_BYTES + 1;

/// What a request asks for, without its arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RequestKind {
    /// A redo batch; no [`Request`], but a payload of its own kind.
    Append,
    /// [`Request::Hello`]
    Hello,
    /// [`Request::Fence`]
    Fence,
    /// [`Request::Summaries`]
    Summaries,
    /// [`Request::ReadTail`]
    ReadTail,
    /// [`Request::Install`]
    Install,
    /// [`Request::Repair`]
    Repair,
    /// [`Request::ReadPage`]
    ReadPage,
    /// [`Request::RelationSize`]
    RelationSize,
    /// [`Request::ListRelations`]
    ListRelations,
    /// [`Request::SlruPages`]
    SlruPages,
    /// [`Request::ReadMeta`]
    ReadMeta,
    /// [`Request::ListMeta`]
    ListMeta,
    /// [`Request::PageChecksums`]
    PageChecksums,
    /// [`Request::Status`]
    Status,
    /// [`Request::Acquaint`]
    Acquaint,
    /// [`Request::Confirm`]
    Confirm,
    /// [`Request::Pin`]
    Pin,
    /// [`Request::ListForks`]
    ListForks,
    /// [`Request::Memberships`]
    Memberships,
    /// [`Request::Membership`]
    Membership,
}

/// The kinds of [`Request`] by the number that its encoding begins with (postcard: the variant's place in the enum).
const KINDS: [RequestKind; 20] = [
    RequestKind::Hello,
    RequestKind::Fence,
    RequestKind::Summaries,
    RequestKind::ReadTail,
    RequestKind::Install,
    RequestKind::Repair,
    RequestKind::ReadPage,
    RequestKind::RelationSize,
    RequestKind::ListRelations,
    RequestKind::SlruPages,
    RequestKind::ReadMeta,
    RequestKind::ListMeta,
    RequestKind::PageChecksums,
    RequestKind::Status,
    RequestKind::Acquaint,
    RequestKind::Confirm,
    RequestKind::Pin,
    RequestKind::ListForks,
    RequestKind::Memberships,
    RequestKind::Membership,
];

/// A frame that its caller may not send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unwelcome {
    /// It begins like no request.
    #[error("a payload that is no request")]
    NoRequest,
    /// It is longer than its kind and its caller justify.
    #[error("a request of {length} bytes, where its caller may send {limit}")]
    TooLarge {
        /// The payload's announced length.
        length: usize,
        /// The most that would have been received.
        limit: usize,
    },
}

impl Request {
    /// What it asks for.
    #[must_use]
    pub fn kind(&self) -> RequestKind {
        match self {
            Request::Hello { .. } => RequestKind::Hello,
            Request::Fence { .. } => RequestKind::Fence,
            Request::Summaries => RequestKind::Summaries,
            Request::ReadTail { .. } => RequestKind::ReadTail,
            Request::Install { .. } => RequestKind::Install,
            Request::Repair { .. } => RequestKind::Repair,
            Request::ReadPage { .. } => RequestKind::ReadPage,
            Request::RelationSize { .. } => RequestKind::RelationSize,
            Request::ListRelations { .. } => RequestKind::ListRelations,
            Request::SlruPages { .. } => RequestKind::SlruPages,
            Request::ReadMeta { .. } => RequestKind::ReadMeta,
            Request::ListMeta { .. } => RequestKind::ListMeta,
            Request::PageChecksums { .. } => RequestKind::PageChecksums,
            Request::Status => RequestKind::Status,
            Request::Acquaint { .. } => RequestKind::Acquaint,
            Request::Confirm { .. } => RequestKind::Confirm,
            Request::Pin { .. } => RequestKind::Pin,
            Request::ListForks { .. } => RequestKind::ListForks,
            Request::Memberships => RequestKind::Memberships,
            Request::Membership { .. } => RequestKind::Membership,
        }
    }
}

impl RequestKind {
    /// The kind of a payload that begins with these bytes; at least [`JUDGED_BYTES`] of a message, of an append one less.
    fn of_payload(begin: &[u8]) -> Option<RequestKind> {
        match *begin.get(PAYLOAD_HEADER_BYTES - 1)? {
            KIND_APPEND => Some(RequestKind::Append),
            KIND_MESSAGE => KINDS.get(usize::from(*begin.get(PAYLOAD_HEADER_BYTES)?)).copied(),
            _ => None,
        }
    }

    /// Whether it changes what a node promises or holds. The rest only looks.
    #[must_use]
    pub fn changes(self) -> bool {
        use RequestKind::{Append, Fence, Install, Membership, Repair};
        matches!(self, Append | Fence | Install | Repair | Membership)
    }

    /// Whether its answer may take megabytes, or the node's memory for as long as it is made.
    #[must_use]
    pub fn has_large_answer(self) -> bool {
        use RequestKind::{ListForks, ListMeta, ListRelations, PageChecksums, ReadMeta, ReadTail, SlruPages};
        matches!(self, ReadTail | ListRelations | ListForks | SlruPages | ReadMeta | ListMeta | PageChecksums)
    }

    /// Whether this caller may ask it, once introduced.
    #[must_use]
    pub fn is_allowed(self, caller: &Caller) -> bool {
        // What a pin keeps is kept for who takes all of it: a peer, or a tool.
        if self == RequestKind::Pin {
            return matches!(caller, Caller::Peer(_) | Caller::Client);
        }
        if self == RequestKind::Membership {
            return *caller == Caller::Controller;
        }
        match caller {
            Caller::Writer { .. } => true,
            Caller::Recovery => self != RequestKind::Append,
            Caller::Client | Caller::Peer(_) | Caller::Reader { .. } | Caller::Controller => !self.changes(),
        }
    }

    fn limit_bytes(self) -> usize {
        match self {
            RequestKind::Append | RequestKind::Repair => MAX_PAYLOAD_BYTES,
            RequestKind::Install => INSTALL_LIMIT_BYTES,
            RequestKind::Membership => MEMBERSHIP_LIMIT_BYTES,
            _ => REQUEST_LIMIT_BYTES,
        }
    }
}

/// The most that this caller may send, whatever it asks. `holds_promise`: it is the writer that the node promised its
/// epoch to.
#[must_use]
pub fn limit_bytes(caller: &Caller, holds_promise: bool) -> usize {
    match caller {
        Caller::Writer { .. } if holds_promise => MAX_PAYLOAD_BYTES,
        Caller::Writer { .. } | Caller::Recovery => ORDINARY_LIMIT_BYTES,
        Caller::Client | Caller::Peer(_) | Caller::Reader { .. } | Caller::Controller => REQUEST_LIMIT_BYTES,
    }
}

/// Judges a frame of an introduced caller by its announced length and what has come of its payload, which is all of it
/// or at least [`JUDGED_BYTES`]. What a caller may not ask at all is answered with a refusal, if it is small enough to be
/// received.
///
/// # Errors
/// When the frame should not be received.
pub fn judge(caller: &Caller, holds_promise: bool, length: usize, begin: &[u8]) -> Result<(), Unwelcome> {
    let kind = RequestKind::of_payload(begin).ok_or(Unwelcome::NoRequest)?;
    let of_kind = if kind.is_allowed(caller) { kind.limit_bytes() } else { REQUEST_LIMIT_BYTES };
    let limit = of_kind.min(limit_bytes(caller, holds_promise));
    if length > limit { Err(Unwelcome::TooLarge { length, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Whereabouts;
    use crate::message::{append_header, encode_message};
    use borealis_types::membership::{GroupMembership, MembershipRequest};
    use borealis_types::{
        AvailabilityZone, DatabaseKey, EpochHistory, GroupId, Lsn, MembershipEpoch, MetaKey, NodeId, PageKey,
        RelationFork, RelationLocator, SlruKind, VolumeEpoch, VolumeId, WriterId,
    };

    const WRITER: Caller = Caller::Writer { epoch: VolumeEpoch(3), writer: WriterId(7) };
    const READER: Caller = Caller::Reader { epoch: VolumeEpoch(3), writer: WriterId(7) };
    const CALLERS: [Caller; 6] =
        [WRITER, Caller::Recovery, READER, Caller::Client, Caller::Peer(NodeId(2)), Caller::Controller];

    /// One request of every kind, the largest of those that are bounded by [`REQUEST_LIMIT_BYTES`].
    fn requests() -> Vec<Request> {
        let (group, at) = (GroupId(63), Lsn(u64::MAX).into());
        let (epoch, writer) = (VolumeEpoch(u64::MAX), WriterId(u64::MAX));
        let history = EpochHistory::default();
        let locator = RelationLocator { tablespace: u32::MAX, database: u32::MAX, relation: u32::MAX };
        let relation_fork = RelationFork { locator, fork: borealis_types::Fork::Main };
        let database = DatabaseKey { tablespace: u32::MAX, database: u32::MAX };
        let key = PageKey::Slru { kind: SlruKind::Transactions, page: u32::MAX };
        let meta_key = MetaKey::SmallFile("x".repeat(4096));
        let limit = u32::MAX;
        let whereabouts = |node| Whereabouts {
            node: NodeId(node),
            zone: AvailabilityZone("z".repeat(63)),
            address: format!("tls:{}:65535", "h".repeat(253)),
        };
        let nodes = (0..8).map(whereabouts).collect();
        vec![
            Request::Hello {
                protocol: u16::MAX,
                volume: VolumeId(u128::MAX),
                node: NodeId(u16::MAX),
                caller: WRITER,
                memberships: (0..64).map(|group| (GroupId(group), MembershipEpoch(u64::MAX))).collect(),
            },
            Request::Fence { epoch, writer },
            Request::Summaries,
            Request::ReadTail { group, above: Lsn(u64::MAX), limit_bytes: u32::MAX },
            Request::Install { epoch, writer, history: history.clone(), tails: Vec::new() },
            Request::Repair { epoch, writer, group, history, batches: Vec::new() },
            Request::ReadPage { group, key, at },
            Request::RelationSize { group, relation_fork, at },
            Request::ListRelations { group, database, at, after: Some(relation_fork), limit },
            Request::SlruPages { kind: SlruKind::Transactions, at, from: u32::MAX, limit },
            Request::ReadMeta { key: meta_key.clone(), at, offset: u64::MAX },
            Request::ListMeta { at, after: Some(meta_key), limit },
            Request::PageChecksums { group, at, after: Some(key), limit },
            Request::Status,
            Request::Acquaint { node: NodeId(u16::MAX) },
            Request::Confirm { epoch },
            Request::Pin { group, at, lease_ms: u32::MAX },
            Request::ListForks { group, at, after: Some(relation_fork), limit },
            Request::Memberships,
            Request::Membership { group, request: largest_step(), nodes },
        ]
    }

    /// Two replacements under way.
    fn largest_step() -> MembershipRequest {
        let set = |old: [u16; 2]| [u16::MAX, 2, 3, 4, old[0], old[1]].map(NodeId);
        let sets = [[5, 6], [7, 6], [5, 8], [7, 8]].map(set).to_vec();
        let epoch = MembershipEpoch(u64::MAX);
        MembershipRequest::Install(GroupMembership::new(epoch, sets).expect("all combinations"))
    }

    #[test]
    fn a_request_is_known_by_its_first_bytes() {
        let all = requests();
        assert_eq!(all.len(), KINDS.len());
        for request in &all {
            let payload = encode_message(u64::MAX, request);
            assert_eq!(RequestKind::of_payload(&payload[..JUDGED_BYTES]), Some(request.kind()));
            assert!(payload.len() <= REQUEST_LIMIT_BYTES, "{} bytes of {:?}", payload.len(), request.kind());
        }
        assert_eq!(RequestKind::of_payload(&append_header(1)), Some(RequestKind::Append));
        assert_eq!(RequestKind::of_payload(&[0, 0, 0, 0, 0, 0, 0, 0, 9, 0]), None);
        assert_eq!(RequestKind::of_payload(&[0, 0, 0, 0, 0, 0, 0, 0, KIND_MESSAGE, 20]), None);
        assert!(encode_message(u64::MAX, &all[0]).len() <= HELLO_LIMIT_BYTES);
    }

    #[test]
    fn only_writers_and_recoveries_change_anything() {
        for request in requests() {
            let kind = request.kind();
            let allowed = CALLERS.map(|caller| kind.is_allowed(&caller));
            if kind == RequestKind::Pin {
                assert_eq!(allowed, CALLERS.map(|caller| matches!(caller, Caller::Peer(_) | Caller::Client)));
                continue;
            }
            if kind == RequestKind::Membership {
                assert_eq!(allowed, [false, false, false, false, false, true]);
                continue;
            }
            let changes =
                matches!(request, Request::Fence { .. } | Request::Install { .. } | Request::Repair { .. });
            assert_eq!(allowed, [true, true, !changes, !changes, !changes, !changes], "{kind:?}");
        }
        assert_eq!(
            CALLERS.map(|caller| RequestKind::Append.is_allowed(&caller)),
            [true, false, false, false, false, false]
        );
    }

    #[test]
    fn a_large_frame_is_judged_by_its_beginning() {
        let append = append_header(1);
        let repair = encode_message(1, &requests()[5]);
        let install = encode_message(1, &requests()[4]);
        let status = encode_message(1, &Request::Status);
        let limit = |caller: &Caller, promised, begin: &[u8]| match judge(caller, promised, usize::MAX, begin)
            .unwrap_err()
        {
            Unwelcome::TooLarge { limit, .. } => limit,
            Unwelcome::NoRequest => panic!("it is one"),
        };
        for begin in [append.as_slice(), &repair] {
            assert_eq!(limit(&WRITER, true, begin), MAX_PAYLOAD_BYTES);
            assert_eq!(limit(&WRITER, false, begin), ORDINARY_LIMIT_BYTES);
            assert_eq!(limit(&Caller::Client, false, begin), REQUEST_LIMIT_BYTES);
            assert_eq!(limit(&READER, true, begin), REQUEST_LIMIT_BYTES);
            assert_eq!(limit(&Caller::Peer(NodeId(3)), false, begin), REQUEST_LIMIT_BYTES);
        }
        assert_eq!(limit(&Caller::Recovery, false, &append), REQUEST_LIMIT_BYTES);
        assert_eq!(limit(&Caller::Recovery, false, &install), INSTALL_LIMIT_BYTES);
        for caller in CALLERS {
            assert_eq!(limit(&caller, true, &status), REQUEST_LIMIT_BYTES);
            assert_eq!(judge(&caller, true, status.len(), &status), Ok(()));
            assert_eq!(judge(&caller, true, 12, &[7; 12]), Err(Unwelcome::NoRequest));
        }
    }
}
