//! Keeps one thread of gossip for each peer, as peers come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use borealis_spec::NodeAddress;
use borealis_types::NodeId;

use super::exchange::CatchUp;
use crate::line_throttle::LineThrottle;

/// Between two looks at whether a thread ended that should run, or whoever called has not come again.
const INTERVAL: Duration = Duration::from_secs(5);

/// A thread that gossips with one peer.
#[derive(Debug)]
struct Gossip {
    peer: NodeAddress,
    has_ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The threads of gossip; the one that keeps them is the owner of them all.
#[derive(Debug)]
pub(crate) struct Keeper {
    parts: Arc<CatchUp>,
    running: BTreeMap<NodeId, Gossip>,
    /// Told to end, and not looked at again until they have.
    ending: Vec<JoinHandle<()>>,
    lines: LineThrottle,
}

impl Keeper {
    pub(crate) fn new(parts: Arc<CatchUp>) -> Keeper {
        Keeper { parts, running: BTreeMap::new(), ending: Vec::new(), lines: LineThrottle::default() }
    }

    /// The body of the thread. All others have ended on return.
    pub(crate) fn run_until_stopped(mut self) {
        let mut seen = 0;
        while !self.parts.known.is_stopping() {
            let peers = self.parts.members.peers_to_ask();
            self.keep(&peers);
            self.parts.members.wait(&mut seen, INTERVAL);
        }
        self.keep(&BTreeMap::new());
        for thread in self.ending.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }

    /// Ends the threads of who is no peer any more, or is somewhere else, and starts one for each that has none.
    fn keep(&mut self, peers: &BTreeMap<NodeId, NodeAddress>) {
        let is_wanted = |gossip: &Gossip| {
            peers.get(&gossip.peer.node) == Some(&gossip.peer) && !gossip.thread.is_finished()
        };
        let over: Vec<NodeId> =
            self.running.values().filter(|g| !is_wanted(g)).map(|g| g.peer.node).collect();
        for node in over {
            if let Some(gossip) = self.running.remove(&node) {
                gossip.has_ended.store(true, Ordering::Release);
                self.ending.push(gossip.thread);
            }
        }
        self.parts.known.rouse();
        self.ending.retain(|thread| !thread.is_finished());
        for peer in peers.values() {
            if !self.running.contains_key(&peer.node) {
                self.begin(peer.clone());
            }
        }
    }

    fn begin(&mut self, peer: NodeAddress) {
        let (parts, has_ended) = (Arc::clone(&self.parts), Arc::new(AtomicBool::new(false)));
        let (asked, ended) = (peer.clone(), Arc::clone(&has_ended));
        let body = move || parts.run_until_stopped(&asked, &ended);
        match thread::Builder::new().name(format!("gossip-{}", peer.node)).spawn(body) {
            Ok(thread) => drop(self.running.insert(peer.node, Gossip { peer, has_ended, thread })),
            Err(error) => {
                // It is tried again at the next look.
                if let Some(suppressed) = self.lines.admit() {
                    tracing::warn!(peer = %peer.node, %error, suppressed, "cannot start a thread to gossip with a peer");
                }
            }
        }
    }
}
