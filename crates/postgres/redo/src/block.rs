//! Which of a record's blocks a page is.

use borealis_types::{Fork, PageKey};
use borealis_wal::Record;

/// The listed block with `key`, and its id.
pub(crate) fn listed<'r, 'a>(
    record: &'r Record<'a>,
    key: &PageKey,
) -> Option<&'r borealis_wal::BlockReference<'a>> {
    let PageKey::Block(block_key) = key else { return None };
    record.blocks.iter().find(|block| block.key == *block_key)
}

/// Whether `key` is a block of this fork.
pub(crate) fn is_fork(key: &PageKey, fork: Fork) -> bool {
    matches!(key, PageKey::Block(block) if block.relation_fork.fork == fork)
}
