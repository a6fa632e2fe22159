//! Who a part of a fleet is: what its certificate says, as a URI in the subject's alternative names.
//!
//! ```text
//! borealis://FLEET/node/3                      storage node 3
//! borealis://FLEET/volume/VOLUME/instance/1    database instance 1 of a volume, 32 hexadecimal digits
//! borealis://FLEET/controller                  what watches and heals the fleet
//! borealis://FLEET/client                      a tool: it looks, and changes nothing
//! ```
//!
//! The fleet's name is in every one, so that an authority which signs for two fleets does not make them one.

use core::fmt;
use core::str::FromStr;
use std::path::{Path, PathBuf};

use borealis_types::{InstanceId, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{Contradiction, Endpoint, require};

const SCHEME: &str = "borealis://";
/// Longest name of a fleet.
const NAME_BYTES_MAX: usize = 63;

/// The name of a fleet: lower-case letters, digits and `-`, at most 63.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FleetName(String);

/// What a part of a fleet may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A storage node: serves, and gossips with its peers under this number.
    Node(NodeId),
    /// An instance: writes and recovers this volume.
    Instance(VolumeId, InstanceId),
    /// The controller.
    Controller,
    /// A tool that looks.
    Client,
}

/// A part of a fleet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Identity {
    /// Which fleet it belongs to.
    pub fleet: FleetName,
    /// What it is there.
    pub role: Role,
}

/// Text that is no identity or no name of a fleet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseIdentityError {
    /// Not the URI of a part of a fleet.
    #[error("`{0}` is no identity in a fleet, such as borealis://FLEET/node/3")]
    Identity(String),
    /// Not a name.
    #[error("`{0}` is no name of a fleet; it has 1 to 63 lower-case letters, digits and `-`")]
    Name(String),
}

impl TryFrom<String> for FleetName {
    type Error = ParseIdentityError;

    fn try_from(text: String) -> Result<FleetName, ParseIdentityError> {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed) {
            return Ok(FleetName(text));
        }
        Err(ParseIdentityError::Name(text))
    }
}

impl FromStr for FleetName {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<FleetName, ParseIdentityError> {
        FleetName::try_from(text.to_owned())
    }
}

impl From<FleetName> for String {
    fn from(name: FleetName) -> String {
        name.0
    }
}

impl fmt::Display for FleetName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}/", self.fleet)?;
        match self.role {
            Role::Node(node) => write!(formatter, "node/{node}"),
            Role::Instance(volume, instance) => write!(formatter, "volume/{volume}/instance/{instance}"),
            Role::Controller => formatter.write_str("controller"),
            Role::Client => formatter.write_str("client"),
        }
    }
}

impl FromStr for Identity {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Identity, ParseIdentityError> {
        let wrong = || ParseIdentityError::Identity(text.chars().take(200).collect());
        let (fleet, role) =
            text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let fleet = fleet.parse().map_err(|_| wrong())?;
        let parts: Vec<&str> = role.split('/').collect();
        let role = match parts.as_slice() {
            ["node", number] => number.parse().ok().map(|number| Role::Node(NodeId(number))),
            ["volume", volume, "instance", number] => {
                let volume = u128::from_str_radix(volume, 16).ok().map(VolumeId);
                volume
                    .zip(number.parse().ok())
                    .map(|(volume, number)| Role::Instance(volume, InstanceId(number)))
            }
            ["controller"] => Some(Role::Controller),
            ["client"] => Some(Role::Client),
            _ => None,
        };
        let identity = Identity { fleet, role: role.ok_or_else(wrong)? };
        // One text for each: `node/03` and `node/+3` would be others of the same.
        if identity.to_string() == text { Ok(identity) } else { Err(wrong()) }
    }
}

/// The files of a part's certificate. Paths that are not absolute begin in the folder of the configuration that names them.
///
/// All are read again when one of them changes, for the next connection: a new certificate needs no restart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificates (PEM) of the authorities whose word is taken: one for each fleet, two while the fleet changes it.
    pub authorities: PathBuf,
    /// The part's own certificate (PEM), and those between it and the authority, if any.
    pub certificate: PathBuf,
    /// Its private key (PEM), which nobody else may read.
    pub key: PathBuf,
}

impl TlsFiles {
    /// The usual names in a folder.
    #[must_use]
    pub fn in_folder(folder: &Path) -> TlsFiles {
        TlsFiles {
            authorities: folder.join("authorities.pem"),
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
        }
    }

    /// The same files, as seen from anywhere.
    #[must_use]
    pub fn below(&self, folder: &Path) -> TlsFiles {
        TlsFiles {
            authorities: folder.join(&self.authorities),
            certificate: folder.join(&self.certificate),
            key: folder.join(&self.key),
        }
    }
}

/// Checks that whoever speaks TLS has a certificate to do so.
pub(crate) fn require_files<'a>(
    files: Option<&TlsFiles>,
    mut endpoints: impl Iterator<Item = &'a Endpoint>,
) -> Result<(), Contradiction> {
    let over_tls = endpoints.find(|endpoint| matches!(endpoint, Endpoint::Tls { .. }));
    if let (None, Some(endpoint)) = (files, over_tls) {
        require!(
            false,
            "{endpoint} is spoken to over TLS, but `tls` with the files of a certificate is missing \
             (`borealis fleet certificate` makes them)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_has_one_text() {
        let volume = "feed0000000000000000000000000001";
        let instance = format!("borealis://f-1/volume/{volume}/instance/2");
        let role = Role::Instance(VolumeId(0xFEED_0000_0000_0000_0000_0000_0000_0001), InstanceId(2));
        for (text, role) in [
            ("borealis://f-1/node/3", Role::Node(NodeId(3))),
            (instance.as_str(), role),
            ("borealis://f-1/controller", Role::Controller),
            ("borealis://f-1/client", Role::Client),
        ] {
            let identity: Identity = text.parse().expect(text);
            assert_eq!((identity.fleet.to_string().as_str(), identity.role), ("f-1", role));
            assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for text in [
            "",
            "borealis://f/node/03",
            "borealis://f/node/+3",
            "borealis://f/node/70000",
            "borealis://f/node/3/",
            "borealis://f/node",
            "borealis:///node/3",
            "borealis://F/node/3",
            "borealis://a.b/node/3",
            "https://f/node/3",
            "borealis://f/volume/1/instance/1",
            "borealis://f/volume/FEED0000000000000000000000000001/instance/1",
            "borealis://f/clients",
        ] {
            let refused = text.parse::<Identity>().expect_err(text).to_string();
            assert!(refused.contains("no identity in a fleet"), "{refused}");
        }
        assert!("x".repeat(64).parse::<FleetName>().is_err() && "x".repeat(63).parse::<FleetName>().is_ok());
    }

    #[test]
    fn files_are_found_from_the_configuration_that_names_them() {
        let files = TlsFiles::in_folder(Path::new("tls"));
        assert_eq!(files.below(Path::new("/srv/3")).key, Path::new("/srv/3/tls/key.pem"));
        let absolute = TlsFiles::in_folder(Path::new("/etc/borealis"));
        assert_eq!(absolute.below(Path::new("/srv/3")), absolute);
    }
}
