//! A real `initdb` becomes a chain of records.

use borealis_instance::{Binaries, Import, InstanceError, OperatingSystemUser, import};
use borealis_types::{Lsn, MetaKey, PageKey};
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
        .for_each_record(|record| -> Result<(), InstanceError> {
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
    assert_eq!(last_effect, Some(Effect::Meta(MetaKey::ControlFileTemplate)), "marks a finished import");
    assert_eq!(databases, 3, "template1, template0 and postgres");
    assert!(status_pages >= 3, "transactions, multixact offsets and members");
}
