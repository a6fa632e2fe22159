//! Answers to every request but appends.

use std::time::Instant;

use borealis_client::blocking::MAX_LIST_ENTRIES;
use borealis_quorum::Promise;
use borealis_store::StoreError;
use borealis_wire::{NodeStatus, Refusal, Reply, Request};

use crate::metrics::add;
use crate::node::Shared;

/// The most of a log tail in one answer, whatever was asked: the frame limit leaves room beyond it for the
/// one record that is always included.
const TAIL_LIMIT_BYTES: u32 = 8 << 20;

/// Answers one request.
pub(crate) fn answer(shared: &Shared, request: Request) -> Reply {
    add(&shared.metrics.requests, 1);
    let reply = try_answer(shared, request).unwrap_or_else(Reply::Refused);
    if matches!(reply, Reply::Refused(_)) {
        add(&shared.metrics.requests_refused, 1);
    }
    reply
}

fn try_answer(shared: &Shared, request: Request) -> Result<Reply, Refusal> {
    let store = &shared.store;
    let refuse = |error: StoreError| shared.refusal(&error);
    let list = |limit: u32| limit.min(MAX_LIST_ENTRIES) as usize;
    match request {
        Request::Hello { .. } => Err(Refusal::Misuse("a second introduction".to_owned())),
        Request::Fence { epoch, writer } => {
            let summaries = store.fence(Promise { epoch, writer }).map_err(refuse)?;
            tracing::info!(%epoch, "promised a new writer");
            Ok(Reply::Summaries(summaries))
        }
        Request::Repair { epoch, writer, group, history, batches } => {
            let repaired = store.repair(Promise { epoch, writer }, group, &history, &batches);
            repaired.map(Reply::Summaries).map_err(refuse)
        }
        Request::Install { epoch, writer, history, tails } => {
            if history.newest_epoch() != epoch {
                let what = "the newest opening of an installed history is of the epoch that installs it";
                return Err(Refusal::Misuse(what.to_owned()));
            }
            let summaries = store.install(writer, &history, &tails).map_err(refuse)?;
            tracing::info!(%epoch, "installed a recovery's history");
            shared.gossip.wake();
            Ok(Reply::Summaries(summaries))
        }
        Request::Summaries => store.summaries().map(Reply::Summaries).map_err(refuse),
        Request::ReadTail { group, above, limit_bytes } => {
            let tail = store.read_tail(group, above, limit_bytes.min(TAIL_LIMIT_BYTES)).map_err(refuse)?;
            Ok(Reply::Tail { batches: tail.batches, more: tail.more })
        }
        Request::ReadPage { group, key, lsn } => {
            let start = Instant::now();
            let page = store.read_page(group, &key, lsn);
            add(&shared.metrics.page_read_count, 1);
            shared.metrics.page_reads.record(start.elapsed());
            Ok(Reply::Page(page.map_err(refuse)?.map(|page| page.to_vec())))
        }
        Request::RelationSize { group, relation_fork, lsn } => {
            Ok(Reply::RelationSize(store.relation_size(group, relation_fork, lsn).map_err(refuse)?))
        }
        Request::ListRelations { group, database, lsn, after, limit } => Ok(Reply::Relations(
            store.list_relations(group, database, lsn, after, list(limit)).map_err(refuse)?,
        )),
        Request::SlruPages { kind, lsn } => {
            Ok(Reply::SlruPages(store.slru_pages(kind, lsn).map_err(refuse)?))
        }
        Request::ReadMeta { key, lsn } => Ok(Reply::Meta(store.read_meta(&key, lsn).map_err(refuse)?)),
        Request::ListMeta { lsn, after, limit } => {
            Ok(Reply::MetaList(store.list_meta(lsn, after.as_ref(), list(limit)).map_err(refuse)?))
        }
        Request::PageChecksums { group, lsn, after, limit } => Ok(Reply::PageChecksums(
            store.page_checksums(group, lsn, after.as_ref(), list(limit)).map_err(refuse)?,
        )),
        Request::Status => Ok(Reply::Status(status(shared))),
    }
}

/// The node's own state.
pub(crate) fn status(shared: &Shared) -> NodeStatus {
    let mut metrics = shared.metrics.read();
    metrics.push(("connections".to_owned(), shared.connections.count() as u64));
    metrics.extend(shared.store.metrics().into_iter().map(|(name, value)| (format!("store_{name}"), value)));
    metrics.sort();
    // A failed store promises nothing about its segments any more.
    let segments = shared.store.summaries().unwrap_or_default();
    NodeStatus {
        node: shared.config.node,
        zone: shared.config.zone.clone(),
        process_id: std::process::id(),
        failure: shared.store.failure().or_else(|| shared.gossip.rebuild_needed(&segments)),
        segments,
        metrics,
    }
}
