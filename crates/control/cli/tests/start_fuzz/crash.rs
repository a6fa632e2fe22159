//! Ways to end an instance, and to have it again.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{memory_directory_of, text};
use crate::random::Random;
use crate::{Cluster, is_fault};

/// Longest that a start may take.
const START_MAX: Duration = Duration::from_secs(60);

/// What became of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    /// PostgreSQL said no, and why.
    Refused(String),
    /// The connection broke, or the server is about to end.
    Unknown,
}

impl Outcome {
    pub fn of(error: &postgres::Error) -> Outcome {
        match error.as_db_error() {
            // `admin_shutdown`, `crash_shutdown`, `cannot_connect_now`.
            Some(database) if database.code().code().starts_with("57P") => Outcome::Unknown,
            Some(database) if is_fault(database.code()) => panic!("PostgreSQL says: {error:?}"),
            Some(database) => Outcome::Refused(database.code().code().to_owned()),
            None => Outcome::Unknown,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Driver and server are killed.
    Instance,
    /// The postmaster alone is killed; the driver starts another one.
    Postmaster,
    /// The driver alone is killed, and the memory folder and the instance's folder are removed.
    MemoryLost,
    /// All processes of the cluster are killed, as by a power cut.
    PowerCut,
    /// The instance is stopped in order.
    Stop,
    /// All of the cluster is stopped in order.
    Down,
}

impl Crash {
    pub fn random(random: &mut Random) -> Crash {
        match random.below(100) {
            0..45 => Crash::Instance,
            45..60 => Crash::Postmaster,
            60..76 => Crash::MemoryLost,
            76..84 => Crash::PowerCut,
            84..93 => Crash::Stop,
            _ => Crash::Down,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Crash::Instance => "instance killed",
            Crash::Postmaster => "postmaster killed",
            Crash::MemoryLost => "driver killed, memory folder removed",
            Crash::PowerCut => "everything killed",
            Crash::Stop => "instance stopped",
            Crash::Down => "down",
        }
    }

    /// Returns the postmaster that was killed alone.
    pub fn crash(self, cluster: &Cluster) -> Option<i32> {
        let fixture = &cluster.fixture;
        match self {
            Crash::Instance => drop(fixture.ok(&["instance", "kill"])),
            Crash::Postmaster => {
                let number = postmaster(cluster).expect("it runs");
                kill(Pid::from_raw(number), Signal::SIGKILL).expect("killed");
                return Some(number);
            }
            Crash::MemoryLost => {
                let memory = memory_directory_of(&fixture.dir());
                fixture.ok(&["instance", "kill"]);
                std::fs::remove_dir_all(memory).expect("removed");
                std::fs::remove_dir_all(fixture.dir().join("instances")).expect("removed");
            }
            Crash::PowerCut => {
                for zone in ["az1", "az2", "az3"] {
                    fixture.ok(&["az", "kill", zone]);
                }
                fixture.ok(&["instance", "kill"]);
            }
            Crash::Stop => drop(fixture.ok(&["instance", "stop"])),
            Crash::Down => drop(fixture.ok(&["down"])),
        }
        None
    }

    /// Starts what was ended, or waits until the driver has, if it still runs beside a postmaster that was killed.
    pub fn start(self, cluster: &Cluster, killed: Option<i32>) -> Result<(), String> {
        let fixture = &cluster.fixture;
        let output = match self {
            Crash::Postmaster if killed.is_some() => return answers(cluster, killed),
            Crash::PowerCut | Crash::Down => fixture.run(&["up", "--detach"]),
            _ => fixture.run(&["instance", "start"]),
        };
        if output.status.success() { Ok(()) } else { Err(text(&output)) }
    }
}

/// Begins a start and kills the instance after a while, whatever it does then.
pub fn crash_while_starting(cluster: &Cluster, after: Duration) {
    let fixture = &cluster.fixture;
    let mut start = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["up", "--detach", "--dir"])
        .arg(fixture.dir())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the borealis program runs");
    std::thread::sleep(after);
    // Without the command, which would tidy up.
    let _ = start.kill();
    start.wait().expect("it was started");
    fixture.ok(&["instance", "kill"]);
}

/// The process that the data directory says is its postmaster.
fn postmaster(cluster: &Cluster) -> Option<i32> {
    let file = memory_directory_of(&cluster.fixture.dir()).join("data/postmaster.pid");
    std::fs::read_to_string(file).ok()?.lines().next()?.parse().ok()
}

/// Waits until the server that the driver starts by itself answers.
fn answers(cluster: &Cluster, killed: Option<i32>) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        // A backend of the one that was killed may still answer for a moment.
        let other = postmaster(cluster).is_some_and(|number| Some(number) != killed);
        if other && cluster.try_connect("postgres").is_ok() {
            return Ok(());
        }
        if begun.elapsed() > START_MAX {
            return Err("no server answers".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
