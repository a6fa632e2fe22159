//! Snapshots, made beside the redo: of one group at a time, some pages in each step, then the manifest.
//!
//! The node keeps everything of the group as of one durable position while that lasts ([`PageSource::hold`]), under a lease, so that an
//! uploader which ends holds nothing up. An attempt that does not get to its end (the node could not keep it, a page is damaged, the store was
//! away for too long, another node took over) is begun again later, as of a newer position; what it put into the store is compared with, and
//! not put there again. After a restart it is: then nobody names it, and the retention removes it.

use borealis_archive::due::Standing;
use borealis_archive::duty::Duty;
use borealis_archive::inventory::Stored;
use borealis_archive::name::{ManifestName, Name};
use borealis_archive::restorable::newest_snapshot;
use borealis_archive::snapshot::{Extents, PageObject, Snapshot, SnapshotMaker};
use borealis_types::{GroupId, Lsn, PAGE_SIZE};

use super::source::{PageSource, RedoSource, SourceError};
use super::{Base, Now, Options, Trouble, Uploader};
use crate::listing::pages_of;
use crate::pace::RateLimit;
use crate::store::{ErrorKind, ObjectStore, ObjectStoreError};

/// Pages that are read in a step: little enough that the redo of a busy group does not wait for them.
const PAGES_PER_STEP: usize = 256;
/// The lease is renewed this often, in milliseconds.
const RENEW_AFTER_MS: u64 = 8_000;
/// How old what an abandoned attempt put into the store may be to be built on, and how long an attempt may take: the retention takes what nobody
/// names when it is three days old.
const BUILT_ON_FOR_MS: u64 = 24 * 60 * 60 * 1000;

/// The snapshots of all groups.
#[derive(Debug)]
pub(super) struct Snapshots {
    making: Option<Making>,
    /// What attempts put into the store that did not get to their end, of the group that was the last.
    abandoned: Option<(GroupId, Extents)>,
    limit: RateLimit,
}

impl Snapshots {
    pub(super) fn new(options: &Options, now: Now) -> Snapshots {
        let limit = RateLimit::new(options.snapshot_bytes_per_second, now.steady_ms);
        Snapshots { making: None, abandoned: None, limit }
    }
}

/// A snapshot under way.
#[derive(Debug)]
struct Making {
    group: GroupId,
    maker: SnapshotMaker,
    /// What it is built on.
    base: Option<ManifestName>,
    /// Not in the store yet.
    waiting: Option<PageObject>,
    /// Everything else is in the store.
    manifest: Option<(ManifestName, Vec<u8>)>,
    renewed_ms: u64,
    begun_ms: u64,
    /// Redo above the base when it began.
    redo_bytes: u64,
}

/// What a step of a snapshot led to.
enum Stepped {
    /// There is more to do at once.
    More,
    /// All is there but the manifest, which waits for redo.
    Waits,
    /// It is in the store.
    Made(ManifestName),
}

impl Making {
    /// Whether what it put into the store may be going.
    fn is_too_old(&self, now: Now) -> bool {
        self.begun_ms.saturating_add(BUILT_ON_FOR_MS) <= now.steady_ms
    }

    fn lsn(&self) -> Lsn {
        self.maker.point().last.end
    }
}

impl Uploader {
    /// Goes on with the snapshot under way, or begins one that is due. Returns whether there is more to do at once.
    pub(super) fn advance_snapshot(
        &mut self,
        now: Now,
        source: &dyn RedoSource,
        store: &dyn ObjectStore,
    ) -> bool {
        let Some(pages) = source.pages() else { return false };
        let pages = &*pages;
        if let Some(making) = self.snapshots.making.take_if(|making| {
            let state = self.groups.get(&making.group);
            let goes_on = |state: &super::Group| {
                state.duty == Some(Duty::Upload) && state.base.map(|base| base.name) == making.base
            };
            making.is_too_old(now) || !state.is_some_and(goes_on)
        }) {
            // Another node does it, or did; or the store was away for so long that what is there may be going.
            let (group, is_too_old) = (making.group, making.is_too_old(now));
            self.abandon_snapshot(making, pages);
            self.status.snapshot_trouble = None;
            if is_too_old {
                let what = "it was not complete after a day, and begins again".to_owned();
                self.note_snapshot_failure(group, &SourceError { group, what }.into(), now);
            }
        }
        let pauses = self.snapshots.making.as_ref().and_then(|making| self.groups.get(&making.group));
        if pauses.is_some_and(|state| state.snapshot_failures > 0 && state.snapshot_after_ms > now.steady_ms)
        {
            return false;
        }
        if self.snapshots.limit.wait_ms(now.steady_ms) > 0 {
            return false;
        }
        let making = match self.snapshots.making.take() {
            Some(making) => making,
            None => {
                let Some(group) = self.snapshot_due(now, pages) else { return false };
                match self.begin_snapshot(group, now, pages, store) {
                    Ok(Some(making)) => making,
                    Ok(None) => return true,
                    Err(trouble) => {
                        self.note_snapshot_failure(group, &trouble, now);
                        return false;
                    }
                }
            }
        };
        self.go_on_with_snapshot(making, now, pages, store)
    }

    fn go_on_with_snapshot(
        &mut self,
        mut making: Making,
        now: Now,
        pages: &dyn PageSource,
        store: &dyn ObjectStore,
    ) -> bool {
        match self.step_snapshot(&mut making, now, pages, store) {
            Ok(Stepped::Made(manifest)) => self.note_snapshot(&making, manifest, now),
            Ok(Stepped::More) => self.snapshots.making = Some(making),
            Ok(Stepped::Waits) => {
                self.snapshots.making = Some(making);
                return false;
            }
            // Redo goes on: what has room for that may have none for pages.
            Err(trouble) => {
                self.note_snapshot_failure(making.group, &trouble, now);
                match trouble {
                    Trouble::Store(_) => self.snapshots.making = Some(making),
                    Trouble::Source(_) => self.abandon_snapshot(making, pages),
                }
                return false;
            }
        }
        true
    }

    /// The first group that this node uploads and whose snapshot is due.
    fn snapshot_due(&self, now: Now, pages: &dyn PageSource) -> Option<GroupId> {
        let is_due = |(group, state): &(&GroupId, &super::Group)| {
            let tail_end = state.base.map_or(Lsn::ZERO, |base| base.name.tail_end);
            let is_asked = state.duty == Some(Duty::Upload) && state.snapshot_after_ms <= now.steady_ms;
            if !is_asked || state.durable.group_tail <= tail_end {
                return false;
            }
            let mut standing = Standing {
                redo_bytes: state.redo_bytes,
                age_ms: state.base.map(|base| now.wall_ms.saturating_sub(base.made_ms)),
                group_bytes: 0,
                has_gap: state.has_gap || self.status.gaps.iter().any(|gap| gap.group == **group),
            };
            // To say how much there is costs something.
            let rule = self.options.snapshot_rule;
            rule.is_due(&standing) && {
                standing.group_bytes = pages.size_bytes(**group);
                rule.is_due(&standing)
            }
        };
        self.groups.iter().find(is_due).map(|(group, _)| *group)
    }

    fn begin_snapshot(
        &mut self,
        group: GroupId,
        now: Now,
        pages: &dyn PageSource,
        store: &dyn ObjectStore,
    ) -> Result<Option<Making>, Trouble> {
        let known = self.groups.get(&group).and_then(|state| state.base);
        if self.newer_snapshot(group, known, store)?.is_some() {
            // Made by whoever uploaded before: looks pass over snapshots while redo goes on. It may be early for another.
            self.groups.entry(group).or_default().looked_ms = None;
            self.look(group, now, store)?;
            return Ok(None);
        }
        let Options { volume, node, ref sealing, object_bytes, .. } = self.options;
        let (sealing, state) = (sealing.clone(), self.groups.entry(group).or_default());
        let (base, redo_bytes) = (state.base.map(|base| base.name), state.redo_bytes);
        let named = match base {
            Some(base) => self.extents_of(&base, store)?,
            None => Extents::default(),
        };
        // What is gone is put there again: every later snapshot would lack it, too.
        let there = pages_of(store, volume, group)?;
        let mut known = Extents::default();
        known.extend(&named, |object| there.contains_key(object));
        if let Some((_, extents)) = self.snapshots.abandoned.as_ref().filter(|(of, _)| *of == group) {
            let is_fresh = |stored: &Stored| stored.modified_ms.saturating_add(BUILT_ON_FOR_MS) > now.wall_ms;
            known.extend(extents, |object| there.get(object).is_some_and(is_fresh));
        }
        // Last, so that the lease is whole.
        let point = pages.hold(group)?;
        let maker = SnapshotMaker::new((volume, node), sealing, point, object_bytes, known);
        let (waiting, manifest) = (None, None);
        let (renewed_ms, begun_ms) = (now.steady_ms, now.steady_ms);
        Ok(Some(Making { group, maker, base, waiting, manifest, renewed_ms, begun_ms, redo_bytes }))
    }

    /// What the newest snapshot has; nothing if it is damaged, for the next one must not build on it.
    fn extents_of(&self, base: &ManifestName, store: &dyn ObjectStore) -> Result<Extents, ObjectStoreError> {
        let Options { volume, ref sealing, .. } = self.options;
        let key = Name::Manifest(*base).key(volume);
        let fault = match store.get(&key) {
            Ok(bytes) => match Snapshot::decode(&bytes, volume, base, sealing) {
                Ok(snapshot) => return Ok(snapshot.extents),
                Err(fault) => fault.to_string(),
            },
            Err(error) if matches!(error.kind, ErrorKind::Missing | ErrorKind::Broken) => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::warn!(key, fault, "the newest snapshot is damaged: the next one has all pages again");
        Ok(Extents::default())
    }

    /// Does a part of it.
    fn step_snapshot(
        &mut self,
        making: &mut Making,
        now: Now,
        pages: &dyn PageSource,
        store: &dyn ObjectStore,
    ) -> Result<Stepped, Trouble> {
        self.put_waiting(making, now, store)?;
        if let Some((name, bytes)) = &making.manifest {
            // Whoever finds a manifest goes on with redo behind it: what is before it would be missing for ever.
            let uploaded = self.groups.get(&making.group).map_or(Lsn::ZERO, |state| state.uploaded);
            if uploaded < name.tail_end {
                return Ok(Stepped::Waits);
            }
            // A recovery may have cut it since it was made.
            if newest_snapshot([*name], &self.history).is_none() {
                let what = format!("the history does not reach {} any more", name.lsn);
                return Err(SourceError { group: making.group, what }.into());
            }
            self.put(&Name::Manifest(*name), bytes, now, store)?;
            return Ok(Stepped::Made(*name));
        }
        let (group, lsn) = (making.group, making.lsn());
        if now.steady_ms >= making.renewed_ms + RENEW_AFTER_MS {
            pages.renew(group, lsn)?;
            making.renewed_ms = now.steady_ms;
        }
        let some = pages.pages(group, lsn, making.maker.last(), PAGES_PER_STEP)?;
        self.snapshots.limit.take((some.len() * PAGE_SIZE) as u64, now.steady_ms);
        let broken = |what: String| SourceError { group, what };
        for (key, page) in &some {
            let full = making.maker.take(key, page).map_err(|error| broken(error.to_string()))?;
            if full.is_some() {
                making.waiting = full;
                self.put_waiting(making, now, store)?;
            }
        }
        if some.len() < PAGES_PER_STEP {
            making.waiting = making.maker.end_pages();
            self.put_waiting(making, now, store)?;
            let (relations, values) = (pages.relations(group, lsn)?, pages.values(group, lsn)?);
            pages.release(group);
            let made = making.maker.finish(&relations, &values).map_err(|error| broken(error.to_string()))?;
            // What the store's history does not have would count for nothing.
            if newest_snapshot([made.0], &self.history).is_none() {
                return Err(broken(format!("the history in the store does not reach {lsn}")).into());
            }
            making.manifest = Some(made);
        }
        Ok(Stepped::More)
    }

    fn put_waiting(
        &mut self,
        making: &mut Making,
        now: Now,
        store: &dyn ObjectStore,
    ) -> Result<(), ObjectStoreError> {
        if let Some((name, bytes)) = &making.waiting {
            self.put(&Name::Pages(*name), bytes, now, store)?;
            making.waiting = None;
        }
        Ok(())
    }

    fn note_snapshot(&mut self, making: &Making, name: ManifestName, now: Now) {
        let group = making.group;
        tracing::info!(%group, lsn = %name.lsn, "a snapshot is in the backup");
        let state = self.groups.entry(group).or_default();
        state.base = Some(Base { name, made_ms: now.wall_ms });
        state.redo_bytes = state.redo_bytes.saturating_sub(making.redo_bytes);
        state.has_gap = false;
        state.snapshot_failures = 0;
        state.snapshot_after_ms = now.steady_ms + self.options.snapshot_pauses_ms.0;
        self.snapshots.abandoned = None;
        self.status.snapshots += 1;
        self.status.snapshot_trouble = None;
        self.close_gaps(group);
    }

    fn abandon_snapshot(&mut self, making: Making, pages: &dyn PageSource) {
        pages.release(making.group);
        let lost = making.waiting.map(|(name, _)| name);
        self.snapshots.abandoned = Some((making.group, making.maker.abandon(lost)));
    }

    fn note_snapshot_failure(&mut self, group: GroupId, trouble: &Trouble, now: Now) {
        let what = self.status.count(trouble);
        tracing::warn!(%group, what, "a snapshot does not get on; it is tried again");
        let (first_ms, most_ms) = self.options.snapshot_pauses_ms;
        let state = self.groups.entry(group).or_default();
        let pause_ms = first_ms.saturating_mul(1 << state.snapshot_failures.min(32)).min(most_ms);
        state.snapshot_failures = state.snapshot_failures.saturating_add(1);
        state.snapshot_after_ms = now.steady_ms + pause_ms;
        self.status.snapshot_trouble = Some((group, what));
    }
}
