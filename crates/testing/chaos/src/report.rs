//! What a run was and what came of it, for a person and for a program.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// The outcome of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The command line.
    pub command: String,
    /// The seed: it gives the same faults in the same order for the same answers of the cluster.
    pub seed: u64,
    /// How long faults were inflicted, in seconds.
    pub seconds: f64,
    /// Processes killed.
    pub kills: u64,
    /// How often each kind of fault was carried out.
    pub faults: BTreeMap<&'static str, u64>,
    /// Directories of nodes that were deleted.
    pub lost_directories: u64,
    /// Pages on disks that were damaged.
    pub damaged_pages: u64,
    /// Commits that the ledger's clients were told of.
    pub acknowledged: u64,
    /// Of these, those that they found after their connection had broken.
    pub found_after_break: u64,
    /// Connections that broke.
    pub broken_connections: u64,
    /// Snapshots that were looked at.
    pub snapshots: u64,
    /// The longest that a commit took, in milliseconds.
    pub longest_commit_ms: f64,
    /// Until everything was well after the last fault, in seconds.
    pub healed_after_seconds: f64,
    /// Parts that their watcher had given up and that were started by command.
    pub started_by_command: u64,
    /// What is wrong: lost, read out of order, different between peers. Nothing must be.
    pub violations: Vec<String>,
}

impl Report {
    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "# Chaos\n\n`{}`, seed {}\n\n| what | how much |\n| --- | --- |\n",
            self.command, self.seed
        );
        let mut row = |what: &str, value: String| {
            let _ = writeln!(text, "| {what} | {value} |");
        };
        row("faults for", format!("{:.0} s", self.seconds));
        row("processes killed", self.kills.to_string());
        for (kind, count) in &self.faults {
            row(kind, count.to_string());
        }
        row("directories of nodes deleted", self.lost_directories.to_string());
        row("pages on disks damaged", self.damaged_pages.to_string());
        row("commits acknowledged", self.acknowledged.to_string());
        row("of these, found after the connection broke", self.found_after_break.to_string());
        row("connections broken", self.broken_connections.to_string());
        row("snapshots looked at", self.snapshots.to_string());
        row("longest commit", format!("{:.0} ms", self.longest_commit_ms));
        row("well again after the last fault", format!("{:.1} s", self.healed_after_seconds));
        row("parts started by command, given up by their watcher", self.started_by_command.to_string());
        let verdict = match self.violations.as_slice() {
            [] => "Nothing acknowledged was lost, no snapshot was wrong, and the peers agree.".to_owned(),
            violations => format!("**Wrong:**\n\n* {}", violations.join("\n* ")),
        };
        let _ = write!(text, "\n{verdict}\n");
        text
    }

    /// Leaves `chaos.md` and `chaos.json` in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&self, folder: &Path) -> anyhow::Result<()> {
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join("chaos.md"), self.text())?;
            std::fs::write(folder.join("chaos.json"), serde_json::to_vec_pretty(self)?)
        };
        write().with_context(|| format!("cannot write the report to {}", folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_in_the_report() {
        let mut report = Report { seed: 7, kills: 3, ..Report::default() };
        report.faults.insert("node killed", 3);
        assert!(report.text().contains("Nothing acknowledged was lost"), "{}", report.text());
        report.violations.push("client 1: the last 2 of 9 acknowledged commits are gone".to_owned());
        let text = report.text();
        assert!(text.contains("**Wrong:**") && text.contains("the last 2 of 9"), "{text}");
        assert!(text.contains("| node killed | 3 |") && !text.contains("Nothing acknowledged"), "{text}");
    }
}
