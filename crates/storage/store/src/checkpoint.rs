//! The checkpoint file: everything a restart needs except the log from [`Checkpoint::replay_from`] on.
//!
//! It is replaced as a whole (see [`crate::directory`]), and only after the pages it names and the log it
//! summarizes are durable.

use std::sync::Arc;

use borealis_quorum::segment::{Segment, SegmentCheckpoint};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::directory::{Directory, decode, encode};
use crate::log::batch_locations::{BatchLocations, FileBatches, GroupRange};
use crate::log::position::LogPosition;
use crate::pages::materialized_state::MaterializedState;
use crate::pages::refilled::Refilled;
use crate::pages::shared_state;
use crate::segment::stay::Stay;

const MAGIC: [u8; 8] = *b"BORCHKP\x03";

/// The contents of the checkpoint file, in the order in which they are encoded.
#[derive(Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// What the store's log entries and pages are sealed with.
    pub seal: u128,
    /// A restart needs no entry before this position.
    pub replay_from: LogPosition,
    /// The log's end when the chains in `segments` were copied.
    pub log_end: LogPosition,
    pub segments: Vec<CheckpointedSegment>,
    /// What is left of segments whose node is no member of their group.
    pub absent: Vec<SegmentCheckpoint>,
    /// Which redo is in the files before `replay_from`: lagging peers may still ask for it.
    pub files: Vec<(u32, Vec<GroupRange>)>,
}

/// The state of one segment in a checkpoint.
#[derive(Serialize, Deserialize)]
pub(crate) struct CheckpointedSegment {
    pub chain: SegmentCheckpoint,
    /// Since when it is here, and so which folder is its.
    pub stay: Stay,
    #[serde(with = "shared_state")]
    pub materialized: Arc<MaterializedState>,
    /// What peers brought of a later state.
    pub refilled: Option<Refilled>,
}

impl Checkpoint {
    /// Writes the checkpoint beside the current one, and returns its size in bytes. After an error the current one
    /// is the newest, as before.
    pub(crate) fn write(&self, directory: &Directory) -> Result<u64, StoreError> {
        let body = encode(self);
        directory.write_replacement(&directory.checkpoint(), MAGIC, &body)?;
        Ok(body.len() as u64)
    }

    /// Makes the checkpoint that was written last the current one. After an error it is unknown which one is: no page
    /// slot and no region may be written then, because one of the two may name it.
    pub(crate) fn take(directory: &Directory) -> Result<(), StoreError> {
        directory.take_replacement(&directory.checkpoint())
    }

    pub(crate) fn read(directory: &Directory) -> Result<Checkpoint, StoreError> {
        let path = directory.checkpoint();
        decode(&directory.read_file(&path, MAGIC)?, &path)
    }

    /// The batch locations in files before `replay_from`. The files are known by their ranges only; their
    /// entries are read when a peer asks.
    pub(crate) fn old_batch_locations(&self) -> BatchLocations {
        let old = self.files.iter().filter(|(number, _)| *number < self.replay_from.file());
        let files =
            old.map(|(number, ranges)| (*number, FileBatches { batches: None, ranges: ranges.clone() }));
        BatchLocations { files: files.collect() }
    }
}

/// Rebuilds a segment's chain from a checkpoint.
pub(crate) fn restore_chain(directory: &Directory, chain: SegmentCheckpoint) -> Result<Segment, StoreError> {
    let place = directory.checkpoint().display().to_string();
    Segment::restore(chain).map_err(|error| StoreError::corrupt(place, error.to_string()))
}
