//! The addresses of hosts, looked up by threads of their own: an event loop asks and does not wait.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer is used before the name is looked up again, meanwhile with the old one.
const FRESH: Duration = Duration::from_secs(30);
/// Before a name is looked up again that could not be.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<IpAddr>,
    /// Which of them the next connection tries.
    next: usize,
    failure: Option<String>,
    looked_up: Option<Instant>,
    is_under_way: bool,
}

/// What is known of names. There are as many as nodes that are named in the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
}

impl Names {
    /// An address of a host, each time the next one if it has several.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while it is being looked up for the first time, another when that failed.
    pub(crate) fn address(&self, host: &str, port: u16) -> io::Result<SocketAddr> {
        if let Ok(address) = host.parse() {
            return Ok(SocketAddr::new(address, port));
        }
        let mut entries = self.entries.lock().expect("nothing panics while it holds this lock");
        let entry = entries.entry(host.to_owned()).or_default();
        let fresh = if entry.failure.is_some() { RETRY } else { FRESH };
        if !entry.is_under_way && entry.looked_up.is_none_or(|at| at.elapsed() >= fresh) {
            entry.is_under_way = true;
            let (names, host) = (self.clone(), host.to_owned());
            // Without the thread it is tried again with the next connection.
            let begun = thread::Builder::new().name("look-up".to_owned()).spawn(move || names.look_up(&host));
            entry.is_under_way = begun.is_ok();
        }
        if !entry.addresses.is_empty() {
            entry.next = (entry.next + 1) % entry.addresses.len();
            return Ok(SocketAddr::new(entry.addresses[entry.next], port));
        }
        match &entry.failure {
            Some(failure) => Err(io::Error::new(io::ErrorKind::NotFound, failure.clone())),
            None => {
                let what = format!("the address of the host `{host}` is being looked up");
                Err(io::Error::new(io::ErrorKind::WouldBlock, what))
            }
        }
    }

    fn look_up(&self, host: &str) {
        let found = (host, 0).to_socket_addrs();
        let mut entries = self.entries.lock().expect("nothing panics while it holds this lock");
        let Some(entry) = entries.get_mut(host) else { return };
        entry.is_under_way = false;
        entry.looked_up = Some(Instant::now());
        match found {
            Ok(found) => {
                entry.addresses = found.map(|address| address.ip()).collect();
                entry.failure =
                    entry.addresses.is_empty().then(|| format!("the host `{host}` has no address"));
            }
            // Addresses of before are better than none: a name service may be down for a while.
            Err(error) => entry.failure = Some(format!("cannot look up the host `{host}`: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(names: &Names, host: &str) -> io::Result<SocketAddr> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match names.address(host, 7) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                other => return other,
            }
        }
    }

    #[test]
    fn a_name_is_looked_up_without_waiting_for_it() {
        let names = Names::default();
        assert_eq!(names.address("::1", 7).unwrap().to_string(), "[::1]:7");
        assert_eq!(names.address("localhost", 7).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(wait(&names, "localhost").unwrap().ip().is_loopback());
        // RFC 6761: it never exists.
        let refused = wait(&names, "node.invalid").unwrap_err().to_string();
        assert!(refused.contains("cannot look up the host `node.invalid`"), "{refused}");
    }
}
