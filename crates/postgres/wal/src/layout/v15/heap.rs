//! Heap record operations and the flags that tell which visibility map bits they clear
//! (`src/include/access/heapam_xlog.h`).

/// `XLOG_HEAP_INSERT`
pub const INSERT: u8 = 0x00;
/// `XLOG_HEAP_DELETE`
pub const DELETE: u8 = 0x10;
/// `XLOG_HEAP_UPDATE`
pub const UPDATE: u8 = 0x20;
/// `XLOG_HEAP_TRUNCATE`: for logical decoding only.
pub const TRUNCATE: u8 = 0x30;
/// `XLOG_HEAP_HOT_UPDATE`
pub const HOT_UPDATE: u8 = 0x40;
/// `XLOG_HEAP_CONFIRM`
pub const CONFIRM: u8 = 0x50;
/// `XLOG_HEAP_LOCK`
pub const LOCK: u8 = 0x60;
/// `XLOG_HEAP_INPLACE`
pub const INPLACE: u8 = 0x70;
/// The bits of `info` that tell the operation, in both heap resource managers.
pub const OPERATION_MASK: u8 = 0x70;
/// `XLOG_HEAP_INIT_PAGE`: the page is made anew.
pub const INIT_PAGE: u8 = 0x80;

/// `XLOG_HEAP2_REWRITE`: a file of `pg_logical/mappings`, for logical decoding only.
pub const REWRITE: u8 = 0x00;
/// `XLOG_HEAP2_PRUNE`
pub const PRUNE: u8 = 0x10;
/// `XLOG_HEAP2_VACUUM`
pub const VACUUM: u8 = 0x20;
/// `XLOG_HEAP2_FREEZE_PAGE`
pub const FREEZE_PAGE: u8 = 0x30;
/// `XLOG_HEAP2_VISIBLE`
pub const VISIBLE: u8 = 0x40;
/// `XLOG_HEAP2_MULTI_INSERT`
pub const MULTI_INSERT: u8 = 0x50;
/// `XLOG_HEAP2_LOCK_UPDATED`
pub const LOCK_UPDATED: u8 = 0x60;
/// `XLOG_HEAP2_NEW_CID`: for logical decoding only.
pub const NEW_CID: u8 = 0x70;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED`, also of multi-inserts
pub const INSERT_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// `XLH_DELETE_ALL_VISIBLE_CLEARED`
pub const DELETE_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// `XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED`
pub const UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// `XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED`
pub const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
/// `XLH_LOCK_ALL_FROZEN_CLEARED`: of the two bits, only all-frozen goes.
pub const LOCK_ALL_FROZEN_CLEARED: u8 = 0x01;

/// Offset of the flags in `xl_heap_insert`'s data.
pub const INSERT_FLAGS_OFFSET: usize = 2;
/// Offset of the flags in `xl_heap_multi_insert`'s data.
pub const MULTI_INSERT_FLAGS_OFFSET: usize = 0;
/// Offset of the flags in the data of `xl_heap_delete`, `xl_heap_update`, `xl_heap_lock` and
/// `xl_heap_lock_updated`.
pub const CHANGE_FLAGS_OFFSET: usize = 7;
