//! What went wrong in other systems of this shape, provoked here. PostgreSQL has next to no buffers, and the local
//! page cache keeps only what it must, so that pages go to storage and come back all the time.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::TestCluster;
use postgres::Client;

/// Few buffers, so that whatever is not pinned is soon written and read again.
const FEW_BUFFERS: [&str; 4] = ["--pg-set", "shared_buffers=2MB", "--pg-set", "max_prepared_transactions=8"];

/// A cluster with few buffers, a table to push other pages out with, and the extensions that look at pages.
fn start(extra: &[&str]) -> TestCluster {
    let arguments: Vec<&str> = FEW_BUFFERS.iter().chain(extra).copied().collect();
    let cluster = TestCluster::start(&arguments);
    execute(
        &mut cluster.connect(),
        "CREATE EXTENSION pg_buffercache; CREATE EXTENSION pg_visibility; CREATE EXTENSION amcheck;
         CREATE EXTENSION pageinspect; CREATE EXTENSION pg_freespacemap;
         CREATE TABLE filler (id int PRIMARY KEY, v text);
         INSERT INTO filler SELECT n, repeat('f', 900) FROM generate_series(1, 6000) n",
    );
    execute(&mut cluster.connect(), "VACUUM filler");
    cluster
}

fn execute(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error}")).get(0)
}

/// Reads so much by index that everything else leaves the buffers.
fn push_out(client: &mut Client) {
    execute(client, "SET enable_seqscan = off; SET enable_bitmapscan = off");
    assert_eq!(number(client, "SELECT count(v) FROM filler WHERE id > 0"), 6000);
}

/// Pushes everything out of the buffers, gives the local cache time to drop it, and makes sure that no more of the
/// table or index is left in the buffers than the pages that are pinned, so that the test shows something.
fn evict(cluster: &TestCluster, table: &str, pinned: i64) {
    let mut client = cluster.connect();
    let left = format!(
        "SELECT count(*) FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('{table}') \
         AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    for _ in 0..20 {
        push_out(&mut client);
        std::thread::sleep(Duration::from_millis(150));
        if number(&mut client, &left) <= pinned {
            return;
        }
    }
    panic!("{table} stays in the buffers");
}

/// Pushes pages out until it is stopped.
struct Pressure {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pressure {
    fn start(cluster: &TestCluster) -> Pressure {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut client, stopped) = (cluster.connect(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                push_out(&mut client);
            }
        });
        Pressure { stop, thread: Some(thread) }
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the thread that pushes pages out failed");
        }
    }
}

fn dropped_blocks(cluster: &TestCluster) -> u64 {
    let status = cluster.status();
    status["instances"][0]["driver"]["counters"]["cache_blocks_dropped"].as_u64().expect("a counter")
}

/// The same rows by the table alone and by an index.
fn assert_index_agrees(client: &mut Client, columns: &str, table: &str, condition: &str) {
    let sql = format!(
        "SELECT count(*), sum(hashtext(({columns})::text)::bigint)::bigint FROM {table} WHERE {condition}"
    );
    let mut ask = |settings: &str| -> (i64, Option<i64>) {
        execute(client, settings);
        let row = client.query_one(&sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error}"));
        (row.get(0), row.get(1))
    };
    let by_table =
        ask("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off; \
                        SET enable_bitmapscan = off");
    let by_index =
        ask("SET enable_seqscan = off; SET enable_indexscan = on; SET enable_indexonlyscan = on; \
                        SET enable_bitmapscan = on");
    execute(client, "RESET ALL");
    assert_eq!(by_table, by_index, "{table} WHERE {condition}: by the table, by the index");
}

fn assert_visibility_maps_agree(client: &mut Client) {
    for check in ["pg_check_visible", "pg_check_frozen"] {
        let sql = format!(
            "SELECT c.relname::text, t.t_ctid::text FROM pg_class c, LATERAL {check}(c.oid) t(t_ctid) \
             WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'"
        );
        let wrong: Vec<(String, String)> = client
            .query(&sql, &[])
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        assert!(wrong.is_empty(), "{check}: {wrong:?}");
    }
}

#[test]
fn pages_that_go_and_come_back_are_the_same() {
    let cluster = start(&["--cache-limit", "0"]);
    let before = dropped_blocks(&cluster);
    command_ids_outlive_eviction(&cluster);
    speculative_insertions_outlive_eviction(&cluster);
    vacuum_finds_pages_that_split_under_it(&cluster);
    indexes_are_built_while_pages_go(&cluster);
    visibility_maps_tell_the_truth(&cluster);
    sequences_skip_nothing(&cluster);
    assert!(dropped_blocks(&cluster) > before + 1000, "the cache dropped next to nothing");
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);
}

/// Hazard 1.
fn command_ids_outlive_eviction(cluster: &TestCluster) {
    let mut client = cluster.connect();
    execute(&mut client, "CREATE TABLE commands (id int, v int)");
    let mut transaction = client.transaction().expect("begun");
    let mut run = |sql: &str| transaction.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    run("INSERT INTO commands SELECT n, 0 FROM generate_series(1, 3000) n");
    run("DECLARE as_inserted CURSOR FOR SELECT id, v FROM commands");
    run("UPDATE commands SET v = v + 1");
    run("DECLARE as_updated CURSOR FOR SELECT id, v FROM commands");
    run("UPDATE commands SET v = v + 1 WHERE id % 2 = 0; DELETE FROM commands WHERE id % 3 = 0");
    evict(cluster, "commands", 0);
    let mut fetch = |cursor: &str| -> (usize, i32) {
        let rows = transaction.query(&format!("FETCH ALL FROM {cursor}"), &[]).expect("fetched");
        (rows.len(), rows.iter().map(|row| row.get::<_, i32>(1)).sum())
    };
    assert_eq!(fetch("as_inserted"), (3000, 0));
    assert_eq!(fetch("as_updated"), (3000, 3000));
    let now = transaction.query_one("SELECT count(*), sum(v) FROM commands", &[]).expect("counted");
    assert_eq!((now.get::<_, i64>(0), now.get::<_, i64>(1)), (2000, 3000));
    transaction.commit().expect("committed");
    evict(cluster, "commands", 0);
    assert_eq!(number(&mut client, "SELECT sum(v) FROM commands"), 3000);
}

/// Hazard 2. One session stands still between the insertion into the table and the confirmation, its page goes and
/// comes back, and another one that finds the row still sees that it is speculative.
fn speculative_insertions_outlive_eviction(cluster: &TestCluster) {
    const UPSERT: &str = "INSERT INTO counts VALUES (1, 1) ON CONFLICT (k) DO UPDATE SET n = counts.n + 1";
    let mut controller = cluster.connect();
    execute(
        &mut controller,
        "CREATE TABLE counts (k int PRIMARY KEY, n int);
         CREATE FUNCTION pause(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
             'BEGIN PERFORM pg_advisory_lock_shared(7); PERFORM pg_advisory_unlock_shared(7); RETURN $1; END';
         CREATE INDEX ON counts (pause(n));
         SELECT pg_advisory_lock(7)",
    );
    let waits_for = |controller: &mut Client, what: &str| {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE locktype = '{what}' AND NOT granted");
        cluster.eventually(what, Duration::from_secs(30), || number(controller, &sql) > 0);
    };
    let upsert = || {
        let mut client = cluster.connect();
        std::thread::spawn(move || execute(&mut client, UPSERT))
    };
    let first = upsert();
    waits_for(&mut controller, "advisory");
    evict(cluster, "counts", 0);
    let second = upsert();
    waits_for(&mut controller, "spectoken");
    execute(&mut controller, "SELECT pg_advisory_unlock(7)");
    first.join().expect("the first insertion works");
    second.join().expect("the second insertion becomes an update");
    assert_eq!(number(&mut controller, "SELECT sum(n) FROM counts"), 2);
}

/// Hazard 3. A page that splits while vacuum is under way may move dead entries to a page that vacuum has passed;
/// the vacuum cycle id in both, which no redo restores, makes it go back.
fn vacuum_finds_pages_that_split_under_it(cluster: &TestCluster) {
    let (mut client, mut reader, mut writer) = (cluster.connect(), cluster.connect(), cluster.connect());
    execute(
        &mut client,
        "CREATE TABLE splits (id int, pad text) WITH (autovacuum_enabled = off);
         INSERT INTO splits SELECT n, repeat('s', 60) FROM generate_series(1, 24000) n;
         CREATE INDEX splits_by_id ON splits (id, pad) WITH (fillfactor = 100);
         DELETE FROM splits WHERE id <= 8000",
    );
    // Leaves free pages at the start of the index, for the halves of pages further back. A deleted page is free when
    // no transaction of its time is left.
    for _ in 0..3 {
        execute(&mut client, "VACUUM (INDEX_CLEANUP on) splits");
        execute(&mut client, "SELECT txid_current()");
    }
    let free = "SELECT count(*) FROM pg_freespace('splits_by_id') WHERE avail > 0";
    assert!(number(&mut client, free) > 50, "the index has free pages");
    execute(&mut client, "DELETE FROM splits WHERE id % 3 = 0");
    // An index-only scan keeps its page pinned, and vacuum waits for that.
    execute(
        &mut reader,
        "SET enable_seqscan = off; SET enable_bitmapscan = off; BEGIN;
         DECLARE here CURSOR FOR SELECT id FROM splits WHERE id >= 12000 ORDER BY id; FETCH 1 FROM here",
    );
    let vacuum = std::thread::spawn(move || {
        execute(&mut client, "VACUUM (INDEX_CLEANUP on) splits");
        client
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'BufferPin'";
    cluster.eventually("vacuum waits", Duration::from_secs(60), || number(&mut writer, waiting) > 0);
    // Every page of the index is full, so each of these splits one.
    execute(
        &mut writer,
        "INSERT INTO splits SELECT 14000 + n / 3 * 70, repeat('t', 60) FROM generate_series(0, 420) n",
    );
    // The pinned page, and those on the way to it, may stay.
    evict(cluster, "splits_by_id", 4);
    execute(&mut reader, "COMMIT");
    let mut client = vacuum.join().expect("vacuum works");
    // Dead entries that vacuum missed would now point at other rows.
    execute(&mut client, "INSERT INTO splits SELECT n, 'again' FROM generate_series(1, 8000) n");
    assert_index_agrees(&mut client, "id, pad", "splits", "id >= 0");
}

/// Hazard 5.
fn indexes_are_built_while_pages_go(cluster: &TestCluster) {
    let mut client = cluster.connect();
    execute(
        &mut client,
        "CREATE TABLE built (id int, words text[], place point, name text);
         INSERT INTO built SELECT n, ARRAY[md5((n % 50)::text), md5((n % 77)::text)], point(n % 100, n / 100), \
             'name ' || md5(n::text) FROM generate_series(1, 12000) n;
         SET maintenance_work_mem = '1MB'",
    );
    let pressure = Pressure::start(cluster);
    for index in [
        "USING btree (name)",
        "USING gin (words) WITH (fastupdate = off)",
        "USING gist (place)",
        "USING spgist (name)",
        "USING hash (id)",
        "USING brin (id)",
    ] {
        execute(&mut client, &format!("CREATE INDEX ON built {index}"));
        // And used at once, while it is written.
        execute(&mut client, "UPDATE built SET id = id + 100000 WHERE id % 40 = 7 AND id < 100000");
    }
    drop(pressure);
    evict(cluster, "built", 0);
    assert_built(&mut client);
}

fn assert_built(client: &mut Client) {
    for condition in [
        "name BETWEEN 'name 3' AND 'name 9'",
        "words @> ARRAY[md5('7')]",
        "place <@ box '(10,10),(60,90)'",
        "name LIKE 'name ab%'",
        "id = 4000",
        "id BETWEEN 2000 AND 3000",
    ] {
        assert_index_agrees(client, "id, name", "built", condition);
    }
}

/// Hazard 6.
fn visibility_maps_tell_the_truth(cluster: &TestCluster) {
    let mut client = cluster.connect();
    execute(
        &mut client,
        "CREATE TABLE seen (id int PRIMARY KEY, v int) WITH (autovacuum_enabled = off, fillfactor = 70);
         INSERT INTO seen SELECT n, 0 FROM generate_series(1, 20000) n",
    );
    let pressure = Pressure::start(cluster);
    for round in 0..6 {
        execute(&mut client, "VACUUM seen");
        execute(&mut client, &format!("UPDATE seen SET v = v + 1 WHERE id % 500 = {round}"));
        execute(&mut client, &format!("DELETE FROM seen WHERE id % 997 = {round}"));
        execute(
            &mut client,
            &format!("INSERT INTO seen SELECT {} + n, 0 FROM generate_series(1, 50) n", 30000 + round * 100),
        );
        if round == 4 {
            execute(&mut client, "VACUUM (FREEZE) seen");
        }
        assert_index_agrees(&mut client, "id", "seen", "id > 0");
    }
    drop(pressure);
    assert_visibility_maps_agree(&mut client);
}

/// A sequence hands out values without a word in the log; its page must not come back from redo.
fn sequences_skip_nothing(cluster: &TestCluster) {
    let mut client = cluster.connect();
    execute(&mut client, "CREATE SEQUENCE steady");
    for expected in 1..=5 {
        assert_eq!(number(&mut client, "SELECT nextval('steady')"), expected);
        evict(cluster, "steady", 0);
    }
}

#[test]
fn what_a_crash_leaves_is_what_was_committed() {
    let cluster = start(&[]);
    hints_outlive_eviction(&cluster);
    let sizes = relations_shrink_and_grow(&cluster);
    let databases = databases_are_copied(&cluster);
    a_record_spans_segments(&cluster);
    a_prepared_transaction_opens_a_segment(&cluster);
    many_relations_cost_what_few_do(&cluster);

    cluster.ok(&["instance", "kill"]);
    let folder = cluster.dir().join("instances").join("1");
    std::fs::remove_dir_all(&folder).expect("the instance's directory is deleted");
    cluster.ok(&["instance", "start"]);

    let mut client = cluster.connect();
    // Hazard 8: sizes are those from before, and every block is there.
    assert_eq!(relation_sizes(&mut client), sizes);
    assert_eq!(number(&mut client, "SELECT count(*) FROM shrinking"), 700);
    assert_eq!(number(&mut client, "SELECT count(*) FROM regrown"), 500);
    execute(&mut client, "INSERT INTO shrinking SELECT n, repeat('x', 500) FROM generate_series(1, 9000) n");
    execute(&mut client, "VACUUM shrinking");
    // Hazard 20.
    for database in &databases {
        assert_eq!(template_rows(&cluster, database), 5000, "database {database}");
    }
    // Hazard 22.
    execute(&mut client, "COMMIT PREPARED 'at the start of a segment'");
    assert_eq!(number(&mut client, "SELECT count(*) FROM prepared"), 1000);
    // Hazard 14.
    assert_eq!(number(&mut client, "SELECT count(*) FROM pg_class WHERE relname LIKE 'many_%'"), 1500);
    assert_eq!(number(&mut client, "SELECT count(*) FROM many_1400"), 1);
    // Hazards 6 and 7.
    assert_visibility_maps_agree(&mut client);
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);
}

/// Hazard 4: with the local cache, what PostgreSQL notes in a page without logging it is still there when the page
/// comes back.
fn hints_outlive_eviction(cluster: &TestCluster) {
    /// `HEAP_XMIN_COMMITTED`
    const HINTED: &str =
        "SELECT count(*) FROM heap_page_items(get_raw_page('hinted', 0)) WHERE t_infomask & 256 <> 0";
    let mut client = cluster.connect();
    execute(
        &mut client,
        "CREATE TABLE hinted WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 100) n",
    );
    assert_eq!(number(&mut client, HINTED), 0);
    assert_eq!(number(&mut client, "SELECT count(*) FROM hinted"), 100);
    assert_eq!(number(&mut client, HINTED), 100);
    evict(cluster, "hinted", 0);
    assert_eq!(number(&mut client, HINTED), 100);
}

/// Hazards 7 and 8.
fn relations_shrink_and_grow(cluster: &TestCluster) -> Vec<(String, i64)> {
    let mut client = cluster.connect();
    execute(
        &mut client,
        "CREATE TABLE shrinking (id int, v text) WITH (autovacuum_enabled = off);
         INSERT INTO shrinking SELECT n, repeat('x', 500) FROM generate_series(1, 9000) n;
         CREATE TABLE regrown (id int, v text) WITH (autovacuum_enabled = off);
         INSERT INTO regrown SELECT n, repeat('y', 500) FROM generate_series(1, 5000) n",
    );
    execute(&mut client, "VACUUM shrinking");
    execute(&mut client, "DELETE FROM shrinking WHERE id > 700");
    execute(&mut client, "VACUUM shrinking");
    let pages = number(&mut client, "SELECT pg_relation_size('shrinking') / 8192");
    assert!(pages < 100, "vacuum has cut the table: {pages} pages are left");
    execute(&mut client, "TRUNCATE regrown");
    execute(&mut client, "INSERT INTO regrown SELECT n, repeat('z', 500) FROM generate_series(1, 500) n");
    assert_visibility_maps_agree(&mut client);
    relation_sizes(&mut client)
}

fn relation_sizes(client: &mut Client) -> Vec<(String, i64)> {
    client
        .query(
            "SELECT c.relname::text || ' ' || f, pg_relation_size(c.oid, f) FROM pg_class c, \
             unnest(ARRAY['main', 'vm']) f WHERE c.relname IN ('shrinking', 'regrown', 'filler', 'hinted') ORDER BY 1",
            &[],
        )
        .expect("sizes")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// Hazard 20: both ways to copy a database, in both kinds of tablespace, and a move.
fn databases_are_copied(cluster: &TestCluster) -> Vec<String> {
    let mut client = cluster.connect();
    let folder = cluster.postgres_folder("other disk");
    execute(&mut client, &format!("CREATE TABLESPACE other LOCATION '{}'", folder.display()));
    execute(&mut client, "CREATE DATABASE original");
    let mut there = connect_to(cluster, "original");
    execute(
        &mut there,
        "CREATE TABLE rows (id int PRIMARY KEY, v text);
         INSERT INTO rows SELECT n, md5(n::text) FROM generate_series(1, 5000) n",
    );
    drop(there);
    let mut databases = vec!["original".to_owned()];
    for strategy in ["wal_log", "file_copy"] {
        for tablespace in ["pg_default", "other"] {
            let name = format!("copy_{strategy}_{tablespace}");
            let sql = format!(
                "CREATE DATABASE {name} TEMPLATE original STRATEGY {strategy} TABLESPACE {tablespace}"
            );
            execute(&mut client, &sql);
            databases.push(name);
        }
    }
    execute(&mut client, "ALTER DATABASE copy_wal_log_pg_default SET TABLESPACE other");
    execute(&mut client, "ALTER DATABASE copy_file_copy_other SET TABLESPACE pg_default");
    for database in &databases {
        assert_eq!(template_rows(cluster, database), 5000, "database {database}");
    }
    databases
}

fn connect_to(cluster: &TestCluster, database: &str) -> Client {
    let url = format!("postgresql://postgres@127.0.0.1:{}/{database}", cluster.port);
    Client::connect(&url, postgres::NoTls).unwrap_or_else(|error| panic!("{database}: {error}"))
}

/// Rows that a copy of `original` has, counted by table and by index.
fn template_rows(cluster: &TestCluster, database: &str) -> i64 {
    let mut client = connect_to(cluster, database);
    assert_index_agrees(&mut client, "id, v", "rows", "id > 0");
    number(&mut client, "SELECT count(*) FROM rows WHERE v = md5(id::text)")
}

/// Hazard 21: records longer than what is left of their segment, some longer than a segment's half.
fn a_record_spans_segments(cluster: &TestCluster) {
    let mut client = cluster.connect();
    for _ in 0..8 {
        let sql = "SELECT pg_logical_emit_message(true, 'long', repeat('m', 5000000))::text";
        client.query_one(sql, &[]).expect("a long record");
    }
    let segments = number(&mut client, "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint / (16 << 20)");
    assert!(segments >= 3, "no record spans two segments: the log is in segment {segments}");
}

/// Hazard 22.
fn a_prepared_transaction_opens_a_segment(cluster: &TestCluster) {
    let (mut client, mut other) = (cluster.connect(), cluster.connect());
    execute(&mut client, "CREATE TABLE prepared (id int)");
    // Something may be logged between the two; then the next attempt counts.
    for attempt in 0..20 {
        execute(&mut client, "BEGIN; INSERT INTO prepared SELECT generate_series(1, 1000)");
        execute(&mut other, "SELECT pg_switch_wal()");
        let at =
            number(&mut other, "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint % (16 << 20)");
        execute(&mut client, "PREPARE TRANSACTION 'at the start of a segment'");
        // Right behind the long header of a segment's first page.
        if at == 40 || at == 0 {
            return;
        }
        println!("attempt {attempt}: the segment had {at} bytes already");
        execute(&mut client, "ROLLBACK PREPARED 'at the start of a segment'");
    }
    panic!("no prepared transaction was the first record of its segment");
}

/// Hazard 14.
fn many_relations_cost_what_few_do(cluster: &TestCluster) {
    let mut client = cluster.connect();
    let mut quarter = |from: i32| {
        let begun = Instant::now();
        for number in from..from + 250 {
            execute(&mut client, &format!("CREATE TABLE many_{number} AS SELECT {number} AS n"));
        }
        begun.elapsed()
    };
    let times: Vec<Duration> = (0..6).map(|round| quarter(round * 250)).collect();
    println!("250 tables each: {times:?}");
    let (first, last) = (times[0].min(times[1]), times[4].min(times[5]));
    assert!(last < first * 4, "relations become dearer with their number: {times:?}");
}
