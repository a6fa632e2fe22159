//! A storage node's log, page versions, checkpoints and garbage collection.
