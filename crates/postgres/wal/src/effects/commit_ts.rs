//! Commit timestamp pages come and go (`commit_ts_redo` in `src/backend/access/transam/commit_ts.c`).

use borealis_types::SlruKind;

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::slru::{CommitTsTruncate, TRUNCATE, ZERO_PAGE, first_kept_page, zeroed_page};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.operation() {
        ZERO_PAGE => sink.slru(SlruKind::CommitTimestamps, zeroed_page(record)?),
        TRUNCATE => {
            let first_kept_page = first_kept_page(CommitTsTruncate::parse(record)?.cutoff_page);
            sink.counters();
            sink.push(Effect::TruncateSlru { kind: SlruKind::CommitTimestamps, first_kept_page });
        }
        _ => return Err(unknown(record)),
    }
    Ok(())
}
