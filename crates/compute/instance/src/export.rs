//! An ordinary data directory of a volume's contents, which a stock server starts from: no shim, nothing of Borealis.
//!
//! It is what an instance starts from, written out: folders, small files and the one WAL segment of the same
//! [`DirectoryPlan`], and beside them all that the shim would have made appear: relations, transaction-status pages.
//! `global/pg_control` comes last, when all else is durable: PostgreSQL takes a folder without it for no data directory,
//! so one that was interrupted is never taken for whole.
//!
//! PostgreSQL wants a symbolic link for each tablespace; after a crash it refuses to go on with a folder in its place. So
//! tablespaces stand in [`TABLESPACES`], and links lead there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use borealis_types::disk_room::{kept_free_bytes, node_watermark_bytes};
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, DatabaseKey, Fork, KeptFile, PAGE_SIZE, PostgresVersion, RecordSpan,
    RelationFork, SLRU_PAGES_PER_SEGMENT, SlruKind, slru_segments,
};
use nix::sys::statvfs::statvfs;

use crate::data_directory::Directory;
use crate::directory_plan::{Contents, DirectoryPlan, Planned, database_folder};
use crate::{InstanceError, OperatingSystemUser, Settings, kept_files, on, untrusted};

/// The folder, in the exported one, that has the tablespaces.
pub const TABLESPACES: &str = "tablespaces";
const LINKS: &str = "pg_tblspc/";
const CONTROL_FILE: &str = "global/pg_control";

/// A data directory that is being written.
pub struct Export<'u> {
    path: PathBuf,
    directory: Directory<'u>,
    version: PostgresVersion,
    control_file: Vec<u8>,
    /// The file that pages are written to, and its name.
    open: Option<(String, File)>,
}

impl<'u> Export<'u> {
    /// Begins in the folder `path`, which is new or empty, with all that is no page. `settings` are what the user had set.
    ///
    /// # Errors
    /// When the folder has anything in it, a file cannot be written, or the volume's values are not what this version of
    /// Borealis writes.
    pub fn begin(
        path: &Path,
        user: &'u OperatingSystemUser,
        contents: &Contents,
        last: RecordSpan,
        now_seconds: i64,
        settings: &BTreeMap<String, String>,
    ) -> Result<Export<'u>, InstanceError> {
        let plan = DirectoryPlan::new(contents, last, now_seconds)?;
        let path = make_folder(path)?;
        let directory = Directory::open(&path, user)?;
        let export = Export {
            path,
            directory,
            version: contents.version,
            control_file: plan.control_file,
            open: None,
        };
        for (name, planned) in exported_entries(plan.entries, settings) {
            export.write_planned(&name, &planned)?;
        }
        Ok(export)
    }

    fn write_planned(&self, name: &str, planned: &Planned<'_>) -> Result<(), InstanceError> {
        if let Some(tablespace) = name.strip_prefix(LINKS).filter(|name| !name.contains('/')) {
            let place = self.path.join(TABLESPACES).join(tablespace);
            self.directory.link(&place, name).map_err(on("cannot write", &self.path.join(name)))?;
        }
        let name = in_tablespaces(name);
        let written = match planned {
            Planned::Folder => self.directory.make_folder(&name),
            Planned::File(bytes) => self.directory.write(&name, |mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            }),
            Planned::Sparse { bytes, pages } => self.directory.write(&name, |file| {
                file.set_len(*bytes)?;
                pages.iter().try_for_each(|(offset, page)| file.write_all_at(&page[..], *offset))?;
                file.sync_all()
            }),
        };
        written.map_err(on("cannot write", &self.path.join(&name)))
    }

    /// Checks that the disk has room for so many blocks, and that nodes which may be on it have room after that.
    ///
    /// # Errors
    /// When it has not, or does not say.
    pub fn require_room(&self, blocks: u64) -> Result<(), InstanceError> {
        let failed = on("cannot write", &self.path);
        let found = statvfs(&self.path).map_err(|error| on("cannot look at", &self.path)(error.into()))?;
        let size = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        let (available, all) = (size(found.blocks_available()), size(found.blocks()));
        let needed = blocks.saturating_mul(PAGE_SIZE as u64);
        let kept = kept_free_bytes(node_watermark_bytes(all));
        if available >= needed.saturating_add(kept) {
            return Ok(());
        }
        Err(failed(io::Error::other(format!(
            "it takes {} MiB, and {} MiB are free, of which {} stay free for others; make room, or export to another disk",
            needed >> 20,
            available >> 20,
            kept >> 20
        ))))
    }

    /// Makes the files of a fork of this many blocks, all zeros.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn make_fork(&mut self, fork: RelationFork, blocks: u32) -> Result<(), InstanceError> {
        let folder = in_tablespaces(&folder_of(self.version, fork));
        // Of a database that a crash left behind without its other files there is no folder yet.
        self.directory.make_way(&folder).map_err(on("cannot create", &self.path.join(&folder)))?;
        let mut first = 0;
        loop {
            let length = blocks.saturating_sub(first).min(BLOCKS_PER_SEGMENT_FILE);
            let name = file_of(self.version, fork, first);
            self.make_file(&name, length)?;
            first = first.saturating_add(length);
            if first >= blocks {
                return Ok(());
            }
        }
    }

    fn make_file(&self, name: &str, pages: u32) -> Result<(), InstanceError> {
        let length = u64::from(pages) * PAGE_SIZE as u64;
        let made = self.directory.write(name, |file| {
            file.set_len(length)?;
            file.sync_all()
        });
        made.map_err(on("cannot write", &self.path.join(name)))
    }

    /// Writes a block of a fork that was made.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_block(&mut self, fork: RelationFork, block: u32, page: &[u8]) -> Result<(), InstanceError> {
        let name = file_of(self.version, fork, block);
        self.write_page(name, block % BLOCKS_PER_SEGMENT_FILE, page)
    }

    /// Makes the files of a transaction-status store that has these pages, in ascending order.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn make_slru(&mut self, kind: SlruKind, pages: &[u32]) -> Result<(), InstanceError> {
        for (segment, length) in slru_segments(pages) {
            self.make_file(&slru_file(kind, segment), length)?;
        }
        Ok(())
    }

    /// Writes a page of a transaction-status store that was made.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_slru(&mut self, kind: SlruKind, page: u32, bytes: &[u8]) -> Result<(), InstanceError> {
        let name = slru_file(kind, page / SLRU_PAGES_PER_SEGMENT);
        self.write_page(name, page % SLRU_PAGES_PER_SEGMENT, bytes)
    }

    fn write_page(&mut self, name: String, index: u32, page: &[u8]) -> Result<(), InstanceError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != name) {
            self.close()?;
            let file = self.directory.open_file(&name).map_err(on("cannot write", &self.path.join(&name)))?;
            self.open = Some((name, file));
        }
        let Some((name, file)) = &self.open else { return Ok(()) };
        let offset = u64::from(index) * PAGE_SIZE as u64;
        file.write_all_at(page, offset).map_err(on("cannot write", &self.path.join(name)))
    }

    /// Closes the file that pages are written to. What it has is durable then: who synchronizes a file that somebody else has written
    /// may not hear of what went wrong in between.
    fn close(&mut self) -> Result<(), InstanceError> {
        match self.open.take() {
            Some((name, file)) => file.sync_all().map_err(on("cannot synchronize", &self.path.join(name))),
            None => Ok(()),
        }
    }

    /// Makes everything durable, then writes `pg_control`, and gives the folder to the server's user.
    ///
    /// # Errors
    /// When something cannot be written or synchronized.
    pub fn finish(mut self) -> Result<PathBuf, InstanceError> {
        self.close()?;
        sync_folders(&self.path)?;
        let control = self.path.join(CONTROL_FILE);
        let finished = self.finish_with_control_file(&control);
        if finished.is_err() {
            // Without it no server takes the folder for whole.
            let _ = fs::remove_file(&control);
        }
        finished.map(|()| self.path)
    }

    fn finish_with_control_file(&self, control: &Path) -> Result<(), InstanceError> {
        let written = self.directory.write(CONTROL_FILE, |mut file| {
            file.write_all(&self.control_file)?;
            file.sync_all()
        });
        written.map_err(on("cannot write", control))?;
        sync(&self.path.join("global"))?;
        self.directory.give_top().map_err(on("cannot give to the server's user", &self.path))?;
        sync(&self.path)?;
        sync(self.path.parent().unwrap_or(Path::new("/")))
    }
}

/// Makes the folder, or takes an empty one, and closes it to everyone else. Returns its whole path, for links in it.
pub(crate) fn make_folder(path: &Path) -> Result<PathBuf, InstanceError> {
    let failed = |error| on("cannot create", path)(error);
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !fs::symlink_metadata(path).map_err(failed)?.is_dir() {
                return Err(failed(io::Error::other("it is there, and no folder; choose another")));
            }
            // By its descriptor from here on: whoever may write to the folder above could put a link in its place.
            let folder = File::from(untrusted::open_folder(path).map_err(failed)?);
            let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            // One with something in it is left as it is, its owner and mode too: it may be a server's.
            require_empty(&by_descriptor).map_err(failed)?;
            if folder.metadata().map_err(failed)?.uid() != nix::unistd::geteuid().as_raw() {
                fchown(&folder, Some(nix::unistd::geteuid().as_raw()), None).map_err(failed)?;
            }
            folder.set_permissions(fs::Permissions::from_mode(0o700)).map_err(failed)?;
            // Again, now that nobody else can get in any more.
            require_empty(&by_descriptor).map_err(failed)?;
        }
        made => made.map_err(failed)?,
    }
    path.canonicalize().map_err(failed)
}

fn require_empty(folder: &Path) -> io::Result<()> {
    if fs::read_dir(folder)?.next().is_none() {
        return Ok(());
    }
    let what = "it is not empty; choose a folder that is not there yet, or empty it (an export that was interrupted \
                leaves one without global/pg_control)";
    Err(io::Error::other(what))
}

/// What is exported of what an instance starts from: `initdb`'s own configuration in the place of that which suits the
/// storage, unless a user has edited it, and the user's settings where `ALTER SYSTEM` would put them.
fn exported_entries<'a>(
    mut entries: BTreeMap<String, Planned<'a>>,
    settings: &BTreeMap<String, String>,
) -> Vec<(String, Planned<'a>)> {
    let [own, system] = [KeptFile::Settings, KeptFile::SystemSettings].map(KeptFile::name);
    let bytes_of = |entries: &BTreeMap<String, Planned<'a>>, name: &str| match entries.get(name) {
        Some(Planned::File(bytes)) => bytes.to_vec(),
        _ => Vec::new(),
    };
    let edited = bytes_of(&entries, own);
    if edited != Settings::configuration_file().as_bytes() {
        entries.insert(own.to_owned(), Planned::File(kept_files::for_stock(&edited).into()));
    } else if let Some(initial) = entries.remove("initdb.conf") {
        entries.insert(own.to_owned(), initial);
    }
    // What was given with --pg-set wins here, too.
    let mut lines = kept_files::for_stock(&bytes_of(&entries, system));
    if !lines.is_empty() && !lines.ends_with(b"\n") {
        lines.push(b'\n');
    }
    lines.extend_from_slice(Settings::exported_lines(settings).as_bytes());
    entries.insert(system.to_owned(), Planned::File(lines.into()));
    let has_tablespaces = entries.keys().any(|name| name.starts_with(LINKS));
    let tablespaces = has_tablespaces.then(|| (TABLESPACES.to_owned(), Planned::Folder));
    tablespaces.into_iter().chain(entries).collect()
}

/// Where something of a tablespace is written: not through the link.
fn in_tablespaces(name: &str) -> String {
    name.strip_prefix(LINKS).map_or_else(|| name.to_owned(), |rest| format!("{TABLESPACES}/{rest}"))
}

fn folder_of(version: PostgresVersion, fork: RelationFork) -> String {
    let locator = fork.locator;
    database_folder(version, DatabaseKey { tablespace: locator.tablespace, database: locator.database })
}

/// The file that has a block of a fork.
fn file_of(version: PostgresVersion, fork: RelationFork, block: u32) -> String {
    let folder = in_tablespaces(&folder_of(version, fork));
    let name = format!("{folder}/{}{}", fork.locator.relation, fork.fork.file_suffix());
    match block / BLOCKS_PER_SEGMENT_FILE {
        0 => name,
        segment => format!("{name}.{segment}"),
    }
}

fn slru_file(kind: SlruKind, segment: u32) -> String {
    format!("{}/{segment:04X}", kind.folder())
}

/// What is written of these forks, with the fork that each is a copy of. What an unlogged relation has does not outlive its
/// server: it begins as its init fork is, as after a crash.
#[must_use]
pub fn exported_forks(forks: &BTreeMap<RelationFork, u32>) -> Vec<(RelationFork, RelationFork, u32)> {
    let mut exported = Vec::new();
    let of = |fork: RelationFork, kind| RelationFork { fork: kind, ..fork };
    for (&fork, &blocks) in forks {
        let is_unlogged = forks.contains_key(&of(fork, Fork::Init));
        match fork.fork {
            Fork::Init => {
                exported.push((fork, fork, blocks));
                exported.push((of(fork, Fork::Main), fork, blocks));
            }
            Fork::Main | Fork::FreeSpaceMap | Fork::VisibilityMap if is_unlogged => {}
            Fork::Main | Fork::FreeSpaceMap | Fork::VisibilityMap => exported.push((fork, fork, blocks)),
        }
    }
    exported
}

fn sync(path: &Path) -> Result<(), InstanceError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(on("cannot synchronize", path))
}

/// Synchronizes a folder and those in it; their files were when they were written.
fn sync_folders(folder: &Path) -> Result<(), InstanceError> {
    for entry in fs::read_dir(folder).map_err(on("cannot list", folder))? {
        let entry = entry.map_err(on("cannot list", folder))?;
        if entry.file_type().map_err(on("cannot list", folder))?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync(folder)
}

#[cfg(test)]
mod tests {
    use borealis_types::RelationLocator;

    use super::*;

    fn fork(tablespace: u32, relation: u32, fork: Fork) -> RelationFork {
        RelationFork { locator: RelationLocator { tablespace, database: 5, relation }, fork }
    }

    #[test]
    fn blocks_are_in_the_files_where_postgresql_looks_for_them() {
        let file = |fork, block| file_of(PostgresVersion::NEWEST, fork, block);
        assert_eq!(file(fork(1663, 16384, Fork::Main), 131_071), "base/5/16384");
        assert_eq!(file(fork(1663, 16384, Fork::VisibilityMap), 131_072), "base/5/16384_vm.1");
        assert_eq!(file(fork(1664, 1260, Fork::Main), 0), "global/1260");
        let folder = PostgresVersion::NEWEST.tablespace_folder();
        assert_eq!(file(fork(16400, 7, Fork::Main), 0), format!("tablespaces/16400/{folder}/5/7"));
    }

    #[test]
    fn an_unlogged_relation_begins_as_its_init_fork() {
        let (init, main) = (fork(1663, 7, Fork::Init), fork(1663, 7, Fork::Main));
        let logged = fork(1663, 8, Fork::Main);
        let forks = [(init, 1), (main, 40), (fork(1663, 7, Fork::FreeSpaceMap), 3), (logged, 2)];
        let exported = exported_forks(&forks.into());
        assert_eq!(exported, [(init, init, 1), (main, init, 1), (logged, logged, 2)]);
    }

    #[test]
    fn nothing_is_begun_that_does_not_fit() {
        let folder = tempfile::tempdir().expect("made");
        let user = OperatingSystemUser::choose(None).expect("somebody");
        let export = Export {
            path: folder.path().to_owned(),
            directory: Directory::open(folder.path(), &user).expect("opened"),
            version: PostgresVersion::NEWEST,
            control_file: Vec::new(),
            open: None,
        };
        assert!(export.require_room(0).is_ok());
        let error = export.require_room(u64::MAX).expect_err("refused").to_string();
        assert!(error.contains("MiB are free"), "{error}");
    }

    #[test]
    fn a_status_store_has_segments_of_32_pages() {
        assert_eq!(slru_segments(&[30, 31, 32, 70]), [(0, 32), (1, 1), (2, 7)].into());
        assert_eq!(slru_file(SlruKind::Transactions, 0x1_2345), "pg_xact/12345");
    }

    #[test]
    fn nothing_is_written_into_a_folder_that_has_something() {
        let folder = tempfile::tempdir().expect("made");
        fs::write(folder.path().join("mine"), b"x").expect("written");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o750)).expect("mode");
        let error = make_folder(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("not empty"), "{error}");
        let mode = fs::metadata(folder.path()).expect("there").mode() & 0o777;
        assert_eq!(mode, 0o750, "what is refused is left as it was");
        assert!(make_folder(&folder.path().join("new")).is_ok());
        assert!(make_folder(&folder.path().join("new")).is_ok(), "an empty one will do");
    }
}
