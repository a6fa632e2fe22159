//! How much is asked at once, and how long the nodes are left alone afterwards.
//!
//! A verification has all the time in the world, and commits have none: a node that makes checksums is slower at
//! everything else, and all of them are asked for the same stretch at the same time, so that the quorum hides none of it.
//! A step is therefore kept short, and followed by a rest as long as itself: at least half of the time is the writer's.

use std::time::Duration;

/// Keys asked for in one step, at most.
const ENTRIES_MAX: u32 = 1024;
/// Shorter steps are asked for only when the volume outruns the reader: the cost of a step has a part that does not
/// depend on its length.
const ENTRIES_SLOW: u32 = 64;
/// The least, when a busy volume keeps outrunning the step.
const ENTRIES_MIN: u32 = 16;
/// How long a step should take.
const STEP_TARGET: Duration = Duration::from_millis(40);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(1);
/// How often in a row one step may go unanswered for as long as is waited at all.
const TIMEOUTS_MAX: u32 = 3;

/// The length of the next step.
#[derive(Debug)]
pub(super) struct Pace {
    entries: u32,
    timeouts: u32,
}

impl Pace {
    /// Begins with a step of middling length.
    pub(super) fn new() -> Pace {
        Pace { entries: ENTRIES_MAX / 4, timeouts: 0 }
    }

    /// How many keys to ask for.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// A step took this long; how long to rest before the next.
    pub(super) fn completed(&mut self, took: Duration) -> Duration {
        self.timeouts = 0;
        if took > STEP_TARGET * 2 {
            self.entries = self.entries.min((self.entries / 2).max(ENTRIES_SLOW));
        } else if took < STEP_TARGET / 2 {
            self.entries = (self.entries * 2).min(ENTRIES_MAX);
        }
        took.min(REST_MAX)
    }

    /// The volume has moved on before everybody answered; how long to rest before the next attempt.
    pub(super) fn outrun(&mut self) -> Duration {
        self.entries = (self.entries / 2).max(ENTRIES_MIN);
        Duration::from_millis(20)
    }

    /// A node did not answer in time; whether to ask again, for less. After some attempts it counts as unreachable.
    pub(super) fn timed_out(&mut self) -> bool {
        self.entries = (self.entries / 4).max(ENTRIES_MIN);
        self.timeouts += 1;
        self.timeouts < TIMEOUTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shrink_until_they_are_short_and_grow_while_they_are() {
        let mut pace = Pace::new();
        // A key takes a millisecond.
        for _ in 0..10 {
            pace.completed(Duration::from_millis(u64::from(pace.entries())));
        }
        assert_eq!(pace.entries(), ENTRIES_SLOW);
        for _ in 0..10 {
            pace.completed(Duration::from_millis(1));
        }
        assert_eq!(pace.entries(), ENTRIES_MAX);
    }

    #[test]
    fn a_node_rests_as_long_as_it_worked() {
        let mut pace = Pace::new();
        assert_eq!(pace.completed(Duration::from_millis(30)), Duration::from_millis(30));
        assert_eq!(pace.completed(Duration::from_secs(9)), REST_MAX);
    }

    #[test]
    fn a_slow_answer_is_waited_for_again_with_a_shorter_question_a_few_times() {
        let mut pace = Pace::new();
        let first = pace.entries();
        assert!(pace.timed_out() && pace.entries() < first);
        assert!(pace.timed_out());
        assert!(!pace.timed_out());
        pace.completed(Duration::ZERO);
        assert!(pace.timed_out(), "a step that was completed begins the count anew");
        for _ in 0..10 {
            pace.outrun();
        }
        assert_eq!(pace.entries(), ENTRIES_MIN);
    }
}
