//! What happens to disks: pages that rot, and too little room.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use borealis_types::PAGE_SIZE;
use serde_json::Value;

/// A slot of a page file: a header, and the page.
const SLOT_HEADER_BYTES: usize = 64;
const SLOT_BYTES: u64 = (SLOT_HEADER_BYTES + PAGE_SIZE) as u64;
/// A watermark that no disk is above.
const NO_ROOM_BYTES: u64 = u64::MAX / 2;

/// The page files below a node's folder.
fn page_files(node_folder: &Path) -> Vec<PathBuf> {
    let groups = fs::read_dir(node_folder.join("store/segments")).into_iter().flatten().flatten();
    let files = groups.flat_map(|group| fs::read_dir(group.path()).into_iter().flatten().flatten());
    let is_of_pages =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pages."));
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).filter(is_of_pages).collect();
    files.sort();
    files
}

/// Changes a byte in about so many pages of a node that runs or not. Returns in how many.
pub(crate) fn damage(node_folder: &Path, pages: u64, random: &mut fastrand::Rng) -> u64 {
    let files = page_files(node_folder);
    let mut damaged = 0;
    for _ in 0..pages {
        let Some(path) = random.choice(&files) else { return 0 };
        // It may go while this looks.
        damaged += u64::from(damage_one(path, random).unwrap_or(false));
    }
    damaged
}

fn damage_one(path: &Path, random: &mut fastrand::Rng) -> std::io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let slots = file.metadata()?.len() / SLOT_BYTES;
    if slots == 0 {
        return Ok(false);
    }
    let slot = random.u64(0..slots) * SLOT_BYTES;
    let mut header = [0; SLOT_HEADER_BYTES];
    file.read_exact_at(&mut header, slot)?;
    if header == [0; SLOT_HEADER_BYTES] {
        // Nothing was ever there.
        return Ok(false);
    }
    let place = slot + random.u64(SLOT_HEADER_BYTES as u64..SLOT_BYTES);
    let mut byte = [0];
    file.read_exact_at(&mut byte, place)?;
    file.write_all_at(&[byte[0] ^ (1 << random.u8(0..8))], place)?;
    Ok(true)
}

/// Whether a node that is started now finds too little room, as far as its configuration can be read.
pub(crate) fn is_full(node_folder: &Path) -> bool {
    let text = fs::read(node_folder.join("node.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    config["free_space_min_bytes"].as_u64() == Some(NO_ROOM_BYTES)
}

/// Lets a node that is started find too little room on its disk, or as much as there is.
pub(crate) fn set_full(node_folder: &Path, is_full: bool) -> anyhow::Result<()> {
    let file = node_folder.join("node.json");
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut config: Value = serde_json::from_slice(&text).context("node.json is not JSON")?;
    config["free_space_min_bytes"] = if is_full { NO_ROOM_BYTES.into() } else { Value::Null };
    // As a whole: the node may be started at any moment.
    let new = file.with_extension("new");
    fs::write(&new, config.to_string())
        .and_then(|()| {
            use std::os::unix::fs::{MetadataExt, chown};
            let before = fs::metadata(&file)?;
            fs::set_permissions(&new, before.permissions())?;
            chown(&new, Some(before.uid()), Some(before.gid()))?;
            fs::rename(&new, &file)
        })
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_a_page_changes_and_nothing_else() {
        let folder = tempfile::tempdir().expect("made");
        let segment = folder.path().join("store/segments/3");
        fs::create_dir_all(&segment).expect("made");
        let mut before = vec![7; 3 * SLOT_BYTES as usize];
        before[SLOT_BYTES as usize..][..SLOT_HEADER_BYTES].fill(0);
        for name in ["pages.0000", "catalog"] {
            fs::write(segment.join(name), &before).expect("written");
        }
        let damaged = damage(folder.path(), 20, &mut fastrand::Rng::with_seed(1));
        let after = fs::read(segment.join("pages.0000")).expect("read");
        let changed: Vec<usize> = (0..after.len()).filter(|&at| after[at] != before[at]).collect();
        assert!(damaged > 5 && changed.len() as u64 <= damaged && !changed.is_empty(), "{damaged}");
        let slot = SLOT_BYTES as usize;
        assert!(changed.iter().all(|at| at % slot >= SLOT_HEADER_BYTES && at / slot != 1), "{changed:?}");
        assert_eq!(fs::read(segment.join("catalog")).expect("read"), before);
    }

    #[test]
    fn a_configuration_is_changed_and_changed_back() {
        let folder = tempfile::tempdir().expect("made");
        let file = folder.path().join("node.json");
        fs::write(&file, r#"{"node":3,"free_space_min_bytes":null}"#).expect("written");
        set_full(folder.path(), true).expect("set");
        let full: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
        assert_eq!((&full["node"], full["free_space_min_bytes"].is_null()), (&3.into(), false));
        assert!(is_full(folder.path()));
        set_full(folder.path(), false).expect("set");
        let free: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
        assert!(free["free_space_min_bytes"].is_null() && !is_full(folder.path()));
    }
}
