//! Values of listed metrics, and their Prometheus text.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::list::{Kind, Metric};

pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// What a metric says at one moment.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// A number with a fraction, such as seconds.
    Fraction(f64),
    /// How often something took how long.
    Durations(Durations),
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Whole(number)
    }
}

impl From<bool> for Value {
    fn from(holds: bool) -> Value {
        Value::Whole(holds.into())
    }
}

/// How often something took how long.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Durations {
    /// Of all together, in seconds.
    pub sum_seconds: f64,
    /// Upper bounds in seconds, ascending, each with how often it took as long as that and longer than the one before.
    /// The last bound is `f64::INFINITY`, for all that took longer than the others.
    pub buckets: Vec<(f64, u64)>,
}

/// One value, and the labels that tell it from others of the same metric.
type Sample = (Vec<(&'static str, String)>, Value);

/// Values of listed metrics, to be made text.
#[derive(Debug)]
pub struct Exposition {
    list: &'static [Metric],
    samples: BTreeMap<&'static str, Vec<Sample>>,
    unlisted: Vec<String>,
}

impl Exposition {
    /// No values yet, of the metrics in `list`.
    #[must_use]
    pub fn new(list: &'static [Metric]) -> Exposition {
        Exposition { list, samples: BTreeMap::new(), unlisted: Vec::new() }
    }

    /// Adds a value of the metric `name`, with one value for each of its labels. What is not listed so is left out of the text.
    pub fn add(&mut self, name: &str, labels: &[&str], value: impl Into<Value>) {
        let value = value.into();
        let fits = |metric: &&Metric| {
            let is_histogram = matches!(value, Value::Durations(_));
            metric.name == name
                && metric.labels.len() == labels.len()
                && (metric.kind == Kind::Histogram) == is_histogram
        };
        match self.list.iter().find(fits) {
            Some(metric) => {
                let labels =
                    metric.labels.iter().copied().zip(labels.iter().map(|label| (*label).to_owned()));
                self.samples.entry(metric.name).or_default().push((labels.collect(), value));
            }
            None => self.unlisted.push(name.to_owned()),
        }
    }

    /// Names that were added and are not in the list: a mistake that a test looks for.
    #[must_use]
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// Names that are in the list and were not added.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.list.iter().map(|metric| metric.name).filter(|name| !self.samples.contains_key(name)).collect()
    }

    /// The text that Prometheus reads.
    ///
    /// # Panics
    /// Never: nothing that is encoded can fail, and text grows as needed.
    #[must_use]
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("numbers and labels can be written to memory");
        text
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for metric in self.list {
            let Some(samples) = self.samples.get(metric.name) else { continue };
            let metric_type = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut descriptor = encoder.encode_descriptor(metric.name, metric.help, None, metric_type)?;
            for (labels, value) in samples {
                if labels.is_empty() {
                    encode_value(&mut descriptor, metric.kind, value)?;
                } else {
                    encode_value(&mut descriptor.encode_family(labels)?, metric.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode_value(encoder: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(number)) => encoder.encode_counter::<NoLabelSet, _, f64>(number, None),
        (Kind::Counter, Value::Fraction(number)) => {
            encoder.encode_counter::<NoLabelSet, _, f64>(number, None)
        }
        (_, Value::Whole(number)) => encoder.encode_gauge(number),
        (_, Value::Fraction(number)) => encoder.encode_gauge(number),
        (_, Value::Durations(durations)) => {
            let count = durations.buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(durations.sum_seconds, count, &durations.buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[Metric] = &[
        Metric { name: "b_reads", kind: Kind::Counter, labels: &[], help: "Reads" },
        Metric { name: "b_lsn", kind: Kind::Gauge, labels: &["group", "node"], help: "A position" },
        Metric { name: "b_seconds", kind: Kind::Histogram, labels: &[], help: "Durations" },
        Metric { name: "b_never", kind: Kind::Gauge, labels: &[], help: "Nothing says it" },
    ];

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut exposition = Exposition::new(LIST);
        exposition.add("b_lsn", &["0", "4"], 1 << 60);
        exposition.add("b_lsn", &["1", "a \"b\"\n"], Value::Fraction(0.5));
        exposition.add("b_reads", &[], 7);
        let buckets = vec![(0.001, 3), (0.002, 1), (f64::INFINITY, 2)];
        exposition.add("b_seconds", &[], Value::Durations(Durations { sum_seconds: 9.5, buckets }));
        assert_eq!(exposition.missing(), ["b_never"]);
        assert_eq!(
            exposition.text(),
            "# HELP b_reads_total Reads\n# TYPE b_reads_total counter\nb_reads_total 7\n\
             # HELP b_lsn A position\n# TYPE b_lsn gauge\nb_lsn{group=\"0\",node=\"4\"} 1152921504606846976\n\
             b_lsn{group=\"1\",node=\"a \\\"b\\\"\\n\"} 0.5\n\
             # HELP b_seconds Durations\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{le=\"0.001\"} 3\nb_seconds_bucket{le=\"0.002\"} 4\nb_seconds_bucket{le=\"+Inf\"} 6\n\
             b_seconds_sum 9.5\nb_seconds_count 6\n"
        );
    }

    #[test]
    fn what_is_not_listed_is_left_out_and_noticed() {
        let mut exposition = Exposition::new(LIST);
        exposition.add("b_writes", &[], 1);
        exposition.add("b_lsn", &["0"], 1);
        exposition.add("b_seconds", &[], 1);
        exposition.add("b_reads", &[], Value::Durations(Durations::default()));
        assert_eq!(exposition.unlisted(), ["b_writes", "b_lsn", "b_seconds", "b_reads"]);
        assert_eq!(exposition.text(), "");
    }
}
