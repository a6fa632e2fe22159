//! Records for hot standby: redo of a primary does nothing with them.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::standby::{INVALIDATIONS, LOCK, RUNNING_TRANSACTIONS};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    let known = matches!(record.operation(), LOCK | RUNNING_TRANSACTIONS | INVALIDATIONS);
    listed_only(record, sink, known)
}
