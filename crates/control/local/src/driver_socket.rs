//! Questions to a driver over its local socket.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

/// Longest wait for a driver's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a driver how it is.
#[must_use]
pub fn ask_driver(instance_directory: &Path) -> Option<serde_json::Value> {
    command_driver(instance_directory, "status")
}

/// Whether the driver says that its server accepts connections and has its shim: that something answers on the port
/// proves neither.
#[must_use]
pub fn server_runs(instance_directory: &Path) -> bool {
    command_driver(instance_directory, "state").is_some_and(|answer| answer["state"] == "running")
}

/// Sends a driver a command over its local socket: one line of JSON each way.
fn command_driver(instance_directory: &Path, command: &str) -> Option<serde_json::Value> {
    let mut stream =
        borealis_driver::instance_socket::connect(&instance_directory.join("driver.sock")).ok()?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).ok()?;
    stream.write_all(format!("{{\"command\":\"{command}\"}}\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}
