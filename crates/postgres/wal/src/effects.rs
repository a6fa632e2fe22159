//! What a record changes: listed blocks, implied blocks, and everything that is not a block.
//!
//! The same function decides where the driver routes a record and what a storage node applies, so the two
//! cannot disagree. It is total: a record whose effects are not known is an error, never an empty list
//! (invariant 9).

use borealis_types::invariant;

use crate::{Record, ResourceManager};

mod brin;
mod btree;
mod clog;
mod commit_ts;
mod database;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod logical_message;
mod multixact;
mod native;
mod relmap;
mod replication_origin;
mod sequence;
mod sink;
mod spgist;
mod standby;
mod storage;
mod tablespace;
mod transaction;
mod xlog;

pub use sink::{Effect, EffectError};
use sink::{Sink, unknown};

/// Appends the record's effects to `out`, in redo order. `Effect::Page` never repeats a key.
///
/// What an applier must know:
/// * Besides what is listed here, every record a segment of the meta group receives is applied to
///   [`borealis_types::MetaKey::Counters`], once; that key is listed where a record's purpose is to change it.
/// * The page effects of a storage truncation zero the tail of the last visibility map and free space map
///   page and come before the truncation itself. They are the one kind that never makes a block: where the
///   map does not have it, there is nothing to zero.
/// * The relation map of a database made by file copy is listed as a changed value, but its new value is that
///   of the template's map, which is not in the record: whoever executes [`Effect::CopyDatabase`] copies it.
/// * [`Effect::TruncateSlru`] always names the first page of a segment file, for PostgreSQL removes whole
///   files. Member offsets wrap around at 2^32, so with more than half of them in use "before" would be
///   wrong for [`borealis_types::SlruKind::MultiXactMembers`]; the record's own `start_offset` says where to begin.
/// * Redo in PostgreSQL also refreshes the upper pages of a truncated free space map. That map is a hint which
///   corrects itself, so this is left out.
/// * Commit timestamps of commits are not listed, since only the setting `track_commit_timestamp`, not the
///   record, tells whether there are any. An instance refuses to run with that setting on.
///
/// # Errors
/// When the operation is unknown or its data malformed; `out` is then unchanged.
pub fn effects(record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
    let first = out.len();
    let mut sink = Sink { out, first, has_listed: false };
    let result = collect(record, &mut sink).and_then(|()| refuse_unlisted(record, &sink));
    if result.is_err() {
        sink.out.truncate(first);
    } else {
        assert_covered(record, &sink);
    }
    result
}

/// A record of a resource manager whose records list no blocks, and which lists some, is one that nobody here knows. Its
/// blocks would be left as they are without a word (invariant 9).
fn refuse_unlisted(record: &Record<'_>, sink: &Sink<'_>) -> Result<(), EffectError> {
    if record.blocks.is_empty() || sink.has_listed { Ok(()) } else { Err(unknown(record)) }
}

/// A node that is not sent a record cannot apply it: whatever block a record of an access method lists, redo is asked
/// about. (Records of the others list none; one that does is refused.)
fn assert_covered(record: &Record<'_>, sink: &Sink<'_>) {
    let of_access_method = matches!(
        record.resource_manager,
        ResourceManager::Heap
            | ResourceManager::Heap2
            | ResourceManager::Btree
            | ResourceManager::Hash
            | ResourceManager::Gin
            | ResourceManager::Gist
            | ResourceManager::Sequence
            | ResourceManager::Spgist
            | ResourceManager::Brin
            | ResourceManager::Generic
    );
    let covered = sink.has_listed || !of_access_method;
    invariant!(
        "effects-cover-listed-blocks",
        covered,
        "{:?} at {}",
        record.resource_manager,
        record.span.start
    );
}

fn collect(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.resource_manager {
        ResourceManager::Xlog => xlog::effects(record, sink),
        ResourceManager::Transaction => transaction::effects(record, sink),
        ResourceManager::Storage => storage::effects(record, sink),
        ResourceManager::Clog => clog::effects(record, sink),
        ResourceManager::Database => database::effects(record, sink),
        ResourceManager::Tablespace => tablespace::effects(record, sink),
        ResourceManager::MultiXact => multixact::effects(record, sink),
        ResourceManager::RelMap => relmap::effects(record, sink),
        ResourceManager::Standby => standby::effects(record, sink),
        ResourceManager::Heap2 => heap2::effects(record, sink),
        ResourceManager::Heap => heap::effects(record, sink),
        ResourceManager::Btree => btree::effects(record, sink),
        ResourceManager::Hash => hash::effects(record, sink),
        ResourceManager::Gin => gin::effects(record, sink),
        ResourceManager::Gist => gist::effects(record, sink),
        ResourceManager::Sequence => sequence::effects(record, sink),
        ResourceManager::Spgist => spgist::effects(record, sink),
        ResourceManager::Brin => brin::effects(record, sink),
        ResourceManager::CommitTs => commit_ts::effects(record, sink),
        ResourceManager::ReplicationOrigin => replication_origin::effects(record, sink),
        ResourceManager::Generic => generic::effects(record, sink),
        ResourceManager::LogicalMessage => logical_message::effects(record, sink),
        ResourceManager::Borealis => native::effects(record, sink),
        ResourceManager::Other(number @ crate::custom::FIRST_NUMBER..) => {
            Err(EffectError::Custom { start: record.span.start, number, info: record.info })
        }
        ResourceManager::Other(_) => Err(unknown(record)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::RecordBuilder;
    use crate::layout;
    use borealis_types::{RecordSpan, ServerVersion};

    #[test]
    fn a_record_that_lists_blocks_where_none_belong_is_unknown() {
        let relation_fork = borealis_types::RelationFork {
            locator: borealis_types::RelationLocator { tablespace: 1663, database: 5, relation: 16_384 },
            fork: borealis_types::Fork::Main,
        };
        let key = borealis_types::BlockKey { relation_fork, block: 3 };
        let commit = |record: RecordBuilder| record.xid(700).main_data(&[0; 8]).finish();
        let plain = RecordBuilder::new(ResourceManager::Transaction, 0);
        let block = crate::BlockReference { id: 0, key, will_init: false, image: None, data: &[1, 2, 3] };
        let with_block = RecordBuilder::new(ResourceManager::Transaction, 0).block(block);
        for (bytes, is_known) in [(commit(plain), true), (commit(with_block), false)] {
            let record = Record::parse(ServerVersion::NEWEST_TESTED, RecordSpan::NONE, &bytes).unwrap();
            let mut out = Vec::new();
            assert_eq!(effects(&record, &mut out).is_ok(), is_known);
            assert_eq!(out.is_empty(), !is_known, "nothing of it is half known: {out:?}");
        }
    }

    #[test]
    fn a_hint_lists_its_block_with_an_image_or_without() {
        let relation_fork = borealis_types::RelationFork {
            locator: borealis_types::RelationLocator { tablespace: 1663, database: 5, relation: 16_384 },
            fork: borealis_types::Fork::Main,
        };
        let key = borealis_types::BlockKey { relation_fork, block: 3 };
        let page = [7; 8192];
        let image = crate::BlockImage {
            bytes: &page,
            hole_offset: 0,
            hole_length: 0,
            compression: crate::ImageCompression::None,
            apply: true,
        };
        let page_effect = Effect::Page(borealis_types::PageKey::Block(key));
        for (image, expected) in [(Some(image), vec![page_effect]), (None, vec![])] {
            let block = crate::BlockReference { id: 0, key, will_init: false, image, data: &[] };
            let bytes = RecordBuilder::new(ResourceManager::Xlog, layout::xlog::FULL_PAGE_IMAGE_FOR_HINT)
                .block(block)
                .finish();
            let record = Record::parse(ServerVersion::NEWEST_TESTED, RecordSpan::NONE, &bytes).unwrap();
            let mut out = Vec::new();
            effects(&record, &mut out).unwrap();
            assert_eq!(out, expected);
        }
    }

    #[test]
    #[should_panic(expected = "invariant effects-cover-listed-blocks is broken")]
    fn listed_blocks_without_an_effect_are_noticed() {
        let bytes = RecordBuilder::new(ResourceManager::Heap, layout::heap::LOCK).finish();
        let record = Record::parse(ServerVersion::NEWEST_TESTED, RecordSpan::NONE, &bytes).unwrap();
        assert_covered(&record, &Sink { out: &mut Vec::new(), first: 0, has_listed: false });
    }
}
