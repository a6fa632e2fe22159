//! Names that the workloads and the reports share.

/// Workloads in the order they run, as `--only` takes them, and how reports call them.
const TITLES: [(&str, &str); 8] = [
    ("bulk", "bulk load"),
    ("tpcb", "TPC-B"),
    ("sustained", "sustained TPC-B"),
    ("readonly", "read-only"),
    ("mixed", "mixed OLTP"),
    ("pages", "page reads"),
    ("faults", "faults"),
    ("recovery", "recovery"),
];

/// Workloads whose transactions per second and latencies are compared between systems.
pub const COMPARED: [&str; 4] = ["tpcb", "sustained", "readonly", "mixed"];

/// Faults, as the targets name them.
pub const FAULTS: [&str; 3] = ["one node 100 ms slow", "two nodes dead", "a zone dead"];

/// TPC-B with commits of Borealis that wait for company.
pub const COMMIT_DELAY: &str = "32 clients, commit_delay=800";

/// Sizes at which a recovery is measured; the first is what the others are compared with.
pub const SIZES: [&str; 3] = ["base", "10 times the data", "10 times the log"];

/// Where a page is when a node is asked for it, as the targets name it.
pub const PAGE_IN_MEMORY: &str = "in the node's memory";
/// As [`PAGE_IN_MEMORY`].
pub const PAGE_ON_DISK: &str = "on the node's disk";
/// As [`PAGE_IN_MEMORY`].
pub const PAGE_BEHIND: &str = "needing 10 records";

/// How reports call a workload.
#[must_use]
pub fn title(workload: &str) -> &str {
    TITLES.iter().find(|(name, _)| *name == workload).map_or(workload, |(_, title)| title)
}
