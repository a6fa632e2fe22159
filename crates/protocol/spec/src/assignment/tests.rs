use borealis_types::{AvailabilityZone, GroupId, NodeId, Placement};
use proptest::prelude::*;

use super::*;

fn zone(number: usize) -> AvailabilityZone {
    AvailabilityZone(format!("az{}", number + 1))
}

/// Hosts with the numbers from 1 on, so many in each zone, none of them leaving.
fn hosts(counts: [usize; 3]) -> Vec<Host> {
    let zones =
        counts.iter().enumerate().flat_map(|(number, &count)| std::iter::repeat_n(zone(number), count));
    let host = |(node, zone)| Host { node: NodeId(node), zone, used_bytes: 0, is_leaving: false };
    (1..).zip(zones).map(host).collect()
}

fn placement(groups: u16) -> Placement {
    Placement::new(groups).expect("1 to 64 groups")
}

fn load(membership: &Membership, node: NodeId) -> usize {
    membership.groups_on(node).len()
}

/// In each zone the most and the fewest segments on a node that stays.
fn extremes(membership: &Membership, hosts: &[Host]) -> Vec<(usize, usize)> {
    (0..3)
        .map(|number| {
            let staying = hosts.iter().filter(|host| host.zone == zone(number) && !host.is_leaving);
            let loads: Vec<usize> = staying.map(|host| load(membership, host.node)).collect();
            (*loads.iter().max().expect("a zone has nodes"), *loads.iter().min().expect("a zone has nodes"))
        })
        .collect()
}

fn assert_balanced(membership: &Membership, hosts: &[Host]) {
    for (most, fewest) in extremes(membership, hosts) {
        assert!(most <= fewest + 1, "{most} and {fewest} segments: {membership:?}");
    }
}

/// Carries the moves out one by one, and checks that each of them can be.
fn carried_out(membership: &Membership, moves: &[Move], hosts: &[Host]) -> Membership {
    let mut groups: Vec<GroupMembers> = membership.iter().cloned().collect();
    let zone_of = |node| &hosts.iter().find(|host| host.node == node).expect("a host").zone;
    for Move { group, from, to } in moves {
        assert_eq!(zone_of(*from), zone_of(*to), "a segment leaves its zone");
        let members =
            groups.iter_mut().find(|members| members.group == *group).expect("a group of the volume");
        assert!(!members.nodes.contains(to), "node {to} has a segment of group {group} already: {moves:?}");
        let place = members.nodes.iter().position(|node| node == from).expect("it hosts the segment");
        members.nodes[place] = *to;
    }
    groups.into_iter().collect()
}

/// How many groups the pair of nodes shares that shares the most.
fn closest_pair(membership: &Membership, hosts: &[Host]) -> usize {
    let numbers = || hosts.iter().map(|host| host.node);
    let shared =
        |a, b| membership.groups_on(a).iter().filter(|&group| membership.is_member(b, group)).count();
    let pairs = numbers().flat_map(|a| numbers().filter(move |b| a < *b).map(move |b| (a, b)));
    pairs.map(|(a, b)| shared(a, b)).max().unwrap_or(0)
}

#[test]
fn on_six_nodes_everyone_has_everything() {
    let nodes: Vec<NodeId> = (1..=6).map(NodeId).collect();
    let placement = placement(4);
    let everything = Membership::everyone_has_everything(placement, &nodes);
    assert_eq!(assign(placement, &hosts([2, 2, 2])), Ok(everything.clone()));
    assert_eq!(plan(&everything, placement, &hosts([2, 2, 2])), Ok(Vec::new()));
}

#[test]
fn every_fleet_is_balanced_within_one_with_two_nodes_of_a_group_in_each_zone() {
    for groups in [1, 2, 3, 4, 7, 16, 64] {
        for counts in [[2, 2, 2], [3, 2, 2], [3, 3, 2], [4, 4, 4], [5, 3, 2], [7, 6, 6], [20, 20, 19]] {
            let (placement, hosts) = (placement(groups), hosts(counts));
            let is_idle = counts.iter().any(|&count| count > 2 * usize::from(groups));
            match assign(placement, &hosts) {
                Ok(membership) => {
                    assert!(!is_idle);
                    assert_balanced(&membership, &hosts);
                    assert_eq!(membership.require_quorum_sets(placement), Ok(()));
                    assert_eq!(plan(&membership, placement, &hosts), Ok(Vec::new()), "nothing is to be done");
                }
                Err(error) => assert!(is_idle && matches!(error, AssignmentError::Idle { .. }), "{error}"),
            }
        }
    }
}

#[test]
fn nodes_share_groups_with_many_others_and_few_with_each() {
    // Twelve nodes with 8 of 16 groups each: 40 places beside each node's own, so 3.6 with each of 11 others on average.
    let (twelve, thirty) = (hosts([4, 4, 4]), hosts([10, 10, 10]));
    let membership = assign(placement(16), &twelve).expect("four nodes in each zone");
    assert!(closest_pair(&membership, &twelve) <= 5, "{}", closest_pair(&membership, &twelve));
    for host in &twelve {
        let own = membership.groups_on(host.node);
        let partners = twelve.iter().filter(|other| {
            other.node != host.node && own.iter().any(|group| membership.is_member(other.node, group))
        });
        assert_eq!(partners.count(), 11, "node {} is rebuilt from fewer than all others", host.node);
    }
    // Thirty nodes with 12 or 13 of 64 groups each: some 62 places for 29 others.
    let membership = assign(placement(64), &thirty).expect("ten nodes in each zone");
    assert!(closest_pair(&membership, &thirty) <= 4, "{}", closest_pair(&membership, &thirty));
}

#[test]
fn what_cannot_be_placed_is_said() {
    let said = |counts, groups| assign(placement(groups), &hosts(counts)).expect_err("refused").to_string();
    assert!(said([2, 2, 0], 4).contains("2 availability zones"));
    assert!(said([3, 1, 2], 4).contains("zone az2 has 1 nodes"));
    assert!(said([3, 2, 2], 1).contains("zone az1 has 3 nodes, and 2 segments"));
    let (placement, mut hosts) = (placement(4), hosts([2, 2, 3]));
    let membership = assign(placement, &hosts).expect("enough of each");
    hosts[0].is_leaving = true;
    let said = plan(&membership, placement, &hosts).expect_err("az1 has one node left").to_string();
    assert!(said.contains("zone az1 has 1 nodes"), "{said}");
    hosts[0].is_leaving = false;
    let stranger = hosts.pop().expect("node 7").node;
    let said = plan(&membership, placement, &hosts).expect_err("node 7 is a stranger").to_string();
    assert!(said.contains(&format!("node {stranger}, which is not a node of the fleet")), "{said}");
    let crowded: Membership = membership
        .iter()
        .map(|members| GroupMembers { nodes: [1, 2, 3, 4, 5, 1].map(NodeId).to_vec(), ..members.clone() })
        .collect();
    let said = check_zones(&crowded, placement, &hosts).expect_err("three in az1").to_string();
    assert!(said.contains("group 0 has 3 nodes in zone az1"), "{said}");
}

#[test]
#[should_panic(expected = "invariant groups-stand-in-three-zones is broken: Err(Uneven")]
fn three_nodes_of_a_group_in_one_zone_are_noticed() {
    let (placement, hosts) = (placement(1), hosts([3, 2, 2]));
    let crowded: Membership =
        [GroupMembers { group: GroupId(0), nodes: [1, 2, 3, 4, 5, 6].map(NodeId).to_vec() }]
            .into_iter()
            .collect();
    assert_in_three_zones(&crowded, placement, &hosts);
}

#[test]
fn of_equally_loaded_nodes_the_one_with_most_room_is_taken() {
    let placement = placement(1);
    let mut hosts = hosts([4, 2, 2]);
    hosts.iter_mut().for_each(|host| host.used_bytes = 1000 - u64::from(host.node.0));
    // Too many for one group, so take the first zone's nodes one by one.
    hosts.retain(|host| host.node != NodeId(2) && host.node != NodeId(1));
    let membership = assign(placement, &hosts).expect("two in each zone");
    hosts.push(Host { node: NodeId(9), zone: zone(0), used_bytes: 7, is_leaving: false });
    hosts.push(Host { node: NodeId(10), zone: zone(0), used_bytes: 6, is_leaving: false });
    hosts[0].is_leaving = true;
    let moves = plan(&membership, placement, &hosts).expect("there is room");
    assert_eq!(moves, [Move { group: GroupId(0), from: NodeId(3), to: NodeId(10) }]);
}

/// The fewest segments that have to change their place until every zone is balanced and no leaving node hosts any: the
/// best of all placements there are. Looks at the first zone, in which all the change is.
fn fewest_moves(current: &[[NodeId; 2]], hosts: &[Host]) -> usize {
    let staying: Vec<NodeId> =
        hosts.iter().filter(|host| host.zone == zone(0) && !host.is_leaving).map(|host| host.node).collect();
    let pairs = pairs_of(&staying);
    let mut best = usize::MAX;
    for_each_choice(current.len(), pairs.len(), &mut |choice| {
        let chosen = || choice.iter().map(|&index| pairs[index]);
        let load = |node: &NodeId| chosen().filter(|pair| pair.contains(node)).count();
        let loads = || staying.iter().map(load);
        if loads().max() <= loads().min().map(|least| least + 1) {
            let moved = |(old, new): (&[NodeId; 2], [NodeId; 2])| {
                new.iter().filter(|node| !old.contains(node)).count()
            };
            best = best.min(current.iter().zip(chosen()).map(moved).sum());
        }
    });
    best
}

/// The same for a zone of any size: as the cheapest flow from each group, two units, through the nodes that it is on (free) or
/// comes to (a move), of which each takes its share or one more. By successive shortest paths.
fn fewest_moves_in(zone: &AvailabilityZone, membership: &Membership, hosts: &[Host]) -> usize {
    // More than all moves together, so that every node gets its share first.
    const SHARE: i64 = 1_000_000;
    let staying: Vec<NodeId> =
        hosts.iter().filter(|host| host.zone == *zone && !host.is_leaving).map(|host| host.node).collect();
    let groups: Vec<&GroupMembers> = membership.iter().collect();
    let (segments, source, sink) = (2 * groups.len(), 0, 1);
    let (group_at, node_at) = (|group: usize| 2 + group, |node: usize| 2 + groups.len() + node);
    // Edges in pairs, each with its way back: from, to, capacity left, cost.
    let mut edges: Vec<(usize, usize, usize, i64)> = Vec::new();
    let mut edge = |from, to, capacity, cost: i64| {
        edges.extend([(from, to, capacity, cost), (to, from, 0, -cost)]);
    };
    for (group, members) in groups.iter().enumerate() {
        edge(source, group_at(group), 2, 0);
        for (node, id) in staying.iter().enumerate() {
            edge(group_at(group), node_at(node), 1, i64::from(!members.nodes.contains(id)));
        }
    }
    let share = segments / staying.len();
    for node in 0..staying.len() {
        edge(node_at(node), sink, share, -SHARE);
        edge(node_at(node), sink, usize::from(!segments.is_multiple_of(staying.len())), 0);
    }
    let mut total = 0;
    for _ in 0..segments {
        let mut best: Vec<Option<(i64, usize)>> = vec![None; node_at(staying.len())];
        best[source] = Some((0, usize::MAX));
        let mut is_changed = true;
        while std::mem::take(&mut is_changed) {
            for (index, &(from, to, capacity, cost)) in edges.iter().enumerate() {
                let Some((so_far, _)) = best[from] else { continue };
                if capacity > 0 && best[to].is_none_or(|(known, _)| so_far + cost < known) {
                    best[to] = Some((so_far + cost, index));
                    is_changed = true;
                }
            }
        }
        total += best[sink].expect("the zone has two nodes that stay").0;
        let mut at = sink;
        while at != source {
            let (_, index) = best[at].expect("it is on the way");
            edges[index].2 -= 1;
            edges[index ^ 1].2 += 1;
            at = edges[index].0;
        }
    }
    usize::try_from(total + SHARE * (share * staying.len()) as i64).expect("every node has its share")
}

fn pairs_of(nodes: &[NodeId]) -> Vec<[NodeId; 2]> {
    let with_later = |(place, &a): (usize, &NodeId)| nodes[place + 1..].iter().map(move |&b| [a, b]);
    nodes.iter().enumerate().flat_map(with_later).collect()
}

/// Every list of `length` numbers below `below`.
fn for_each_choice(length: usize, below: usize, visit: &mut impl FnMut(&[usize])) {
    let mut choice = vec![0; length];
    loop {
        visit(&choice);
        let Some(place) = choice.iter().rposition(|&number| number + 1 < below) else { return };
        choice[place] += 1;
        choice[place + 1..].fill(0);
    }
}

/// A membership whose groups have these two nodes in the first zone, and all others' two.
fn membership_of(pairs: &[[NodeId; 2]], hosts: &[Host]) -> Membership {
    let others = || hosts.iter().filter(|host| host.zone != zone(0)).map(|host| host.node);
    let nodes = |pair: &[NodeId; 2]| pair.iter().copied().chain(others()).collect();
    pairs
        .iter()
        .enumerate()
        .map(|(group, pair)| GroupMembers { group: GroupId(group as u16), nodes: nodes(pair) })
        .collect()
}

fn assert_plan_is_minimal(pairs: &[[NodeId; 2]], hosts: &[Host]) {
    let (placement, membership) = (placement(pairs.len() as u16), membership_of(pairs, hosts));
    let moves = plan(&membership, placement, hosts).expect("two nodes stay in each zone");
    let after = carried_out(&membership, &moves, hosts);
    assert_balanced(&after, hosts);
    assert_eq!(check_zones(&after, placement, hosts), Ok(()));
    for host in hosts.iter().filter(|host| host.is_leaving) {
        assert_eq!(load(&after, host.node), 0, "node {} is to be left", host.node);
    }
    assert_eq!(moves.len(), fewest_moves(pairs, hosts), "{membership:?} {hosts:?} {moves:?}");
    assert_eq!(moves.len(), fewest_moves_in(&zone(0), &membership, hosts), "two ways to count");
}

#[test]
fn no_plan_for_a_small_zone_has_a_move_too_many() {
    // Every placement of some groups in a zone of some nodes, with every set of them leaving that leaves two.
    for (count, groups) in [(2, 3), (3, 4), (4, 3), (5, 2)] {
        let all = hosts([count, 2, 2]);
        let nodes: Vec<NodeId> = (1..=count as u16).map(NodeId).collect();
        let pairs = pairs_of(&nodes);
        for leaving in (0..1u32 << count).filter(|set| count - set.count_ones() as usize >= 2) {
            let mut hosts = all.clone();
            for (place, host) in hosts.iter_mut().take(count).enumerate() {
                host.is_leaving = leaving & 1 << place != 0;
            }
            for_each_choice(groups, pairs.len(), &mut |choice| {
                let chosen: Vec<[NodeId; 2]> = choice.iter().map(|&index| pairs[index]).collect();
                assert_plan_is_minimal(&chosen, &hosts);
            });
        }
    }
}

#[test]
fn a_segment_whose_group_the_emptiest_node_has_costs_a_second_move() {
    // Of six segments on four nodes; node 2 is the emptiest, and has the one group that node 1 is to be rid of.
    let mut hosts = hosts([4, 2, 2]);
    hosts[0].is_leaving = true;
    let pairs = [[1, 2], [3, 4], [3, 4]].map(|pair| pair.map(NodeId));
    assert_eq!(fewest_moves(&pairs, &hosts), 2);
    assert_eq!(fewest_moves_in(&zone(0), &membership_of(&pairs, &hosts), &hosts), 2);
    assert_plan_is_minimal(&pairs, &hosts);
}

/// What happens to a fleet.
#[derive(Clone, Debug)]
enum Happening {
    Add(usize),
    Drain(usize),
    Lose(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0usize..3).prop_map(Happening::Add),
        1 => (0usize..64).prop_map(Happening::Drain),
        1 => (0usize..64).prop_map(Happening::Lose),
    ]
}

/// Notes what happens; `false` if it cannot, because too few nodes would be left.
fn happen(hosts: &mut Vec<Host>, next: &mut u16, what: &Happening) -> bool {
    match *what {
        Happening::Add(number) => {
            hosts.push(Host { node: NodeId(*next), zone: zone(number), used_bytes: 0, is_leaving: false });
            *next += 1;
            true
        }
        Happening::Drain(index) | Happening::Lose(index) => {
            let index = index % hosts.len();
            let left = hosts.iter().filter(|host| host.zone == hosts[index].zone && !host.is_leaving).count();
            hosts[index].is_leaving |= left > 2;
            left > 2
        }
    }
}

proptest! {
    #[test]
    fn random_zones_are_planned_with_the_fewest_moves(
        count in 2usize..6,
        seeds in prop::collection::vec(0usize..1000, 1..5),
        leaving in 0u32..32,
    ) {
        let mut hosts = hosts([count, 2, 2]);
        for (place, host) in hosts.iter_mut().take(count).enumerate().skip(2) {
            host.is_leaving = leaving & 1 << place != 0;
        }
        let nodes: Vec<NodeId> = (1..=count as u16).map(NodeId).collect();
        let pairs = pairs_of(&nodes);
        let chosen: Vec<[NodeId; 2]> = seeds.iter().map(|seed| pairs[seed % pairs.len()]).collect();
        assert_plan_is_minimal(&chosen, &hosts);
    }

    #[test]
    fn a_fleet_that_changes_stays_balanced_and_moves_little(
        groups in 1u16..=24,
        counts in [2usize..6, 2usize..6, 2usize..6],
        happenings in prop::collection::vec(happening(), 1..12),
    ) {
        let placement = placement(groups);
        let (mut hosts, mut next) = (hosts(counts), 100);
        let Ok(mut membership) = assign(placement, &hosts) else { return Ok(()) };
        for what in &happenings {
            if !happen(&mut hosts, &mut next, what) {
                continue;
            }
            let moves = plan(&membership, placement, &hosts).expect("two nodes stay in each zone");
            let after = carried_out(&membership, &moves, &hosts);
            assert_balanced(&after, &hosts);
            prop_assert_eq!(plan(&after, placement, &hosts), Ok(Vec::new()), "it is stable");
            match *what {
                // The newcomer gets its share, and nothing else moves.
                Happening::Add(number) => {
                    let newcomer = hosts.last().expect("it was added").node;
                    prop_assert!(moves.iter().all(|planned| planned.to == newcomer));
                    let staying = hosts.iter().filter(|host| host.zone == zone(number) && !host.is_leaving).count();
                    prop_assert_eq!(moves.len(), 2 * usize::from(groups) / staying);
                }
                // What it hosted moves. A segment that the emptiest node has already goes to another one, and may cost
                // that one a move.
                Happening::Drain(_) | Happening::Lose(_) => {
                    let leaving = hosts.iter().filter(|host| host.is_leaving);
                    prop_assert!(moves.len() >= leaving.map(|host| load(&membership, host.node)).sum());
                }
            }
            let fewest: usize = (0..3).map(|number| fewest_moves_in(&zone(number), &membership, &hosts)).sum();
            prop_assert_eq!(moves.len(), fewest);
            membership = after;
        }
    }
}
