//! Replaces nodes that are lost for good.

use std::path::Path;
use std::process::ExitCode;

use borealis_local::cluster::{Cluster, Replacement};
use borealis_types::NodeId;

use crate::progress::Step;

/// Replaces nodes by ones made of the segments of those that are left; without `yes` only says what would be done, and fails.
pub fn replace_nodes(dir: &Path, ids: &[u16], yes: bool) -> anyhow::Result<ExitCode> {
    let (mut cluster, _lock) = Cluster::open_locked(dir)?;
    let ids: Vec<NodeId> = ids.iter().copied().map(NodeId).collect();
    let replacement = cluster.plan_replacement(&ids)?;
    if !yes {
        explain(&replacement);
        return Ok(ExitCode::FAILURE);
    }
    let step = Step::begin("agreeing with the nodes that are left, and copying their segments");
    let replaced = cluster.replace_nodes(&replacement)?;
    step.done();
    for warning in &replaced.warnings {
        eprintln!("borealis: warning: {warning}");
    }
    for folder in &replaced.set_aside {
        println!("what was left of a lost node is kept in {}", folder.display());
    }
    let sources: Vec<NodeId> = replaced.sources.iter().copied().collect();
    for id in &replacement.lost {
        println!("node {id} is made of segments of node {}", list(&sources));
    }
    println!(
        "the volume ends at {}; start the instance with `borealis up` or `borealis instance start`",
        replaced.end
    );
    Ok(ExitCode::SUCCESS)
}

fn list(ids: &[NodeId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn explain(replacement: &Replacement) {
    let words = |ids: &[NodeId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    eprintln!("Nothing was changed. This would happen:");
    eprintln!(
        "  * nodes {} refuse every older writer and agree on the end of the volume. All of them must run.",
        list(&replacement.left)
    );
    eprintln!("    Every acknowledged commit is on at least one of them.");
    eprintln!(
        "  * nodes {} are made anew of the segments of those. What is left of their folders is renamed and kept.",
        list(&replacement.lost)
    );
    eprintln!(
        "    The old ones are refused for ever should they come back: if they are only out of reach, bring them"
    );
    eprintln!("    back instead. To go on: `borealis node replace {} --yes`", words(&replacement.lost));
}
