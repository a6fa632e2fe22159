//! The network: it delays, loses and repeats single messages; a connection delivers in order, or breaks.

use super::{Event, World};
use crate::compute::Compute;
use crate::message::{Host, LineId, Message, OnLine};

/// For how long a writer that is cut off stays so at least.
const CUT_OFF_MS: (u64, u64) = (500, 2_000);
/// Until the system tells an instance that a connection broke.
const BREAK_NOTICED_MS: (u64, u64) = (20, 600);

/// The bit of a partition that says on which side a host is.
fn side_bit(host: Host) -> u64 {
    match host {
        Host::Node(id) => 1 << id.0,
        Host::Compute(id) => 1 << (16 + id % 16),
        Host::Controller(id) => 1 << (32 + id % 16),
    }
}

impl World {
    /// For longer than a lease, whoever writes reaches nobody and hears nothing. The next instance is on the others' side.
    pub(super) fn cut_writers_off(&mut self) {
        let writers = self.computes.values().filter(|compute| compute.positions().is_some());
        let mask = writers.fold(0, |mask, compute| mask | side_bit(compute.host()));
        let next = side_bit(Host::Compute(self.next_compute));
        if mask != 0 && mask & next == 0 {
            self.coverage.count("writers cut off when they are replaced");
            self.sides = Some((mask, true));
            self.parted_until = self.now + self.random.between(CUT_OFF_MS.0, CUT_OFF_MS.1);
        }
    }

    pub(super) fn send(&mut self, from: Host, to: Host, message: Message) {
        // What an instance asks is made for the memberships that it knows as it asks.
        let made_for = match from {
            Host::Compute(id) => self.computes.get(&id).map(Compute::made_for),
            Host::Node(_) | Host::Controller(_) => None,
        };
        let line = match &message {
            Message::Line(line, _) => Some(*line),
            _ => None,
        };
        if line.is_some_and(|line| self.broken.contains(&line)) {
            return self.coverage.count("messages on broken connections");
        }
        if self.chaos() {
            // One lost message breaks a connection, so they are lost less often there.
            let loses = self.random.below(if line.is_some() { 4000 } else { 1000 }) < self.faults.lose;
            let parted = self.sides.is_some_and(|(mask, both_ways)| {
                let is_away = |host| mask & side_bit(host) != 0;
                is_away(from) != is_away(to) && (both_ways || !is_away(from))
            });
            if loses || parted {
                self.coverage.count(if loses { "messages lost" } else { "messages lost in a partition" });
                if let Some(line) = line {
                    self.break_line(line, from, to);
                }
                return;
            }
            if line.is_none() && self.random.chance(self.faults.duplicate) {
                self.coverage.count("messages repeated");
                let delay = self.random.between(1, 400);
                let made_for = made_for.clone();
                self.schedule(delay, Event::Deliver { from, to, message: message.clone(), made_for });
            }
        }
        let late = self.chaos() && self.random.chance(self.faults.delay_long);
        let mut delay = if late { self.random.between(100, 2500) } else { self.random.between(1, 15) };
        if let Some(line) = line {
            // In order: not before what was sent on the connection earlier.
            let arrival = self.arrivals.entry((line, matches!(to, Host::Node(_)))).or_default();
            *arrival = (self.now + delay).max(*arrival);
            delay = *arrival - self.now;
        }
        self.schedule(delay, Event::Deliver { from, to, message, made_for });
    }

    /// A connection breaks; its instance hears of it some time later, its node when it next says something.
    pub(super) fn break_line(&mut self, line: LineId, from: Host, to: Host) {
        if !self.broken.insert(line) {
            return;
        }
        self.coverage.count("connections broken");
        let (node, compute) = if matches!(from, Host::Node(_)) { (from, to) } else { (to, from) };
        let delay = self.random.between(BREAK_NOTICED_MS.0, BREAK_NOTICED_MS.1);
        let message = Message::Line(line, OnLine::Closed);
        self.schedule(delay, Event::Deliver { from: node, to: compute, message, made_for: None });
    }
}
