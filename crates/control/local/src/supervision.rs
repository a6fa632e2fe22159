//! Starting again what has died: when, how often, and what is said of it.
//!
//! A part (a node, or an instance's driver) has its process in a file as long as it is wanted: `kill`, `stop` and `down`
//! give the file another name before they end the process. So a file whose process is gone says that the part died by itself.
//! [`Supervisor`] starts it again, unless the part has said that its end is final ([`Ended`]), or it has died too often
//! in a row ([`Restarts`]). Both are files in the part's folder, so that `borealis status` shows the reason.

pub mod controlling;
pub mod detached;
pub mod serving;
mod supervisor;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use supervisor::Supervisor;

const RESTARTS_NAME: &str = "restarts.json";
const ENDED_NAME: &str = "ended.json";

/// How often in a row a part is started again. It is not in a row if it lived for [`SETTLED`] in between.
const ATTEMPTS_MAX: u32 = 5;
/// A part that lived for this long has not died of its start.
const SETTLED: Duration = Duration::from_secs(60);
/// The pause before the first attempt; each further one is twice as long. Long enough for an operator's own command to come
/// first.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause after an end whose cause passes by itself.
const PASSING_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a process leaves when it ends in a way of its own; one that is killed leaves nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Starting it again would do harm or only bring the same end.
    pub is_final: bool,
    /// It waits for something that comes back by itself, like nodes that are away: it is tried again for as long as that
    /// takes.
    #[serde(default)]
    pub passes: bool,
    /// Why it ended, as a sentence without a full stop.
    pub reason: String,
}

impl Ended {
    /// Leaves it in the part's folder.
    ///
    /// # Errors
    /// When it cannot be written; then the part counts as killed.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        save(&folder.join(ENDED_NAME), self)
    }

    /// Opens the file before the process gives up its right to write in the folder. As long as it is empty, nothing was
    /// left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn reserve(folder: &Path) -> io::Result<ReservedEnd> {
        File::create(folder.join(ENDED_NAME)).map(ReservedEnd)
    }

    /// What the part's last process left.
    #[must_use]
    pub fn load(folder: &Path) -> Option<Ended> {
        load(&folder.join(ENDED_NAME))
    }

    /// Before a new process: what the last one left is of no interest any more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(folder: &Path) -> io::Result<()> {
        remove(&folder.join(ENDED_NAME))
    }
}

/// Where a process will leave how it ended.
#[derive(Debug)]
pub struct ReservedEnd(File);

impl ReservedEnd {
    /// Leaves it there.
    ///
    /// # Errors
    /// When it cannot be written; then the part counts as killed.
    pub fn write(mut self, ended: &Ended) -> io::Result<()> {
        self.0.write_all(&serde_json::to_vec(ended)?)
    }
}

/// How often a part was started again by itself since an operator started it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// All attempts.
    pub total: u32,
    /// Attempts in a row.
    pub in_a_row: u32,
    /// When the last attempt was, in milliseconds since 1970.
    pub last_unix_ms: u64,
    /// It is not tried again.
    pub given_up: bool,
    /// Why it died the last time.
    pub reason: String,
}

impl Restarts {
    /// What is known of the part in this folder.
    #[must_use]
    pub fn load(folder: &Path) -> Option<Restarts> {
        load(&folder.join(RESTARTS_NAME))
    }

    /// An operator starts the part: everything begins anew.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(folder: &Path) -> io::Result<()> {
        remove(&folder.join(RESTARTS_NAME))
    }

    fn save(&self, folder: &Path) -> io::Result<()> {
        save(&folder.join(RESTARTS_NAME), self)
    }

    /// The pause before the next attempt.
    fn pause(&self) -> Duration {
        FIRST_PAUSE * 2u32.pow(self.in_a_row.min(ATTEMPTS_MAX))
    }

    fn since_last(&self, now_unix_ms: u64) -> Duration {
        // A clock that was set back must not stop everything for as long.
        Duration::from_millis(now_unix_ms.checked_sub(self.last_unix_ms).unwrap_or(u64::MAX / 2))
    }

    /// For a person, as the continuation of "it died".
    #[must_use]
    pub fn sentence(&self) -> String {
        let times = |count: u32| if count == 1 { "once".to_owned() } else { format!("{count} times") };
        match (self.given_up, self.total) {
            (true, 0) => format!("{}; it is not started again", self.reason),
            (true, _) => {
                format!("{}; started again {} in a row, and not any more", self.reason, times(self.in_a_row))
            }
            (false, total) => format!("{}; started again {}", self.reason, times(total)),
        }
    }
}

/// What to do about a part that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing, now.
    Wait,
    /// Start it again.
    Start,
    /// Start it no more.
    GiveUp,
    /// It has lived long enough: the next death is not in a row with the last.
    Settle,
}

/// What is known of how a part ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Starting it again may help.
    Failed,
    /// Starting it again helps once something is back that it waits for: no number of attempts is too many.
    Passing,
    /// Starting it again does not help.
    Final,
}

impl End {
    fn of(ended: Option<&Ended>) -> End {
        match ended {
            Some(Ended { is_final: true, .. }) => End::Final,
            Some(Ended { passes: true, .. }) => End::Passing,
            _ => End::Failed,
        }
    }
}

/// Decides. `known` is what is known of its restarts, `noticed_for` how long it has been seen dead.
fn next_step(is_alive: bool, known: &Restarts, end: End, noticed_for: Duration, now_unix_ms: u64) -> Step {
    if is_alive {
        let has_settled = known.in_a_row > 0 && known.since_last(now_unix_ms) >= SETTLED;
        return if has_settled { Step::Settle } else { Step::Wait };
    }
    if known.given_up {
        return Step::Wait;
    }
    let pause = match end {
        End::Final => return Step::GiveUp,
        End::Failed if known.in_a_row >= ATTEMPTS_MAX => return Step::GiveUp,
        End::Failed => known.pause(),
        End::Passing => known.pause().min(PASSING_PAUSE_MAX),
    };
    if noticed_for >= pause { Step::Start } else { Step::Wait }
}

fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn save(path: &Path, value: &impl Serialize) -> io::Result<()> {
    // Lost with the machine's power it is of no use, so nothing is synced.
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(&temporary, path)
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(attempts: u32) -> Restarts {
        Restarts { total: attempts, in_a_row: attempts, last_unix_ms: 1_000_000, ..Restarts::default() }
    }

    fn dead(known: &Restarts, end: End, for_ms: u64) -> Step {
        next_step(false, known, end, Duration::from_millis(for_ms), 1_000_000 + for_ms)
    }

    #[test]
    fn a_part_that_died_is_started_again_after_growing_pauses_and_not_for_ever() {
        assert_eq!(dead(&after(0), End::Failed, 999), Step::Wait);
        assert_eq!(dead(&after(0), End::Failed, 1000), Step::Start);
        assert_eq!(dead(&after(1), End::Failed, 1999), Step::Wait);
        assert_eq!(dead(&after(1), End::Failed, 2000), Step::Start);
        assert_eq!(dead(&after(4), End::Failed, 15_999), Step::Wait);
        assert_eq!(dead(&after(4), End::Failed, 16_000), Step::Start);
        assert_eq!(dead(&after(5), End::Failed, 1 << 40), Step::GiveUp);
        let given_up = Restarts { given_up: true, ..after(5) };
        assert_eq!(dead(&given_up, End::Failed, 1 << 40), Step::Wait);
    }

    #[test]
    fn an_end_that_is_final_is_left_alone() {
        assert_eq!(dead(&after(0), End::Final, 0), Step::GiveUp);
        assert_eq!(dead(&after(3), End::Final, 1 << 40), Step::GiveUp);
    }

    #[test]
    fn a_part_that_waits_for_what_comes_back_is_started_again_for_as_long_as_it_takes() {
        for attempts in [0, 5, 500] {
            assert_eq!(dead(&after(attempts), End::Passing, 999), Step::Wait);
            assert_eq!(dead(&after(attempts), End::Passing, 5000), Step::Start);
        }
        let ended = |is_final, passes| Ended { is_final, passes, reason: String::new() };
        assert_eq!(End::of(Some(&ended(false, true))), End::Passing);
        assert_eq!(End::of(Some(&ended(true, true))), End::Final);
        assert_eq!(End::of(Some(&ended(false, false))), End::Failed);
        assert_eq!(End::of(None), End::Failed, "it was killed");
    }

    #[test]
    fn a_part_that_lived_for_a_minute_has_all_its_attempts_again() {
        let alive = |known: &Restarts, since_ms: u64| {
            next_step(true, known, End::Failed, Duration::ZERO, 1_000_000 + since_ms)
        };
        assert_eq!(alive(&after(4), 59_999), Step::Wait);
        assert_eq!(alive(&after(4), 60_000), Step::Settle);
        assert_eq!(alive(&after(0), 60_000), Step::Wait);
        assert_eq!(
            next_step(true, &after(4), End::Failed, Duration::ZERO, 0),
            Step::Settle,
            "a clock that was set back"
        );
    }

    #[test]
    fn what_a_process_left_is_read_back_and_removed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let ended = Ended { is_final: true, passes: false, reason: "it was told to stop".to_owned() };
        assert_eq!(Ended::load(folder.path()), None);
        ended.save(folder.path()).expect("saved");
        assert_eq!(Ended::load(folder.path()), Some(ended));
        Ended::clear(folder.path()).expect("removed");
        Ended::clear(folder.path()).expect("there is nothing to remove");
        assert_eq!(Ended::load(folder.path()), None);
    }

    #[test]
    fn the_reason_is_told_with_the_attempts() {
        let restarts = Restarts { reason: "killed by signal 9".to_owned(), ..after(1) };
        assert_eq!(restarts.sentence(), "killed by signal 9; started again once");
        let given_up = Restarts { given_up: true, reason: "the disk is full".to_owned(), ..after(5) };
        assert_eq!(given_up.sentence(), "the disk is full; started again 5 times in a row, and not any more");
    }
}
