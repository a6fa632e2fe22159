//! What a record does, found once for all the groups that have it.

use std::ops::Range;

use borealis_types::{RecordSpan, ServerVersion};
use borealis_wal::{Effect, Record};

use crate::index::changes_only_existing_pages;
use crate::state::RedoContext;

/// What the index needs to know of a record. Its effects are a part of a list that it shares with others, so that
/// a batch needs one allocation and not one for each record.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Its part of the list of effects, or why they are not known.
    pub effects: Result<Range<usize>, String>,
    pub changes_only_existing_pages: bool,
}

impl Facts {
    /// Finds what a parsed record does, and adds its effects to `effects`.
    pub(crate) fn of(context: RedoContext<'_>, record: &Record<'_>, effects: &mut Vec<Effect>) -> Facts {
        let first = effects.len();
        let known = context.rules.effects(record, effects);
        let range = known.map(|()| first..effects.len()).map_err(|error| {
            effects.truncate(first);
            error.to_string()
        });
        Facts { effects: range, changes_only_existing_pages: changes_only_existing_pages(record) }
    }

    /// The same from a record's bytes.
    pub(crate) fn of_bytes(
        context: RedoContext<'_>,
        span: RecordSpan,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Facts {
        match Record::parse(ServerVersion::NEWEST_TESTED, span, bytes) {
            Ok(record) => Facts::of(context, &record, effects),
            Err(error) => Facts { effects: Err(error.to_string()), changes_only_existing_pages: false },
        }
    }
}
