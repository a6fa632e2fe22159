//! Pins: old versions that are kept for a peer, or a tool, while it takes them.
//!
//! A peer that fills a segment of its own, or a tool that copies the volume, needs pages as of one LSN for as long as that takes, while the volume goes on.
//! It holds a pin on that LSN: a lease, which ends by itself unless it is renewed, so that one which dies holds up
//! nothing for long. While one is held, the segment is not materialized beyond it and reads are admitted from it on. That
//! makes the index of unapplied redo grow; when it takes too much memory, all pins are given up, and who held one begins
//! again.
//!
//! [`Store::pin`] and the reads of it are all that a peer sees: how the versions are kept is this store's matter.

use std::time::{Duration, Instant};

use borealis_types::{GroupId, Lsn, NodeId, ReadPoint};
use borealis_wire::Refusal;

use crate::segment::hosted::HostedSegment;
pub use crate::segment::pins::PinHolder;
use crate::segment::pins::Pins;
use crate::{Store, StoreError};

/// Longest lease that is given, whatever is asked for.
pub const PIN_LEASE_MAX: Duration = Duration::from_secs(60);

impl HostedSegment {
    /// Whether a peer can be given everything as of `lsn` for as long as it holds a pin on it.
    fn check_pin(&self, at: ReadPoint) -> Result<(), Refusal> {
        let lsn = at.lsn;
        // A round may be on its way to where it was about to go.
        let from = self.materialized.lsn.max(self.materializing_to);
        let through = self.segment.readable_through().min(self.segment.known_durable().volume.end);
        if !(from..=through).contains(&lsn) {
            return Err(Refusal::NotReadable { asked: lsn, from, through });
        }
        if self.outside_records(lsn) != lsn {
            return Err(Refusal::NotNow(format!("{lsn} lies inside of a record that came in pieces")));
        }
        self.segment.permit_pinned_read(at, lsn)
    }
}

impl Store {
    /// Keeps everything of a group as of `at` for who takes it, for this long ([`PIN_LEASE_MAX`] at most) or until it is pinned
    /// anew. Returns about how many pages the group has.
    ///
    /// # Errors
    /// [`Refusal::NotReadable`] when not everything as of that LSN is here; [`Refusal::NotNow`] when the LSN lies inside a
    /// record that came in pieces, or there is no room for what a pin keeps.
    pub fn pin(
        &self,
        group: GroupId,
        at: ReadPoint,
        holder: impl Into<PinHolder>,
        lease: Duration,
    ) -> Result<u64, StoreError> {
        let holder = holder.into();
        self.check_takes_redo()?;
        if self.lock().memory_bytes() > self.pinned_memory_max() {
            let what = "the redo that is not applied to pages takes too much memory for a pin";
            return Err(Refusal::NotNow(what.to_owned()).into());
        }
        let materialized = {
            let mut state = self.lock();
            let hosted = state.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
            hosted.check_pin(at)?;
            let now = Instant::now();
            if !hosted.pins.hold(holder, at.lsn, now, now + lease.min(PIN_LEASE_MAX)) {
                let what = "tools hold too many points of this segment; let one of them end";
                return Err(Refusal::NotNow(what.to_owned()).into());
            }
            if let Err(error) = Store::readable(&state, group, at) {
                state
                    .segments
                    .get_mut(&group)
                    .into_iter()
                    .for_each(|hosted| hosted.pins.release(holder, at.lsn));
                return Err(error);
            }
            Store::hosted(&state, group)?.materialized.clone()
        };
        Ok(materialized.page_count())
    }

    /// Ends a peer's pin.
    pub fn unpin(&self, group: GroupId, peer: NodeId) {
        self.release(group, PinHolder::Peer(peer), Lsn::ZERO);
    }

    /// Ends what tools hold of a point.
    pub fn unpin_tools(&self, group: GroupId, lsn: Lsn) {
        self.release(group, PinHolder::Tool, lsn);
    }

    fn release(&self, group: GroupId, holder: PinHolder, lsn: Lsn) {
        if let Some(hosted) = self.lock().segments.get_mut(&group) {
            hosted.pins.release(holder, lsn);
        }
    }

    /// Index memory from which on pins are given up, in bytes. Back pressure, which does not count what a pin holds back,
    /// begins at the same.
    fn pinned_memory_max(&self) -> u64 {
        self.options.memory_limit_bytes / 2
    }

    /// Gives up all pins if what they hold back takes too much memory, or the disk has no room for its log.
    pub(crate) fn relieve_pins(&self) {
        let has_room = self.takes_redo();
        let mut state = self.lock();
        if has_room && state.memory_bytes() <= self.pinned_memory_max() {
            return;
        }
        let now = Instant::now();
        // A tool's first: what a peer takes makes a group whole again. If that was not enough, the next look finds so.
        let mut had_tools = false;
        for hosted in state.segments.values_mut() {
            had_tools |= hosted.pins.release_tools(now);
        }
        if had_tools {
            tracing::warn!("gives up what it kept for tools: there is no room for it");
            return;
        }
        for hosted in state.segments.values_mut() {
            if hosted.pins.floor(now).is_some() {
                tracing::warn!(
                    group = hosted.group().0,
                    "gives up what it kept for peers: there is no room for it"
                );
            }
            hosted.pins = Pins::default();
        }
    }
}
