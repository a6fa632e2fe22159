//! What is done to a cluster next: a function of random numbers and of what state it is in.
//!
//! What a killed process had acknowledged is on its disk, so any number may be killed; commits wait while too few are left.
//! What is lost for good is another matter: of the six copies of a group a write quorum must keep theirs until the lost ones are
//! made anew, so nothing is destroyed unless everything is whole.

use std::time::Duration;

use fastrand::Rng;

/// A storage node, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its number.
    pub number: u16,
    /// Its zone.
    pub zone: String,
    /// It runs and answers.
    pub is_up: bool,
}

/// What a cluster is like.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Situation {
    /// Its nodes, in number order.
    pub nodes: Vec<Node>,
    /// Every group has six members that have everything.
    pub is_whole: bool,
    /// SQL is answered.
    pub instance_is_up: bool,
    /// A controller replaces what is lost, and lost directories were asked for.
    pub replaces_nodes: bool,
}

/// Something that is done to a cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// SIGKILL to nodes, all at the same moment. Whoever watches the cluster starts them again.
    KillNodes(Vec<u16>),
    /// SIGSTOP to a node, and SIGCONT after so long.
    StopNode(u16, Duration),
    /// SIGKILL to every node of a zone; started again by command after so long.
    KillZone(String, Duration),
    /// SIGKILL to nodes whose directories are then deleted.
    LoseNodes(Vec<u16>),
    /// SIGKILL to PostgreSQL's first process, or to the driver beside it.
    KillServer,
    /// SIGKILL to the driver.
    KillDriver,
    /// SIGKILL to both at the same moment, and the instance's folders are deleted.
    LoseInstance,
    /// SIGSTOP to the driver, and SIGCONT after so long: longer than the writer's lease at times.
    StopDriver(Duration),
    /// SIGKILL to the controller.
    KillController,
    /// Bytes of so many pages on a node's disk change. Always of the same node, so that each page has five sound copies: what nobody reads stays
    /// damaged for long.
    DamagePages(u64),
    /// A node has too little disk left, and enough again after so long: SIGKILL, and it is started again with another watermark.
    FillDisk(u16, Duration),
}

impl Fault {
    /// The kind, for counts.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::KillNodes(nodes) if nodes.len() == 1 => "node killed",
            Fault::KillNodes(_) => "several nodes killed at once",
            Fault::StopNode(..) => "node stopped for a while",
            Fault::KillZone(..) => "zone killed",
            Fault::LoseNodes(nodes) if nodes.len() == 1 => "node and its directory lost",
            Fault::LoseNodes(_) => "two nodes and their directories lost at once",
            Fault::KillServer => "PostgreSQL killed",
            Fault::KillDriver => "driver killed",
            Fault::LoseInstance => "instance killed and its folders deleted",
            Fault::StopDriver(_) => "driver stopped for a while",
            Fault::KillController => "controller killed",
            Fault::DamagePages(_) => "pages on a disk damaged",
            Fault::FillDisk(..) => "disk of a node full for a while",
        }
    }
}

/// Of a hundred faults, how many are of which kind.
const WEIGHTS: [(u32, Kind); 12] = [
    (32, Kind::KillOne),
    (10, Kind::KillSeveral),
    (12, Kind::Stop),
    (5, Kind::Zone),
    (7, Kind::Lose),
    (7, Kind::Server),
    (7, Kind::Driver),
    (3, Kind::Instance),
    (3, Kind::StopDriver),
    (6, Kind::Controller),
    (4, Kind::Damage),
    (4, Kind::FullDisk),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    KillOne,
    KillSeveral,
    Stop,
    Zone,
    Lose,
    Server,
    Driver,
    Instance,
    StopDriver,
    Controller,
    Damage,
    FullDisk,
}

/// What is to be done, and whether at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// This, now.
    Now(Fault),
    /// This, as soon as everything is whole; nothing else meanwhile.
    OnceWhole(Fault),
}

/// What is done next; `None` if what was drawn cannot be done to the cluster as it is.
#[must_use]
pub fn next_fault(random: &mut Rng, situation: &Situation) -> Option<Choice> {
    let up: Vec<u16> = situation.nodes.iter().filter(|node| node.is_up).map(|node| node.number).collect();
    let kind = draw(random);
    let millis = |random: &mut Rng, range: std::ops::Range<u64>| Duration::from_millis(random.u64(range));
    let fault = match kind {
        Kind::KillOne => some_of(random, up, 1).map(Fault::KillNodes),
        Kind::KillSeveral => {
            let count = random.usize(2..=6);
            some_of(random, up, count).map(Fault::KillNodes)
        }
        Kind::Stop => {
            let node = some_of(random, up, 1)?[0];
            Some(Fault::StopNode(node, millis(random, 50..3000)))
        }
        Kind::Zone => {
            let node = some_of(random, up, 1)?[0];
            let zone = situation.nodes.iter().find(|other| other.number == node)?.zone.clone();
            Some(Fault::KillZone(zone, millis(random, 200..3000)))
        }
        Kind::Lose => {
            let count = 1 + usize::from(random.u8(0..4) == 0);
            let lost = some_of(random, up, count).filter(|_| situation.replaces_nodes)?;
            let fault = Fault::LoseNodes(lost);
            return Some(if situation.is_whole { Choice::Now(fault) } else { Choice::OnceWhole(fault) });
        }
        Kind::Server => situation.instance_is_up.then_some(Fault::KillServer),
        Kind::Driver => situation.instance_is_up.then_some(Fault::KillDriver),
        Kind::Instance => situation.instance_is_up.then_some(Fault::LoseInstance),
        Kind::StopDriver => {
            let pause = millis(random, 100..4000);
            situation.instance_is_up.then_some(Fault::StopDriver(pause))
        }
        Kind::Controller => Some(Fault::KillController),
        Kind::Damage => Some(Fault::DamagePages(random.u64(1..200))),
        Kind::FullDisk => {
            let node = some_of(random, up, 1)?[0];
            Some(Fault::FillDisk(node, millis(random, 1000..8000)))
        }
    };
    fault.map(Choice::Now)
}

/// How long nothing more is done after a fault: often too short to recover from it.
#[must_use]
pub fn pause(random: &mut Rng) -> Duration {
    let long = random.u8(0..10) == 0;
    Duration::from_millis(if long { random.u64(2000..6000) } else { random.u64(20..900) })
}

fn draw(random: &mut Rng) -> Kind {
    let mut left = random.u32(0..WEIGHTS.iter().map(|(weight, _)| weight).sum());
    for (weight, kind) in WEIGHTS {
        if left < weight {
            return kind;
        }
        left -= weight;
    }
    Kind::KillOne
}

/// So many of them, in number order; `None` if there are not so many.
fn some_of(random: &mut Rng, mut numbers: Vec<u16>, count: usize) -> Option<Vec<u16>> {
    if count == 0 || numbers.len() < count {
        return None;
    }
    random.shuffle(&mut numbers);
    numbers.truncate(count);
    numbers.sort_unstable();
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn situation() -> Situation {
        let node = |number: u16| Node { number, zone: format!("az{}", number % 3 + 1), is_up: true };
        Situation {
            nodes: (1..=6).map(node).collect(),
            is_whole: true,
            instance_is_up: true,
            replaces_nodes: true,
        }
    }

    fn drawn(situation: &Situation, seed: u64) -> Vec<Choice> {
        let mut random = Rng::with_seed(seed);
        (0..2000).filter_map(|_| next_fault(&mut random, situation)).collect()
    }

    fn faults(situation: &Situation, seed: u64) -> Vec<Fault> {
        let fault = |choice| match choice {
            Choice::Now(fault) | Choice::OnceWhole(fault) => fault,
        };
        drawn(situation, seed).into_iter().map(fault).collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_every_kind_occurs() {
        assert_eq!(drawn(&situation(), 7), drawn(&situation(), 7));
        assert_ne!(drawn(&situation(), 7), drawn(&situation(), 8));
        let kinds: BTreeSet<&str> = faults(&situation(), 7).iter().map(Fault::kind).collect();
        assert_eq!(kinds.len(), 13, "{kinds:?}");
    }

    #[test]
    fn nothing_is_destroyed_unless_everything_is_whole_and_somebody_replaces_it() {
        let loses = |choice: &Choice| matches!(choice, Choice::Now(Fault::LoseNodes(_)));
        for (is_whole, replaces_nodes) in [(false, true), (true, false), (false, false)] {
            let situation = Situation { is_whole, replaces_nodes, ..situation() };
            assert!(!drawn(&situation, 3).iter().any(loses));
            let waits = drawn(&situation, 3).iter().any(|choice| matches!(choice, Choice::OnceWhole(_)));
            assert_eq!(waits, replaces_nodes && !is_whole);
        }
        let most = faults(&situation(), 3).into_iter().filter_map(|fault| match fault {
            Fault::LoseNodes(nodes) => Some(nodes.len()),
            _ => None,
        });
        assert_eq!(most.max(), Some(2), "a write quorum is always left");
    }

    #[test]
    fn what_is_down_is_not_killed_again() {
        let mut situation = situation();
        situation.instance_is_up = false;
        situation.nodes.iter_mut().filter(|node| node.number > 1).for_each(|node| node.is_up = false);
        for fault in faults(&situation, 5) {
            match fault {
                Fault::KillServer | Fault::KillDriver | Fault::LoseInstance | Fault::StopDriver(_) => {
                    panic!("there is no instance: {fault:?}")
                }
                Fault::KillNodes(nodes) | Fault::LoseNodes(nodes) => assert_eq!(nodes, [1]),
                Fault::StopNode(node, _) | Fault::FillDisk(node, _) => assert_eq!(node, 1),
                Fault::KillZone(zone, _) => assert_eq!(zone, "az2"),
                _ => {}
            }
        }
    }
}
