//! All pages of a cluster in memory, found by fork and block.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use borealis_redo::{RedoError, apply_page};
use borealis_types::{
    BlockKey, DatabaseKey, Fork, PAGE_SIZE, PageBytes, PageKey, RelationFork, RelationLocator, SlruKind,
};
use borealis_wal::{Effect, Record};

/// Pages that exist, by block number.
type Blocks = Vec<Option<Box<PageBytes>>>;

/// A multiplicative hash; the keys are not chosen by an enemy here.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// All pages, by relation fork and block.
#[derive(Default)]
pub struct Memory {
    forks: HashMap<RelationFork, Blocks, BuildHasherDefault<WordHasher>>,
    status: [BTreeMap<u32, Box<PageBytes>>; SlruKind::ALL.len()],
}

impl Memory {
    /// A copy of these pages.
    pub fn new(base: &BTreeMap<PageKey, Box<PageBytes>>) -> Memory {
        let mut memory = Memory::default();
        for (key, page) in base {
            *memory.page(key) = **page;
        }
        memory
    }

    /// The page, of zeros if it did not exist.
    fn page(&mut self, key: &PageKey) -> &mut PageBytes {
        match key {
            PageKey::Block(block) => {
                let blocks = self.forks.entry(block.relation_fork).or_default();
                let at = block.block as usize;
                if at >= blocks.len() {
                    blocks.resize(at + 1, None);
                }
                blocks[at].get_or_insert_with(|| Box::new([0; PAGE_SIZE]))
            }
            PageKey::Slru { kind, page } => {
                self.status[*kind as usize].entry(*page).or_insert_with(|| Box::new([0; PAGE_SIZE]))
            }
        }
    }

    /// Makes one change; whether it was to a page. Small values are not kept here.
    pub fn apply(&mut self, record: &Record<'_>, effect: &Effect) -> Result<bool, RedoError> {
        match effect {
            Effect::Page(key) => {
                apply_page(record, key, self.page(key))?;
                return Ok(true);
            }
            Effect::CreateRelation(fork) => {
                self.forks.entry(*fork).or_default();
            }
            Effect::TruncateRelation { relation_fork, blocks } => {
                if let Some(pages) = self.forks.get_mut(relation_fork) {
                    pages.truncate(*blocks as usize);
                }
            }
            Effect::DropRelation(locator) => self.drop_relation(*locator),
            Effect::CopyDatabase { from, to } => self.copy_database(*from, *to),
            Effect::DropDatabase(database) => {
                self.forks.retain(|fork, _| database_of(fork.locator) != *database);
            }
            Effect::TruncateSlru { kind, first_kept_page } => {
                // Half the circle behind the first page that stays; a run never spans more.
                self.status[*kind as usize]
                    .retain(|page, _| page >= first_kept_page || first_kept_page - page > u32::MAX / 2);
            }
            Effect::Meta(_) => {}
        }
        Ok(false)
    }

    fn drop_relation(&mut self, locator: RelationLocator) {
        for fork in Fork::ALL {
            self.forks.remove(&RelationFork { locator, fork });
        }
    }

    fn copy_database(&mut self, from: DatabaseKey, to: DatabaseKey) {
        let template: Vec<_> =
            self.forks.iter().filter(|(fork, _)| database_of(fork.locator) == from).collect();
        let copies: Vec<(RelationFork, Blocks)> = template
            .into_iter()
            .map(|(fork, blocks)| {
                let DatabaseKey { tablespace, database } = to;
                let locator = RelationLocator { tablespace, database, relation: fork.locator.relation };
                (RelationFork { locator, fork: fork.fork }, blocks.clone())
            })
            .collect();
        self.forks.extend(copies);
    }

    /// Every page, in no order.
    pub fn pages(&self) -> impl Iterator<Item = (PageKey, &PageBytes)> {
        let blocks = self.forks.iter().flat_map(|(fork, blocks)| {
            (0..).zip(blocks).filter_map(|(block, page)| {
                let key = PageKey::Block(BlockKey { relation_fork: *fork, block });
                page.as_deref().map(|page| (key, page))
            })
        });
        let status = SlruKind::ALL.into_iter().flat_map(|kind| {
            self.status[kind as usize]
                .iter()
                .map(move |(page, bytes)| (PageKey::Slru { kind, page: *page }, &**bytes))
        });
        blocks.chain(status)
    }
}

fn database_of(locator: RelationLocator) -> DatabaseKey {
    DatabaseKey { tablespace: locator.tablespace, database: locator.database }
}
