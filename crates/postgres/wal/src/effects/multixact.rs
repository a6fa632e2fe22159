//! Multixacts (`multixact_redo` in `src/backend/access/transam/multixact.c`).

use borealis_types::SlruKind;

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::multixact::{
    CREATE, MultiXactCreate, MultiXactTruncate, TRUNCATE, ZERO_MEMBERS_PAGE, ZERO_OFFSETS_PAGE, members_page,
    next_multixact, offsets_page, previous_multixact,
};
use crate::layout::slru::{first_kept_page, zeroed_page};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.operation() {
        ZERO_OFFSETS_PAGE => sink.slru(SlruKind::MultiXactOffsets, zeroed_page(record)?),
        ZERO_MEMBERS_PAGE => sink.slru(SlruKind::MultiXactMembers, zeroed_page(record)?),
        CREATE => {
            let create = MultiXactCreate::parse(record)?;
            sink.counters();
            // The end of its members is stored as the start of the next multixact's.
            sink.slru(SlruKind::MultiXactOffsets, offsets_page(create.multi));
            sink.slru(SlruKind::MultiXactOffsets, offsets_page(next_multixact(create.multi)));
            let mut offset = create.offset;
            for _ in create.members() {
                sink.slru(SlruKind::MultiXactMembers, members_page(offset));
                offset = offset.wrapping_add(1);
            }
        }
        TRUNCATE => {
            let truncate = MultiXactTruncate::parse(record)?;
            sink.counters();
            let first_member = first_kept_page(members_page(truncate.end_offset));
            // Members are removed from the oldest to the cutoff; in one segment file there is nothing
            // between.
            if first_kept_page(members_page(truncate.start_offset)) != first_member {
                sink.push(Effect::TruncateSlru {
                    kind: SlruKind::MultiXactMembers,
                    first_kept_page: first_member,
                });
            }
            // One step back, because the page of a multixact not created yet may not exist.
            let cutoff = offsets_page(previous_multixact(truncate.end_multi));
            sink.push(Effect::TruncateSlru {
                kind: SlruKind::MultiXactOffsets,
                first_kept_page: first_kept_page(cutoff),
            });
        }
        _ => return Err(unknown(record)),
    }
    Ok(())
}
