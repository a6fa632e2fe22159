//! Watches the parts of a cluster, and starts again those that died.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use borealis_types::{InstanceId, NodeId};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{End, Ended, Restarts, Step, controlling, next_step, now_unix_ms};
use crate::catalog::Catalog;
use crate::cluster::Cluster;
use crate::log::last_line;
use crate::process::read_process_file;

/// A part of a cluster with a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Node(NodeId),
    Instance(InstanceId),
    Controller,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Node(node) => write!(f, "node {node}"),
            Part::Instance(instance) => write!(f, "instance {instance}"),
            Part::Controller => f.write_str("the controller"),
        }
    }
}

/// Starts again what dies. Call [`Supervisor::look`] a few times a second.
#[derive(Debug)]
pub struct Supervisor {
    directory: PathBuf,
    /// Since when each dead part has been seen dead.
    dead_since: BTreeMap<Part, Instant>,
    /// How processes ended that this process had started.
    endings: BTreeMap<u32, String>,
}

impl Supervisor {
    /// For the cluster in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Supervisor {
        Supervisor {
            directory: directory.to_path_buf(),
            dead_since: BTreeMap::new(),
            endings: BTreeMap::new(),
        }
    }

    /// Looks at every part once, and starts what is due; what was done, a sentence each. Nothing is done while another
    /// command is changing the cluster.
    pub fn look(&mut self) -> Vec<String> {
        self.reap();
        // Read anew each time: addresses and settings change while everything is stopped.
        let Ok(cluster) = Cluster::open(&self.directory) else { return Vec::new() };
        let nodes = cluster.catalog.nodes.iter().map(|node| Part::Node(node.id));
        let instances = cluster.catalog.instances.iter().map(|instance| Part::Instance(instance.id));
        let parts: Vec<Part> = nodes.chain(instances).chain([Part::Controller]).collect();
        parts.into_iter().filter_map(|part| self.look_at(&cluster, part)).collect()
    }

    /// Whether nothing runs any more, and nothing of it will be started again by [`Supervisor::look`].
    #[must_use]
    pub fn nothing_is_left(&self) -> bool {
        let Ok(cluster) = Cluster::open(&self.directory) else { return false };
        let nodes = cluster.catalog.nodes.iter().map(|node| Part::Node(node.id));
        let instances = cluster.catalog.instances.iter().map(|instance| Part::Instance(instance.id));
        let is_over = |part| {
            let folder = folder(&cluster, part);
            let wanted = folder.join("process").exists();
            !wanted || Restarts::load(&folder).is_some_and(|restarts| restarts.given_up)
        };
        !cluster.anything_runs() && nodes.chain(instances).all(is_over)
    }

    /// Takes note of children that ended, which also removes what is left of them.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            let (process, how) = match status {
                WaitStatus::Exited(process, code) => (process, format!("it ended with exit code {code}")),
                WaitStatus::Signaled(process, signal, _) => (process, format!("it was killed by {signal}")),
                WaitStatus::StillAlive => return,
                _ => continue,
            };
            self.endings.insert(process.as_raw().cast_unsigned(), how);
        }
    }

    fn look_at(&mut self, cluster: &Cluster, part: Part) -> Option<String> {
        let folder = folder(cluster, part);
        let file = folder.join("process");
        let is_alive = read_process_file(&file).is_some();
        // Without the file nobody wants it to run.
        if is_alive || !file.exists() {
            self.dead_since.remove(&part);
        }
        if !file.exists() {
            return None;
        }
        let noticed_for = match is_alive {
            true => std::time::Duration::ZERO,
            false => self.dead_since.entry(part).or_insert_with(Instant::now).elapsed(),
        };
        let known = Restarts::load(&folder).unwrap_or_default();
        let ended = Ended::load(&folder);
        match next_step(is_alive, &known, End::of(ended.as_ref()), noticed_for, now_unix_ms()) {
            Step::Wait => None,
            Step::Settle => {
                // Should this fail, it is tried again.
                let _ = Restarts { in_a_row: 0, ..known }.save(&folder);
                None
            }
            Step::GiveUp => {
                let reason = self.reason(cluster, part, ended);
                let restarts = Restarts { given_up: true, reason, ..known };
                restarts.save(&folder).ok()?;
                Some(format!("{part} died: {}", restarts.sentence()))
            }
            Step::Start => self.start(part, &folder, known, ended),
        }
    }

    /// Starts a dead part again, unless another command is at work, which may be about to do that, or to stop everything.
    fn start(&mut self, part: Part, folder: &Path, known: Restarts, ended: Option<Ended>) -> Option<String> {
        let _lock = Catalog::lock(&self.directory).ok()?;
        let cluster = Cluster::open(&self.directory).ok()?;
        let file = folder.join("process");
        if !file.exists() || read_process_file(&file).is_some() {
            return None;
        }
        let in_a_row = match End::of(ended.as_ref()) {
            // Waiting is no failed attempt, but a start by this supervisor it is.
            End::Passing => known.in_a_row.max(1),
            End::Failed | End::Final => known.in_a_row + 1,
        };
        let mut restarts = Restarts {
            total: known.total + 1,
            in_a_row,
            last_unix_ms: now_unix_ms(),
            given_up: false,
            reason: self.reason(&cluster, part, ended),
        };
        let started = match part {
            Part::Node(node) => cluster.spawn_node(node).map(|_| ()),
            Part::Instance(instance) => cluster.spawn_instance(instance).map(|_| ()),
            Part::Controller => controlling::spawn(&cluster),
        };
        if let Err(error) = &started {
            restarts.reason = format!("{error:#}");
        }
        // A limit that cannot be kept is none; the part runs, and is said to.
        let saved = restarts.save(folder);
        self.dead_since.remove(&part);
        Some(match (started, saved) {
            (Ok(()), Ok(())) => format!("{part} died: {}", restarts.sentence()),
            (Ok(()), Err(error)) => {
                format!("{part} died and was started again, which cannot be noted: {error}")
            }
            (Err(error), _) => format!("{part} died and cannot be started again: {error:#}"),
        })
    }

    /// Why a part died.
    fn reason(&mut self, cluster: &Cluster, part: Part, ended: Option<Ended>) -> String {
        if let Some(ended) = ended {
            return ended.reason;
        }
        let (process, log) = match part {
            Part::Node(node) => {
                (cluster.last_node_process(node), cluster.node_directory(node).join("node.log"))
            }
            Part::Instance(instance) => (
                cluster.last_driver_process(instance),
                cluster.instance_directory(instance).join("driver.log"),
            ),
            Part::Controller => (
                controlling::last_process(cluster.directory()),
                controlling::folder(cluster.directory()).join(controlling::LOG_NAME),
            ),
        };
        let how = process.and_then(|process| self.endings.remove(&process));
        let how = how.unwrap_or_else(|| "it was killed or crashed".to_owned());
        match last_line(&log) {
            Some(line) if line.contains("panicked") || line.contains("invariant") => format!("{how}: {line}"),
            _ => how,
        }
    }
}

fn folder(cluster: &Cluster, part: Part) -> PathBuf {
    match part {
        Part::Node(node) => cluster.node_directory(node),
        Part::Instance(instance) => cluster.instance_directory(instance),
        Part::Controller => controlling::folder(cluster.directory()),
    }
}
