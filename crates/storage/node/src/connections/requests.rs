//! Answers to every request but appends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::Credentials;
use borealis_client::blocking::{MAX_LIST_ENTRIES, MAX_SLRU_PAGES};
use borealis_quorum::Promise;
use borealis_store::{PinHolder, Store, StoreError};
use borealis_types::{AvailabilityZone, EpochHistory, GroupId, MembershipEpoch, NodeId, ReadPoint};
use borealis_wire::roles::RequestKind;
use borealis_wire::{Caller, GroupTail, NodeStatus, Refusal, Reply, Request};

use super::large_answers::LargeAnswers;
use crate::backup::{self, Backup};
use crate::catch_up::{Known, Refills};
use crate::members::Members;
use crate::metrics::{Metrics, add};
use crate::open_connections::OpenConnections;
use crate::refusals::Refusals;
use crate::standing::Standing;

/// The most of a log tail in one answer, whatever was asked: the frame limit leaves room beyond it for the
/// one record that is always included.
const TAIL_LIMIT_BYTES: u32 = 8 << 20;

/// What requests are answered from.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) node: NodeId,
    pub(crate) zone: AvailabilityZone,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) connections: Arc<OpenConnections>,
    pub(crate) known: Arc<Known>,
    pub(crate) members: Arc<Members>,
    pub(crate) refills: Arc<Refills>,
    pub(crate) large_answers: LargeAnswers,
    pub(crate) standing: Arc<Standing>,
    pub(crate) backup: Option<Arc<Backup>>,
    pub(crate) credentials: Option<Arc<Credentials>>,
}

impl Requests {
    /// `made_for`: the memberships that the caller knows.
    pub(crate) fn answer(
        &self,
        caller: &Caller,
        made_for: &[(GroupId, MembershipEpoch)],
        request: Request,
    ) -> Reply {
        add(&self.metrics.requests, 1);
        let reply = if request.kind().is_allowed(caller) {
            self.try_answer(caller, made_for, request).unwrap_or_else(Reply::Refused)
        } else {
            let what = match request.kind() {
                RequestKind::Pin => "only a peer or a tool may ask this; say so in the introduction",
                RequestKind::Membership => "only a controller may ask this; say so in the introduction",
                _ => "only a writer or a recovery may ask this; say so in the introduction",
            };
            Reply::Refused(Refusal::Misuse(what.to_owned()))
        };
        if matches!(reply, Reply::Refused(_)) {
            add(&self.metrics.requests_refused, 1);
        }
        reply
    }

    fn try_answer(
        &self,
        caller: &Caller,
        made_for: &[(GroupId, MembershipEpoch)],
        request: Request,
    ) -> Result<Reply, Refusal> {
        let store = &self.store;
        let refuse = |error: StoreError| self.members.refusal(&error, &self.refusals);
        let list = |limit: u32| limit.min(MAX_LIST_ENTRIES) as usize;
        match request {
            Request::Hello { .. } => Err(Refusal::Misuse("a second introduction".to_owned())),
            Request::Fence { epoch, writer } => self.fence(Promise { epoch, writer }, made_for),
            Request::Repair { epoch, writer, group, history, batches } => {
                let repaired = store.repair(Promise { epoch, writer }, group, &history, &batches, made_for);
                repaired.map(Reply::Summaries).map_err(refuse)
            }
            Request::Install { epoch, writer, history, tails } => {
                self.install(Promise { epoch, writer }, &history, &tails, made_for)
            }
            Request::Summaries => store.summaries().map(Reply::Summaries).map_err(refuse),
            Request::ReadTail { group, above, limit_bytes } => {
                let tail =
                    store.read_tail(group, above, limit_bytes.min(TAIL_LIMIT_BYTES)).map_err(refuse)?;
                Ok(Reply::Tail { batches: tail.batches, more: tail.more })
            }
            Request::ReadPage { group, key, at } => {
                let start = Instant::now();
                let page = store.read_page(group, &key, at);
                add(&self.metrics.page_read_count, 1);
                self.metrics.page_reads.record(start.elapsed());
                Ok(Reply::Page(page.map_err(refuse)?.map(|page| page.to_vec())))
            }
            Request::RelationSize { group, relation_fork, at } => {
                Ok(Reply::RelationSize(store.relation_size(group, relation_fork, at).map_err(refuse)?))
            }
            Request::ListRelations { group, database, at, after, limit } => Ok(Reply::Relations(
                store.list_relations(group, database, at, after, list(limit)).map_err(refuse)?,
            )),
            Request::SlruPages { kind, at, from, limit } => {
                let limit = limit.min(MAX_SLRU_PAGES) as usize;
                Ok(Reply::SlruPages(store.slru_pages(kind, at, from, limit).map_err(refuse)?))
            }
            Request::ReadMeta { key, at, offset } => {
                Ok(Reply::Meta(store.read_meta_part(&key, at, offset).map_err(refuse)?))
            }
            Request::ListMeta { at, after, limit } => {
                let (values, more) = store.list_meta(at, after.as_ref(), list(limit)).map_err(refuse)?;
                Ok(Reply::MetaList { values, more })
            }
            Request::PageChecksums { group, at, after, limit } => Ok(Reply::PageChecksums(
                store.page_checksums(group, at, after.as_ref(), list(limit)).map_err(refuse)?,
            )),
            Request::Status => Ok(Reply::Status(self.status())),
            Request::Acquaint { node } => Ok(Reply::Acquainted {
                boot: self.standing.boot(),
                remembered: self.standing.remembered_of(node),
            }),
            Request::Confirm { epoch } => {
                store.confirm(epoch, made_for).map(|()| Reply::Confirmed).map_err(refuse)
            }
            Request::Pin { group, at, lease_ms } => self.pin(caller, group, at, lease_ms),
            Request::ListForks { group, at, after, limit } => {
                Ok(Reply::Relations(store.list_forks(group, at, after, list(limit)).map_err(refuse)?))
            }
            Request::Memberships => {
                let (states, nodes) = self.members.told().map_err(refuse)?;
                Ok(Reply::Memberships { states, nodes })
            }
            Request::Membership { group, request, nodes } => {
                let (membership, segment) =
                    self.members.take_step(group, &request, &nodes).map_err(refuse)?;
                Ok(Reply::Member { membership, segment })
            }
        }
    }

    fn fence(&self, promise: Promise, made_for: &[(GroupId, MembershipEpoch)]) -> Result<Reply, Refusal> {
        let refuse = |error: StoreError| self.members.refusal(&error, &self.refusals);
        let summaries = self.store.fence(promise, made_for).map_err(refuse)?;
        tracing::info!(epoch = %promise.epoch, "promised a new writer");
        self.connections.tell_fenced(promise.epoch);
        Ok(Reply::Summaries(summaries))
    }

    fn install(
        &self,
        promise: Promise,
        history: &EpochHistory,
        tails: &[GroupTail],
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<Reply, Refusal> {
        let refuse = |error: StoreError| self.members.refusal(&error, &self.refusals);
        if history.newest_epoch() != promise.epoch {
            let what = "the newest opening of an installed history is of the epoch that installs it";
            return Err(Refusal::Misuse(what.to_owned()));
        }
        let summaries = self.store.install(promise.writer, history, tails, made_for).map_err(refuse)?;
        tracing::info!(epoch = %promise.epoch, "installed a recovery's history");
        self.known.wake();
        Ok(Reply::Summaries(summaries))
    }

    /// Keeps what a peer or a tool takes.
    fn pin(&self, caller: &Caller, group: GroupId, at: ReadPoint, lease_ms: u32) -> Result<Reply, Refusal> {
        let holder = match *caller {
            Caller::Peer(peer) => PinHolder::Peer(peer),
            Caller::Client => PinHolder::Tool,
            _ => return Err(Refusal::Misuse("only a peer or a tool may ask this".to_owned())),
        };
        if let PinHolder::Peer(peer) = holder
            && !self.members.is_member(group, peer)
        {
            // It was dropped, or this node has not learned of it yet: nobody would give up what is kept for it.
            return Err(Refusal::Misuse(format!("node {peer} is no member of group {group}")));
        }
        if lease_ms == 0 {
            match holder {
                PinHolder::Peer(peer) => self.store.unpin(group, peer),
                PinHolder::Tool => self.store.unpin_tools(group, at.lsn),
            }
            return Ok(Reply::Pinned { pages: 0 });
        }
        let lease = Duration::from_millis(u64::from(lease_ms));
        let pages = self.store.pin(group, at, holder, lease).map_err(|error| self.refusals.of(&error))?;
        Ok(Reply::Pinned { pages })
    }

    /// The node's own state, for people and scripts.
    pub(crate) fn status(&self) -> NodeStatus {
        let mut metrics = self.metrics.read();
        metrics.push(("connections".to_owned(), self.connections.count() as u64));
        let expires_seconds =
            self.credentials.as_ref().map_or(0, |credentials| credentials.expires_seconds());
        metrics.push(("certificate_expires_seconds".to_owned(), expires_seconds));
        metrics.push(("segments_joining".to_owned(), self.members.joining()));
        metrics.extend(backup::metrics(self.backup.as_deref()));
        metrics.extend(self.refills.metrics().map(|(name, value)| (name.to_owned(), value)));
        metrics
            .extend(self.store.metrics().into_iter().map(|(name, value)| (format!("store_{name}"), value)));
        metrics.sort();
        // A failed store promises nothing about its segments any more.
        let segments = self.store.summaries().unwrap_or_default();
        NodeStatus {
            node: self.node,
            zone: self.zone.clone(),
            process_id: std::process::id(),
            damage: self.store.damage(),
            failure: self.store.failure(),
            hindrance: self.store.hindrance().or_else(|| self.backup.as_ref()?.trouble()),
            segments,
            metrics,
            incarnation: self.store.identity().incarnation,
            free_bytes: self.store.free_bytes(),
            heard: self.members.heard(),
            refills: self.refills.progress(),
        }
    }
}
