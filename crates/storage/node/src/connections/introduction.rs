//! The first frame of a connection: who calls, whether its certificate says so, and whether this is the node that is
//! meant.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::handshake::{judge_certificate, judge_hello};
use borealis_client::stream::Stream;
use borealis_quorum::Promise;
use borealis_spec::Identity;
use borealis_store::Store;
use borealis_types::{GroupId, MembershipEpoch, NodeId, VolumeEpoch, VolumeId, WriterId};
use borealis_wire::frame::MAX_PAYLOAD_BYTES;
use borealis_wire::message::decode_payload;
use borealis_wire::roles::{HELLO_LIMIT_BYTES, REQUEST_LIMIT_BYTES};
use borealis_wire::{Caller, FrameError, Payload, Refusal, Reply, Request};

use super::ended::Ended;
use super::places::Kind;
use super::receiver::Receiver;
use super::replies::push_reply;
use crate::line_throttle::LineThrottle;
use crate::members::Members;
use crate::open_connections::{Connection, Listed, TooMany};
use crate::refusals::Refusals;
use crate::standing::Standing;

/// A caller that has not introduced itself by then is disconnected, however it drips its bytes; the handshake of TLS is
/// part of that.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A frame that stops in the middle for this long breaks the connection; the whole of it has a limit of its own.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// What is asked of the socket at a time: for a writer, and for anyone else.
const WRITER_CHUNK_BYTES: usize = 256 << 10;
const CHUNK_BYTES: usize = 16 << 10;

/// The node that callers must mean.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeId,
    /// Says who is a peer: the nodes that have a segment of one of this node's groups, and nobody else.
    pub(crate) members: Arc<Members>,
    pub(crate) store: Arc<Store>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) mistaken_lines: LineThrottle,
    pub(crate) standing: Arc<Standing>,
}

impl Host {
    /// `identity`: what the caller's certificate says, if it came over TLS.
    fn answer(
        &self,
        hello: (u16, VolumeId, NodeId),
        caller: Caller,
        made_for: &[(GroupId, MembershipEpoch)],
        identity: Option<&Identity>,
    ) -> Reply {
        if let Err(refusal) = judge_hello(hello, self.volume, self.node) {
            if refusal == Refusal::Identity
                && let Some(suppressed) = self.mistaken_lines.admit()
            {
                // Told here and not to the caller, who may be anyone.
                let (_, volume, node) = hello;
                tracing::warn!(%volume, %node, suppressed, "a caller meant another node than this one");
            }
            return Reply::Refused(refusal);
        }
        if let Some(identity) = identity
            && let Err(refusal) = judge_certificate(identity, &caller, self.volume)
        {
            if let Some(suppressed) = self.mistaken_lines.admit() {
                tracing::warn!(%identity, suppressed, "a caller was refused: {refusal}");
            }
            return Reply::Refused(refusal);
        }
        if let Err(refusal) = self.check_members(caller, made_for) {
            return Reply::Refused(refusal);
        }
        // Whoever comes now counts on what this node says that it has.
        if !matches!(caller, Caller::Peer(_)) {
            self.standing.wait_for_words();
        }
        if let Caller::Writer { epoch, .. } = caller
            && has_begun(&self.store, epoch)
            && let Err(refusal) = self.store.check_takes_redo()
        {
            // It tries again, and sends redo only once it is welcome.
            return Reply::Refused(refusal);
        }
        match self.store.summaries() {
            Ok(segments) => Reply::Welcome { node: self.node, segments },
            // The state of a failed node is still to be had, see `Requests::status`.
            Err(_) if caller == Caller::Client => Reply::Welcome { node: self.node, segments: Vec::new() },
            Err(error) => Reply::Refused(self.refusals.of(&error)),
        }
    }
}

impl Host {
    /// Refuses who is no peer, and who goes by another membership than is acted on here: with what is stored, so that it
    /// learns.
    fn check_members(&self, caller: Caller, made_for: &[(GroupId, MembershipEpoch)]) -> Result<(), Refusal> {
        let epoch = match caller {
            Caller::Peer(peer) if peer == self.node => {
                return Err(Refusal::Misuse(format!("node {peer} is no peer of itself")));
            }
            Caller::Peer(peer) if !self.members.is_fellow(peer) => {
                self.members.note_knock(peer);
                return Err(self.members.refusal_of_stranger(&self.refusals));
            }
            Caller::Peer(_) | Caller::Client | Caller::Controller => return Ok(()),
            Caller::Writer { epoch, .. } | Caller::Reader { epoch, .. } => Some(epoch),
            Caller::Recovery => None,
        };
        let checked = self.store.check_made_for(made_for, epoch);
        checked.map_err(|error| self.members.refusal(&error, &self.refusals))
    }

    /// The memberships that everything is meant for that this caller asks: those it names, and of every other group the first.
    fn meant_by(
        &self,
        caller: Caller,
        named: Vec<(GroupId, MembershipEpoch)>,
    ) -> Vec<(GroupId, MembershipEpoch)> {
        match caller {
            Caller::Writer { .. } | Caller::Reader { .. } | Caller::Recovery => {
                with_unnamed(named, self.store.identity().placement.groups())
            }
            Caller::Peer(_) | Caller::Client | Caller::Controller => named,
        }
    }
}

/// Adds the first membership of each of these groups that a caller does not name. The store passes over what is not listed,
/// for peers list nothing: a writer or a recovery that lists nothing would be taken whoever the members are by now.
fn with_unnamed(
    mut named: Vec<(GroupId, MembershipEpoch)>,
    groups: impl IntoIterator<Item = GroupId>,
) -> Vec<(GroupId, MembershipEpoch)> {
    for group in groups {
        if named.iter().all(|(of, _)| *of != group) {
            named.push((group, MembershipEpoch(1)));
        }
    }
    named
}

/// Whether the recovery that opened this epoch is over, as far as this node knows: all its segments have that history. What a
/// writer sends before is that recovery's, which is taken below the watermark of free space, too.
fn has_begun(store: &Store, epoch: VolumeEpoch) -> bool {
    let has = |group| store.with_segment(group, |segment| segment.history().newest_epoch() >= epoch);
    store.groups().into_iter().all(|group| has(group).unwrap_or(true))
}

/// Whether a caller is the writer that this node promised its epoch to, or its reader, in any of its segments. A promise
/// learned from a
/// peer does not name the writer; then it is whoever comes in that epoch, as for appends.
pub(super) fn holds_promise(store: &Store, caller: &Caller) -> bool {
    let (Caller::Writer { epoch, writer } | Caller::Reader { epoch, writer }) = *caller else { return false };
    let is_it = |standing: Promise| {
        standing.epoch == epoch && (standing.writer == writer || standing.writer == WriterId(0))
    };
    let mut groups = store.groups().into_iter();
    groups.any(|group| store.with_segment(group, |segment| is_it(segment.promise())).unwrap_or(false))
}

/// The kind of places that a caller belongs to.
fn kind_of(store: &Store, caller: &Caller) -> Kind {
    match caller {
        Caller::Writer { .. } | Caller::Reader { .. } if holds_promise(store, caller) => Kind::PromisedWriter,
        Caller::Writer { .. } | Caller::Recovery => Kind::OtherWriter,
        // Whose writer has no promise here is no more than anyone.
        Caller::Client | Caller::Reader { .. } | Caller::Controller => Kind::Client,
        Caller::Peer(node) => Kind::Peer(*node),
    }
}

/// Waits for the `Hello` until the deadline, and answers it; returns who calls, and what its requests are received with. `None` when the
/// caller was refused or said nothing.
pub(super) fn introduce(
    host: &Host,
    connection: &Connection,
    listed: &Listed,
    (stream, identity): (Stream, Option<Identity>),
    deadline: Instant,
) -> Result<Option<(Caller, Receiver)>, Ended> {
    let mut receiver = Receiver::new(stream, HELLO_LIMIT_BYTES, HELLO_LIMIT_BYTES);
    let frame = match receiver.frame_before(deadline) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(Ended::Garbage("no introduction came in time".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let (request_id, hello) = match decode_payload::<Request>(&frame) {
        Ok(Payload::Message { request_id, message }) => (request_id, message),
        Ok(Payload::Append { .. }) => {
            return Err(Ended::Garbage("an append before the introduction".to_owned()));
        }
        Err(error) => return Err(Ended::Garbage(error.to_string())),
    };
    let Request::Hello { protocol, volume, node, caller, memberships } = hello else {
        return Err(Ended::Garbage("a request before the introduction".to_owned()));
    };
    let memberships = host.meant_by(caller, memberships);
    let mut reply = host.answer((protocol, volume, node), caller, &memberships, identity.as_ref());
    if matches!(reply, Reply::Welcome { .. })
        && let Err(TooMany { open, kind }) = listed.introduce(kind_of(&host.store, &caller))
    {
        let what = format!("all places for {kind:?} are taken by callers at work; {open} are connected");
        reply = Reply::Refused(Refusal::Busy(what));
    }
    let mut frames = Vec::new();
    push_reply(&mut frames, request_id, &reply);
    connection.send(&frames)?;
    if !matches!(reply, Reply::Welcome { .. }) {
        return Ok(None);
    }
    let (writer, chunk_bytes, limit_bytes) = match caller {
        Caller::Writer { epoch, writer } => {
            (Some(Promise { epoch, writer }), WRITER_CHUNK_BYTES, MAX_PAYLOAD_BYTES)
        }
        Caller::Recovery => (None, CHUNK_BYTES, MAX_PAYLOAD_BYTES),
        Caller::Client | Caller::Peer(_) | Caller::Reader { .. } | Caller::Controller => {
            (None, CHUNK_BYTES, REQUEST_LIMIT_BYTES)
        }
    };
    connection.introduce(writer, memberships);
    // What each request may take is judged when it begins to arrive, see `Session::run`.
    receiver.set_limits(chunk_bytes, limit_bytes);
    receiver.set_timeout(FRAME_TIMEOUT)?;
    Ok(Some((caller, receiver)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_no_membership_of_a_group_knows_the_first() {
        let groups = [0, 1].map(GroupId);
        let named = |group, epoch| (GroupId(group), MembershipEpoch(epoch));
        assert_eq!(with_unnamed(vec![], groups), [named(0, 1), named(1, 1)]);
        assert_eq!(with_unnamed(vec![named(1, 4)], groups), [named(1, 4), named(0, 1)]);
        let all = vec![named(2, 1), named(1, 2), named(0, 3)];
        assert_eq!(with_unnamed(all.clone(), groups), all, "a node hosts some groups only");
        assert!(with_unnamed(vec![], []).is_empty(), "no group, or none whose members can change");
    }
}
