//! Clients that insert ascending numbers and remember what was acknowledged to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::server::connect;
use borealis_testbed::sql::Connection;

/// A client whose commit waits is given up with its server, not before.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The clients, from their start until their server is killed.
#[derive(Debug)]
pub struct Ledger {
    /// The highest number acknowledged to each client.
    acknowledged: Vec<Arc<AtomicI64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Ledger {
    /// Makes the table, if it is not there.
    ///
    /// # Errors
    /// When the server fails.
    pub fn create(port: u16) -> anyhow::Result<()> {
        connect(port)?.query(
            "CREATE TABLE IF NOT EXISTS bench_ledger (client int, number bigint, PRIMARY KEY (client, number))",
        )?;
        Ok(())
    }

    /// Starts clients. They go on from what they find in the table, and end at the first failure.
    ///
    /// # Errors
    /// When they cannot connect.
    pub fn start(port: u16, clients: usize) -> anyhow::Result<Ledger> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut ledger = Ledger { acknowledged: Vec::new(), stop: stop.clone(), threads: Vec::new() };
        for client in 0..clients {
            let mut connection = Connection::open(port, CLIENT_TIMEOUT)?;
            let last = connection.number(&format!(
                "SELECT coalesce(max(number), 0) FROM bench_ledger WHERE client = {client}"
            ))?;
            let acknowledged = Arc::new(AtomicI64::new(last as i64));
            ledger.acknowledged.push(acknowledged.clone());
            let stop = stop.clone();
            ledger.threads.push(std::thread::Builder::new().name(format!("ledger-{client}")).spawn(
                move || {
                    while !stop.load(Ordering::SeqCst) {
                        let number = acknowledged.load(Ordering::SeqCst) + 1;
                        let insert = format!("INSERT INTO bench_ledger VALUES ({client}, {number})");
                        if connection.query(&insert).is_err() {
                            return;
                        }
                        acknowledged.store(number, Ordering::SeqCst);
                    }
                },
            )?);
        }
        Ok(ledger)
    }

    /// Commits acknowledged to all clients together, since the table was made.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        let sum: i64 = self.acknowledged.iter().map(|number| number.load(Ordering::SeqCst)).sum();
        sum.unsigned_abs()
    }

    /// Tells the clients to end and waits for them. Their server must answer or be dead.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a ledger client does not panic");
        }
    }

    /// Looks for what was acknowledged. Returns what is missing, in words; `None` if nothing is.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn missing(&mut self, connection: &mut Connection) -> anyhow::Result<Option<String>> {
        self.stop();
        let mut found = Vec::new();
        for client in 0..self.acknowledged.len() {
            let rows = connection
                .query(&format!(
                    "SELECT count(*), coalesce(max(number), 0) FROM bench_ledger WHERE client = {client}"
                ))
                .context("the ledger cannot be read")?;
            let value = |column: usize| rows.first()?.get(column)?.as_deref()?.parse::<i64>().ok();
            let read = value(0).zip(value(1)).context("the ledger answered nonsense")?;
            found.push(read);
        }
        let acknowledged: Vec<i64> =
            self.acknowledged.iter().map(|number| number.load(Ordering::SeqCst)).collect();
        Ok(describe_missing(&acknowledged, &found))
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Not waited for: the server may be stopped and never answer.
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Compares the highest number acknowledged to each client with (count, highest) of what is there. One more than
/// acknowledged may be there: a commit whose answer was under way.
fn describe_missing(acknowledged: &[i64], found: &[(i64, i64)]) -> Option<String> {
    let mut problems = Vec::new();
    for (client, (&acknowledged, &(count, highest))) in acknowledged.iter().zip(found).enumerate() {
        if highest < acknowledged {
            let lost = acknowledged - highest;
            problems.push(format!(
                "client {client}: the last {lost} of {acknowledged} acknowledged commits are gone"
            ));
        } else if count != highest {
            problems.push(format!("client {client}: {} commits in the middle are gone", highest - count));
        } else if highest > acknowledged + 1 {
            problems
                .push(format!("client {client}: {highest} is there, but only {acknowledged} was written"));
        }
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_there_is_nothing_missing() {
        assert_eq!(describe_missing(&[10, 0], &[(10, 10), (0, 0)]), None);
        assert_eq!(describe_missing(&[10], &[(11, 11)]), None);
    }

    #[test]
    fn a_lost_tail_a_hole_and_a_ghost_are_named() {
        let text = describe_missing(&[10, 10, 10], &[(7, 7), (9, 10), (12, 12)]).unwrap();
        assert!(text.contains("client 0: the last 3 of 10"), "{text}");
        assert!(text.contains("client 1: 1 commits in the middle"), "{text}");
        assert!(text.contains("client 2: 12 is there"), "{text}");
    }
}
