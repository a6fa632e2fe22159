//! Where a process shows its metrics.

use core::fmt;
use core::net::SocketAddr;
use core::str::FromStr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Where a process shows its metrics: never to another machine, for whoever can read them needs no certificate. In files and
/// for people it is text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetricsAddress {
    /// A Unix socket, by its path: for the process's own user and root.
    Unix(PathBuf),
    /// A port of a loopback address: for every user of the machine. Port zero is one that the system chooses.
    Loopback(SocketAddr),
}

/// Text that is no address for metrics.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` is no address for metrics; one is the absolute path of a Unix socket, or a port of a loopback address like \
     127.0.0.1:9187. For another machine's Prometheus, put a proxy with TLS before it"
)]
pub struct ParseMetricsAddressError(String);

impl fmt::Display for MetricsAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Unix(path) => path.display().fmt(formatter),
            MetricsAddress::Loopback(address) => address.fmt(formatter),
        }
    }
}

impl FromStr for MetricsAddress {
    type Err = ParseMetricsAddressError;

    fn from_str(text: &str) -> Result<MetricsAddress, ParseMetricsAddressError> {
        // A zero ends a path for the system, which would then mean another one.
        if text.starts_with('/') && !text.contains('\0') {
            return Ok(MetricsAddress::Unix(PathBuf::from(text)));
        }
        let loopback = text.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback());
        loopback.map(MetricsAddress::Loopback).ok_or_else(|| ParseMetricsAddressError(text.to_owned()))
    }
}

impl Serialize for MetricsAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MetricsAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MetricsAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["/run/borealis/metrics.sock", "127.0.0.1:9187", "[::1]:0", "127.4.0.1:1"] {
            let address: MetricsAddress = text.parse().expect(text);
            let json = serde_json::to_string(&address).expect("plain data");
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<MetricsAddress>(&json).expect("the same"), address);
        }
    }

    #[test]
    fn metrics_never_leave_the_machine() {
        for text in [
            "0.0.0.0:9187",
            "[::]:9187",
            "10.0.0.1:9187",
            "localhost:9187",
            "127.0.0.1",
            "9187",
            "",
            "x/y",
            "/a\0b",
        ] {
            let refused = text.parse::<MetricsAddress>().expect_err(text).to_string();
            assert!(refused.contains("no address for metrics"), "{refused}");
        }
    }
}
