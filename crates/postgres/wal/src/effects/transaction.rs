//! Ends of transactions (`xact_redo` in `src/backend/access/transam/xact.c`).

use borealis_types::{MetaKey, SlruKind};

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::slru::transaction_page;
use crate::layout::transaction::{
    ABORT, ABORT_PREPARED, ASSIGNMENT, COMMIT, COMMIT_PREPARED, INVALIDATIONS, OPERATION_MASK, PREPARE,
    Prepare, TransactionEnd,
};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.info & OPERATION_MASK {
        COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED => {
            let end = TransactionEnd::parse(record)?;
            for xid in std::iter::once(end.xid).chain(end.subxids()) {
                sink.slru(SlruKind::Transactions, transaction_page(xid));
            }
            for relation in end.dropped_relations() {
                sink.push(Effect::DropRelation(relation));
            }
            if end.prepared {
                sink.push(Effect::Meta(MetaKey::PreparedTransaction(end.xid)));
            }
        }
        // A prepared transaction's status stays "in progress", which is what its bits are already.
        PREPARE => {
            let prepare = Prepare::parse(record)?;
            sink.push(Effect::Meta(MetaKey::PreparedTransaction(prepare.xid)));
        }
        ASSIGNMENT | INVALIDATIONS => {}
        _ => return Err(unknown(record)),
    }
    Ok(())
}
