//! What must not be left behind when somebody presses Ctrl-C.
//!
//! Each server removes itself in the ordinary way when it is dropped. A signal ends the program without that, so
//! whatever runs is also listed here, and a thread that waits for the signal takes it down.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Something that outlives the program unless it is ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A postmaster, by its process id: to be ended at once.
    Postmaster(u32),
    /// A stopped process that must go on before it can be ended.
    Frozen(u32),
    /// A Borealis cluster: the program and its directory.
    Cluster(PathBuf, PathBuf),
    /// A folder: to be removed with its content.
    Folder(PathBuf),
}

static ITEMS: Mutex<Vec<Item>> = Mutex::new(Vec::new());

fn items() -> MutexGuard<'static, Vec<Item>> {
    ITEMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enters something that has to go if the benchmark is interrupted.
pub fn add(item: Item) {
    items().push(item);
}

/// Takes something from the list that was ended in order.
pub fn remove(item: &Item) {
    items().retain(|other| other != item);
}

/// Sends a signal to a process that may have ended.
pub fn signal(process: u32, signal: Signal) {
    if let Ok(process) = i32::try_from(process) {
        let _ = kill(Pid::from_raw(process), signal);
    }
}

fn end(item: &Item) {
    match item {
        Item::Postmaster(process) => signal(*process, Signal::SIGQUIT),
        Item::Frozen(process) => signal(*process, Signal::SIGCONT),
        Item::Cluster(program, directory) => {
            let mut command = Command::new(program);
            command.arg("down").arg("--dir").arg(directory).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = command.status();
        }
        Item::Folder(folder) => {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// From now on, an interrupt ends everything that is listed, the newest first, and then the program.
///
/// # Errors
/// When signals cannot be held back or the thread not be made.
pub fn on_interrupt() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Threads made later inherit this, and so do child processes: those that must be ended get other signals.
    signals.thread_block()?;
    std::thread::Builder::new().name("stop-signal".to_owned()).spawn(move || {
        let _ = signals.wait();
        eprintln!("interrupted; stopping the servers");
        for item in std::mem::take(&mut *items()).iter().rev() {
            end(item);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "everything to clean up was, and main is in the middle of a measurement"
        )]
        std::process::exit(130);
    })?;
    Ok(())
}
