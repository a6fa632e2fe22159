//! Looking at what the store has of a group: what others made, and what was there before this process began.

use borealis_archive::name::{Name, RedoName};
use borealis_archive::restorable::{follow, newest_snapshot};
use borealis_types::{GroupId, Lsn};

use super::{Base, Now, Uploader};
use crate::listing::manifests_above;
use crate::store::{ObjectStore, ObjectStoreError, list_names};

impl Uploader {
    /// Looks at what the store has of a group.
    pub(super) fn look(
        &mut self,
        group: GroupId,
        now: Now,
        store: &dyn ObjectStore,
    ) -> Result<(), ObjectStoreError> {
        let state = self.groups.entry(group).or_default();
        let is_first = state.looked_ms.is_none();
        let (uploaded, base) = if is_first { (Lsn::ZERO, None) } else { (state.uploaded, state.base) };
        let has_gap = state.has_gap || self.status.gaps.iter().any(|gap| gap.group == group);
        let mut redo = if is_first { Vec::new() } else { self.list_redo(group, uploaded, store)? };
        let goes_on = follow(redo.iter().map(|(redo, _)| *redo), &self.history, uploaded) > uploaded;
        // Snapshots matter where redo does not go on, and that is seldom: the question is spared.
        let newer = if goes_on && !has_gap { None } else { self.newer_snapshot(group, base, store)? };
        let is_changed = is_first || newer.is_some();
        let base = newer.or(base);
        let tail_end = base.map_or(Lsn::ZERO, |base| base.name.tail_end);
        if is_changed {
            redo = self.list_redo(group, tail_end, store)?;
        }
        let end = follow(redo.iter().map(|(redo, _)| *redo), &self.history, tail_end.max(uploaded));
        let counts = |redo: &RedoName| redo.last_end <= end && (is_changed || redo.last_end > uploaded);
        let bytes: u64 = redo
            .iter()
            .filter(|(redo, _)| counts(redo))
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
        // Of what no recovery kept nothing follows.
        let is_kept = |redo: &RedoName| follow([*redo], &self.history, redo.previous_end) > redo.previous_end;
        let has_gap = redo.iter().any(|(redo, _)| redo.previous_end > end && is_kept(redo));
        let state = self.groups.entry(group).or_default();
        state.redo_bytes = if is_changed { bytes } else { state.redo_bytes.saturating_add(bytes) };
        (state.base, state.has_gap) = (base, has_gap);
        let newest = redo.iter().map(|(redo, _)| redo).filter(|redo| redo.last_end > state.uploaded);
        let newest = newest.max_by_key(|redo| redo.last_end);
        state.newest_by = newest.map(|redo| redo.node).or(state.newest_by);
        if end > state.uploaded {
            state.moved_ms = Some(now.steady_ms);
        }
        if end > state.uploaded || is_first {
            state.uploaded = end;
            state.stalled_since_ms = (state.durable.group_tail > end).then_some(now.steady_ms);
        }
        state.looked_ms = Some(now.steady_ms);
        self.close_gaps(group);
        Ok(())
    }

    /// Names of a group's redo objects whose last record ends above `from`, and how long each is.
    fn list_redo(
        &self,
        group: GroupId,
        from: Lsn,
        store: &dyn ObjectStore,
    ) -> Result<Vec<(RedoName, u64)>, ObjectStoreError> {
        let (prefix, after) = Name::redo_above(self.options.volume, group, from);
        let names = list_names(store, &prefix, Some(after))?.into_iter();
        let redo = names.filter_map(|(name, stored)| match name {
            Name::Redo(redo) => Some((redo, stored.bytes)),
            _ => None,
        });
        Ok(redo.collect())
    }

    /// The newest snapshot, if it is newer than the one that is known.
    pub(super) fn newer_snapshot(
        &self,
        group: GroupId,
        known: Option<Base>,
        store: &dyn ObjectStore,
    ) -> Result<Option<Base>, ObjectStoreError> {
        let above = known.map_or(Lsn::ZERO, |base| base.name.lsn);
        let listed = manifests_above(store, self.options.volume, group, above)?.into_iter();
        let manifests = listed.map(|(name, stored)| Base { name, made_ms: stored.modified_ms });
        let manifests: Vec<Base> = manifests.collect();
        let newest = newest_snapshot(manifests.iter().map(|base| base.name), &self.history);
        Ok(manifests.into_iter().find(|base| Some(base.name) == newest))
    }

    /// Forgets what was missing before the newest snapshot: nobody needs it any more.
    pub(super) fn close_gaps(&mut self, group: GroupId) {
        let base = self.groups.get(&group).and_then(|state| state.base);
        let is_open = |through: Lsn| base.is_none_or(|base| through > base.name.tail_end);
        self.status.gaps.retain(|gap| gap.group != group || is_open(gap.through));
    }
}
