//! What storage nodes, drivers and the control side must agree on, as plain types with validation.
//!
//! * [`endpoint`]: where a node listens.
//! * [`identity`]: who a part of a fleet is, as its certificate says, and the files of that certificate.
//! * [`membership`]: which node is where, and which nodes have which group.
//! * [`assignment`]: which nodes are to have which group, and the moves that get there.
//! * [`node`]: the file `node.json`, which the control side writes and a node reads.
//! * [`instance`]: the file `instance.json`, which the control side writes and a driver reads.
//!
//! Nodes are known by [`borealis_types::NodeId`], never by a position in a list. Reading and writing the files is left
//! to whoever does I/O: this crate has the types, their encoding, and the pure checks.
//!
//! # Two summaries of a segment
//!
//! `borealis_wire::SegmentSummary` and `borealis_quorum::segment::SegmentSummary` are two types on purpose. The first is
//! a message: what a node tells anyone, including where it can be read and how far it is materialized, in an encoding
//! that must not change by accident. The second is the state of one chain: it is also part of the checkpoints in a
//! node's log, and has the whole span of the last record, which no caller needs. One type would tie the wire protocol,
//! the checkpoint format and the state machine to one another. `borealis_quorum` has the one conversion.
//!
//! Invariant: plain data and pure functions only.

pub mod assignment;
pub mod endpoint;
pub mod identity;
pub mod instance;
pub mod membership;
pub mod metrics_address;
pub mod node;

pub use endpoint::{Endpoint, ParseEndpointError};
pub use identity::{FleetName, Identity, ParseIdentityError, Role, TlsFiles};
pub use instance::{DriverConfig, Tuning};
pub use membership::{GroupMembers, Membership, NodeAddress};
pub use metrics_address::{MetricsAddress, ParseMetricsAddressError};
pub use node::{BackupConfig, NodeConfig};

/// A configuration that contradicts itself. The text names the first contradiction.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Contradiction(pub(crate) String);

/// Refuses a configuration unless the condition holds.
macro_rules! require {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Contradiction(format!($($message)+)));
        }
    };
}
pub(crate) use require;
