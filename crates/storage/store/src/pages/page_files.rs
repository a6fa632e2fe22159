//! The page files of a segment.
//!
//! A file `pages.NNNN` holds [`REGIONS_PER_FILE`] regions, sparse; a region is 128 pages; a page has two
//! slots of [`SLOT_BYTES`]: a 64-byte header and the page. The first slots of all 128 pages come first, then
//! the second slots, so that neighbouring pages that are written together (by a bulk load, for instance) form
//! one contiguous write. A new version is written to the slot that the last durable checkpoint does not name,
//! and no page is written twice between two checkpoints. So a torn write never damages what the next opening
//! needs. The checkpoint alone says which slot is current, so a damaged newer version is never silently
//! replaced by an older one.
//!
//! ```text
//! header: magic u32 | format u16 | group u16 | lsn u64 | incarnation u64 (low half)
//!         | kind u8 (0 block, 1 slru) | fork or slru kind u8 | generation u8 | zero u8
//!         | tablespace u32 | database u32 | relation u32 | block or page u32 | zero [16] | checksum u32
//! ```
//! Numbers little-endian; the checksum is CRC-32C of the 60 bytes before it and the page. `lsn` is the LSN of
//! the round that wrote the version, not the LSN inside the page.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use borealis_types::{BlockKey, GroupId, Lsn, NodeId, PAGE_SIZE, PageBytes, PageKey};

use crate::StoreError;
use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at};
use crate::pages::materialized_state::{Generation, PAGES_PER_EXTENT};

const SLOT_HEADER_BYTES: usize = 64;
pub(crate) const SLOT_BYTES: usize = SLOT_HEADER_BYTES + PAGE_SIZE;
const REGION_BYTES: u64 = SLOT_BYTES as u64 * 2 * PAGES_PER_EXTENT as u64;
/// Keeps a page file below 1 GiB.
const REGIONS_PER_FILE: u32 = 508;
/// A run is written when it has this many bytes.
const RUN_BYTES: usize = 32 * SLOT_BYTES;
const MAGIC: u32 = u32::from_le_bytes(*b"BPAG");
const FORMAT: u16 = 2;

/// Where a page version is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotAddress {
    pub region: u32,
    pub place: usize,
    pub generation: Generation,
}

/// Page versions for consecutive slots, collected for one write.
#[derive(Default, Debug)]
pub(crate) struct SlotRun {
    /// Number in the name `pages.NNNN` of the file that the run goes to.
    number: u32,
    offset: u64,
    slots: Vec<u8>,
}

/// The page files of one segment.
#[derive(Debug)]
pub(crate) struct PageFiles {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    node: NodeId,
    group: GroupId,
    incarnation: u64,
    open: Mutex<BTreeMap<u32, Arc<dyn DiskFile>>>,
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

    fn path(&self, number: u32) -> PathBuf {
        self.folder.join(format!("pages.{number:04}"))
    }

    fn file(&self, number: u32, create: bool) -> Result<Arc<dyn DiskFile>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&number) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(number);
        let mode = if create { OpenMode::Create } else { OpenMode::Write };
        let file = self.disk.open_one_of_many(&path, mode).map_err(StoreError::io("open", &path))?;
        // Also if it exists: whoever made it may have failed to make its name durable.
        if create {
            self.disk.sync_folder(&self.folder).map_err(StoreError::io("sync", &self.folder))?;
        }
        open.insert(number, Arc::clone(&file));
        Ok(file)
    }

    fn locate(address: SlotAddress) -> (u32, u64) {
        let slot = u64::from(address.generation % 2) * u64::from(PAGES_PER_EXTENT) + address.place as u64;
        let offset = u64::from(address.region % REGIONS_PER_FILE) * REGION_BYTES + slot * SLOT_BYTES as u64;
        (address.region / REGIONS_PER_FILE, offset)
    }

    fn place(&self, key: &PageKey, address: SlotAddress) -> String {
        let (number, offset) = PageFiles::locate(address);
        let path = self.path(number);
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
        let place = PageFiles::locate(address);
        if place != (run.number, run.offset + run.slots.len() as u64) || run.slots.len() >= RUN_BYTES {
            self.write_run(run)?;
            (run.number, run.offset) = place;
        }
        run.slots.extend_from_slice(&self.header(key, address.generation, lsn, page));
        run.slots.extend_from_slice(page);
        Ok(())
    }

    /// Writes what is in a run. Not durable yet.
    pub(crate) fn write_run(&self, run: &mut SlotRun) -> Result<(), StoreError> {
        if !run.slots.is_empty() {
            let written = self.file(run.number, true)?.write_at(&run.slots, run.offset);
            written.map_err(StoreError::io("write", &self.path(run.number)))?;
            run.slots.clear();
        }
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
        let (number, offset) = PageFiles::locate(address);
        let corrupt = |what: &str| StoreError::corrupt(self.place(key, address), what);
        let file = self.file(number, false)?;
        let mut slot = [0; SLOT_BYTES];
        read_exact_at(&*file, &mut slot, offset).map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof {
                corrupt("the file is cut short")
            } else {
                StoreError::io("read", &self.path(number))(source)
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

    /// Makes all writes to the files of these regions durable.
    pub(crate) fn sync(&self, regions: impl Iterator<Item = u32>) -> Result<(), StoreError> {
        let mut numbers: Vec<u32> = regions.map(|region| region / REGIONS_PER_FILE).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let path = self.path(number);
            self.file(number, true)?.sync_data().map_err(StoreError::io("sync", &path))?;
        }
        Ok(())
    }

    /// Punches a hole for a region, which frees its space. On a file system that cannot, the region keeps its
    /// space; that is no error.
    pub(crate) fn punch_region(&self, region: u32) {
        let Ok(file) = self.file(region / REGIONS_PER_FILE, false) else { return };
        let offset = u64::from(region % REGIONS_PER_FILE) * REGION_BYTES;
        if let Err(error) = file.punch_hole(offset, REGION_BYTES) {
            tracing::debug!(%error, region, "a freed region keeps its space: the file system cannot punch holes");
        }
    }

    /// Fails unless the files that hold `regions` are there.
    pub(crate) fn check_present(&self, regions: impl Iterator<Item = u32>) -> Result<(), StoreError> {
        let mut numbers: Vec<u32> = regions.map(|region| region / REGIONS_PER_FILE).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let path = self.path(number);
            if !self.disk.exists(&path) {
                let what = "is missing: the store is damaged; replace this node (`borealis node replace`)";
                return Err(StoreError::directory(&path, what));
            }
        }
        Ok(())
    }
}
