//! A node whose words are not true: broken, or lied to by a stranger.

use std::rc::Rc;

use borealis_quorum::membership::{MembershipState, Replacement, Transition};
use borealis_quorum::segment::SegmentSummary;
use borealis_types::{EpochHistory, EpochOpening, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch};

use crate::message::SimRecord;
use crate::random::Random;

/// A node that does not exist.
const MADE_UP_NODE: u16 = 99;

/// Beyond everything that a run writes.
const FAR: u64 = 1 << 32;

/// What one node tells its peers and recoveries of its segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// That the volume is durable far beyond its end.
    DurableFar,
    /// That another record ends where the durable ones do.
    DurableElsewhere,
    /// That a recovery opened an epoch where this node knows all to be durable, and cut what comes after.
    HistoryThatCuts,
    /// That a recovery opened an epoch far beyond the volume's end.
    HistoryFar,
    /// That it has nothing and knows of nothing, as after a disk was rolled back.
    RolledBack,
    /// That other records stand where those do that who asks does not know to be durable.
    OtherRecords,
    /// That its group chose another membership.
    OtherMembers,
}

impl Lie {
    /// Any of them.
    pub fn draw(random: &mut Random) -> Lie {
        let all = [
            Lie::DurableFar,
            Lie::DurableElsewhere,
            Lie::HistoryThatCuts,
            Lie::HistoryFar,
            Lie::RolledBack,
            Lie::OtherRecords,
            Lie::OtherMembers,
        ];
        all[random.below(all.len() as u64) as usize]
    }

    /// What it makes of the truth.
    #[must_use]
    pub fn told(self, truth: SegmentSummary) -> SegmentSummary {
        let mut told = truth;
        let known = told.known_durable.volume;
        match self {
            Lie::DurableFar => durable_far(&mut told),
            Lie::DurableElsewhere => told.known_durable.volume.start = Lsn(known.start.0 + 1),
            Lie::HistoryThatCuts => open_next(&mut told, known),
            Lie::HistoryFar => {
                durable_far(&mut told);
                let far = told.known_durable.volume;
                open_next(&mut told, far);
            }
            Lie::RolledBack => {
                told.history = EpochHistory::default();
                told.complete = RecordSpan::NONE;
                told.known_durable = Default::default();
                told.minimum_read_point = Lsn::ZERO;
            }
            Lie::OtherRecords | Lie::OtherMembers => {}
        }
        told
    }

    /// What it makes of a record that a peer asks for and does not know to be durable.
    #[must_use]
    pub fn sent(self, record: &Rc<SimRecord>) -> Rc<SimRecord> {
        match self {
            // No writer draws such a number.
            Lie::OtherRecords => Rc::new(SimRecord { content: !record.content, ..(**record).clone() }),
            _ => Rc::clone(record),
        }
    }

    /// What it makes of the truth about memberships, to peers and instances. To controllers it tells the truth: like any
    /// Paxos, the choice bears members that are silent, not members that lie about their votes.
    #[must_use]
    pub fn told_members(self, truth: MembershipState) -> MembershipState {
        let installed = truth.installed();
        let made_up = match (self, installed.replacements().first()) {
            (Lie::OtherMembers, Some(&begun)) => installed.after(Transition::Finish(begun)),
            (Lie::OtherMembers, None) => {
                let [old, ..] = *installed.base();
                installed.after(Transition::Begin(Replacement { old, new: NodeId(MADE_UP_NODE) }))
            }
            _ => return truth,
        };
        made_up.map_or(truth, MembershipState::new)
    }
}

fn durable_far(told: &mut SegmentSummary) {
    let end = Lsn(told.known_durable.volume.end.0 + FAR);
    told.known_durable.volume = RecordSpan { start: Lsn(end.0 - 8), end };
    told.known_durable.group_tail = end;
    told.complete = told.known_durable.volume;
    told.minimum_read_point = end;
}

/// Adds an opening of an epoch that nobody was ever promised: before the one of the recovery that asks, if one does.
fn open_next(told: &mut SegmentSummary, last: RecordSpan) {
    let (promised, newest) = (told.promised.epoch.0, told.history.newest_epoch().0);
    let epoch = VolumeEpoch(if promised > newest { promised - 1 } else { newest + 1 });
    if told.history.newest().is_none_or(|newest| newest.last.end <= last.end) && epoch.0 > newest {
        told.history.push(EpochOpening { epoch, last, server_version: ServerVersion::NEWEST_TESTED });
        told.promised.epoch = told.promised.epoch.max(epoch);
    }
}
