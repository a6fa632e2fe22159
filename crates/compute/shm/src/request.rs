//! The form of requests and replies in a slot's words. What they say is [`borealis_types::server_request`].

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use borealis_types::server_request::{
    MAX_RELATION_ENTRIES, MAX_SLRU_ENTRIES, RelationEntry, RelationSize, Request, SlruEntry,
};
use borealis_types::{
    BlockKey, DatabaseKey, Fork, PAGE_SIZE, PageBytes, RelationFork, RelationLocator, SlruKind, invariant,
};

use crate::layout::{MAX_MESSAGE_BYTES, MESSAGE_WORDS};

const RELATION_ENTRY_BYTES: usize = 12;
const SLRU_ENTRY_BYTES: usize = 8;

const _: () = assert!(MAX_RELATION_ENTRIES * RELATION_ENTRY_BYTES <= PAGE_SIZE, "a slot's buffer is a page");
const _: () = assert!(MAX_SLRU_ENTRIES * SLRU_ENTRY_BYTES <= PAGE_SIZE, "a slot's buffer is a page");

/// The driver's answer to a request, as it goes into a slot.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// The page that was asked for, 8 KiB.
    Page(&'a PageBytes),
    /// The page does not exist.
    Nonexistent,
    /// The size of a fork in blocks, and whether it has an init fork.
    RelationSize(RelationSize),
    /// See [`Request::ListRelations`]. At most [`MAX_RELATION_ENTRIES`].
    Relations {
        /// The next entries in key order; empty at the end.
        entries: &'a [RelationEntry],
        /// Where to go on; zero after the last entry.
        next_cursor: u64,
    },
    /// See [`Request::SlruSegment`]: pages in the segment file, `None` when it does not exist.
    SlruSegment(Option<u32>),
    /// See [`Request::ListSlruSegments`]. At most [`MAX_SLRU_ENTRIES`].
    SlruSegments {
        /// The next entries in the order of segment files; empty at the end.
        entries: &'a [SlruEntry],
        /// Where to go on; zero after the last entry.
        next_cursor: u64,
    },
    /// It did not work; the text goes to PostgreSQL's log, cut to [`MAX_MESSAGE_BYTES`].
    Error(&'a str),
}

/// A short text that needs no allocation.
#[derive(Clone, Copy)]
pub struct Message {
    bytes: [u8; MAX_MESSAGE_BYTES],
    used_bytes: usize,
}

impl Message {
    /// The first [`MAX_MESSAGE_BYTES`] bytes of `text`.
    #[must_use]
    pub fn new(text: &[u8]) -> Message {
        let mut message = Message { bytes: [0; MAX_MESSAGE_BYTES], used_bytes: 0 };
        for (target, &byte) in message.bytes.iter_mut().zip(text) {
            *target = byte;
            message.used_bytes += 1;
        }
        message
    }

    /// The text, without what did not fit the slot.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used_bytes).unwrap_or(&[])
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.as_bytes()).fmt(f)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.as_bytes().utf8_chunks() {
            f.write_str(chunk.valid())?;
        }
        Ok(())
    }
}

/// Words of a request or reply, as plain numbers. The slot's state word orders them, so they are relaxed.
pub(crate) type Words = [u32; MESSAGE_WORDS];

pub(crate) fn load(words: &[AtomicU32; MESSAGE_WORDS]) -> Words {
    std::array::from_fn(|i| words[i].load(Ordering::Relaxed))
}

pub(crate) fn store(words: &[AtomicU32; MESSAGE_WORDS], values: Words) {
    for (word, value) in words.iter().zip(values) {
        word.store(value, Ordering::Relaxed);
    }
}

const READ_BLOCK: u32 = 1;
const READ_SLRU_PAGE: u32 = 2;
const RELATION_SIZE: u32 = 3;
const LIST_RELATIONS: u32 = 4;
const SLRU_SEGMENT: u32 = 5;
const LIST_SLRU_SEGMENTS: u32 = 6;

fn low(value: u64) -> u32 {
    (value & 0xFFFF_FFFF) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn slru_kind(number: u32) -> Option<SlruKind> {
    SlruKind::ALL.into_iter().find(|&kind| kind as u32 == number)
}

fn fork(number: u32) -> Option<Fork> {
    Fork::ALL.into_iter().find(|&fork| fork as u32 == number)
}

pub(crate) fn fork_words(key: RelationFork) -> [u32; 4] {
    [key.locator.tablespace, key.locator.database, key.locator.relation, key.fork as u32]
}

pub(crate) fn fork_from_words(words: [u32; 4]) -> Option<RelationFork> {
    let [tablespace, database, relation, number] = words;
    Some(RelationFork { locator: RelationLocator { tablespace, database, relation }, fork: fork(number)? })
}

pub(crate) fn request_to_words(request: Request) -> Words {
    match request {
        Request::ReadBlock(key) => {
            let [a, b, c, d] = fork_words(key.relation_fork);
            [READ_BLOCK, a, b, c, d, key.block, 0, 0]
        }
        Request::ReadSlruPage { kind, page } => [READ_SLRU_PAGE, kind as u32, page, 0, 0, 0, 0, 0],
        Request::RelationSize(key) => {
            let [a, b, c, d] = fork_words(key);
            [RELATION_SIZE, a, b, c, d, 0, 0, 0]
        }
        Request::ListRelations { database, cursor } => {
            [LIST_RELATIONS, database.tablespace, database.database, low(cursor), high(cursor), 0, 0, 0]
        }
        Request::SlruSegment { kind, segment } => [SLRU_SEGMENT, kind as u32, segment, 0, 0, 0, 0, 0],
        Request::ListSlruSegments { kind, cursor } => {
            [LIST_SLRU_SEGMENTS, kind as u32, low(cursor), high(cursor), 0, 0, 0, 0]
        }
    }
}

/// `None` for words that no client of this version writes.
pub(crate) fn request_from_words(words: Words) -> Option<Request> {
    let [operation, a, b, c, d, e, ..] = words;
    Some(match operation {
        READ_BLOCK => {
            Request::ReadBlock(BlockKey { relation_fork: fork_from_words([a, b, c, d])?, block: e })
        }
        READ_SLRU_PAGE => Request::ReadSlruPage { kind: slru_kind(a)?, page: b },
        RELATION_SIZE => Request::RelationSize(fork_from_words([a, b, c, d])?),
        LIST_RELATIONS => Request::ListRelations {
            database: DatabaseKey { tablespace: a, database: b },
            cursor: wide(c, d),
        },
        SLRU_SEGMENT => Request::SlruSegment { kind: slru_kind(a)?, segment: b },
        LIST_SLRU_SEGMENTS => Request::ListSlruSegments { kind: slru_kind(a)?, cursor: wide(b, c) },
        _ => return None,
    })
}

pub(crate) const STATUS_OK: u32 = 1;
pub(crate) const STATUS_NONEXISTENT: u32 = 2;
pub(crate) const STATUS_ERROR: u32 = 3;

/// A reply's words, and what goes into the page buffer or the message.
pub(crate) fn encode_reply(reply: Reply<'_>, page: &mut PageBytes, message: &mut [u8]) -> Words {
    match reply {
        Reply::Page(bytes) => {
            page.copy_from_slice(bytes);
            [STATUS_OK, 0, 0, 0, 0, 0, 0, 0]
        }
        Reply::Nonexistent => [STATUS_NONEXISTENT, 0, 0, 0, 0, 0, 0, 0],
        Reply::RelationSize(size) => {
            let exists = u32::from(size.blocks.is_some());
            [STATUS_OK, exists, size.blocks.unwrap_or(0), u32::from(size.has_init_fork), 0, 0, 0, 0]
        }
        Reply::Relations { entries, next_cursor } => {
            let count = entries.len();
            invariant!("listing-fits-an-answer", count <= MAX_RELATION_ENTRIES, "{count} forks");
            for (target, entry) in page.chunks_exact_mut(RELATION_ENTRY_BYTES).zip(entries) {
                target[..4].copy_from_slice(&entry.relation.to_le_bytes());
                target[4..8].copy_from_slice(&entry.blocks.to_le_bytes());
                target[8..].copy_from_slice(&[entry.fork as u8, u8::from(entry.has_init_fork), 0, 0]);
            }
            [STATUS_OK, count as u32, low(next_cursor), high(next_cursor), 0, 0, 0, 0]
        }
        Reply::SlruSegment(pages) => {
            [STATUS_OK, u32::from(pages.is_some()), pages.unwrap_or(0), 0, 0, 0, 0, 0]
        }
        Reply::SlruSegments { entries, next_cursor } => {
            let count = entries.len();
            invariant!("listing-fits-an-answer", count <= MAX_SLRU_ENTRIES, "{count} segment files");
            for (target, entry) in page.chunks_exact_mut(SLRU_ENTRY_BYTES).zip(entries) {
                target[..4].copy_from_slice(&entry.segment.to_le_bytes());
                target[4..].copy_from_slice(&entry.pages.to_le_bytes());
            }
            [STATUS_OK, count as u32, low(next_cursor), high(next_cursor), 0, 0, 0, 0]
        }
        Reply::Error(text) => {
            let text = Message::new(text.as_bytes());
            for (target, &byte) in message.iter_mut().zip(text.as_bytes()) {
                *target = byte;
            }
            [STATUS_ERROR, text.as_bytes().len() as u32, 0, 0, 0, 0, 0, 0]
        }
    }
}

/// A size reply's words, read back.
pub(crate) fn relation_size(words: Words) -> RelationSize {
    RelationSize { blocks: (words[1] != 0).then_some(words[2]), has_init_fork: words[3] != 0 }
}

/// A segment reply's words, read back.
pub(crate) fn slru_segment(words: Words) -> Option<u32> {
    (words[1] != 0).then_some(words[2].min(32))
}

/// How many entries a listing says it has (not more than `limit`) and the next cursor.
pub(crate) fn listing(words: Words, limit: usize) -> (usize, u64) {
    ((words[1] as usize).min(limit), wide(words[2], words[3]))
}

fn word_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// The entries of a relation listing. Entries that make no sense are left out.
pub(crate) fn relation_entries(page: &PageBytes, count: usize) -> impl Iterator<Item = RelationEntry> + '_ {
    page.chunks_exact(RELATION_ENTRY_BYTES).take(count).filter_map(|bytes| {
        let flags = word_at(bytes, 8)?;
        Some(RelationEntry {
            relation: word_at(bytes, 0)?,
            blocks: word_at(bytes, 4)?,
            fork: fork(flags & 0xFF)?,
            has_init_fork: flags & 0xFF00 != 0,
        })
    })
}

/// The entries of a segment listing.
pub(crate) fn slru_entries(page: &PageBytes, count: usize) -> impl Iterator<Item = SlruEntry> + '_ {
    page.chunks_exact(SLRU_ENTRY_BYTES).take(count).filter_map(|bytes| {
        Some(SlruEntry { segment: word_at(bytes, 0)?, pages: word_at(bytes, 4)?.min(32) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[should_panic(expected = "invariant listing-fits-an-answer is broken")]
    fn a_listing_that_is_too_long_is_noticed() {
        let entries = vec![SlruEntry { segment: 0, pages: 1 }; MAX_SLRU_ENTRIES + 1];
        let reply = Reply::SlruSegments { entries: &entries, next_cursor: 0 };
        encode_reply(reply, &mut [0; PAGE_SIZE], &mut [0; MAX_MESSAGE_BYTES]);
    }

    proptest! {
        #[test]
        fn hostile_words_never_panic_and_accepted_ones_round_trip(words: Words, small in 0u32..8, kind in 0u32..6) {
            for words in [words, [small, kind, words[2], words[3], kind, words[5], 0, 0]] {
                if let Some(request) = request_from_words(words) {
                    prop_assert_eq!(request_from_words(request_to_words(request)), Some(request));
                }
                let (count, _) = listing(words, MAX_RELATION_ENTRIES);
                prop_assert!(count <= MAX_RELATION_ENTRIES);
                let _ = (relation_size(words), slru_segment(words));
            }
        }

        #[test]
        fn hostile_pages_never_panic(bytes in proptest::collection::vec(any::<u8>(), PAGE_SIZE)) {
            let page: &PageBytes = bytes.as_slice().try_into().expect("a page");
            prop_assert!(relation_entries(page, usize::MAX).count() <= MAX_RELATION_ENTRIES);
            prop_assert!(slru_entries(page, usize::MAX).count() <= MAX_SLRU_ENTRIES);
        }
    }
}
