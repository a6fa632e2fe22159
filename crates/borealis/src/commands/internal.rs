//! The processes that the other commands start.

use std::path::Path;
use std::process::ExitCode;

/// Runs a storage node until it is told to stop.
pub fn node(config: &Path) -> anyhow::Result<ExitCode> {
    borealis_node::run(borealis_node::config::NodeConfig::load(config)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs an instance's driver until it is told to stop.
pub fn driver(config: &Path) -> anyhow::Result<ExitCode> {
    borealis_driver::run(borealis_driver::config::DriverConfig::load(config)?)?;
    Ok(ExitCode::SUCCESS)
}
