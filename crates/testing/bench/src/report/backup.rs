//! The table of what a backup costs.

use super::table::{Table, summarize, words};
use crate::model::{Measurement, Results, System};
use crate::statistics::Summary;
use crate::targets::{Figure, backup_ratio};
use crate::workload_names::{self as names, Backup};

/// Figures of a measurement: name, label. Those that only a backup has are compared with nothing.
const FIGURES: [(&str, &str); 6] = [
    ("tps", "transactions per second"),
    ("latency_p99_ms", "99th percentile of latency, ms"),
    ("uploaded_bytes_per_wal_byte", "bytes uploaded per byte of WAL"),
    ("backup_complete_ms", "until everything can be restored as the load ends, ms"),
    ("backup_snapshots", "snapshots of groups, in all"),
    ("backup_failures", "failed requests, in all"),
];

/// Parts whose processor time is shown: label, roles that make one.
const PARTS: [(&str, &[&str]); 2] = [
    ("processor time of the instance per transaction, µs", &["postgres", "driver"]),
    ("processor time of six nodes per transaction, µs", &["six nodes"]),
];

/// Processor time of parts of a system per transaction, in microseconds.
fn cpu_us(measurement: &Measurement, roles: &[&str]) -> Option<f64> {
    let cost = measurement.cost.as_ref().filter(|cost| cost.transactions > 0)?;
    let times = roles.iter().map(|role| Some(cost.processes.get(*role)?.cpu_us));
    Some(times.sum::<Option<f64>>()? / cost.transactions as f64)
}

/// Off, on, and on divided by off within each round.
pub(super) fn table(results: &Results) -> Table {
    let mut rows = Vec::new();
    for clients in names::BACKUP_CLIENTS {
        let situations = Backup::BOTH.map(|backup| names::with_backup(clients, backup));
        let mut add = |label: &str, summaries: [Option<Summary>; 2], figure: Figure<'_>| {
            if summaries.iter().any(Option::is_some) {
                let text = |summary: Option<Summary>| summary.map_or_else(|| "–".to_owned(), |it| it.text());
                let mut row = vec![format!("{clients} clients: {label}")];
                row.extend(summaries.map(text));
                row.push(text(backup_ratio(results, clients, figure)));
                rows.push(row);
            }
        };
        for (name, label) in FIGURES {
            let summaries = situations
                .each_ref()
                .map(|situation| summarize(results, "backup", situation, System::Borealis, name));
            add(label, summaries, &|measurement| measurement.values.get(name).copied());
        }
        for (label, roles) in PARTS {
            let figure = |measurement: &Measurement| cpu_us(measurement, roles);
            let summaries = situations.each_ref().map(|situation| {
                Summary::of(results.rounds("backup", situation, System::Borealis).filter_map(figure))
            });
            add(label, summaries, &figure);
        }
    }
    Table {
        title: "What a backup costs: Borealis, TPC-B".to_owned(),
        note: "Two clusters in alternation, the backup in a folder on the same disk. Processor time is that of the load \
               alone. Bytes are those of the load and of what is uploaded of it afterwards, snapshots that fall into \
               that time included."
            .to_owned(),
        header: words(&["", Backup::Off.text(), Backup::On.text(), "on / off"]),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cost;
    use crate::processes::Usage;

    #[test]
    fn costs_are_compared_per_transaction_and_what_only_a_backup_has_stands_alone() {
        let mut results = Results::default();
        for (backup, tps, instance_us, nodes_us) in
            [(Backup::Off, 1000.0, 500.0, 600.0), (Backup::On, 950.0, 550.0, 900.0)]
        {
            let situation = names::with_backup(32, backup);
            let mut measurement =
                Measurement::new("backup", &situation, System::Borealis, 1).with("tps", tps);
            if backup == Backup::On {
                measurement = measurement.with("uploaded_bytes_per_wal_byte", 0.4);
            }
            let parts = [("postgres", instance_us - 100.0), ("driver", 100.0), ("six nodes", nodes_us)];
            let usage =
                |(role, us): (&str, f64)| (role.to_owned(), Usage { cpu_us: us * 10.0, ..Usage::default() });
            let processes = parts.into_iter().map(usage).collect();
            measurement.cost = Some(Cost { transactions: 10, processes, ..Cost::default() });
            results.measurements.push(measurement);
        }
        let rows = table(&results).rows;
        let row = |label: &str| {
            let found = rows.iter().find(|row| row[0].contains(label)).expect("there is one");
            found[1..].iter().map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!(row("32 clients: transactions per second"), ["1000", "950", "0.95"]);
        assert_eq!(row("of the instance"), ["500", "550", "1.10"]);
        assert_eq!(row("of six nodes"), ["600", "900", "1.50"]);
        assert_eq!(row("bytes uploaded"), ["–", "0.40", "–"]);
        assert!(rows.iter().all(|row| row[0].starts_with("32 clients")), "nothing of 8 was measured");
    }
}
