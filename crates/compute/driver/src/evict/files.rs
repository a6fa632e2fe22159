//! The relation files of a data directory, and the blocks in them.
#![allow(unsafe_code)] // `lseek` for data and `fallocate` have no safe interface in the standard library.

use std::fs::{File, ReadDir};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use borealis_instance::untrusted;
use borealis_shm::path::{Layout, PathClass};
use borealis_types::{Fork, PAGE_SIZE, PageBytes, RelationFork};
use nix::fcntl::OFlag;

/// The part of a page that a reader checks first: its header, which is not all zeros in a page that is in use.
const PAGE_BEGINNING_BYTES: usize = 64;

/// One segment file of a relation fork.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RelationFile {
    pub path: PathBuf,
    pub fork: RelationFork,
    pub segment: u32,
    /// [`PathClass::hash`], by which locks and log positions are found.
    pub hash: u64,
    /// Memory it takes, in bytes: its length without the holes.
    pub bytes: u64,
}

impl RelationFile {
    pub fn is_main_fork(&self) -> bool {
        self.fork.fork == Fork::Main
    }
}

/// Every relation file, sorted by path. Files and folders that vanish meanwhile are left out.
pub(super) fn list(
    data_directory: &Path,
    wal_segment_size_bytes: u64,
    versions: (u32, u32),
) -> anyhow::Result<Vec<RelationFile>> {
    let layout =
        Layout { data_directory: data_directory.as_os_str().as_bytes(), versions, wal_segment_size_bytes };
    let mut found = Vec::new();
    list_folder(&data_directory.join("global"), &layout, &mut found)?;
    for database in folder(&data_directory.join("base"))?.into_iter().flatten() {
        list_folder(&database?.path(), &layout, &mut found)?;
    }
    for tablespace in folder(&data_directory.join("pg_tblspc"))?.into_iter().flatten() {
        for version in folder(&tablespace?.path())?.into_iter().flatten() {
            for database in folder(&version?.path())?.into_iter().flatten() {
                list_folder(&database?.path(), &layout, &mut found)?;
            }
        }
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The folder's entries; `None` if there is no such folder.
fn folder(path: &Path) -> anyhow::Result<Option<ReadDir>> {
    match std::fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot list {}", path.display())),
    }
}

fn list_folder(path: &Path, layout: &Layout<'_>, found: &mut Vec<RelationFile>) -> anyhow::Result<()> {
    for entry in folder(path)?.into_iter().flatten() {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        let path = entry.path();
        let class = layout.classify(path.as_os_str().as_bytes());
        let PathClass::Relation { fork, segment } = class else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        // `st_blocks` counts units of 512 bytes, whatever the file system.
        found.push(RelationFile { path, fork, segment, hash: class.hash(), bytes: metadata.blocks() * 512 });
    }
    Ok(())
}

/// An open relation file on a memory file system.
pub(super) struct CacheFile(File);

impl CacheFile {
    /// Opens a file of the data directory; `None` when it was removed meanwhile, or is reached by a symbolic link or is
    /// no file: the server's user can put such there, and then holes would be punched into another file.
    pub fn open(data_directory: &Path, path: &Path) -> anyhow::Result<Option<CacheFile>> {
        let name = path.strip_prefix(data_directory).unwrap_or(path);
        match untrusted::open_regular(data_directory, name, OFlag::O_RDWR) {
            Ok(file) => Ok(Some(CacheFile(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ELOOP | libc::ENOTDIR | libc::EISDIR | libc::ENXIO)
                ) || error.kind() == io::ErrorKind::InvalidInput =>
            {
                tracing::warn!("{} is no file of the server's own: {error}", path.display());
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
        }
    }

    /// The next run of blocks at or after `block` that are at least partly in memory; `None` if only holes follow.
    pub fn next_data(&self, block: u32) -> io::Result<Option<Range<u32>>> {
        let Some(start) = self.seek(u64::from(block) * PAGE_SIZE as u64, libc::SEEK_DATA)? else {
            return Ok(None);
        };
        let Some(end) = self.seek(start, libc::SEEK_HOLE)? else { return Ok(None) };
        let number = |offset: u64| u32::try_from(offset).unwrap_or(u32::MAX);
        let (first, end) = (number(start / PAGE_SIZE as u64), number(end.div_ceil(PAGE_SIZE as u64)));
        // The file may have changed between the two looks.
        Ok((end > first && end > block).then(|| first.max(block)..end))
    }

    fn seek(&self, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: moves the descriptor's position, which nothing here depends on; no memory is involved.
        let found = unsafe { libc::lseek(self.0.as_raw_fd(), offset, whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            Err(_) => match io::Error::last_os_error() {
                // Nothing from here to the end.
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Reads a block; `false` if the file ends before its end.
    pub fn read(&self, block: u32, page: &mut PageBytes) -> io::Result<bool> {
        match self.0.read_exact_at(page, u64::from(block) * PAGE_SIZE as u64) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Punches a hole in place of a block that reads as `page`; `false` if the block is still there.
    ///
    /// Some file systems (huge pages) only zero the block instead of freeing it, which looks like a page of zeros that
    /// PostgreSQL wrote. Then the page is restored, with its first bytes last: a concurrent reader sees a zero header
    /// and re-reads under the lock. A reader that has the header already may see zeros behind it, and a start refuses
    /// file systems that do this. The caller has the file's lock.
    pub fn drop_block(&self, block: u32, page: &PageBytes) -> io::Result<bool> {
        self.punch(block)?;
        let start = u64::from(block) * PAGE_SIZE as u64;
        let is_hole = self.seek(start, libc::SEEK_DATA)?.is_none_or(|data| data >= start + PAGE_SIZE as u64);
        if !is_hole {
            let (beginning, rest) = page.split_at(PAGE_BEGINNING_BYTES);
            self.0.write_all_at(rest, start + beginning.len() as u64)?;
            self.0.write_all_at(beginning, start)?;
        }
        Ok(is_hole)
    }

    fn punch(&self, block: u32) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let offset = i64::from(block) * PAGE_SIZE as i64;
        // SAFETY: no memory is involved.
        let status = unsafe { libc::fallocate(self.0.as_raw_fd(), mode, offset, PAGE_SIZE as i64) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_in_place_of_a_relation_is_not_opened() {
        let place = tempfile::tempdir().expect("temporary folder");
        let (data, other) = (place.path().join("data"), place.path().join("other"));
        for folder in [&data.join("base/5"), &other] {
            std::fs::create_dir_all(folder).expect("made");
            std::fs::write(folder.join("16384"), [7; PAGE_SIZE]).expect("written");
        }
        symlink(other.join("16384"), data.join("base/5/16385")).expect("linked");
        symlink(&other, data.join("base/6")).expect("linked");
        let opens = |name: &str| CacheFile::open(&data, &data.join(name)).expect("looked").is_some();
        assert!(opens("base/5/16384"));
        for name in ["base/5/16385", "base/6/16384", "base/5", "base/5/none"] {
            assert!(!opens(name), "{name}");
        }
    }
}
