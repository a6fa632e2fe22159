//! Every fuzz target for a bounded time: what once failed, the corpus, and deterministic mutations of it. Nothing may
//! panic, and nothing may allocate without a bound.
//!
//! A failure names target and input. The input goes to `regressions/<target>/` once the fault is mended.

mod allocator;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use borealis_fuzz::mutation::{SplitMix, mutated};
use borealis_fuzz::{Input, Sample, TARGETS, corpus, redo_record_observed};
use borealis_redo::names::operation_name;
use borealis_wal::ResourceManager;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// No input makes a target ask for more at once.
const LARGEST_BYTES_MAX: usize = 16 << 20;
/// No input makes a target hold more.
const PEAK_BYTES_MAX: usize = 64 << 20;

/// Mutations of each target, unless time is up before.
const MUTATIONS: usize = 100_000;
/// A slow machine does fewer; the order is the same everywhere.
const TIME_LIMIT: Duration = Duration::from_millis(2_500);

/// Runs the target; a message if it fails.
fn failure_of(run: impl FnOnce()) -> Option<String> {
    let (outcome, allocated) = allocator::measured(|| catch_unwind(AssertUnwindSafe(run)));
    if outcome.is_err() {
        return Some("it panics".to_owned());
    }
    let too_much = allocated.largest_bytes > LARGEST_BYTES_MAX || allocated.peak_bytes > PEAK_BYTES_MAX;
    too_much.then(|| format!("it allocates too much: {allocated:?}"))
}

/// Fails the test with the input as hexadecimal digits, and in a file if it is long.
fn check(target: &str, name: &str, input: &[u8], run: impl FnOnce()) {
    let Some(failure) = failure_of(run) else { return };
    let mut digits = String::new();
    for byte in input.iter().take(512) {
        write!(digits, "{byte:02x}").expect("a string takes everything");
    }
    let file = std::env::temp_dir().join(format!("borealis-fuzz-{target}-{name}"));
    let kept =
        fs::write(&file, input).map_or_else(|error| error.to_string(), |()| file.display().to_string());
    panic!("{target}, {name}: {failure}; {} bytes, in {kept}: {digits}", input.len());
}

/// The committed inputs that once made the target fail.
fn regressions(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a listed file").path()).collect();
    paths.sort();
    paths
}

/// One test, for the counters of allocations are shared by all threads.
#[test]
fn no_input_makes_a_target_panic_or_allocate_without_bound() {
    for (target, body) in TARGETS {
        for path in regressions(target) {
            let input = fs::read(&path).expect("a committed file");
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            check(target, &name, &input, || body(&input));
        }
    }
    redo_is_reached_everywhere();
    for (number, (target, body)) in TARGETS.into_iter().enumerate() {
        let seeds = corpus::seeds(target);
        for (name, seed) in seeds.iter().enumerate() {
            check(target, &format!("seed {name}"), seed, || body(seed));
        }
        let mut random = SplitMix::new(number as u64);
        let start = Instant::now();
        let mut done = 0;
        while done < MUTATIONS && start.elapsed() < TIME_LIMIT {
            let (seed, other) = (random.below(seeds.len()), random.below(seeds.len()));
            let input = mutated(&mut random, &seeds[seed], &seeds[other]);
            check(target, &format!("mutation {done} of seed {seed}"), &input, || body(&input));
            done += 1;
        }
        println!("{target}: {} seeds, {done} mutations in {:?}", seeds.len(), start.elapsed());
    }
}

/// How often redo of an operation found nothing wrong, and how often it refused.
#[derive(Clone, Copy, Default, Debug)]
struct Reached {
    applied: usize,
    refused: usize,
}

/// Every operation that has a name, on pages of its own access method: the corpus as it is, each of its samples as
/// every other operation of its resource manager, and damaged.
fn redo_is_reached_everywhere() {
    let reached = RefCell::new(BTreeMap::<(ResourceManager, &'static str), Reached>::new());
    let run = |input: &[u8], name: &str| {
        check("redo_record", name, input, || {
            redo_record_observed(input, &mut |observation| {
                if !observation.is_effect {
                    return;
                }
                let name = operation_name(observation.resource_manager, observation.info);
                let key = (observation.resource_manager, name.unwrap_or("?"));
                let mut reached = reached.borrow_mut();
                let reached = reached.entry(key).or_default();
                reached.applied += usize::from(observation.applied);
                reached.refused += usize::from(!observation.applied);
            });
        });
    };
    let samples = corpus::samples();
    let mut in_corpus = BTreeSet::new();
    for (number, bytes) in samples.iter().enumerate() {
        run(bytes, &format!("sample {number}"));
        let sample = Sample::decode(&mut Input::new(bytes));
        let resource_manager = ResourceManager::from(sample.resource_manager);
        in_corpus.insert((resource_manager, operation_name(resource_manager, sample.info).unwrap_or("?")));
    }
    for key in &in_corpus {
        let reached = reached.borrow().get(key).copied().unwrap_or_default();
        assert!(reached.applied > 0 && reached.refused == 0, "redo refuses real WAL: {key:?} {reached:?}");
    }
    let mut random = SplitMix::new(0xB0);
    for (number, bytes) in samples.iter().enumerate() {
        for operation in 0..16u8 {
            let mut other = bytes.clone();
            other[1] = operation << 4 | other[1] & 0x0F;
            run(&other, &format!("sample {number} as operation {operation}"));
            let damaged = mutated(&mut random, &other, bytes);
            run(&damaged, &format!("sample {number} as operation {operation}, damaged"));
        }
    }
    let reached = reached.into_inner();
    let mut missing = Vec::new();
    for number in 0..22 {
        let resource_manager = ResourceManager::from(number);
        let names = (0..16u8).filter_map(|operation| operation_name(resource_manager, operation << 4));
        for name in names.collect::<BTreeSet<_>>() {
            let counts = reached.get(&(resource_manager, name)).copied().unwrap_or_default();
            println!("{resource_manager} {name}: applied {}, refused {}", counts.applied, counts.refused);
            if counts.applied + counts.refused == 0 {
                missing.push((resource_manager, name));
            }
        }
    }
    assert!(missing.is_empty(), "redo of these operations is not reached: {missing:?}");
}
