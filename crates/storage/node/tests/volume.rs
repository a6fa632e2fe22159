//! Six nodes on loopback: acknowledging, restarting, catching up, fencing, reading.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use borealis_types::{GroupId, Lsn, MetaKey, ReadPoint, VolumeEpoch, WriterId};
use borealis_wire::{Caller, Refusal, Reply};
use common::{ALL, Cluster, Writer, block, image, wait_until};

const RELATION: u32 = 16_384;

#[test]
fn acknowledged_redo_survives_a_kill_and_reads_the_same_on_every_peer() {
    let mut cluster = Cluster::start(2);
    let mut writer = Writer::first(&cluster);
    for number in 0..300 {
        writer.put_page(block(RELATION, number), &image(number));
    }
    writer.put_meta(MetaKey::SmallFile("pg_stat/x".into()), b"kept");
    writer.ship(&ALL);
    // A second version of some pages, so that reads have something to choose from.
    let before = writer.durable.end;
    for number in 0..50 {
        writer.put_page(block(RELATION, number), &image(10_000 + number));
    }
    writer.ship(&ALL);
    writer.take_batch();
    writer.minimum_read_point = before;
    let announcement = writer.take_batch();
    writer.send(&announcement, &ALL);
    for round in 0..2 {
        for index in ALL {
            let mut client = cluster.client(index);
            for number in [0, 1, 49, 50, 128, 299] {
                let key = block(RELATION, number);
                let group = cluster.placement.group_of(&key);
                let now = client.read_page(group, key, writer.durable.end).unwrap().expect("the page exists");
                let seed = if number < 50 { 10_000 + number } else { number };
                assert!(now == image(seed), "round {round}, node {index}, block {number}");
                let then = client.read_page(group, key, before).unwrap().expect("the page exists");
                assert!(then == image(number), "round {round}, node {index}, block {number} before");
            }
            let absent = block(RELATION, 5000);
            let group = cluster.placement.group_of(&absent);
            assert_eq!(client.read_page(group, absent, writer.durable.end).unwrap(), None);
            let sizes: Vec<Option<u32>> = cluster
                .placement
                .groups()
                .map(|group| {
                    let borealis_types::PageKey::Block(key) = block(RELATION, 0) else { unreachable!() };
                    client.relation_size(group, key.relation_fork, writer.durable.end).unwrap()
                })
                .collect();
            assert_eq!(sizes.iter().copied().max().flatten(), Some(300));
            let value = client.read_meta(MetaKey::SmallFile("pg_stat/x".into()), writer.durable.end).unwrap();
            assert_eq!(value.as_deref(), Some(&b"kept"[..]));
            match client.read_page(group, absent, Lsn(1)).unwrap_err().refusal() {
                Some(Refusal::NotReadable { .. }) => {}
                other => panic!("a read below the minimum read point was answered with {other:?}"),
            }
        }
        if round == 0 {
            for index in ALL {
                cluster.kill_node(index);
                cluster.start_node(index);
            }
        }
    }
}

#[test]
fn a_node_that_was_down_catches_up_from_its_peers_without_the_writer() {
    let mut cluster = Cluster::start(2);
    let mut writer = Writer::first(&cluster);
    writer.put_page(block(RELATION, 0), &image(0));
    writer.ship(&ALL);
    cluster.kill_node(5);
    let rest = [0, 1, 2, 3, 4];
    for number in 1..400 {
        writer.put_page(block(RELATION, number), &image(number));
        if number % 20 == 0 {
            writer.ship(&rest);
        }
    }
    writer.ship(&rest);
    writer.announce(&rest);
    let expected: Vec<Lsn> =
        cluster.placement.groups().map(|group| cluster.summary(0, group).segment_complete_lsn).collect();
    drop(writer.clients);
    cluster.start_node(5);
    wait_until("the node has caught up", || {
        let group =
            |group: &Lsn, number: u16| cluster.summary(5, GroupId(number)).segment_complete_lsn == *group;
        expected.iter().zip(0..).all(|(lsn, number)| group(lsn, number))
    });
    wait_until("the node may be read at the durable point", || {
        cluster
            .placement
            .groups()
            .all(|group| cluster.summary(5, group).readable_through >= writer.durable.end)
    });
    assert!(cluster.metric(5, "gossip_pulled_bytes") > 0);
    let mut client = cluster.client(5);
    for number in 0..400 {
        let key = block(RELATION, number);
        let page = client.read_page(cluster.placement.group_of(&key), key, writer.durable.end).unwrap();
        assert!(page.expect("the page exists") == image(number), "block {number}");
    }
}

#[test]
fn a_hole_is_filled_at_once_and_the_waiting_writer_is_told() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    writer.put_page(block(RELATION, 0), &image(0));
    let first = writer.take_batch();
    writer.put_page(block(RELATION, 1), &image(1));
    let end = writer.last.end;
    let second = writer.take_batch();
    writer.send(&first, &[0, 1, 2, 3]);
    // Node 5 sees only the second record: it holds it, and fetches the first.
    let progress = writer.send(&second, &[5]);
    let complete: Vec<Lsn> = progress[0].iter().map(|moved| moved.segment_complete_lsn).collect();
    assert_eq!(complete, [Lsn::ZERO], "SCL must not count a hole");
    wait_until("the hole is filled", || cluster.summary(5, GroupId(0)).segment_complete_lsn == end);
    wait_until("the writer is told", || {
        let client = writer.clients.get_mut(&5).unwrap();
        client.summaries().unwrap();
        client.take_progress().iter().any(|moved| moved.segment_complete_lsn == end)
    });
}

#[test]
fn a_fenced_writer_is_not_told_of_its_successors_progress() {
    let cluster = Cluster::start(1);
    let mut old = Writer::first(&cluster);
    let mut new = old.next(&cluster);
    new.put_page(block(RELATION, 0), &image(0));
    let first = new.take_batch();
    new.put_page(block(RELATION, 1), &image(1));
    let end = new.last.end;
    let second = new.take_batch();
    new.send(&first, &[0, 1, 2, 3]);
    new.send(&second, &[5]);
    wait_until("the hole is filled", || cluster.summary(5, GroupId(0)).segment_complete_lsn == end);
    wait_until("the new writer is told", || {
        let client = new.clients.get_mut(&5).unwrap();
        client.summaries().unwrap();
        client.take_progress().iter().any(|moved| moved.segment_complete_lsn == end)
    });
    // The old one would take its own records at the same positions for acknowledged.
    let client = old.clients.get_mut(&5).unwrap();
    client.summaries().unwrap();
    assert_eq!(client.take_progress(), []);
    assert_eq!(client.fenced_by(), Some(new.epoch), "it is told of its successor, unasked");
}

#[test]
fn a_fenced_writer_is_refused_by_every_node() {
    let cluster = Cluster::start(1);
    let mut old = Writer::first(&cluster);
    old.put_page(block(RELATION, 0), &image(0));
    old.ship(&ALL);
    let mut new = old.next(&cluster);
    old.put_page(block(RELATION, 1), &image(1));
    let late = old.take_batch();
    for index in ALL {
        let client = old.clients.get_mut(&index).unwrap();
        match client.append(&late).unwrap_err().refusal() {
            Some(Refusal::Fenced(epoch)) => assert_eq!(*epoch, new.epoch),
            other => panic!("node {index} answered a fenced writer with {other:?}"),
        }
        // An older epoch cannot be promised any more, either.
        let refused = cluster.connect(index, Caller::Recovery).fence(old.epoch, WriterId(77)).unwrap_err();
        assert!(matches!(refused.refusal(), Some(Refusal::Fenced(epoch)) if *epoch == new.epoch));
    }
    new.put_page(block(RELATION, 1), &image(2));
    new.ship(&ALL);
    new.announce(&ALL);
    let key = block(RELATION, 1);
    let page = cluster.client(3).read_page(GroupId(0), key, new.durable.end).unwrap();
    assert!(page.expect("the page exists") == image(2));
    // The same question, asked as the old writer's, the new one's, and that of one this node never heard of.
    let ask = |epoch| {
        let at = ReadPoint { epoch, lsn: new.durable.end };
        cluster.client(3).read_page(GroupId(0), key, at).map_err(|error| error.refusal().cloned())
    };
    assert_eq!(ask(old.epoch), Err(Some(Refusal::Fenced(new.epoch))));
    assert!(ask(new.epoch).unwrap().is_some());
    let wanted = VolumeEpoch(new.epoch.0 + 1);
    let behind = Refusal::HistoryBehind { group: GroupId(0), wanted, known: new.epoch };
    assert_eq!(ask(wanted), Err(Some(behind)));
}

#[test]
fn a_node_that_missed_a_recovery_drops_what_was_cut() {
    let mut cluster = Cluster::start(1);
    let mut old = Writer::first(&cluster);
    old.put_page(block(RELATION, 0), &image(0));
    old.ship(&ALL);
    old.announce(&ALL);
    // Only node 5 gets this one, and then misses the recovery that cuts it.
    old.put_page(block(RELATION, 1), &image(666));
    let lost = old.take_batch();
    old.send(&lost, &[5]);
    assert_eq!(cluster.summary(5, GroupId(0)).segment_complete_lsn, old.last.end);
    cluster.kill_node(5);
    let mut new = old.next(&cluster);
    let rest = [0, 1, 2, 3, 4];
    new.put_page(block(RELATION, 2), &image(2));
    new.put_page(block(RELATION, 3), &image(3));
    new.ship(&rest);
    new.announce(&rest);
    cluster.start_node(5);
    wait_until("the node has caught up", || {
        let summary = cluster.summary(5, GroupId(0));
        summary.segment_complete_lsn == new.durable.end && summary.history == new.history
    });
    let mut client = cluster.client(5);
    assert_eq!(client.read_page(GroupId(0), block(RELATION, 1), new.durable.end).unwrap(), None);
    let page = client.read_page(GroupId(0), block(RELATION, 2), new.durable.end).unwrap();
    assert!(page.expect("the page exists") == image(2));
}

#[test]
fn appends_that_wait_together_share_a_sync_and_are_answered_in_order() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    let mut ends = Vec::new();
    let batches: Vec<Vec<u8>> = (0..64)
        .map(|number| {
            writer.put_page(block(RELATION, number), &image(number));
            ends.push(writer.last.end);
            writer.take_batch()
        })
        .collect();
    let before = cluster.metric(0, "append_syncs");
    let client = writer.clients.get_mut(&0).unwrap();
    for batch in &batches {
        client.send_append(batch).unwrap();
    }
    for end in ends {
        match client.receive().unwrap() {
            Reply::Appended(progress) => assert_eq!(progress.last().unwrap().segment_complete_lsn, end),
            other => panic!("an append was answered with {other:?}"),
        }
    }
    let syncs = cluster.metric(0, "append_syncs") - before;
    assert!(syncs < 64, "64 frames took {syncs} syncs");
    assert_eq!(cluster.metric(0, "append_frames"), 64);
}

#[test]
fn only_a_writer_may_append() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    writer.put_meta(MetaKey::SmallFile("small".to_owned()), b"value");
    let batch = writer.take_batch();
    for caller in [Caller::Client, Caller::Peer(cluster.configs[1].node), Caller::Recovery] {
        let mut client = cluster.connect(0, caller);
        assert!(matches!(client.append(&batch).unwrap_err().refusal(), Some(Refusal::Misuse(_))));
    }
    let stranger = Caller::Writer { epoch: writer.epoch, writer: WriterId(5) };
    let refused = cluster.connect(0, stranger).append(&batch).unwrap_err();
    assert!(matches!(refused.refusal(), Some(Refusal::Fenced(VolumeEpoch(1)))), "{refused}");
    assert_eq!(cluster.summary(0, GroupId(0)).segment_complete_lsn, Lsn::ZERO);
}

#[test]
fn a_stop_is_clean_and_the_node_comes_back() {
    let mut cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    writer.put_page(block(RELATION, 0), &image(0));
    writer.ship(&ALL);
    writer.announce(&ALL);
    cluster.nodes[2].take().unwrap().stop();
    std::thread::sleep(Duration::from_millis(10));
    cluster.start_node(2);
    let page = cluster.client(2).read_page(GroupId(0), block(RELATION, 0), writer.durable.end).unwrap();
    assert!(page.expect("the page exists") == image(0));
    assert_eq!(cluster.node(2).status().failure, None);
}
