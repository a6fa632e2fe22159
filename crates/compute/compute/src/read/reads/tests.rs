use super::*;
use borealis_types::server_request::{self, Request as Wanted};
use borealis_types::{DatabaseKey, PAGE_SIZE, RelationLocator, SlruKind};
use borealis_wire::RelationSize;

const MS: Duration = Duration::from_millis(1);

/// Nodes 0 to 5, all connected unless they are listed.
#[derive(Default)]
struct Lines {
    sent: Vec<(NodeId, u64, Request)>,
    down: Vec<NodeId>,
    /// A defect: the read points are before what is durable.
    stale: bool,
}

impl Transport for Lines {
    fn send(&mut self, node: NodeId, request_id: u64, request: &Request) -> bool {
        let up = !self.down.contains(&node);
        if up {
            self.sent.push((node, request_id, request.clone()));
        }
        up
    }

    fn durable(&self) -> Lsn {
        Lsn(100)
    }

    fn needed(&self, _: GroupId) -> Lsn {
        Lsn(100)
    }

    fn read_point(&self, node: NodeId, _: GroupId) -> Lsn {
        Lsn(if self.stale { 90 } else { 100 + u64::from(node.0) })
    }
}

fn setup(group_count: u16) -> (Reads<u32>, ReadRouter, Lines) {
    let placement = Placement::new(group_count).unwrap();
    let mut router = ReadRouter::new();
    for group in placement.groups() {
        for node in 0..6 {
            router.observe_readable(NodeId(node), group, Lsn(100));
        }
    }
    (Reads::new(VolumeEpoch(7), placement, Duration::from_secs(30), 1 << 20), router, Lines::default())
}

fn block(relation: u32, block: u32) -> BlockKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation };
    BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block }
}

fn page(fill: u8) -> Vec<u8> {
    vec![fill; PAGE_SIZE]
}

#[test]
fn one_node_is_asked_and_its_answer_reaches_the_slot() {
    let (mut reads, mut router, mut lines) = setup(4);
    reads.begin(9, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, MS);
    assert_eq!(lines.sent.len(), 1);
    let (node, id, request) = lines.sent[0].clone();
    assert!(
        matches!(request, Request::ReadPage { at, .. } if at == ReadPoint { epoch: VolumeEpoch(7), lsn: Lsn(100 + u64::from(node.0)) })
    );
    assert_eq!(reads.lowest_read_point(), Some(Lsn(100 + u64::from(node.0))));
    reads.answered(node, id, Reply::Page(Some(page(3))), &mut router, &mut lines, 2 * MS);
    assert_eq!(reads.take_done(), [(9, Answer::Page(Some(page(3))))]);
    assert_eq!(reads.lowest_read_point(), None);
    // The same answer again, late, from wherever: nobody waits for it.
    reads.answered(node, id, Reply::Page(Some(page(4))), &mut router, &mut lines, 3 * MS);
    assert!(reads.take_done().is_empty());
}

#[test]
fn a_late_answer_makes_a_second_node_be_asked_and_the_first_answer_wins() {
    let (mut reads, mut router, mut lines) = setup(1);
    reads.begin(1, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, Duration::ZERO);
    let due = reads.next_due().unwrap();
    reads.tick(&mut router, &mut lines, due);
    assert_eq!(lines.sent.len(), 2);
    assert_ne!(lines.sent[0].0, lines.sent[1].0);
    assert_eq!(reads.counters().hedges, 1);
    let (node, id, _) = lines.sent[1].clone();
    reads.answered(node, id, Reply::Page(Some(page(2))), &mut router, &mut lines, due + MS);
    assert_eq!(reads.take_done(), [(1, Answer::Page(Some(page(2))))]);
    let (node, id, _) = lines.sent[0].clone();
    reads.answered(node, id, Reply::Page(Some(page(9))), &mut router, &mut lines, due + 2 * MS);
    assert!(reads.take_done().is_empty());
}

#[test]
fn a_refusal_or_a_broken_connection_moves_on_to_the_next_node() {
    let (mut reads, mut router, mut lines) = setup(1);
    lines.down = vec![NodeId(3)];
    reads.begin(1, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, MS);
    let (node, id, _) = lines.sent[0].clone();
    let refusal = Refusal::NotReadable { asked: Lsn(100), from: Lsn(0), through: Lsn(90) };
    reads.answered(node, id, Reply::Refused(refusal), &mut router, &mut lines, 2 * MS);
    assert_eq!(lines.sent.len(), 2);
    let second = lines.sent[1].0;
    reads.disconnected(second, &mut router, &mut lines, 3 * MS);
    assert_eq!(lines.sent.len(), 3);
    // What the broken connection's node says on its next connection is not an answer to the old request.
    let (node, id, _) = lines.sent[1].clone();
    reads.answered(node, id, Reply::Page(Some(page(7))), &mut router, &mut lines, 4 * MS);
    assert!(reads.take_done().is_empty());
    let (node, id, _) = lines.sent[2].clone();
    reads.answered(node, id, Reply::Page(Some(page(1))), &mut router, &mut lines, 5 * MS);
    assert_eq!(reads.take_done().len(), 1);
}

#[test]
fn a_minority_that_is_fenced_or_missed_a_recovery_is_passed_over() {
    let (mut reads, mut router, mut lines) = setup(1);
    reads.begin(1, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, MS);
    let group = GroupId(0);
    for refusal in [
        Refusal::Fenced(VolumeEpoch(8)),
        Refusal::HistoryBehind { group, wanted: VolumeEpoch(7), known: VolumeEpoch(5) },
    ] {
        let (node, id, _) = lines.sent.last().unwrap().clone();
        reads.answered(node, id, Reply::Refused(refusal), &mut router, &mut lines, 2 * MS);
    }
    assert_eq!((lines.sent.len(), reads.counters().failures), (3, 2));
    let (node, id, _) = lines.sent[2].clone();
    reads.answered(node, id, Reply::Page(Some(page(3))), &mut router, &mut lines, 3 * MS);
    assert_eq!(reads.take_done(), [(1, Answer::Page(Some(page(3))))]);
}

#[test]
fn when_every_node_refuses_they_are_asked_again_until_the_time_is_up() {
    let (mut reads, mut router, mut lines) = setup(1);
    lines.down = (0..6).map(NodeId).collect();
    reads.begin(1, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, Duration::ZERO);
    let mut now = Duration::ZERO;
    let mut ticks = 0;
    while let Some(due) = reads.next_due() {
        assert!(due >= now);
        now = due;
        reads.tick(&mut router, &mut lines, now);
        ticks += 1;
        assert!(ticks < 1000, "retries back off");
    }
    assert_eq!(now, Duration::from_secs(30));
    let done = reads.take_done();
    assert!(matches!(&done[0], (1, Answer::Error(text)) if text.contains("30 s")), "{done:?}");
}

#[test]
fn a_relation_is_as_long_as_its_longest_group_says() {
    let (mut reads, mut router, mut lines) = setup(3);
    reads.begin(1, Wanted::RelationSize(block(1, 0).relation_fork), &mut router, &mut lines, MS);
    assert_eq!(lines.sent.len(), 4, "every group, and the init fork");
    for (node, id, request) in lines.sent.clone() {
        assert!(reads.take_done().is_empty());
        let Request::RelationSize { group, relation_fork, .. } = request else { panic!("{request:?}") };
        let size = match (relation_fork.fork, group.0) {
            (Fork::Init, _) => Some(1),
            (_, 1) => Some(300),
            (_, 2) => None,
            _ => Some(0),
        };
        reads.answered(node, id, Reply::RelationSize(size), &mut router, &mut lines, 2 * MS);
    }
    let expected = server_request::RelationSize { blocks: Some(300), has_init_fork: true };
    assert_eq!(reads.take_done(), [(1, Answer::Size(expected))]);
}

#[test]
fn a_long_listing_comes_in_pieces_without_loss_or_repetition() {
    let database = DatabaseKey { tablespace: 1663, database: 5 };
    let forks: Vec<(RelationFork, u32)> = (0..1500u32)
        .flat_map(|relation| {
            let fork = move |fork| RelationFork { fork, ..block(20_000 + relation, 0).relation_fork };
            let init = (relation % 7 == 0).then(|| (fork(Fork::Init), 1));
            [(fork(Fork::Main), relation), (fork(Fork::VisibilityMap), 1)].into_iter().chain(init)
        })
        .collect();
    let (mut reads, mut router, mut lines) = setup(3);
    let (mut cursor, mut seen) = (0, Vec::new());
    loop {
        lines.sent.clear();
        reads.begin(1, Wanted::ListRelations { database, cursor }, &mut router, &mut lines, MS);
        for (node, id, request) in lines.sent.clone() {
            let Request::ListRelations { group, after, limit, .. } = request else { panic!("{request:?}") };
            // Group 2 knows only every third relation; sizes differ between groups.
            let list = forks
                .iter()
                .filter(|(fork, _)| after.is_none_or(|after| *fork > after))
                .filter(|(fork, _)| group.0 != 2 || fork.locator.relation % 3 == 0)
                .take(limit as usize)
                .map(|&(relation_fork, blocks)| RelationSize {
                    relation_fork,
                    blocks: if group.0 == 1 { blocks } else { blocks / 2 },
                })
                .collect();
            reads.answered(node, id, Reply::Relations(list), &mut router, &mut lines, 2 * MS);
        }
        let mut done = reads.take_done();
        let Some((1, Answer::Relations(entries, next))) = done.pop() else { panic!("{done:?}") };
        seen.extend(entries);
        if next == 0 {
            break;
        }
        cursor = next;
    }
    let expected: Vec<server_request::RelationEntry> = forks
        .iter()
        .map(|(fork, blocks)| server_request::RelationEntry {
            relation: fork.locator.relation,
            fork: fork.fork,
            blocks: *blocks,
            has_init_fork: fork.locator.relation.wrapping_sub(20_000) % 7 == 0,
        })
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn transaction_status_files_are_counted_to_their_last_page() {
    let kind = SlruKind::Transactions;
    let pages = vec![3, 4, 40, 63, 64];
    let ask = |wanted| {
        let (mut reads, mut router, mut lines) = setup(2);
        reads.begin(1, wanted, &mut router, &mut lines, MS);
        let (node, id, _) = lines.sent[0].clone();
        reads.answered(node, id, Reply::SlruPages(pages.clone()), &mut router, &mut lines, 2 * MS);
        reads.take_done().remove(0).1
    };
    assert_eq!(ask(Wanted::SlruSegment { kind, segment: 0 }), Answer::SlruSegment(Some(5)));
    assert_eq!(ask(Wanted::SlruSegment { kind, segment: 1 }), Answer::SlruSegment(Some(32)));
    assert_eq!(ask(Wanted::SlruSegment { kind, segment: 3 }), Answer::SlruSegment(None));
    let entry = |segment, pages| server_request::SlruEntry { segment, pages };
    let all = vec![entry(0, 5), entry(1, 32), entry(2, 1)];
    assert_eq!(ask(Wanted::ListSlruSegments { kind, cursor: 0 }), Answer::SlruSegments(all, 0));
}

#[test]
fn a_page_fetched_ahead_is_given_out_once_and_never_after_a_change() {
    let (mut reads, mut router, mut lines) = setup(1);
    let key = block(1, 2);
    let fetch = |reads: &mut Reads<u32>, router: &mut ReadRouter, lines: &mut Lines, change: bool| {
        reads.prefetch(key, router, lines, MS);
        let (node, id, _) = lines.sent.pop().unwrap();
        if change {
            reads.invalidate(&[Effect::Page(PageKey::Block(key))], Lsn(100));
        }
        reads.answered(node, id, Reply::Page(Some(page(5))), router, lines, 2 * MS);
    };
    fetch(&mut reads, &mut router, &mut lines, false);
    reads.begin(1, Wanted::ReadBlock(key), &mut router, &mut lines, MS);
    assert_eq!(reads.take_done(), [(1, Answer::Page(Some(page(5))))]);
    assert!(lines.sent.is_empty());
    reads.begin(1, Wanted::ReadBlock(key), &mut router, &mut lines, MS);
    assert_eq!(lines.sent.len(), 1, "it was given out already");
    lines.sent.clear();
    fetch(&mut reads, &mut router, &mut lines, true);
    reads.begin(2, Wanted::ReadBlock(key), &mut router, &mut lines, MS);
    assert_eq!(lines.sent.len(), 1, "it changed while it was under way");
}

#[test]
fn a_reader_waits_for_the_fetch_that_is_under_way() {
    let (mut reads, mut router, mut lines) = setup(1);
    reads.prefetch(block(1, 2), &mut router, &mut lines, MS);
    reads.begin(4, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, MS);
    assert_eq!(lines.sent.len(), 1);
    let (node, id, _) = lines.sent[0].clone();
    reads.answered(node, id, Reply::Page(Some(page(6))), &mut router, &mut lines, 2 * MS);
    assert_eq!(reads.take_done(), [(4, Answer::Page(Some(page(6))))]);
}

#[test]
fn a_block_whose_change_is_not_durable_is_not_fetched_ahead() {
    let (mut reads, mut router, mut lines) = setup(1);
    reads.invalidate(&[Effect::Page(PageKey::Block(block(1, 2)))], Lsn(101));
    reads.prefetch(block(1, 2), &mut router, &mut lines, MS);
    assert!(lines.sent.is_empty(), "an answer would be as of a point before the change");
    reads.prefetch(block(1, 3), &mut router, &mut lines, MS);
    assert_eq!(lines.sent.len(), 1);
}

/// The defects: each breaks the reads from inside, as no node can.
mod broken {
    use super::*;

    fn begun() -> (Reads<u32>, ReadRouter, Lines) {
        let (mut reads, mut router, mut lines) = setup(1);
        reads.begin(1, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, MS);
        (reads, router, lines)
    }

    #[test]
    #[should_panic(expected = "invariant read-shows-the-durable is broken: 0/5A asked of")]
    fn a_read_before_what_is_durable() {
        let (mut reads, mut router, mut lines) = setup(1);
        lines.stale = true;
        reads.begin(1, Wanted::ReadBlock(block(1, 2)), &mut router, &mut lines, MS);
    }

    #[test]
    #[should_panic(expected = "invariant asked-twice-at-most is broken: 3 nodes")]
    fn a_part_that_is_asked_of_everyone() {
        let (mut reads, mut router, mut lines) = begun();
        let id = *reads.parts.keys().next().unwrap();
        assert!(reads.ask_next(id, &mut router, &mut lines, MS));
        reads.ask_next(id, &mut router, &mut lines, MS);
    }

    #[test]
    #[should_panic(expected = "invariant request-id-is-new is broken")]
    fn a_request_id_that_is_used_again() {
        let (mut reads, mut router, mut lines) = begun();
        let (&request_id, &id) = reads.requests.first_key_value().unwrap();
        reads.next_id = request_id;
        reads.ask_next(id, &mut router, &mut lines, MS);
    }

    #[test]
    #[should_panic(expected = "invariant answered-part-was-open is broken")]
    fn an_answer_too_many() {
        let (mut reads, mut router, mut lines) = begun();
        reads.operations.values_mut().next().unwrap().parts_left = 0;
        let (node, id, _) = lines.sent[0].clone();
        reads.answered(node, id, Reply::Page(Some(page(1))), &mut router, &mut lines, 2 * MS);
    }
}
