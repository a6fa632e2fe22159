//! Carries faults out, and ends those that last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use borealis_testbed::cleanup::{self, Item};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, Seen, kill};
use crate::disk;
use crate::plan::Fault;

/// Until it is looked at again whether a node was started with its room.
pub(crate) const FULL_DISK_LOOK: Duration = Duration::from_secs(2);

/// How something that lasts ends.
#[derive(Debug)]
enum Ending {
    /// SIGCONT.
    Continue(u32),
    /// `borealis az start`.
    StartZone(String),
    /// The node's disk has room again.
    EmptyDisk(u16),
}

/// What was done so far, and what has to be ended.
#[derive(Debug)]
pub struct Inflicted {
    /// Processes that were killed.
    pub kills: u64,
    /// How often each kind of fault was carried out.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// Directories of nodes that were deleted.
    pub lost_directories: u64,
    /// Pages that were damaged on disks.
    pub damaged_pages: u64,
    /// The node whose pages are damaged, and no other's.
    victim: Option<u16>,
    /// Nodes whose disk has too little room.
    full: BTreeSet<u16>,
    endings: Vec<(Instant, Ending)>,
    /// Places on a disk: not those of the plan, whose order is that of the seed alone.
    random: fastrand::Rng,
}

impl Inflicted {
    /// Nothing yet.
    #[must_use]
    pub fn new(seed: u64) -> Inflicted {
        Inflicted {
            kills: 0,
            by_kind: BTreeMap::new(),
            lost_directories: 0,
            damaged_pages: 0,
            victim: None,
            full: BTreeSet::new(),
            endings: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Does it, as far as there is something to do it to. Returns whether anything was done.
    ///
    /// # Errors
    /// When a directory cannot be deleted.
    pub fn inflict(&mut self, cluster: &Cluster, seen: &Seen, fault: &Fault) -> anyhow::Result<bool> {
        let done = match fault {
            Fault::KillNodes(nodes) => {
                self.kill_all(nodes.iter().filter_map(|&node| seen.node_process(node)))
            }
            Fault::KillZone(zone, pause) => {
                let nodes = seen.nodes_of_zone(zone);
                // Not by its watcher: so long as the zone is away, nobody starts its nodes.
                let killed = cluster.command(&["az", "kill", zone]).is_ok();
                self.kills += if killed { nodes.len() as u64 } else { 0 };
                self.end_after(*pause, Ending::StartZone(zone.clone()));
                killed
            }
            Fault::LoseNodes(nodes) => self.lose(cluster, seen, nodes)?,
            Fault::StopNode(node, pause) => self.stop(seen.node_process(*node), *pause),
            Fault::StopDriver(pause) => self.stop(seen.driver_process(), *pause),
            Fault::KillServer => self.kill_all(seen.server_process().into_iter()),
            Fault::KillDriver => self.kill_all(seen.driver_process().into_iter()),
            Fault::KillController => self.kill_all(seen.controller_process().into_iter()),
            Fault::LoseInstance => self.lose_instance(cluster, seen)?,
            Fault::DamagePages(pages) => self.damage(cluster, seen, *pages),
            Fault::FillDisk(node, pause) => self.fill(cluster, seen, *node, *pause),
        };
        if done {
            *self.by_kind.entry(fault.kind()).or_default() += 1;
        }
        Ok(done)
    }

    /// Ends what has lasted long enough; everything, if `all`.
    pub fn end_due(&mut self, cluster: &Cluster, all: bool) {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.endings).into_iter().partition(|(at, _)| all || *at <= now);
        self.endings = later;
        for (_, ending) in due {
            match ending {
                Ending::Continue(process) => {
                    cleanup::signal(process, Signal::SIGCONT);
                    cleanup::remove(&Item::Frozen(process));
                }
                Ending::EmptyDisk(node) => {
                    if !self.empty(cluster, node) {
                        self.end_after(FULL_DISK_LOOK, Ending::EmptyDisk(node));
                    }
                }
                Ending::StartZone(zone) => {
                    if cluster.command(&["az", "start", &zone]).is_err() {
                        // Another command is at work, or a node of it does not start at once: again in a moment.
                        self.end_after(Duration::from_millis(500), Ending::StartZone(zone));
                    }
                }
            }
        }
    }

    /// Whether something still has to be ended.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        !self.endings.is_empty()
    }

    fn end_after(&mut self, pause: Duration, ending: Ending) {
        self.endings.push((Instant::now() + pause, ending));
    }

    fn kill_all(&mut self, processes: impl Iterator<Item = u32>) -> bool {
        let before = self.kills;
        for process in processes {
            kill(process);
            self.kills += 1;
        }
        self.kills > before
    }

    fn stop(&mut self, process: Option<u32>, pause: Duration) -> bool {
        let Some(process) = process else { return false };
        cleanup::add(Item::Frozen(process));
        cleanup::signal(process, Signal::SIGSTOP);
        self.end_after(pause, Ending::Continue(process));
        true
    }

    /// Damages pages of the one node that they are damaged of; of another one once that one is gone.
    fn damage(&mut self, cluster: &Cluster, seen: &Seen, pages: u64) -> bool {
        let is_there = |node: &u16| cluster.node_folder(*node).exists();
        let victim = self.victim.filter(is_there).or_else(|| seen.any_node(&mut self.random));
        self.victim = victim;
        let Some(node) = victim else { return false };
        let damaged = disk::damage(&cluster.node_folder(node), pages, &mut self.random);
        self.damaged_pages += damaged;
        damaged > 0
    }

    /// Gives a node its room back; whether nothing more has to be done. Whoever starts the node may write the file as it was before, so
    /// it is looked at again, and the node started again, until it had room for a while.
    fn empty(&mut self, cluster: &Cluster, node: u16) -> bool {
        let folder = cluster.node_folder(node);
        if !folder.exists() {
            // It was lost, and another takes its place.
            self.full.remove(&node);
            return true;
        }
        if !disk::is_full(&folder) && !self.full.contains(&node) {
            return true;
        }
        self.full.remove(&node);
        if disk::set_full(&folder, false).is_ok()
            && let Some(process) = cluster.look().ok().and_then(|seen| seen.node_process(node))
        {
            kill(process);
            self.kills += 1;
        }
        false
    }

    /// Lets a node find too little room on its disk for a while.
    fn fill(&mut self, cluster: &Cluster, seen: &Seen, node: u16, pause: Duration) -> bool {
        let Some(process) = seen.node_process(node) else { return false };
        if self.full.contains(&node) || disk::set_full(&cluster.node_folder(node), true).is_err() {
            return false;
        }
        self.full.insert(node);
        kill(process);
        self.kills += 1;
        self.end_after(pause, Ending::EmptyDisk(node));
        true
    }

    /// Kills the instance and deletes all that it had. It is started by command later, for nobody wants it to run now.
    fn lose_instance(&mut self, cluster: &Cluster, seen: &Seen) -> anyhow::Result<bool> {
        if cluster.command(&["instance", "kill"]).is_err() {
            return Ok(false);
        }
        self.kills += 2;
        for folder in [Some(cluster.instance_folder()), seen.data_folder()].into_iter().flatten() {
            delete(&folder)?;
        }
        Ok(true)
    }

    /// Kills nodes and deletes all that they had.
    fn lose(&mut self, cluster: &Cluster, seen: &Seen, nodes: &[u16]) -> anyhow::Result<bool> {
        for &node in nodes {
            self.kill_all(seen.node_process(node).into_iter());
            delete(&cluster.node_folder(node))?;
            self.lost_directories += 1;
        }
        Ok(true)
    }
}

/// Deletes a folder, which a process may still write to while it dies.
fn delete(folder: &Path) -> anyhow::Result<()> {
    for _ in 0..50 {
        if std::fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("cannot delete {}", folder.display())
}
