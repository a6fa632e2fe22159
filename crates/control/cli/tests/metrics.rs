//! What Prometheus gets of a cluster, and `status --watch`.

mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use harness::{TestCluster, free_port, not_tested};

/// A port with six more free ones behind it, and one before it.
fn free_ports() -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let fits = |first: &u16| *first < u16::MAX - 6 && (0..=7).all(|after| is_free(first - 1 + after));
    std::iter::repeat_with(free_port).take(100).find(fits).expect("eight free ports in a row")
}

fn metrics(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    Some(text.to_owned())
}

/// The values without labels, and those with, as they are written.
fn values(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let value = |line: &str| line.rsplit_once(' ').expect("a name and a value").1.parse().expect("a number");
    lines.map(|line| (line.rsplit_once(' ').expect("a name and a value").0, value(line))).collect()
}

/// Debian's `promtool` reads it as Prometheus does, and knows good names.
fn check_with_promtool(text: &str) {
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        return not_tested("promtool is not installed (Debian's package prometheus)");
    };
    tool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = tool.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_part_shows_its_metrics_and_they_move() {
    let port = free_ports();
    let cluster = TestCluster::start(&["--metrics-port", &port.to_string()]);
    let before = metrics(port).expect("the driver shows its metrics");
    assert_eq!(values(&before)["borealis_instance_state{state=\"running\"}"], 1.0);
    cluster
        .connect()
        .batch_execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
        .expect("created");
    let after = metrics(port).expect("as before");
    let grew = |name: &str| values(&after)[name] > values(&before)[name];
    for name in [
        "borealis_instance_durable_lsn",
        "borealis_instance_records_total",
        "borealis_instance_acknowledgements_total",
    ] {
        assert!(grew(name), "{name}:\n{before}\n{after}");
    }
    check_with_promtool(&after);
    for node in 1..=6 {
        let text = metrics(port + node).expect("each node shows its metrics");
        let values = values(&text);
        assert_eq!(values["borealis_node_failed"], 0.0);
        assert!(values["borealis_node_acknowledgement_seconds_count"] > 0.0, "{text}");
        assert!(text.contains(&format!("node=\"{node}\",zone=\"az{}\"", node.div_ceil(2))), "{text}");
        check_with_promtool(&text);
    }

    cluster.eventually("the controller has looked at all nodes", Duration::from_secs(20), || {
        let Some(text) = metrics(port - 1) else { return false };
        check_with_promtool(&text);
        let values = values(&text);
        values["borealis_controller_acts"] == 1.0
            && values.get("borealis_controller_nodes") == Some(&6.0)
            && values.get("borealis_controller_nodes_silent") == Some(&0.0)
            && values.get("borealis_controller_groups_unseen") == Some(&0.0)
    });

    // The port is kept for later starts, until it is given up.
    cluster.ok(&["down"]);
    assert!(metrics(port).is_none());
    cluster.up(&[]);
    assert!(metrics(port).is_some() && metrics(port + 6).is_some());
    cluster.ok(&["down"]);
    cluster.up(&["--metrics-port", "0"]);
    assert!(metrics(port).is_none() && metrics(port + 1).is_none());

    let mut watch = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["status", "--json", "--watch", "1", "--dir"])
        .arg(cluster.dir())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    for _ in 0..2 {
        let line = lines.next().expect("a line").expect("read");
        let status: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(status["volume"]["state"], "up");
    }
    // Nobody reads any more: it ends by itself.
    drop(lines);
    cluster.eventually("it ends", Duration::from_secs(20), || watch.try_wait().expect("asked").is_some());
    assert_eq!(
        watch.wait().expect("it has ended").signal(),
        Some(Signal::SIGPIPE as i32),
        "quietly, as any filter"
    );
}
