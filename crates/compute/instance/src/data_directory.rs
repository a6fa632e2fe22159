//! A fresh data directory at a recovery point.
//!
//! It holds what PostgreSQL must find before it can ask the shim for anything: folders, configuration, the relation
//! maps, prepared transactions, and one WAL segment with one shutdown checkpoint record. Beside it stands
//! `pg_control` in state "shut down". Relation files, visibility maps and transaction-status pages are not there; the
//! shim makes them appear when they are first opened.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_types::{
    DEFAULT_TABLESPACE, DatabaseKey, GLOBAL_TABLESPACE, Lsn, MetaKey, PageBytes, PostgresVersion, RecordSpan,
};
use borealis_wal::encode;
use borealis_wal::layout::CheckPointRecord;
use borealis_wal::page::WalLayout;

use crate::import::KEPT_FILES;
use crate::{InstanceError, OperatingSystemUser, Settings, on};

/// PostgreSQL's only time line here: an instance never branches, volumes do.
const TIME_LINE: u32 = 1;

/// Folders PostgreSQL expects, parents first.
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

/// The shutdown checkpoint record that the server starts from, to be shipped before it does.
#[derive(Debug, Clone)]
pub struct SynthesizedCheckpoint {
    /// Where it stands; its `xl_prev` is the last record's start.
    pub span: RecordSpan,
    /// Its bytes, without page headers.
    pub bytes: Vec<u8>,
}

/// Writes the data directory `path`, which must not exist, as of `last` (the last record of the volume), and
/// PostgreSQL's control file apart from it, where only the shim finds it.
///
/// # Errors
/// When a file cannot be written (the memory file system is full, for one), or the volume's values are not
/// what this version of Borealis writes.
pub fn write(
    path: &Path,
    control_file: &Path,
    user: &OperatingSystemUser,
    contents: &Contents,
    last: RecordSpan,
) -> Result<SynthesizedCheckpoint, InstanceError> {
    let directory = Directory { root: path.to_path_buf(), user: user.clone(), version: contents.version };
    directory.make("")?;
    for folder in FOLDERS {
        directory.make(folder)?;
    }
    directory.write("PG_VERSION", format!("{}\n", contents.version).as_bytes())?;
    directory.write_values(contents)?;
    directory.write("postgresql.auto.conf", b"")?;
    directory.write_configuration(contents)?;

    let template = ControlFile::decode(&contents.control_file_template)
        .map_err(|error| InstanceError::Unexpected(format!("the volume's pg_control: {error}")))?;
    let layout = WalLayout {
        version: contents.version,
        timeline: TIME_LINE,
        system_identifier: template.system_identifier,
        segment_bytes: template.wal_segment_bytes,
    };
    let now_seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64);
    // The record's own start takes the place of `redo` once it is known.
    let checkpoint = contents.counters.to_checkpoint(last.end, now_seconds);
    let written = encode::shutdown_checkpoint(&layout, last, checkpoint);
    directory.write_wal_pages(layout.segment_bytes, &written.pages)?;
    let checkpoint = CheckPointRecord { redo: written.span.start, ..checkpoint };
    let control = template.shut_down_at(checkpoint, &contents.counters.parameters);
    directory.write_at(control_file, &control.encode())?;
    Ok(SynthesizedCheckpoint { span: written.span, bytes: written.record })
}

struct Directory {
    root: PathBuf,
    user: OperatingSystemUser,
    version: PostgresVersion,
}

impl Directory {
    fn make(&self, name: &str) -> Result<(), InstanceError> {
        let path = self.root.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(on("cannot create", &path))?;
        self.give(&path)
    }

    fn give(&self, path: &Path) -> Result<(), InstanceError> {
        if self.user.switch {
            chown(path, Some(self.user.user_id), Some(self.user.group_id))
                .map_err(on("cannot give to the server's user", path))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), InstanceError> {
        self.write_at(&self.root.join(name), bytes)
    }

    fn write_at(&self, path: &Path, bytes: &[u8]) -> Result<(), InstanceError> {
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(on("cannot write", path))?;
        file.write_all(bytes).map_err(on("cannot write", path))?;
        self.give(path)
    }

    fn database_folder(&self, key: DatabaseKey) -> String {
        match key.tablespace {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{}", key.database),
            tablespace => format!("{}/{}", self.tablespace_folder(tablespace), key.database),
        }
    }

    /// The folder of this version's relations in a tablespace.
    fn tablespace_folder(&self, tablespace: u32) -> String {
        format!("pg_tblspc/{tablespace}/{}", self.version.tablespace_folder())
    }

    fn write_values(&self, contents: &Contents) -> Result<(), InstanceError> {
        for (key, _) in &contents.values {
            if let MetaKey::Tablespace(tablespace) = key {
                // PostgreSQL expects a link to the user's folder; the data itself is in the volume, so a
                // folder in the memory directory takes its place.
                self.make(&format!("pg_tblspc/{tablespace}"))?;
                self.make(&self.tablespace_folder(*tablespace))?;
                // Any database may have relations in it, and PostgreSQL opens them without making the folder.
                // Where it is the database's own tablespace, the folder is made below, with its files.
                for (key, _) in &contents.values {
                    let MetaKey::Database(database) = key else { continue };
                    let there = DatabaseKey { tablespace: *tablespace, ..*database };
                    let own = |(key, _): &(MetaKey, Vec<u8>)| *key == MetaKey::Database(there);
                    if !contents.values.iter().any(own) {
                        self.make(&self.database_folder(there))?;
                    }
                }
            }
        }
        for (key, _) in &contents.values {
            if let MetaKey::Database(database) = key {
                let folder = self.database_folder(*database);
                self.make(&folder)?;
                self.write(&format!("{folder}/PG_VERSION"), format!("{}\n", self.version).as_bytes())?;
            }
        }
        for (key, value) in &contents.values {
            match key {
                MetaKey::RelationMap(database) => {
                    let folder = self.database_folder(*database);
                    if self.root.join(&folder).is_dir() {
                        self.write(&format!("{folder}/pg_filenode.map"), value)?;
                    }
                }
                MetaKey::PreparedTransaction(xid) => {
                    self.write(&format!("pg_twophase/{xid:08X}"), value)?;
                }
                MetaKey::SmallFile(name) if !KEPT_FILES.contains(&name.as_str()) => {
                    let plain = Path::new(name)
                        .components()
                        .all(|part| matches!(part, std::path::Component::Normal(_)));
                    if !plain {
                        return Err(InstanceError::Unexpected(format!("small file `{name}`")));
                    }
                    self.write(name, value)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write_configuration(&self, contents: &Contents) -> Result<(), InstanceError> {
        self.write("postgresql.conf", Settings::configuration_file().as_bytes())?;
        for (key, value) in &contents.values {
            let MetaKey::SmallFile(name) = key else { continue };
            match name.as_str() {
                "postgresql.conf" => self.write("initdb.conf", value)?,
                "pg_hba.conf" | "pg_ident.conf" => self.write(name, value)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes pages into their segment files, of full length. The rest is a hole.
    fn write_wal_pages(
        &self,
        segment_bytes: u32,
        pages: &[(Lsn, Box<PageBytes>)],
    ) -> Result<(), InstanceError> {
        use std::os::unix::fs::FileExt;
        let segment_bytes = u64::from(segment_bytes);
        for (position, page) in pages {
            let name = format!("pg_wal/{}", wal_file_name(position.0 / segment_bytes, segment_bytes));
            let path = self.root.join(&name);
            if !path.exists() {
                self.write(&name, b"")?;
            }
            let file = fs::File::options().write(true).open(&path).map_err(on("cannot write", &path))?;
            file.set_len(segment_bytes).map_err(on("cannot write", &path))?;
            file.write_all_at(&page[..], position.0 % segment_bytes).map_err(on("cannot write", &path))?;
        }
        Ok(())
    }
}

/// `XLogFileName`: time line, then the segment number in two parts.
fn wal_file_name(segment: u64, segment_bytes: u64) -> String {
    let per_id = (1u64 << 32) / segment_bytes;
    format!("{TIME_LINE:08X}{:08X}{:08X}", segment / per_id, segment % per_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_files_are_named_as_postgres_names_them() {
        assert_eq!(wal_file_name(1, 16 << 20), "000000010000000000000001");
        assert_eq!(wal_file_name(256, 16 << 20), "000000010000000100000000");
    }
}
