//! The hostile client as a program: `borealis-hostile --dir DIR --seconds 60 --seed 1`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use borealis_hostile::Options;
use borealis_spec::Endpoint;
use borealis_types::{NodeId, VolumeId};
use clap::Parser;

/// Attacks the storage nodes of a local cluster, as a process of its user could. For clusters that hold nothing of value.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The cluster's directory.
    #[arg(long, default_value = "./borealis-data")]
    dir: PathBuf,
    /// How long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What the attacks follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Attacks at one time.
    #[arg(long, default_value_t = 8)]
    threads: u64,
}

fn main() -> anyhow::Result<()> {
    let line = CommandLine::parse();
    let catalog = line.dir.join("cluster.json");
    let text = std::fs::read(&catalog).with_context(|| format!("cannot read {}", catalog.display()))?;
    let catalog: serde_json::Value = serde_json::from_slice(&text)?;
    let volume = catalog["volume"].as_str().context("the catalog names no volume")?;
    let volume = VolumeId(u128::from_str_radix(volume, 16).context("the volume is no number")?);
    let sockets = line.dir.canonicalize()?.join("sockets");
    let nodes = catalog["nodes"].as_array().context("the catalog lists no nodes")?;
    let nodes = nodes.iter().filter_map(|node| {
        let node = NodeId(u16::try_from(node["id"].as_u64()?).ok()?);
        Some((node, Endpoint::Unix(sockets.join(node.to_string()))))
    });
    let options = Options {
        volume,
        nodes: nodes.collect(),
        members: Vec::new(),
        strangers: Vec::new(),
        duration: Duration::from_secs(line.seconds),
        seed: line.seed,
        threads: line.threads,
    };
    anyhow::ensure!(!options.nodes.is_empty(), "the catalog lists no nodes");
    print!("{}", borealis_hostile::run(&options));
    Ok(())
}
