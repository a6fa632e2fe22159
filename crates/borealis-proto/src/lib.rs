//! Wire messages and framing between driver, storage nodes and tools.
