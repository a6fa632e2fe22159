//! What a server leaves behind when it, or its driver, was killed.
//!
//! Backends that wait for a lock of a process that died do not notice that the postmaster is gone: they would
//! hold their clients' connections for ever. And the kernel keeps the small System V segment by which
//! PostgreSQL tells that a data directory is in use. It names a file in `/dev/shm`, if the server is one of `initdb`'s:
//! only to ours we can say that they keep shared memory in their own directory. Nothing of it can make anything
//! durable any more, so all of it is ended without ceremony.
#![allow(unsafe_code)] // `shmctl` has no safe interface here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::untrusted;

/// How long killed processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where servers run, in the memory directory: that of the instance, and those of an `initdb`.
const DATA_DIRECTORIES: [&str; 2] = ["data", IMPORT_DIRECTORY];
/// Where `initdb` makes what is imported, in the memory directory.
pub const IMPORT_DIRECTORY: &str = "initdb";
/// What a server says of itself, in its data directory.
const POSTMASTER_FILE: &str = "postmaster.pid";
/// More than a `postmaster.pid` takes: eight short lines, two of them paths.
pub const POSTMASTER_FILE_BYTES_MAX: u64 = 16 << 10;

/// Ends every process whose working directory is in the memory directory, which is where PostgreSQL's are, waits
/// until they are gone (they hold the server's port), and removes the server's System V segment. Returns how many
/// processes there were.
pub fn clear(memory_directory: &Path) -> usize {
    let begun = Instant::now();
    let mut ended = 0;
    let mut mapped = BTreeSet::new();
    loop {
        let processes = processes_in(memory_directory);
        // One that has just made it may not have said so anywhere.
        mapped.extend(processes.iter().flat_map(|process| mapped_memory(*process)));
        ended = processes.len().max(ended);
        if processes.is_empty() || begun.elapsed() > PATIENCE {
            break;
        }
        for process in processes {
            // It may just have ended, which is what is wanted.
            let _ = kill(process, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for data_directory in DATA_DIRECTORIES {
        remove_segment(memory_directory, data_directory);
    }
    for file in mapped {
        remove_memory_file(memory_directory, &file);
    }
    if ended > 0 {
        tracing::info!(ended, "ended processes of a server that is gone");
    }
    ended
}

fn processes_in(directory: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = nix::unistd::getpid();
    let owner = fs::metadata(directory).map(|metadata| (metadata.uid(), metadata.gid())).ok();
    let (mut inside, mut hidden) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let process = Pid::from_raw(number);
        // One that is dead and only not yet waited for has no working directory any more.
        match fs::read_link(entry.path().join("cwd")) {
            // The kernel marks a directory that was removed meanwhile; it still begins the same.
            Ok(place) if place.starts_with(directory) && process != own => inside.push(process),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let of_owner = |(user, _)| entry.metadata().is_ok_and(|metadata| metadata.uid() == user);
                if owner.is_some_and(of_owner) {
                    hidden.push(process);
                }
            }
            _ => {}
        }
    }
    if let Some((user, group)) = owner
        && !hidden.is_empty()
    {
        inside.extend(as_their_user(directory, &hidden, user, group));
    }
    inside
}

/// Those of the processes whose working directory is below `directory`, as their own user sees it: root in a container
/// may not look (`CAP_SYS_PTRACE`).
fn as_their_user(directory: &Path, processes: &[Pid], user: u32, group: u32) -> Vec<Pid> {
    const SCRIPT: &str = "for process; do echo \"$process $(readlink \"/proc/$process/cwd\")\"; done";
    let output = Command::new("/bin/sh")
        .args(["-c", SCRIPT, "sh"])
        .args(processes.iter().map(ToString::to_string))
        .current_dir("/")
        .uid(user)
        .gid(group)
        .output();
    let Ok(output) = output else { return Vec::new() };
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let below = lines.lines().filter_map(|line| {
        let (process, place) = line.split_once(' ')?;
        Path::new(place).starts_with(directory).then(|| process.parse().ok().map(Pid::from_raw))?
    });
    below.collect()
}

/// The key and number of the segment, from the seventh line of a `postmaster.pid`.
fn segment_of(postmaster_file: &str) -> Option<(i32, i32)> {
    let mut numbers = postmaster_file.lines().nth(6)?.split_whitespace();
    let key = numbers.next()?.parse::<u32>().ok()?.cast_signed();
    Some((key, numbers.next()?.parse().ok()?))
}

/// Removes the segment that the server's own file names, and the file of shared memory that the segment names, if they
/// belong to the user that the memory directory belongs to: this user wrote the file, and root may remove anything.
fn remove_segment(memory_directory: &Path, data_directory: &str) {
    let Ok(owner) = fs::symlink_metadata(memory_directory).map(|metadata| metadata.uid()) else { return };
    let file = Path::new(data_directory).join(POSTMASTER_FILE);
    let Ok(text) = untrusted::read_text(memory_directory, &file, POSTMASTER_FILE_BYTES_MAX) else {
        return;
    };
    let Some((key, number)) = segment_of(&text) else { return };
    let Ok(table) = fs::read_to_string("/proc/sysvipc/shm") else { return };
    let is_there = table.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace().map(str::parse::<i32>);
        columns.next() == Some(Ok(key)) && columns.next() == Some(Ok(number))
    });
    if is_there && segment_owners(number).is_some_and(|owners| owners == [owner; 2]) {
        if let Some(file) = shared_memory_file(number) {
            remove_memory_file(memory_directory, &file);
        }
        // SAFETY: the call takes numbers and, for this command, no buffer. The kernel keeps the segment for as
        // long as anyone is attached to it.
        unsafe { libc::shmctl(number, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// What the kernel says of a segment.
fn segment_state(number: i32) -> Option<libc::shmid_ds> {
    // SAFETY: the structure is plain data, for which zeros are valid; it is writable and outlives the call.
    unsafe {
        let mut state: libc::shmid_ds = std::mem::zeroed();
        (libc::shmctl(number, libc::IPC_STAT, &raw mut state) == 0).then_some(state)
    }
}

/// The numbers of the users who own and who made a segment.
fn segment_owners(number: i32) -> Option<[u32; 2]> {
    let state = segment_state(number)?;
    Some([state.shm_perm.uid, state.shm_perm.cuid])
}

/// What the names of files of dynamic shared memory begin with, where `shm_open` puts them.
const MEMORY_FILE_PREFIX: &str = "/dev/shm/PostgreSQL.";
/// How a server's segment begins (`PGShmemMagic` in PostgreSQL's `storage/pg_shmem.h`).
const SEGMENT_MAGIC: [u8; 4] = 679_834_894_i32.to_ne_bytes();
/// Where it has the number of the server's dynamic shared memory (`dsm_control` in `PGShmemHeader`), and what is read of it.
const MEMORY_NUMBER: std::ops::Range<usize> = 24..SEGMENT_HEAD_BYTES;
const SEGMENT_HEAD_BYTES: usize = 28;

/// The file of a server's dynamic shared memory; `None` if the segment names none.
fn shared_memory_file(segment: i32) -> Option<PathBuf> {
    if segment_state(segment)?.shm_segsz < SEGMENT_HEAD_BYTES {
        return None;
    }
    let mut head = [0; SEGMENT_HEAD_BYTES];
    // SAFETY: the segment is attached for reading wherever there is room, and has the bytes that are copied; it is not
    // used after it is detached.
    unsafe {
        let start = libc::shmat(segment, std::ptr::null(), libc::SHM_RDONLY);
        if start.addr() == usize::MAX {
            return None;
        }
        std::ptr::copy_nonoverlapping(start.cast_const().cast::<u8>(), head.as_mut_ptr(), head.len());
        libc::shmdt(start);
    }
    let number = u32::from_ne_bytes(head[MEMORY_NUMBER].try_into().ok()?);
    let is_named = head.starts_with(&SEGMENT_MAGIC) && number != 0;
    is_named.then(|| PathBuf::from(format!("{MEMORY_FILE_PREFIX}{number}")))
}

/// The files of dynamic shared memory that a process has in its memory.
fn mapped_memory(process: Pid) -> Vec<PathBuf> {
    // Another user's may be closed to us; then it is no process of ours either.
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.split_once(MEMORY_FILE_PREFIX));
    let numbers = files.filter_map(|(_, number)| number.parse::<u32>().ok());
    numbers.map(|number| PathBuf::from(format!("{MEMORY_FILE_PREFIX}{number}"))).collect()
}

/// Removes a file of dynamic shared memory if it belongs to the user that the memory directory belongs to.
fn remove_memory_file(memory_directory: &Path, file: &Path) {
    let owner = fs::symlink_metadata(memory_directory).map(|metadata| metadata.uid()).ok();
    let metadata = fs::symlink_metadata(file);
    if metadata.is_ok_and(|metadata| metadata.is_file() && Some(metadata.uid()) == owner) {
        // It may be gone already.
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_below_the_directory_are_ended_and_no_others() {
        let folder = tempfile::tempdir().expect("part of the test's own set-up");
        let inside = folder.path().join("data");
        fs::create_dir(&inside).expect("part of the test's own set-up");
        let sleep = |directory: &Path| {
            Command::new("sleep")
                .arg("60")
                .current_dir(directory)
                .spawn()
                .expect("part of the test's own set-up")
        };
        let mut victim = sleep(&inside);
        let mut bystander = sleep(Path::new("/"));
        // A thread waits for the victim, as its parent would.
        let waiter = std::thread::spawn(move || victim.wait().expect("part of the test's own set-up"));
        assert_eq!(clear(folder.path()), 1);
        assert!(!waiter.join().expect("part of the test's own set-up").success());
        assert!(bystander.try_wait().expect("part of the test's own set-up").is_none());
        bystander.kill().expect("part of the test's own set-up");
        bystander.wait().expect("part of the test's own set-up");
    }

    #[test]
    fn the_segment_is_read_from_postgres_own_file() {
        let file =
            "32013\n/dev/shm/x/data\n1795402318\n15491\n/dev/shm/x/socket\n127.0.0.1\n  2123   3\nready   \n";
        assert_eq!(segment_of(file), Some((2123, 3)));
        assert_eq!(segment_of("1\n2\n"), None);
    }

    /// A segment of this process's user, and its key.
    fn segment(key: i32) -> i32 {
        // SAFETY: the call takes numbers.
        let number = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
        assert!(number >= 0, "{}", io::Error::last_os_error());
        number
    }

    #[test]
    fn a_segment_of_another_user_stays() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(folder.path().join("data")).expect("made");
        let key = std::process::id().cast_signed();
        let number = segment(key);
        let text = format!("1\n2\n3\n4\n5\n6\n{key} {number}\nready\n");
        fs::write(folder.path().join("data/postmaster.pid"), text).expect("written");
        std::os::unix::fs::chown(folder.path(), Some(65534), None).expect("given");
        clear(folder.path());
        assert_eq!(segment_owners(number), Some([0; 2]), "root's own segment is gone");
        std::os::unix::fs::chown(folder.path(), Some(0), None).expect("given");
        clear(folder.path());
        assert_eq!(segment_owners(number), None, "it is the owner's");
    }

    #[test]
    fn what_a_servers_segment_names_goes_with_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(folder.path().join(IMPORT_DIRECTORY)).expect("made");
        let file = PathBuf::from(format!("{MEMORY_FILE_PREFIX}{}", std::process::id()));
        for (magic, is_removed) in [(SEGMENT_MAGIC, true), ([0; 4], false)] {
            let key = std::process::id().cast_signed().wrapping_add(1);
            let number = segment(key);
            let mut head = [0; SEGMENT_HEAD_BYTES];
            head[..4].copy_from_slice(&magic);
            head[MEMORY_NUMBER].copy_from_slice(&std::process::id().to_ne_bytes());
            // SAFETY: the segment was just made, is attached wherever there is room, and is longer than what is written.
            unsafe {
                let start = libc::shmat(number, std::ptr::null(), 0);
                assert_ne!(start.addr(), usize::MAX, "{}", io::Error::last_os_error());
                std::ptr::copy_nonoverlapping(head.as_ptr(), start.cast(), head.len());
                libc::shmdt(start);
            }
            let text = format!("1\n2\n3\n4\n5\n6\n{key} {number}\nready\n");
            fs::write(folder.path().join("initdb/postmaster.pid"), text).expect("written");
            fs::write(&file, "memory").expect("written");
            clear(folder.path());
            assert_eq!(segment_owners(number), None);
            assert_eq!(file.exists(), !is_removed);
        }
        fs::remove_file(file).expect("removed");
    }

    #[test]
    fn a_pipe_in_place_of_the_servers_file_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(folder.path().join("data")).expect("made");
        let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
        nix::unistd::mkfifo(&folder.path().join("data/postmaster.pid"), mode).expect("made");
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        let place = folder.path().to_path_buf();
        std::thread::spawn(move || done.send(clear(&place)));
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(0));
    }
}
