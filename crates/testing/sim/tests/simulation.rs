//! The protocol holds in many random histories, and the checkers notice when it is broken.

use std::panic::{AssertUnwindSafe, catch_unwind};

use borealis_sim::{Coverage, Defect, Options, run};

/// What two hundred histories must bring about, each at least ten times.
const SCENARIOS: &[&str] = &[
    "appends of fenced writers",
    "changes done",
    "changes given up",
    "checkpoints",
    "collections held back by a pin",
    "controllers at work on one group",
    "controllers crashed",
    "connections broken",
    "durable points learned from peers",
    "durable points of peers without proof",
    "duplicate records",
    "epochs confirmed",
    "fences refused",
    "histories adopted for a repair",
    "histories learned from peers",
    "histories of peers without proof",
    "log entries lost in a crash",
    "members left out by a recovery",
    "memberships learned by recoveries",
    "memberships learned by writers",
    "memberships learned from peers",
    "memberships of peers without proof",
    "messages lost",
    "messages repeated",
    "node crashes",
    "node restarts",
    "nodes lost for ever",
    "nodes that lie",
    "old lists of members given out",
    "pages read by instances",
    "partitions",
    "progress pushed to a writer",
    "reads checked",
    "reads of fenced instances refused",
    "reads of instances answered",
    "reads out of range refused",
    "reads refused",
    "records acknowledged",
    "records confirmed by a second peer",
    "records cut",
    "records held for a predecessor",
    "records in pieces read",
    "records of one peer left",
    "records repaired",
    "records taken from peers",
    "records whose end was cut, read past",
    "records of another release than the newest",
    "records written by replaced writers",
    "recoveries competing for one epoch",
    "recoveries completed",
    "recoveries crashed",
    "recoveries superseded",
    "recoveries begun again with other members",
    "refills begun",
    "refills begun again",
    "releases of records checked",
    "replacements begun",
    "replacements finished",
    "replacements taken back",
    "requests for memberships not learned yet",
    "requests for older memberships refused",
    "requests without a membership refused",
    "rescues while a write quorum is left",
    "second replacements begun",
    "segments refilled",
    "segments that joined",
    "stale records refused",
    "unacknowledged records kept by a recovery",
    "refusals that a writer heard",
    "volumes rescued",
    "writers that ended as outvoted",
    "writers that ended as replaced",
    "writers told of a fence",
    "writers whose lease was over",
    "written records cut by a recovery",
    "writers crashed",
    "writers cut off when they are replaced",
    "writers replaced while alive",
];

#[test]
fn two_hundred_histories_keep_every_promise_and_cover_every_scenario() {
    let mut coverage = Coverage::default();
    for seed in 0..200 {
        match run(Options { seed, defect: Defect::None }) {
            Ok(report) => coverage.merge(&report.coverage),
            Err(violation) => panic!("seed {seed}, {} ms: {}", violation.at_ms, violation.what),
        }
    }
    for what in SCENARIOS {
        assert!(coverage.get(what) >= 10, "{what}: only {} times", coverage.get(what));
    }
}

/// Here a recovery left its outcome at one member and died, the next one put that member's history back, and a newcomer took the
/// dead one's durable point from it as one of the epoch before.
#[test]
fn a_member_with_a_newer_promise_gives_no_base() {
    let run = run(Options { seed: 82_503, defect: Defect::None });
    assert!(run.is_ok(), "{run:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 77, 4711] {
        let once = run(Options { seed, defect: Defect::None });
        let again = run(Options { seed, defect: Defect::None });
        assert_eq!(once, again);
    }
    let hash = |seed| run(Options { seed, defect: Defect::None }).map(|report| report.trace_hash);
    assert_ne!(hash(3), hash(4));
}

/// How many seeds it takes until the checkers notice a defect (by an assertion or a violation).
fn seeds_until_caught(defect: Defect, at_most: u64) -> Option<(u64, String)> {
    (0..at_most).find_map(|seed| match catch_unwind(AssertUnwindSafe(|| run(Options { seed, defect }))) {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some((seed + 1, violation.what)),
        Err(_) => Some((seed + 1, "an assertion in the protocol itself".to_owned())),
    })
}

#[test]
fn every_deliberate_defect_is_caught() {
    for (defect, at_most, expected) in [
        (Defect::AcknowledgeAtThree, 20, "counts as durable with 3 copies"),
        (Defect::AcknowledgeBeforeSync, 20, "lacks"),
        (Defect::NoRepair, 50, "counts as durable with"),
        (Defect::TailsIgnored, 50, ""),
        (Defect::NoFence, 100, ""),
        (Defect::GossipIgnoresHistory, 100, ""),
        (Defect::AcknowledgeWhileFenced, 100, ""),
        (Defect::ProgressToFencedWriter, 400, ""),
        (Defect::ReadIgnoresHistory, 1000, "read at"),
        (Defect::ReadIgnoresPromise, 20, "after its promise to"),
        (Defect::PrefetchIgnoresChanges, 400, "does not show"),
        (Defect::RescueCopiesAnyone, 200, "counts as durable with"),
        (Defect::RescueWithoutAgreement, 100, ""),
        (Defect::RecoveryRecordsOldRelease, 20, "as release"),
        (Defect::ReleaseBoundaryOffByOne, 20, "as release"),
        (Defect::FirstOfEqualOpeningsCounts, 100, "as release"),
        (Defect::NewestReleaseForAll, 20, "as release"),
        (Defect::HistoryOnOneWord, 50, ""),
        (Defect::DurableOnOneWord, 50, ""),
        (Defect::RecordsOnOneWord, 200, ""),
        (Defect::EndsAtFirstRefusal, 50, "nodes left to it"),
        (Defect::ReplacedOnOneWord, 50, "ended as replaced"),
        (Defect::LeaseIgnored, 200, "goes on, though"),
        (Defect::CutRecordsApply, 200, "is not the volume's"),
        (Defect::JumpBeforeAllIsHere, 100, "lacks"),
        (Defect::PinIgnored, 1000, ""),
        (Defect::RefillMixesPoints, 2000, "lacks"),
        (Defect::FinishWithoutBar, 200, "the members"),
        (Defect::JoiningCounts, 1000, "counts as durable with"),
        (Defect::BallotIgnored, 200, "group"),
        (Defect::AcceptedForgotten, 1000, "group"),
        (Defect::OlderMembershipServed, 100, ""),
        (Defect::UnnamedMembershipServed, 1000, ""),
        (Defect::MembershipOnOneWord, 200, "was not chosen by"),
        (Defect::NewSetsNotWritten, 100, "counts as durable with"),
        (Defect::NewSetsNotRecovered, 1000, ""),
        (Defect::BaseIncomplete, 100, "lacks"),
    ] {
        let caught = seeds_until_caught(defect, at_most);
        println!("{defect:?}: {caught:?}");
        let (_, what) = caught.unwrap_or_else(|| panic!("{defect:?} went unnoticed in {at_most} runs"));
        assert!(what.contains(expected), "{defect:?} was caught for another reason: {what}");
    }
}
