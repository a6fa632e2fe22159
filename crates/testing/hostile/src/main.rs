//! The hostile client as a program: `borealis-hostile --dir DIR --seconds 60 --seed 1`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use borealis_client::Credentials;
use borealis_fleet::{Fleet, Validity};
use borealis_hostile::Options;
use borealis_spec::{Endpoint, Role};
use borealis_types::{InstanceId, NodeId, VolumeId};
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

/// Certificates.
type Certificates = Vec<Arc<Credentials>>;

/// Those of the fleet whose authority is in `place`, one for each role, and one of another fleet of the same name that
/// trusts this one's nodes.
fn certificates(
    place: &Path,
    volume: VolumeId,
    folder: &Path,
) -> anyhow::Result<(Certificates, Certificates)> {
    let own = Fleet::open(place)?;
    let other = Fleet::init(&folder.join("other"), own.name().clone(), Validity::days(1))?;
    let trusted = std::fs::read(own.authorities_file())?;
    let issue = |fleet: &Fleet, role: Role, name: &str| -> anyhow::Result<Arc<Credentials>> {
        let hosts = ["127.0.0.1".to_owned()];
        let files = fleet.issue(role, &hosts, Validity::days(1), &folder.join(name))?.files;
        let both = [std::fs::read(&files.authorities)?, trusted.clone()].concat();
        std::fs::write(&files.authorities, both)?;
        Ok(Credentials::load(files)?)
    };
    let instance = Role::Instance(volume, InstanceId(1));
    let members = vec![
        issue(&own, instance, "instance")?,
        issue(&own, Role::Node(NodeId(3)), "node")?,
        issue(&own, Role::Client, "client")?,
    ];
    Ok((members, vec![issue(&other, instance, "stranger")?]))
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
    let nodes = nodes.iter().filter_map(|entry| {
        let node = NodeId(u16::try_from(entry["id"].as_u64()?).ok()?);
        let endpoint = match entry["port"].as_u64().and_then(|port| u16::try_from(port).ok()) {
            Some(port) => Endpoint::Tls { host: "127.0.0.1".to_owned(), port },
            None => Endpoint::Unix(sockets.join(node.to_string())),
        };
        Some((node, endpoint))
    });
    let nodes: Vec<(NodeId, Endpoint)> = nodes.collect();
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (members, strangers) = match nodes.first() {
        Some((_, Endpoint::Tls { .. })) => certificates(&line.dir.join("fleet"), volume, folder.path())?,
        _ => (Vec::new(), Vec::new()),
    };
    let options = Options {
        volume,
        nodes,
        members,
        strangers,
        duration: Duration::from_secs(line.seconds),
        seed: line.seed,
        threads: line.threads,
    };
    anyhow::ensure!(!options.nodes.is_empty(), "the catalog lists no nodes");
    print!("{}", borealis_hostile::run(&options));
    Ok(())
}
