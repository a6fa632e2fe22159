//! What a writer brings to six nodes is in their backup: whatever starts again, stops or refuses.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use borealis_archive::chain::{Chain, Step};
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::Name;
use borealis_archive::plan::plan;
use borealis_archive::redo::for_each_record;
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::{NamedSnapshot, Retention};
use borealis_backup::contents::{self, Contents};
use borealis_backup::restore::{Order, restore};
use borealis_backup::retention;
use borealis_backup::store::ObjectStore;
use borealis_backup::store::folder::FolderStore;
use borealis_spec::BackupConfig;
use borealis_store::{Environment, Identity, Options, Store};
use borealis_types::{
    AvailabilityZone, GroupId, Lsn, MetaKey, NodeId, PageKey, Placement, PostgresVersion, RecordSpan,
    VolumeId,
};
use common::{ALL, Cluster, NODE_COUNT, VOLUME, Writer, block, image, wait_until};

const GROUPS: u16 = 2;

/// Six nodes, not started yet, that back up to `folder`.
fn cluster(folder: &Path) -> Cluster {
    let mut cluster = Cluster::create(GROUPS);
    for config in &mut cluster.configs {
        let url = format!("file://{}", folder.display());
        config.backup = Some(BackupConfig { url, key_file: None, key_command: None });
    }
    cluster
}

fn start_all(cluster: &mut Cluster) {
    (0..NODE_COUNT).for_each(|index| cluster.start_node(index));
}

/// Writes pages, one record each, and has them durable and known to be.
fn write(writer: &mut Writer, relation: u32, nodes: &[usize]) -> Vec<RecordSpan> {
    let spans = (0..20).map(|page| writer.put_page(block(relation, page), &image(page))).collect();
    writer.ship(nodes);
    writer.announce(nodes);
    spans
}

fn contents(folder: &Path) -> Option<Contents> {
    contents::read(&FolderStore::new(folder), VOLUME, &Sealing::Plain).ok()
}

fn newest(folder: &Path) -> Lsn {
    contents(folder).and_then(|contents| contents.newest()).map_or(Lsn::ZERO, |newest| newest.lsn)
}

/// Ends of the records that a restore to `point` would apply, each group's through its chain.
fn restored(folder: &Path, point: Lsn) -> BTreeSet<Lsn> {
    let store = FolderStore::new(folder);
    let contents = contents(folder).expect("it is there");
    let mut ends = BTreeSet::new();
    for group in plan(&contents.inventory, &contents.known, point).expect("it can be restored").groups {
        let mut chain = Chain::new(group.group, Lsn::ZERO);
        for redo in group.redo {
            let bytes = store.get(&Name::Redo(redo.name).key(VOLUME)).expect("it is listed");
            for_each_record(&bytes, VOLUME, &redo.name, &Sealing::Plain, |record| {
                if record.span.end <= redo.through && chain.take(record).expect("no gap") == Step::Next {
                    ends.insert(record.span.end);
                }
            })
            .expect("sound");
        }
    }
    ends
}

fn assert_whole(folder: &Path) {
    let contents = contents(folder).expect("it is there");
    let store = FolderStore::new(folder);
    let report = contents::verify(&store, &contents, &Sealing::Plain, |_| ()).expect("a folder answers");
    let start =
        retention::window_start(&store, VOLUME, &Sealing::Plain, clock_ms()).expect("a folder answers");
    let has_gaps = report.gaps_since(start.lsn).next().is_some();
    assert!(report.faults.is_empty() && !has_gaps && report.lost.is_empty(), "{report:?}");
}

fn uploaders(folder: &Path, after: Lsn) -> BTreeSet<NodeId> {
    let contents = contents(folder).expect("it is there");
    let redo = (0..GROUPS).flat_map(|group| contents.inventory.redo(GroupId(group)).collect::<Vec<_>>());
    redo.filter(|redo| redo.last_end > after).map(|redo| redo.node).collect()
}

#[test]
fn what_is_written_is_in_the_backup_across_recoveries_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    start_all(&mut cluster);
    let mut writer = Writer::first(&cluster);
    let mut written = write(&mut writer, 1, &ALL);
    wait_until("the first records are there", || newest(folder.path()) >= writer.durable.end);
    // Each group is uploaded by one node, and its log is kept by all until then.
    let sum = |name: &str| ALL.iter().map(|index| cluster.metric(*index, name)).sum::<u64>();
    assert_eq!(sum("backup_groups"), u64::from(GROUPS));
    assert!(sum("backup_objects") > 0 && sum("backup_bytes") > 0);
    assert_eq!((sum("backup_failures"), sum("backup_gaps"), sum("backup_failing_ms")), (0, 0, 0));

    // A tail that a recovery cuts.
    let cut = writer.put_page(block(1, 99), &image(99));
    let batch = writer.take_batch();
    writer.send(&batch, &[0, 1]);
    let mut writer = writer.next(&cluster);
    written.extend(write(&mut writer, 2, &ALL));
    wait_until("records of both epochs are there", || newest(folder.path()) >= writer.durable.end);

    ALL.iter().for_each(|index| cluster.kill_node(*index));
    start_all(&mut cluster);
    let mut writer = writer.next(&cluster);
    written.extend(write(&mut writer, 3, &ALL));
    wait_until("records of after the restart are there", || newest(folder.path()) >= writer.durable.end);

    let expected: BTreeSet<Lsn> = written.iter().map(|span| span.end).collect();
    assert_eq!(restored(folder.path(), writer.durable.end), expected);
    assert!(!expected.contains(&cut.end) || written.iter().any(|span| span.end == cut.end));
    assert_whole(folder.path());
}

#[test]
fn a_store_that_refuses_holds_up_nobody_and_gets_everything_later() {
    let parent = tempfile::tempdir().unwrap();
    // A file where the folder should be: nobody may make one there, whoever runs this.
    let folder = parent.path().join("backup");
    std::fs::write(&folder, "in the way").unwrap();
    let mut cluster = cluster(&folder);
    start_all(&mut cluster);
    let mut writer = Writer::first(&cluster);
    let begun = Instant::now();
    let written = write(&mut writer, 1, &ALL);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    wait_until("somebody says so", || {
        ALL.iter().any(|index| cluster.metric(*index, "backup_failing_ms") > 0)
    });
    let said = |cluster: &Cluster| {
        let statuses = ALL.iter().map(|index| cluster.node(*index).status());
        statuses.filter_map(|status| status.hindrance).collect::<Vec<_>>()
    };
    assert!(said(&cluster).iter().any(|what| what.contains("uploaded nothing to the backup")));

    std::fs::remove_file(&folder).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while newest(&folder) < writer.durable.end {
        assert!(Instant::now() < deadline, "{:?}", said(&cluster));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(restored(&folder, writer.durable.end), written.iter().map(|span| span.end).collect());
    wait_until("all is well again", || {
        ALL.iter().all(|index| cluster.metric(*index, "backup_failing_ms") == 0)
    });
    assert_whole(&folder);
}

#[test]
fn another_peer_takes_over_from_one_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    start_all(&mut cluster);
    let mut writer = Writer::first(&cluster);
    write(&mut writer, 1, &ALL);
    let before = writer.durable.end;
    wait_until("the first records are there", || newest(folder.path()) >= before);
    let gone = usize::from(uploaders(folder.path(), Lsn::ZERO).first().expect("somebody uploaded").0) - 1;
    cluster.kill_node(gone);
    let others: Vec<usize> = ALL.into_iter().filter(|index| *index != gone).collect();
    write(&mut writer, 2, &others);
    let begun = Instant::now();
    while newest(folder.path()) < writer.durable.end {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody took over");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!uploaders(folder.path(), before).contains(&cluster.configs[gone].node));
    assert_whole(folder.path());
}

#[test]
fn a_node_stops_while_its_backup_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "0f".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut cluster = cluster(folder.path());
    let mut backup = cluster.configs[0].backup.clone().unwrap();
    backup.key_file = Some(key.clone());
    cluster.configs[0].backup = Some(backup);
    cluster.start_node(0);
    wait_until("it says why", || {
        let hindrance = cluster.node(0).status().hindrance;
        hindrance.is_some_and(|what| what.contains("chmod 600") && what.contains("key"))
    });
    let begun = Instant::now();
    cluster.kill_node(0);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // Its store is free.
    cluster.start_node(0);
    cluster.kill_node(0);

    cluster.configs[0].backup =
        Some(BackupConfig { url: "ftp://bucket".to_owned(), key_file: None, key_command: None });
    let error = borealis_node::Node::start(cluster.configs[0].clone()).unwrap_err();
    assert!(format!("{error:#}").contains("see `backup` in"), "{error:#}");
}

/// Every group's newest snapshot.
fn bases(folder: &Path) -> BTreeMap<GroupId, Lsn> {
    let contents = contents(folder).expect("it is there");
    let manifests =
        (0..GROUPS).flat_map(|group| contents.inventory.manifests(GroupId(group)).collect::<Vec<_>>());
    manifests.map(|manifest| (manifest.group, manifest.tail_end)).collect()
}

#[test]
fn nodes_make_snapshots_while_they_are_written_to_and_a_restore_begins_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    cluster.configs.iter_mut().for_each(|config| config.backup_snapshot_bytes = 0);
    start_all(&mut cluster);
    let mut writer = Writer::first(&cluster);
    let small = MetaKey::SmallFile("a".to_owned());
    writer.put_meta(small.clone(), b"small");
    let mut relation = 0;
    let mut next = |writer: &mut Writer| {
        relation += 1;
        write(writer, relation, &ALL);
    };
    wait_until("both groups have a snapshot", || {
        next(&mut writer);
        contents(folder.path()).is_some() && bases(folder.path()).len() == usize::from(GROUPS)
    });
    next(&mut writer);
    let end = writer.durable.end;
    wait_until("everything is there", || newest(folder.path()) >= end);
    let sum = |name: &str| ALL.iter().map(|index| cluster.metric(*index, name)).sum::<u64>();
    assert!(sum("backup_snapshots") >= u64::from(GROUPS) && sum("backup_failures") == 0);
    assert_whole(folder.path());
    ALL.iter().for_each(|index| cluster.kill_node(*index));

    // Nothing that is in a snapshot is asked of the redo.
    let (store, bases) = (FolderStore::new(folder.path()), bases(folder.path()));
    let mut whole = contents(folder.path()).expect("it is there");
    let redo: Vec<_> = bases.keys().flat_map(|group| whole.inventory.redo(*group)).collect();
    for redo in redo.into_iter().filter(|redo| redo.last_end < bases[&redo.group]) {
        store.delete(&Name::Redo(redo).key(VOLUME)).expect("a folder");
        whole.inventory.remove(&Name::Redo(redo));
    }
    let placement = Placement::new(GROUPS).expect("a few groups");
    let identity = Identity {
        volume: VolumeId(9),
        node: NodeId(1),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::V15,
        placement,
        groups: placement.groups().collect(),
        incarnation: 3,
    };
    let (environment, path) = (Environment::default(), folder.path().join("restored"));
    let order = Order {
        point: end,
        sealing: &Sealing::Plain,
        environment: &environment,
        folder: &path,
        identity: &identity,
        options: Options::default(),
        copies: 0,
    };
    let restored = restore(&order, &store, &whole, &mut |_| ()).expect("it can be restored");
    assert_eq!((restored.end, restored.passed_over.len()), (end, 0));
    let made = Store::open_in(&environment, &path, Options::default()).expect("it is there");
    for key in (1..=relation).flat_map(|relation| (0..20).map(move |page| block(relation, page))) {
        let page = made.read_page(placement.group_of(&key), &key, end).expect("it is readable");
        let PageKey::Block(of) = key else { unreachable!("a block") };
        assert!(page.is_some_and(|page| page[100..] == image(of.block)[100..]), "{key}");
    }
    assert_eq!(made.read_meta(&small, end).expect("it is readable"), Some(b"small".to_vec()));
}

fn clock_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// What was durable at a time, as a node says it whose list of marks is over.
fn put_old_marks(folder: &Path, durable: Lsn) {
    let epoch = contents(folder).expect("it is there").known.history.newest_epoch();
    let mark = Mark { clock_ms: clock_ms(), epoch, durable, tails: Vec::new() };
    let (name, bytes) = marks::encode(VOLUME, NodeId(6), &[mark], &Sealing::Plain).expect("a mark");
    FolderStore::new(folder).put_new(&Name::Marks(name).key(VOLUME), &bytes).expect("a folder");
}

#[test]
fn what_is_older_than_the_retention_goes_while_nodes_upload_and_the_rest_can_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    for config in &mut cluster.configs {
        (config.backup_snapshot_bytes, config.backup_deletion_seconds) = (0, 1);
    }
    start_all(&mut cluster);
    let mut writer = Writer::first(&cluster);
    write(&mut writer, 1, &ALL);
    wait_until("it is there", || newest(folder.path()) >= writer.durable.end);
    let store = FolderStore::new(folder.path());
    let before = retention::settings(&store, VOLUME, &Sealing::Plain).expect("a folder");
    let shortly = Retention { window_ms: 1_000, unfinished_ms: 1_000 };
    retention::set_retention(&store, VOLUME, &Sealing::Plain, &before, shortly).expect("nobody else does");
    let named = NamedSnapshot {
        name: "first".to_owned().try_into().expect("a name"),
        lsn: writer.durable.end,
        epoch: contents(folder.path()).expect("it is there").known.history.newest_epoch(),
        created_ms: 1,
    };
    retention::name_point(&store, VOLUME, &Sealing::Plain, &named).expect("free");

    // A second, so that it is in an object of its own.
    std::thread::sleep(Duration::from_millis(1_000));
    write(&mut writer, 2, &ALL);
    let soon_gone = writer.durable.end;
    wait_until("it is there", || newest(folder.path()) >= soon_gone);
    let mut relation = 2;
    let sum =
        |cluster: &Cluster, name: &str| ALL.iter().map(|index| cluster.metric(*index, name)).sum::<u64>();
    // A group's next snapshot begins ten seconds after its last at the earliest.
    let begun = Instant::now();
    while contents(folder.path()).is_none_or(|contents| contents.restorable().contains(soon_gone)) {
        let trouble: Vec<_> = ALL.iter().map(|index| cluster.node(*index).status().hindrance).collect();
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing old is deleted: {trouble:?}");
        relation += 1;
        write(&mut writer, relation, &ALL);
        put_old_marks(folder.path(), writer.durable.end);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(sum(&cluster, "backup_deleted") > 0);
    let end = writer.durable.end;
    wait_until("everything is there", || newest(folder.path()) >= end);
    assert_eq!(sum(&cluster, "backup_failures"), 0);
    ALL.iter().for_each(|index| cluster.kill_node(*index));

    assert_whole(folder.path());
    let contents = contents(folder.path()).expect("it is there");
    let points = contents.restorable();
    assert!(points.contains(end) && points.contains(named.lsn) && !points.contains(soon_gone), "{points:?}");
}
