//! Real WAL against the oracle: after every record, every listed block is what PostgreSQL says it is; at the
//! end, every page is what the stopped server left in its files.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "runs a real server"
)]
#![allow(clippy::unwrap_used)] // All of this is test code.

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;

use borealis_redo::check::Checker;
use borealis_types::Lsn;
use borealis_wal::ResourceManager;
use support::{Cluster, assert_no_problem, compare_with_files, finish, replay, seeded_checker};

/// Operations of the heap, its maps and everything around transactions that the workload must reach, as
/// `pg_waldump` names them: a test that stops exercising one must say so.
const REQUIRED: &[(ResourceManager, &[&str])] = &[
    (
        ResourceManager::Heap,
        &[
            "INSERT",
            "INSERT+INIT",
            "DELETE",
            "UPDATE",
            "UPDATE+INIT",
            "HOT_UPDATE",
            "TRUNCATE",
            "HEAP_CONFIRM",
            "LOCK",
            "INPLACE",
        ],
    ),
    (
        ResourceManager::Heap2,
        &[
            "PRUNE",
            "VACUUM",
            "FREEZE_PAGE",
            "VISIBLE",
            "MULTI_INSERT",
            "MULTI_INSERT+INIT",
            "LOCK_UPDATED",
            "NEW_CID",
        ],
    ),
    (
        ResourceManager::Transaction,
        &["COMMIT", "ABORT", "PREPARE", "COMMIT_PREPARED", "ABORT_PREPARED", "INVALIDATION", "ASSIGNMENT"],
    ),
    (
        ResourceManager::Btree,
        &[
            "INSERT_LEAF",
            "INSERT_UPPER",
            "SPLIT_L",
            "SPLIT_R",
            "DEDUP",
            "INSERT_POST",
            "DELETE",
            "VACUUM",
            "NEWROOT",
            "MARK_PAGE_HALFDEAD",
            "UNLINK_PAGE",
            "REUSE_PAGE",
        ],
    ),
    (
        ResourceManager::Xlog,
        &["FPI", "NEXTOID", "CHECKPOINT_ONLINE", "CHECKPOINT_SHUTDOWN", "PARAMETER_CHANGE"],
    ),
    (ResourceManager::Sequence, &["LOG"]),
    (ResourceManager::MultiXact, &["CREATE_ID"]),
    (ResourceManager::Storage, &["CREATE", "TRUNCATE"]),
    (ResourceManager::RelMap, &["UPDATE"]),
    (ResourceManager::Database, &["CREATE_WAL_LOG", "CREATE_FILE_COPY", "DROP"]),
    (ResourceManager::Standby, &["LOCK", "RUNNING_XACTS"]),
];

const TABLES: &str = "
create table plain (id int primary key, grp int, note text, big text) with (fillfactor = 70);
create index on plain (grp);
create table wide (id serial primary key, v1 text, v2 int, v3 numeric, v4 text);
insert into plain select i, i % 10, 'note ' || i, null from generate_series(1, 5000) i;
update plain set note = note || ' changed' where id % 3 = 0;
update plain set grp = grp + 1 where id % 7 = 0;
update plain set note = repeat('x', id % 400) where id <= 2000;
update plain set note = note || 'y' where id <= 2000;
update plain set note = note || 'z' where id <= 2000;
delete from plain where id % 11 = 0;
update plain set big = (select string_agg(md5((g * id)::text), '') from generate_series(1, 200) g) where id between 100 and 200;
insert into wide (v1, v2, v3, v4) select null, i, i / 3.0, case when i % 2 = 0 then 'even' end from generate_series(1, 2000) i;
insert into plain values (1, 1, 'again') on conflict (id) do update set note = excluded.note;
insert into plain values (11, 1, 'speculative') on conflict (id) do nothing;
insert into plain select i, 0, 'tail' from generate_series(6000, 6100) i on conflict do nothing;
create table many_columns (a int, b text, c int, d text);
alter table many_columns add column e int default 5;
insert into many_columns values (1, 'b', null, 'd', 7), (null, null, null, null, null);
alter table many_columns drop column b, alter column a type bigint;
";

const TRANSACTIONS: &str = "
begin; insert into wide (v2) values (1); rollback;
begin;
savepoint a; insert into wide (v2) values (2); savepoint b; insert into wide (v2) values (3);
rollback to b; insert into wide (v2) values (4); release a; commit;
do $$ begin for i in 1..200 loop begin insert into wide (v2) values (i); exception when others then null; end; end loop; end $$;
begin; update plain set grp = -1 where id = 12; prepare transaction 'kept';
begin; update plain set grp = -1 where id = 13; create table never (i int); prepare transaction 'undone';
commit prepared 'kept';
rollback prepared 'undone';
begin; select * from plain where id = 14 for share; prepare transaction 'first locker';
begin; select * from plain where id = 14 for share; prepare transaction 'second locker';
begin; select * from plain where id = 14 for key share; commit;
commit prepared 'first locker';
commit prepared 'second locker';
begin; update plain set note = 'hot' where id = 15; update plain set note = 'hotter' where id = 15; commit;
begin; select * from plain where id = 15 for update; savepoint s; update plain set note = 'x' where id = 15; rollback to s; update plain set note = 'y' where id = 15; commit;
";

const DDL: &str = "
create table copied (a int, b text);
copy copied from program 'seq 1 3000 | awk ''{ print $1 \"\\t\" \"row \" $1 }''';
begin; create table frozen (a int); copy frozen from program 'seq 1 3000' with (freeze); commit;
create table truncated as select generate_series(1, 1000) a;
begin; truncate truncated; insert into truncated values (1); commit;
create table parted (a int, b text) partition by range (a);
create table parted_low partition of parted for values from (0) to (100);
create table parted_high partition of parted for values from (100) to (200);
insert into parted select i, 'p' from generate_series(0, 199) i;
update parted set a = a + 50 where a between 75 and 99;
create unlogged table not_logged (a serial primary key, b text);
insert into not_logged (b) values ('gone after a crash');
cluster plain using plain_pkey;
create materialized view seen as select grp, count(*) from plain group by grp;
refresh materialized view seen;
create table short_lived as select 1 a; drop table short_lived;
reindex table wide;
alter sequence wide_id_seq restart with 100000;
select nextval('wide_id_seq') from generate_series(1, 100);
create function f() returns int language sql as 'select 1';
create type mood as enum ('sad', 'happy');
comment on table plain is 'commented';
create role somebody; grant select on plain to somebody;
";

const MAINTENANCE: &str = "
vacuum plain; vacuum wide;
begin; select * from frozen where a = 5 for update; commit;
update frozen set a = a where a between 10 and 20;
delete from frozen where a = 30;
insert into frozen values (-1);
vacuum (freeze) plain;
begin; select * from plain where id = 16 for update; commit;
delete from copied where a > 100;
vacuum copied;
insert into copied select i, 'again' from generate_series(1, 500) i;
delete from wide where id % 100 <> 0;
vacuum wide;
insert into wide (v2) select i from generate_series(1, 3000) i;
vacuum full many_columns;
vacuum full pg_class;
analyze;
vacuum (freeze, analyze);
checkpoint;
";

/// Deletes all of an index's leaf pages but the ends, lets vacuum unlink them, and uses them again.
const INDEX_PAGES: &str = "
create table emptied (a int, b text);
create index emptied_a on emptied (a);
create index emptied_b on emptied (b);
insert into emptied select i, 'value' || i % 5 from generate_series(1, 20000) i;
insert into emptied select -i, 'value' || i % 5 from generate_series(1, 2000) i;
delete from emptied where a between 500 and 19000;
vacuum emptied;
select pg_current_xact_id();
select pg_current_xact_id();
vacuum emptied;
insert into emptied select 25000 + i, 'new' || i from generate_series(1, 10000) i;
create table churned (a int primary key, b int);
insert into churned select i, i from generate_series(1, 300) i;
create index churned_b on churned (b);
do $$ begin for i in 1..40 loop update churned set b = b + 1; commit; end loop; end $$;
";

/// Comes after the last vacuum of everything, so that the bits it leaves cleared are cleared at the end.
const AFTER_VACUUM: &str = "
insert into frozen select i from generate_series(1, 10) i;
update pgbench_accounts set bid = 7 where aid in (1, 5000, 70000);
delete from pgbench_accounts where aid in (20000, 40000);
begin; select * from pgbench_accounts where aid in (30000, 50000) for update; commit;
begin; update pgbench_accounts set filler = repeat('long', 15) where aid = 60000; rollback;
delete from pgbench_accounts where aid > 90000;
vacuum pgbench_accounts;
copy pgbench_accounts from program 'seq 100001 106000 | awk ''{ print $1 \"\\t1\\t0\\tfiller\" }''';
";

/// What needs two sessions: a row locked by several, and a locked row's newer version.
fn lock_with_two_sessions(cluster: &Cluster) {
    let first = "begin; select * from plain where id = 17 for key share; select pg_sleep(1.5); commit;";
    let mut session = cluster.start_sql("postgres");
    session.stdin.take().unwrap().write_all(first.as_bytes()).unwrap();
    cluster.sql(
        "postgres",
        "select pg_sleep(0.4);
         begin; update plain set note = 'while key-share locked' where id = 17; commit;
         update plain set note = 'and again' where id = 17;
         begin; select * from plain where id = 17 for share; commit;",
    );
    finish(session, first);

    // A snapshot that still sees the old version locks it, and with it all newer ones.
    let first = "begin isolation level repeatable read; select count(*) from plain; select pg_sleep(1);
                 select * from plain where id = 18 for key share; commit;";
    let mut session = cluster.start_sql("postgres");
    session.stdin.take().unwrap().write_all(first.as_bytes()).unwrap();
    cluster.sql("postgres", "select pg_sleep(0.4); update plain set note = 'newer' where id = 18;");
    finish(session, first);
}

fn run_workload(cluster: &Cluster) {
    cluster.sql("postgres", TABLES);
    cluster.sql("postgres", TRANSACTIONS);
    cluster.sql("postgres", DDL);
    cluster.sql("postgres", MAINTENANCE);
    cluster.sql("postgres", INDEX_PAGES);
    lock_with_two_sessions(cluster);
    cluster.sql("postgres", "create database copied_by_log template postgres;");
    cluster.sql("copied_by_log", "insert into wide (v2) values (1); vacuum plain; drop table wide;");
    cluster.sql("postgres", "create database copied_by_file template copied_by_log strategy file_copy;");
    cluster.sql("copied_by_file", "update plain set note = 'in the copy'; vacuum plain;");
    cluster.sql("postgres", "drop database copied_by_log; vacuum (freeze);");
}

/// Counts records by operation with `pg_waldump` and compares: the decoder missed none and the names agree.
fn assert_same_counts_as_waldump(cluster: &Cluster, start: Lsn, checker: &Checker) {
    let folder = cluster.data().join("pg_wal");
    let start = start.to_string();
    // It ends at the first bytes that are no record, which it reports as an error.
    let table = cluster.output_of_any_status(
        "pg_waldump",
        ["-z", "--stats=record", "-p", folder.to_str().unwrap(), "-s", &start],
    );
    let mut expected = BTreeMap::new();
    for line in table.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(Ok(count))) = (words.next(), words.next().map(str::parse::<u64>))
            && name.contains('/')
            && count > 0
        {
            expected.insert(name.to_owned(), count);
        }
    }
    let counted: BTreeMap<String, u64> = checker
        .tallies()
        .iter()
        .map(|((resource_manager, operation), tally)| {
            (format!("{}/{operation}", resource_manager.name()), tally.records)
        })
        .collect();
    assert_eq!(counted, expected);
}

fn report(checker: &Checker, records: u64) {
    // Shown with `--nocapture`, and when the test fails.
    println!("{checker}{records} records");
}

#[test]
fn every_page_is_what_postgres_says_without_full_page_writes() {
    let mut cluster = Cluster::create("full_page_writes = off\nwal_level = logical");
    let mut checker = seeded_checker(&cluster);
    let start = cluster.control_lsn("Latest checkpoint location:");
    cluster.start();
    run_workload(&cluster);
    cluster.run("pgbench", ["-i", "-s", "1", "-q"]);
    cluster.run("pgbench", ["-c", "4", "-t", "200", "-n"]);
    cluster.sql("postgres", "vacuum (freeze);");
    cluster.sql("postgres", AFTER_VACUUM);
    cluster.stop();

    let records = replay(&cluster, start, &mut checker);
    report(&checker, records);
    assert_no_problem(&checker);
    assert_same_counts_as_waldump(&cluster, start, &checker);
    for (resource_manager, operations) in REQUIRED {
        for operation in *operations {
            let tally = checker.tallies().get(&(*resource_manager, *operation));
            assert!(tally.is_some(), "the workload does not reach {resource_manager:?} {operation}");
        }
    }
    let (compared, wrong) = compare_with_files(&checker, &cluster);
    assert!(
        wrong.is_empty(),
        "{} of {compared} pages differ from the files:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 1000, "only {compared} pages compared");
}

#[test]
fn full_page_images_are_base_enough_after_a_checkpoint() {
    let mut cluster = Cluster::create("full_page_writes = on\nwal_compression = pglz\nwal_log_hints = on");
    cluster.start();
    cluster.sql("postgres", "checkpoint;");
    let start = cluster.control_lsn("Latest checkpoint's REDO location:");
    for script in [TABLES, TRANSACTIONS, DDL, MAINTENANCE] {
        cluster.sql("postgres", script);
    }
    cluster.stop();

    // No page is known beforehand: the first record that touches one must bring it along.
    let mut checker = Checker::new();
    let records = replay(&cluster, start, &mut checker);
    report(&checker, records);
    assert_no_problem(&checker);
    let tally = checker.tallies().get(&(ResourceManager::Xlog, "FPI_FOR_HINT"));
    assert!(tally.is_some(), "the workload does not reach FPI_FOR_HINT");
}
