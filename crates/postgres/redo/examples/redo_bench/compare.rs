//! Proof that the benchmark did the work: its pages against those that PostgreSQL's own recovery left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;

use borealis_redo::consistency::compare_pages;
use borealis_types::{Fork, PAGE_SIZE, PageBytes, PageKey, RelationLocator};

use crate::files;
use crate::memory::Memory;
use crate::page_owner::resource_manager_of;

/// How many pages were compared, and which differ.
pub struct Compared {
    /// How many pages were compared.
    pub pages: u64,
    /// How many of them have the same bytes, not only the same meaning.
    pub identical: u64,
    /// One line for each page that differs.
    pub wrong: Vec<String>,
}

/// Compares both ways. Left out are free space maps, a hint that is mostly not logged, and unlogged relations.
pub fn with_files(memory: &Memory, data: &Path) -> Result<Compared, Box<dyn Error>> {
    let files = files::pages(data)?;
    let actual: BTreeMap<PageKey, &PageBytes> = memory.pages().collect();
    let unlogged: BTreeSet<RelationLocator> =
        files.keys().filter_map(|key| locator_with(key, |fork| fork == Fork::Init)).collect();
    let left_out = |key: &PageKey| {
        locator_with(key, |fork| fork == Fork::FreeSpaceMap).is_some()
            || locator_with(key, |fork| fork != Fork::Init).is_some_and(|locator| unlogged.contains(&locator))
    };
    let zeros = [0; PAGE_SIZE];
    let mut compared = Compared { pages: 0, identical: 0, wrong: Vec::new() };
    let keys: BTreeSet<&PageKey> = files.keys().chain(actual.keys()).filter(|key| !left_out(key)).collect();
    for key in keys {
        let expected = files.get(key).map_or(&zeros, |page| &**page);
        let actual = actual.get(key).copied().unwrap_or(&zeros);
        compared.pages += 1;
        if expected == actual {
            compared.identical += 1;
        } else if let Some(message) = difference(key, expected, actual) {
            compared.wrong.push(message);
        }
    }
    Ok(compared)
}

/// The relation, if the key is a block of a fork that `wanted` accepts.
fn locator_with(key: &PageKey, wanted: impl Fn(Fork) -> bool) -> Option<RelationLocator> {
    match key {
        PageKey::Block(block) if wanted(block.relation_fork.fork) => Some(block.relation_fork.locator),
        _ => None,
    }
}

/// What is wrong with a page whose bytes differ; `None` if only what its access method does not log.
fn difference(key: &PageKey, expected: &PageBytes, actual: &PageBytes) -> Option<String> {
    if let PageKey::Block(block) = key
        && block.relation_fork.fork != Fork::VisibilityMap
    {
        let Some(resource_manager) = resource_manager_of(expected).or_else(|| resource_manager_of(actual))
        else {
            return Some(format!("{key}: no access method has such a page"));
        };
        return match compare_pages(resource_manager, *block, expected, actual) {
            Ok(mismatch) => mismatch.map(|mismatch| format!("{resource_manager}: {mismatch}")),
            Err(message) => Some(message),
        };
    }
    // A map of bits, which the masks of page comparison hide. Its header's LSN depends on `wal_log_hints`.
    let first = if matches!(key, PageKey::Block(_)) { 24 } else { 0 };
    (first..PAGE_SIZE).find(|at| expected[*at] != actual[*at]).map(|at| {
        format!("{key}: byte {at} is {:#04x} after redo, {:#04x} in the file", actual[at], expected[at])
    })
}
