//! What a verification found.

use std::collections::BTreeSet;
use std::fmt;

use borealis_types::{DatabaseKey, GroupId, Lsn, MetaKey, NodeId, PageKey, RelationFork, SlruKind};
use serde::Serialize;

/// Findings kept in full; the rest is only counted, so that a lost disk does not fill the memory.
const FINDINGS_MAX: usize = 1000;

/// What a finding is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// One page, or its absence.
    Page {
        /// The page, in the group that the finding names.
        key: PageKey,
    },
    /// The group's part of the size of a relation fork.
    RelationSize {
        /// The fork; its size is the largest part over all groups.
        relation_fork: RelationFork,
    },
    /// A small value of the meta group, or its absence.
    Meta {
        /// What the value belongs to.
        key: MetaKey,
    },
    /// The pages a transaction-status store has.
    SlruPages {
        /// The store whose list of pages it is.
        kind: SlruKind,
    },
    /// The list of a database's relations.
    Relations {
        /// The database; number zero is that of shared relations.
        database: DatabaseKey,
    },
    /// The list of small values.
    SmallValues,
    /// The segment as a whole.
    Segment,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Page { key: key @ PageKey::Block(_) } => write!(f, "relation {key}"),
            Subject::Page { key } => key.fmt(f),
            Subject::RelationSize { relation_fork } => write!(f, "size of relation {relation_fork}"),
            Subject::Meta { key } => write!(f, "{key:?}"),
            Subject::SlruPages { kind } => write!(f, "pages of {}", kind.folder()),
            Subject::Relations { database } => {
                write!(f, "relations of database {}/{}", database.tablespace, database.database)
            }
            Subject::SmallValues => f.write_str("small values"),
            Subject::Segment => f.write_str("the segment"),
        }
    }
}

/// How a peer's copy is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The peer cannot produce it: damaged on its disk, or redo that cannot be applied.
    Unreadable,
    /// Most peers have it, this one does not.
    Missing,
    /// This peer has it, most do not.
    Extra,
    /// Its content is not that of most peers.
    Differs,
    /// The peers differ and none of the versions has a majority.
    NoMajority,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Unreadable => f.write_str("damaged: the node cannot produce it"),
            Difference::Missing => f.write_str("missing here, present on most peers"),
            Difference::Extra => f.write_str("present here, absent on most peers"),
            Difference::Differs => f.write_str("its content differs from that of most peers"),
            Difference::NoMajority => f.write_str("the peers differ and no version has a majority"),
        }
    }
}

/// One thing that is wrong on one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The node whose copy is wrong.
    pub node: NodeId,
    /// In which of its segments.
    pub group: GroupId,
    /// What the copy is of.
    pub subject: Subject,
    /// How it differs from what most peers have.
    pub difference: Difference,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}, group {}: {}: {}", self.node, self.group, self.subject, self.difference)
    }
}

/// A node that could not be asked, or stopped answering.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Unreachable {
    /// The node; nothing of it was compared from then on.
    pub node: NodeId,
    /// What happened, for a person to read.
    pub why: String,
}

/// A segment that answered but could not be compared to the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NotCompared {
    /// The node that has the segment.
    pub node: NodeId,
    /// The protection group that the segment is a copy of.
    pub group: GroupId,
    /// What of it was not compared.
    pub subject: Subject,
    /// What kept it from being compared, for a person to read.
    pub why: String,
}

/// The result of a verification.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// Pages that were compared (each counted once, however many peers have it).
    pub pages_compared: u64,
    /// Relation forks whose size was compared, counted once for each group.
    pub relation_parts_compared: u64,
    /// Small values that were compared.
    pub values_compared: u64,
    /// The lowest and the highest LSN at which something was compared.
    pub lsn_range: Option<(Lsn, Lsn)>,
    /// What is wrong, at most a thousand of it.
    pub findings: Vec<Finding>,
    /// How many more findings there were than are listed.
    pub findings_not_listed: u64,
    /// Nodes that could not be asked.
    pub unreachable: Vec<Unreachable>,
    /// What could not be compared on which node, at most a thousand of it.
    pub not_compared: Vec<NotCompared>,
    /// How many more there were than are listed.
    pub not_compared_not_listed: u64,
    /// How many nodes there are.
    pub nodes: usize,
}

/// What a verification comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every node was compared to the end, and all have the same.
    Equal,
    /// Something differs or is damaged.
    Different,
    /// Nothing that was compared differs, but not every node was compared to the end.
    Incomplete,
}

impl Report {
    /// Nothing wrong was found on the peers that were compared.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.findings_not_listed == 0
    }

    /// Every peer was compared to the end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unreachable.is_empty() && self.not_compared.is_empty()
    }

    /// What it comes to. A difference is one whatever else could not be compared.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (self.is_clean(), self.is_complete()) {
            (false, _) => Verdict::Different,
            (true, true) => Verdict::Equal,
            (true, false) => Verdict::Incomplete,
        }
    }

    /// One line: what was compared, where, and what came of it. It never claims anything of a node that was not asked or
    /// did not answer.
    #[must_use]
    pub fn summary(&self) -> String {
        let partly: BTreeSet<NodeId> = self.not_compared.iter().map(|left_out| left_out.node).collect();
        let not_at_all: BTreeSet<NodeId> = self.unreachable.iter().map(|left_out| left_out.node).collect();
        let whole = self.nodes.saturating_sub(partly.union(&not_at_all).count());
        let place = match self.is_complete() {
            true => "on every node".to_owned(),
            false => format!("on {whole} of {} nodes", self.nodes),
        };
        let position = match self.lsn_range {
            Some((first, last)) if first == last => format!(" as of {first}"),
            Some((first, last)) => format!(" as of {first} to {last}"),
            None => String::new(),
        };
        let outcome = match self.verdict() {
            Verdict::Equal => "no difference",
            Verdict::Different => "DIFFERENT",
            Verdict::Incomplete => "no difference there",
        };
        let mut line = format!(
            "{} pages, {} relation sizes and {} small values compared {place}{position}: {outcome}",
            self.pages_compared, self.relation_parts_compared, self.values_compared
        );
        let listed = |nodes: &mut dyn Iterator<Item = &NodeId>| {
            nodes.map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
        };
        if !not_at_all.is_empty() {
            line += &format!("; NOT COMPARED: {}", listed(&mut not_at_all.iter()));
        }
        if partly.difference(&not_at_all).next().is_some() {
            line += &format!("; NOT COMPARED in part: {}", listed(&mut partly.difference(&not_at_all)));
        }
        line
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.findings_not_listed += 1;
        }
    }

    /// Notes what several questions can come upon, once.
    pub(super) fn add_not_compared(&mut self, left_out: NotCompared) {
        if self.not_compared.contains(&left_out) {
            return;
        }
        if self.not_compared.len() < FINDINGS_MAX {
            self.not_compared.push(left_out);
        } else {
            self.not_compared_not_listed += 1;
        }
    }

    pub(super) fn note_lsn(&mut self, lsn: Lsn) {
        let (low, high) = self.lsn_range.unwrap_or((lsn, lsn));
        self.lsn_range = Some((low.min(lsn), high.max(lsn)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report { pages_compared: 7, nodes: 6, ..Report::default() }
    }

    fn refusal(node: u16) -> NotCompared {
        let why = "the node refuses to answer: disk full".to_owned();
        NotCompared { node: NodeId(node), group: GroupId(0), subject: Subject::SmallValues, why }
    }

    #[test]
    fn only_what_was_compared_on_every_node_has_no_difference() {
        let mut report = report();
        assert_eq!(report.verdict(), Verdict::Equal);
        assert!(report.summary().ends_with("compared on every node: no difference"), "{}", report.summary());

        report.unreachable.push(Unreachable { node: NodeId(3), why: "no answer within 10 s".to_owned() });
        report.add_not_compared(refusal(5));
        report.add_not_compared(refusal(5));
        assert_eq!(report.verdict(), Verdict::Incomplete);
        let expected =
            "on 4 of 6 nodes: no difference there; NOT COMPARED: node 3; NOT COMPARED in part: node 5";
        assert!(report.summary().ends_with(expected), "{}", report.summary());
        assert_eq!(report.not_compared.len(), 1);

        let (node, group, difference) = (NodeId(1), GroupId(0), Difference::Differs);
        report.add(Finding { node, group, subject: Subject::Segment, difference });
        assert_eq!(report.verdict(), Verdict::Different);
        assert!(report.summary().contains(": DIFFERENT; NOT COMPARED: node 3"), "{}", report.summary());
    }
}
