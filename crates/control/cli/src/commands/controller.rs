//! The controller: it watches over who has the data, and has what is lost replaced.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_client::{Credentials, Timeouts};
use borealis_conductor::conductor::Round;
use borealis_conductor::{Conductor, Connections, Options};
use borealis_local::cluster::Cluster;
use borealis_local::embedded_catalog::EmbeddedCatalog;
use borealis_local::local_host::{LocalHost, RemoteHost};
use borealis_local::supervision::controlling;
use borealis_metrics::server::MetricsServer;
use borealis_spec::{MetricsAddress, Role, TlsFiles};
use borealis_wire::Caller;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Deserialize;

use super::serve::own_signals;

/// Between two rounds while nothing happens, and while something does.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
/// How often signals are looked for.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);
/// A node that does not answer within this is asked again in the next round.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(2) };

/// The configuration of a controller on a host of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ControllerConfig {
    /// The folder of `fleet.json`, the fleet's catalog.
    catalog: PathBuf,
    /// What others see of who acts; the host's name and the process number if absent.
    name: Option<String>,
    /// Its certificate, if a node is spoken to over TLS.
    tls: Option<TlsFiles>,
    /// Where it shows metrics; nowhere if absent.
    metrics_listen: Option<MetricsAddress>,
}

/// The controller of a local cluster. Ends when it is told to, or when its cluster is gone.
pub fn local(catalog: &Path) -> anyhow::Result<ExitCode> {
    let directory = catalog.parent().context("the catalog's file is in a folder")?;
    let cluster = Cluster::open(directory)?;
    let credentials = cluster.controller_credentials(&controlling::folder(directory))?;
    let name = format!("process {}", std::process::id());
    let conductor = Conductor::new(
        Box::new(EmbeddedCatalog::new(directory)),
        Arc::new(Connections::new(Caller::Controller, credentials, TIMEOUTS)),
        Box::new(LocalHost::new(directory)),
        Options::new(name.clone()),
    );
    let _metrics_server = show_metrics(cluster.controller_metrics_address().as_ref(), &conductor, name);
    run(conductor, || catalog.is_file())
}

/// A controller of a fleet on several hosts.
pub fn standalone(config: &Path) -> anyhow::Result<ExitCode> {
    let text = std::fs::read(config).with_context(|| format!("cannot read {}", config.display()))?;
    let config_of: ControllerConfig = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a controller's configuration", config.display()))?;
    let folder = config.parent().unwrap_or(Path::new("."));
    let catalog = folder.join(&config_of.catalog);
    if !catalog.is_dir() {
        bail!("{}: its `catalog`, {}, is no folder", config.display(), catalog.display());
    }
    let credentials = match &config_of.tls {
        Some(files) => Some(Credentials::load_for(files.below(folder), Role::Controller)?),
        None => None,
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = config_of.name.unwrap_or_else(|| format!("{}, process {}", host.trim(), std::process::id()));
    let conductor = Conductor::new(
        Box::new(EmbeddedCatalog::new(&catalog)),
        Arc::new(Connections::new(Caller::Controller, credentials, TIMEOUTS)),
        Box::new(RemoteHost),
        Options::new(name.clone()),
    );
    let _metrics_server = show_metrics(config_of.metrics_listen.as_ref(), &conductor, name);
    run(conductor, || true)
}

/// Shows metrics where the configuration says. A controller that cannot still acts.
fn show_metrics(
    address: Option<&MetricsAddress>,
    conductor: &Conductor,
    name: String,
) -> Option<MetricsServer> {
    let (address, counts) = (address?, conductor.counts());
    match MetricsServer::start(address, move || counts.exposition(&name).text()) {
        Ok(server) => Some(server),
        Err(error) => {
            eprintln!("cannot show metrics on {address}: {error}; choose another address");
            None
        }
    }
}

/// Rounds until a signal comes, or there is nothing to control any more.
fn run(mut conductor: Conductor, is_needed: impl Fn() -> bool) -> anyhow::Result<ExitCode> {
    let mut signals = own_signals();
    signals.remove(Signal::SIGHUP);
    signals.thread_block().context("cannot hold back signals")?;
    let signals =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("cannot make a signal descriptor")?;
    let mut said = String::new();
    while is_needed() {
        let (interval, news) = match conductor.round() {
            Ok(Round::Acted(plan)) => {
                let is_busy =
                    conductor.is_at_work() || !plan.decisions.is_empty() || !plan.remarks.is_empty();
                (if is_busy { BUSY_INTERVAL } else { QUIET_INTERVAL }, String::new())
            }
            Ok(Round::Waits { holder }) => (QUIET_INTERVAL, format!("another controller acts: {holder}")),
            Ok(Round::Paused) => (BUSY_INTERVAL, String::new()),
            Err(error) => (QUIET_INTERVAL, error.to_string()),
        };
        if news != said && !news.is_empty() {
            eprintln!("{news}");
        }
        said = news;
        let until = Instant::now() + interval;
        loop {
            let mut descriptors = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
                // Whoever waits for the lease need not wait for its end.
                let _ = conductor.resign();
                return Ok(ExitCode::SUCCESS);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || conductor.wait(left.min(SIGNAL_INTERVAL)) {
                break;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
