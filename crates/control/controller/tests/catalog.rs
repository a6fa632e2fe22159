//! The suite of all catalogs, on the one in memory; and what its text may not say.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use borealis_controller::catalog::conformance::{self, Bench};
use borealis_controller::catalog::table::{MemoryCatalog, Table};
use borealis_controller::catalog::{
    Acquisition, Catalog, CatalogError, Change, Key, Lease, Listing, News, Outcome, Revision, Transaction,
    Value,
};

/// Several connections to one catalog in memory.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<MemoryCatalog>>);

impl Catalog for Shared {
    fn list(&mut self, prefix: &str) -> Result<Listing, CatalogError> {
        self.0.borrow_mut().list(prefix)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, CatalogError> {
        self.0.borrow_mut().commit(transaction)
    }

    fn news(&mut self, prefix: &str, since: Revision) -> Result<News, CatalogError> {
        self.0.borrow_mut().news(prefix, since)
    }

    fn acquire(&mut self, name: &str, holder: &str, ttl_ms: u64) -> Result<Acquisition, CatalogError> {
        self.0.borrow_mut().acquire(name, holder, ttl_ms)
    }

    fn keep(&mut self, lease: &Lease) -> Result<bool, CatalogError> {
        self.0.borrow_mut().keep(lease)
    }

    fn release(&mut self, lease: &Lease) -> Result<(), CatalogError> {
        self.0.borrow_mut().release(lease)
    }
}

#[derive(Default)]
struct InMemory(BTreeMap<String, Shared>);

impl Bench for InMemory {
    type Catalog = Shared;

    fn connect(&mut self, name: &str) -> Shared {
        self.0.entry(name.to_owned()).or_default().clone()
    }

    fn pass(&mut self, ms: u64) {
        for shared in self.0.values() {
            shared.0.borrow_mut().now_ms += ms;
        }
    }
}

#[test]
fn the_catalog_in_memory_is_a_catalog() {
    conformance::check(&mut InMemory::default());
}

/// A table with entries, a deletion and a lease that ends at 1,000 ms.
fn table() -> Table {
    let key = |text: &str| Key::new(text).expect("a key");
    let mut table = Table::new("boot 1");
    let put = |text: &str| Change::Put(key(text), Value::from(1));
    for changes in [vec![put("nodes/1"), put("nodes/2")], vec![Change::Delete(key("nodes/2"))]] {
        table.commit(&Transaction { conditions: vec![], changes }).expect("no limit is broken");
    }
    table.acquire("controller", "a", 1_000, 0).expect("nobody has it");
    table
}

#[test]
fn text_holds_all_of_it() {
    let table = table();
    assert_eq!(Table::read(&table.text(), "boot 1", 999).expect("read"), table);
}

#[test]
fn leases_end_with_their_time_and_with_their_clock() {
    let leases = |clock: &str, now_ms| {
        Table::read(&table().text(), clock, now_ms).expect("read").list("leases/").entries.len()
    };
    assert_eq!(leases("boot 1", 999), 1);
    assert_eq!(leases("boot 1", 1_000), 0);
    // The clock of another boot begins at zero again: its readings would let a lease last for weeks.
    assert_eq!(leases("boot 2", 0), 0);
}

#[test]
fn text_that_no_table_writes_is_refused() {
    let text = table().text();
    let refused = |from: &str, to: &str, expected: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "`{from}` is not in the text");
        let said = Table::read(&changed, "boot 1", 0).expect_err(expected).to_string();
        assert!(said.contains(expected), "{said}");
    };
    refused("\"format\": 1", "\"format\": 99", "format 99");
    refused("nodes/1", "nodes//1", "is no key");
    refused("\"nodes/1\"", "\"nodes/2\"", "is there and deleted");
    refused("\"revision\": 3", "\"revision\": 2", "is of revision 3");
    refused(
        "\"leases/controller\": {\n      \"value\"",
        "\"leases/other\": {\n      \"value\"",
        "half a lease",
    );
    refused("\"nodes/2\": 2", "\"nodes/2\": 9", "was deleted in revision 9");
    refused("\"known_from\": 0", "\"known_from\": 7", "was deleted in revision 2");
    assert!(matches!(Table::read(&text[..40], "boot 1", 0), Err(CatalogError::Damaged(_))));
    assert!(matches!(Table::read("", "boot 1", 0), Err(CatalogError::Damaged(_))));
}
