//! What is taken over of the small files that outlive a server ([`borealis_types::kept_file`]) when the next one starts.
//!
//! A file says what a user wished when it was kept. Of settings, only what `--pg-set` would accept is taken over; every
//! other line is made a comment, and said.

use std::fmt;

use borealis_types::{KeptFile, MetaKey};

use crate::RefusedSetting;
use crate::settings::Settings;
use crate::settings_file::{Line, read_line};

/// What stands before a line that is left out.
const LEFT_OUT: &[u8] = b"# left out by Borealis: ";
/// Why other files are not read.
const NO_INCLUDE: &str =
    "the file that it names does not outlive the server; write its settings into this one";

/// Settings that name files which do not outlive the server: without them it would not start.
const ELSEWHERE: [(&str, &str); 2] = [
    ("hba_file", "edit pg_hba.conf itself, which outlives the server"),
    ("ident_file", "edit pg_ident.conf itself, which outlives the server"),
];

/// What was taken over.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct KeptFiles {
    /// The files that there are.
    pub files: Vec<KeptFile>,
    /// The settings in them; a later one wins.
    pairs: Vec<(String, String)>,
    /// The lines that were not taken over.
    pub left_out: Vec<LeftOut>,
}

/// A line that was not taken over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    file: KeptFile,
    /// Counted from 1.
    line: usize,
    reason: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeftOut { file, line, reason } = self;
        write!(f, "line {line} of {}, as it was kept, is left out: {reason}", file.name())
    }
}

impl KeptFiles {
    /// The value of a setting that was taken over.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().rfind(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Changes the kept files among the values of a volume to what a server may be started with. `check` says which settings
/// that are beside [`Settings::check`].
pub fn admit(
    values: &mut Vec<(MetaKey, Vec<u8>)>,
    settings: &Settings,
    check: impl Fn(&Settings) -> Result<(), RefusedSetting>,
) -> KeptFiles {
    values.retain(|(key, _)| KeptFile::of_key(key).is_none_or(|file| settings.takes_kept_file(file)));
    let mut kept = KeptFiles::default();
    // What `ALTER SYSTEM` writes wins, and so comes last.
    for file in [KeptFile::Authentication, KeptFile::UserMaps, KeptFile::Settings, KeptFile::SystemSettings] {
        let Some((_, content)) = values.iter_mut().find(|(key, _)| KeptFile::of_key(key) == Some(file))
        else {
            continue;
        };
        kept.files.push(file);
        if matches!(file, KeptFile::Settings | KeptFile::SystemSettings) {
            *content = filter(file, content, &check, &mut kept);
        }
    }
    kept
}

fn filter(
    file: KeptFile,
    content: &[u8],
    check: &impl Fn(&Settings) -> Result<(), RefusedSetting>,
    kept: &mut KeptFiles,
) -> Vec<u8> {
    let mut admitted = Vec::with_capacity(content.len());
    for (index, line) in content.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match admit_line(line.strip_suffix(b"\n").unwrap_or(line), check) {
            Ok(pair) => kept.pairs.extend(pair),
            Err(reason) => {
                kept.left_out.push(LeftOut { file, line: index + 1, reason });
                admitted.extend_from_slice(LEFT_OUT);
            }
        }
        admitted.extend_from_slice(line);
    }
    admitted
}

/// A file of settings that was taken over, for a server without Borealis: what is needed with Borealis alone is made a comment.
pub(crate) fn for_stock(content: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|&byte| byte == b'\n') {
        match read_line(line.strip_suffix(b"\n").unwrap_or(line)) {
            Line::Setting { name, .. } if Settings::is_of_borealis(&name) => {
                lines.extend_from_slice(LEFT_OUT)
            }
            _ => {}
        }
        lines.extend_from_slice(line);
    }
    lines
}

/// The setting on a line that may be taken over, if there is one; otherwise why not.
fn admit_line(
    line: &[u8],
    check: &impl Fn(&Settings) -> Result<(), RefusedSetting>,
) -> Result<Option<(String, String)>, String> {
    let (name, value) = match read_line(line) {
        Line::Nothing => return Ok(None),
        Line::Setting { name, value } => (name, value),
        Line::Unreadable => return Err("it is not a setting and its value".to_owned()),
    };
    if name.to_ascii_lowercase().starts_with("include") {
        // The one that a new instance's file begins with.
        let own = Settings::configuration_file().lines().any(|own| own.as_bytes() == line);
        return if own { Ok(None) } else { Err(NO_INCLUDE.to_owned()) };
    }
    if let Some((_, reason)) = ELSEWHERE.iter().find(|(elsewhere, _)| name.eq_ignore_ascii_case(elsewhere)) {
        return Err(format!("{name}: {reason}"));
    }
    let setting =
        Settings::check([(name.clone(), value.clone())]).map_err(|refused| refused.without_value())?;
    check(&setting).map_err(|refused| refused.without_value())?;
    Ok(Some((name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(files: &[(KeptFile, &str)], settings: &Settings) -> (KeptFiles, Vec<(MetaKey, Vec<u8>)>) {
        let mut values: Vec<_> =
            files.iter().map(|(file, text)| (file.key(), text.as_bytes().to_vec())).collect();
        values.push((MetaKey::SmallFile("pg_hba.conf".to_owned()), b"initdb's".to_vec()));
        let kept = admit(&mut values, settings, |_| Ok(()));
        (kept, values)
    }

    #[test]
    fn what_would_break_a_promise_is_left_out_and_said() {
        let text = "# Do not edit this file manually!\n\
                    work_mem = '7MB'\n\
                    fsync = 'off'\n\
                    WAL_LEVEL = 'm\\151nimal'\n\
                    zero_damaged_pages = 'on'\n\
                    archive_mode = 'on'\n\
                    track_commit_timestamp = 'on'\n\
                    hba_file = '/etc/hba'\n\
                    max_connections = '300'";
        let (kept, values) = admitted(&[(KeptFile::SystemSettings, text)], &Settings::default());
        let expected = "# Do not edit this file manually!\n\
                        work_mem = '7MB'\n\
                        # left out by Borealis: fsync = 'off'\n\
                        # left out by Borealis: WAL_LEVEL = 'm\\151nimal'\n\
                        # left out by Borealis: zero_damaged_pages = 'on'\n\
                        # left out by Borealis: archive_mode = 'on'\n\
                        # left out by Borealis: track_commit_timestamp = 'on'\n\
                        # left out by Borealis: hba_file = '/etc/hba'\n\
                        max_connections = '300'";
        assert_eq!(String::from_utf8_lossy(&values[0].1), expected);
        assert_eq!(kept.left_out.len(), 6);
        let said = kept.left_out[0].to_string();
        assert!(
            said.contains("line 3 of postgresql.auto.conf") && said.contains("setting fsync cannot"),
            "{said}"
        );
        assert_eq!((kept.value("Max_Connections"), kept.value("fsync")), (Some("300"), None));
    }

    #[test]
    fn a_stock_server_is_not_told_to_write_no_whole_pages() {
        let text = b"full_page_writes = off\nwork_mem = 5MB\nFULL_PAGE_WRITES off";
        let expected = "# left out by Borealis: full_page_writes = off\nwork_mem = 5MB\n\
                        # left out by Borealis: FULL_PAGE_WRITES off";
        assert_eq!(String::from_utf8_lossy(&for_stock(text)), expected);
    }

    #[test]
    fn what_alter_system_says_wins_over_what_was_edited() {
        let files =
            [(KeptFile::SystemSettings, "work_mem = '7MB'\n"), (KeptFile::Settings, "work_mem = 5MB\n")];
        assert_eq!(admitted(&files, &Settings::default()).0.value("work_mem"), Some("7MB"));
    }

    #[test]
    fn a_line_that_would_keep_the_server_from_starting_is_left_out() {
        let text =
            Settings::configuration_file().to_owned() + "work_mem\ninclude 'other.conf'\nwork_mem = 5MB\n";
        let (kept, values) = admitted(&[(KeptFile::Settings, &text)], &Settings::default());
        assert_eq!(kept.left_out.len(), 2, "{:?}", kept.left_out);
        let content = String::from_utf8_lossy(&values[0].1).into_owned();
        assert!(content.contains("\n# left out by Borealis: work_mem\n"), "{content}");
        assert!(content.contains("\ninclude_if_exists = 'initdb.conf'\n"), "{content}");
    }

    #[test]
    fn a_check_of_the_callers_counts_too() {
        let mut values =
            vec![(KeptFile::SystemSettings.key(), b"shared_preload_libraries = 'theirs'\n".to_vec())];
        let refuse = |_: &Settings| Settings::check([("fsync".to_owned(), "off".to_owned())]).map(|_| ());
        let kept = admit(&mut values, &Settings::default(), refuse);
        assert_eq!(kept.left_out.len(), 1);
    }

    #[test]
    fn a_server_can_be_started_without_what_was_kept() {
        let set = |value: &str| {
            Settings::check([("borealis.kept_files".to_owned(), value.to_owned())]).expect("allowed")
        };
        let files =
            [(KeptFile::SystemSettings, "work_mem = '7MB'\n"), (KeptFile::Authentication, "nonsense\n")];
        let (kept, values) = admitted(&files, &set("none"));
        assert_eq!((kept, values.len()), (KeptFiles::default(), 1));
        // Who may enter stays what it was.
        let (kept, values) = admitted(&files, &set("off"));
        assert_eq!((kept.files, values.len()), (vec![KeptFile::Authentication], 2));
        let (kept, values) = admitted(&files, &Settings::default());
        assert_eq!(kept.files, [KeptFile::Authentication, KeptFile::SystemSettings]);
        assert_eq!(
            (&values[1].1[..], kept.left_out.len()),
            (&b"nonsense\n"[..], 0),
            "no settings, no filter"
        );
    }
}
