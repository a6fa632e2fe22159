//! What every disk must do, run on each of them.

use std::io::ErrorKind;
use std::path::Path;

use super::memory::{MemoryDisk, Operation};
use super::{Disk, FileSystem, OpenMode, read_exact_at};

/// Each check gets a folder of its own.
type Check = fn(&dyn Disk, &Path);

const CHECKS: [(&str, Check); 8] = [
    ("files", files_are_opened_as_asked),
    ("bytes", what_is_written_is_read),
    ("ends", reads_end_where_the_file_does),
    ("holes", a_hole_reads_as_zeros_and_the_size_stays),
    ("names", names_change_and_open_files_stay),
    ("folders", folders_are_listed),
    ("locks", a_lock_is_held_once),
    ("space", there_is_room_and_no_more_than_all),
];

fn conforms(disk: &dyn Disk, root: &Path) {
    for (name, check) in CHECKS {
        let folder = root.join(name).join("inner");
        disk.create_folder(&folder).unwrap();
        disk.create_folder(&folder).unwrap();
        check(disk, &folder);
    }
}

fn files_are_opened_as_asked(disk: &dyn Disk, folder: &Path) {
    let path = folder.join("file");
    for mode in [OpenMode::Read, OpenMode::Write] {
        assert_eq!(disk.open(&path, mode).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(!disk.exists(&path));
    assert!(disk.open(&folder.join("absent").join("file"), OpenMode::Create).is_err());
    disk.open(&path, OpenMode::Create).unwrap().write_at(b"kept", 0).unwrap();
    assert!(disk.exists(&path));
    for mode in [OpenMode::Read, OpenMode::Write, OpenMode::Create] {
        assert_eq!(disk.open(&path, mode).unwrap().size_bytes().unwrap(), 4);
    }
    assert_eq!(disk.open(&path, OpenMode::CreateEmpty).unwrap().size_bytes().unwrap(), 0);
    assert_eq!(disk.open(&path, OpenMode::Read).unwrap().size_bytes().unwrap(), 0);
}

fn what_is_written_is_read(disk: &dyn Disk, folder: &Path) {
    let path = folder.join("file");
    let file = disk.open(&path, OpenMode::CreateEmpty).unwrap();
    file.write_at(&[1; 10], 0).unwrap();
    file.write_at(&[2; 10], 5).unwrap();
    // Beyond the end: zeros in between.
    file.write_at(&[3; 2], 20).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    let mut bytes = [9; 22];
    read_exact_at(&*disk.open(&path, OpenMode::Read).unwrap(), &mut bytes, 0).unwrap();
    assert_eq!(bytes, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 3, 3]);
}

fn reads_end_where_the_file_does(disk: &dyn Disk, folder: &Path) {
    let file = disk.open(&folder.join("file"), OpenMode::CreateEmpty).unwrap();
    file.write_at(&[7; 100], 0).unwrap();
    let mut bytes = [0; 64];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 64);
    assert_eq!(file.read_at(&mut bytes, 90).unwrap(), 10);
    assert_eq!(file.read_at(&mut bytes, 100).unwrap(), 0);
    assert_eq!(file.read_at(&mut bytes, 1 << 40).unwrap(), 0);
    assert_eq!(read_exact_at(&*file, &mut bytes, 90).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

fn a_hole_reads_as_zeros_and_the_size_stays(disk: &dyn Disk, folder: &Path) {
    let file = disk.open(&folder.join("file"), OpenMode::CreateEmpty).unwrap();
    file.write_at(&[7; 3 * 4096], 0).unwrap();
    if file.punch_hole(4096, 4096).is_err() {
        // Not every file system can; then nothing has changed.
        let mut bytes = [0; 4096];
        read_exact_at(&*file, &mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7; 4096]);
        return;
    }
    assert_eq!(file.size_bytes().unwrap(), 3 * 4096);
    for (number, value) in [(0, 7), (1, 0), (2, 7)] {
        let mut bytes = [1; 4096];
        read_exact_at(&*file, &mut bytes, number * 4096).unwrap();
        assert_eq!(bytes, [value; 4096]);
    }
}

fn names_change_and_open_files_stay(disk: &dyn Disk, folder: &Path) {
    let (old, new) = (folder.join("old"), folder.join("new"));
    let first = disk.open(&old, OpenMode::CreateEmpty).unwrap();
    first.write_at(b"first", 0).unwrap();
    disk.open(&new, OpenMode::CreateEmpty).unwrap().write_at(b"second", 0).unwrap();
    disk.rename(&old, &new).unwrap();
    disk.sync_folder(folder).unwrap();
    assert!(!disk.exists(&old));
    assert_eq!(disk.open(&new, OpenMode::Read).unwrap().size_bytes().unwrap(), 5);
    disk.remove(&new).unwrap();
    assert!(!disk.exists(&new));
    let mut bytes = [0; 5];
    read_exact_at(&*first, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"first");
    assert!(disk.remove(&new).is_err() && disk.rename(&new, &old).is_err());
}

fn folders_are_listed(disk: &dyn Disk, folder: &Path) {
    assert!(disk.list(folder).unwrap().is_empty());
    for name in ["b", "a"] {
        disk.open(&folder.join(name), OpenMode::Create).unwrap();
    }
    disk.create_folder(&folder.join("c").join("d")).unwrap();
    let mut names = disk.list(folder).unwrap();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(disk.list(&folder.join("absent")).is_err());
    assert!(disk.remove_folder(&folder.join("c")).is_err(), "something is in it");
    disk.remove_folder(&folder.join("c").join("d")).unwrap();
    disk.remove_folder(&folder.join("c")).unwrap();
    assert!(!disk.exists(&folder.join("c")) && disk.remove_folder(&folder.join("c")).is_err());
    disk.create_folder(&folder.join("c")).unwrap();
    assert!(disk.list(&folder.join("c")).unwrap().is_empty());
}

fn a_lock_is_held_once(disk: &dyn Disk, folder: &Path) {
    let path = folder.join("lock");
    let held = disk.lock(&path).unwrap().expect("nobody has it");
    assert!(disk.lock(&path).unwrap().is_none());
    drop(held);
    assert!(disk.lock(&path).unwrap().is_some());
}

fn there_is_room_and_no_more_than_all(disk: &dyn Disk, folder: &Path) {
    let space = disk.space(folder).unwrap();
    assert!(space.available_bytes > 0 && space.available_bytes <= space.size_bytes, "{space:?}");
}

#[test]
fn the_file_system_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&FileSystem, folder.path());
}

#[test]
fn the_disk_in_memory_conforms() {
    conforms(&MemoryDisk::default(), Path::new("/disk"));
}

#[test]
fn a_power_loss_takes_what_was_not_synced_and_nothing_else() {
    let disk = MemoryDisk::default();
    let (folder, path) = (Path::new("/disk"), Path::new("/disk/file"));
    disk.create_folder(folder).unwrap();
    let file = disk.open(path, OpenMode::Create).unwrap();
    file.write_at(&[1; 1024], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_folder(folder).unwrap();
    file.write_at(&[2; 2048], 512).unwrap();
    disk.open(&folder.join("unnamed"), OpenMode::Create).unwrap();
    drop(file);
    disk.lose_power(|_| 0);
    let mut bytes = [0; 1024];
    let file = disk.open(path, OpenMode::Read).unwrap();
    read_exact_at(&*file, &mut bytes, 0).unwrap();
    assert_eq!((bytes, file.size_bytes().unwrap()), ([1; 1024], 1024));
    assert!(!disk.exists(&folder.join("unnamed")));
}

#[test]
fn a_sync_that_failed_is_not_made_good_by_one_that_succeeds() {
    let disk = MemoryDisk::default();
    let path = Path::new("/disk/file");
    disk.create_folder(Path::new("/disk")).unwrap();
    let file = disk.open(path, OpenMode::Create).unwrap();
    disk.sync_folder(Path::new("/disk")).unwrap();
    file.write_at(&[1; 100], 0).unwrap();
    disk.fail(Operation::Sync, "file", 0);
    assert!(file.sync_data().is_err() && file.sync_data().is_ok());
    drop(file);
    disk.lose_power(|below| below - 1);
    assert_eq!(disk.open(path, OpenMode::Read).unwrap().size_bytes().unwrap(), 0);
    assert_eq!(disk.heal(), 1);
}

#[test]
fn what_a_failed_sync_left_in_the_cache_is_durable_only_when_it_is_written_again() {
    let disk = MemoryDisk::default();
    let path = Path::new("/disk/file");
    disk.create_folder(Path::new("/disk")).unwrap();
    let file = disk.open(path, OpenMode::Create).unwrap();
    disk.sync_folder(Path::new("/disk")).unwrap();
    let mut bytes = [0; 100];
    for (written_again, durable) in [(false, 0), (true, 1)] {
        file.write_at(&[1; 100], 0).unwrap();
        disk.fail(Operation::Sync, "file", 0);
        assert!(file.sync_data().is_err());
        read_exact_at(&*file, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [1; 100], "the cache does not show that it failed");
        if written_again {
            file.write_at(&bytes, 0).unwrap();
        }
        file.sync_data().unwrap();
        disk.drop_cache();
        assert_eq!(file.size_bytes().unwrap(), 100 * durable);
    }
}
