//! Records beyond the durable point, which are not taken on one peer's word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use borealis_quorum::corroboration::Corroboration;
use borealis_types::{GroupId, Lsn, NodeId, RecordForm, VolumeEpoch};
use borealis_wire::{BatchBuilder, BatchReader, BatchRecord};

/// A peer is not asked sooner for records that it alone had, unless something moved: others may have them in the meantime,
/// and often nobody ever will.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What two peers have to say alike of a record that starts at the same place.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sent {
    epoch: VolumeEpoch,
    end: Lsn,
    /// Of the group that it is taken for.
    previous_end: Option<Lsn>,
    form: RecordForm,
    bytes: Vec<u8>,
}

impl Sent {
    fn of(epoch: VolumeEpoch, group: GroupId, record: &BatchRecord<'_>) -> Sent {
        let link = record.links.iter().find(|link| link.group == group);
        Sent {
            epoch,
            end: record.span.end,
            previous_end: link.map(|link| link.previous_end),
            form: record.form,
            bytes: record.bytes.to_vec(),
        }
    }
}

/// What of a peer's answer is taken.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Believed {
    pub(super) batches: Vec<Vec<u8>>,
    /// How many records were left out, until another peer sends the same.
    pub(super) left: usize,
}

/// What peers sent of our groups beyond the durable points.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    groups: Mutex<BTreeMap<GroupId, Corroboration<Sent>>>,
    /// Where a segment of ours stood, and when, when records of a peer were left.
    left: Mutex<BTreeMap<(GroupId, NodeId), (Stand, Instant)>>,
}

/// How far a segment is complete, and how far it knows the volume to be durable.
pub(super) type Stand = (Lsn, Lsn);

impl Unconfirmed {
    /// Notes that records of a peer were left, while our segment stands here.
    pub(super) fn note_left(&self, peer: NodeId, group: GroupId, stand: Stand) {
        let mut left = self.left.lock().expect("nothing panics while it holds this lock");
        left.insert((group, peer), (stand, Instant::now()));
    }

    /// Forgets what was sent of a group: its segment left.
    pub(super) fn forget(&self, group: GroupId) {
        self.groups.lock().expect("nothing panics while it holds this lock").remove(&group);
        let mut left = self.left.lock().expect("nothing panics while it holds this lock");
        left.retain(|(of, _), _| *of != group);
    }

    /// Whether the peer was asked a moment ago for what our segment lacks here, and nobody else had sent it.
    pub(super) fn was_left(&self, peer: NodeId, group: GroupId, stand: Stand) -> bool {
        let left = self.left.lock().expect("nothing panics while it holds this lock");
        let noted = left.get(&(group, peer));
        noted.is_some_and(|(stood, when)| *stood == stand && when.elapsed() < ASK_AGAIN_AFTER)
    }

    /// Of what a peer sent of a group that is durable up to `durable`: that, and what another peer sent as well. A batch
    /// that cannot be read is left as it is, for the store to say what is wrong with it.
    pub(super) fn believed(
        &self,
        peer: NodeId,
        group: GroupId,
        durable: Lsn,
        batches: Vec<Vec<u8>>,
    ) -> Believed {
        let mut beyond = BTreeMap::new();
        for batch in &batches {
            let Ok((header, records)) = BatchReader::new(batch) else { continue };
            let records = records.flatten().filter(|record| record.span.end > durable);
            beyond.extend(
                records.map(|record| (record.span.start, Sent::of(header.volume_epoch, group, &record))),
            );
        }
        let mut groups = self.groups.lock().expect("nothing panics while it holds this lock");
        let mut left: BTreeSet<Lsn> = beyond.keys().copied().collect();
        for confirmed in groups.entry(group).or_default().confirm(peer, beyond) {
            left.remove(&confirmed);
        }
        drop(groups);
        let batches = match left.is_empty() {
            true => batches,
            false => batches.into_iter().filter_map(|batch| without(batch, durable, &left)).collect(),
        };
        Believed { batches, left: left.len() }
    }
}

/// A batch without the records beyond `durable` that start in these places; `None` if none is left.
fn without(batch: Vec<u8>, durable: Lsn, left: &BTreeSet<Lsn>) -> Option<Vec<u8>> {
    let Ok((header, records)) = BatchReader::new(&batch) else { return Some(batch) };
    let Ok(records) = records.collect::<Result<Vec<_>, _>>() else { return Some(batch) };
    let is_left = |record: &BatchRecord<'_>| record.span.end > durable && left.contains(&record.span.start);
    if !records.iter().any(is_left) {
        return Some(batch);
    }
    let mut builder = BatchBuilder::new(&header);
    let mut is_empty = true;
    for record in records.iter().filter(|record| !is_left(record)) {
        builder.push_form(record.span, record.form, &record.links, record.bytes);
        is_empty = false;
    }
    (!is_empty).then(|| builder.finish())
}

#[cfg(test)]
mod tests {
    use borealis_types::RecordSpan;
    use borealis_wire::{BatchHeader, GroupLink};

    use super::*;

    const GROUP: GroupId = GroupId(1);

    /// A batch of records of eight bytes each, one after another from `start` on, that consist of this byte.
    fn batch(epoch: u64, start: u64, contents: &[u8]) -> Vec<u8> {
        let header = BatchHeader {
            volume_epoch: VolumeEpoch(epoch),
            durable: RecordSpan::NONE,
            minimum_read_point: Lsn::ZERO,
            tails: Vec::new(),
        };
        let mut builder = BatchBuilder::new(&header);
        for (at, content) in (0..).zip(contents) {
            let span = RecordSpan { start: Lsn(start + 8 * at), end: Lsn(start + 8 * at + 8) };
            builder.push(span, &[GroupLink { group: GROUP, previous_end: span.start }], &[*content; 8]);
        }
        builder.finish()
    }

    fn contents(believed: &Believed) -> Vec<u8> {
        let records = believed.batches.iter().flat_map(|batch| BatchReader::new(batch).unwrap().1);
        records.map(|record| record.unwrap().bytes[0]).collect()
    }

    #[test]
    fn what_is_durable_needs_one_peer_and_what_is_not_needs_two() {
        let unconfirmed = Unconfirmed::default();
        let take = |peer: u16, durable: u64, batches: &[Vec<u8>]| {
            unconfirmed.believed(NodeId(peer), GROUP, Lsn(durable), batches.to_vec())
        };
        let one = take(2, 816, &[batch(1, 800, &[1, 2, 3]), batch(1, 824, &[4, 5])]);
        assert_eq!((contents(&one), one.left), (vec![1, 2], 3));
        let again = take(2, 816, &[batch(1, 800, &[1, 2, 3]), batch(1, 824, &[4, 5])]);
        assert_eq!((contents(&again), again.left), (vec![1, 2], 3), "the same peer is no second one");
        let other_record = take(3, 816, &[batch(1, 816, &[3, 9])]);
        assert_eq!((contents(&other_record), other_record.left), (vec![3], 1));
        let other_epoch = take(4, 816, &[batch(2, 816, &[3])]);
        assert_eq!((contents(&other_epoch), other_epoch.left), (vec![], 1));
        let all = take(5, 900, &[batch(1, 800, &[1, 2, 3])]);
        assert_eq!((contents(&all), all.left), (vec![1, 2, 3], 0), "it is durable by now");
    }

    #[test]
    fn a_peer_is_asked_again_when_something_moved() {
        let unconfirmed = Unconfirmed::default();
        unconfirmed.note_left(NodeId(2), GROUP, (Lsn(800), Lsn(800)));
        assert!(unconfirmed.was_left(NodeId(2), GROUP, (Lsn(800), Lsn(800))));
        assert!(!unconfirmed.was_left(NodeId(2), GROUP, (Lsn(816), Lsn(800))), "the segment moved");
        assert!(!unconfirmed.was_left(NodeId(2), GROUP, (Lsn(800), Lsn(816))), "more is durable");
        assert!(!unconfirmed.was_left(NodeId(3), GROUP, (Lsn(800), Lsn(800))), "another peer");
        unconfirmed.forget(GROUP);
        assert!(!unconfirmed.was_left(NodeId(2), GROUP, (Lsn(800), Lsn(800))), "the segment left");
    }

    #[test]
    fn a_malformed_batch_is_the_stores_to_refuse() {
        let unconfirmed = Unconfirmed::default();
        let mut cut = batch(1, 800, &[1, 2]);
        cut.pop();
        let believed = unconfirmed.believed(NodeId(2), GROUP, Lsn(0), vec![vec![], cut.clone()]);
        assert_eq!(believed.batches, [vec![], cut]);
    }
}
