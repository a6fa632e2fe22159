//! The header of a heap tuple (`HeapTupleHeaderData` in `src/include/access/htup_details.h`).

/// `SizeofHeapTupleHeader`: up to the null bitmap.
pub const HEADER_BYTES: usize = 23;

/// `t_xmin`
pub const XMIN_OFFSET: usize = 0;
/// `t_xmax`
pub const XMAX_OFFSET: usize = 4;
/// `t_cid`, or `t_xvac` for tuples that a `VACUUM FULL` before 9.0 moved.
pub const COMMAND_ID_OFFSET: usize = 8;
/// `t_ctid`
pub const CTID_OFFSET: usize = 12;
/// `t_infomask2`
pub const INFOMASK2_OFFSET: usize = 18;
/// `t_infomask`
pub const INFOMASK_OFFSET: usize = 20;
/// `t_hoff`
pub const HOFF_OFFSET: usize = 22;

/// `HEAP_XMAX_KEYSHR_LOCK`
pub const XMAX_KEYSHR_LOCK: u16 = 0x0010;
/// `HEAP_COMBOCID`
pub const COMBO_CID: u16 = 0x0020;
/// `HEAP_XMAX_EXCL_LOCK`
pub const XMAX_EXCL_LOCK: u16 = 0x0040;
/// `HEAP_XMAX_LOCK_ONLY`
pub const XMAX_LOCK_ONLY: u16 = 0x0080;
/// `HEAP_XMIN_FROZEN`
pub const XMIN_FROZEN: u16 = 0x0300;
/// `HEAP_XMAX_COMMITTED`
pub const XMAX_COMMITTED: u16 = 0x0400;
/// `HEAP_XMAX_INVALID`
pub const XMAX_INVALID: u16 = 0x0800;
/// `HEAP_XMAX_IS_MULTI`
pub const XMAX_IS_MULTI: u16 = 0x1000;
/// `HEAP_MOVED`
pub const MOVED: u16 = 0xC000;
/// `HEAP_LOCK_MASK`
pub const LOCK_MASK: u16 = XMAX_KEYSHR_LOCK | XMAX_EXCL_LOCK;
/// `HEAP_XMAX_BITS`
pub const XMAX_BITS: u16 = XMAX_COMMITTED | XMAX_INVALID | XMAX_IS_MULTI | LOCK_MASK | XMAX_LOCK_ONLY;
/// `HEAP_XACT_MASK`
pub const XACT_MASK: u16 = 0xFFF0;

/// `HEAP_KEYS_UPDATED`, in `t_infomask2`
pub const KEYS_UPDATED: u16 = 0x2000;
/// `HEAP_HOT_UPDATED`, in `t_infomask2`
pub const HOT_UPDATED: u16 = 0x4000;
