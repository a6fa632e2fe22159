//! The cluster that is hurt, driven through its command line as any user would, and hurt by signals as no user would.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_testbed::cleanup::{self, Item};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Options;
use crate::plan::{Node, Situation};

/// Between looks at a cluster that gets well.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A cluster of this program's own.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    directory: PathBuf,
    /// Where SQL is answered on 127.0.0.1.
    pub port: u16,
    cleanup: Item,
}

/// What `borealis status --json` said.
#[derive(Debug)]
pub struct Seen(Value);

impl Cluster {
    /// A new, empty cluster in `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(options: &Options, directory: &Path) -> anyhow::Result<Cluster> {
        let cleanup = Item::Cluster(options.borealis.clone(), directory.to_owned());
        let cluster = Cluster {
            program: options.borealis.clone(),
            directory: directory.to_owned(),
            port: borealis_testbed::free_port()?,
            cleanup: cleanup.clone(),
        };
        cleanup::add(cleanup);
        let (port, nodes, groups) =
            (cluster.port.to_string(), options.nodes.to_string(), options.groups.to_string());
        let mut words = vec!["up", "--detach", "--port", &port, "--nodes", &nodes, "--groups", &groups];
        let folder = |folder: &Option<PathBuf>| folder.as_ref().map(|folder| folder.display().to_string());
        let (memory, bin) = (folder(&options.memory_dir), folder(&options.pg_bin));
        for (option, value) in [("--memory-dir", &memory), ("--pg-bin", &bin)] {
            if let Some(value) = value {
                words.extend([option, value]);
            }
        }
        if options.tls {
            words.push("--tls");
        }
        let patience = options.replace_after_seconds.to_string();
        if options.loses_nodes {
            words.extend(["--replace-after", &patience]);
        }
        cluster.command(&words)?;
        Ok(cluster)
    }

    /// Runs `borealis` with these words; returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.program)
            .args(words)
            .arg("--dir")
            .arg(&self.directory)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if !output.status.success() {
            bail!(
                "`borealis {}` failed:\n{}{}",
                words.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it is like.
    ///
    /// # Errors
    /// When the status cannot be read.
    pub fn look(&self) -> anyhow::Result<Seen> {
        let text = self.command(&["status", "--json"])?;
        Ok(Seen(serde_json::from_str(&text).context("status is not JSON")?))
    }

    /// A node's folder.
    #[must_use]
    pub fn node_folder(&self, node: u16) -> PathBuf {
        self.directory.join("nodes").join(node.to_string())
    }

    /// The folder of the instance, with its configuration.
    #[must_use]
    pub fn instance_folder(&self) -> PathBuf {
        self.directory.join("instances").join("1")
    }

    /// Where the logs are, for whoever looks for a cause.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until every group has its members with everything, and SQL is answered. What its watcher has given up is started
    /// again by command, as an operator would; returns how often that was needed.
    ///
    /// # Errors
    /// When it takes longer than `patience`, with what is wrong.
    pub fn heal(&self, patience: Duration) -> anyhow::Result<u64> {
        let begin = Instant::now();
        let mut commands = 0;
        loop {
            let seen = self.look()?;
            if seen.is_whole() && seen.instance_is_up() {
                return Ok(commands);
            }
            if begin.elapsed() > patience {
                bail!("not well again after {} s:\n{}", patience.as_secs(), self.command(&["status"])?);
            }
            commands += self.start_what_was_given_up(&seen);
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Starts what died too often for its watcher; returns how many commands that took.
    pub fn start_what_was_given_up(&self, seen: &Seen) -> u64 {
        let mut commands = 0;
        for node in seen.given_up_nodes() {
            commands += 1;
            // Its directory may be gone: then the controller replaces it.
            let _ = self.command(&["node", "start", &node.to_string()]);
        }
        if seen.instance_was_given_up() {
            commands += 1;
            let _ = self.command(&["instance", "start"]);
        }
        commands
    }

    /// Ends it, and forgets everything.
    ///
    /// # Errors
    /// When something does not end. The directory stays then.
    pub fn end(self) -> anyhow::Result<()> {
        self.command(&["down"])?;
        cleanup::remove(&self.cleanup);
        std::fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

/// Ends a process as a power cut would.
pub fn kill(process: u32) {
    cleanup::signal(process, Signal::SIGKILL);
}

impl Seen {
    fn nodes(&self) -> impl Iterator<Item = &Value> {
        self.0["nodes"].as_array().into_iter().flatten()
    }

    fn instance(&self) -> &Value {
        &self.0["instances"][0]
    }

    /// For [`crate::plan`].
    #[must_use]
    pub fn situation(&self, replaces_nodes: bool) -> Situation {
        let node = |node: &Value| {
            Some(Node {
                number: number(&node["id"])?,
                zone: node["az"].as_str()?.to_owned(),
                is_up: node["state"] == "up",
            })
        };
        Situation {
            nodes: self.nodes().filter_map(node).collect(),
            is_whole: self.is_whole(),
            instance_is_up: self.instance_is_up(),
            replaces_nodes,
        }
    }

    /// Whether every group has six members that have everything.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let groups = self.0["protection_groups"].as_array();
        groups.is_some_and(|groups| {
            groups.iter().all(|group| {
                let members = group["members"].as_array();
                members.is_some_and(|members| {
                    members.len() == 6 && members.iter().all(|member| member["state"] == "up")
                })
            })
        })
    }

    /// Whether SQL is answered, and no commit waits for a quorum.
    #[must_use]
    pub fn instance_is_up(&self) -> bool {
        self.instance()["state"] == "up"
    }

    /// A node's process.
    #[must_use]
    pub fn node_process(&self, node: u16) -> Option<u32> {
        let entry = self.nodes().find(|entry| number::<u16>(&entry["id"]) == Some(node))?;
        number(&entry["pid"])
    }

    /// Any node that runs.
    pub(crate) fn any_node(&self, random: &mut fastrand::Rng) -> Option<u16> {
        let running = self.nodes().filter(|node| !node["pid"].is_null());
        let running: Vec<u16> = running.filter_map(|node| number(&node["id"])).collect();
        random.choice(&running).copied()
    }

    /// Whether something on a node's disk is damaged, as far as anybody noticed.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.nodes().any(|node| !node["damage"].is_null())
    }

    /// The nodes of a zone.
    #[must_use]
    pub fn nodes_of_zone(&self, zone: &str) -> Vec<u16> {
        self.nodes().filter(|node| node["az"] == zone).filter_map(|node| number(&node["id"])).collect()
    }

    /// PostgreSQL's first process.
    #[must_use]
    pub fn server_process(&self) -> Option<u32> {
        number(&self.instance()["postgres_pid"])
    }

    /// The driver.
    #[must_use]
    pub fn driver_process(&self) -> Option<u32> {
        number(&self.instance()["driver_pid"])
    }

    /// PostgreSQL's data directory, on a memory file system.
    #[must_use]
    pub fn data_folder(&self) -> Option<PathBuf> {
        self.instance()["data_dir"].as_str().map(PathBuf::from)
    }

    /// The controller.
    #[must_use]
    pub fn controller_process(&self) -> Option<u32> {
        number(&self.0["controller_pid"])
    }

    fn given_up_nodes(&self) -> Vec<u16> {
        let given_up = |node: &&Value| node["state"] == "failed" && node["pid"].is_null();
        self.nodes().filter(given_up).filter_map(|node| number(&node["id"])).collect()
    }

    fn instance_was_given_up(&self) -> bool {
        self.instance()["state"] == "failed" || self.instance()["state"] == "down"
    }

    /// One letter a node: is it up, away, or something between.
    #[must_use]
    pub fn letters(&self) -> String {
        let letter = |node: &Value| match node["state"].as_str() {
            Some("up") => 'U',
            Some("starting") => 's',
            Some("unresponsive") => 'z',
            Some("failed") => 'F',
            _ => '.',
        };
        self.nodes().map(letter).collect()
    }
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read() {
        let member = |node: u16, state: &str| serde_json::json!({"node": node, "state": state});
        let members: Vec<Value> = (1..=6).map(|node| member(node, "up")).collect();
        let mut seen = Seen(serde_json::json!({
            "nodes": [
                {"id": 1, "az": "az1", "pid": 10, "state": "up"},
                {"id": 2, "az": "az2", "pid": null, "state": "failed"},
            ],
            "protection_groups": [{"id": 0, "members": members}],
            "instances": [{"state": "up", "postgres_pid": 20, "driver_pid": 21}],
            "controller_pid": 30,
        }));
        let situation = seen.situation(true);
        assert!(situation.is_whole && situation.instance_is_up);
        assert_eq!(situation.nodes.iter().map(|node| node.is_up).collect::<Vec<_>>(), [true, false]);
        assert_eq!(
            (seen.node_process(1), seen.node_process(2), seen.node_process(3)),
            (Some(10), None, None)
        );
        assert_eq!(
            [seen.server_process(), seen.driver_process(), seen.controller_process()],
            [Some(20), Some(21), Some(30)]
        );
        assert_eq!((seen.given_up_nodes(), seen.letters().as_str()), (vec![2], "UF"));
        assert_eq!(seen.nodes_of_zone("az2"), [2]);
        seen.0["protection_groups"][0]["members"][3] = member(4, "behind");
        assert!(!seen.is_whole());
        seen.0["protection_groups"][0]["members"] = Value::from(vec![member(1, "up"); 5]);
        assert!(!seen.is_whole(), "five of six");
    }
}
