//! `borealis exec`: a program sees the server's files as the server does; without it, a program that would copy them fails.

mod harness;

use std::path::Path;
use std::process::Command;

use harness::{TestCluster, memory_directory_of, text};

/// Runs a program with the view: its exit code, and everything that was said.
fn exec(cluster: &TestCluster, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_borealis"));
    command.args(["exec", "--dir"]).arg(cluster.dir()).arg("--").args(words);
    let output = command.output().expect("it runs");
    (output.status.code(), text(&output))
}

/// Ways to the check sum of a file, by whatever function it is opened and read: streams, descriptors, from within the folder,
/// in a child of a shell, with checks of the compiler's, listed first.
fn readers(file: &str, absolute: &str) -> Vec<String> {
    let (folder, name) = file.rsplit_once('/').expect("a folder");
    vec![
        format!("sha256sum {file}"),
        format!("sha256sum {absolute}"),
        format!("cat {file} | sha256sum"),
        format!("cd {folder} && sha256sum < {name}"),
        format!("cd {folder} && ls | grep -qx {name} && sha256sum {name}"),
        format!(
            "cat {file} > /tmp/borealis-view-$$ && sha256sum < /tmp/borealis-view-$$; rm /tmp/borealis-view-$$"
        ),
        format!(
            "cp {file} /tmp/borealis-view-$$ && sha256sum < /tmp/borealis-view-$$; rm /tmp/borealis-view-$$"
        ),
        format!("tar cf - {file} | tar xOf - | sha256sum"),
        format!("perl -MDigest::SHA -e \"print Digest::SHA->new(256)->addfile('{file}')->hexdigest\""),
    ]
}

#[test]
fn a_program_sees_what_is_still_in_storage() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client
        .batch_execute("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n")
        .expect("made");
    client.batch_execute("VACUUM (FREEZE, ANALYZE) t").expect("vacuumed");
    client.batch_execute("CHECKPOINT").expect("written");
    let row = client.query_one("SELECT pg_relation_filepath('t')", &[]).expect("asked");
    let file: String = row.get(0);
    drop(client);
    // Nothing is cached now, and the file is not even there.
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    let data = memory_directory_of(&cluster.dir()).join("data");
    assert!(!data.join(&file).exists(), "somebody has read it already");
    let absolute = data.join(&file).display().to_string();
    let exec = |words: &[&str]| exec(&cluster, words);
    let (code, said) = exec(&["pg_controldata"]);
    assert!(code == Some(0) && said.contains("in production"), "{said}");
    let mut sums = Vec::new();
    for script in readers(&file, &absolute) {
        let words = ["sh", "-c", &script];
        let (code, said) = exec(&words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        let sum = said.split_whitespace().find(|word| word.len() == 64).expect("a check sum").to_owned();
        sums.push((script, sum));
    }
    // The server, asked last: it fetches what nobody had fetched, and reads the same.
    let query = "SELECT encode(sha256(pg_read_binary_file(pg_relation_filepath('t'))), 'hex')";
    let expected: String = cluster.connect().query_one(query, &[]).expect("read").get(0);
    for (words, sum) in sums {
        assert_eq!(sum, expected, "{words}");
    }
    let (code, _) = exec(&["sh", "-c", "exit 7"]);
    assert_eq!(code, Some(7), "the exit code is the program's");
    if nix::unistd::geteuid().is_root() {
        let (_, said) = exec(&["id", "-un"]);
        assert!(said.contains("postgres"), "{said}");
    }

    // It changes nothing of what the server runs on, and is no second server.
    for words in [
        vec!["sh", "-c", "echo 14 > PG_VERSION"],
        vec!["sh", "-c", &format!("echo x >> {file}")],
        vec!["rm", &file],
        vec!["mv", &file, "/tmp/stolen"],
        vec!["truncate", "-s", "0", &file],
        vec!["postgres", "--single", "postgres"],
    ] {
        let (code, said) = exec(&words);
        assert!(code != Some(0) && said.contains("borealis"), "{words:?}: {said}");
    }
    let mut client = cluster.connect();
    let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).expect("read").get(0);
    assert_eq!(count, 50000);
    cluster.ok(&["instance", "stop"]);
    let (code, said) = exec(&["pg_controldata"]);
    assert!(code == Some(1) && said.contains("does not run"), "{said}");
}

#[test]
fn a_backup_of_the_files_fails_at_its_first_step() {
    let cluster = TestCluster::start(&[]);
    cluster.connect().batch_execute("CREATE TABLE t AS SELECT generate_series(1, 50000) n").expect("made");
    let data = memory_directory_of(&cluster.dir()).join("data");
    let program = |name: &str| {
        let mut command = Command::new(Path::new("/usr/lib/postgresql/15/bin").join(name));
        use std::os::unix::process::CommandExt;
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.current_dir("/");
        command
    };
    for (name, options) in [
        ("pg_controldata", &["-D"][..]),
        ("pg_checksums", &["--check", "-D"]),
        ("pg_resetwal", &["-n", "-D"]),
    ] {
        let output = program(name).args(options).arg(&data).output().expect("it runs");
        let said = text(&output);
        assert!(
            !output.status.success() && (said.contains("pg_control") || said.contains("postmaster.pid")),
            "{name}: {said}"
        );
    }
    let backrest = Path::new("/usr/bin/pgbackrest");
    if !backrest.exists() {
        harness::not_tested("pgbackrest is not installed");
        return;
    }
    let folder = cluster.postgres_folder("backrest");
    let run = |words: &[&str]| {
        let mut command = program("../../../../../usr/bin/pgbackrest");
        command
            .args(["--stanza=s", "--no-config", "--log-level-console=info"])
            .args(["--log-level-file=off", "--pg1-user=postgres"])
            .arg(format!("--pg1-path={}", data.display()))
            .arg(format!("--pg1-socket-path={}", data.with_file_name("socket").display()))
            .arg(format!("--pg1-port={}", cluster.port))
            .arg(format!("--repo1-path={}", folder.display()))
            .arg(format!("--lock-path={}", folder.display()))
            .args(words);
        text(&command.output().expect("it runs"))
    };
    for words in [&["stanza-create"][..], &["--no-archive-check", "--start-fast", "backup"]] {
        let said = run(words);
        assert!(!said.starts_with("exit Some(0)"), "{words:?} succeeded: {said}");
        assert!(said.contains("pg_control") || words.len() > 1, "{words:?}: {said}");
    }
}
