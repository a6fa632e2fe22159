//! The materializer: applies redo to pages while nobody waits for it.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use borealis_store::{Policy, Progress, Store};

use crate::metrics::{Metrics, add};
use crate::refusals::Refusals;

/// How often the store is asked whether something is due although nothing was appended: read points move
/// without appends.
const INTERVAL: Duration = Duration::from_secs(1);
/// The store is asked sooner when this much was appended. It decides itself; asking is cheap.
const ASK_AFTER_BYTES: usize = 4 << 20;
/// After a failure; the store's state says what failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// Applies redo to pages in a thread of its own.
#[derive(Debug)]
pub(crate) struct Materializer {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    appended_bytes: usize,
    stopping: bool,
}

impl Materializer {
    pub(crate) fn new(store: Arc<Store>, metrics: Arc<Metrics>, refusals: Arc<Refusals>) -> Materializer {
        Materializer { store, metrics, refusals, state: Mutex::default(), wake: Condvar::new() }
    }

    /// Notes that the store took redo; wakes the materializer when enough has come together.
    pub(crate) fn note_appended(&self, bytes: usize) {
        let mut state = self.state.lock().expect("nothing panics while it holds this lock");
        let before = state.appended_bytes;
        state.appended_bytes = before.saturating_add(bytes);
        if before < ASK_AFTER_BYTES && state.appended_bytes >= ASK_AFTER_BYTES {
            self.wake.notify_all();
        }
    }

    /// Makes [`Materializer::run_until_stopped`] return after what it is doing;
    /// [`borealis_store::Store::end_materialization`] makes that short.
    pub(crate) fn stop(&self) {
        self.state.lock().expect("nothing panics while it holds this lock").stopping = true;
        self.wake.notify_all();
    }

    /// Waits until work may be due, or at least for the whole `pause`; false when stopping.
    fn wait(&self, pause: Duration) -> bool {
        let state = self.state.lock().expect("nothing panics while it holds this lock");
        let (state, _) = self
            .wake
            .wait_timeout_while(state, pause, |state| !state.stopping)
            .expect("nothing panics while it holds this lock");
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, INTERVAL, |state| {
                state.appended_bytes < ASK_AFTER_BYTES && !state.stopping
            })
            .expect("nothing panics while it holds this lock");
        state.appended_bytes = 0;
        !state.stopping
    }
    /// The body of the materializer's thread.
    pub(crate) fn run_until_stopped(&self) {
        lower_priority(NICENESS);
        let mut pause = Duration::ZERO;
        while self.wait(pause) {
            pause = Duration::ZERO;
            let begun = Instant::now();
            match self.store.materialize(Policy::IfDue) {
                Ok(Progress { advanced: true, pages_written, .. }) => {
                    add(&self.metrics.materializations, 1);
                    let seconds = begun.elapsed().as_secs();
                    tracing::info!(pages_written, seconds, "materialized pages");
                }
                Ok(_) => {}
                Err(error) => {
                    self.refusals.of(&error);
                    pause = FAILURE_PAUSE;
                }
            }
        }
    }
}

/// How much less of a busy processor the materializer gets than those who answer: as a process that was started
/// with `nice`. It can wait; what bounds how far it may lag is the store's (`Options::memory_limit_bytes`).
const NICENESS: libc::c_int = 10;

/// Lowers the priority of the calling thread, and only of it.
pub(crate) fn lower_priority(niceness: libc::c_int) {
    // SAFETY: the call takes no pointers and only changes this thread's share of the processor: on Linux, zero
    // names the calling thread.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "a thread keeps its priority");
    }
}
