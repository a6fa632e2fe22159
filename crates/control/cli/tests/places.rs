//! The program works wherever it is put and whoever uses it; where it cannot, it says what to do.
#![allow(unsafe_code)] // Environments are made between fork and exec, in the harness.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use harness::place::Place;
use harness::{TestCluster, text};

/// The user `nobody`: no home, and owner of nothing.
const NOBODY: u32 = 65534;

/// Most of these need another user, or mounts of their own.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        harness::not_tested("only root can put itself in this place");
    }
    root
}

#[test]
fn below_a_home_that_only_its_owner_may_enter() {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let place = Place::below(&home);
    fs::set_permissions(place.folder(), fs::Permissions::from_mode(0o700)).expect("mode");
    place.main_job();
}

#[test]
fn in_opt() {
    if is_root() {
        Place::below(Path::new("/opt")).main_job();
    }
}

#[test]
fn by_a_user_without_a_home() {
    if is_root() {
        Place::below(&std::env::temp_dir()).by_user(NOBODY, NOBODY).with_environment(&[]).main_job();
    }
}

#[test]
fn another_users_cluster_is_left_alone_by_root() {
    if !is_root() {
        return;
    }
    let place = Place::below(&std::env::temp_dir()).by_user(NOBODY, NOBODY).with_environment(&[]);
    let up = place.up();
    assert!(up.status.success(), "{}", text(&up));
    let as_root = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&place.program);
        command.arg("--dir").arg(&place.dir).args(arguments).output().expect("it runs")
    };
    place.ok(&["instance", "stop"]);
    for arguments in [
        &["up", "--detach"][..],
        &["up", "--detach", "--port", "1"],
        &["down"],
        &["instance", "start"],
        &["node", "kill", "1"],
        &["node", "start"],
        &["redo-check", "--live"],
        &["exec", "--", "true"],
    ] {
        let output = as_root(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output).contains("belongs to the user `nobody`"), "{arguments:?}: {}", text(&output));
    }
    assert!(as_root(&["status"]).status.success());
    let found =
        std::process::Command::new("find").arg(&place.dir).args(["-uid", "0"]).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "root left something there");
    place.ok(&["instance", "start"]);
    assert_eq!(place.sql("SELECT 1"), "1");
    place.ok(&["down"]);
}

#[test]
fn what_dies_is_started_again_although_the_program_was_replaced() {
    let place = Place::below(&std::env::temp_dir());
    let up = place.up();
    assert!(up.status.success(), "{}", text(&up));
    let other = place.program.with_file_name("new");
    fs::copy(&place.program, &other).expect("copied");
    fs::rename(&other, &place.program).expect("replaced");
    let node = || -> serde_json::Value {
        let status: serde_json::Value = serde_json::from_str(&place.ok(&["status", "--json"])).expect("JSON");
        status["nodes"][1].clone()
    };
    let process = node()["pid"].as_i64().expect("it runs");
    let process = nix::unistd::Pid::from_raw(i32::try_from(process).expect("a process"));
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).expect("killed");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while node()["state"] != "up" || node()["pid"] == process.as_raw() {
        assert!(std::time::Instant::now() < deadline, "{}", node());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    place.ok(&["down"]);
}

#[test]
fn a_user_without_a_name_is_told_what_is_missing() {
    if !is_root() {
        return;
    }
    let place = Place::below(&std::env::temp_dir()).by_user(54_321, 54_321).with_environment(&[]);
    let output = place.up();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("54321") && said.contains("/etc/passwd"), "{said}");
    assert!(!place.dir.exists(), "a refusal leaves nothing behind");
}

#[test]
fn paths_with_spaces_and_letters_of_other_languages() {
    let mut place = Place::named(&std::env::temp_dir(), "bin mit Raum, größer", "données: \"π\" 日本");
    let memory =
        tempfile::Builder::new().prefix("borealis test: ü,'\"").tempdir_in("/dev/shm").expect("memory");
    fs::set_permissions(memory.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    place.up_arguments = vec!["--memory-dir".into(), memory.path().into()];
    place.main_job();
}

#[test]
fn paths_that_are_longer_than_a_sockets_name() {
    let long = format!("{}/{}", "x".repeat(90), "y".repeat(90));
    let mut place = Place::named(&std::env::temp_dir(), &long, &format!("{long}/cluster"));
    let memory = tempfile::Builder::new().prefix(&"z".repeat(90)).tempdir_in("/dev/shm").expect("memory");
    fs::set_permissions(memory.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    place.up_arguments = vec!["--memory-dir".into(), memory.path().into()];
    place.main_job();
}

#[test]
fn a_name_that_is_not_text_is_refused_by_name() {
    use std::os::unix::ffi::OsStringExt;
    let mut place = Place::below(&std::env::temp_dir());
    place.dir = place.folder().join(std::ffi::OsString::from_vec(b"caf\xe9".to_vec()));
    let output = place.up();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("UTF-8"), "{}", text(&output));
    assert!(!place.dir.exists(), "a refusal leaves nothing behind");
}

#[test]
fn with_a_closed_umask_and_an_empty_environment() {
    Place::below(&std::env::temp_dir()).with_umask(0o077).with_environment(&[]).main_job();
}

#[test]
fn with_a_locale_and_a_time_zone_that_nobody_knows() {
    let variables =
        [("LC_ALL", "xx_YY.UTF-8"), ("LANG", "tlh"), ("TZ", "Middle/Earth"), ("HOME", "/nonexistent")];
    Place::below(&std::env::temp_dir()).with_environment(&variables).main_job();
}

#[test]
fn in_another_time_zone() {
    let place = Place::below(&std::env::temp_dir()).with_environment(&[("TZ", "Pacific/Chatham")]);
    place.main_job();
    assert!(place.up().status.success());
    // As with any `initdb`.
    assert_eq!(place.sql("SHOW timezone"), "Pacific/Chatham");
    assert_eq!(place.sql("SELECT '2026-01-01 00:00+00'::timestamptz"), "2026-01-01 13:45:00+13:45");
    place.ok(&["down"]);
}

#[test]
fn from_a_checkout_that_is_read_only() {
    if !is_root() {
        return;
    }
    let checkout = tempfile::tempdir().expect("a folder");
    let script = format!("mount -t tmpfs -o ro,noexec none {}", checkout.path().display());
    let place = Place::below(&std::env::temp_dir()).with_mounts(&script);
    // The default directory is below the working directory.
    let line = "cd \"$1\" && exec \"$2\" up --detach --port \"$3\"";
    let mut shell = place.command(Path::new("sh"));
    shell.args(["-c", line, "sh"]).arg(checkout.path()).arg(&place.program).arg(place.port.to_string());
    let output = shell.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.contains("cannot create ./borealis-data") && said.contains("Read-only file system"),
        "{said}"
    );
    place.main_job();
}

#[test]
fn a_shim_on_a_file_system_that_forbids_programs_is_copied_from_it() {
    if !is_root() {
        return;
    }
    let place = Place::below(&std::env::temp_dir());
    let library = place.program.with_file_name("libborealis_shim.so");
    let folder = place.folder().join("lib/borealis");
    fs::create_dir_all(&folder).expect("made");
    let script = format!(
        "mount -t tmpfs -o noexec,mode=0700 none '{0}' && mv '{1}' '{0}'",
        folder.display(),
        library.display()
    );
    let place = place.with_mounts(&script);
    place.main_job();
}

#[test]
fn in_a_container_whose_memory_forbids_programs() {
    if is_root() {
        Place::below(&std::env::temp_dir())
            .with_mounts("mount -t tmpfs -o noexec,nosuid,nodev,mode=1777,size=1g none /dev/shm")
            .main_job();
    }
}

#[test]
fn in_a_container_whose_root_may_not_look_at_others_processes() {
    if is_root() {
        // What containers give root by default lacks this capability.
        let limits = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"];
        let place = Place::below(&std::env::temp_dir()).started_by(&limits);
        place.main_job();
        // The server of a driver that was killed is found and ended, too.
        assert!(place.up().status.success());
        let status = place.ok(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let [server, driver] = ["postgres_pid", "driver_pid"].map(|name| {
            nix::unistd::Pid::from_raw(status["instances"][0][name].as_i64().expect("a number") as i32)
        });
        // Stopped, the postmaster does not notice that the driver is gone.
        nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
        nix::sys::signal::kill(driver, nix::sys::signal::Signal::SIGKILL).expect("killed");
        place.ok(&["instance", "start"]);
        // Whoever inherited it may not have collected it yet.
        let state = fs::read_to_string(format!("/proc/{server}/status")).unwrap_or_default();
        assert!(state.is_empty() || state.contains("State:\tZ"), "the old server is still there:\n{state}");
        assert_eq!(place.sql("SELECT count(*) FROM kept"), "1000");
        place.ok(&["down"]);
    }
}

#[test]
fn in_a_container_with_too_little_memory_it_says_what_to_do() {
    if !is_root() {
        return;
    }
    let other = tempfile::tempdir().expect("a folder");
    let script = format!(
        "mount -t tmpfs -o noexec,mode=1777,size=64m none /dev/shm; mount -t tmpfs -o mode=1777,size=1g none {}",
        other.path().display()
    );
    let mut place = Place::below(&std::env::temp_dir()).with_mounts(&script);
    fs::set_permissions(other.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let output = place.up();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    for word in
        ["64 MiB free", "256 MiB are needed", "--shm-size", "--memory-dir", "remount,size=2G /dev/shm"]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!place.dir.exists(), "a refusal leaves nothing behind");
    place.up_arguments = vec!["--memory-dir".into(), other.path().into()];
    place.main_job();
}

#[test]
fn memory_that_the_servers_user_cannot_reach_is_named() {
    if !is_root() {
        return;
    }
    let memory = tempfile::tempdir_in("/dev/shm").expect("memory");
    fs::set_permissions(memory.path(), fs::Permissions::from_mode(0o700)).expect("mode");
    fs::create_dir(memory.path().join("below")).expect("made");
    let mut place = Place::below(&std::env::temp_dir());
    place.up_arguments = vec!["--memory-dir".into(), memory.path().join("below").into()];
    let output = place.up();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains(&format!("may not enter {}", memory.path().display())), "{said}");
    assert!(!place.dir.exists(), "a refusal leaves nothing behind");
}

#[test]
fn a_filter_of_system_calls_is_named_when_it_may_be_the_cause() {
    let place = Place::below(&std::env::temp_dir()).refusing(libc::SYS_eventfd2);
    let output = place.up();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("Operation not permitted") && said.contains("seccomp"), "{said}");
}

#[test]
fn the_library_may_be_replaced_under_a_running_server() {
    let place = Place::below(&std::env::temp_dir());
    assert!(place.up().status.success());
    let library = place.program.with_file_name("libborealis_shim.so");
    let good = fs::read(&library).expect("read");
    // In place, as some linkers write: whoever had mapped this file would be killed by the next page fault.
    fs::write(&library, "being built").expect("written");
    assert_eq!(place.sql("CREATE TABLE t AS SELECT 1 AS a; SELECT count(*) FROM t"), "SELECT 1\n1");
    place.ok(&["instance", "kill"]);
    let refused = place.run(&["instance", "start"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("not an ELF file"), "{}", text(&refused));
    fs::write(&library, good).expect("written");
    place.ok(&["instance", "start"]);
    assert_eq!(place.sql("SELECT count(*) FROM t"), "1");
    place.ok(&["down"]);
}

#[test]
fn two_clusters_share_a_machine() {
    let (one, other) = (TestCluster::start(&[]), TestCluster::start(&[]));
    one.connect().batch_execute("CREATE TABLE here (a int)").expect("made");
    assert!(other.connect().batch_execute("SELECT * FROM here").is_err());
    one.ok(&["down"]);
    assert!(other.connect().batch_execute("SELECT 1").is_ok());
}
