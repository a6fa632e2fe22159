//! Which records of a group have an effect, by what a node has of it: the rule of the product's store for records in pieces.

use std::rc::Rc;

use borealis_types::Lsn;

use crate::message::SimRecord;
use crate::{Coverage, Defect};

/// The records that take effect, out of a group's in order. Pieces of a record count together, with the last.
pub(super) fn effective<'r>(
    records: impl Iterator<Item = &'r Rc<SimRecord>>,
    defect: Defect,
    coverage: &mut Coverage,
) -> Vec<&'r SimRecord> {
    let mut effective = Vec::new();
    let mut begun: Option<&SimRecord> = None;
    for record in records {
        let (before, before_end) =
            begun.map_or((record.part, Lsn::ZERO), |begun| (begun.part, begun.span.end));
        let continues = begun.is_some() && record.part.continues(before, before_end, record.span.start);
        if let Some(cut) = begun.filter(|_| !continues) {
            coverage.count("records whose end was cut, read past");
            if defect == Defect::CutRecordsApply {
                effective.push(cut);
            }
        }
        begun = None;
        if !record.part.begins_record() && !continues {
            continue;
        }
        if record.part.ends_record() {
            if record.part.is_piece() {
                coverage.count("records in pieces read");
            }
            effective.push(record);
        } else {
            begun = Some(record);
        }
    }
    effective
}
