//! Facts about the machine, without which a figure means little.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use crate::model::Machine;
use crate::server::Environment;
use crate::statistics::Summary;

/// Syncs measured for the machine's description.
const SYNCS: usize = 50;
/// A machine that was this busy before the run measures somebody else's work, too.
const QUIET_LOAD: f64 = 0.5;

/// The machine that the environment's folder is on.
///
/// # Errors
/// When nothing can be written there.
pub fn describe(environment: &Environment) -> anyhow::Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, label: &str| {
        let line = text.lines().find(|line| line.starts_with(label))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let memory_kib: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    Ok(Machine {
        processors: std::thread::available_parallelism().map(usize::from).unwrap_or(1),
        processor_model: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
        memory_mib: memory_kib / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        file_system: file_system_of(&read("/proc/mounts"), &environment.folder),
        fdatasync_us: measure_syncs(&environment.folder)?,
        load_average: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or(0.0),
        postgres: environment.binaries.version_text.clone(),
        borealis: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// What a reader must know about this machine.
pub fn notes(machine: &Machine) -> Vec<String> {
    let mut notes = Vec::new();
    if machine.load_average > QUIET_LOAD {
        notes.push(format!(
            "the machine was busy before the run began (load average {}): ratios may hold, absolute figures do not",
            machine.load_average
        ));
    }
    notes
}

fn file_system_of(mounts: &str, folder: &Path) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holding = mounts.filter(|(place, _)| folder.starts_with(place));
    holding.max_by_key(|(place, _)| place.len()).map_or("unknown", |(_, kind)| kind).to_owned()
}

fn measure_syncs(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("sync-probe");
    let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        file.write_all(&[0; 8192])?;
        let begin = Instant::now();
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(&path)?;
    Ok(Summary::of(times).map_or(0.0, |summary| summary.median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /var/tmp tmpfs rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(file_system_of(mounts, Path::new("/var/tmp/x")), "tmpfs");
        assert_eq!(file_system_of(mounts, Path::new("/var/tmpx")), "ext4");
        assert_eq!(file_system_of("", Path::new("/x")), "unknown");
    }

    #[test]
    fn a_busy_machine_is_noted() {
        assert!(notes(&Machine { load_average: 4.0, ..Machine::default() })[0].contains("busy"));
        assert!(notes(&Machine::default()).is_empty());
    }
}
