//! What a store runs on: disk, clock and redo engine.

use std::fmt::Debug;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::disk::{Disk, FileSystem};
use crate::redo_engine::{PostgresRedo, RedoEngine};

/// What a store asks of time: only that a round of materialization can pause.
pub trait Clock: Debug + Send + Sync {
    /// Returns when this much time has passed.
    fn sleep(&self, duration: Duration);
}

/// The time of the machine that the store runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn sleep(&self, duration: Duration) {
        thread::sleep(duration);
    }
}

/// What a store runs on. The default is what a node uses; tests and simulations bring their own.
#[derive(Clone)]
pub struct Environment {
    /// Every file of the store is on it.
    pub disk: Arc<dyn Disk>,
    /// For the pauses of rounds.
    pub clock: Arc<dyn Clock>,
    /// Says what records change, and applies them.
    pub redo: Arc<dyn RedoEngine>,
}

impl Default for Environment {
    fn default() -> Environment {
        Environment { disk: Arc::new(FileSystem), clock: Arc::new(SystemClock), redo: Arc::new(PostgresRedo) }
    }
}
