//! Identities and epochs of a volume and its parts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Segments (peer copies) of one protection group.
pub const SEGMENTS_PER_GROUP: usize = 6;
/// Peers that must hold a record before it is acknowledged.
pub const WRITE_QUORUM: usize = 4;
/// Peers that recovery must hear; any such set meets every write quorum.
pub const READ_QUORUM: usize = 3;

macro_rules! number_newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_newtype! {
    /// A protection group: data striped over many of them, each independent.
    GroupId(u16)
}
number_newtype! {
    /// A storage node, by its number in the fleet.
    NodeId(u16)
}
number_newtype! {
    /// A database instance of a volume.
    InstanceId(u16)
}
number_newtype! {
    /// Fences writers: a new one raises it at a write quorum of every group before it does anything else.
    VolumeEpoch(u64)
}
number_newtype! {
    /// Counts the memberships of one protection group: 1 as it was created, one more with every change.
    MembershipEpoch(u64)
}
number_newtype! {
    /// A random number that tells two writers apart that chose the same epoch at the same time.
    WriterId(u64)
}

/// A volume's identity, random at its creation. In formats for people it is 32 hexadecimal digits: most JSON
/// readers know no numbers of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u128);

impl Serialize for VolumeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for VolumeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u128::deserialize(deserializer).map(VolumeId);
        }
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(VolumeId).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of an availability zone, such as `az1`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AvailabilityZone(pub String);
