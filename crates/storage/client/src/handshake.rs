//! The handshake of every connection: what the caller says first, how the node judges it, how the caller judges the
//! answer.
//!
//! Both sides stand here, so that they cannot drift apart. What is judged came over a network: it is refused, with a
//! reason that a person can act on, and never asserted.

use borealis_types::{NodeId, VolumeId};
use borealis_wire::message::PROTOCOL_VERSION;
use borealis_wire::{Caller, Refusal, Reply, Request, SegmentSummary};

/// What a caller says first: who it is, and whom it means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// The volume it means. A node of another one refuses.
    pub volume: VolumeId,
    /// The node it means. Another one refuses, though it may listen where this one used to.
    pub node: NodeId,
    /// Who calls, and so what it may ask (`borealis_wire::roles`).
    pub caller: Caller,
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
    pub fn hello(self) -> Request {
        let Introduction { volume, node, caller } = self;
        Request::Hello { protocol: PROTOCOL_VERSION, volume, node, caller }
    }

    /// Judges the reply to [`Introduction::hello`]; returns the node's segments as they are now.
    ///
    /// # Errors
    /// When it is no welcome by the node that was meant. The connection is then of no use.
    pub fn judge(self, reply: Reply) -> Result<Vec<SegmentSummary>, HandshakeError> {
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

/// The name of a reply's kind, without its contents, which may be large.
#[must_use]
pub fn kind_of(reply: &Reply) -> String {
    format!("{reply:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANT: Introduction = Introduction { volume: VolumeId(1), node: NodeId(2), caller: Caller::Client };

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
}
