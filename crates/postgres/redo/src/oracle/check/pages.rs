//! Where a [`Checker`](super::Checker) keeps the versions of pages it follows.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::RangeInclusive;

use borealis_types::{PageBytes, PageKey};
use borealis_wal::ResourceManager;

/// What is known of a page besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PageNote {
    /// Who changed it last by redo of its own (not by an image alone); `None` if only seeded or restored.
    pub changed_by: Option<ResourceManager>,
    /// Redo has changed it since it was seeded.
    pub changed: bool,
}

/// The current version of every page that is followed. The crate itself does no I/O, so a store that keeps
/// pages in a file is its user's.
pub trait PageStore {
    /// Why a page cannot be read or kept.
    type Error;

    /// Reads a page into `bytes`; `None`, with `bytes` unspecified, when it is not kept.
    ///
    /// # Errors
    /// When it is kept and cannot be read.
    fn read(&mut self, key: &PageKey, bytes: &mut PageBytes) -> Result<Option<PageNote>, Self::Error>;

    /// Keeps a page, instead of the version kept before.
    ///
    /// # Errors
    /// When it cannot be kept.
    fn write(&mut self, key: PageKey, bytes: &PageBytes, note: PageNote) -> Result<(), Self::Error>;

    /// Forgets a page; one that is not kept is no error.
    fn remove(&mut self, key: &PageKey);

    /// The keys of the pages kept in this range, in order.
    fn keys(&self, range: RangeInclusive<PageKey>) -> Vec<PageKey>;
}

/// Keeps all pages in memory.
#[derive(Default)]
pub struct MemoryPages {
    pages: BTreeMap<PageKey, (Box<PageBytes>, PageNote)>,
}

impl MemoryPages {
    /// A page where it is kept.
    #[must_use]
    pub fn get(&self, key: &PageKey) -> Option<&PageBytes> {
        self.pages.get(key).map(|(bytes, _)| &**bytes)
    }

    /// All pages that are kept, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&PageKey, &PageBytes, PageNote)> {
        self.pages.iter().map(|(key, (bytes, note))| (key, &**bytes, *note))
    }
}

impl PageStore for MemoryPages {
    type Error = Infallible;

    fn read(&mut self, key: &PageKey, bytes: &mut PageBytes) -> Result<Option<PageNote>, Infallible> {
        Ok(self.pages.get(key).map(|(kept, note)| {
            bytes.copy_from_slice(&**kept);
            *note
        }))
    }

    fn write(&mut self, key: PageKey, bytes: &PageBytes, note: PageNote) -> Result<(), Infallible> {
        match self.pages.get_mut(&key) {
            Some((kept, old_note)) => {
                kept.copy_from_slice(bytes);
                *old_note = note;
            }
            None => {
                self.pages.insert(key, (Box::new(*bytes), note));
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &PageKey) {
        self.pages.remove(key);
    }

    fn keys(&self, range: RangeInclusive<PageKey>) -> Vec<PageKey> {
        self.pages.range(range).map(|(key, _)| *key).collect()
    }
}
