//! Opening a volume through the members that are left when so many are lost for good that no write quorum is.
//!
//! 1. All that are left are fenced, and everything that was ever acknowledged is found and brought to all of them: the
//!    ordinary recovery, through [`borealis_quorum::quorum_set::QuorumSets::survivors`]. From then on no older writer
//!    finds a write quorum, whatever becomes of the lost members.
//! 2. They catch up from each other until of every group one of them at least has every record up to the end. Copies of such
//!    segments may take the places of the lost ones.
//!
//! Nobody writes in the epoch that is opened here; the next start of an instance opens its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use borealis_client::{ClientError, Memberships, NodeClient, Timeouts};
use borealis_quorum::GroupTail;
use borealis_types::membership::GroupMembership;
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch};
use borealis_wire::{Caller, SegmentSummary};

use crate::config::Configured;
use crate::memberships::known;
use crate::recover::{OwnEpochs, RecoverError, recover_without};
use crate::supervise::new_writer;

/// How long those that are left may take to catch up from each other, from the last one that moved.
const CATCH_UP_STALLS_AFTER: Duration = Duration::from_secs(20);
/// How long a node may take to answer.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(1), call: Duration::from_secs(5) };
/// Between two looks at how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is known of the volume once its survivors agree.
#[derive(Clone, Debug)]
pub struct Rescued {
    /// The epoch that they are all promised to.
    pub epoch: VolumeEpoch,
    /// The last record of the volume: every commit that was ever acknowledged is at or before its end.
    pub durable: RecordSpan,
    /// Of each group the members that have every record up to there, one at least.
    pub complete: BTreeMap<GroupId, Vec<NodeId>>,
    /// The membership of each group that this was agreed on for: whose copies are needed.
    pub memberships: BTreeMap<GroupId, GroupMembership>,
}

/// Why a volume could not be opened through its survivors.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// So few members are left that acknowledged commits may be on none of them, or the recovery failed.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A member that is said to be there does not answer.
    #[error("{0}; every node that is not given up must run")]
    Unreachable(ClientError),
    /// Nobody has said where a member is that is not given up.
    #[error(
        "node {0} is a member, and neither the configuration nor any node says where it listens; every node that is not \
         given up must run"
    )]
    Nowhere(NodeId),
    /// No node ever had a record of this volume.
    #[error(
        "no node that is left knows of any start of this volume, so there is nothing to rescue; create it again"
    )]
    NeverOpened,
    /// Records that every survivor needs are on none of them any more.
    #[error(
        "of some group none of the nodes that are left has all records up to {end} and none catches up any more: {standing}. \
         Nothing was replaced"
    )]
    Incomplete {
        /// Where the volume ends.
        end: Lsn,
        /// How far each group is on each node.
        standing: String,
    },
}

/// Fences every member that is not in `lost`, brings all of them what was acknowledged, and waits until of each group one
/// has everything. May be repeated at any time.
///
/// # Errors
/// See [`RescueError`]. Nothing is lost by a failure.
pub fn agree_without(config: &Configured, lost: &BTreeSet<NodeId>) -> Result<Rescued, RescueError> {
    let writer = new_writer().map_err(|error| RecoverError::Configuration(format!("{error:#}")))?;
    let mut memberships = known(config).map_err(|error| RecoverError::Configuration(format!("{error:#}")))?;
    // Who has to be there are the members of today.
    memberships.ask(config.credentials.as_ref(), config.volume, TIMEOUTS);
    let standing = ask_all(config, &memberships, lost)?;
    let server_version = newest_release(&standing).ok_or(RescueError::NeverOpened)?;
    let mut own = OwnEpochs::default();
    let recovered = recover_without(lost, config, &mut memberships, writer, server_version, &mut own)?;
    let outcome = recovered.outcome;
    let complete = wait_until_complete(config, &memberships, lost, outcome.durable.end, &outcome.tails)?;
    Ok(Rescued {
        epoch: outcome.promise.epoch,
        durable: outcome.durable,
        complete,
        memberships: memberships.groups().clone(),
    })
}

/// The state of every segment of every member that is not lost, by node.
fn ask_all(
    config: &Configured,
    memberships: &Memberships,
    lost: &BTreeSet<NodeId>,
) -> Result<BTreeMap<NodeId, Vec<SegmentSummary>>, RescueError> {
    let members = memberships.members();
    let ask = |&node: &NodeId| {
        let mut failure = RescueError::Nowhere(node);
        for address in memberships.addresses().all(node) {
            let client =
                NodeClient::connect(config.route(address), config.volume, node, Caller::Client, TIMEOUTS);
            match client.and_then(|mut client| client.summaries()) {
                Ok(summaries) => return Ok((node, summaries)),
                Err(error) => failure = RescueError::Unreachable(error),
            }
        }
        Err(failure)
    };
    members.difference(lost).map(ask).collect()
}

/// The release that wrote last, by the newest history that anyone has.
fn newest_release(standing: &BTreeMap<NodeId, Vec<SegmentSummary>>) -> Option<ServerVersion> {
    let histories = standing.values().flatten().map(|summary| &summary.history);
    let newest = histories.max_by_key(|history| history.newest_epoch()).and_then(EpochHistory::newest);
    newest.map(|opening| opening.server_version)
}

/// Of each group the members whose segment ends where the group does. Nobody has written since these ends were agreed on and
/// all that came after them was cut, so a node that says it has more is not to be believed. A node that left the group and has
/// not heard of it is no member: its segment was not asked for what it has, and is gone when it hears.
fn complete_members(
    memberships: &BTreeMap<GroupId, GroupMembership>,
    standing: &BTreeMap<NodeId, Vec<SegmentSummary>>,
    tails: &[GroupTail],
) -> BTreeMap<GroupId, Vec<NodeId>> {
    let has = |segments: &[SegmentSummary], tail: &GroupTail| {
        segments.iter().any(|segment| {
            segment.group == tail.group && segment.segment_complete_lsn == tail.last_end && !segment.joining
        })
    };
    let is_member = |node: NodeId, group: GroupId| {
        memberships.get(&group).is_some_and(|membership| membership.contains(node))
    };
    let of_group = |tail: &GroupTail| {
        let members = standing.iter().map(|(node, segments)| (*node, segments));
        let complete = members.filter(|(node, segments)| is_member(*node, tail.group) && has(segments, tail));
        (tail.group, complete.map(|(node, _)| node).collect())
    };
    tails.iter().map(of_group).collect()
}

/// Waits until the nodes have taken from each other what they lack. All of them if they can; one of each group is enough.
fn wait_until_complete(
    config: &Configured,
    memberships: &Memberships,
    lost: &BTreeSet<NodeId>,
    end: Lsn,
    tails: &[GroupTail],
) -> Result<BTreeMap<GroupId, Vec<NodeId>>, RescueError> {
    let present = |group: GroupId| {
        let members = memberships.of(group).map(GroupMembership::members).unwrap_or_default();
        members.difference(lost).count()
    };
    let ends = |standing: &BTreeMap<NodeId, Vec<SegmentSummary>>| -> Vec<_> {
        standing.values().flatten().map(|segment| segment.segment_complete_lsn).collect()
    };
    let mut before = Vec::new();
    let mut moved = Instant::now();
    loop {
        let standing = ask_all(config, memberships, lost)?;
        let complete = complete_members(memberships.groups(), &standing, tails);
        let now = ends(&standing);
        if now != before {
            (before, moved) = (now, Instant::now());
        }
        if complete.iter().all(|(&group, members)| members.len() == present(group)) {
            return Ok(complete);
        }
        if moved.elapsed() > CATCH_UP_STALLS_AFTER {
            if complete.values().any(Vec::is_empty) {
                return Err(RescueError::Incomplete { end, standing: describe(&standing, tails) });
            }
            return Ok(complete);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The segments that lack something, for people.
fn describe(standing: &BTreeMap<NodeId, Vec<SegmentSummary>>, tails: &[GroupTail]) -> String {
    let mut parts = Vec::new();
    for (node, segments) in standing {
        for segment in segments {
            let wanted = tails.iter().find(|tail| tail.group == segment.group).map(|tail| tail.last_end);
            if wanted.is_some_and(|wanted| wanted > segment.segment_complete_lsn) {
                let (group, at) = (segment.group, segment.segment_complete_lsn);
                parts.push(format!("node {node} has group {group} to {at}"));
            }
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{EpochOpening, WriterId};

    fn segment(group: u16, complete: u64, epochs: &[(u64, u32)]) -> SegmentSummary {
        let mut history = EpochHistory::default();
        for &(epoch, minor) in epochs {
            let server_version = ServerVersion::new(150_000 + minor).expect("a release of version 15");
            history.push(EpochOpening { epoch: VolumeEpoch(epoch), last: RecordSpan::NONE, server_version });
        }
        SegmentSummary {
            group: GroupId(group),
            promised_epoch: history.newest_epoch(),
            promised_writer: WriterId(1),
            history,
            segment_complete_lsn: Lsn(complete),
            known_durable: RecordSpan::NONE,
            known_durable_tail: Lsn::ZERO,
            readable_through: Lsn::ZERO,
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
            joining: false,
            membership_epoch: borealis_types::MembershipEpoch(1),
        }
    }

    #[test]
    fn only_a_segment_that_has_its_group_to_the_end_may_be_copied() {
        let tails =
            [(0, 100), (1, 80)].map(|(group, end)| GroupTail { group: GroupId(group), last_end: Lsn(end) });
        let standing = BTreeMap::from([
            (NodeId(1), vec![segment(0, 100, &[]), segment(1, 72, &[])]),
            (NodeId(2), vec![segment(0, 96, &[]), segment(1, 80, &[])]),
            (NodeId(3), vec![segment(0, 100, &[]), segment(1, 80, &[])]),
            (NodeId(4), vec![segment(1, 80, &[])]),
            (NodeId(5), vec![segment(0, 120, &[]), segment(1, 80, &[])]),
            (NodeId(6), vec![SegmentSummary { joining: true, ..segment(0, 100, &[]) }]),
        ]);
        let membership = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
        let memberships = BTreeMap::from([0, 1].map(|group| (GroupId(group), membership.clone())));
        let complete = complete_members(&memberships, &standing, &tails);
        let of_first = &complete[&GroupId(0)];
        assert_eq!(
            *of_first,
            [NodeId(1), NodeId(3)],
            "node 4 does not host it, node 5 has too much, node 6 is joining"
        );
        assert_eq!(complete[&GroupId(1)], [2, 3, 4, 5].map(NodeId));
        let said = describe(&standing, &tails);
        assert!(
            said.contains("node 1 has group 1 to 0/48") && said.contains("node 2 has group 0 to 0/60"),
            "{said}"
        );
    }

    #[test]
    fn who_left_the_group_and_has_not_heard_of_it_is_not_copied() {
        let group = GroupId(0);
        let tails = [GroupTail { group, last_end: Lsn(100) }];
        let membership = GroupMembership::created([1, 2, 3, 4, 5, 7].map(NodeId)).expect("six nodes");
        let standing = BTreeMap::from([
            (NodeId(1), vec![segment(0, 100, &[])]),
            (NodeId(2), vec![segment(0, 96, &[])]),
            // It is asked because it is a member of another group.
            (NodeId(6), vec![segment(0, 100, &[]), segment(1, 80, &[])]),
        ]);
        let complete = complete_members(&BTreeMap::from([(group, membership)]), &standing, &tails);
        assert_eq!(complete[&group], [NodeId(1)]);
    }

    #[test]
    fn the_release_is_that_of_the_newest_history() {
        let standing = BTreeMap::from([
            (NodeId(1), vec![segment(0, 100, &[(1, 18), (2, 19)])]),
            (NodeId(2), vec![segment(0, 100, &[(1, 18), (3, 20)])]),
        ]);
        assert_eq!(newest_release(&standing), ServerVersion::new(150_020).ok());
        assert_eq!(newest_release(&BTreeMap::from([(NodeId(1), vec![segment(0, 0, &[])])])), None);
    }
}
