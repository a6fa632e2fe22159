//! The project's targets for speed, S1 to S11, and what was measured for each.
//!
//! A ratio is taken within each round and then summarized: whatever slows the machine for a while slows both sides of
//! a round.

use crate::model::{Measurement, Results, System};
use crate::statistics::{Summary, number};
use crate::workload_names::{self as names, Backup};

/// Whether a target is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// The figures meet the target.
    Yes,
    /// The figures miss the target.
    No,
    /// A figure that it needs was not measured.
    Unknown,
    /// A round of it lost acknowledged commits.
    Invalid,
}

impl Met {
    /// The word that tables show.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Met::Yes => "met",
            Met::No => "not met",
            Met::Unknown => "not measured",
            Met::Invalid => "INVALID",
        }
    }
}

/// One row of the table.
#[derive(Clone, PartialEq, Debug)]
pub struct Target {
    /// The target's name in the documents, like `S1`.
    pub id: &'static str,
    /// What is measured.
    pub what: String,
    /// What is wanted.
    pub wanted: String,
    /// What came out, in its own unit.
    pub measured: String,
    /// What is compared with what is wanted: median and spread of the rounds.
    pub ratio: Option<Summary>,
    /// Whether that is enough.
    pub met: Met,
}

/// Which side of its bound a figure must be on.
#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
            Bound::Below(bound) => value < bound,
        }
    }

    fn text(self) -> String {
        match self {
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::AtMost(bound) => format!("≤ {bound}"),
            Bound::Below(bound) => format!("< {bound}"),
        }
    }
}

/// A figure of one round.
pub type Figure<'a> = &'a dyn Fn(&Measurement) -> Option<f64>;

fn value(name: &'static str) -> impl Fn(&Measurement) -> Option<f64> {
    move |measurement| measurement.values.get(name).copied()
}

/// A counter of the whole run, divided by its transactions.
pub fn counter_per_transaction(name: &'static str) -> impl Fn(&Measurement) -> Option<f64> {
    move |measurement| {
        let cost = measurement.cost.as_ref()?;
        (cost.transactions > 0)
            .then(|| cost.counters.get(name).copied().unwrap_or(0.0) / cost.transactions as f64)
    }
}

/// Where a figure is found: workload and situation.
type Place<'a> = (&'a str, &'a str);

/// The figure of Borealis divided by that of the other, round by round. Where the other was measured in fewer
/// rounds, its first counts for the rest.
fn ratios(
    results: &Results,
    place: Place<'_>,
    figure: Figure<'_>,
    other: (Place<'_>, System),
    other_figure: Figure<'_>,
) -> Option<Summary> {
    let ((workload, situation), system) = other;
    let others: Vec<&Measurement> = results.rounds(workload, situation, system).collect();
    let values = results.rounds(place.0, place.1, System::Borealis).filter_map(|own| {
        let same_round = others.iter().find(|other| other.round == own.round).or(others.first())?;
        let divisor = other_figure(same_round)?;
        (divisor > 0.0).then_some(figure(own)? / divisor)
    });
    Summary::of(values)
}

fn summary(results: &Results, place: Place<'_>, system: System, figure: Figure<'_>) -> Option<Summary> {
    Summary::of(results.rounds(place.0, place.1, system).filter_map(figure))
}

fn is_invalid(results: &Results, workload: &str, situation: &str) -> bool {
    results.rounds(workload, situation, System::Borealis).any(|measurement| measurement.invalid.is_some())
}

struct Row<'a> {
    id: &'static str,
    what: String,
    wanted: String,
    place: Place<'a>,
    bound: Bound,
    /// What the bound is for.
    ratio: Option<Summary>,
    measured: String,
}

impl Row<'_> {
    fn judge(self, results: &Results) -> Target {
        let met = match self.ratio {
            _ if is_invalid(results, self.place.0, self.place.1) => Met::Invalid,
            None => Met::Unknown,
            Some(ratio) if self.bound.holds(ratio.median) => Met::Yes,
            Some(_) => Met::No,
        };
        let Row { id, what, wanted, ratio, measured, .. } = self;
        Target { id, what, wanted, measured, ratio, met }
    }
}

fn shown(summary: Option<Summary>, unit: &str) -> String {
    summary.map_or_else(|| "–".to_owned(), |summary| format!("{} {unit}", summary.text()))
}

/// A row that compares Borealis with another system in the same situation.
fn against(
    results: &Results,
    id: &'static str,
    place: Place<'_>,
    (name, unit): (&'static str, &str),
    other: System,
    bound: Bound,
) -> Target {
    let figure = value(name);
    let letter = other.name().split(' ').next().unwrap_or_default();
    let measured = format!(
        "{}; {letter}: {}",
        shown(summary(results, place, System::Borealis, &figure), unit),
        shown(summary(results, place, other, &figure), unit)
    );
    let ratio = ratios(results, place, &figure, (place, other), &figure);
    Row {
        id,
        what: format!("{}, {}", names::title(place.0), place.1),
        wanted: format!("{} × {letter}", bound.text()),
        place,
        bound,
        ratio,
        measured,
    }
    .judge(results)
}

/// Every target, in order.
#[must_use]
pub fn evaluate(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let tps = ("tps", "tps");
    for (clients, times_b) in [("1 clients", 1.7), ("8 clients", 4.0), ("32 clients", 4.0)] {
        let place = ("tpcb", clients);
        targets.push(against(results, "S1", place, tps, System::Stock, Bound::AtLeast(1.0)));
        targets.push(against(results, "S1", place, tps, System::Replicated, Bound::AtLeast(times_b)));
    }
    targets.extend(redo_bytes(results));
    for situation in ["32 clients", names::COMMIT_DELAY] {
        targets.push(requests(results, situation));
    }
    targets.extend(faults(results));
    targets.extend(recovery(results));
    targets.push(Target {
        id: "S6",
        what: "redo applied per core, against PostgreSQL's startup process".to_owned(),
        wanted: "≥ 2 ×".to_owned(),
        measured: "not by this command: scripts/redo-speed.py".to_owned(),
        ratio: None,
        met: Met::Unknown,
    });
    targets.extend(page_reads(results));
    for situation in ["COPY", "index build"] {
        let place = ("bulk", situation);
        let seconds = ("seconds", "s");
        targets.push(against(results, "S8", place, seconds, System::Stock, Bound::AtMost(1.5)));
        targets.push(against(results, "S8", place, seconds, System::Replicated, Bound::Below(1.0)));
    }
    for (situation, bound) in
        [("in shared buffers", 0.98), ("in the local cache", 0.9), ("only in storage", 0.5)]
    {
        let place = ("readonly", situation);
        targets.push(against(results, "S9", place, tps, System::Stock, Bound::AtLeast(bound)));
    }
    targets.extend(backup(results));
    targets.extend(repair(results));
    targets
}

/// A repair's bandwidth, and what it costs those who commit meanwhile.
fn repair(results: &Results) -> [Target; 2] {
    let (speed, p99) = (value("moved_mib_per_s"), value("latency_p99_ms"));
    let of = |situation, figure: Figure<'_>, unit| {
        shown(summary(results, ("repair", situation), System::Borealis, figure), unit)
    };
    let [full, usual] = names::REPAIRS.map(names::Repair::text);
    let bound = Bound::AtLeast(0.8);
    let fast = Row {
        id: "S11",
        what: "a node's segments made anew on another under TPC-B".to_owned(),
        wanted: format!("{} × the bandwidth of a plain copy", bound.text()),
        place: ("repair", full),
        bound,
        ratio: ratios(results, ("repair", full), &speed, (("repair", names::COPY), System::Borealis), &speed),
        measured: format!("{}; the copy: {}", of(full, &speed, "MiB/s"), of(names::COPY, &speed, "MiB/s")),
    };
    let bound = Bound::AtMost(1.1);
    let slow = Row {
        id: "S11",
        what: "99th percentile of TPC-B during a repair at the usual rate".to_owned(),
        wanted: format!("{} × that without", bound.text()),
        place: ("repair", usual),
        bound,
        ratio: ratios(results, ("repair", usual), &p99, (("repair", names::HEALTHY), System::Borealis), &p99),
        measured: format!("{}; without: {}", of(usual, &p99, "ms"), of(names::HEALTHY, &p99, "ms")),
    };
    [fast, slow].map(|row| row.judge(results))
}

/// The figure of Borealis with a backup divided by that without, round by round.
#[must_use]
pub fn backup_ratio(results: &Results, clients: u32, figure: Figure<'_>) -> Option<Summary> {
    let [off, on] = Backup::BOTH.map(|backup| names::with_backup(clients, backup));
    ratios(results, ("backup", &on), figure, (("backup", &off), System::Borealis), figure)
}

fn backup(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let (tps, complete) = (value("tps"), value("backup_complete_ms"));
    for clients in names::BACKUP_CLIENTS {
        let [off, on] = Backup::BOTH.map(|backup| names::with_backup(clients, backup));
        let place = ("backup", on.as_str());
        let tps_of = |place| shown(summary(results, place, System::Borealis, &tps), "tps");
        let bound = Bound::AtLeast(0.97);
        let row = Row {
            id: "S10",
            what: format!("TPC-B with continuous backup on against off, {clients} clients"),
            wanted: format!("{} ×", bound.text()),
            place,
            bound,
            ratio: backup_ratio(results, clients, &tps),
            measured: format!("{}; off: {}", tps_of(place), tps_of(("backup", off.as_str()))),
        };
        targets.push(row.judge(results));
        let own = summary(results, place, System::Borealis, &complete);
        let row = Row {
            id: "S10",
            what: format!("until everything can be restored as the load ends, {clients} clients"),
            wanted: "≤ 1000 ms".to_owned(),
            place,
            bound: Bound::AtMost(1000.0),
            ratio: own,
            measured: shown(own, "ms"),
        };
        targets.push(row.judge(results));
    }
    targets
}

fn redo_bytes(results: &Results) -> Option<Target> {
    let place = ("tpcb", "32 clients");
    let sent = counter_per_transaction("driver_bytes_sent");
    let per_node = move |measurement: &Measurement| Some(sent(measurement)? / 6.0);
    let wal = counter_per_transaction("wal_bytes");
    let bound = Bound::AtMost(1.15);
    let row = Row {
        id: "S2",
        what: "redo bytes sent to each node per transaction, 32 clients".to_owned(),
        wanted: format!("{} × the WAL bytes of C", bound.text()),
        place,
        bound,
        ratio: ratios(results, place, &per_node, (place, System::Ceiling), &wal),
        measured: format!(
            "{}; its own WAL: {}; C's: {}",
            shown(summary(results, place, System::Borealis, &per_node), "bytes"),
            shown(summary(results, place, System::Borealis, &wal), "bytes"),
            shown(summary(results, place, System::Ceiling, &wal), "bytes")
        ),
    };
    Some(row.judge(results))
}

fn requests(results: &Results, situation: &str) -> Target {
    let place = ("tpcb", situation);
    let sent = counter_per_transaction("driver_batches_sent");
    let ratio = summary(results, place, System::Borealis, &sent);
    let bound = Bound::Below(1.0);
    let row = Row {
        id: "S3",
        what: format!("requests to nodes per transaction, all six counted, {situation}"),
        wanted: bound.text(),
        place,
        bound,
        ratio,
        measured: shown(ratio, "requests"),
    };
    row.judge(results)
}

fn faults(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for situation in names::FAULTS {
        for (name, short) in [("latency_p50_ms", "p50"), ("latency_p99_ms", "p99")] {
            let figure = value(name);
            let place = ("faults", situation);
            let healthy = ("faults", "healthy");
            let bound = Bound::AtMost(1.1);
            let row = Row {
                id: "S4",
                what: format!("{short} latency, {situation}"),
                wanted: format!("{} × healthy", bound.text()),
                place,
                bound,
                ratio: ratios(results, place, &figure, (healthy, System::Borealis), &figure),
                measured: format!(
                    "{}; healthy: {}",
                    shown(summary(results, place, System::Borealis, &figure), "ms"),
                    shown(summary(results, healthy, System::Borealis, &figure), "ms")
                ),
            };
            targets.push(row.judge(results));
        }
    }
    targets
}

fn recovery(results: &Results) -> Vec<Target> {
    let figure = value("first_answer_ms");
    let replay = value("replay_seconds");
    let mut targets = Vec::new();
    for (position, situation) in names::SIZES.iter().enumerate() {
        let place = ("recovery", *situation);
        let own = summary(results, place, System::Borealis, &figure);
        let measured = format!(
            "{}; A: {}, of which replay {}",
            shown(own, "ms"),
            shown(summary(results, place, System::Stock, &figure), "ms"),
            shown(summary(results, place, System::Stock, &replay), "s")
        );
        let what = format!("kill -9 under load to the first answer, {situation}");
        let bound = Bound::AtMost(1000.0);
        targets.push(
            Row {
                id: "S5",
                what: what.clone(),
                wanted: "≤ 1000 ms".to_owned(),
                place,
                bound,
                ratio: own,
                measured,
            }
            .judge(results),
        );
        if position > 0 {
            let base = summary(results, ("recovery", names::SIZES[0]), System::Borealis, &figure);
            let ratio = own.zip(base).map(|(own, base)| Summary {
                median: own.median / base.median,
                min: own.min / base.median,
                max: own.max / base.median,
                count: own.count,
            });
            let bound = Bound::AtMost(1.2);
            let target = Row {
                id: "S5",
                what: format!("{what}, against base"),
                // Not longer is what matters; shorter is noise of the base.
                wanted: format!("{} × base", bound.text()),
                place,
                bound,
                ratio,
                measured: ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{} ×", number(ratio.median))),
            }
            .judge(results);
            targets.push(target);
        }
    }
    targets
}

fn page_reads(results: &Results) -> Vec<Target> {
    let (median, high) = (value("latency_p50_us"), value("latency_p99_us"));
    let times_median = |measurement: &Measurement| {
        let median = median(measurement)?;
        (median > 0.0).then_some(high(measurement)? / median)
    };
    let alone = [("the disk", value("disk_alone_p50_us")), ("the loopback", value("loopback_alone_p50_us"))];
    let mut targets = Vec::new();
    for (situation, bound_us) in
        [(names::PAGE_IN_MEMORY, 60.0), (names::PAGE_ON_DISK, 120.0), (names::PAGE_BEHIND, 150.0)]
    {
        let place = ("pages", situation);
        let what = format!("page read at an LSN over loopback, {situation}");
        let own = summary(results, place, System::Borealis, &median);
        let mut measured = shown(own, "µs");
        for (part, figure) in &alone {
            if let Some(alone) = summary(results, place, System::Borealis, figure) {
                measured += &format!("; {part} alone: {} µs", alone.text());
            }
        }
        let bound = Bound::AtMost(bound_us);
        let wanted = format!("p50 {} µs", bound.text());
        targets.push(
            Row { id: "S7", what: what.clone(), wanted, place, bound, ratio: own, measured }.judge(results),
        );
        let bound = Bound::AtMost(10.0);
        let measured = shown(summary(results, place, System::Borealis, &high), "µs");
        let wanted = format!("p99 {} × p50", bound.text());
        let ratio = summary(results, place, System::Borealis, &times_median);
        targets.push(Row { id: "S7", what, wanted, place, bound, ratio, measured }.judge(results));
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cost, DurabilityCheck};

    fn with_tps(results: &mut Results, system: System, round: u32, tps: f64) {
        results.measurements.push(Measurement::new("tpcb", "8 clients", system, round).with("tps", tps));
    }

    fn find<'a>(targets: &'a [Target], id: &str, what: &str, wanted: &str) -> &'a Target {
        let found = targets.iter().find(|t| t.id == id && t.what.contains(what) && t.wanted.contains(wanted));
        found.unwrap_or_else(|| panic!("no row {id} {what} {wanted}: {targets:#?}"))
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut results = Results::default();
        // The machine is half as fast in the second round; Borealis is not half as good.
        for (round, stock, own) in [(1, 1000.0, 1100.0), (2, 500.0, 550.0)] {
            with_tps(&mut results, System::Stock, round, stock);
            with_tps(&mut results, System::Borealis, round, own);
        }
        let targets = evaluate(&results);
        let row = find(&targets, "S1", "8 clients", "× A");
        let ratio = row.ratio.unwrap();
        assert!((ratio.min - 1.1).abs() < 1e-9 && (ratio.max - 1.1).abs() < 1e-9);
        assert_eq!(row.met, Met::Yes);
        assert_eq!(find(&targets, "S1", "8 clients", "× B").met, Met::Unknown);
        assert_eq!(find(&targets, "S1", "32 clients", "× A").met, Met::Unknown);
    }

    #[test]
    fn a_slow_system_does_not_meet_the_target_and_a_lossy_one_is_invalid() {
        let mut results = Results::default();
        with_tps(&mut results, System::Stock, 1, 1000.0);
        with_tps(&mut results, System::Borealis, 1, 999.0);
        assert_eq!(find(&evaluate(&results), "S1", "8 clients", "× A").met, Met::No);
        results.measurements[1].values.insert("tps".into(), 5000.0);
        results.record_check(DurabilityCheck {
            workload: "tpcb".into(),
            round: 1,
            killed_nodes: vec![1, 3],
            acknowledged: 5,
            workload_transactions: None,
            lost: Some("all of it".into()),
        });
        assert_eq!(find(&evaluate(&results), "S1", "8 clients", "× A").met, Met::Invalid);
    }

    #[test]
    fn bytes_and_requests_are_per_transaction() {
        let mut results = Results::default();
        for (system, counters) in [
            (System::Ceiling, vec![("wal_bytes", 50_000.0)]),
            (System::Borealis, vec![("driver_bytes_sent", 330_000.0), ("driver_batches_sent", 90.0)]),
        ] {
            let mut measurement = Measurement::new("tpcb", "32 clients", system, 1);
            let counters = counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            measurement.cost = Some(Cost { transactions: 100, counters, ..Cost::default() });
            results.measurements.push(measurement);
        }
        let targets = evaluate(&results);
        let bytes = find(&targets, "S2", "", "");
        assert!((bytes.ratio.unwrap().median - 1.1).abs() < 1e-9);
        assert_eq!(bytes.met, Met::Yes);
        assert_eq!(find(&targets, "S3", "", "").met, Met::Yes);
    }

    #[test]
    fn a_recovery_that_grows_with_the_data_does_not_meet_its_target() {
        let mut results = Results::default();
        for (situation, ms) in [("base", 200.0), ("10 times the data", 600.0)] {
            let measurement = Measurement::new("recovery", situation, System::Borealis, 1);
            results.measurements.push(measurement.with("first_answer_ms", ms));
        }
        let targets = evaluate(&results);
        assert_eq!(find(&targets, "S5", "10 times the data", "1000").met, Met::Yes);
        assert_eq!(find(&targets, "S5", "10 times the data, against base", "").met, Met::No);
    }

    #[test]
    fn page_reads_are_judged_by_their_median_and_by_how_far_the_slowest_are_from_it() {
        let mut results = Results::default();
        for (situation, p50, p99) in
            [("in the node's memory", 61.0, 100.0), ("on the node's disk", 100.0, 1001.0)]
        {
            let measurement = Measurement::new("pages", situation, System::Borealis, 1)
                .with("latency_p50_us", p50)
                .with("latency_p99_us", p99);
            results.measurements.push(measurement);
        }
        let targets = evaluate(&results);
        assert_eq!(find(&targets, "S7", "memory", "p50").met, Met::No);
        assert_eq!(find(&targets, "S7", "memory", "p99").met, Met::Yes);
        assert_eq!(find(&targets, "S7", "disk", "p50").met, Met::Yes);
        assert_eq!(find(&targets, "S7", "disk", "p99").met, Met::No);
        assert_eq!(find(&targets, "S7", "10 records", "p50").met, Met::Unknown);
    }

    #[test]
    fn a_backup_is_compared_with_none_in_the_same_round() {
        let mut results = Results::default();
        for (round, off, on) in [(1, 1000.0, 980.0), (2, 500.0, 480.0), (3, 900.0, 873.1)] {
            for (situation, tps) in [("8 clients, backup off", off), ("8 clients, backup on", on)] {
                let measurement = Measurement::new("backup", situation, System::Borealis, round);
                results.measurements.push(measurement.with("tps", tps).with("backup_complete_ms", 400.0));
            }
        }
        let targets = evaluate(&results);
        let row = find(&targets, "S10", "off, 8 clients", "0.97");
        let ratio = row.ratio.unwrap();
        assert!((ratio.min - 0.96).abs() < 1e-9 && (ratio.max - 0.98).abs() < 1e-9, "{ratio:?}");
        assert!((ratio.median - 0.9701).abs() < 1e-4 && row.met == Met::Yes, "{row:?}");
        assert_eq!(find(&targets, "S10", "restored as the load ends, 8", "1000").met, Met::Yes);
        assert_eq!(find(&targets, "S10", "off, 32 clients", "").met, Met::Unknown);
        // One round is enough to spoil the median.
        results.measurements[5].values.insert("tps".into(), 800.0);
        assert_eq!(find(&evaluate(&results), "S10", "off, 8 clients", "").met, Met::No);
    }

    #[test]
    fn a_repair_is_compared_with_the_copy_of_its_own_round() {
        let mut results = Results::default();
        let [full, usual] = names::REPAIRS.map(names::Repair::text);
        for (round, copy) in [(1, 100.0), (2, 200.0)] {
            for (situation, speed, p99) in [
                (names::COPY, copy, 9.0),
                (full, copy * 0.9, 20.0),
                (usual, 60.0, 10.5),
                (names::HEALTHY, 0.0, 10.0),
            ] {
                let measurement = Measurement::new("repair", situation, System::Borealis, round);
                let measurement = measurement.with("moved_mib_per_s", speed).with("latency_p99_ms", p99);
                results.measurements.push(measurement);
            }
        }
        let targets = evaluate(&results);
        let row = find(&targets, "S11", "another under TPC-B", "plain copy");
        assert!((row.ratio.unwrap().median - 0.9).abs() < 1e-9 && row.met == Met::Yes, "{row:?}");
        let row = find(&targets, "S11", "usual rate", "1.1");
        assert!((row.ratio.unwrap().max - 1.05).abs() < 1e-9 && row.met == Met::Yes, "{row:?}");
    }

    #[test]
    fn every_target_has_a_row_even_when_nothing_was_measured() {
        let targets = evaluate(&Results::default());
        for id in ["S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11"] {
            assert!(targets.iter().any(|target| target.id == id), "{id}");
        }
        assert!(targets.iter().all(|target| target.met == Met::Unknown));
    }
}
