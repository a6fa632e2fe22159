//! Reads a whole volume as of one durable point, while it is written to.
//!
//! The point is one that the nodes know to be durable, at or after everything that a read quorum of each group knew to be when this began: so
//! every commit is in it that was acknowledged before, if its writer lived to tell the nodes so. One that died has
//! perhaps not ([`HeldPoint::has_more`]). The nodes keep everything as of it for as long as a lease is renewed ([`borealis_wire::Request::Pin`]); the writer goes on. Each page is
//! asked of one node that has it, as a server asks; a node that fails is left for another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use borealis_spec::Endpoint;
use borealis_types::{
    GroupId, Lsn, META_GROUP, MetaKey, NodeId, PAGE_SIZE, PageKey, READ_QUORUM, ReadPoint, RecordSpan,
    RelationFork, SlruKind, VolumeEpoch,
};
use borealis_wire::{Caller, Refusal, Reply, Request, SegmentSummary};

use crate::blocking::{ClientError, MAX_LIST_ENTRIES, NodeClient};
use crate::tls::Route;
use crate::verify::{Target, members_of_today};

/// How long the nodes keep the point when nobody asks any more.
const LEASE: Duration = Duration::from_secs(30);
/// The leases are renewed this often.
const RENEW_AFTER: Duration = Duration::from_secs(6);
/// How long to look for a point that a node of every group can keep.
const HOLD_PATIENCE: Duration = Duration::from_secs(30);
/// How long one question may stay without an answer from any node: an instance that starts holds reads up for a moment.
const ASK_PATIENCE: Duration = Duration::from_secs(30);
/// A node that did not answer is asked last for so long.
const REST: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a volume could not be read as of one point.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// No point was found that a node of every group can keep.
    #[error("no point of the volume can be read: {0}")]
    NoPoint(String),
    /// Nodes do not keep the point any more.
    #[error(
        "group {group} cannot be read as of {lsn} any more: its nodes gave the point up (they have no room for what a long \
         read keeps), or were started again; begin again, at a time with less load"
    )]
    Lost {
        /// The group.
        group: GroupId,
        /// The point.
        lsn: Lsn,
    },
    /// No node answers a question.
    #[error("no node of group {group} answers: {why}")]
    NoAnswer {
        /// The group.
        group: GroupId,
        /// What the last one said.
        why: String,
    },
}

/// A volume as of one point, kept by nodes while this is read.
pub struct HeldPoint<'t> {
    target: &'t Target,
    /// The last record that counts.
    last: RecordSpan,
    /// The newest epoch whose history nodes must have to be believed.
    epoch: VolumeEpoch,
    /// Of each group, the nodes that keep the point.
    sources: BTreeMap<GroupId, Vec<NodeId>>,
    addresses: BTreeMap<NodeId, Option<Endpoint>>,
    clients: BTreeMap<NodeId, NodeClient>,
    renewed: Instant,
    /// Nodes that did not answer, and until when others are asked first.
    resting: BTreeMap<NodeId, Instant>,
    has_more: bool,
}

impl<'t> HeldPoint<'t> {
    /// Finds the newest point that can be read, and has it kept.
    ///
    /// # Errors
    /// When there is none: too few nodes answer, or nothing was ever written.
    pub fn hold(target: &'t Target) -> Result<HeldPoint<'t>, PointError> {
        let (members, addresses) = members_of_today(target);
        let mut point = HeldPoint {
            target,
            last: RecordSpan::NONE,
            epoch: VolumeEpoch(0),
            sources: BTreeMap::new(),
            addresses,
            clients: BTreeMap::new(),
            renewed: Instant::now(),
            resting: BTreeMap::new(),
            has_more: false,
        };
        let deadline = Instant::now() + HOLD_PATIENCE;
        let mut why = String::new();
        let mut floor = None;
        loop {
            let summaries = point.summaries(&mut why);
            let groups: Vec<GroupId> = target.placement.groups().collect();
            let is_member = |node, group| members.get(&group).is_some_and(|nodes| nodes.contains(&node));
            let summaries: Vec<(NodeId, SegmentSummary)> =
                summaries.into_iter().filter(|(node, summary)| is_member(*node, summary.group)).collect();
            if floor.is_none() {
                floor = known_durable(&summaries, &groups);
            }
            match floor.map_or(Err(Lacking::Quorum), |floor| choose(&summaries, &groups, floor)) {
                Ok((epoch, last)) => {
                    (point.epoch, point.last) = (epoch, last);
                    point.has_more = has_more(&summaries, epoch, last);
                    match point.pin_all(&summaries, &groups) {
                        Ok(()) => return Ok(point),
                        Err(what) => why = what,
                    }
                }
                Err(Lacking::Quorum) => {
                    why = format!(
                        "fewer than {READ_QUORUM} nodes of some group answer, with a whole segment. {why}"
                    );
                }
                Err(Lacking::Segment(group)) => {
                    why = format!(
                        "no node of group {group} has everything up to what is known to be durable. {why}"
                    );
                }
            }
            if Instant::now() >= deadline {
                return Err(PointError::NoPoint(why));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The last record that counts: everything is read as of its end.
    #[must_use]
    pub fn last(&self) -> RecordSpan {
        self.last
    }

    /// Nodes have records behind the point. While a writer runs they always do; of one that died they may be acknowledged, which a recovery
    /// finds out.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Where every segment stands, of the nodes that answer.
    fn summaries(&mut self, why: &mut String) -> Vec<(NodeId, SegmentSummary)> {
        let mut all = Vec::new();
        for node in self.in_order(self.addresses.keys().copied().collect()) {
            match self
                .connected(node)
                .and_then(|client| client.summaries().map_err(|error| error.to_string()))
            {
                Ok(summaries) => all.extend(summaries.into_iter().map(|summary| (node, summary))),
                Err(error) => {
                    self.rest(node);
                    *why = error;
                }
            }
        }
        all
    }

    fn connected(&mut self, node: NodeId) -> Result<&mut NodeClient, String> {
        if self.clients.get(&node).is_none_or(NodeClient::is_broken) {
            let Some(address) = self.addresses.get(&node).and_then(Option::as_ref) else {
                return Err(format!("nobody says where node {node} is"));
            };
            let route = Route::new(address, self.target.credentials.as_ref());
            let (volume, timeouts) = (self.target.volume, self.target.timeouts);
            let client = NodeClient::connect(route, volume, node, Caller::Client, timeouts);
            self.clients.insert(node, client.map_err(|error| error.to_string())?);
        }
        self.clients.get_mut(&node).ok_or_else(|| format!("node {node} is not connected"))
    }

    /// Others are asked before it for a while.
    fn rest(&mut self, node: NodeId) {
        self.clients.remove(&node);
        self.resting.insert(node, Instant::now() + REST);
    }

    /// Those that answered last time first.
    fn in_order(&self, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        let now = Instant::now();
        nodes.sort_by_key(|node| self.resting.get(node).is_some_and(|until| now < *until));
        nodes
    }

    fn at(&self) -> ReadPoint {
        ReadPoint { epoch: self.epoch, lsn: self.last.end }
    }

    /// Has every node that can keep its groups. One of each group is enough.
    fn pin_all(&mut self, summaries: &[(NodeId, SegmentSummary)], groups: &[GroupId]) -> Result<(), String> {
        let at = self.at();
        self.sources = groups.iter().map(|group| (*group, Vec::new())).collect();
        let mut why = String::new();
        for (node, summary) in summaries {
            let group = summary.group;
            let pinned = self
                .connected(*node)
                .and_then(|client| client.pin(group, at, LEASE).map_err(|error| error.to_string()));
            match pinned {
                Ok(_) => self.sources.entry(group).or_default().push(*node),
                Err(error) => why = error,
            }
        }
        self.renewed = Instant::now();
        match self.sources.values().all(|nodes| !nodes.is_empty()) {
            true => {
                self.spread();
                Ok(())
            }
            false => Err(why),
        }
    }

    /// Lets each group begin with another of its nodes, so that all have a part of the work.
    fn spread(&mut self) {
        for (group, nodes) in &mut self.sources {
            let first = usize::from(group.0) % nodes.len().max(1);
            nodes.rotate_left(first);
        }
    }

    /// Renews the leases when it is time. Who does not keep the point any more is asked no more.
    fn renew(&mut self) {
        if self.renewed.elapsed() < RENEW_AFTER {
            return;
        }
        self.renewed = Instant::now();
        let at = self.at();
        for (group, nodes) in self.sources.clone() {
            let now = Instant::now();
            for node in nodes {
                // One that hangs would keep the others from being renewed in time.
                if self.resting.get(&node).is_some_and(|until| now < *until) {
                    continue;
                }
                match self.connected(node) {
                    Ok(client) => {
                        let answer = client.pin(group, at, LEASE);
                        self.judge(group, node, answer.err());
                    }
                    Err(_) => self.rest(node),
                }
            }
        }
    }

    /// Draws the conclusion from a failure. Returns what to say of it.
    fn judge(&mut self, group: GroupId, node: NodeId, error: Option<ClientError>) -> Option<String> {
        let error = error?;
        match error.refusal() {
            // An instance has taken the volume over. What was durable before it is in its history, too.
            Some(Refusal::Fenced(newer)) => self.epoch = self.epoch.max(*newer),
            Some(Refusal::NotReadable { .. } | Refusal::NoSegment(_)) => {
                self.sources.entry(group).or_default().retain(|source| *source != node);
            }
            Some(_) => {}
            // Answers to what it was asked before may still be due, so the connection ends.
            None => self.rest(node),
        }
        Some(error.to_string())
    }

    /// Asks the nodes of a group, one after another, until one answers.
    fn ask<T>(
        &mut self,
        group: GroupId,
        question: impl Fn(&mut NodeClient, ReadPoint) -> Result<T, ClientError>,
    ) -> Result<T, PointError> {
        let deadline = Instant::now() + ASK_PATIENCE;
        let mut why = String::new();
        loop {
            self.renew();
            let nodes = self.sources.get(&group).cloned().unwrap_or_default();
            if nodes.is_empty() {
                return Err(PointError::Lost { group, lsn: self.last.end });
            }
            for node in self.in_order(nodes) {
                let at = self.at();
                match self.connected(node) {
                    Ok(client) => match question(client, at) {
                        Ok(answer) => return Ok(answer),
                        Err(error) => why = self.judge(group, node, Some(error)).unwrap_or(why),
                    },
                    Err(error) => {
                        self.rest(node);
                        why = error;
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(PointError::NoAnswer { group, why });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Every small value, those included that lists leave out.
    ///
    /// # Errors
    /// See [`PointError`].
    pub fn values(&mut self) -> Result<Vec<(MetaKey, Vec<u8>)>, PointError> {
        self.ask(META_GROUP, |client, at| {
            let mut values: Vec<(MetaKey, Vec<u8>)> = Vec::new();
            for key in [MetaKey::Counters, MetaKey::ControlFileTemplate] {
                values.extend(client.read_meta(key.clone(), at)?.map(|value| (key, value)));
            }
            let mut after = None;
            loop {
                let (some, more) = client.list_meta(at, after, MAX_LIST_ENTRIES)?;
                after = some.last().map(|(key, _)| key.clone());
                for (key, part) in some {
                    let value = match part.is_whole() {
                        true => Some(part.bytes),
                        false => client.read_meta(key.clone(), at)?,
                    };
                    values.extend(value.map(|value| (key, value)));
                }
                if after.is_none() || !more {
                    return Ok(values);
                }
            }
        })
    }

    /// All forks of all relations, with their sizes in blocks.
    ///
    /// # Errors
    /// See [`PointError`].
    pub fn forks(&mut self) -> Result<BTreeMap<RelationFork, u32>, PointError> {
        let mut forks: BTreeMap<RelationFork, u32> = BTreeMap::new();
        for group in self.target.placement.groups() {
            let mut after: Option<RelationFork> = None;
            loop {
                let some =
                    self.ask(group, |client, at| client.list_forks(group, at, after, MAX_LIST_ENTRIES))?;
                let last = some.last().map(|size| size.relation_fork);
                for size in &some {
                    let blocks = forks.entry(size.relation_fork).or_default();
                    *blocks = size.blocks.max(*blocks);
                }
                // A list that does not go on would have no end.
                if last <= after {
                    break;
                }
                after = last;
            }
        }
        Ok(forks)
    }

    /// The pages that a transaction-status store has.
    ///
    /// # Errors
    /// See [`PointError`].
    pub fn slru_pages(&mut self, kind: SlruKind) -> Result<Vec<u32>, PointError> {
        let mut pages: Vec<u32> = Vec::new();
        loop {
            let Some(from) = pages.last().map_or(Some(0), |last| last.checked_add(1)) else {
                return Ok(pages);
            };
            let some =
                self.ask(META_GROUP, |client, at| client.slru_pages(kind, at, from, MAX_LIST_ENTRIES))?;
            if some.first().is_none_or(|first| *first < from) {
                return Ok(pages);
            }
            pages.extend(some);
        }
    }

    /// Pages of any groups, in the order of the keys; `None` for one that does not exist.
    ///
    /// # Errors
    /// See [`PointError`].
    pub fn pages(&mut self, keys: &[PageKey]) -> Result<Vec<Option<Vec<u8>>>, PointError> {
        let mut pages = vec![None; keys.len()];
        let mut of_groups: BTreeMap<GroupId, Vec<usize>> = BTreeMap::new();
        for (index, key) in keys.iter().enumerate() {
            of_groups.entry(self.target.placement.group_of(key)).or_default().push(index);
        }
        for (group, indexes) in of_groups {
            let answers = self.ask(group, |client, at| {
                for &index in &indexes {
                    client.send(&Request::ReadPage { group, key: keys[index], at })?;
                }
                // All are received also when one is refused: the next question's answers come behind them.
                let answers: Vec<_> = indexes.iter().map(|_| client.receive()).collect();
                answers.into_iter().map(|answer| answer.and_then(|reply| page_of(client, reply))).collect()
            })?;
            let answers: Vec<Option<Vec<u8>>> = answers;
            for (index, page) in indexes.into_iter().zip(answers) {
                pages[index] = page;
            }
        }
        Ok(pages)
    }
}

/// The page in a reply to a question for one.
fn page_of(client: &mut NodeClient, reply: Reply) -> Result<Option<Vec<u8>>, ClientError> {
    match reply {
        Reply::Page(None) => Ok(None),
        Reply::Page(Some(page)) if page.len() == PAGE_SIZE => Ok(Some(page)),
        _ => Err(client.protocol_error("an answer that is no page to a question for one".to_owned())),
    }
}

/// Why there is no point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lacking {
    /// Too few nodes answer.
    Quorum,
    /// No segment of this group can answer for a point that is new enough.
    Segment(GroupId),
}

/// The segments that know the newest history and lack nothing: one that missed a recovery may hold what that recovery cut.
fn whole_segments(
    summaries: &[(NodeId, SegmentSummary)],
) -> (VolumeEpoch, impl Iterator<Item = &SegmentSummary> + Clone) {
    let epoch = summaries.iter().map(|(_, summary)| summary.history.newest_epoch()).max().unwrap_or_default();
    let segments = summaries.iter().map(|(_, summary)| summary);
    (epoch, segments.filter(move |summary| !summary.joining && summary.history.newest_epoch() == epoch))
}

/// What is known to be durable, if a read quorum of every group answers: one of any three has heard of each commit that a living writer
/// acknowledged.
fn known_durable(summaries: &[(NodeId, SegmentSummary)], groups: &[GroupId]) -> Option<Lsn> {
    let (_, segments) = whole_segments(summaries);
    let has_quorum =
        |group: &GroupId| segments.clone().filter(|summary| summary.group == *group).count() >= READ_QUORUM;
    let known = segments.clone().map(|summary| summary.known_durable.end).max();
    known.filter(|_| groups.iter().all(has_quorum))
}

/// Whether somebody has records behind the point.
fn has_more(summaries: &[(NodeId, SegmentSummary)], epoch: VolumeEpoch, last: RecordSpan) -> bool {
    let (newest, mut segments) = whole_segments(summaries);
    newest == epoch && segments.any(|summary| summary.segment_complete_lsn > last.end)
}

/// The newest point, at or after `floor`, that a whole segment of every group can answer for, and the epoch of its history.
///
/// # Errors
/// A group that has none.
fn choose(
    summaries: &[(NodeId, SegmentSummary)],
    groups: &[GroupId],
    floor: Lsn,
) -> Result<(VolumeEpoch, RecordSpan), Lacking> {
    let (epoch, segments) = whole_segments(summaries);
    let segments: Vec<&SegmentSummary> = segments.collect();
    let mut points: Vec<RecordSpan> = segments.iter().map(|summary| summary.known_durable).collect();
    points.sort_unstable_by_key(|point| std::cmp::Reverse(point.end));
    points.dedup();
    let lacking = |point: &RecordSpan| {
        let can = |group: &GroupId| {
            let mut of_group = segments.iter().filter(|summary| summary.group == *group);
            of_group.any(|summary| {
                summary.readable_through >= point.end && summary.known_durable.end >= point.end
            })
        };
        groups.iter().copied().find(|group| !can(group))
    };
    let mut first_lacking = None;
    for point in points.into_iter().filter(|point| *point != RecordSpan::NONE && point.end >= floor) {
        match lacking(&point) {
            None => return Ok((epoch, point)),
            Some(group) => first_lacking = first_lacking.or(Some(group)),
        }
    }
    Err(Lacking::Segment(first_lacking.or(groups.first().copied()).unwrap_or(META_GROUP)))
}

#[cfg(test)]
mod tests {
    use borealis_types::{EpochHistory, EpochOpening, MembershipEpoch, ServerVersion, WriterId};

    use super::*;

    fn segment(group: u16, epoch: u64, durable_end: u64) -> (NodeId, SegmentSummary) {
        let mut history = EpochHistory::default();
        let server_version = ServerVersion::NEWEST_TESTED;
        for epoch in 1..=epoch {
            history.push(EpochOpening { epoch: VolumeEpoch(epoch), last: RecordSpan::NONE, server_version });
        }
        let end = Lsn(durable_end);
        let summary = SegmentSummary {
            group: GroupId(group),
            promised_epoch: VolumeEpoch(epoch),
            promised_writer: WriterId(1),
            history,
            segment_complete_lsn: end,
            known_durable: RecordSpan { start: Lsn(durable_end - 8), end },
            known_durable_tail: end,
            readable_through: end,
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
            joining: false,
            membership_epoch: MembershipEpoch(0),
        };
        (NodeId(1), summary)
    }

    const GROUPS: [GroupId; 2] = [GroupId(0), GroupId(1)];

    #[test]
    fn the_newest_point_that_every_group_has_is_chosen() {
        let all = [segment(0, 2, 300), segment(0, 2, 100), segment(1, 2, 200), segment(1, 2, 100)];
        let (epoch, last) = choose(&all, &GROUPS, Lsn::ZERO).expect("a point");
        assert_eq!((epoch, last.end), (VolumeEpoch(2), Lsn(200)));
        let lacking = |summaries, floor| choose(summaries, &GROUPS, floor);
        assert_eq!(
            lacking(&all[..2], Lsn::ZERO),
            Err(Lacking::Segment(GroupId(1))),
            "nobody has the second group"
        );
        assert_eq!(
            lacking(&all, Lsn(201)),
            Err(Lacking::Segment(GroupId(1))),
            "an older point misses commits"
        );
    }

    #[test]
    fn who_missed_a_recovery_or_is_joining_is_not_believed() {
        let mut all = [segment(0, 2, 300), segment(1, 1, 300), segment(1, 2, 100)];
        assert_eq!(choose(&all, &GROUPS, Lsn::ZERO).expect("a point").1.end, Lsn(100));
        all[2].1.joining = true;
        assert_eq!(choose(&all, &GROUPS, Lsn::ZERO), Err(Lacking::Segment(GroupId(1))));
    }

    #[test]
    fn three_of_each_group_say_what_is_durable_and_more_may_be() {
        let mut all = Vec::new();
        for group in [0, 1] {
            all.extend([100, 200, 300].map(|durable_end| segment(group, 2, durable_end)));
        }
        assert_eq!(known_durable(&all, &GROUPS), Some(Lsn(300)));
        assert_eq!(known_durable(&all[..5], &GROUPS), None, "two of six may have missed it");
        let last = all[2].1.known_durable;
        assert!(!has_more(&all, VolumeEpoch(2), last));
        all[4].1.segment_complete_lsn = Lsn(301);
        assert!(has_more(&all, VolumeEpoch(2), last));
        all[0] = segment(0, 1, 900);
        assert_eq!(known_durable(&all, &GROUPS), None, "what missed a recovery does not count");
    }
}
