//! A node's metrics, as Prometheus gets them.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use borealis_metrics::list::{Kind, Metric, NODE, NODE_PREFIX};
use borealis_node::Node;
use common::Cluster;

#[test]
fn a_node_shows_every_listed_metric_and_no_other() {
    let mut cluster = Cluster::create(2);
    let socket = cluster.directory.path().join("metrics");
    cluster.configs[3].metrics_listen = Some(socket.to_str().expect("text").parse().expect("a path"));
    cluster.start_node(3);

    let mut stream = UnixStream::connect(&socket).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let named: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let listed: BTreeSet<String> = NODE.iter().map(Metric::full_name).collect();
    assert_eq!(named, listed.iter().map(String::as_str).collect());
    for line in ["borealis_node_failed 0", "borealis_node_segment_complete_lsn{group=\"1\"} 0"] {
        assert!(text.lines().any(|said| said == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("node=\"4\",zone=\"az2\"") && text.contains("le=\"+Inf\""), "{text}");

    // The status has nothing that Prometheus does not get, quantiles apart.
    let status = cluster.nodes[3].as_ref().expect("it runs").status();
    // Prometheus counts time in seconds, the status in milliseconds.
    for (name, _) in status.metrics.iter().filter(|(name, _)| !name.ends_with("_us")) {
        let told = name.strip_suffix("_ms").map_or(name.to_string(), |time| format!("{time}_seconds"));
        let is_listed = |metric: &Metric| metric.name.strip_prefix(NODE_PREFIX) == Some(told.as_str());
        assert!(NODE.iter().any(is_listed), "{name} is not listed in borealis_metrics::list");
    }
    assert!(NODE.iter().any(|metric| metric.kind == Kind::Histogram));
}

#[test]
fn a_node_that_cannot_show_its_metrics_serves_all_the_same() {
    let mut cluster = Cluster::create(2);
    cluster.configs[0].metrics_listen = Some("/nowhere/metrics".parse().expect("a path"));
    let node = Node::start(cluster.configs[0].clone()).expect("it starts");
    assert_eq!(node.status().failure, None);
}
