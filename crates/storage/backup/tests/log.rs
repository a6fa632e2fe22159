//! The log that is read from a backup is every record that counts, each once and in order, over recoveries that cut tails which somebody
//! had uploaded, with and without snapshots, from anywhere; and what is not all there is refused.

#![allow(clippy::unwrap_used)] // All of this is test code.

mod life;

use std::collections::BTreeSet;

use borealis_archive::name::Name;
use borealis_archive::sealing::Sealing;
use borealis_backup::contents::{Contents, read};
use borealis_backup::log::{LogError, for_each_record};
use borealis_backup::store::ObjectStore;
use borealis_backup::store::memory::MemoryStore;
use borealis_types::{Lsn, RecordSpan};
use life::{Life, Random, VOLUME};

const GROUPS: u16 = 4;

fn contents(objects: &MemoryStore) -> Contents {
    read(objects, VOLUME, &Sealing::Plain).unwrap()
}

/// The spans of the records that are handed out; each is of the epoch that the history says, and its bytes are a record's.
fn spans(
    life: &Life,
    objects: &MemoryStore,
    from: Lsn,
    through: Lsn,
) -> Result<Vec<RecordSpan>, (Vec<RecordSpan>, LogError)> {
    let mut found: Vec<RecordSpan> = Vec::new();
    let contents = contents(objects);
    let read = for_each_record(objects, &contents, &Sealing::Plain, from, through, |epoch, record| {
        assert!(life.history.admits(epoch, record.span.end), "{} was cut", record.span.end);
        borealis_wal::verify_checksum(record.bytes, record.span.start).unwrap();
        found.push(record.span);
        Ok::<(), LogError>(())
    });
    match read {
        Ok(end) => {
            assert_eq!(end, found.last().map_or(from, |span| span.end));
            Ok(found)
        }
        Err(error) => Err((found, error)),
    }
}

fn expected(life: &Life, from: Lsn, through: Lsn) -> Vec<RecordSpan> {
    life.spans().into_iter().filter(|span| span.end > from && span.end <= through).collect()
}

#[test]
fn every_record_that_counts_is_handed_out_once_and_in_order_from_anywhere() {
    for seed in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, seed);
        if seed % 2 == 1 {
            // Snapshots make no difference: the log is redo.
            life.snapshot(1, &life.turn().groups);
        }
        let (ends, newest) = (life.ends(), life.durable.end);
        assert_eq!(
            spans(&life, &life.objects, Lsn::ZERO, newest).unwrap(),
            expected(&life, Lsn::ZERO, newest)
        );
        let cuts = life.history.openings().iter().map(|opening| opening.last.end);
        let around: Vec<Lsn> =
            cuts.flat_map(|cut| [Lsn(cut.0.saturating_sub(1)), cut, Lsn(cut.0 + 1)]).collect();
        let mut random = Random(seed);
        for _ in 0..30 {
            let mut any = || match random.below(3) {
                0 => around[random.below(around.len() as u64) as usize],
                1 => Lsn(random.below(newest.0)),
                _ => ends[random.below(ends.len() as u64) as usize],
            };
            let (from, through) = (any(), any().min(newest));
            let (from, through) = (from.min(through), from.max(through).min(newest));
            assert_eq!(
                spans(&life, &life.objects, from, through).unwrap(),
                expected(&life, from, through),
                "seed {seed}, from {from} to {through}"
            );
        }
        let (_, beyond) = spans(&life, &life.objects, ends[3], Lsn(newest.0 + 8)).unwrap_err();
        assert!(matches!(beyond, LogError::Missing(missing) if missing.reach == newest), "{beyond}");
    }
}

#[test]
fn what_cannot_be_taken_ends_the_reading() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, 3);
    #[derive(Debug)]
    struct Full;
    impl From<LogError> for Full {
        fn from(error: LogError) -> Full {
            panic!("{error}");
        }
    }
    let (contents, mut taken) = (contents(&life.objects), 0);
    let read =
        for_each_record(&life.objects, &contents, &Sealing::Plain, Lsn::ZERO, life.durable.end, |_, _| {
            taken += 1;
            if taken == 100 { Err(Full) } else { Ok(()) }
        });
    assert!(matches!(read, Err(Full)));
    assert_eq!(taken, 100);
}

fn copy_with(objects: &MemoryStore, key: &str, bytes: Option<&[u8]>) -> MemoryStore {
    let copy = MemoryStore::default();
    for object in objects.list("", None).unwrap().objects {
        let own = objects.get(&object.key).unwrap();
        match (object.key == key, bytes) {
            (true, Some(bytes)) => copy.put_new(key, bytes).map(drop).unwrap(),
            (true, None) => {}
            (false, _) => copy.put_new(&object.key, &own).map(drop).unwrap(),
        }
    }
    copy
}

#[test]
fn a_spoilt_object_is_passed_over_where_another_has_what_it_had_and_else_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("volume"), GROUPS, 17);
    for _ in 0..3 {
        life.write(60);
        life.upload(1, false);
    }
    // The same redo by another node, which found nothing in the store.
    let alone = std::mem::take(&mut life.objects);
    life.upload(2, false);
    let twice = copy_with(&life.objects, "", None);
    for object in alone.list("", None).unwrap().objects {
        twice.put_new(&object.key, &alone.get(&object.key).unwrap()).unwrap();
    }
    let newest = life.durable.end;
    let all = expected(&life, Lsn::ZERO, newest);
    let (mut named, mut passed_over) = (BTreeSet::new(), 0);
    for object in alone.list("", None).unwrap().objects {
        let key = object.key;
        let Ok((_, Name::Redo(_))) = Name::of_key(&key) else { continue };
        let mut flipped = alone.get(&key).unwrap();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let (found, error) =
            spans(&life, &copy_with(&alone, &key, Some(&flipped)), Lsn::ZERO, newest).unwrap_err();
        assert!(all.starts_with(&found), "what was handed out before is right");
        assert!(matches!(&error, LogError::Damaged { object, .. } if *object == key), "{error}");
        let (found, error) = spans(&life, &copy_with(&alone, &key, None), Lsn::ZERO, newest).unwrap_err();
        assert!(found.is_empty() && matches!(error, LogError::Missing(_)), "{error}");
        named.insert(key.clone());

        let both = copy_with(&twice, &key, Some(&flipped));
        assert_eq!(spans(&life, &both, Lsn::ZERO, newest).unwrap(), all, "{key}");
        passed_over += 1;
    }
    assert!(named.len() >= 10 && passed_over == named.len(), "{named:?}");
}
