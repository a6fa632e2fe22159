//! What is asked of each group, and how the groups' answers become one answer to PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::server_request::{
    self, MAX_RELATION_ENTRIES, MAX_SLRU_ENTRIES, RelationEntry, SlruEntry,
};
use borealis_types::{
    DatabaseKey, Fork, GroupId, PAGE_SIZE, PageKey, ReadPoint, RelationFork, RelationLocator,
    SLRU_PAGES_PER_SEGMENT, SlruKind, invariant, slru_segments,
};
use borealis_wire::{RelationSize, Reply, Request};

/// What is asked of one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Page(PageKey),
    Size(RelationFork),
    List {
        database: DatabaseKey,
        after: Option<RelationFork>,
        limit: u32,
    },
    /// Pages from this one on, at most so many.
    SlruPages(SlruKind, u32, u32),
}

impl Ask {
    pub(super) fn request(self, group: GroupId, at: ReadPoint) -> Request {
        match self {
            Ask::Page(key) => Request::ReadPage { group, key, at },
            Ask::Size(relation_fork) => Request::RelationSize { group, relation_fork, at },
            Ask::List { database, after, limit } => {
                Request::ListRelations { group, database, at, after, limit }
            }
            Ask::SlruPages(kind, from, limit) => Request::SlruPages { kind, at, from, limit },
        }
    }

    pub(super) fn is_answered_by(self, reply: &Reply) -> bool {
        match (self, reply) {
            (Ask::Page(_), Reply::Page(page)) => page.as_ref().is_none_or(|page| page.len() == PAGE_SIZE),
            (Ask::Size(_), Reply::RelationSize(_))
            | (Ask::List { .. }, Reply::Relations(_))
            | (Ask::SlruPages(..), Reply::SlruPages(_)) => true,
            _ => false,
        }
    }
}

#[derive(Debug)]
pub(super) enum Collected {
    Page(Option<Vec<u8>>),
    Size { fork: RelationFork, blocks: Option<u32>, has_init_fork: bool },
    List { limit: u32, sizes: BTreeMap<RelationFork, u32>, horizon: Option<RelationFork> },
    SlruPages { first_segment: Option<u32>, only: bool, pages: Vec<u32> },
}

/// The answer to a request of PostgreSQL.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// A page; `None` if storage does not have it.
    Page(Option<Vec<u8>>),
    /// A page that was never written below the size of its relation.
    ZeroPage,
    /// A fork's size over all groups.
    Size(server_request::RelationSize),
    /// A piece of a listing.
    Relations(Vec<RelationEntry>, u64),
    /// Pages in one segment file.
    SlruSegment(Option<u32>),
    /// A piece of a listing.
    SlruSegments(Vec<SlruEntry>, u64),
    /// No node answered in time; the text goes to the log of PostgreSQL.
    Error(String),
}

pub(super) fn collect(collected: &mut Collected, ask: Ask, reply: Reply) {
    match (collected, reply) {
        (Collected::Page(page), Reply::Page(bytes)) => *page = bytes,
        (Collected::Size { fork, blocks, has_init_fork }, Reply::RelationSize(size)) => {
            // Only the questions about the fork itself are about its size.
            let Ask::Size(asked) = ask else { return };
            if asked == *fork {
                *blocks = (*blocks).max(size);
            }
            *has_init_fork |= asked.fork == Fork::Init && size.is_some();
        }
        (Collected::List { limit, sizes, horizon }, Reply::Relations(list)) => {
            if list.len() >= *limit as usize
                && let Some(last) = list.last().map(|entry| entry.relation_fork)
            {
                *horizon = Some(horizon.map_or(last, |known| known.min(last)));
            }
            for RelationSize { relation_fork, blocks } in list {
                let known = sizes.entry(relation_fork).or_default();
                *known = (*known).max(blocks);
            }
        }
        (Collected::SlruPages { pages, .. }, Reply::SlruPages(list)) => *pages = list,
        _ => {}
    }
}

pub(super) fn answer(what: server_request::Request, collected: Collected) -> Answer {
    match (what, collected) {
        (server_request::Request::ReadBlock(_), Collected::Page(None)) => Answer::ZeroPage,
        (_, Collected::Page(page)) => Answer::Page(page),
        (_, Collected::Size { blocks, has_init_fork, .. }) => {
            Answer::Size(server_request::RelationSize { blocks, has_init_fork })
        }
        (_, Collected::List { sizes, horizon, .. }) => list_answer(&sizes, horizon),
        (_, Collected::SlruPages { first_segment, only, pages }) => {
            let Some(first) = first_segment else { return Answer::SlruSegments(Vec::new(), 0) };
            if only {
                let entry = slru_segments(&pages).remove(&first);
                return Answer::SlruSegment(entry);
            }
            let mut entries: Vec<SlruEntry> = slru_segments(&pages)
                .range(first..)
                .map(|(&segment, &pages)| SlruEntry { segment, pages })
                .collect();
            let next = entries.get(MAX_SLRU_ENTRIES).map_or(0, |entry| u64::from(entry.segment));
            entries.truncate(MAX_SLRU_ENTRIES);
            slru_answer(entries, next)
        }
    }
}

/// What tells how many pages a segment file has.
pub(super) fn ask_slru_segment(kind: SlruKind, segment: u32) -> Ask {
    Ask::SlruPages(kind, segment.saturating_mul(SLRU_PAGES_PER_SEGMENT), SLRU_PAGES_PER_SEGMENT)
}

/// What tells of all segment files from this one on that fit an answer, and of one more.
pub(super) fn ask_slru_segments(kind: SlruKind, first_segment: u32) -> Ask {
    let limit = (MAX_SLRU_ENTRIES as u32 + 1) * SLRU_PAGES_PER_SEGMENT;
    Ask::SlruPages(kind, first_segment.saturating_mul(SLRU_PAGES_PER_SEGMENT), limit)
}

/// A listing's cursor: one more than the last relation's number and fork; zero is the beginning.
pub(super) fn list_cursor_to_fork(database: DatabaseKey, cursor: u64) -> Option<RelationFork> {
    let packed = cursor.checked_sub(1)?;
    let locator = RelationLocator {
        tablespace: database.tablespace,
        database: database.database,
        relation: u32::try_from(packed >> 8).unwrap_or(u32::MAX),
    };
    let fork = Fork::try_from((packed & 0xFF) as u8).unwrap_or(Fork::Init);
    Some(RelationFork { locator, fork })
}

/// The entries that every group has told of. A relation's forks stay together, so that its init fork is known
/// with all of them.
fn list_answer(sizes: &BTreeMap<RelationFork, u32>, horizon: Option<RelationFork>) -> Answer {
    let mut complete: Vec<(RelationFork, u32)> = sizes
        .iter()
        .filter(|(fork, _)| horizon.is_none_or(|horizon| **fork <= horizon))
        .map(|(&fork, &blocks)| (fork, blocks))
        .collect();
    let mut more = horizon.is_some();
    if complete.len() > MAX_RELATION_ENTRIES {
        complete.truncate(MAX_RELATION_ENTRIES);
        more = true;
    }
    if more && let Some(last) = complete.last().map(|(fork, _)| fork.locator.relation) {
        let whole = complete.partition_point(|(fork, _)| fork.locator.relation != last);
        // One relation has four forks at most, so there is always an earlier one.
        if whole > 0 {
            complete.truncate(whole);
        }
    }
    let cursor = match complete.last() {
        Some((fork, _)) if more => (u64::from(fork.locator.relation) << 8 | 0x03) + 1,
        _ => 0,
    };
    let unlogged: BTreeSet<u32> = complete
        .iter()
        .filter(|(fork, _)| fork.fork == Fork::Init)
        .map(|(fork, _)| fork.locator.relation)
        .collect();
    let entries: Vec<RelationEntry> = complete
        .iter()
        .map(|(fork, blocks)| RelationEntry {
            relation: fork.locator.relation,
            fork: fork.fork,
            blocks: *blocks,
            has_init_fork: unlogged.contains(&fork.locator.relation),
        })
        .collect();
    relations_answer(entries, cursor)
}

fn relations_answer(entries: Vec<RelationEntry>, cursor: u64) -> Answer {
    let count = entries.len();
    invariant!("listing-fits-an-answer", count <= MAX_RELATION_ENTRIES, "{count} forks");
    Answer::Relations(entries, cursor)
}

fn slru_answer(entries: Vec<SlruEntry>, cursor: u64) -> Answer {
    let count = entries.len();
    invariant!("listing-fits-an-answer", count <= MAX_SLRU_ENTRIES, "{count} segment files");
    Answer::SlruSegments(entries, cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant listing-fits-an-answer is broken: 1025 segment files")]
    fn a_listing_longer_than_an_answer_is_noticed() {
        let _ = slru_answer(vec![SlruEntry { segment: 1, pages: 1 }; MAX_SLRU_ENTRIES + 1], 0);
    }
}
