//! Reads everything from every peer and names what differs.
//!
//! Each group is read in steps. In each step all reachable peers are asked for the same stretch of keys at
//! one LSN that all of them can answer, and the answers are compared key by key. The LSN is chosen anew for
//! every step, because a volume that is being written to forgets old versions while we read.

mod compare;
mod pace;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use borealis_spec::{Endpoint, Membership, NodeAddress};
use borealis_types::membership::GroupMembership;
use borealis_types::{
    DatabaseKey, GroupId, Lsn, META_GROUP, MetaKey, NodeId, PageKey, Placement, RelationFork, SlruKind,
    VolumeId, invariant,
};
use borealis_wire::{Caller, Refusal, Reply, Request, SegmentSummary};

use crate::blocking::{ClientError, NodeClient, Timeouts};
use crate::memberships::learn;
use crate::tls::{Credentials, Route};
use compare::{PeerList, compare};
use pace::Pace;
pub use report::{Difference, Finding, NotCompared, Report, Subject, Unreachable, Verdict};

/// How long peers may take to have an LSN in common before the ones behind are left out.
const COMMON_LSN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a node may take to say who the members are.
const LEARNING_PATIENCE: Duration = Duration::from_secs(3);
/// The tablespace and database of shared relations (`pg_global`).
const SHARED_RELATIONS: DatabaseKey =
    DatabaseKey { tablespace: borealis_types::GLOBAL_TABLESPACE, database: 0 };

/// The volume to verify, and where its nodes are.
#[derive(Clone, Debug)]
pub struct Target {
    /// A node of another volume refuses, and counts as unreachable.
    pub volume: VolumeId,
    /// Where nodes listen. Of members that are not listed, the others say where they are.
    pub nodes: Vec<NodeAddress>,
    /// The certificate to show to nodes that are spoken to over TLS.
    pub credentials: Option<Arc<Credentials>>,
    /// Which node has which group, or had it when the volume was made.
    pub groups: Membership,
    /// Of groups whose members are others by now, a newer membership that is known. The members are asked for the newest.
    pub memberships: BTreeMap<GroupId, GroupMembership>,
    /// How many groups there are.
    pub placement: Placement,
    /// Compare at this LSN only; otherwise at the newest that the peers have in common.
    pub lsn: Option<Lsn>,
    /// How long to wait for a node.
    pub timeouts: Timeouts,
}

/// Reads every page, relation size and small value from every reachable peer and compares them: from the members that the
/// groups have now.
///
/// Damage, differences and unreachable peers are part of the report, never an error. A member that is joining its group does
/// not have everything yet, and is not compared there.
#[must_use]
pub fn verify_volume(target: &Target) -> Report {
    let (members, addresses) = members_of_today(target);
    let mut verifier = Verifier {
        target,
        clients: BTreeMap::new(),
        left_out: BTreeSet::new(),
        refusing: BTreeSet::new(),
        report: Report { nodes: addresses.len(), ..Report::default() },
        members,
        addresses,
    };
    verifier.connect();
    let mut databases = BTreeSet::from([SHARED_RELATIONS]);
    verifier.meta(&mut databases);
    for group in target.placement.groups() {
        verifier.pages(group);
        for database in &databases {
            verifier.relations(group, *database);
        }
    }
    verifier.report
}

pub(crate) type Members = BTreeMap<GroupId, BTreeSet<NodeId>>;

/// The members of each group, and where each of them is, as far as anybody says. A group that does not have six nodes, as
/// in tests of single nodes, stores no membership and is taken as it is configured.
pub(crate) fn members_of_today(target: &Target) -> (Members, BTreeMap<NodeId, Option<Endpoint>>) {
    let known_of = |group| {
        let known = target.memberships.get(&group).cloned();
        known.or_else(|| target.groups.created(group).ok()).map(|known| (group, known))
    };
    let known = target.placement.groups().filter_map(known_of).collect();
    let timeouts = Timeouts { call: target.timeouts.call.min(LEARNING_PATIENCE), ..target.timeouts };
    let learned = learn(&known, &target.nodes, target.credentials.as_ref(), target.volume, timeouts);
    let of_group = |group: GroupId| {
        let members = learned.memberships.get(&group).map(GroupMembership::members);
        (group, members.unwrap_or_else(|| target.groups.nodes_of(group).iter().copied().collect()))
    };
    let members: Members = target.placement.groups().map(of_group).collect();
    let address_of = |&node: &NodeId| {
        let mut known = learned.nodes.iter().chain(&target.nodes);
        (node, known.find(|known| known.node == node).map(|known| known.address.clone()))
    };
    let addresses = members.values().flatten().map(address_of).collect();
    (members, addresses)
}

struct Verifier<'a> {
    target: &'a Target,
    clients: BTreeMap<NodeId, NodeClient>,
    /// Peers not compared any more in one group; the report says why.
    left_out: BTreeSet<(NodeId, GroupId)>,
    /// Peers that refused the question at hand; the report says so.
    refusing: BTreeSet<NodeId>,
    report: Report,
    /// Of each group.
    members: Members,
    /// Of each member; `None` if nobody says where it is.
    addresses: BTreeMap<NodeId, Option<Endpoint>>,
}

/// Entries in key order, and whether the list ends with them.
type Entries<K, V> = (Vec<(K, V)>, bool);

/// One comparison's questions and how to read the answers.
struct Question<'q, K, V> {
    group: GroupId,
    request: &'q dyn Fn(Lsn, Option<K>, u32) -> Request,
    /// The entries of a reply and whether the list ends with them; `None` if the reply is of another kind.
    entries: &'q dyn Fn(Reply, u32) -> Option<Entries<K, V>>,
    subject: &'q dyn Fn(&K) -> Subject,
    /// What a peer that refuses to answer cannot produce.
    whole: Subject,
    /// Whether a value says that the peer could not produce it.
    unreadable: &'q dyn Fn(&V) -> bool,
}

/// Why a step was not completed.
enum StepFailure {
    /// The peers' readable ranges moved past the LSN; another one may work.
    Moved,
    /// A peer did not answer in time, and was connected to again.
    Slow,
    /// No peer is left to compare.
    NobodyLeft,
}

/// What a refusal means for the comparison.
enum OnRefusal {
    /// It is in order; the step will be repeated.
    Excuse,
    /// The peer cannot be compared any more in this group.
    LeaveOut,
    /// The peer says nothing about what was asked for, which says nothing about its copy either.
    NotCompared(Subject),
}

impl Verifier<'_> {
    fn connect(&mut self) {
        for node in self.addresses.keys().copied().collect::<Vec<_>>() {
            match self.connection_to(node) {
                Ok(client) => {
                    self.clients.insert(node, client);
                }
                Err(why) => self.report.unreachable.push(Unreachable { node, why }),
            }
        }
    }

    fn connection_to(&self, node: NodeId) -> Result<NodeClient, String> {
        let Some(address) = self.addresses.get(&node).and_then(Option::as_ref) else {
            return Err("nobody says where it is".to_owned());
        };
        let route = Route::new(address, self.target.credentials.as_ref());
        NodeClient::connect(route, self.target.volume, node, Caller::Client, self.target.timeouts)
            .map_err(|error| error.to_string())
    }

    /// Compares the small values of the meta group and collects the databases they name.
    fn meta(&mut self, databases: &mut BTreeSet<DatabaseKey>) {
        let group = META_GROUP;
        let subject = |key: &MetaKey| Subject::Meta { key: key.clone() };
        let values = self.compare_all(&Question {
            group,
            request: &|lsn, after, limit| Request::ListMeta { at: lsn.into(), after, limit },
            entries: &|reply, _| match reply {
                Reply::MetaList { values, more } => Some((values, !more)),
                _ => None,
            },
            subject: &subject,
            whole: Subject::SmallValues,
            unreadable: &|_| false,
        });
        databases.extend(values.iter().filter_map(|key| match key {
            MetaKey::Database(database) => Some(*database),
            _ => None,
        }));
        let mut compared = values.len() as u64;
        for key in [MetaKey::Counters, MetaKey::ControlFileTemplate] {
            compared += self
                .compare_all(&Question {
                    group,
                    request: &|lsn, _, _| Request::ReadMeta { key: key.clone(), at: lsn.into(), offset: 0 },
                    entries: &|reply, _| match reply {
                        Reply::Meta(value) => Some((vec![(key.clone(), value)], true)),
                        _ => None,
                    },
                    subject: &subject,
                    whole: subject(&key),
                    unreadable: &|_| false,
                })
                .len() as u64;
        }
        self.report.values_compared += compared;
        for kind in SlruKind::ALL {
            self.compare_all(&Question {
                group,
                request: &|lsn, after, limit| Request::SlruPages {
                    kind,
                    at: lsn.into(),
                    from: after.map_or(0, |page: u32| page.saturating_add(1)),
                    limit,
                },
                entries: &|reply, limit| match reply {
                    Reply::SlruPages(pages) => {
                        let ended = pages.len() < limit as usize;
                        Some((pages.into_iter().map(|page| (page, ())).collect(), ended))
                    }
                    _ => None,
                },
                subject: &|page: &u32| Subject::Page { key: PageKey::Slru { kind, page: *page } },
                whole: Subject::SlruPages { kind },
                unreadable: &|()| false,
            });
        }
    }

    fn pages(&mut self, group: GroupId) {
        let keys = self.compare_all(&Question {
            group,
            request: &|lsn, after, limit| Request::PageChecksums { group, at: lsn.into(), after, limit },
            entries: &|reply, limit| match reply {
                Reply::PageChecksums(checksums) => {
                    let ended = checksums.len() < limit as usize;
                    Some((checksums.into_iter().map(|page| (page.key, page.checksum)).collect(), ended))
                }
                _ => None,
            },
            subject: &|key: &PageKey| Subject::Page { key: *key },
            whole: Subject::Segment,
            unreadable: &|checksum: &Option<u32>| checksum.is_none(),
        });
        self.report.pages_compared += keys.len() as u64;
    }

    fn relations(&mut self, group: GroupId, database: DatabaseKey) {
        let forks = self.compare_all(&Question {
            group,
            request: &|lsn, after, limit| Request::ListRelations {
                group,
                database,
                at: lsn.into(),
                after,
                limit,
            },
            entries: &|reply, limit| match reply {
                Reply::Relations(relations) => {
                    let ended = relations.len() < limit as usize;
                    Some((
                        relations.into_iter().map(|size| (size.relation_fork, size.blocks)).collect(),
                        ended,
                    ))
                }
                _ => None,
            },
            subject: &|fork: &RelationFork| Subject::RelationSize { relation_fork: *fork },
            whole: Subject::Relations { database },
            unreadable: &|_| false,
        });
        self.report.relation_parts_compared += forks.len() as u64;
    }

    /// Compares a whole list step by step; returns its keys.
    fn compare_all<K: Ord + Clone, V: PartialEq>(&mut self, question: &Question<'_, K, V>) -> Vec<K> {
        self.refusing.clear();
        let mut keys = Vec::new();
        let mut after: Option<K> = None;
        let mut pace = Pace::new();
        let mut patience_until = Instant::now() + COMMON_LSN_PATIENCE;
        loop {
            let begun = Instant::now();
            let out_of_patience = begun >= patience_until;
            match self.step(question, after.clone(), &mut pace, out_of_patience) {
                Ok((step_keys, ended)) => {
                    thread::sleep(pace.completed(begun.elapsed()));
                    patience_until = Instant::now() + COMMON_LSN_PATIENCE;
                    after = step_keys.last().cloned().or(after);
                    let moved = !step_keys.is_empty();
                    keys.extend(step_keys);
                    if ended || !moved {
                        return keys;
                    }
                }
                Err(StepFailure::Moved) => thread::sleep(pace.outrun()),
                Err(StepFailure::Slow) => patience_until = Instant::now() + COMMON_LSN_PATIENCE,
                Err(StepFailure::NobodyLeft) => return keys,
            }
        }
    }

    /// One stretch of keys at one LSN: the keys compared, and whether the list ended with them.
    fn step<K: Ord + Clone, V: PartialEq>(
        &mut self,
        question: &Question<'_, K, V>,
        after: Option<K>,
        pace: &mut Pace,
        out_of_patience: bool,
    ) -> Result<(Vec<K>, bool), StepFailure> {
        let group = question.group;
        let limit = pace.entries();
        let summaries = self.ask_all(
            group,
            &Request::Summaries,
            |reply| match reply {
                Reply::Summaries(summaries) => summaries.into_iter().find(|summary| summary.group == group),
                _ => None,
            },
            |_| OnRefusal::NotCompared(Subject::Segment),
            pace,
        )?;
        let summaries = self.leave_out_joining(group, summaries);
        let lsn = self.choose_lsn(group, &summaries, out_of_patience)?;
        let request = (question.request)(lsn, after.clone(), limit);
        let mut moved = false;
        let answers = self.ask_all(
            group,
            &request,
            |reply| (question.entries)(reply, limit),
            |refusal| match refusal {
                Refusal::NotReadable { .. } if out_of_patience => OnRefusal::LeaveOut,
                Refusal::NotReadable { .. } => {
                    moved = true;
                    OnRefusal::Excuse
                }
                _ => OnRefusal::NotCompared(question.whole.clone()),
            },
            pace,
        )?;
        if moved {
            return Err(StepFailure::Moved);
        }
        if answers.is_empty() {
            return Err(StepFailure::NobodyLeft);
        }
        let mut lists = Vec::with_capacity(answers.len());
        for (node, (entries, ended)) in answers {
            let ascending = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
            let continues =
                entries.first().is_none_or(|(key, _)| after.as_ref().is_none_or(|after| key > after));
            if ascending && continues {
                lists.push(PeerList { node, entries, ended });
            } else {
                self.leave_out(node, group, "its list is not in key order".to_owned());
            }
        }
        let compared = compare(lists, question.unreadable);
        for (key, node, difference) in compared.differences {
            self.report.add(Finding { node, group, subject: (question.subject)(&key), difference });
        }
        self.report.note_lsn(lsn);
        Ok((compared.keys, compared.ended))
    }

    /// The newest LSN that every peer still compared can answer.
    fn choose_lsn(
        &mut self,
        group: GroupId,
        summaries: &[(NodeId, SegmentSummary)],
        out_of_patience: bool,
    ) -> Result<Lsn, StepFailure> {
        if summaries.is_empty() {
            return Err(StepFailure::NobodyLeft);
        }
        let oldest = summaries.iter().map(|(_, s)| s.minimum_read_point).max().unwrap_or_default();
        let newest = summaries.iter().map(|(_, s)| s.readable_through).min().unwrap_or_default();
        let wanted = self.target.lsn.unwrap_or(newest);
        if oldest <= wanted && wanted <= newest {
            assert_readable_on_all(summaries, wanted);
            return Ok(wanted);
        }
        if !out_of_patience {
            return Err(StepFailure::Moved);
        }
        // Leave out whoever makes an answer impossible; the report names them.
        for (node, summary) in summaries {
            let (from, through) = (summary.minimum_read_point, summary.readable_through);
            let too_far = self.target.lsn.is_some_and(|lsn| lsn < from);
            if through < self.target.lsn.unwrap_or(oldest) || too_far {
                let why = format!("it answers from {from} through {through}, the others from {oldest}");
                self.leave_out(*node, group, why);
            }
        }
        Err(StepFailure::Moved)
    }

    /// Those of the peers that have everything of the group.
    fn leave_out_joining(
        &mut self,
        group: GroupId,
        summaries: Vec<(NodeId, SegmentSummary)>,
    ) -> Vec<(NodeId, SegmentSummary)> {
        let (joining, full): (Vec<_>, Vec<_>) =
            summaries.into_iter().partition(|(_, summary)| summary.joining);
        for (node, _) in joining {
            self.leave_out(
                node,
                group,
                "it is joining the group and does not have everything yet".to_owned(),
            );
        }
        full
    }

    fn leave_out(&mut self, node: NodeId, group: GroupId, why: String) {
        if self.left_out.insert((node, group)) {
            self.report.add_not_compared(NotCompared { node, group, subject: Subject::Segment, why });
        }
    }

    fn participants(&self, group: GroupId) -> Vec<NodeId> {
        self.clients
            .keys()
            .copied()
            .filter(|node| self.members.get(&group).is_some_and(|members| members.contains(node)))
            .filter(|node| !self.left_out.contains(&(*node, group)) && !self.refusing.contains(node))
            .collect()
    }

    /// Asks every participant at once. One whose connection breaks is unreachable from here on; one that is only slow is
    /// asked again for less, some times.
    fn ask_all<T>(
        &mut self,
        group: GroupId,
        request: &Request,
        read: impl Fn(Reply) -> Option<T>,
        mut on_refusal: impl FnMut(&Refusal) -> OnRefusal,
        pace: &mut Pace,
    ) -> Result<Vec<(NodeId, T)>, StepFailure> {
        let participants = self.participants(group);
        let mut failures: Vec<(NodeId, ClientError)> = Vec::new();
        for node in &participants {
            if let Some(client) = self.clients.get_mut(node)
                && let Err(error) = client.send(request)
            {
                failures.push((*node, error));
            }
        }
        let mut answers = Vec::new();
        for node in participants {
            if failures.iter().any(|(failed, _)| *failed == node) {
                continue;
            }
            let Some(client) = self.clients.get_mut(&node) else { continue };
            match client.receive() {
                Ok(reply) => match read(reply) {
                    Some(answer) => answers.push((node, answer)),
                    None => {
                        let why = "it answered another question than it was asked".to_owned();
                        self.leave_out(node, group, why);
                    }
                },
                Err(ClientError::Refused { refusal, .. }) => match on_refusal(&refusal) {
                    OnRefusal::Excuse => {}
                    OnRefusal::LeaveOut => self.leave_out(node, group, refusal.to_string()),
                    OnRefusal::NotCompared(subject) => {
                        let why = format!("the node refuses to answer: {refusal}");
                        self.report.add_not_compared(NotCompared { node, group, subject, why });
                        self.refusing.insert(node);
                    }
                },
                Err(error) => failures.push((node, error)),
            }
        }
        let is_slow = |error: &ClientError| matches!(error, ClientError::NoAnswer { .. });
        let ask_again = failures.iter().any(|(_, error)| is_slow(error)) && pace.timed_out();
        let mut slow = false;
        for (node, error) in failures {
            self.clients.remove(&node);
            if ask_again
                && is_slow(&error)
                && let Ok(client) = self.connection_to(node)
            {
                self.clients.insert(node, client);
                slow = true;
                continue;
            }
            self.report.unreachable.push(Unreachable { node, why: error.to_string() });
        }
        if slow { Err(StepFailure::Slow) } else { Ok(answers) }
    }
}

/// Asserted before peers are compared: a peer asked outside of its readable range would seem to lack what it has.
fn assert_readable_on_all(summaries: &[(NodeId, SegmentSummary)], lsn: Lsn) {
    for (node, summary) in summaries {
        let (from, through) = (summary.minimum_read_point, summary.readable_through);
        invariant!(
            "compared-where-every-peer-can-answer",
            (from..=through).contains(&lsn),
            "node {node} answers from {from} through {through}, not at {lsn}"
        );
    }
}

#[cfg(test)]
mod tests;
