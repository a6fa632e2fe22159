//! How fast redo is on one core: decodes a WAL, finds what each record changes, routes it, and applies it to
//! pages held in memory, as a storage node does with the records of one peer.
//!
//! `redo_bench --base PGDATA --wal FOLDER --from LSN [--final PGDATA] [--profile]`
//!
//! `--base` is the data directory as of `--from` (a cluster that was shut down), `--wal` the segment files,
//! `--final` the data directory that PostgreSQL made of the same WAL: every page is compared with it after the
//! run. `--profile` replays once more with a clock read after every record. Prints one line of JSON.
//! `scripts/redo-speed.py` makes all of that and compares with PostgreSQL's startup process.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "a measuring tool: reads files and the clock, prints"
)]

mod compare;
mod files;
mod memory;
#[path = "../../tests/support/page_owner.rs"]
mod page_owner;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_types::{GroupSet, Lsn, Placement, ServerVersion};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{Effect, Record, effects};

use memory::Memory;

/// As many as a small volume has; routing does its work whatever the number.
const GROUPS: u16 = 4;

/// A record that seems to take longer than this is left out of the profile.
const PREEMPTED_NS: u64 = 200_000;

type Failure = Box<dyn Error>;

struct Options {
    base: PathBuf,
    wal: PathBuf,
    from: Lsn,
    after: Option<PathBuf>,
    profile: bool,
}

fn options() -> Result<Options, Failure> {
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    let mut profile = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--profile" {
            profile = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        paths.insert(name, value);
    }
    let mut take = |name: &str| paths.remove(name);
    let options = Options {
        base: take("--base").ok_or("--base is missing")?.into(),
        wal: take("--wal").ok_or("--wal is missing")?.into(),
        from: take("--from").ok_or("--from is missing")?.parse().map_err(|_| "--from is no LSN")?,
        after: take("--final").map(PathBuf::from),
        profile,
    };
    match paths.keys().next() {
        Some(unknown) => Err(format!("{unknown} is not an option").into()),
        None => Ok(options),
    }
}

/// The WAL in memory, and where to begin in it.
struct Log {
    start: Lsn,
    bytes: Vec<u8>,
    from: Lsn,
}

impl Log {
    fn window(&self) -> WalWindow<'_> {
        WalWindow { start: self.start, bytes: &self.bytes }
    }

    fn decoder(&self) -> RecordDecoder {
        RecordDecoder::new(ServerVersion::NEWEST_TESTED, self.from, Lsn::ZERO)
    }
}

/// The state that redo changes.
struct Replay {
    memory: Memory,
    counters: Counters,
    placement: Placement,
    effects: Vec<Effect>,
    /// How often redo changed a page.
    changes: u64,
    /// Records of each group, to keep routing from being optimized away.
    routed: [u64; GROUPS as usize],
}

impl Replay {
    fn new(memory: Memory, control_file: &ControlFile) -> Result<Replay, Failure> {
        Ok(Replay {
            memory,
            counters: Counters::from_control_file(control_file),
            placement: Placement::new(GROUPS).ok_or("no volume has that many groups")?,
            effects: Vec::new(),
            changes: 0,
            routed: [0; GROUPS as usize],
        })
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Failure> {
        self.effects.clear();
        effects(record, &mut self.effects)?;
        let groups = self
            .effects
            .iter()
            .fold(GroupSet::EMPTY, |groups, effect| groups.union(effect.groups(self.placement)));
        for group in groups.iter() {
            self.routed[usize::from(group.0)] += 1;
        }
        for effect in &self.effects {
            self.changes += u64::from(self.memory.apply(record, effect)?);
        }
        self.counters.apply(record)?;
        Ok(())
    }
}

/// What one pass over the WAL cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    records: u64,
    bytes: u64,
    elapsed_ns: u64,
    /// Time this thread had a core.
    cpu_ns: u64,
}

/// Nanoseconds this thread has had a core, as the scheduler counts them; zero where it does not.
fn thread_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Decodes every record and hands it to `each`.
fn pass(log: &Log, mut each: impl FnMut(&Record<'_>) -> Result<(), Failure>) -> Result<Cost, Failure> {
    let window = log.window();
    let mut decoder = log.decoder();
    let mut cost = Cost::default();
    let (began, cpu_began) = (Instant::now(), thread_cpu_ns());
    while let Next::Record(record) = decoder.next(&window)? {
        cost.records += 1;
        cost.bytes += record.bytes.len() as u64;
        each(&record)?;
    }
    cost.elapsed_ns = began.elapsed().as_nanos() as u64;
    cost.cpu_ns = thread_cpu_ns() - cpu_began;
    Ok(cost)
}

/// The least that reading the clock twice in a row says has passed.
fn clock_cost_ns() -> u64 {
    let reading = || {
        let began = Instant::now();
        began.elapsed().as_nanos() as u64
    };
    (0..10_000).map(|_| reading()).min().unwrap_or(0)
}

/// Records and nanoseconds by resource manager, decoding included.
fn profile(log: &Log, replay: &mut Replay) -> Result<BTreeMap<&'static str, (u64, u64)>, Failure> {
    let clock_ns = clock_cost_ns();
    let mut by_resource_manager: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    let mut last = Instant::now();
    pass(log, |record| {
        replay.apply(record)?;
        let now = Instant::now();
        let elapsed_ns = (now.duration_since(last).as_nanos() as u64).saturating_sub(clock_ns);
        // What took this long was mostly another process's turn.
        if elapsed_ns < PREEMPTED_NS {
            let entry = by_resource_manager.entry(record.resource_manager).or_default();
            *entry = (entry.0 + 1, entry.1 + elapsed_ns);
        }
        last = now;
        Ok(())
    })?;
    Ok(by_resource_manager.into_iter().map(|(manager, tally)| (manager.name(), tally)).collect())
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let (start, bytes) = files::wal(&options.wal)?;
    let log = Log { start, bytes, from: options.from };
    let control_bytes = std::fs::read(options.base.join("global/pg_control"))?;
    let control_file = ControlFile::decode(&control_bytes).map_err(|error| error.to_string())?;
    let base = files::pages(&options.base)?;

    // Brings the log into the caches as far as it fits, and says what its parts cost.
    let decode = pass(&log, |record| {
        std::hint::black_box(record);
        Ok(())
    })?;
    let mut found = Vec::new();
    let with_effects = pass(&log, |record| {
        found.clear();
        effects(record, &mut found)?;
        std::hint::black_box(&found);
        Ok(())
    })?;

    let mut by_resource_manager = BTreeMap::new();
    if options.profile {
        let mut replay = Replay::new(Memory::new(&base), &control_file)?;
        by_resource_manager = profile(&log, &mut replay)?;
    }

    let mut replay = Replay::new(Memory::new(&base), &control_file)?;
    let all = pass(&log, |record| replay.apply(record))?;

    let mut out = String::from("{");
    write!(out, "\"records\": {}, \"record_bytes\": {}, ", all.records, all.bytes)?;
    write!(out, "\"page_changes\": {}, \"routed\": {:?}, ", replay.changes, replay.routed)?;
    write!(
        out,
        "\"decode_cpu_ns\": {}, \"decode_effects_cpu_ns\": {}, ",
        decode.cpu_ns, with_effects.cpu_ns
    )?;
    write!(out, "\"elapsed_ns\": {}, \"cpu_ns\": {}, ", all.elapsed_ns, all.cpu_ns)?;
    let managers: Vec<String> = by_resource_manager
        .iter()
        .map(|(name, (records, ns))| format!("\"{name}\": {{\"records\": {records}, \"ns\": {ns}}}"))
        .collect();
    write!(out, "\"resource_managers\": {{{}}}", managers.join(", "))?;
    let mut wrong = Vec::new();
    if let Some(after) = &options.after {
        let compared = compare::with_files(&replay.memory, after)?;
        write!(out, ", \"compared\": {}, \"identical\": {}", compared.pages, compared.identical)?;
        write!(out, ", \"different\": {}", compared.wrong.len())?;
        wrong = compared.wrong;
    }
    println!("{out}}}");
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.truncate(20);
    Err(format!("pages differ from those PostgreSQL's recovery made:\n{}", wrong.join("\n")).into())
}
