//! The state of everything, again and again, and what moved in between.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use borealis_local::cluster::Cluster;
use borealis_local::status::Status;
use borealis_types::Lsn;

/// Moves the cursor to the first line, and clears what is below it: the picture changes in its place.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Shows the state of the cluster every so often until a signal ends it: an interrupt, or that nobody reads it any more. With
/// `json`, each is one line.
pub fn watch(dir: &Path, json: bool, every: Duration) -> anyhow::Result<ExitCode> {
    let mut before: Option<(Instant, Status)> = None;
    loop {
        let status = Status::collect(&Cluster::open(dir)?);
        let now = Instant::now();
        let picture = if json {
            serde_json::to_string(&status)? + "\n"
        } else {
            let moved = before.map(|(then, earlier)| movement(&earlier, &status, now - then));
            let redraw = if io::stdout().is_terminal() { REDRAW } else { "" };
            format!("{redraw}{}\n{}\n", status.text(), moved.unwrap_or_default())
        };
        io::stdout().write_all(picture.as_bytes())?;
        before = Some((now, status));
        std::thread::sleep(every.saturating_sub(now.elapsed()));
    }
}

/// What moved between two looks: redo of the volume, and each segment that lacks some.
fn movement(earlier: &Status, now: &Status, elapsed: Duration) -> String {
    let mut text = String::new();
    if let (Some(from), Some(to)) = (lsn(earlier.volume.vdl.as_ref()), lsn(now.volume.vdl.as_ref())) {
        text += &format!("redo  {}/s\n", mebibytes(per_second(to.0.saturating_sub(from.0), elapsed)));
    }
    for group in &now.protection_groups {
        for member in &group.members {
            let Some(lacks) = lag(now, group.id, member.node).filter(|lacks| *lacks > 0) else { continue };
            let change = lag(earlier, group.id, member.node).map(|lacked| match lacked.checked_sub(lacks) {
                Some(less) => format!(", {} less each second", mebibytes(per_second(less, elapsed))),
                None => format!(", {} more each second", mebibytes(per_second(lacks - lacked, elapsed))),
            });
            text += &format!(
                "group {}: node {} lacks {} of redo{}\n",
                group.id,
                member.node,
                mebibytes(lacks as f64),
                change.unwrap_or_default()
            );
        }
    }
    text
}

/// How much of its group's durable redo a segment lacks, in bytes of the volume; `None` if either is unknown.
fn lag(status: &Status, group: u16, node: u16) -> Option<u64> {
    let group = status.protection_groups.iter().find(|known| known.id == group)?;
    let member = group.members.iter().find(|member| member.node == node)?;
    Some(lsn(group.pgcl.as_ref())?.0.saturating_sub(lsn(member.scl.as_ref())?.0))
}

fn lsn(text: Option<&String>) -> Option<Lsn> {
    text?.parse().ok()
}

fn per_second(bytes: u64, elapsed: Duration) -> f64 {
    // Two looks are never at the same moment, but a division must not depend on it.
    bytes as f64 / elapsed.as_secs_f64().max(0.001)
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use borealis_local::status::{GroupState, MemberState, VolumeState};

    use super::*;

    fn status(vdl: Option<&str>, pgcl: &str, scl: &[Option<&str>]) -> Status {
        let text = |lsn: &str| lsn.to_owned();
        let member =
            |(scl, node): (&Option<&str>, u16)| MemberState { node, scl: scl.map(text), state: "up" };
        Status {
            volume: VolumeState {
                id: String::new(),
                state: "up",
                reason: None,
                epoch: Some(1),
                vdl: vdl.map(text),
                vcl: None,
            },
            nodes: Vec::new(),
            protection_groups: vec![GroupState {
                id: 2,
                pgcl: Some(text(pgcl)),
                membership: 1,
                members: scl.iter().zip(1..).map(member).collect(),
            }],
            instances: Vec::new(),
            backup: None,
            certificates: Vec::new(),
            healing: borealis_local::status::Healing::default(),
            controller_pid: None,
            supervisor_pid: None,
            serving_pid: None,
            unwatched: false,
        }
    }

    #[test]
    fn what_moved_is_told_with_its_rate() {
        let earlier =
            status(Some("0/0"), "0/1000000", &[Some("0/1000000"), Some("0/0"), Some("0/1000000"), None]);
        let now = status(
            Some("0/800000"),
            "0/1000000",
            &[Some("0/1000000"), Some("0/C00000"), Some("0/F00000"), None],
        );
        assert_eq!(
            movement(&earlier, &now, Duration::from_secs(2)),
            "redo  4.0 MiB/s\n\
             group 2: node 2 lacks 4.0 MiB of redo, 6.0 MiB less each second\n\
             group 2: node 3 lacks 1.0 MiB of redo, 0.5 MiB more each second\n"
        );
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let unknown = status(None, "0/1000000", &[None]);
        let known = status(Some("0/800000"), "0/1000000", &[Some("0/F00000")]);
        assert_eq!(movement(&unknown, &unknown, Duration::ZERO), "");
        assert_eq!(movement(&unknown, &known, Duration::ZERO), "group 2: node 1 lacks 1.0 MiB of redo\n");
    }
}
