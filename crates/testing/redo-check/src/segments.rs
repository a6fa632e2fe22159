//! Which WAL segment files are to be read, in which order, and whether they are WAL at all.
//!
//! Names and their meaning: `XLogFileName` in `src/include/access/xlog_internal.h`; history files:
//! `readTimeLineHistory` in `src/backend/access/transam/timeline.c`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use borealis_types::{Lsn, PostgresVersion};
use borealis_wal::page::{LONG_HEADER_BYTES, PageHeader, WAL_PAGE_BYTES, page_magic};

/// History files are a line for each time line; nobody has this many.
const HISTORY_BYTES_MAX: u64 = 1 << 20;

/// Why files cannot be read as WAL. All of them are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A path cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder has no segment file.
    #[error("{} has no WAL segment files{}", path.display(), if *compressed { " but compressed ones; unpack them first" } else { "" })]
    NoSegments {
        /// The folder that was searched; empty if no path was given.
        path: PathBuf,
        /// Whether there are compressed segment files, which have to be unpacked first.
        compressed: bool,
    },
    /// A file is no WAL.
    #[error("{} is not a WAL segment file: {what}", path.display())]
    NotWal {
        /// The file that was named or found.
        path: PathBuf,
        /// What is wrong with its first page, in words.
        what: &'static str,
    },
    /// A file is WAL of another version.
    #[error("{} is WAL of {version}; redo-check knows PostgreSQL {}", path.display(), PostgresVersion::supported())]
    OtherVersion {
        /// The file that was named or found.
        path: PathBuf,
        /// Which version, as well as it can be told.
        version: String,
    },
    /// Files of different clusters or segment sizes were given.
    #[error("{} and {} are not WAL of the same cluster", first.display(), second.display())]
    Mixed {
        /// The first file found.
        first: PathBuf,
        /// A later one that does not belong to it.
        second: PathBuf,
    },
}

/// What the first page of a segment file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Position of the file's first byte.
    pub start: Lsn,
    /// Time line of its first page.
    pub timeline: u32,
    /// Bytes of each segment file; a power of two from 1 MiB to 1 GiB.
    pub segment_bytes: u32,
    /// PostgreSQL's system identifier of the cluster that wrote it.
    pub system_identifier: u64,
}

/// Segment files, one for each part of the log.
#[derive(Clone, Debug)]
pub struct Segments {
    /// Bytes of each segment file; a power of two from 1 MiB to 1 GiB.
    pub segment_bytes: u32,
    /// PostgreSQL's system identifier of the cluster that wrote it.
    pub system_identifier: u64,
    /// The files' paths by segment number; numbers may be missing.
    pub files: BTreeMap<u64, PathBuf>,
}

/// A file that may be read, and what it is.
struct Candidate {
    path: PathBuf,
    header: SegmentHeader,
    /// The time line in its name: that of its last page. From the header if the name is none.
    timeline: u32,
    partial: bool,
}

/// What a name of 24 hexadecimal digits says: the time line, and the two parts of the segment number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentName {
    /// The time line of the last page in the file.
    pub timeline: u32,
    high: u32,
    low: u32,
    /// It ends with `.partial`: the last one of a time line, or still being received.
    pub partial: bool,
}

impl SegmentName {
    /// Reads a file name; `None` if it is not a segment file's.
    pub fn parse(name: &str) -> Option<SegmentName> {
        let (digits, partial) = match name.strip_suffix(".partial") {
            Some(digits) => (digits, true),
            None => (name, false),
        };
        if digits.len() != 24 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let part = |at: usize| u32::from_str_radix(&digits[at..at + 8], 16).ok();
        Some(SegmentName { timeline: part(0)?, high: part(8)?, low: part(16)?, partial })
    }

    /// Position of the first byte of the file with this name.
    pub fn start(self, segment_bytes: u32) -> Option<Lsn> {
        let low = u64::from(self.low).checked_mul(u64::from(segment_bytes))?;
        (low < 1 << 32).then(|| Lsn(u64::from(self.high) << 32 | low))
    }
}

impl Segments {
    /// The segment files in these paths: files, or folders that have them (a data directory will do).
    ///
    /// Of files for the same part of the log, the one on the newest time line's own history is taken.
    ///
    /// # Errors
    /// See [`SegmentError`].
    pub fn find(paths: &[PathBuf]) -> Result<Segments, SegmentError> {
        let mut candidates = Vec::new();
        let mut folders = Vec::new();
        for path in paths {
            let metadata = path.metadata().map_err(file_error(path))?;
            if metadata.is_dir() {
                let inner = path.join("pg_wal");
                let folder = if inner.is_dir() { inner } else { path.clone() };
                find_in_folder(&folder, &mut candidates)?;
                folders.push(folder);
            } else {
                let header = read_header(path)?.ok_or_else(|| SegmentError::NotWal {
                    path: path.clone(),
                    what: "it begins with zeros",
                })?;
                let name = path.file_name().and_then(|name| name.to_str()).and_then(SegmentName::parse);
                let timeline = name.map_or(header.timeline, |name| name.timeline);
                let partial = name.is_some_and(|name| name.partial);
                candidates.push(Candidate { path: path.clone(), header, timeline, partial });
            }
        }
        select(candidates, &folders)
    }

    /// The position of a segment's first byte.
    pub fn start_of(&self, number: u64) -> Lsn {
        Lsn(number * u64::from(self.segment_bytes))
    }

    /// The number of the segment that has this position.
    pub fn number_of(&self, position: Lsn) -> u64 {
        position.0 / u64::from(self.segment_bytes)
    }
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> SegmentError {
    let path = path.to_path_buf();
    move |source| SegmentError::File { path, source }
}

fn find_in_folder(folder: &Path, candidates: &mut Vec<Candidate>) -> Result<(), SegmentError> {
    let mut compressed = false;
    let before = candidates.len();
    for entry in folder.read_dir().map_err(file_error(folder))? {
        let entry = entry.map_err(file_error(folder))?;
        let file_name = entry.file_name();
        let Some(text) = file_name.to_str() else { continue };
        let Some(name) = SegmentName::parse(text) else {
            let stem = text.split_once('.').map_or(text, |(stem, _)| stem);
            compressed |= SegmentName::parse(stem).is_some();
            continue;
        };
        let path = entry.path();
        // A server keeps files ready under names of the future; their bytes are zeros or older WAL.
        let Some(header) = read_header(&path)? else { continue };
        if name.start(header.segment_bytes) != Some(header.start) {
            continue;
        }
        candidates.push(Candidate { path, header, timeline: name.timeline, partial: name.partial });
    }
    if candidates.len() == before {
        return Err(SegmentError::NoSegments { path: folder.to_path_buf(), compressed });
    }
    Ok(())
}

/// Reads the header of a segment file's first page; `None` if there are only zeros.
///
/// # Errors
/// When it is not WAL of a version that Borealis knows.
pub fn read_header(path: &Path) -> Result<Option<SegmentHeader>, SegmentError> {
    let mut bytes = Vec::with_capacity(LONG_HEADER_BYTES);
    let file = File::open(path).map_err(file_error(path))?;
    file.take(LONG_HEADER_BYTES as u64).read_to_end(&mut bytes).map_err(file_error(path))?;
    if bytes.len() == LONG_HEADER_BYTES && bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let not_wal = |what| SegmentError::NotWal { path: path.to_path_buf(), what };
    let header = PageHeader::decode(&bytes).ok_or_else(|| not_wal("it is shorter than a page header"))?;
    if !PostgresVersion::ALL.iter().any(|version| header.magic == page_magic(*version)) {
        return Err(match version_of(header.magic) {
            Some(version) => SegmentError::OtherVersion { path: path.to_path_buf(), version },
            None => not_wal("it does not begin with a WAL page"),
        });
    }
    let long = header.long.ok_or_else(|| not_wal("its first page is not the first of a segment file"))?;
    let valid_size =
        long.segment_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&long.segment_bytes);
    if !valid_size || u64::from(long.page_bytes) != WAL_PAGE_BYTES {
        return Err(not_wal("its first page names impossible sizes"));
    }
    if !header.page_address.0.is_multiple_of(u64::from(long.segment_bytes)) {
        return Err(not_wal("its first page is not at the start of a segment"));
    }
    Ok(Some(SegmentHeader {
        start: header.page_address,
        timeline: header.timeline,
        segment_bytes: long.segment_bytes,
        system_identifier: long.system_identifier,
    }))
}

/// Which version writes pages with this magic number (`XLOG_PAGE_MAGIC` of each).
fn version_of(magic: u16) -> Option<String> {
    let major = match magic {
        0xD101 => 12,
        0xD106 => 13,
        0xD10D => 14,
        0xD113 => 16,
        0xD116 => 17,
        0xD118 => 18,
        0xD000..=0xD1FF => return Some(format!("another PostgreSQL version (page magic {magic:#06x})")),
        _ => return None,
    };
    Some(format!("PostgreSQL {major}"))
}

/// One file for each part of the log.
fn select(mut candidates: Vec<Candidate>, folders: &[PathBuf]) -> Result<Segments, SegmentError> {
    let Some(first) = candidates.first() else {
        return Err(SegmentError::NoSegments { path: PathBuf::new(), compressed: false });
    };
    let (segment_bytes, system_identifier) = (first.header.segment_bytes, first.header.system_identifier);
    let other = candidates.iter().find(|other| {
        (other.header.segment_bytes, other.header.system_identifier) != (segment_bytes, system_identifier)
    });
    if let Some(other) = other {
        return Err(SegmentError::Mixed { first: first.path.clone(), second: other.path.clone() });
    }
    let newest = candidates.iter().map(|candidate| candidate.timeline).max().unwrap_or_default();
    let begins = timeline_begins(newest, folders);
    // Last wins: older time lines first, and of one time line the unfinished copy first.
    candidates.sort_by_key(|candidate| (candidate.timeline, !candidate.partial));
    let mut files = BTreeMap::new();
    for candidate in candidates {
        let number = candidate.header.start.0 / u64::from(segment_bytes);
        let end = Lsn(candidate.header.start.0 + u64::from(segment_bytes));
        // A time line has only what comes after it left its parent; without a history the newest has all.
        let belongs = begins.is_empty() || begins.get(&candidate.timeline).is_some_and(|begin| *begin < end);
        if belongs {
            files.insert(number, candidate.path);
        }
    }
    Ok(Segments { segment_bytes, system_identifier, files })
}

/// Where each time line in the newest one's history begins; empty if its history is not there.
fn timeline_begins(newest: u32, folders: &[PathBuf]) -> BTreeMap<u32, Lsn> {
    let name = format!("{newest:08X}.history");
    let Some(text) = folders.iter().find_map(|folder| {
        let mut text = String::new();
        File::open(folder.join(&name)).ok()?.take(HISTORY_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }) else {
        return BTreeMap::new();
    };
    parse_history(newest, &text)
}

/// A line for each ancestor: its number, where the next one left it, and why.
fn parse_history(newest: u32, text: &str) -> BTreeMap<u32, Lsn> {
    let mut begins = BTreeMap::new();
    let mut begin = Lsn::ZERO;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let timeline = words.next().and_then(|word| word.parse().ok());
        let end = words.next().and_then(|word| word.parse().ok());
        let (Some(timeline), Some(end)) = (timeline, end) else { continue };
        begins.insert(timeline, begin);
        begin = end;
    }
    begins.insert(newest, begin);
    begins
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_wal::page::WalLayout;

    const SEGMENT: u32 = 1 << 20;

    fn segment(timeline: u32, number: u64) -> Vec<u8> {
        let layout = WalLayout {
            version: PostgresVersion::NEWEST,
            timeline,
            system_identifier: 77,
            segment_bytes: SEGMENT,
        };
        let mut bytes = layout.encode_header(Lsn(number * u64::from(SEGMENT)), 0);
        bytes.resize(8192, 0);
        bytes
    }

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        std::fs::write(folder.join(name), bytes).unwrap();
    }

    #[test]
    fn names_of_segments_are_told_from_others() {
        let name = SegmentName::parse("0000000200000001000000FE").unwrap();
        assert_eq!((name.timeline, name.partial), (2, false));
        assert_eq!(name.start(16 << 20), Some(Lsn(0x1_FE00_0000)));
        assert_eq!(name.start(1 << 30), None, "no such low part with segments of 1 GiB");
        assert!(SegmentName::parse("0000000200000001000000FE.partial").unwrap().partial);
        for other in ["00000002.history", "archive_status", "0000000200000001000000FE.00000028.backup", ""] {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_time_lines_own_history_decides() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // 1 was left at segment 3 by 2, and in the middle of segment 2 by 3.
        for number in 1..=5 {
            write(folder, &format!("0000000100000000{number:08X}"), &segment(1, number));
        }
        for number in 3..=6 {
            write(folder, &format!("0000000200000000{number:08X}"), &segment(2, number));
        }
        write(folder, "000000030000000000000002", &segment(1, 2));
        write(folder, "000000030000000000000003", &segment(3, 3));
        write(folder, "000000030000000000000004.partial", &segment(3, 4));
        // Kept ready for the future: zeros, and recycled.
        write(folder, "000000030000000000000005", &[0; 8192]);
        write(folder, "000000030000000000000006", &segment(3, 1));
        write(folder, "00000003.history", b"1\t0/2000F0\tno recovery target specified\n");
        let found = Segments::find(&[folder.to_path_buf()]).unwrap();
        let name = |number: u64| found.files[&number].file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(1), "000000010000000000000001");
        assert_eq!(name(2), "000000030000000000000002");
        assert_eq!(name(3), "000000030000000000000003");
        assert_eq!(name(4), "000000030000000000000004.partial");
        assert_eq!(
            name(5),
            "000000010000000000000005",
            "an older time line's, which the reader then refuses"
        );
        assert_eq!(found.files.len(), 5, "2 is no ancestor of 3");
    }

    #[test]
    fn what_is_no_wal_of_this_version_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some file");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = Segments::find(std::slice::from_ref(&path)).unwrap_err().to_string();
            assert!(error.contains("some file"), "{error}");
            error
        };
        assert!(refused(b"not WAL at all, but long enough to have a header").contains("not a WAL segment"));
        assert!(refused(b"short").contains("shorter"));
        let mut other_version = segment(1, 1);
        other_version[..2].copy_from_slice(&0xD113_u16.to_le_bytes());
        assert!(refused(&other_version).contains("PostgreSQL 16"));
        let error = Segments::find(&[folder.path().to_path_buf()]).unwrap_err();
        assert!(matches!(error, SegmentError::NoSegments { compressed: false, .. }), "{error}");
        write(folder.path(), "000000010000000000000001.gz", b"");
        let error = Segments::find(&[folder.path().to_path_buf()]).unwrap_err().to_string();
        assert!(error.contains("unpack"), "{error}");
    }
}
