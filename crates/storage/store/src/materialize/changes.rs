//! What is different at a target from what is materialized.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use borealis_types::{BlockKey, Lsn, META_GROUP, MetaKey, PageKey, RelationFork};

use crate::pages::materialized_state::{MaterializedState, in_database};
use crate::pages::page_files::PageFiles;
use crate::segment::hosted::HostedSegment;
use crate::segment::index::relations::{DatabaseEvent, ForkEvent, PriorContent};

/// What a round changes in one segment.
pub(super) struct Changes {
    pub materialized: Arc<MaterializedState>,
    pub files: Arc<PageFiles>,
    /// Unsorted, with duplicates: sorting is done outside of the lock.
    pub pages: Vec<PageKey>,
    pub relations: BTreeMap<RelationFork, Option<u32>>,
    pub meta: BTreeSet<MetaKey>,
}

/// What is different at `target` from the segment's materialized state.
pub(super) fn changes(hosted: &HostedSegment, target: Lsn) -> Changes {
    let materialized = Arc::clone(&hosted.materialized);
    let above = materialized.lsn;
    let index = &hosted.index;
    let mut pages: Vec<PageKey> = index.changed_pages(target).copied().collect();
    let mut forks = BTreeSet::new();
    let mut meta: BTreeSet<MetaKey> = index.changed_meta(target).cloned().collect();
    for (fork, events) in index.relations.changed_forks(above, target) {
        forks.insert(fork);
        let gone_from = events.iter().filter_map(|(_, event)| match event {
            ForkEvent::Truncate(blocks) => Some(*blocks),
            ForkEvent::Drop => Some(0),
            ForkEvent::Create | ForkEvent::Extend(_) => None,
        });
        if let Some(from) = gone_from.min() {
            let gone = materialized
                .fork_extents(fork, from)
                .flat_map(|(first, extent)| MaterializedState::pages_of(first, extent));
            pages.extend(gone.filter(|key| matches!(key, PageKey::Block(block) if block.block >= from)));
        }
    }
    for (_, database, event) in index.relations.database_events(above, target) {
        let all = |database| {
            materialized
                .database_extents(database)
                .flat_map(|(first, extent)| MaterializedState::pages_of(first, extent))
        };
        pages.extend(all(database));
        forks.extend(
            materialized
                .relations
                .range(crate::pages::materialized_state::database_range(database))
                .map(|(fork, _)| *fork),
        );
        forks.extend(index.relations.fork_candidates(&materialized, database, target));
        if hosted.group() == META_GROUP {
            meta.insert(MetaKey::RelationMap(database));
        }
        if let DatabaseEvent::CopyOf(from) = event {
            pages.extend(all(from).filter_map(|key| match key {
                PageKey::Block(block) => Some(PageKey::Block(BlockKey {
                    relation_fork: in_database(block.relation_fork, database),
                    ..block
                })),
                PageKey::Slru { .. } => None,
            }));
        }
    }
    for kind in index.relations.truncated_slru(above, target) {
        let key = |page| PageKey::Slru { kind, page };
        let extents = materialized.extents.range(key(0)..=key(u32::MAX));
        let gone = extents.flat_map(|(first, extent)| MaterializedState::pages_of(first, extent));
        pages.extend(
            gone.filter(|page| index.relations.prior_page(page, target) != PriorContent::Materialized),
        );
    }
    if hosted.group() == META_GROUP && !index.all_records(Lsn::ZERO, target).is_empty() {
        meta.insert(MetaKey::Counters);
    }
    let relations = forks
        .into_iter()
        .map(|fork| (fork, index.relations.relation_blocks(&materialized, fork, target)))
        .collect();
    Changes { materialized, files: Arc::clone(&hosted.pages), pages, relations, meta }
}
