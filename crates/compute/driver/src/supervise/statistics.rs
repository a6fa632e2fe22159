//! PostgreSQL's statistics, after the end of a server that was told to stop.

use std::io::ErrorKind;
use std::path::Path;

use borealis_instance::statistics::{self, STATISTICS_BYTES_MAX, STATISTICS_FILE};
use borealis_instance::untrusted;
use borealis_redo::control_file::ControlFile;
use borealis_types::{Lsn, RecordSpan};
use borealis_wal::page::WalLayout;

use super::{Supervisor, serve};
use crate::engine::Engine;

impl Supervisor {
    /// Keeps the statistics that the server wrote when it ended, if it did. Nothing that was acknowledged depends on them, so
    /// a server without them has stopped in order all the same.
    pub(super) fn keep_statistics(&self, engine: &mut Engine, control: &ControlFile, data_directory: &Path) {
        let last = engine.shipper().durable();
        if !engine.shipper().all_durable() || last == RecordSpan::NONE {
            return;
        }
        let limit_bytes = STATISTICS_BYTES_MAX as u64;
        let statistics = match untrusted::read_bytes(data_directory, Path::new(STATISTICS_FILE), limit_bytes)
        {
            Ok(statistics) => statistics,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(
                    "the statistics are not kept, the next start counts anew ({STATISTICS_FILE}: {error}; {limit_bytes} \
                         bytes are kept at most)"
                );
                return;
            }
        };
        if let Err(error) = self.ship_statistics(engine, control, last, &statistics) {
            tracing::warn!("the statistics are not kept, the next start counts anew: {error:#}");
        }
    }

    fn ship_statistics(
        &self,
        engine: &mut Engine,
        control: &ControlFile,
        last: RecordSpan,
        statistics: &[u8],
    ) -> anyhow::Result<()> {
        let layout = WalLayout {
            version: self.config.version,
            timeline: borealis_instance::directory_plan::TIME_LINE,
            system_identifier: control.system_identifier,
            segment_bytes: control.wal_segment_bytes,
        };
        let records = statistics::records(layout, last, statistics, self.statistics_parts);
        let end = records.iter().flatten().last().map_or(Lsn::ZERO, |record| record.span.end);
        for record in records.iter().flatten() {
            engine.ship(record.span, &record.bytes)?;
        }
        serve::finish(engine)?;
        anyhow::ensure!(engine.shipper().durable().end >= end, "too few storage nodes had them in time");
        Ok(())
    }
}
