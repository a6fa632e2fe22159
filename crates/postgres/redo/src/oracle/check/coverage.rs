//! Which operations there are, and why PostgreSQL's regression suite does not write some of them.

use borealis_wal::ResourceManager;
use borealis_wal::ResourceManager as Rm;

use super::report::Tallies;
use crate::names::operations;

/// An operation that PostgreSQL's regression suite does not write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RareOperation {
    /// The resource manager that would write it.
    pub resource_manager: ResourceManager,
    /// As `pg_waldump` names it.
    pub operation: &'static str,
    /// Why the suite does not write it.
    pub why: &'static str,
}

const fn rare(resource_manager: Rm, operation: &'static str, why: &'static str) -> RareOperation {
    RareOperation { resource_manager, operation, why }
}

/// See [`RareOperation`]. Each has a unit test (`rare_tests`).
const RARE: &[RareOperation] = &[
    rare(Rm::Xlog, "SWITCH", "only pg_switch_wal() and archive_timeout write it"),
    rare(Rm::Xlog, "BACKUP_END", "only the end of a base backup writes it"),
    rare(Rm::Xlog, "RESTORE_POINT", "only pg_create_restore_point() writes it"),
    rare(Rm::Xlog, "FPW_CHANGE", "only a running server whose full_page_writes is changed writes it"),
    rare(Rm::Xlog, "END_OF_RECOVERY", "only the promotion of a standby writes it"),
    rare(
        Rm::Xlog,
        "FPI_FOR_HINT",
        "only with data checksums or wal_log_hints, which are off unless asked for",
    ),
    rare(
        Rm::Xlog,
        "OVERWRITE_CONTRECORD",
        "only a server that crashed in the middle of a long record writes it",
    ),
    rare(Rm::Clog, "TRUNCATE", "only when all transactions of a segment file, a million of them, are frozen"),
    rare(Rm::MultiXact, "ZERO_OFF_PAGE", "only after 2048 multixacts; the suite makes a few"),
    rare(
        Rm::MultiXact,
        "TRUNCATE_ID",
        "only when old multixacts are frozen, after millions of them or by a low vacuum_multixact_freeze_min_age",
    ),
    rare(
        Rm::Heap2,
        "REWRITE",
        "only when a catalog is rewritten while a logical replication slot needs its old rows; the suite has no slots",
    ),
    rare(
        Rm::Heap2,
        "LOCK_UPDATED",
        "only when a session locks a row that another one, still open, has updated; each test is one session",
    ),
    rare(
        Rm::Hash,
        "MOVE_PAGE_CONTENTS",
        "only when vacuum squeezes a bucket whose last page's tuples do not fit one earlier page",
    ),
    rare(
        Rm::Hash,
        "VACUUM_ONE_PAGE",
        "only when scans have marked tuples of a bucket's page dead and an insertion finds the page full",
    ),
    rare(Rm::Gin, "DELETE_PAGE", "only when vacuum empties a whole page of a posting tree"),
    rare(
        Rm::Gin,
        "VACUUM_DATA_LEAF_PAGE",
        "only when vacuum removes some of the rows on a posting tree's leaf",
    ),
    rare(
        Rm::Gist,
        "DELETE",
        "only when scans have marked tuples of a page dead and an insertion finds the page full",
    ),
    rare(
        Rm::Gist,
        "PAGE_REUSE",
        "only when a page that vacuum deleted is used again after every older transaction has ended",
    ),
    rare(Rm::Gist, "ASSIGN_LSN", "only with wal_level = minimal"),
    rare(
        Rm::Spgist,
        "VACUUM_ROOT",
        "only when vacuum removes rows from an index so small that its root is a leaf",
    ),
    rare(
        Rm::CommitTs,
        "TRUNCATE",
        "only when all transactions of a segment file, 26 thousand of them, are frozen",
    ),
    rare(
        Rm::ReplicationOrigin,
        "SET",
        "only pg_replication_origin_advance() writes it; a subscription's progress is in commit records",
    ),
    rare(Rm::Generic, "Generic", "only access methods of extensions write it; contrib's bloom index is one"),
    rare(Rm::LogicalMessage, "MESSAGE", "only pg_logical_emit_message() writes it"),
];

/// Every operation that the regression suite does not write.
#[must_use]
pub fn rare_operations() -> &'static [RareOperation] {
    RARE
}

/// The entry of an operation that the regression suite does not write.
#[must_use]
pub fn rare_operation(resource_manager: ResourceManager, operation: &str) -> Option<&'static RareOperation> {
    RARE.iter().find(|rare| rare.resource_manager == resource_manager && rare.operation == operation)
}

/// Every operation PostgreSQL can write of which there was no record.
pub fn unseen_operations(
    tallies: &Tallies,
) -> impl Iterator<Item = (ResourceManager, &'static str)> + use<'_> {
    operations().filter(|operation| !tallies.contains_key(operation))
}
