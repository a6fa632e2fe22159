//! Borealis's own records (resource manager 127).
//!
//! They put into the stream what PostgreSQL does not log: the status pages and small values of a freshly
//! imported cluster, and the relations it has. PostgreSQL never sees them.
//!
//! Main data, all numbers little-endian:
//!
//! | Operation | Data |
//! |---|---|
//! | [`PUT_PAGE`] | page key, 8192 bytes |
//! | [`PUT_META`] | meta key, one byte (1: a value follows, 0: the value goes), the value |
//! | [`CREATE_RELATIONS`] | four-byte count, then for each: locator, fork byte, four-byte size in blocks |
//!
//! A page key is a tag byte and its fields: 0, locator, fork byte, block; or 1, store byte, page. A meta
//! key is a tag byte and its fields: 0 counters; 1 control file template; 2 relation map, tablespace,
//! database; 3 database, tablespace, database; 4 tablespace, OID; 5 prepared transaction, xid; 6 small
//! file, four-byte length, path in UTF-8.

use borealis_types::{
    BlockKey, DatabaseKey, Fork, Lsn, MetaKey, PAGE_SIZE, PageBytes, PageKey, RelationFork, RelationLocator,
    SlruKind, invariant,
};

use crate::bytes::Reader;
use crate::encode::RecordBuilder;
use crate::{Record, RecordError, ResourceManager};

/// The page becomes exactly these bytes.
pub const PUT_PAGE: u8 = 0x00;
/// The value becomes exactly these bytes, or goes.
pub const PUT_META: u8 = 0x10;
/// The forks exist from here on.
pub const CREATE_RELATIONS: u8 = 0x20;

/// Bytes of one entry of a [`CREATE_RELATIONS`] record.
const RELATION_BYTES: usize = 12 + 1 + 4;

/// Whether the operation is one of ours.
#[must_use]
pub fn is_known(operation: u8) -> bool {
    matches!(operation, PUT_PAGE | PUT_META | CREATE_RELATIONS)
}

/// A fork of an imported relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreatedRelation {
    /// The fork that exists from here on.
    pub relation_fork: RelationFork,
    /// How many blocks it had. The fork's size follows from the pages put into it; this is to compare with.
    pub blocks: u32,
}

/// One of Borealis's own records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Native<'a> {
    /// The page becomes these bytes, as they are: no LSN is stamped.
    PutPage {
        /// The page that becomes `image`.
        key: PageKey,
        /// The page as it is, LSN included.
        image: &'a PageBytes,
    },
    /// The value becomes these bytes; `None` removes it.
    PutMeta {
        /// The value that becomes `value`.
        key: MetaKey,
        /// The new value; `None` removes it.
        value: Option<&'a [u8]>,
    },
    /// The forks exist from here on.
    CreateRelations(Vec<CreatedRelation>),
}

impl<'a> Native<'a> {
    /// Reads a record of [`ResourceManager::Borealis`].
    ///
    /// # Errors
    /// When the operation is unknown or the data malformed.
    pub fn parse(record: &Record<'a>) -> Result<Native<'a>, RecordError> {
        Native::read(record.operation(), record.main_data).ok_or(RecordError::Malformed {
            start: record.span.start,
            what: "one of Borealis's own records is malformed",
        })
    }

    fn read(operation: u8, data: &'a [u8]) -> Option<Native<'a>> {
        let mut reader = Reader::new(data);
        let native = match operation {
            PUT_PAGE => Native::PutPage {
                key: read_page_key(&mut reader)?,
                image: reader.take(PAGE_SIZE)?.try_into().ok()?,
            },
            PUT_META => {
                let key = read_meta_key(&mut reader)?;
                let value = match reader.u8()? {
                    0 => None,
                    1 => reader.take(reader.remaining()),
                    _ => return None,
                };
                Native::PutMeta { key, value }
            }
            CREATE_RELATIONS => {
                let mut entries = Reader::new(reader.counted(RELATION_BYTES)?);
                let mut relations = Vec::with_capacity(entries.remaining() / RELATION_BYTES);
                while entries.remaining() > 0 {
                    let relation_fork = read_relation_fork(&mut entries)?;
                    relations.push(CreatedRelation { relation_fork, blocks: entries.u32()? });
                }
                Native::CreateRelations(relations)
            }
            _ => return None,
        };
        (reader.remaining() == 0).then_some(native)
    }

    /// The whole record, checksum and all, linked back to the record at `previous_start`.
    ///
    /// # Panics
    /// If the record would be longer than [`crate::record::RECORD_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self, previous_start: Lsn) -> Vec<u8> {
        let mut data = Vec::new();
        let operation = match self {
            Native::PutPage { key, image } => {
                write_page_key(key, &mut data);
                data.extend_from_slice(&image[..]);
                PUT_PAGE
            }
            Native::PutMeta { key, value } => {
                write_meta_key(key, &mut data);
                data.push(u8::from(value.is_some()));
                data.extend_from_slice(value.unwrap_or_default());
                PUT_META
            }
            Native::CreateRelations(relations) => {
                let count = i32::try_from(relations.len()).expect("the entries fit into one record");
                data.extend_from_slice(&count.to_le_bytes());
                for created in relations {
                    write_relation_fork(created.relation_fork, &mut data);
                    data.extend_from_slice(&created.blocks.to_le_bytes());
                }
                CREATE_RELATIONS
            }
        };
        self.assert_reads_back(operation, &data);
        RecordBuilder::new(ResourceManager::Borealis, operation)
            .previous_start(previous_start)
            .main_data(&data)
            .finish()
    }
}

impl Native<'_> {
    /// A node that cannot read a record of ours stops its whole volume.
    fn assert_reads_back(&self, operation: u8, data: &[u8]) {
        let same = Native::read(operation, data).as_ref() == Some(self);
        invariant!("native-record-reads-back", same, "operation {operation:#04x}, {} bytes", data.len());
    }
}

fn write_u32s(values: &[u32], out: &mut Vec<u8>) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn write_relation_fork(relation_fork: RelationFork, out: &mut Vec<u8>) {
    let RelationLocator { tablespace, database, relation } = relation_fork.locator;
    write_u32s(&[tablespace, database, relation], out);
    out.push(relation_fork.fork as u8);
}

fn read_relation_fork(reader: &mut Reader<'_>) -> Option<RelationFork> {
    let locator = reader.locator()?;
    Some(RelationFork { locator, fork: Fork::try_from(reader.u8()?).ok()? })
}

fn write_page_key(key: &PageKey, out: &mut Vec<u8>) {
    match key {
        PageKey::Block(block) => {
            out.push(0);
            write_relation_fork(block.relation_fork, out);
            write_u32s(&[block.block], out);
        }
        PageKey::Slru { kind, page } => {
            out.extend_from_slice(&[1, *kind as u8]);
            write_u32s(&[*page], out);
        }
    }
}

fn read_page_key(reader: &mut Reader<'_>) -> Option<PageKey> {
    match reader.u8()? {
        0 => {
            let relation_fork = read_relation_fork(reader)?;
            Some(PageKey::Block(BlockKey { relation_fork, block: reader.u32()? }))
        }
        1 => {
            let kind = *SlruKind::ALL.get(usize::from(reader.u8()?))?;
            Some(PageKey::Slru { kind, page: reader.u32()? })
        }
        _ => None,
    }
}

fn write_meta_key(key: &MetaKey, out: &mut Vec<u8>) {
    let mut database = |tag: u8, key: &DatabaseKey| {
        out.push(tag);
        write_u32s(&[key.tablespace, key.database], out);
    };
    match key {
        MetaKey::RelationMap(key) => database(2, key),
        MetaKey::Database(key) => database(3, key),
        MetaKey::Counters => out.push(0),
        MetaKey::ControlFileTemplate => out.push(1),
        MetaKey::Tablespace(oid) => {
            out.push(4);
            write_u32s(&[*oid], out);
        }
        MetaKey::PreparedTransaction(xid) => {
            out.push(5);
            write_u32s(&[*xid], out);
        }
        MetaKey::SmallFile(path) => {
            out.push(6);
            let length = u32::try_from(path.len()).expect("a path is shorter than 4 GiB");
            write_u32s(&[length], out);
            out.extend_from_slice(path.as_bytes());
        }
    }
}

fn read_meta_key(reader: &mut Reader<'_>) -> Option<MetaKey> {
    let tag = reader.u8()?;
    let mut database = || Some(DatabaseKey { tablespace: reader.u32()?, database: reader.u32()? });
    match tag {
        0 => Some(MetaKey::Counters),
        1 => Some(MetaKey::ControlFileTemplate),
        2 => database().map(MetaKey::RelationMap),
        3 => database().map(MetaKey::Database),
        4 => reader.u32().map(MetaKey::Tablespace),
        5 => reader.u32().map(MetaKey::PreparedTransaction),
        6 => {
            let path = reader.counted(1)?;
            Some(MetaKey::SmallFile(str::from_utf8(path).ok()?.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant native-record-reads-back is broken")]
    fn a_record_that_reads_as_another_is_noticed() {
        Native::CreateRelations(Vec::new()).assert_reads_back(CREATE_RELATIONS, &[0; 3]);
    }
}
