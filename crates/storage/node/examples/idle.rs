//! What six idle nodes cost: processor time and memory of one process that runs all of them.

use std::time::{Duration, Instant};

use borealis_node::Node;
use borealis_spec::{Endpoint, Membership, NodeAddress, NodeConfig};
use borealis_types::{AvailabilityZone, NodeId, Placement, VolumeId};

fn processor_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // User and system time: fields 14 and 15 of the file, counted from the state, which is field 3.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(10);
    let directory = std::env::temp_dir().join(format!("borealis-idle-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let endpoint = |index: usize| Endpoint::Unix(directory.join(format!("socket-{index}")));
    let zone = |index: usize| AvailabilityZone(format!("az{}", index / 2 + 1));
    let mut nodes = Vec::new();
    for index in 0..6 {
        let mut config = NodeConfig::new(
            directory.join(index.to_string()),
            VolumeId(7),
            NodeId(index as u16),
            zone(index),
            index as u128,
            endpoint(index),
            Placement::new(4).expect("4 is a valid group count"),
        );
        config.peers = (0..6)
            .filter(|peer| *peer != index)
            .map(|peer| NodeAddress { node: NodeId(peer as u16), zone: zone(peer), address: endpoint(peer) })
            .collect();
        let everyone: Vec<NodeId> = (0..6).map(NodeId).collect();
        config.groups = Membership::everyone_has_everything(config.placement, &everyone);
        borealis_node::create(&config)?;
        nodes.push(Node::start(config)?);
    }
    std::thread::sleep(Duration::from_secs(5));
    let (start, before) = (Instant::now(), processor_seconds()?);
    std::thread::sleep(Duration::from_secs(seconds));
    let (elapsed, used) = (start.elapsed().as_secs_f64(), processor_seconds()? - before);
    let metrics = nodes[0].status().metrics;
    let metric =
        |wanted: &str| metrics.iter().find(|(name, _)| name == wanted).map_or(0, |(_, value)| *value);
    println!("six idle nodes: {:.3} % of one core", 100.0 * used / elapsed);
    println!("resident memory of all six: {:.1} MiB", metric("resident_bytes") as f64 / f64::from(1 << 20));
    println!("gossip exchanges of one node: {}", metric("gossip_exchanges"));
    drop(nodes);
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
