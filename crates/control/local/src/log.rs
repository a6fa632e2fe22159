//! What a process that failed has written to its log.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What the program said when it failed that wrote a log from `begin` on, as the continuation of a sentence; empty if
/// it said nothing.
pub(crate) fn last_word(log: &Path, begin: u64) -> String {
    let written = fs::read(log).unwrap_or_default();
    let own = written.get(usize::try_from(begin).unwrap_or(usize::MAX)..).unwrap_or_default();
    let text = String::from_utf8_lossy(own);
    let word = text.lines().rev().find_map(|line| line.strip_prefix("borealis: "));
    word.map_or_else(String::new, |word| format!(": {word}"))
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = fs::File::open(path) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let _ = file.take(4096).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(12);
    lines[first..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
