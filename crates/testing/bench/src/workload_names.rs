//! Names that the workloads and the reports share.

/// Workloads in the order they run, as `--only` takes them, and how reports call them.
const TITLES: [(&str, &str); 10] = [
    ("bulk", "bulk load"),
    ("tpcb", "TPC-B"),
    ("sustained", "sustained TPC-B"),
    ("readonly", "read-only"),
    ("mixed", "mixed OLTP"),
    ("pages", "page reads"),
    ("faults", "faults"),
    ("recovery", "recovery"),
    ("backup", "TPC-B with a backup"),
    ("repair", "repair under TPC-B"),
];

/// Workloads whose transactions per second and latencies are compared between systems.
pub const COMPARED: [&str; 4] = ["tpcb", "sustained", "readonly", "mixed"];

/// Faults, as the targets name them.
pub const FAULTS: [&str; 3] = ["one node 100 ms slow", "two nodes dead", "a zone dead"];

/// A stretch in which nothing is done to the cluster.
pub const HEALTHY: &str = "healthy";

/// A stretch in which a node's pages are copied by `cp`.
pub const COPY: &str = "plain copy";

/// How fast a node takes what another one has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// As fast as it goes.
    FullSpeed,
    /// At the rate that nodes have unless told otherwise.
    Throttled,
}

/// Both.
pub const REPAIRS: [Repair; 2] = [Repair::FullSpeed, Repair::Throttled];

impl Repair {
    /// The words for it, which name the situation.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Repair::FullSpeed => "repair at full speed",
            Repair::Throttled => "repair at the usual rate",
        }
    }
}

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

/// Numbers of clients at which a cluster with a backup is compared with one without.
pub const BACKUP_CLIENTS: [u32; 2] = [8, 32];

/// Whether a cluster has a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backup {
    /// Its nodes upload nothing.
    Off,
    /// Its nodes upload what they get, to a folder on the same disk.
    On,
}

impl Backup {
    /// Without first: what the other is compared with.
    pub const BOTH: [Backup; 2] = [Backup::Off, Backup::On];

    /// The words for it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Backup::Off => "backup off",
            Backup::On => "backup on",
        }
    }
}

/// How a situation of the workload `backup` is called.
#[must_use]
pub fn with_backup(clients: u32, backup: Backup) -> String {
    format!("{clients} clients, {}", backup.text())
}

/// How reports call a workload.
#[must_use]
pub fn title(workload: &str) -> &str {
    TITLES.iter().find(|(name, _)| *name == workload).map_or(workload, |(_, title)| title)
}
