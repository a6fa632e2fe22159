//! What happened during a replay, in numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use borealis_wal::ResourceManager;

/// What happened, by resource manager and operation (as `pg_waldump` names it; `?` for one without a name).
pub type Tallies = BTreeMap<(ResourceManager, &'static str), Tally>;

/// What happened to the records of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// How many records there were.
    pub records: u64,
    /// Records whose effects nobody has taught Borealis; nothing of them was applied.
    pub skipped: u64,
    /// Blocks and status pages that redo was applied to.
    pub pages: u64,
    /// How often a small value changed.
    pub values: u64,
    /// Pages compared with the image PostgreSQL says they must equal.
    pub compared: u64,
    /// Pages that differed from it.
    pub different: u64,
    /// How often redo failed, or its comparison.
    pub failed: u64,
    /// Listed blocks that redo takes whole from the record: there is nothing to compare.
    pub restored: u64,
    /// Listed blocks that the record has no image of.
    pub no_image: u64,
    /// Listed blocks whose version before the record was not known: taken from the image, and not compared.
    pub first_seen: u64,
    /// Pages whose version before the record was not known, and which the record has no image of either.
    pub not_followed: u64,
}

impl Tally {
    /// Adds another tally to this one.
    pub fn add(&mut self, other: Tally) {
        let Tally {
            records,
            skipped,
            pages,
            values,
            compared,
            different,
            failed,
            restored,
            no_image,
            first_seen,
            not_followed,
        } = other;
        self.records += records;
        self.skipped += skipped;
        self.pages += pages;
        self.values += values;
        self.compared += compared;
        self.different += different;
        self.failed += failed;
        self.restored += restored;
        self.no_image += no_image;
        self.first_seen += first_seen;
        self.not_followed += not_followed;
    }

    /// How many things went wrong.
    #[must_use]
    pub fn problems(&self) -> u64 {
        self.skipped + self.different + self.failed
    }

    /// Adds up the tallies of all operations.
    #[must_use]
    pub fn total<'t>(tallies: impl IntoIterator<Item = &'t Tally>) -> Tally {
        let mut total = Tally::default();
        for tally in tallies {
            total.add(*tally);
        }
        total
    }

    /// The figures that the table shows, in the order of its columns.
    #[must_use]
    pub fn columns(&self) -> [(&'static str, u64); 9] {
        [
            ("records", self.records),
            ("compared", self.compared),
            ("different", self.different),
            ("skipped", self.skipped),
            ("failed", self.failed),
            ("restored", self.restored),
            ("first seen", self.first_seen),
            ("no image", self.no_image),
            ("values", self.values),
        ]
    }
}

/// The table of operations, with a line of totals at the end.
#[must_use]
pub fn table(tallies: &Tallies) -> String {
    let mut text = String::new();
    line(&mut text, "resource manager", "operation", Tally::default().columns().map(|(name, _)| name));
    for ((resource_manager, operation), tally) in tallies {
        let figures = tally.columns().map(|(_, figure)| figure.to_string());
        line(&mut text, &resource_manager.to_string(), operation, figures);
    }
    let total = Tally::total(tallies.values()).columns().map(|(_, figure)| figure.to_string());
    line(&mut text, "total", "", total);
    text
}

fn line(text: &mut String, first: &str, second: &str, figures: impl IntoIterator<Item = impl AsRef<str>>) {
    let _ = write!(text, "{first:<18} {second:<22}");
    for figure in figures {
        let _ = write!(text, " {:>10}", figure.as_ref());
    }
    text.push('\n');
}
