//! What a record changes, determined once for all groups that have it.

use std::ops::Range;

use borealis_types::{RecordSpan, ServerVersion};
use borealis_wal::{Effect, Record, ResourceManager};

use crate::redo_engine::RedoContext;
use crate::redo_guard::guarded;

/// What the index needs to know about a record. All records of a batch share one list of effects, which saves
/// an allocation for each.
#[derive(Clone, Debug)]
pub(crate) struct RecordEffects {
    /// The record's range in the shared list, or why its effects are unknown.
    pub effects: Result<Range<usize>, String>,
    pub changes_only_existing_pages: bool,
}

impl RecordEffects {
    /// Determines what a parsed record changes, and appends its effects to `effects`.
    pub(crate) fn of(
        context: RedoContext<'_>,
        record: &Record<'_>,
        effects: &mut Vec<Effect>,
    ) -> RecordEffects {
        let first = effects.len();
        let known = guarded(|| context.redo.effects(record, effects).map_err(|error| error.to_string()));
        let range = known.and_then(|known| known).map(|()| first..effects.len());
        if range.is_err() {
            effects.truncate(first);
        }
        RecordEffects { effects: range, changes_only_existing_pages: changes_only_existing_pages(record) }
    }

    /// For a record in an epoch that no segment here knows. No segment takes it, so its effects are never
    /// used.
    pub(crate) fn of_unknown_release() -> RecordEffects {
        RecordEffects {
            effects: Err("nobody knows who wrote it".to_owned()),
            changes_only_existing_pages: false,
        }
    }

    /// For a piece of a record: it has no effect, and its record has one with its last piece.
    pub(crate) fn of_piece() -> RecordEffects {
        RecordEffects { effects: Ok(0..0), changes_only_existing_pages: false }
    }

    /// Like [`RecordEffects::of_bytes`], for a record that was put together and that nobody has verified.
    pub(crate) fn of_pieces(
        context: RedoContext<'_>,
        server_version: ServerVersion,
        span: RecordSpan,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> RecordEffects {
        match context.redo.verify(bytes, span.start) {
            Ok(()) => RecordEffects::of_bytes(context, server_version, span, bytes, effects),
            Err(error) => RecordEffects { effects: Err(error.to_string()), ..RecordEffects::of_piece() },
        }
    }

    /// Like [`RecordEffects::of`], from the bytes of a record that a server of this release wrote.
    pub(crate) fn of_bytes(
        context: RedoContext<'_>,
        server_version: ServerVersion,
        span: RecordSpan,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> RecordEffects {
        match Record::parse(server_version, span, bytes) {
            Ok(record) => RecordEffects::of(context, &record, effects),
            Err(error) => {
                RecordEffects { effects: Err(error.to_string()), changes_only_existing_pages: false }
            }
        }
    }
}

/// Redo of a truncation zeroes the tails of maps only where the map and the page exist, so its changes of map
/// pages never make a page (`smgr_redo` in `src/backend/catalog/storage.c`).
pub(crate) fn changes_only_existing_pages(record: &Record<'_>) -> bool {
    record.resource_manager == ResourceManager::Storage
}
