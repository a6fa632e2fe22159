//! Real WAL of every index access method but the B-tree against the oracle, and against the files at the end.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "runs a real server"
)]

mod support;

use borealis_types::Lsn;
use borealis_wal::ResourceManager;
use std::io::Write;
use support::{
    Cluster, OTHER_PG_BIN_VARIABLE, Programs, assert_no_problem, compare_with_files, replay, replay_in_turn,
    seeded_checker,
};

const HASH: &str = "
create table hashed (a int, b text) with (autovacuum_enabled = off);
create index hashed_a on hashed using hash (a);
create index hashed_b on hashed using hash (b);
insert into hashed select i, 'text' || i % 3 from generate_series(1, 2500) i;
create index hashed_built on hashed using hash (a);
delete from hashed where a % 3 = 0;
vacuum hashed;
insert into hashed select i, 'more' || i from generate_series(1, 2500) i;
set enable_seqscan = off;
set enable_bitmapscan = off;
delete from hashed where b like 'more%' and a % 5 <> 1;
do $$ begin for i in 1..300 loop perform * from hashed where a = i; end loop; end $$;
insert into hashed select i % 300, 'again' from generate_series(1, 1500) i;
create unlogged table hashed_unlogged (a int);
create index hashed_unlogged_a on hashed_unlogged using hash (a);
create table hashed_chain (a int) with (autovacuum_enabled = off);
create index hashed_chain_a on hashed_chain using hash (a);
copy hashed_chain from program 'yes 1 | head -n 5000';
copy hashed_chain from program 'seq 1 1500';
delete from hashed_chain where ctid::text like '%3)' or ctid::text like '%7)';
vacuum hashed_chain;
delete from hashed_chain where a = 1 and ctid < '(12,1)';
vacuum hashed_chain;
";

const GIN: &str = "
create table arrays (id int, a int[]) with (autovacuum_enabled = off);
create index arrays_fast on arrays using gin (a) with (fastupdate = on, gin_pending_list_limit = 64);
create index arrays_slow on arrays using gin (a) with (fastupdate = off);
insert into arrays select i, array[i % 7, i % 300, i] from generate_series(1, 3000) i;
create index arrays_built on arrays using gin (a);
insert into arrays select i, array[1, 2] from generate_series(1, 800) i;
select gin_clean_pending_list('arrays_fast');
delete from arrays where id % 3 = 0;
vacuum arrays;
insert into arrays select i, array[i % 7, i % 30, 5] from generate_series(1, 500) i;
vacuum arrays;
create table posted (a int[]) with (autovacuum_enabled = off);
create index posted_grown on posted using gin (a) with (fastupdate = off);
copy posted from program 'yes {1} | head -n 3500';
drop index posted_grown;
copy posted from program 'yes {1} | head -n 46500';
create index posted_a on posted using gin (a) with (fastupdate = off);
copy posted from program 'yes {1} | head -n 9000';
delete from posted where ctid < '(190,1)' and ctid > '(50,1)';
vacuum posted;
select pg_current_xact_id();
vacuum posted;
";

const GIST: &str = "
create table points (id int, p point) with (autovacuum_enabled = off);
create index points_p on points using gist (p);
insert into points select i, point(i * 7919 % 1000, i * 104729 % 997) from generate_series(1, 3000) i;
create index points_built on points using gist (p);
delete from points where p[0] < 400;
vacuum points;
select pg_current_xact_id();
select pg_current_xact_id();
vacuum points;
insert into points select i, point(i * 31 % 700, i * 37 % 97) from generate_series(1, 2000) i;
set enable_seqscan = off;
set enable_bitmapscan = off;
delete from points where id % 2 = 0;
select count(*) from points where p <@ box '((0,0),(1000,1000))';
select count(*) from points where p <@ box '((0,0),(1000,1000))';
insert into points select i, point(i * 7919 % 1000, i * 104729 % 997) from generate_series(1, 2500) i;
";

/// Changes the leaves of the index that [`GIST`] has made: some get new tuples, some lose some or all.
const GIST_AGAIN: &str = "
insert into points select i, point(i * 13 % 900, i * 101 % 977) from generate_series(1, 1500) i;
delete from points where id % 7 < 3 and ctid::text like '%3)';
vacuum points;
delete from points where p[1] < 50;
vacuum points;
";

const SPGIST: &str = "
create table words (id int, w text, p point) with (autovacuum_enabled = off);
create index words_w on words using spgist (w);
create index words_p on words using spgist (p);
insert into words select i, 'http://example.test/' || i % 13 || '/' || md5(i::text), point(i % 100, i * 7919 % 1000)
    from generate_series(1, 1500) i;
insert into words select i, chr(32 + i % 90) || repeat(chr(35 + i % 80), i % 40), point(-i, i) from generate_series(1, 1000) i;
insert into words select i, 'http://exam' || i, null from generate_series(1, 150) i;
insert into words select i, null, point(i % 3, 5) from generate_series(1, 200) i;
create index words_built on words using spgist (w);
delete from words where id % 3 <> 0;
vacuum words;
select pg_current_xact_id();
vacuum words;
insert into words select i, 'http://other.test/' || i % 17 || '/' || md5((i * 3)::text), point(i % 91, -i) from generate_series(1, 1500) i;
create table few (w text) with (autovacuum_enabled = off);
create index few_w on few using spgist (w);
insert into few select 'word' || i from generate_series(1, 20) i;
delete from few where w like '%3';
vacuum few;
";

const BRIN: &str = "
create table ranged (id int, t text) with (autovacuum_enabled = off, fillfactor = 10);
create index ranged_id on ranged using brin (id) with (pages_per_range = 1, autosummarize = off);
create index ranged_t on ranged using brin (t) with (pages_per_range = 1);
insert into ranged select i, repeat('x', 360) from generate_series(1, 2900) i;
select brin_summarize_new_values('ranged_id'), brin_summarize_new_values('ranged_t');
insert into ranged select i, 'later' from generate_series(1, 300) i;
update ranged set t = repeat('y', 1000) where id % 97 = 0;
update ranged set t = repeat('z', 1500) where id % 61 = 0;
select brin_desummarize_range('ranged_id', 3), brin_desummarize_range('ranged_t', 7);
select brin_summarize_range('ranged_id', 3);
create index ranged_built on ranged using brin (id int4_bloom_ops) with (pages_per_range = 4);
";

const GENERIC: &str = "
create extension bloom;
create table bloomed (a int, b int) with (autovacuum_enabled = off);
create index bloomed_ab on bloomed using bloom (a, b);
insert into bloomed select i, i % 10 from generate_series(1, 1500) i;
delete from bloomed where a % 3 = 0;
vacuum bloomed;
insert into bloomed select i, i % 10 from generate_series(1, 500) i;
select pg_logical_emit_message(true, 'prefix', 'content'), pg_logical_emit_message(false, 'prefix', 'content');
select pg_replication_origin_create('origin');
select pg_replication_origin_advance('origin', '0/1234');
select pg_replication_origin_session_setup('origin');
begin;
select pg_replication_origin_xact_setup('0/2345', now());
insert into bloomed values (0, 0);
commit;
select pg_replication_origin_session_reset();
select pg_replication_origin_drop('origin');
";

/// Operations that the workload must reach, as `pg_waldump` names them.
const REQUIRED: &[(ResourceManager, &[&str])] = &[
    (
        ResourceManager::Hash,
        &[
            "INIT_META_PAGE",
            "INIT_BITMAP_PAGE",
            "INSERT",
            "ADD_OVFL_PAGE",
            "SPLIT_ALLOCATE_PAGE",
            "SPLIT_PAGE",
            "SPLIT_COMPLETE",
            "MOVE_PAGE_CONTENTS",
            "SQUEEZE_PAGE",
            "DELETE",
            "SPLIT_CLEANUP",
            "UPDATE_META_PAGE",
            "VACUUM_ONE_PAGE",
        ],
    ),
    (
        ResourceManager::Gin,
        &[
            "CREATE_PTREE",
            "INSERT",
            "SPLIT",
            "VACUUM_PAGE",
            "DELETE_PAGE",
            "UPDATE_META_PAGE",
            "INSERT_LISTPAGE",
            "DELETE_LISTPAGE",
            "VACUUM_DATA_LEAF_PAGE",
        ],
    ),
    (ResourceManager::Gist, &["PAGE_UPDATE", "DELETE", "PAGE_REUSE", "PAGE_SPLIT", "PAGE_DELETE"]),
    (
        ResourceManager::Spgist,
        &[
            "ADD_LEAF",
            "MOVE_LEAFS",
            "ADD_NODE",
            "SPLIT_TUPLE",
            "PICKSPLIT",
            "VACUUM_LEAF",
            "VACUUM_ROOT",
            "VACUUM_REDIRECT",
        ],
    ),
    (
        ResourceManager::Brin,
        &[
            "CREATE_INDEX",
            "INSERT",
            "INSERT+INIT",
            "UPDATE",
            "UPDATE+INIT",
            "SAMEPAGE_UPDATE",
            "REVMAP_EXTEND",
            "DESUMMARIZE",
        ],
    ),
    (ResourceManager::Generic, &["Generic"]),
    (ResourceManager::LogicalMessage, &["MESSAGE"]),
    (ResourceManager::ReplicationOrigin, &["SET", "DROP"]),
];

#[test]
fn every_index_page_is_what_postgres_says() {
    let mut cluster = Cluster::create("full_page_writes = off\nwal_level = logical");
    let mut checker = seeded_checker(&cluster);
    let start = cluster.control_lsn("Latest checkpoint location:");
    cluster.start();
    for script in [HASH, GIN, GIST, SPGIST, BRIN, GENERIC] {
        cluster.sql("postgres", script);
    }
    cluster.stop();

    let records = replay(&cluster, start, &mut checker);
    // Shown with `--nocapture`, and when the test fails.
    println!("{checker}{records} records");
    assert_no_problem(&checker);
    for (resource_manager, operations) in REQUIRED {
        for operation in *operations {
            let tally = checker.tallies().get(&(*resource_manager, *operation));
            assert!(tally.is_some(), "the workload does not reach {resource_manager:?} {operation}");
        }
    }
    let (compared, mut wrong) = compare_with_files(&checker, &cluster);
    // An SP-GiST metapage remembers, without a record, which pages had room last.
    wrong.retain(|line| !(line.starts_with("Spgist: ") && line.contains(" block 0: ")));
    assert!(
        wrong.is_empty(),
        "{} of {compared} pages differ from the files:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn index_pages_that_two_releases_change_in_turn_are_what_postgres_says() {
    let first = Programs::to_test();
    // `./test cluster` names one where the package archive has two.
    let Some(other) = std::env::var_os(OTHER_PG_BIN_VARIABLE) else {
        // Not with `eprintln`, which is shown for failed tests only.
        writeln!(
            std::io::stderr(),
            "NOT TESTED: two releases in turn. {OTHER_PG_BIN_VARIABLE} names no folder with another one's programs"
        )
        .unwrap();
        return;
    };
    let second = Programs::in_folder(other.into());
    assert_ne!(first.release, second.release);
    let mut cluster = Cluster::create("full_page_writes = off");
    let mut checker = seeded_checker(&cluster);
    let start = cluster.control_lsn("Latest checkpoint location:");
    let mut turns = Vec::new();
    for (programs, script) in [
        (&first, GIST),
        (&second, GIST_AGAIN),
        (&first, GIST_AGAIN),
        (&second, GIST_AGAIN),
        (&first, GIST_AGAIN),
    ] {
        cluster.use_programs(programs);
        cluster.start();
        cluster.sql("postgres", script);
        cluster.stop();
        // The shutdown checkpoint is the last record of the turn.
        turns.push((Lsn(cluster.control_lsn("Latest checkpoint location:").0 + 1), programs.release));
    }

    let records = replay_in_turn(&cluster, start, &turns, &mut checker);
    println!("{checker}{records} records by {} and {} in turn", first.release, second.release);
    assert_no_problem(&checker);
    let (compared, wrong) = compare_with_files(&checker, &cluster);
    assert!(
        wrong.is_empty(),
        "{} of {compared} pages differ from the files:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
