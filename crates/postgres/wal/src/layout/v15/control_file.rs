//! `global/pg_control` of version 15.
//!
//! Layout: `ControlFileData` in `src/include/catalog/pg_control.h`, as the x86-64 and AArch64 C interfaces lay it
//! out. The file is padded with zeros to 8 KiB, so that every version's reader can tell that it is another's.

use borealis_types::{Lsn, PostgresVersion, invariant};

use super::checkpoint::CheckPointRecord;
use super::xlog::ParameterChange;

/// `PG_CONTROL_FILE_SIZE`
pub const FILE_BYTES: usize = 8192;

/// `PG_CONTROL_VERSION`
pub const CONTROL_VERSION: u32 = 1300;

/// `crc`: of everything before it.
pub const CRC_OFFSET: usize = 288;

/// Bytes that are not a `pg_control` this can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// The file is shorter than its fields.
    #[error("pg_control is cut short: {0} bytes")]
    TooShort(usize),
    /// The file is of another major version.
    #[error("pg_control has version {0}; PostgreSQL {version} writes {CONTROL_VERSION}", version = PostgresVersion::V15)]
    Version(u32),
    /// The fields do not have the checksum they say.
    #[error("pg_control fails its checksum")]
    Checksum,
    /// A field has a value that PostgreSQL never writes.
    #[error("pg_control has an impossible cluster state {0}")]
    State(u32),
}

/// `DBState`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ClusterState {
    /// `DB_STARTUP`
    Startup = 0,
    /// `DB_SHUTDOWNED`
    ShutDown = 1,
    /// `DB_SHUTDOWNED_IN_RECOVERY`
    ShutDownInRecovery = 2,
    /// `DB_SHUTDOWNING`
    ShuttingDown = 3,
    /// `DB_IN_CRASH_RECOVERY`
    InCrashRecovery = 4,
    /// `DB_IN_ARCHIVE_RECOVERY`
    InArchiveRecovery = 5,
    /// `DB_IN_PRODUCTION`
    InProduction = 6,
}

impl ClusterState {
    const ALL: [ClusterState; 7] = [
        ClusterState::Startup,
        ClusterState::ShutDown,
        ClusterState::ShutDownInRecovery,
        ClusterState::ShuttingDown,
        ClusterState::InCrashRecovery,
        ClusterState::InArchiveRecovery,
        ClusterState::InProduction,
    ];
}

/// How a field is stored.
trait Field: Sized {
    fn read(bytes: &[u8]) -> Option<Self>;
    fn write(&self, bytes: &mut [u8]);
}

macro_rules! number_field {
    ($($number:ty),*) => { $(
        impl Field for $number {
            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.first_chunk().map(|chunk| <$number>::from_le_bytes(*chunk))
            }
            fn write(&self, bytes: &mut [u8]) {
                bytes[..size_of::<$number>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )* };
}
number_field!(u32, i32, u64, i64, f64);

impl Field for bool {
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first().map(|byte| *byte != 0)
    }
    fn write(&self, bytes: &mut [u8]) {
        bytes[0] = u8::from(*self);
    }
}

impl Field for Lsn {
    fn read(bytes: &[u8]) -> Option<Self> {
        u64::read(bytes).map(Lsn)
    }
    fn write(&self, bytes: &mut [u8]) {
        self.0.write(bytes);
    }
}

impl Field for [u8; 32] {
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied()
    }
    fn write(&self, bytes: &mut [u8]) {
        bytes[..32].copy_from_slice(self);
    }
}

impl Field for CheckPointRecord {
    fn read(bytes: &[u8]) -> Option<Self> {
        CheckPointRecord::decode(bytes)
    }
    fn write(&self, bytes: &mut [u8]) {
        bytes[..CheckPointRecord::BYTES].copy_from_slice(&self.encode());
    }
}

impl Field for ClusterState {
    fn read(bytes: &[u8]) -> Option<Self> {
        let number = u32::read(bytes)?;
        ClusterState::ALL.into_iter().find(|state| *state as u32 == number)
    }
    fn write(&self, bytes: &mut [u8]) {
        (*self as u32).write(bytes);
    }
}

/// Declares the struct and, from the offsets of its fields, how to read and write it.
macro_rules! control_file {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $offset:literal,)*) => {
        /// `ControlFileData`, without the checksum.
        #[derive(Clone, PartialEq, Debug)]
        pub struct ControlFile {
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl ControlFile {
            /// The fields in bytes that are long enough for all of them; `None` if one has no valid value.
            fn read_fields(bytes: &[u8]) -> Option<ControlFile> {
                Some(ControlFile { $($name: <$kind as Field>::read(bytes.get($offset..)?)?,)* })
            }

            fn write_fields(&self, bytes: &mut [u8]) {
                $(self.$name.write(&mut bytes[$offset..]);)*
            }
        }
    };
}

control_file! {
    /// Random number of the `initdb`; every WAL segment has it too.
    system_identifier: u64 = 0,
    /// `pg_control_version`: always [`CONTROL_VERSION`].
    control_version: u32 = 8,
    /// `catalog_version_no`: must be that of the server's binary.
    catalog_version: u32 = 12,
    /// How the cluster was left.
    state: ClusterState = 16,
    /// When the file was last written, in seconds since 1970.
    time: i64 = 24,
    /// Start of the last checkpoint record.
    checkpoint: Lsn = 32,
    /// The body of the record at `checkpoint`.
    checkpoint_copy: CheckPointRecord = 40,
    /// `unloggedLSN`: the counter that stands for LSNs on pages of unlogged relations.
    unlogged_lsn: Lsn = 128,
    /// `minRecoveryPoint`: zero unless in archive recovery.
    minimum_recovery_point: Lsn = 136,
    /// `minRecoveryPointTLI`
    minimum_recovery_point_timeline: u32 = 144,
    /// `backupStartPoint`: zero unless recovering from a base backup.
    backup_start_point: Lsn = 152,
    /// `backupEndPoint`
    backup_end_point: Lsn = 160,
    /// `backupEndRequired`
    backup_end_required: bool = 168,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    wal_level: i32 = 172,
    /// `wal_log_hints`
    wal_log_hints: bool = 176,
    /// `max_connections`
    max_connections: i32 = 180,
    /// `max_worker_processes`
    max_worker_processes: i32 = 184,
    /// `max_wal_senders`
    max_wal_senders: i32 = 188,
    /// `max_prepared_transactions`
    max_prepared_transactions: i32 = 192,
    /// `max_locks_per_transaction`
    max_locks_per_transaction: i32 = 196,
    /// `track_commit_timestamp`
    track_commit_timestamp: bool = 200,
    /// `maxAlign`
    max_align: u32 = 204,
    /// `floatFormat`: 1234567.0, to tell floating-point formats apart.
    float_format: f64 = 208,
    /// `blcksz`: size of a page in bytes.
    block_bytes: u32 = 216,
    /// `relseg_size`: blocks of one relation segment file.
    relation_segment_blocks: u32 = 220,
    /// `xlog_blcksz`: size of a WAL page in bytes.
    wal_block_bytes: u32 = 224,
    /// `xlog_seg_size`: size of a WAL segment file in bytes.
    wal_segment_bytes: u32 = 228,
    /// `nameDataLen`
    name_bytes: u32 = 232,
    /// `indexMaxKeys`
    index_keys_max: u32 = 236,
    /// `toast_max_chunk_size`
    toast_chunk_bytes: u32 = 240,
    /// `loblksize`: size of a large object chunk in bytes.
    large_object_chunk_bytes: u32 = 244,
    /// `float8ByVal`
    float8_by_value: bool = 248,
    /// Zero if data pages have no checksums.
    data_checksum_version: u32 = 252,
    /// `mock_authentication_nonce`
    mock_authentication_nonce: [u8; 32] = 256,
}

impl ControlFile {
    /// Reads a `pg_control` file.
    ///
    /// # Errors
    /// When the file is cut short, of another version, or damaged.
    pub fn decode(file: &[u8]) -> Result<ControlFile, ControlFileError> {
        let too_short = ControlFileError::TooShort(file.len());
        let checksum = file.get(CRC_OFFSET..).and_then(u32::read).ok_or(too_short.clone())?;
        let covered = file.get(..CRC_OFFSET).ok_or(too_short.clone())?;
        let version = covered.get(8..).and_then(u32::read).ok_or(too_short.clone())?;
        if version != CONTROL_VERSION {
            return Err(ControlFileError::Version(version));
        }
        if crc32c::crc32c(covered) != checksum {
            return Err(ControlFileError::Checksum);
        }
        let state = covered.get(16..).and_then(u32::read).ok_or(too_short)?;
        ControlFile::read_fields(covered).ok_or(ControlFileError::State(state))
    }

    /// The whole file, checksum included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut file = vec![0; FILE_BYTES];
        self.write_fields(&mut file);
        let checksum = crc32c::crc32c(&file[..CRC_OFFSET]);
        checksum.write(&mut file[CRC_OFFSET..]);
        assert_decodes(&file);
        file
    }

    /// The settings that a standby, or the next start, has to know.
    #[must_use]
    pub fn parameters(&self) -> ParameterChange {
        ParameterChange {
            wal_level: self.wal_level,
            wal_log_hints: self.wal_log_hints,
            max_connections: self.max_connections,
            max_worker_processes: self.max_worker_processes,
            max_wal_senders: self.max_wal_senders,
            max_prepared_transactions: self.max_prepared_transactions,
            max_locks_per_transaction: self.max_locks_per_transaction,
            track_commit_timestamp: self.track_commit_timestamp,
        }
    }

    /// The control file of the same cluster after a shutdown whose checkpoint record starts at
    /// `checkpoint.redo`: a server that finds it replays nothing.
    #[must_use]
    pub fn shut_down_at(&self, checkpoint: CheckPointRecord, parameters: &ParameterChange) -> ControlFile {
        ControlFile {
            state: ClusterState::ShutDown,
            time: checkpoint.time,
            checkpoint: checkpoint.redo,
            checkpoint_copy: checkpoint,
            minimum_recovery_point: Lsn::ZERO,
            minimum_recovery_point_timeline: 0,
            backup_start_point: Lsn::ZERO,
            backup_end_point: Lsn::ZERO,
            backup_end_required: false,
            wal_level: parameters.wal_level,
            wal_log_hints: parameters.wal_log_hints,
            max_connections: parameters.max_connections,
            max_worker_processes: parameters.max_worker_processes,
            max_wal_senders: parameters.max_wal_senders,
            max_prepared_transactions: parameters.max_prepared_transactions,
            max_locks_per_transaction: parameters.max_locks_per_transaction,
            track_commit_timestamp: parameters.track_commit_timestamp,
            ..self.clone()
        }
    }
}

/// The server refuses to start from a control file that does not decode, and the volume would keep it.
fn assert_decodes(file: &[u8]) {
    let decoded = ControlFile::decode(file);
    invariant!("encoded-control-file-decodes", decoded.is_ok(), "{:?}", decoded.err());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> ControlFile {
        let mut bytes: Vec<u8> = (0..CRC_OFFSET).map(|index| index as u8).collect();
        bytes[8..12].copy_from_slice(&CONTROL_VERSION.to_le_bytes());
        bytes[16..20].copy_from_slice(&6_u32.to_le_bytes());
        ControlFile::read_fields(&bytes).unwrap()
    }

    #[test]
    fn encode_and_decode_are_inverse() {
        let file = example().encode();
        assert_eq!(file.len(), FILE_BYTES);
        assert_eq!(ControlFile::decode(&file), Ok(example()));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let file = example().encode();
        assert_eq!(ControlFile::decode(&file[..290]), Err(ControlFileError::TooShort(290)));
        for offset in 0..CRC_OFFSET + 4 {
            let mut damaged = file.clone();
            damaged[offset] ^= 1;
            let expected = if (8..12).contains(&offset) {
                ControlFileError::Version(u32::read(&damaged[8..]).unwrap())
            } else {
                ControlFileError::Checksum
            };
            assert_eq!(ControlFile::decode(&damaged), Err(expected), "byte {offset}");
        }
        let mut impossible = file;
        impossible[16] = 9;
        let checksum = crc32c::crc32c(&impossible[..CRC_OFFSET]);
        checksum.write(&mut impossible[CRC_OFFSET..]);
        assert_eq!(ControlFile::decode(&impossible), Err(ControlFileError::State(9)));
    }

    #[test]
    fn a_shut_down_cluster_replays_nothing() {
        let checkpoint = CheckPointRecord { redo: Lsn(0x0300_0028), time: 77, ..CheckPointRecord::default() };
        let parameters = ParameterChange { wal_level: 1, max_connections: 100, ..ParameterChange::default() };
        let file = example().shut_down_at(checkpoint, &parameters);
        assert_eq!((file.state, file.checkpoint), (ClusterState::ShutDown, Lsn(0x0300_0028)));
        assert_eq!(file.checkpoint_copy.redo, file.checkpoint);
        assert_eq!(file.parameters(), parameters);
        assert_eq!(file.system_identifier, example().system_identifier);
    }

    #[test]
    #[should_panic(expected = "invariant encoded-control-file-decodes is broken")]
    fn a_control_file_that_does_not_decode_is_noticed() {
        let mut file = example().encode();
        file[100] ^= 1;
        assert_decodes(&file);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = ControlFile::decode(&bytes);
        }
    }
}
