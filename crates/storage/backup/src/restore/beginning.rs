//! Points at which a volume had nothing yet: everything that such a restore takes is there, and it would make nothing.

use borealis_types::Lsn;

use super::RestoreError;
use crate::contents::Contents;

/// Refuses a point before the volume's first epoch.
///
/// # Errors
/// With the first point that can be restored, as far as that is known.
pub fn check_begun(contents: &Contents, point: Lsn) -> Result<(), RestoreError> {
    let openings = contents.known.history.openings();
    if openings.iter().any(|opening| opening.last.end < point) {
        return Ok(());
    }
    Err(RestoreError::BeforeAll { point, earliest: earliest(contents) })
}

/// The first point that can be restored and at which there was something: where a range begins with a snapshot, or that a mark names.
fn earliest(contents: &Contents) -> Option<Lsn> {
    let points = contents.restorable();
    let marks = contents.known.admitted_marks().map(|(_, mark)| mark.durable);
    let inside =
        |point: &Lsn| points.ranges().iter().any(|range| (range.from..=range.through).contains(point));
    let begins = points.ranges().iter().map(|range| range.from);
    begins.chain(marks.filter(inside)).filter(|point| *point > Lsn::ZERO).min()
}

/// What is said of that point.
pub(super) fn first(earliest: Option<Lsn>) -> String {
    earliest.map_or_else(
        || "no mark says which point is the first that can be restored".to_owned(),
        |earliest| format!("the first point that can be restored is {earliest}"),
    )
}
