//! Whatever takes the shim away from `postgres`: no server runs, and the cause is named.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use borealis_shm::{BUILD_FINGERPRINT, fingerprint_in};
use harness::place::Place;
use harness::{TestCluster, text};

const REAL: &str = "/usr/lib/postgresql/15/bin";

/// A folder of PostgreSQL's programs in which `postgres` is a script. It answers questions for its version as the real
/// one would, and otherwise runs `lines`.
fn wrapped(cluster: &TestCluster, name: &str, lines: &str) -> PathBuf {
    let folder = cluster.dir().with_file_name(name);
    fs::create_dir(&folder).expect("made");
    std::os::unix::fs::symlink(Path::new(REAL).join("initdb"), folder.join("initdb")).expect("linked");
    let script =
        format!("#!/bin/sh\ncase \"$1\" in --version|-V) exec {REAL}/postgres \"$@\";; esac\n{lines}\n");
    write_program(&folder.join("postgres"), script.as_bytes(), 0o755);
    folder
}

fn write_program(path: &Path, bytes: &[u8], mode: u32) {
    fs::write(path, bytes).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

/// The library as it was built.
fn library() -> Vec<u8> {
    let path = Path::new(env!("CARGO_BIN_EXE_borealis")).with_file_name("libborealis_shim.so");
    fs::read(path).expect("the shim was built")
}

/// The library with another fingerprint, as one from an older checkout has.
fn library_of_another_build() -> Vec<u8> {
    let mut bytes = library();
    let own = BUILD_FINGERPRINT.to_le_bytes();
    let places: Vec<usize> =
        (0..bytes.len() - own.len()).filter(|&at| bytes[at..].starts_with(&own)).collect();
    for at in places {
        bytes[at] ^= 0xFF;
    }
    assert!(fingerprint_in(&bytes).is_some_and(|found| found != BUILD_FINGERPRINT));
    bytes
}

/// Starts the stopped cluster with these programs and expects that nothing answers SQL meanwhile or afterwards; what
/// was said.
fn refused(cluster: &TestCluster, programs: &Path) -> String {
    let port = cluster.port.to_string();
    let over = AtomicBool::new(false);
    let (output, answers) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut answers = 0;
            while !over.load(Ordering::Relaxed) {
                answers += u32::from(
                    cluster.try_connect().is_ok_and(|mut client| client.query("SELECT 1", &[]).is_ok()),
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            answers
        });
        let arguments = ["up", "--detach", "--port", &port, "--pg-bin", programs.to_str().expect("text")];
        let output = cluster.run(&arguments);
        over.store(true, Ordering::Relaxed);
        (output, watcher.join().expect("watched"))
    });
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Borealis shim"), "{said}");
    // A shimmed server that the driver did not start gets no pages: it cannot answer either.
    assert_eq!(answers, 0, "a server answered: {said}");
    assert!(cluster.try_connect().is_err(), "a server runs");
    let status = cluster.status();
    let parts = ["nodes", "instances"].map(|parts| status[parts].as_array().expect("parts").clone());
    let runs = |part: &serde_json::Value| part["state"] == "up";
    assert!(!parts.concat().iter().any(runs), "something was left running:\n{status:#}");
    said
}

#[test]
fn a_server_that_lost_its_shim_does_not_run_and_the_cause_is_named() {
    let cluster = TestCluster::start(&[]);
    cluster
        .connect()
        .batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS id")
        .expect("made");
    cluster.ok(&["down"]);
    let near = |name: &str| cluster.dir().with_file_name(name);

    let preload = |path: &Path| {
        format!("LD_PRELOAD='{}'; export LD_PRELOAD; exec {REAL}/postgres \"$@\"", path.display())
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("cleared", format!("unset LD_PRELOAD; exec {REAL}/postgres \"$@\""), "is a script"),
        ("environment", format!("exec env -i {REAL}/postgres \"$@\""), "is a script"),
        ("variable", format!("unset BOREALIS_SHM; exec {REAL}/postgres \"$@\""), "is a script"),
        ("child", format!("{REAL}/postgres \"$@\"; exit $?"), "must become postgres by `exec`"),
        ("missing", preload(&near("nothing.so")), "could not load it"),
        ("unreadable", preload(&near("unreadable.so")), "may not read it"),
        ("class", preload(&near("class.so")), "not a library for this processor"),
        ("machine", preload(&near("machine.so")), "could not load it"),
        ("older", preload(&near("older.so")), "shim of another build"),
    ];
    write_program(&near("unreadable.so"), &library(), 0o000);
    let mut bytes = library();
    bytes[4] = 1;
    write_program(&near("class.so"), &bytes, 0o755);
    let mut bytes = library();
    bytes[18] = 40;
    write_program(&near("machine.so"), &bytes, 0o755);
    write_program(&near("older.so"), &library_of_another_build(), 0o755);
    for (name, lines, cause) in cases {
        let said = refused(&cluster, &wrapped(&cluster, name, &lines));
        assert!(said.contains(cause), "{name}: {said}");
        // One attempt is enough: nothing of it passes by itself.
        let log = fs::read_to_string(cluster.dir().join("instances/1/driver.log")).expect("a log");
        assert!(!log.contains("has to be started again"), "{name}: {log}");
    }
    if nix::unistd::geteuid().is_root() {
        let said = refused(&cluster, &set_user_id(&cluster));
        assert!(said.contains("is set-user-id"), "{said}");
    }

    // What a shimless server of another directory answers on the port is not taken for the cluster's.
    let other = other_server(&cluster);
    let lines = format!(
        "for word; do case $word in port=*) port=${{word#port=}};; esac; done\n\
         unset LD_PRELOAD; exec {REAL}/postgres -D '{}' -p $port -c listen_addresses=127.0.0.1 -k ''",
        other.display()
    );
    let programs = wrapped(&cluster, "foreign", &lines);
    let output = cluster.run(&[
        "up",
        "--detach",
        "--port",
        &cluster.port.to_string(),
        "--pg-bin",
        programs.to_str().expect("text"),
    ]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("without the Borealis shim") && said.contains("the driver ended it"), "{said}");
    assert!(cluster.try_connect().is_err(), "a server runs");

    // Nothing of it touched the volume, and a script that does as it should is none the worse.
    let honest = wrapped(&cluster, "honest", &format!("exec {REAL}/postgres \"$@\""));
    cluster.up(&["--pg-bin", honest.to_str().expect("text")]);
    let count: i64 = cluster.connect().query_one("SELECT count(*) FROM kept", &[]).expect("read").get(0);
    assert_eq!(count, 100);
    cluster.ok(&["down"]);
}

/// A data directory of an ordinary server, in the cluster's test folder.
fn other_server(cluster: &TestCluster) -> PathBuf {
    let folder = cluster.postgres_folder("other");
    let data = folder.join("data");
    let mut command = std::process::Command::new(Path::new(REAL).join("initdb"));
    command.args(["-A", "trust", "-U", "postgres", "-N", "-D"]).arg(&data).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = command.output().expect("initdb runs");
    assert!(output.status.success(), "{}", text(&output));
    data
}

#[test]
fn a_server_that_is_killed_before_it_has_loaded_anything_is_started_again() {
    let cluster = TestCluster::unstarted();
    let mark = cluster.postgres_folder("mark").join("killed");
    // The first start kills itself, as a lack of memory would; the second is an ordinary one.
    let lines =
        format!("[ -e '{0}' ] || {{ : > '{0}'; kill -9 $$; }}\nexec {REAL}/postgres \"$@\"", mark.display());
    let programs = wrapped(&cluster, "unlucky", &lines);
    cluster.up(&["--pg-bin", programs.to_str().expect("text")]);
    assert!(mark.exists());
    assert!(cluster.connect().batch_execute("SELECT 1").is_ok());
    cluster.ok(&["down"]);
}

/// An installation whose `postgres` runs as another user than the one who starts it.
fn set_user_id(cluster: &TestCluster) -> PathBuf {
    let root = cluster.dir().with_file_name("set-user-id");
    let programs = root.join("usr/lib/postgresql/15/bin");
    fs::create_dir_all(&programs).expect("made");
    let link =
        |target: &str, path: &str| std::os::unix::fs::symlink(target, root.join(path)).expect("linked");
    // The server looks for these relative to its program.
    link("/usr/lib/postgresql/15/lib", "usr/lib/postgresql/15/lib");
    link("/usr/share", "usr/share");
    link("/usr/lib/postgresql/15/bin/initdb", "usr/lib/postgresql/15/bin/initdb");
    let program = programs.join("postgres");
    fs::copy(Path::new(REAL).join("postgres"), &program).expect("copied");
    let nobody = nix::unistd::User::from_name("nobody").expect("asked").expect("a user nobody");
    std::os::unix::fs::chown(&program, Some(nobody.uid.as_raw()), None).expect("given");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("mode");
    programs
}

#[test]
fn a_shim_on_a_file_system_mounted_noexec_is_named() {
    if !nix::unistd::geteuid().is_root() {
        harness::not_tested("only root can mount");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mounted = folder.path().join("mounted");
    fs::create_dir(&mounted).expect("made");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let source = folder.path().join("shim.so");
    write_program(&source, &library(), 0o755);
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).expect("made");
    std::os::unix::fs::symlink(Path::new(REAL).join("initdb"), programs.join("initdb")).expect("linked");
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in --version|-V) exec {REAL}/postgres \"$@\";; esac\n\
         LD_PRELOAD={}/shim.so exec {REAL}/postgres \"$@\"\n",
        mounted.display()
    );
    write_program(&programs.join("postgres"), script.as_bytes(), 0o755);
    let mounts = format!(
        "mount -t tmpfs -o noexec,mode=755 none '{0}'; cp '{1}' '{0}'",
        mounted.display(),
        source.display()
    );
    let mut place = Place::below(&std::env::temp_dir()).with_mounts(&mounts);
    place.up_arguments = vec!["--pg-bin".into(), programs.into()];
    let output = place.up();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("without the Borealis shim") && said.contains("mounted noexec"), "{said}");
}

#[test]
fn a_library_that_does_not_belong_to_the_program_is_refused_before_anything_is_made() {
    let place = Place::below(&std::env::temp_dir());
    let path = place.program.with_file_name("libborealis_shim.so");
    let mut foreign = library();
    foreign[18] = 40;
    let cases: [(&[u8], &str); 4] = [
        (&library_of_another_build(), "built from different sources"),
        (&foreign, "another processor"),
        (&library()[..10_000], "of no known build"),
        (b"", "not an ELF file"),
    ];
    for (bytes, cause) in cases {
        fs::write(&path, bytes).expect("written");
        let output = place.up();
        assert_eq!(output.status.code(), Some(1), "{cause}");
        assert!(text(&output).contains(cause), "{cause}: {}", text(&output));
        assert!(!place.dir.exists(), "a refusal leaves nothing behind");
    }
    fs::remove_file(&path).expect("removed");
    let output = place.up();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("libborealis_shim.so is missing"), "{}", text(&output));
    assert!(!place.dir.exists(), "a refusal leaves nothing behind");
}
