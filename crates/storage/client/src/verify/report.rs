//! What a verification found.

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
    /// The peer refuses to answer.
    Refused {
        /// What it said, for a person to read.
        why: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Unreadable => f.write_str("damaged: the node cannot produce it"),
            Difference::Missing => f.write_str("missing here, present on most peers"),
            Difference::Extra => f.write_str("present here, absent on most peers"),
            Difference::Differs => f.write_str("its content differs from that of most peers"),
            Difference::NoMajority => f.write_str("the peers differ and no version has a majority"),
            Difference::Refused { why } => write!(f, "the node refuses to answer: {why}"),
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
    /// Segments that could not be compared to the end.
    pub not_compared: Vec<NotCompared>,
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

    pub(super) fn add(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.findings_not_listed += 1;
        }
    }

    /// Adds a finding that several questions can come upon.
    pub(super) fn add_once(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.add(finding);
        }
    }

    pub(super) fn note_lsn(&mut self, lsn: Lsn) {
        let (low, high) = self.lsn_range.unwrap_or((lsn, lsn));
        self.lsn_range = Some((low.min(lsn), high.max(lsn)));
    }
}
