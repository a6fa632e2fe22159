//! The page files of a segment.
//!
//! A file `pages.PPP.NNNN` holds regions with room for PPP pages each, one after the other (see
//! [`crate::pages::region`]); a page has two slots of [`SLOT_BYTES`]: a 64-byte header and the page. In a region the
//! first slots of all pages come first, then the second slots, so that neighbouring pages that are written together
//! (by a bulk load, for instance) form one contiguous write. A new version is written to the slot that the last
//! durable checkpoint does not name, and no page is written twice between two checkpoints. So a torn write never
//! damages what the next opening needs. The checkpoint alone says which slot is current, so a damaged newer version
//! is never silently replaced by an older one. When an extent moves to a larger region, its slots are copied as they
//! are, headers included, so a damaged page is found afterwards as it was before.
//!
//! ```text
//! header: magic u32 | format u16 | group u16 | lsn u64 | incarnation u64 (low half)
//!         | kind u8 (0 block, 1 slru) | fork or slru kind u8 | generation u8 | zero u8
//!         | tablespace u32 | database u32 | relation u32 | block or page u32 | zero [16] | checksum u32
//! ```
//! Numbers little-endian; the checksum is CRC-32C of the 60 bytes before it and the page. `lsn` is the LSN of
//! the round that wrote the version, not the LSN inside the page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use borealis_types::{BlockKey, GroupId, Lsn, NodeId, PAGE_SIZE, PageBytes, PageKey};

use crate::StoreError;
use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at};
use crate::pages::materialized_state::{Generation, SlotAddress};
use crate::pages::region::{Region, RegionClass};

const SLOT_HEADER_BYTES: usize = 64;
pub(crate) const SLOT_BYTES: usize = SLOT_HEADER_BYTES + PAGE_SIZE;
/// A page file is shorter than this.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Shorter runs of free regions keep their space until they are used again: holes of a few pages each would cost the
/// file system more than they give back.
const HOLE_BYTES_MIN: u64 = 256 << 10;
/// A run is written when it has this many bytes.
const RUN_BYTES: usize = 32 * SLOT_BYTES;
const MAGIC: u32 = u32::from_le_bytes(*b"BPAG");
const FORMAT: u16 = 2;

/// Bytes of a region.
fn region_bytes(class: RegionClass) -> u64 {
    SLOT_BYTES as u64 * 2 * u64::from(class.pages())
}

/// Which page file: the size of its regions, and its number among the files of that size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct FileName {
    class: RegionClass,
    number: u32,
}

impl FileName {
    fn of(region: Region) -> FileName {
        FileName { class: region.class, number: region.number / FileName::regions_per_file(region.class) }
    }

    fn regions_per_file(class: RegionClass) -> u32 {
        (FILE_BYTES_MAX / region_bytes(class)) as u32
    }

    /// Where a region begins in its file.
    fn offset_of(region: Region) -> u64 {
        u64::from(region.number % FileName::regions_per_file(region.class)) * region_bytes(region.class)
    }
}

impl SlotAddress {
    fn locate(self) -> (FileName, u64) {
        let Region { class, .. } = self.region;
        let slot = u64::from(self.generation % 2) * u64::from(class.pages()) + self.place as u64;
        (FileName::of(self.region), FileName::offset_of(self.region) + slot * SLOT_BYTES as u64)
    }
}

/// Page versions for consecutive slots, collected for one write; and what was written and not synced so far.
#[derive(Default, Debug)]
pub(crate) struct SlotRun {
    /// Where the first of `slots` goes.
    place: Option<(FileName, u64)>,
    slots: Vec<u8>,
    /// The files written since the last sync. They are kept: another handle might not tell that a write failed (one that
    /// has to be closed in between is synced first, and its next sync tells, see `disk/descriptors.rs`).
    unsynced: BTreeMap<FileName, Arc<dyn DiskFile>>,
}

/// The page files of one segment.
#[derive(Debug)]
pub(crate) struct PageFiles {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    node: NodeId,
    group: GroupId,
    incarnation: u64,
    open: Mutex<OpenFiles>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: BTreeMap<FileName, Arc<dyn DiskFile>>,
    /// The files whose names are known to be durable.
    named: BTreeSet<FileName>,
}

impl PageFiles {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        node: NodeId,
        group: GroupId,
        incarnation: u128,
    ) -> PageFiles {
        PageFiles { disk, folder, node, group, incarnation: incarnation as u64, open: Mutex::default() }
    }

    fn path(&self, name: FileName) -> PathBuf {
        self.folder.join(format!("pages.{:03}.{:04}", name.class.pages(), name.number))
    }

    /// The file that a slot is in, and where.
    #[cfg(test)]
    pub(crate) fn file_and_offset(&self, address: SlotAddress) -> (PathBuf, u64) {
        let (name, offset) = address.locate();
        (self.path(name), offset)
    }

    /// Begins a round: what an abandoned one left unsynced is nobody's, and its fate no reason to abandon this one.
    pub(crate) fn begin_round(&self) {
        let closed = std::mem::take(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner).files);
        drop(closed);
    }

    /// Opens a file for reading; it must exist.
    fn existing(&self, name: FileName) -> Result<Arc<dyn DiskFile>, StoreError> {
        self.file(name, OpenMode::Write)
    }

    /// Opens a file for writing. If it is new, its name is durable on return.
    fn to_write(&self, name: FileName) -> Result<Arc<dyn DiskFile>, StoreError> {
        let file = self.file(name, OpenMode::Create)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Also if it exists: whoever made it may have failed to make its name durable.
        if !open.named.contains(&name) {
            self.disk.sync_folder(&self.folder).map_err(StoreError::io("sync", &self.folder))?;
            open.named.insert(name);
        }
        Ok(file)
    }

    fn file(&self, name: FileName, mode: OpenMode) -> Result<Arc<dyn DiskFile>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.files.get(&name) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(name);
        let file = self.disk.open_one_of_many(&path, mode).map_err(StoreError::io("open", &path))?;
        open.files.insert(name, Arc::clone(&file));
        Ok(file)
    }

    fn place(&self, key: &PageKey, address: SlotAddress) -> String {
        let (name, offset) = address.locate();
        let path = self.path(name);
        format!("node {} group {} page {key} ({} at offset {offset})", self.node, self.group, path.display())
    }

    fn header(
        &self,
        key: &PageKey,
        generation: Generation,
        lsn: Lsn,
        page: &[u8],
    ) -> [u8; SLOT_HEADER_BYTES] {
        let mut header = [0; SLOT_HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        header[6..8].copy_from_slice(&self.group.0.to_le_bytes());
        header[8..16].copy_from_slice(&lsn.0.to_le_bytes());
        header[16..24].copy_from_slice(&self.incarnation.to_le_bytes());
        header[26] = generation;
        let numbers = match *key {
            PageKey::Block(BlockKey { relation_fork, block }) => {
                header[25] = relation_fork.fork as u8;
                let locator = relation_fork.locator;
                [locator.tablespace, locator.database, locator.relation, block]
            }
            PageKey::Slru { kind, page } => {
                header[24] = 1;
                header[25] = kind as u8;
                [0, 0, 0, page]
            }
        };
        for (at, number) in numbers.into_iter().enumerate() {
            header[28 + at * 4..32 + at * 4].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..60]), page);
        header[60..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// Adds a version to a run. The run is written first if the version's slot does not follow it.
    pub(crate) fn write(
        &self,
        run: &mut SlotRun,
        key: &PageKey,
        address: SlotAddress,
        lsn: Lsn,
        page: &PageBytes,
    ) -> Result<(), StoreError> {
        self.make_room(run, address)?;
        run.slots.extend_from_slice(&self.header(key, address.generation, lsn, page));
        run.slots.extend_from_slice(page);
        Ok(())
    }

    /// Adds the slot `from` to a run as it is, to be written at `to`. It is not verified: damage is found by whoever
    /// reads the page.
    pub(crate) fn copy(
        &self,
        run: &mut SlotRun,
        from: SlotAddress,
        to: SlotAddress,
    ) -> Result<(), StoreError> {
        let (name, offset) = from.locate();
        let mut slot = [0; SLOT_BYTES];
        let read = self.existing(name)?.read_at(&mut slot, offset);
        let filled = read.map_err(StoreError::io("read", &self.path(name)))?;
        slot[filled..].fill(0);
        self.make_room(run, to)?;
        run.slots.extend_from_slice(&slot);
        Ok(())
    }

    /// Writes a run if the slot at `address` does not follow it, or it is long enough.
    fn make_room(&self, run: &mut SlotRun, address: SlotAddress) -> Result<(), StoreError> {
        let (name, offset) = address.locate();
        let follows =
            run.place.is_some_and(|(of, start)| (of, start + run.slots.len() as u64) == (name, offset));
        if !follows || run.slots.len() >= RUN_BYTES {
            self.write_run(run)?;
            run.place = Some((name, offset));
        }
        Ok(())
    }

    /// Writes what is in a run, so that it can be read. Not durable yet.
    pub(crate) fn flush(&self, run: &mut SlotRun) -> Result<(), StoreError> {
        self.write_run(run)
    }

    /// Writes what is in a run. Not durable yet.
    fn write_run(&self, run: &mut SlotRun) -> Result<(), StoreError> {
        let Some((name, offset)) = run.place.take() else { return Ok(()) };
        let file = self.to_write(name)?;
        run.unsynced.insert(name, Arc::clone(&file));
        file.write_at(&run.slots, offset).map_err(StoreError::io("write", &self.path(name)))?;
        run.slots.clear();
        Ok(())
    }

    /// Writes what is in a run, and makes everything durable that was written through it.
    ///
    /// # Errors
    /// After an error it is unknown which of it is on disk, and a later sync does not tell: everything that was
    /// written through this run has to be written again before a checkpoint may name it.
    pub(crate) fn sync(&self, run: &mut SlotRun) -> Result<(), StoreError> {
        self.write_run(run)?;
        for (name, file) in &run.unsynced {
            file.sync_data().map_err(StoreError::io("sync", &self.path(*name)))?;
        }
        run.unsynced.clear();
        Ok(())
    }

    /// Reads the version of `key` in a slot and verifies that it is this one.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the slot holds anything else, or a state later than `not_after`.
    pub(crate) fn read(
        &self,
        key: &PageKey,
        address: SlotAddress,
        not_after: Lsn,
    ) -> Result<Box<PageBytes>, StoreError> {
        let (name, offset) = address.locate();
        let corrupt = |what: &str| StoreError::corrupt(self.place(key, address), what);
        let file = self.existing(name)?;
        let mut slot = [0; SLOT_BYTES];
        read_exact_at(&*file, &mut slot, offset).map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof {
                corrupt("the file is cut short")
            } else {
                StoreError::io("read", &self.path(name))(source)
            }
        })?;
        let (header, page) = slot.split_at(SLOT_HEADER_BYTES);
        let lsn = Lsn(u64::from_le_bytes(header[8..16].try_into().expect("eight bytes")));
        if header != self.header(key, address.generation, lsn, page) {
            return Err(corrupt("the page is not the one written there (checksum or identity)"));
        }
        if lsn > not_after {
            return Err(corrupt("the page is of a later state than it should be"));
        }
        let page: &PageBytes = page.try_into().expect("the rest of a slot is one page");
        Ok(Box::new(*page))
    }

    /// Punches holes for freed regions, which frees their space. On a file system that cannot, they keep it; that is
    /// no error.
    pub(crate) fn punch(&self, mut freed: Vec<Region>) {
        freed.sort_unstable();
        let follows = |one: &Region, next: &Region| {
            FileName::of(*one) == FileName::of(*next) && one.number + 1 == next.number
        };
        for neighbours in freed.chunk_by(follows) {
            let size_bytes = region_bytes(neighbours[0].class) * neighbours.len() as u64;
            if size_bytes < HOLE_BYTES_MIN {
                continue;
            }
            let Ok(file) = self.existing(FileName::of(neighbours[0])) else { continue };
            if let Err(error) = file.punch_hole(FileName::offset_of(neighbours[0]), size_bytes) {
                let what = "freed regions keep their space: the file system cannot punch holes";
                tracing::debug!(%error, region = ?neighbours[0], size_bytes, what);
            }
        }
    }

    /// Fails unless the files that hold `regions` are there.
    pub(crate) fn check_present(&self, regions: impl Iterator<Item = Region>) -> Result<(), StoreError> {
        let names: BTreeSet<FileName> = regions.map(FileName::of).collect();
        for name in names {
            let path = self.path(name);
            if !self.disk.exists(&path) {
                let what = "is missing: the store is damaged; replace this node (`borealis node replace`)";
                return Err(StoreError::directory(&path, what));
            }
        }
        Ok(())
    }
}
