//! The controller's catalog in one file, for fleets without etcd.
//!
//! `fleet.json` holds everything as JSON and is replaced as a whole, durably, by every change: some ten kilobytes for a fleet of
//! a hundred nodes. Whoever reads or writes it holds the lock of `fleet.lock`, so processes of one machine may share it. A
//! crash leaves the old file or the new one, and a file that is gone is an empty catalog: the segments know their
//! memberships, and a controller writes down again what it sees.
//!
//! Leases are measured by a clock that counts since the machine's boot and that nobody sets; those of an earlier boot are over.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use borealis_controller::catalog::table::Table;
use borealis_controller::catalog::{
    Acquisition, Catalog, CatalogError, Lease, Listing, News, Outcome, Revision, Transaction,
};
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};

use crate::whole_file::write_whole;

const FILE_NAME: &str = "fleet.json";
const LOCK_NAME: &str = "fleet.lock";
/// How long to wait for another process, which holds the lock for as long as it takes to replace the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// What a clock shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Which clock; readings of two clocks cannot be compared.
    pub clock: String,
    /// Milliseconds since it began.
    pub now_ms: u64,
}

/// A catalog in a file.
pub struct EmbeddedCatalog {
    directory: PathBuf,
    clock: Box<dyn Fn() -> io::Result<Reading> + Send>,
}

impl std::fmt::Debug for EmbeddedCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedCatalog").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The clock of this boot of this machine; it goes on while the machine sleeps.
fn since_boot() -> io::Result<Reading> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let time = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    let now_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Reading { clock: boot.trim().to_owned(), now_ms })
}

impl EmbeddedCatalog {
    /// The catalog in a folder, which is there; an empty one if it has none yet.
    #[must_use]
    pub fn new(directory: &Path) -> EmbeddedCatalog {
        EmbeddedCatalog::with_clock(directory, since_boot)
    }

    /// The same with another clock: tests do not want to wait.
    #[must_use]
    pub fn with_clock(
        directory: &Path,
        clock: impl Fn() -> io::Result<Reading> + Send + 'static,
    ) -> EmbeddedCatalog {
        EmbeddedCatalog { directory: directory.to_path_buf(), clock: Box::new(clock) }
    }

    /// What the catalog in a folder says, for whoever only looks: without its lock, which only its owner may take. `None` if
    /// there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn peek(directory: &Path) -> Result<Option<Listing>, CatalogError> {
        let catalog = EmbeddedCatalog::new(directory);
        let Some(text) = catalog.text()? else { return Ok(None) };
        let reading = catalog.reading()?;
        let table =
            Table::read(&text, &reading.clock, reading.now_ms).map_err(|error| catalog.named(error))?;
        Ok(Some(table.list("")))
    }

    fn reading(&self) -> Result<Reading, CatalogError> {
        (self.clock)().map_err(|error| CatalogError::Unavailable(format!("the clock: {error}")))
    }

    /// With the file's name.
    fn named(&self, error: CatalogError) -> CatalogError {
        match error {
            CatalogError::Damaged(why) => CatalogError::Damaged(format!("{}: {why}", self.path().display())),
            other => other,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    fn unavailable(&self, name: &str, error: &io::Error) -> CatalogError {
        CatalogError::Unavailable(format!("{}: {error}", self.directory.join(name).display()))
    }

    fn lock(&self) -> Result<Flock<File>, CatalogError> {
        let path = self.directory.join(LOCK_NAME);
        let opened = File::options().create(true).truncate(false).write(true).open(path);
        let mut file = opened.map_err(|error| self.unavailable(LOCK_NAME, &error))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((_, error)) if Instant::now() > deadline => {
                    return Err(self.unavailable(LOCK_NAME, &error.into()));
                }
                Err((file, _)) => file,
            };
            std::thread::sleep(LOCK_RETRY);
        }
    }

    /// The file's text; none if there is no file.
    fn text(&self) -> Result<Option<String>, CatalogError> {
        match fs::read_to_string(self.path()) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unavailable(FILE_NAME, &error)),
        }
    }

    /// Does something to the table; what it changed is durable when this returns. Leases that end are written as well: a
    /// revision that somebody was told must not become another's.
    fn with_table<T>(
        &mut self,
        act: impl FnOnce(&mut Table, u64) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let _lock = self.lock()?;
        let reading = self.reading()?;
        let before = self.text()?;
        let table = match &before {
            Some(text) => Table::read(text, &reading.clock, reading.now_ms),
            None => Ok(Table::new(&reading.clock)),
        };
        let mut table = table.map_err(|error| self.named(error))?;
        let result = act(&mut table, reading.now_ms)?;
        let after = table.text();
        if before.as_ref() != Some(&after) {
            write_whole(&self.path(), after.as_bytes())
                .map_err(|error| self.unavailable(FILE_NAME, &error))?;
        }
        Ok(result)
    }
}

impl Catalog for EmbeddedCatalog {
    fn list(&mut self, prefix: &str) -> Result<Listing, CatalogError> {
        self.with_table(|table, _| Ok(table.list(prefix)))
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, CatalogError> {
        self.with_table(|table, _| table.commit(transaction))
    }

    fn news(&mut self, prefix: &str, since: Revision) -> Result<News, CatalogError> {
        self.with_table(|table, _| Ok(table.news(prefix, since)))
    }

    fn acquire(&mut self, name: &str, holder: &str, ttl_ms: u64) -> Result<Acquisition, CatalogError> {
        self.with_table(|table, now_ms| table.acquire(name, holder, ttl_ms, now_ms))
    }

    fn keep(&mut self, lease: &Lease) -> Result<bool, CatalogError> {
        self.with_table(|table, now_ms| Ok(table.keep(lease, now_ms)))
    }

    fn release(&mut self, lease: &Lease) -> Result<(), CatalogError> {
        self.with_table(|table, _| {
            table.release(lease);
            Ok(())
        })
    }
}
