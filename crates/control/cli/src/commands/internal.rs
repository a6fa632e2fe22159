//! The processes that the other commands start.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use borealis_driver::DriverError;

/// Makes a new storage node's empty store.
pub fn create_node(config: &Path) -> anyhow::Result<ExitCode> {
    borealis_node::create(&borealis_node::config::load(config)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a storage node until it is told to stop.
pub fn node(config: &Path, user: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut config = borealis_node::config::load(config)?;
    let _held = match user {
        Some(user) => Some(borealis_node::privileges::become_user(user, &mut config)?),
        None => None,
    };
    borealis_node::run(config)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs an instance's driver until it is told to stop.
pub fn driver(config: &Path) -> anyhow::Result<ExitCode> {
    let config = borealis_driver::config::load(config)?;
    let server_log = config.instance_dir.join("postgres.log");
    let Err(error) = borealis_driver::run(config) else { return Ok(ExitCode::SUCCESS) };
    if let Some(DriverError::Fenced(_) | DriverError::Refused(_) | DriverError::Shim(_)) =
        error.downcast_ref()
    {
        // Whoever wonders why the server stopped looks into its own log first.
        if let Ok(mut log) = std::fs::File::options().append(true).open(server_log) {
            let _ = writeln!(log, "borealis: {error}");
        }
    }
    if let Some(DriverError::Fenced(_)) = error.downcast_ref() {
        eprintln!("borealis: {error}");
        return Ok(ExitCode::from(borealis_driver::EXIT_FENCED));
    }
    Err(error)
}
