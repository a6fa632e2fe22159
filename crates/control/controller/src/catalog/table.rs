//! A catalog in memory: the logic of the embedded implementation, without its file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Acquisition, Catalog, CatalogError, Change, Condition, Entry, Key, LEASES, Lease, Listing, News, Outcome,
    Revision, Transaction,
};

/// Raised with every change that an older binary would misread.
const FORMAT: u32 = 1;
/// How many deletions are remembered; who asks for news from before the oldest lists everything.
const DELETIONS_KEPT: usize = 1024;

/// Everything that is stored. It is plain data: whoever keeps it in a file writes it as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Table {
    format: u32,
    revision: Revision,
    entries: BTreeMap<Key, Entry>,
    leases: BTreeMap<Key, Term>,
    /// The clock that leases are measured by. Those of another clock have ended: its readings mean nothing here.
    clock: String,
    /// When each key that is gone was deleted.
    deletions: BTreeMap<Key, Revision>,
    /// News from before this revision would be incomplete.
    known_from: Revision,
}

/// How long a lease lasts; who has it is the value of its entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Term {
    ttl_ms: u64,
    ends_at_ms: u64,
}

impl Table {
    /// An empty table. `clock` names what `now_ms` will be read from, such as one boot of a machine.
    #[must_use]
    pub fn new(clock: &str) -> Table {
        Table {
            format: FORMAT,
            revision: Revision::default(),
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            clock: clock.to_owned(),
            deletions: BTreeMap::new(),
            known_from: Revision::default(),
        }
    }

    /// A table from the text that [`Table::text`] made, at `now_ms` by `clock`.
    ///
    /// # Errors
    /// When it is of another format, no table, or contradicts itself.
    pub fn read(text: &str, clock: &str, now_ms: u64) -> Result<Table, CatalogError> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let damaged = |error: serde_json::Error| CatalogError::Damaged(error.to_string());
        let head: Head = serde_json::from_str(text).map_err(damaged)?;
        if head.format != u64::from(FORMAT) {
            return Err(CatalogError::Damaged(format!(
                "it has format {}, this Borealis reads format {FORMAT}; use the version that made it",
                head.format
            )));
        }
        let mut table: Table = serde_json::from_str(text).map_err(damaged)?;
        table.check().map_err(CatalogError::Damaged)?;
        if table.clock != clock {
            table.clock = clock.to_owned();
            table.end_leases(|_| true);
        }
        table.expire(now_ms);
        Ok(table)
    }

    /// The table as text.
    ///
    /// # Panics
    /// Never: it is plain data.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a table is plain data") + "\n"
    }

    /// Whether what was read is something that this code writes.
    fn check(&self) -> Result<(), String> {
        for (key, entry) in &self.entries {
            if entry.revision > self.revision || entry.revision == Revision::default() {
                return Err(format!("`{key}` is of revision {}, of {}", entry.revision, self.revision));
            }
            if key.is_lease() != self.leases.contains_key(key) || (key.is_lease() && !entry.value.is_string())
            {
                return Err(format!("`{key}` is half a lease"));
            }
            if self.deletions.contains_key(key) {
                return Err(format!("`{key}` is there and deleted"));
            }
        }
        if let Some(key) = self.leases.keys().find(|key| !self.entries.contains_key(key)) {
            return Err(format!("`{key}` is half a lease"));
        }
        let known = self.known_from..=self.revision;
        match self.deletions.iter().find(|(_, revision)| !known.contains(revision)) {
            Some((key, revision)) => Err(format!("`{key}` was deleted in revision {revision}")),
            None if self.known_from > self.revision => Err("it knows nothing of its own revision".to_owned()),
            None => Ok(()),
        }
    }

    /// The entries whose keys begin with `prefix`.
    #[must_use]
    pub fn list(&self, prefix: &str) -> Listing {
        let entries = self.entries.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        Listing {
            revision: self.revision,
            entries: entries.map(|(key, entry)| (key.clone(), entry.clone())).collect(),
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent(key) => !self.entries.contains_key(key),
            Condition::Unchanged(key, revision) => {
                self.entries.get(key).is_some_and(|entry| entry.revision == *revision)
            }
        }
    }

    /// Carries out a transaction.
    ///
    /// # Errors
    /// When it breaks a limit.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, CatalogError> {
        transaction.check()?;
        if !transaction.conditions.iter().all(|condition| self.holds(condition)) {
            return Ok(Outcome::Conflict);
        }
        let revision = Revision(self.revision.0 + 1);
        for change in &transaction.changes {
            match change {
                Change::Put(key, value) => self.put(key, value.clone(), revision),
                Change::Delete(key) => self.delete(key, revision),
            }
        }
        self.forget_old_deletions();
        Ok(Outcome::Committed(self.revision))
    }

    fn put(&mut self, key: &Key, value: super::Value, revision: Revision) {
        self.deletions.remove(key);
        self.entries.insert(key.clone(), Entry { value, revision });
        self.revision = revision;
    }

    /// Deletes an entry in `revision`; where there is none, nothing changes.
    fn delete(&mut self, key: &Key, revision: Revision) {
        if self.entries.remove(key).is_some() {
            self.leases.remove(key);
            self.deletions.insert(key.clone(), revision);
            self.revision = revision;
        }
    }

    fn forget_old_deletions(&mut self) {
        while self.deletions.len() > DELETIONS_KEPT {
            let oldest = self.deletions.values().min().copied().unwrap_or_default();
            self.deletions.retain(|_, revision| *revision > oldest);
            self.known_from = oldest;
        }
    }

    /// What changed below `prefix` since `since`.
    #[must_use]
    pub fn news(&self, prefix: &str, since: Revision) -> News {
        // A revision of the future is of a table that was lost.
        if since < self.known_from || since > self.revision {
            return News::TooOld;
        }
        let written = self.entries.iter().filter(|(_, entry)| entry.revision > since);
        let written = written.map(|(key, entry)| (key, Some(entry.clone())));
        let deleted =
            self.deletions.iter().filter(|(_, revision)| **revision > since).map(|(key, _)| (key, None));
        let below = written.chain(deleted).filter(|(key, _)| key.as_str().starts_with(prefix));
        News::Changes {
            revision: self.revision,
            entries: below.map(|(key, entry)| (key.clone(), entry)).collect(),
        }
    }

    /// Ends the leases whose time is over; every other call counts on it having been called with the present time.
    pub fn expire(&mut self, now_ms: u64) {
        self.end_leases(|term| term.ends_at_ms <= now_ms);
    }

    fn end_leases(&mut self, ended: impl Fn(&Term) -> bool) {
        let ended: Vec<Key> =
            self.leases.iter().filter(|(_, term)| ended(term)).map(|(key, _)| key.clone()).collect();
        for key in ended {
            self.delete(&key, Revision(self.revision.0 + 1));
        }
        self.forget_old_deletions();
    }

    /// Gives a lease to `holder` if nobody has it.
    ///
    /// # Errors
    /// If the name is no key.
    pub fn acquire(
        &mut self,
        name: &str,
        holder: &str,
        ttl_ms: u64,
        now_ms: u64,
    ) -> Result<Acquisition, CatalogError> {
        let key = Key::new(format!("{LEASES}{name}"))?;
        if let Some(entry) = self.entries.get(&key) {
            let holder = entry.value.as_str().unwrap_or_default();
            return Ok(Acquisition::HeldBy(holder.to_owned()));
        }
        let revision = Revision(self.revision.0 + 1);
        self.put(&key, holder.into(), revision);
        self.leases.insert(key.clone(), Term { ttl_ms, ends_at_ms: now_ms.saturating_add(ttl_ms) });
        Ok(Acquisition::Acquired(Lease { key, holder: holder.to_owned(), revision }))
    }

    /// Keeps a lease; false if it is lost.
    pub fn keep(&mut self, lease: &Lease, now_ms: u64) -> bool {
        if !self.holds(&lease.is_held()) {
            return false;
        }
        let Some(term) = self.leases.get_mut(&lease.key) else { return false };
        term.ends_at_ms = now_ms.saturating_add(term.ttl_ms);
        true
    }

    /// Gives a lease back.
    pub fn release(&mut self, lease: &Lease) {
        if self.leases.contains_key(&lease.key) && self.holds(&lease.is_held()) {
            self.delete(&lease.key, Revision(self.revision.0 + 1));
        }
        self.forget_old_deletions();
    }
}

/// A table with a clock that its owner sets: a catalog for tests and simulation, gone with its process.
#[derive(Clone, Debug)]
pub struct MemoryCatalog {
    /// What is stored.
    pub table: Table,
    /// The time in milliseconds; raised by the owner.
    pub now_ms: u64,
}

impl Default for MemoryCatalog {
    fn default() -> MemoryCatalog {
        MemoryCatalog { table: Table::new("memory"), now_ms: 0 }
    }
}

impl MemoryCatalog {
    fn now(&mut self) -> &mut Table {
        self.table.expire(self.now_ms);
        &mut self.table
    }
}

impl Catalog for MemoryCatalog {
    fn list(&mut self, prefix: &str) -> Result<Listing, CatalogError> {
        Ok(self.now().list(prefix))
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, CatalogError> {
        self.now().commit(transaction)
    }

    fn news(&mut self, prefix: &str, since: Revision) -> Result<News, CatalogError> {
        Ok(self.now().news(prefix, since))
    }

    fn acquire(&mut self, name: &str, holder: &str, ttl_ms: u64) -> Result<Acquisition, CatalogError> {
        let now_ms = self.now_ms;
        self.now().acquire(name, holder, ttl_ms, now_ms)
    }

    fn keep(&mut self, lease: &Lease) -> Result<bool, CatalogError> {
        let now_ms = self.now_ms;
        Ok(self.now().keep(lease, now_ms))
    }

    fn release(&mut self, lease: &Lease) -> Result<(), CatalogError> {
        self.now().release(lease);
        Ok(())
    }
}
