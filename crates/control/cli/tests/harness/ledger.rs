//! Clients that write down what was acknowledged to them, and check it afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TestCluster;

/// What one client was told.
#[derive(Debug, Default)]
struct Account {
    /// The last number whose commit was acknowledged.
    acknowledged: AtomicU64,
    /// The longest time one commit took, in microseconds.
    longest_us: AtomicU64,
    /// Statements that failed.
    failures: AtomicU64,
}

/// Clients that insert ascending numbers, each in a transaction of its own.
pub struct Ledger {
    accounts: Vec<Arc<Account>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Ledger {
    /// Makes the table.
    pub fn create(cluster: &TestCluster) {
        cluster
            .connect()
            .batch_execute("CREATE TABLE ledger (client int, number bigint, PRIMARY KEY (client, number))")
            .expect("the table is made");
    }

    /// Starts `clients` clients. They go on from what they find in the table and stop at the first failure.
    pub fn start(cluster: &TestCluster, clients: i32) -> Ledger {
        let stop = Arc::new(AtomicBool::new(false));
        let mut ledger = Ledger { accounts: Vec::new(), stop: stop.clone(), threads: Vec::new() };
        for client in 0..clients {
            let account = Arc::new(Account::default());
            ledger.accounts.push(account.clone());
            let mut connection = cluster.connect();
            let stop = stop.clone();
            ledger.threads.push(std::thread::spawn(move || {
                let insert = connection.prepare("INSERT INTO ledger VALUES ($1, $2)").expect("prepared");
                let last: i64 = connection
                    .query_one("SELECT coalesce(max(number), 0) FROM ledger WHERE client = $1", &[&client])
                    .expect("the last number")
                    .get(0);
                account.acknowledged.store(last as u64, Ordering::SeqCst);
                let mut number = last;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    let begin = Instant::now();
                    if connection.execute(&insert, &[&client, &number]).is_err() {
                        account.failures.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    let elapsed = begin.elapsed().as_micros() as u64;
                    account.longest_us.fetch_max(elapsed, Ordering::SeqCst);
                    account.acknowledged.store(number as u64, Ordering::SeqCst);
                }
            }));
        }
        ledger
    }

    /// How many commits were acknowledged to all clients together (numbers, from the table's start).
    pub fn acknowledged(&self) -> u64 {
        self.accounts.iter().map(|account| account.acknowledged.load(Ordering::SeqCst)).sum()
    }

    /// The longest time one commit took.
    pub fn longest_commit(&self) -> Duration {
        let longest = self.accounts.iter().map(|account| account.longest_us.load(Ordering::SeqCst)).max();
        Duration::from_micros(longest.unwrap_or(0))
    }

    /// Forgets the longest time so far.
    pub fn reset_longest_commit(&self) {
        for account in &self.accounts {
            account.longest_us.store(0, Ordering::SeqCst);
        }
    }

    /// How many clients met a failure.
    pub fn failures(&self) -> u64 {
        self.accounts.iter().map(|account| account.failures.load(Ordering::SeqCst)).sum()
    }

    /// Stops the clients (those that a crash has not stopped already).
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a ledger client does not panic");
        }
    }

    /// Everything acknowledged is there, in one unbroken run from 1, and at most the one commit that was
    /// under way when the server died is there as well.
    pub fn assert_nothing_lost(&self, cluster: &TestCluster) {
        assert!(self.threads.is_empty(), "stop the clients first");
        let mut connection = cluster.connect();
        for (client, account) in self.accounts.iter().enumerate() {
            let row = connection
                .query_one(
                    "SELECT count(*), coalesce(max(number), 0) FROM ledger WHERE client = $1",
                    &[&(client as i32)],
                )
                .expect("the ledger can be read");
            let (count, highest): (i64, i64) = (row.get(0), row.get(1));
            let acknowledged = account.acknowledged.load(Ordering::SeqCst) as i64;
            assert_eq!(count, highest, "client {client}: there are holes");
            assert!(
                highest >= acknowledged,
                "client {client}: {acknowledged} was acknowledged, {highest} is the last there: LOST\n{}",
                cluster.logs()
            );
            assert!(
                highest <= acknowledged + 1,
                "client {client}: {highest} is there, {acknowledged} was said"
            );
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
