//! What is done from time to time while nobody waits for it: notes how far the log is durable, and looks for disk space.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use borealis_store::Store;

use crate::line_throttle::LineThrottle;

/// How long the newest entries of an idle node have no witness outside of the log, and how soon a disk that fills up, or
/// has room again, is noticed.
const INTERVAL: Duration = Duration::from_secs(1);

/// Does the store's regular work in a thread of its own.
#[derive(Debug)]
pub(crate) struct Housekeeping {
    store: Arc<Store>,
    stopping: Mutex<bool>,
    stop: Condvar,
    lines: LineThrottle,
}

impl Housekeeping {
    pub(crate) fn new(store: Arc<Store>) -> Housekeeping {
        Housekeeping {
            store,
            stopping: Mutex::default(),
            stop: Condvar::new(),
            lines: LineThrottle::default(),
        }
    }

    /// Makes [`Housekeeping::run_until_stopped`] return.
    pub(crate) fn stop(&self) {
        *self.stopping.lock().expect("nothing panics while it holds this lock") = true;
        self.stop.notify_all();
    }

    /// The body of the thread. The last thing it does is to note how far the log is durable.
    pub(crate) fn run_until_stopped(&self) {
        let mut stopping = false;
        while !stopping {
            self.store.check_space();
            let waited = self.stop.wait_timeout_while(
                self.stopping.lock().expect("nothing panics while it holds this lock"),
                INTERVAL,
                |stopping| !*stopping,
            );
            stopping = *waited.expect("nothing panics while it holds this lock").0;
            if let Err(error) = self.store.note_synced()
                && let Some(suppressed) = self.lines.admit()
            {
                tracing::warn!(%error, suppressed, "cannot note how far the log is durable");
            }
        }
    }
}
