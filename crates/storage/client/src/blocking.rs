//! A blocking connection to a storage node, with one typed call for each request.
//!
//! For tools, recoveries and peers. The writer's hot path has its own non-blocking one in the driver.

use std::io::{self, BufReader};
use std::time::Duration;

use borealis_spec::Endpoint;
use borealis_types::invariant;
use borealis_types::membership::MembershipState;
use borealis_types::{
    DatabaseKey, EpochHistory, GroupId, Lsn, MetaKey, NodeId, PAGE_SIZE, PageKey, ReadPoint, RelationFork,
    SlruKind, VolumeEpoch, VolumeId, WriterId,
};
use borealis_wire::message::{append_header, decode_payload, encode_message};
use borealis_wire::{
    Boot, Caller, FrameError, GroupTail, NodeStatus, PageChecksum, Payload, Refusal, RelationSize,
    Remembered, Reply, Request, SegmentProgress, SegmentSummary, ValuePart, Whereabouts, read_frame,
    write_frame,
};

use crate::handshake::{Introduction, kind_of};
use crate::stream::Stream;
use crate::tls::Route;

/// The most entries a node puts into one list it answers with; a larger `limit` is lowered to this.
pub const MAX_LIST_ENTRIES: u32 = 4096;
/// The most pages of a transaction-status store that a node names in one answer; a larger `limit` is lowered to this.
pub const MAX_SLRU_PAGES: u32 = 1 << 16;

/// How long to wait for a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// For the connection to be made.
    pub connect: Duration,
    /// For bytes to move within one call.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(1), call: Duration::from_secs(10) }
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("cannot connect to node {node} at {address}: {source}")]
    Connect {
        /// The node that was meant.
        node: NodeId,
        /// Where it was expected to listen.
        address: Endpoint,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nothing moved for the time that was to be waited, while connecting, sending or receiving.
    #[error("node {node} at {address}: no answer within {}", in_words(*.within))]
    NoAnswer {
        /// The node that was asked.
        node: NodeId,
        /// Where it was expected to listen.
        address: Endpoint,
        /// How long was waited; what [`Timeouts`] says.
        within: Duration,
    },
    /// The node ended the connection, or its process ended.
    #[error("node {node} at {address} closed the connection")]
    Closed {
        /// The node that was asked.
        node: NodeId,
        /// Where the connection led.
        address: Endpoint,
    },
    /// The connection broke in another way, or what came is no frame.
    #[error("the connection to node {node} at {address} broke: {source}")]
    Broken {
        /// The node that was asked.
        node: NodeId,
        /// Where the connection leads.
        address: Endpoint,
        /// What the system said, or what is wrong with the frame.
        source: FrameError,
    },
    /// Nothing was sent: an earlier failure left it open which answer belongs to which request.
    #[error("the connection to node {node} at {address} was given up after an earlier failure")]
    GivenUp {
        /// The node that was not asked.
        node: NodeId,
        /// Where the connection leads.
        address: Endpoint,
    },
    /// The node answered something that is no answer to the request.
    #[error("node {node} at {address} broke the protocol: {what}")]
    Protocol {
        /// The node that was asked.
        node: NodeId,
        /// Where the connection leads.
        address: Endpoint,
        /// What is wrong with the answer.
        what: String,
    },
    /// The node refused, and the connection is as good as before.
    #[error("node {node} refused: {refusal}")]
    Refused {
        /// The node that was asked.
        node: NodeId,
        /// The reason it gave.
        refusal: Refusal,
    },
}

/// A duration as a person would say it: `10 s`, or `500 ms` where there are no whole seconds.
fn in_words(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}

/// Whether a socket's timeout passed. Linux says `EAGAIN` for it, as for a socket that does not block.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Whether the other side ended the connection, in order or not.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

impl ClientError {
    /// The refusal, if it is one (the connection is then still good).
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            ClientError::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// What a node stores of the memberships of its groups, and where other nodes are, as far as it knows.
pub type ToldMemberships = (Vec<(GroupId, MembershipState)>, Vec<Whereabouts>);

/// A connection to one node.
#[derive(Debug)]
pub struct NodeClient {
    node: NodeId,
    address: Endpoint,
    /// How long nothing may move within a call.
    patience: Duration,
    stream: BufReader<Stream>,
    /// Memory for the frame that is being received.
    payload: Vec<u8>,
    last_request_id: u64,
    /// Requests sent whose replies were not received yet, oldest first, all in one unbroken run of ids.
    outstanding: u64,
    /// After a failure an answer could be matched to the wrong request, so nothing more is asked.
    broken: bool,
    progress: Vec<SegmentProgress>,
    fenced_by: Option<VolumeEpoch>,
    welcome: Vec<SegmentSummary>,
}

macro_rules! typed_reply {
    ($self:ident, $request:expr, $pattern:pat => $value:expr) => {
        match $self.call(&$request)? {
            $pattern => Ok($value),
            other => Err($self.unexpected(&other)),
        }
    };
}

impl NodeClient {
    /// Connects to the node that is meant, and introduces the caller.
    ///
    /// # Errors
    /// When nobody listens, the node is another one or of another volume, or refuses the caller.
    pub fn connect<'a>(
        route: impl Into<Route<'a>>,
        volume: VolumeId,
        node: NodeId,
        caller: Caller,
        timeouts: Timeouts,
    ) -> Result<NodeClient, ClientError> {
        let introduction = Introduction { volume, node, caller, memberships: Vec::new() };
        NodeClient::introduced(route, &introduction, timeouts)
    }

    /// Connects to the node that is meant, with an introduction that says for which memberships it is meant.
    ///
    /// # Errors
    /// As [`NodeClient::connect`].
    pub fn introduced<'a>(
        route: impl Into<Route<'a>>,
        introduction: &Introduction,
        timeouts: Timeouts,
    ) -> Result<NodeClient, ClientError> {
        let (route, node) = (route.into(), introduction.node);
        let address = route.endpoint;
        let connect_error = |source| match is_timeout(&source) {
            true => ClientError::NoAnswer { node, address: address.clone(), within: timeouts.connect },
            false => ClientError::Connect { node, address: address.clone(), source },
        };
        let mut stream = Stream::connect(route, node, timeouts.connect).map_err(connect_error)?;
        stream.set_read_timeout(Some(timeouts.call)).map_err(connect_error)?;
        stream.set_write_timeout(Some(timeouts.call)).map_err(connect_error)?;
        let mut client = NodeClient {
            node,
            address: address.clone(),
            patience: timeouts.call,
            stream: BufReader::with_capacity(32 << 10, stream),
            payload: Vec::new(),
            last_request_id: 0,
            outstanding: 0,
            broken: false,
            progress: Vec::new(),
            fenced_by: None,
            welcome: Vec::new(),
        };
        let reply = client.call(&introduction.hello())?;
        client.welcome =
            introduction.judge(reply).map_err(|error| client.protocol_error(error.to_string()))?;
        Ok(client)
    }

    /// Which node it talks to.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The segments' state as the node gave it when the connection was made.
    #[must_use]
    pub fn welcome(&self) -> &[SegmentSummary] {
        &self.welcome
    }

    /// Whether the connection failed and a new one has to be made.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Progress the node reported unasked since the last call of this function.
    pub fn take_progress(&mut self) -> Vec<SegmentProgress> {
        std::mem::take(&mut self.progress)
    }

    /// The newer epoch that the node was promised to since it was connected to as a writer, if it said so unasked.
    #[must_use]
    pub fn fenced_by(&self) -> Option<VolumeEpoch> {
        self.fenced_by
    }

    /// Sends a request without waiting; [`NodeClient::receive`] returns the replies in the same order.
    ///
    /// # Errors
    /// When the connection is or gets broken.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let payload = encode_message(self.last_request_id + 1, request);
        self.send_payload(&payload)
    }

    /// Sends a redo batch without waiting; the reply is [`Reply::Appended`] once it is durable.
    ///
    /// # Errors
    /// When the connection is or gets broken.
    pub fn send_append(&mut self, batch: &[u8]) -> Result<(), ClientError> {
        let mut payload = append_header(self.last_request_id + 1).to_vec();
        payload.extend_from_slice(batch);
        self.send_payload(&payload)
    }

    fn send_payload(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        if self.broken {
            return Err(ClientError::GivenUp { node: self.node, address: self.address.clone() });
        }
        if let Err(error) = write_frame(self.stream.get_mut(), payload) {
            return Err(self.broken_error(error.into()));
        }
        self.last_request_id += 1;
        self.outstanding += 1;
        Ok(())
    }

    /// The reply to the oldest request that has none yet. A refusal is returned as an error.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    ///
    /// # Panics
    /// If no reply is due.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        if self.broken {
            return Err(ClientError::GivenUp { node: self.node, address: self.address.clone() });
        }
        invariant!(
            "awaited-replies-were-asked-for",
            (1..=self.last_request_id).contains(&self.outstanding),
            "{} replies are awaited, {} requests were sent",
            self.outstanding,
            self.last_request_id
        );
        let expected = self.last_request_id - self.outstanding + 1;
        loop {
            match read_frame(&mut self.stream, &mut self.payload) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(self.broken_error(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                }
                Err(error) => return Err(self.broken_error(error)),
            }
            let decoded = match decode_payload::<Reply>(&self.payload) {
                Ok(Payload::Message { request_id, message }) => Ok((request_id, message)),
                Ok(Payload::Append { .. }) => Err("it sent an append".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match decoded {
                Ok((0, Reply::Progress(progress))) => self.progress.extend(progress),
                Ok((0, Reply::Refused(Refusal::Fenced(newer)))) => {
                    self.fenced_by = self.fenced_by.max(Some(newer));
                }
                // Nothing that is under way was made for the members that there are now.
                Ok((0, Reply::Refused(refusal @ Refusal::OtherMembership { .. }))) => {
                    self.broken = true;
                    return Err(ClientError::Refused { node: self.node, refusal });
                }
                Ok((request_id, reply)) if request_id == expected => {
                    self.outstanding -= 1;
                    return match reply {
                        Reply::Refused(refusal) => Err(ClientError::Refused { node: self.node, refusal }),
                        reply => Ok(reply),
                    };
                }
                Ok((request_id, _)) => {
                    return Err(self.protocol_error(format!("reply {request_id} where {expected} was due")));
                }
                Err(what) => return Err(self.protocol_error(what)),
            }
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    ///
    /// # Panics
    /// If replies to earlier [`NodeClient::send`]s are still due.
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.expect_no_replies();
        self.send(request)?;
        self.receive()
    }

    /// Before a call: its reply would otherwise be taken for an earlier request's.
    fn expect_no_replies(&self) {
        invariant!(
            "call-awaits-one-reply",
            self.broken || self.outstanding == 0,
            "{} replies to earlier requests are still due",
            self.outstanding
        );
    }

    fn broken_error(&mut self, source: FrameError) -> ClientError {
        self.broken = true;
        let (node, address) = (self.node, self.address.clone());
        match &source {
            FrameError::Io(error) if is_timeout(error) => {
                ClientError::NoAnswer { node, address, within: self.patience }
            }
            FrameError::Io(error) if is_closed(error) => ClientError::Closed { node, address },
            _ => ClientError::Broken { node, address, source },
        }
    }

    pub(crate) fn protocol_error(&mut self, what: String) -> ClientError {
        self.broken = true;
        ClientError::Protocol { node: self.node, address: self.address.clone(), what }
    }

    /// Describes a reply of the wrong kind, and gives the connection up.
    fn unexpected(&mut self, reply: &Reply) -> ClientError {
        let kind = kind_of(reply);
        self.protocol_error(format!("a reply of kind {kind} that does not answer the request"))
    }

    /// Appends a redo batch; on return everything in it is durable on the node.
    ///
    /// # Errors
    /// When the node refused (for example [`Refusal::Fenced`]) or the connection is or gets broken.
    pub fn append(&mut self, batch: &[u8]) -> Result<Vec<SegmentProgress>, ClientError> {
        self.expect_no_replies();
        self.send_append(batch)?;
        match self.receive()? {
            Reply::Appended(progress) => Ok(progress),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Promises every segment of the node to a new writer.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] when a newer one was promised already; or the connection is or gets broken.
    pub fn fence(
        &mut self,
        epoch: VolumeEpoch,
        writer: WriterId,
    ) -> Result<Vec<SegmentSummary>, ClientError> {
        typed_reply!(self, Request::Fence { epoch, writer }, Reply::Summaries(summaries) => summaries)
    }

    /// The state of every segment.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn summaries(&mut self) -> Result<Vec<SegmentSummary>, ClientError> {
        typed_reply!(self, Request::Summaries, Reply::Summaries(summaries) => summaries)
    }

    /// Records of a group that end above `above`: encoded batches, and whether there is more.
    ///
    /// # Errors
    /// [`Refusal::NotReadable`] when the node no longer keeps log that old; or the connection is or gets broken.
    pub fn read_tail(
        &mut self,
        group: GroupId,
        above: Lsn,
        limit_bytes: u32,
    ) -> Result<(Vec<Vec<u8>>, bool), ClientError> {
        typed_reply!(self, Request::ReadTail { group, above, limit_bytes }, Reply::Tail { batches, more } => (batches, more))
    }

    /// Records the outcome of a recovery on every segment of the node.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn install(
        &mut self,
        epoch: VolumeEpoch,
        writer: WriterId,
        history: &EpochHistory,
        tails: &[GroupTail],
    ) -> Result<Vec<SegmentSummary>, ClientError> {
        let request = Request::Install { epoch, writer, history: history.clone(), tails: tails.to_vec() };
        typed_reply!(self, request, Reply::Summaries(summaries) => summaries)
    }

    /// Brings records that a recovery decided to keep into one group's segment.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn repair(
        &mut self,
        epoch: VolumeEpoch,
        writer: WriterId,
        group: GroupId,
        history: &EpochHistory,
        batches: Vec<Vec<u8>>,
    ) -> Result<Vec<SegmentSummary>, ClientError> {
        let request = Request::Repair { epoch, writer, group, history: history.clone(), batches };
        typed_reply!(self, request, Reply::Summaries(summaries) => summaries)
    }

    /// A page as of an LSN; `None` if it does not exist then.
    ///
    /// # Errors
    /// [`Refusal::NotReadable`] or another refusal, or the connection is or gets broken.
    pub fn read_page(
        &mut self,
        group: GroupId,
        key: PageKey,
        at: impl Into<ReadPoint>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let page: Option<Vec<u8>> =
            typed_reply!(self, Request::ReadPage { group, key, at: at.into() }, Reply::Page(page) => page)?;
        match &page {
            Some(bytes) if bytes.len() != PAGE_SIZE => {
                Err(self.protocol_error(format!("a page of {} bytes", bytes.len())))
            }
            _ => Ok(page),
        }
    }

    /// The size in blocks of one group's part of a fork; `None` if the group does not know the fork.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn relation_size(
        &mut self,
        group: GroupId,
        relation_fork: RelationFork,
        at: impl Into<ReadPoint>,
    ) -> Result<Option<u32>, ClientError> {
        typed_reply!(self, Request::RelationSize { group, relation_fork, at: at.into() }, Reply::RelationSize(blocks) => blocks)
    }

    /// One page of the list of a database's forks in one group.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn list_relations(
        &mut self,
        group: GroupId,
        database: DatabaseKey,
        at: impl Into<ReadPoint>,
        after: Option<RelationFork>,
        limit: u32,
    ) -> Result<Vec<RelationSize>, ClientError> {
        let request = Request::ListRelations { group, database, at: at.into(), after, limit };
        typed_reply!(self, request, Reply::Relations(relations) => relations)
    }

    /// The pages of a transaction-status store from page `from` on, at most `limit`.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn slru_pages(
        &mut self,
        kind: SlruKind,
        at: impl Into<ReadPoint>,
        from: u32,
        limit: u32,
    ) -> Result<Vec<u32>, ClientError> {
        let request = Request::SlruPages { kind, at: at.into(), from, limit };
        typed_reply!(self, request, Reply::SlruPages(pages) => pages)
    }

    /// A value as of an LSN, part by part; `None` if it does not exist then.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken, or the parts are not of one value.
    pub fn read_meta(
        &mut self,
        key: MetaKey,
        at: impl Into<ReadPoint>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let at = at.into();
        let mut value: Vec<u8> = Vec::new();
        loop {
            let request = Request::ReadMeta { key: key.clone(), at, offset: value.len() as u64 };
            let part = typed_reply!(self, request, Reply::Meta(part) => part)?;
            let Some(part) = part else { return Ok(None) };
            value.extend_from_slice(&part.bytes);
            if (value.len() as u64) < part.total_bytes && !part.bytes.is_empty() {
                continue;
            }
            if !part.completes(&value) {
                return Err(self.protocol_error(format!("parts of {key:?} that do not make one value")));
            }
            return Ok(Some(value));
        }
    }

    /// One page of the list of values, of a long one its first part; and whether there is more after it.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn list_meta(
        &mut self,
        at: impl Into<ReadPoint>,
        after: Option<MetaKey>,
        limit: u32,
    ) -> Result<(Vec<(MetaKey, ValuePart)>, bool), ClientError> {
        let request = Request::ListMeta { at: at.into(), after, limit };
        typed_reply!(self, request, Reply::MetaList { values, more } => (values, more))
    }

    /// One page of the list of a group's page checksums.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn page_checksums(
        &mut self,
        group: GroupId,
        at: impl Into<ReadPoint>,
        after: Option<PageKey>,
        limit: u32,
    ) -> Result<Vec<PageChecksum>, ClientError> {
        let request = Request::PageChecksums { group, at: at.into(), after, limit };
        typed_reply!(self, request, Reply::PageChecksums(checksums) => checksums)
    }

    /// One page of the list of a group's forks in all databases.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn list_forks(
        &mut self,
        group: GroupId,
        at: impl Into<ReadPoint>,
        after: Option<RelationFork>,
        limit: u32,
    ) -> Result<Vec<RelationSize>, ClientError> {
        let request = Request::ListForks { group, at: at.into(), after, limit };
        typed_reply!(self, request, Reply::Relations(relations) => relations)
    }

    /// Asks, as a peer, that everything of a group as of an LSN is kept for so long; about how many pages it has. No time
    /// at all ends what was asked before.
    ///
    /// # Errors
    /// [`Refusal::NotReadable`] when it is not there or not any more; or the connection is or gets broken.
    pub fn pin(
        &mut self,
        group: GroupId,
        at: impl Into<ReadPoint>,
        lease: Duration,
    ) -> Result<u64, ClientError> {
        let lease_ms = u32::try_from(lease.as_millis()).unwrap_or(u32::MAX);
        typed_reply!(self, Request::Pin { group, at: at.into(), lease_ms }, Reply::Pinned { pages } => pages)
    }

    /// The node's boot, and what it remembers of `node`.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn acquaint(&mut self, node: NodeId) -> Result<(Boot, Option<Remembered>), ClientError> {
        typed_reply!(self, Request::Acquaint { node }, Reply::Acquainted { boot, remembered } => (boot, remembered))
    }

    /// What the node stores of the memberships of its groups, and where other nodes are, as far as it knows.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn memberships(&mut self) -> Result<ToldMemberships, ClientError> {
        typed_reply!(self, Request::Memberships, Reply::Memberships { states, nodes } => (states, nodes))
    }

    /// The node's own state, for people and scripts.
    ///
    /// # Errors
    /// When the node refused or the connection is or gets broken.
    pub fn status(&mut self) -> Result<NodeStatus, ClientError> {
        typed_reply!(self, Request::Status, Reply::Status(status) => status)
    }
}

#[cfg(test)]
mod tests;
