//! Where a node listens.

use core::fmt;
use core::net::Ipv6Addr;
use core::str::FromStr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// What the text of an address on the network begins with.
const TLS_PREFIX: &str = "tls:";
/// Longest name of a host: RFC 1035 allows 253 characters.
const HOST_BYTES_MAX: usize = 253;

/// Where a node listens, and what protects the way there. In files and for people it is text: the path of a Unix socket, or
/// `tls:HOST:PORT`, where an IPv6 address stands in brackets.
///
/// There is no TCP without TLS, on the loopback address neither.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Endpoint {
    /// A Unix socket, by its path: on this machine, for the node's own user and root.
    Unix(PathBuf),
    /// TLS over TCP, with certificates on both sides.
    Tls {
        /// A name or an IP address, without brackets. The node's certificate must be valid for it.
        host: String,
        /// The TCP port, from 1.
        port: u16,
    },
}

/// Text that is no endpoint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no address of a node; one is the absolute path of a Unix socket, or tls:HOST:PORT")]
pub struct ParseEndpointError(String);

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(formatter),
            Endpoint::Tls { host, port } if host.contains(':') => {
                write!(formatter, "{TLS_PREFIX}[{host}]:{port}")
            }
            Endpoint::Tls { host, port } => write!(formatter, "{TLS_PREFIX}{host}:{port}"),
        }
    }
}

/// Reads `HOST:PORT` or `[IPv6]:PORT`.
fn parse_host_and_port(text: &str) -> Option<Endpoint> {
    let (host, port) = text.rsplit_once(':')?;
    // `+7` is a number to Rust.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|&port| port > 0)?;
    let host = match host.strip_prefix('[') {
        Some(inside) => inside.strip_suffix(']').filter(|inside| inside.parse::<Ipv6Addr>().is_ok())?,
        None => Some(host).filter(|host| is_name(host))?,
    };
    Some(Endpoint::Tls { host: host.to_owned(), port })
}

/// Whether it looks like the name of a host, or an IPv4 address.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    host.len() <= HOST_BYTES_MAX && host.split('.').all(is_label)
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Endpoint, ParseEndpointError> {
        // A zero ends a path for the system, which would then mean another one.
        if text.starts_with('/') && !text.contains('\0') {
            return Ok(Endpoint::Unix(PathBuf::from(text)));
        }
        if let Some(endpoint) = text.strip_prefix(TLS_PREFIX).and_then(parse_host_and_port) {
            return Ok(endpoint);
        }
        Err(ParseEndpointError(text.to_owned()))
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let endpoint: Endpoint = "/srv/b/sockets/3".parse().expect("a path");
        assert_eq!(endpoint, Endpoint::Unix("/srv/b/sockets/3".into()));
        let text = serde_json::to_string(&endpoint).expect("plain data");
        assert_eq!(text, "\"/srv/b/sockets/3\"");
        assert_eq!(serde_json::from_str::<Endpoint>(&text).expect("the same"), endpoint);
    }

    #[test]
    fn addresses_on_the_network_are_text_that_says_tls() {
        for (text, host, port) in [
            ("tls:db1.example:7001", "db1.example", 7001),
            ("tls:10.0.0.7:1", "10.0.0.7", 1),
            ("tls:[fd00::7]:65535", "fd00::7", 65535),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint, Endpoint::Tls { host: host.to_owned(), port });
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn an_address_without_protection_is_none() {
        for text in [
            "127.0.0.1:7001",
            "",
            "sockets/3",
            "tcp:127.0.0.1:1",
            "/a\0b",
            "tls:host",
            "tls:host:0",
            "tls:host:65536",
            "tls:host:+7",
            "tls::7001",
            "tls:a..b:7001",
            "tls:::1:7001",
            "tls:[::1:7001",
            "tls:[host]:7001",
            "tls:a b:7001",
        ] {
            let refused = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(refused.contains("Unix socket"), "{refused}");
        }
    }
}
