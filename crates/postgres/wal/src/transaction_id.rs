//! Which transaction ids a record proves to be in use, and which to be over.

use crate::layout::transaction::{
    ABORT, ABORT_PREPARED, ASSIGNMENT, Assignment, COMMIT, COMMIT_PREPARED, OPERATION_MASK, PREPARE, Prepare,
    TransactionEnd,
};
use crate::layout::{
    CheckPointRecord, FIRST_NORMAL_XID, MultiXactCreate, RunningTransactions, multixact, standby, xlog,
};
use crate::{Record, ResourceManager};

/// Whether transaction `left` is older than `right`, in PostgreSQL's circular order of normal ids
/// (`TransactionIdPrecedes`).
#[must_use]
pub fn xid_precedes(left: u32, right: u32) -> bool {
    (left.wrapping_sub(right) as i32) < 0
}

/// The newest transaction id the record proves to be in use: its own, its top-level transaction's, those a
/// commit, abort, prepare, assignment or multixact carries, and the one before the next of a checkpoint or
/// of a snapshot of running transactions. `None` if there is none, or only reserved ids (below 3).
///
/// A record whose data does not parse proves what its header does; [`crate::effects()`] is what reports it.
#[must_use]
pub fn highest_xid(record: &Record<'_>) -> Option<u32> {
    let mut highest = None;
    let mut see = |xid: u32| {
        let newer = highest.is_none_or(|known| xid_precedes(known, xid));
        if xid >= FIRST_NORMAL_XID && newer {
            highest = Some(xid);
        }
    };
    see(record.xid);
    record.top_level_xid.into_iter().for_each(&mut see);
    see_carried(record, &mut see);
    highest
}

fn see_carried(record: &Record<'_>, see: &mut impl FnMut(u32)) {
    match record.resource_manager {
        ResourceManager::Transaction => match record.info & OPERATION_MASK {
            COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED => {
                if let Ok(end) = TransactionEnd::parse(record) {
                    see(end.xid);
                    end.subxids().for_each(see);
                }
            }
            PREPARE => {
                if let Ok(prepare) = Prepare::parse(record) {
                    see(prepare.xid);
                    prepare.subxids().for_each(see);
                }
            }
            ASSIGNMENT => {
                if let Ok(assignment) = Assignment::parse(record) {
                    see(assignment.top_level_xid);
                    assignment.subxids().for_each(see);
                }
            }
            _ => {}
        },
        ResourceManager::MultiXact if record.operation() == multixact::CREATE => {
            if let Ok(create) = MultiXactCreate::parse(record) {
                create.members().for_each(|member| see(member.xid));
            }
        }
        ResourceManager::Standby if record.operation() == standby::RUNNING_TRANSACTIONS => {
            if let Ok(running) = RunningTransactions::parse(record) {
                see(previous_xid(running.next_xid));
            }
        }
        ResourceManager::Xlog
            if matches!(record.operation(), xlog::CHECKPOINT_SHUTDOWN | xlog::CHECKPOINT_ONLINE) =>
        {
            if let Ok(checkpoint) = CheckPointRecord::parse(record) {
                // The epoch in the high half does not matter here.
                see(previous_xid(checkpoint.next_full_xid as u32));
            }
        }
        _ => {}
    }
}

/// Hands out the transactions, and subtransactions, that are over after this record. One that is prepared is not.
pub fn ended_transactions(record: &Record<'_>, mut over: impl FnMut(u32)) {
    let ends = record.resource_manager == ResourceManager::Transaction
        && matches!(record.info & OPERATION_MASK, COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED);
    if ends && let Ok(end) = TransactionEnd::parse(record) {
        over(end.xid);
        end.subxids().for_each(over);
    }
}

/// The oldest transaction that was running, if the record is a snapshot of running transactions.
#[must_use]
pub fn oldest_running_transaction(record: &Record<'_>) -> Option<u32> {
    (record.resource_manager == ResourceManager::Standby
        && record.operation() == standby::RUNNING_TRANSACTIONS)
        .then(|| RunningTransactions::parse(record).ok())
        .flatten()
        .map(|running| running.oldest_running_xid)
}

/// The transaction id before this one (`TransactionIdRetreat`): reserved ids are skipped.
fn previous_xid(xid: u32) -> u32 {
    let before = xid.wrapping_sub(1);
    if before < FIRST_NORMAL_XID { u32::MAX } else { before }
}
