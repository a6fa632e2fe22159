//! How far refills are, for people; and how fast they may be.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_types::{GroupId, PAGE_SIZE};
use borealis_wire::RefillProgress;

/// The rate that is shown is that of about this long.
const RATE_OVER: Duration = Duration::from_secs(2);

/// How far a node's segments are refilled, since it was started.
#[derive(Debug, Default)]
pub(crate) struct Refills {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of each segment that is cut off: pages that are as of the point, and about how many there are.
    groups: BTreeMap<GroupId, (u64, u64)>,
    finished: u64,
    fetched_bytes: u64,
    pages_done: u64,
    /// When the rate was last worked out, of how many pages, and what it was.
    rated: Option<(Instant, u64, u64)>,
}

impl Refills {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Notes which segments wait to be refilled, or are.
    pub(super) fn note_cut_off(&self, groups: &[GroupId]) {
        let mut state = self.lock();
        state.groups.retain(|group, _| groups.contains(group));
        for group in groups {
            state.groups.entry(*group).or_default();
        }
    }

    /// Notes that a segment is being refilled that has about so many pages.
    pub(super) fn begin(&self, group: GroupId, pages: u64) {
        let mut state = self.lock();
        state.groups.insert(group, (0, pages));
        state.rated = Some((Instant::now(), state.pages_done, 0));
    }

    pub(super) fn note_fetched(&self, bytes: u64) {
        self.lock().fetched_bytes += bytes;
    }

    pub(super) fn note_done(&self, group: GroupId, pages: u64) {
        let mut state = self.lock();
        state.pages_done += pages;
        state.groups.entry(group).or_default().0 += pages;
        let now = Instant::now();
        let (since, before, _) = state.rated.unwrap_or((now, state.pages_done, 0));
        let passed = now.duration_since(since);
        if passed >= RATE_OVER {
            let bytes = (state.pages_done - before) * PAGE_SIZE as u64;
            let rate = (bytes as f64 / passed.as_secs_f64()) as u64;
            state.rated = Some((now, state.pages_done, rate));
        }
    }

    pub(super) fn note_refilled(&self, group: GroupId) {
        let mut state = self.lock();
        state.groups.remove(&group);
        state.finished += 1;
    }

    /// How far each segment is.
    pub(crate) fn progress(&self) -> Vec<RefillProgress> {
        let page = PAGE_SIZE as u64;
        let progress = |(group, (done, all)): (&GroupId, &(u64, u64))| RefillProgress {
            group: *group,
            done_bytes: *done * page,
            // Peers count what they have in pages; what is only in their log may make it more.
            total_bytes: if *all == 0 { 0 } else { (*all).max(*done) * page },
        };
        self.lock().groups.iter().map(progress).collect()
    }

    /// The node's metrics about it; see `metrics.rs` for what each means.
    pub(crate) fn metrics(&self) -> [(&'static str, u64); 6] {
        let state = self.lock();
        let page = PAGE_SIZE as u64;
        let sum = |of: fn(&(u64, u64)) -> u64| state.groups.values().map(of).sum::<u64>() * page;
        let rate = state.rated.filter(|_| !state.groups.is_empty()).map_or(0, |(.., rate)| rate);
        [
            ("refill_groups", state.groups.len() as u64),
            ("refill_done_bytes", sum(|(done, all)| *done.min(all))),
            ("refill_total_bytes", sum(|(_, all)| *all)),
            ("refill_bytes_per_second", rate),
            ("refill_fetched_bytes", state.fetched_bytes),
            ("refills", state.finished),
        ]
    }
}

/// Spends no more than a rate allows, without saving up.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// What was spent is paid for then.
    paid_at: Instant,
}

impl Pace {
    /// No limit at all for a rate of zero.
    pub(super) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, paid_at: Instant::now() }
    }

    pub(super) fn spend(&mut self, bytes: u64) {
        if self.bytes_per_second > 0 {
            let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            self.paid_at = self.paid_at.max(Instant::now()) + cost;
        }
    }

    /// How long to wait before anything more is spent.
    pub(super) fn pause(&self) -> Duration {
        self.paid_at.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_of_the_segments_that_are_cut_off() {
        let refills = Refills::default();
        refills.note_cut_off(&[GroupId(0), GroupId(2)]);
        refills.begin(GroupId(0), 100);
        refills.note_done(GroupId(0), 40);
        refills.note_fetched(8192);
        let metrics: BTreeMap<_, _> = refills.metrics().into();
        let page = PAGE_SIZE as u64;
        assert_eq!((metrics["refill_groups"], metrics["refill_fetched_bytes"]), (2, 8192));
        assert_eq!((metrics["refill_done_bytes"], metrics["refill_total_bytes"]), (40 * page, 100 * page));
        let waits = RefillProgress { group: GroupId(2), done_bytes: 0, total_bytes: 0 };
        let begun = RefillProgress { group: GroupId(0), done_bytes: 40 * page, total_bytes: 100 * page };
        assert_eq!(refills.progress(), [begun, waits]);
        refills.note_refilled(GroupId(0));
        refills.note_cut_off(&[]);
        let metrics: BTreeMap<_, _> = refills.metrics().into();
        assert_eq!((metrics["refill_groups"], metrics["refill_total_bytes"], metrics["refills"]), (0, 0, 1));
    }

    #[test]
    fn what_was_spent_is_waited_for() {
        let mut pace = Pace::new(1 << 20);
        assert_eq!(pace.pause(), Duration::ZERO);
        pace.spend(1 << 19);
        pace.spend(1 << 19);
        assert!(pace.pause() > Duration::from_millis(900) && pace.pause() <= Duration::from_secs(1));
        let mut without = Pace::new(0);
        without.spend(u64::MAX);
        assert_eq!(without.pause(), Duration::ZERO);
    }
}
