//! Quorum protocol as pure state machines: segment chain, writer tracking, recovery, read routing.
//!
//! Invariant: no I/O, no clock, no randomness, no iteration in hash order. Every machine here takes events
//! (and `now` where time matters) and returns what to do; the storage node, the driver and the simulation
//! run the same code.
//!
//! # Why it is safe
//!
//! *Streams.* One writer per completed recovery, so the records of one [`VolumeEpoch`] form one stream. The
//! stream of epoch `e` starts where the opening of `e` ends.
//!
//! *Histories.* A recovery takes the history with the newest epoch among the segments it fenced and adds its
//! own opening. A history **replaces** an older one as a whole; the two are never merged entry by entry.
//! A recovery that stopped while installing leaves its opening on a minority; the next recovery may not
//! see it and may decide to keep records that it cut. Were both openings kept, the segments of the
//! minority would refuse records that are durable. A recovery that completed was stored by a write quorum of
//! every group, every later fence meets that quorum, so every later history extends it. What the two members of that
//! meeting have *in common* counts, not how their histories end: each may end with another recovery that died.
//!
//! *One record per position.* Under one history the admitted records of different epochs lie in disjoint
//! ranges, and a writer sends records only in the epoch that its history ends with. So a segment, which
//! keeps only records that its history admits, can never have to choose between two records for one position.
//!
//! *One release per record.* An opening says which release of PostgreSQL writes in its epoch. For a record that a
//! history admits, the newest opening before it is the one of its own epoch, and later openings lie at or after its
//! end: every segment that has the record knows its writer's release from its own history, and never has reason to
//! change its mind ([`borealis_types::EpochHistory::server_version_at`]).
//!
//! *Acknowledged is found.* An acknowledged record is chain-complete on four of six segments before their
//! fence; any four fenced segments contain two of those.

pub mod corroboration;
pub mod evidence;
pub mod membership;
pub mod quorum_set;
pub mod read_routing;
pub mod recovery;
pub mod segment;
pub mod writer;

use borealis_types::{Lsn, RecordSpan, VolumeEpoch, WriterId};
pub use borealis_wire::{GroupLink, GroupTail};
use serde::{Deserialize, Serialize};

/// The link of one record in the chain of one protection group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ChainLink {
    /// End of the previous record of the same group; zero for the group's first.
    pub previous_end: Lsn,
    /// The record; it begins at or after `previous_end`.
    pub span: RecordSpan,
}

/// To whom a segment has promised to refuse everyone older.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Promise {
    /// The promised epoch; zero before the first promise.
    pub epoch: VolumeEpoch,
    /// Who opened it; zero if this was learned from a peer that did not know.
    pub writer: WriterId,
}

/// A volume position known to be durable, as one group sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct DurablePoint {
    /// The volume's last durable record (VDL).
    pub volume: RecordSpan,
    /// End of the group's last record that is not after it; zero if the group has none.
    pub group_tail: Lsn,
}
