//! The driver of the tests: answers from the storage folder, acknowledges the log after a delay.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use borealis_shm::{
    DriverSide, InstanceState, MAX_RELATION_ENTRIES, RelationEntry, RelationSize, Reply, Request, SlruEntry,
};
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, Fork, PAGE_SIZE, PageBytes, RelationFork, SlruKind, VolumeEpoch,
};

use super::Controls;

const ACKNOWLEDGE_DELAY: Duration = Duration::from_millis(1);

pub(super) struct FakeDriver {
    pub(super) shm: DriverSide,
    pub(super) storage: PathBuf,
    pub(super) controls: Arc<Controls>,
    /// When to acknowledge which write.
    pub(super) unacknowledged: VecDeque<(Instant, u64, borealis_types::Lsn)>,
    pub(super) seen_sequence: u64,
}

impl FakeDriver {
    pub(super) fn run(&mut self) {
        while !self.controls.stop.load(Ordering::SeqCst) {
            self.shm.heartbeat();
            let attached = self.shm.shim_report().map_or(0, |report| u64::from(report.process_id));
            self.controls.attached_pid.store(attached, Ordering::SeqCst);
            let epoch = self.controls.fence_epoch.load(Ordering::SeqCst);
            if epoch != 0 {
                self.shm.set_state(InstanceState::Fenced(VolumeEpoch(epoch)), "");
            }
            let position = self.shm.wal_written();
            if position.sequence != self.seen_sequence {
                self.seen_sequence = position.sequence;
                let due = Instant::now() + ACKNOWLEDGE_DELAY;
                self.unacknowledged.push_back((due, position.sequence, position.lsn));
            }
            self.acknowledge();
            self.shm.take_pending(|slot, request| self.answer(slot, request));
            self.shm.take_prefetch(|_| {
                self.controls.prefetches.fetch_add(1, Ordering::Relaxed);
            });
            if self.shm.prepare_to_sleep(self.seen_sequence) {
                let busy = !self.unacknowledged.is_empty();
                wait_readable(self.shm.event_fd(), if busy { 1 } else { 20 });
            }
            self.shm.woke(true);
        }
    }

    fn acknowledge(&mut self) {
        if self.controls.hold_acknowledgements.load(Ordering::SeqCst) {
            return;
        }
        while let Some(&(due, sequence, lsn)) = self.unacknowledged.front() {
            if due > Instant::now() {
                break;
            }
            self.shm.publish_durable(sequence, lsn);
            self.unacknowledged.pop_front();
        }
    }

    fn answer(&self, slot: borealis_shm::SlotIndex, request: Request) {
        match request {
            Request::ReadBlock(_) | Request::ReadSlruPage { .. }
                if self.controls.refuse_reads.load(Ordering::SeqCst) =>
            {
                self.shm.complete(slot, Reply::Error("three of six peers are down (a test says so)"));
            }
            Request::ReadBlock(key) => {
                self.controls.blocks_served.fetch_add(1, Ordering::Relaxed);
                self.page(slot, &self.fork_path(key.relation_fork), key.block, BLOCKS_PER_SEGMENT_FILE);
            }
            Request::ReadSlruPage { kind, page } => {
                let path = self.storage.join(kind.folder()).join(format!("{:04X}", page / 32));
                self.page(slot, &path, page % 32, 32);
            }
            Request::RelationSize(fork) => {
                let size = self.relation_size(fork);
                self.shm.complete(slot, Reply::RelationSize(size));
            }
            Request::SlruSegment { kind, segment } => {
                let path = self.storage.join(kind.folder()).join(format!("{segment:04X}"));
                self.shm.complete(slot, Reply::SlruSegment(blocks_of(&path)));
            }
            Request::ListSlruSegments { kind, .. } => {
                let entries = self.slru_segments(kind);
                self.shm.complete(slot, Reply::SlruSegments { entries: &entries, next_cursor: 0 });
            }
            Request::ListRelations { database, cursor } => {
                self.controls.listings.fetch_add(1, Ordering::Relaxed);
                let folder = self.database_folder(database.tablespace, database.database);
                let all = self.relations(&folder);
                // Short pages, so that the paging is used.
                let from = cursor as usize;
                let to = all.len().min(from + MAX_RELATION_ENTRIES.min(50));
                let next_cursor = if to < all.len() { to as u64 } else { 0 };
                self.shm.complete(slot, Reply::Relations { entries: &all[from..to], next_cursor });
            }
        }
    }

    fn page(&self, slot: borealis_shm::SlotIndex, path: &Path, block: u32, limit: u32) {
        assert!(block < limit, "the template has no second segment");
        let mut page: PageBytes = [0; PAGE_SIZE];
        let read = fs::File::open(path)
            .and_then(|file| file.read_exact_at(&mut page, u64::from(block) * PAGE_SIZE as u64));
        match read {
            Ok(()) => self.shm.complete(slot, Reply::Page(&page)),
            Err(_) => self.shm.complete(slot, Reply::Nonexistent),
        }
    }

    fn database_folder(&self, tablespace: u32, database: u32) -> PathBuf {
        match tablespace {
            1663 => self.storage.join("base").join(database.to_string()),
            1664 => self.storage.join("global"),
            _ => self.storage.join("nowhere"),
        }
    }

    fn fork_path(&self, fork: RelationFork) -> PathBuf {
        let folder = self.database_folder(fork.locator.tablespace, fork.locator.database);
        folder.join(format!("{}{}", fork.locator.relation, fork.fork.file_suffix()))
    }

    fn relation_size(&self, fork: RelationFork) -> RelationSize {
        let init = self.fork_path(RelationFork { fork: Fork::Init, ..fork });
        let has_init_fork = init.exists();
        // Storage never learns of an unlogged relation's own pages.
        let local_only = has_init_fork && fork.fork != Fork::Init;
        let blocks = if local_only { None } else { blocks_of(&self.fork_path(fork)) };
        RelationSize { blocks, has_init_fork }
    }

    fn relations(&self, folder: &Path) -> Vec<RelationEntry> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let digits = name.find('_').unwrap_or(name.len());
            let relation = name[..digits].parse().unwrap();
            let fork = Fork::ALL.into_iter().find(|fork| fork.file_suffix() == &name[digits..]).unwrap();
            let has_init_fork = folder.join(format!("{relation}_init")).exists();
            if has_init_fork && fork != Fork::Init {
                continue;
            }
            let blocks = blocks_of(&folder.join(&name)).unwrap();
            found.push(RelationEntry { relation, fork, blocks, has_init_fork });
        }
        found.sort_by_key(|entry| (entry.relation, entry.fork));
        found
    }

    fn slru_segments(&self, kind: SlruKind) -> Vec<SlruEntry> {
        let Ok(entries) = fs::read_dir(self.storage.join(kind.folder())) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let segment = u32::from_str_radix(name, 16).unwrap();
            found.push(SlruEntry { segment, pages: blocks_of(&path).unwrap() });
        }
        found
    }
}

fn blocks_of(path: &Path) -> Option<u32> {
    Some((fs::metadata(path).ok()?.size() / PAGE_SIZE as u64) as u32)
}

fn wait_readable(descriptor: RawFd, timeout_ms: i32) {
    let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, writable, that outlives the call.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) };
}
