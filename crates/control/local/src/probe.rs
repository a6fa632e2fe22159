//! Asks a PostgreSQL server whether it answers SQL, with the few bytes of the wire protocol that needs
//! (version 3.0, `src/backend/libpq`), so that starting does not depend on a client library.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::driver_socket::named_timeout;

/// What a server says that is still starting or already stopping (`ERRCODE_CANNOT_CONNECT_NOW`).
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Runs `SELECT 1` as user and database `postgres` on 127.0.0.1. A server that refuses this user or database
/// answers too: it may have been told to.
///
/// # Errors
/// When the server does not answer within `timeout`, or says that it cannot be connected to now.
pub fn answers_sql(port: u16, timeout: Duration) -> std::io::Result<()> {
    ask(port, timeout).map_err(|error| named_timeout(error, "the server", timeout))
}

fn ask(port: u16, timeout: Duration) -> std::io::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let parameters = b"user\0postgres\0database\0postgres\0application_name\0borealis\0\0";
    let mut startup = ((8 + parameters.len()) as u32).to_be_bytes().to_vec();
    startup.extend(196_608u32.to_be_bytes());
    startup.extend(parameters);
    stream.write_all(&startup)?;
    if !wait_until_ready(&mut stream)? {
        return Ok(());
    }
    let query = b"SELECT 1\0";
    let mut message = vec![b'Q'];
    message.extend(((4 + query.len()) as u32).to_be_bytes());
    message.extend(query);
    stream.write_all(&message)?;
    wait_until_ready(&mut stream)?;
    stream.write_all(&[b'X', 0, 0, 0, 4])
}

/// `true` when it is ready for a query, `false` when it refused in a way that will not pass, or asks who this is.
fn wait_until_ready(stream: &mut TcpStream) -> std::io::Result<bool> {
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let length = u32::from_be_bytes(length).saturating_sub(4);
        let mut body = Vec::new();
        stream.take(u64::from(length.min(1 << 16))).read_to_end(&mut body)?;
        match kind {
            b'Z' => return Ok(true),
            // It asks for a password or the like: a server that does so serves. Zero is no question.
            b'R' if !body.starts_with(&[0; 4]) => return Ok(false),
            b'E' => {
                // Fields, each a letter and text that ends with a zero byte; C is the code.
                let text = String::from_utf8_lossy(&body).into_owned();
                let now = text.split('\0').any(|field| field.strip_prefix('C') == Some(CANNOT_CONNECT_NOW));
                return if now { Err(std::io::Error::other(text.replace('\0', " "))) } else { Ok(false) };
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_that_asks_for_a_password_answers() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            // SCRAM-SHA-256, and nothing after it until the client goes.
            let mut message = vec![b'R'];
            message.extend(23u32.to_be_bytes());
            message.extend(10u32.to_be_bytes());
            message.extend(b"SCRAM-SHA-256\0\0");
            stream.write_all(&message).expect("sent");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        answers_sql(port, Duration::from_secs(10)).expect("it serves");
        server.join().expect("it ended");
    }
}
