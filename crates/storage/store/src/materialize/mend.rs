//! Pages that cannot be made from what this node has: how peers' copies come in, and the limits of what is put off.
//!
//! A page that peers brought is as of an LSN that no recovery can truncate, and not below what is materialized. Reads at
//! or above that LSN are served from it at once. The next round that reaches the LSN writes it like any other page: to
//! the slot that the checkpoint does not name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_types::{GroupId, Lsn, PageBytes, PageKey, ReadPoint, VolumeEpoch};
use borealis_wire::Refusal;

use crate::append::offer::Origin;
use crate::materialize::page_writer::PageWriter;
use crate::metrics::count;
use crate::pages::held::HeldPage;
use crate::read::hold::is_damage;
use crate::segment::hosted::{HostedSegment, Stalled};
use crate::segment::state::State;
use crate::segment::trouble::{Cause, HealedPage, Trouble};
use crate::{Store, StoreError};

/// Most pages of a segment that are kept in memory because peers brought them and no round has written them.
const HEALED_MAX: usize = 1024;
/// After this long a round tries again what a round left.
pub(super) const STALLED_FOR: Duration = Duration::from_secs(60);
/// When this many rounds' worth of redo waits behind a record that cannot be applied, no more is taken.
const STUCK_ROUNDS_MAX: u64 = 8;

/// A page to ask peers for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageToHeal {
    /// The group of the page.
    pub group: GroupId,
    /// The page.
    pub key: PageKey,
    /// Where peers are to be asked: the answer can be used here, if it comes before long.
    pub at: ReadPoint,
    /// Whether a record's redo failed here. Then it fails at peers of the same release, too.
    pub is_quarantined: bool,
}

impl Store {
    /// Pages that cannot be made here, and as of which LSN peers can replace them; at most `limit`.
    ///
    /// There are two LSNs to choose from, and `newest` says which. The minimum read point is the lowest at which
    /// peers answer, so that a round can write the page at once; but under load peers may know a higher one by now. The
    /// newest durable point is the highest at which the answer is certain.
    #[must_use]
    pub fn pages_to_heal(&self, limit: usize, newest: bool) -> Vec<PageToHeal> {
        let state = self.lock();
        let mut pages = Vec::new();
        for hosted in state.segments.values() {
            if hosted.troubles.healed.len() >= HEALED_MAX {
                continue;
            }
            let wanted = hosted.troubles.pages.iter();
            let wanted = wanted.filter_map(|(key, trouble)| to_heal(hosted, key, trouble, newest));
            pages.extend(wanted.take(limit - pages.len()));
        }
        pages
    }

    /// The same for one page, now: under load peers answer at an LSN for some milliseconds only.
    #[must_use]
    pub fn page_to_heal(&self, group: GroupId, key: &PageKey, newest: bool) -> Option<PageToHeal> {
        let state = self.lock();
        let hosted = state.segments.get(&group)?;
        to_heal(hosted, key, hosted.troubles.pages.get(key)?, newest)
    }

    /// Takes a page as peers have it as of `at`; `None` if it does not exist then. Returns whether it was taken: not if
    /// this node went on meanwhile, to a newer history or beyond `at`.
    ///
    /// The caller has asked several peers and vouches for their answer.
    pub fn heal_page(
        &self,
        group: GroupId,
        key: &PageKey,
        at: ReadPoint,
        page: Option<Box<PageBytes>>,
    ) -> bool {
        let ReadPoint { epoch, lsn } = at;
        let mut state = self.lock();
        let Some(hosted) = state.segments.get_mut(&group) else { return false };
        let segment = &hosted.segment;
        let certain = segment.known_durable().volume.end.min(segment.readable_through());
        let is_current = segment.history().newest_epoch() == epoch && epoch != VolumeEpoch(0);
        if !is_current || !(hosted.materialized.lsn..=certain).contains(&lsn) {
            return false;
        }
        let Some(trouble) = hosted.troubles.pages.get(key) else { return false };
        tracing::warn!(group = group.0, page = %key, %lsn, was = trouble.reason, "a page came from peers");
        let page = page.map(|page| Arc::new(*page));
        hosted.troubles.healed.insert(*key, HealedPage { lsn, page });
        hosted.stalled = None;
        count(&self.counters.pages_healed, 1);
        true
    }

    /// What is damaged or in quarantine here, if anything: single pages and log entries, which wait for their peers'
    /// copies while everything else goes on.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        self.lock().damage_report()
    }

    /// Whether a round would write pages that could not be made before.
    pub(super) fn has_pages_to_mend(&self) -> bool {
        let state = self.lock();
        state
            .segments
            .values()
            .filter(|hosted| !hosted.is_refilling)
            .any(|hosted| !hosted.pages_to_mend(hosted.materialization_target()).is_empty())
    }

    /// Notes a page whose slot could not be copied, if the disk could not read it.
    pub(super) fn note_unread(&self, group: GroupId, key: &PageKey, error: &StoreError) {
        if !is_damage(error) {
            return;
        }
        if let Some(hosted) = self.lock().segments.get_mut(&group) {
            let since = hosted.materialized.lsn;
            hosted.note_trouble(key, Trouble { cause: Cause::Damage, since, reason: error.to_string() });
        }
    }

    /// Lets segments be tried again that were left where they are: those whose log could not be read at once, those that
    /// a round left some time ago.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    pub(crate) fn retry_put_off(&self, stalled_for: Duration) -> Result<(), StoreError> {
        let mut state = self.lock_to_change()?;
        for hosted in state.segments.values_mut() {
            hosted.stalled.take_if(|stalled| stalled.since.elapsed() >= stalled_for);
            if hosted.unread.is_some() {
                let indexed = hosted.index_pending(self.context(), &self.files);
                indexed.map_err(|error| self.poisoned(&error))?;
            }
        }
        Ok(())
    }

    /// Leaves a segment where it is until what a round found is repaired, or for a while.
    pub(super) fn note_stalled(&self, group: GroupId, error: &StoreError) {
        if let Some(hosted) = self.lock().segments.get_mut(&group) {
            tracing::error!(group = group.0, %error, "the segment is materialized no further for now");
            hosted.stalled = Some(Stalled { reason: error.to_string(), since: Instant::now() });
        }
    }

    /// Fails when the records kept for pages in quarantine would take more than they may. The segment then stays where
    /// it is, and its redo is kept in the log.
    pub(super) fn check_quarantine(
        &self,
        group: GroupId,
        key: &PageKey,
        held: &HeldPage,
        writer: &PageWriter,
    ) -> Result<(), StoreError> {
        let HeldPage::Failed { reason, steps, .. } = held else { return Ok(()) };
        let replaced = writer.next.materialized.held.get(key).map_or(0, HeldPage::size_bytes);
        if writer.held_bytes - replaced + held.size_bytes() <= self.options.quarantine_limit_bytes {
            return Ok(());
        }
        let lsn = steps.first().map_or(Lsn::ZERO, |step| step.span.end);
        let limit = self.options.quarantine_limit_bytes;
        let reason = format!(
            "records for pages whose redo fails take more than {limit} bytes; the last such page is {key}: {reason}"
        );
        let error = StoreError::Redo { group, lsn, reason };
        self.note_stalled(group, &error);
        Err(error)
    }

    /// Refuses redo once too much of it waits behind a record that cannot be applied: a node must not acknowledge without
    /// bound what it may never make pages of.
    pub(crate) fn check_stuck_backlog(&self, origin: Origin) -> Result<(), StoreError> {
        // What a recovery brings is bounded, and the volume does not open without it.
        if matches!(origin, Origin::Recovery(..)) {
            return Ok(());
        }
        let limit = self.options.materialize_after_bytes.saturating_mul(STUCK_ROUNDS_MAX);
        let state = self.lock();
        let stuck = state.segments.values().filter(|hosted| hosted.why_stuck().is_some());
        let bytes: u64 = stuck.clone().map(|hosted| hosted.index.record_bytes).sum();
        if bytes <= limit {
            return Ok(());
        }
        let reason = stuck.filter_map(|hosted| hosted.why_stuck()).next().unwrap_or_default();
        count(&self.counters.appends_refused_for_backlog, 1);
        Err(Refusal::Failed(format!(
            "{bytes} bytes of redo wait behind a record that cannot be applied (limit {limit}), no more is taken: {reason}"
        ))
        .into())
    }
}

/// What to ask peers for instead of a page that cannot be made, if they can replace it now.
fn to_heal(hosted: &HostedSegment, key: &PageKey, trouble: &Trouble, newest: bool) -> Option<PageToHeal> {
    let segment = &hosted.segment;
    let certain = segment.known_durable().volume.end.min(segment.readable_through());
    let lowest = segment.minimum_read_point().max(hosted.materialized.lsn);
    let lsn = trouble.since.max(if newest { certain.max(lowest) } else { lowest });
    // A page that cannot be made as of an LSN which is not durable yet has to wait for that.
    if hosted.troubles.healed.contains_key(key) || lsn > certain {
        return None;
    }
    Some(PageToHeal {
        group: hosted.group(),
        key: *key,
        at: ReadPoint { epoch: segment.history().newest_epoch(), lsn },
        is_quarantined: trouble.cause == Cause::Redo,
    })
}

impl State {
    /// What is damaged or in quarantine and not repaired yet, for people.
    pub(crate) fn damage_report(&self) -> Option<String> {
        let pages = || self.segments.values().flat_map(|hosted| hosted.troubles.pages.iter());
        let open = || {
            let healed = |key| self.segments.values().any(|hosted| hosted.troubles.healed.contains_key(key));
            pages().filter(move |(key, _)| !healed(*key))
        };
        if let Some((key, trouble)) = open().next() {
            let quarantined = open().filter(|(_, trouble)| trouble.cause == Cause::Redo).count();
            let damaged = open().count() - quarantined;
            return Some(format!(
                "{damaged} damaged pages wait for their peers' copies, and {quarantined} pages are in quarantine because \
                 their redo failed; the first is page {key}: {}",
                trouble.reason
            ));
        }
        if let Some((_, reason)) = self.damaged_entries.first_key_value() {
            let count = self.damaged_entries.len();
            return Some(format!(
                "{count} log entries are damaged and wait for their peers' copies: {reason}"
            ));
        }
        let stuck = self.segments.values().find_map(|hosted| Some((hosted.group(), hosted.why_stuck()?)));
        stuck.map(|(group, reason)| format!("group {group} is materialized no further: {reason}"))
    }
}
