//! What an effect is, and where the resource managers' modules put theirs.

use borealis_types::{
    BlockKey, DatabaseKey, GroupSet, MetaKey, PageKey, Placement, RelationFork, RelationLocator, SlruKind,
    invariant,
};

use crate::layout::slru::first_kept_page as first_kept_page_of_file;
use crate::{BlockReference, Record, RecordError};

/// One change a record makes, in the order redo makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The page is changed by `borealis_redo::apply_page`. A block beyond the relation's size extends it.
    Page(PageKey),
    /// The fork exists from here on (it may exist already).
    CreateRelation(RelationFork),
    /// Blocks from `blocks` on are gone.
    TruncateRelation {
        /// The fork; blocks below `blocks` stay as they are.
        relation_fork: RelationFork,
        /// Its new size in blocks.
        blocks: u32,
    },
    /// All forks are gone, whatever their size.
    DropRelation(RelationLocator),
    /// Every relation fork of `from`, as of just before this record, now also exists in `to`.
    CopyDatabase {
        /// The template, which stays.
        from: DatabaseKey,
        /// The new database, of which nothing exists yet.
        to: DatabaseKey,
    },
    /// Every relation of the database in this tablespace is gone.
    DropDatabase(DatabaseKey),
    /// Pages of the store before `first_kept_page` are gone, in the store's circular page order.
    TruncateSlru {
        /// The store whose files go.
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
        /// Where the record starts in the log.
        start: borealis_types::Lsn,
        /// The resource manager that wrote the record.
        resource_manager: crate::ResourceManager,
        /// `xl_info`: the operation in the high four bits.
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
        /// Where the record starts in the log.
        start: borealis_types::Lsn,
        /// The resource manager's number, 128 or above.
        number: u8,
        /// `xl_info`: the operation in the high four bits.
        info: u8,
    },
    /// The record's own data breaks its layout.
    #[error(transparent)]
    Record(#[from] crate::RecordError),
}

/// Where the resource managers' modules put effects.
pub(super) struct Sink<'o> {
    pub(super) out: &'o mut Vec<Effect>,
    /// How many effects of earlier records stand in `out`.
    pub(super) first: usize,
    /// Every block that the record lists is among the effects, or nothing happens to it.
    pub(super) has_listed: bool,
}

impl Sink<'_> {
    pub(super) fn push(&mut self, effect: Effect) {
        if let Effect::TruncateSlru { first_kept_page, .. } = effect {
            let whole_files = first_kept_page == first_kept_page_of_file(first_kept_page);
            invariant!("status-stores-lose-whole-files", whole_files, "from page {first_kept_page}");
        }
        self.out.push(effect);
    }

    /// Adds a page, unless this record has it already.
    pub(super) fn page(&mut self, key: PageKey) {
        let effect = Effect::Page(key);
        // The last one first: the transactions of one record are mostly on one page.
        if !self.out[self.first..].iter().rev().any(|known| *known == effect) {
            self.out.push(effect);
        }
    }

    pub(super) fn block(&mut self, relation_fork: RelationFork, block: u32) {
        self.page(PageKey::Block(BlockKey { relation_fork, block }));
    }

    pub(super) fn slru(&mut self, kind: SlruKind, page: u32) {
        self.page(PageKey::Slru { kind, page });
    }

    /// Adds every block the record lists.
    pub(super) fn listed(&mut self, record: &Record<'_>) {
        self.listed_where(record, |_| true);
    }

    /// Adds those blocks the record lists of which `changed` says that something happens to them.
    pub(super) fn listed_where(
        &mut self,
        record: &Record<'_>,
        changed: impl Fn(&BlockReference<'_>) -> bool,
    ) {
        for block in record.blocks.iter().filter(|block| changed(block)) {
            self.page(PageKey::Block(block.key));
        }
        self.has_listed = true;
    }

    pub(super) fn counters(&mut self) {
        self.push(Effect::Meta(MetaKey::Counters));
    }
}

/// The effects of a resource manager all of whose operations change nothing but the blocks they list.
pub(super) fn listed_only(record: &Record<'_>, sink: &mut Sink<'_>, known: bool) -> Result<(), EffectError> {
    if !known {
        return Err(unknown(record));
    }
    sink.listed(record);
    Ok(())
}

pub(super) fn unknown(record: &Record<'_>) -> EffectError {
    EffectError::Unknown {
        start: record.span.start,
        resource_manager: record.resource_manager,
        info: record.info,
    }
}

pub(super) fn malformed(record: &Record<'_>, what: &'static str) -> EffectError {
    EffectError::Record(RecordError::Malformed { start: record.span.start, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant status-stores-lose-whole-files is broken")]
    fn a_truncation_inside_a_segment_file_is_noticed() {
        let mut out = Vec::new();
        Sink { out: &mut out, first: 0, has_listed: false }
            .push(Effect::TruncateSlru { kind: SlruKind::Transactions, first_kept_page: 33 });
    }
}
