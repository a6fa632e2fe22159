//! Records of sequences (`src/include/commands/sequence.h`).

/// `XLOG_SEQ_LOG`
pub const LOG: u8 = 0x00;
/// `sizeof(xl_seq_rec)`: the relation, before the tuple.
pub const LOG_HEADER_BYTES: usize = 12;
