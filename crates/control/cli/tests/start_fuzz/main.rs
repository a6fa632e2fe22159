//! Whatever PostgreSQL leaves behind when it is killed, the next start must cope with: random DDL, a crash at any
//! moment, a start, and a look at everything that was acknowledged.
//!
//! `BOREALIS_START_FUZZ_RUNS` and `BOREALIS_START_FUZZ_SEED` choose how many runs and which; `docs/HACKING.md` says more.

mod crash;
#[path = "../harness/mod.rs"]
mod harness;
mod model;
mod operation;
mod random;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::{TestCluster, say};
use model::{Model, observe};
use operation::Operation;
use postgres::error::SqlState;
use random::Random;

use crash::{Crash, Outcome};

/// Runs on every change.
const RUNS: u64 = 50;
/// Runs on one cluster, before it is made anew.
const RUNS_PER_CLUSTER: u64 = 500;
/// The last statements that a failure shows.
const SHOWN: usize = 80;

/// A cluster, and how to reach its databases.
pub struct Cluster {
    /// Its commands.
    pub fixture: TestCluster,
    /// How many folders for tablespaces the user has made.
    folders: u64,
}

impl Cluster {
    fn start() -> Cluster {
        let settings = ["max_prepared_transactions=10", "autovacuum=off", "max_replication_slots=1000"];
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--pg-set", setting]).collect();
        Cluster { fixture: TestCluster::start(&arguments), folders: 0 }
    }

    /// A connection with limits: no statement waits for a lock for long.
    pub fn try_connect(&self, database: &str) -> Result<postgres::Client, postgres::Error> {
        postgres::Config::new()
            .host("127.0.0.1")
            .port(self.fixture.port)
            .user("postgres")
            .dbname(database)
            .connect_timeout(Duration::from_secs(5))
            .options("-c lock_timeout=300ms -c statement_timeout=60s -c client_min_messages=error")
            .connect(postgres::NoTls)
    }

    /// The same, which must succeed.
    pub fn connect(&self, database: &str) -> postgres::Client {
        self.try_connect(database).unwrap_or_else(|error| panic!("cannot connect to {database}: {error:?}"))
    }
}

/// Runs an operation to its end.
fn run(cluster: &Cluster, operation: &Operation) -> Outcome {
    let mut client = match cluster.try_connect(&operation.database) {
        Ok(client) => client,
        Err(error) => return Outcome::of(&error),
    };
    for statement in &operation.sql {
        if let Err(error) = client.batch_execute(statement) {
            return Outcome::of(&error);
        }
    }
    Outcome::Done
}

#[derive(Default)]
struct Coverage {
    runs: u64,
    /// By kind: done, refused by PostgreSQL, interrupted.
    operations: BTreeMap<&'static str, [u64; 3]>,
    crashes: BTreeMap<&'static str, u64>,
    /// What was running when the crash came.
    crash_points: BTreeMap<&'static str, u64>,
    meta_kinds: BTreeMap<&'static str, u64>,
    refusals: BTreeMap<String, u64>,
    /// Interrupted operations that turned out to be done, and not.
    interrupted: [u64; 2],
    half_dropped: u64,
    /// Where the time went.
    spent: BTreeMap<&'static str, Duration>,
}

impl Coverage {
    /// Runs something, and counts how long that takes.
    fn timed<T>(&mut self, what: &'static str, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        *self.spent.entry(what).or_default() += begun.elapsed();
        result
    }

    fn count(&mut self, operation: &Operation, outcome: &Outcome) {
        let place = match outcome {
            Outcome::Done => 0,
            Outcome::Refused(_) => 1,
            Outcome::Unknown => 2,
        };
        self.operations.entry(operation.kind).or_default()[place] += 1;
        if let Outcome::Refused(why) = outcome {
            *self.refusals.entry(format!("{}: {why}", operation.kind)).or_default() += 1;
        }
    }

    fn print(&self, begun: Instant) {
        let seconds = |(what, spent): (&&str, &Duration)| format!("{what} {:.0} s", spent.as_secs_f64());
        let spent: Vec<String> = self.spent.iter().map(seconds).collect();
        let spent = spent.join(", ");
        say(&format!("{} runs in {:.0} s: {spent}", self.runs, begun.elapsed().as_secs_f64()));
        say(&format!("DDL and others, {} kinds (done, refused, interrupted):", self.operations.len()));
        for (kind, [done, refused, interrupted]) in &self.operations {
            say(&format!("  {kind}: {done}, {refused}, {interrupted}"));
        }
        say(&format!("crashes: {:?}", self.crashes));
        say(&format!("crash points, {} kinds: {:?}", self.crash_points.len(), self.crash_points));
        say(&format!("small values at a start: {:?}", self.meta_kinds));
        say(&format!("refused: {:?}", self.refusals));
        say(&format!(
            "interrupted: {} done, {} not; half dropped: {}",
            self.interrupted[0], self.interrupted[1], self.half_dropped
        ));
    }
}

struct Fuzzer {
    cluster: Cluster,
    model: Model,
    random: Random,
    history: Vec<String>,
    coverage: Coverage,
}

impl Fuzzer {
    fn note(&mut self, what: String) {
        self.history.push(what);
    }

    fn fail(&self, why: &str) -> ! {
        let first = self.history.len().saturating_sub(SHOWN);
        panic!("{why}\n{}\n{}", self.history[first..].join("\n"), self.cluster.fixture.logs());
    }

    fn next_operation(&mut self) -> Operation {
        let Cluster { fixture, folders } = &mut self.cluster;
        operation::next(&self.model, &mut self.random, || {
            *folders += 1;
            fixture.postgres_folder(&format!("tablespace{folders}")).display().to_string()
        })
    }

    /// One history: some operations, one that is interrupted perhaps, a crash, a start, a look at everything.
    fn run_once(&mut self) {
        for _ in 0..1 + self.random.below(5) {
            let operation = self.next_operation();
            let outcome = self.coverage.timed("statements", || run(&self.cluster, &operation));
            self.note(format!("{}: {:?}: {outcome:?}", operation.database, operation.sql));
            self.coverage.count(&operation, &outcome);
            match outcome {
                Outcome::Done => self.model = operation.after,
                Outcome::Refused(_) => {}
                Outcome::Unknown => self.fail("a statement failed that nobody interrupted"),
            }
        }
        let crash = Crash::random(&mut self.random);
        let last = self.random.chance(75).then(|| self.next_operation());
        let outcome = self.interrupt(crash, last.as_ref());
        let interrupted = last.map(|last| (last, outcome));
        self.look(interrupted);
        self.coverage.runs += 1;
    }

    /// Crashes the cluster, in the middle of an operation if there is one, and starts it again.
    fn interrupt(&mut self, crash: Crash, operation: Option<&Operation>) -> Outcome {
        // Most statements take milliseconds, copying a database a second.
        let longest = 1 << self.random.below(21);
        let delay = Duration::from_micros(u64::from(self.random.below(longest)));
        let again = self.random.chance(15).then(|| Duration::from_millis(u64::from(self.random.below(250))));
        self.note(format!("{crash:?} {delay:?} into {:?}; again {again:?}", operation.map(|it| &it.sql)));
        *self.coverage.crashes.entry(crash.name()).or_default() += 1;
        let point = operation.map_or("between statements", |operation| operation.kind);
        *self.coverage.crash_points.entry(point).or_default() += 1;
        let cluster = &self.cluster;
        let (killed, outcome) = self.coverage.timed("crashes", || {
            std::thread::scope(|scope| {
                let running = operation.map(|operation| scope.spawn(move || run(cluster, operation)));
                let begun = Instant::now();
                while running.as_ref().is_some_and(|it| !it.is_finished()) && begun.elapsed() < delay {
                    std::thread::sleep(Duration::from_micros(200));
                }
                let killed = crash.crash(cluster);
                (killed, running.map_or(Outcome::Done, |running| running.join().expect("it does not panic")))
            })
        });
        if let Some(after) = again {
            *self.coverage.crashes.entry("again, during the start").or_default() += 1;
            self.coverage.timed("crashes", || crash::crash_while_starting(&self.cluster, after));
        }
        let killed = killed.filter(|_| again.is_none());
        let started = self.coverage.timed("starts", || crash.start(&self.cluster, killed));
        if let Err(why) = started {
            self.fail(&format!("it does not start again: {why}"));
        }
        outcome
    }

    /// Compares with what was acknowledged; of what was interrupted, all or nothing.
    fn look(&mut self, interrupted: Option<(Operation, Outcome)>) {
        let (mut observed, half_dropped) = self.coverage.timed("looks", || observe(&self.cluster));
        let mut possible = vec![std::mem::take(&mut self.model)];
        if let Some((operation, outcome)) = interrupted {
            self.note(format!("the interrupted one: {outcome:?}"));
            self.coverage.count(&operation, &outcome);
            match outcome {
                Outcome::Done => possible = vec![operation.after],
                Outcome::Refused(_) => {}
                Outcome::Unknown => possible.push(operation.after),
            }
        }
        for name in &half_dropped {
            // PostgreSQL says so too, and only lets it be dropped.
            self.coverage.half_dropped += 1;
            let mut client = self.cluster.connect("postgres");
            if let Err(error) = client.batch_execute(&format!("DROP DATABASE {name}")) {
                self.fail(&format!("half a database cannot be dropped: {error:?}"));
            }
            self.note(format!("{name} was half dropped"));
            observed = observe(&self.cluster).0;
        }
        let mut differences = Vec::new();
        let count = possible.len();
        for (index, mut model) in possible.into_iter().enumerate() {
            model.restart();
            match model.difference(&observed) {
                None => {
                    if count == 2 {
                        self.coverage.interrupted[1 - index] += 1;
                    }
                    model.learn(&observed);
                    for kind in model.meta_kinds() {
                        *self.coverage.meta_kinds.entry(kind).or_default() += 1;
                    }
                    self.model = model;
                    return;
                }
                Some(difference) => differences.push(difference),
            }
        }
        self.fail(&format!("the contents differ: {}", differences.join(", or ")));
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn every_state_that_a_crash_leaves_can_be_started() {
    let (runs, seed) = (number("BOREALIS_START_FUZZ_RUNS", RUNS), number("BOREALIS_START_FUZZ_SEED", 1));
    let begun = Instant::now();
    let mut coverage = Coverage::default();
    while coverage.runs < runs {
        let random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(coverage.runs));
        let mut fuzzer = Fuzzer {
            cluster: Cluster::start(),
            model: Model::default(),
            random,
            history: vec![format!("seed {seed}, from run {} on", coverage.runs)],
            coverage,
        };
        let first = "CREATE DATABASE d0".to_owned();
        fuzzer.cluster.connect("postgres").batch_execute(&first).expect("the first database");
        let database = model::Database { tablespace: "pg_default".to_owned(), ..model::Database::default() };
        fuzzer.model.databases.insert("d0".to_owned(), database);
        let until = (fuzzer.coverage.runs + RUNS_PER_CLUSTER).min(runs);
        while fuzzer.coverage.runs < until {
            fuzzer.run_once();
            if fuzzer.coverage.runs.is_multiple_of(100) {
                fuzzer.coverage.print(begun);
            }
        }
        fuzzer.cluster.fixture.assert_amcheck_clean();
        fuzzer.cluster.fixture.ok(&["verify"]);
        coverage = fuzzer.coverage;
    }
    coverage.print(begun);
}

/// What the fuzzer's own statements must not fail with: the server's or the storage's doing, not the statement's.
fn is_fault(state: &SqlState) -> bool {
    ["XX", "58", "53", "F0"].iter().any(|class| state.code().starts_with(class))
}
