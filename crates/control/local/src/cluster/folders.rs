//! Folders of nodes that are given other names: what is lost is set aside, never removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A name beside a lost node's folder that nothing has yet.
pub(super) fn free_name(place: &Path) -> anyhow::Result<PathBuf> {
    let names = (1..=999).map(|number| place.with_extension(format!("lost-{number}")));
    names.into_iter().find(|name| !name.exists()).with_context(|| {
        format!("{} has been replaced too often; remove what is kept beside it", place.display())
    })
}

/// Gives a folder another name.
pub(super) fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}
