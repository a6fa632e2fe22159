//! Throttles log lines that a stranger can provoke: at most one a second of each kind.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// One kind of log line.
#[derive(Debug, Default)]
pub(crate) struct LineThrottle {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl LineThrottle {
    /// Whether to write the line now; if so, how many were left out since the last one.
    pub(crate) fn admit(&self) -> Option<u64> {
        let mut state = self.state.lock().expect("nothing panics while it holds this lock");
        let now = Instant::now();
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_becomes_one_line() {
        let throttle = LineThrottle::default();
        assert_eq!(throttle.admit(), Some(0));
        assert!((0..1000).all(|_| throttle.admit().is_none()));
    }
}
