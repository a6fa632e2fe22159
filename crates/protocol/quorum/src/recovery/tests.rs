use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use borealis_types::{
    EpochHistory, EpochOpening, GroupId, GroupSet, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch,
    WRITE_QUORUM, WriterId,
};

use super::{Command, Event, Failure, Outcome, Recovery, RecoveryOptions, TailRecord};
use crate::membership::GroupMembership;
use crate::quorum_set::QuorumSets;
use crate::segment::{Segment, Source};
use crate::writer::WriterTracker;
use crate::{ChainLink, DurablePoint, GroupTail, Promise};

const ALL: [u16; 6] = [0, 1, 2, 3, 4, 5];

type Record = TailRecord<u64>;

/// Six nodes with a segment of every group, reached without a network.
struct Cluster {
    segments: Vec<Vec<Segment>>,
    records: Vec<Vec<BTreeMap<Lsn, Record>>>,
    down: BTreeSet<u16>,
    /// The sets of every group.
    sets: Vec<[NodeId; 6]>,
    /// Lost for good, so that the others are opened as survivors.
    lost: BTreeSet<NodeId>,
    /// Say that they are joining.
    joining: BTreeSet<u16>,
}

impl Cluster {
    fn new(groups: u16) -> Cluster {
        let segments = || (0..groups).map(|id| Segment::new(GroupId(id))).collect();
        Cluster {
            segments: ALL.map(|_| segments()).into(),
            records: vec![vec![BTreeMap::new(); usize::from(groups)]; 6],
            down: BTreeSet::new(),
            sets: vec![ALL.map(NodeId)],
            lost: BTreeSet::new(),
            joining: BTreeSet::new(),
        }
    }

    fn members(&self) -> Vec<QuorumSets> {
        let set = QuorumSets::new(self.sets.clone()).expect("six different nodes in each");
        let set = set.survivors(&self.lost).expect("enough are left");
        vec![set; self.segments[0].len()]
    }

    fn give(&mut self, node: u16, group: GroupId, source: Source, record: &Record) -> bool {
        let link = record.links.iter().find(|link| link.group == group).expect("of this group");
        let link = ChainLink { previous_end: link.previous_end, span: record.span };
        let (node, position) = (usize::from(node), usize::from(group.0));
        let taken = self.segments[node][position].offer(source, record.epoch, link).must_persist();
        if taken {
            self.records[node][position].insert(record.span.start, record.clone());
        }
        taken
    }

    fn answer(&mut self, command: Command<u64>) -> Option<Event<u64>> {
        match command {
            Command::Fence { node, promise } => {
                let all = self.segments.get_mut(usize::from(node.0))?;
                let summaries: Result<Vec<_>, _> = all.iter_mut().map(|s| s.fence(promise)).collect();
                Some(match summaries {
                    Ok(mut summaries) => {
                        summaries
                            .iter_mut()
                            .for_each(|summary| summary.joining = self.joining.contains(&node.0));
                        Event::Fenced { node, summaries }
                    }
                    Err(fenced) => Event::Refused { node, current: fenced.current.epoch },
                })
            }
            Command::ReadTail { node, group, above } => {
                let all = &self.records[usize::from(node.0)][usize::from(group.0)];
                let after: Vec<Record> = all.values().filter(|r| r.span.end > above).cloned().collect();
                let records = after.iter().take(2).cloned().collect();
                Some(Event::TailPage { node, group, above, records, more: after.len() > 2 })
            }
            Command::Repair { node, group, promise, history, records } => {
                let segment = &mut self.segments[usize::from(node.0)][usize::from(group.0)];
                let adopted = segment.adopt_for_recovery(promise, &history).ok()?;
                for cut in adopted.cut {
                    let all = &mut self.records[usize::from(node.0)][usize::from(group.0)];
                    all.remove(&cut.link.span.start);
                }
                for record in &records {
                    self.give(node.0, group, Source::Recovery, record);
                }
                Some(Event::Repaired { node, group })
            }
            Command::Install { node, promise, history, tails } => {
                for (group, tail) in tails.iter().enumerate() {
                    self.install(node.0, group, promise.writer, &history, tail.last_end)?;
                }
                Some(Event::Installed { node })
            }
            Command::Done(_) | Command::Failed(_) => None,
        }
    }

    fn install(
        &mut self,
        node: u16,
        group: usize,
        writer: WriterId,
        history: &EpochHistory,
        group_tail: Lsn,
    ) -> Option<()> {
        let volume = history.openings().last()?.last;
        let segment = &mut self.segments[usize::from(node)][group];
        let installed = segment.install(Some(writer), history, DurablePoint { volume, group_tail }).ok()?;
        for cut in installed.cut {
            self.records[usize::from(node)][group].remove(&cut.link.span.start);
        }
        Some(())
    }

    /// Recovers with the nodes that are up. `allow` may swallow a command.
    fn recover(
        &mut self,
        epoch: u64,
        allow: impl Fn(&Command<u64>) -> bool,
    ) -> Option<Result<Outcome, Failure>> {
        let options = RecoveryOptions {
            promise: promise(epoch),
            server_version: release(epoch),
            members: self.members(),
            retry_after: Duration::from_secs(1),
            give_up_after: Some(Duration::from_secs(30)),
        };
        let mut now = Duration::ZERO;
        let (mut recovery, commands) = Recovery::start(options, now);
        let mut queue = VecDeque::from(commands);
        for _ in 0..40 {
            while let Some(command) = queue.pop_front() {
                match &command {
                    Command::Done(outcome) => return Some(Ok(outcome.clone())),
                    Command::Failed(failure) => return Some(Err(failure.clone())),
                    Command::Fence { node, .. }
                    | Command::ReadTail { node, .. }
                    | Command::Repair { node, .. }
                    | Command::Install { node, .. } => {
                        if self.down.contains(&node.0) || !allow(&command) {
                            continue;
                        }
                    }
                }
                if let Some(event) = self.answer(command) {
                    // Every answer comes twice.
                    queue.extend(recovery.handle(event.clone(), now));
                    queue.extend(recovery.handle(event, now));
                }
            }
            now += Duration::from_secs(1);
            queue.extend(recovery.handle(Event::Tick, now));
        }
        None
    }

    fn recover_up(&mut self, epoch: u64) -> Outcome {
        self.recover(epoch, |_| true).expect("it ends").expect("four nodes are up")
    }
}

fn promise(epoch: u64) -> Promise {
    Promise { epoch: VolumeEpoch(epoch), writer: WriterId(epoch * 100) }
}

/// Each writer runs another release than the one before.
fn release(epoch: u64) -> ServerVersion {
    ServerVersion::new(150_018 + (epoch % 3) as u32).expect("a release")
}

/// A writer that makes records of 32 bytes.
struct Writer {
    tracker: WriterTracker,
}

impl Writer {
    fn new(cluster: &Cluster, outcome: &Outcome) -> Writer {
        let (epoch, durable) = (outcome.promise.epoch, outcome.durable);
        Writer { tracker: WriterTracker::new(epoch, cluster.members(), durable, &outcome.tails) }
    }

    /// The first writer of a new volume.
    fn first(cluster: &mut Cluster) -> Writer {
        let outcome = cluster.recover_up(1);
        Writer::new(cluster, &outcome)
    }

    fn make(&mut self, groups: &[u16], content: u64) -> Record {
        let previous = self.tracker.shipped();
        let start = Lsn(previous.end.0.max(8));
        let span = RecordSpan { start, end: Lsn(start.0 + 32) };
        let set = groups.iter().fold(GroupSet::EMPTY, |set, &group| set.with(GroupId(group)));
        let mut links = Vec::new();
        self.tracker.ship(span, set, &mut links);
        let epoch = self.tracker.epoch();
        TailRecord { epoch, span, previous_start: previous.start, links, handle: content }
    }

    /// Makes a record and gives it to some nodes of each group.
    fn ship(&mut self, cluster: &mut Cluster, to: &[(u16, &[u16])], content: u64) -> Record {
        let groups: Vec<u16> = to.iter().map(|&(group, _)| group).collect();
        let record = self.make(&groups, content);
        for &(group, nodes) in to {
            for &node in nodes {
                assert!(cluster.give(node, GroupId(group), Source::Writer, &record));
            }
        }
        record
    }
}

fn tails(outcome: &Outcome) -> Vec<u64> {
    outcome.tails.iter().map(|GroupTail { last_end, .. }| last_end.0).collect()
}

#[test]
fn a_new_volume_starts_empty_and_a_recovery_without_news_changes_nothing() {
    let mut cluster = Cluster::new(3);
    let outcome = cluster.recover_up(1);
    assert_eq!(outcome.durable, RecordSpan::NONE);
    assert_eq!(tails(&outcome), [0, 0, 0]);
    let outcome = cluster.recover_up(2);
    assert_eq!(outcome.durable, RecordSpan::NONE);
    let opened: Vec<_> = outcome.history.openings().iter().map(|o| (o.epoch.0, o.server_version)).collect();
    assert_eq!(opened, [(1, release(1)), (2, release(2))]);
}

#[test]
fn a_joining_segment_gets_history_and_records_and_counts_as_no_copy() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    writer.ship(&mut cluster, &[(0, &[0, 1])], 1);
    cluster.down = [4, 5].into();
    cluster.joining = [3].into();
    // Three copies and a newcomer: not opened, though all four have what the recovery brought.
    assert!(matches!(cluster.recover(2, |_| true), Some(Err(Failure::NoQuorum { .. }))));
    assert_eq!(cluster.records[3][0].len(), 1, "it gets what is kept");
    cluster.down.remove(&4);
    let outcome = cluster.recover_up(3);
    assert_eq!(outcome.durable.end, Lsn(40));
    assert_eq!(cluster.segments[3][0].history(), &outcome.history);
}

/// Node 6 is about to take the place of node 0; both sets have three of the others.
fn with_a_newcomer() -> (Cluster, Writer) {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], 1);
    cluster.segments.push(vec![Segment::new(GroupId(0))]);
    cluster.records.push(vec![BTreeMap::new()]);
    cluster.sets.push([6, 1, 2, 3, 4, 5].map(NodeId));
    cluster.joining = [6].into();
    (cluster, writer)
}

#[test]
fn survivors_do_not_wait_for_a_newcomer_to_be_a_copy() {
    let (mut cluster, _) = with_a_newcomer();
    cluster.lost = [0, 4, 5].map(NodeId).into();
    cluster.down = [0, 4, 5].into();
    let outcome = cluster.recover_up(2);
    assert_eq!(outcome.durable.end, Lsn(40));
    assert_eq!(cluster.segments[6][0].promise().epoch, outcome.promise.epoch, "it is fenced like the others");
    assert_eq!(cluster.segments[6][0].history(), &outcome.history);
    // It has to answer, for it may know of a membership after this one.
    let (mut cluster, _) = with_a_newcomer();
    cluster.lost = [0, 4, 5].map(NodeId).into();
    cluster.down = [0, 4, 5, 6].into();
    assert!(matches!(cluster.recover(2, |_| true), Some(Err(Failure::NoQuorum { .. }))));
}

#[test]
fn a_survivor_that_is_no_newcomer_has_to_be_a_copy() {
    let (mut cluster, _) = with_a_newcomer();
    (cluster.lost, cluster.down) = ([0, 4, 5].map(NodeId).into(), [0, 4, 5].into());
    cluster.joining = [3, 6].into();
    assert!(matches!(cluster.recover(2, |_| true), Some(Err(Failure::NoQuorum { .. }))));
}

#[test]
fn a_recovery_ends_when_it_learns_that_the_members_changed() {
    let options = RecoveryOptions {
        promise: promise(1),
        server_version: release(1),
        members: Cluster::new(1).members(),
        retry_after: Duration::from_secs(1),
        give_up_after: None,
    };
    let (mut recovery, _) = Recovery::<u64>::start(options, Duration::ZERO);
    let membership = GroupMembership::created([0, 1, 2, 3, 4, 6].map(NodeId)).expect("six different nodes");
    let group = GroupId(0);
    let event = Event::MembershipChanged { group, membership: membership.clone() };
    let failed = Command::Failed(Failure::MembershipChanged { group, membership });
    assert_eq!(recovery.handle(event, Duration::ZERO), [failed]);
    assert_eq!(recovery.handle(Event::Tick, Duration::from_secs(9)), []);
}

#[test]
fn acknowledged_records_stay_and_a_partly_shipped_record_ends_the_volume() {
    let mut cluster = Cluster::new(2);
    let mut writer = Writer::first(&mut cluster);
    let quorum = &[0, 1, 2, 3][..];
    let first = writer.ship(&mut cluster, &[(0, quorum), (1, quorum)], 1);
    let second = writer.ship(&mut cluster, &[(1, quorum)], 2);
    // Group 0 got this one, group 1 did not.
    writer.ship(&mut cluster, &[(0, &ALL), (1, &[])], 3);
    let after = writer.ship(&mut cluster, &[(0, &ALL)], 4);
    cluster.down = BTreeSet::from([0, 1]);
    let outcome = cluster.recover_up(2);
    assert_eq!(outcome.durable, second.span);
    assert_eq!(tails(&outcome), [first.span.end.0, second.span.end.0]);
    for node in 2..6 {
        let records: Vec<u64> = cluster.records[node][1].values().map(|r| r.handle).collect();
        assert_eq!(records, [1, 2], "node {node} holds what is durable and nothing else");
        assert!(!cluster.records[node][0].contains_key(&after.span.start));
    }
}

#[test]
fn a_segment_that_missed_a_recovery_does_not_bring_its_dead_records_back() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let kept = writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], 1);
    // Only node 5 gets the next ones; it is down during the recovery that cuts them, and so is node 4.
    cluster.give(5, GroupId(0), Source::Writer, &kept);
    let dead = writer.ship(&mut cluster, &[(0, &[5])], 2);
    writer.ship(&mut cluster, &[(0, &[5])], 3);
    cluster.down = BTreeSet::from([4, 5]);
    let outcome = cluster.recover_up(2);
    assert_eq!(outcome.durable, kept.span);
    // The new writer writes another record at the same position.
    let mut writer = Writer::new(&cluster, &outcome);
    let live = writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], 4);
    assert_eq!(live.span, dead.span);
    // The next recovery hears node 5, and only two of those that have the live record.
    cluster.down = BTreeSet::from([0, 1]);
    let outcome = cluster.recover_up(3);
    assert_eq!(outcome.durable, live.span);
    for node in 2..6 {
        let records: Vec<u64> = cluster.records[node][0].values().map(|r| r.handle).collect();
        // Node 4 gets record 1 from its peers: that one was durable before, so recovery leaves it to gossip.
        assert_eq!(records, if node == 4 { &[4][..] } else { &[1, 4] }, "node {node}");
    }
}

#[test]
fn what_an_abandoned_recovery_cut_on_a_minority_may_be_kept_by_the_next() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let first = writer.ship(&mut cluster, &[(0, &ALL)], 1);
    let second = writer.ship(&mut cluster, &[(0, &[4, 5])], 2);
    // Epoch 2 hears nodes 0 to 3, decides to cut the second record, and dies after two installations.
    cluster.down = BTreeSet::from([4, 5]);
    let few = |command: &Command<u64>| match command {
        Command::Install { node, .. } => node.0 < 2,
        _ => true,
    };
    let gave_up = cluster.recover(2, few).expect("it ends");
    assert_eq!(gave_up, Err(Failure::NoQuorum { groups: vec![GroupId(0)] }));
    assert_eq!(cluster.segments[0][0].complete(), first.span);
    // Epoch 3 hears nodes 2 to 5, which never saw that: it finds the record and keeps it.
    cluster.down = BTreeSet::from([0, 1]);
    let outcome = cluster.recover_up(3);
    assert_eq!(outcome.durable, second.span);
    // The minority follows.
    for node in [0, 1] {
        cluster.install(node, 0, WriterId(300), &outcome.history, second.span.end).expect("newer");
        assert!(cluster.give(node, GroupId(0), Source::Peer, &second));
        assert_eq!(cluster.segments[usize::from(node)][0].complete(), second.span);
    }
}

#[test]
fn a_recovery_gives_up_without_a_quorum_or_when_superseded() {
    let mut cluster = Cluster::new(2);
    cluster.recover_up(5);
    let superseded = cluster.recover(4, |_| true).expect("it ends");
    assert_eq!(superseded, Err(Failure::Superseded { current: VolumeEpoch(5) }));
    cluster.down = BTreeSet::from([0, 2, 4]);
    let no_quorum = cluster.recover(6, |_| true).expect("it ends");
    assert_eq!(no_quorum, Err(Failure::NoQuorum { groups: vec![GroupId(0), GroupId(1)] }));
    cluster.down = BTreeSet::from([0, 2]);
    assert_eq!(cluster.recover_up(7).promise, promise(7));
}

#[test]
fn a_member_that_dies_half_way_is_replaced_by_one_that_answers_late() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let first = writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], 1);
    cluster.down = BTreeSet::from([5]);
    // Nodes 3 and 4 promise and then fall silent for all but the fence; node 5 never answers: no quorum.
    let silent = |command: &Command<u64>| match command {
        Command::Fence { .. } => true,
        Command::ReadTail { node, .. } | Command::Repair { node, .. } | Command::Install { node, .. } => {
            node.0 < 3
        }
        _ => true,
    };
    assert!(matches!(cluster.recover(2, silent), Some(Err(Failure::NoQuorum { .. }))));
    cluster.down.clear();
    let outcome = cluster.recover_up(3);
    assert_eq!(outcome.durable, first.span);
    let copies = (0..6).filter(|&node| cluster.records[node][0].contains_key(&first.span.start)).count();
    assert!(copies >= 4);
}

/// The last of four installs late. The others were asked two seconds after the beginning, and may have promised somebody
/// newer ever since.
#[test]
fn an_outcome_says_how_long_ago_it_was_certain_that_nobody_is_newer() {
    let mut cluster = Cluster::new(2);
    assert_eq!(cluster.recover_up(1).confirmed_before, Duration::ZERO);
    cluster.down = BTreeSet::from([4, 5]);
    let (unread, uninstalled) = (Cell::new(16), Cell::new(3));
    let swallow = |left: &Cell<u32>| left.replace(left.get().saturating_sub(1)) > 0;
    let late = |command: &Command<u64>| match command {
        Command::ReadTail { .. } => !swallow(&unread),
        Command::Install { node: NodeId(3), .. } => !swallow(&uninstalled),
        _ => true,
    };
    let outcome = cluster.recover(2, late).expect("it ends").expect("four are up");
    assert_eq!(outcome.confirmed_before, Duration::from_secs(3));
}

#[test]
fn a_member_whose_tail_comes_late_is_repaired_before_it_gets_the_history() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let first = writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], 1);
    cluster.down = BTreeSet::from([5]);
    // Node 4, which lacks the record, says what it has only after the others were told to install; and node 3
    // is lost then, so that node 4 is needed.
    let installing = Cell::new(false);
    let late = |command: &Command<u64>| match command {
        Command::ReadTail { node, .. } => node.0 != 4 || installing.get(),
        Command::Install { node, .. } => {
            installing.set(true);
            node.0 != 3
        }
        _ => true,
    };
    let outcome = cluster.recover(2, late).expect("it ends").expect("four nodes take the history");
    assert_eq!(outcome.durable, first.span);
    assert!(cluster.records[4][0].contains_key(&first.span.start));
}

#[test]
fn a_durable_record_that_nobody_has_is_reported_not_skipped() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    writer.ship(&mut cluster, &[(0, &ALL)], 1);
    let second = writer.ship(&mut cluster, &[(0, &ALL)], 2);
    let third = writer.ship(&mut cluster, &[(0, &ALL)], 3);
    for node in 0..6 {
        cluster.records[node][0].remove(&second.span.start);
    }
    // Segments know that the third is durable, so the second must exist.
    let point = DurablePoint { volume: third.span, group_tail: Lsn(0) };
    for node in [1, 2] {
        cluster.segments[node][0].observe_durable(VolumeEpoch(1), point);
    }
    let failed = cluster.recover(2, |_| true).expect("it ends");
    assert!(matches!(failed, Err(Failure::DurableRecordMissing { .. })), "{failed:?}");
}

#[test]
fn a_segment_that_claims_an_opening_as_new_as_the_promise_is_refused() {
    let mut cluster = Cluster::new(2);
    let opened = cluster.recover_up(1).history;
    let options = || RecoveryOptions {
        promise: promise(2),
        server_version: release(2),
        members: cluster.members(),
        retry_after: Duration::from_secs(1),
        give_up_after: None,
    };
    let summaries: Vec<_> = cluster.segments[0]
        .iter()
        .map(|segment| segment.clone().fence(promise(2)).expect("nobody was promised more"))
        .collect();
    for claimed in [2, 3] {
        let mut lie = summaries.clone();
        let last = opened.newest().expect("the first opening").last;
        let opening = EpochOpening { epoch: VolumeEpoch(claimed), last, server_version: release(claimed) };
        lie[1].history.push(opening);
        let answers = |liar: u16| {
            let (mut recovery, _) = Recovery::<u64>::start(options(), Duration::ZERO);
            let mut commands = Vec::new();
            for node in 0..5 {
                let summaries = if node == liar { &lie } else { &summaries };
                let summaries = summaries.clone();
                let event = Event::Fenced { node: NodeId(node), summaries };
                commands.extend(recovery.handle(event, Duration::ZERO));
            }
            commands
        };
        let failed = |command: &Command<u64>| {
            matches!(command, Command::Failed(Failure::Contradiction { group: GroupId(1), .. }))
        };
        for liar in 0..4 {
            assert!(answers(liar).iter().any(failed), "epoch {claimed} claimed by node {liar}");
        }
        // One that answers after the write quorum may have it from a peer that took the outcome.
        let late = |command: &Command<u64>| !matches!(command, Command::Failed(_));
        assert!(answers(4).iter().all(late), "epoch {claimed} of a late member");
    }
}

#[test]
fn a_durable_point_that_contradicts_itself_is_refused() {
    let mut cluster = Cluster::new(2);
    let mut writer = Writer::first(&mut cluster);
    let first = writer.ship(&mut cluster, &[(0, &ALL), (1, &ALL)], 1);
    let point = DurablePoint { volume: first.span, group_tail: Lsn(first.span.end.0 + 800) };
    for node in [2, 3] {
        cluster.segments[node][1].observe_durable(VolumeEpoch(1), point);
    }
    let failed = cluster.recover(2, |_| true).expect("it ends");
    assert!(
        matches!(failed, Err(Failure::Contradiction { group: GroupId(1), .. })),
        "group 1 cannot end after the durable point: {failed:?}"
    );
}

/// Six nodes with three acknowledged records, of which every one knows the first to be durable.
fn written() -> (Cluster, [Record; 3]) {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let records = [1, 2, 3].map(|content| writer.ship(&mut cluster, &[(0, &ALL)], content));
    let point = DurablePoint { volume: records[0].span, group_tail: records[0].span.end };
    for node in 0..6 {
        assert!(cluster.segments[node][0].observe_durable(VolumeEpoch(1), point));
    }
    (cluster, records)
}

#[test]
fn one_survivor_of_a_write_quorum_is_believed() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    writer.ship(&mut cluster, &[(0, &ALL)], 1);
    // The second recovery, its records and what is known of them reach four nodes, of which one will be left.
    cluster.down = BTreeSet::from([4, 5]);
    let outcome = cluster.recover_up(2);
    let mut writer = Writer::new(&cluster, &outcome);
    let records = [2, 3].map(|content| writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], content));
    let point = DurablePoint { volume: records[0].span, group_tail: records[0].span.end };
    assert!(cluster.segments[3][0].observe_durable(VolumeEpoch(2), point));
    cluster.records[3][0].remove(&records[0].span.start).expect("it is in pages, and its log was released");
    cluster.down = BTreeSet::from([0, 1, 2]);
    cluster.lost = [0, 1, 2].map(NodeId).into();
    let outcome = cluster.recover_up(3);
    assert_eq!(outcome.durable, records[1].span, "what only node 3 has was acknowledged");
    let epochs: Vec<u64> = outcome.history.openings().iter().map(|opening| opening.epoch.0).collect();
    assert_eq!(epochs, [1, 2, 3]);
    // All that are left are needed: any two of them may not have it.
    cluster.down.insert(4);
    let failed = cluster.recover(4, |_| true).expect("it ends");
    assert_eq!(failed, Err(Failure::NoQuorum { groups: vec![GroupId(0)] }));
}

fn forge(cluster: &mut Cluster, node: usize, epoch: u64, last: RecordSpan) {
    let mut history = cluster.segments[node][0].history().clone();
    history.push(EpochOpening { epoch: VolumeEpoch(epoch), last, server_version: release(epoch) });
    cluster.install(node as u16, 0, WriterId(666), &history, last.end).expect("nothing stands against it");
}

#[test]
fn a_history_that_one_member_has_is_passed_over() {
    // Of each node in turn, so that it also is among the first four.
    for liar in 0..6 {
        for end in [0x100, 104] {
            let (mut cluster, records) = written();
            let last = if end == 104 { records[2].span } else { RecordSpan { start: Lsn(8), end: Lsn(end) } };
            forge(&mut cluster, liar, 5, last);
            let outcome = cluster.recover_up(6);
            assert_eq!(outcome.durable, records[2].span, "node {liar} up to {end}");
            let epochs: Vec<u64> = outcome.history.openings().iter().map(|opening| opening.epoch.0).collect();
            assert_eq!(epochs, [1, 6], "node {liar}");
        }
    }
}

#[test]
fn a_history_counts_that_the_first_four_could_not_vouch_for() {
    let mut cluster = Cluster::new(1);
    cluster.down = BTreeSet::from([4, 5]);
    let mut writer = Writer::first(&mut cluster);
    let records = [1, 2].map(|content| writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], content));
    let point = DurablePoint { volume: records[0].span, group_tail: records[0].span.end };
    for node in 0..4 {
        assert!(cluster.segments[node][0].observe_durable(VolumeEpoch(1), point));
    }
    // Of the first four to answer two were away, one denies what it has, and one alone knows of the first recovery. The
    // durable point that another one vouches for, later, is of that recovery.
    cluster.down.clear();
    cluster.segments[2][0] = Segment::new(GroupId(0));
    cluster.records[2][0].clear();
    let (late, unread) = (Cell::new(2), Cell::new(4));
    let swallow = |left: &Cell<u32>| left.replace(left.get().saturating_sub(1)) > 0;
    let allow = |command: &Command<u64>| match command {
        Command::Fence { node: NodeId(0 | 1), .. } => !swallow(&late),
        Command::ReadTail { .. } => !swallow(&unread),
        _ => true,
    };
    let outcome = cluster.recover(2, allow).expect("it ends").expect("six are up");
    let epochs: Vec<u64> = outcome.history.openings().iter().map(|opening| opening.epoch.0).collect();
    assert_eq!((outcome.durable, epochs), (records[1].span, vec![1, 2]));
}

#[test]
fn a_forged_history_that_cuts_acknowledged_records_makes_nobody_cut_them() {
    for down in [&[][..], &[4, 5]] {
        let (mut cluster, records) = written();
        forge(&mut cluster, 2, 5, RecordSpan { start: Lsn(8), end: Lsn(40) });
        cluster.down = down.iter().copied().collect();
        // Attempts that only fence change what the others are promised to, and nothing of what is believed.
        for epoch in [6, 7] {
            let failed = cluster.recover(epoch, |command| matches!(command, Command::Fence { .. }));
            assert_eq!(failed.expect("it ends"), Err(Failure::NoQuorum { groups: vec![GroupId(0)] }));
        }
        assert_eq!(cluster.recover_up(8).durable, records[2].span, "{down:?}");
    }
}

#[test]
fn a_history_that_a_dead_recovery_installed_at_one_member_is_passed_over_by_any_four() {
    for down in [[4, 5], [0, 5], [1, 2]] {
        let (mut cluster, records) = written();
        // Its install reaches node 3 alone.
        let one = |command: &Command<u64>| match command {
            Command::Install { node, .. } => *node == NodeId(3),
            _ => true,
        };
        assert_eq!(cluster.recover(2, one), Some(Err(Failure::NoQuorum { groups: vec![GroupId(0)] })));
        cluster.down = down.into();
        let outcome = cluster.recover_up(3);
        assert_eq!(outcome.durable, records[2].span);
        let epochs: Vec<u64> = outcome.history.openings().iter().map(|opening| opening.epoch.0).collect();
        assert_eq!(epochs, [1, 3]);
        // The member that had it is one of the four, and has what they have.
        assert_eq!(*cluster.segments[3][0].history(), outcome.history);
    }
}

/// Each of two later recoveries died while it installed, at another member: nobody's history ends with the completed one, of
/// which two members are left.
#[test]
fn a_completed_recovery_counts_though_those_that_have_it_continue_it_differently() {
    let mut cluster = Cluster::new(1);
    Writer::first(&mut cluster);
    cluster.down = BTreeSet::from([4, 5]);
    let outcome = cluster.recover_up(2);
    let mut writer = Writer::new(&cluster, &outcome);
    let acknowledged = writer.ship(&mut cluster, &[(0, &[0, 1, 2, 3])], 1);
    for (epoch, installs_at) in [(3, 0), (4, 1)] {
        let dies = |command: &Command<u64>| match command {
            Command::Install { node, .. } => node.0 == installs_at,
            _ => true,
        };
        let failed = cluster.recover(epoch, dies).expect("it ends");
        assert_eq!(failed, Err(Failure::NoQuorum { groups: vec![GroupId(0)] }));
    }
    cluster.down = BTreeSet::from([2, 3]);
    let outcome = cluster.recover_up(5);
    let epochs: Vec<u64> = outcome.history.openings().iter().map(|opening| opening.epoch.0).collect();
    assert_eq!((outcome.durable, epochs), (acknowledged.span, vec![1, 2, 5]));
}

/// A recovery cut a record that it did not see, and died when two members had its history. The next one saw the record and
/// not those two, brought it to a write quorum, and died as well. All six know that the first was never completed: nobody has
/// to give up what the second made durable.
#[test]
fn a_history_that_two_members_have_and_four_do_not_is_passed_over() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let record = writer.ship(&mut cluster, &[(0, &[5])], 1);
    for (epoch, down, installs_at) in [(2, [4, 5], [0, 1]), (3, [0, 1], [5, 5])] {
        cluster.down = down.into();
        let dies = |command: &Command<u64>| match command {
            Command::Install { node, .. } => installs_at.contains(&node.0),
            _ => true,
        };
        let failed = cluster.recover(epoch, dies).expect("it ends");
        assert_eq!(failed, Err(Failure::NoQuorum { groups: vec![GroupId(0)] }));
    }
    assert_eq!(cluster.segments[5][0].known_durable().volume, record.span);
    cluster.down.clear();
    // It is decided when all have answered.
    let unread = Cell::new(6_u32);
    let allow = |command: &Command<u64>| match command {
        Command::ReadTail { .. } => unread.replace(unread.get().saturating_sub(1)) == 0,
        _ => true,
    };
    let outcome = cluster.recover(4, allow).expect("it ends").expect("six are up");
    assert_eq!(outcome.durable, record.span);
    assert_eq!(*cluster.segments[5][0].history(), outcome.history, "it was not left out");
}

/// A recovery cut a record that it did not see, and died when two members had its history. Two later ones kept the record, and
/// each died when one member had its history and knew by it that the record was durable. What those two members say is not
/// true under the history that the two others have: a volume would begin after a record that nobody may store.
#[test]
fn a_durable_point_counts_only_under_the_history_that_it_was_said_with() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::first(&mut cluster);
    let record = writer.ship(&mut cluster, &[(0, &[5])], 1);
    for (epoch, down, installs_at) in [(2, &[4, 5][..], &[0, 1][..]), (3, &[0, 1], &[4]), (4, &[0, 1], &[5])]
    {
        cluster.down = down.iter().copied().collect();
        let dies = |command: &Command<u64>| match command {
            Command::Install { node, .. } => installs_at.contains(&node.0),
            _ => true,
        };
        let failed = cluster.recover(epoch, dies).expect("it ends");
        assert_eq!(failed, Err(Failure::NoQuorum { groups: vec![GroupId(0)] }));
    }
    for node in [4, 5] {
        assert_eq!(cluster.segments[node][0].known_durable().volume, record.span, "node {node}");
    }
    // Nodes 2 and 3 answer when it is decided.
    let installing = Cell::new(false);
    cluster.down.clear();
    let late = |command: &Command<u64>| match command {
        Command::Fence { node, .. } => installing.get() || !(2..4).contains(&node.0),
        Command::Install { .. } => {
            installing.set(true);
            true
        }
        _ => true,
    };
    let outcome = match cluster.recover(5, late).expect("it ends") {
        Ok(outcome) => outcome,
        Err(failure) => {
            assert!(matches!(failure, Failure::NoQuorum { .. }), "{failure:?}");
            cluster.recover_up(6)
        }
    };
    let next = Writer::new(&cluster, &outcome).make(&[0], 2);
    let acknowledges = |node: &u16| {
        cluster.give(*node, GroupId(0), Source::Writer, &next);
        let segment = &cluster.segments[usize::from(*node)][0];
        segment.acknowledgement() == Some((outcome.promise.epoch, next.span.end))
    };
    let acknowledged = ALL.into_iter().filter(acknowledges).count();
    assert!(acknowledged >= WRITE_QUORUM, "what is written is acknowledged by {acknowledged}");
}

/// As before, but in two groups, and the later recovery repaired one segment of each of the two members: it took the first one's
/// history back there. Members install in all of their segments, so nobody completed it, though one member's answer is
/// missing and each of the two still has it somewhere.
#[test]
fn a_history_that_no_segment_of_a_group_has_is_passed_over() {
    let mut cluster = Cluster::new(2);
    let mut writer = Writer::first(&mut cluster);
    let dies_at = |installs_at: &'static [u16]| {
        move |command: &Command<u64>| match command {
            Command::Install { node, .. } => installs_at.contains(&node.0),
            _ => true,
        }
    };
    let record = writer.ship(&mut cluster, &[(0, &[4, 5])], 1);
    for (epoch, down, installs_at) in [(2, &[4, 5][..], &[0, 1][..]), (3, &[], &[5])] {
        cluster.down = down.iter().copied().collect();
        // The second asks the two last: it knows what it goes by then.
        let first_four = Cell::new(8_u32);
        let late = |command: &Command<u64>| match command {
            Command::Fence { node: NodeId(0 | 1), .. } if epoch == 3 => first_four.get() == 0,
            Command::Install { .. } if epoch == 3 && first_four.get() > 0 => {
                first_four.set(first_four.get() - 1);
                false
            }
            _ => dies_at(installs_at)(command),
        };
        let failed = cluster.recover(epoch, late).expect("it ends");
        assert_eq!(failed, Err(Failure::NoQuorum { groups: vec![GroupId(0), GroupId(1)] }));
    }
    let epochs_of = |cluster: &Cluster, node: usize| -> Vec<u64> {
        cluster.segments[node].iter().map(|segment| segment.history().newest_epoch().0).collect()
    };
    assert_eq!([0, 1, 5].map(|node| epochs_of(&cluster, node)), [[1, 2], [1, 2], [3, 3]]);
    cluster.down = BTreeSet::from([4]);
    let unread = Cell::new(10_u32);
    let allow = |command: &Command<u64>| match command {
        Command::ReadTail { .. } => unread.replace(unread.get().saturating_sub(1)) == 0,
        _ => true,
    };
    let outcome = cluster.recover(4, allow).expect("it ends").expect("five are up");
    assert_eq!(outcome.durable, record.span);
    assert_eq!(*cluster.segments[5][0].history(), outcome.history, "it was not left out");
}

#[test]
fn of_five_or_four_survivors_none_is_believed_alone() {
    for lost in [&[5][..], &[4, 5]] {
        for end in [40, 0x100] {
            let (mut cluster, records) = written();
            forge(&mut cluster, 2, 5, RecordSpan { start: Lsn(8), end: Lsn(end) });
            cluster.down = lost.iter().copied().collect();
            cluster.lost = lost.iter().copied().map(NodeId).collect();
            match cluster.recover(6, |_| true).expect("it ends") {
                Ok(outcome) => assert_eq!(outcome.durable, records[2].span, "{lost:?}, {end}"),
                // All survivors are needed, and this one claims what is not there.
                Err(failure) => assert!(matches!(failure, Failure::NoQuorum { .. }), "{failure:?}"),
            }
            for node in [0, 1, 3] {
                assert!(cluster.segments[node][0].segment_complete_lsn() >= records[2].span.end);
                assert!(cluster.segments[node][0].known_durable().volume.end <= records[2].span.end);
            }
        }
    }
}

#[test]
fn a_durable_point_that_one_member_claims_and_no_record_reaches_is_left_out() {
    for liar in 0..6 {
        let (mut cluster, records) = written();
        let point =
            DurablePoint { volume: RecordSpan { start: Lsn(8), end: Lsn(0x100) }, group_tail: Lsn(0x100) };
        cluster.segments[liar][0].observe_durable(VolumeEpoch(1), point);
        assert_eq!(cluster.recover_up(2).durable, records[2].span, "node {liar}");
    }
}

#[test]
fn a_durable_point_with_another_start_does_not_end_the_walk_early() {
    for liar in 0..6 {
        let (mut cluster, records) = written();
        // As durable as the second record, but another record is said to be there.
        let volume = RecordSpan { start: Lsn(48), end: records[1].span.end };
        let point = DurablePoint { volume, group_tail: volume.end };
        cluster.segments[liar][0].observe_durable(VolumeEpoch(1), point);
        assert_eq!(cluster.recover_up(2).durable, records[2].span, "node {liar}");
    }
}

#[test]
fn a_group_does_not_end_before_a_record_that_stays() {
    let (mut cluster, _) = written();
    for node in 0..6 {
        let third = cluster.records[node][0].keys().last().copied().expect("three records");
        cluster.records[node][0].remove(&third);
        let volume = RecordSpan { start: Lsn(72), end: Lsn(104) };
        let point = DurablePoint { volume, group_tail: Lsn(72) };
        cluster.segments[node][0].observe_durable(VolumeEpoch(1), point);
    }
    let failed = cluster.recover(2, |_| true).expect("it ends");
    assert!(matches!(failed, Err(Failure::Contradiction { what: "the group's end", .. })), "{failed:?}");
}

/// A recovery of one group that nobody has answered yet.
fn unanswered() -> Recovery<u64> {
    let options = RecoveryOptions {
        promise: promise(2),
        server_version: release(2),
        members: Cluster::new(1).members(),
        retry_after: Duration::from_secs(1),
        give_up_after: None,
    };
    Recovery::start(options, Duration::ZERO).0
}

/// A decision of the first recovery of a volume, whatever was read.
fn decision(history: EpochHistory) -> super::Decision {
    super::Decision {
        durable: RecordSpan::NONE,
        tails: vec![Lsn::ZERO],
        known_tails: vec![Lsn::ZERO],
        history,
    }
}

#[test]
#[should_panic(expected = "invariant decision-has-read-a-write-quorum is broken")]
fn a_decision_from_what_three_said_is_noticed() {
    let mut recovery = unanswered();
    for node in 0..3 {
        let tail = super::Tail { above: Lsn::ZERO, complete: true, has: BTreeMap::new(), suffices: None };
        recovery.groups[0].tails.insert(NodeId(node), tail);
    }
    let _ = recovery.decide();
}

#[test]
#[should_panic(expected = "invariant install-follows-repair is broken")]
fn a_history_installed_before_the_repairs_is_noticed() {
    let mut recovery = unanswered();
    recovery.decision = Some(decision(EpochHistory::default()));
    recovery.request(super::Request::Install(NodeId(0)), Duration::ZERO, &mut Vec::new());
}

#[test]
#[should_panic(expected = "invariant writer-starts-at-write-quorum is broken")]
fn a_writer_let_start_by_three_is_noticed() {
    let mut recovery = unanswered();
    recovery.decision = Some(decision(EpochHistory::default()));
    recovery.installed = [0, 1, 2].map(NodeId).into();
    let _ = recovery.outcome(Duration::ZERO);
}

#[test]
#[should_panic(expected = "invariant opening-is-of-the-promise is broken")]
fn an_outcome_of_another_epoch_is_noticed() {
    let mut recovery = unanswered();
    let mut history = EpochHistory::default();
    let last = RecordSpan::NONE;
    history.push(EpochOpening { epoch: VolumeEpoch(1), last, server_version: release(1) });
    recovery.decision = Some(decision(history));
    recovery.installed = [0, 1, 2, 3].map(NodeId).into();
    let _ = recovery.outcome(Duration::ZERO);
}

#[test]
#[should_panic(expected = "invariant recovery-keeps-durable is broken")]
fn a_decision_below_what_is_known_to_be_durable_is_noticed() {
    let span = |start, end| RecordSpan { start: Lsn(start), end: Lsn(end) };
    super::assert_keeps_durable(span(8, 40), span(40, 72), &[Lsn(40)], &[Lsn(40)]);
}

#[test]
#[should_panic(expected = "invariant recovery-knows-members is broken")]
fn a_recovery_that_knows_no_members_does_not_begin() {
    let options = RecoveryOptions {
        promise: promise(1),
        server_version: release(1),
        members: Vec::new(),
        retry_after: Duration::from_secs(1),
        give_up_after: None,
    };
    let _ = Recovery::<u64>::start(options, Duration::ZERO);
}
