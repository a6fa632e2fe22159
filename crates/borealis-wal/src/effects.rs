//! What a record changes: listed blocks, implied blocks, and everything that is not a block.
//!
//! The same function decides where the driver routes a record and what a storage node applies, so the two
//! cannot disagree. It is total: a record whose effects are not known is an error, never an empty list
//! (invariant 9).

use borealis_types::{DatabaseKey, GroupSet, MetaKey, PageKey, Placement, RelationFork, RelationLocator, SlruKind};

use crate::Record;

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
    /// The record's own data breaks its layout.
    #[error(transparent)]
    Record(#[from] crate::RecordError),
}

/// Appends the record's effects to `out`, in redo order. `Effect::Page` never repeats a key.
///
/// # Errors
/// When the operation is unknown or its data malformed; `out` is then unchanged.
pub fn effects(record: &Record<'_>, out: &mut Vec<Effect>) -> Result<(), EffectError> {
    let _ = out;
    Err(EffectError::Unknown {
        start: record.span.start,
        resource_manager: record.resource_manager,
        info: record.info,
    })
}
