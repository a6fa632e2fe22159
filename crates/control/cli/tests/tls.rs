//! A cluster whose nodes speak TLS, on the loopback address: under load, with connections cut, and under attack.

#![allow(clippy::unwrap_used)] // A step that fails should stop the test.
#![allow(unsafe_code)] // A connection of another process is cut.

mod harness;

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use borealis_client::{Credentials, NodeClient, Route, Timeouts};
use borealis_fleet::{Fleet, Validity};
use borealis_hostile::{Attack, Options};
use borealis_spec::{Endpoint, Role, TlsFiles};
use borealis_types::{InstanceId, NodeId, VolumeId};
use borealis_wire::Caller;
use harness::ledger::Ledger;
use harness::{TestCluster, say, text};

fn nodes(cluster: &TestCluster) -> Vec<(NodeId, u64, Endpoint)> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("nodes").iter();
    nodes
        .map(|node| {
            let id = NodeId(node["id"].as_u64().expect("a number") as u16);
            let address = node["address"].as_str().expect("an address").parse().expect("it is one");
            (id, node["pid"].as_u64().expect("it runs"), address)
        })
        .collect()
}

fn pgbench(cluster: &TestCluster, seconds: u64) -> Child {
    let duration = seconds.to_string();
    cluster
        .client_command("pgbench", &["-n", "-M", "prepared", "-c", "4", "-T", &duration])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench starts")
}

fn assert_no_transaction_failed(cluster: &TestCluster, pgbench: Child) {
    let output = pgbench.wait_with_output().expect("pgbench ends");
    let said = text(&output);
    assert!(output.status.success(), "{said}\n{}", cluster.logs());
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    say(&said);
}

/// The connections over TCP of a process to one of these ports, by descriptor.
fn connections_of(process: u64, ports: &[u16]) -> Vec<i32> {
    let mut inodes = Vec::new();
    for line in fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = fields[2].rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok()).unwrap();
        if ports.contains(&port) {
            inodes.push(format!("socket:[{}]", fields[9]));
        }
    }
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    descriptors
        .filter(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|target| inodes.iter().any(|inode| target == Path::new(inode)))
        })
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

/// Cuts a connection of another process, in whatever it is doing.
fn cut(process: u64, descriptor: i32) {
    // SAFETY: plain system calls; each result is checked, and what is returned is a descriptor of ours.
    let (pidfd, socket) = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) as i32;
        assert!(pidfd >= 0, "{}", std::io::Error::last_os_error());
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let socket = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) as i32;
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        (pidfd, OwnedFd::from_raw_fd(socket))
    };
    nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both)
        .expect("it was connected");
    drop(pidfd);
}

#[test]
fn a_cluster_works_over_tls_while_its_connections_are_cut() {
    let cluster = TestCluster::start(&["--tls"]);
    let addresses = nodes(&cluster);
    let ports: Vec<u16> = addresses
        .iter()
        .map(|(_, _, address)| match address {
            Endpoint::Tls { host, port } if host == "127.0.0.1" => *port,
            other => panic!("a node listens on {other}"),
        })
        .collect();
    assert!(
        fs::read_dir(cluster.dir().join("sockets")).unwrap().next().is_none(),
        "a node has a socket, too"
    );
    cluster.client_program("pgbench", &["-i", "-q", "-s", "2"]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 2);
    let load = pgbench(&cluster, 9);
    let driver = cluster.status()["instances"][0]["driver_pid"].as_u64().expect("it runs");
    let mut cuts = 0;
    for round in 0..12 {
        std::thread::sleep(Duration::from_millis(500));
        // Those of the driver for redo and for reads, and those between nodes.
        let process = if round % 3 == 2 { addresses[round % 6].1 } else { driver };
        if let Some(&descriptor) = connections_of(process, &ports).get(round % 4) {
            cut(process, descriptor);
            cuts += 1;
        }
    }
    assert!(cuts >= 8, "only {cuts} connections were cut");
    assert_no_transaction_failed(&cluster, load);
    ledger.stop();
    say(&format!("{cuts} connections were cut; the longest commit took {:?}", ledger.longest_commit()));
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.ok(&["verify"]);
    // Everything again from what is on disk, with new certificates.
    let certificate = cluster.dir().join("nodes/3/tls/certificate.pem");
    let before = fs::read(&certificate).unwrap();
    cluster.ok(&["down"]);
    cluster.up(&["--tls"]);
    assert_ne!(fs::read(&certificate).unwrap(), before);
    cluster.ok(&["node", "kill", "2"]);
    cluster.ok(&["node", "start", "2"]);
    cluster.assert_balances_agree();
    cluster.ok(&["verify"]);
    // A lost catalog is made anew with the ports.
    cluster.ok(&["down"]);
    fs::remove_file(cluster.dir().join("cluster.json")).unwrap();
    cluster.up(&[]);
    let again: Vec<Endpoint> = nodes(&cluster).into_iter().map(|(_, _, address)| address).collect();
    assert_eq!(again, addresses.into_iter().map(|(_, _, address)| address).collect::<Vec<_>>());
    cluster.assert_balances_agree();
}

#[test]
fn a_hostile_member_and_strangers_hurt_nobody_over_tls() {
    const MEMORY_LIMIT_KIB: u64 = 512 << 10;
    let seconds =
        std::env::var("BOREALIS_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let cluster = TestCluster::start(&["--tls"]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "2"]);
    let volume = cluster.status()["volume"]["id"].as_str().expect("an identity").to_owned();
    let volume = VolumeId(u128::from_str_radix(&volume, 16).expect("hexadecimal"));
    let folder = tempfile::tempdir().unwrap();
    let members = Fleet::open(&cluster.dir().join("fleet")).unwrap();
    let strangers =
        Fleet::init(&folder.path().join("fleet"), members.name().clone(), Validity::days(1)).unwrap();
    let issue = |fleet: &Fleet, name: &str, role: Role| {
        let issued =
            fleet.issue(role, &["127.0.0.1".to_owned()], Validity::days(1), &folder.path().join(name));
        let files = issued.unwrap().files;
        // A stranger trusts the nodes, whether they trust it or not.
        let trusted = fs::read(members.authorities_file()).unwrap();
        fs::write(&files.authorities, [fs::read(&files.authorities).unwrap(), trusted].concat()).unwrap();
        Credentials::load(files).unwrap()
    };
    let instance = Role::Instance(volume, InstanceId(1));
    let roles = [("instance", instance), ("node", Role::Node(NodeId(3))), ("client", Role::Client)];
    let members: Vec<Arc<Credentials>> = roles.map(|(name, role)| issue(&members, name, role)).to_vec();
    let strangers = vec![issue(&strangers, "stranger", instance)];
    let before = nodes(&cluster);
    let load = pgbench(&cluster, seconds + 3);
    let report = borealis_hostile::run(&Options {
        volume,
        nodes: before.iter().map(|(node, _, endpoint)| (*node, endpoint.clone())).collect(),
        members,
        strangers,
        duration: Duration::from_secs(seconds),
        seed: 1,
        threads: 6,
    });
    say(&report.to_string());
    assert_no_transaction_failed(&cluster, load);
    let handshakes = report.outcomes[&Attack::BrokenHandshake];
    assert!(handshakes.tried > 10 && handshakes.answered + handshakes.refused == 0, "{report}");
    assert_eq!(report.outcomes.len(), 21, "an attack was never tried:\n{report}");
    assert_eq!(nodes(&cluster), before, "a node was started again:\n{}", cluster.logs());
    for (node, process, _) in before {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
        say(&format!("node {node}: at most {peak}"));
        let peak_kib: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
        assert!(peak_kib < MEMORY_LIMIT_KIB, "node {node} took {peak}");
        let log = fs::read_to_string(cluster.dir().join(format!("nodes/{node}/node.log"))).unwrap();
        assert!(!log.contains("panicked") && !log.contains("is broken"), "{log}");
    }
    assert_eq!(cluster.status()["volume"]["epoch"], 1, "somebody was promised an epoch");
    cluster.ok(&["verify"]);
}

/// `borealis fleet` with these words, in this folder.
fn fleet(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_borealis"));
    let output = command.arg("fleet").args(arguments).arg("--dir").arg(dir).output().expect("it runs");
    (output.status.success(), text(&output))
}

#[test]
fn certificates_for_hosts_are_made_renewed_and_rotated_by_commands() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let ok = |arguments: &[&str]| {
        let (is_ok, said) = fleet(dir, arguments);
        assert!(is_ok, "{arguments:?}: {said}");
        said
    };
    let fails = |arguments: &[&str], expected: &str| {
        let (is_ok, said) = fleet(dir, arguments);
        assert!(!is_ok && said.contains(expected), "{arguments:?}: {said}");
    };
    let node3 = ["certificate", "--role", "node", "--id", "3", "--host", "h3", "--host", "10.0.0.3"];
    fails(&node3, "borealis fleet init");
    ok(&["init", "--name", "north"]);
    fails(&["init", "--name", "north"], "nothing was changed");
    assert!(ok(&node3).contains("borealis://north/node/3 is valid until"));
    let files = TlsFiles::in_folder(&dir.join("fleet/node-3"));
    let credentials = Credentials::load_for(files.clone(), Role::Node(NodeId(3))).unwrap();
    assert_eq!(credentials.identity().to_string(), "borealis://north/node/3");
    let volume = "feed0000000000000000000000000001";
    let out = dir.join("db1");
    let out = out.to_str().unwrap();
    ok(&["certificate", "--role", "instance", "--id", "1", "--volume", volume, "--out", out]);
    let role = Role::Instance(VolumeId(0xFEED_0000_0000_0000_0000_0000_0000_0001), InstanceId(1));
    Credentials::load_for(TlsFiles::in_folder(Path::new(out)), role).unwrap();
    fails(
        &["certificate", "--role", "client", "--out", out],
        "has the certificate of borealis://north/volume/",
    );
    fails(&["certificate", "--role", "node", "--id", "3"], "--host");
    fails(&["certificate", "--role", "instance", "--id", "1"], "--volume");
    fails(&["certificate", "--role", "client", "--id", "1"], "nothing was made");
    let before = fs::read(&files.key).unwrap();
    ok(&node3);
    assert_ne!(fs::read(&files.key).unwrap(), before);
    ok(&["rotate"]);
    let listed = ok(&["list"]);
    assert!(listed.contains("authority 1 trusted") && listed.contains("authority 2 signs"), "{listed}");
    fails(&["retire", "2"], "signs; make another first");
    ok(&["retire", "1"]);
    assert!(ok(&["list"]).contains("authority 1 retired"));
    // Of the retired authority, until it is renewed.
    ok(&node3);
    Credentials::load(files).unwrap();
}

#[test]
fn certificates_are_revoked_and_listed_by_commands() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let ok = |arguments: &[&str]| fleet_ok(dir, arguments);
    let fails = |arguments: &[&str], expected: &str| {
        let (is_ok, said) = fleet(dir, arguments);
        assert!(!is_ok && said.contains(expected), "{arguments:?}: {said}");
    };
    let node3 = ["certificate", "--role", "node", "--id", "3", "--host", "h3", "--host", "10.0.0.3"];
    let volume = "feed0000000000000000000000000001";
    ok(&["init", "--name", "north"]);
    ok(&node3);
    ok(&["certificate", "--role", "instance", "--id", "1", "--volume", volume]);
    ok(&["rotate"]);
    ok(&["retire", "1"]);
    ok(&node3);
    let files = TlsFiles::in_folder(&dir.join("fleet/node-3"));
    fails(&["revoke"], "--role");
    fails(&["revoke", "--role", "node"], "--id");
    fails(&["revoke", "--role", "client", "--id", "1"], "nothing was changed");
    fails(&["revoke", "--role", "node", "--id", "9"], "no certificate of borealis://north/node/9 is noted");
    fails(&["revoke", "--role", "node", "--id", "3", "--host", "h3"], "cannot be used with");
    let said = ok(&["revoke", "--role", "node", "--id", "3"]);
    assert!(said.contains("borealis://north/node/3, number ") && said.contains(": is revoked"), "{said}");
    assert!(said.contains("fleet/authorities.pem"), "{said}");
    assert!(ok(&["revoke", "--host", "10.0.0.3"]).contains("was revoked already"));
    let listed = ok(&["list"]);
    let of_node = |state: &str| {
        let of_node = |line: &&str| line.contains(" borealis://north/node/3 until ") && line.contains(state);
        listed.lines().filter(of_node).count()
    };
    assert_eq!((of_node(" revoked "), of_node("of authority 1, which is retired")), (1, 1), "{listed}");
    fs::copy(dir.join("fleet/authorities.pem"), &files.authorities).unwrap();
    let own = Credentials::load(files.clone()).expect_err("it is revoked").to_string();
    assert!(own.contains("it was revoked"), "{own}");
    let serial =
        listed.lines().find(|line| line.contains("/instance/1 ")).and_then(|line| line.split(' ').nth(1));
    ok(&["revoke", "--serial", serial.expect("a number")]);
    ok(&[&node3[..], &["--valid-days", "20"]].concat());
    let renewed = ok(&["list"]);
    assert!(
        renewed.lines().any(|line| line.contains("/node/3 ") && line.ends_with("expires soon")),
        "{renewed}"
    );
    ok(&["revoke", "--certificate", files.certificate.to_str().unwrap()]);
    assert_eq!(ok(&["list"]).matches(" revoked ").count(), 3, "one of them of a retired authority");
}

#[test]
fn a_revoked_tool_is_refused_and_certificates_that_end_are_shown() {
    let cluster = TestCluster::start(&["--tls"]);
    let dir = cluster.dir();
    let ask = |credentials: &Arc<Credentials>, (node, _, endpoint): &(NodeId, u64, Endpoint)| {
        let volume = cluster.status()["volume"]["id"].as_str().expect("an identity").to_owned();
        let volume = VolumeId(u128::from_str_radix(&volume, 16).expect("hexadecimal"));
        let route = Route::new(endpoint, Some(credentials));
        NodeClient::connect(route, volume, *node, Caller::Client, Timeouts::default())
            .and_then(|mut client| client.status())
            .map_err(|error| error.to_string())
    };
    let out = dir.join("laptop");
    fleet_ok(&dir, &["certificate", "--role", "controller", "--out", out.to_str().unwrap()]);
    let laptop = Credentials::load(TlsFiles::in_folder(&out)).unwrap();
    let nodes = nodes(&cluster);
    for node in &nodes {
        ask(&laptop, node).unwrap();
    }
    // All certificates of a new cluster are good for years.
    let all = cluster.status()["certificates"].as_array().expect("a list").clone();
    let parts: Vec<&str> = all.iter().map(|one| one["part"].as_str().expect("a name")).collect();
    assert_eq!(parts.len(), 6 + 1 + 1 + 1, "{parts:?}");
    assert!(all.iter().all(|one| one["state"] == "valid" && one["renew"].is_null()), "{all:?}");
    let certificate = out.join("certificate.pem");
    fleet_ok(&dir, &["revoke", "--certificate", certificate.to_str().unwrap()]);
    for (node, ..) in &nodes {
        let given = dir.join(format!("nodes/{node}/tls/authorities.pem"));
        fs::write(given, fs::read(dir.join("fleet/authorities.pem")).unwrap()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1100));
    for node in &nodes {
        let refused = ask(&laptop, node).expect_err("it is revoked");
        assert!(refused.contains("it was revoked"), "{refused}");
    }
    // Everybody else goes on: the instance, the controller, the commands.
    cluster.client_program("pgbench", &["-i", "-q", "-s", "1"]);
    cluster.ok(&["verify"]);
    assert_certificates_that_end_are_shown_and_renewed(&cluster);
    let processes =
        |nodes: &[(NodeId, u64, Endpoint)]| -> Vec<u64> { nodes.iter().map(|node| node.1).collect() };
    assert_eq!(processes(&self::nodes(&cluster)), processes(&nodes), "one was started again");
}

/// A certificate that ends soon is taken without a restart, and shown with the command that renews it.
fn assert_certificates_that_end_are_shown_and_renewed(cluster: &TestCluster) {
    let dir = cluster.dir();
    let node3 = dir.join("nodes/3/tls");
    let hosts = ["--host", "127.0.0.1", "--host", "localhost"];
    let short = [
        "certificate",
        "--role",
        "node",
        "--id",
        "3",
        "--valid-days",
        "20",
        "--out",
        node3.to_str().unwrap(),
    ];
    fleet_ok(&dir, &[&short[..], &hosts].concat());
    let instance = dir.join("instances/1/tls");
    let volume = cluster.status()["volume"]["id"].as_str().expect("an identity").to_owned();
    let short = ["certificate", "--role", "instance", "--id", "1", "--volume", &volume, "--valid-days", "3"];
    fleet_ok(&dir, &[&short[..], &["--out", instance.to_str().unwrap()]].concat());
    std::thread::sleep(Duration::from_millis(1100));
    let status = cluster.status();
    let soon: Vec<&serde_json::Value> = status["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["state"] == "expires soon")
        .collect();
    let parts: Vec<&str> = soon.iter().map(|one| one["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["node 3", "instance 1"], "{status}");
    let said = cluster.ok(&["status"]);
    for part in ["node 3", "instance 1"] {
        assert!(said.contains(&format!("the certificate of {part} expires on ")), "{said}");
    }
    for part in soon {
        let renew: Vec<&str> = part["renew"].as_str().unwrap().split(' ').collect();
        assert_eq!(renew[..2], ["borealis", "fleet"]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_borealis"));
        let output = command.args(&renew[1..]).output().unwrap();
        assert!(output.status.success(), "{renew:?}: {}", text(&output));
    }
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!cluster.ok(&["status"]).contains("the certificate of"));
}

/// As [`fleet`], which has to succeed.
fn fleet_ok(dir: &Path, arguments: &[&str]) -> String {
    let (is_ok, said) = fleet(dir, arguments);
    assert!(is_ok, "{arguments:?}: {said}");
    said
}
