//! Real WAL against what a stopped server leaves outside its pages: the control file, relation maps, prepared
//! transactions, databases and tablespaces.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "compares with the files of a real server"
)]
#![allow(clippy::unwrap_used)] // All of this is test code.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use borealis_redo::control_file::{ClusterState, ControlFile};
use borealis_redo::counters::Counters;
use borealis_redo::{apply_meta, meta_before};
use borealis_types::{DatabaseKey, Lsn, MetaKey};
use borealis_wal::layout::{CheckPointRecord, xlog};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{Effect, Record, ResourceManager, effects};
use support::Cluster;

const GLOBAL: DatabaseKey = DatabaseKey { tablespace: borealis_types::GLOBAL_TABLESPACE, database: 0 };

/// Uses up ids of every kind, and changes every kind of small value. No checkpoint comes after what uses up ids,
/// because it would tell the counters.
const WORKLOAD: &str = "
create database by_log;
create database by_file template by_log strategy file_copy;
create database dropped strategy file_copy;
drop database dropped;
create table lockable (id int primary key, note text);
insert into lockable select i, 'x' from generate_series(1, 3000) i;
do $$ begin for i in 1..600 loop
    perform * from lockable where id = i for key share;
    begin update lockable set note = 'in a subtransaction' where id = i; exception when division_by_zero then end;
end loop; end $$;
do $$ begin for i in 1..500 loop perform pg_current_xact_id(); commit; end loop; end $$;
select lo_create(0) from generate_series(1, 9000);
vacuum full pg_class;
begin; insert into lockable values (-1, 'prepared and kept'); savepoint s;
    insert into lockable values (-2, 'in a subtransaction'); prepare transaction 'kept';
begin; insert into lockable values (-3, 'prepared and gone'); prepare transaction 'gone';
begin; insert into lockable values (-4, 'prepared and aborted'); prepare transaction 'aborted';
commit prepared 'gone';
rollback prepared 'aborted';
vacuum (freeze);
";

/// The small values as redo leaves them.
struct Values(BTreeMap<MetaKey, Vec<u8>>);

impl Values {
    fn apply(&mut self, record: &Record<'_>) {
        let mut changes = Vec::new();
        effects(record, &mut changes).unwrap();
        changes.retain(|effect| !matches!(effect, Effect::Meta(MetaKey::Counters)));
        changes.push(Effect::Meta(MetaKey::Counters));
        for effect in changes {
            let Effect::Meta(key) = effect else { continue };
            let before = meta_before(record, &key).unwrap().unwrap_or_else(|| key.clone());
            match apply_meta(record, &key, self.0.get(&before).cloned()).unwrap() {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    fn counters(&self) -> Counters {
        Counters::decode(&self.0[&MetaKey::Counters]).unwrap()
    }
}

fn control_file(cluster: &Cluster) -> (Vec<u8>, ControlFile) {
    let file = fs::read(cluster.data().join("global/pg_control")).unwrap();
    let decoded = ControlFile::decode(&file).unwrap();
    (file, decoded)
}

/// Every relation map file of the cluster.
fn relation_maps(data: &Path) -> BTreeMap<MetaKey, Vec<u8>> {
    let mut folders: Vec<(DatabaseKey, PathBuf)> = vec![(GLOBAL, data.join("global"))];
    for entry in fs::read_dir(data.join("base")).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(database) = path.file_name().unwrap().to_str().unwrap().parse() {
            folders.push((DatabaseKey { tablespace: borealis_types::DEFAULT_TABLESPACE, database }, path));
        }
    }
    folders
        .into_iter()
        .map(|(key, folder)| (MetaKey::RelationMap(key), fs::read(folder.join("pg_filenode.map")).unwrap()))
        .collect()
}

/// Every counter of `behind` is at or behind that of `ahead`.
fn assert_not_ahead(behind: &CheckPointRecord, ahead: &CheckPointRecord) {
    assert!(behind.next_full_xid <= ahead.next_full_xid, "{behind:?} {ahead:?}");
    assert!(behind.next_oid <= ahead.next_oid, "{behind:?} {ahead:?}");
    assert!(behind.next_multi <= ahead.next_multi, "{behind:?} {ahead:?}");
    assert!(behind.next_multi_offset <= ahead.next_multi_offset, "{behind:?} {ahead:?}");
}

#[test]
fn values_outside_pages_are_what_the_server_left_in_its_files() {
    let mut cluster = Cluster::create("wal_level = logical");
    let (_, fresh) = control_file(&cluster);
    assert_eq!(fresh.state, ClusterState::ShutDown);
    let mut values = Values(relation_maps(&cluster.data()));
    let counters = Counters::from_control_file(&fresh);
    values.0.insert(MetaKey::Counters, counters.encode());
    assert_eq!(counters.to_checkpoint(fresh.checkpoint, fresh.checkpoint_copy.time), fresh.checkpoint_copy);

    cluster.start();
    cluster.sql("postgres", WORKLOAD);
    let place = cluster.folder().join("place");
    fs::create_dir(&place).unwrap();
    cluster.give_to_server(&place);
    cluster.sql("postgres", &format!("create tablespace place location '{}';", place.display()));
    cluster.stop();

    let wal = cluster.wal_bytes();
    let window = WalWindow { start: wal.0, bytes: &wal.1 };
    let mut decoder = RecordDecoder::new(cluster.release(), fresh.checkpoint, Lsn::ZERO);
    while let Next::Record(record) = decoder.next(&window).unwrap() {
        let known = values.counters().to_checkpoint(Lsn::ZERO, 0);
        values.apply(&record);
        let is_shutdown = record.resource_manager == ResourceManager::Xlog
            && record.operation() == xlog::CHECKPOINT_SHUTDOWN
            && record.span.start > fresh.checkpoint;
        if is_shutdown {
            // What the records before it proved must never hand out an id that is in use, and may waste some
            // OIDs, which are logged in advance.
            let actual = CheckPointRecord::parse(&record).unwrap();
            assert_not_ahead(&actual, &known);
            assert_eq!(known.next_full_xid, actual.next_full_xid);
            assert_eq!(
                (known.next_multi, known.next_multi_offset),
                (actual.next_multi, actual.next_multi_offset)
            );
            assert!(actual.next_multi > 500 && actual.next_oid > 16_384 + 9000, "{actual:?}");
        }
    }

    let (file, control_file) = control_file(&cluster);
    assert_eq!(control_file.encode(), file, "the control file is written as the server writes it");
    let checkpoint = control_file.checkpoint_copy;
    let counters = values.counters();
    assert_eq!(counters.to_checkpoint(control_file.checkpoint, checkpoint.time), checkpoint);
    assert_eq!(counters.parameters, control_file.parameters());
    assert_eq!(counters.last_record.start, control_file.checkpoint);
    let again = fresh.shut_down_at(checkpoint, &counters.parameters);
    let same_time = ControlFile { time: control_file.time, unlogged_lsn: control_file.unlogged_lsn, ..again };
    assert_eq!(same_time, control_file, "made up from the first control file and the counters");

    for (key, expected) in relation_maps(&cluster.data()) {
        assert!(values.0.get(&key) == Some(&expected), "{key:?} differs from its file");
    }
    let prepared: Vec<_> = fs::read_dir(cluster.data().join("pg_twophase")).unwrap().collect();
    assert_eq!(prepared.len(), 1);
    let path = prepared[0].as_ref().unwrap().path();
    let xid = u32::from_str_radix(path.file_name().unwrap().to_str().unwrap(), 16).unwrap();
    assert!(values.0.get(&MetaKey::PreparedTransaction(xid)) == Some(&fs::read(&path).unwrap()));
    let count = |wanted: fn(&MetaKey) -> bool| values.0.keys().filter(|key| wanted(key)).count();
    assert_eq!(count(|key| matches!(key, MetaKey::PreparedTransaction(_))), 1);
    assert_eq!(count(|key| matches!(key, MetaKey::Database(_))), 2, "two databases were created and kept");
    let tablespaces: Vec<_> = values
        .0
        .iter()
        .filter(|(key, _)| matches!(key, MetaKey::Tablespace(_)))
        .map(|(_, path)| path)
        .collect();
    assert_eq!(tablespaces, [place.to_str().unwrap().as_bytes()]);
}
