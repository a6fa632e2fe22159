//! Small files that outlive the server: those in which a user says how it should run.
//!
//! Each is a small value of the meta group. The shim writes its content into PostgreSQL's own log, as a message for logical
//! decoding that belongs to no database (`xl_logical_message` in `src/include/replication/message.h`). So it is ordered,
//! fenced, made durable and backed up like every other record; PostgreSQL's redo does nothing with it, and no logical slot
//! shows it, for each shows messages of its own database alone. A user cannot write one: a message of SQL has the number of
//! the session's database, which is never zero.

use crate::MetaKey;

/// A kept file's bytes at most. With it a record stays below the size at which it would be cut into pieces, and a file that
/// changes often costs a bounded amount of log each time.
pub const KEPT_FILE_BYTES_MAX: usize = 512 << 10;

/// How the prefix of a message begins that has a kept file's content; the file's name follows, then a zero byte.
pub const KEPT_FILE_PREFIX: &str = "borealis.kept_file:";

/// `RM_LOGICALMSG_ID` (`src/include/access/rmgrlist.h`), the resource manager of messages, the same in every version.
pub const MESSAGE_MANAGER: u8 = 21;

/// `XLOG_LOGICAL_MESSAGE`, the only operation of that resource manager.
pub const MESSAGE: u8 = 0x00;

/// `SizeOfLogicalMessage`: what stands before a message's prefix.
pub const MESSAGE_HEADER_BYTES: usize = 24;

/// A small file that outlives the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeptFile {
    /// What `ALTER SYSTEM` writes.
    SystemSettings,
    /// Who may connect from where.
    Authentication,
    /// Which system user may be which database user.
    UserMaps,
    /// The settings that a person edits.
    Settings,
}

impl KeptFile {
    /// All of them.
    pub const ALL: [KeptFile; 4] =
        [KeptFile::SystemSettings, KeptFile::Authentication, KeptFile::UserMaps, KeptFile::Settings];

    /// Its name in the data directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            KeptFile::SystemSettings => "postgresql.auto.conf",
            KeptFile::Authentication => "pg_hba.conf",
            KeptFile::UserMaps => "pg_ident.conf",
            KeptFile::Settings => "postgresql.conf",
        }
    }

    /// The file of this name in the data directory.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<KeptFile> {
        KeptFile::ALL.into_iter().find(|file| file.name().as_bytes() == name)
    }

    /// Where its content is kept. Not under the file's own name: there stands what `initdb` made, which is used again when
    /// somebody asks for a start without what was kept.
    #[must_use]
    pub fn key(self) -> MetaKey {
        MetaKey::SmallFile(format!("kept/{}", self.name()))
    }

    /// The file that is kept under this key.
    #[must_use]
    pub fn of_key(key: &MetaKey) -> Option<KeptFile> {
        match key {
            MetaKey::SmallFile(name) => KeptFile::named(name.strip_prefix("kept/")?.as_bytes()),
            _ => None,
        }
    }

    /// What stands in a message's record before the prefix: no database, no transaction, the lengths of the prefix (with its
    /// zero byte) and of the content.
    #[must_use]
    pub fn message_header(self, content_bytes: usize) -> [u8; MESSAGE_HEADER_BYTES] {
        let prefix_bytes = (KEPT_FILE_PREFIX.len() + self.name().len() + 1) as u64;
        let mut header = [0; MESSAGE_HEADER_BYTES];
        let lengths = prefix_bytes.to_le_bytes().into_iter().chain((content_bytes as u64).to_le_bytes());
        for (place, byte) in header.iter_mut().skip(8).zip(lengths) {
            *place = byte;
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_found_by_its_name_and_its_key() {
        for file in KeptFile::ALL {
            assert_eq!(KeptFile::named(file.name().as_bytes()), Some(file));
            assert_eq!(KeptFile::of_key(&file.key()), Some(file));
            assert_eq!(KeptFile::of_key(&MetaKey::SmallFile(file.name().to_owned())), None, "initdb's own");
        }
        assert_eq!(KeptFile::named(b"PG_VERSION"), None);
        assert_eq!(KeptFile::named(b""), None);
    }
}
