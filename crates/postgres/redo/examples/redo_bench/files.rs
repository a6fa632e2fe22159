//! A stopped cluster's files: segment files of WAL, and every page.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, BlockKey, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Lsn, PAGE_SIZE,
    PageBytes, PageKey, RelationFork, RelationLocator, SLRU_PAGES_PER_SEGMENT, SlruKind,
};

/// The contiguous segment files of a folder, of the default size: position of the first byte, and the bytes.
pub fn wal(folder: &Path) -> io::Result<(Lsn, Vec<u8>)> {
    let mut segments = BTreeMap::new();
    for (name, path) in entries(folder)? {
        let number = |digits: Option<&str>| digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        if let (24, Some(high), Some(low)) = (name.len(), number(name.get(8..16)), number(name.get(16..24))) {
            segments.insert(Lsn(high << 32 | low << 24), path);
        }
    }
    let (mut start, mut bytes) = (Lsn::ZERO, Vec::new());
    for (position, path) in segments {
        if bytes.is_empty() {
            start = position;
        }
        if position.0 != start.0 + bytes.len() as u64 {
            break;
        }
        bytes.extend_from_slice(&fs::read(path)?);
    }
    Ok((start, bytes))
}

/// Every page in the files of relations and transaction status.
pub fn pages(data: &Path) -> io::Result<BTreeMap<PageKey, Box<PageBytes>>> {
    let mut databases = vec![(data.join("global"), GLOBAL_TABLESPACE, 0)];
    for (name, folder) in entries(&data.join("base"))? {
        databases.extend(name.parse().ok().map(|database| (folder, DEFAULT_TABLESPACE, database)));
    }
    let mut pages = BTreeMap::new();
    for (folder, tablespace, database) in databases {
        for (name, path) in entries(&folder)? {
            let Some((fork, relation, segment)) = parse_relation_file(&name) else { continue };
            let relation_fork =
                RelationFork { locator: RelationLocator { tablespace, database, relation }, fork };
            for (index, bytes) in read_pages(&path)? {
                let block = segment * BLOCKS_PER_SEGMENT_FILE + index;
                pages.insert(PageKey::Block(BlockKey { relation_fork, block }), bytes);
            }
        }
    }
    for kind in SlruKind::ALL {
        for (name, path) in entries(&data.join(kind.folder()))? {
            let Ok(segment) = u32::from_str_radix(&name, 16) else { continue };
            for (index, bytes) in read_pages(&path)? {
                pages.insert(PageKey::Slru { kind, page: segment * SLRU_PAGES_PER_SEGMENT + index }, bytes);
            }
        }
    }
    Ok(pages)
}

fn entries(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// `16384`, `16384_vm`, `16384.1`: fork, relation, segment file number.
fn parse_relation_file(name: &str) -> Option<(Fork, u32, u32)> {
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (relation, suffix) = name.split_at(name.find('_').unwrap_or(name.len()));
    let fork = Fork::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    Some((fork, relation.parse().ok()?, segment))
}

fn read_pages(path: &Path) -> io::Result<Vec<(u32, Box<PageBytes>)>> {
    let bytes = fs::read(path)?;
    let pages = bytes.as_chunks::<PAGE_SIZE>().0;
    Ok((0..).zip(pages.iter().map(|page| Box::new(*page))).collect())
}
