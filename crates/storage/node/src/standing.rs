//! Whether this node may vote: a node whose disk was put back to an earlier state has less than it acknowledged.
//!
//! It cannot know that from its disk. Its peers can tell: each remembers in which boot (the store counts its openings) it
//! last heard every other node, durably, and how far that node's segments were complete and what they had promised, in
//! memory. After every start, a node asks each peer what it remembers, and if two of them remember more than there is, it
//! votes no more. One alone is not enough: a peer that lies, or that was put back itself, must not disable others.
//!
//! What is remembered of a node was asked of it at its configured address, and what peers remember is asked of them at
//! theirs: nobody's word about a third node counts, nor what a caller claims to be. A node that was replaced has its
//! predecessor's number and another incarnation: nothing that was heard of the one counts for the other.
//!
//! Until two peers have answered, for at most [`WORDS_WITHIN`] after a start, callers wait for their introduction. A node
//! whose peers are all down must serve, too, or six nodes that start together could wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_store::Store;
use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId, VolumeEpoch};
use borealis_wire::{Boot, Remembered, RememberedSegment, SegmentSummary};

/// How many peers must say it before a node votes no more.
const ACCUSERS_NEEDED: usize = 2;
/// The boot of a store's first start, after the one of its creation: nobody can remember more.
const FIRST_START: u64 = 2;
/// How many peers must have answered before a started node is used, or else [`WORDS_WITHIN`] have passed.
const WORDS_NEEDED: usize = 2;
const WORDS_WITHIN: Duration = Duration::from_secs(1);

/// What this node knows of boots: its own, and its peers'.
#[derive(Debug)]
pub(crate) struct Standing {
    store: Arc<Store>,
    boot: Boot,
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Every other node that has a segment of one of this node's groups.
    peers: BTreeSet<NodeId>,
    /// Peers that have answered since the start.
    answered: BTreeSet<NodeId>,
    /// What each peer remembers that is not there.
    accusations: BTreeMap<NodeId, String>,
    /// The most that was heard of each peer's segments.
    heard: BTreeMap<NodeId, BTreeMap<GroupId, RememberedSegment>>,
}

/// What there is of one group on this node.
#[derive(Clone, Copy, Debug)]
struct OwnSegment {
    group: GroupId,
    /// The membership that is known here, of a group without a segment the one that left this node out.
    membership_epoch: MembershipEpoch,
    /// The membership that the segment came with; none where there is no segment, or one that has not everything yet.
    joined: Option<MembershipEpoch>,
    complete: Lsn,
    promised_epoch: VolumeEpoch,
}

/// What `remembered` says that this node had and has no more, if anything.
fn what_is_lost(boot: &Boot, remembered: &Remembered, ours: &[OwnSegment]) -> Option<String> {
    let then = remembered.boot;
    if then.incarnation != boot.incarnation {
        return None;
    }
    if then.number > boot.number || (then.number == boot.number && then.nonce != boot.nonce) {
        return Some(format!(
            "it was heard in boot {} of this store, which is now in boot {}",
            then.number, boot.number
        ));
    }
    remembered.segments.iter().find_map(|then| {
        let now = ours.iter().find(|now| now.group == then.group);
        what_segment_lost(then, now)
    })
}

/// The same of one group. Who leaves a group and comes again begins empty and has lost nothing; each takes a membership of its
/// own. So what is remembered counts unless it is from before the membership that the segment came with, and where there is
/// no full segment, unless a newer membership is known that may have ended the one that is remembered.
fn what_segment_lost(then: &RememberedSegment, now: Option<&OwnSegment>) -> Option<String> {
    let group = then.group;
    let known = now.map_or(MembershipEpoch(0), |now| now.membership_epoch);
    let Some((now, joined)) = now.and_then(|now| Some((now, now.joined?))) else {
        return (known <= then.membership_epoch).then(|| {
            format!(
                "group {group} had everything in membership {}, and now nothing is full in membership {}",
                then.membership_epoch.0, known.0
            )
        });
    };
    if joined > then.membership_epoch {
        return None;
    }
    // Its vote is of an older choice then, though it may have all records.
    if then.membership_epoch > now.membership_epoch {
        return Some(format!(
            "group {group} had membership {}, and now {}",
            then.membership_epoch.0, now.membership_epoch.0
        ));
    }
    if then.promised_epoch > now.promised_epoch {
        return Some(format!(
            "group {group} had promised epoch {}, and now {}",
            then.promised_epoch, now.promised_epoch
        ));
    }
    let lost = then.complete > now.complete;
    lost.then(|| {
        format!("group {group} had durable records to {}, and now to {}", then.complete, now.complete)
    })
}

impl Standing {
    pub(crate) fn new(store: Arc<Store>) -> Standing {
        // Tells two boots of the same number apart: a store that was put back counts again.
        let nonce = RandomState::new().build_hasher().finish();
        let boot = Boot { incarnation: store.identity().incarnation, number: store.boot(), nonce };
        Standing { store, boot, began: Instant::now(), state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// The nodes that have a segment of one of this node's groups.
    pub(crate) fn set_peers(&self, peers: BTreeSet<NodeId>) {
        self.lock().peers = peers;
    }

    /// A group has these members from here on. What was heard of the segments of others is forgotten: one that comes
    /// again begins empty, and has lost nothing.
    pub(crate) fn follow(&self, group: GroupId, peers: BTreeSet<NodeId>, members: &BTreeSet<NodeId>) {
        let mut state = self.lock();
        for (peer, heard) in &mut state.heard {
            if !members.contains(peer) {
                heard.remove(&group);
            }
        }
        state.heard.retain(|peer, _| peers.contains(peer));
        state.answered.retain(|peer| peers.contains(peer));
        state.peers = peers;
    }

    /// This node's boot.
    pub(crate) fn boot(&self) -> Boot {
        self.boot
    }

    /// What is remembered of a peer.
    pub(crate) fn remembered_of(&self, peer: NodeId) -> Option<Remembered> {
        let boot = self.store.peer_boot(peer)?;
        let segments = self.lock().heard.get(&peer).map(|heard| heard.values().copied().collect());
        Some(Remembered { boot, segments: segments.unwrap_or_default() })
    }

    /// Notes what a peer said of one of its segments, which is durable there. Only the most counts, and of its records only
    /// those that no recovery can truncate.
    pub(crate) fn note_segment(&self, peer: NodeId, summary: &SegmentSummary) {
        let mut state = self.lock();
        if !state.peers.contains(&peer) {
            return;
        }
        if summary.joining {
            // Whatever it had in an earlier stay, it has left since.
            state.heard.get_mut(&peer).map(|heard| heard.remove(&summary.group));
            return;
        }
        let nothing = RememberedSegment {
            group: summary.group,
            membership_epoch: summary.membership_epoch,
            complete: Lsn::ZERO,
            promised_epoch: VolumeEpoch(0),
        };
        let heard = state.heard.entry(peer).or_default().entry(summary.group).or_insert(nothing);
        // To leave and to come again takes two memberships: it may be another stay, which began empty.
        if summary.membership_epoch.0.saturating_sub(heard.membership_epoch.0) > 1 {
            *heard = nothing;
        }
        heard.membership_epoch = heard.membership_epoch.max(summary.membership_epoch);
        heard.complete = heard.complete.max(summary.segment_complete_lsn.min(summary.known_durable.end));
        heard.promised_epoch = heard.promised_epoch.max(summary.promised_epoch);
    }

    /// Notes a peer's answer: its boot, and what it remembers of this node.
    pub(crate) fn note_answer(&self, peer: NodeId, boot: Boot, remembered: Option<&Remembered>) {
        if self.store.peer_boot(peer).is_some_and(|known| known.incarnation != boot.incarnation) {
            // Before the boot is replaced, so that nobody is told the one's boot with the other's segments.
            self.lock().heard.remove(&peer);
        }
        if let Err(error) = self.store.remember_peer_boot(peer, boot) {
            tracing::warn!(%peer, %error, "cannot remember durably in which boot the peer is");
        }
        // Asked after the peer answered: what it remembers was durable here before. A store that failed has said enough.
        let lost = match (remembered, self.own_segments()) {
            (Some(remembered), Some(ours)) => what_is_lost(&self.boot, remembered, &ours),
            _ => None,
        };
        let mut state = self.lock();
        state.answered.insert(peer);
        match lost {
            Some(lost) => {
                tracing::warn!(%peer, "the peer remembers more of this node than there is: {lost}");
                state.accusations.insert(peer, lost);
            }
            None => drop(state.accusations.remove(&peer)),
        }
        if state.accusations.len() >= ACCUSERS_NEEDED {
            let accusers: Vec<String> = state.accusations.keys().map(ToString::to_string).collect();
            let what = state.accusations.values().next().cloned().unwrap_or_default();
            self.store.renounce(&format!(
                "this node's disk was put back to an earlier state: nodes {} remember more of it than there is ({what}). It \
                 has lost what it acknowledged and votes no more; give it its newest disk back, or rebuild it",
                accusers.join(" and ")
            ));
        }
        self.changed.notify_all();
    }

    fn own_segments(&self) -> Option<Vec<OwnSegment>> {
        // In this order: a segment that comes or goes in between is known with the newer membership.
        let (joined, summaries) = (self.store.joined(), self.store.summaries().ok()?);
        let segment = |summary: &SegmentSummary| OwnSegment {
            group: summary.group,
            membership_epoch: summary.membership_epoch,
            joined: joined.get(&summary.group).copied().filter(|_| !summary.joining),
            complete: summary.segment_complete_lsn,
            promised_epoch: summary.promised_epoch,
        };
        let mut own: Vec<OwnSegment> = summaries.iter().map(segment).collect();
        for (group, state) in self.store.memberships().ok()? {
            if own.iter().all(|own| own.group != group) {
                let membership_epoch = state.installed().epoch();
                let (joined, complete, promised_epoch) = (None, Lsn::ZERO, VolumeEpoch(0));
                own.push(OwnSegment { group, membership_epoch, joined, complete, promised_epoch });
            }
        }
        Some(own)
    }

    /// Waits until enough peers have answered, or a while after the start.
    pub(crate) fn wait_for_words(&self) {
        if self.boot.number <= FIRST_START {
            return;
        }
        let left = WORDS_WITHIN.saturating_sub(self.began.elapsed());
        let waited = self.changed.wait_timeout_while(self.lock(), left, |state| {
            state.answered.len() < WORDS_NEEDED.min(state.peers.len())
        });
        drop(waited.expect("nothing panics while it holds this lock"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Boot = Boot { incarnation: 7, number: 5, nonce: 1 };

    fn segment(complete: u64, epoch: u64) -> RememberedSegment {
        let membership_epoch = MembershipEpoch(3);
        RememberedSegment {
            group: GroupId(0),
            membership_epoch,
            complete: Lsn(complete),
            promised_epoch: VolumeEpoch(epoch),
        }
    }

    /// Has records to 100 and promised epoch 3.
    fn own(membership_epoch: u64, joined: Option<u64>) -> OwnSegment {
        OwnSegment {
            group: GroupId(0),
            membership_epoch: MembershipEpoch(membership_epoch),
            joined: joined.map(MembershipEpoch),
            complete: Lsn(100),
            promised_epoch: VolumeEpoch(3),
        }
    }

    #[test]
    fn a_store_that_was_put_back_to_before_it_joined_is_known_by_the_membership() {
        let lost = |ours: &[OwnSegment]| {
            let boot = Boot { number: 4, nonce: 9, ..BOOT };
            what_is_lost(&BOOT, &Remembered { boot, segments: vec![segment(101, 4)] }, ours)
        };
        assert!(lost(&[]).is_some(), "it knows nothing of the group");
        assert!(
            lost(&[own(2, None)]).is_some() && lost(&[own(3, None)]).is_some(),
            "it is joining, or left earlier"
        );
        assert_eq!(lost(&[own(4, None)]), None, "it left, or is joining again");
        assert!(lost(&[own(2, Some(0))]).is_some() && lost(&[own(9, Some(3))]).is_some(), "the same stay");
        assert_eq!(lost(&[own(5, Some(5))]), None, "it left and came again, which begins empty");
    }

    #[test]
    fn a_store_that_lost_nothing_but_a_membership_is_known_by_that() {
        let lost = |ours: OwnSegment| {
            let boot = Boot { number: 4, nonce: 9, ..BOOT };
            what_is_lost(&BOOT, &Remembered { boot, segments: vec![segment(100, 3)] }, &[ours])
        };
        let what = lost(own(2, Some(0))).expect("it acted on the third, and knows the second");
        assert!(what.contains("had membership 3, and now 2"), "{what}");
        assert_eq!(lost(own(3, Some(0))), None);
        assert_eq!(lost(own(4, Some(0))), None, "others were replaced since");
    }

    #[test]
    fn a_store_that_was_put_back_is_known_by_its_boot_its_promise_or_its_records() {
        let lost = |boot: Boot, then: RememberedSegment| {
            what_is_lost(&BOOT, &Remembered { boot, segments: vec![then] }, &[own(3, Some(0))])
        };
        let earlier = Boot { number: 4, nonce: 9, ..BOOT };
        assert_eq!(lost(BOOT, segment(100, 3)), None);
        assert_eq!(lost(earlier, segment(90, 2)), None, "it restarted");
        assert!(lost(Boot { number: 6, ..BOOT }, segment(0, 0)).is_some_and(|lost| lost.contains("boot 6")));
        assert!(lost(Boot { nonce: 2, ..BOOT }, segment(0, 0)).is_some(), "the same number twice");
        assert!(lost(earlier, segment(101, 3)).is_some_and(|lost| lost.contains("durable records")));
        assert!(lost(earlier, segment(0, 4)).is_some_and(|lost| lost.contains("epoch 4")));
        let another = Boot { incarnation: 8, number: 9, nonce: 9 };
        assert_eq!(lost(another, segment(900, 9)), None, "another store had this number before");
    }
}
