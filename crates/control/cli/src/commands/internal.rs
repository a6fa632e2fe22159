//! The processes that the other commands start.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use borealis_driver::DriverError;
use borealis_local::supervision::Ended;

/// Makes a new storage node's empty store.
pub fn create_node(config: &Path) -> anyhow::Result<ExitCode> {
    borealis_node::create(&borealis_node::config::load(config)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a storage node until it is told to stop.
pub fn node(config: &Path) -> anyhow::Result<ExitCode> {
    let config = borealis_node::config::load(config)?;
    let folder = config.directory.clone();
    let result = borealis_node::run(config);
    leave_reason(&folder, &result, false);
    result.map(|()| ExitCode::SUCCESS)
}

/// Leaves in the part's folder why it ended, for whoever wonders, and for the supervisor, who starts it again if that may
/// help.
fn leave_reason(folder: &Path, result: &anyhow::Result<()>, is_final: bool) {
    let ended = match result {
        Ok(()) => Ended { is_final: true, reason: "it was told to stop".to_owned() },
        Err(error) => Ended { is_final, reason: crate::in_words(error) },
    };
    if let Err(error) = ended.save(folder) {
        eprintln!("borealis: cannot note the reason in {}: {error}", folder.display());
    }
}

/// Runs an instance's driver until it is told to stop.
pub fn driver(config: &Path) -> anyhow::Result<ExitCode> {
    let config = borealis_driver::config::load(config)?;
    let folder = config.instance_dir.clone();
    let server_log = config.instance_dir.join("postgres.log");
    let result = borealis_driver::run(config);
    // A newer writer would be fenced by the next start; what was refused would be again.
    let is_final = result.as_ref().is_err_and(|error| {
        matches!(
            error.downcast_ref(),
            Some(DriverError::Fenced(_) | DriverError::Refused(_) | DriverError::Shim(_))
        )
    });
    leave_reason(&folder, &result, is_final);
    let Err(error) = result else { return Ok(ExitCode::SUCCESS) };
    if is_final {
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
