//! Create, start and stop a whole cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use borealis_instance::{Binaries, OperatingSystemUser, Settings};
use borealis_local::Catalog;
use borealis_local::catalog::{CatalogLock, InstanceEntry};
use borealis_local::cluster::{
    Cluster, CreateOptions, InstanceDefaults, WRITER, check_fleet, check_machine, rebuild_catalog,
};
use borealis_local::driver_socket::{ask_driver, server_runs};
use borealis_local::fleet_records;
use borealis_local::supervision::controlling;
use borealis_local::supervision::detached;
use borealis_local::supervision::serving::Serving;
use borealis_types::{MAX_GROUPS, NodeId, Placement, SEGMENTS_PER_GROUP};

use super::backup;
use super::serve::{own_signals, serve, stop, stop_parts};
use crate::UpArguments;
use crate::progress::Step;

pub(super) const DEFAULT_PORT: u16 = 5432;
/// The memory file system that Linux systems have.
pub(super) const DEFAULT_MEMORY_ROOT: &str = "/dev/shm";
pub(super) const DEFAULT_NODES: u16 = 6;
/// Enough for a volume to spread over dozens of nodes later, at no measurable cost on six (decision 28).
const DEFAULT_PROTECTION_GROUPS: u16 = 16;

/// `name=value`, for the command-line parser.
pub fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// What `--cache-limit` says; `None` for the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheLimit(pub Option<u64>);

/// A size with PostgreSQL's units (`kB`, `MB`, `GB`, `TB`), in any case, or `0`, or `auto`, for the command-line parser.
pub fn parse_cache_limit(text: &str) -> Result<CacheLimit, String> {
    let wrong = || format!("`{text}` is not a size like 512MB or 4GB, 0, or auto");
    let lower = text.trim().to_ascii_lowercase();
    if lower == "auto" {
        return Ok(CacheLimit(None));
    }
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = lower.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim() {
        "" if number == 0 => 0,
        "kb" => 10,
        "mb" => 20,
        "gb" => 30,
        "tb" => 40,
        // A bare number says nothing of its unit.
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).map(|bytes| CacheLimit(Some(bytes))).ok_or_else(wrong)
}

/// Creates the cluster if it is new, starts it, and serves.
pub fn up(dir: &Path, arguments: &UpArguments) -> anyhow::Result<ExitCode> {
    let signals = own_signals();
    if !arguments.detach {
        // Held back until everything is up, then answered by an orderly stop.
        signals.thread_block().context("cannot hold back signals")?;
    } else if let Some(cluster) = started_again(dir, arguments) {
        return report_started_again(dir, &cluster, arguments);
    }
    let Prepared { cluster, lock, earlier_catalog, was_supervised } = prepare(dir, arguments)?;
    let instance = cluster.instance(WRITER)?;
    if OperatingSystemUser::choose(instance.postgres_user.as_deref())?.switch {
        eprintln!(
            "running as root: PostgreSQL and the storage nodes run as the system user `{}`",
            instance.postgres_user.as_deref().unwrap_or("postgres")
        );
    }
    let earlier_config = cluster.instance_config(WRITER);
    let nodes = nodes_to_start(&cluster, arguments);
    let step = Step::begin(&format!("starting {} storage nodes in three availability zones", nodes.len()));
    let to_start: Vec<NodeId> =
        nodes.iter().copied().filter(|&node| cluster.node_process(node).is_none()).collect();
    let outcome = cluster.start_nodes(&nodes);
    step.done();
    let outcome = outcome.and_then(|()| {
        let step = Step::begin("recovering the volume and starting PostgreSQL");
        let elapsed = cluster.start_instance(WRITER);
        step.done();
        elapsed
    });
    let elapsed = match outcome {
        Ok(elapsed) => elapsed,
        Err(error) => {
            // What was started is stopped again, and nothing else: a failed `up` leaves what ran before it, and its
            // wishes, which may be why it failed, are forgotten.
            let mut stopped = stop_parts(&cluster, &to_start);
            if was_supervised {
                stopped = stopped.and_then(|()| detached::start(&cluster));
            }
            earlier_catalog.save(cluster.directory())?;
            cluster.restore_instance_config(WRITER, earlier_config.as_deref())?;
            return Err(match stopped {
                Ok(()) => error,
                Err(again) => error.context(format!("and it could not be undone: {again:#}")),
            });
        }
    };
    note_for_controller(&cluster, arguments)?;
    controlling::start(&cluster)?;
    let serving = if arguments.detach {
        detached::start(&cluster)?;
        None
    } else {
        Some(Serving::begin(cluster.directory()).context("cannot note that this process serves")?)
    };
    drop(lock);
    eprintln!("first query answered after {} ms", elapsed.as_millis());
    let said = ask_driver(&cluster.instance_directory(WRITER)).unwrap_or_default();
    for warning in said["warnings"].as_array().into_iter().flatten().filter_map(|warning| warning.as_str()) {
        eprintln!("warning: {warning}");
    }
    eprintln!("connect with `borealis psql --dir {}` or any client:", dir.display());
    println!("{}", Cluster::url(instance));
    let Some(_on_record) = serving else { return Ok(ExitCode::SUCCESS) };
    serve(&cluster, signals)
}

/// The cluster, if all that is wished is that it runs, and its supervisor has begun to start it again after a death.
fn started_again(dir: &Path, arguments: &UpArguments) -> Option<Cluster> {
    let cluster = Cluster::open(dir).ok()?;
    let instance = cluster.instance(WRITER).ok()?;
    let UpArguments {
        port,
        detach: _,
        nodes: None,
        protection_groups: None,
        pg_bin: None,
        pg_user: None,
        pg_set,
        memory_dir: None,
        cache_limit: None,
        metrics_port: None,
        backup: None,
        backup_key: None,
        backup_key_command: None,
        replace_after,
        tls: _,
    } = arguments
    else {
        return None;
    };
    let patience_ms = || Some(cluster.fleet().ok()??.settings.replace_after_ms);
    let is_as_patient = replace_after.is_none_or(|seconds| patience_ms() == Some(seconds * 1000));
    let is_as_wished = port.is_none_or(|port| port == instance.port) && pg_set.is_empty() && is_as_patient;
    (is_as_wished && cluster.was_started_again(WRITER)).then_some(cluster)
}

fn report_started_again(dir: &Path, cluster: &Cluster, arguments: &UpArguments) -> anyhow::Result<ExitCode> {
    let _lock = Catalog::lock(dir)?;
    cluster.start_nodes(&nodes_to_start(cluster, arguments))?;
    cluster.start_instance(WRITER)?;
    // They may have died since.
    detached::start(cluster)?;
    controlling::start(cluster)?;
    eprintln!("the cluster's supervisor has started the instance again already");
    println!("{}", Cluster::url(cluster.instance(WRITER)?));
    Ok(ExitCode::SUCCESS)
}

/// The nodes that are to run, without those that have lost their stores if those are replaced.
fn nodes_to_start(cluster: &Cluster, arguments: &UpArguments) -> Vec<NodeId> {
    let mut nodes = cluster.wanted_nodes();
    let known = cluster.fleet().ok().flatten().map(|fleet| fleet.settings.replaces());
    let replaces = arguments.replace_after.map_or(known.unwrap_or(true), |seconds| seconds > 0);
    let lost = cluster.without_store(&nodes);
    if replaces && !lost.is_empty() {
        for node in &lost {
            eprintln!("node {node} has lost its data; it is replaced once the others run");
        }
        nodes.retain(|node| !lost.contains(node));
    }
    nodes
}

/// Brings the controller's catalog up to date, with this command's wishes.
fn note_for_controller(cluster: &Cluster, arguments: &UpArguments) -> anyhow::Result<()> {
    match arguments.replace_after {
        Some(seconds) => fleet_records::set_replace_after(cluster, Duration::from_secs(seconds)),
        None => fleet_records::update(cluster, |_| Ok(Vec::new())).map(|_| ()),
    }
    .context("cannot write the controller's catalog")
}

struct Prepared {
    cluster: Cluster,
    lock: CatalogLock,
    /// The catalog without this command's wishes.
    earlier_catalog: Catalog,
    /// A supervisor watched over what ran before this command, and was ended for it.
    was_supervised: bool,
}

/// Opens or creates the cluster, with this command's wishes applied.
fn prepare(dir: &Path, arguments: &UpArguments) -> anyhow::Result<Prepared> {
    let mut settings: BTreeMap<String, String> = arguments.pg_set.iter().cloned().collect();
    let forgotten: Vec<String> =
        settings.iter().filter(|(_, value)| value.is_empty()).map(|(name, _)| name.clone()).collect();
    settings.retain(|_, value| !value.is_empty());
    let checked = Settings::check(settings.clone())?;
    if Catalog::is_fresh(dir)? {
        return create(dir, arguments, &checked, settings);
    }
    if Catalog::is_lost(dir)? {
        rebuild(dir, arguments)?;
    }
    reopen(dir, arguments, settings, &forgotten)
}

/// Makes a lost catalog anew, so that the cluster can be opened.
fn rebuild(dir: &Path, arguments: &UpArguments) -> anyhow::Result<()> {
    let _lock = Catalog::lock(dir)?;
    if !Catalog::is_lost(dir)? {
        // Another command has made it meanwhile.
        return Ok(());
    }
    let catalog = rebuild_catalog(dir, || {
        let memory_root = arguments.memory_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_MEMORY_ROOT));
        Ok(InstanceDefaults {
            port: arguments.port.unwrap_or(DEFAULT_PORT),
            postgres_bin_dir: Binaries::find(arguments.pg_bin.as_deref())?.folder,
            memory_root: memory_root
                .canonicalize()
                .with_context(|| format!("cannot use {} for --memory-dir", memory_root.display()))?,
        })
    })?;
    eprintln!(
        "cluster.json was missing in {}; it was made anew from what the nodes of volume {} say",
        dir.display(),
        catalog.volume
    );
    Ok(())
}

/// Makes the cluster. What can be checked is checked first, so that a mistake leaves nothing behind.
fn create(
    dir: &Path,
    arguments: &UpArguments,
    settings: &Settings,
    wanted: BTreeMap<String, String>,
) -> anyhow::Result<Prepared> {
    let nodes = arguments.nodes.unwrap_or(DEFAULT_NODES);
    let groups = arguments.protection_groups.unwrap_or_else(|| default_groups(nodes));
    let protection_groups = Placement::new(groups)
        .with_context(|| format!("--protection-groups {groups}: a volume has 1 to {MAX_GROUPS}"))?;
    check_fleet(nodes, protection_groups)?;
    let port = arguments.port.unwrap_or(DEFAULT_PORT);
    require_free_port(port)?;
    require_other_ports(port, arguments.metrics_port, nodes)?;
    // Checked before the directory is made, so that a mistake leaves nothing behind.
    settings.check_libraries(&Binaries::find(arguments.pg_bin.as_deref())?)?;
    let user = OperatingSystemUser::choose(arguments.pg_user.as_deref())?;
    let memory_root = arguments.memory_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_MEMORY_ROOT));
    check_machine(dir, &memory_root, &user)?;
    let backup = backup::wished(arguments, None, &user)?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = Catalog::lock(dir)?;
    if !Catalog::is_fresh(dir)? {
        bail!("another `borealis up` has just made a cluster in {}; run the command again", dir.display());
    }
    let step = Step::begin("creating the cluster");
    let cluster = Cluster::create(
        dir,
        &CreateOptions {
            nodes,
            protection_groups,
            port,
            tls: arguments.tls,
            postgres_bin_dir: arguments.pg_bin.clone(),
            postgres_user: arguments.pg_user.clone(),
            cache_limit_bytes: arguments.cache_limit.and_then(|limit| limit.0),
            metrics_port: arguments.metrics_port,
            backup,
            memory_root,
            settings: wanted,
        },
    );
    step.done();
    let cluster = cluster?;
    let earlier_catalog = without_wishes(&cluster.catalog);
    Ok(Prepared { cluster, lock, earlier_catalog, was_supervised: false })
}

/// So many groups that every node of a zone has a segment to host: a group has two in each zone.
fn default_groups(nodes: u16) -> u16 {
    nodes.div_ceil(SEGMENTS_PER_GROUP as u16).clamp(DEFAULT_PROTECTION_GROUPS, MAX_GROUPS)
}

/// The catalog of a new cluster as if nobody had asked for anything but what can never change.
fn without_wishes(catalog: &Catalog) -> Catalog {
    let mut catalog = catalog.clone();
    catalog.metrics_port = None;
    catalog.backup = None;
    for instance in &mut catalog.instances {
        instance.port = DEFAULT_PORT;
        instance.postgres_user = None;
        instance.cache_limit_bytes = None;
        instance.settings = BTreeMap::new();
        // What is not there is no better than what was asked for.
        if let Ok(found) = Binaries::find(None) {
            instance.postgres_bin_dir = found.folder;
        }
        if let Ok(root) = Path::new(DEFAULT_MEMORY_ROOT).canonicalize() {
            instance.memory_root = root;
        }
    }
    catalog
}

/// Opens a cluster that does not run, and changes its catalog as the arguments say.
fn reopen(
    dir: &Path,
    arguments: &UpArguments,
    settings: BTreeMap<String, String>,
    forgotten: &[String],
) -> anyhow::Result<Prepared> {
    let (mut cluster, lock) = Cluster::open_locked(dir)?;
    cluster.finish_stopping()?;
    if cluster.driver_process(WRITER).is_some() && !server_runs(&cluster.instance_directory(WRITER)) {
        // Whoever started it was killed before it served, or somebody would hold the lock. This command starts another.
        cluster.stop_instance(WRITER)?;
    }
    if cluster.driver_process(WRITER).is_some() {
        if arguments.detach {
            // That much of the wish can be fulfilled.
            detached::start(&cluster)?;
        }
        bail!(
            "the cluster in {} is already running at {}; stop it with `borealis down --dir {}`",
            dir.display(),
            Cluster::url(cluster.instance(WRITER)?),
            dir.display()
        );
    }
    if let Some(groups) = arguments.protection_groups {
        let fixed = cluster.catalog.protection_groups.group_count();
        if groups != fixed {
            bail!(
                "the volume was created with {fixed} protection groups, which cannot be changed to {groups}"
            );
        }
    }
    if let Some(nodes) = arguments.nodes {
        let there = cluster.catalog.nodes.len();
        if usize::from(nodes) != there {
            bail!(
                "the cluster has {there} nodes; a number is for a new cluster, and does not change it to {nodes}"
            );
        }
    }
    if arguments.tls && !cluster.speaks_tls() {
        bail!("the cluster was created with its nodes on Unix sockets; --tls is for a new one");
    }
    let earlier_catalog = cluster.catalog.clone();
    cluster.catalog.metrics_port = arguments.metrics_port.or(cluster.catalog.metrics_port);
    if arguments.memory_dir.is_some() {
        // Nobody would look for it there any more.
        cluster.clear_memory(WRITER)?;
    }
    let instance = cluster
        .catalog
        .instances
        .iter_mut()
        .find(|instance| instance.id == WRITER)
        .context("the cluster has no writer instance")?;
    apply(arguments, instance)?;
    instance.settings.extend(settings);
    instance.settings.retain(|name, _| !forgotten.contains(name));
    let binaries = Binaries::find(Some(&instance.postgres_bin_dir))?;
    Settings::check(instance.settings.clone())?.check_libraries(&binaries)?;
    // Before anything is saved: a command that fails leaves no wishes behind.
    let user = OperatingSystemUser::choose(instance.postgres_user.as_deref())?;
    let port = instance.port;
    let last_node = cluster.catalog.nodes.iter().map(|node| node.id.0).max().unwrap_or(0);
    require_other_ports(port, cluster.catalog.metrics_port, last_node)?;
    backup::change(arguments, &mut cluster.catalog.backup, &user)?;
    cluster.clear_the_way(WRITER)?;
    require_free_port(port)?;
    // One that was left from before would be a second one beside this command, or of an older program. After all checks: a
    // mistaken command leaves it where it is.
    let was_supervised = detached::process(cluster.directory()).is_some();
    detached::stop(&cluster)?;
    cluster.catalog.save(cluster.directory())?;
    Ok(Prepared { cluster, lock, earlier_catalog, was_supervised })
}

/// What the arguments change of an instance, but for its settings.
fn apply(arguments: &UpArguments, instance: &mut InstanceEntry) -> anyhow::Result<()> {
    if let Some(port) = arguments.port {
        instance.port = port;
    }
    if let Some(folder) = &arguments.pg_bin {
        instance.postgres_bin_dir = Binaries::find(Some(folder))?.folder;
    }
    if let Some(user) = &arguments.pg_user {
        instance.postgres_user = Some(user.clone());
    }
    if let Some(folder) = &arguments.memory_dir {
        instance.memory_root = folder
            .canonicalize()
            .with_context(|| format!("cannot use {} for --memory-dir", folder.display()))?;
    }
    if let Some(limit) = arguments.cache_limit {
        instance.cache_limit_bytes = limit.0;
    }
    Ok(())
}

/// Checks that the ports for metrics, the first for the instance and one for each node, leave out the database's: whoever is
/// first would keep the other from listening. The controller has the port before them, unless that is the database's.
fn require_other_ports(port: u16, metrics_port: Option<u16>, last_node: u16) -> anyhow::Result<()> {
    let Some(first) = metrics_port.filter(|first| *first > 0) else { return Ok(()) };
    let Some(last) = first.checked_add(last_node) else {
        bail!(
            "--metrics-port {first}: there are no {last_node} higher ports for the nodes; choose a lower one"
        );
    };
    if (first..=last).contains(&port) {
        bail!(
            "--metrics-port {first}: the nodes' ports go up to {last}, and {port} is the database's; choose another"
        );
    }
    Ok(())
}

fn require_free_port(port: u16) -> anyhow::Result<()> {
    if borealis_local::ports::is_free(port) {
        return Ok(());
    }
    bail!("port {port} on 127.0.0.1 is taken by another program; stop it or choose another with --port")
}

/// Stops everything in order.
pub fn down(dir: &Path) -> anyhow::Result<ExitCode> {
    let (cluster, _lock) = Cluster::open_locked(dir)?;
    if !cluster.anything_runs() {
        eprintln!("the cluster in {} is not running", dir.display());
    }
    // First: they must not start again, or replace, what is stopped.
    detached::stop(&cluster)?;
    controlling::stop(&cluster)?;
    // Also when nothing runs: what was killed may have left memory behind.
    stop(&cluster)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_a_new_cluster_has_something_to_host() {
        for nodes in 6u16..=384 {
            let in_largest_zone = nodes.div_ceil(3);
            assert!(in_largest_zone <= 2 * default_groups(nodes), "{nodes} nodes");
        }
        assert_eq!((default_groups(6), default_groups(97), default_groups(384)), (16, 17, 64));
    }

    #[test]
    fn metrics_leave_the_port_of_the_database_alone() {
        let refused = |port, metrics_port| require_other_ports(port, Some(metrics_port), 6).is_err();
        assert!(!refused(5432, 0) && !refused(5432, 5433) && !refused(5432, 5425));
        assert!(refused(5432, 5432) && refused(5432, 5426));
        assert!(refused(5432, 65_530) && !refused(5432, 65_529), "there is no port 65536");
        assert!(require_other_ports(5432, None, 6).is_ok());
    }

    #[test]
    fn a_cache_limit_has_a_unit() {
        for (text, bytes) in
            [("0", Some(0)), ("512MB", Some(512 << 20)), ("4 gb", Some(4 << 30)), ("auto", None)]
        {
            assert_eq!(parse_cache_limit(text), Ok(CacheLimit(bytes)), "{text}");
        }
        for text in ["", "512", "MB", "-1MB", "1.5GB", "12 parsecs", "99999999999TB"] {
            assert!(parse_cache_limit(text).is_err(), "{text}");
        }
    }
}
