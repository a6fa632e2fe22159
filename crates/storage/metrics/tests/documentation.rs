//! `docs/metrics.md` says what the code shows, and the alerts ask for nothing else.

use std::collections::BTreeSet;

use borealis_metrics::list::{
    CONTROLLER, CONTROLLER_PREFIX, INSTANCE, INSTANCE_PREFIX, Kind, Metric, NODE, NODE_PREFIX,
};

/// Every list, and what its names begin with.
const LISTS: [(&[Metric], &str); 3] =
    [(NODE, NODE_PREFIX), (INSTANCE, INSTANCE_PREFIX), (CONTROLLER, CONTROLLER_PREFIX)];

fn file(name: &str) -> String {
    let path = format!("{}/../../../{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn table(list: &[Metric]) -> String {
    let row = |metric: &Metric| {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {kind} | {} | {} |\n", metric.full_name(), labels.join(", "), metric.help)
    };
    "| Name | Kind | Labels | Meaning |\n|---|---|---|---|\n".to_owned()
        + &list.iter().map(row).collect::<String>()
}

#[test]
fn the_document_has_the_list() {
    let document = file("docs/metrics.md");
    for (list, _) in LISTS {
        let table = table(list);
        assert!(document.contains(&table), "docs/metrics.md should have this table:\n{table}");
    }
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    let mut names = BTreeSet::new();
    for (metric, prefix) in LISTS.iter().flat_map(|(list, prefix)| list.iter().map(move |m| (m, prefix))) {
        assert!(names.insert(metric.full_name()), "{} is listed twice", metric.name);
        assert!(metric.name.starts_with(*prefix), "{}", metric.name);
        assert!(metric.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", metric.name);
        assert!(!metric.name.ends_with("_total"), "the ending of a counter is added to {}", metric.name);
        assert_eq!(
            metric.kind == Kind::Histogram,
            metric.full_name().ends_with("_seconds") && metric.kind != Kind::Gauge
        );
        assert!(!metric.help.ends_with('.') && metric.help.len() > 10, "{}", metric.name);
    }
}

#[test]
fn alerts_ask_for_listed_metrics_only() {
    let alerts = file("deploy/alerts.yml");
    let known: BTreeSet<String> = LISTS.iter().flat_map(|(list, _)| *list).map(Metric::full_name).collect();
    let asked: BTreeSet<&str> = alerts
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| LISTS.iter().any(|(_, prefix)| word.starts_with(prefix)))
        .collect();
    assert!(asked.len() > 5, "{asked:?}");
    for name in asked {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
        assert!(
            known.contains(name) || of_histogram.is_some_and(|name| known.contains(name)),
            "{name} is not listed"
        );
    }
}
