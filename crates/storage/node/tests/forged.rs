//! What a stranger, or a broken node, makes one node believe stays with that node.

// A broken step should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, RecordSpan, ServerVersion, VolumeEpoch, WriterId,
};
use borealis_wire::{GroupTail, Refusal};

use common::{ALL, Cluster, Writer, block, image, wait_until};

const RELATION: u32 = 16_400;
/// Longer than any two exchanges of peers lie apart.
const SPREADING: Duration = Duration::from_millis(2500);

fn with_opening(history: &EpochHistory, epoch: u64, end: Lsn) -> EpochHistory {
    let mut history = history.clone();
    history.push(EpochOpening {
        epoch: VolumeEpoch(epoch),
        last: RecordSpan { start: Lsn(end.0 - 8), end },
        server_version: ServerVersion::NEWEST_TESTED,
    });
    history
}

fn volume(group_count: u16) -> (Cluster, Writer) {
    let cluster = Cluster::start(group_count);
    let mut writer = Writer::first(&cluster);
    for number in 0..100 {
        writer.put_page(block(RELATION, number), &image(number));
    }
    writer.ship(&ALL);
    writer.announce(&ALL);
    (cluster, writer)
}

#[test]
fn a_history_forged_at_one_node_does_not_spread() {
    let (cluster, mut writer) = volume(2);
    let far = Lsn(0x0100_0000_0000);
    let forged = with_opening(&writer.history, 5, far);
    let tails: Vec<GroupTail> =
        cluster.placement.groups().map(|group| GroupTail { group, last_end: far }).collect();
    let mut stranger = cluster.client(2);
    stranger.fence(VolumeEpoch(5), WriterId(666)).unwrap();
    stranger.install(VolumeEpoch(5), WriterId(666), &forged, &tails).unwrap();
    assert_eq!(cluster.summary(2, GroupId(0)).known_durable.end, far, "the one node believes it");
    let untouched = |index: usize| {
        cluster.placement.groups().all(|group| {
            let summary = cluster.summary(index, group);
            summary.history == writer.history
                && summary.promised_epoch == writer.epoch
                && summary.known_durable.end <= writer.durable.end
                && summary.minimum_read_point <= writer.durable.end
        })
    };
    let exchanged = cluster.metric(0, "gossip_exchanges");
    std::thread::sleep(SPREADING);
    assert!(cluster.metric(0, "gossip_exchanges") > exchanged + 5);
    let others = [0, 1, 3, 4, 5];
    for index in others {
        assert!(untouched(index), "node {index}: {:?}", cluster.summary(index, GroupId(0)));
    }
    // The volume goes on.
    writer.put_page(block(RELATION, 1), &image(1000));
    writer.ship(&others);
    writer.announce(&others);
    let key = block(RELATION, 1);
    let group = cluster.placement.group_of(&key);
    let page = cluster.client(4).read_page(group, key, writer.durable.end).unwrap();
    assert!(page.expect("the page exists") == image(1000));
}

#[test]
fn records_that_one_node_alone_has_do_not_spread_before_they_are_durable() {
    let (cluster, mut writer) = volume(1);
    let group = GroupId(0);
    let durable = writer.durable.end;
    let others = [0, 2, 3, 4, 5];
    let (last, group_ends) = (writer.last, writer.group_ends.clone());
    // As if node 1 had made it up.
    writer.put_page(block(RELATION, 1), &image(666));
    let invented = writer.take_batch();
    writer.send(&invented, &[1]);
    assert!(cluster.summary(1, group).segment_complete_lsn > durable);
    wait_until("it was asked for", || {
        others.iter().all(|&index| cluster.metric(index, "gossip_records_unconfirmed") > 0)
    });
    for index in others {
        assert_eq!(cluster.summary(index, group).segment_complete_lsn, durable, "node {index}");
    }
    // The writer's own record in that place is taken by all others.
    (writer.last, writer.group_ends) = (last, group_ends);
    writer.put_page(block(RELATION, 1), &image(1000));
    writer.ship(&others);
    writer.announce(&others);
    let key = block(RELATION, 1);
    let page = cluster.client(4).read_page(group, key, writer.durable.end).unwrap();
    assert!(page.expect("the page exists") == image(1000));
}

#[test]
fn records_that_two_nodes_have_are_taken_from_them() {
    let (cluster, mut writer) = volume(1);
    // A node that had to let records pass may be needed for the write quorum.
    writer.put_page(block(RELATION, 1), &image(1000));
    let batch = writer.take_batch();
    writer.send(&batch, &[1, 4]);
    let end = writer.last.end;
    wait_until("every node has it", || {
        ALL.iter().all(|&index| cluster.summary(index, GroupId(0)).segment_complete_lsn == end)
    });
}

#[test]
fn what_four_members_have_is_learned_by_the_others() {
    let (mut cluster, old) = volume(1);
    cluster.kill_node(5);
    let new = old.next(&cluster);
    cluster.start_node(5);
    wait_until("the node has learned of the recovery", || {
        cluster.summary(5, GroupId(0)).history == new.history
    });
}

#[test]
fn a_history_longer_than_a_node_keeps_is_refused_and_the_node_lives() {
    let (cluster, writer) = volume(2);
    let last = writer.history.newest().unwrap().last;
    let mut long = writer.history.clone();
    // The second does not fit the frame that a recovery may send, and costs it its connection.
    for (count, is_received) in [(20_000, true), (600_000, false)] {
        for epoch in long.newest_epoch().0 + 1..count {
            long.push(EpochOpening {
                epoch: VolumeEpoch(epoch),
                last,
                server_version: ServerVersion::NEWEST_TESTED,
            });
        }
        let mut stranger = cluster.client(1);
        let epoch = long.newest_epoch();
        stranger.fence(epoch, WriterId(666)).unwrap();
        let refused = stranger.install(epoch, WriterId(666), &long, &[]).unwrap_err();
        assert_eq!(matches!(refused.refusal(), Some(Refusal::Misuse(_))), is_received, "{refused}");
        assert_eq!(cluster.summary(1, GroupId(0)).history, writer.history);
        assert!(cluster.client(1).summaries().is_ok(), "the node lives");
    }
}

#[test]
fn an_epoch_that_no_volume_reaches_is_not_promised() {
    let (cluster, writer) = volume(1);
    for epoch in [u64::MAX, 1 << 40] {
        let refused = cluster.client(1).fence(VolumeEpoch(epoch), WriterId(666)).unwrap_err();
        assert!(matches!(refused.refusal(), Some(Refusal::Misuse(_))), "{refused}");
    }
    assert_eq!(cluster.summary(1, GroupId(0)).promised_epoch, writer.epoch);
}

#[test]
fn a_history_is_installed_only_after_its_epoch_was_promised() {
    let (cluster, writer) = volume(1);
    let next = with_opening(&writer.history, 2, writer.durable.end);
    let refused = cluster.client(1).install(VolumeEpoch(2), WriterId(666), &next, &[]).unwrap_err();
    assert!(matches!(refused.refusal(), Some(Refusal::Misuse(_))), "{refused}");
    assert_eq!(cluster.summary(1, GroupId(0)).history, writer.history);
}
