//! Everything that goes wrong: machines that die, writers that are replaced, networks that part.

use borealis_types::VolumeEpoch;

use super::rescue::Rescue;
use super::{EPOCH_STEP, Event, NODES, World};
use crate::node::lies::Lie;
use crate::random::Random;

/// So many of a thousand writers that are replaced are cut off then, and do not hear of it.
const CUT_OFF: u64 = 150;

/// How bad this run's world is, per thousand.
#[derive(Debug)]
pub(super) struct Faults {
    pub(super) lose: u64,
    pub(super) duplicate: u64,
    pub(super) delay_long: u64,
    pub(super) crash_node: u64,
    pub(super) crash_compute: u64,
    pub(super) take_over: u64,
    pub(super) partition: u64,
    pub(super) compete: u64,
    pub(super) lose_nodes: u64,
    pub(super) lie: u64,
    pub(super) crash_controller: u64,
}

impl Faults {
    pub(super) fn draw(random: &mut Random) -> Faults {
        // Each kind of fault is absent, ordinary or frequent, independently of the others.
        let mut level = |ordinary: u64| random.below(3) * ordinary;
        Faults {
            lose: level(30),
            duplicate: level(30),
            delay_long: level(15),
            crash_node: level(60),
            crash_compute: level(40),
            take_over: level(40),
            partition: level(50),
            compete: level(150),
            lose_nodes: level(8),
            lie: level(20),
            crash_controller: level(60),
        }
    }
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.parted_until > 0 && self.now >= self.parted_until {
            (self.sides, self.parted_until) = (None, 0);
        }
        if self.random.chance(self.faults.crash_node) {
            let position = self.random.below(self.nodes.len() as u64) as usize;
            if self.nodes[position].running {
                self.nodes[position].crash(&mut self.random, &mut self.coverage);
                self.coverage.count("node crashes");
                let delay = self.random.between(20, 800);
                self.schedule(delay, Event::Restart(position));
            }
        }
        if self.random.chance(self.faults.lose_nodes) && self.rescue.is_none() {
            let position = self.random.below(self.nodes.len() as u64) as usize;
            if self.can_lose(position) {
                if self.nodes[position].running {
                    self.nodes[position].crash(&mut self.random, &mut self.coverage);
                }
                self.coverage.count("nodes lost for ever");
                self.lost[position] = true;
            }
        }
        if self.random.chance(self.faults.crash_controller) {
            self.crash_controller();
        }
        let may_lie = self.rescue.as_ref().is_none_or(Rescue::stands_a_liar);
        if self.random.chance(self.faults.lie) && may_lie {
            // One node of a run, now and then, until the faults end.
            let position = *self.liar.get_or_insert(self.random.below(u64::from(NODES)) as usize);
            let lie = self.nodes[position].lie.is_none().then(|| Lie::draw(&mut self.random));
            if lie.is_some() {
                self.coverage.count("nodes that lie");
            }
            self.nodes[position].lie = lie;
        }
        if self.random.chance(self.faults.crash_compute) {
            let alive: Vec<u32> = self.computes.values().filter(|c| !c.is_stopped()).map(|c| c.id).collect();
            if !alive.is_empty() {
                let id = alive[self.random.below(alive.len() as u64) as usize];
                let compute = self.computes.get_mut(&id).expect("it was just listed");
                self.coverage.count(if compute.is_recovering() {
                    "recoveries crashed"
                } else {
                    "writers crashed"
                });
                compute.stop();
            }
        }
        if self.random.chance(self.faults.take_over) {
            let compete = self.random.chance(self.faults.compete) && self.last_epoch.0 > 0;
            if compete {
                self.coverage.count("recoveries competing for one epoch");
            } else {
                self.coverage.count("writers replaced while alive");
                if self.random.chance(CUT_OFF) {
                    self.cut_writers_off();
                }
            }
            self.start_compute(VolumeEpoch(self.last_epoch.0 + if compete { 0 } else { EPOCH_STEP }));
        }
        if self.random.chance(self.faults.partition) && self.now >= self.parted_until {
            self.sides = match self.sides {
                Some(_) => None,
                None => {
                    self.coverage.count("partitions");
                    Some((self.random.number(), self.random.chance(600)))
                }
            };
        }
    }

    pub(super) fn heal(&mut self) {
        self.sides = None;
        for node in &mut self.nodes {
            node.lie = None;
        }
        for position in 0..self.nodes.len() {
            if !self.nodes[position].running && !self.lost[position] {
                self.nodes[position].restart();
            }
        }
        self.stuck = (self.oracle.durable_end(), self.now);
    }
}
