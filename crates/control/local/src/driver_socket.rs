//! Questions to a driver over its local socket.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

/// Longest wait for a driver's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a driver how it is.
#[must_use]
pub fn ask_driver(instance_directory: &Path) -> Option<serde_json::Value> {
    driver_status(instance_directory).ok()
}

/// Asks a driver how it is, for whoever wants to know why there is no answer.
///
/// # Errors
/// When nobody listens, this user may not ask, or no answer comes in time.
pub fn driver_status(instance_directory: &Path) -> io::Result<serde_json::Value> {
    command_driver(instance_directory, "status")
}

/// Whether the driver says that its server accepts connections and has its shim: that something answers on the port
/// proves neither.
#[must_use]
pub fn server_runs(instance_directory: &Path) -> bool {
    command_driver(instance_directory, "state").is_ok_and(|answer| answer["state"] == "running")
}

/// Sends a driver a command over its local socket: one line of JSON each way.
fn command_driver(instance_directory: &Path, command: &str) -> io::Result<serde_json::Value> {
    let socket = instance_directory.join("driver.sock");
    let mut stream = borealis_driver::instance_socket::connect(&socket)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let named = |error| named_timeout(error, "the driver", ANSWER_TIMEOUT);
    stream.write_all(format!("{{\"command\":\"{command}\"}}\n").as_bytes()).map_err(named)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(named)?;
    Ok(serde_json::from_str(&line)?)
}

/// Says in words what Linux calls "Resource temporarily unavailable": that a socket's timeout passed.
pub(crate) fn named_timeout(error: io::Error, who: &str, timeout: Duration) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{who} did not answer within {} s", timeout.as_secs()),
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_named() {
        let passed = io::Error::from_raw_os_error(11);
        assert!(passed.to_string().contains("Resource temporarily unavailable"), "{passed}");
        let named = named_timeout(passed, "the driver", ANSWER_TIMEOUT);
        assert_eq!(named.to_string(), "the driver did not answer within 2 s");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(named_timeout(refused, "x", ANSWER_TIMEOUT).kind(), io::ErrorKind::ConnectionRefused);
    }
}
