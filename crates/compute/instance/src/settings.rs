//! PostgreSQL settings: what Borealis needs, and what it refuses.
//!
//! What is needed goes on the server's command line, where neither a configuration file nor `ALTER SYSTEM`
//! can override it.

use borealis_types::KeptFile;

use crate::{Binaries, libraries};

/// A setting that cannot be changed under Borealis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL setting {name}={value} cannot be used with Borealis: {reason}")]
pub struct RefusedSetting {
    name: String,
    value: String,
    reason: &'static str,
}

impl RefusedSetting {
    /// The same without the value, which may have a password in it, or be long.
    #[must_use]
    pub fn without_value(&self) -> String {
        format!("PostgreSQL setting {} cannot be used with Borealis: {}", self.name, self.reason)
    }
}

/// Settings a user asked for, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pairs: Vec<(String, String)>,
}

/// Why nothing may read the server's own log to keep it.
const NO_ARCHIVE: &str = "the server has only the log since its last start, so an archive of it would have gaps and zeros \
                          where acknowledged rows were; the log is kept by the storage nodes";

/// Forced on the command line: name, value, and why.
const FORCED: &[(&str, &str, &str)] = &[
    ("fsync", "on", "a commit waits for the storage in the server's own fdatasync call"),
    ("full_page_writes", "off", "page versions in the storage are atomic, so torn pages cannot exist"),
    ("wal_sync_method", "fdatasync", "it is the call that waits for four of six peers"),
    ("wal_init_zero", "off", "WAL segments live in memory and need no zeroes"),
    ("wal_recycle", "off", "WAL segments live in memory and are freed instead"),
    (
        "restart_after_crash",
        "off",
        "after a crash the instance goes through quorum recovery, not local replay",
    ),
    ("shared_memory_type", "mmap", "System V memory would outlive the instance"),
    ("dynamic_shared_memory_type", "mmap", "it keeps dynamic shared memory inside the instance's directory"),
    ("track_commit_timestamp", "off", "commit timestamps are not stored yet"),
    ("archive_mode", "off", NO_ARCHIVE),
];

/// The setting that says whether a start takes over the files that outlived the server before. PostgreSQL takes it for one
/// of an extension's.
pub const KEPT_FILES: &str = "borealis.kept_files";

/// Settings that are refused whatever their value, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "dynamic_library_path",
        "libraries are looked at where they are found; name them with their whole path instead",
    ),
    ("data_directory", "Borealis decides where the instance's directory is"),
    ("port", "give the port with --port"),
    ("unix_socket_directories", "the socket lives in the instance's directory"),
    ("ignore_system_indexes", "it is for repairing damaged local catalogs"),
    ("zero_damaged_pages", "it would replace pages of the storage by zeroes"),
    ("ignore_checksum_failure", "pages are checked by the storage"),
    ("ignore_invalid_pages", "the instance never replays"),
    ("recovery_target", "the instance never replays"),
    ("restore_command", "the instance never replays"),
    ("archive_command", NO_ARCHIVE),
    ("archive_library", NO_ARCHIVE),
    ("primary_conninfo", "the instance is not a standby"),
];

impl Settings {
    /// Checks what a user asked for, each as `name=value`.
    ///
    /// # Errors
    /// The first one that would break what Borealis promises, and why.
    pub fn check(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Settings, RefusedSetting> {
        let mut checked = Vec::new();
        for (name, value) in pairs {
            let name = name.trim().to_ascii_lowercase();
            let value = value.trim().to_owned();
            let refuse = |reason| RefusedSetting { name: name.clone(), value: value.clone(), reason };
            if let Some((_, _, reason)) =
                FORCED.iter().find(|(forced, needed, _)| *forced == name && !same_value(needed, &value))
            {
                return Err(refuse(reason));
            }
            if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                return Err(refuse(reason));
            }
            if name == "wal_level" && value.eq_ignore_ascii_case("minimal") {
                return Err(refuse("the storage needs redo of everything; use replica or logical"));
            }
            if name == KEPT_FILES && !matches!(value.as_str(), "on" | "off" | "none") {
                return Err(refuse("it is on, off or none"));
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
            if name.is_empty() || !name.chars().all(plain) {
                return Err(refuse("it is not a setting's name"));
            }
            checked.push((name, value));
        }
        Ok(Settings { pairs: checked })
    }

    /// Checks the libraries that the server is to load when it starts.
    ///
    /// # Errors
    /// The first one that brings its own kind of WAL records. A library that is not found is the server's to refuse.
    pub fn check_libraries(&self, binaries: &Binaries) -> Result<(), RefusedSetting> {
        let name = "shared_preload_libraries";
        let lists = self.pairs.iter().filter(|(own, _)| own == name);
        for library in lists.flat_map(|(_, list)| libraries::names(list)) {
            if libraries::registers_resource_manager(binaries, &library) {
                let reason = "the library has its own WAL resource manager, whose records only its own code can apply \
                              to pages; leave it out";
                return Err(RefusedSetting { name: name.to_owned(), value: library, reason });
            }
        }
        Ok(())
    }

    /// Whether a start takes over a file that outlived the server before: with `off` none of settings, with `none` none at all. Who may
    /// enter is not to change because of a setting.
    #[must_use]
    pub fn takes_kept_file(&self, file: KeptFile) -> bool {
        let is_of_settings = matches!(file, KeptFile::Settings | KeptFile::SystemSettings);
        !self.pairs.iter().any(|(name, value)| {
            name == KEPT_FILES && (value == "none" || (value == "off" && is_of_settings))
        })
    }

    /// What goes on the command line after `postgres`, in `-c name=value` pairs.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let user = self.pairs.iter().map(|(name, value)| format!("{name}={value}"));
        let forced = FORCED.iter().map(|(name, value, _)| format!("{name}={value}"));
        user.chain(forced).flat_map(|pair| ["-c".to_owned(), pair]).collect()
    }

    /// Whether a server without Borealis must not be given this setting as it is here: most of them would cost it its data.
    pub(crate) fn is_of_borealis(name: &str) -> bool {
        name.eq_ignore_ascii_case(KEPT_FILES)
            || FORCED.iter().any(|(forced, _, _)| name.eq_ignore_ascii_case(forced))
    }

    /// Lines of a configuration file for a server without Borealis: what the user has set, and nothing that is needed with
    /// Borealis alone. `full_page_writes = off` would cost an ordinary server its data.
    #[must_use]
    pub fn exported_lines(settings: &std::collections::BTreeMap<String, String>) -> String {
        let lines = settings.iter().filter(|(name, _)| !Self::is_of_borealis(name)).map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
            format!("{name} = '{value}'\n")
        });
        lines.collect()
    }

    /// The text of the configuration file: defaults that suit the storage and that a user may change.
    #[must_use]
    pub fn configuration_file() -> &'static str {
        "# Written by Borealis. What is changed here outlives the server once it was reloaded (SELECT pg_reload_conf()).\n\
         # Settings of `ALTER SYSTEM` win over this file, and those of --pg-set over both.\n\
         include_if_exists = 'initdb.conf'\n\
         # Recovery does not depend on checkpoints; they only free WAL memory.\n\
         checkpoint_timeout = '30min'\n\
         checkpoint_completion_target = 0.9\n\
         max_wal_size = '1GB'\n\
         min_wal_size = '32MB'\n\
         wal_compression = off\n\
         logging_collector = off\n"
    }
}

/// Whether two spellings of a setting's value mean the same, for the values in [`FORCED`].
fn same_value(needed: &str, value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    match needed {
        "on" => matches!(value.as_str(), "on" | "true" | "yes" | "1"),
        "off" => matches!(value.as_str(), "off" | "false" | "no" | "0"),
        _ => needed == value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> Result<Settings, RefusedSetting> {
        Settings::check([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn a_server_without_borealis_gets_what_the_user_has_set() {
        let settings = [
            ("work_mem", "64MB"),
            ("full_page_writes", "off"),
            (KEPT_FILES, "on"),
            ("search_path", r"it's, \a"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(Settings::exported_lines(&settings), "search_path = 'it''s, \\\\a'\nwork_mem = '64MB'\n");
    }

    #[test]
    fn what_breaks_durability_is_refused_with_a_reason() {
        for (name, value) in [
            ("fsync", "off"),
            ("FSYNC", "false"),
            ("full_page_writes", "on"),
            ("wal_level", "minimal"),
            ("wal_sync_method", "open_datasync"),
            ("archive_mode", "on"),
            ("archive_mode", "always"),
            ("archive_command", "cp %p /archive/%f"),
            ("data_directory", "/tmp/x"),
            ("dynamic_library_path", "/opt/ext:$libdir"),
            ("borealis.kept_files", "perhaps"),
            ("shared buffers", "1"),
        ] {
            let error = check(name, value).expect_err(name);
            assert!(error.to_string().contains("cannot be used with Borealis"), "{error}");
        }
    }

    #[test]
    fn a_users_choice_reaches_the_command_line_before_what_is_forced() {
        let arguments = check("shared_buffers", "1GB").expect("allowed").arguments();
        assert_eq!(&arguments[..2], ["-c", "shared_buffers=1GB"]);
        assert!(arguments.contains(&"full_page_writes=off".to_owned()));
    }

    #[test]
    fn saying_what_is_forced_anyway_is_no_error() {
        assert!(check("fsync", "yes").is_ok());
        assert!(check("wal_level", "logical").is_ok());
    }
}
