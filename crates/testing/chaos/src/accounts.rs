//! Transfers between accounts, and readers that look at all of them at once.
//!
//! Whatever happens, one snapshot must show the sum that there was at first: a commit is there as a whole or not at all. And it
//! must show every transfer that was acknowledged before the question was asked, and none that an earlier answer had and this one
//! has not: each transfer counts itself in both accounts, so the counts of all accounts together tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use borealis_testbed::sql::Connection;

use crate::ledger::Counts;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(20);
/// Accounts, so few that transfers meet.
const ACCOUNTS: u64 = 64;
/// What each has at first.
const BALANCE: i64 = 1000;

/// Transfers and readers.
#[derive(Debug)]
pub struct Accounts {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    counts: Arc<Counts>,
    /// Answers that were looked at.
    snapshots: Arc<AtomicU64>,
}

/// What all threads know of the transfers.
#[derive(Debug)]
struct Shared {
    port: u16,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    /// Transfers that were acknowledged: any answer to a question that is asked now has at least so many.
    acknowledged: AtomicI64,
    /// The most that an answer showed: none that is asked after it may show fewer.
    shown: AtomicI64,
    snapshots: Arc<AtomicU64>,
}

impl Accounts {
    /// Makes the accounts and starts `writers` and as many readers.
    ///
    /// # Errors
    /// When the table cannot be made, or a thread.
    pub fn start(port: u16, writers: usize, seed: u64, counts: &Arc<Counts>) -> anyhow::Result<Accounts> {
        Connection::open(port, ANSWER_TIMEOUT)?.query(&format!(
            "CREATE TABLE chaos_accounts (id int PRIMARY KEY, balance bigint NOT NULL, changed bigint NOT NULL); \
             INSERT INTO chaos_accounts SELECT id, {BALANCE}, 0 FROM generate_series(1, {ACCOUNTS}) id"
        ))?;
        let (stop, snapshots) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let shared = Arc::new(Shared {
            port,
            counts: Arc::clone(counts),
            stop: Arc::clone(&stop),
            acknowledged: AtomicI64::new(0),
            shown: AtomicI64::new(0),
            snapshots: Arc::clone(&snapshots),
        });
        let mut accounts = Accounts { stop, threads: Vec::new(), counts: Arc::clone(counts), snapshots };
        for number in 0..writers {
            let mut random = fastrand::Rng::with_seed(seed ^ (number as u64 + 1));
            let of_writer = Arc::clone(&shared);
            let writer =
                move || of_writer.until_stopped(|connection| of_writer.transfer(connection, &mut random));
            let of_reader = Arc::clone(&shared);
            let reader = move || of_reader.until_stopped(|connection| of_reader.look(connection));
            let thread = |name: &str| std::thread::Builder::new().name(format!("{name}-{number}"));
            accounts.threads.push(thread("transfers").spawn(writer)?);
            accounts.threads.push(thread("snapshots").spawn(reader)?);
        }
        Ok(accounts)
    }

    /// Tells the threads to end, and waits for them. The server must answer.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.counts.violate("a thread of the accounts panicked".to_owned());
            }
        }
    }

    /// Answers that were looked at.
    #[must_use]
    pub fn snapshots(&self) -> u64 {
        self.snapshots.load(Ordering::Relaxed)
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    /// Does something again and again; a connection that broke is made anew.
    fn until_stopped(&self, mut act: impl FnMut(&mut Connection) -> std::io::Result<()>) {
        while !self.stop.load(Ordering::SeqCst) {
            let connected = Connection::open(self.port, ANSWER_TIMEOUT);
            let ended = connected.and_then(|mut connection| {
                while !self.stop.load(Ordering::SeqCst) {
                    act(&mut connection)?;
                }
                Ok(())
            });
            if ended.is_err() {
                std::thread::sleep(RETRY);
            }
        }
    }

    fn transfer(&self, connection: &mut Connection, random: &mut fastrand::Rng) -> std::io::Result<()> {
        let (first, second) = (random.u64(1..=ACCOUNTS), random.u64(1..=ACCOUNTS));
        if first == second {
            return Ok(());
        }
        // In number order, so that no two wait for each other.
        let (low, high) = (first.min(second), first.max(second));
        let amount = random.i64(-50..=50);
        let set = |id: u64, amount: i64| {
            format!(
                "UPDATE chaos_accounts SET balance = balance + {amount}, changed = changed + 1 WHERE id = {id};"
            )
        };
        // One message is one transaction.
        connection.query(&format!("{} {}", set(low, amount), set(high, -amount)))?;
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn look(&self, connection: &mut Connection) -> std::io::Result<()> {
        let (acknowledged, shown) =
            (self.acknowledged.load(Ordering::SeqCst), self.shown.load(Ordering::SeqCst));
        let rows = connection.query("SELECT count(*), sum(balance), sum(changed) FROM chaos_accounts")?;
        let value = |column: usize| rows.first()?.get(column)?.as_deref()?.parse::<i64>().ok();
        let Some(((count, sum), changed)) = value(0).zip(value(1)).zip(value(2)) else {
            return Err(std::io::Error::other("an answer without numbers"));
        };
        if let Some(what) = wrong(count, sum, changed, acknowledged, shown) {
            self.counts.violate(what);
        }
        self.shown.fetch_max(changed / 2, Ordering::SeqCst);
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What is wrong with a snapshot, when so many transfers were acknowledged, and so many shown, before it was asked for.
fn wrong(count: i64, sum: i64, changed: i64, acknowledged: i64, shown: i64) -> Option<String> {
    let accounts = ACCOUNTS as i64;
    if (count, sum) != (accounts, accounts * BALANCE) {
        return Some(format!(
            "a snapshot has {count} accounts with {sum}, not {accounts} with {}",
            accounts * BALANCE
        ));
    }
    if changed % 2 != 0 {
        return Some(format!("a snapshot has half a transfer: {changed} changes"));
    }
    let transfers = changed / 2;
    if transfers < acknowledged {
        return Some(format!(
            "a snapshot has {transfers} transfers, and {acknowledged} were acknowledged before"
        ));
    }
    (transfers < shown).then(|| format!("a snapshot has {transfers} transfers, and an earlier one {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_cannot_be_is_named() {
        let sum = ACCOUNTS as i64 * BALANCE;
        let accounts = ACCOUNTS as i64;
        assert_eq!(wrong(accounts, sum, 20, 10, 9), None);
        let named = |seen: Option<String>, expected: &str| {
            let seen = seen.unwrap_or_default();
            assert!(seen.contains(expected), "{seen}");
        };
        named(wrong(accounts, sum - 1, 20, 10, 10), "not 64 with 64000");
        named(wrong(accounts - 1, sum, 20, 10, 10), "63 accounts");
        named(wrong(accounts, sum, 21, 10, 10), "half a transfer");
        named(wrong(accounts, sum, 18, 10, 9), "10 were acknowledged before");
        named(wrong(accounts, sum, 20, 10, 11), "an earlier one 11");
    }
}
