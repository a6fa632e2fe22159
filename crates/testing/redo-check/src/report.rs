//! The report: text and JSON.

use borealis_redo::check::{Problem, Tallies, Tally, rare_operation, table, unseen_operations};
use borealis_types::Lsn;
use serde_json::{Value, json};

use crate::release::Release;

/// What was read, and what came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The release whose redo was used.
    pub release: Release,
    /// Begin of the first record.
    pub from: Lsn,
    /// End of the last record.
    pub to: Lsn,
    /// What became of each operation's records.
    pub tallies: Tallies,
    /// The first problems in full; `tallies` counts all.
    pub problems: Vec<Problem>,
    /// Why the check ended before it had read everything that was asked for, if it did.
    pub ended_early: Option<String>,
}

impl Report {
    /// The tallies of all operations, added up.
    pub fn total(&self) -> Tally {
        Tally::total(self.tallies.values())
    }

    /// Nothing was skipped, nothing failed, nothing differs.
    pub fn is_clean(&self) -> bool {
        self.total().problems() == 0 && self.ended_early.is_none()
    }

    /// Whether the server that wrote this did so with `wal_consistency_checking`: records have images that are for
    /// checking alone.
    pub fn has_images(&self) -> bool {
        let total = self.total();
        total.compared + total.first_seen > 0
    }

    /// Operations of which there was no record and no unit test either.
    pub fn uncovered(&self) -> usize {
        unseen_operations(&self.tallies)
            .filter(|(resource_manager, operation)| rare_operation(*resource_manager, operation).is_none())
            .count()
    }

    /// The report as text; with the operations that were not seen if wanted.
    pub fn text(&self, with_unseen: bool) -> String {
        let mut lines: Vec<String> = self.problems.iter().map(Problem::to_string).collect();
        let total = self.total();
        let more = total.problems().saturating_sub(self.problems.len() as u64);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.push(table(&self.tallies));
        if with_unseen {
            for (resource_manager, operation) in unseen_operations(&self.tallies) {
                let why = rare_operation(resource_manager, operation)
                    .map_or("NOT COVERED".to_owned(), |rare| format!("unit test; {}", rare.why));
                lines.push(format!("not seen: {resource_manager}/{operation}: {why}"));
            }
            lines.push(String::new());
        }
        if let Some(why) = &self.ended_early {
            lines.push(format!("ended early: {why}"));
        }
        lines.push(format!("redo of PostgreSQL {}, {}", self.release.server_version, self.release.source));
        if self.release.deduced && total.different + total.failed > 0 {
            lines.push(
                "where the server was upgraded, the WAL from before it is of another release, whose redo differs: check \
                 each part as its own, with --server-version and with --start-lsn or --end-lsn at the upgrade"
                    .to_owned(),
            );
        }
        lines.push(format!(
            "{} records from {} to {}: {} blocks compared, {} differences, {} skipped, {} failed",
            total.records, self.from, self.to, total.compared, total.different, total.skipped, total.failed
        ));
        lines.join("\n")
    }

    /// The report as one JSON object.
    pub fn json(&self) -> Value {
        let tally = |tally: &Tally| {
            json!({
                "records": tally.records,
                "compared": tally.compared,
                "different": tally.different,
                "skipped": tally.skipped,
                "failed": tally.failed,
                "restored": tally.restored,
                "first_seen": tally.first_seen,
                "no_image": tally.no_image,
                "not_followed": tally.not_followed,
                "pages": tally.pages,
                "values": tally.values,
            })
        };
        let operations: Vec<Value> = self
            .tallies
            .iter()
            .map(|((resource_manager, operation), figures)| {
                let mut object = tally(figures);
                object["resource_manager"] = json!(resource_manager.to_string());
                object["operation"] = json!(operation);
                object
            })
            .collect();
        let problems: Vec<Value> = self
            .problems
            .iter()
            .map(|problem| match problem {
                Problem::Redo(message) => json!({ "message": message }),
                Problem::Different { record, mismatch } => json!({
                    "message": problem.to_string(),
                    "record": record,
                    "block": mismatch.key.to_string(),
                    "offset": mismatch.offset,
                    "field": mismatch.field,
                    "expected": mismatch.expected_text(),
                    "actual": mismatch.actual_text(),
                    "different_bytes": mismatch.different_bytes,
                }),
            })
            .collect();
        let unseen: Vec<Value> = unseen_operations(&self.tallies)
            .map(|(resource_manager, operation)| {
                json!({
                    "resource_manager": resource_manager.to_string(),
                    "operation": operation,
                    "unit_test_because": rare_operation(resource_manager, operation).map(|rare| rare.why),
                })
            })
            .collect();
        json!({
            "server_version": self.release.server_version.to_string(),
            "server_version_source": self.release.source,
            "from": self.from.to_string(),
            "to": self.to.to_string(),
            "clean": self.is_clean(),
            "ended_early": self.ended_early,
            "total": tally(&self.total()),
            "operations": operations,
            "problems": problems,
            "not_seen": unseen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_redo::consistency::Mismatch;
    use borealis_types::{BlockKey, Fork, RelationFork, RelationLocator, ServerVersion};
    use borealis_wal::ResourceManager;

    fn report(tallies: &Tallies, problems: &[Problem]) -> Report {
        Report {
            release: Release::told(ServerVersion::NEWEST_TESTED),
            from: Lsn(0x100),
            to: Lsn(0x200),
            tallies: tallies.clone(),
            problems: problems.to_vec(),
            ended_early: None,
        }
    }

    #[test]
    fn a_difference_is_shown_with_its_field_and_both_sides() {
        let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16384 };
        let key = BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block: 7 };
        let mismatch = Mismatch {
            key,
            offset: 8172,
            expected: vec![1, 2],
            actual: vec![0xFF, 0],
            field: "item 1, t_infomask".to_owned(),
            different_bytes: 2,
        };
        let problems = [Problem::Different { record: "0/100 Heap/INSERT".to_owned(), mismatch }];
        let tally = Tally { records: 3, compared: 2, different: 1, ..Tally::default() };
        let tallies = Tallies::from([((ResourceManager::Heap, "INSERT"), tally)]);
        let report = report(&tallies, &problems);
        assert!(!report.is_clean() && report.has_images());
        let text = report.text(false);
        for part in
            ["0/100 Heap/INSERT", "1663/5/16384 block 7", "8172", "item 1, t_infomask", "ff 00", "01 02"]
        {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        let json = report.json();
        assert_eq!(json["problems"][0]["field"], "item 1, t_infomask");
        assert_eq!(json["total"]["different"], 1);
        assert_eq!(json["operations"][0]["operation"], "INSERT");
        assert_eq!(json["clean"], false);
        assert_eq!(json["server_version"], ServerVersion::NEWEST_TESTED.to_string());
        assert!(text.contains(&format!(
            "redo of PostgreSQL {}, as --server-version says",
            ServerVersion::NEWEST_TESTED
        )));
    }

    #[test]
    fn differences_under_a_deduced_release_may_be_those_of_another() {
        let hint = "--start-lsn or --end-lsn at the upgrade";
        let tallies = |different| {
            let tally = Tally { records: 3, compared: 2, different, ..Tally::default() };
            Tallies::from([((ResourceManager::Gist, "PAGE_UPDATE"), tally)])
        };
        for (deduced, different, said) in [(true, 1, true), (true, 0, false), (false, 1, false)] {
            let tallies = tallies(different);
            let mut report = report(&tallies, &[]);
            report.release.deduced = deduced;
            assert_eq!(report.text(false).contains(hint), said, "{deduced} {different}");
        }
    }

    #[test]
    fn what_was_not_seen_is_listed() {
        let tallies = Tallies::from([((ResourceManager::Heap, "INSERT"), Tally::default())]);
        let report = report(&tallies, &[]);
        let text = report.text(true);
        assert!(text.contains("not seen: Btree/NEWROOT"), "{text}");
        assert!(!text.contains("not seen: Heap/INSERT:"), "{text}");
        assert!(!report.has_images() && report.is_clean());
        assert!(report.uncovered() > 0);
    }

    #[test]
    fn what_is_not_known_is_never_clean() {
        let tally = Tally { records: 1, skipped: 1, ..Tally::default() };
        let tallies = Tallies::from([((ResourceManager::Other(200), "?"), tally)]);
        assert!(!report(&tallies, &[]).is_clean());
        assert!(report(&tallies, &[]).text(false).contains("custom200"));
        let nothing = Tallies::new();
        let early = Report { ended_early: Some("a file is missing".to_owned()), ..report(&nothing, &[]) };
        assert!(!early.is_clean());
    }
}
