//! The handshake of every connection: what the caller says first, how the node judges it, how the caller judges the
//! answer.
//!
//! Both sides stand here, so that they cannot drift apart. What is judged came over a network: it is refused, with a
//! reason that a person can act on, and never asserted.

use borealis_spec::{Identity, Role};
use borealis_types::{GroupId, MembershipEpoch, NodeId, VolumeId};
use borealis_wire::message::PROTOCOL_VERSION;
use borealis_wire::{Caller, Refusal, Reply, Request, SegmentSummary};

/// What a caller says first: who it is, and whom it means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// The volume it means. A node of another one refuses.
    pub volume: VolumeId,
    /// The node it means. Another one refuses, though it may listen where this one used to.
    pub node: NodeId,
    /// Who calls, and so what it may ask (`borealis_wire::roles`).
    pub caller: Caller,
    /// Of a writer, a reader or a recovery: for which membership of each group everything is meant that it asks.
    pub memberships: Vec<(GroupId, MembershipEpoch)>,
}

/// Why an introduction did not lead to a connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The node refused the caller.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer is another node's, which accepted an introduction that was not meant for it.
    #[error("node {answered} answered where node {meant} was meant")]
    OtherNode {
        /// The node that the caller meant.
        meant: NodeId,
        /// The number that the node said it has.
        answered: NodeId,
    },
    /// The reply is none to an introduction.
    #[error("a reply of kind {0} that does not answer the introduction")]
    NoWelcome(String),
}

impl Introduction {
    /// The first request on a connection.
    #[must_use]
    pub fn hello(&self) -> Request {
        let Introduction { volume, node, caller, ref memberships } = *self;
        Request::Hello { protocol: PROTOCOL_VERSION, volume, node, caller, memberships: memberships.clone() }
    }

    /// Judges the reply to [`Introduction::hello`]; returns the node's segments as they are now.
    ///
    /// # Errors
    /// When it is no welcome by the node that was meant. The connection is then of no use.
    pub fn judge(&self, reply: Reply) -> Result<Vec<SegmentSummary>, HandshakeError> {
        match reply {
            Reply::Welcome { node, segments } if node == self.node => Ok(segments),
            Reply::Welcome { node: answered, .. } => {
                Err(HandshakeError::OtherNode { meant: self.node, answered })
            }
            Reply::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
            other => Err(HandshakeError::NoWelcome(kind_of(&other))),
        }
    }
}

/// The node's side: judges what a caller said about protocol, volume and node.
///
/// # Errors
/// The refusal to answer with, if the caller speaks another protocol or means somebody else.
pub fn judge_hello(
    (protocol, meant_volume, meant_node): (u16, VolumeId, NodeId),
    volume: VolumeId,
    node: NodeId,
) -> Result<(), Refusal> {
    if protocol != PROTOCOL_VERSION {
        return Err(Refusal::Protocol(PROTOCOL_VERSION));
    }
    if (meant_volume, meant_node) != (volume, node) {
        return Err(Refusal::Identity);
    }
    Ok(())
}

/// The node's side, over TLS: judges whether a caller's certificate lets it be what it says it is. Who writes, recovers or
/// reads for a writer has to be an instance of the volume, a peer that very node; anyone of the fleet may look, but an
/// instance of another volume has no business here.
///
/// # Errors
/// The refusal to answer with.
pub fn judge_certificate(identity: &Identity, caller: &Caller, volume: VolumeId) -> Result<(), Refusal> {
    let wanted = match (*caller, identity.role) {
        (_, Role::Instance(other, _)) if other != volume => format!("an instance of volume {volume}"),
        (Caller::Writer { .. } | Caller::Reader { .. } | Caller::Recovery, Role::Instance(..)) => {
            return Ok(());
        }
        (Caller::Writer { .. } | Caller::Reader { .. } | Caller::Recovery, _) => {
            format!("an instance of volume {volume}")
        }
        (Caller::Peer(peer), Role::Node(node)) if peer == node => return Ok(()),
        (Caller::Peer(peer), _) => format!("node {peer}"),
        (Caller::Controller, Role::Controller) => return Ok(()),
        (Caller::Controller, _) => "the controller".to_owned(),
        (Caller::Client, _) => return Ok(()),
    };
    Err(Refusal::Forbidden(format!("it is that of {identity}, where that of {wanted} is needed")))
}

/// The name of a reply's kind, without its contents, which may be large.
#[must_use]
pub fn kind_of(reply: &Reply) -> String {
    format!("{reply:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANT: Introduction = Introduction {
        volume: VolumeId(1),
        node: NodeId(2),
        caller: Caller::Client,
        memberships: Vec::new(),
    };

    fn answered_by(volume: VolumeId, node: NodeId, protocol: u16) -> Reply {
        let Request::Hello { volume: meant_volume, node: meant_node, .. } = MEANT.hello() else {
            panic!("an introduction begins with a hello");
        };
        match judge_hello((protocol, meant_volume, meant_node), volume, node) {
            Ok(()) => Reply::Welcome { node, segments: Vec::new() },
            Err(refusal) => Reply::Refused(refusal),
        }
    }

    #[test]
    fn the_two_sides_agree() {
        let judged = |reply| MEANT.judge(reply).map_err(|error| error.to_string());
        assert_eq!(judged(answered_by(VolumeId(1), NodeId(2), PROTOCOL_VERSION)), Ok(Vec::new()));
        for (reply, expected) in [
            (answered_by(VolumeId(9), NodeId(2), PROTOCOL_VERSION), "not the one that was meant"),
            (answered_by(VolumeId(1), NodeId(3), PROTOCOL_VERSION), "not the one that was meant"),
            (answered_by(VolumeId(1), NodeId(2), PROTOCOL_VERSION + 1), "run the same version"),
        ] {
            let why = judged(reply).expect_err(expected);
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn a_welcome_by_another_node_is_refused() {
        let welcome = Reply::Welcome { node: NodeId(3), segments: Vec::new() };
        let expected = HandshakeError::OtherNode { meant: NodeId(2), answered: NodeId(3) };
        assert_eq!(MEANT.judge(welcome), Err(expected));
        let error = MEANT.judge(Reply::Appended(Vec::new())).expect_err("no welcome");
        assert!(error.to_string().contains("kind Appended"), "{error}");
    }

    #[test]
    fn a_certificate_lets_its_owner_be_what_it_is() {
        let (own, other) = (VolumeId(1), VolumeId(2));
        let fleet = "f".parse().expect("a name");
        let mut identity = Identity { fleet, role: Role::Client };
        let (epoch, writer) = (borealis_types::VolumeEpoch(3), borealis_types::WriterId(7));
        let callers = [
            Caller::Writer { epoch, writer },
            Caller::Reader { epoch, writer },
            Caller::Recovery,
            Caller::Peer(NodeId(2)),
            Caller::Client,
            Caller::Controller,
        ];
        for (role, allowed) in [
            (Role::Instance(own, borealis_types::InstanceId(1)), [true, true, true, false, true, false]),
            (Role::Instance(other, borealis_types::InstanceId(1)), [false; 6]),
            (Role::Node(NodeId(2)), [false, false, false, true, true, false]),
            (Role::Node(NodeId(3)), [false, false, false, false, true, false]),
            (Role::Controller, [false, false, false, false, true, true]),
            (Role::Client, [false, false, false, false, true, false]),
        ] {
            identity.role = role;
            let judged = callers.map(|caller| judge_certificate(&identity, &caller, own));
            assert_eq!(judged.clone().map(|judged| judged.is_ok()), allowed, "{role:?}");
            for refusal in judged.into_iter().filter_map(Result::err) {
                let said = refusal.to_string();
                assert!(said.contains(&identity.to_string()) && said.contains("is needed"), "{said}");
            }
        }
    }
}
