//! What an instance wants of its surroundings, and what became of it.

use std::rc::Rc;

use borealis_compute::read::Answer;
use borealis_compute::ship::TenureEnd;
use borealis_quorum::recovery::{Failure, Outcome};
use borealis_types::{GroupId, Lsn, NodeId};

use crate::message::{Message, SimRecord};

/// A read of the instance, to compare its answer with the truth.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The group whose page was read.
    pub group: GroupId,
    /// Where the volume was durable when it was asked: the answer must show all of that.
    pub durable: Lsn,
}

/// What an instance did.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages for the network, in order.
    pub send: Vec<(NodeId, Message)>,
    /// The recovery completed.
    pub recovered: Option<Outcome>,
    /// Members whose words the recovery ruled out just now.
    pub left_out: usize,
    /// The recovery gave up.
    pub failed: Option<Failure>,
    /// The record that PostgreSQL wrote, if it did.
    pub shipped: Option<Rc<SimRecord>>,
    /// The durable position rose to here.
    pub durable: Option<Lsn>,
    /// Reads that came to an end.
    pub answered: Vec<(Asked, Answer)>,
    /// The writer ended by itself: why, and how many nodes took its batches then, if those were a write quorum.
    pub ended: Option<(TenureEnd, Option<usize>)>,
    /// What happened, for the coverage.
    pub counted: Vec<&'static str>,
    /// A contradiction that a correct protocol rules out.
    pub impossible: Option<String>,
}

impl Effects {
    /// Counts something for the coverage.
    pub fn count(&mut self, what: &'static str) {
        self.counted.push(what);
    }
}
