//! What the oracle must not compare: each resource manager knows it of its own pages.

use borealis_types::{BlockNumber, PageBytes};
use borealis_wal::ResourceManager;

use crate::fault::Redo;
use crate::{brin, btree, generic, gin, gist, hash, heap, sequence, spgist};

/// The resource manager's own mask (`rm_mask`); one without any compares everything.
pub(super) fn mask(resource_manager: ResourceManager, page: &mut PageBytes, block: BlockNumber) -> Redo {
    match resource_manager {
        ResourceManager::Heap | ResourceManager::Heap2 => heap::mask(page, block),
        ResourceManager::Btree => btree::mask(page, block),
        ResourceManager::Sequence => sequence::mask(page, block),
        ResourceManager::Hash => hash::mask(page, block),
        ResourceManager::Gin => gin::mask(page, block),
        ResourceManager::Gist => gist::mask(page, block),
        ResourceManager::Spgist => spgist::mask(page, block),
        ResourceManager::Brin => brin::mask(page, block),
        ResourceManager::Generic => generic::mask(page, block),
        _ => Ok(()),
    }
}
