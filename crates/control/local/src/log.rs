//! What a process that failed has written to its log.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The last line of a log; `None` if there is none.
pub(crate) fn last_line(log: &Path) -> Option<String> {
    let bytes = tail_bytes(log);
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    let bytes = tail_bytes(path);
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(12);
    lines[first..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn tail_bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(mut file) = fs::File::open(path) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let _ = file.take(4096).read_to_end(&mut bytes);
    }
    bytes
}
