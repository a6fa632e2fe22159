//! Relation files (`smgr_redo` in `src/backend/catalog/storage.c`).

use borealis_types::{Fork, RelationFork};

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::storage::{CREATE, StorageCreate, StorageTruncate, TRUNCATE};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.operation() {
        CREATE => {
            let create = StorageCreate::parse(record)?;
            sink.push(Effect::CreateRelation(create.relation_fork));
        }
        TRUNCATE => {
            let truncate = StorageTruncate::parse(record)?;
            let locator = truncate.locator;
            let maps = [
                (Fork::FreeSpaceMap, truncate.free_space_map()),
                (Fork::VisibilityMap, truncate.visibility_map()),
            ];
            // As PostgreSQL does it: first the tails of the maps' last pages, then all files are cut.
            for (fork, map) in maps.iter().filter(|(fork, _)| truncate.truncates(*fork)) {
                if let Some(block) = map.tail_block {
                    sink.block(RelationFork { locator, fork: *fork }, block);
                }
            }
            if truncate.truncates(Fork::Main) {
                sink.push(Effect::TruncateRelation {
                    relation_fork: RelationFork { locator, fork: Fork::Main },
                    blocks: truncate.heap_blocks,
                });
            }
            for (fork, map) in maps.iter().filter(|(fork, _)| truncate.truncates(*fork)) {
                sink.push(Effect::TruncateRelation {
                    relation_fork: RelationFork { locator, fork: *fork },
                    blocks: map.blocks,
                });
            }
        }
        _ => return Err(unknown(record)),
    }
    Ok(())
}
