//! The hot path allocates nothing: over a WAL with every resource manager in it, not one allocation for finding a
//! record, telling what it changes, and changing pages that exist.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "counts the allocations of each thread"
)]
#![allow(clippy::unwrap_used)] // All of this is test code.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use borealis_redo::apply_page;
use borealis_redo::counters::Counters;
use borealis_types::{Lsn, PAGE_SIZE, PageBytes, PageKey};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{Effect, ResourceManager, effects};
use support::Cluster;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged. The counter needs neither allocation nor
// destructor, so counting cannot come back here, nor happen too late in a thread's life.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` returns, and how often it allocated.
fn counted<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.get();
    let result = work();
    (result, ALLOCATIONS.get() - before)
}

const WORKLOAD: &str = "
create table heaped (a int primary key, b text, c int[], p point, s text) with (autovacuum_enabled = off);
create index on heaped (b);
create index on heaped using hash (a);
create index on heaped using gin (c) with (fastupdate = off);
create index on heaped using gist (p);
create index on heaped using spgist (s);
create index on heaped using brin (a) with (pages_per_range = 1);
create sequence counted;
insert into heaped select i, 'b' || i % 20, array[i % 7, i % 300, i], point(i * 7919 % 1009, i * 31 % 997), md5(i::text)
    from generate_series(1, 4000) i;
update heaped set p = point(a, a) where a % 5 = 0;
update heaped set s = s || 'x' where a % 7 = 0;
delete from heaped where a % 3 = 0;
select count(*) from (select * from heaped for update) locked;
vacuum heaped;
insert into heaped select -i, 'b' || i % 20, array[i % 7, i % 300, i], point(i, i * 31 % 997), md5(i::text)
    from generate_series(1, 2000) i;
copy heaped (a, b) from program 'seq 10000 12000 | awk ''{ print $1 \"\\tcopied\" }''';
begin; update heaped set b = 'undone' where a % 2 = 0; rollback;
vacuum (freeze) heaped;
select nextval('counted') from generate_series(1, 1000);
";

/// Resource managers that the workload must reach.
const REQUIRED: &[ResourceManager] = &[
    ResourceManager::Heap,
    ResourceManager::Heap2,
    ResourceManager::Btree,
    ResourceManager::Hash,
    ResourceManager::Gin,
    ResourceManager::Gist,
    ResourceManager::Spgist,
    ResourceManager::Brin,
    ResourceManager::Sequence,
    ResourceManager::Transaction,
];

/// Blocks of a record that need no allocation.
const BLOCKS_INLINE: usize = 4;

#[test]
fn the_hot_path_allocates_nothing() {
    let mut cluster = Cluster::create("full_page_writes = off\nwal_consistency_checking = ''");
    let start = cluster.control_lsn("Latest checkpoint location:");
    let mut pages: BTreeMap<PageKey, Box<PageBytes>> = cluster.pages().into_iter().collect();
    cluster.start();
    cluster.sql("postgres", WORKLOAD);
    cluster.stop();
    let (wal_start, bytes) = cluster.wal_bytes();
    let window = WalWindow { start: wal_start, bytes: &bytes };

    let mut decoder = RecordDecoder::new(cluster.release(), start, Lsn::ZERO);
    let mut found: Vec<Effect> = Vec::with_capacity(64);
    let mut counters = Counters::default();
    // By resource manager: records, and allocations of redo.
    let mut tallies: BTreeMap<ResourceManager, (u64, u64)> = BTreeMap::new();
    let (mut decoding, mut finding, mut counting, mut wide_records) = (0, 0, 0, 0);
    loop {
        let (next, allocations) = counted(|| decoder.next(&window).unwrap());
        let Next::Record(record) = next else { break };
        decoding += allocations;
        wide_records += u64::from(record.blocks.len() > BLOCKS_INLINE);
        found.clear();
        let ((), allocations) = counted(|| effects(&record, &mut found).unwrap());
        finding += allocations;
        counting += counted(|| counters.apply(&record).unwrap()).1;
        let tally = tallies.entry(record.resource_manager).or_default();
        tally.0 += 1;
        for effect in &found {
            let Effect::Page(key) = effect else { continue };
            let page = pages.entry(*key).or_insert_with(|| Box::new([0; PAGE_SIZE]));
            tally.1 += counted(|| apply_page(&record, key, page).unwrap()).1;
        }
    }

    for resource_manager in REQUIRED {
        let records = tallies.get(resource_manager).map_or(0, |tally| tally.0);
        assert!(records > 10, "the workload has only {records} records of {resource_manager}");
    }
    for (resource_manager, (records, allocations)) in &tallies {
        assert_eq!(*allocations, 0, "redo of {records} records of {resource_manager}");
    }
    assert_eq!(finding, 0, "allocations of effects()");
    assert_eq!(counting, 0, "allocations of Counters::apply()");
    // The buffer for records that cross pages grows a few times, to the longest there is. Only records with more
    // blocks than nearly all have take a list for them.
    assert!(
        decoding <= wide_records * 2 + 16,
        "{decoding} allocations while decoding, with {wide_records} records of more than {BLOCKS_INLINE} blocks"
    );
}
