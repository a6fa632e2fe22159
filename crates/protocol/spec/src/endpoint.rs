//! Where a node listens.

use core::fmt;
use core::str::FromStr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Where a node listens, and what protects the way there. In files and for people it is text: the path of a Unix socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Endpoint {
    /// A Unix socket, by its path: on this machine, for the node's own user and root.
    Unix(PathBuf),
}

/// Text that is no endpoint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no address of a node; one is the absolute path of a Unix socket")]
pub struct ParseEndpointError(String);

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(formatter),
        }
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Endpoint, ParseEndpointError> {
        // A zero ends a path for the system, which would then mean another one.
        if text.starts_with('/') && !text.contains('\0') {
            return Ok(Endpoint::Unix(PathBuf::from(text)));
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
    fn an_address_without_protection_is_none() {
        for text in ["127.0.0.1:7001", "", "sockets/3", "tcp:127.0.0.1:1", "/a\0b"] {
            let refused = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(refused.contains("Unix socket"), "{refused}");
        }
    }
}
