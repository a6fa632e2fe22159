//! Quorum protocol as pure state machines: segment chain, writer tracking, recovery, read routing.
