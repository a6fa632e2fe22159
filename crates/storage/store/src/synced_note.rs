//! The synced note: how far the log is known to be on disk, kept outside of the log.
//!
//! An entry's `durable_through` says how far the log was synced before it. So the entries that were synced last have no
//! witness in the log: damaged, they would look like a tail that a crash tore, and would be truncated, though they may
//! hold a promise. The note is their witness. It is written before a fence, an installation or a repair is acknowledged,
//! and from time to time otherwise ([`crate::Store::note_synced`]); it costs the commit path nothing.
//!
//! It also says where an opening has to begin to distrust the page cache: what lies behind it may be in the cache only,
//! marked clean by a sync that failed in an earlier process (see `log/rewrite.rs`).
//!
//! ```text
//! file `synced`: two slots of 4096 bytes, written in turn, so that a torn write leaves the other
//! slot: magic [8] | incarnation u128 | sequence u64 | boot u64 | synced_through u64 | crc32c u32 of all before it
//! ```
//! Numbers little-endian. The slot with the higher sequence counts. `boot` says how often the store was opened.

use std::path::PathBuf;
use std::sync::Arc;

use crate::StoreError;
use crate::directory::Directory;
use crate::disk::{DiskFile, OpenMode};
use crate::log::position::LogPosition;

const MAGIC: [u8; 8] = *b"BORSYNC\x01";
const SLOT_BYTES: u64 = 4096;
const NOTE_BYTES: usize = 52;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Note {
    sequence: u64,
    boot: u64,
    synced_through: LogPosition,
}

impl Note {
    fn encode(self, incarnation: u128) -> [u8; NOTE_BYTES] {
        let mut bytes = [0; NOTE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(&incarnation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.boot.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.synced_through.0.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..48]);
        bytes[48..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; NOTE_BYTES], incarnation: u128) -> Option<Note> {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let note = Note { sequence: number(24), boot: number(32), synced_through: LogPosition(number(40)) };
        // Neither number can be counted up to its end; one that is there was never written here.
        let counted = note.sequence < u64::MAX && note.boot < u64::MAX;
        (counted && *bytes == note.encode(incarnation)).then_some(note)
    }
}

/// The synced note of an open store.
#[derive(Debug)]
pub(crate) struct SyncedNote {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    incarnation: u128,
    /// The newest that is durable.
    newest: Note,
}

impl SyncedNote {
    /// Makes the note of a new store, whose log is durable before `synced_through`.
    pub(crate) fn create(
        directory: &Directory,
        incarnation: u128,
        synced_through: LogPosition,
    ) -> Result<(), StoreError> {
        let path = directory.synced();
        let note = Note { sequence: 0, boot: 0, synced_through };
        let make = || {
            let file = directory.disk().open(&path, OpenMode::CreateEmpty)?;
            // Both slots, so that no later write changes the file's size.
            file.write_at(&[0; 2 * SLOT_BYTES as usize], 0)?;
            file.write_at(&note.encode(incarnation), 0)?;
            file.sync_all()?;
            directory.disk().sync_folder(directory.root())
        };
        make().map_err(StoreError::io("create", &path))
    }

    pub(crate) fn open(directory: &Directory, incarnation: u128) -> Result<SyncedNote, StoreError> {
        let path = directory.synced();
        if !directory.disk().exists(&path) {
            let what = "is missing: the store is damaged; rebuild this node from its peers";
            return Err(StoreError::directory(&path, what));
        }
        let file = directory.disk().open(&path, OpenMode::Write).map_err(StoreError::io("open", &path))?;
        let mut newest: Option<Note> = None;
        for slot in 0..2 {
            let mut bytes = [0; NOTE_BYTES];
            let read = file.read_at(&mut bytes, slot * SLOT_BYTES).map_err(StoreError::io("read", &path))?;
            let note = (read == NOTE_BYTES).then(|| Note::decode(&bytes, incarnation)).flatten();
            newest = newest.into_iter().chain(note).max_by_key(|note| note.sequence);
        }
        let Some(newest) = newest else {
            return Err(StoreError::corrupt(path.display().to_string(), "neither of its two notes is whole"));
        };
        Ok(SyncedNote { file, path, incarnation, newest })
    }

    /// The log is durable before this position.
    pub(crate) fn synced_through(&self) -> LogPosition {
        self.newest.synced_through
    }

    /// How often the store was opened.
    pub(crate) fn boot(&self) -> u64 {
        self.newest.boot
    }

    /// Begins the next boot, of a log that is durable before `synced_through`.
    pub(crate) fn begin_boot(&mut self, synced_through: LogPosition) -> Result<(), StoreError> {
        self.replace(self.newest.boot + 1, synced_through)
    }

    /// Notes that the log is durable before `synced_through`. Durable on return.
    ///
    /// A note that cannot be written is no broken promise: the one before stands in the other slot and stays true, and
    /// the next attempt writes all of this one again.
    pub(crate) fn write(&mut self, synced_through: LogPosition) -> Result<(), StoreError> {
        if synced_through <= self.newest.synced_through {
            return Ok(());
        }
        self.replace(self.newest.boot, synced_through)
    }

    fn replace(&mut self, boot: u64, synced_through: LogPosition) -> Result<(), StoreError> {
        let note = Note { sequence: self.newest.sequence + 1, boot, synced_through };
        let offset = note.sequence % 2 * SLOT_BYTES;
        self.file
            .write_at(&note.encode(self.incarnation), offset)
            .and_then(|()| self.file.sync_data())
            .map_err(StoreError::io("write", &self.path))?;
        self.newest = note;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::memory::{MemoryDisk, Operation};

    fn directory(disk: &MemoryDisk) -> Directory {
        let root = Path::new("/node");
        disk.create_folder(root).unwrap();
        Directory::new(Arc::new(disk.clone()), root)
    }

    #[test]
    fn the_newest_whole_note_counts_and_boots_are_counted() {
        let disk = MemoryDisk::default();
        let directory = directory(&disk);
        SyncedNote::create(&directory, 7, LogPosition(64)).unwrap();
        for boot in 1..4 {
            let mut note = SyncedNote::open(&directory, 7).unwrap();
            note.begin_boot(note.synced_through()).unwrap();
            assert_eq!(note.boot(), boot);
            note.write(LogPosition(boot * 100)).unwrap();
            note.write(LogPosition(boot)).unwrap();
            assert_eq!(note.synced_through(), LogPosition(boot * 100), "it never goes back");
        }
        // The newest is torn: the one before it counts.
        let file = disk.open(&directory.synced(), OpenMode::Write).unwrap();
        file.write_at(&[9; 20], 4096 * (SyncedNote::open(&directory, 7).unwrap().newest.sequence % 2))
            .unwrap();
        let note = SyncedNote::open(&directory, 7).unwrap();
        assert_eq!((note.boot(), note.synced_through()), (3, LogPosition(200)));
        assert!(SyncedNote::open(&directory, 8).is_err(), "it is another store's");
    }

    #[test]
    fn a_note_that_could_not_be_written_is_written_again() {
        let disk = MemoryDisk::default();
        let directory = directory(&disk);
        SyncedNote::create(&directory, 7, LogPosition(64)).unwrap();
        let mut note = SyncedNote::open(&directory, 7).unwrap();
        for operation in [Operation::Write, Operation::Sync] {
            disk.fail(operation, "synced", 0);
            assert!(note.write(LogPosition(100)).is_err());
        }
        note.write(LogPosition(100)).unwrap();
        disk.lose_power(|_| 0);
        assert_eq!(SyncedNote::open(&directory, 7).unwrap().synced_through(), LogPosition(100));
    }

    proptest! {
        #[test]
        fn no_flip_of_a_note_is_missed(
            sequence in 0..u64::MAX, boot in 0..u64::MAX, position: u64, flip in 0usize..NOTE_BYTES * 8,
        ) {
            let note = Note { sequence, boot, synced_through: LogPosition(position) };
            let mut bytes = note.encode(7);
            prop_assert_eq!(Note::decode(&bytes, 7), Some(note));
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(Note::decode(&bytes, 7), None);
            let last = Note { boot: u64::MAX, ..note };
            prop_assert_eq!(Note::decode(&last.encode(7), 7), None, "a boot without a next one");
        }
    }
}
