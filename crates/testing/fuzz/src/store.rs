//! The directory of a storage node, damaged: with checksums that show it, and with checksums that do not.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use borealis_quorum::Promise;
use borealis_store::{Identity, Options, Origin, Policy, Store};
use borealis_types::{
    AvailabilityZone, BlockKey, DatabaseKey, EpochHistory, EpochOpening, Fork, GroupId, Lsn, MetaKey, NodeId,
    PAGE_SIZE, PageKey, Placement, PostgresVersion, RecordSpan, RelationFork, RelationLocator, ServerVersion,
    SlruKind, VolumeEpoch, VolumeId, WriterId,
};
use borealis_wal::encode::full_page_images;
use borealis_wal::native::{CreatedRelation, Native};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};

use crate::Input;
use crate::store_seals::{SLOT_BYTES, forge_entry, seal_log, seal_notes, seal_pages, seal_small_file};

const INCARNATION: u128 = 99;
const GROUP: GroupId = GroupId(0);
/// Changed places of one directory.
const CHANGES_MAX: u8 = 15;

/// The undamaged directory.
struct Template {
    files: Vec<StoreFile>,
    last: Lsn,
}

/// A file of the directory. Of page files, which are mostly holes, only the slots in use are kept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct StoreFile {
    /// Below the directory.
    path: PathBuf,
    /// Its bytes, or those of its slots in use, one after the other.
    bytes: Vec<u8>,
    /// Where each slot is in the file; empty if this is no page file.
    slot_offsets: Vec<u64>,
}

const MAIN: RelationFork = RelationFork {
    locator: RelationLocator { tablespace: 1663, database: 5, relation: 16_384 },
    fork: Fork::Main,
};

fn options() -> Options {
    Options {
        memory_limit_bytes: 1 << 20,
        log_file_bytes: 32 << 10,
        log_retention_bytes: 1 << 20,
        materialize_after_bytes: 16 << 10,
        free_space_min_bytes: Some(0),
        ..Options::default()
    }
}

/// A folder in memory where there is one: a store syncs all the time.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let builder_in = |path: &Path| tempfile::Builder::new().prefix("borealis-fuzz-").tempdir_in(path);
    builder_in(memory).or_else(|_| builder_in(&std::env::temp_dir())).expect("a temporary folder can be made")
}

/// A store with pages of two generations, and redo after the last checkpoint.
fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = folder();
        let root = folder.path().join("node");
        let last = fill(&root);
        let mut files = Vec::new();
        collect(&root, &root, &mut files);
        files.sort();
        Template { files, last }
    })
}

fn fill(root: &Path) -> Lsn {
    let identity = Identity {
        volume: VolumeId(1),
        node: NodeId(3),
        zone: AvailabilityZone("az1".to_owned()),
        version: PostgresVersion::NEWEST,
        placement: Placement::new(1).expect("one group is allowed"),
        groups: vec![GROUP],
        incarnation: INCARNATION,
    };
    let store = Store::create(root, identity, options()).expect("the folder is new");
    let promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(11) };
    let mut history = EpochHistory::default();
    history.push(EpochOpening {
        epoch: promise.epoch,
        last: RecordSpan::NONE,
        server_version: ServerVersion::NEWEST_TESTED,
    });
    store.fence(promise, &[]).expect("nobody else was promised anything");
    store.install(promise.writer, &history, &[], &[]).expect("the history is the first");
    let mut last = RecordSpan::NONE;
    for round in 0..3u8 {
        let mut header = BatchHeader {
            volume_epoch: promise.epoch,
            durable: last,
            minimum_read_point: last.end,
            tails: vec![GroupTail { group: GROUP, last_end: last.end }],
        };
        let mut builder = BatchBuilder::new(&header);
        for record in records(round, last) {
            let start = Lsn(last.end.0 + 40);
            let span = RecordSpan { start, end: Lsn(start.0 + record.len() as u64).align_up() };
            builder.push(span, &[GroupLink { group: GROUP, previous_end: last.end }], &record);
            last = span;
        }
        let appended =
            store.append(&builder.finish(), Origin::Writer(promise), &[]).expect("the batch connects");
        store.sync(appended.sequence).expect("the disk works");
        if round < 2 {
            header.durable = last;
            header.minimum_read_point = last.end;
            header.tails = vec![GroupTail { group: GROUP, last_end: last.end }];
            store.note_positions(&header, &[]).expect("the positions are of this epoch");
            store.materialize(Policy::Now).expect("the records can be applied");
        }
    }
    last.end
}

/// Records of every kind of effect that needs no page before it.
fn records(round: u8, last: RecordSpan) -> Vec<Vec<u8>> {
    let page = |seed: u8| {
        let mut page = [0; PAGE_SIZE];
        page[40] = seed;
        page[8000] = round;
        page
    };
    let block = |block| BlockKey { relation_fork: MAIN, block };
    let status = PageKey::Slru { kind: SlruKind::Transactions, page: 0 };
    let database = DatabaseKey { tablespace: 1663, database: 5 };
    let previous = last.start;
    let text = [b'p', b'a', b't', b'h', round];
    vec![
        Native::CreateRelations(vec![CreatedRelation { relation_fork: MAIN, blocks: 3 }]).encode(previous),
        Native::PutPage { key: status, image: &page(3) }.encode(previous),
        Native::PutMeta { key: MetaKey::Tablespace(9), value: Some(&text) }.encode(previous),
        Native::PutMeta { key: MetaKey::Database(database), value: Some(&[]) }.encode(previous),
        full_page_images(&[(block(0), &page(1)), (block(1), &page(2)), (block(200), &page(5))], previous),
    ]
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<StoreFile>) {
    for entry in fs::read_dir(folder).expect("the store's folders can be listed") {
        let path = entry.expect("the store's folders can be listed").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let bytes = fs::read(&path).expect("the store's files can be read");
            let path = path.strip_prefix(root).expect("it is below").to_owned();
            files.push(StoreFile::new(path, bytes));
        }
    }
}

impl StoreFile {
    fn new(path: PathBuf, mut bytes: Vec<u8>) -> StoreFile {
        let mut slot_offsets = Vec::new();
        if path.starts_with("segments") {
            let mut slots = Vec::new();
            for (number, slot) in bytes.chunks(SLOT_BYTES).enumerate() {
                if slot.iter().any(|byte| *byte != 0) {
                    slot_offsets.push((number * SLOT_BYTES) as u64);
                    slots.extend_from_slice(slot);
                }
            }
            bytes = slots;
        } else {
            // A log file ends in free space, of which a little will do.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(used + 4096);
        }
        StoreFile { path, bytes, slot_offsets }
    }

    fn write(&self, root: &Path) {
        let path = root.join(&self.path);
        let folder = path.parent().expect("a store's file is in a folder");
        fs::create_dir_all(folder).expect("folders can be made");
        let file = fs::File::create(path).expect("files can be made");
        if self.slot_offsets.is_empty() {
            file.write_all_at(&self.bytes, 0).expect("files can be written");
        }
        for (slot, offset) in self.bytes.chunks(SLOT_BYTES).zip(&self.slot_offsets) {
            file.write_all_at(slot, *offset).expect("files can be written");
        }
    }
}

/// Opening a damaged directory, and everything a node then does with it.
///
/// # Panics
/// When the store does.
pub fn store_files(data: &[u8]) {
    let template = template();
    let mut files = template.files.clone();
    let mut input = Input::new(data);
    let seals = input.u8();
    for _ in 0..input.u8() % (CHANGES_MAX + 1) {
        let which = usize::from(input.u8()) % files.len();
        change(&mut input, &mut files[which].bytes);
    }
    let (kind, payload) = (input.u8(), input.rest());
    for StoreFile { path, bytes, .. } in &mut files {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            "identity" if seals & 1 != 0 => seal_small_file(bytes),
            "checkpoint" if seals & 16 != 0 => {
                bytes.truncate(20);
                bytes.extend_from_slice(payload);
                seal_small_file(bytes);
            }
            "checkpoint" if seals & 2 != 0 => seal_small_file(bytes),
            "synced" if seals & 64 != 0 => seal_notes(bytes),
            _ if name.starts_with("pages.") && seals & 8 != 0 => seal_pages(bytes),
            _ => {
                let number = name.strip_suffix(".log").and_then(|number| number.parse().ok());
                if let Some(number) = number.filter(|_| seals & 4 != 0) {
                    seal_log(bytes, INCARNATION, number);
                }
                if let Some(number) = number.filter(|_| seals & 32 != 0) {
                    forge_entry(bytes, INCARNATION, number, kind, payload);
                }
            }
        }
    }
    let folder = folder();
    let root = folder.path().join("node");
    for file in &files {
        file.write(&root);
    }
    if let Ok(store) = Store::open(&root, options()) {
        use_store(&store, template.last);
    }
}

fn change(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let at = input.below(bytes.len().max(1)).min(bytes.len());
    match input.u8() % 8 {
        0 => bytes.truncate(at),
        1 => {
            let end = (at + usize::from(input.u8())).min(bytes.len());
            bytes.drain(at..end);
        }
        2 => {
            let more = input.u16().to_le_bytes();
            bytes.splice(at..at, more);
        }
        3 | 4 => {
            let value = input.u32().to_le_bytes();
            bytes.iter_mut().skip(at).zip(value).for_each(|(byte, new)| *byte = new);
        }
        5 => {
            let value = input.u64().to_le_bytes();
            bytes.iter_mut().skip(at).zip(value).for_each(|(byte, new)| *byte = new);
        }
        _ => {
            let value = input.u8();
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
        }
    }
}

fn use_store(store: &Store, last: Lsn) {
    let _ = (store.failure(), store.metrics(), store.summaries(), store.chain_summaries());
    for lsn in [Lsn(1000), last, Lsn::MAX] {
        for number in [0, 1, 2, 200] {
            let key = PageKey::Block(BlockKey { relation_fork: MAIN, block: number });
            let _ = store.read_page(GROUP, &key, lsn);
        }
        let _ = store.read_page(GROUP, &PageKey::Slru { kind: SlruKind::Transactions, page: 0 }, lsn);
        let _ = store.read_meta(&MetaKey::Tablespace(9), lsn);
        let _ = store.list_meta(lsn, None, 10);
        let _ = store.relation_size(GROUP, MAIN, lsn);
        let database = DatabaseKey { tablespace: 1663, database: 5 };
        let _ = store.list_relations(GROUP, database, lsn, None, 10);
        let _ = store.slru_pages(SlruKind::Transactions, lsn, 0, 100);
        let _ = store.page_checksums(GROUP, lsn, None, 10);
    }
    let _ = store.read_tail(GROUP, Lsn::ZERO, 1 << 20);
    let header = BatchHeader {
        volume_epoch: VolumeEpoch(1),
        durable: RecordSpan { start: Lsn(last.0 - 8), end: last },
        minimum_read_point: last,
        tails: vec![GroupTail { group: GROUP, last_end: last }],
    };
    let _ = store.note_positions(&header, &[]);
    let _ = store.materialize(Policy::Now);
}

/// Inputs to start from.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0, 0]];
    for seals in [0, 15] {
        for file in 0..template().files.len() as u8 {
            seeds.push(vec![seals, 1, file, 30, 0, 0, 0, 3, 1, 0, 0, 0]);
        }
    }
    let checkpoint = template().files.iter().find(|file| file.path.ends_with("checkpoint"));
    if let Some(file) = checkpoint {
        seeds.push([&[16 + 4, 0, 0], file.bytes.get(20..).unwrap_or_default()].concat());
    }
    for kind in 1..=5 {
        seeds.push([&[32, 0, kind, 1, 0, 0, 0, 0, 0, 0, 0], &*crate::batch::batch()].concat());
    }
    seeds
}
