use std::time::{Duration, Instant};

use borealis_types::{BlockKey, RelationLocator};
use proptest::prelude::*;

use super::*;
use crate::pages::materialized_state::database_of;

/// The main fork of one relation, in two databases: 5 and 6.
fn fork(database: u32) -> RelationFork {
    let locator = RelationLocator { tablespace: 1663, database, relation: 16_384 };
    RelationFork { locator, fork: Fork::Main }
}

const DATABASES: [u32; 2] = [5, 6];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// In one of the databases.
    Change(usize, Change),
    /// The second database becomes a copy of the first.
    Copy,
    /// All but so many of the newest records are materialized.
    Fold(usize),
    /// A recovery truncates so many of the newest records.
    Rewind(usize),
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Create,
    Block(u32),
    /// By the record before this one, if that can: one about a whole database does nothing else.
    BlockToo(u32),
    Truncate(u32),
    Drop,
    DropDatabase,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop_oneof![
        2 => Just(Change::Create),
        8 => (0u32..40).prop_map(Change::Block),
        3 => (0u32..40).prop_map(Change::BlockToo),
        2 => (0u32..40).prop_map(Change::Truncate),
        1 => Just(Change::Drop),
        1 => Just(Change::DropDatabase),
    ];
    let step = prop_oneof![
        20 => (0..DATABASES.len(), change).prop_map(|(at, change)| Step::Change(at, change)),
        1 => Just(Step::Copy),
        1 => (0usize..10).prop_map(Step::Fold),
        1 => (0usize..10).prop_map(Step::Rewind),
    ];
    prop::collection::vec(step, 0..80)
}

/// An index, and by its side what both forks' sizes must be after each record since the materialized state.
struct Model {
    materialized: MaterializedState,
    index: Index,
    history: Vec<(Lsn, [Option<u32>; 2])>,
    /// Of the newest record there ever was.
    lsn: Lsn,
}

impl Model {
    fn new(at_first: [Option<u32>; 2]) -> Model {
        let mut model = Model {
            materialized: MaterializedState::default(),
            index: Index::default(),
            history: vec![(Lsn(0), at_first)],
            lsn: Lsn(0),
        };
        model.set_materialized(at_first);
        model
    }

    fn set_materialized(&mut self, sizes: [Option<u32>; 2]) {
        for (database, blocks) in DATABASES.into_iter().zip(sizes) {
            match blocks {
                Some(blocks) => self.materialized.relations.insert(fork(database), blocks),
                None => self.materialized.relations.remove(&fork(database)),
            };
        }
    }

    fn newest(&self) -> (Lsn, [Option<u32>; 2]) {
        *self.history.last().expect("it is never empty")
    }

    /// A new record, which changes nothing so far.
    fn record(&mut self) -> Lsn {
        self.lsn.0 += 10;
        self.history.push((self.lsn, self.newest().1));
        self.lsn
    }

    fn change(&mut self, at: usize, change: Change) {
        let fork = fork(DATABASES[at]);
        let whole = self.index.relations.databases.last().is_some_and(|(at, ..)| *at == self.newest().0);
        let together = matches!(change, Change::BlockToo(_)) && self.history.len() > 1 && !whole;
        let lsn = if together { self.newest().0 } else { self.record() };
        let before = self.newest().1[at];
        let after = match change {
            Change::Create => {
                self.index.relations.fork_event(fork, lsn, ForkEvent::Create);
                Some(before.unwrap_or(0))
            }
            Change::Block(block) | Change::BlockToo(block) => {
                self.index.relations.extend(
                    &self.materialized,
                    lsn,
                    &BlockKey { relation_fork: fork, block },
                );
                Some(before.unwrap_or(0).max(block + 1))
            }
            Change::Truncate(blocks) => {
                self.index.relations.fork_event(fork, lsn, ForkEvent::Truncate(blocks));
                before.map(|before| before.min(blocks))
            }
            Change::Drop => {
                self.index.relations.fork_event(fork, lsn, ForkEvent::Drop);
                None
            }
            Change::DropDatabase => {
                self.database_event(lsn, at, DatabaseEvent::Drop);
                None
            }
        };
        self.set_newest(at, after);
    }

    fn set_newest(&mut self, at: usize, size: Option<u32>) {
        self.history.last_mut().expect("it is never empty").1[at] = size;
    }

    fn database_event(&mut self, lsn: Lsn, at: usize, event: DatabaseEvent) {
        self.index.relations.push_database(lsn, database_of(fork(DATABASES[at]).locator), event);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(at, change) => self.change(at, change),
            Step::Copy => {
                let lsn = self.record();
                self.set_newest(1, self.newest().1[0]);
                let from = database_of(fork(DATABASES[0]).locator);
                self.database_event(lsn, 1, DatabaseEvent::CopyOf(from));
            }
            Step::Fold(but) => {
                self.history.drain(..self.history.len().saturating_sub(but + 1));
                let (lsn, sizes) = self.history[0];
                self.set_materialized(sizes);
                self.index.drop_through(lsn);
            }
            Step::Rewind(count) => {
                self.history.truncate(self.history.len().saturating_sub(count).max(1));
                let (lsn, _) = self.newest();
                self.index.drop_above(lsn);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_size_is_what_all_changes_before_it_make_it(
        steps in steps(),
        at_first in any::<[Option<u8>; 2]>(),
    ) {
        let mut model = Model::new(at_first.map(|blocks| blocks.map(|blocks| u32::from(blocks % 40))));
        for (at, step) in steps.iter().enumerate() {
            model.step(*step);
            for (lsn, sizes) in &model.history {
                for (database, size) in DATABASES.into_iter().zip(sizes) {
                    for lsn in [*lsn, Lsn(lsn.0 + 5)] {
                        let found = model.index.relations.relation_blocks(&model.materialized, fork(database), lsn);
                        prop_assert_eq!(found, *size, "at {} after {:?}", lsn, &steps[..=at]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_bulk_load_costs_the_same_for_each_block() {
    let (materialized, mut index) = (MaterializedState::default(), Index::default());
    let began = Instant::now();
    let blocks = 200_000;
    for block in 0..blocks {
        index.relations.extend(
            &materialized,
            Lsn(u64::from(block) + 1),
            &BlockKey { relation_fork: fork(5), block },
        );
        assert_eq!(index.relations.relation_blocks(&materialized, fork(5), Lsn::MAX), Some(block + 1));
    }
    // Twenty thousand million steps if each walked over all blocks before it.
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
}

#[test]
fn a_truncation_costs_what_it_cuts() {
    let (materialized, mut index) = (MaterializedState::default(), Index::default());
    let placement = Placement::new(1).unwrap();
    let record = |lsn: u64| {
        let span = borealis_types::RecordSpan { start: Lsn(lsn - 1), end: Lsn(lsn) };
        let position = crate::log::position::LogPosition(lsn);
        RecordRef { span, position, length: 100, part: borealis_types::Part::Whole }
    };
    let insert = |index: &mut Index, lsn: u64, relation: u32, block: u32| {
        let locator = RelationLocator { tablespace: 1663, database: 5, relation };
        let key = BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block };
        let effects = [Effect::Page(PageKey::Block(key))];
        index.insert(&materialized, GroupId(0), placement, record(lsn), &effects, false);
    };
    let pages = 200_000;
    for number in 0..pages {
        insert(&mut index, u64::from(number) + 1, 16_384 + number % 1000, number / 1000);
    }
    let certain = u64::from(pages);
    index.settle(Lsn(certain));
    let state =
        |index: &Index| (index.memory_bytes(), index.record_bytes, index.page_keys(Bound::Unbounded).count());
    let before = state(&index);
    let began = Instant::now();
    for round in 0..20_000 {
        insert(&mut index, certain + 1, 16_384, 0);
        insert(&mut index, certain + 2, 16_384, 1000 + round);
        index.drop_above(Lsn(certain));
    }
    // Four thousand million steps if each walked over all pages.
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(state(&index), before);
    // A truncation of what was certain is not expected, and is right all the same.
    index.drop_above(Lsn(certain / 2));
    assert_eq!(index.page_keys(Bound::Unbounded).count() as u64, certain / 2);
    assert_eq!(index.record_bytes, certain / 2 * 100);
}
