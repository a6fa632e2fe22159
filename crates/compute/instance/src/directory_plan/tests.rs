use std::collections::BTreeMap;

use borealis_redo::control_file::ClusterState;
use borealis_wal::layout::ParameterChange;
use proptest::prelude::*;

use super::*;

/// Cases of each property.
const CASES: u32 = 20_000;

fn control_file(segment_bytes: u32) -> Vec<u8> {
    let checkpoint =
        Counters { next_full_xid: 800, timeline: 1, previous_timeline: 1, ..Counters::default() }
            .to_checkpoint(Lsn(40), 0);
    let control = ControlFile {
        system_identifier: 7,
        control_version: 1300,
        catalog_version: 202_209_061,
        state: ClusterState::ShutDown,
        time: 0,
        checkpoint: Lsn(40),
        checkpoint_copy: checkpoint,
        unlogged_lsn: Lsn(1000),
        minimum_recovery_point: Lsn::ZERO,
        minimum_recovery_point_timeline: 0,
        backup_start_point: Lsn::ZERO,
        backup_end_point: Lsn::ZERO,
        backup_end_required: false,
        wal_level: 1,
        wal_log_hints: false,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        track_commit_timestamp: false,
        max_align: 8,
        float_format: 1_234_567.0,
        block_bytes: 8192,
        relation_segment_blocks: 131_072,
        wal_block_bytes: 8192,
        wal_segment_bytes: segment_bytes,
        name_bytes: 64,
        index_keys_max: 32,
        toast_chunk_bytes: 1996,
        large_object_chunk_bytes: 2048,
        float8_by_value: true,
        data_checksum_version: 0,
        mock_authentication_nonce: [0; 32],
    };
    control.encode()
}

fn contents(values: Vec<(MetaKey, Vec<u8>)>) -> Contents {
    Contents {
        version: PostgresVersion::V15,
        counters: Counters {
            next_full_xid: 800,
            oldest_xid: 716,
            timeline: 1,
            previous_timeline: 1,
            parameters: ParameterChange {
                wal_level: 1,
                wal_log_hints: false,
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 0,
                max_locks_per_transaction: 64,
                track_commit_timestamp: false,
            },
            ..Counters::default()
        },
        control_file_template: control_file(16 << 20),
        values,
    }
}

const LAST: RecordSpan = RecordSpan { start: Lsn(0x100_0028), end: Lsn(0x100_0060) };

fn folder(tablespace: u32, database: u32) -> MetaKey {
    MetaKey::Database(DatabaseKey { tablespace, database })
}

fn map(tablespace: u32, database: u32) -> MetaKey {
    MetaKey::RelationMap(DatabaseKey { tablespace, database })
}

fn with_shared_map(keys: impl IntoIterator<Item = MetaKey>) -> Contents {
    let keys = [map(GLOBAL_TABLESPACE, 0)].into_iter().chain(keys);
    contents(keys.map(|key| (key, vec![1, 2, 3])).collect())
}

fn plan(contents: &Contents) -> DirectoryPlan<'_> {
    DirectoryPlan::new(contents, LAST, 0).expect("PostgreSQL can write this")
}

/// Every name is below the data directory, and its folder was made before it.
fn assert_applicable(plan: &DirectoryPlan<'_>) {
    let mut made: BTreeMap<&str, bool> = BTreeMap::new();
    for (name, planned) in &plan.entries {
        let parts: Vec<&str> = name.split('/').collect();
        assert!(parts.iter().all(|part| !part.is_empty() && !part.starts_with('.')), "`{name}`");
        if let Some((above, _)) = name.rsplit_once('/') {
            assert_eq!(made.get(above), Some(&true), "`{name}` has no folder");
        }
        if let Planned::Sparse { bytes, pages } = planned {
            assert!(pages.iter().all(|(offset, _)| offset + PAGE_SIZE as u64 <= *bytes), "`{name}`");
        }
        made.insert(name, *planned == Planned::Folder);
    }
    assert!(made.keys().all(|name| !name.ends_with("pg_control")), "only the shim finds the control file");
}

#[test]
fn a_database_with_two_folders_and_two_tablespaces_has_a_plan() {
    // CREATE DATABASE dst TEMPLATE src STRATEGY file_copy, where a table of src is in tablespace 16385.
    let contents = with_shared_map([
        MetaKey::Tablespace(16385),
        MetaKey::Tablespace(16386),
        folder(DEFAULT_TABLESPACE, 5),
        folder(DEFAULT_TABLESPACE, 16387),
        folder(16385, 16387),
        map(DEFAULT_TABLESPACE, 16387),
    ]);
    let plan = plan(&contents);
    assert_applicable(&plan);
    let of_tables = "pg_tblspc/16385/PG_15_202209061/16387";
    assert_eq!(plan.entries.get(of_tables), Some(&Planned::Folder));
    assert!(plan.entries.contains_key("pg_tblspc/16386/PG_15_202209061/5"));
    assert!(plan.entries.contains_key("base/16387/PG_VERSION"));
    // Or the tablespace could not be dropped once the tables in it are.
    let inside = format!("{of_tables}/");
    assert!(!plan.entries.keys().any(|name| name.starts_with(&inside)), "{:?}", plan.entries.keys());
}

#[test]
fn a_move_that_was_killed_leaves_two_whole_folders() {
    // ALTER DATABASE SET TABLESPACE, killed between the commit and the removal of the old folder.
    let contents = with_shared_map([
        MetaKey::Tablespace(16385),
        MetaKey::Tablespace(16386),
        folder(DEFAULT_TABLESPACE, 16387),
        folder(16386, 16387),
        map(DEFAULT_TABLESPACE, 16387),
        map(16386, 16387),
    ]);
    let plan = plan(&contents);
    assert_applicable(&plan);
    for name in ["base/16387/PG_VERSION", "pg_tblspc/16386/PG_15_202209061/16387/pg_filenode.map"] {
        assert!(plan.entries.contains_key(name), "{name}");
    }
}

#[test]
fn a_database_whose_tablespace_is_gone_has_its_folder() {
    let contents = with_shared_map([folder(16385, 16387), map(16385, 16387), map(DEFAULT_TABLESPACE, 9)]);
    let plan = plan(&contents);
    assert_applicable(&plan);
    assert!(plan.entries.contains_key("pg_tblspc/16385/PG_15_202209061/16387/PG_VERSION"));
    assert!(!plan.entries.contains_key("base/9"), "that database was dropped");
}

#[test]
fn a_kept_file_takes_the_place_of_the_one_that_a_new_volume_has() {
    let initial = ["pg_hba.conf", "pg_ident.conf"].map(|name| MetaKey::SmallFile(name.to_owned()));
    let mut contents = with_shared_map(initial);
    let text = |plan: &DirectoryPlan<'_>, name: &str| match plan.entries.get(name) {
        Some(Planned::File(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{name}: {other:?}"),
    };
    let before = contents.clone();
    let new = plan(&before);
    assert_eq!(text(&new, "postgresql.auto.conf"), "");
    assert!(text(&new, "postgresql.conf").contains("Written by Borealis"));
    for file in KeptFile::ALL {
        contents.values.push((file.key(), format!("kept {}", file.name()).into_bytes()));
    }
    let kept = plan(&contents);
    for file in KeptFile::ALL {
        assert_eq!(text(&kept, file.name()), format!("kept {}", file.name()));
    }
    assert_eq!(kept.entries.len(), new.entries.len());
}

#[test]
fn what_postgres_cannot_have_written_is_refused_by_name() {
    let refused = |contents: &Contents, what: &str| {
        let error = DirectoryPlan::new(contents, LAST, 0).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(&contents(Vec::new()), "no relation map of the shared catalogs");
    let small = |name: &str| with_shared_map([MetaKey::SmallFile(name.to_owned())]);
    for name in ["", "/etc/passwd", "../x", "standby.signal", "global/pg_control", "postgresql.auto.conf"] {
        refused(&small(name), &format!("`{name}` is no file that is kept"));
    }
    refused(&with_shared_map([map(GLOBAL_TABLESPACE, 0)]), "`global/pg_filenode.map` is there twice");
    refused(&with_shared_map([folder(GLOBAL_TABLESPACE, 5)]), "is no database");
    refused(&with_shared_map([MetaKey::Tablespace(DEFAULT_TABLESPACE)]), "is none that can be made");
    refused(&with_shared_map([MetaKey::PreparedTransaction(2)]), "is no transaction");
    let mut odd = with_shared_map([]);
    odd.control_file_template = control_file(0);
    refused(&odd, "WAL segments of 0 bytes");
    odd = with_shared_map([]);
    odd.counters.next_full_xid = 1 << 32;
    refused(&odd, "next transaction");
    odd = with_shared_map([]);
    odd.counters.timeline = 2;
    refused(&odd, "time line 2");
}

/// Few, so that they meet.
fn oid() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 16384..16390_u32, 1 => Just(5), 1 => Just(1)]
}

fn place() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(DEFAULT_TABLESPACE), 3 => 16384..16390_u32]
}

/// What PostgreSQL can have written, in any combination that drops and creations in any order can leave.
fn possible_key() -> impl Strategy<Value = MetaKey> {
    prop_oneof![
        4 => (place(), oid()).prop_map(|(tablespace, database)| folder(tablespace, database)),
        3 => (place(), oid()).prop_map(|(tablespace, database)| map(tablespace, database)),
        3 => (16384..16390_u32).prop_map(MetaKey::Tablespace),
        1 => (FIRST_NORMAL_XID..900).prop_map(MetaKey::PreparedTransaction),
        1 => prop::sample::select(&KEPT_FILES[..]).prop_map(|name| MetaKey::SmallFile(name.to_owned())),
        1 => prop::sample::select(&KeptFile::ALL[..]).prop_map(KeptFile::key),
    ]
}

fn hostile_key() -> impl Strategy<Value = MetaKey> {
    let number = || prop_oneof![Just(0), Just(GLOBAL_TABLESPACE), Just(DEFAULT_TABLESPACE), any::<u32>()];
    let name = || {
        prop_oneof![
            Just(String::new()),
            "[a-z./_]{0,20}",
            prop::sample::select(vec![
                "global",
                "base/5/1",
                "pg_wal/x",
                "PG_VERSION",
                "./a",
                "pg_hba.conf/x"
            ])
            .prop_map(str::to_owned),
            any::<String>(),
        ]
    };
    prop_oneof![
        40 => possible_key(),
        1 => (number(), number()).prop_map(|(tablespace, database)| folder(tablespace, database)),
        1 => (number(), number()).prop_map(|(tablespace, database)| map(tablespace, database)),
        1 => number().prop_map(MetaKey::Tablespace),
        1 => number().prop_map(MetaKey::PreparedTransaction),
        1 => name().prop_map(MetaKey::SmallFile),
        1 => Just(MetaKey::Counters),
        1 => Just(MetaKey::ControlFileTemplate),
    ]
}

fn kind(key: &MetaKey) -> &'static str {
    match key {
        MetaKey::Counters => "counters",
        MetaKey::ControlFileTemplate => "control file",
        MetaKey::RelationMap(_) => "relation map",
        MetaKey::Database(_) => "database",
        MetaKey::Tablespace(_) => "tablespace",
        MetaKey::PreparedTransaction(_) => "prepared transaction",
        MetaKey::SmallFile(_) => "small file",
    }
}

/// Runs a property over values and prints what it covered.
fn cover<S: Strategy>(what: &str, strategy: S, check: impl Fn(&S::Value) -> (Vec<&'static str>, bool)) {
    let counts = std::cell::RefCell::new(BTreeMap::<&str, u64>::new());
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&strategy, |value| {
        let (kinds, planned) = check(&value);
        let mut counts = counts.borrow_mut();
        for kind in kinds.into_iter().chain([if planned { "(planned)" } else { "(refused)" }]) {
            *counts.entry(kind).or_default() += 1;
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{what}: {error}"));
    println!("{what}: {CASES} cases, {:?}", counts.into_inner());
}

#[test]
fn whatever_postgres_can_leave_has_a_plan() {
    let keys = prop::collection::btree_set(possible_key(), 0..24);
    cover("what PostgreSQL can leave", keys, |keys| {
        let contents = with_shared_map(keys.iter().cloned());
        assert_applicable(&plan(&contents));
        (keys.iter().map(kind).collect(), true)
    });
}

#[test]
fn hostile_values_have_a_plan_or_a_reason() {
    let values = prop::collection::vec((hostile_key(), prop::collection::vec(any::<u8>(), 0..16)), 0..12);
    let counters = (any::<u64>(), any::<u32>(), 0..3_u32, prop::bool::weighted(0.9));
    let template = prop_oneof![
        20 => Just(control_file(16 << 20)),
        1 => any::<u32>().prop_map(control_file),
        1 => (0..32_u32).prop_map(|shift| control_file(1 << shift)),
        1 => prop::collection::vec(any::<u8>(), 0..400),
    ];
    let near = |lsn: u64| (0..40_000_u64).prop_map(move |more| lsn.saturating_add(more));
    let end = prop_oneof![
        20 => near(16 << 20).prop_map(|end| end / 8 * 8),
        1 => near(0),
        1 => any::<u64>(),
        1 => near(u64::MAX - (2 << 30)),
    ];
    let strategy = (values, counters, template, end, 0..9_u64);
    cover("hostile values", strategy, |(values, counters, template, end, back)| {
        let (next_full_xid, oldest_xid, timeline, sane) = *counters;
        let mut contents = contents(values.clone());
        contents.values.push((map(GLOBAL_TABLESPACE, 0), vec![0; 512]));
        contents.control_file_template.clone_from(template);
        if !sane {
            contents.counters = Counters { next_full_xid, oldest_xid, timeline, ..contents.counters };
        }
        let last = RecordSpan { start: Lsn(end.saturating_sub(32 * back)), end: Lsn(*end) };
        let kinds = values.iter().map(|(key, _)| kind(key)).collect();
        match DirectoryPlan::new(&contents, last, -1) {
            Ok(plan) => {
                assert_applicable(&plan);
                (kinds, true)
            }
            Err(error) => {
                assert!(error.to_string().starts_with("the volume's "), "{error}");
                (kinds, false)
            }
        }
    });
}
