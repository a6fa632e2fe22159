//! Resource manager `XLOG`: full-page images. Behaviour: `xlog_redo` in
//! `src/backend/access/transam/xlog.c`.

use borealis_types::{PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::layout::xlog::{FULL_PAGE_IMAGE, FULL_PAGE_IMAGE_FOR_HINT};

use crate::block::listed;
use crate::fault::{Fault, Redo, expect};

/// Applies an `XLOG` record to a page whose image, if the record has one, was not to be applied.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, _page: &mut PageBytes) -> Redo {
    expect(listed(record, key).is_some(), "the record does not list this block")?;
    match record.operation() {
        // With `full_page_writes` off the record comes without an image to apply. A hint is nothing to redo.
        FULL_PAGE_IMAGE_FOR_HINT => Ok(()),
        FULL_PAGE_IMAGE => Err(Fault::Failed("a full-page image record has no image to apply")),
        _ => Err(Fault::Failed("this record changes no page")),
    }
}
