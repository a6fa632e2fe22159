//! What every catalog does, as one suite for all implementations: their tests call [`check`].

use std::collections::BTreeMap;

use super::{
    Acquisition, Catalog, CatalogError, Change, Condition, Entry, Key, Lease, News, Outcome, Revision,
    TRANSACTION_PARTS_MAX, Transaction, VALUE_BYTES_MAX, Value,
};

const TTL_MS: u64 = 2_000;

/// A place where catalogs are made.
pub trait Bench {
    /// The implementation.
    type Catalog: Catalog;

    /// Connects to the catalog of this name, which is empty when the name is new. Two connections of one name are two
    /// processes on one catalog.
    fn connect(&mut self, name: &str) -> Self::Catalog;

    /// Lets `ms` milliseconds pass.
    fn pass(&mut self, ms: u64);
}

/// Runs the whole suite.
///
/// # Panics
/// When the implementation does anything else than it should.
pub fn check(bench: &mut impl Bench) {
    entries_are_kept(bench);
    conditions_decide(bench);
    transactions_are_whole(bench);
    limits_are_kept(bench);
    news_are_complete(bench);
    old_news_are_admitted(bench);
    a_lease_has_one_holder(bench);
    a_lost_lease_stops_its_holder(bench);
}

fn key(text: &str) -> Key {
    Key::new(text).expect("the suite's keys are keys")
}

fn put(text: &str, value: u64) -> Change {
    Change::Put(key(text), Value::from(value))
}

fn commit(catalog: &mut impl Catalog, conditions: Vec<Condition>, changes: Vec<Change>) -> Outcome {
    catalog.commit(&Transaction { conditions, changes }).expect("the catalog can be used")
}

fn committed(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("nothing spoke against the transaction"),
    }
}

fn entries(catalog: &mut impl Catalog, prefix: &str) -> BTreeMap<Key, Entry> {
    catalog.list(prefix).expect("the catalog can be used").entries
}

fn values(catalog: &mut impl Catalog, prefix: &str) -> Vec<(String, Value)> {
    entries(catalog, prefix).into_iter().map(|(key, entry)| (key.to_string(), entry.value)).collect()
}

fn pairs(expected: &[(&str, u64)]) -> Vec<(String, Value)> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect()
}

fn entries_are_kept(bench: &mut impl Bench) {
    let mut first = bench.connect("entries");
    let empty = first.list("").expect("the catalog can be used");
    assert!(empty.entries.is_empty());
    let one = committed(commit(
        &mut first,
        vec![],
        vec![put("nodes/1", 1), put("nodes/10", 10), put("volumes/1", 2)],
    ));
    assert!(one > empty.revision);
    let two =
        committed(commit(&mut first, vec![], vec![put("nodes/1", 3), Change::Delete(key("volumes/1"))]));
    assert!(two > one);

    drop(first);
    let mut second = bench.connect("entries");
    assert_eq!(
        values(&mut second, ""),
        pairs(&[("nodes/1", 3), ("nodes/10", 10)]),
        "kept for another process"
    );
    assert_eq!(values(&mut second, "nodes/10"), pairs(&[("nodes/10", 10)]));
    assert_eq!(values(&mut second, "volumes/"), []);
    let listed = entries(&mut second, "nodes/");
    assert_eq!((listed[&key("nodes/1")].revision, listed[&key("nodes/10")].revision), (two, one));
    assert_eq!(values(&mut bench.connect("entries of another"), ""), []);
}

fn conditions_decide(bench: &mut impl Bench) {
    let (mut ours, mut theirs) = (bench.connect("conditions"), bench.connect("conditions"));
    let absent = || vec![Condition::Absent(key("nodes/1"))];
    let made = committed(commit(&mut ours, absent(), vec![put("nodes/1", 1)]));
    assert_eq!(commit(&mut theirs, absent(), vec![put("nodes/1", 2)]), Outcome::Conflict);
    let unchanged = |revision| vec![Condition::Unchanged(key("nodes/1"), revision)];
    let changed = committed(commit(&mut theirs, unchanged(made), vec![put("nodes/1", 3)]));
    assert_eq!(commit(&mut ours, unchanged(made), vec![put("nodes/1", 4)]), Outcome::Conflict);
    // The same value written again is a change, too: whoever read the one before has not seen it.
    let same = committed(commit(&mut ours, unchanged(changed), vec![put("nodes/1", 3)]));
    assert_eq!(commit(&mut theirs, unchanged(changed), vec![put("nodes/1", 5)]), Outcome::Conflict);
    // A condition may be about what is not written.
    let both = vec![Condition::Unchanged(key("nodes/1"), same), Condition::Absent(key("nodes/9"))];
    committed(commit(&mut theirs, both, vec![put("volumes/1", 6)]));
    // One that was deleted and made again is another.
    committed(commit(&mut ours, unchanged(same), vec![Change::Delete(key("nodes/1"))]));
    assert_eq!(commit(&mut theirs, unchanged(same), vec![put("nodes/1", 7)]), Outcome::Conflict);
    committed(commit(&mut theirs, absent(), vec![put("nodes/1", 3)]));
    assert_eq!(commit(&mut ours, unchanged(same), vec![put("nodes/1", 8)]), Outcome::Conflict);
    assert_eq!(values(&mut ours, ""), pairs(&[("nodes/1", 3), ("volumes/1", 6)]));
}

fn transactions_are_whole(bench: &mut impl Bench) {
    let mut catalog = bench.connect("whole");
    let before = committed(commit(&mut catalog, vec![], vec![put("nodes/1", 1), put("nodes/2", 2)]));
    let wrong = vec![Condition::Absent(key("nodes/3")), Condition::Absent(key("nodes/2"))];
    let all = || vec![put("nodes/1", 7), Change::Delete(key("nodes/2")), put("nodes/3", 7)];
    assert_eq!(commit(&mut catalog, wrong, all()), Outcome::Conflict);
    assert_eq!(values(&mut catalog, ""), pairs(&[("nodes/1", 1), ("nodes/2", 2)]));
    assert_eq!(catalog.list("").expect("listed").revision, before, "nothing happened");
    let after = committed(commit(&mut catalog, vec![], all()));
    let written = entries(&mut catalog, "");
    assert!(written.values().all(|entry| entry.revision == after), "all are of one transaction");
    assert_eq!(values(&mut catalog, ""), pairs(&[("nodes/1", 7), ("nodes/3", 7)]));
    // What changes nothing makes no revision.
    assert_eq!(committed(commit(&mut catalog, vec![], vec![])), after);
    assert_eq!(committed(commit(&mut catalog, vec![], vec![Change::Delete(key("nodes/9"))])), after);
}

fn limits_are_kept(bench: &mut impl Bench) {
    let mut catalog = bench.connect("limits");
    let many = |count: usize| (0..count).map(|number| put(&format!("nodes/{number}"), 1)).collect::<Vec<_>>();
    committed(commit(&mut catalog, vec![], many(TRANSACTION_PARTS_MAX)));
    let longest = Value::from("x".repeat(VALUE_BYTES_MAX - 2));
    committed(commit(&mut catalog, vec![], vec![Change::Put(key("volumes/1"), longest)]));
    let before = catalog.list("").expect("listed");
    let absent = (0..=TRANSACTION_PARTS_MAX).map(|number| Condition::Absent(key(&format!("x/{number}"))));
    let refused = [
        Transaction { conditions: vec![], changes: many(TRANSACTION_PARTS_MAX + 1) },
        Transaction { conditions: absent.collect(), changes: vec![] },
        Transaction { conditions: vec![], changes: vec![put("nodes/1", 5), Change::Delete(key("nodes/1"))] },
        Transaction { conditions: vec![], changes: vec![put("leases/controller", 5)] },
        Transaction {
            conditions: vec![],
            changes: vec![Change::Put(key("volumes/1"), Value::from("x".repeat(VALUE_BYTES_MAX - 1)))],
        },
    ];
    for transaction in refused {
        assert!(matches!(catalog.commit(&transaction), Err(CatalogError::Misuse(_))), "{transaction:?}");
    }
    for name in ["", "Nodes", "a b", "a//b", "../a"] {
        assert!(matches!(catalog.acquire(name, "me", TTL_MS), Err(CatalogError::Misuse(_))), "`{name}`");
    }
    assert_eq!(catalog.list("").expect("listed"), before);
}

/// What was written and what is gone, by key.
fn news(
    catalog: &mut impl Catalog,
    prefix: &str,
    since: Revision,
) -> (Revision, Vec<(String, Option<Value>)>) {
    match catalog.news(prefix, since).expect("the catalog can be used") {
        News::Changes { revision, entries } => {
            let entries = entries.into_iter();
            (
                revision,
                entries.map(|(key, entry)| (key.to_string(), entry.map(|entry| entry.value))).collect(),
            )
        }
        News::TooOld => panic!("a few changes are remembered"),
    }
}

fn news_are_complete(bench: &mut impl Bench) {
    let (mut ours, mut theirs) = (bench.connect("news"), bench.connect("news"));
    committed(commit(&mut ours, vec![], vec![put("nodes/1", 1), put("nodes/2", 2), put("volumes/1", 3)]));
    let seen = theirs.list("").expect("listed").revision;
    assert_eq!(news(&mut theirs, "", seen), (seen, vec![]));
    committed(commit(&mut ours, vec![], vec![put("nodes/1", 4), put("nodes/3", 5)]));
    committed(commit(&mut ours, vec![], vec![Change::Delete(key("nodes/2")), put("nodes/1", 6)]));
    let last =
        committed(commit(&mut ours, vec![], vec![put("volumes/1", 7), Change::Delete(key("nodes/3"))]));
    let expected = |key: &str, value: Option<u64>| (key.to_owned(), value.map(Value::from));
    let nodes = [expected("nodes/1", Some(6)), expected("nodes/2", None), expected("nodes/3", None)];
    assert_eq!(news(&mut theirs, "nodes/", seen), (last, nodes.to_vec()));
    assert_eq!(news(&mut theirs, "volumes/", seen), (last, vec![expected("volumes/1", Some(7))]));
    // Below the prefix nothing is new, and yet the next question begins at the newest revision.
    assert_eq!(news(&mut theirs, "instances/", seen), (last, vec![]));
    // A lease that ends is news as well.
    let Acquisition::Acquired(lease) = ours.acquire("controller", "a", TTL_MS).expect("usable") else {
        panic!("nobody has it")
    };
    let held = vec![("leases/controller".to_owned(), Some(Value::from("a")))];
    assert_eq!(news(&mut theirs, "", last), (lease.revision, held));
    bench.pass(2 * TTL_MS);
    assert_eq!(news(&mut theirs, "", lease.revision).1, vec![("leases/controller".to_owned(), None)]);
}

fn old_news_are_admitted(bench: &mut impl Bench) {
    let mut catalog = bench.connect("old news");
    let early = committed(commit(&mut catalog, vec![], vec![put("nodes/1", 1)]));
    // Whatever is forgotten: no answer leaves out a key that is gone.
    for round in 0..40 {
        let keys = || (0..TRANSACTION_PARTS_MAX).map(move |number| format!("instances/{round}/{number}"));
        committed(commit(&mut catalog, vec![], keys().map(|key| put(&key, 1)).collect()));
        committed(commit(&mut catalog, vec![], keys().map(|text| Change::Delete(key(&text))).collect()));
    }
    match catalog.news("", early).expect("the catalog can be used") {
        News::TooOld => {}
        News::Changes { entries, .. } => assert_eq!(entries.len(), 40 * TRANSACTION_PARTS_MAX),
    }
    let late = committed(commit(&mut catalog, vec![], vec![put("nodes/2", 1)]));
    assert_eq!(news(&mut catalog, "", late), (late, vec![]));
    // Of a catalog that was lost and made anew: no difference can be told.
    let future = Revision(late.0 + 1000);
    assert_eq!(catalog.news("", future).expect("usable"), News::TooOld);
}

fn acquired(catalog: &mut impl Catalog, holder: &str) -> Lease {
    match catalog.acquire("controller", holder, TTL_MS).expect("the catalog can be used") {
        Acquisition::Acquired(lease) => lease,
        Acquisition::HeldBy(other) => panic!("{other} has it"),
    }
}

fn refused(catalog: &mut impl Catalog, holder: &str) -> String {
    match catalog.acquire("controller", holder, TTL_MS).expect("the catalog can be used") {
        Acquisition::Acquired(lease) => panic!("{} got it, too", lease.holder),
        Acquisition::HeldBy(other) => other,
    }
}

fn a_lease_has_one_holder(bench: &mut impl Bench) {
    let (mut a, mut b) = (bench.connect("lease"), bench.connect("lease"));
    let first = acquired(&mut a, "a");
    assert_eq!(refused(&mut b, "b"), "a");
    assert_eq!(refused(&mut b, "a"), "a", "two that call themselves the same are two");
    assert!(matches!(b.acquire("another", "b", TTL_MS), Ok(Acquisition::Acquired(_))), "names are apart");
    for _ in 0..4 {
        bench.pass(TTL_MS / 2);
        assert!(a.keep(&first).expect("usable"), "it is kept for as long as it is kept up");
        assert_eq!(refused(&mut b, "b"), "a");
    }
    bench.pass(2 * TTL_MS);
    let second = acquired(&mut b, "b");
    assert!(!a.keep(&first).expect("usable"), "its time is over");
    a.release(&first).expect("usable");
    assert_eq!(refused(&mut a, "a"), "b", "what is lost cannot be given back");
    b.release(&second).expect("usable");
    let third = acquired(&mut a, "a");
    assert!(!b.keep(&second).expect("usable"));
    // It outlives its connection, for it belongs to a holder and not to a socket.
    drop(a);
    assert_eq!(refused(&mut b, "b"), "a");
    assert!(b.keep(&third).expect("usable"));
}

fn a_lost_lease_stops_its_holder(bench: &mut impl Bench) {
    let (mut a, mut b) = (bench.connect("fence"), bench.connect("fence"));
    let lease = acquired(&mut a, "a");
    committed(commit(&mut a, vec![lease.is_held()], vec![put("nodes/1", 1)]));
    bench.pass(TTL_MS / 2);
    assert!(a.keep(&lease).expect("usable"));
    committed(commit(&mut a, vec![lease.is_held()], vec![put("nodes/1", 2)]));
    bench.pass(2 * TTL_MS);
    assert_eq!(
        commit(&mut a, vec![lease.is_held()], vec![put("nodes/1", 3)]),
        Outcome::Conflict,
        "nobody has it"
    );
    let other = acquired(&mut b, "b");
    assert_eq!(
        commit(&mut a, vec![lease.is_held()], vec![put("nodes/1", 4)]),
        Outcome::Conflict,
        "another one has it"
    );
    committed(commit(&mut b, vec![other.is_held()], vec![put("nodes/1", 5)]));
    assert_eq!(values(&mut a, "nodes/"), pairs(&[("nodes/1", 5)]));
}
