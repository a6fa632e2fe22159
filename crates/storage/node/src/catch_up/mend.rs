//! Bringing back from peers what is damaged here: single pages, and entries of the log.
//!
//! A page is taken only when two peers give the same bytes as of the same LSN of the same epoch's stream: one answer could
//! be of a peer that is wrong itself. What may be asked for, and until when an answer is of use, the store says
//! ([`Store::pages_to_heal`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::{ClientError, Credentials, NodeClient, Route, Timeouts};
use borealis_spec::{NodeAddress, NodeConfig};
use borealis_store::{EntryToRepair, PageToHeal, Store};
use borealis_types::{GroupId, Lsn, NodeId, PageBytes, PageKey, VolumeId};
use borealis_wire::{BatchReader, Caller};

use super::known::Known;
use crate::line_throttle::LineThrottle;
use crate::members::Members;

/// Between two looks at what is damaged.
const INTERVAL: Duration = Duration::from_millis(500);
/// Pages asked for before the next look: a round writes them, and then they take no memory.
const PAGES_AT_ONCE: usize = 256;
/// How often a page is asked for at another LSN before the next page.
const ATTEMPTS: usize = 6;
/// Peers of the same release fail at the same record, so a page in quarantine is asked for seldom.
const QUARANTINE_INTERVAL: Duration = Duration::from_secs(60);
/// Redo asked for at a time.
const TAIL_BYTES: u32 = 1 << 20;
/// For a peer to answer.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(5) };

/// A page as a peer has it; `None` if it does not exist.
type Answer = Option<Vec<u8>>;

/// Brings back what is damaged, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Mender {
    volume: VolumeId,
    node: NodeId,
    members: Arc<Members>,
    store: Arc<Store>,
    known: Arc<Known>,
    credentials: Option<Arc<Credentials>>,
    unhealed_lines: LineThrottle,
}

impl Mender {
    pub(crate) fn new(
        config: &NodeConfig,
        store: &Arc<Store>,
        known: &Arc<Known>,
        members: &Arc<Members>,
        credentials: Option<Arc<Credentials>>,
    ) -> Mender {
        Mender {
            volume: config.volume,
            node: config.node,
            members: Arc::clone(members),
            store: Arc::clone(store),
            known: Arc::clone(known),
            credentials,
            unhealed_lines: LineThrottle::default(),
        }
    }

    /// The body of the thread.
    pub(crate) fn run_until_stopped(&self) {
        let mut quarantined_asked: BTreeMap<(GroupId, PageKey), Instant> = BTreeMap::new();
        let mut seen_wakes = 0;
        while self.known.wait(&mut seen_wakes, INTERVAL, false) {
            let mut pages = self.store.pages_to_heal(PAGES_AT_ONCE, true);
            pages.retain(|page| {
                let asked = quarantined_asked.get(&(page.group, page.key));
                !page.is_quarantined || asked.is_none_or(|asked| asked.elapsed() >= QUARANTINE_INTERVAL)
            });
            let mut peers = Peers { mender: self, clients: BTreeMap::new() };
            for page in pages {
                if self.known.is_stopping() {
                    return;
                }
                if page.is_quarantined {
                    quarantined_asked.insert((page.group, page.key), Instant::now());
                }
                self.heal(&mut peers, &page);
            }
            self.mend_log(&mut peers);
        }
    }

    fn heal(&self, peers: &mut Peers<'_>, page: &PageToHeal) {
        // The two LSNs that peers can be asked at have different weaknesses, so they take turns.
        for newest in [true, false].into_iter().cycle().take(ATTEMPTS) {
            match self.store.page_to_heal(page.group, &page.key, newest) {
                Some(now) if !self.heal_now(peers, &now) => {}
                _ => return,
            }
        }
    }

    /// Asks peers at one LSN; returns whether two agreed.
    fn heal_now(&self, peers: &mut Peers<'_>, page: &PageToHeal) -> bool {
        let mut answers: Vec<Answer> = Vec::new();
        let mut refusals = Vec::new();
        for peer in self.members.others(page.group) {
            let answer = peers.ask(&peer, |client| client.read_page(page.group, page.key, page.at));
            match answer {
                Ok(answer) => {
                    if answers.contains(&answer) {
                        self.take(page, answer);
                        return true;
                    }
                    answers.push(answer);
                }
                Err(error) => refusals.push(error.to_string()),
            }
        }
        if let Some(suppressed) = self.unhealed_lines.admit() {
            tracing::warn!(
                group = page.group.0, page = %page.key, lsn = %page.at.lsn, answers = answers.len(), suppressed,
                why = refusals.first(), "no two peers gave the same copy of a damaged page yet"
            );
        }
        false
    }

    fn take(&self, page: &PageToHeal, answer: Answer) {
        let bytes: Option<Box<PageBytes>> = match answer.map(|bytes| bytes.into_boxed_slice().try_into()) {
            None => None,
            Some(Ok(bytes)) => Some(bytes),
            // The client has checked the length.
            Some(Err(_)) => return,
        };
        self.store.heal_page(page.group, &page.key, page.at, bytes);
    }

    /// Gets the records of damaged log entries again from peers.
    fn mend_log(&self, peers: &mut Peers<'_>) {
        for entry in self.store.entries_to_repair() {
            let mut batches = Vec::new();
            for &group in &entry.groups {
                // Two must agree on a record's place, which its checksum says nothing of. All are asked, for each may
                // lack some.
                for peer in self.members.others(group) {
                    if let Ok(records) = peers.tail(&peer, group, &entry) {
                        batches.extend(records.into_iter().map(|batch| (peer.node, batch)));
                    }
                }
            }
            let why = match self.store.repair_entry(&entry, &batches) {
                Ok(true) => continue,
                Ok(false) => "no two peers gave the same copy of all of its records yet".to_owned(),
                Err(error) => error.to_string(),
            };
            if let Some(suppressed) = self.unhealed_lines.admit() {
                tracing::warn!(?entry, why, suppressed, "a damaged log entry cannot be replaced yet");
            }
        }
    }
}

/// Connections to peers, while something is asked of them.
struct Peers<'a> {
    mender: &'a Mender,
    clients: BTreeMap<NodeId, NodeClient>,
}

impl Peers<'_> {
    /// The records of a damaged entry's group, and of others around them.
    fn tail(
        &mut self,
        peer: &NodeAddress,
        group: GroupId,
        entry: &EntryToRepair,
    ) -> Result<Vec<Vec<u8>>, ClientError> {
        let (mut above, mut batches) = (entry.above, Vec::new());
        loop {
            let (some, more) = self.ask(peer, |client| client.read_tail(group, above, TAIL_BYTES))?;
            let last_end = last_end(&some);
            batches.extend(some);
            match last_end {
                Some(end) if more && end > above && end < entry.through => above = end,
                _ => return Ok(batches),
            }
        }
    }

    /// Asks one peer. A connection that broke is made anew the next time.
    fn ask<T>(
        &mut self,
        peer: &NodeAddress,
        question: impl FnOnce(&mut NodeClient) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut client = match self.clients.remove(&peer.node) {
            Some(client) => client,
            None => {
                let caller = Caller::Peer(self.mender.node);
                let route = Route::new(&peer.address, self.mender.credentials.as_ref());
                NodeClient::connect(route, self.mender.volume, peer.node, caller, TIMEOUTS)?
            }
        };
        let answer = question(&mut client);
        if !client.is_broken() {
            self.clients.insert(peer.node, client);
        }
        answer
    }
}

/// Where the last record of a tail ends.
fn last_end(batches: &[Vec<u8>]) -> Option<Lsn> {
    let (_, reader) = BatchReader::new(batches.last()?).ok()?;
    reader.flatten().last().map(|record| record.span.end)
}
