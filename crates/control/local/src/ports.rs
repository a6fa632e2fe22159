//! TCP ports on the loopback address.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Whether nothing listens on the port.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// `count` different free addresses. They are free at the time of asking; what is started on them reports a
/// clear error should another process take one first.
///
/// # Errors
/// When the system has no free port.
pub fn free_addresses(count: usize) -> std::io::Result<Vec<SocketAddr>> {
    // All are held until all are known, so that they differ.
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_noticed_and_free_ones_differ() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        assert!(!is_free(listener.local_addr().expect("bound").port()));
        let mut addresses = free_addresses(6).expect("six ports");
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 6);
    }
}
