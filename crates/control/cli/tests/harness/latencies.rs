//! Commits at a steady pace, and how long each took.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TestCluster;

/// Small commits at a steady pace, and how long each took.
pub struct Latencies {
    taken: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Latencies {
    /// Starts.
    pub fn measure(cluster: &TestCluster) -> Latencies {
        let mut client = cluster.connect();
        client.batch_execute("CREATE TABLE IF NOT EXISTS paced (at timestamptz)").expect("made");
        let (taken, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (taken, stop) = (Arc::clone(&taken), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let begin = Instant::now();
                    client.batch_execute("INSERT INTO paced VALUES (now())").expect("no transaction fails");
                    taken.lock().expect("nobody panics").push(begin.elapsed());
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Latencies { taken, stop, thread: Some(thread) }
    }

    /// The median, the 99th percentile and the longest since the last call.
    pub fn since(&self) -> [Duration; 3] {
        let mut taken = std::mem::take(&mut *self.taken.lock().expect("nobody panics"));
        taken.sort_unstable();
        let at = |part: usize| taken.get(taken.len() * part / 100).copied().unwrap_or_default();
        [at(50), at(99), taken.last().copied().unwrap_or_default()]
    }

    /// The same, in words.
    pub fn said_since(&self) -> String {
        let [median, high, longest] = self.since();
        format!("p50 {median:?} p99 {high:?} longest {longest:?}")
    }

    /// Stops, and expects that no commit failed.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it runs").join().expect("no transaction failed");
    }
}
