//! What of one group nobody can need any more.

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::inventory::Stored;
use borealis_archive::manifest::{Entry, for_each_entry};
use borealis_archive::name::{ManifestName, Name, PagesName};
use borealis_archive::retention::{Keep, Reach, bases_for};
use borealis_types::{GroupId, Lsn};

use super::{Deleted, RetentionError, Situation};
use crate::listing::{manifests_above, pages_of};
use crate::store::ObjectStoreError;

/// Snapshots that are tried, of those that a restore to the window's beginning may begin with.
const BASES_TRIED: usize = 4;

/// A group of which something may go.
pub(super) struct GroupSweep<'a> {
    situation: &'a Situation<'a>,
    group: GroupId,
}

/// Whether what must stay is all there, or why that is not known.
type Seen<T> = Result<T, String>;

impl<'a> GroupSweep<'a> {
    pub(super) fn new(situation: &'a Situation<'a>, group: GroupId) -> GroupSweep<'a> {
        GroupSweep { situation, group }
    }

    /// Deletes what is superfluous of the group, or says why it stays whole.
    pub(super) fn run(&self, thorough: bool, deleted: &mut Deleted) -> Result<Seen<()>, RetentionError> {
        let Situation { store, volume, ref window, .. } = *self.situation;
        let manifests = manifests_above(store, volume, self.group, Lsn::ZERO)?;
        let pages = pages_of(store, volume, self.group)?;
        let keep = match self.keep(&manifests, &pages)? {
            Ok(Some(keep)) => keep,
            // Everything since the group's first record is needed.
            Ok(None) => return Ok(Ok(())),
            Err(why) => return Ok(Err(why)),
        };
        let (stays, goes): (Vec<_>, Vec<_>) = manifests
            .into_iter()
            .partition(|(manifest, stored)| keep.needs_manifest(manifest) || !window.is_settled(*stored));
        let goes: Vec<(Name, Stored)> =
            goes.into_iter().map(|(manifest, stored)| (Name::Manifest(manifest), stored)).collect();
        self.situation.delete(&goes, deleted)?;
        if thorough || !goes.is_empty() {
            let can_go = |(name, stored): &(PagesName, Stored)| {
                window.is_settled(*stored) && !keep.awaits_manifest(name)
            };
            let mut unnamed: BTreeMap<PagesName, Stored> = pages.into_iter().filter(can_go).collect();
            for (manifest, _) in stays {
                let Some(named) = self.pages_of(&manifest)? else {
                    tracing::warn!(
                        object = Name::Manifest(manifest).key(volume),
                        "a manifest cannot be read: page objects of its group stay"
                    );
                    unnamed.clear();
                    break;
                };
                unnamed.retain(|pages, _| !named.contains(pages));
            }
            let unnamed: Vec<(Name, Stored)> =
                unnamed.into_iter().map(|(pages, stored)| (Name::Pages(pages), stored)).collect();
            self.situation.delete(&unnamed, deleted)?;
        }
        self.delete_redo(&keep, deleted)?;
        Ok(Ok(()))
    }

    /// Page objects that a manifest names; `None` if it is damaged.
    fn pages_of(&self, manifest: &ManifestName) -> Result<Option<BTreeSet<PagesName>>, ObjectStoreError> {
        let Situation { store, volume, sealing, .. } = *self.situation;
        let bytes = match store.get(&Name::Manifest(*manifest).key(volume)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_of_object() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut named = BTreeSet::new();
        let read = for_each_entry(&bytes, volume, manifest, sealing, |entry| {
            if let Entry::Object(pages) = entry {
                named.insert(pages);
            }
        });
        Ok(read.is_ok().then_some(named))
    }

    /// What must stay, if all of it was seen to be there; nothing can go if there is `None`.
    fn keep(
        &self,
        manifests: &BTreeMap<ManifestName, Stored>,
        pages: &BTreeMap<PagesName, Stored>,
    ) -> Result<Seen<Option<Keep>>, ObjectStoreError> {
        let Situation { ref window, start, ref history, ref settings, .. } = *self.situation;
        // Until it has been there for a while, the one before it stays.
        let settled = manifests.iter().filter(|(_, stored)| window.is_settled(**stored));
        let bases = bases_for(settled.map(|(name, _)| *name), history, start);
        // The newest one is for those who restore; should an object of it turn out to be damaged, they take the one before.
        let mut why = Ok(None);
        let mut floor = None;
        for base in bases.into_iter().skip(1).take(BASES_TRIED) {
            if !self.is_whole(&base, pages)? {
                why = Err(format!("the snapshot of {} is damaged", base.lsn));
            } else if !self.reaches(Some(&base), start)? {
                why = Err(format!(
                    "{start}, where the retention's window begins, cannot be restored from {}",
                    base.lsn
                ));
            } else {
                floor = Some(base);
                break;
            }
        }
        let Some(floor) = floor else { return Ok(why) };
        let mut keep = Keep { floor, named: Vec::new() };
        for named in settings.named.iter().filter(|named| named.lsn < floor.lsn) {
            let base = bases_for(manifests.keys().copied(), history, named.lsn).first().copied();
            let is_whole = match &base {
                Some(base) => self.is_whole(base, pages)?,
                None => true,
            };
            if !is_whole || !self.reaches(base.as_ref(), named.lsn)? {
                return Ok(Err(format!(
                    "snapshot {} of {} is not seen to be restorable",
                    named.name, named.lsn
                )));
            }
            keep.named.push((base, named.lsn));
        }
        Ok(Ok(Some(keep)))
    }

    /// Whether a manifest can be read, and all that it names is there.
    fn is_whole(
        &self,
        manifest: &ManifestName,
        pages: &BTreeMap<PagesName, Stored>,
    ) -> Result<bool, ObjectStoreError> {
        let named = self.pages_of(manifest)?;
        Ok(named.is_some_and(|named| named.iter().all(|name| pages.contains_key(name))))
    }

    /// Whether the group can be restored to a point from a snapshot on.
    fn reaches(&self, base: Option<&ManifestName>, point: Lsn) -> Result<bool, ObjectStoreError> {
        let Situation { store, volume, ref marks, ref history, .. } = *self.situation;
        let mut reach = Reach::from(base);
        // With the object that ends where the snapshot does: it may say how far the group is complete.
        let from = Lsn(base.map_or(0, |base| base.tail_end.0.saturating_sub(1)));
        let (prefix, mut after) = Name::redo_above(volume, self.group, from);
        loop {
            if reach.has(point, self.group, marks.values().flatten()) {
                return Ok(true);
            }
            let part = store.list(&prefix, Some(&after))?;
            for object in &part.objects {
                if let Ok((_, Name::Redo(redo))) = Name::of_key(&object.key) {
                    reach.take(&redo, history);
                }
            }
            match part.objects.last() {
                Some(last) if part.more => after.clone_from(&last.key),
                _ => return Ok(reach.has(point, self.group, marks.values().flatten())),
            }
        }
    }

    fn delete_redo(&self, keep: &Keep, deleted: &mut Deleted) -> Result<(), RetentionError> {
        let Situation { store, volume, ref window, ref history, .. } = *self.situation;
        let (prefix, mut after) = Name::redo_above(volume, self.group, Lsn::ZERO);
        loop {
            let part = store.list(&prefix, Some(&after))?;
            let named = part.objects.iter().filter_map(|object| {
                let stored = Stored { bytes: object.bytes, modified_ms: object.modified_ms };
                match Name::of_key(&object.key) {
                    Ok((_, Name::Redo(redo))) => Some((redo, stored)),
                    _ => None,
                }
            });
            let listed: Vec<_> = named.collect();
            let goes = listed
                .iter()
                .filter(|(redo, stored)| window.is_settled(*stored) && !keep.needs_redo(redo, history));
            let goes: Vec<(Name, Stored)> = goes
                .map(|(redo, stored)| {
                    keep.assert_superfluous(redo);
                    (Name::Redo(*redo), *stored)
                })
                .collect();
            self.situation.delete(&goes, deleted)?;
            let is_over = listed.iter().any(|(redo, _)| redo.last_end >= keep.floor.tail_end);
            match part.objects.last() {
                Some(last) if part.more && !is_over => after.clone_from(&last.key),
                _ => return Ok(()),
            }
        }
    }
}
