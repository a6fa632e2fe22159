//! The node as a process: signals.

use anyhow::Context;
use borealis_spec::NodeConfig;
use nix::sys::signal::{SigSet, Signal};

use crate::node::Node;

/// Runs a node until it is told to stop (SIGTERM, or SIGINT unless it was started in the background).
///
/// Being killed at any time is just as safe.
///
/// # Errors
/// When the node cannot start (see [`Node::start`]).
pub fn run(config: NodeConfig) -> anyhow::Result<()> {
    let mut stopping = SigSet::empty();
    stopping.add(Signal::SIGTERM);
    stopping.add(Signal::SIGINT);
    // Blocked before any thread starts, so that all inherit it and the signals wait for us below.
    stopping.thread_block().context("cannot block signals")?;
    let detached = config.detached;
    let node = Node::start(config)?;
    loop {
        match stopping.wait().context("cannot wait for signals")? {
            Signal::SIGINT if detached => {}
            signal => {
                tracing::info!(%signal, "storage node stops");
                node.stop();
                return Ok(());
            }
        }
    }
}
