//! The right to read a server's log by physical replication, which the server refuses to everybody else.

use std::path::PathBuf;

use anyhow::Context;
use borealis_shm::path::REPLICATION_PASS_NAME;
use borealis_types::InstanceId;

use crate::cluster::Cluster;

/// Lets whoever asks for it receive the log of an instance while this process runs and the pass exists. Only for a program
/// that knows where this log begins and does not keep it.
#[derive(Debug)]
pub struct ReplicationPass {
    path: PathBuf,
}

impl ReplicationPass {
    /// Takes the pass for this process. There is one: whoever takes it later has it.
    ///
    /// # Errors
    /// When there is no such instance or it does not run.
    pub fn take(cluster: &Cluster, instance: InstanceId) -> anyhow::Result<ReplicationPass> {
        let path = cluster.memory_directory(cluster.instance(instance)?).join(REPLICATION_PASS_NAME);
        std::fs::write(&path, std::process::id().to_string())
            .with_context(|| format!("cannot write {}; does the instance run?", path.display()))?;
        Ok(ReplicationPass { path })
    }
}

impl Drop for ReplicationPass {
    fn drop(&mut self) {
        // The instance may have stopped meanwhile, and its folder is gone. A process that has ended has no pass anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}
