//! A stock server goes on after a crash from nothing but what redo made: pages, status pages, relation maps,
//! prepared transactions, and a control file with a made-up shutdown checkpoint. It replays nothing.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "runs a real server"
)]
#![allow(clippy::unwrap_used)] // All of this is test code.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use borealis_redo::check::Checker;
use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, DatabaseKey, Lsn, MetaKey, PAGE_SIZE, PageKey, PostgresVersion, RecordSpan,
    RelationFork,
};
use borealis_wal::encode::shutdown_checkpoint;
use borealis_wal::page::WalLayout;
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{Effect, effects};
use support::{Cluster, seeded_checker};

const GLOBAL: DatabaseKey = DatabaseKey { tablespace: borealis_types::GLOBAL_TABLESPACE, database: 0 };

const WORKLOAD: &str = "
create extension amcheck;
create table account (id int primary key, balance int not null, note text);
insert into account select i, 100, repeat('n', i % 50) from generate_series(1, 5000) i;
create index account_note on account (note);
create index account_hash on account using hash (id);
create index account_words on account using gin (string_to_array(note, 'n'));
create sequence numbers;
select nextval('numbers') from generate_series(1, 50);
do $$ begin for i in 1..200 loop
    update account set balance = balance - i where id = i;
    update account set balance = balance + i where id = 5000 - i;
    perform * from account where id = i for key share;
    begin update account set note = 'locked' where id = i; exception when division_by_zero then end;
    commit;
end loop; end $$;
create table emptied as select i from generate_series(1, 20000) i;
delete from emptied where i > 100;
vacuum emptied;
create table gone as select i from generate_series(1, 1000) i;
drop table gone;
create table never_filled (i int);
vacuum full pg_class;
vacuum (freeze) account;
begin; insert into account values (9001, 1, 'prepared'); prepare transaction 'kept';
begin; update account set balance = 0; rollback;
";

const CHECKS: &str = "
set lock_timeout = '10s';
select 1 / (select 1 - count(*) from account where id = 9001);
commit prepared 'kept';
do $$ declare wrong text; found bigint; begin
    select sum(balance) into found from account;
    if found <> 500001 then raise 'balances add up to %', found; end if;
    select count(*) into found from emptied;
    if found <> 100 then raise '% rows are left', found; end if;
    if to_regclass('gone') is not null then raise 'a dropped table is back'; end if;
    if exists (select from account where note = 'never committed') then raise 'an open transaction committed'; end if;
    if nextval('numbers') <= 50 then raise 'a sequence went back'; end if;
    select string_agg(relation || ': ' || msg, '; ') into wrong from (
        select c.oid::regclass::text as relation, (verify_heapam(c.oid)).msg from pg_class c where relkind in ('r', 't', 'm')
    ) problems;
    if wrong is not null then raise 'corrupt: %', wrong; end if;
    perform bt_index_parent_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
        where c.relkind = 'i' and a.amname = 'btree';
end $$;
set enable_seqscan = off;
do $$ begin
    if (select count(*) from account where id = 17) <> 1 then raise 'the hash index lost a row'; end if;
end $$;
insert into account select i, 1, 'after the restart' from generate_series(10001, 10100) i;
insert into never_filled values (1);
create table afterwards as select * from account;
checkpoint;
";

/// What redo knows at the end of the log.
struct Redone {
    checker: Checker,
    relations: BTreeSet<RelationFork>,
    last: RecordSpan,
}

fn replay(cluster: &Cluster, mut checker: Checker, start: Lsn) -> Redone {
    let (wal_start, bytes) = cluster.wal_bytes();
    let window = WalWindow { start: wal_start, bytes: &bytes };
    let mut decoder = RecordDecoder::new(cluster.release(), start, Lsn::ZERO);
    let (mut relations, mut last) = (BTreeSet::new(), RecordSpan::NONE);
    let mut changes = Vec::new();
    while let Next::Record(record) = decoder.next(&window).unwrap() {
        changes.clear();
        effects(&record, &mut changes).unwrap();
        for change in &changes {
            match change {
                Effect::CreateRelation(relation_fork) => {
                    relations.insert(*relation_fork);
                }
                Effect::DropRelation(locator) => relations.retain(|fork| fork.locator != *locator),
                _ => {}
            }
        }
        checker.feed(&record);
        last = record.span;
    }
    Redone { checker, relations, last }
}

fn relation_path(data: &Path, relation_fork: RelationFork, segment: u32) -> PathBuf {
    let locator = relation_fork.locator;
    let folder = match locator.tablespace {
        1664 => data.join("global"),
        _ => data.join("base").join(locator.database.to_string()),
    };
    let suffix = if segment == 0 { String::new() } else { format!(".{segment}") };
    folder.join(format!("{}{}{suffix}", locator.relation, relation_fork.fork.file_suffix()))
}

/// The file a page is in, and the page's number there.
fn place(data: &Path, key: &PageKey) -> (PathBuf, u32) {
    match key {
        PageKey::Block(block) => {
            let segment = block.block / BLOCKS_PER_SEGMENT_FILE;
            (relation_path(data, block.relation_fork, segment), block.block % BLOCKS_PER_SEGMENT_FILE)
        }
        PageKey::Slru { kind, page } => {
            let name = format!("{:04X}", page / borealis_types::SLRU_PAGES_PER_SEGMENT);
            (data.join(kind.folder()).join(name), page % borealis_types::SLRU_PAGES_PER_SEGMENT)
        }
    }
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// Makes a fresh `initdb`'s folder what redo says, with a log that holds nothing but a shutdown checkpoint.
fn write_redone(data: &Path, fresh: &ControlFile, fresh_pages: &[PageKey], redone: &Redone) {
    for relation_fork in &redone.relations {
        write_at(&relation_path(data, *relation_fork, 0), 0, &[]);
    }
    for key in fresh_pages.iter().filter(|key| redone.checker.page(key).is_none()) {
        let (path, page) = place(data, key);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let kept = file.metadata().unwrap().len().min(u64::from(page) * PAGE_SIZE as u64);
        file.set_len(kept).unwrap();
    }
    for (key, bytes, _) in redone.checker.changed_pages() {
        let (path, page) = place(data, key);
        write_at(&path, u64::from(page) * PAGE_SIZE as u64, bytes);
    }
    for (key, value) in redone.checker.values() {
        match key {
            MetaKey::RelationMap(GLOBAL) => fs::write(data.join("global/pg_filenode.map"), value).unwrap(),
            MetaKey::RelationMap(database) => {
                let folder = data.join("base").join(database.database.to_string());
                fs::write(folder.join("pg_filenode.map"), value).unwrap();
            }
            MetaKey::PreparedTransaction(xid) => {
                fs::write(data.join("pg_twophase").join(format!("{xid:08X}")), value).unwrap();
            }
            _ => {}
        }
    }

    let counters = Counters::decode(redone.checker.value(&MetaKey::Counters).unwrap()).unwrap();
    assert_eq!(counters.last_record, redone.last);
    let layout = WalLayout {
        version: PostgresVersion::V15,
        timeline: counters.timeline,
        system_identifier: fresh.system_identifier,
        segment_bytes: fresh.wal_segment_bytes,
    };
    let made_up = counters.to_checkpoint(Lsn::ZERO, fresh.time);
    let written = shutdown_checkpoint(&layout, redone.last, made_up);
    let checkpoint = counters.to_checkpoint(written.span.start, fresh.time);
    let control_file = fresh.shut_down_at(checkpoint, &counters.parameters);
    fs::write(data.join("global/pg_control"), control_file.encode()).unwrap();
    let wal = data.join("pg_wal");
    for entry in fs::read_dir(&wal).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    let segment_bytes = u64::from(layout.segment_bytes);
    for (position, bytes) in &written.pages {
        let segment = position.0 / segment_bytes;
        let name = format!("{:08X}{:08X}{:08X}", layout.timeline, segment >> 8, segment & 0xFF);
        write_at(&wal.join(&name), position.0 % segment_bytes, &bytes[..]);
        let file = fs::OpenOptions::new().write(true).open(wal.join(name)).unwrap();
        file.set_len(segment_bytes).unwrap();
    }
}

#[test]
fn a_server_goes_on_from_redone_pages_and_a_made_up_checkpoint() {
    let mut cluster = Cluster::create("wal_consistency_checking = ''");
    let data = cluster.data();
    let fresh = ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
    let mut checker = seeded_checker(&cluster);
    let fresh_pages: Vec<PageKey> = cluster.pages().into_iter().map(|(key, _)| key).collect();
    checker.seed_value(MetaKey::Counters, Counters::from_control_file(&fresh).encode());
    let kept = cluster.folder().join("fresh");
    assert!(Command::new("cp").arg("-a").arg(&data).arg(&kept).status().unwrap().success());

    cluster.start();
    cluster.sql("postgres", WORKLOAD);
    let mut open = cluster.start_sql("postgres");
    let script = b"begin; insert into account values (-1, 0, 'never committed');\nselect pg_switch_wal();\nselect pg_sleep(60);\n";
    std::io::Write::write_all(open.stdin.as_mut().unwrap(), script).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    cluster.crash();
    let _ = open.wait();

    let redone = replay(&cluster, checker, fresh.checkpoint);
    support::assert_no_problem(&redone.checker);
    fs::rename(&data, cluster.folder().join("crashed")).unwrap();
    fs::rename(&kept, &data).unwrap();
    write_redone(&data, &fresh, &fresh_pages, &redone);
    cluster.give_to_server(&data);

    cluster.start();
    let log = fs::read_to_string(cluster.folder().join("log")).unwrap();
    let last_start = log.rsplit("starting PostgreSQL").next().unwrap();
    assert!(last_start.contains("database system was shut down at"), "{last_start}");
    assert!(!last_start.contains("redo starts at"), "{last_start}");
    cluster.sql("postgres", CHECKS);
    cluster.stop();
    cluster.start();
    cluster.sql("postgres", "select 1 / (select count(*) from afterwards where note = 'after the restart');");
    cluster.stop();
}
