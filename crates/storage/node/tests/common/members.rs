//! A controller that makes one step after another, and a writer that goes on while members of its groups are replaced.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use borealis_client::NodeClient;
use borealis_quorum::membership::{
    Answer, Change, ChangeFailure, ChangeOptions, Command, Event, GroupMembership, MembershipState, Request,
    Transition, credible_membership,
};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId};
use borealis_wire::{Caller, Refusal, Reply, SegmentSummary, Whereabouts};

use super::{Cluster, Writer, block, image};

pub fn index_of(node: NodeId) -> usize {
    usize::from(node.0) - 1
}

/// Where all nodes are.
pub fn whereabouts(cluster: &Cluster) -> Vec<Whereabouts> {
    let told = |config: &borealis_spec::NodeConfig| Whereabouts {
        node: config.node,
        zone: config.zone.clone(),
        address: config.listen.to_string(),
    };
    cluster.configs.iter().map(told).collect()
}

/// The first membership of every group.
pub fn first_memberships(cluster: &Cluster) -> BTreeMap<GroupId, GroupMembership> {
    cluster.configs[0].groups.first_memberships()
}

/// Asks one node, as a controller; `None` if it does not answer.
pub fn ask(
    cluster: &Cluster,
    clients: &mut BTreeMap<NodeId, NodeClient>,
    node: NodeId,
    group: GroupId,
    request: &Request,
) -> Option<(Option<MembershipState>, Option<SegmentSummary>)> {
    if let std::collections::btree_map::Entry::Vacant(vacant) = clients.entry(node) {
        vacant.insert(cluster.try_connect(index_of(node), Caller::Controller).ok()?);
    }
    let request =
        borealis_wire::Request::Membership { group, request: request.clone(), nodes: whereabouts(cluster) };
    match clients.get_mut(&node)?.call(&request) {
        Ok(Reply::Member { membership, segment }) => Some((membership, segment)),
        Ok(other) => panic!("a step was answered with {other:?}"),
        Err(error) => {
            assert!(error.refusal().is_none(), "{error}");
            clients.remove(&node);
            None
        }
    }
}

/// Makes one step, with `meanwhile` after each round of questions. Answers of `unreachable` nodes never come.
pub fn step_without(
    cluster: &Cluster,
    (group, known, goal): (GroupId, &GroupMembership, Transition),
    unreachable: &[NodeId],
    meanwhile: &mut dyn FnMut(),
) -> Result<GroupMembership, ChangeFailure> {
    let options = ChangeOptions {
        group,
        known: known.clone(),
        goal,
        proposer: 7,
        // An attempt is begun anew after four of these: it must have time for all nodes, one after the other, and a write.
        retry_after: Duration::from_millis(500),
        give_up_after: Some(Duration::from_secs(60)),
    };
    let begun = Instant::now();
    let mut clients = BTreeMap::new();
    let (mut change, mut commands) = Change::start(options, begun.elapsed());
    loop {
        let mut answers = Vec::new();
        for command in std::mem::take(&mut commands) {
            match command {
                Command::Send { node, request } if !unreachable.contains(&node) => {
                    if let Some((membership, segment)) = ask(cluster, &mut clients, node, group, &request) {
                        let summary = segment.as_ref().map(Into::into);
                        answers.push(Answer { node, membership, summary });
                    }
                }
                Command::Send { .. } => {}
                Command::Done(membership) => return Ok(membership),
                Command::Failed(failure) => return Err(failure),
            }
        }
        if answers.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
            commands = change.handle(Event::Tick, begun.elapsed());
        }
        for answer in answers {
            commands.extend(change.handle(Event::Answer(answer), begun.elapsed()));
        }
        meanwhile();
    }
}

/// Makes one step.
pub fn step(
    cluster: &Cluster,
    (group, known, goal): (GroupId, &GroupMembership, Transition),
    meanwhile: &mut dyn FnMut(),
) -> GroupMembership {
    step_without(cluster, (group, known, goal), &[], meanwhile).unwrap()
}

/// A writer that learns who the members are from those who refuse it.
pub struct Learner {
    pub writer: Writer,
    pub memberships: BTreeMap<GroupId, GroupMembership>,
    /// SCLs as the members said last.
    complete: BTreeMap<(NodeId, GroupId), Lsn>,
    claims: BTreeMap<GroupId, BTreeMap<NodeId, MembershipState>>,
    /// How often it was refused for an older membership.
    pub refused: usize,
    /// Pages that are durable, by block, and what each was made from.
    pub pages: BTreeMap<u32, u32>,
    next: u32,
}

impl Learner {
    /// The first writer of a volume.
    pub fn first(cluster: &Cluster) -> Learner {
        let mut writer = Writer::first(cluster);
        writer.clients.clear();
        let mut learner = Learner {
            writer,
            memberships: first_memberships(cluster),
            complete: BTreeMap::new(),
            claims: BTreeMap::new(),
            refused: 0,
            pages: BTreeMap::new(),
            next: 0,
        };
        learner.connect(cluster);
        learner
    }

    pub fn made_for(&self) -> Vec<(GroupId, MembershipEpoch)> {
        self.memberships.iter().map(|(group, membership)| (*group, membership.epoch())).collect()
    }

    /// Connects to every member that it is not connected to and that can be reached. A node that came has to hear of the
    /// recovery first.
    pub fn connect(&mut self, cluster: &Cluster) {
        let members: std::collections::BTreeSet<NodeId> =
            self.memberships.values().flat_map(GroupMembership::members).collect();
        for node in members {
            let index = index_of(node);
            if self.writer.clients.contains_key(&index) || cluster.nodes[index].is_none() {
                continue;
            }
            match cluster.try_connect_for(index, self.writer.caller(), &self.made_for()) {
                Ok(client) => {
                    let is_behind = |segment: &&SegmentSummary| {
                        segment.history.newest_epoch() < self.writer.epoch
                            || segment.promised_epoch < self.writer.epoch
                    };
                    if client.welcome().iter().any(|segment| is_behind(&segment)) {
                        self.bring_history(cluster, index);
                    }
                    for segment in client.welcome() {
                        self.complete.insert((node, segment.group), segment.segment_complete_lsn);
                    }
                    self.writer.clients.insert(index, client);
                }
                Err(error) => match error.refusal().cloned() {
                    Some(refusal) => self.learn(node, refusal),
                    None => eprintln!("node {node} is not reached: {error}"),
                },
            }
        }
    }

    fn bring_history(&mut self, cluster: &Cluster, index: usize) {
        let mut client = cluster.try_connect_for(index, Caller::Recovery, &self.made_for()).unwrap();
        let (epoch, writer) = (self.writer.epoch, self.writer.writer);
        if let Err(error) = client.fence(epoch, writer) {
            // Its peers told it since it was asked, without saying whose the promise is. A writer goes on all the same.
            assert_eq!(error.refusal(), Some(&Refusal::Fenced(epoch)), "{error}");
        }
        // Nothing was durable at its opening.
        client.install(epoch, writer, &self.writer.history, &[]).unwrap();
    }

    fn learn(&mut self, node: NodeId, refusal: Refusal) {
        let Refusal::OtherMembership { states, .. } = refusal else { panic!("node {node}: {refusal}") };
        self.refused += 1;
        for (group, state) in states {
            self.claims.entry(group).or_default().insert(node, state);
        }
        for (group, claims) in &self.claims {
            if let Some(newer) = credible_membership(self.memberships.get(group), claims) {
                self.memberships.insert(*group, newer);
                // Everyone is connected to anew, and counted from what is said then.
                self.writer.clients.clear();
                self.complete.clear();
            }
        }
    }

    fn is_durable(&self) -> bool {
        self.memberships.iter().all(|(group, membership)| {
            let end = self.writer.group_ends[group];
            let complete = |node| self.complete.get(&(node, *group)).is_some_and(|complete| *complete >= end);
            QuorumSets::of(membership).is_write_quorum(complete)
        })
    }

    /// Writes some pages, and goes on until they are durable, whoever the members are by then.
    pub fn write(&mut self, cluster: &Cluster, count: u32) {
        for _ in 0..count {
            let number = self.next % 700;
            self.writer.put_page(block(16_384, number), &image(self.next));
            self.pages.insert(number, self.next);
            self.next += 1;
        }
        let batch = self.writer.take_batch();
        let begun = Instant::now();
        loop {
            self.connect(cluster);
            self.offer(&batch);
            for (index, client) in &mut self.writer.clients {
                for progress in client.take_progress() {
                    let key = (NodeId(*index as u16 + 1), progress.group);
                    self.complete.insert(key, progress.segment_complete_lsn);
                }
            }
            if self.is_durable() {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing gets durable");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.writer.note_durable();
        let announced = self.writer.take_batch();
        self.offer(&announced);
    }

    /// Sends a batch to all who are connected.
    fn offer(&mut self, batch: &[u8]) {
        let connected: Vec<usize> = self.writer.clients.keys().copied().collect();
        for index in connected {
            let node = NodeId(index as u16 + 1);
            let Some(client) = self.writer.clients.get_mut(&index) else { continue };
            match client.append(batch) {
                Ok(progress) => {
                    for moved in progress {
                        self.complete.insert((node, moved.group), moved.segment_complete_lsn);
                    }
                }
                Err(error) => {
                    self.writer.clients.remove(&index);
                    match error.refusal().cloned() {
                        Some(refusal) => self.learn(node, refusal),
                        None => eprintln!("node {node} is lost: {error}"),
                    }
                }
            }
        }
    }

    /// Asserts that a node answers every page of a group as it was written last.
    pub fn assert_readable(&self, cluster: &Cluster, index: usize, group: GroupId) {
        let mut client = cluster.connect(index, Caller::Client);
        let mut read = 0;
        for (number, seed) in &self.pages {
            let key = block(16_384, *number);
            if cluster.placement.group_of(&key) == group {
                let page = client.read_page(group, key, self.writer.durable.end).unwrap();
                assert!(
                    page.as_deref() == Some(image(*seed).as_slice()),
                    "page {number} of node {}",
                    index + 1
                );
                read += 1;
            }
        }
        assert!(read > 0, "group {group} has no page");
    }
}
