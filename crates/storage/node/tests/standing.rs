//! A node whose disk was put back to an earlier state is noticed by its peers, and votes no more.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use borealis_node::SegmentSource;
use borealis_quorum::membership::{Replacement, Transition};
use borealis_types::{GroupId, NodeId, VolumeEpoch, WriterId};
use borealis_wire::{Caller, Refusal};
use common::members::{Learner, first_memberships, step};
use common::{ALL, Cluster, Writer, block, image, wait_long, wait_until};

const GROUP: GroupId = GroupId(0);
/// The node that is put back.
const VICTIM: usize = 2;

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn put(cluster: &mut Cluster, writer: &mut Writer, number: u32) {
    writer.put_page(block(16_384, number), &image(number));
    let running: Vec<usize> = ALL.into_iter().filter(|index| cluster.nodes[*index].is_some()).collect();
    writer.ship(&running);
    writer.announce(&running);
}

/// Restarts the victim with the disk that it had before `meanwhile`, and leaves only these peers running.
fn put_back(peers: &[usize], meanwhile: impl FnOnce(&mut Cluster, &mut Writer)) -> Cluster {
    let mut cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    put(&mut cluster, &mut writer, 1);
    cluster.kill_node(VICTIM);
    let store = cluster.configs[VICTIM].store_directory();
    let earlier = cluster.directory.path().join("earlier");
    copy(&store, &earlier);
    cluster.start_node(VICTIM);
    writer.install(&cluster, VICTIM);
    writer.connect(&cluster, VICTIM);
    meanwhile(&mut cluster, &mut writer);
    cluster.kill_node(VICTIM);
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::rename(&earlier, &store).unwrap();
    for index in ALL {
        if index != VICTIM && !peers.contains(&index) {
            cluster.kill_node(index);
        }
    }
    cluster.start_node(VICTIM);
    cluster
}

/// Waits until all peers remember the victim in this boot, with all of the group's records.
fn wait_until_remembered(cluster: &Cluster, boot: u64) {
    let node = cluster.configs[VICTIM].node;
    let end = cluster.summary(VICTIM, GROUP).known_durable.end;
    for index in ALL.into_iter().filter(|index| *index != VICTIM) {
        wait_until("a peer remembers the node", || {
            let (_, remembered) = cluster.client(index).acquaint(node).unwrap();
            remembered.is_some_and(|remembered| {
                remembered.boot.number == boot
                    && remembered.segments.iter().any(|segment| segment.complete >= end)
            })
        });
    }
}

fn assert_votes_no_more(cluster: &mut Cluster) {
    wait_until("the node knows that it lost something", || cluster.node(VICTIM).status().failure.is_some());
    for _ in 0..2 {
        let failure = cluster.node(VICTIM).status().failure.unwrap();
        assert!(
            failure.contains("put back to an earlier state") && failure.contains("rebuild it"),
            "{failure}"
        );
        let client = cluster.connect(VICTIM, Caller::Client);
        assert!(client.welcome().is_empty());
        let error = cluster.try_connect(VICTIM, Caller::Recovery).unwrap_err();
        assert!(matches!(error.refusal(), Some(Refusal::Failed(_))), "{error}");
        // Nor after a restart, although it is one boot further then.
        drop(client);
        cluster.kill_node(VICTIM);
        cluster.start_node(VICTIM);
    }
}

#[test]
fn a_disk_that_was_put_back_is_known_by_its_boot() {
    let mut cluster = put_back(&ALL, |cluster, _| {
        // A boot more than the disk knows of; nothing was written meanwhile.
        cluster.kill_node(VICTIM);
        cluster.start_node(VICTIM);
        wait_until_remembered(cluster, 4);
    });
    assert_votes_no_more(&mut cluster);
}

#[test]
fn a_disk_that_was_put_back_is_known_although_it_counts_to_the_same_boot_again() {
    let mut cluster = put_back(&ALL, |cluster, writer| {
        put(cluster, writer, 2);
        wait_until_remembered(cluster, 3);
    });
    assert_votes_no_more(&mut cluster);
}

#[test]
fn one_peers_word_does_not_disable_a_node_and_two_do() {
    let mut cluster = put_back(&[0], |cluster, writer| {
        put(cluster, writer, 2);
        wait_until_remembered(cluster, 3);
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(cluster.node(VICTIM).status().failure, None);
    cluster.start_node(1);
    // The first peer's memory of records is its process's; of boots it is on disk. Both say so.
    assert_votes_no_more(&mut cluster);
}

#[test]
fn a_node_that_was_replaced_is_not_measured_by_its_predecessor() {
    const SOURCE: usize = 0;
    let mut cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    put(&mut cluster, &mut writer, 1);
    wait_until_remembered(&cluster, 2);
    // A recovery that died before it asked anybody else.
    let (far, nobody) = (VolumeEpoch(50), WriterId(50));
    cluster.connect(VICTIM, Caller::Recovery).fence(far, nobody).unwrap();
    let node = cluster.configs[VICTIM].node;
    let others = || ALL.into_iter().filter(|index| *index != VICTIM);
    wait_until("the peers have heard of it", || {
        others().all(|index| {
            let (_, remembered) = cluster.client(index).acquaint(node).unwrap();
            remembered.is_some_and(|known| known.segments.iter().any(|known| known.promised_epoch == far))
        })
    });
    cluster.kill_node(VICTIM);
    cluster.kill_node(SOURCE);
    std::fs::remove_dir_all(cluster.configs[VICTIM].store_directory()).unwrap();
    cluster.configs[VICTIM].incarnation += 0x1000;
    let groups = cluster.configs[VICTIM].own_groups();
    let source = SegmentSource { store: cluster.configs[SOURCE].store_directory(), groups };
    borealis_node::gather(&cluster.configs[VICTIM], &[source]).unwrap();
    cluster.start_node(SOURCE);
    for _ in 0..3 {
        cluster.start_node(VICTIM);
        wait_until_remembered(&cluster, cluster.metric(VICTIM, "store_boot"));
        wait_until("all peers have answered", || cluster.metric(VICTIM, "gossip_exchanges") >= 10);
        assert_eq!(cluster.node(VICTIM).status().failure, None);
        assert!(!cluster.client(VICTIM).welcome().is_empty(), "it votes");
        cluster.kill_node(VICTIM);
    }
}

#[test]
fn a_newcomers_disk_that_was_put_back_to_before_it_came_is_known_by_the_membership() {
    const NEWCOMER: usize = 6;
    let mut cluster = Cluster::create_with_spares(1, 1);
    for index in 0..cluster.configs.len() {
        cluster.start_node(index);
    }
    let mut learner = Learner::first(&cluster);
    learner.write(&cluster, 50);
    // Of the boot in which it comes, so that boots do not tell. Nothing writes there before it comes.
    let store = cluster.configs[NEWCOMER].store_directory();
    let earlier = cluster.directory.path().join("earlier");
    copy(&store, &earlier);
    let first = first_memberships(&cluster)[&GROUP].clone();
    let begin = Transition::Begin(Replacement { old: NodeId(1), new: NodeId(7) });
    let begun = step(&cluster, (GROUP, &first, begin), &mut || learner.write(&cluster, 5));
    wait_long("all members remember the newcomer as one that has everything", || {
        learner.write(&cluster, 1);
        ALL.into_iter().all(|index| {
            let (_, remembered) = cluster.connect(index, Caller::Client).acquaint(NodeId(7)).unwrap();
            let segments = remembered.map(|remembered| remembered.segments).unwrap_or_default();
            segments.iter().any(|segment| segment.membership_epoch == begun.epoch())
        })
    });
    cluster.kill_node(NEWCOMER);
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::rename(&earlier, &store).unwrap();
    cluster.start_node(NEWCOMER);
    wait_until("it knows that it lost something", || cluster.node(NEWCOMER).status().failure.is_some());
    let failure = cluster.node(NEWCOMER).status().failure.unwrap();
    assert!(failure.contains("group 0 had everything in membership 2"), "{failure}");
    let error = cluster.try_connect(NEWCOMER, Caller::Recovery).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Failed(_))), "{error}");
}

#[test]
fn nodes_that_restart_as_they_should_are_trusted() {
    let mut cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    for round in 0..3 {
        put(&mut cluster, &mut writer, round);
        wait_until("all are complete", || {
            ALL.into_iter()
                .all(|index| cluster.summary(index, GROUP).segment_complete_lsn == writer.durable.end)
        });
        for index in ALL {
            cluster.kill_node(index);
        }
        for index in ALL {
            cluster.start_node(index);
        }
        for index in ALL {
            wait_until("peers have answered", || cluster.metric(index, "gossip_exchanges") >= 5);
            assert_eq!(cluster.node(index).status().failure, None);
            assert_eq!(cluster.metric(index, "store_boot"), u64::from(round) + 3);
            writer.connect(&cluster, index);
        }
    }
}
