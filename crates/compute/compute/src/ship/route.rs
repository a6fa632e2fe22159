//! Which protection groups get a record.

use borealis_types::{GroupSet, META_GROUP, Placement, invariant};
use borealis_wal::layout::{FIRST_NORMAL_XID, transaction};
use borealis_wal::stream::CutRecord;
use borealis_wal::{Effect, EffectError, Record, ResourceManager, effects, highest_xid, xid_precedes};

/// Decides for every record where it goes.
///
/// Invariant: every record goes to at least one group; a record that uses a transaction id nobody used
/// before also goes to the meta group, so that the counters there never fall behind the ids in use.
#[derive(Debug)]
pub struct Router {
    placement: Placement,
    next_xid: u32,
    effects: Vec<Effect>,
}

impl Router {
    /// A router for a stream whose counters stand at `next_xid`.
    #[must_use]
    pub fn new(placement: Placement, next_xid: u32) -> Router {
        Router { placement, next_xid, effects: Vec::with_capacity(64) }
    }

    /// The groups of `record`. Its effects can be read from [`Router::last_effects`] until the next call.
    ///
    /// # Errors
    /// When the record's effects are not known: the stream must stop here (invariant 9).
    pub fn route(&mut self, record: &Record<'_>) -> Result<GroupSet, EffectError> {
        self.effects.clear();
        effects(record, &mut self.effects)?;
        let mut groups = GroupSet::EMPTY;
        for effect in &self.effects {
            groups = groups.union(effect.groups(self.placement));
        }
        if let Some(xid) = highest_xid(record)
            && !xid_precedes(xid, self.next_xid)
        {
            self.next_xid = successor(xid);
            groups = groups.with(META_GROUP);
        }
        if groups.is_empty() {
            groups = groups.with(META_GROUP);
        }
        invariant!("every-record-has-a-group", !groups.is_empty(), "the record at {}", record.span.start);
        Ok(groups)
    }

    /// The groups of all pieces of a record that is cut, by what its header says: the first piece goes before the rest of
    /// the record is known. They are at least those of [`Router::route`].
    ///
    /// # Errors
    /// When the record's effects cannot be known.
    pub fn route_cut(&mut self, record: &CutRecord) -> Result<GroupSet, EffectError> {
        let CutRecord { start, info, resource_manager, .. } = *record;
        if let ResourceManager::Other(number) = resource_manager {
            return Err(EffectError::Custom { start, number, info });
        }
        if record.xid >= FIRST_NORMAL_XID && !xid_precedes(record.xid, self.next_xid) {
            self.next_xid = successor(record.xid);
        }
        // Others are few: ends of transactions with very many subtransactions or dropped relations above all.
        let groups = if body_matters(record) { self.placement.all() } else { GroupSet::EMPTY };
        Ok(groups.with(META_GROUP))
    }

    /// What the record routed last changes.
    #[must_use]
    pub fn last_effects(&self) -> &[Effect] {
        &self.effects
    }
}

/// Whether what a record that is cut changes outside of the meta group, or which transactions it ends, stands in its body:
/// whoever asks then needs all of it.
#[must_use]
pub fn body_matters(record: &CutRecord) -> bool {
    match record.resource_manager {
        ResourceManager::LogicalMessage => false,
        ResourceManager::Transaction => record.info & transaction::OPERATION_MASK != transaction::PREPARE,
        _ => true,
    }
}

/// The id after `xid`, leaving out the ones with a special meaning.
fn successor(xid: u32) -> u32 {
    match xid.wrapping_add(1) {
        special if special < FIRST_NORMAL_XID => FIRST_NORMAL_XID,
        next => next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{Lsn, RecordSpan, ServerVersion};
    use borealis_wal::ResourceManager;
    use borealis_wal::encode::RecordBuilder;

    #[test]
    fn an_extensions_record_goes_nowhere() {
        let placement = Placement::new(4).expect("a placement");
        let bytes = RecordBuilder::new(ResourceManager::Other(128), 0).xid(900).main_data(b"theirs").finish();
        let span = RecordSpan { start: Lsn(0x100_0028), end: Lsn(0x100_0060) };
        let record = Record::parse(ServerVersion::NEWEST_TESTED, span, &bytes).expect("a well-formed record");
        let error = Router::new(placement, 100).route(&record).expect_err("it cannot be stored");
        assert!(matches!(error, EffectError::Custom { number: 128, .. }), "{error:?}");
    }

    #[test]
    fn pieces_go_where_the_whole_record_may_have_to() {
        let placement = Placement::new(4).expect("a placement");
        let mut router = Router::new(placement, 100);
        let mut of = |resource_manager, info| {
            let record = CutRecord { start: Lsn(80), total_bytes: 2 << 20, resource_manager, info, xid: 99 };
            router.route_cut(&record)
        };
        let meta = GroupSet::EMPTY.with(META_GROUP);
        assert_eq!(of(ResourceManager::LogicalMessage, 0), Ok(meta));
        assert_eq!(of(ResourceManager::Transaction, transaction::PREPARE), Ok(meta));
        assert_eq!(of(ResourceManager::Transaction, transaction::COMMIT), Ok(placement.all()));
        assert!(of(ResourceManager::Other(128), 0).is_err());
    }

    #[test]
    fn the_circle_of_ids_leaves_out_the_special_ones() {
        assert_eq!(successor(u32::MAX), FIRST_NORMAL_XID);
        assert_eq!(successor(100), 101);
    }
}
