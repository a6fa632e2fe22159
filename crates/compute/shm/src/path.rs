//! What a path names: the classes of files in a data directory.
//!
//! PostgreSQL's processes run inside the data directory and use relative paths, now and then with a leading
//! `./`, or absolute ones built from the data directory's name. Everything unknown is [`PathClass::Other`].

use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, DEFAULT_TABLESPACE, DatabaseKey, Fork, GLOBAL_TABLESPACE, KeptFile,
    RelationFork, RelationLocator, SlruKind,
};

/// The name of PostgreSQL's control file beside the data directory.
pub const CONTROL_FILE_NAME: &str = "pg_control";

/// The name of the pass beside the data directory: the number of the process that may use physical replication while it
/// runs. The server refuses everybody else, who would take its log, which begins at its last start, for whole.
pub const REPLICATION_PASS_NAME: &str = "replication.pass";

/// The name of the shared memory's file beside the data directory.
pub const SHARED_MEMORY_NAME: &str = "shm";

/// The name of the pipe beside the data directory that wakes the driver, for programs that did not inherit its event
/// descriptor.
pub const WAKE_PIPE_NAME: &str = "wake";

/// Where PostgreSQL's control file really is: beside the data directory, where only a server with the shim finds it.
///
/// A server opens `global/pg_control` before anything else and ends if it is not there. So one whose shim was not
/// loaded, for whatever reason, cannot start, and serves nobody from files that storage does not know.
#[must_use]
pub fn control_file(data_directory: &std::path::Path) -> std::path::PathBuf {
    data_directory.with_file_name(CONTROL_FILE_NAME)
}

/// What a file of the data directory is to the shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathClass {
    /// A 1 GiB segment of a permanent or unlogged relation's fork.
    Relation {
        /// The relation and its fork.
        fork: RelationFork,
        /// Number of the segment file (1 GiB each).
        segment: u32,
    },
    /// A segment of a transaction-status store.
    Slru {
        /// Which transaction-status store it belongs to.
        kind: SlruKind,
        /// Number of the segment file (32 pages each).
        segment: u32,
    },
    /// A segment file of the write-ahead log.
    Wal {
        /// Its number, counted from LSN 0.
        segment_number: u64,
    },
    /// No file of ours: PostgreSQL's own call is made.
    Other,
}

impl PathClass {
    /// A number for the file, for the locks between fillers and writers and for what is remembered of blocks.
    #[must_use]
    pub fn hash(self) -> u64 {
        let words = match self {
            PathClass::Relation { fork, segment } => {
                let locator = fork.locator;
                [locator.tablespace, locator.database, locator.relation, fork.fork as u32, segment]
            }
            PathClass::Slru { kind, segment } => [u32::MAX, kind as u32, segment, 0, 0],
            PathClass::Wal { .. } | PathClass::Other => [0; 5],
        };
        words.into_iter().fold(0, mix)
    }
}

/// Multiplications by odd constants (the 64-bit golden ratio, as in Fibonacci hashing) mix well enough for tables
/// in which a collision costs only time.
pub(crate) fn mix(hash: u64, word: u32) -> u64 {
    let mixed = (hash ^ u64::from(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 32
}

/// What a folder of the data directory is to the shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FolderClass {
    /// The relation files of a database in one tablespace, or the shared relations.
    Database(DatabaseKey),
    /// The segments of a transaction-status store.
    Slru(SlruKind),
    /// No file of ours: PostgreSQL's own call is made.
    Other,
}

/// What the classification depends on.
pub struct Layout<'a> {
    /// The absolute path of PostgreSQL's data directory.
    pub data_directory: &'a [u8],
    /// PostgreSQL's major and catalog version, as in the folder name `PG_15_202209061`.
    pub versions: (u32, u32),
    /// Bytes of a WAL segment; not zero.
    pub wal_segment_size_bytes: u64,
}

impl Layout<'_> {
    /// The path's components below the data directory, or `None` when it is not below it (or says `..`).
    fn components<'p>(&self, path: &'p [u8]) -> Option<impl Iterator<Item = &'p [u8]> + use<'p>> {
        let relative = if path.first() == Some(&b'/') {
            let rest = path.strip_prefix(self.data_directory)?;
            rest.strip_prefix(b"/")?
        } else {
            path
        };
        let parts = || relative.split(|&byte| byte == b'/');
        if parts().any(|part| part == b"..") {
            return None;
        }
        Some(relative.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && part != b"."))
    }

    /// What a file is, by its path as PostgreSQL gives it.
    #[must_use]
    pub fn classify(&self, path: &[u8]) -> PathClass {
        self.file(path).unwrap_or(PathClass::Other)
    }

    fn file(&self, path: &[u8]) -> Option<PathClass> {
        let mut parts = self.components(path)?;
        let (folder, name) = match parts.next()? {
            b"base" => (database(DEFAULT_TABLESPACE, parts.next()?)?, parts.next()?),
            b"global" => (shared_relations(), parts.next()?),
            b"pg_tblspc" => {
                let tablespace = self.tablespace(parts.next()?, parts.next()?)?;
                (database(tablespace, parts.next()?)?, parts.next()?)
            }
            b"pg_wal" => {
                let name = parts.next()?;
                return self.wal(name).filter(|_| parts.next().is_none());
            }
            b"pg_xact" => return slru(SlruKind::Transactions, parts.next()?, parts.next()),
            b"pg_commit_ts" => return slru(SlruKind::CommitTimestamps, parts.next()?, parts.next()),
            b"pg_multixact" => {
                let kind = multixact(parts.next()?)?;
                return slru(kind, parts.next()?, parts.next());
            }
            _ => return None,
        };
        if parts.next().is_some() {
            return None;
        }
        let (relation, fork, segment) = relation_name(name)?;
        let locator = RelationLocator { tablespace: folder.tablespace, database: folder.database, relation };
        Some(PathClass::Relation { fork: RelationFork { locator, fork }, segment })
    }

    /// What a folder lists, by its path as PostgreSQL gives it.
    #[must_use]
    pub fn classify_folder(&self, path: &[u8]) -> FolderClass {
        self.folder(path).unwrap_or(FolderClass::Other)
    }

    fn folder(&self, path: &[u8]) -> Option<FolderClass> {
        let mut parts = self.components(path)?;
        let class = match parts.next()? {
            b"base" => FolderClass::Database(database(DEFAULT_TABLESPACE, parts.next()?)?),
            b"global" => FolderClass::Database(shared_relations()),
            b"pg_tblspc" => {
                let tablespace = self.tablespace(parts.next()?, parts.next()?)?;
                FolderClass::Database(database(tablespace, parts.next()?)?)
            }
            b"pg_xact" => FolderClass::Slru(SlruKind::Transactions),
            b"pg_commit_ts" => FolderClass::Slru(SlruKind::CommitTimestamps),
            b"pg_multixact" => FolderClass::Slru(multixact(parts.next()?)?),
            _ => return None,
        };
        parts.next().is_none().then_some(class)
    }

    /// Whether the path is PostgreSQL's control file, which is not there: see [`control_file`].
    #[must_use]
    pub fn is_control_file(&self, path: &[u8]) -> bool {
        // Most paths are something else, which their end says at once.
        path.ends_with(b"/pg_control")
            && self.components(path).is_some_and(|parts| parts.eq([&b"global"[..], &b"pg_control"[..]]))
    }

    /// The small file at this path, if it is one that outlives the server.
    #[must_use]
    pub fn kept_file(&self, path: &[u8]) -> Option<KeptFile> {
        // Most paths are something else, which their end says at once.
        if !path.ends_with(b".conf") {
            return None;
        }
        let mut parts = self.components(path)?;
        let file = KeptFile::named(parts.next()?)?;
        parts.next().is_none().then_some(file)
    }

    /// Whether the path is `pg_tblspc/<oid>`, the link of a user's tablespace.
    #[must_use]
    pub fn is_tablespace_link(&self, path: &[u8]) -> bool {
        let is_link = || {
            let mut parts = self.components(path)?;
            (parts.next()? == b"pg_tblspc").then_some(())?;
            decimal(parts.next()?)?;
            Some(parts.next().is_none())
        };
        is_link().unwrap_or(false)
    }

    /// `pg_tblspc/<oid>/PG_<major>_<catalog version>`.
    fn tablespace(&self, oid: &[u8], version: &[u8]) -> Option<u32> {
        let mut numbers = version.strip_prefix(b"PG_")?.split(|&byte| byte == b'_');
        let versions = (decimal(numbers.next()?)?, decimal(numbers.next()?)?);
        (versions == self.versions && numbers.next().is_none()).then_some(())?;
        decimal(oid)
    }

    /// `<timeline><high><low>`, eight hexadecimal digits each (`XLogFileName` in `xlog_internal.h`).
    fn wal(&self, name: &[u8]) -> Option<PathClass> {
        if name.len() != 24 {
            return None;
        }
        hexadecimal(name.get(..8)?)?;
        let high = u64::from(hexadecimal(name.get(8..16)?)?);
        let low = u64::from(hexadecimal(name.get(16..)?)?);
        let segments_per_log = (1u64 << 32) / self.wal_segment_size_bytes.max(1);
        let segment_number = high.checked_mul(segments_per_log)?.checked_add(low)?;
        Some(PathClass::Wal { segment_number })
    }
}

fn shared_relations() -> DatabaseKey {
    DatabaseKey { tablespace: GLOBAL_TABLESPACE, database: 0 }
}

fn database(tablespace: u32, name: &[u8]) -> Option<DatabaseKey> {
    Some(DatabaseKey { tablespace, database: decimal(name)? })
}

fn multixact(name: &[u8]) -> Option<SlruKind> {
    match name {
        b"offsets" => Some(SlruKind::MultiXactOffsets),
        b"members" => Some(SlruKind::MultiXactMembers),
        _ => None,
    }
}

/// Segment files have four hexadecimal digits, more once four are not enough (`SlruFileName` in `slru.c`).
fn slru(kind: SlruKind, name: &[u8], more: Option<&[u8]>) -> Option<PathClass> {
    if more.is_some() || !(4..=6).contains(&name.len()) {
        return None;
    }
    Some(PathClass::Slru { kind, segment: hexadecimal(name)? })
}

/// `<relation>[_<fork>][.<segment>]` (`GetRelationPath` in `relpath.c`). Temporary relations (`t3_16384`) are
/// not of ours.
fn relation_name(name: &[u8]) -> Option<(u32, Fork, u32)> {
    let mut halves = name.splitn(2, |&byte| byte == b'.');
    let stem = halves.next()?;
    let segment = match halves.next() {
        Some(digits) => decimal(digits).filter(|&segment| segment <= u32::MAX / BLOCKS_PER_SEGMENT_FILE)?,
        None => 0,
    };
    let digits = stem.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let relation = decimal(stem.get(..digits)?)?;
    let suffix = stem.get(digits..)?;
    let fork = Fork::ALL.into_iter().find(|fork| fork.file_suffix().as_bytes() == suffix)?;
    Some((relation, fork, segment))
}

/// An object identifier or a segment number: digits without leading zeros, above zero.
fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 10 || digits.first() == Some(&b'0') {
        return None;
    }
    digits.iter().try_fold(0u32, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The value of upper-case hexadecimal digits; `None` if there is another character.
fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |value, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        value.checked_mul(16)?.checked_add(u32::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout<'static> = Layout {
        data_directory: b"/dev/shm/b/data",
        versions: (15, 202_209_061),
        wal_segment_size_bytes: 16 << 20,
    };

    fn relation(tablespace: u32, database: u32, number: u32, fork: Fork, segment: u32) -> PathClass {
        let locator = RelationLocator { tablespace, database, relation: number };
        PathClass::Relation { fork: RelationFork { locator, fork }, segment }
    }

    #[test]
    fn relation_files_are_recognised() {
        let cases: [(&str, PathClass); 9] = [
            ("base/5/1259", relation(1663, 5, 1259, Fork::Main, 0)),
            ("./base/5/1259.3", relation(1663, 5, 1259, Fork::Main, 3)),
            ("base/5/1259_fsm", relation(1663, 5, 1259, Fork::FreeSpaceMap, 0)),
            ("base//5/1259_vm.12", relation(1663, 5, 1259, Fork::VisibilityMap, 12)),
            ("base/5/16384_init", relation(1663, 5, 16384, Fork::Init, 0)),
            ("global/1262", relation(1664, 0, 1262, Fork::Main, 0)),
            ("pg_tblspc/16400/PG_15_202209061/5/16401", relation(16400, 5, 16401, Fork::Main, 0)),
            ("/dev/shm/b/data/base/5/4294967295", relation(1663, 5, u32::MAX, Fork::Main, 0)),
            ("/dev/shm/b/data//global/1262", relation(1664, 0, 1262, Fork::Main, 0)),
        ];
        for (path, class) in cases {
            assert_eq!(LAYOUT.classify(path.as_bytes()), class, "{path}");
        }
    }

    #[test]
    fn log_and_status_files_are_recognised() {
        let cases: [(&str, PathClass); 7] = [
            ("pg_wal/000000010000000000000001", PathClass::Wal { segment_number: 1 }),
            ("pg_wal/00000001000000020000000A", PathClass::Wal { segment_number: 2 * 256 + 10 }),
            ("pg_xact/0000", PathClass::Slru { kind: SlruKind::Transactions, segment: 0 }),
            ("pg_xact/0A1F", PathClass::Slru { kind: SlruKind::Transactions, segment: 0xA1F }),
            (
                "pg_multixact/members/14078",
                PathClass::Slru { kind: SlruKind::MultiXactMembers, segment: 0x14078 },
            ),
            ("pg_multixact/offsets/0000", PathClass::Slru { kind: SlruKind::MultiXactOffsets, segment: 0 }),
            ("pg_commit_ts/0001", PathClass::Slru { kind: SlruKind::CommitTimestamps, segment: 1 }),
        ];
        for (path, class) in cases {
            assert_eq!(LAYOUT.classify(path.as_bytes()), class, "{path}");
        }
    }

    #[test]
    fn the_control_file_is_recognised_however_it_is_written() {
        for path in ["global/pg_control", "./global//pg_control", "/dev/shm/b/data/global/pg_control"] {
            assert!(LAYOUT.is_control_file(path.as_bytes()), "{path}");
        }
        for path in
            ["pg_control", "base/pg_control", "global/pg_control.old", "/dev/shm/b/global/pg_control", ""]
        {
            assert!(!LAYOUT.is_control_file(path.as_bytes()), "{path}");
        }
        assert_eq!(
            control_file(std::path::Path::new("/dev/shm/b/data")),
            std::path::Path::new("/dev/shm/b/pg_control")
        );
    }

    #[test]
    fn kept_files_stand_at_the_top_of_the_data_directory() {
        let of = |path: &str| LAYOUT.kept_file(path.as_bytes());
        assert_eq!(of("postgresql.auto.conf"), Some(KeptFile::SystemSettings));
        assert_eq!(of("/dev/shm/b/data/pg_hba.conf"), Some(KeptFile::Authentication));
        for path in
            ["postgresql.auto.conf.tmp", "base/pg_hba.conf", "/etc/pg_hba.conf", "../pg_hba.conf", "x.conf"]
        {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn everything_else_passes_through() {
        for path in [
            "",
            "/",
            ".",
            "base",
            "base/5",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/pg_internal.init.77",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm",
            "base/pgsql_tmp/pgsql_tmp12.0",
            "base/5/01259",
            "base/5/1259_",
            "base/5/1259_vmx",
            "base/5/1259.",
            "base/5/1259.0",
            "base/5/1259.32768",
            "base/5/1259.1.1",
            "base/5/4294967296",
            "base/5/12345678901",
            "base/5/1259/7",
            "base/../base/5/1259",
            "global/pg_control",
            "pg_tblspc/16400/PG_14_202107181/5/16401",
            "pg_tblspc/16400/5/16401",
            "pg_wal/000000010000000000000001.partial",
            "pg_wal/00000001000000000000000g",
            "pg_wal/00000001000000000000000a",
            "pg_wal/xlogtemp.42",
            "pg_wal/archive_status/000000010000000000000001.ready",
            "pg_subtrans/0000",
            "pg_xact/00",
            "pg_xact/0000/1",
            "pg_multixact/0000",
            "/elsewhere/base/5/1259",
            "/dev/shm/b/database/5/1259",
            "/dev/shm/b/data2/base/5/1259",
        ] {
            assert_eq!(LAYOUT.classify(path.as_bytes()), PathClass::Other, "{path}");
        }
    }

    #[test]
    fn folders_are_recognised() {
        let database = |tablespace, database| FolderClass::Database(DatabaseKey { tablespace, database });
        let cases: [(&str, FolderClass); 10] = [
            ("base/5", database(1663, 5)),
            ("./base/5/", database(1663, 5)),
            ("global", database(1664, 0)),
            ("./global", database(1664, 0)),
            ("pg_tblspc/16400/PG_15_202209061/5", database(16400, 5)),
            ("pg_xact", FolderClass::Slru(SlruKind::Transactions)),
            ("pg_multixact/members", FolderClass::Slru(SlruKind::MultiXactMembers)),
            ("base", FolderClass::Other),
            ("pg_tblspc/16400/PG_15_202209061", FolderClass::Other),
            ("base/pgsql_tmp", FolderClass::Other),
        ];
        for (path, class) in cases {
            assert_eq!(LAYOUT.classify_folder(path.as_bytes()), class, "{path}");
        }
    }

    #[test]
    fn hashes_are_spread_over_files() {
        let used: std::collections::HashSet<u64> =
            (1..=1000).map(|number| relation(1663, 5, number, Fork::Main, 0).hash() % 4096).collect();
        assert!(used.len() > 800, "{} different numbers for 1000 files", used.len());
    }
}
