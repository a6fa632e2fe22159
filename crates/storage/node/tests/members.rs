//! Members of groups are replaced while the volume is written: the segments choose, join by pages, and leave.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_client::NodeClient;
use borealis_quorum::membership::{
    Accepted, Ballot, GroupMembership, Replacement, Request as Step, Transition,
};
use borealis_store::SegmentSource;
use borealis_types::{GroupId, MembershipEpoch, NodeId};
use borealis_wire::{Caller, Refusal, Reply, Request};
use common::members::{Learner, ask, first_memberships, step, step_without, whereabouts};
use common::{ALL, Cluster, wait_long, wait_until};

const GROUP: GroupId = GroupId(0);
const SPARES: usize = 2;

fn cluster(group_count: u16) -> Cluster {
    let mut cluster = Cluster::create_with_spares(group_count, SPARES);
    for index in 0..cluster.configs.len() {
        cluster.start_node(index);
    }
    cluster
}

fn replacement(old: u16, new: u16) -> Replacement {
    Replacement { old: NodeId(old), new: NodeId(new) }
}

fn is_full(cluster: &Cluster, index: usize, group: GroupId) -> bool {
    cluster.segment(index, group).is_some_and(|segment| !segment.joining)
}

fn acts_on(cluster: &Cluster, index: usize, group: GroupId) -> Option<MembershipEpoch> {
    let mut client = cluster.connect(index, Caller::Client);
    let Reply::Memberships { states, .. } = client.call(&Request::Memberships).unwrap() else {
        panic!("it is asked for memberships")
    };
    states.into_iter().find(|(of, _)| *of == group).map(|(_, state)| state.installed().epoch())
}

/// The folders that a node has for segments of a group.
fn folders(cluster: &Cluster, index: usize, group: GroupId) -> Vec<String> {
    let segments = cluster.configs[index].store_directory().join("segments");
    let names = std::fs::read_dir(segments).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let number = group.0.to_string();
    names.filter(|name| *name == number || name.starts_with(&format!("{number}."))).collect()
}

#[test]
fn a_member_is_replaced_under_writes_and_its_space_is_freed() {
    let cluster = cluster(2);
    let mut learner = Learner::first(&cluster);
    for _ in 0..10 {
        learner.write(&cluster, 100);
    }
    let spare = cluster.node(6).status();
    assert!(spare.segments.is_empty() && spare.heard.is_empty(), "a spare gossips with nobody");
    assert!(spare.free_bytes > 0 && spare.incarnation == cluster.configs[6].incarnation);
    // It sits there without a word.
    let mut idle = cluster.try_connect_for(0, learner.writer.caller(), &learner.made_for()).unwrap();
    let first = first_memberships(&cluster)[&GROUP].clone();
    let moved = replacement(1, 7);
    let begun = step(&cluster, (GROUP, &first, Transition::Begin(moved)), &mut || learner.write(&cluster, 5));
    learner.write(&cluster, 5);
    assert_eq!(learner.memberships[&GROUP], begun);
    assert!(learner.refused >= 3, "it was refused {} times", learner.refused);
    wait_long("the newcomer has everything", || {
        learner.write(&cluster, 1);
        is_full(&cluster, 6, GROUP)
    });
    assert!(cluster.segment(6, GroupId(1)).is_none(), "it is no member of the other group");
    wait_until("it says so", || cluster.metric(6, "segments_joined") == 1);
    assert_eq!(cluster.metric(6, "segments_joining"), 0);
    assert!(cluster.metric(6, "refill_fetched_bytes") > 0, "it came by pages");
    let finished =
        step(&cluster, (GROUP, &begun, Transition::Finish(moved)), &mut || learner.write(&cluster, 5));
    assert_eq!(finished.epoch(), MembershipEpoch(3));
    wait_until("the old member heard of it", || acts_on(&cluster, 0, GROUP) == Some(finished.epoch()));
    learner.write(&cluster, 5);
    assert_eq!(learner.memberships[&GROUP], finished);
    // Whoever left confirms nothing for those who count it still, and ends their connection.
    let error = idle.call(&Request::Confirm { epoch: learner.writer.epoch }).unwrap_err();
    let Some(Refusal::OtherMembership { states, nodes }) = error.refusal() else { panic!("{error}") };
    assert!(states.iter().any(|(group, state)| *group == GROUP && *state.installed() == finished));
    assert!(
        nodes.iter().any(|told| told.node == NodeId(7) && told.address.ends_with("socket-7")),
        "{nodes:?}"
    );
    assert!(idle.status().is_err(), "it was closed");
    // It still has the other group.
    assert!(cluster.segment(0, GROUP).is_none() && is_full(&cluster, 0, GroupId(1)));
    assert_eq!(cluster.metric(0, "segments_left"), 1);
    wait_until("its space is free", || folders(&cluster, 0, GROUP).is_empty());
    assert_eq!(folders(&cluster, 0, GroupId(1)).len(), 1);
    wait_until("the newcomer follows", || {
        cluster.summary(6, GROUP).readable_through >= learner.writer.group_ends[&GROUP]
    });
    learner.write(&cluster, 1);
    learner.assert_readable(&cluster, 6, GROUP);
    learner.assert_readable(&cluster, 0, GroupId(1));
    let heard = cluster.node(6).status().heard;
    assert_eq!(heard.iter().map(|peer| peer.node.0).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    assert!(heard.iter().all(|peer| peer.ms_ago < 5000), "{heard:?}");
}

#[test]
fn a_newcomer_dies_and_those_who_were_away_learn_from_the_others() {
    let mut cluster = Cluster::create_with_spares(1, SPARES);
    // So slow that it can be killed in the middle.
    cluster.configs[6].refill_bytes_per_second = 1 << 20;
    for index in 0..cluster.configs.len() {
        cluster.start_node(index);
    }
    let mut learner = Learner::first(&cluster);
    for _ in 0..10 {
        learner.write(&cluster, 100);
    }
    // Node 6 is away all the time, and node 1 from when it is replaced.
    learner.writer.clients.remove(&5);
    cluster.kill_node(5);
    let first = first_memberships(&cluster)[&GROUP].clone();
    let moved = replacement(1, 7);
    let begun = step(&cluster, (GROUP, &first, Transition::Begin(moved)), &mut || learner.write(&cluster, 1));
    wait_long("it takes pages", || {
        cluster.node(6).status().refills.first().is_some_and(|progress| progress.done_bytes > 0)
    });
    assert!(cluster.summary(6, GROUP).joining);
    learner.writer.clients.remove(&6);
    cluster.kill_node(6);
    learner.write(&cluster, 20);
    cluster.configs[6].refill_bytes_per_second = 0;
    cluster.start_node(6);
    assert!(cluster.summary(6, GROUP).joining);
    wait_long("it has everything", || {
        learner.write(&cluster, 1);
        is_full(&cluster, 6, GROUP)
    });
    learner.writer.clients.remove(&0);
    cluster.kill_node(0);
    let finished =
        step(&cluster, (GROUP, &begun, Transition::Finish(moved)), &mut || learner.write(&cluster, 1));
    learner.write(&cluster, 20);
    cluster.start_node(0);
    cluster.start_node(5);
    for index in [0, 5] {
        wait_until("it learned from the others", || {
            acts_on(&cluster, index, GROUP) == Some(finished.epoch())
        });
    }
    assert!(cluster.segment(0, GROUP).is_none());
    wait_until("its space is free", || folders(&cluster, 0, GROUP).is_empty());
    // And has nothing more to say to them, nor they to it.
    std::thread::sleep(Duration::from_secs(4));
    let refused = || (0..7).map(|index| cluster.metric(index, "memberships_refused")).collect::<Vec<u64>>();
    let before = refused();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(refused(), before);
    wait_long("node 6 has what it missed", || {
        learner.write(&cluster, 1);
        cluster.summary(5, GROUP).readable_through >= learner.writer.group_ends[&GROUP]
    });
    for index in [1, 2, 3, 4, 5, 6] {
        wait_until("everyone has everything", || {
            cluster.summary(index, GROUP).readable_through >= learner.writer.group_ends[&GROUP]
        });
        learner.assert_readable(&cluster, index, GROUP);
        assert_eq!(cluster.node(index).status().failure, None);
    }
}

#[test]
fn two_members_are_replaced_at_once_and_come_back() {
    let cluster = cluster(2);
    let mut learner = Learner::first(&cluster);
    for _ in 0..5 {
        learner.write(&cluster, 100);
    }
    let mut known = first_memberships(&cluster);
    for moves in [[replacement(1, 7), replacement(2, 8)], [replacement(7, 1), replacement(8, 2)]] {
        for group in cluster.placement.groups() {
            for moved in moves {
                let goal = Transition::Begin(moved);
                let begun = step(&cluster, (group, &known[&group], goal), &mut || learner.write(&cluster, 1));
                known.insert(group, begun);
            }
            assert_eq!(known[&group].sets().len(), 4);
        }
        for group in cluster.placement.groups() {
            for moved in moves {
                wait_long("both have everything", || {
                    learner.write(&cluster, 1);
                    is_full(&cluster, common::members::index_of(moved.new), group)
                });
            }
            for moved in moves {
                let goal = Transition::Finish(moved);
                let finished =
                    step(&cluster, (group, &known[&group], goal), &mut || learner.write(&cluster, 1));
                known.insert(group, finished);
            }
        }
        for moved in moves {
            let left = common::members::index_of(moved.old);
            wait_until("it has nothing left", || {
                cluster.node(left).status().segments.is_empty()
                    && cluster.placement.groups().all(|group| folders(&cluster, left, group).is_empty())
            });
        }
        learner.write(&cluster, 1);
    }
    assert!(known.values().all(|membership| membership.epoch() == MembershipEpoch(9)));
    assert_eq!(learner.memberships, known);
    for index in ALL {
        for group in cluster.placement.groups() {
            wait_until("everyone has everything", || {
                cluster.summary(index, group).readable_through >= learner.writer.group_ends[&group]
            });
            learner.assert_readable(&cluster, index, group);
        }
        assert_eq!(cluster.node(index).status().failure, None, "whoever comes again has lost nothing");
    }
}

#[test]
fn two_that_were_told_teach_everyone_when_the_controller_dies() {
    let cluster = cluster(1);
    let mut learner = Learner::first(&cluster);
    learner.write(&cluster, 50);
    let first = first_memberships(&cluster)[&GROUP].clone();
    let second = first.after(Transition::Begin(replacement(1, 7))).unwrap();
    let mut clients: BTreeMap<NodeId, NodeClient> = BTreeMap::new();
    let ballot = Ballot { counter: 1, proposer: 9 };
    let accept = Step::Accept(Accepted { ballot, membership: second.clone() });
    let prepare = Step::Prepare { installed: first.clone(), ballot };
    for node in (2..=5).map(NodeId) {
        for request in [&prepare, &accept] {
            ask(&cluster, &mut clients, node, GROUP, request).unwrap();
        }
    }
    for node in [2, 3].map(NodeId) {
        let (state, _) = ask(&cluster, &mut clients, node, GROUP, &Step::Install(second.clone())).unwrap();
        assert_eq!(*state.unwrap().installed(), second);
    }
    drop(clients);
    for index in [0, 1, 2, 3, 4, 5, 6] {
        wait_long("everyone learned, the newcomer too", || {
            acts_on(&cluster, index, GROUP) == Some(second.epoch())
        });
    }
    wait_long("it has everything", || {
        learner.write(&cluster, 1);
        is_full(&cluster, 6, GROUP)
    });
    assert_eq!(learner.memberships[&GROUP], second);
}

#[test]
fn only_a_controller_changes_who_the_members_are() {
    let cluster = cluster(1);
    let learner = Learner::first(&cluster);
    let first: GroupMembership = first_memberships(&cluster)[&GROUP].clone();
    let second = first.after(Transition::Begin(replacement(1, 7))).unwrap();
    let request =
        Request::Membership { group: GROUP, request: Step::Install(second), nodes: whereabouts(&cluster) };
    for caller in [Caller::Peer(NodeId(2)), Caller::Client, Caller::Recovery, learner.writer.caller()] {
        let error = cluster.connect(0, caller).call(&request).unwrap_err();
        assert!(error.to_string().contains("only a controller may ask this"), "{caller:?}: {error}");
    }
    assert_eq!(acts_on(&cluster, 0, GROUP), Some(first.epoch()));
    // Nor does a controller get two memberships of one epoch, a group that does not exist, or numbers without an end.
    let mut controller = cluster.connect(0, Caller::Controller);
    let mut refused = |group: u16, membership: GroupMembership| {
        let (group, request) = (GroupId(group), Step::Install(membership));
        let asked = Request::Membership { group, request, nodes: Vec::new() };
        assert!(matches!(controller.call(&asked).unwrap_err().refusal(), Some(Refusal::Misuse(_))));
    };
    let other = |epoch: u64| {
        GroupMembership::new(MembershipEpoch(epoch), vec![[1, 2, 3, 4, 5, 8].map(NodeId)]).unwrap()
    };
    refused(0, other(1));
    refused(1, other(2));
    refused(0, other(u64::MAX));
    assert_eq!(acts_on(&cluster, 0, GROUP), Some(first.epoch()));
}

#[test]
fn a_step_goes_on_when_a_member_does_not_answer_and_is_taken_back() {
    let cluster = cluster(1);
    let mut learner = Learner::first(&cluster);
    learner.write(&cluster, 300);
    let first = first_memberships(&cluster)[&GROUP].clone();
    let moved = replacement(1, 7);
    let mut meanwhile = || learner.write(&cluster, 1);
    let begun =
        step_without(&cluster, (GROUP, &first, Transition::Begin(moved)), &[NodeId(4)], &mut meanwhile)
            .unwrap();
    let back = step(&cluster, (GROUP, &begun, Transition::TakeBack(moved)), &mut meanwhile);
    assert_eq!(back.sets(), first.sets());
    wait_until("the newcomer is gone", || {
        cluster.node(6).status().segments.is_empty() && folders(&cluster, 6, GROUP).is_empty()
    });
    wait_until("the one that was not told learned it", || acts_on(&cluster, 3, GROUP) == Some(back.epoch()));
    learner.write(&cluster, 5);
    // A node that starts again knows it still, and where the others are.
    learner.assert_readable(&cluster, 0, GROUP);
}

#[test]
fn a_node_is_made_anew_of_the_segments_that_it_has_by_now() {
    const OLD: usize = 0;
    const NEW: usize = 6;
    const SOURCE: usize = 1;
    let mut cluster = cluster(2);
    let mut learner = Learner::first(&cluster);
    for _ in 0..10 {
        learner.write(&cluster, 100);
    }
    let first = first_memberships(&cluster)[&GROUP].clone();
    let moved = replacement(1, 7);
    let begun = step(&cluster, (GROUP, &first, Transition::Begin(moved)), &mut || learner.write(&cluster, 1));
    wait_long("the newcomer has everything", || {
        learner.write(&cluster, 1);
        is_full(&cluster, NEW, GROUP)
    });
    let finished =
        step(&cluster, (GROUP, &begun, Transition::Finish(moved)), &mut || learner.write(&cluster, 1));
    wait_until("all know of it", || {
        (0..=NEW).all(|index| acts_on(&cluster, index, GROUP) == Some(finished.epoch()))
    });
    for index in [OLD, NEW, SOURCE] {
        learner.writer.clients.remove(&index);
        cluster.kill_node(index);
    }
    for index in [OLD, NEW] {
        std::fs::remove_dir_all(cluster.configs[index].store_directory()).unwrap();
        cluster.configs[index].incarnation += 0x1000;
    }
    let source = |groups: &[u16]| SegmentSource {
        store: cluster.configs[SOURCE].store_directory(),
        groups: groups.iter().copied().map(GroupId).collect(),
    };
    // Configuration says which they had when the volume was made.
    assert_eq!(cluster.configs[OLD].own_groups(), [0, 1].map(GroupId));
    assert!(cluster.configs[NEW].own_groups().is_empty());
    let refused = borealis_node::gather(&cluster.configs[OLD], &[source(&[0, 1])]).unwrap_err();
    assert!(format!("{refused:#}").contains("knows node 1 as no member of group 0"), "{refused:#}");
    borealis_node::gather(&cluster.configs[OLD], &[source(&[1])]).unwrap();
    borealis_node::gather(&cluster.configs[NEW], &[source(&[0])]).unwrap();
    for index in [OLD, NEW, SOURCE] {
        cluster.start_node(index);
    }
    assert!(cluster.segment(OLD, GROUP).is_none() && is_full(&cluster, OLD, GroupId(1)));
    assert!(is_full(&cluster, NEW, GROUP) && cluster.segment(NEW, GroupId(1)).is_none());
    learner.connect(&cluster);
    learner.write(&cluster, 20);
    for (index, group) in [(OLD, GroupId(1)), (NEW, GROUP)] {
        wait_until("it follows", || {
            cluster.summary(index, group).readable_through >= learner.writer.group_ends[&group]
        });
        learner.assert_readable(&cluster, index, group);
    }
}
