//! What a fresh data directory consists of: a function of the volume's small values and nothing else.
//!
//! The values are what any crash may have left behind, so every combination that PostgreSQL can write has a plan:
//!
//! * A database can have folders in several tablespaces (`CREATE DATABASE … STRATEGY file_copy` copies each that has
//!   relations), even two that both look like its own (`ALTER DATABASE … SET TABLESPACE`, killed before it removed the
//!   old one). All are made; which one is in use, `pg_database` says.
//! * A tablespace can be without a catalog entry, and a database, too, as after any crash of PostgreSQL between the record
//!   and the commit.
//! * A database's folder can be in a tablespace that is gone. It is made all the same, as PostgreSQL's recovery does
//!   (`recovery_create_dbdir` in `src/backend/commands/dbcommands.c`).
//!
//! What PostgreSQL cannot have written is refused, by name, before anything is made.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_types::{
    DEFAULT_TABLESPACE, DatabaseKey, GLOBAL_TABLESPACE, KeptFile, Lsn, MetaKey, PAGE_SIZE, PageBytes,
    PostgresVersion, RecordSpan,
};
use borealis_wal::encode;
use borealis_wal::layout::{CheckPointRecord, FIRST_NORMAL_XID};
use borealis_wal::page::{WalLayout, segment_file_name};

use crate::import::{IMPORT_MARK, KEPT_FILES};
use crate::statistics::{self, STATISTICS_FILE};
use crate::{InstanceError, Settings};

/// PostgreSQL's only time line here: an instance never branches, volumes do.
pub const TIME_LINE: u32 = 1;

/// `WalSegMinSize` and `WalSegMaxSize` in `src/include/access/xlog_internal.h`.
const WAL_SEGMENT_BYTES: std::ops::RangeInclusive<u32> = 1 << 20..=1 << 30;

/// Folders PostgreSQL expects.
const FOLDERS: [&str; 23] = [
    "global",
    "base",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
    "pg_multixact",
    "pg_multixact/offsets",
    "pg_multixact/members",
    "pg_subtrans",
    "pg_commit_ts",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_dynshmem",
    "pg_stat",
    "pg_stat_tmp",
    "pg_replslot",
    "pg_tblspc",
    "pg_twophase",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
    "base/pgsql_tmp",
];

/// What the volume's meta group knows at the recovery point.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The version that wrote the volume.
    pub version: PostgresVersion,
    /// What the checkpoint record must say.
    pub counters: Counters,
    /// `pg_control` of the `initdb` the volume was made from.
    pub control_file_template: Vec<u8>,
    /// Every other small value of the meta group, by key.
    pub values: Vec<(MetaKey, Vec<u8>)>,
}

impl Contents {
    /// What the values of the meta group say, of which `values` are those that lists have.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn decode(
        version: PostgresVersion,
        counters: &[u8],
        control_file_template: Vec<u8>,
        values: Vec<(MetaKey, Vec<u8>)>,
    ) -> Result<Contents, InstanceError> {
        let counters = Counters::decode(counters).ok_or_else(|| unexpected("the counters cannot be read"))?;
        Ok(Contents { version, counters, control_file_template, values })
    }
}

/// The shutdown checkpoint record that the server starts from, to be shipped before it does.
#[derive(Debug, Clone)]
pub struct SynthesizedCheckpoint {
    /// Where it stands; its `xl_prev` is the last record's start.
    pub span: RecordSpan,
    /// Its bytes, without page headers.
    pub bytes: Vec<u8>,
}

/// One folder or file of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned<'a> {
    /// A folder.
    Folder,
    /// A file with these bytes.
    File(Cow<'a, [u8]>),
    /// A file of which only some pages are written; the rest is a hole.
    Sparse {
        /// The file's length.
        bytes: u64,
        /// Pages and where they begin in the file.
        pages: Vec<(u64, Box<PageBytes>)>,
    },
}

/// A data directory that is yet to be written.
#[derive(Debug, Clone)]
pub struct DirectoryPlan<'a> {
    /// What to make, by its path below the data directory. A folder comes before what is in it.
    pub entries: BTreeMap<String, Planned<'a>>,
    /// `pg_control`, which is not written into the data directory.
    pub control_file: Vec<u8>,
    /// The checkpoint record that the WAL segment has, to be shipped before the server starts.
    pub checkpoint: SynthesizedCheckpoint,
}

impl<'a> DirectoryPlan<'a> {
    /// The data directory of a volume whose last record is `last`, at a time in seconds since 1970.
    ///
    /// # Errors
    /// When a value is none that a volume of this version can have; the error names it.
    pub fn new(
        contents: &'a Contents,
        last: RecordSpan,
        now_seconds: i64,
    ) -> Result<DirectoryPlan<'a>, InstanceError> {
        let mut layout = Layout { version: contents.version, entries: BTreeMap::new() };
        for folder in FOLDERS {
            layout.folder(folder)?;
        }
        layout.file("PG_VERSION", version_file(contents.version))?;
        layout.file("postgresql.conf", Cow::Borrowed(Settings::configuration_file().as_bytes()))?;
        layout.file("postgresql.auto.conf", Cow::Borrowed(&[]))?;
        layout.database_folders(contents)?;
        layout.value_files(contents)?;
        layout.kept_files(contents);
        if let Some(statistics) = statistics::current(&contents.values, last) {
            layout.file(STATISTICS_FILE, Cow::Owned(statistics))?;
        }
        if !layout.entries.contains_key("global/pg_filenode.map") {
            return Err(unexpected("it has no relation map of the shared catalogs"));
        }
        let (control_file, checkpoint) = layout.checkpoint(contents, last, now_seconds)?;
        Ok(DirectoryPlan { entries: layout.entries, control_file, checkpoint })
    }
}

fn unexpected(what: impl std::fmt::Display) -> InstanceError {
    InstanceError::Unexpected(format!("the volume's small values: {what}"))
}

fn database(key: &MetaKey) -> Option<DatabaseKey> {
    match key {
        MetaKey::Database(database) => Some(*database),
        _ => None,
    }
}

fn version_file(version: PostgresVersion) -> Cow<'static, [u8]> {
    Cow::Owned(format!("{version}\n").into_bytes())
}

/// The folder of a version's relations in a tablespace.
fn tablespace_folder(version: PostgresVersion, tablespace: u32) -> String {
    format!("pg_tblspc/{tablespace}/{}", version.tablespace_folder())
}

/// The folder of a database's relations in a tablespace.
pub(crate) fn database_folder(version: PostgresVersion, key: DatabaseKey) -> String {
    match key.tablespace {
        GLOBAL_TABLESPACE => "global".to_owned(),
        DEFAULT_TABLESPACE => format!("base/{}", key.database),
        tablespace => format!("{}/{}", tablespace_folder(version, tablespace), key.database),
    }
}

struct Layout<'a> {
    version: PostgresVersion,
    entries: BTreeMap<String, Planned<'a>>,
}

impl<'a> Layout<'a> {
    /// Plans a folder and those above it. It may be planned already.
    fn folder(&mut self, name: &str) -> Result<(), InstanceError> {
        if let Some((above, _)) = name.rsplit_once('/') {
            self.folder(above)?;
        }
        match self.entries.get(name) {
            None => {
                self.entries.insert(name.to_owned(), Planned::Folder);
                Ok(())
            }
            Some(Planned::Folder) => Ok(()),
            Some(_) => Err(unexpected(format!("`{name}` is a file and a folder"))),
        }
    }

    /// Plans a file, whose folder is planned already.
    fn file(&mut self, name: &str, bytes: Cow<'a, [u8]>) -> Result<(), InstanceError> {
        match self.entries.insert(name.to_owned(), Planned::File(bytes)) {
            None => Ok(()),
            Some(_) => Err(unexpected(format!("`{name}` is there twice"))),
        }
    }

    fn database_folder(&self, key: DatabaseKey) -> String {
        database_folder(self.version, key)
    }

    /// Plans a folder for every database in every tablespace: any database may have relations in any, and PostgreSQL
    /// opens them without making the folder. An empty one is what `DROP TABLESPACE` takes for unused, and removes.
    fn database_folders(&mut self, contents: &Contents) -> Result<(), InstanceError> {
        let mut databases = BTreeSet::new();
        let mut tablespaces = BTreeSet::new();
        for (key, _) in &contents.values {
            match key {
                MetaKey::Database(database) => {
                    if database.database == 0 || matches!(database.tablespace, 0 | GLOBAL_TABLESPACE) {
                        return Err(unexpected(format!("{key:?} is no database")));
                    }
                    databases.insert(database.database);
                    let folder = self.database_folder(*database);
                    self.folder(&folder)?;
                }
                // PostgreSQL expects a link to the user's folder; the data itself is in the volume, so a folder in the
                // memory directory takes its place.
                MetaKey::Tablespace(tablespace) => {
                    if matches!(*tablespace, 0 | DEFAULT_TABLESPACE | GLOBAL_TABLESPACE) {
                        return Err(unexpected(format!("{key:?} is none that can be made")));
                    }
                    tablespaces.insert(*tablespace);
                    let folder = tablespace_folder(self.version, *tablespace);
                    self.folder(&folder)?;
                }
                _ => {}
            }
        }
        for &tablespace in &tablespaces {
            for &database in &databases {
                let folder = self.database_folder(DatabaseKey { tablespace, database });
                self.folder(&folder)?;
            }
        }
        Ok(())
    }

    fn value_files(&mut self, contents: &'a Contents) -> Result<(), InstanceError> {
        let databases: BTreeSet<DatabaseKey> =
            contents.values.iter().filter_map(|(key, _)| database(key)).collect();
        for (key, value) in &contents.values {
            let bytes = Cow::Borrowed(&value[..]);
            match key {
                MetaKey::RelationMap(database) if database.tablespace == GLOBAL_TABLESPACE => {
                    if database.database != 0 {
                        return Err(unexpected(format!("{key:?} is of no database")));
                    }
                    self.file("global/pg_filenode.map", bytes)?;
                }
                // The folder with the relation map is the database's own. Others have relations of it only, and must
                // be empty without them: `DROP TABLESPACE` and `SET TABLESPACE` ask for that.
                MetaKey::RelationMap(database) if databases.contains(database) => {
                    let folder = self.database_folder(*database);
                    self.file(&format!("{folder}/pg_filenode.map"), bytes)?;
                    self.file(&format!("{folder}/PG_VERSION"), version_file(self.version))?;
                }
                // Of a database that was dropped.
                MetaKey::RelationMap(_) | MetaKey::Database(_) | MetaKey::Tablespace(_) => {}
                MetaKey::PreparedTransaction(xid) if *xid < FIRST_NORMAL_XID => {
                    return Err(unexpected(format!("{key:?} is no transaction")));
                }
                MetaKey::PreparedTransaction(xid) => self.file(&format!("pg_twophase/{xid:08X}"), bytes)?,
                key if KeptFile::of_key(key).is_some() || statistics::is_key(key) => {}
                // The import was interrupted after all that counts.
                MetaKey::SmallFile(name) if name == IMPORT_MARK => {}
                MetaKey::SmallFile(name) if !KEPT_FILES.contains(&name.as_str()) => {
                    return Err(unexpected(format!("`{name}` is no file that is kept")));
                }
                MetaKey::SmallFile(name) if name == "postgresql.conf" => self.file("initdb.conf", bytes)?,
                MetaKey::SmallFile(name) => self.file(name, bytes)?,
                MetaKey::Counters | MetaKey::ControlFileTemplate => {
                    return Err(unexpected(format!("{key:?} is listed among the others")));
                }
            }
        }
        Ok(())
    }

    /// The files that outlived the server take the place of those that a new volume has.
    fn kept_files(&mut self, contents: &'a Contents) {
        for (key, value) in &contents.values {
            if let Some(file) = KeptFile::of_key(key) {
                self.entries.insert(file.name().to_owned(), Planned::File(Cow::Borrowed(&value[..])));
            }
        }
    }

    /// Plans the WAL segment with the checkpoint that the server starts from; returns the control file that names it.
    fn checkpoint(
        &mut self,
        contents: &Contents,
        last: RecordSpan,
        now_seconds: i64,
    ) -> Result<(Vec<u8>, SynthesizedCheckpoint), InstanceError> {
        let template = ControlFile::decode(&contents.control_file_template)
            .map_err(|error| unexpected(format!("pg_control: {error}")))?;
        let segment_bytes = template.wal_segment_bytes;
        if !segment_bytes.is_power_of_two() || !WAL_SEGMENT_BYTES.contains(&segment_bytes) {
            return Err(unexpected(format!("pg_control has WAL segments of {segment_bytes} bytes")));
        }
        let counters = &contents.counters;
        let is_normal = |xid: u32| xid >= FIRST_NORMAL_XID;
        if !is_normal(counters.next_full_xid as u32) || !is_normal(counters.oldest_xid) {
            return Err(unexpected(format!(
                "the counters have next transaction {} and oldest {}",
                counters.next_full_xid, counters.oldest_xid
            )));
        }
        if (counters.timeline, counters.previous_timeline) != (TIME_LINE, TIME_LINE) {
            return Err(unexpected(format!("the counters are of time line {}", counters.timeline)));
        }
        let layout = WalLayout {
            version: contents.version,
            timeline: TIME_LINE,
            system_identifier: template.system_identifier,
            segment_bytes,
        };
        check_end(&layout, last)?;
        // The record's own start takes the place of `redo` once it is known.
        let checkpoint = counters.to_checkpoint(last.end, now_seconds);
        let written = encode::shutdown_checkpoint(&layout, last, checkpoint);
        self.wal_pages(segment_bytes, written.pages);
        let checkpoint = CheckPointRecord { redo: written.span.start, ..checkpoint };
        let control = template.shut_down_at(checkpoint, &counters.parameters);
        Ok((control.encode(), SynthesizedCheckpoint { span: written.span, bytes: written.record }))
    }

    /// Plans the segment files of WAL pages, each of full length.
    fn wal_pages(&mut self, segment_bytes: u32, pages: Vec<(Lsn, Box<PageBytes>)>) {
        for (position, page) in pages {
            let name = format!("pg_wal/{}", segment_file_name(TIME_LINE, position, segment_bytes));
            let empty = Planned::Sparse { bytes: u64::from(segment_bytes), pages: Vec::new() };
            // Nothing else is planned in this folder.
            if let Planned::Sparse { pages, .. } = self.entries.entry(name).or_insert(empty) {
                pages.push((position.0 % u64::from(segment_bytes), page));
            }
        }
    }
}

/// Refuses a last record after which none can stand.
fn check_end(layout: &WalLayout, last: RecordSpan) -> Result<(), InstanceError> {
    let page = last.end.0 - last.end.0 % PAGE_SIZE as u64;
    let in_page = last.end.0 - page;
    // The stream ends before its positions do.
    let has_room = last.end.0 < u64::MAX - 2 * u64::from(*WAL_SEGMENT_BYTES.end());
    let begins = in_page == 0 || in_page >= layout.header_bytes(Lsn(page)) as u64;
    if last.start < last.end && last.end.0.is_multiple_of(8) && has_room && begins {
        return Ok(());
    }
    Err(InstanceError::Unexpected(format!("the volume's last record, from {} to {}", last.start, last.end)))
}

#[cfg(test)]
mod tests;
