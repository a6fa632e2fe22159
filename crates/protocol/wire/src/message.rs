//! Requests to a storage node and its replies.
//!
//! A payload is `request_id: u64 (little-endian) | kind: u8 | body`. Kind [`KIND_APPEND`] carries a redo
//! batch as its body (see [`crate::batch`]); kind [`KIND_MESSAGE`] carries a postcard-encoded [`Request`] or
//! [`Reply`]. Every reply repeats its request's id. Two have id zero and come unasked, to writers: [`Reply::Progress`], and
//! [`Refusal::Fenced`] when the node was promised to a newer one.
//!
//! The first request on a connection is [`Request::Hello`]; a node closes a connection that starts otherwise.

use borealis_types::membership::{MembershipRequest, MembershipState};
use borealis_types::{
    AvailabilityZone, DatabaseKey, EpochHistory, GroupId, Lsn, MAX_GROUPS, MembershipEpoch, MetaKey, NodeId,
    PageKey, ReadPoint, RecordSpan, RelationFork, SlruKind, VolumeEpoch, VolumeId, WriterId,
};
use serde::{Deserialize, Serialize};

use crate::GroupTail;

/// Raised with every change that an older peer would misread.
pub const PROTOCOL_VERSION: u16 = 7;

/// The payload's body is a redo batch to append.
pub const KIND_APPEND: u8 = 1;
/// The payload's body is a [`Request`] or a [`Reply`].
pub const KIND_MESSAGE: u8 = 2;

/// The nodes whose whereabouts one message tells: more than any membership has members.
pub const WHEREABOUTS_MAX: usize = 1024;

/// The batches of one [`Request::Repair`]; an empty one takes a byte on the wire and 24 bytes of memory.
const REPAIR_BATCHES_MAX: usize = 256;

/// Who opens a connection; it decides which requests are served on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Caller {
    /// The writer of the volume; only it may append, and only in an epoch the node has promised to it.
    Writer {
        /// The epoch that it writes in.
        epoch: VolumeEpoch,
        /// Its identity within the epoch.
        writer: WriterId,
    },
    /// A reader or a tool: it only looks.
    Client,
    /// Another storage node of the same volume, by its number.
    Peer(NodeId),
    /// A writer to be: it fences, brings records back and installs, but does not append yet.
    Recovery,
    /// The writer of the volume, or the recovery before it, where it only looks: what a client may ask, in the places
    /// and with the turns that the writer has. It is told nothing unasked.
    Reader {
        /// The epoch that its writer writes in.
        epoch: VolumeEpoch,
        /// Its writer's identity within the epoch.
        writer: WriterId,
    },
    /// The controller of the fleet: it looks, and changes who the members of a group are.
    Controller,
}

/// What is asked of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first request on a connection: nothing else is answered before it.
    Hello {
        /// [`PROTOCOL_VERSION`] of the caller, which must be the node's own.
        protocol: u16,
        /// The volume that the caller means, which must be the node's own.
        volume: VolumeId,
        /// The node it believes to be talking to.
        node: NodeId,
        /// The caller's role, and its identity in it.
        caller: Caller,
        /// Of a writer, a reader or a recovery: for which membership of each group everything is meant that it asks on this
        /// connection. Of a group that is not listed it is the first.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
        memberships: Vec<(GroupId, MembershipEpoch)>,
    },
    /// Promise every segment to this writer: no older epoch is acknowledged any more.
    Fence {
        /// The epoch to promise; refused if a segment is promised to a newer one.
        epoch: VolumeEpoch,
        /// The writer to promise it to: an epoch has one.
        writer: WriterId,
    },
    /// The state of every segment on the node.
    Summaries,
    /// Records of a group ending above `above`, in LSN order, whether or not they connect.
    ReadTail {
        /// The group whose segment is asked.
        group: GroupId,
        /// Records that end at or below are left out.
        above: Lsn,
        /// Stop after about this many bytes (at least one record is returned if there is one).
        limit_bytes: u32,
    },
    /// Record the outcome of a recovery: cut what the history does not admit, and accept `epoch`'s writer.
    Install {
        /// The epoch that was fenced before.
        epoch: VolumeEpoch,
        /// The writer that the epoch was promised to.
        writer: WriterId,
        /// Every opening of the volume; the newest is of `epoch`.
        history: EpochHistory,
        /// Where each group's redo ends at the newest opening (`Segment::install`'s durable point).
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
        tails: Vec<GroupTail>,
    },
    /// A recovery brings records it decided to keep. Each segment named first adopts `history`
    /// (`Segment::adopt_for_recovery`), then takes the records (`Source::Recovery`). Answered with
    /// [`Reply::Summaries`], durable first.
    Repair {
        /// The epoch that was fenced before.
        epoch: VolumeEpoch,
        /// The writer that the epoch was promised to.
        writer: WriterId,
        /// The group whose segment gets the records.
        group: GroupId,
        /// The history the records are admitted by; empty for a volume without one.
        history: EpochHistory,
        /// Redo batches, one for each run of records of one epoch; at most 256.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, REPAIR_BATCHES_MAX>")]
        batches: Vec<Vec<u8>>,
    },
    /// A page as of a position.
    ReadPage {
        /// The group that owns it.
        group: GroupId,
        /// The page, which `group` owns.
        key: PageKey,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
    },
    /// A fork's existence and size in the blocks of one group, as of a position. The fork's size is the largest
    /// answer over all groups.
    RelationSize {
        /// The group whose part of the blocks is meant.
        group: GroupId,
        /// The fork; every group has a part of its blocks.
        relation_fork: RelationFork,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
    },
    /// All forks of a database's relations that one group knows, in key order, with their sizes there.
    ListRelations {
        /// The group whose part of the blocks is meant.
        group: GroupId,
        /// The database in its tablespace.
        database: DatabaseKey,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
        /// Forks up to and including this one are left out; `None` begins with the first.
        after: Option<RelationFork>,
        /// Entries of the answer at most; the node has a limit of its own, too.
        limit: u32,
    },
    /// Which pages a transaction-status store has, as of a position.
    SlruPages {
        /// The transaction-status store.
        kind: SlruKind,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
        /// Pages before this one are left out.
        from: u32,
        /// Pages of the answer at most; the node has a limit of its own, too.
        limit: u32,
    },
    /// A part of a value as of a position.
    ReadMeta {
        /// The name of the value.
        key: MetaKey,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
        /// Where in the value the part begins, in bytes.
        offset: u64,
    },
    /// Every small value as of a position, in key order, except counters and the control file template.
    ListMeta {
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
        /// Keys up to and including this one are left out; `None` begins with the first.
        after: Option<MetaKey>,
        /// Entries of the answer at most; the node has limits of its own, of entries and of bytes, too.
        limit: u32,
    },
    /// Checksums of a group's pages as of a position, in key order.
    PageChecksums {
        /// The group whose segment is asked.
        group: GroupId,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
        /// Pages up to and including this one are left out; `None` begins with the first.
        after: Option<PageKey>,
        /// Entries of the answer at most; the node has a limit of its own, too.
        limit: u32,
    },
    /// The node's own state, for people and scripts.
    Status,
    /// In which boot the node is, and what it remembers of another.
    Acquaint {
        /// The node that asks.
        node: NodeId,
    },
    /// Whether no segment of the node is promised to an epoch newer than this one; answered with [`Reply::Confirmed`], or
    /// refused as fenced. A writer asks it to go on showing what it has in its caches.
    Confirm {
        /// The epoch of the writer that asks.
        epoch: VolumeEpoch,
    },
    /// A peer or a tool asks that everything of a group as of a position is kept and can be read, while it takes it.
    Pin {
        /// The group whose segment is asked.
        group: GroupId,
        /// Epoch and LSN as of which it is to be kept; the peer's pin before is ended.
        at: ReadPoint,
        /// For how long, in milliseconds, unless it is asked again; the node has a limit of its own, too. Zero ends the
        /// peer's pin.
        lease_ms: u32,
    },
    /// All forks of all relations that one group knows, in key order, with their sizes there.
    ListForks {
        /// The group whose part of the blocks is meant.
        group: GroupId,
        /// Epoch and LSN as of which to answer.
        at: ReadPoint,
        /// Forks up to and including this one are left out; `None` begins with the first.
        after: Option<RelationFork>,
        /// Entries of the answer at most; the node has a limit of its own, too.
        limit: u32,
    },
    /// What the node stores of the memberships of its groups, those included that it has left, and where other nodes are.
    Memberships,
    /// A step of a group's membership. Answered with [`Reply::Member`], durable first.
    Membership {
        /// The group.
        group: GroupId,
        /// What is asked.
        request: MembershipRequest,
        /// Where the nodes that it names are to be found.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, WHEREABOUTS_MAX>")]
        nodes: Vec<Whereabouts>,
    },
}

/// Where a node is to be found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Its number.
    pub node: NodeId,
    /// Its zone.
    pub zone: AvailabilityZone,
    /// Where it listens, as in its configuration. It is a hint: who answers there has to be that node.
    pub address: String,
}

/// One opening of a node's store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Which store: random, from its creation.
    pub incarnation: u128,
    /// How often it was opened, from 1.
    pub number: u64,
    /// Random, of this opening alone.
    pub nonce: u64,
}

/// What a node remembers of another. All of it was durable there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remembered {
    /// The last boot that it was heard in.
    pub boot: Boot,
    /// The most that was heard of its segments since the remembering node was started.
    pub segments: Vec<RememberedSegment>,
}

/// What a node remembers of another's segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RememberedSegment {
    /// The group that the segment is a copy of.
    pub group: GroupId,
    /// The membership that it acted on then, as one that has everything.
    pub membership_epoch: MembershipEpoch,
    /// It had every record up to here, and no recovery can truncate them.
    pub complete: Lsn,
    /// The newest epoch it had promised to serve.
    pub promised_epoch: VolumeEpoch,
}

/// What one segment promises and holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// The group that the segment is a copy of.
    pub group: GroupId,
    /// The epoch it promised to serve.
    pub promised_epoch: VolumeEpoch,
    /// The writer it promised that epoch to.
    pub promised_writer: WriterId,
    /// How epochs were opened, as far as it knows.
    pub history: EpochHistory,
    /// It has every record of its group up to here (SCL).
    pub segment_complete_lsn: Lsn,
    /// The highest volume durable point it heard of.
    pub known_durable: RecordSpan,
    /// Where the group's redo ends at that point.
    pub known_durable_tail: Lsn,
    /// It answers reads up to here.
    pub readable_through: Lsn,
    /// It answers no read below this.
    pub minimum_read_point: Lsn,
    /// All its redo up to here is in page images.
    pub materialized_lsn: Lsn,
    /// It does not have everything yet, whatever records it has: it counts as a copy of nothing.
    pub joining: bool,
    /// The membership of the group that it acts on; zero where configuration says once and for all who the members are.
    pub membership_epoch: MembershipEpoch,
}

/// How far a segment's chain is unbroken and durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentProgress {
    /// The group that the segment is a copy of.
    pub group: GroupId,
    /// Its SCL, durable on the node.
    pub segment_complete_lsn: Lsn,
}

/// The longest part of a value in one answer, in bytes. The state of a prepared transaction can be as long as a log record,
/// a gibibyte; everything else is far shorter than this.
pub const VALUE_PART_BYTES_MAX: usize = 4 << 20;

/// As many bytes of values as a listing has when it ends early, in bytes: an answer is at most this and one more part.
pub const LIST_BYTES_MAX: usize = 4 << 20;

/// A part of a value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ValuePart {
    /// Length of the whole value.
    pub total_bytes: u64,
    /// CRC-32C of the whole value.
    pub checksum: u32,
    /// The part, of at most [`VALUE_PART_BYTES_MAX`].
    #[serde(with = "crate::byte_string::plain")]
    pub bytes: Vec<u8>,
}

impl ValuePart {
    /// The part of `value` that begins at `offset`.
    #[must_use]
    pub fn of(value: &[u8], offset: u64) -> ValuePart {
        let rest = usize::try_from(offset).ok().and_then(|offset| value.get(offset..)).unwrap_or_default();
        let bytes = rest.get(..VALUE_PART_BYTES_MAX).unwrap_or(rest).to_vec();
        ValuePart { total_bytes: value.len() as u64, checksum: crc32c::crc32c(value), bytes }
    }

    /// Whether `value`, put together from parts, is the one that this is the last part of.
    #[must_use]
    pub fn completes(&self, value: &[u8]) -> bool {
        value.len() as u64 == self.total_bytes && crc32c::crc32c(value) == self.checksum
    }

    /// Whether it is all of the value, if it begins at its beginning.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.total_bytes
    }
}

/// A fork as one group knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RelationSize {
    /// The fork that the size is of.
    pub relation_fork: RelationFork,
    /// Highest block of the group's part, plus one.
    pub blocks: u32,
}

/// The checksum of one page, to compare peers without sending pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageChecksum {
    /// The page that the checksum is of.
    pub key: PageKey,
    /// CRC-32C of its 8 KiB as of the LSN asked; or `None` if the node could not produce the page.
    pub checksum: Option<u32>,
}

/// The state of a node, for people and scripts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number in the volume.
    pub node: NodeId,
    /// The availability zone it says it is in.
    pub zone: AvailabilityZone,
    /// Process id, on its own host.
    pub process_id: u32,
    /// `None` while it keeps its promises, else why it does not.
    pub failure: Option<String>,
    /// What is damaged or in quarantine on it and not repaired yet, while it keeps its promises; `None` if nothing is.
    pub damage: Option<String>,
    /// The state of every segment it has; none once it failed.
    pub segments: Vec<SegmentSummary>,
    /// Named counters and gauges, documented in `borealis-node`.
    pub metrics: Vec<(String, u64)>,
    /// What keeps it from some of its work for now, and passes with its cause: a disk that is nearly full, an error of the
    /// system. It keeps its promises.
    pub hindrance: Option<String>,
    /// The identity of its store.
    pub incarnation: u128,
    /// What may still be written on its disk before it takes no more redo, in bytes.
    pub free_bytes: u64,
    /// When it last heard each of the nodes that have a segment of one of its groups.
    #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, WHEREABOUTS_MAX>")]
    pub heard: Vec<PeerHeard>,
    /// Segments that take pages from peers.
    #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
    pub refills: Vec<RefillProgress>,
}

/// When a node last heard another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerHeard {
    /// The other node.
    pub node: NodeId,
    /// How many milliseconds ago; since the one that says it was started, if it never did.
    pub ms_ago: u64,
}

/// How far a segment is that takes pages from peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RefillProgress {
    /// Its group.
    pub group: GroupId,
    /// Bytes of pages that it has compared or taken.
    pub done_bytes: u64,
    /// Of so many; zero while that is not known.
    pub total_bytes: u64,
}

/// Why a node refused a request; the connection stays good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The caller speaks another protocol version.
    #[error("the node speaks protocol {0}, the caller another; run the same version of Borealis on both")]
    Protocol(u16),
    /// The node belongs to another volume or has another number. It does not say which: who knows a volume's identity
    /// may call its nodes.
    #[error(
        "the node is not the one that was meant: its volume or its number is another; its log says which"
    )]
    Identity,
    /// A newer writer was promised the segment.
    #[error("fenced: a newer writer has epoch {0}")]
    Fenced(VolumeEpoch),
    /// The segment is not on this node.
    #[error("group {0} has no segment on this node")]
    NoSegment(GroupId),
    /// A recovery happened that the segment has not heard of: what it holds may have been cut. Another node knows.
    #[error("group {group} knows the volume up to epoch {known} here, the reader is of epoch {wanted}")]
    HistoryBehind {
        /// The group whose segment is behind.
        group: GroupId,
        /// The epoch whose stream the reader means.
        wanted: VolumeEpoch,
        /// The newest epoch that the segment has the history of.
        known: VolumeEpoch,
    },
    /// The segment is not complete to the LSN, or no longer keeps versions that old.
    #[error("cannot read at {asked}: the segment answers from {from} through {through}")]
    NotReadable {
        /// The LSN that the reader asked at.
        asked: Lsn,
        /// Versions below this LSN may be collected.
        from: Lsn,
        /// Records after this LSN may be missing.
        through: Lsn,
    },
    /// The request breaks a rule of the protocol.
    #[error("protocol error: {0}")]
    Misuse(String),
    /// The node has no room for it now; nothing is wrong with the request, and it may be asked again.
    #[error("the node is busy: {0}")]
    Busy(String),
    /// The node cannot keep its promise (full disk, failed sync, corruption, unknown redo).
    #[error("the node failed: {0}")]
    Failed(String),
    /// The node cannot do it now, and nothing of it was done; it may be asked again, and another node meanwhile.
    #[error("not now: {0}")]
    NotNow(String),
    /// Over TLS: the caller's certificate is not that of who it says it is.
    #[error("the caller's certificate does not allow it: {0}")]
    Forbidden(String),
    /// The caller knows an older membership of these groups than the node acts on, or one that the node has not learned of. What
    /// the node stores of them.
    #[error("{}", other_membership(.states))]
    OtherMembership {
        /// Of each group, what the node stores.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
        states: Vec<(GroupId, MembershipState)>,
        /// Where their members are to be found.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, WHEREABOUTS_MAX>")]
        nodes: Vec<Whereabouts>,
    },
}

fn other_membership(states: &[(GroupId, MembershipState)]) -> String {
    match states.first() {
        Some((group, state)) => {
            format!("group {group} has other members by now (membership {})", state.installed().epoch())
        }
        None => "the node has not learned yet who the members are".to_owned(),
    }
}

/// A node's answer to one request, or a word of its own about progress.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Hello`]: the caller is served from here on.
    Welcome {
        /// The number that the node has there.
        node: NodeId,
        /// The state of every segment it has; none once it failed.
        segments: Vec<SegmentSummary>,
    },
    /// To [`Request::Fence`], [`Request::Repair`], [`Request::Install`] and [`Request::Summaries`], durable
    /// first.
    Summaries(Vec<SegmentSummary>),
    /// To an append: everything in it is durable here. Lists the segments whose SCL moved.
    Appended(Vec<SegmentProgress>),
    /// Unasked: segments whose SCL moved through records from peers.
    Progress(Vec<SegmentProgress>),
    /// To [`Request::ReadTail`]: encoded batches, and whether there is more.
    Tail {
        /// Redo batches, one for each run of records of one epoch.
        batches: Vec<Vec<u8>>,
        /// The limit cut the answer short.
        more: bool,
    },
    /// To [`Request::ReadPage`]: 8 KiB, or `None` if the page does not exist at that LSN.
    Page(#[serde(with = "crate::byte_string::optional")] Option<Vec<u8>>),
    /// To [`Request::RelationSize`]: `None` if the group does not know the fork.
    RelationSize(Option<u32>),
    /// To [`Request::ListRelations`] and [`Request::ListForks`]: forks in key order, fewer than asked for at the end.
    Relations(Vec<RelationSize>),
    /// To [`Request::SlruPages`]: page numbers, ascending, fewer than asked for at the end.
    SlruPages(Vec<u32>),
    /// To [`Request::ReadMeta`]: the part of the value from there on; `None` if there is no value at that position.
    Meta(Option<ValuePart>),
    /// To [`Request::ListMeta`].
    MetaList {
        /// Values in key order; of a long one, its first part.
        values: Vec<(MetaKey, ValuePart)>,
        /// A limit cut the answer short: ask again after the last key.
        more: bool,
    },
    /// To [`Request::PageChecksums`]: checksums in key order, fewer than asked for at the end.
    PageChecksums(Vec<PageChecksum>),
    /// To [`Request::Status`]: the node's own view of itself.
    Status(NodeStatus),
    /// The node refuses, and why.
    Refused(Refusal),
    /// To [`Request::Acquaint`].
    Acquainted {
        /// The node's own boot.
        boot: Boot,
        /// What it remembers of the node that asks; `None` if it never heard it.
        remembered: Option<Remembered>,
    },
    /// To [`Request::Confirm`]: nobody newer was promised anything here.
    Confirmed,
    /// To [`Request::Pin`].
    Pinned {
        /// About how many pages the group has; zero when the pin was ended.
        pages: u64,
    },
    /// To [`Request::Memberships`].
    Memberships {
        /// What the node stores of each group that it has or had a segment of.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
        states: Vec<(GroupId, MembershipState)>,
        /// Where nodes are to be found, as far as it knows.
        #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, WHEREABOUTS_MAX>")]
        nodes: Vec<Whereabouts>,
    },
    /// To [`Request::Membership`]: the member's whole state, whether or not it did what was asked.
    Member {
        /// What it stores of the group's memberships; `None` if it never heard of the group.
        membership: Option<MembershipState>,
        /// Its segment; `None` if it has none.
        segment: Option<SegmentSummary>,
    },
}

/// A payload that breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct MessageError(pub &'static str);

/// A payload taken apart: the request id, and the body by kind.
#[derive(Debug)]
pub enum Payload<'a, M> {
    /// The body is a redo batch.
    Append {
        /// Repeated by the answer, so that the sender can match it.
        request_id: u64,
        /// The batch as [`crate::BatchReader`] takes it.
        batch: &'a [u8],
    },
    /// The body is a request or a reply.
    Message {
        /// Repeated by the answer, so that the sender can match it; zero for a word that nobody asked for.
        request_id: u64,
        /// The request or reply, decoded.
        message: M,
    },
}

/// Bytes before a payload's body.
pub const PAYLOAD_HEADER_BYTES: usize = 9;

/// Takes a payload apart.
///
/// # Errors
/// When it is too short, of an unknown kind, or its message malformed or followed by more bytes.
pub fn decode_payload<'a, M: Deserialize<'a>>(payload: &'a [u8]) -> Result<Payload<'a, M>, MessageError> {
    let (id, rest) = payload.split_first_chunk::<8>().ok_or(MessageError("no request id"))?;
    let (&kind, body) = rest.split_first().ok_or(MessageError("no kind"))?;
    let request_id = u64::from_le_bytes(*id);
    match kind {
        KIND_APPEND => Ok(Payload::Append { request_id, batch: body }),
        KIND_MESSAGE => {
            let (message, rest) =
                postcard::take_from_bytes(body).map_err(|_| MessageError("body does not decode"))?;
            if !rest.is_empty() {
                return Err(MessageError("bytes after the body"));
            }
            Ok(Payload::Message { request_id, message })
        }
        _ => Err(MessageError("unknown kind")),
    }
}

/// The payload of a request or reply.
#[must_use]
pub fn encode_message<M: Serialize>(request_id: u64, message: &M) -> Vec<u8> {
    let mut payload = request_id.to_le_bytes().to_vec();
    payload.push(KIND_MESSAGE);
    postcard::to_extend(message, payload).expect("messages are plain data and always encode")
}

/// The nine bytes that precede a batch in an append's payload.
#[must_use]
pub fn append_header(request_id: u64) -> [u8; PAYLOAD_HEADER_BYTES] {
    let mut header = [0; PAYLOAD_HEADER_BYTES];
    header[..8].copy_from_slice(&request_id.to_le_bytes());
    header[8] = KIND_APPEND;
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{EpochOpening, ServerVersion};
    use proptest::prelude::*;

    #[test]
    fn messages_survive_the_round_trip() {
        let request = Request::ReadPage {
            group: GroupId(3),
            key: PageKey::Slru { kind: SlruKind::Transactions, page: 9 },
            at: ReadPoint { epoch: VolumeEpoch(3), lsn: Lsn(77) },
        };
        let payload = encode_message(5, &request);
        match decode_payload::<Request>(&payload).unwrap() {
            Payload::Message { request_id: 5, message } => assert_eq!(message, request),
            other => panic!("decoded as {other:?}"),
        }
    }

    /// What docs/decisions/0012 says a start costs in each summary; the store writes histories in the same encoding.
    #[test]
    fn an_opening_takes_14_to_17_bytes() {
        for (epoch, end, bytes) in [(1, 400 << 20, 14), (100, 30 << 30, 14), (1000, 1 << 40, 17)] {
            let mut summary = SegmentSummary {
                group: GroupId(0),
                promised_epoch: VolumeEpoch(epoch),
                promised_writer: WriterId(1),
                history: EpochHistory::default(),
                segment_complete_lsn: Lsn(end),
                known_durable: RecordSpan::NONE,
                known_durable_tail: Lsn::ZERO,
                readable_through: Lsn(end),
                minimum_read_point: Lsn(end),
                materialized_lsn: Lsn(end),
                joining: false,
                membership_epoch: MembershipEpoch(1),
            };
            let without = postcard::to_stdvec(&summary).unwrap().len();
            summary.history.push(EpochOpening {
                epoch: VolumeEpoch(epoch),
                last: RecordSpan { start: Lsn(end - 48), end: Lsn(end) },
                server_version: ServerVersion::NEWEST_TESTED,
            });
            let with = postcard::to_stdvec(&summary).unwrap().len();
            assert_eq!(with - without, bytes, "epoch {epoch} at {end}");
        }
    }

    #[test]
    fn parts_of_a_long_value_make_the_value() {
        let value: Vec<u8> = (0..VALUE_PART_BYTES_MAX * 2 + 77).map(|at| (at % 251) as u8).collect();
        let (mut whole, mut parts) = (Vec::new(), 0);
        loop {
            let part = ValuePart::of(&value, whole.len() as u64);
            assert!(!part.is_whole() && part.bytes.len() <= VALUE_PART_BYTES_MAX);
            whole.extend_from_slice(&part.bytes);
            parts += 1;
            if part.completes(&whole) {
                break;
            }
        }
        assert_eq!((parts, whole), (3, value));
        assert!(ValuePart::of(&[1, 2], 0).is_whole() && ValuePart::of(&[], 0).is_whole());
        assert!(ValuePart::of(&[1, 2], 900).bytes.is_empty(), "past the end");
    }

    proptest! {
        #[test]
        fn hostile_payloads_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_payload::<Request>(&bytes);
            let _ = decode_payload::<Reply>(&bytes);
        }

        #[test]
        fn hostile_bodies_are_refused_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut payload = 1u64.to_le_bytes().to_vec();
            payload.push(KIND_MESSAGE);
            payload.extend(body);
            let _ = decode_payload::<Request>(&payload);
            let _ = decode_payload::<Reply>(&payload);
        }
    }
}
