//! What redo does differently from one release of PostgreSQL to the next.
//!
//! Minor releases of one major version share every layout, but a bug fix may change what redo makes of the same
//! bytes. A record is applied as the release that *wrote* it would ([`Record::server_version`]): the pages in that
//! server's cache were made by its own code, and storage must hand back the same bytes. The rule is looked up for
//! each record, so pages that one release made and another one changes come out right in both directions.
//!
//! One function for each behaviour. This is the only place in Borealis that knows the number of a minor release;
//! how a new release is compared with the last one is in `docs/decisions/0011-redo-follows-the-minor-release.md`.
//!
//! Also found between 15.18 and 15.20, and in need of no rule, because the bytes of records and pages are the same:
//! * `seq_redo` and `hash_redo` write a page of an init fork out at once (`XLogFlushBufferForRedoIfInit`). An init
//!   fork is no different from others in storage.
//! * `XLogRecordPageWithFreeSpace` dirties the free space map as a hint. Borealis does not maintain the map in redo.
//! * `RecordNewMultiXact` takes its lock later, `CREATE_ID` and aborting a prepared transaction hold back
//!   checkpoints: order only.
//! * A prepared transaction's file is written under another name and renamed (`RecreateTwoPhaseFile`).
//! * Rows in memory carry a mark that they are composite values (`HEAP_IS_DATUM`). The server clears it before a row
//!   goes to a page or into a record.
//!
//! [`Record::server_version`]: borealis_wal::Record

use borealis_types::{PostgresVersion, ServerVersion};

/// Whether removing tuples from a leaf page of a GiST index sets `F_TUPLES_DELETED` on the page, in vacuum and in
/// `gistRedoPageUpdateRecord` alike. Nothing but pageinspect reads the flag.
///
/// Through 15.19 it does; 15.20 neither sets nor clears the flag, and its `gist.h` calls it deprecated. Pages that an
/// older release marked stay marked until they split or are built anew.
///
/// Found by `wal_consistency_checking` on 15.18 and 15.20, and in their code. 15.19 was no longer to be had. Fixes go to
/// all major versions at once: 18.6, released with 15.19 and with the same security fixes, still sets the flag, and
/// 17.12, released with 15.20, does not.
pub(crate) fn gist_marks_removed_tuples(server_version: ServerVersion) -> bool {
    const FIRST_WITHOUT: ServerVersion = release(15_00_20);
    match server_version.major() {
        PostgresVersion::V15 => server_version < FIRST_WITHOUT,
    }
}

/// A release by its `server_version_num`, at compile time.
const fn release(server_version_num: u32) -> ServerVersion {
    match ServerVersion::new(server_version_num) {
        Ok(release) => release,
        Err(_) => panic!("not a release of a major version that Borealis knows"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gist_pages_are_marked_through_15_19() {
        let marks = |text: &str| gist_marks_removed_tuples(text.parse().unwrap());
        assert!(marks("15.0") && marks("15.18") && marks("15.19"));
        assert!(!marks("15.20") && !marks("15.21"));
    }
}
