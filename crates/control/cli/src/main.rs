//! The `borealis` command line. The contract scripts rely on is in `docs/command-line.md`.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 success, 1 the operation
//! failed, 2 the command line was wrong.

mod commands;
mod notify;
mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use borealis_instance::confinement;
use clap::{Args, CommandFactory, Parser, Subcommand};

/// Amazon Aurora's storage, open, for the PostgreSQL you already have.
#[derive(Debug, Parser)]
#[command(name = "borealis", version, max_term_width = 100)]
struct CommandLine {
    /// The cluster's directory.
    #[arg(long, global = true, default_value = "./borealis-data", value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the cluster if it is new, start it, and serve until Ctrl-C.
    Up(UpArguments),
    /// Stop everything in order.
    Down,
    /// Show the state of everything.
    Status {
        /// One JSON object on standard output.
        #[arg(long)]
        json: bool,
        /// Show it again every so many seconds, with what moved in between; with --json, a line each time. [default: 2]
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "2",
            value_parser = clap::value_parser!(u64).range(1..=3600),
        )]
        watch: Option<u64>,
    },
    /// Run `psql` connected to the writer.
    Psql {
        /// Arguments for `psql`, after `--`.
        #[arg(last = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Run any program with the server's view of its files, read-only.
    Exec {
        /// The program and its arguments, after `--`; its exit code is the command's.
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Storage nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Availability zones.
    #[command(subcommand)]
    Az(ZoneCommand),
    /// Database instances.
    #[command(subcommand)]
    Instance(InstanceCommand),
    /// The certificates of a fleet, from its authority in DIR/fleet.
    #[command(subcommand)]
    Fleet(commands::fleet::FleetCommand),
    /// Move segments until every node of a zone has as many as the others.
    Rebalance {
        /// Do it. Without, nothing is changed, and what would be moved is said.
        #[arg(long)]
        yes: bool,
    },
    /// Watch over a fleet on several hosts, and have what is lost replaced; `borealis up` does it for its own cluster.
    Controller {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// What the backup has: continuous, made by the storage nodes.
    #[command(subcommand)]
    Backup(commands::backup::BackupCommand),
    /// Read every page from every peer, check checksums, compare peers at one LSN.
    Verify {
        /// One JSON object on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Make a new cluster in DIR of a backup, as of a point; or say which points there are.
    Restore(commands::restore::RestoreArguments),
    /// Leave: write the volume as an ordinary PostgreSQL has it.
    #[command(subcommand)]
    Export(commands::export::ExportCommand),
    /// Apply WAL and compare every page with what PostgreSQL says it must be.
    RedoCheck(commands::redo_check::RedoCheckArguments),
    /// Measure Borealis beside stock PostgreSQL on this machine.
    Bench(commands::bench::BenchArguments),
    /// Hurt a cluster of its own under load, and say whether anything was lost.
    Chaos(commands::chaos::ChaosArguments),
    /// Print a completion script, for a shell to load.
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Parts of a cluster, started by the other commands.
    #[command(subcommand, hide = true)]
    Internal(InternalCommand),
}

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    /// TCP port of the database on 127.0.0.1. [default: 5432, or as before]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Return as soon as SQL is answered, and leave everything running.
    #[arg(long)]
    pub detach: bool,
    /// Storage nodes of a new cluster, spread over three zones. [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(6..=384))]
    pub nodes: Option<u16>,
    /// Protection groups of a new volume; they never change, and a volume spreads over 6 nodes for each at most. [default: 16]
    #[arg(long, visible_alias = "groups", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub protection_groups: Option<u16>,
    /// Folder with `postgres` and `initdb`. [default: where distributions put version 15]
    #[arg(long, value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// System user that runs PostgreSQL when started by root. [default: postgres]
    #[arg(long, value_name = "NAME")]
    pub pg_user: Option<String>,
    /// A PostgreSQL setting; may be given many times. Kept for later starts; NAME= alone forgets it.
    #[arg(long, value_name = "NAME=VALUE", value_parser = commands::up::parse_setting)]
    pub pg_set: Vec<(String, String)>,
    /// Folder on a memory file system that holds WAL in flight and cached pages. [default: /dev/shm]
    #[arg(long, value_name = "DIR")]
    pub memory_dir: Option<PathBuf>,
    /// Memory that cached pages may take, like 512MB or 4GB; 0 keeps only what must be kept, `auto` goes back to the
    /// default. Kept for later starts. [default: half of what is free in the memory folder]
    #[arg(long, value_name = "SIZE", value_parser = commands::up::parse_cache_limit)]
    pub cache_limit: Option<commands::up::CacheLimit>,
    /// Show metrics to Prometheus on 127.0.0.1: the instance on port P, each node on P and its number, the controller on the
    /// port before P; 0 shows none. Kept for later starts.
    #[arg(long, value_name = "P")]
    pub metrics_port: Option<u16>,
    /// Have the nodes back the volume up as it is written: file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX,
    /// az://CONTAINER/PREFIX, or a folder; `none` ends it.
    /// Kept for later starts.
    #[arg(long, value_name = "URL")]
    pub backup: Option<String>,
    /// The file with the key that the backup is encrypted with.
    #[arg(long, value_name = "FILE", requires = "backup")]
    pub backup_key: Option<PathBuf>,
    /// The command that prints that key, run by `sh -c` at the start of each node, as the nodes' user.
    #[arg(long, value_name = "COMMAND", requires = "backup", conflicts_with = "backup_key")]
    pub backup_key_command: Option<String>,
    /// Replace a node that nobody has heard for so many seconds by a new one; 0 replaces none. Kept for later starts.
    /// [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub replace_after: Option<u64>,
    /// Have the nodes of a new cluster speak TLS on 127.0.0.1, as nodes on several machines do.
    #[arg(long)]
    pub tls: bool,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// SIGKILL a node, as a power cut would.
    Kill {
        /// Node numbers.
        #[arg(required = true)]
        ids: Vec<u16>,
    },
    /// Start nodes again with their data.
    Start {
        /// Node numbers; all that are down if none is given.
        ids: Vec<u16>,
    },
    /// List the nodes.
    List,
    /// Make the empty store of a node of a fleet on many hosts. Done once in a node's life.
    Create {
        /// Its configuration, `node.json` in its folder.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run a node of a fleet on many hosts, until it is told to stop.
    Run {
        /// Its configuration, `node.json` in its folder.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The system user to become first, if root starts it.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Add a node, which hosts nothing until a segment is moved to it.
    Add {
        /// The zone it is to stand in.
        #[arg(long, value_name = "AZ")]
        az: String,
    },
    /// Empty a node: its segments go to other nodes of its zone, one after another, and then it is stopped.
    Drain {
        /// Its number.
        id: u16,
        /// Keep it after all.
        #[arg(long)]
        undo: bool,
    },
    /// Strike a node that hosts nothing from the cluster.
    Remove {
        /// Its number.
        id: u16,
        /// Delete its folder; without, it is set aside.
        #[arg(long)]
        yes: bool,
    },
    /// Replace nodes that are lost for good by ones made of the segments that are left; the instance must be stopped.
    Replace {
        /// Node numbers. Three nodes of each group must be left.
        #[arg(required = true)]
        ids: Vec<u16>,
        /// Do it. Without, nothing is changed, and what would be done is said.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ZoneCommand {
    /// SIGKILL every node of a zone.
    Kill {
        /// Its name: az1, az2 or az3.
        zone: String,
    },
    /// Start every node of a zone.
    Start {
        /// Its name: az1, az2 or az3.
        zone: String,
    },
}

#[derive(Debug, Subcommand)]
enum InstanceCommand {
    /// SIGKILL the server and its driver.
    Kill {
        /// Its number.
        #[arg(default_value_t = 1)]
        id: u16,
    },
    /// Start an instance: quorum recovery into a fresh data directory.
    Start {
        /// Its number.
        #[arg(default_value_t = 1)]
        id: u16,
    },
    /// Run an instance of a fleet on many hosts, until it is told to stop: it takes the volume over.
    Run {
        /// Its configuration, `instance.json` in its folder.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Stop an instance in order.
    Stop {
        /// Its number.
        #[arg(default_value_t = 1)]
        id: u16,
    },
}

#[derive(Debug, Subcommand)]
enum InternalCommand {
    /// Make a new storage node's empty store.
    CreateNode {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Make a new storage node's store of other ones' segments.
    GatherNode {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
        /// For each group, the store to take its segment from, which nobody may have open.
        #[arg(long, value_name = "GROUP=STORE", value_parser = commands::internal::parse_segment)]
        segment: Vec<(borealis_types::GroupId, PathBuf)>,
    },
    /// A storage node.
    Node {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
        /// The system user to become first, if root started it.
        #[arg(long)]
        user: Option<String>,
    },
    /// An instance's driver.
    Driver {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// The controller of a local cluster.
    Controller {
        /// The cluster's catalog.
        #[arg(long)]
        config: PathBuf,
    },
    /// Starts again what dies of a cluster that nobody serves in the foreground.
    Supervise {
        /// Its catalog.
        #[arg(long)]
        config: PathBuf,
    },
    /// Write the manual pages; for packages.
    Manual {
        /// Into which folder.
        folder: PathBuf,
    },
}

/// Ends the process quietly when whoever reads its output has gone (`borealis status | head`). The long-running parts
/// write to files and sockets only, and those report a broken pipe as an error all the same.
#[allow(unsafe_code)] // Changing a signal's action has no safe interface.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // The nodes, the driver and the controller have sockets whose peers go away at any time.
    let mut words = std::env::args_os().skip(1);
    let is_part = words.next().is_some_and(|word| word == "internal" || word == "controller")
        || words.next().is_some_and(|word| word == "run");
    if is_part {
        // They have no terminal and no configuration file that could be read again.
        // SAFETY: ignoring runs no code of ours.
        let _ = unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) };
        return;
    }
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Files of a cluster are its owner's alone, whatever the umask was. Commands that write what a person asked for, like
/// `psql` with `\o`, keep theirs.
fn keep_files_private(command: &Command) {
    use nix::sys::stat::{Mode, umask};
    let manages_a_cluster = match command {
        Command::Up(_) | Command::Down | Command::Node(_) | Command::Az(_) | Command::Instance(_) => true,
        Command::Fleet(_) | Command::Rebalance { .. } | Command::Controller { .. } => true,
        Command::Restore(_) | Command::Export(_) => true,
        Command::Internal(part) => !matches!(part, InternalCommand::Manual { .. }),
        Command::Status { .. }
        | Command::Psql { .. }
        | Command::Exec { .. }
        | Command::Verify { .. }
        | Command::Backup(_)
        | Command::Completion { .. } => false,
        Command::RedoCheck(_) | Command::Bench(_) | Command::Chaos(_) => false,
    };
    if manages_a_cluster {
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
    }
}

fn main() -> ExitCode {
    borealis_node::abort_on_panic();
    end_with_the_reader();
    let line = CommandLine::parse();
    keep_files_private(&line.command);
    let filter = tracing_subscriber::EnvFilter::try_from_env("BOREALIS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let dir = line.dir;
    let outcome = match line.command {
        Command::Up(arguments) => commands::up::up(&dir, &arguments),
        Command::Down => commands::up::down(&dir),
        Command::Status { json, watch: None } => commands::status::status(&dir, json),
        Command::Status { json, watch: Some(seconds) } => {
            commands::watch::watch(&dir, json, Duration::from_secs(seconds))
        }
        Command::Psql { arguments } => commands::psql::psql(&dir, &arguments),
        Command::Exec { command } => commands::exec::exec(&dir, &command),
        Command::Node(NodeCommand::Kill { ids }) => commands::parts::kill_nodes(&dir, &ids),
        Command::Node(NodeCommand::Start { ids }) => commands::parts::start_nodes(&dir, &ids),
        Command::Node(NodeCommand::Create { config }) => commands::internal::create_node(&config),
        Command::Node(NodeCommand::Run { config, user }) => {
            commands::internal::node(&config, user.as_deref())
        }
        Command::Instance(InstanceCommand::Run { config }) => commands::internal::driver(&config),
        Command::Node(NodeCommand::List) => commands::status::list_nodes(&dir),
        Command::Node(NodeCommand::Replace { ids, yes }) => commands::replace::replace_nodes(&dir, &ids, yes),
        Command::Node(NodeCommand::Add { az }) => commands::nodes::add(&dir, &az),
        Command::Node(NodeCommand::Drain { id, undo }) => commands::nodes::drain(&dir, id, undo),
        Command::Node(NodeCommand::Remove { id, yes }) => commands::nodes::remove(&dir, id, yes),
        Command::Rebalance { yes } => commands::rebalance::rebalance(&dir, yes),
        Command::Controller { config } => commands::controller::standalone(&config),
        Command::Az(ZoneCommand::Kill { zone }) => commands::parts::kill_zone(&dir, &zone),
        Command::Az(ZoneCommand::Start { zone }) => commands::parts::start_zone(&dir, &zone),
        Command::Instance(InstanceCommand::Kill { id }) => commands::parts::kill_instance(&dir, id),
        Command::Instance(InstanceCommand::Start { id }) => commands::parts::start_instance(&dir, id),
        Command::Instance(InstanceCommand::Stop { id }) => commands::parts::stop_instance(&dir, id),
        Command::Fleet(command) => commands::fleet::fleet(&dir, &command),
        Command::Backup(command) => commands::backup::backup(&dir, &command),
        Command::Verify { json } => commands::verify::verify(&dir, json),
        Command::Export(command) => commands::export::export(&dir, &command),
        Command::Restore(arguments) => commands::restore::restore(&dir, &arguments),
        Command::RedoCheck(arguments) => commands::redo_check::redo_check(&dir, &arguments),
        Command::Bench(arguments) => commands::bench::bench(&arguments),
        Command::Chaos(arguments) => commands::chaos::chaos(&arguments),
        Command::Completion { shell } => commands::manual::completion(&CommandLine::command(), shell),
        Command::Internal(InternalCommand::Manual { folder }) => {
            commands::manual::pages(&CommandLine::command(), &folder)
        }
        Command::Internal(InternalCommand::CreateNode { config }) => commands::internal::create_node(&config),
        Command::Internal(InternalCommand::GatherNode { config, segment }) => {
            commands::internal::gather_node(&config, &segment)
        }
        Command::Internal(InternalCommand::Node { config, user }) => {
            commands::internal::node(&config, user.as_deref())
        }
        Command::Internal(InternalCommand::Supervise { config }) => commands::serve::supervise(&config),
        Command::Internal(InternalCommand::Controller { config }) => commands::controller::local(&config),
        Command::Internal(InternalCommand::Driver { config }) => commands::internal::driver(&config),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("borealis: {}", confinement::in_words(error.chain()));
            ExitCode::FAILURE
        }
    }
}
