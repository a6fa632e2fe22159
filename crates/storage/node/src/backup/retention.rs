//! Deleting what nobody can need any more of the backup, on a thread of its own: redo does not wait for it.
//!
//! One node does it: the one that uploads the volume's first group. If two do for a while, nothing is lost
//! ([`borealis_backup::retention`]).

use std::time::Duration;

use borealis_archive::duty::Duty;
use borealis_backup::retention::delete_old;

use super::{Backup, Ending, lower_priority};
use crate::backup::{NICENESS, OPEN_AGAIN_AFTER};

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
            if !self.has_the_first_group() {
                continue;
            }
            match self.delete_once(count % THOROUGH_EVERY == 0) {
                Ok(()) => count += 1,
                Err(error) => {
                    let what = format!("{error:#}");
                    tracing::warn!("nothing old is deleted from the backup for now: {what}");
                    self.lock().deletions.trouble = Some(what);
                    pause = self.deletion_interval.min(10 * OPEN_AGAIN_AFTER);
                }
            }
        }
        self.end_of_thread();
    }

    fn has_the_first_group(&self) -> bool {
        let first = self.options.facts.placement.groups().next();
        let state = self.lock();
        state.status.groups.iter().any(|group| Some(group.group) == first && group.duty == Some(Duty::Upload))
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
