//! Pages that a round could not bring to its target, while it brought everything else there.
//!
//! A held page is as of an earlier state than the segment: its slot has the best image that is known, and nothing of
//! it is served by itself. Two things hold a page. Bytes that it is made from are damaged: then only peers know the
//! page, and [`Store::heal_page`](crate::Store::heal_page) brings it. Or a record's redo failed: then the records from
//! that one on are kept here, because the log goes on being released, and a release that knows better applies them.

use borealis_types::{PageKey, RecordSpan};
use serde::{Deserialize, Serialize};

/// A record that a held page still has to be changed by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct HeldStep {
    /// The page that the record changed: of a copied page, its original.
    pub key: PageKey,
    pub span: RecordSpan,
    /// As PostgreSQL wrote it; its own checksum covers it.
    pub bytes: Vec<u8>,
}

/// Why a page is behind its segment's materialized state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum HeldPage {
    /// What it was to be made from is damaged; the slot holds nothing of use.
    Damaged {
        /// What was found, and where.
        reason: String,
    },
    /// Redo of the first of `steps` failed. The slot has the page as it was before.
    Failed {
        /// What the redo engine said.
        reason: String,
        /// Whether the page existed before the first step; if not, the slot holds zeros.
        existed: bool,
        steps: Vec<HeldStep>,
    },
}

impl HeldPage {
    /// About how much of a checkpoint it takes.
    pub(crate) fn size_bytes(&self) -> u64 {
        let steps = match self {
            HeldPage::Damaged { .. } => &[][..],
            HeldPage::Failed { steps, .. } => steps,
        };
        64 + steps.iter().map(|step| step.bytes.len() as u64 + 64).sum::<u64>()
    }
}
