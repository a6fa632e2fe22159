//! What a record changes: listed blocks, implied blocks, and everything that is not a block.
//!
//! The same function decides where the driver routes a record and what a storage node applies, so the two
//! cannot disagree. It is total: a record whose effects are not known is an error, never an empty list
//! (invariant 9).

use borealis_types::{
    BlockKey, DatabaseKey, GroupSet, MetaKey, PageKey, Placement, RelationFork, RelationLocator, SlruKind,
};

use crate::{Record, RecordError, ResourceManager};

mod brin;
mod btree;
mod clog;
mod commit_ts;
mod database;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod logical_message;
mod multixact;
mod native;
mod relmap;
mod replication_origin;
mod sequence;
mod spgist;
mod standby;
mod storage;
mod tablespace;
mod transaction;
mod xlog;

/// One change a record makes, in the order redo makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The page is changed by `borealis_redo::apply_page`. A block beyond the relation's size extends it.
    Page(PageKey),
    /// The fork exists from here on (it may exist already).
    CreateRelation(RelationFork),
    /// Blocks from `blocks` on are gone.
    TruncateRelation {
        /// Which fork.
        relation_fork: RelationFork,
        /// Its new size in blocks.
        blocks: u32,
    },
    /// All forks are gone.
    DropRelation(RelationLocator),
    /// Every relation fork of `from`, as of just before this record, now also exists in `to`.
    CopyDatabase {
        /// The template.
        from: DatabaseKey,
        /// The new database.
        to: DatabaseKey,
    },
    /// Every relation of the database in this tablespace is gone.
    DropDatabase(DatabaseKey),
    /// Pages of the store before `first_kept_page` are gone, in the store's circular page order.
    TruncateSlru {
        /// Which store.
        kind: SlruKind,
        /// The oldest page that stays.
        first_kept_page: u32,
    },
    /// The value is changed by `borealis_redo::apply_meta`.
    Meta(MetaKey),
}

impl Effect {
    /// The groups that must have a record with this effect. What concerns a whole relation or database
    /// concerns every group, for each keeps the size and existence of its own part.
    #[must_use]
    pub fn groups(&self, placement: Placement) -> GroupSet {
        match self {
            Effect::Page(key) => GroupSet::EMPTY.with(placement.group_of(key)),
            Effect::CreateRelation(_)
            | Effect::TruncateRelation { .. }
            | Effect::DropRelation(_)
            | Effect::CopyDatabase { .. }
            | Effect::DropDatabase(_) => placement.all(),
            Effect::TruncateSlru { .. } | Effect::Meta(_) => GroupSet::EMPTY.with(borealis_types::META_GROUP),
        }
    }
}

/// Why a record's effects cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EffectError {
    /// Nobody has taught Borealis this operation.
    #[error("unknown redo at {start}: resource manager {resource_manager:?}, info {info:#04x}")]
    Unknown {
        /// Position of the record.
        start: borealis_types::Lsn,
        /// Whose record it is.
        resource_manager: crate::ResourceManager,
        /// Its info byte.
        info: u8,
    },
    /// An extension's own resource manager wrote it.
    #[error(
        "the record at {start} is an extension's own: custom resource manager {}, info {info:#04x}. Only the \
         extension's code knows what it does to pages, so it cannot be stored. Nothing of it was acknowledged. Take \
         the extension out of shared_preload_libraries and start again",
        crate::custom::describe(*number)
    )]
    Custom {
        /// Position of the record.
        start: borealis_types::Lsn,
        /// The resource manager's number, 128 or above.
        number: u8,
        /// Its info byte.
        info: u8,
    },
    /// The record's own data breaks its layout.
    #[error(transparent)]
    Record(#[from] crate::RecordError),
}

/// Appends the record's effects to `out`, in redo order. `Effect::Page` never repeats a key.
///
/// What an applier must know:
/// * Besides what is listed here, every record a segment of the meta group receives is applied to
///   [`MetaKey::Counters`], once; that key is listed where a record's purpose is to change it.
/// * The page effects of a storage truncation zero the tail of the last visibility map and free space map
///   page and come before the truncation itself. They are the one kind that never makes a block: where the
///   map does not have it, there is nothing to zero.
/// * The relation map of a database made by file copy is listed as a changed value, but its new value is that
///   of the template's map, which is not in the record: whoever executes [`Effect::CopyDatabase`] copies it.
/// * [`Effect::TruncateSlru`] always names the first page of a segment file, for PostgreSQL removes whole
///   files. Member offsets wrap around at 2^32, so with more than half of them in use "before" would be
///   wrong for [`SlruKind::MultiXactMembers`]; the record's own `start_offset` says where to begin.
/// * Redo in PostgreSQL also refreshes the upper pages of a truncated free space map. That map is a hint which
///   corrects itself, so this is left out.
/// * Commit timestamps of commits are not listed, since only the setting `track_commit_timestamp`, not the
///   record, tells whether there are any. An instance refuses to run with that setting on.
///
/// # Errors
/// When the operation is unknown or its data malformed; `out` is then unchanged.
pub fn effects(record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
    let first = out.len();
    let mut sink = Sink { out, first };
    let result = collect(record, &mut sink);
    if result.is_err() {
        out.truncate(first);
    }
    result
}

fn collect(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.resource_manager {
        ResourceManager::Xlog => xlog::effects(record, sink),
        ResourceManager::Transaction => transaction::effects(record, sink),
        ResourceManager::Storage => storage::effects(record, sink),
        ResourceManager::Clog => clog::effects(record, sink),
        ResourceManager::Database => database::effects(record, sink),
        ResourceManager::Tablespace => tablespace::effects(record, sink),
        ResourceManager::MultiXact => multixact::effects(record, sink),
        ResourceManager::RelMap => relmap::effects(record, sink),
        ResourceManager::Standby => standby::effects(record, sink),
        ResourceManager::Heap2 => heap2::effects(record, sink),
        ResourceManager::Heap => heap::effects(record, sink),
        ResourceManager::Btree => btree::effects(record, sink),
        ResourceManager::Hash => hash::effects(record, sink),
        ResourceManager::Gin => gin::effects(record, sink),
        ResourceManager::Gist => gist::effects(record, sink),
        ResourceManager::Sequence => sequence::effects(record, sink),
        ResourceManager::Spgist => spgist::effects(record, sink),
        ResourceManager::Brin => brin::effects(record, sink),
        ResourceManager::CommitTs => commit_ts::effects(record, sink),
        ResourceManager::ReplicationOrigin => replication_origin::effects(record, sink),
        ResourceManager::Generic => generic::effects(record, sink),
        ResourceManager::LogicalMessage => logical_message::effects(record, sink),
        ResourceManager::Borealis => native::effects(record, sink),
        ResourceManager::Other(number @ crate::custom::FIRST_NUMBER..) => {
            Err(EffectError::Custom { start: record.span.start, number, info: record.info })
        }
        ResourceManager::Other(_) => Err(unknown(record)),
    }
}

/// Where the resource managers' modules put effects.
struct Sink<'o> {
    out: &'o mut Vec<Effect>,
    /// How many effects of earlier records stand in `out`.
    first: usize,
}

impl Sink<'_> {
    fn push(&mut self, effect: Effect) {
        self.out.push(effect);
    }

    /// Adds a page, unless this record has it already.
    fn page(&mut self, key: PageKey) {
        let effect = Effect::Page(key);
        // The last one first: the transactions of one record are mostly on one page.
        if !self.out[self.first..].iter().rev().any(|known| *known == effect) {
            self.out.push(effect);
        }
    }

    fn block(&mut self, relation_fork: RelationFork, block: u32) {
        self.page(PageKey::Block(BlockKey { relation_fork, block }));
    }

    fn slru(&mut self, kind: SlruKind, page: u32) {
        self.page(PageKey::Slru { kind, page });
    }

    /// Adds every block the record lists.
    fn listed(&mut self, record: &Record<'_>) {
        for block in &record.blocks {
            self.page(PageKey::Block(block.key));
        }
    }

    fn counters(&mut self) {
        self.push(Effect::Meta(MetaKey::Counters));
    }
}

/// The effects of a resource manager all of whose operations change nothing but the blocks they list.
fn listed_only(record: &Record<'_>, sink: &mut Sink<'_>, known: bool) -> Result<(), EffectError> {
    if !known {
        return Err(unknown(record));
    }
    sink.listed(record);
    Ok(())
}

fn unknown(record: &Record<'_>) -> EffectError {
    EffectError::Unknown {
        start: record.span.start,
        resource_manager: record.resource_manager,
        info: record.info,
    }
}

fn malformed(record: &Record<'_>, what: &'static str) -> EffectError {
    EffectError::Record(RecordError::Malformed { start: record.span.start, what })
}
