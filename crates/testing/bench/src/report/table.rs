//! A table, and what its cells are made of.

use crate::model::{Results, System};
use crate::statistics::Summary;

/// A table of texts, for Markdown and HTML.
#[derive(Clone, PartialEq, Debug)]
pub struct Table {
    /// The heading above it.
    pub title: String,
    /// What a reader must know; may be empty.
    pub note: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The cells, row by row; as many in each as there are columns.
    pub rows: Vec<Vec<String>>,
}

pub(super) fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) fn summarize(
    results: &Results,
    workload: &str,
    situation: &str,
    system: System,
    figure: &str,
) -> Option<Summary> {
    let rounds = results.rounds(workload, situation, system);
    Summary::of(rounds.filter_map(|measurement| measurement.values.get(figure).copied()))
}
