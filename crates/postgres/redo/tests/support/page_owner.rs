//! Which access method a page belongs to. Shared by the tests and the redo benchmark.

use borealis_types::{PAGE_SIZE, PageBytes};
use borealis_wal::ResourceManager;

/// Whose page this is, by its special space, where no record says it.
pub fn resource_manager_of(page: &PageBytes) -> Option<ResourceManager> {
    let special = usize::from(u16::from_le_bytes([page[16], page[17]]));
    let kind = u16::from_le_bytes([page[PAGE_SIZE - 2], page[PAGE_SIZE - 1]]);
    match PAGE_SIZE.checked_sub(special)? {
        0 => Some(ResourceManager::Heap),
        8 if page[special..special + 4] == 0x1717u32.to_le_bytes() => Some(ResourceManager::Sequence),
        8 if kind == 0xFF82 => Some(ResourceManager::Spgist),
        8 if (0xF091..=0xF093).contains(&kind) => Some(ResourceManager::Brin),
        // The bloom access method, which logs generic records.
        8 if kind == 0xFF83 => Some(ResourceManager::Generic),
        8 => Some(ResourceManager::Gin),
        16 if kind == 0xFF80 => Some(ResourceManager::Hash),
        16 if kind == 0xFF81 => Some(ResourceManager::Gist),
        16 => Some(ResourceManager::Btree),
        _ => None,
    }
}
