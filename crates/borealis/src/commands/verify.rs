//! Reads everything from every peer and compares.

use std::path::Path;
use std::process::ExitCode;

use borealis_control::cluster::Cluster;
use borealis_node::verify::verify_volume;

use crate::progress::Step;

/// Verifies the volume. Exit code 1 if anything differs, is damaged, or could not be compared.
pub fn verify(dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(dir)?;
    let step = Step::begin("reading every page from every peer");
    let report = verify_volume(&cluster.verification_target());
    step.done();
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.is_clean() && report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
