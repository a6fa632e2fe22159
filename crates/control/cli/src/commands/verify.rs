//! Reads everything from every peer and compares.

use std::path::Path;
use std::process::ExitCode;

use borealis_client::verify::{Report, verify_volume};
use borealis_local::cluster::Cluster;

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
        print(&report);
    }
    Ok(if report.is_clean() && report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
        println!("node {} was not compared in group {}: {}", left_out.node, left_out.group, left_out.why);
    }
    println!(
        "{} pages, {} relation sizes and {} small values compared on every node{}: {}",
        report.pages_compared,
        report.relation_parts_compared,
        report.values_compared,
        match report.lsn_range {
            Some((first, last)) if first == last => format!(" as of {first}"),
            Some((first, last)) => format!(" as of {first} to {last}"),
            None => String::new(),
        },
        if report.is_clean() { "no difference" } else { "DIFFERENT" }
    );
}
