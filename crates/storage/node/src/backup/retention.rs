//! Deleting what nobody can need any more of the backup, on a thread of its own: redo does not wait for it.
//!
//! One node does it: the lowest of those that have everything of the volume's first group. If two do for a while, nothing is lost
//! ([`borealis_backup::retention`]).

use std::time::Duration;

use borealis_backup::retention::delete_old;
use borealis_backup::upload::RedoSource as _;

use super::{Backup, Ending, lower_priority};
use crate::backup::NICENESS;

/// Every so many times what no snapshot names is looked for in all groups.
const THOROUGH_EVERY: u64 = 24;

/// What deletion did since the node started.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    objects: u64,
    /// What is in its way, for a person; `None` if nothing is.
    trouble: Option<String>,
}

impl Deletions {
    pub(super) fn objects(&self) -> u64 {
        self.objects
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

impl Backup {
    /// The body of the thread that deletes.
    pub(crate) fn delete_until_stopped(&self) {
        lower_priority(NICENESS);
        let mut count = 0;
        // A node that is started again often has its turn all the same.
        let mut pause = self.deletion_interval / 6;
        while self.wait(pause) {
            pause = self.deletion_interval;
            if !self.is_responsible() {
                self.lock().deletions.trouble = None;
                continue;
            }
            if let Err(error) = self.delete_once(count % THOROUGH_EVERY == 0) {
                let what = format!("{error:#}");
                tracing::warn!("nothing old is deleted from the backup for now: {what}");
                self.lock().deletions.trouble = Some(what);
            }
            count += 1;
        }
        self.end_of_thread();
    }

    /// Of those that have everything of the first group, the node with the lowest number. Two may take it to be them for a while.
    fn is_responsible(&self) -> bool {
        let first = self.options.facts.placement.groups().next();
        let candidates = first.map(|first| self.redo.candidates(first)).unwrap_or_default();
        let complete = candidates.iter().filter(|candidate| candidate.complete);
        complete.map(|candidate| candidate.node).min() == Some(self.options.node)
    }

    fn delete_once(&self, thorough: bool) -> anyhow::Result<()> {
        let (store, sealing) = self.open()?;
        let store = Ending { store, stopping: self.stopping.clone() };
        let deleted = delete_old(&store, self.options.volume, &sealing, self.now().wall_ms, thorough)?;
        if deleted.objects > 0 {
            tracing::info!(
                objects = deleted.objects,
                bytes = deleted.bytes,
                "deleted from the backup what nobody can need"
            );
        }
        let kept: Vec<String> =
            deleted.kept_whole.iter().map(|(group, why)| format!("group {group}: {why}")).collect();
        for why in &kept {
            tracing::warn!("nothing old is deleted from the backup of {why}");
        }
        let mut state = self.lock();
        state.deletions.objects += deleted.objects;
        state.deletions.trouble = (!kept.is_empty()).then(|| kept.join("; "));
        Ok(())
    }
}

/// How often it is looked for what can go.
pub(super) fn interval(seconds: u64) -> Duration {
    Duration::from_secs(seconds.max(1))
}
