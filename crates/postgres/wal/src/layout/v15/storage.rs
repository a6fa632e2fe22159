//! Relation file records (`src/include/catalog/storage_xlog.h`).

use borealis_types::{Fork, RelationFork, RelationLocator};

use crate::bytes::Reader;
use crate::layout::common::{free_space_map, visibility_map};
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_SMGR_CREATE`
pub const CREATE: u8 = 0x10;
/// `XLOG_SMGR_TRUNCATE`
pub const TRUNCATE: u8 = 0x20;

/// `SMGR_TRUNCATE_HEAP`
pub const TRUNCATE_HEAP: u32 = 1;
/// `SMGR_TRUNCATE_VM`
pub const TRUNCATE_VISIBILITY_MAP: u32 = 2;
/// `SMGR_TRUNCATE_FSM`
pub const TRUNCATE_FREE_SPACE_MAP: u32 = 4;

/// A fork's file is created (`xl_smgr_create`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StorageCreate {
    /// The fork whose file comes into being.
    pub relation_fork: RelationFork,
}

impl StorageCreate {
    /// Reads the main data of an `XLOG_SMGR_CREATE` record.
    ///
    /// # Errors
    /// When the data is too short or the fork does not exist.
    pub fn parse(record: &Record<'_>) -> Result<StorageCreate, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let locator = reader.locator()?;
            let fork = Fork::try_from(u8::try_from(reader.i32()?).ok()?).ok()?;
            Some(StorageCreate { relation_fork: RelationFork { locator, fork } })
        };
        parsed(record, read(), "storage creation is malformed")
    }
}

/// A relation loses its tail (`xl_smgr_truncate`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StorageTruncate {
    /// The main fork's new size in blocks; the maps follow from it.
    pub heap_blocks: u32,
    /// The relation that loses its tail.
    pub locator: RelationLocator,
    /// `TRUNCATE_*`: which forks.
    pub flags: u32,
}

/// What a truncation does to one of the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapTruncation {
    /// The map's new size in blocks.
    pub blocks: u32,
    /// The last block that stays, if the part of it that belongs to truncated heap blocks has to be zeroed.
    pub tail_block: Option<u32>,
}

impl StorageTruncate {
    /// Reads the main data of an `XLOG_SMGR_TRUNCATE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<StorageTruncate, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let heap_blocks = reader.u32()?;
            Some(StorageTruncate { heap_blocks, locator: reader.locator()?, flags: reader.u32()? })
        };
        parsed(record, read(), "truncation is cut short")
    }

    /// Whether the fork is truncated.
    #[must_use]
    pub fn truncates(&self, fork: Fork) -> bool {
        let flag = match fork {
            Fork::Main => TRUNCATE_HEAP,
            Fork::VisibilityMap => TRUNCATE_VISIBILITY_MAP,
            Fork::FreeSpaceMap => TRUNCATE_FREE_SPACE_MAP,
            Fork::Init => 0,
        };
        self.flags & flag != 0
    }

    /// What happens to the visibility map (`visibilitymap_prepare_truncate`).
    #[must_use]
    pub fn visibility_map(&self) -> MapTruncation {
        let block = visibility_map::map_block(self.heap_blocks);
        // A partly used byte, or whole unused bytes: in either case the page stays and its tail is cleared.
        MapTruncation::at(block, self.heap_blocks % visibility_map::HEAP_BLOCKS_PER_PAGE)
    }

    /// What happens to the free space map (`FreeSpaceMapPrepareTruncateRel`).
    #[must_use]
    pub fn free_space_map(&self) -> MapTruncation {
        let (block, slot) = free_space_map::location(self.heap_blocks);
        MapTruncation::at(block, slot)
    }
}

impl MapTruncation {
    /// The first removed heap block is at `position` of map block `block`.
    fn at(block: u32, position: u32) -> MapTruncation {
        if position == 0 {
            MapTruncation { blocks: block, tail_block: None }
        } else {
            MapTruncation { blocks: block + 1, tail_block: Some(block) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truncate(heap_blocks: u32) -> StorageTruncate {
        let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16384 };
        StorageTruncate { heap_blocks, locator, flags: 7 }
    }

    #[test]
    fn the_visibility_map_keeps_a_page_only_while_a_heap_block_needs_it() {
        assert_eq!(truncate(0).visibility_map(), MapTruncation { blocks: 0, tail_block: None });
        assert_eq!(truncate(1).visibility_map(), MapTruncation { blocks: 1, tail_block: Some(0) });
        assert_eq!(truncate(32672).visibility_map(), MapTruncation { blocks: 1, tail_block: None });
        assert_eq!(truncate(32673).visibility_map(), MapTruncation { blocks: 2, tail_block: Some(1) });
    }

    #[test]
    fn free_space_map_leaves_follow_their_inner_pages() {
        assert_eq!(free_space_map::SLOTS_PER_PAGE, 4069);
        // Blocks 0 and 1 are the root and the first inner page; 4071 would be the second inner page.
        assert_eq!(free_space_map::location(0), (2, 0));
        assert_eq!(free_space_map::location(4069), (3, 0));
        assert_eq!(free_space_map::location(4069 * 4069), (4069 + 3, 0));
        assert_eq!(truncate(0).free_space_map(), MapTruncation { blocks: 2, tail_block: None });
        assert_eq!(truncate(5).free_space_map(), MapTruncation { blocks: 3, tail_block: Some(2) });
    }

    #[test]
    fn the_largest_heap_block_overflows_nothing() {
        let _ = free_space_map::location(u32::MAX);
        let _ = truncate(u32::MAX).visibility_map();
    }
}
