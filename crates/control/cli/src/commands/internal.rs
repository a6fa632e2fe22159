//! The processes that the other commands start.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use borealis_driver::DriverError;
use borealis_driver::recover::RecoverError;
use borealis_local::supervision::Ended;
use borealis_node::SegmentSource;
use borealis_types::GroupId;

/// Makes a new storage node's empty store.
pub fn create_node(config: &Path) -> anyhow::Result<ExitCode> {
    borealis_node::create(&borealis_node::config::load(config)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a new storage node's store of other ones' segments.
pub fn gather_node(config: &Path, from: &[(GroupId, PathBuf)]) -> anyhow::Result<ExitCode> {
    let mut sources: Vec<SegmentSource> = Vec::new();
    for (group, store) in from {
        match sources.iter_mut().find(|source| source.store == *store) {
            Some(source) => source.groups.push(*group),
            None => sources.push(SegmentSource { store: store.clone(), groups: vec![*group] }),
        }
    }
    borealis_node::gather(&borealis_node::config::load(config)?, &sources)?;
    Ok(ExitCode::SUCCESS)
}

/// `GROUP=STORE`, for the command-line parser.
pub fn parse_segment(text: &str) -> Result<(GroupId, PathBuf), String> {
    let parsed =
        text.split_once('=').and_then(|(group, store)| Some((GroupId(group.parse().ok()?), store.into())));
    parsed.ok_or_else(|| format!("`{text}` is not GROUP=STORE"))
}

/// Runs a storage node until it is told to stop.
pub fn node(config: &Path, user: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut config = borealis_node::config::load(config)?;
    // Opened while it may be: the folder is root's, and the node's user writes nothing beside its store.
    let place = Ended::reserve(&config.directory);
    let folder_of_sockets =
        user.map(|user| borealis_node::privileges::become_user(user, &mut config)).transpose();
    let result = folder_of_sockets.and_then(|_held| borealis_node::run(config));
    leave_reason(&result, false, |ended| place?.write(ended));
    result.map(|()| ExitCode::SUCCESS)
}

/// Leaves in the part's folder why it ended, for whoever wonders, and for the supervisor, who starts it again if that may
/// help.
fn leave_reason(
    result: &anyhow::Result<()>,
    is_final: bool,
    save: impl FnOnce(&Ended) -> std::io::Result<()>,
) {
    let ended = match result {
        Ok(()) => Ended { is_final: true, passes: false, reason: "it was told to stop".to_owned() },
        Err(error) => {
            let passes = matches!(error.downcast_ref(), Some(RecoverError::NoQuorum(_)));
            Ended { is_final, passes, reason: borealis_instance::confinement::in_words(error.chain()) }
        }
    };
    if let Err(error) = save(&ended) {
        eprintln!("borealis: cannot note the reason: {error}");
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
    leave_reason(&result, is_final, |ended| ended.save(&folder));
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
