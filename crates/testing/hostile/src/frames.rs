//! Frames that break a rule, and requests with arguments that nobody sends.

use borealis_types::membership::{Accepted, Ballot, GroupMembership, MembershipRequest};
use borealis_types::{
    AvailabilityZone, BlockKey, DatabaseKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, MAX_GROUPS,
    MembershipEpoch, MetaKey, NodeId, PageKey, ReadPoint, RecordSpan, RelationFork, RelationLocator,
    ServerVersion, SlruKind, VolumeEpoch, WriterId,
};
use borealis_wire::frame::frame_header;
use borealis_wire::message::{append_header, encode_message};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail, Request, Whereabouts};

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
    match random.below(15) {
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
        13 => Request::Memberships,
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

/// A request that only a writer, a recovery or a controller may send. In the epoch of `wanted`, which is out of bounds or refused to
/// this caller for another reason: it must change nothing.
pub(crate) fn a_change(random: &mut Random, wanted: VolumeEpoch) -> Request {
    let (writer, group) = (WriterId(random.number()), GroupId(random.below(4) as u16));
    // No volume was ever opened in epoch zero, and a history of it cannot even be made.
    let newest = VolumeEpoch(wanted.0.max(1));
    let openings = 1 + random.below(50).min(newest.0 - 1);
    let history = history(random, openings, newest);
    match random.below(4) {
        0 => Request::Fence { epoch: wanted, writer },
        3 => a_step(random, group, wanted.0),
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

/// A membership of six nodes from anywhere, or of twelve places while one is replaced.
fn membership(random: &mut Random, epoch: u64) -> GroupMembership {
    let first = 1 + random.below(1000) as u16;
    let set: [NodeId; 6] = std::array::from_fn(|place| NodeId(first + place as u16));
    let mut sets = vec![set];
    if random.below(2) == 0 {
        let mut other = set;
        other[random.below(6) as usize] = NodeId(first + 6);
        sets.push(other);
    }
    GroupMembership::new(MembershipEpoch(epoch.max(1)), sets).expect("a membership")
}

fn a_step(random: &mut Random, group: GroupId, number: u64) -> Request {
    let ballot = Ballot { counter: number, proposer: random.number() };
    let membership = membership(random, number);
    let request = match random.below(4) {
        0 => MembershipRequest::Ask,
        1 => MembershipRequest::Prepare { installed: membership, ballot },
        2 => MembershipRequest::Accept(Accepted { ballot, membership }),
        _ => MembershipRequest::Install(membership),
    };
    Request::Membership { group, request, nodes: Vec::new() }
}

/// A step of a membership that changes nothing, though a controller asks it: of a group that no volume has, or with numbers
/// that no one comes to by counting. The addresses that it brings are none.
pub(crate) fn an_impossible_step(random: &mut Random) -> Request {
    let (group, number) = match random.below(2) {
        0 => (GroupId(MAX_GROUPS + random.below(1000) as u16), random.below(100)),
        _ => (GroupId(random.below(4) as u16), u64::MAX - random.below(1 << 40)),
    };
    let mut step = a_step(random, group, number);
    if let Request::Membership { nodes, .. } = &mut step {
        let told = |at: u64| Whereabouts {
            node: NodeId(2000 + at as u16),
            zone: AvailabilityZone("z".repeat(at as usize)),
            address: ["", "nowhere", "tls:", "tls:a:0", "/x\0y"][at as usize % 5].to_owned(),
        };
        *nodes = (0..random.below(20)).map(told).collect();
    }
    step
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
                for request in [a_change(&mut random, VolumeEpoch(wanted)), an_impossible_step(&mut random)] {
                    decode_payload::<Request>(&message(1, &request)[8..]).expect("it decodes");
                }
            }
        }
    }
}
