//! The major versions of PostgreSQL that Borealis knows. Nothing outside this file names one by its number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which major version of PostgreSQL wrote a stream. Every layout that differs asks this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PostgresVersion {
    /// PostgreSQL 15.
    V15,
}

/// What is particular to a major version: its number, and those by which its files tell it from the others. Layouts
/// are in `borealis_wal::layout`.
#[derive(Debug)]
pub struct MajorVersion {
    /// `PG_MAJORVERSION_NUM`: the content of `PG_VERSION`, and part of the names of folders and packages.
    pub number: u16,
    /// `CATALOG_VERSION_NO` (`src/include/catalog/catversion.h`), part of the name of a tablespace's folder.
    pub catalog_version: u32,
    /// `XLOG_PAGE_MAGIC` (`src/include/access/xlog_internal.h`), at the start of each WAL page.
    pub wal_page_magic: u16,
    /// `WalWriterProcess` (`AuxProcType` in `src/include/miscadmin.h`): what the variable `MyAuxProcType` is in the process that
    /// writes the log in the background.
    pub wal_writer_process: i32,
    /// The `server_version_num` of the oldest minor release that tests on a real PostgreSQL have run with.
    pub oldest_tested: u32,
    /// The `server_version_num` of the newest minor release that tests on a real PostgreSQL have run with.
    pub newest_tested: u32,
}

const V15: MajorVersion = MajorVersion {
    number: 15,
    catalog_version: 202_209_061,
    wal_page_magic: 0xD110,
    wal_writer_process: 4,
    oldest_tested: 15_00_18,
    newest_tested: 15_00_20,
};

impl PostgresVersion {
    /// Every version, the oldest first.
    pub const ALL: [PostgresVersion; 1] = [PostgresVersion::V15];
    /// The oldest version that a volume can have.
    pub const OLDEST: PostgresVersion = PostgresVersion::ALL[0];
    /// The newest version that a volume can have, and what a new one gets if nothing says otherwise.
    pub const NEWEST: PostgresVersion = PostgresVersion::ALL[PostgresVersion::ALL.len() - 1];

    /// What is particular to it.
    #[must_use]
    pub const fn facts(self) -> &'static MajorVersion {
        match self {
            PostgresVersion::V15 => &V15,
        }
    }

    /// The version with this number, as in `PG_VERSION`; `None` if Borealis does not know it.
    #[must_use]
    pub const fn of_number(number: u32) -> Option<PostgresVersion> {
        let mut index = 0;
        while index < PostgresVersion::ALL.len() {
            if PostgresVersion::ALL[index].facts().number as u32 == number {
                return Some(PostgresVersion::ALL[index]);
            }
            index += 1;
        }
        None
    }

    /// The folder below a tablespace that has this version's relations (`TABLESPACE_VERSION_DIRECTORY`).
    #[must_use]
    pub fn tablespace_folder(self) -> String {
        let MajorVersion { number, catalog_version, .. } = self.facts();
        format!("PG_{number}_{catalog_version}")
    }

    /// The versions that Borealis supports, for messages: `15`, or `15, 16 and 17`.
    #[must_use]
    pub fn supported() -> impl fmt::Display {
        let [versions @ .., newest] = PostgresVersion::ALL;
        let separators = [", ", " and "];
        let mut text = String::new();
        for (place, version) in versions.iter().enumerate() {
            text.push_str(&version.to_string());
            text.push_str(separators[usize::from(place + 1 == versions.len())]);
        }
        text + &newest.to_string()
    }
}

impl fmt::Display for PostgresVersion {
    /// As PostgreSQL names it: `15`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts().number.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServerVersion;

    #[test]
    fn every_version_is_found_by_its_number_and_its_releases_are_its_own() {
        for version in PostgresVersion::ALL {
            let facts = version.facts();
            assert_eq!(PostgresVersion::of_number(u32::from(facts.number)), Some(version));
            for release in [facts.oldest_tested, facts.newest_tested] {
                assert_eq!(ServerVersion::new(release).map(ServerVersion::major), Ok(version));
            }
        }
        assert_eq!(PostgresVersion::of_number(14), None);
        assert!(PostgresVersion::ALL.is_sorted_by(|older, newer| older < newer));
    }

    #[test]
    fn names_are_those_of_postgresql() {
        assert_eq!(PostgresVersion::V15.tablespace_folder(), "PG_15_202209061");
        assert_eq!(PostgresVersion::supported().to_string(), "15");
    }
}
