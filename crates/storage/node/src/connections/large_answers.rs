//! How many large answers are made and sent at one time: each may take as much memory as a frame has room for, and waits
//! there until its caller has taken it.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use borealis_types::invariant;
use borealis_wire::Caller;

/// At one time, for each kind of caller: one kind cannot keep the others waiting.
const AT_ONCE: usize = 4;
/// Longest wait for a turn; then the caller is told to ask again.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Turns for large answers, by kind of caller.
#[derive(Debug, Default)]
pub(crate) struct LargeAnswers {
    /// Of the promised writer and its reader, of recoveries and other writers, clients, and peers.
    under_way: Mutex<[usize; 4]>,
    ended: Condvar,
}

impl LargeAnswers {
    /// Waits for a turn; `None` if none came in time. `holds_promise`: it is the writer that the node promised its epoch
    /// to, or its reader; whoever only says so does not share its turns.
    pub(crate) fn turn(&self, caller: &Caller, holds_promise: bool) -> Option<Turn<'_>> {
        self.turn_within(caller, holds_promise, WAIT_MAX)
    }

    fn turn_within(&self, caller: &Caller, holds_promise: bool, wait: Duration) -> Option<Turn<'_>> {
        let kind = match caller {
            Caller::Writer { .. } | Caller::Reader { .. } if holds_promise => 0,
            Caller::Writer { .. } | Caller::Recovery => 1,
            Caller::Client | Caller::Reader { .. } | Caller::Controller => 2,
            Caller::Peer(_) => 3,
        };
        let deadline = Instant::now() + wait;
        let mut under_way = self.under_way.lock().expect("nothing panics while it holds this lock");
        while under_way[kind] >= AT_ONCE {
            let left = deadline.checked_duration_since(Instant::now())?;
            under_way =
                self.ended.wait_timeout(under_way, left).expect("nothing panics while it holds this lock").0;
        }
        under_way[kind] += 1;
        Some(Turn { answers: self, kind })
    }
}

/// A large answer that is being made or sent.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    answers: &'a LargeAnswers,
    kind: usize,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut under_way = self.answers.under_way.lock().expect("nothing panics while it holds this lock");
        let there = under_way[self.kind];
        // A second panic would end the process without a word about the first.
        if !std::thread::panicking() {
            invariant!("large-answers-are-counted", there > 0, "none of kind {} is under way", self.kind);
        }
        under_way[self.kind] = there.saturating_sub(1);
        self.answers.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{NodeId, VolumeEpoch, WriterId};

    #[test]
    fn one_kind_of_caller_does_not_keep_another_waiting() {
        let answers = LargeAnswers::default();
        let now = |caller: &Caller| answers.turn_within(caller, false, Duration::ZERO);
        let mut turns: Vec<_> = (0..AT_ONCE).map(|_| now(&Caller::Client).unwrap()).collect();
        assert!(now(&Caller::Client).is_none());
        assert!(now(&Caller::Peer(NodeId(2))).is_some());
        assert!(now(&Caller::Recovery).is_some());
        turns.pop();
        assert!(now(&Caller::Client).is_some());
    }

    #[test]
    fn whoever_says_that_it_is_the_writer_does_not_have_the_writers_turns() {
        let answers = LargeAnswers::default();
        let (epoch, writer) = (VolumeEpoch(3), WriterId(7));
        let (append, read) = (Caller::Writer { epoch, writer }, Caller::Reader { epoch, writer });
        let now = |caller: &Caller, holds_promise| answers.turn_within(caller, holds_promise, Duration::ZERO);
        let _claimed: Vec<_> = (0..AT_ONCE).map(|_| now(&append, false).unwrap()).collect();
        let _others: Vec<_> = (0..AT_ONCE).map(|_| now(&read, false).unwrap()).collect();
        assert!(now(&append, false).is_none() && now(&Caller::Recovery, false).is_none());
        assert!(now(&read, false).is_none() && now(&Caller::Client, false).is_none());
        assert!(now(&append, true).is_some() && now(&read, true).is_some());
    }

    #[test]
    #[should_panic(expected = "invariant large-answers-are-counted is broken")]
    fn an_answer_that_ended_twice_is_noticed() {
        let answers = LargeAnswers::default();
        let turn = answers.turn(&Caller::Client, false).unwrap();
        *answers.under_way.lock().unwrap() = [0; 4];
        drop(turn);
    }
}
