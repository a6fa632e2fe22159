//! Wire messages and framing between driver, storage nodes and tools.
//!
//! Invariant: pure but for the two blocking helpers in [`frame`], which only read and write what they are
//! given. Nothing a peer sends can panic the receiver or make it allocate more than it sent.

pub mod batch;
mod batch_frame;
mod byte_string;
pub mod frame;
pub mod message;
pub mod roles;

pub use batch::{BatchBuilder, BatchError, BatchHeader, BatchReader, BatchRecord, GroupLink, GroupTail};
pub use batch_frame::BatchFrame;
pub use frame::{FrameBuffer, FrameError, read_frame, write_frame};
pub use message::{
    Boot, Caller, NodeStatus, PageChecksum, Payload, PeerHeard, RefillProgress, Refusal, RelationSize,
    Remembered, RememberedSegment, Reply, Request, SegmentProgress, SegmentSummary, ValuePart, Whereabouts,
};
