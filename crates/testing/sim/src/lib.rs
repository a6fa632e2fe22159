//! Deterministic simulation of the quorum protocol and of the compute side under faults.
//!
//! One [`run`] is one history of a small volume: six to ten storage nodes, one to four protection groups, writers
//! that come and go (some go on after they were replaced), recoveries (some die half way, some compete), in some runs a
//! node that says what is not true to its peers and to recoveries, and a network and machines that fail in every way they can. The machines under test are the product's: segments and
//! recovery of `borealis-quorum`, the shipper, the reads and the greeting of nodes of `borealis-compute`, batches and
//! frames of `borealis-wire`. Nodes let go of log, so that those which were away are refilled up to a durable point. Only what surrounds them is a model: a log that loses what was not synced; a network that
//! delays, loses, repeats and reorders single messages; connections that deliver in order until they break.
//!
//! An [`oracle`] sees everything and checks, at every acknowledgement, recovery and read, that
//! * an acknowledged record is durable on four of six segments of each of its groups,
//! * a recovery keeps every acknowledged record, and what it keeps is durable in the same way,
//! * nothing acknowledged by a fenced writer is outside what the recovery that fenced it kept,
//! * what a recovery cut never comes back,
//! * a segment that allows a read holds exactly the records of its group up to that position, and is not promised to
//!   a newer writer than the reader,
//! * an instance ends neither while it has a write quorum nor because one node says that it was replaced, and it does not
//!   go on beyond its lease once another has opened the volume,
//! * a page that an instance gets is that of the position it says, and shows all that was durable when it was asked for,
//! * a node would apply every record it holds as the release of PostgreSQL does that its writer ran: each writer runs a
//!   random one.
//!
//! After the faults stop, the volume must become writable again, and every segment complete.
//!
//! In most runs members are replaced as well, and in some of these each group has six of ten nodes of its own from the beginning: controllers begin, finish and take back replacements, one or two of a group at
//! once, die at any step, work against each other, and begin from old lists of members; newcomers join. Then the oracle
//! checks at every membership that a node acts on that it is the only one of its epoch, that a write quorum of the one before
//! chose it, and that four of its old members have everything acknowledged.
//!
//! Invariant: the same seed gives the same trace.

pub mod compute;
pub mod effects;
pub mod message;
pub mod node;
pub mod oracle;
pub mod random;
pub mod world;
pub mod writer;

/// A deliberate defect, to show that the checkers notice it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Defect {
    /// None: the protocol as it is.
    #[default]
    None,
    /// The writer counts one node's acknowledgement for another too, so three of six suffice.
    AcknowledgeAtThree,
    /// A node that gets records from a peer takes them for records of the newest epoch.
    GossipIgnoresHistory,
    /// A node answers a fence but goes on serving the old writer.
    NoFence,
    /// A node acknowledges before its log is synced.
    AcknowledgeBeforeSync,
    /// A fenced node introduces itself to its new writer as if it had the history: its SCL counts what may yet be cut.
    AcknowledgeWhileFenced,
    /// A node tells any connected writer of progress, also one it is fenced against.
    ProgressToFencedWriter,
    /// A node reports a repair as done without storing the records.
    NoRepair,
    /// A recovery does not see the tails of segments.
    TailsIgnored,
    /// A node answers reads up to its segment complete LSN whatever recovery the reader knows of.
    ReadIgnoresHistory,
    /// A node answers a reader of an older epoch than it is promised to.
    ReadIgnoresPromise,
    /// An instance gives out a page that was fetched ahead of a change, after the change.
    PrefetchIgnoresChanges,
    /// A rescue copies any of the nodes that are left, whether or not it has everything.
    RescueCopiesAnyone,
    /// A rescue copies a node before those that are left have agreed.
    RescueWithoutAgreement,
    /// A recovery records the release of the writer before its own.
    RecoveryRecordsOldRelease,
    /// A node takes the last record before a new epoch for one of that epoch's release.
    ReleaseBoundaryOffByOne,
    /// Of two epochs that open at one position, a node takes the first for the one that wrote there.
    FirstOfEqualOpeningsCounts,
    /// A node applies every record by the release of the newest epoch it knows.
    NewestReleaseForAll,
    /// A node takes over a history that a single peer says it has.
    HistoryOnOneWord,
    /// A node takes a durable point for true that a single peer claims.
    DurableOnOneWord,
    /// A node takes records beyond what it knows to be durable that a single peer sends.
    RecordsOnOneWord,
    /// A writer ends when the first node refuses it because of a newer promise.
    EndsAtFirstRefusal,
    /// A writer takes one node's word that another has replaced it.
    ReplacedOnOneWord,
    /// A writer goes on showing what it has whether or not anybody confirms that it has no successor.
    LeaseIgnored,
    /// A node applies a record although a recovery cut its last piece.
    CutRecordsApply,
    /// A segment goes on from a point of which only some pages are here.
    JumpBeforeAllIsHere,
    /// A node lets go of what it keeps for a peer, and gives what it has instead: pages of a later state.
    PinIgnored,
    /// A refill that begins again at another point keeps the pages that are as of the one before.
    RefillMixesPoints,
    /// A controller drops a member without looking what the sets that stay have.
    FinishWithoutBar,
    /// A segment that is joining is counted like any other.
    JoiningCounts,
    /// A member accepts a membership of an older attempt than it promised.
    BallotIgnored,
    /// A member does not tell a newer attempt what it accepted.
    AcceptedForgotten,
    /// A node carries out what was asked for an older membership.
    OlderMembershipServed,
    /// A node carries out what names no membership, whoever the members are by now.
    UnnamedMembershipServed,
    /// A node acts on a membership that a single peer says is installed.
    MembershipOnOneWord,
    /// A writer counts in the old members' set alone while members change.
    NewSetsNotWritten,
    /// A recovery goes through the old members' set alone while members change.
    NewSetsNotRecovered,
    /// A joining segment takes a base that lacks a record.
    BaseIncomplete,
}

/// How a run is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything else follows from it.
    pub seed: u64,
    /// What is broken on purpose.
    pub defect: Defect,
}

/// The oracle found a broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Virtual time, in milliseconds.
    pub at_ms: u64,
    /// What is wrong.
    pub what: String,
}

/// How often things happened, so that it is plain what a run covered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    counts: std::collections::BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Counts one occurrence.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts several occurrences.
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    /// How often something happened.
    #[must_use]
    pub fn get(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Coverage) {
        for (what, &times) in &other.counts {
            self.add(what, times);
        }
    }

    /// Everything counted, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(&what, &times)| (what, times))
    }
}

/// What a run without a violation reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// A digest of every event in order.
    pub trace_hash: u64,
    /// What happened how often.
    pub coverage: Coverage,
}

/// Runs one history.
///
/// # Errors
/// The first broken promise.
pub fn run(options: Options) -> Result<Report, Violation> {
    world::World::new(options).run()
}
