//! TCP ports on the loopback address.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Whether nothing listens on the port.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Ports that nothing listens on now, all different.
///
/// # Errors
/// When the system gives none.
pub(crate) fn find_free(count: usize) -> io::Result<Vec<u16>> {
    // Held until all are found.
    let held: io::Result<Vec<TcpListener>> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    held?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_noticed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        assert!(!is_free(listener.local_addr().expect("bound").port()));
    }
}
