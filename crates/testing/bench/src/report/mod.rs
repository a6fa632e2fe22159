//! What a run leaves: tables on standard output and in `tables.md`, `bench.json`, `report.html`.

mod backup;
mod html;
mod plots;
mod svg;
mod table;
mod tables;

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::model::Results;
use table::Table;

/// Writes `bench.json`, `tables.md` and `report.html`.
///
/// # Errors
/// When they cannot be written.
pub fn write(results: &Results, out: &Path) -> anyhow::Result<()> {
    let json = out.join("bench.json");
    let mut document = serde_json::to_value(results)?;
    document["valid"] = (!results.is_invalid()).into();
    fs::write(&json, serde_json::to_string(&document)? + "\n")
        .with_context(|| format!("cannot write {}", json.display()))?;
    for (name, content) in [("tables.md", text(results)), ("report.html", html::page(results))] {
        let path = out.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The tables in Markdown.
#[must_use]
pub fn text(results: &Results) -> String {
    let mut text = format!("{}\n\n", tables::headline(results));
    for Table { title, note, header, rows } in tables::all(results) {
        text += &format!("## {title}\n\n");
        if !note.is_empty() {
            text += &format!("{note}\n\n");
        }
        text += &format!("| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()));
        for row in rows {
            text += &format!("| {} |\n", row.join(" | "));
        }
        text.push('\n');
    }
    for note in &results.notes {
        text += &format!("Note: {note}.\n");
    }
    for failure in &results.failures {
        text += &format!("NOT FINISHED: {failure}\n");
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{DurabilityCheck, Event, Measurement, System};

    /// Two rounds of a little of everything.
    pub(crate) fn some_results() -> Results {
        let mut results = Results::default();
        results.machine.postgres = "postgres (PostgreSQL) 15.18".to_owned();
        for round in 1..=2 {
            for (system, tps) in [(System::Stock, 1000.0), (System::Borealis, 900.0)] {
                for clients in ["8 clients", "32 clients"] {
                    let mut measurement = Measurement::new("tpcb", clients, system, round)
                        .with("tps", tps + f64::from(round))
                        .with("latency_p50_ms", 8.0)
                        .with("latency_p99_ms", 20.0);
                    measurement.throughput = vec![(1.0, tps), (2.0, tps + 5.0)];
                    measurement.latencies_us = vec![(0.0, 900), (0.5, 8000), (0.99, 20_000), (1.0, 30_000)];
                    results.measurements.push(measurement);
                }
                let mut crash =
                    Measurement::new("recovery", "base", system, round).with("first_answer_ms", 170.0);
                crash.events = vec![Event { label: "a <phase>".to_owned(), begin_s: 0.0, end_s: 0.1 }];
                crash.throughput = vec![(-1.0, 500.0), (0.5, 300.0)];
                results.measurements.push(crash);
            }
        }
        results.record_check(check(1, None));
        results
    }

    pub(crate) fn check(round: u32, lost: Option<&str>) -> DurabilityCheck {
        DurabilityCheck {
            workload: "tpcb".to_owned(),
            round,
            killed_nodes: vec![2, 4],
            acknowledged: 1234,
            workload_transactions: Some(99),
            lost: lost.map(str::to_owned),
        }
    }

    #[test]
    fn the_text_has_every_system_with_spread_and_ratio() {
        let text = text(&some_results());
        assert!(text.contains("1002 (1001 to 1002)") || text.contains("1001 to 1002"), "{text}");
        assert!(text.contains("0.90"), "{text}");
        assert!(text.contains("| S1 |"), "{text}");
        assert!(!text.contains("INVALID"), "{text}");
        assert!(text.contains("1234"), "{text}");
    }

    #[test]
    fn a_lossy_round_is_marked_everywhere() {
        let mut results = some_results();
        results.record_check(check(2, Some("client 0: the last 7 of 9 acknowledged commits are gone")));
        let text = text(&results);
        assert!(text.starts_with("**INVALID"), "{text}");
        assert!(text.contains("the last 7 of 9"), "{text}");
        let page = html::page(&results);
        assert!(page.contains("INVALID") && page.contains("the last 7 of 9"));
        let folder = tempfile::tempdir().unwrap();
        write(&results, folder.path()).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.path().join("bench.json")).unwrap()).unwrap();
        assert_eq!(json["valid"], false);
        let marked =
            json["measurements"].as_array().unwrap().iter().filter(|m| m["invalid"].is_string()).count();
        assert_eq!(marked, 2, "both situations of round 2, and nothing else");
    }

    #[test]
    fn json_holds_every_round_and_can_be_read_back() {
        let results = some_results();
        let folder = tempfile::tempdir().unwrap();
        write(&results, folder.path()).unwrap();
        let back: Results =
            serde_json::from_slice(&fs::read(folder.path().join("bench.json")).unwrap()).unwrap();
        assert_eq!(back, results);
    }
}
