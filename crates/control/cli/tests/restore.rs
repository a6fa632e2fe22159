//! All nodes and the instance are deleted, and a cluster made of their backup has what the old one had.

mod harness;

use std::path::Path;
use std::time::Instant;

use borealis_archive::due::Rule;
use borealis_archive::duty::Candidate;
use borealis_backup::store::folder::FolderStore;
use borealis_backup::upload::{
    DurablePoint, GroupStatus, Now, Options, PageSource, RedoSource, SourceError, StorePages, Tail, Uploader,
};
use borealis_store::Store;
use borealis_types::{EpochHistory, GroupId, Lsn};
use harness::ledger::Ledger;
use harness::{TestCluster, say, text};

/// A node's store, of a node that does not run.
struct Stopped {
    store: Store,
    at_ms: u64,
}

impl RedoSource for Stopped {
    fn groups(&self) -> Vec<GroupId> {
        self.store.groups()
    }

    fn history(&self) -> EpochHistory {
        self.store.with_segment(GroupId(0), |segment| segment.history().clone()).expect("the meta group")
    }

    fn durable(&self, group: GroupId) -> Option<DurablePoint> {
        let known = self.store.with_segment(group, |segment| segment.known_durable()).ok()?;
        let epoch = self.history().newest_epoch();
        Some(DurablePoint { epoch, volume: known.volume.end, group_tail: known.group_tail })
    }

    fn tail(&self, group: GroupId, above: Lsn, limit_bytes: u32) -> Result<Tail, SourceError> {
        let tail = self.store.read_tail(group, above, limit_bytes);
        let tail = tail.map_err(|error| SourceError { group, what: error.to_string() })?;
        Ok(Tail { batches: tail.batches, more: tail.more })
    }

    fn log_floor(&self, _: GroupId) -> Lsn {
        // So little was written that the node still has its first record; else the uploader would wait for it, and the test see that.
        Lsn::ZERO
    }

    fn candidates(&self, _: GroupId) -> Vec<Candidate> {
        vec![Candidate { node: self.store.identity().node, complete: true }]
    }

    fn pages(&self) -> Option<Box<dyn PageSource + '_>> {
        Some(Box::new(StorePages { store: &self.store, node: self.store.identity().node }))
    }
}

/// Uploads everything that node 1 of a cluster that is down has, and a snapshot of each of its groups.
fn upload(cluster: &TestCluster, backup: &Path) {
    let store = Store::open(&cluster.dir().join("nodes/1/store"), borealis_store::Options::default())
        .expect("it opens");
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let mut source = Stopped { store, at_ms: 0 };
    let identity = source.store.identity().clone();
    let mut options = Options::new(identity.volume, identity.placement, identity.version, identity.node);
    options.snapshot_rule = Rule { redo_bytes: 0, redo_percent: 0, longest_ms: u64::MAX };
    options.snapshot_bytes_per_second = 0;
    let now = |ms| Now { steady_ms: ms, wall_ms: wall.as_millis() as u64 + ms };
    let objects = FolderStore::new(backup);
    let mut uploader = Uploader::new(options, now(0), 1);
    let is_done = |uploader: &Uploader, source: &Stopped| {
        let status = uploader.status(now(source.at_ms));
        assert!(status.last_failure.is_none() && status.gaps.is_empty(), "{status:?}");
        assert_eq!(status.snapshot_trouble, None);
        let is_whole = |group: &GroupStatus| {
            group.uploaded >= group.durable && group.snapshot.unwrap_or_default() >= group.durable
        };
        !status.groups.is_empty() && status.groups.iter().all(is_whole)
    };
    for _ in 0..10_000 {
        source.at_ms += uploader.step(now(source.at_ms), &source, &objects).max(1);
        if is_done(&uploader, &source) {
            break;
        }
    }
    assert!(is_done(&uploader, &source), "{:?}", uploader.status(now(source.at_ms)));
    // The last marks.
    for _ in 0..20 {
        source.at_ms += uploader.step(now(source.at_ms), &source, &objects).max(1);
    }
}

#[test]
fn everything_deleted_comes_back_from_the_backup() {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-s", "1", "-q"]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 2);
    cluster.client_program("pgbench", &["-c", "4", "-T", "3", "-n"]);
    // A second epoch, with whatever was in flight cut.
    cluster.ok(&["instance", "kill"]);
    ledger.stop();
    cluster.up(&[]);
    ledger.assert_nothing_lost(&cluster);
    let middle: String =
        cluster.connect().query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).expect("an LSN").get(0);
    let early: i64 = cluster.connect().query_one("SELECT count(*) FROM ledger", &[]).expect("counted").get(0);
    let mut ledger = Ledger::start(&cluster, 2);
    cluster.client_program("pgbench", &["-c", "4", "-T", "3", "-n"]);
    ledger.stop();
    cluster.ok(&["down"]);
    let folder = tempfile::tempdir().expect("temporary folder");
    let backup = folder.path().join("backup");
    upload(&cluster, &backup);
    std::fs::remove_dir_all(cluster.dir()).expect("all nodes and the instance are deleted");

    let url = format!("file://{}", backup.display());
    let restored = TestCluster::unstarted();
    let port = restored.port.to_string();
    say(&restored.ok(&["restore", "--list", "--from", &url]));
    let begin = Instant::now();
    let output = restored.run(&["restore", "--from", &url, "--port", &port]);
    assert!(output.status.success(), "{}", text(&output));
    say(&format!("{} in {:?}", text(&output), begin.elapsed()));
    let again = restored.fails(&["restore", "--from", &url, "--port", &port]);
    assert!(again.contains("is not empty"), "{again}");
    let begin = Instant::now();
    restored.up(&[]);
    say(&format!("the first query after {:?}", begin.elapsed()));
    ledger.assert_nothing_lost(&restored);
    say("everything that was acknowledged is there: 0 s were lost");
    restored.assert_balances_agree();
    restored.assert_amcheck_clean();
    // It is an ordinary cluster.
    restored.client_program("pgbench", &["-c", "2", "-T", "2", "-n"]);
    restored.assert_balances_agree();
    restored.ok(&["verify"]);
    restored.ok(&["down"]);

    let earlier = TestCluster::unstarted();
    let port = earlier.port.to_string();
    earlier.ok(&["restore", "--from", &url, "--to-lsn", &middle, "--port", &port]);
    earlier.up(&[]);
    let count: i64 = earlier.connect().query_one("SELECT count(*) FROM ledger", &[]).expect("counted").get(0);
    assert_eq!(count, early, "nothing after {middle}");
    earlier.assert_balances_agree();
    earlier.ok(&["verify"]);
}

#[test]
fn an_interrupted_restore_is_no_cluster_and_may_be_repeated() {
    let cluster = TestCluster::start(&[]);
    cluster.connect().batch_execute("CREATE TABLE kept AS SELECT 42 AS answer").expect("made");
    cluster.ok(&["down"]);
    let folder = tempfile::tempdir().expect("temporary folder");
    let backup = folder.path().join("backup");
    upload(&cluster, &backup);
    let url = format!("file://{}", backup.display());
    let restored = TestCluster::unstarted();
    let port = restored.port.to_string();
    // As a kill leaves it.
    std::fs::create_dir_all(restored.dir().join("nodes/restored/log")).expect("made");
    for mark in ["cluster.creating", "cluster.restoring"] {
        std::fs::write(restored.dir().join(mark), "").expect("written");
    }
    let refused = restored.fails(&["up", "--detach", "--port", &port]);
    assert!(refused.contains("a restore into") && refused.contains("was interrupted"), "{refused}");
    restored.ok(&["restore", "--from", &url, "--port", &port]);
    restored.up(&[]);
    let answer: i32 = restored.connect().query_one("SELECT answer FROM kept", &[]).expect("read").get(0);
    assert_eq!(answer, 42);
}
