//! The tables, the same in Markdown and in HTML.

use super::table::{Table, summarize, words};
use crate::model::{Measurement, Results, System};
use crate::statistics::{Summary, number};
use crate::targets::{self, counter_per_transaction};
use crate::workload_names::{self as names, title};

/// Situations whose costs are shown.
const COST_SITUATIONS: [&str; 3] = ["8 clients", "32 clients", names::COMMIT_DELAY];
/// Counters of the systems that are shown per transaction: name, label.
const COUNTERS: [(&str, &str); 12] = [
    ("wal_bytes", "WAL bytes written by postgres"),
    ("wal_fpi", "full page images in it"),
    ("wal_write", "WAL writes by postgres"),
    ("wal_sync", "WAL syncs by postgres"),
    ("driver_batches_sent", "requests to nodes (all six)"),
    ("driver_bytes_sent", "bytes to nodes (all six)"),
    ("driver_acknowledgements", "acknowledgements"),
    ("driver_records", "redo records"),
    ("driver_read_requests", "page reads from nodes"),
    ("nodes_append_syncs", "append syncs of all nodes"),
    ("nodes_store_log_syncs", "fdatasync of all nodes' logs"),
    ("nodes_store_log_bytes", "bytes written to all nodes' logs"),
];

/// The first sentence of every report.
#[must_use]
pub fn headline(results: &Results) -> String {
    let machine = &results.machine;
    let conditions = &results.conditions;
    let verdict = if results.is_invalid() {
        "**INVALID: something that was acknowledged was lost. Figures of these rounds must not be used.** "
    } else if results.durability.is_empty() {
        "No round was checked for lost commits. "
    } else {
        "Every acknowledged commit survived every crash. "
    };
    format!(
        "{verdict}`{}`: {}, {} processors ({}), {} MiB memory, data on {}, one fdatasync {:.0} µs, load average \
         before the run {}. {} rounds of {} s, scale {}, shared_buffers={}, systems alternating. {:.0} s in all. \
         Cells are medians, with the smallest and largest round in brackets.",
        conditions.command,
        machine.postgres,
        machine.processors,
        machine.processor_model,
        machine.memory_mib,
        machine.file_system,
        machine.fdatasync_us,
        machine.load_average,
        conditions.rounds,
        conditions.seconds,
        conditions.scale,
        crate::server::Memory::SharedBuffers.shared_buffers(),
        conditions.elapsed_s,
    )
}

/// All tables with at least one row.
#[must_use]
pub fn all(results: &Results) -> Vec<Table> {
    let mut tables = vec![target_table(results)];
    for workload in names::COMPARED {
        tables.push(comparison(results, workload, "tps", "transactions per second"));
        tables.push(comparison(results, workload, "latency_p99_ms", "99th percentile of latency in ms"));
    }
    tables.push(comparison(results, "bulk", "seconds", "seconds"));
    tables.push(comparison(
        results,
        "recovery",
        "first_answer_ms",
        "ms from kill -9 to the first answered query",
    ));
    tables.push(page_table(results));
    tables.push(fault_table(results));
    tables.push(repair_table(results));
    tables.push(super::backup::table(results));
    tables.extend(COST_SITUATIONS.map(|situation| cost_table(results, situation)));
    tables.push(system_call_table(results));
    tables.push(durability_table(results));
    tables.retain(|table| !table.rows.is_empty());
    tables
}

fn target_table(results: &Results) -> Table {
    let rows = targets::evaluate(results)
        .into_iter()
        .map(|target| {
            let spread = target.ratio.map_or_else(|| "–".to_owned(), |ratio| ratio.text());
            let met = target.met.text().to_owned();
            vec![target.id.to_owned(), target.what, target.wanted, target.measured, spread, met]
        })
        .collect();
    Table {
        title: "Targets".to_owned(),
        note: "Ratios are taken within each round; their median counts.".to_owned(),
        header: words(&["", "what", "target", "measured", "compared", ""]),
        rows,
    }
}

/// The systems that were measured in a workload.
pub(super) fn systems(results: &Results, workload: &str) -> Vec<System> {
    let all = [System::Stock, System::Replicated, System::Ceiling, System::Borealis];
    all.into_iter()
        .filter(|system| results.measurements.iter().any(|m| m.workload == workload && m.system == *system))
        .collect()
}

fn comparison(results: &Results, workload: &str, figure: &str, unit: &str) -> Table {
    let systems = systems(results, workload);
    let mut header = vec![String::new()];
    header.extend(systems.iter().map(|system| system.name().to_owned()));
    header.push("Borealis / A".to_owned());
    let mut rows = Vec::new();
    for situation in results.situations(workload) {
        let summary = |system| summarize(results, workload, &situation, system, figure);
        if systems.iter().all(|system| summary(*system).is_none()) {
            continue;
        }
        let mut row = vec![situation.clone()];
        for &system in &systems {
            let mut cell = summary(system).map_or_else(|| "–".to_owned(), |summary| summary.text());
            if results.rounds(workload, &situation, system).any(|m| m.invalid.is_some()) {
                cell += " INVALID";
            }
            row.push(cell);
        }
        let ratio = summary(System::Borealis).zip(summary(System::Stock));
        row.push(ratio.map_or_else(|| "–".to_owned(), |(own, stock)| number(own.median / stock.median)));
        rows.push(row);
    }
    Table { title: format!("{}: {unit}", title(workload)), note: String::new(), header, rows }
}

/// Figures of a run that was in several situations one after another.
fn stretch_table(
    results: &Results,
    workload: &str,
    figures: &[(&str, &str)],
    title: &str,
    note: &str,
) -> Table {
    let mut header = vec![String::new()];
    header.extend(figures.iter().map(|(_, label)| (*label).to_owned()));
    let rows = results
        .situations(workload)
        .into_iter()
        .filter_map(|situation| {
            summarize(results, workload, &situation, System::Borealis, "tps")?;
            let cells = figures.iter().map(|(figure, _)| {
                summarize(results, workload, &situation, System::Borealis, figure)
                    .map_or_else(|| "–".to_owned(), |summary| summary.text())
            });
            Some([situation.clone()].into_iter().chain(cells).collect())
        })
        .collect();
    Table { title: title.to_owned(), note: note.to_owned(), header, rows }
}

fn fault_table(results: &Results) -> Table {
    let figures = [("tps", "tps"), ("latency_p50_ms", "p50, ms"), ("latency_p99_ms", "p99, ms")];
    let note = "Healthy stretches of the same run are between the faults. The slow node is stopped for 100 ms of every \
                105. The half second after a change is left out.";
    stretch_table(results, "faults", &figures, "Faults: Borealis, TPC-B at 8 clients", note)
}

fn repair_table(results: &Results) -> Table {
    let figures = [
        ("tps", "tps"),
        ("latency_p50_ms", "p50, ms"),
        ("latency_p99_ms", "p99, ms"),
        ("moved_mib", "MiB"),
        ("moved_mib_per_s", "MiB/s"),
    ];
    let note = "A new node takes all segments of another one, from its peers: MiB are of pages that they sent. The copy is of that \
                one's page files, by cp and fsync, to the same disk.";
    stretch_table(results, "repair", &figures, "Repair: Borealis, TPC-B at 8 clients", note)
}

fn page_table(results: &Results) -> Table {
    let figures = [
        ("latency_p50_us", "p50, µs"),
        ("latency_p99_us", "p99, µs"),
        ("latency_max_us", "slowest, µs"),
        ("records_applied_per_page", "records applied per page"),
        ("cache_hits_per_page", "page cache hits per page"),
        ("disk_read_per_page_bytes", "bytes from the disk per page"),
        ("disk_alone_p50_us", "the disk alone, p50, µs"),
        ("loopback_alone_p50_us", "the loopback alone, p50, µs"),
    ];
    let mut header = vec![String::new()];
    header.extend(figures.iter().map(|(_, label)| (*label).to_owned()));
    let rows = results
        .situations("pages")
        .into_iter()
        .map(|situation| {
            let cells = figures.iter().map(|(figure, _)| {
                summarize(results, "pages", &situation, System::Borealis, figure)
                    .map_or_else(|| "–".to_owned(), |summary| summary.text())
            });
            [situation.clone()].into_iter().chain(cells).collect()
        })
        .collect();
    Table {
        title: "Page reads: one storage node, over loopback, one request at a time".to_owned(),
        note: "Each page once, in random order, as of what is durable. The disk alone: 8 KiB at random places of a \
               file that the operating system does not have in memory. The loopback alone: 8 KiB from a thread \
               that has them."
            .to_owned(),
        header,
        rows,
    }
}

fn per_transaction(measurement: &Measurement, amount: f64) -> Option<f64> {
    let transactions = measurement.cost.as_ref()?.transactions;
    (transactions > 0).then_some(amount / transactions as f64)
}

fn cost_table(results: &Results, situation: &str) -> Table {
    let systems = [System::Stock, System::Borealis];
    let measured =
        || results.measurements.iter().filter(|m| m.workload == "tpcb" && m.situation == situation);
    let mut roles: Vec<&str> =
        measured().flat_map(|m| &m.cost).flat_map(|cost| cost.processes.keys()).map(String::as_str).collect();
    roles.sort_unstable();
    roles.dedup();
    let mut rows = Vec::new();
    let mut add = |label: String, figure: &dyn Fn(&Measurement) -> Option<f64>| {
        let summaries = systems.map(|system| {
            Summary::of(
                measured().filter(|m| m.system == system).filter_map(figure).filter(|value| *value > 0.0),
            )
        });
        if summaries.iter().any(Option::is_some) {
            let mut row = vec![label];
            row.extend(summaries.map(|summary| summary.map_or_else(|| "–".to_owned(), |s| s.text())));
            rows.push(row);
        }
    };
    for role in &roles {
        add(format!("processor time of {role}, µs"), &|m| {
            per_transaction(m, m.cost.as_ref()?.processes.get(*role)?.cpu_us)
        });
    }
    add("processor time of everything, µs".to_owned(), &|m| {
        per_transaction(m, m.cost.as_ref()?.processes.values().map(|usage| usage.cpu_us).sum())
    });
    for role in &roles {
        add(format!("context switches of {role}"), &|m| {
            per_transaction(m, m.cost.as_ref()?.processes.get(*role)?.switches)
        });
    }
    // PostgreSQL's processes share their memory, so that no one of them says anything.
    for role in roles.iter().filter(|role| **role == "driver" || role.ends_with("nodes")) {
        add(format!("peak memory of {role}, MiB in the largest process, not per transaction"), &|m| {
            m.cost.as_ref()?.peak_memory_mib.get(*role).copied()
        });
    }
    for (name, label) in COUNTERS {
        add(label.to_owned(), &counter_per_transaction(name));
    }
    Table {
        title: format!("What one transaction costs: TPC-B, {situation}"),
        note: "Processor time includes the kernel's for the process. PostgreSQL counts a WAL sync that Borealis \
               answers from memory like any other."
            .to_owned(),
        header: words(&["per transaction", System::Stock.name(), System::Borealis.name()]),
        rows,
    }
}

fn system_call_table(results: &Results) -> Table {
    let rows = results
        .system_calls
        .iter()
        .map(|calls| {
            let named = calls.most_frequent.iter().map(|(name, count)| format!("{name} {}", number(*count)));
            vec![
                calls.system.name().to_owned(),
                calls.role.clone(),
                number(calls.per_transaction),
                named.collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    Table {
        title: "System calls per transaction, 32 clients".to_owned(),
        note:
            "Counted by strace in a run of its own, one part at a time: slower, so batches differ somewhat."
                .to_owned(),
        header: words(&["", "part", "all", "most frequent"]),
        rows,
    }
}

fn durability_table(results: &Results) -> Table {
    let rows = results
        .durability
        .iter()
        .map(|check| {
            let nodes: Vec<String> = check.killed_nodes.iter().map(u16::to_string).collect();
            vec![
                title(&check.workload).to_owned(),
                check.round.to_string(),
                if nodes.is_empty() {
                    "instance".to_owned()
                } else {
                    format!("instance, nodes {}", nodes.join(" and "))
                },
                check.acknowledged.to_string(),
                check.workload_transactions.map_or_else(|| "–".to_owned(), |count| count.to_string()),
                check.lost.as_ref().map_or_else(|| "nothing".to_owned(), |lost| format!("INVALID: {lost}")),
            ]
        })
        .collect();
    Table {
        title: "Is what was acknowledged still there?".to_owned(),
        note: "After each round: four nodes are stopped while clients go on committing, then the instance and the other \
               two nodes are killed, and the instance is started on the four. The ledger's commits and the rows \
               of the workload itself are counted again. What only reads is not listed: nothing is acknowledged in it."
            .to_owned(),
        header: words(&["workload", "round", "killed", "ledger commits", "workload rows", "lost"]),
        rows,
    }
}
