//! The redo engine as the store uses it.

use borealis_redo::RedoError;
use borealis_redo::counters::Counters;
use borealis_types::{MetaKey, PageBytes, PageKey, Placement};
use borealis_wal::{Effect, EffectError, Record, RecordError, ResourceManager};

/// Says what records change, and applies them. [`PostgresRedo`] is PostgreSQL's; tests bring simpler records
/// of their own.
pub trait RedoEngine: Send + Sync {
    /// Verifies the checksum of a record's bytes.
    ///
    /// # Errors
    /// When the checksum does not match.
    fn verify(&self, bytes: &[u8], start: borealis_types::Lsn) -> Result<(), RecordError>;

    /// Appends the record's effects, in redo order.
    ///
    /// # Errors
    /// When the record's effects are unknown.
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

    /// Begins to apply a run of records to the counters. Every record of the meta group changes some of them.
    fn counters(&self, value: Option<Vec<u8>>) -> Box<dyn CountersReplay + '_>;
}

/// The counters while a run of records is applied to them.
pub trait CountersReplay {
    /// Applies the next record, as [`RedoEngine::apply_meta`] does.
    ///
    /// # Errors
    /// When it cannot be applied; the run is of no use then.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), RedoError>;

    /// The encoded counters after the run.
    fn finish(self: Box<Self>) -> Option<Vec<u8>>;
}

/// The redo engine, and which group owns each page.
#[derive(Clone, Copy)]
pub(crate) struct RedoContext<'a> {
    pub redo: &'a dyn RedoEngine,
    pub placement: Placement,
}

/// PostgreSQL's redo, from `borealis-wal` and `borealis-redo`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostgresRedo;

impl RedoEngine for PostgresRedo {
    fn verify(&self, bytes: &[u8], start: borealis_types::Lsn) -> Result<(), RecordError> {
        borealis_wal::verify_checksum(bytes, start)
    }

    fn effects(&self, record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
        borealis_wal::effects(record, out)
    }

    fn apply_page(&self, record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
        #[cfg(feature = "broken-redo")]
        crate::broken_redo::panic_if_asked(key);
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

    fn counters(&self, value: Option<Vec<u8>>) -> Box<dyn CountersReplay + '_> {
        Box::new(PostgresCounters::Encoded(value))
    }
}

/// Decoded when the first record is applied, encoded again at the end of the run: once for a run, not once
/// for a record.
enum PostgresCounters {
    Encoded(Option<Vec<u8>>),
    Decoded(Counters),
}

impl CountersReplay for PostgresCounters {
    fn apply(&mut self, record: &Record<'_>) -> Result<(), RedoError> {
        if let PostgresCounters::Decoded(counters) = self
            && record.resource_manager != ResourceManager::Borealis
        {
            return counters.apply(record);
        }
        // Borealis's own records bring encoded values; `apply_meta` also refuses a value that does not
        // decode.
        let before = std::mem::replace(self, PostgresCounters::Encoded(None));
        let after = borealis_redo::apply_meta(record, &MetaKey::Counters, before.encoded())?;
        *self = match after.as_deref().map(Counters::decode) {
            Some(Some(counters)) => PostgresCounters::Decoded(counters),
            _ => PostgresCounters::Encoded(after),
        };
        Ok(())
    }

    fn finish(self: Box<Self>) -> Option<Vec<u8>> {
        self.encoded()
    }
}

impl PostgresCounters {
    fn encoded(self) -> Option<Vec<u8>> {
        match self {
            PostgresCounters::Encoded(value) => value,
            PostgresCounters::Decoded(counters) => Some(counters.encode()),
        }
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::{Lsn, RecordSpan, ServerVersion};
    use borealis_wal::encode::RecordBuilder;
    use borealis_wal::native::Native;

    use super::*;

    /// Records one after another, from these bytes.
    fn records(all: &[Vec<u8>]) -> impl Iterator<Item = Record<'_>> {
        let mut start = Lsn(1 << 24);
        all.iter().map(move |bytes| {
            let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
            start = Lsn(span.end.0 + 24);
            Record::parse(ServerVersion::NEWEST_TESTED, span, bytes).unwrap()
        })
    }

    #[test]
    fn a_run_of_records_makes_the_same_counters_as_one_after_another() {
        let commit =
            |xid| RecordBuilder::new(ResourceManager::Transaction, 0).xid(xid).main_data(&[0; 8]).finish();
        let stored = Counters { next_full_xid: 5000, next_oid: 77, ..Counters::default() }.encode();
        let put = Native::PutMeta { key: MetaKey::Counters, value: Some(&stored[..]) }.encode(Lsn::ZERO);
        let all = [commit(700), commit(701), put, commit(6000), commit(5999)];
        let redo = PostgresRedo;
        let (mut run, mut value) = (redo.counters(None), None);
        for record in records(&all) {
            run.apply(&record).unwrap();
            value = redo.apply_meta(&record, &MetaKey::Counters, value).unwrap();
        }
        let after = run.finish();
        assert_eq!(after, value);
        assert_eq!(Counters::decode(&after.unwrap()).unwrap().next_full_xid, 6001);
    }

    #[test]
    fn stored_counters_that_do_not_decode_stop_a_run() {
        let commit = RecordBuilder::new(ResourceManager::Transaction, 0).xid(9).main_data(&[0; 8]).finish();
        let record = records(std::slice::from_ref(&commit)).next().unwrap();
        assert!(PostgresRedo.counters(Some(vec![1, 2, 3])).apply(&record).is_err());
    }
}
