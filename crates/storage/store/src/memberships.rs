//! The memberships of the groups: what this node stores of them, how a segment comes while the store runs, and how one
//! leaves. See `docs/decisions/0025-segments-choose-their-membership.md`.
//!
//! A segment that comes gets its folder first, durably, and then the log entry with the membership. A crash between the two
//! leaves an empty folder, which the next opening removes. Whoever replays the entry makes the same empty segment.
//!
//! A segment that leaves is out of the state with the log entry. Its page files are removed once a checkpoint no longer
//! names them, by the materializer or at a later opening. What stays is the membership, for others to learn.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::PoisonError;

use borealis_quorum::membership::{Accepted, Ballot, Contradiction, GroupMembership, MembershipState};
use borealis_quorum::segment::{MembershipInstalled, Standing};
use borealis_types::{GroupId, MembershipEpoch, VolumeEpoch, invariant};
use borealis_wire::Refusal;

use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::log::payload::{AcceptEntry, MembersEntry, PrepareEntry};
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::segment::stay::Homes;
use crate::space::Purpose;
use crate::store::Sequence;
use crate::{Store, StoreError};

/// No membership of this epoch or a later one, and no ballot with such a counter, is stored: both are counted by ones, and one
/// that is near the end of its numbers would end all changes of the group.
const COUNTED_MAX: u64 = 1 << 31;

impl Store {
    pub(crate) fn homes(&self) -> Homes<'_> {
        Homes { directory: &self.directory, node: self.identity.node, seal: self.seal }
    }

    /// The groups that have a segment here now, ascending; also those that are joining.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.lock().segments.keys().copied().collect()
    }

    /// What is stored of a group's memberships; `None` if there is nothing, because configuration fixes its members, or
    /// this node never had to do with it. Durable on return.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn membership(&self, group: GroupId) -> Result<Option<MembershipState>, StoreError> {
        let (membership, sequence) = {
            let state = self.lock_to_change()?;
            let membership = state.any_segment(group).and_then(|segment| segment.membership().cloned());
            (membership, Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(membership)
    }

    /// What is stored of every group's memberships, also of groups that this node has left, ascending. Durable on return.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn memberships(&self) -> Result<Vec<(GroupId, MembershipState)>, StoreError> {
        let (memberships, sequence) = {
            let state = self.lock_to_change()?;
            (state.memberships(), Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(memberships)
    }

    /// Gives the segments that have no membership yet the configured one: those of a new store, and of one that is older
    /// than memberships. For these it is the first, on all nodes. Segments that have one keep it, whatever is configured, and
    /// groups without a segment here are passed over. Durable on return; to be called before the store is used.
    ///
    /// # Errors
    /// [`Refusal::Misuse`] when a membership is without this node, though it has a segment of the group; nothing changes then.
    pub fn configure_memberships(
        &self,
        memberships: &BTreeMap<GroupId, GroupMembership>,
    ) -> Result<(), StoreError> {
        let unset: Vec<GroupId> = {
            let state = self.lock();
            let unset = state.segments.values().filter(|hosted| hosted.segment.membership().is_none());
            unset.map(|hosted| hosted.group()).collect()
        };
        let given: Vec<_> =
            unset.iter().filter_map(|group| Some((*group, memberships.get(group)?))).collect();
        let node = self.identity.node;
        if let Some((group, _)) = given.iter().find(|(_, membership)| !membership.contains(node)) {
            let what =
                format!("node {node} has a segment of group {group}, and is configured to be no member");
            return Err(Refusal::Misuse(what).into());
        }
        for (group, membership) in given {
            self.install_membership(group, membership)?;
        }
        Ok(())
    }

    /// [`Segment::prepare_membership`](borealis_quorum::segment::Segment::prepare_membership). The answer is
    /// [`Store::membership`], whether or not the segment promised. Durable on return.
    ///
    /// # Errors
    /// [`Refusal::Misuse`] for a ballot out of bounds; [`Refusal::NotNow`] when there is no room; [`StoreError::Poisoned`].
    pub fn prepare_membership(
        &self,
        group: GroupId,
        installed: MembershipEpoch,
        ballot: Ballot,
    ) -> Result<(), StoreError> {
        check_ballot(ballot)?;
        let entry = encode(&PrepareEntry { group, installed, ballot });
        self.vote(group, EntryKind::Prepare, &entry, |state| {
            state.any_segment_mut(group).is_some_and(|segment| segment.prepare_membership(installed, ballot))
        })
    }

    /// [`Segment::accept_membership`](borealis_quorum::segment::Segment::accept_membership). The answer is
    /// [`Store::membership`], whether or not the segment accepted. Durable on return.
    ///
    /// # Errors
    /// As [`Store::prepare_membership`].
    pub fn accept_membership(&self, group: GroupId, proposed: &Accepted) -> Result<(), StoreError> {
        check_ballot(proposed.ballot)?;
        self.check_membership(group, &proposed.membership)?;
        let entry = encode(&AcceptEntry { group, proposed: proposed.clone() });
        self.vote(group, EntryKind::Accept, &entry, |state| {
            state
                .any_segment_mut(group)
                .is_some_and(|segment| segment.accept_membership(proposed) == Ok(true))
        })
    }

    /// Changes what a segment has of the choice of the next membership, and writes the entry that says so if it did.
    fn vote(
        &self,
        group: GroupId,
        kind: EntryKind,
        entry: &[u8],
        change: impl FnOnce(&mut State) -> bool,
    ) -> Result<(), StoreError> {
        let sequence = {
            let mut state = self.lock_to_change()?;
            if state.any_segment(group).is_none() {
                return Ok(());
            }
            self.reserve(&mut state, entry.len(), Purpose::Promise)?;
            if change(&mut state) {
                self.append_entry(&mut state, kind, &[entry])?;
            }
            Sequence(state.log.end())
        };
        self.sync_promise(sequence)
    }

    /// Acts on a membership that was chosen: a segment comes with it, stays, or leaves. An older one changes nothing. The caller
    /// vouches for it (`borealis_quorum::membership::credible_membership`). Durable on return.
    ///
    /// # Errors
    /// [`Refusal::Misuse`] when another one of the same epoch is installed, or it is out of bounds;
    /// [`Refusal::NotNow`] when there is no room, and [`StoreError::Io`] when the folder of a segment that comes cannot
    /// be made: nothing has changed then. [`StoreError::Io`] also when it cannot be noted that the log is synced: then it is
    /// done, and the same may be asked again. [`StoreError::Poisoned`].
    pub fn install_membership(
        &self,
        group: GroupId,
        membership: &GroupMembership,
    ) -> Result<MembershipInstalled, StoreError> {
        self.check_membership(group, membership)?;
        // Nobody else makes or empties the folder that a segment is about to come into.
        let turn = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        if self.would_come(group, membership)? {
            self.directory.make_segment(group, membership.epoch())?;
        }
        let (installed, left, sequence) = {
            let mut state = self.lock_to_change()?;
            if !state.is_newer(group, membership).map_err(contradicts)? {
                (MembershipInstalled::default(), None, Sequence(state.log.end()))
            } else {
                let entry = encode(&MembersEntry { group, membership: membership.clone() });
                self.reserve(&mut state, entry.len(), Purpose::Promise)?;
                let position = self.append_entry(&mut state, EntryKind::Members, &[&entry])?;
                let outcome = state.install_membership(self.homes(), position, group, membership);
                let outcome = outcome.map_err(|error| self.poisoned(&contradicts(error)))?;
                if outcome.left.is_some() {
                    self.cache.lock().unwrap_or_else(PoisonError::into_inner).forget_group(group);
                }
                (outcome.installed, outcome.left, Sequence(state.log.end()))
            }
        };
        drop(turn);
        drop(left);
        self.sync_promise(sequence)?;
        if installed.changed {
            let (node, epoch) = (self.identity.node.0, membership.epoch().0);
            tracing::info!(node, group = group.0, epoch, left = installed.left, "installed a membership");
        }
        Ok(installed)
    }

    /// Whether a segment comes here with a membership.
    fn would_come(&self, group: GroupId, membership: &GroupMembership) -> Result<bool, StoreError> {
        let state = self.lock_to_change()?;
        let is_newer = state.is_newer(group, membership).map_err(contradicts)?;
        Ok(is_newer && membership.contains(self.identity.node) && !state.segments.contains_key(&group))
    }

    /// Refuses a membership that cannot be one of a group of this volume.
    fn check_membership(&self, group: GroupId, membership: &GroupMembership) -> Result<(), Refusal> {
        if group.0 >= self.identity.placement.group_count() {
            return Err(Refusal::Misuse(format!(
                "a membership of group {group}, which the volume does not have"
            )));
        }
        check_counted("membership epoch", membership.epoch().0)
    }

    /// Whether what a caller asks from here on may be carried out, that knows these memberships. `epoch` is that in which it
    /// writes, if it has one. The check is made again with everything that it protects.
    ///
    /// # Errors
    /// [`StoreError::OtherMembership`], or [`Refusal::Fenced`] for a caller that has to learn no more than that.
    pub fn check_made_for(
        &self,
        made_for: &[(GroupId, MembershipEpoch)],
        epoch: Option<VolumeEpoch>,
    ) -> Result<(), StoreError> {
        self.lock().check_made_for(made_for, epoch)
    }

    /// Whether no segment here is promised to an epoch newer than this one, and none acts on a newer membership than its
    /// asker knows: both as of one moment, for a node that left a group would otherwise confirm for those who count it still.
    ///
    /// # Errors
    /// [`Refusal::Fenced`], [`StoreError::OtherMembership`], or [`StoreError::Poisoned`]: the word of a store that keeps no
    /// promise any more says nothing of who else was promised what.
    pub fn confirm(
        &self,
        epoch: VolumeEpoch,
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<(), StoreError> {
        let state = self.lock_to_change()?;
        state.check_made_for(made_for, Some(epoch))?;
        let promised = state.segments.values().map(|hosted| hosted.segment.promise().epoch).max();
        match promised.filter(|promised| *promised > epoch) {
            Some(promised) => Err(Refusal::Fenced(promised).into()),
            None => Ok(()),
        }
    }

    /// Of each segment here the membership that it came with; zero of one that was made with the store.
    #[must_use]
    pub fn joined(&self) -> BTreeMap<GroupId, MembershipEpoch> {
        let state = self.lock();
        state.segments.values().map(|hosted| (hosted.group(), hosted.stay.joined)).collect()
    }

    /// What a segment is to its group. [`Standing::Absent`] where there is none.
    #[must_use]
    pub fn standing(&self, group: GroupId) -> Standing {
        self.lock().segments.get(&group).map_or(Standing::Absent, |hosted| hosted.segment.standing())
    }

    /// Frees the space of segments that have left, with a checkpoint that no longer names them. For whoever has the right to
    /// change materialized states.
    pub(crate) fn free_left(&self) -> Result<(), StoreError> {
        if self.lock().left_folders.is_empty() {
            return Ok(());
        }
        let replay_from = self.write_checkpoint(&BTreeMap::new())?;
        self.release_log(replay_from).map(drop)
    }

    /// Removes folders of segments that have left, which the newest checkpoint does not name. What cannot be removed is
    /// left to a later opening.
    pub(crate) fn remove_left(&self, left: &[(GroupId, MembershipEpoch)]) {
        for &(group, joined) in left {
            let folder = self.directory.segment(group, joined);
            self.check_nobodys(&folder);
            if let Err(error) = self.directory.remove_segment(&folder) {
                tracing::warn!(%error, folder = %folder.display(), "what is left of a segment keeps its space for now");
            }
        }
    }

    /// Checks that a folder which is about to be removed is no segment's.
    fn check_nobodys(&self, folder: &Path) {
        let state = self.lock();
        let is_its =
            |hosted: &&HostedSegment| self.directory.segment(hosted.group(), hosted.stay.joined) == folder;
        let owner = state.segments.values().find(is_its).map(HostedSegment::group);
        invariant!("removed-folder-is-nobodys", owner.is_none(), "{} is that of {owner:?}", folder.display());
    }

    /// Removes folders that neither a segment here nor the newest checkpoint names: of segments that were about to come, or
    /// have left, when the process ended. At an opening, after the replay.
    pub(crate) fn remove_unnamed(&self) {
        let named: BTreeSet<_> = {
            let state = self.lock();
            let here = state.segments.values().map(|hosted| (hosted.group(), hosted.stay.joined));
            let named = here.chain(state.left_folders.iter().copied());
            named.map(|(group, joined)| self.directory.segment(group, joined)).collect()
        };
        let unnamed = match self.directory.segments() {
            Ok(folders) => folders.into_iter().filter(|folder| !named.contains(folder)),
            Err(error) => return tracing::warn!(%error, "what is left of segments cannot be looked for"),
        };
        for folder in unnamed {
            self.check_nobodys(&folder);
            match self.directory.remove_segment(&folder) {
                Ok(()) => tracing::info!(folder = %folder.display(), "removed what was left of a segment"),
                Err(error) => {
                    tracing::warn!(%error, folder = %folder.display(), "a folder that is of no use stays")
                }
            }
        }
    }
}

fn contradicts(error: Contradiction) -> StoreError {
    Refusal::Misuse(error.to_string()).into()
}

fn check_ballot(ballot: Ballot) -> Result<(), Refusal> {
    check_counted("ballot", ballot.counter)
}

fn check_counted(what: &str, number: u64) -> Result<(), Refusal> {
    if number < COUNTED_MAX {
        return Ok(());
    }
    Err(Refusal::Misuse(format!("a {what} of {number}; there are none from {COUNTED_MAX} on")))
}
