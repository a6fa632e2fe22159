//! Reads everything from every peer and compares.

use std::path::Path;
use std::process::ExitCode;

use borealis_client::verify::{Report, Verdict, verify_volume};
use borealis_local::cluster::Cluster;

use crate::progress::Step;

/// The exit code when nothing that was compared differs, but not everything could be compared on every node.
const EXIT_INCOMPLETE: u8 = 3;

/// Verifies the volume. Exit code 1 if anything differs or is damaged, else [`EXIT_INCOMPLETE`] if a node could not be
/// asked or did not answer everything.
pub fn verify(dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(dir)?;
    let step = Step::begin("reading every page from every peer");
    let report = verify_volume(&cluster.verification_target());
    step.done();
    if json {
        let mut object = serde_json::to_value(&report)?;
        object["verdict"] = serde_json::to_value(report.verdict())?;
        println!("{}", serde_json::to_string_pretty(&object)?);
    } else {
        print(&report);
    }
    Ok(match report.verdict() {
        Verdict::Equal => ExitCode::SUCCESS,
        Verdict::Different => ExitCode::FAILURE,
        Verdict::Incomplete => ExitCode::from(EXIT_INCOMPLETE),
    })
}

/// One line for each finding, then what was looked at.
fn print(report: &Report) {
    for finding in &report.findings {
        println!("{finding}");
    }
    if report.findings_not_listed > 0 {
        println!("and {} more", report.findings_not_listed);
    }
    for unreachable in &report.unreachable {
        println!("node {} could not be asked: {}", unreachable.node, unreachable.why);
    }
    for left_out in &report.not_compared {
        println!(
            "node {}, group {}: {} not compared: {}",
            left_out.node, left_out.group, left_out.subject, left_out.why
        );
    }
    if report.not_compared_not_listed > 0 {
        println!("and {} more not compared", report.not_compared_not_listed);
    }
    println!("{}", report.summary());
}
