//! The limit on open files of this process: a fleet of hundreds of nodes needs more than what systems allow at first.

/// A recovery has three connections to a node at most, a writer two.
const FOR_EACH_NODE: u64 = 3;
/// For everything but the nodes: the server's files, sockets and events.
const RESERVED: u64 = 128;

/// How many files must be open at a time with so many nodes.
fn needed_for(nodes: usize) -> u64 {
    RESERVED + FOR_EACH_NODE * nodes as u64
}

/// Raises the limit to what so many nodes need, as far as the system allows; where it does not, says so in the log, for
/// connections would fail. A limit that suffices is left alone, for the server inherits it.
pub(crate) fn raise_limit(nodes: usize) {
    let needed = needed_for(nodes);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one `rlimit` to the pointer it is given.
    #[allow(unsafe_code)]
    let found = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if found && limit.rlim_cur >= needed {
        return;
    }
    let raised = libc::rlimit { rlim_cur: needed.min(limit.rlim_max), ..limit };
    // SAFETY: the call reads one `rlimit` from the pointer it is given.
    #[allow(unsafe_code)]
    let is_raised = found && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0;
    if !is_raised || raised.rlim_cur < needed {
        tracing::warn!(
            needed,
            limit = if is_raised { raised.rlim_cur } else { limit.rlim_cur },
            "this process may open too few files for {nodes} storage nodes: raise the limit (`ulimit -n`, or `LimitNOFILE=` \
             of the service)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundreds_of_nodes_need_more_than_most_systems_allow_at_first() {
        assert!(needed_for(6) < 256 && needed_for(384) > 1024);
    }
}
