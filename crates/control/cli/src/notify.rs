//! Tells the service manager how far we are, in the protocol of `sd_notify(3)`: one datagram of `NAME=VALUE` lines to
//! the socket that `NOTIFY_SOCKET` names.
//!
//! `libsystemd` is a library for a few lines. PostgreSQL speaks this protocol too, so the variable must not reach it:
//! whoever starts processes of ours removes it (see `borealis_local::process`).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable with the socket's address.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager that started this process, if one did and wants to know.
pub struct ServiceManager {
    address: Option<OsString>,
}

impl ServiceManager {
    /// Looks for one in the environment.
    pub fn from_environment() -> ServiceManager {
        ServiceManager { address: std::env::var_os(VARIABLE).filter(|address| !address.is_empty()) }
    }

    /// SQL is answered: whatever waits for the service may go on.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// An orderly stop has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping");
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    /// A failure is shown and is no reason to stop: the service works without, and a manager that waits for a readiness
    /// it cannot hear of says so itself.
    fn tell(&self, message: &str) {
        let Some(address) = &self.address else { return };
        if let Err(error) = send(address, message) {
            eprintln!("borealis: cannot tell the service manager at {}: {error}", address.display());
        }
    }
}

fn send(address: &OsStr, message: &str) -> io::Result<()> {
    let target = match address.as_bytes() {
        // Linux' abstract names begin with a zero byte, written as `@`.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path and not an abstract name")),
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        socket.set_nonblocking(true).expect("set");
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).expect("a datagram has arrived");
        String::from_utf8(bytes[..length].to_vec()).expect("text")
    }

    #[test]
    fn readiness_reaches_a_socket_at_a_path_with_a_space() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("a socket");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let manager = ServiceManager { address: Some(path.into_os_string()) };
        manager.ready("port 5433");
        assert_eq!(received(&socket), "READY=1\nSTATUS=port 5433");
        manager.stopping();
        assert_eq!(received(&socket), "STOPPING=1\nSTATUS=stopping");
    }

    #[test]
    fn readiness_reaches_an_abstract_socket() {
        let name = format!("borealis-notify-test-{}", std::process::id());
        let socket =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("bound");
        let manager = ServiceManager { address: Some(format!("@{name}").into()) };
        manager.status("the instance ended");
        assert_eq!(received(&socket), "STATUS=the instance ended");
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_a_bad_address_does_no_harm() {
        ServiceManager { address: None }.ready("ready");
        assert!(send(OsStr::new("relative"), "READY=1").is_err());
        assert!(send(OsStr::new("/nonexistent/socket"), "READY=1").is_err());
        ServiceManager { address: Some("/nonexistent/socket".into()) }.ready("ready");
    }
}
