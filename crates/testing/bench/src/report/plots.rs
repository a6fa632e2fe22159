//! The plots of the report.

use crate::model::{Measurement, Results, System};
use crate::report::svg::{Bar, Line, Plot, Span};
use crate::report::table::summarize;
use crate::report::tables::systems;
use crate::workload_names::{COMPARED, title};

fn colour(system: System) -> usize {
    match system {
        System::Stock => 0,
        System::Replicated => 1,
        System::Ceiling => 2,
        System::Borealis => 3,
    }
}

/// All plots for which there are figures: (heading, drawings).
#[must_use]
pub fn all(results: &Results) -> Vec<(String, Vec<String>)> {
    let mut sections = Vec::new();
    for workload in COMPARED {
        let mut drawings = vec![bars(results, workload, "tps", "transactions per second")];
        for situation in results.situations(workload) {
            drawings.push(latencies(results, workload, &situation, "transactions"));
            drawings.push(throughput(results, workload, &situation));
        }
        sections.push((title(workload).to_owned(), drawings));
    }
    sections.push((title("bulk").to_owned(), vec![bars(results, "bulk", "seconds", "seconds")]));
    let mut drawings = vec![bars(results, "recovery", "first_answer_ms", "ms to the first answer")];
    for situation in results.situations("recovery") {
        drawings.push(recovery_phases(results, &situation));
        drawings.push(recovery_throughput(results, &situation));
    }
    sections.push((title("recovery").to_owned(), drawings));
    let mut drawings = vec![bars(results, "backup", "tps", "transactions per second")];
    let situations = results.situations("backup");
    drawings
        .extend(situations.iter().map(|situation| latencies(results, "backup", situation, "transactions")));
    sections.push((title("backup").to_owned(), drawings));
    let situations = results.situations("pages");
    let drawings = situations.iter().map(|situation| latencies(results, "pages", situation, "page reads"));
    sections.push((title("pages").to_owned(), drawings.collect()));
    for workload in ["faults", "repair"] {
        let timelines = results.rounds(workload, "timeline", System::Borealis).flat_map(fault_timelines);
        sections.push((title(workload).to_owned(), timelines.collect()));
    }
    for (_, drawings) in &mut sections {
        drawings.retain(|drawing| !drawing.is_empty());
    }
    sections.retain(|(_, drawings)| !drawings.is_empty());
    sections
}

fn bars(results: &Results, workload: &str, figure: &str, unit: &str) -> String {
    let systems = systems(results, workload);
    let mut groups = Vec::new();
    let mut highest: f64 = 0.0;
    for situation in results.situations(workload) {
        let bars: Vec<Option<Bar>> = systems
            .iter()
            .map(|&system| {
                let value = summarize(results, workload, &situation, system, figure)?;
                let invalid = results.rounds(workload, &situation, system).any(|m| m.invalid.is_some());
                Some(Bar { colour: colour(system), value, invalid })
            })
            .collect();
        highest = bars.iter().flatten().map(|bar| bar.value.max).fold(highest, f64::max);
        groups.push((situation, bars));
    }
    if highest == 0.0 {
        return String::new();
    }
    let mut plot = Plot::new(
        &format!("{}: {unit}, median and spread", title(workload)),
        (0.0, 1.0),
        highest * 1.1,
        false,
    );
    plot.y_axis("");
    plot.bars(&groups);
    for system in systems {
        plot.name(system.name(), colour(system));
    }
    plot.finish()
}

/// A line for each round of each system.
fn lines(
    results: &Results,
    workload: &str,
    situation: &str,
    points: impl Fn(&Measurement) -> Vec<(f64, f64)>,
) -> Vec<Line> {
    systems(results, workload)
        .into_iter()
        .flat_map(|system| results.rounds(workload, situation, system))
        .map(|measurement| Line {
            name: measurement.system.name().to_owned(),
            colour: colour(measurement.system),
            points: points(measurement),
        })
        .filter(|line| line.points.len() > 1)
        .collect()
}

fn draw(title: &str, lines: &[Line], units: (&str, &str), logarithmic: bool, shades: &[Span]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    if lines.is_empty() {
        return String::new();
    }
    let fold = |start: f64, pick: fn(f64, f64) -> f64| all().map(|(x, _)| *x).fold(start, pick);
    let x = (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max));
    let y_max = all().map(|(_, y)| *y).fold(0.0, f64::max);
    let mut plot = Plot::new(title, x, y_max, logarithmic);
    for shade in shades {
        plot.shade(shade);
    }
    plot.x_axis(units.0);
    plot.y_axis(units.1);
    for line in lines {
        plot.line(line);
    }
    plot.finish()
}

fn latencies(results: &Results, workload: &str, situation: &str, what: &str) -> String {
    let points = |measurement: &Measurement| {
        let curve = measurement.latencies_us.iter();
        // Below 10 µs nothing is resolved, and a logarithmic axis must begin somewhere.
        curve.map(|(fraction, us)| ((*us).max(10) as f64 / 1000.0, *fraction)).collect()
    };
    let lines = lines(results, workload, situation, points);
    draw(&format!("{situation}: share of {what} that took at most …"), &lines, ("ms", ""), true, &[])
}

fn throughput(results: &Results, workload: &str, situation: &str) -> String {
    let lines = lines(results, workload, situation, |measurement| measurement.throughput.clone());
    draw(&format!("{situation}: throughput over time"), &lines, ("s", "tps"), false, &[])
}

fn recovery_throughput(results: &Results, situation: &str) -> String {
    let lines = lines(results, "recovery", situation, |measurement| measurement.throughput.clone());
    draw(&format!("{situation}: throughput around kill -9, which is at 0"), &lines, ("s", "tps"), false, &[])
}

/// What the first round's recovery of each system consisted of.
fn recovery_phases(results: &Results, situation: &str) -> String {
    let mut rows = Vec::new();
    let mut longest: f64 = 0.0;
    for system in systems(results, "recovery") {
        let Some(first) = results.rounds("recovery", situation, system).next() else { continue };
        let answered_s = first.values.get("first_answer_ms").copied().unwrap_or(0.0) / 1000.0;
        longest = longest.max(answered_s);
        let base = if system == System::Borealis { 3 } else { 0 };
        let spans = first.events.iter().enumerate().map(|(number, event)| Span {
            label: event.label.clone(),
            colour: base + number,
            begin: event.begin_s,
            end: event.end_s,
        });
        rows.push((format!("{}: {:.0} ms", system.name(), answered_s * 1000.0), spans.collect()));
    }
    if longest == 0.0 {
        return String::new();
    }
    let mut plot = Plot::new(
        &format!("{situation}: from kill -9 to the first answered query"),
        (0.0, longest),
        1.0,
        false,
    );
    plot.x_axis("s");
    plot.rows(&rows);
    plot.finish()
}

fn fault_timelines(measurement: &Measurement) -> [String; 2] {
    let shades: Vec<Span> = measurement
        .events
        .iter()
        .map(|event| Span { label: event.label.clone(), colour: 0, begin: event.begin_s, end: event.end_s })
        .collect();
    let line = |points: &[(f64, f64)]| {
        let line = Line {
            name: System::Borealis.name().to_owned(),
            colour: colour(System::Borealis),
            points: points.to_vec(),
        };
        if points.len() > 1 { vec![line] } else { Vec::new() }
    };
    let round = measurement.round;
    [
        draw(
            &format!("round {round}: throughput"),
            &line(&measurement.throughput),
            ("s", "tps"),
            false,
            &shades,
        ),
        draw(
            &format!("round {round}: 99th percentile of latency, by quarters of a second"),
            &line(&measurement.latency_over_time),
            ("s", "ms"),
            false,
            &shades,
        ),
    ]
}
