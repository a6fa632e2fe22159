//! Database, tablespace and relation map records (`src/include/commands/dbcommands_xlog.h`,
//! `src/include/commands/tablespace.h`, `src/include/utils/relmapper.h`).

use borealis_types::DatabaseKey;

use crate::bytes::{Reader, u32s};
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_DBASE_CREATE_FILE_COPY`
pub const CREATE_FILE_COPY: u8 = 0x00;
/// `XLOG_DBASE_CREATE_WAL_LOG`
pub const CREATE_WAL_LOG: u8 = 0x10;
/// `XLOG_DBASE_DROP`
pub const DROP: u8 = 0x20;
/// `XLOG_TBLSPC_CREATE`
pub const TABLESPACE_CREATE: u8 = 0x00;
/// `XLOG_TBLSPC_DROP`
pub const TABLESPACE_DROP: u8 = 0x10;
/// `XLOG_RELMAP_UPDATE`
pub const RELATION_MAP_UPDATE: u8 = 0x00;

/// Reads a database OID, then its tablespace's.
fn database_key(reader: &mut Reader<'_>) -> Option<DatabaseKey> {
    let database = reader.u32()?;
    Some(DatabaseKey { tablespace: reader.u32()?, database })
}

/// `xl_dbase_create_file_copy_rec`: one for each tablespace the template uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateDatabaseFileCopy {
    /// The new database, in the tablespace whose folder is made.
    pub to: DatabaseKey,
    /// The template, in the tablespace whose folder is copied.
    pub from: DatabaseKey,
}

impl CreateDatabaseFileCopy {
    /// Reads the main data of an `XLOG_DBASE_CREATE_FILE_COPY` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<CreateDatabaseFileCopy, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let to = database_key(&mut reader)?;
            Some(CreateDatabaseFileCopy { to, from: database_key(&mut reader)? })
        };
        parsed(record, read(), "database copy is cut short")
    }
}

/// `xl_dbase_create_wal_log_rec`: the folder appears; its files follow as redo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateDatabaseWalLog {
    /// The new database, in the tablespace whose folder is made.
    pub database: DatabaseKey,
}

impl CreateDatabaseWalLog {
    /// Reads the main data of an `XLOG_DBASE_CREATE_WAL_LOG` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<CreateDatabaseWalLog, RecordError> {
        let database = database_key(&mut Reader::new(record.main_data));
        let create = database.map(|database| CreateDatabaseWalLog { database });
        parsed(record, create, "database creation is cut short")
    }
}

/// `xl_dbase_drop_rec`.
#[derive(Clone, Copy, Debug)]
pub struct DropDatabase<'a> {
    /// OID of the database that goes.
    pub database: u32,
    tablespaces: &'a [u8],
}

impl<'a> DropDatabase<'a> {
    /// Reads the main data of an `XLOG_DBASE_DROP` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<DropDatabase<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || Some(DropDatabase { database: reader.u32()?, tablespaces: reader.counted(4)? });
        parsed(record, read(), "database drop is cut short")
    }

    /// Its folder in each tablespace it has one in.
    pub fn folders(&self) -> impl Iterator<Item = DatabaseKey> + 'a {
        let database = self.database;
        u32s(self.tablespaces).map(move |tablespace| DatabaseKey { tablespace, database })
    }
}

/// `xl_tblspc_create_rec`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateTablespace<'a> {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// The path `CREATE TABLESPACE` gave, without the terminating zero.
    pub path: &'a [u8],
}

impl<'a> CreateTablespace<'a> {
    /// Reads the main data of an `XLOG_TBLSPC_CREATE` record.
    ///
    /// # Errors
    /// When the data is too short or the path has no end.
    pub fn parse(record: &Record<'a>) -> Result<CreateTablespace<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let tablespace = reader.u32()?;
            let length = reader.rest().iter().position(|&byte| byte == 0)?;
            Some(CreateTablespace { tablespace, path: reader.take(length)? })
        };
        parsed(record, read(), "tablespace creation is malformed")
    }
}

/// `xl_tblspc_drop_rec`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropTablespace {
    /// OID of the tablespace.
    pub tablespace: u32,
}

impl DropTablespace {
    /// Reads the main data of an `XLOG_TBLSPC_DROP` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<DropTablespace, RecordError> {
        let tablespace = Reader::new(record.main_data).u32();
        parsed(
            record,
            tablespace.map(|tablespace| DropTablespace { tablespace }),
            "tablespace drop is cut short",
        )
    }
}

/// `xl_relmap_update`: the whole map file, checksum and all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationMapUpdate<'a> {
    /// The database whose map it is; database 0 for the shared relations.
    pub database: DatabaseKey,
    /// The new content (`RelMapFile`).
    pub map: &'a [u8],
}

impl<'a> RelationMapUpdate<'a> {
    /// Reads the main data of an `XLOG_RELMAP_UPDATE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<RelationMapUpdate<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read =
            || Some(RelationMapUpdate { database: database_key(&mut reader)?, map: reader.counted(1)? });
        parsed(record, read(), "relation map update is cut short")
    }
}
