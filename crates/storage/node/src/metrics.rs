//! The node's counters and gauges, and what each is called.
//!
//! [`Metrics::read`] returns the ones counted here; the store adds its own with the prefix `store_`. All are
//! returned by [`borealis_wire::Request::Status`] as (name, value).
//!
//! | Name | Meaning |
//! |---|---|
//! | `append_frames` | append requests received |
//! | `append_bytes` | bytes of their batches |
//! | `append_syncs` | times a connection made appends durable (one for all frames that were waiting) |
//! | `append_refused` | appends answered with a refusal |
//! | `ack_p50_us`, `ack_p99_us`, `ack_max_us` | from a whole append frame received to its acknowledgement written, since start |
//! | `page_reads` | pages asked for |
//! | `page_read_p50_us`, `page_read_p99_us`, `page_read_max_us` | time inside the store for one page, since start |
//! | `requests` | requests of all kinds except appends |
//! | `requests_refused` | of these, answered with a refusal |
//! | `connections` | connections open now |
//! | `connections_accepted` | connections accepted since start |
//! | `connections_refused` | connections closed at once because too many were open |
//! | `strangers_refused` | connections closed at once because a process of another user called |
//! | `frames_refused` | connections closed because of garbage, an oversized frame or a missing `Hello` |
//! | `gossip_exchanges` | summaries fetched from peers |
//! | `gossip_failures` | exchanges with a peer that failed |
//! | `gossip_pulled_bytes` | bytes of batches pulled from peers |
//! | `gossip_pulled_batches` | batches pulled from peers |
//! | `refill_groups` | segments that no peer's log continues and that wait to be refilled, or are |
//! | `refill_done_bytes`, `refill_total_bytes` | pages of theirs that are as of the durable point; about how many there are |
//! | `refill_bytes_per_second` | how many are compared or brought in a second, of late |
//! | `refill_fetched_bytes` | bytes of pages that peers sent since start |
//! | `refills` | segments refilled since start |
//! | `gossip_records_unconfirmed` | records left because only one peer sent them and they are not known to be durable |
//! | `memberships_installed` | memberships of groups that were acted on for the first time |
//! | `memberships_refused` | callers refused because they know another membership, or are no peers |
//! | `segments_joined`, `segments_left` | segments that came and then had everything; that left |
//! | `segments_joining` | segments that do not have everything yet |
//! | `backup_groups` | groups that this node uploads |
//! | `backup_behind_ms` | for how long their oldest durable redo has not been in the backup |
//! | `backup_failing_ms` | for how long nothing gets to the backup |
//! | `backup_gaps` | ranges of redo that the backup lacks |
//! | `backup_objects`, `backup_bytes` | objects made in the backup since start; their bytes |
//! | `backup_failures` | requests that the backup's store did not fulfil |
//! | `backup_snapshots` | snapshots of groups that were completed since start |
//! | `backup_deleted` | objects deleted since start that nobody can need any more |
//! | `materializations` | rounds of materialization that did something |
//! | `store_pages_in_trouble` | pages that cannot be made here now: damaged, or in quarantine |
//! | `store_pages_healed`, `store_pages_mended` | pages that peers brought; pages that a round could write again |
//! | `store_log_entries_damaged`, `store_log_entries_repaired` | damaged log entries now; replaced since start |
//! | `store_scrubbed_bytes`, `store_scrub_passes` | what the scrubber has read, and how often everything |
//! | `resident_bytes` | resident memory of the process |

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use borealis_metrics::exposition::Durations;

/// Powers of two of microseconds, each in four parts: at most 25 % error up to 18 minutes.
const BUCKETS: usize = 128;

/// A summary of durations since start, cheap to add to from many threads.
#[derive(Debug)]
pub struct LatencySummary {
    buckets: [AtomicU64; BUCKETS],
    max_us: AtomicU64,
    sum_us: AtomicU64,
}

impl Default for LatencySummary {
    fn default() -> Self {
        LatencySummary {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            max_us: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }
}

impl LatencySummary {
    /// Adds one duration; longer ones than 18 minutes count as that.
    pub fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(us)].fetch_add(1, Relaxed);
        self.max_us.fetch_max(us, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// The duration in microseconds that `numerator / denominator` of all were at or below; zero if none.
    #[must_use]
    pub fn quantile_us(&self, numerator: u64, denominator: u64) -> u64 {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let wanted = (u128::from(total) * u128::from(numerator)).div_ceil(u128::from(denominator));
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted && seen > 0 {
                return upper_bound_us(bucket).min(self.max_us());
            }
        }
        0
    }

    /// The same for Prometheus, in fewer buckets: each bound is about twice the one before, from 63 µs to 16 s.
    #[must_use]
    pub fn durations(&self) -> Durations {
        const BOUNDS_US: std::ops::RangeInclusive<u32> = 6..=24;
        let mut buckets: Vec<(f64, u64)> = BOUNDS_US.map(|power| (seconds((1 << power) - 1), 0)).collect();
        buckets.push((f64::INFINITY, 0));
        for (bucket, count) in self.buckets.iter().enumerate() {
            let longest = seconds(upper_bound_us(bucket));
            // Both have a bound below each power of two, so that no bucket here is divided there.
            let place = buckets.iter().position(|(bound, _)| longest <= *bound).unwrap_or(buckets.len() - 1);
            buckets[place].1 += count.load(Relaxed);
        }
        Durations { sum_seconds: seconds(self.sum_us.load(Relaxed)), buckets }
    }

    /// The longest duration, in microseconds.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.max_us.load(Relaxed)
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn bucket_of(us: u64) -> usize {
    if us < 4 {
        return us as usize;
    }
    let exponent = us.ilog2();
    let quarter = (us >> (exponent - 2)) & 3;
    ((exponent as usize - 1) * 4 + quarter as usize).min(BUCKETS - 1)
}

fn upper_bound_us(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let exponent = bucket / 4 + 1;
    let quarter = (bucket % 4) as u64;
    ((4 + quarter + 1) << (exponent - 2)) - 1
}

/// The counters of one node, from its start on.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) append_frames: AtomicU64,
    pub(crate) append_bytes: AtomicU64,
    pub(crate) append_syncs: AtomicU64,
    pub(crate) append_refused: AtomicU64,
    pub(crate) acknowledgements: LatencySummary,
    pub(crate) page_reads: LatencySummary,
    pub(crate) page_read_count: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) requests_refused: AtomicU64,
    pub(crate) connections_accepted: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) strangers_refused: AtomicU64,
    pub(crate) frames_refused: AtomicU64,
    pub(crate) gossip_exchanges: AtomicU64,
    pub(crate) gossip_failures: AtomicU64,
    pub(crate) gossip_pulled_bytes: AtomicU64,
    pub(crate) gossip_pulled_batches: AtomicU64,
    pub(crate) gossip_records_unconfirmed: AtomicU64,
    pub(crate) materializations: AtomicU64,
    pub(crate) memberships_installed: AtomicU64,
    pub(crate) memberships_refused: AtomicU64,
    pub(crate) segments_joined: AtomicU64,
    pub(crate) segments_left: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

impl Metrics {
    /// Every counter and summary by name, except those that belong to someone else (`connections`, `store_…`).
    #[must_use]
    pub fn read(&self) -> Vec<(String, u64)> {
        let counters = [
            ("append_frames", &self.append_frames),
            ("append_bytes", &self.append_bytes),
            ("append_syncs", &self.append_syncs),
            ("append_refused", &self.append_refused),
            ("page_reads", &self.page_read_count),
            ("requests", &self.requests),
            ("requests_refused", &self.requests_refused),
            ("connections_accepted", &self.connections_accepted),
            ("connections_refused", &self.connections_refused),
            ("strangers_refused", &self.strangers_refused),
            ("frames_refused", &self.frames_refused),
            ("gossip_exchanges", &self.gossip_exchanges),
            ("gossip_failures", &self.gossip_failures),
            ("gossip_pulled_bytes", &self.gossip_pulled_bytes),
            ("gossip_pulled_batches", &self.gossip_pulled_batches),
            ("gossip_records_unconfirmed", &self.gossip_records_unconfirmed),
            ("materializations", &self.materializations),
            ("memberships_installed", &self.memberships_installed),
            ("memberships_refused", &self.memberships_refused),
            ("segments_joined", &self.segments_joined),
            ("segments_left", &self.segments_left),
        ];
        let mut all: Vec<(String, u64)> =
            counters.iter().map(|(name, counter)| ((*name).to_owned(), counter.load(Relaxed))).collect();
        for (name, summary) in [("ack", &self.acknowledgements), ("page_read", &self.page_reads)] {
            all.push((format!("{name}_p50_us"), summary.quantile_us(50, 100)));
            all.push((format!("{name}_p99_us"), summary.quantile_us(99, 100)));
            all.push((format!("{name}_max_us"), summary.max_us()));
        }
        all.push(("resident_bytes".to_owned(), resident_bytes()));
        all
    }
}

/// Resident memory of this process, from `/proc/self/statm` (second number, in pages); zero where there is none.
fn resident_bytes() -> u64 {
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()));
    pages.unwrap_or(0) * u64::try_from(page_bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_into_a_bucket_that_covers_it() {
        let mut last = 0;
        for us in (0..5000).chain([1 << 20, (1 << 30) + 12345, u64::MAX]) {
            let bucket = bucket_of(us);
            assert!(bucket >= last || us == 0, "buckets must rise with the duration");
            last = bucket;
            if us < 1 << 29 {
                assert!(us <= upper_bound_us(bucket), "{us} µs is above its bucket's bound");
                assert!(bucket == 0 || us > upper_bound_us(bucket - 1), "{us} µs belongs to a lower bucket");
            }
        }
    }

    #[test]
    fn prometheus_sees_every_duration_in_the_bucket_that_covers_it() {
        let summary = LatencySummary::default();
        let every = [0, 63, 64, 127, 128, 1_000, 16_777_215, 16_777_216, 1 << 40];
        for us in every {
            summary.record(Duration::from_micros(us));
        }
        let durations = summary.durations();
        let up_to = |bound_us: u64| -> u64 {
            durations
                .buckets
                .iter()
                .filter(|(bound, _)| *bound <= seconds(bound_us))
                .map(|(_, count)| count)
                .sum()
        };
        for power in 6..=24 {
            let bound = (1u64 << power) - 1;
            assert_eq!(up_to(bound), every.iter().filter(|us| **us <= bound).count() as u64, "{bound} µs");
        }
        assert_eq!(durations.buckets.iter().map(|(_, count)| count).sum::<u64>(), every.len() as u64);
        assert_eq!(durations.sum_seconds, seconds(every.iter().sum()));
    }

    #[test]
    fn quantiles_are_close_to_the_truth() {
        let summary = LatencySummary::default();
        for us in 1..=1000 {
            summary.record(Duration::from_micros(us));
        }
        let (median, high) = (summary.quantile_us(50, 100), summary.quantile_us(99, 100));
        assert!((500..=640).contains(&median), "{median}");
        assert!((990..=1000).contains(&high), "{high}");
        assert_eq!(LatencySummary::default().quantile_us(50, 100), 0);
    }
}
