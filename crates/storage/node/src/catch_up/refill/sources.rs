//! The peers that a refill asks, and their answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::{ClientError, Credentials, NodeClient, Route, Timeouts};
use borealis_spec::NodeAddress;
use borealis_types::{GroupId, MetaKey, NodeId, PageKey, ReadPoint, VolumeId};
use borealis_wire::{Caller, PageChecksum, Refusal, RelationSize, Reply, Request};

use super::plan::{Plan, RANGE_PAGES, Survey};

/// For a peer to answer.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(10) };
/// How long a peer keeps what is read there when nobody asks any more.
const LEASE: Duration = Duration::from_secs(30);
/// Pins are renewed this often.
const RENEW_AFTER: Duration = Duration::from_secs(8);
/// Entries of a list that are asked for at a time.
const LIST_ENTRIES: u32 = 1024;

/// Connections to peers that keep one group as of one LSN for this node.
pub(super) struct Sources {
    volume: VolumeId,
    node: NodeId,
    group: GroupId,
    credentials: Option<Arc<Credentials>>,
    clients: BTreeMap<NodeId, NodeClient>,
    renewed: Instant,
}

/// What two peers said to one survey.
pub(super) type Surveyed = [Vec<PageChecksum>; 2];

impl Sources {
    pub(super) fn new(
        volume: VolumeId,
        node: NodeId,
        group: GroupId,
        credentials: Option<Arc<Credentials>>,
    ) -> Sources {
        Sources { volume, node, group, credentials, clients: BTreeMap::new(), renewed: Instant::now() }
    }

    /// Pins `at` on every peer that can. Returns these, and the most pages that one of two says there are: one alone may
    /// say anything.
    pub(super) fn pin_all(&mut self, peers: &[NodeAddress], at: ReadPoint) -> (Vec<NodeId>, u64) {
        let mut pages = Vec::new();
        let mut pinned = Vec::new();
        let group = self.group;
        for peer in peers {
            match self.connected(peer).and_then(|client| client.pin(group, at, LEASE)) {
                Ok(count) => {
                    pages.push(count);
                    pinned.push(peer.node);
                }
                Err(error) => {
                    tracing::debug!(peer = %peer.node, group = %self.group, %error, "cannot be refilled from this peer");
                }
            }
        }
        self.renewed = Instant::now();
        pages.sort_unstable();
        (pinned, pages.iter().rev().nth(1).copied().unwrap_or_default())
    }

    fn connected(&mut self, peer: &NodeAddress) -> Result<&mut NodeClient, ClientError> {
        if self.clients.get(&peer.node).is_none_or(NodeClient::is_broken) {
            let caller = Caller::Peer(self.node);
            let route = Route::new(&peer.address, self.credentials.as_ref());
            let client = NodeClient::connect(route, self.volume, peer.node, caller, TIMEOUTS)?;
            self.clients.insert(peer.node, client);
        }
        Ok(self.clients.get_mut(&peer.node).expect("it is connected"))
    }

    /// Renews the pins when it is time. Peers that do not keep it any more are lost to the plan.
    pub(super) fn renew(&mut self, plan: &mut Plan, at: ReadPoint) {
        if self.renewed.elapsed() < RENEW_AFTER {
            return;
        }
        self.renewed = Instant::now();
        for peer in plan.peers().to_vec() {
            let group = self.group;
            self.ask(plan, peer, |client| client.pin(group, at, LEASE));
        }
    }

    /// Ends the pins: everything is here.
    pub(super) fn release(&mut self, at: ReadPoint) {
        for (peer, client) in &mut self.clients {
            if let Err(error) = client.pin(self.group, at, Duration::ZERO) {
                tracing::debug!(%peer, %error, "a pin is left to its lease");
            }
        }
    }

    /// Asks one peer. One that does not answer is lost to the plan.
    fn ask<T>(
        &mut self,
        plan: &mut Plan,
        peer: NodeId,
        question: impl FnOnce(&mut NodeClient) -> Result<T, ClientError>,
    ) -> Option<T> {
        let answer = self.clients.get_mut(&peer).map(question);
        match answer {
            Some(Ok(answer)) => Some(answer),
            Some(Err(error)) => {
                tracing::debug!(%peer, group = %self.group, %error, "the refill goes on without this peer");
                // Answers to what it was asked before may still be due.
                self.clients.remove(&peer);
                plan.lose(peer);
                None
            }
            None => {
                plan.lose(peer);
                None
            }
        }
    }

    /// Asks for pages, and for the checksums of the next range behind them, of all peers at once. Takes what pages come.
    pub(super) fn ask_all(
        &mut self,
        plan: &mut Plan,
        at: ReadPoint,
        pages: &BTreeMap<NodeId, Vec<PageKey>>,
        survey: Option<Survey>,
    ) -> (Option<Surveyed>, u64) {
        let group = self.group;
        let surveyors = survey.map(|survey| survey.peers).into_iter().flatten();
        let mut peers: Vec<NodeId> = pages.keys().copied().chain(surveyors).collect();
        peers.sort_unstable();
        peers.dedup();
        for &peer in &peers {
            let keys = pages.get(&peer).map_or(&[][..], Vec::as_slice);
            let asked = survey.filter(|survey| survey.peers.contains(&peer));
            self.ask(plan, peer, |client| {
                keys.iter().try_for_each(|&key| client.send(&Request::ReadPage { group, key, at }))?;
                asked.map_or(Ok(()), |Survey { after, .. }| {
                    client.send(&Request::PageChecksums { group, at, after, limit: RANGE_PAGES })
                })
            });
        }
        let mut bytes = 0;
        let mut lists: BTreeMap<NodeId, Vec<PageChecksum>> = BTreeMap::new();
        for &peer in &peers {
            if !plan.peers().contains(&peer) {
                continue;
            }
            for key in pages.get(&peer).into_iter().flatten() {
                // A page that the peer cannot make is asked of another; everything else ends its part.
                let answer = self.ask(plan, peer, |client| match client.receive() {
                    Ok(Reply::Page(page)) => Ok(page),
                    Ok(_) => Ok(None),
                    Err(error) if is_of_one_page(&error) => Ok(None),
                    Err(error) => Err(error),
                });
                let Some(answer) = answer else { break };
                bytes += answer.as_ref().map_or(0, Vec::len) as u64;
                plan.fetched(peer, key, answer);
            }
            if survey.is_some_and(|survey| survey.peers.contains(&peer)) && plan.peers().contains(&peer) {
                let list = self.ask(plan, peer, NodeClient::receive);
                if let Some(Reply::PageChecksums(list)) = list {
                    lists.insert(peer, list);
                }
            }
        }
        let both = survey.and_then(|survey| {
            let [one, other] = survey.peers;
            Some([lists.remove(&one)?, lists.remove(&other)?])
        });
        (both, bytes)
    }

    /// What each of these peers has for a page.
    pub(super) fn page_of_each(
        &mut self,
        plan: &mut Plan,
        at: ReadPoint,
        key: PageKey,
        peers: &[NodeId],
    ) -> Vec<Option<Vec<u8>>> {
        let group = self.group;
        let ask = |peer: &NodeId| {
            let answer = self.ask(plan, *peer, |client| match client.read_page(group, key, at) {
                Ok(page) => Ok(Some(page)),
                Err(error) if is_of_one_page(&error) => Ok(None),
                Err(error) => Err(error),
            });
            answer.flatten()
        };
        peers.iter().filter_map(ask).collect()
    }

    /// The sizes of all forks as two peers agree on them.
    pub(super) fn relations(&mut self, plan: &mut Plan, at: ReadPoint) -> Option<Vec<RelationSize>> {
        let group = self.group;
        self.agreed(plan, |client| {
            let mut all: Vec<RelationSize> = Vec::new();
            loop {
                let after = all.last().map(|size| size.relation_fork);
                let some = client.list_forks(group, at, after, LIST_ENTRIES)?;
                let ascends =
                    some.first().is_none_or(|first| after.is_none_or(|after| first.relation_fork > after));
                let ends = (some.len() as u32) < LIST_ENTRIES || !ascends;
                all.extend(some);
                if ends {
                    return Ok(all);
                }
            }
        })
    }

    /// The names of all small values, and the length and checksum of each, as two peers agree on them; and then the values.
    pub(super) fn values(&mut self, plan: &mut Plan, at: ReadPoint) -> Option<Vec<(MetaKey, Vec<u8>)>> {
        let listed = self.agreed(plan, |client| list_values(client, at))?;
        let mut values = Vec::new();
        for (key, total_bytes, checksum) in listed {
            let of_checksum =
                |value: &Vec<u8>| value.len() as u64 == total_bytes && crc32c::crc32c(value) == checksum;
            let value = plan.peers().to_vec().into_iter().find_map(|peer| {
                let value = self.ask(plan, peer, |client| client.read_meta(key.clone(), at))?;
                value.filter(of_checksum)
            })?;
            values.push((key, value));
        }
        Some(values)
    }

    /// The first answer that two peers give.
    fn agreed<T: PartialEq>(
        &mut self,
        plan: &mut Plan,
        question: impl Fn(&mut NodeClient) -> Result<T, ClientError>,
    ) -> Option<T> {
        let mut answers: Vec<T> = Vec::new();
        for peer in plan.peers().to_vec() {
            let Some(answer) = self.ask(plan, peer, &question) else { continue };
            if answers.contains(&answer) {
                return Some(answer);
            }
            answers.push(answer);
        }
        None
    }
}

/// Every value's name, length and checksum, and the two that lists leave out.
fn list_values(client: &mut NodeClient, at: ReadPoint) -> Result<Vec<(MetaKey, u64, u32)>, ClientError> {
    let mut all: Vec<(MetaKey, u64, u32)> = Vec::new();
    loop {
        let after = all.last().map(|(key, ..)| key.clone());
        let (some, more) = client.list_meta(at, after, LIST_ENTRIES)?;
        let goes_on = more && !some.is_empty();
        all.extend(some.into_iter().map(|(key, part)| (key, part.total_bytes, part.checksum)));
        if !goes_on {
            break;
        }
    }
    for key in [MetaKey::Counters, MetaKey::ControlFileTemplate] {
        if let Some(value) = client.read_meta(key.clone(), at)? {
            all.push((key, value.len() as u64, crc32c::crc32c(&value)));
        }
    }
    Ok(all)
}

/// Whether a peer failed to make one page, while it can make others.
fn is_of_one_page(error: &ClientError) -> bool {
    matches!(error.refusal(), Some(Refusal::Failed(_) | Refusal::NotNow(_)))
}
