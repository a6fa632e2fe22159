//! A client of PostgreSQL's simple query protocol, just enough for this tool: no password, text results.
//!
//! Written out here because a driver library would bring a hundred crates into the program, and `psql` takes ten
//! milliseconds to start, which is much of what a recovery takes. Format: PostgreSQL's documentation, chapter
//! "Frontend/Backend Protocol".

use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Protocol 3.0.
const PROTOCOL_VERSION: i32 = 196_608;
/// Longer messages are not answers to anything asked here.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Rows of text; `None` is null.
pub type Rows = Vec<Vec<Option<String>>>;

/// A connection to database `postgres` as user `postgres` on 127.0.0.1.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Connection {
    /// Connects; `timeout` bounds this and every later wait for an answer.
    ///
    /// # Errors
    /// When nobody listens, or the server refuses (it may be starting).
    pub fn open(port: u16, timeout: Duration) -> io::Result<Connection> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut startup = PROTOCOL_VERSION.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0application_name\0borealis\0\0");
        let mut connection = Connection { stream: BufReader::new(stream) };
        let length = u32::try_from(startup.len() + 4).expect("a short message");
        connection.stream.get_mut().write_all(&[&length.to_be_bytes()[..], &startup].concat())?;
        connection.answer()?;
        Ok(connection)
    }

    /// Runs statements and returns the rows of all of them.
    ///
    /// # Errors
    /// When the connection ends, or with the server's message when a statement fails.
    pub fn query(&mut self, statements: &str) -> io::Result<Rows> {
        let length = u32::try_from(statements.len() + 5).map_err(|_| invalid("a statement is too long"))?;
        let message = [b"Q", &length.to_be_bytes()[..], statements.as_bytes(), b"\0"].concat();
        self.stream.get_mut().write_all(&message)?;
        self.answer()
    }

    /// The first column of the first row.
    ///
    /// # Errors
    /// As [`Connection::query`], and when there is no such value or it is no number.
    pub fn number(&mut self, statement: &str) -> io::Result<f64> {
        let rows = self.query(statement)?;
        let value = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
        value.and_then(|text| text.parse().ok()).ok_or_else(|| invalid(format!("{statement}: no number")))
    }

    /// Reads until the server is ready for the next statement.
    fn answer(&mut self) -> io::Result<Rows> {
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let length = (u32::from_be_bytes(length) as usize).checked_sub(4);
            let length = length.filter(|length| *length <= MESSAGE_BYTES_MAX);
            let length = length.ok_or_else(|| invalid("a message with an impossible length"))?;
            let mut body = Vec::new();
            self.stream.by_ref().take(length as u64).read_to_end(&mut body)?;
            if body.len() < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match kind {
                b'R' if body != [0; 4] => return Err(invalid("the server asks for a password")),
                b'D' => rows.push(parse_row(&body).ok_or_else(|| invalid("a malformed row"))?),
                b'E' => failure = Some(parse_error(&body)),
                b'Z' => return failure.map_or(Ok(rows), |message| Err(io::Error::other(message))),
                _ => {}
            }
            // A refused connection is closed without a word more.
            if let (b'E', Some(message)) = (kind, &failure)
                && (message.starts_with("FATAL") || message.starts_with("PANIC"))
            {
                return Err(io::Error::other(message.clone()));
            }
        }
    }
}

fn parse_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            row.push(None);
            rest = after;
        } else {
            let (value, after) = after.split_at_checked(length as usize)?;
            row.push(Some(String::from_utf8_lossy(value).into_owned()));
            rest = after;
        }
    }
    Some(row)
}

/// Severity and text of an error message, whose fields each begin with a letter and end with a zero byte.
fn parse_error(body: &[u8]) -> String {
    let field = |letter: u8| {
        let found = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&letter))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    };
    let severity = field(b'V').or_else(|| field(b'S')).unwrap_or_else(|| "ERROR".to_owned());
    format!("{severity}: {}", field(b'M').unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_nulls_are_read() {
        let body = b"\0\x02\0\0\0\x02hi\xff\xff\xff\xff";
        assert_eq!(parse_row(body), Some(vec![Some("hi".to_owned()), None]));
        for cut in 0..body.len() {
            assert_eq!(parse_row(&body[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn errors_keep_severity_and_text() {
        let body = b"SFEHLER\0VERROR\0C42P01\0Mrelation \"x\" does not exist\0\0";
        assert_eq!(parse_error(body), "ERROR: relation \"x\" does not exist");
        assert_eq!(parse_error(b""), "ERROR: ");
    }
}
