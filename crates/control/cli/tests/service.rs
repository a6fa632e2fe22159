//! What a service manager sees, and the files that tell it about us.

mod harness;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::TestCluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Readiness is told once, when SQL is answered, and by `borealis up` alone: PostgreSQL speaks the protocol too, and
/// would call itself the service.
#[test]
fn the_service_manager_hears_of_readiness_and_of_the_stop() {
    let cluster = TestCluster::unstarted();
    let folder = cluster.postgres_folder("notify");
    let path = folder.join("socket");
    let socket = UnixDatagram::bind(&path).expect("bound");
    // The server's user could write to it, if it only knew of it.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    socket.set_read_timeout(Some(Duration::from_secs(120))).expect("timeout");
    let receive = || {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes).expect("a message arrives");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };

    let mut up = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["up", "--port", &cluster.port.to_string(), "--dir"])
        .arg(cluster.dir())
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the borealis program runs");
    let ready = receive();
    assert!(ready.starts_with("READY=1\nSTATUS=serving "), "{ready}");
    let row = cluster.connect().query_one("select 1", &[]).expect("SQL is answered at once");
    assert_eq!(row.get::<_, i32>(0), 1);

    kill(Pid::from_raw(up.id() as i32), Signal::SIGTERM).expect("told to stop");
    let stopping = receive();
    assert!(stopping.starts_with("STOPPING=1"), "{stopping}");
    assert!(up.wait().expect("it ends").success(), "a stop that was asked for is a success");
    socket.set_nonblocking(true).expect("set");
    let more = socket.recv(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(more, Err(std::io::ErrorKind::WouldBlock), "somebody else told the service manager something");
}

/// After a start that found a cluster running, which somebody else had started, nothing is killed: only after the
/// death of the service's own `borealis up`.
#[test]
fn what_was_left_is_killed_only_if_the_service_was_killed() {
    let unit = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../packaging/borealis.service");
    let text = std::fs::read_to_string(&unit).expect("the unit is there");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("ExecStopPost=")).collect();
    let [line] = lines[..] else { panic!("one command after a stop: {lines:?}") };
    let quoted = line.strip_prefix("ExecStopPost=-/bin/sh -c '").and_then(|rest| rest.strip_suffix('\''));
    let script = quoted.unwrap_or_else(|| panic!("a shell's, whose failure is no matter: {line}"));
    // What systemd makes of the text within single quotes.
    assert!(!script.contains(['\'', '\\', '%']), "systemd would change more than is done here: {script}");
    assert!(!script.replace("$$", "").contains('$'), "systemd would fill this in itself: {script}");
    let folder = tempfile::tempdir().expect("temporary folder");
    let program = folder.path().join("borealis");
    std::fs::write(&program, "#!/bin/sh\necho \"$*\"\n").expect("written");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let script = script.replace("$$", "$").replace("/usr/bin/borealis", program.to_str().expect("text"));
    for (code, expected) in [
        (Some("killed"), "instance kill --dir /var/lib/borealis/data\n"),
        (Some("dumped"), "instance kill --dir /var/lib/borealis/data\n"),
        (Some("exited"), ""),
        // There was no main process.
        (None, ""),
    ] {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).env_remove("EXIT_CODE");
        if let Some(code) = code {
            shell.env("EXIT_CODE", code);
        }
        let output = shell.output().expect("the shell runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{code:?}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{code:?}");
    }
}

/// systemd's own check of the unit, where there is one. The program and its manual are not installed where tests run,
/// so the unit is checked with this test's.
#[test]
fn systemd_finds_no_fault_in_the_unit() {
    let unit = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../packaging/borealis.service");
    let text = std::fs::read_to_string(&unit).expect("the unit is there");
    assert!(text.contains("ExecStart=/usr/bin/borealis up "), "what is replaced below:\n{text}");
    let folder = tempfile::tempdir().expect("temporary folder");
    // In a unit a space would end the path.
    let program = folder.path().join("borealis");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_borealis"), &program).expect("link");
    let copy = folder.path().join("borealis.service");
    let text = text
        .replace("/usr/bin/borealis", program.to_str().expect("text"))
        .replace("Documentation=man:borealis(1) ", "Documentation=");
    std::fs::write(&copy, text).expect("written");
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output() else {
        eprintln!("no systemd-analyze on this machine: the unit was not checked");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let own: Vec<&str> = said.lines().filter(|line| line.contains("borealis")).collect();
    assert!(output.status.success() && own.is_empty(), "{said}");
}
