//! Redo that panics for one relation: to see on real nodes that it costs that relation's pages alone.
//!
//! Compiled only with the feature `broken-redo`, and even then without effect unless the environment variable
//! `BOREALIS_BROKEN_REDO` names a file that holds the relation's file number.

use borealis_types::PageKey;

/// Panics if redo of this page was asked to.
pub(crate) fn panic_if_asked(key: &PageKey) {
    let PageKey::Block(block) = key else { return };
    let named = std::env::var_os("BOREALIS_BROKEN_REDO").and_then(|file| std::fs::read_to_string(file).ok());
    let relation = named.and_then(|text| text.trim().parse::<u32>().ok());
    assert!(relation != Some(block.relation_fork.locator.relation), "a planted panic in redo of {key}");
}
