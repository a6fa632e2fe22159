//! What a store needs to know about redo.

use borealis_redo::RedoError;
use borealis_types::{MetaKey, PageBytes, PageKey};
use borealis_wal::{Effect, EffectError, Record, RecordError};

/// Redo as the store uses it. [`PostgresRules`] is the real one; tests bring simpler records of their own.
pub trait RedoRules: Send + Sync {
    /// Verifies the checksum of a record's bytes.
    ///
    /// # Errors
    /// When they are not what was written.
    fn verify(&self, bytes: &[u8], start: borealis_types::Lsn) -> Result<(), RecordError>;

    /// Appends the record's effects, in redo order.
    ///
    /// # Errors
    /// When they are not known.
    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError>;

    /// Applies the record to a page in place.
    ///
    /// # Errors
    /// When it cannot be applied; the page is then unspecified.
    fn apply_page(&self, record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Result<(), RedoError>;

    /// Applies the record to a small value.
    ///
    /// # Errors
    /// When it cannot be applied.
    fn apply_meta(
        &self,
        record: &Record<'_>,
        key: &MetaKey,
        value: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, RedoError>;
}

/// PostgreSQL's redo, from `borealis-wal` and `borealis-redo`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostgresRules;

impl RedoRules for PostgresRules {
    fn verify(&self, bytes: &[u8], start: borealis_types::Lsn) -> Result<(), RecordError> {
        borealis_wal::verify_checksum(bytes, start)
    }

    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
        borealis_wal::effects(record, out)
    }

    fn apply_page(&self, record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
        borealis_redo::apply_page(record, key, page)
    }

    fn apply_meta(
        &self,
        record: &Record<'_>,
        key: &MetaKey,
        value: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, RedoError> {
        borealis_redo::apply_meta(record, key, value)
    }
}
