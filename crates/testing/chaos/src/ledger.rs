//! Clients that insert ascending numbers, remember what was acknowledged to them, and never give up.
//!
//! When its connection breaks, a client does not know whether its last insert was committed. It connects again and looks: the
//! number is there, and then it counts, or it is not, and is written again. Whatever was acknowledged must be there.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use borealis_testbed::sql::Connection;

/// A commit may wait for the write quorum for as long as something is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// What the clients share with those who watch them.
#[derive(Debug, Default)]
pub struct Counts {
    /// Acknowledged, all clients together.
    pub acknowledged: AtomicU64,
    /// Inserts whose connection broke, and that were there afterwards.
    pub found_after_break: AtomicU64,
    /// Connections that broke.
    pub broken: AtomicU64,
    /// The longest that an insert took since it was last taken, in microseconds.
    pub longest_us: AtomicU64,
    /// What must not be, in words; the first.
    pub violation: Mutex<Option<String>>,
}

impl Counts {
    /// Notes something that must not be.
    pub fn violate(&self, what: String) {
        let mut violation = self.violation.lock().unwrap_or_else(PoisonError::into_inner);
        violation.get_or_insert(what);
    }

    /// What must not have been, if anything was.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The clients.
#[derive(Debug)]
pub struct Ledger {
    port: u16,
    /// The highest number acknowledged to each client.
    acknowledged: Vec<Arc<AtomicI64>>,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Ledger {
    /// Makes the table and starts the clients.
    ///
    /// # Errors
    /// When the table cannot be made, or a thread.
    pub fn start(port: u16, clients: usize, counts: &Arc<Counts>) -> anyhow::Result<Ledger> {
        Connection::open(port, ANSWER_TIMEOUT)?
            .query("CREATE TABLE chaos_ledger (client int, number bigint, PRIMARY KEY (client, number))")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut ledger =
            Ledger { port, acknowledged: Vec::new(), counts: Arc::clone(counts), stop, threads: Vec::new() };
        for client in 0..clients {
            let acknowledged = Arc::new(AtomicI64::new(0));
            ledger.acknowledged.push(Arc::clone(&acknowledged));
            let (counts, stop) = (Arc::clone(counts), Arc::clone(&ledger.stop));
            let body = move || run(port, client, &acknowledged, &counts, &stop);
            ledger.threads.push(std::thread::Builder::new().name(format!("ledger-{client}")).spawn(body)?);
        }
        Ok(ledger)
    }

    /// Tells the clients to end, and waits for them. The server must answer.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.counts.violate("a client of the ledger panicked".to_owned());
            }
        }
    }

    /// Looks for everything that was acknowledged: what is missing, in words; `None` if nothing is.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn missing(&mut self) -> anyhow::Result<Option<String>> {
        self.stop();
        let mut connection = Connection::open(self.port, ANSWER_TIMEOUT)?;
        let mut problems = Vec::new();
        for (client, acknowledged) in self.acknowledged.iter().enumerate() {
            let acknowledged = acknowledged.load(Ordering::SeqCst);
            let of_client = format!("FROM chaos_ledger WHERE client = {client}");
            let count = connection.number(&format!("SELECT count(*) {of_client}"))? as i64;
            let highest = connection.number(&format!("SELECT coalesce(max(number), 0) {of_client}"))? as i64;
            problems.extend(
                difference(acknowledged, count, highest).map(|what| format!("client {client}: {what}")),
            );
        }
        Ok((!problems.is_empty()).then(|| problems.join("; ")))
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Not waited for: the server may be stopped and never answer.
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// What is wrong with what was found of a client, if anything is. One number more than acknowledged may be there.
fn difference(acknowledged: i64, count: i64, highest: i64) -> Option<String> {
    if highest < acknowledged {
        let lost = acknowledged - highest;
        return Some(format!("the last {lost} of {acknowledged} acknowledged commits are gone"));
    }
    if count != highest {
        return Some(format!("{} commits in the middle are gone, or there twice", highest - count));
    }
    (highest > acknowledged + 1).then(|| format!("{highest} is there, and only {acknowledged} was written"))
}

fn run(port: u16, client: usize, acknowledged: &AtomicI64, counts: &Counts, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        // A failure is a connection that broke or was never made: look again what is there.
        if session(port, client, acknowledged, counts, stop).is_err() {
            counts.broken.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(RETRY);
        }
    }
}

/// Goes on until the connection breaks.
fn session(
    port: u16,
    client: usize,
    acknowledged: &AtomicI64,
    counts: &Counts,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut connection = Connection::open(port, ANSWER_TIMEOUT)?;
    let last = format!("SELECT coalesce(max(number), 0) FROM chaos_ledger WHERE client = {client}");
    let found = connection.number(&last)? as i64;
    let known = acknowledged.load(Ordering::SeqCst);
    if found < known {
        counts.violate(format!("client {client}: {known} was acknowledged, and {found} is the last there"));
    }
    if found > known {
        acknowledged.store(found, Ordering::SeqCst);
        counts.found_after_break.fetch_add(1, Ordering::Relaxed);
        counts.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    while !stop.load(Ordering::SeqCst) {
        let number = acknowledged.load(Ordering::SeqCst) + 1;
        let begin = Instant::now();
        connection.query(&format!("INSERT INTO chaos_ledger VALUES ({client}, {number})"))?;
        let took_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        acknowledged.store(number, Ordering::SeqCst);
        counts.acknowledged.fetch_add(1, Ordering::Relaxed);
        counts.longest_us.fetch_max(took_us, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_tail_a_hole_and_a_ghost_are_named() {
        assert_eq!(difference(10, 10, 10), None);
        assert_eq!(difference(10, 11, 11), None, "its answer was under way");
        assert!(difference(10, 7, 7).is_some_and(|what| what.contains("the last 3 of 10")));
        assert!(difference(10, 9, 10).is_some_and(|what| what.contains("1 commits in the middle")));
        assert!(difference(10, 12, 12).is_some_and(|what| what.contains("12 is there")));
    }
}
