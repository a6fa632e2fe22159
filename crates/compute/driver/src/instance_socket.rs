//! The driver's local socket: one line of JSON in, one line of JSON out.
//!
//! `{"command":"status"}` answers with a [`Status`]; `{"command":"stop"}` begins a clean shutdown and answers
//! `{"stopping":true}`. The socket's thread owns nothing: it passes flags to the loop and shows what the loop
//! put down last.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use borealis_types::ServerVersion;
use mio::Waker;
use serde::Serialize;

/// A request longer than this is not one of ours.
const REQUEST_BYTES_MAX: u64 = 4096;
/// How long a caller may take to send its line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for the loop before the last known state is shown instead.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(300);

/// A segment, as the writer sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemberStatus {
    /// Number of the node that hosts the segment.
    pub node: u16,
    /// What it acknowledged to this writer (SCL).
    pub scl: String,
    /// `up` while the writer is connected to the node, or `down`.
    pub state: &'static str,
}

/// A protection group, as the writer sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GroupStatus {
    /// The group's number; 0 is the meta group.
    pub id: u16,
    /// The membership of the group that the writer goes by.
    pub membership_epoch: u64,
    /// A write quorum has everything up to here (PGCL).
    pub pgcl: String,
    /// The segments of the group, in the order of their nodes: six, or up to eight while members are being replaced.
    pub members: Vec<MemberStatus>,
}

/// A node, as the writer sees it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub node: u16,
    /// How many milliseconds ago it said anything to this writer; since the writer began with it, if it never did. A node that
    /// is connected says something in every quarter of a lease.
    pub heard_ms: u64,
    /// Whether it takes batches.
    pub connected: bool,
}

/// How long the parts of the last start took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StartPhases {
    /// Connecting to enough storage nodes.
    pub connect_ms: f64,
    /// Fencing the old writer, and finding and repairing the end of the log.
    pub protocol_ms: f64,
    /// Importing a fresh `initdb`; zero for a volume that has data.
    pub import_ms: f64,
    /// Reading counters, maps and prepared transactions, and writing the data directory.
    pub directory_ms: f64,
    /// Making the checkpoint record durable.
    pub checkpoint_ms: f64,
    /// From the start of `postgres` until it accepted connections.
    pub server_ms: f64,
}

/// Counters of the driver since its last recovery.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counters {
    /// Redo records shipped, each counted once.
    pub records: u64,
    /// Bytes of those records, each counted once.
    pub record_bytes: u64,
    /// Batches sent, each node counted.
    pub batches_sent: u64,
    /// Bytes of those batches, each node counted.
    pub bytes_sent: u64,
    /// Batches encoded; nodes share them.
    pub batches_encoded: u64,
    /// Batches acknowledged, each node counted.
    pub acknowledgements: u64,
    /// Bytes of redo held in memory.
    pub retained_bytes: u64,
    /// Requests over the shared memory for pages, sizes and listings.
    pub reads: u64,
    /// Of these, answered from pages fetched ahead.
    pub prefetch_hits: u64,
    /// Hints that led to a request.
    pub prefetches: u64,
    /// Read requests sent to nodes.
    pub read_requests: u64,
    /// Of these, second requests because the first was late.
    pub read_hedges: u64,
    /// Read requests that failed or were refused.
    pub read_failures: u64,
    /// Requests of PostgreSQL that ended with an error.
    pub read_errors: u64,
    /// Bytes of relation files in memory when they were last counted.
    pub cache_bytes: u64,
    /// What they should take at most.
    pub cache_limit_bytes: u64,
    /// Blocks dropped to make room.
    pub cache_blocks_dropped: u64,
}

/// The answer to `status`, as one JSON object.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// `starting`, `recovering`, `importing`, `running`, `stopping` or `fenced`.
    pub state: &'static str,
    /// The epoch this instance writes in; zero before the first recovery.
    pub epoch: u64,
    /// The volume durable LSN (VDL): PostgreSQL may be told of commits up to here.
    pub vdl: String,
    /// The volume complete LSN; equal to it, because every record of PostgreSQL is a consistency point.
    pub vcl: String,
    /// The last record shipped ends here.
    pub shipped: String,
    /// Every protection group of the volume, by its number.
    pub groups: Vec<GroupStatus>,
    /// Every node that has a segment, by its number: what this writer observes of it.
    pub nodes: Vec<NodeStatus>,
    /// Process id of the driver.
    pub driver_pid: u32,
    /// The release of the server, recorded in the volume as the writer of this epoch; `None` before the first start.
    pub server_version: Option<ServerVersion>,
    /// When its certificate is valid no more, in seconds since 1970; zero without TLS.
    pub certificate_expires_seconds: u64,
    /// What a user should know of it.
    pub warnings: Vec<String>,
    /// The postmaster, while it runs.
    pub postgres_pid: Option<u32>,
    /// From the beginning of the last start until `postgres` accepted connections.
    pub last_recovery_ms: Option<f64>,
    /// How long the parts of that start took.
    pub phases: StartPhases,
    /// How often `postgres` had to be started again since the driver began.
    pub restarts: u32,
    /// Why the last restart was needed.
    pub last_failure: Option<String>,
    /// What was done since the last recovery.
    pub counters: Counters,
}

/// What the socket's thread and the loop share: the status that is shown, and what was asked for.
#[derive(Debug, Default)]
pub struct StatusBoard {
    status: Mutex<(u64, Status)>,
    refreshed: Condvar,
    waker: Mutex<Option<Arc<Waker>>>,
    status_wanted: AtomicBool,
    stop_wanted: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is replaced as a whole, so a thread that panicked cannot have left it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StatusBoard {
    /// Says which loop to wake; `None` while there is none.
    pub fn set_waker(&self, waker: Option<Arc<Waker>>) {
        *lock(&self.waker) = waker;
    }

    /// Replaces the status that is shown, and tells those who wait for a fresh one.
    pub fn show(&self, status: Status) {
        let mut shown = lock(&self.status);
        shown.0 += 1;
        shown.1 = status;
        self.status_wanted.store(false, Ordering::Relaxed);
        self.refreshed.notify_all();
    }

    /// Changes the state that is shown.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut shown = lock(&self.status);
        shown.0 += 1;
        change(&mut shown.1);
        self.refreshed.notify_all();
    }

    /// The state that is shown.
    #[must_use]
    pub fn shown(&self) -> Status {
        lock(&self.status).1.clone()
    }

    /// Whether somebody waits for a fresh state.
    #[must_use]
    pub fn status_wanted(&self) -> bool {
        self.status_wanted.load(Ordering::Relaxed)
    }

    /// Asks for a clean shutdown.
    pub fn want_stop(&self) {
        self.stop_wanted.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Whether a clean shutdown was asked for.
    #[must_use]
    pub fn stop_wanted(&self) -> bool {
        self.stop_wanted.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            // A loop that cannot be woken looks by itself within its heartbeat.
            let _ = waker.wake();
        }
    }

    /// The state as the loop sees it now; as it saw it last if it does not answer for 300 ms.
    #[must_use]
    pub fn fresh_status(&self) -> Status {
        let shown = lock(&self.status);
        let seen = shown.0;
        self.status_wanted.store(true, Ordering::Relaxed);
        self.wake();
        let waited = self.refreshed.wait_timeout_while(shown, REFRESH_TIMEOUT, |shown| shown.0 == seen);
        waited.unwrap_or_else(PoisonError::into_inner).0.1.clone()
    }
}

/// Listens on `path`, whose old socket is removed, in a thread of its own.
///
/// # Errors
/// When the socket or the thread cannot be made.
pub fn listen(path: &Path, shared: Arc<StatusBoard>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = with_short_name(path, |short| UnixListener::bind(short))?;
    // The thread ends with the process.
    std::thread::Builder::new().name("instance-socket".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // One caller at a time, and none for long: a broken one must not keep the others out.
            if let Err(error) = serve(stream, &shared) {
                tracing::debug!(%error, "control connection");
            }
        }
    })?;
    Ok(())
}

/// Connects to the driver that listens on `path`.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    with_short_name(path, |short| UnixStream::connect(short))
}

/// Calls with a name of the socket that the kernel accepts: it takes at most 107 bytes (`sun_path`), which folders in
/// a user's home often exceed. A longer one is reached through an open descriptor of its folder.
fn with_short_name<T>(path: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return call(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return call(path) };
    let folder = std::fs::File::open(folder)?;
    call(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

#[derive(serde::Deserialize)]
struct Command {
    command: String,
}

fn serve(mut stream: UnixStream, shared: &StatusBoard) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).take(REQUEST_BYTES_MAX).read_line(&mut line)?;
    let command = serde_json::from_str::<Command>(&line).map(|command| command.command);
    let mut answer = match command.as_deref() {
        Ok("status") => serde_json::to_vec(&shared.fresh_status())?,
        // At once, also while the driver is busy with a recovery.
        Ok("state") => serde_json::to_vec(&serde_json::json!({ "state": shared.shown().state }))?,
        Ok("stop") => {
            shared.want_stop();
            br#"{"stopping":true}"#.to_vec()
        }
        Ok(other) => serde_json::to_vec(&serde_json::json!({ "error": format!("unknown command {other}") }))?,
        Err(error) => serde_json::to_vec(&serde_json::json!({ "error": error.to_string() }))?,
    };
    answer.push(b'\n');
    stream.write_all(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &Path, line: &str) -> serde_json::Value {
        let mut stream = connect(path).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    #[test]
    fn a_folder_may_have_a_long_name() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&long).unwrap();
        let path = long.join("driver.sock");
        listen(&path, Arc::new(StatusBoard::default())).unwrap();
        assert!(ask(&path, "nonsense\n")["error"].is_string());
        assert!(connect(&long.join("other.sock")).is_err());
    }

    #[test]
    fn one_line_each_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("driver.sock");
        let shared = Arc::new(StatusBoard::default());
        shared.update(|status| status.state = "running");
        listen(&path, shared.clone()).unwrap();
        assert_eq!(ask(&path, "{\"command\":\"status\"}\n")["state"], "running");
        assert_eq!(ask(&path, "{\"command\":\"state\"}\n")["state"], "running");
        assert!(ask(&path, "nonsense\n")["error"].is_string());
        assert!(ask(&path, "{\"command\":\"dance\"}\n")["error"].is_string());
        assert!(!shared.stop_wanted());
        assert_eq!(ask(&path, "{\"command\":\"stop\"}\n")["stopping"], true);
        assert!(shared.stop_wanted());
    }
}
