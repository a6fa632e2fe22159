//! The only page of a sequence (`sequence_magic` in `src/backend/commands/sequence.c`).

/// `sizeof(sequence_magic)`
pub const SPECIAL_BYTES: usize = 4;
/// `SEQ_MAGIC`, the first word of the special space.
pub const MAGIC: u32 = 0x1717;
