//! The state of everything.

use std::path::Path;
use std::process::ExitCode;

use borealis_local::cluster::Cluster;
use borealis_local::status::Status;

/// Shows the state of the cluster.
pub fn status(dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let status = Status::collect(&Cluster::open(dir)?);
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", status.text());
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists the nodes.
pub fn list_nodes(dir: &Path) -> anyhow::Result<ExitCode> {
    for node in Status::collect(&Cluster::open(dir)?).nodes {
        let process = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        println!("{}\t{}\t{}\t{}\t{process}", node.id, node.az, node.state, node.address);
    }
    Ok(ExitCode::SUCCESS)
}
