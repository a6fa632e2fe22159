//! Frames that break a rule, and requests with arguments that nobody sends.

use borealis_types::{
    BlockKey, DatabaseKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, MetaKey, NodeId, PageKey,
    ReadPoint, RecordSpan, RelationFork, RelationLocator, ServerVersion, SlruKind, VolumeEpoch, WriterId,
};
use borealis_wire::frame::frame_header;
use borealis_wire::message::{append_header, encode_message};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail, Request};

use crate::random::Random;

/// A frame around a payload, with a checksum that is right.
pub(crate) fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_header(payload).to_vec();
    frame.extend_from_slice(payload);
    frame
}

pub(crate) fn message(request_id: u64, request: &Request) -> Vec<u8> {
    framed(&encode_message(request_id, request))
}

fn relation_fork(random: &mut Random) -> RelationFork {
    let locator = RelationLocator {
        tablespace: random.number() as u32,
        database: random.number() as u32,
        relation: random.number() as u32,
    };
    RelationFork { locator, fork: *random.pick(&[Fork::Main, Fork::VisibilityMap, Fork::FreeSpaceMap]) }
}

fn page_key(random: &mut Random) -> PageKey {
    match random.below(2) {
        0 => PageKey::Slru { kind: SlruKind::Transactions, page: random.number() as u32 },
        _ => PageKey::Block(BlockKey { relation_fork: relation_fork(random), block: random.number() as u32 }),
    }
}

fn meta_key(random: &mut Random) -> MetaKey {
    match random.below(4) {
        0 => MetaKey::Counters,
        1 => MetaKey::PreparedTransaction(random.number() as u32),
        2 => MetaKey::SmallFile("x/".repeat(random.below(3000) as usize)),
        _ => MetaKey::Tablespace(random.number() as u32),
    }
}

/// A request that any caller may send, with arguments from anywhere.
pub(crate) fn a_look(random: &mut Random) -> Request {
    let group = GroupId(random.number() as u16);
    let at = ReadPoint { epoch: VolumeEpoch(random.number()), lsn: Lsn(random.number()) };
    let limit = random.number() as u32;
    match random.below(14) {
        0 => Request::Summaries,
        1 => Request::ReadTail {
            group: GroupId(random.below(4) as u16),
            above: Lsn(random.number()),
            limit_bytes: limit,
        },
        2 => Request::ReadPage { group, key: page_key(random), at },
        3 => Request::RelationSize { group, relation_fork: relation_fork(random), at },
        4 => {
            let database = DatabaseKey { tablespace: 1663, database: random.number() as u32 };
            Request::ListRelations { group, database, at, after: Some(relation_fork(random)), limit }
        }
        5 => {
            let from = random.number() as u32;
            Request::SlruPages { kind: SlruKind::Transactions, at, from, limit }
        }
        6 => Request::ReadMeta { key: meta_key(random), at, offset: random.number() },
        7 => Request::ListMeta { at, after: Some(meta_key(random)), limit },
        8 => Request::PageChecksums { group, at, after: Some(page_key(random)), limit },
        9 => Request::Acquaint { node: NodeId(random.below(8) as u16) },
        10 => Request::Confirm { epoch: VolumeEpoch(random.number()) },
        11 => Request::Pin { group: GroupId(random.below(4) as u16), at, lease_ms: limit },
        12 => Request::ListForks { group, at, after: Some(relation_fork(random)), limit },
        _ => Request::Status,
    }
}

/// A history with openings from anywhere, in order.
fn history(random: &mut Random, openings: u64, newest: VolumeEpoch) -> EpochHistory {
    let mut history = EpochHistory::default();
    let mut end = 1 << 24;
    for number in 0..openings {
        let epoch = VolumeEpoch(newest.0.saturating_sub(openings - 1 - number));
        let last = RecordSpan { start: Lsn(end), end: Lsn(end + 56) };
        end += 64 + random.below(1 << 20);
        history.push(EpochOpening { epoch, last, server_version: ServerVersion::NEWEST_TESTED });
    }
    history
}

/// A request that only a writer or a recovery may send. In the epoch of `wanted`, which is out of bounds or refused to
/// this caller for another reason: it must change nothing.
pub(crate) fn a_change(random: &mut Random, wanted: VolumeEpoch) -> Request {
    let (writer, group) = (WriterId(random.number()), GroupId(random.below(4) as u16));
    // No volume was ever opened in epoch zero, and a history of it cannot even be made.
    let newest = VolumeEpoch(wanted.0.max(1));
    let openings = 1 + random.below(50).min(newest.0 - 1);
    let history = history(random, openings, newest);
    match random.below(3) {
        0 => Request::Fence { epoch: wanted, writer },
        1 => {
            let tails = (0..random.below(64) as u16)
                .map(|group| GroupTail { group: GroupId(group), last_end: Lsn(random.number()) })
                .collect();
            Request::Install { epoch: wanted, writer, history, tails }
        }
        _ => {
            let batches = (0..random.below(4)).map(|_| batch(random, wanted)).collect();
            Request::Repair { epoch: wanted, writer, group, history, batches }
        }
    }
}

/// A batch of records that PostgreSQL never wrote.
pub(crate) fn batch(random: &mut Random, epoch: VolumeEpoch) -> Vec<u8> {
    let header = BatchHeader {
        volume_epoch: epoch,
        durable: RecordSpan { start: Lsn(random.number() >> 1), end: Lsn(random.number()) },
        minimum_read_point: Lsn(random.number()),
        tails: vec![GroupTail { group: GroupId(0), last_end: Lsn(random.number()) }],
    };
    let mut builder = BatchBuilder::new(&header);
    let mut start = 1 << 24;
    for _ in 0..random.below(20) {
        let length = 24 + random.below(500);
        let span = RecordSpan { start: Lsn(start), end: Lsn(start + length) };
        let link = GroupLink { group: GroupId(random.below(4) as u16), previous_end: Lsn(start - 8) };
        builder.push(span, &[link], &random.bytes(length as usize));
        start += length + random.below(1000);
    }
    builder.finish()
}

/// A frame with a redo batch.
pub(crate) fn append(random: &mut Random, epoch: VolumeEpoch) -> Vec<u8> {
    let mut payload = append_header(random.number()).to_vec();
    let mut batch = batch(random, epoch);
    if random.below(3) == 0 {
        damage(random, &mut batch);
    }
    payload.extend_from_slice(&batch);
    framed(&payload)
}

/// Changes, removes or adds some bytes.
pub(crate) fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(3) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 => bytes.truncate(at),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}

/// A frame of this length that looks like a repair or an append as far as it is looked at.
pub(crate) fn oversized(random: &mut Random, length: usize) -> Vec<u8> {
    let begin = match random.below(3) {
        0 => append_header(1).to_vec(),
        1 => encode_message(1, &a_change(random, VolumeEpoch(u64::MAX))),
        _ => encode_message(1, &a_look(random)),
    };
    let mut payload = begin;
    payload.resize(length.max(payload.len()), 0);
    framed(&payload)
}

/// A repair of `count` empty batches: a byte each for the sender, who does not hold them as batches.
pub(crate) fn empty_batches(mut count: usize) -> Vec<u8> {
    let of_none = Request::Repair {
        epoch: VolumeEpoch(u64::MAX),
        writer: WriterId(1),
        group: GroupId(0),
        history: EpochHistory::default(),
        batches: Vec::new(),
    };
    let mut payload = encode_message(3, &of_none);
    // The list is last, and its length is a variable-length integer; so is the zero that an empty batch is.
    payload.pop();
    let zeros = count;
    while count >= 0x80 {
        payload.push(count as u8 | 0x80);
        count >>= 7;
    }
    payload.push(count as u8);
    payload.resize(payload.len() + zeros, 0);
    framed(&payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_wire::message::decode_payload;

    #[test]
    fn the_same_seed_makes_the_same_frames() {
        let frames = |seed| {
            let mut random = Random::new(seed, 3);
            (0..200).map(|_| message(1, &a_look(&mut random))).collect::<Vec<_>>()
        };
        assert_eq!(frames(7), frames(7));
        assert_ne!(frames(7), frames(8));
    }

    #[test]
    fn empty_batches_are_refused_for_their_number_alone() {
        for (count, is_fine) in [(0, true), (1, true), (200, true), (257, false), (100_000, false)] {
            let frame = empty_batches(count);
            match decode_payload::<Request>(&frame[8..]) {
                Ok(borealis_wire::Payload::Message { message: Request::Repair { batches, .. }, .. }) => {
                    assert_eq!((batches.len(), true), (count, is_fine));
                }
                other => assert!(!is_fine && other.is_err(), "{count} batches"),
            }
        }
    }

    #[test]
    fn forged_changes_are_well_formed() {
        let mut random = Random::new(1, 1);
        for wanted in [0, 1, 2, 50, 1 << 48, u64::MAX] {
            for _ in 0..50 {
                let frame = message(1, &a_change(&mut random, VolumeEpoch(wanted)));
                decode_payload::<Request>(&frame[8..]).expect("it decodes");
            }
        }
    }
}
