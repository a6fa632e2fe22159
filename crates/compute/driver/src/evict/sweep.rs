//! One file: which of its blocks may be dropped, and dropping them.

use std::io;
use std::sync::atomic::Ordering;

use borealis_shm::CachedBlock;
use borealis_types::{BLOCKS_PER_SEGMENT_FILE, Lsn, PAGE_SIZE, PageBytes, invariant};

use super::files::{CacheFile, RelationFile};
use super::keeper::{Keeper, Kept};
use borealis_compute::cache::rule::{self, Known};

/// Blocks looked at under one lock: writers of the file wait that long.
const BLOCKS_PER_LOCK: usize = 8;

impl Keeper {
    /// Drops up to `wanted` blocks of a file, and says how many. Blocks that were used since the last look stay unless
    /// `used_too`.
    pub(super) fn evict(
        &self,
        file: &RelationFile,
        wanted: u64,
        used_too: bool,
        kept: &mut Kept,
    ) -> anyhow::Result<u64> {
        if file.bytes == 0 || !file.is_main_fork() {
            return Ok(0);
        }
        // Open the file before asking storage. If another file takes this name meanwhile, the answer is about that one;
        // holes then go into the old file, which is already unlinked.
        let Some(open) = CacheFile::open(&self.data_directory, &file.path)? else { return Ok(0) };
        let mut in_storage = None;
        let mut dropped = 0;
        let mut block = 0;
        while let Some(data) = open.next_data(block)? {
            block = data.end;
            for start in data.clone().step_by(BLOCKS_PER_LOCK) {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(dropped);
                }
                let end = data.end.min(start + BLOCKS_PER_LOCK as u32);
                let end = end.min(start.saturating_add(u32::try_from(wanted - dropped).unwrap_or(u32::MAX)));
                // Without the lock at first: most looks find nothing to drop, and then no writer has to wait.
                let mut page = [0; PAGE_SIZE];
                let candidates: Vec<u32> = (start..end)
                    .filter(|&block| self.is_candidate(file, &open, block, used_too, &mut page, kept))
                    .collect();
                if candidates.is_empty() {
                    continue;
                }
                let blocks = match in_storage {
                    Some(blocks) => blocks,
                    None => *in_storage.insert(self.blocks_in_storage(file)?),
                };
                // Do not wait for the lock: a process that was killed in the middle of a write keeps it.
                let Some(_guard) = self.client.try_lock_for_fill(&self.slot, file.hash) else {
                    kept.busy += candidates.len() as u64;
                    continue;
                };
                for &block in candidates.iter().filter(|block| **block < blocks) {
                    let cached = CachedBlock { file_hash: file.hash, block };
                    let written_at = self.client.cache().written_at(cached);
                    if !open.read(block, &mut page)? {
                        continue;
                    }
                    match rule::may_drop(&page, written_at, &self.known()) {
                        Ok(()) => dropped += u64::from(drop_block(&open, block, &page, blocks)?),
                        Err(why) => kept.count(why),
                    }
                }
                if dropped >= wanted {
                    return Ok(dropped);
                }
            }
        }
        Ok(dropped)
    }

    fn is_candidate(
        &self,
        file: &RelationFile,
        open: &CacheFile,
        block: u32,
        used_too: bool,
        page: &mut PageBytes,
        kept: &mut Kept,
    ) -> bool {
        let cached = CachedBlock { file_hash: file.hash, block };
        if self.client.cache().take_used(cached) && !used_too {
            return false;
        }
        // A block that cannot be read, or not wholly, is left alone.
        if !open.read(block, page).unwrap_or(false) {
            return false;
        }
        match rule::may_drop(page, Lsn::ZERO, &self.known()) {
            Ok(()) => true,
            Err(why) => {
                kept.count(why);
                false
            }
        }
    }

    fn known(&self) -> Known {
        // The order matters: see `CacheBook::oldest_open`.
        let durable = self.client.durable_lsn();
        let oldest_open = self.client.cache().oldest_open();
        // initdb starts WAL at segment 1, never 0. A page LSN below one segment therefore never came from the log.
        Known { durable, oldest_open, log_begins: Lsn(self.client.wal_segment_size_bytes()) }
    }

    /// How many blocks of this segment file storage can serve: none of an unlogged relation, or of one whose creation
    /// is not durable (a database that is being copied).
    fn blocks_in_storage(&self, file: &RelationFile) -> anyhow::Result<u32> {
        let size = self.client.relation_size(&self.slot, file.fork).map_err(|error| {
            anyhow::anyhow!("storage was asked about {} and {error:?}", file.path.display())
        })?;
        let blocks = size.blocks.filter(|_| !size.has_init_fork).unwrap_or(0);
        let first = file.segment.saturating_mul(BLOCKS_PER_SEGMENT_FILE);
        Ok(blocks.saturating_sub(first).min(BLOCKS_PER_SEGMENT_FILE))
    }
}

/// Drops a block for which the rule has just allowed it, given `page`. The caller has the file's lock, so nobody can
/// have written the block since; reading it once more costs less than losing a write would.
///
/// # Panics
/// If the block is not in storage, or is not `page` any more: the only copy of a change would be lost.
fn drop_block(open: &CacheFile, block: u32, page: &PageBytes, blocks_in_storage: u32) -> io::Result<bool> {
    invariant!(
        "dropped-block-is-in-storage",
        block < blocks_in_storage,
        "block {block} of a file of which storage has {blocks_in_storage}"
    );
    let mut now = [0; PAGE_SIZE];
    let is_unchanged = open.read(block, &mut now)? && now == *page;
    invariant!("dropped-page-is-unchanged", is_unchanged, "block {block} was written under the lock");
    open.drop_block(block, page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory with one page of sevens.
    fn file() -> (tempfile::TempDir, CacheFile) {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let path = folder.path().join("16384");
        std::fs::write(&path, [7; PAGE_SIZE]).expect("written");
        let open = CacheFile::open(folder.path(), &path).expect("opened").expect("it is there");
        (folder, open)
    }

    #[test]
    fn a_block_that_stands_is_dropped() {
        let (_folder, open) = file();
        assert!(drop_block(&open, 0, &[7; PAGE_SIZE], 1).expect("dropped"));
        assert_eq!(open.next_data(0).expect("looked"), None);
    }

    #[test]
    #[should_panic(expected = "invariant dropped-block-is-in-storage is broken")]
    fn dropping_what_storage_does_not_have_is_noticed() {
        let (_folder, open) = file();
        let _ = drop_block(&open, 0, &[7; PAGE_SIZE], 0);
    }

    #[test]
    #[should_panic(expected = "invariant dropped-page-is-unchanged is broken")]
    fn dropping_a_page_that_was_written_meanwhile_is_noticed() {
        let (_folder, open) = file();
        let _ = drop_block(&open, 0, &[6; PAGE_SIZE], 1);
    }
}
