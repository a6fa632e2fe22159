//! The counters of a store.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the store was opened.
        #[derive(Debug, Default)]
        pub(crate) struct Metrics {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Metrics {
            /// The counters' names and values, for `Store::metrics`.
            pub(crate) fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Records that at least one segment took.
    records_taken,
    /// Offers of a record to a segment that had it already.
    records_duplicate,
    /// Offers refused because the epoch is over.
    records_stale,
    /// Offers refused because too many records wait for a predecessor.
    records_too_far_ahead,
    /// Offers that contradict what a segment holds.
    records_conflicting,
    /// Entries appended to the log.
    log_entries,
    /// Bytes of log entries written.
    log_bytes,
    /// Calls of `fdatasync` on the log.
    log_syncs,
    /// Page reads asked for.
    pages_read,
    /// Records applied to serve them.
    records_applied_for_reads,
    /// Page reads that began from the page cache.
    page_cache_hits,
    /// Page versions written by the materializer.
    pages_written,
    /// Rounds of materialization that could not write their pages.
    rounds_abandoned,
    /// Pages copied to a larger region because their relation grew.
    pages_moved,
    /// Checkpoints written and durable.
    checkpoints,
    /// Bytes of checkpoints written.
    checkpoint_bytes,
    /// Log files released although a peer may lack redo in them.
    log_files_lost_to_peers,
    /// Pages taken from peers, because they could not be made here.
    pages_healed,
    /// Pages that could not be made before, written by a round.
    pages_mended,
    /// Log entries that were found damaged and whose records were got again.
    log_entries_repaired,
    /// Bytes that the scrubber has read.
    scrubbed_bytes,
    /// Times that the scrubber has read everything.
    scrub_passes,
    /// Appends refused because too much redo waits behind a record that cannot be applied.
    appends_refused_for_backlog,
    /// Appends delayed by back pressure.
    appends_held_back,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
