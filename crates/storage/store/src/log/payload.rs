//! What the entries of the log hold: redo batches, promises, histories, positions and memberships.

use borealis_quorum::membership::{Accepted, Ballot, GroupMembership};
use borealis_quorum::{DurablePoint, Promise};
use borealis_types::{
    EpochHistory, GroupId, GroupSet, Lsn, MAX_GROUPS, MembershipEpoch, RecordSpan, VolumeEpoch, WriterId,
};
use borealis_wire::{BatchHeader, BatchReader, GroupTail};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::log::position::{LogPosition, RecordRef};

/// The first bytes of a batch entry's payload, before the redo batch: which groups took the records, and
/// whether the positions in the batch's header are valid (a writer's are, a peer's are not).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchPrefix {
    pub groups: GroupSet,
    pub positions_count: bool,
}

/// Size of an encoded [`BatchPrefix`], in bytes.
pub(crate) const BATCH_PREFIX_BYTES: usize = 9;

impl BatchPrefix {
    pub(crate) fn encode(self) -> [u8; BATCH_PREFIX_BYTES] {
        let mut bytes = [0; BATCH_PREFIX_BYTES];
        let mask = self.groups.iter().fold(0u64, |mask, group| mask | 1 << group.0);
        bytes[..8].copy_from_slice(&mask.to_le_bytes());
        bytes[8] = u8::from(self.positions_count);
        bytes
    }

    /// Splits a batch entry's payload into prefix and batch; `None` if it is too short.
    pub(crate) fn decode(payload: &[u8]) -> Option<(BatchPrefix, &[u8])> {
        let (mask, rest) = payload.split_first_chunk::<8>()?;
        let (flags, batch) = rest.split_first()?;
        let mask = u64::from_le_bytes(*mask);
        let groups = (0..MAX_GROUPS).filter(|group| mask & 1 << group != 0);
        let groups = groups.fold(GroupSet::EMPTY, |set, group| set.with(GroupId(group)));
        Some((BatchPrefix { groups, positions_count: *flags == 1 }, batch))
    }
}

/// A history installed in one segment, as the log keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct InstallEntry {
    pub group: GroupId,
    pub writer: Option<WriterId>,
    pub history: EpochHistory,
    pub durable: DurablePoint,
}

/// A history adopted for a recovery under way, as the log keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct AdoptEntry {
    pub group: GroupId,
    pub promise: Promise,
    pub history: EpochHistory,
}

/// A segment's jump to a durable point, as the log keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct JumpEntry {
    pub group: GroupId,
    pub point: DurablePoint,
}

/// A promise to an attempt to choose the membership after the one of epoch `installed`, as the log keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PrepareEntry {
    pub group: GroupId,
    pub installed: MembershipEpoch,
    pub ballot: Ballot,
}

/// An accepted membership, as the log keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct AcceptEntry {
    pub group: GroupId,
    pub proposed: Accepted,
}

/// An installed membership, as the log keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MembersEntry {
    pub group: GroupId,
    pub membership: GroupMembership,
}

/// The durable point that a joining segment has everything as of, as the log keeps it. It is durable under the history of
/// `epoch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct BaseEntry {
    pub group: GroupId,
    pub epoch: VolumeEpoch,
    pub point: DurablePoint,
}

/// Positions that the writer sent without records, as the log keeps them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PositionsEntry {
    pub epoch: VolumeEpoch,
    pub durable: RecordSpan,
    pub minimum_read_point: Lsn,
    pub tails: Vec<GroupTail>,
}

impl From<&BatchHeader> for PositionsEntry {
    fn from(header: &BatchHeader) -> PositionsEntry {
        PositionsEntry {
            epoch: header.volume_epoch,
            durable: header.durable,
            minimum_read_point: header.minimum_read_point,
            tails: header.tails.clone(),
        }
    }
}

impl From<PositionsEntry> for BatchHeader {
    fn from(entry: PositionsEntry) -> BatchHeader {
        let PositionsEntry { epoch, durable, minimum_read_point, tails } = entry;
        BatchHeader { volume_epoch: epoch, durable, minimum_read_point, tails }
    }
}

/// A record of a batch entry that was read back.
pub(crate) struct DecodedRecord<'a> {
    pub reference: RecordRef,
    /// For each group that took it, where the record's predecessor in the group ends.
    pub previous_ends: Vec<(GroupId, Lsn)>,
    pub bytes: &'a [u8],
}

/// Decodes a batch entry's payload, which begins at `position`.
pub(crate) fn decode_entry(
    position: LogPosition,
    payload: &[u8],
) -> Result<(BatchPrefix, BatchHeader, Vec<DecodedRecord<'_>>), StoreError> {
    let Some((prefix, batch)) = BatchPrefix::decode(payload) else {
        return Err(StoreError::corrupt(format!("log entry at {position:?}"), "it is too short"));
    };
    let (header, records) = decode_batch(position.plus(BATCH_PREFIX_BYTES), prefix.groups, batch)?;
    Ok((prefix, header, records))
}

/// Decodes a batch in the log, which begins at `position` and was taken by `groups`.
pub(crate) fn decode_batch(
    position: LogPosition,
    groups: GroupSet,
    batch: &[u8],
) -> Result<(BatchHeader, Vec<DecodedRecord<'_>>), StoreError> {
    let damaged = |what: &str| StoreError::corrupt(format!("log entry at {position:?}"), what);
    let (header, mut reader) = BatchReader::new(batch).map_err(|error| damaged(&error.to_string()))?;
    let mut records = Vec::new();
    while let Some(record) = reader.next() {
        let record = record.map_err(|error| damaged(&error.to_string()))?;
        let reference = RecordRef {
            span: record.span,
            position: position.plus(reader.offset() - record.bytes.len()),
            length: record.bytes.len() as u32,
            part: record.form.part,
        };
        let taken = record.links.iter().filter(|link| groups.contains(link.group));
        let previous_ends: Vec<_> = taken.map(|link| (link.group, link.previous_end)).collect();
        records.push(DecodedRecord { reference, previous_ends, bytes: record.bytes });
    }
    Ok((header, records))
}
