//! A real `initdb` becomes a chain of records.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use borealis_instance::leftovers::{self, IMPORT_DIRECTORY};
use borealis_instance::{Binaries, Import, InstanceError, OperatingSystemUser, import};
use borealis_types::{DatabaseKey, GLOBAL_TABLESPACE, Lsn, MetaKey, PageKey, RecordSpan};
use borealis_wal::{Effect, Record, effects, verify_checksum};

#[test]
fn an_initdb_becomes_an_unbroken_chain_of_records() {
    let binaries = Binaries::find(None).expect("PostgreSQL 15 is installed");
    let user = OperatingSystemUser::choose(None).expect("a user to run as");
    let folder = tempfile::tempdir().expect("temporary folder");
    if user.switch {
        std::os::unix::fs::chown(folder.path(), Some(user.user_id), Some(user.group_id)).expect("given");
    }
    let directory = folder.path().join("data");
    import::run_initdb(&binaries, &user, &directory).expect("initdb");
    let import = Import::read(binaries.server_version.major(), &directory).expect("read");

    let (mut previous, mut last_effect) = (None, None);
    let (mut blocks, mut databases, mut status_pages, mut bytes) = (0, 0, 0, 0);
    import
        .for_each_record(RecordSpan::NONE, |record| -> Result<(), InstanceError> {
            verify_checksum(&record.bytes, record.span.start).expect("checksum");
            let parsed =
                Record::parse(binaries.server_version, record.span, &record.bytes).expect("well-formed");
            match previous {
                None => assert_eq!(parsed.previous_start, Lsn::ZERO),
                Some(before) => assert_eq!(parsed.previous_start, before),
            }
            previous = Some(record.span.start);
            bytes += record.bytes.len();
            let mut found = Vec::new();
            effects(&parsed, &mut found).expect("known effects");
            for effect in found {
                last_effect = Some(effect.clone());
                match effect {
                    Effect::Page(PageKey::Block(_)) => blocks += 1,
                    Effect::Page(PageKey::Slru { .. }) => status_pages += 1,
                    Effect::Meta(MetaKey::Database(_)) => databases += 1,
                    _ => {}
                }
            }
            Ok(())
        })
        .expect("imported");
    println!("{blocks} blocks, {bytes} bytes");
    assert!(blocks > 2000, "only {blocks} blocks");
    assert_eq!(last_effect, Some(Effect::Meta(import::import_mark())), "marks a finished import");
    assert_eq!(databases, 3, "template1, template0 and postgres");
    assert!(status_pages >= 3, "transactions, multixact offsets and members");
    resumed_import_is_linked_to_what_is_there(&import, binaries.server_version);
}

fn resumed_import_is_linked_to_what_is_there(import: &Import, version: borealis_types::ServerVersion) {
    let last = RecordSpan { start: Lsn(0x900_0028), end: Lsn(0x900_0060) };
    let mut previous = last;
    let mut dropped = Vec::new();
    let mut meta = Vec::new();
    let mut ship = |record: borealis_instance::ImportedRecord| -> Result<(), InstanceError> {
        let parsed = Record::parse(version, record.span, &record.bytes).expect("well-formed");
        assert_eq!(parsed.previous_start, previous.start);
        assert!(record.span.start >= previous.end);
        previous = record.span;
        let mut found = Vec::new();
        effects(&parsed, &mut found).expect("known effects");
        for effect in found {
            match effect {
                Effect::DropDatabase(database) => dropped.push(database),
                Effect::CreateRelation(_) => assert_eq!(dropped.len(), 4, "dropped before anything is made"),
                Effect::Meta(key) => meta.push(key),
                _ => {}
            }
        }
        Ok(())
    };
    import.for_each_record(last, &mut ship).expect("imported");
    assert!(dropped.contains(&DatabaseKey { tablespace: GLOBAL_TABLESPACE, database: 0 }));
    // At every moment the volume has the mark, or the template.
    assert_eq!(meta.first(), Some(&import::import_mark()));
    assert_eq!(meta[meta.len() - 2..], [MetaKey::ControlFileTemplate, import::import_mark()]);
}

/// A file in `/dev/shm` that a process whose working directory is below `folder` has in its memory.
fn shared_memory_of(folder: &Path) -> Option<PathBuf> {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
    let mut inside = processes.filter(|process| {
        std::fs::read_link(process.join("cwd")).is_ok_and(|place| place.starts_with(folder))
    });
    inside.find_map(|process| {
        let maps = std::fs::read_to_string(process.join("maps")).unwrap_or_default();
        maps.split_whitespace().find(|word| word.starts_with("/dev/shm/PostgreSQL.")).map(PathBuf::from)
    })
}

#[test]
fn a_killed_initdb_leaves_no_shared_memory() {
    let binaries = Binaries::find(None).expect("PostgreSQL 15 is installed");
    let user = OperatingSystemUser::choose(None).expect("a user to run as");
    let folder = tempfile::tempdir().expect("temporary folder");
    let memory = folder.path().join("memory");
    std::fs::DirBuilder::new().mode(0o700).create(&memory).expect("made");
    std::os::unix::fs::chown(&memory, Some(user.user_id), Some(user.group_id)).expect("given");
    std::os::unix::fs::chown(folder.path(), Some(user.user_id), Some(user.group_id)).expect("given");
    // What fits on the machine is tried first, by servers that live for a moment.
    for _ in 0..20 {
        let file = std::thread::scope(|scope| {
            let initdb = scope.spawn(|| import::run_initdb(&binaries, &user, &memory.join(IMPORT_DIRECTORY)));
            let begun = Instant::now();
            let file = loop {
                if let Some(file) = shared_memory_of(&memory) {
                    break file;
                }
                assert!(begun.elapsed() < Duration::from_secs(60) && !initdb.is_finished(), "no server ran");
            };
            assert!(leftovers::clear(&memory) > 0);
            assert!(initdb.join().expect("no panic").is_err(), "it went on without its server");
            file
        });
        assert!(!file.exists(), "{} is left", file.display());
        std::fs::remove_dir_all(memory.join(IMPORT_DIRECTORY)).expect("what was killed did not remove it");
    }
}
