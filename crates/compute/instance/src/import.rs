//! The first start: a fresh `initdb` becomes the volume's first redo.
//!
//! `initdb` runs in the memory directory. Everything it made that must survive is put into records of the
//! volume's stream, as if PostgreSQL had just written it: relation pages as full-page images, sizes and
//! existence, transaction-status pages, and small values. Storage nodes need no second way of being filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, BlockKey, DEFAULT_TABLESPACE, DatabaseKey, Fork, GLOBAL_TABLESPACE, Lsn,
    MetaKey, PAGE_SIZE, PageBytes, PageKey, PostgresVersion, RecordSpan, RelationFork, RelationLocator,
    SlruKind, invariant,
};
use borealis_wal::ResourceManager;
use borealis_wal::assemble::record_span;
use borealis_wal::encode::{self, RecordBuilder};
use borealis_wal::layout::database::DROP;
use borealis_wal::layout::slru::PAGES_PER_SEGMENT;
use borealis_wal::native::{CreatedRelation, Native};
use borealis_wal::page::WalLayout;
use borealis_wal::record::previous_start;

use crate::{Binaries, InstanceError, OperatingSystemUser, on};

/// Blocks in one full-page-image record; PostgreSQL's own limit is 33 block references.
const BLOCKS_PER_RECORD: usize = 16;
/// Configuration files of `initdb` that are kept as small values.
pub(crate) const KEPT_FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// The small file that the first record of an import makes and the last one removes. A volume that has it and no control
/// file template holds nothing but a part of an import.
pub const IMPORT_MARK: &str = "borealis.importing";

/// The key of [`IMPORT_MARK`].
#[must_use]
pub fn import_mark() -> MetaKey {
    MetaKey::SmallFile(IMPORT_MARK.to_owned())
}

/// One record of the import.
#[derive(Debug, Clone)]
pub struct ImportedRecord {
    /// Where it starts and ends in the volume's log.
    pub span: RecordSpan,
    /// Its bytes, without page headers.
    pub bytes: Vec<u8>,
}

/// A fresh `initdb`, read and ready to become records.
#[derive(Debug)]
pub struct Import {
    layout: WalLayout,
    control_file: Vec<u8>,
    counters: Counters,
    first_lsn: Lsn,
    relations: Vec<RelationFiles>,
    slru_files: Vec<(SlruKind, u32, PathBuf)>,
    values: Vec<(MetaKey, Vec<u8>)>,
}

#[derive(Debug)]
struct RelationFiles {
    relation_fork: RelationFork,
    /// Its segment files of 1 GiB, in order.
    files: Vec<PathBuf>,
    blocks: u32,
}

/// Runs `initdb` into `directory`, which must not exist.
///
/// # Errors
/// When it fails; the error holds the end of what it printed.
pub fn run_initdb(
    binaries: &Binaries,
    user: &OperatingSystemUser,
    directory: &Path,
) -> Result<(), InstanceError> {
    use std::os::unix::process::CommandExt;
    let program = binaries.program("initdb");
    let mut command = Command::new(&program);
    command
        .arg("-D")
        .arg(directory)
        .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"])
        .env_remove("LD_PRELOAD")
        // Where `leftovers::clear` finds and ends it, before it removes by which its server's memory is known.
        .current_dir(directory.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::null());
    if user.switch {
        command.uid(user.user_id).gid(user.group_id);
    }
    let output = command.output().map_err(on("cannot run", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = text.lines().rev().take(5).collect();
    Err(InstanceError::Program {
        program,
        status: crate::server::describe_exit(output.status),
        output: tail.into_iter().rev().collect::<Vec<_>>().join(" | "),
    })
}

impl Import {
    /// Reads what a finished `initdb` left in `directory`.
    ///
    /// # Errors
    /// When a file is missing or is not what this version's `initdb` writes.
    pub fn read(version: PostgresVersion, directory: &Path) -> Result<Import, InstanceError> {
        let control_file = read(&directory.join("global/pg_control"))?;
        let control = ControlFile::decode(&control_file)
            .map_err(|error| InstanceError::Unexpected(format!("pg_control of a fresh initdb: {error}")))?;
        let counters = Counters::from_control_file(&control);
        let segment_bytes = u64::from(control.wal_segment_bytes);
        // The next segment after the one initdb wrote: every page has an older LSN than its first record.
        let first_lsn = Lsn((control.checkpoint.0 / segment_bytes + 1) * segment_bytes);

        let mut import = Import {
            layout: WalLayout {
                version,
                timeline: 1,
                system_identifier: control.system_identifier,
                segment_bytes: control.wal_segment_bytes,
            },
            control_file,
            counters,
            first_lsn,
            relations: Vec::new(),
            slru_files: Vec::new(),
            values: Vec::new(),
        };
        let shared = DatabaseKey { tablespace: GLOBAL_TABLESPACE, database: 0 };
        import.read_database(&directory.join("global"), shared)?;
        let base = directory.join("base");
        for (name, path) in folder(&base)? {
            let Ok(database) = name.parse() else { continue };
            let key = DatabaseKey { tablespace: DEFAULT_TABLESPACE, database };
            import.read_database(&path, key)?;
            import.values.push((MetaKey::Database(key), Vec::new()));
        }
        for kind in SlruKind::ALL {
            for (name, path) in folder(&directory.join(kind.folder()))? {
                let Ok(segment) = u32::from_str_radix(&name, 16) else { continue };
                import.slru_files.push((kind, segment, path));
            }
        }
        for name in KEPT_FILES {
            import.values.push((MetaKey::SmallFile(name.to_owned()), read(&directory.join(name))?));
        }
        Ok(import)
    }

    fn read_database(&mut self, path: &Path, key: DatabaseKey) -> Result<(), InstanceError> {
        self.values.push((MetaKey::RelationMap(key), read(&path.join("pg_filenode.map"))?));
        let mut found = Vec::new();
        for (name, path) in folder(path)? {
            let Some((relation, fork, segment)) = parse_relation_file_name(&name) else { continue };
            let locator = RelationLocator { tablespace: key.tablespace, database: key.database, relation };
            found.push((RelationFork { locator, fork }, segment, path));
        }
        found.sort();
        for (relation_fork, segment, path) in found {
            let length = path.metadata().map_err(on("cannot read", &path))?.len();
            let blocks = u32::try_from(length / PAGE_SIZE as u64)
                .ok()
                .filter(|&blocks| length % PAGE_SIZE as u64 == 0 && blocks <= BLOCKS_PER_SEGMENT_FILE)
                .ok_or_else(|| InstanceError::Unexpected(format!("{} has {length} bytes", path.display())))?;
            match self.relations.last_mut() {
                Some(last) if last.relation_fork == relation_fork && segment as usize == last.files.len() => {
                    last.files.push(path);
                    last.blocks += blocks;
                }
                _ if segment == 0 => {
                    self.relations.push(RelationFiles { relation_fork, files: vec![path], blocks });
                }
                _ => {
                    return Err(InstanceError::Unexpected(format!("{} continues no file", path.display())));
                }
            }
        }
        Ok(())
    }

    /// Calls `ship` with every record, in stream order. `after` is the volume's last record: [`RecordSpan::NONE`] if it
    /// has none, else the last one of an import that was interrupted, of which nothing stays.
    ///
    /// # Errors
    /// When a file cannot be read, or what `ship` returns.
    pub fn for_each_record<E: From<InstanceError>>(
        &self,
        after: RecordSpan,
        mut ship: impl FnMut(ImportedRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let next = self.first_lsn.max(after.end);
        let mut stream = Stream { layout: self.layout, next, previous_start: after.start };
        // Whoever finds this and no control file template knows that the import has to begin again.
        ship(stream.native(&Native::PutMeta { key: import_mark(), value: Some(&[]) }))?;
        // Counters before the rest: everything after sees a volume that knows its next transaction id.
        let counters = self.counters.encode();
        ship(stream.native(&Native::PutMeta { key: MetaKey::Counters, value: Some(&counters) }))?;
        if after != RecordSpan::NONE {
            // Another release's initdb may have made other files, or longer ones.
            for database in self.databases() {
                ship(stream.drop_database(database))?;
            }
        }
        for (key, value) in &self.values {
            ship(stream.native(&Native::PutMeta { key: key.clone(), value: Some(value) }))?;
        }
        for part in self.relations.chunks(512) {
            let created = part
                .iter()
                .map(|relation| CreatedRelation {
                    relation_fork: relation.relation_fork,
                    blocks: relation.blocks,
                })
                .collect();
            ship(stream.native(&Native::CreateRelations(created)))?;
        }
        for (kind, segment, path) in &self.slru_files {
            for (index, page) in read(path)?.chunks_exact(PAGE_SIZE).enumerate() {
                let page_number = segment * PAGES_PER_SEGMENT + index as u32;
                let key = PageKey::Slru { kind: *kind, page: page_number };
                let page: &PageBytes = page.try_into().expect("chunks_exact yields whole pages");
                ship(stream.native(&Native::PutPage { key, image: page }))?;
            }
        }
        for relation in &self.relations {
            let mut block = 0;
            let mut batch: Vec<(BlockKey, Box<PageBytes>)> = Vec::with_capacity(BLOCKS_PER_RECORD);
            for file in &relation.files {
                for page in read(file)?.chunks_exact(PAGE_SIZE) {
                    let page: &PageBytes = page.try_into().expect("chunks_exact yields whole pages");
                    // A page of zeroes needs no record: a block that was never written reads as zeroes.
                    if page.iter().any(|&byte| byte != 0) {
                        let key = BlockKey { relation_fork: relation.relation_fork, block };
                        batch.push((key, Box::new(*page)));
                    }
                    block += 1;
                    if batch.len() == BLOCKS_PER_RECORD {
                        ship(stream.full_page_images(&batch))?;
                        batch.clear();
                    }
                }
            }
            if !batch.is_empty() {
                ship(stream.full_page_images(&batch))?;
            }
        }
        // A volume without it is one whose import did not finish, and is not opened with pages missing.
        let template = Native::PutMeta { key: MetaKey::ControlFileTemplate, value: Some(&self.control_file) };
        ship(stream.native(&template))?;
        // After it, so that a volume has one of both at every moment.
        ship(stream.native(&Native::PutMeta { key: import_mark(), value: None }))
    }

    /// Every folder with relations, the shared one included.
    fn databases(&self) -> impl Iterator<Item = DatabaseKey> {
        self.values.iter().filter_map(|(key, _)| match key {
            MetaKey::RelationMap(database) => Some(*database),
            _ => None,
        })
    }
}

/// Gives records their places in the log, and links them.
pub(crate) struct Stream {
    pub(crate) layout: WalLayout,
    /// Where the last record ends.
    pub(crate) next: Lsn,
    pub(crate) previous_start: Lsn,
}

impl Stream {
    /// Nodes take a record only after the one it names as its predecessor, and so would a server.
    fn assert_linked(&self, span: RecordSpan, bytes: &[u8]) {
        let link = previous_start(self.layout.version, span, bytes);
        let linked = link == Ok(self.previous_start) && self.previous_start < span.start;
        invariant!("imported-records-are-linked", linked, "{} names {link:?}", span.start);
    }

    fn place(&mut self, bytes: Vec<u8>) -> ImportedRecord {
        let span = record_span(&self.layout, self.next, bytes.len());
        self.assert_linked(span, &bytes);
        self.next = span.end;
        self.previous_start = span.start;
        ImportedRecord { span, bytes }
    }

    pub(crate) fn native(&mut self, record: &Native<'_>) -> ImportedRecord {
        self.place(record.encode(self.previous_start))
    }

    /// Nothing of the database stays, as after PostgreSQL's own `DROP DATABASE`.
    fn drop_database(&mut self, key: DatabaseKey) -> ImportedRecord {
        // `xl_dbase_drop_rec`: the database, and a list of one tablespace.
        let data: Vec<u8> =
            [key.database, 1, key.tablespace].into_iter().flat_map(u32::to_le_bytes).collect();
        let record = RecordBuilder::new(ResourceManager::Database, DROP).main_data(&data);
        let bytes = record.previous_start(self.previous_start).finish();
        self.place(bytes)
    }

    fn full_page_images(&mut self, pages: &[(BlockKey, Box<PageBytes>)]) -> ImportedRecord {
        let pages: Vec<(BlockKey, &PageBytes)> = pages.iter().map(|(key, page)| (*key, &**page)).collect();
        self.place(encode::full_page_images(&pages, self.previous_start))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InstanceError> {
    fs::read(path).map_err(on("cannot read", path))
}

/// Entries of a folder by name, in name order.
fn folder(path: &Path) -> Result<Vec<(String, PathBuf)>, InstanceError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(on("cannot list", path))? {
        let entry = entry.map_err(on("cannot list", path))?;
        if let Ok(name) = entry.file_name().into_string() {
            entries.push((name, entry.path()));
        }
    }
    entries.sort();
    Ok(entries)
}

/// Relation, fork and segment number of `16384`, `16384_vm`, `16384.1`, …; `None` for other files.
fn parse_relation_file_name(name: &str) -> Option<(u32, Fork, u32)> {
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = name.split_at(digits);
    let fork = Fork::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    Some((number.parse().ok()?, fork, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant imported-records-are-linked is broken")]
    fn a_record_linked_to_another_is_noticed() {
        let layout = WalLayout {
            version: PostgresVersion::NEWEST,
            timeline: 1,
            system_identifier: 1,
            segment_bytes: WalLayout::DEFAULT_SEGMENT_BYTES,
        };
        let mut stream = Stream { layout, next: Lsn(0x100_0000), previous_start: Lsn::ZERO };
        let first = stream.native(&Native::CreateRelations(Vec::new()));
        stream.previous_start = first.span.start;
        stream.place(Native::CreateRelations(Vec::new()).encode(Lsn::ZERO));
    }

    #[test]
    fn relation_files_are_told_from_others() {
        assert_eq!(parse_relation_file_name("1259"), Some((1259, Fork::Main, 0)));
        assert_eq!(parse_relation_file_name("1259_vm"), Some((1259, Fork::VisibilityMap, 0)));
        assert_eq!(parse_relation_file_name("16384_fsm.3"), Some((16384, Fork::FreeSpaceMap, 3)));
        for name in ["PG_VERSION", "pg_filenode.map", "t3_16384", "", "_vm", "12a", "pg_internal.init"] {
            assert_eq!(parse_relation_file_name(name), None, "{name}");
        }
    }
}
