//! A hostile client of storage nodes: a process of the right user that keeps to none of the rules.
//!
//! It says that it is whoever it likes, and sends random, cut, oversized, repeated and forged frames of every kind, before
//! and after an introduction; it holds connections and says nothing, and sends a byte at a time. [`run`] does so for a
//! number of seconds from a seed, and counts what became of each kind of attack. Of nodes that speak TLS it has certificates of
//! the fleet, and attacks the handshake with none and with another fleet's.
//!
//! What it leaves out is what nobody can refuse a process of that user: to fence, install or bring records as the recovery
//! that it says it is, within the bounds. Whoever may read a cluster's files may be its writer.
//!
//! Invariant: only sockets that it was told are touched, and it ends by itself.

mod attacks;
mod frames;
mod random;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::Credentials;
use borealis_spec::Endpoint;
use borealis_types::{NodeId, VolumeId};

pub use attacks::Attack;

/// What is attacked, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The volume, as a process of its user reads it from the cluster's catalog.
    pub volume: VolumeId,
    /// Its nodes.
    pub nodes: Vec<(NodeId, Endpoint)>,
    /// Certificates that it shows to nodes that speak TLS, any of them each time: those of parts of the fleet that turned
    /// hostile.
    pub members: Vec<Arc<Credentials>>,
    /// And those of another fleet.
    pub strangers: Vec<Arc<Credentials>>,
    /// How long.
    pub duration: Duration,
    /// The same seed makes the same attacks in each thread; what the nodes answer decides how many there are.
    pub seed: u64,
    /// Threads, each with an attack of its own.
    pub threads: u64,
}

/// What became of attacks of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcomes {
    /// Frames or connections that were tried.
    pub tried: u64,
    /// Answered as if they were in order.
    pub answered: u64,
    /// Answered with a refusal.
    pub refused: u64,
    /// The node closed the connection.
    pub closed: u64,
    /// No connection was had, or no answer came in time.
    pub unanswered: u64,
}

/// What became of all attacks.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// By kind of attack.
    pub outcomes: BTreeMap<Attack, Outcomes>,
}

impl Report {
    fn add(&mut self, other: &Report) {
        for (attack, more) in &other.outcomes {
            let sum = self.outcomes.entry(*attack).or_default();
            sum.tried += more.tried;
            sum.answered += more.answered;
            sum.refused += more.refused;
            sum.closed += more.closed;
            sum.unanswered += more.unanswered;
        }
    }

    /// How many attacks of all kinds were tried.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.outcomes.values().map(|outcomes| outcomes.tried).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:<32} {:>9} {:>9} {:>9} {:>9} {:>10}",
            "attack", "tried", "answered", "refused", "closed", "unanswered"
        )?;
        for (attack, o) in &self.outcomes {
            let name = format!("{attack:?}");
            writeln!(
                formatter,
                "{name:<32} {:>9} {:>9} {:>9} {:>9} {:>10}",
                o.tried, o.answered, o.refused, o.closed, o.unanswered
            )?;
        }
        Ok(())
    }
}

/// Attacks until the time is over.
///
/// # Panics
/// If a thread of its own does.
#[must_use]
pub fn run(options: &Options) -> Report {
    let deadline = Instant::now() + options.duration;
    std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..options.threads)
            .map(|thread| {
                std::thread::Builder::new()
                    .name(format!("attacker-{thread}"))
                    .spawn_scoped(scope, move || attacks::attack_until(options, thread, deadline))
                    .expect("a thread can be started")
            })
            .collect();
        let mut report = Report::default();
        for attacker in attackers {
            report.add(&attacker.join().expect("an attacker does not panic"));
        }
        report
    })
}
