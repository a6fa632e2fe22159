//! A fleet on nine hosts, each a network namespace: six nodes in three zones, two database hosts, one controller. Half a millisecond
//! in each direction between zones, mutual TLS on every connection. A zone is cut off; then the writer's host is, and the
//! other one takes the volume over.

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use harness::{not_tested, say};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Hosts by name, and where each stands.
const HOSTS: [(&str, &str); 9] = [
    ("node1", "az1"),
    ("node2", "az1"),
    ("node3", "az2"),
    ("node4", "az2"),
    ("node5", "az3"),
    ("node6", "az3"),
    ("db1", "az1"),
    ("db2", "az2"),
    ("watch", "az3"),
];
/// A frame of TCP goes over the wire as it is, so it may be as large as the switch takes it.
const MTU: &str = "60000";
/// How long an instance may go on showing what it has cached without a word from the nodes (`Tuning::lease_ms`).
const LEASE: Duration = Duration::from_secs(10);

fn postgres_program(name: &str) -> PathBuf {
    PathBuf::from("/usr/lib/postgresql/15/bin").join(name)
}

/// The hosts, the switch between them, and what runs on them.
struct Network {
    /// Tells this test's namespaces from those of others.
    prefix: String,
    folder: PathBuf,
    children: Vec<(String, Child)>,
}

impl Network {
    fn new(folder: &Path) -> Network {
        let network = Network {
            prefix: format!("bo{}", std::process::id()),
            folder: folder.to_owned(),
            children: Vec::new(),
        };
        network.add_namespace("hub");
        for (position, (host, _)) in HOSTS.iter().enumerate() {
            let (namespace, hub) = (network.add_namespace(host), network.namespace("hub"));
            let cable = ["link", "add", "cable", "netns", &namespace, "mtu", MTU, "type", "veth"];
            ip(&[&cable[..], &["peer", "name", host, "netns", &hub, "mtu", MTU]].concat());
            let address = format!("{}/24", address(position));
            ip(&["-n", &namespace, "address", "add", &address, "dev", "cable"]);
            for interface in ["lo", "cable"] {
                ip(&["-n", &namespace, "link", "set", interface, "up"]);
            }
            ip(&["-n", &hub, "link", "set", host, "up"]);
            let plain =
                network.on(host, Path::new("python3")).arg(switch()).args(["--plain", "cable"]).status();
            assert!(plain.expect("python3 runs").success());
        }
        network
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn add_namespace(&self, host: &str) -> String {
        let namespace = self.namespace(host);
        ip(&["netns", "add", &namespace]);
        namespace
    }

    /// A program on a host.
    fn on(&self, host: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    /// Runs a program on a host in the background, until the test ends; what it says is in a file.
    fn spawn(&mut self, host: &str, name: &str, program: &Path, arguments: &[&str]) {
        let log = fs::File::create(self.folder.join(format!("{name}.log"))).expect("created");
        let mut command = self.on(host, program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().expect("cloned")).stderr(log);
        // With a group of its own, so that all of it can be ended.
        let child = command.process_group(0).spawn().expect("it starts");
        self.children.push((name.to_owned(), child));
    }

    fn end(&mut self, name: &str, signal: Signal) {
        let position = self.children.iter().position(|(other, _)| other == name).expect("it runs");
        let (_, mut child) = self.children.remove(position);
        let _ = kill(Pid::from_raw(-(child.id() as i32)), signal);
        let _ = child.wait();
    }

    /// Cuts ways between hosts, and mends all others.
    fn cut(&self, ways: &[(&str, &str)]) {
        let text: String = ways.iter().map(|(from, to)| format!("{from} {to}\n")).collect();
        let rules = self.folder.join("rules");
        fs::write(rules.with_extension("new"), text).expect("written");
        fs::rename(rules.with_extension("new"), rules).expect("in place");
        // The switch looks again every 20 ms.
        std::thread::sleep(Duration::from_millis(60));
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, _) in &self.children {
                let log = self.log(name);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("{name} ends with:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
        for (_, child) in &mut self.children {
            let _ = kill(Pid::from_raw(-(child.id() as i32)), Signal::SIGKILL);
            let _ = child.wait();
        }
        for host in HOSTS.iter().map(|(host, _)| *host).chain(["hub"]) {
            let _ = Command::new("ip").args(["netns", "delete", &self.namespace(host)]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), harness::text(&output));
}

fn address(position: usize) -> String {
    format!("10.213.77.{}", position + 1)
}

fn switch() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts/switch.py")
}

fn borealis() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_borealis"))
}

/// Whether namespaces can be made here, and why not.
fn why_not() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces are root's".to_owned());
    }
    let name = format!("bo{}-probe", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let deleted = Command::new("ip").args(["netns", "delete", &name]).output();
    match (made, deleted) {
        (Ok(made), Ok(_)) if made.status.success() => None,
        (Ok(made), _) => Some(harness::text(&made)),
        (Err(error), _) => Some(format!("ip: {error}")),
    }
}

/// The inventory of the fleet, with everything below one folder: the hosts share a file system.
fn inventory(folder: &Path, memory: &Path) -> String {
    let shim = borealis().with_file_name("libborealis_shim.so");
    let mut text = format!("name = \"nine\"\ngroups = 4\ndirectory = {folder:?}\nshim_library = {shim:?}\n");
    for (position, (host, zone)) in HOSTS.iter().enumerate() {
        let address = address(position);
        if let Some(number) = host.strip_prefix("node") {
            text += &format!("[[node]]\nid = {number}\nzone = \"{zone}\"\nhost = \"{address}\"\n");
        } else if let Some(number) = host.strip_prefix("db") {
            text += &format!("[[instance]]\nid = {number}\nhost = \"{address}\"\nmemory = {memory:?}\n");
        } else {
            text += &format!("[[controller]]\nhost = \"{address}\"\n");
        }
    }
    text
}

/// Puts what each host was given in its place, as a person copies it.
fn install(planned: &Path, place: &Path) {
    for host in fs::read_dir(planned).expect("hosts were written").flatten() {
        for part in fs::read_dir(host.path()).expect("a folder for each part").flatten() {
            let status = Command::new("cp").arg("-a").arg(part.path()).arg(place).status();
            assert!(status.expect("cp runs").success());
        }
    }
}

/// A session that inserts ascending numbers over one connection.
struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(network: &Network, host: &str) -> Option<Session> {
        let mut command = network.on(host, &postgres_program("psql"));
        command.args(["-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-U", "postgres", "postgres"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut psql = command.spawn().ok()?;
        let (input, output) = (psql.stdin.take()?, BufReader::new(psql.stdout.take()?));
        Some(Session { psql, input, output })
    }

    /// The first line of the answer; `None` when the connection is over.
    fn ask(&mut self, statement: &str) -> Option<String> {
        writeln!(self.input, "{};", statement.trim_end_matches(';')).ok()?;
        self.input.flush().ok()?;
        let mut line = String::new();
        let bytes = self.output.read_line(&mut line).ok()?;
        (bytes > 0).then(|| line.trim().to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

/// Tries until SQL is answered on a host.
fn first_answer(network: &Network, host: &str, statement: &str, within: Duration) -> Duration {
    let begin = Instant::now();
    loop {
        let answer = Session::open(network, host).and_then(|mut session| session.ask(statement));
        if answer.is_some() {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < within, "{host} does not answer:\n{}", network.log(host));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pgbench(network: &Network, host: &str, arguments: &[&str]) -> String {
    let mut command = network.on(host, &postgres_program("pgbench"));
    command.args(["-h", "127.0.0.1", "-U", "postgres"]).args(arguments).arg("postgres");
    let output = command.output().expect("pgbench runs");
    let said = harness::text(&output);
    assert!(output.status.success() && !said.contains("aborted"), "{said}");
    said
}

fn figure(said: &str, name: &str) -> String {
    said.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}

#[test]
fn nine_hosts_outlive_a_zone_and_the_writers_host() {
    if let Some(why) = why_not() {
        not_tested(&why);
        return;
    }
    let folder = tempfile::Builder::new().prefix("borealis-hosts-").tempdir_in("/var/tmp").expect("made");
    let memory = tempfile::Builder::new().prefix("borealis-hosts-").tempdir_in("/dev/shm").expect("made");
    for place in [folder.path(), memory.path()] {
        // PostgreSQL's own user passes through.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(place, fs::Permissions::from_mode(0o755)).expect("its owner may");
    }
    let place = folder.path().join("hosts");
    fs::create_dir(&place).expect("made");
    let secure = folder.path().join("secure");
    fs::create_dir(&secure).expect("made");
    let file = folder.path().join("fleet.toml");
    fs::write(&file, inventory(&place, memory.path())).expect("written");
    let planned =
        Command::new(borealis()).args(["fleet", "plan"]).arg(&file).arg("--dir").arg(&secure).output();
    let planned = planned.expect("borealis runs");
    assert!(planned.status.success(), "{}", harness::text(&planned));
    install(&secure.join("fleet/hosts"), &place);

    let mut network = Network::new(folder.path());
    let rules = folder.path().join("rules");
    network.cut(&[]);
    let cables: Vec<String> = HOSTS.iter().map(|(host, zone)| format!("{host}={host}@{zone}")).collect();
    let mut switch_words = vec![switch().display().to_string(), rules.display().to_string()];
    switch_words.extend(cables);
    let words: Vec<&str> = switch_words.iter().map(String::as_str).collect();
    network.spawn("hub", "switch", Path::new("python3"), &words);

    let config = |part: &str, name: &str| place.join(part).join(name).display().to_string();
    for (host, _) in HOSTS {
        let Some(number) = host.strip_prefix("node") else { continue };
        let config = config(&format!("node-{number}"), "node.json");
        let made = network.on(host, borealis()).args(["node", "create", "--config", &config]).output();
        let made = made.expect("borealis runs");
        assert!(made.status.success(), "{}", harness::text(&made));
        network.spawn(host, host, borealis(), &["node", "run", "--config", &config]);
    }
    let watch = config("controller", "controller.json");
    network.spawn("watch", "watch", borealis(), &["controller", "--config", &watch]);
    let first = config("instance-1", "instance.json");
    network.spawn("db1", "db1", borealis(), &["instance", "run", "--config", &first]);
    let took = first_answer(&network, "db1", "SELECT 1", Duration::from_secs(120));
    say(&format!("a new volume over nine hosts answers SQL after {:.1} s", took.as_secs_f64()));

    pgbench(&network, "db1", &["-i", "-q", "-s", "2"]);
    let said = pgbench(&network, "db1", &["-n", "-c", "8", "-T", "8"]);
    say(&format!("six nodes in three zones: {}, {}", figure(&said, "latency average"), figure(&said, "tps")));

    // A zone cut off: commits go on over the other two.
    let zone: Vec<(&str, &str)> =
        ["node5", "node6"].iter().flat_map(|node| [(*node, "*"), ("*", *node)]).collect();
    network.cut(&zone);
    let said = pgbench(&network, "db1", &["-n", "-c", "8", "-T", "8"]);
    say(&format!("az3 cut off: {}, {}", figure(&said, "latency average"), figure(&said, "tps")));
    network.cut(&[]);

    // One way only: node 3 hears everything and is heard by nobody.
    network.cut(&[("node3", "*")]);
    let said = pgbench(&network, "db1", &["-n", "-c", "8", "-T", "5"]);
    say(&format!("nobody hears node 3: {}", figure(&said, "latency average")));
    network.cut(&[]);

    take_over(&mut network, &config("instance-2", "instance.json"));

    let mut session = Session::open(&network, "db2").expect("psql runs");
    let sums =
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";
    assert_eq!(session.ask(sums).as_deref(), Some("t"), "balances agree");
    drop(session);
    network.end("db2", Signal::SIGTERM);
}

/// The writer's host is cut off while it writes, and the instance is started on the other one: what was acknowledged is there,
/// and the old one acknowledges nothing more.
fn take_over(network: &mut Network, second: &str) {
    let mut setup = Session::open(network, "db1").expect("psql runs");
    setup.ask("CREATE TABLE ledger (number bigint PRIMARY KEY); SELECT 1").expect("made");
    drop(setup);
    let acknowledged = Arc::new(AtomicI64::new(0));
    let mut session = Session::open(network, "db1").expect("psql runs");
    let writer = std::thread::spawn({
        let acknowledged = Arc::clone(&acknowledged);
        move || {
            // Until the old server ends: it may neither acknowledge nor show anything for longer than its lease.
            for number in 1.. {
                let insert = format!("INSERT INTO ledger VALUES ({number}) RETURNING number;");
                match session.ask(&insert) {
                    Some(answer) if answer == number.to_string() => {
                        acknowledged.store(number, Ordering::SeqCst);
                    }
                    _ => return,
                }
            }
        }
    });
    std::thread::sleep(Duration::from_secs(2));
    network.cut(&[("db1", "*"), ("*", "db1")]);
    let cut = Instant::now();
    network.spawn("db2", "db2", borealis(), &["instance", "run", "--config", second]);
    let statement = "INSERT INTO ledger VALUES (-1) RETURNING number;";
    first_answer(network, "db2", statement, Duration::from_secs(60));
    let first_write = cut.elapsed();
    let at_cut = acknowledged.load(Ordering::SeqCst);
    let mut other = Session::open(network, "db2").expect("psql runs");
    let found = other.ask("SELECT count(*) FROM ledger WHERE number > 0;").expect("it answers");
    let found: i64 = found.parse().expect("a number");
    assert!(at_cut > 0 && (at_cut..=at_cut + 1).contains(&found), "{at_cut} acknowledged, {found} there");
    // The old writer can be reached by its own clients, and by nobody else.
    let deadline = cut + LEASE + Duration::from_secs(20);
    while !writer.is_finished() {
        assert!(Instant::now() < deadline, "the old server still serves:\n{}", network.log("db1"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let ended = cut.elapsed();
    writer.join().expect("it does not panic");
    assert_eq!(
        acknowledged.load(Ordering::SeqCst),
        at_cut,
        "the old one acknowledged what the new one does not have"
    );
    network.cut(&[]);
    let found: BTreeMap<&str, i64> = [("after", other.ask("SELECT count(*) FROM ledger WHERE number > 0;"))]
        .into_iter()
        .filter_map(|(when, answer)| Some((when, answer?.parse().ok()?)))
        .collect();
    assert!(found["after"] <= at_cut + 1, "what the old one had in flight did not come later: {found:?}");
    say(&format!(
        "db1 cut off: first write on db2 {:.2} s after, {at_cut} acknowledged commits all there; the old server ended after {:.1} s",
        first_write.as_secs_f64(),
        ended.as_secs_f64()
    ));
    network.end("db1", Signal::SIGKILL);
}
