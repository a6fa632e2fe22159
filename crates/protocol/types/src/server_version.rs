//! Which release of PostgreSQL wrote a record.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::PostgresVersion;

/// A release of PostgreSQL, as its `server_version_num` counts them: 150018 is 15.18.
///
/// Redo is chosen by the release that *wrote* a record. Minor releases share every layout ([`Self::major`]), but a
/// bug fix may change what redo makes of the same bytes, and then the server and the storage nodes must agree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(u32);

impl ServerVersion {
    /// The oldest release that the tests on a real PostgreSQL have run with. An older one is started with a warning:
    /// its redo may differ in a way that nobody has looked at.
    pub const OLDEST_TESTED: ServerVersion = ServerVersion(PostgresVersion::OLDEST.facts().oldest_tested);
    /// The newest one; a newer one is started with the same warning.
    pub const NEWEST_TESTED: ServerVersion = ServerVersion(PostgresVersion::NEWEST.facts().newest_tested);

    /// The release with this `server_version_num`.
    ///
    /// # Errors
    /// When its major version is not one that Borealis knows.
    pub const fn new(server_version_num: u32) -> Result<ServerVersion, UnsupportedServerVersion> {
        match major_of(server_version_num) {
            Some(_) => Ok(ServerVersion(server_version_num)),
            None => Err(UnsupportedServerVersion { server_version_num }),
        }
    }

    /// Some release of a major version, where only layouts matter.
    #[must_use]
    pub const fn any_of(major: PostgresVersion) -> ServerVersion {
        ServerVersion(major.facts().newest_tested)
    }

    /// PostgreSQL's own number for the release.
    #[must_use]
    pub const fn server_version_num(self) -> u32 {
        self.0
    }

    /// The major version, by which every layout goes.
    #[must_use]
    pub const fn major(self) -> PostgresVersion {
        match major_of(self.0) {
            Some(major) => major,
            None => unreachable!(),
        }
    }

    /// Whether no test has run with a release of its major version as old as this one.
    #[must_use]
    pub const fn is_older_than_tested(self) -> bool {
        self.0 < self.major().facts().oldest_tested
    }

    /// Whether no test has run with a release of its major version as new as this one.
    #[must_use]
    pub const fn is_newer_than_tested(self) -> bool {
        self.0 > self.major().facts().newest_tested
    }
}

/// Since PostgreSQL 10 a `server_version_num` is the major version times 10,000 plus the minor release.
const NUMBERS_PER_MAJOR: u32 = 10_000;

const fn major_of(server_version_num: u32) -> Option<PostgresVersion> {
    PostgresVersion::of_number(server_version_num / NUMBERS_PER_MAJOR)
}

impl fmt::Display for ServerVersion {
    /// As PostgreSQL prints it: `15.18`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / NUMBERS_PER_MAJOR, self.0 % NUMBERS_PER_MAJOR)
    }
}

impl fmt::Debug for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A `server_version_num` of a major version that Borealis does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "server version {server_version_num} is not a release of PostgreSQL {}",
    PostgresVersion::supported()
)]
pub struct UnsupportedServerVersion {
    /// The number as it came.
    pub server_version_num: u32,
}

/// Text that is not a release Borealis knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a release of PostgreSQL {versions}; write it as PostgreSQL does, for example {example}",
    versions = PostgresVersion::supported(),
    example = ServerVersion::OLDEST_TESTED
)]
pub struct ParseServerVersionError(String);

impl FromStr for ServerVersion {
    type Err = ParseServerVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseServerVersionError(text.chars().take(64).collect());
        let number = |digits: &str| {
            // Four digits: what is longer would count into the next major version.
            let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u32>().ok()).flatten().ok_or_else(error)
        };
        let (major, minor) = text.split_once('.').ok_or_else(error)?;
        ServerVersion::new(number(major)? * NUMBERS_PER_MAJOR + number(minor)?).map_err(|_| error())
    }
}

impl Serialize for ServerVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ServerVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            ServerVersion::new(u32::deserialize(deserializer)?).map_err(serde::de::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    proptest! {
        #[test]
        fn only_releases_of_a_known_major_version_exist(number in prop_oneof![0u32..200_000, any::<u32>()]) {
            let known = (150_000..160_000).contains(&number);
            prop_assert_eq!(ServerVersion::new(number).is_ok(), known);
        }

        #[test]
        fn display_and_parse_are_inverse(minor in 0u32..10_000) {
            let release = ServerVersion::new(150_000 + minor).unwrap();
            prop_assert_eq!(release.to_string(), format!("15.{minor}"));
            prop_assert_eq!(release.to_string().parse::<ServerVersion>(), Ok(release));
            prop_assert_eq!(release.server_version_num(), 150_000 + minor);
            prop_assert_eq!(release.major(), PostgresVersion::V15);
        }

        #[test]
        fn hostile_text_never_panics(text in ".{0,40}") {
            let _ = text.parse::<ServerVersion>();
        }
    }

    #[test]
    fn parse_refuses_what_postgres_would_not_print() {
        for text in
            ["", "15", "15.", ".18", "15.+1", "15.10000", "15.18.1", "14.9", "16.1", "15beta1", " 15.18"]
        {
            assert!(text.parse::<ServerVersion>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn serialized_values_go_through_the_check() {
        let text = |value: &'static str| {
            let deserializer: StrDeserializer<'_, Error> = value.into_deserializer();
            ServerVersion::deserialize(deserializer)
        };
        assert_eq!(text("15.18").unwrap().server_version_num(), 150_018);
        assert!(text("14.9").is_err() && text("150018").is_err());
    }

    #[test]
    fn releases_are_ordered_as_they_were_made() {
        let release = |text: &str| text.parse::<ServerVersion>().unwrap();
        assert!(release("15.9") < release("15.18"));
        for tested in [ServerVersion::OLDEST_TESTED, ServerVersion::NEWEST_TESTED] {
            assert!(!tested.is_older_than_tested() && !tested.is_newer_than_tested());
        }
        assert!(release("15.0").is_older_than_tested() && !release("15.0").is_newer_than_tested());
        assert!(release("15.9999").is_newer_than_tested() && !release("15.9999").is_older_than_tested());
    }
}
