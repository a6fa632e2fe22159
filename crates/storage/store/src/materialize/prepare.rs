//! Applying long runs of records ahead of the next reader.

use borealis_types::{Lsn, META_GROUP, MetaKey};

use crate::Store;
use crate::read::Overtaken;
use crate::segment::hosted::HostedSegment;

/// The counters are prepared when this many records are unapplied to them. Few in tests, so that the model
/// exercises it.
const LONG_COUNTERS: usize = if cfg!(test) { 16 } else { 8192 };

impl Store {
    /// Applies long runs of records in memory, so that the next reader, above all a recovery, need not. Pages
    /// on disk are still written once per round.
    pub(super) fn prepare_for_readers(&self) {
        self.prepare_long_chains();
        self.prepare_counters();
    }

    fn prepare_long_chains(&self) {
        let mut pages = Vec::new();
        for hosted in self.lock().segments.values_mut() {
            let lsn = newest_durable(hosted);
            let group = hosted.group();
            pages.extend(hosted.index.long_chains.drain(..).map(|key| (group, key, lsn)));
        }
        pages.sort_unstable();
        pages.dedup();
        for (group, key, lsn) in pages {
            if let Err(error) = self.page_version(group, &key, lsn, Overtaken::Fail, &|state| {
                Store::readable(state, group, lsn.into())
            }) {
                tracing::debug!(%error, "a page with many records is not prepared");
            }
        }
    }

    fn prepare_counters(&self) {
        let (lsn, newest) = {
            let state = self.lock();
            let Some(hosted) = state.segments.get(&META_GROUP) else { return };
            let lsn = newest_durable(hosted);
            let (_, above) = hosted.counters_before(lsn);
            if hosted.index.all_records(above, lsn).len() < LONG_COUNTERS {
                return;
            }
            // The meta group has no record between these two LSNs, so the counters are the same at both.
            (lsn, lsn.min(hosted.indexed_through))
        };
        let counters = self.meta_version(&MetaKey::Counters, lsn, Overtaken::Fail, &|state| {
            Store::readable(state, META_GROUP, lsn.into())
        });
        match counters {
            Ok(Some(counters)) => {
                let mut state = self.lock();
                if let Some(hosted) = state.segments.get_mut(&META_GROUP)
                    && hosted.indexed_through >= newest
                {
                    hosted.check_certain("prepared counters", newest);
                    hosted.prepared_counters = Some((newest, counters));
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "the counters are not prepared"),
        }
    }
}

/// The newest LSN that can be read and that no recovery can truncate.
fn newest_durable(hosted: &HostedSegment) -> Lsn {
    hosted.segment.readable_through().min(hosted.segment.known_durable().volume.end)
}
