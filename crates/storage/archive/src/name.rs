//! Names of objects: the layout of a backup in its store.
//!
//! ```text
//! VOLUME/volume
//! VOLUME/history/EPOCH-DIGEST
//! VOLUME/marks/TO-FROM-LSN-NODE-DIGEST                              clock of the last and the first mark, in ms
//! VOLUME/snapshots/NAME
//! VOLUME/retention/REVISION
//! VOLUME/groups/GROUP/redo/LASTHIGH/LOW-PREVIOUS-EPOCH-THROUGH-NODE-DIGEST
//! VOLUME/groups/GROUP/pages/LSN-EPOCH-NODE-DIGEST
//! VOLUME/groups/GROUP/manifests/LSN-TAIL-EPOCH-NODE-DIGEST
//! ```
//!
//! Numbers are hexadecimal, in lower case, and have all their digits, so that names sort as numbers do: everything that ends
//! after some position stands after it in a listing. What a plan needs to know of an object stands in its name, for a listing
//! costs one request in a thousand objects and a header one for each.
//!
//! Of redo there are objects by the hundred thousand. The first nine digits of its position are a folder, of 256 MiB of redo: who looks for
//! what is new in a store that is a folder reads the last one alone.

use std::fmt;
use std::str::FromStr;

use borealis_types::{GroupId, Lsn, MAX_GROUPS, NodeId, VolumeEpoch, VolumeId};
use serde::{Deserialize, Serialize};

use crate::object::Digest;

/// The longest name of a snapshot, in characters.
pub const SNAPSHOT_NAME_MAX: usize = 63;

/// Redo objects whose last positions differ in these low bits alone are in one folder: 256 MiB of redo, seven digits.
const REDO_FOLDER_BITS: u32 = 28;

/// A redo object's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RedoName {
    /// The group whose records it has.
    pub group: GroupId,
    /// End of its last record.
    pub last_end: Lsn,
    /// End of the group's record before its first one; zero if that is the group's first. The object has every record of the
    /// group after it, to the last.
    pub previous_end: Lsn,
    /// The epoch in which its records were written.
    pub epoch: VolumeEpoch,
    /// The volume was durable to here when it was made, and the group has no record between its last and here.
    pub complete_through: Lsn,
    /// Who made it.
    pub node: NodeId,
    /// Of its bytes.
    pub digest: Digest,
}

/// A page object's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PagesName {
    /// The group whose pages it has.
    pub group: GroupId,
    /// As of which they are.
    pub lsn: Lsn,
    /// The epoch in which that LSN was durable.
    pub epoch: VolumeEpoch,
    /// Who made it.
    pub node: NodeId,
    /// Of its bytes.
    pub digest: Digest,
}

/// A manifest's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ManifestName {
    /// The group whose snapshot it completes.
    pub group: GroupId,
    /// As of which the snapshot is: all records of the group that end at or before it are in it.
    pub lsn: Lsn,
    /// End of the last of these records: where the chain goes on. Zero if there is none.
    pub tail_end: Lsn,
    /// The epoch in which `lsn` was durable.
    pub epoch: VolumeEpoch,
    /// Who made it.
    pub node: NodeId,
    /// Of its bytes.
    pub digest: Digest,
}

/// A history's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HistoryName {
    /// Of its newest opening.
    pub epoch: VolumeEpoch,
    /// Of its bytes.
    pub digest: Digest,
}

/// The name of a list of marks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MarksName {
    /// Clock of the last mark, in milliseconds since 1970.
    pub to_ms: u64,
    /// Clock of the first mark.
    pub from_ms: u64,
    /// The highest position that a mark in it names.
    pub lsn: Lsn,
    /// Who made it, and whose clock that is.
    pub node: NodeId,
    /// Of its bytes.
    pub digest: Digest,
}

impl MarksName {
    /// Whether this list has every mark of the other, and more: a node's list is written again with each new mark.
    #[must_use]
    pub fn supersedes(&self, other: &MarksName) -> bool {
        (self.node, self.from_ms) == (other.node, other.from_ms) && self.to_ms > other.to_ms
    }
}

/// What a person called a point: 1 to 63 lower-case letters, digits, `-`, `_` and `.`, and it begins with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

/// Text that cannot be the name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be the name of a snapshot: take 1 to {SNAPSHOT_NAME_MAX} lower-case letters, digits, `-`, `_` and `.`, a letter or digit first"
)]
pub struct SnapshotNameError(String);

impl TryFrom<String> for SnapshotName {
    type Error = SnapshotNameError;

    fn try_from(text: String) -> Result<SnapshotName, SnapshotNameError> {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = (1..=SNAPSHOT_NAME_MAX).contains(&text.len())
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(|byte| letter(byte) || b"-_.".contains(&byte));
        if good { Ok(SnapshotName(text)) } else { Err(SnapshotNameError(text.chars().take(80).collect())) }
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> String {
        name.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an object below its volume's folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Name {
    /// What the volume is.
    Volume,
    /// All openings.
    History(HistoryName),
    /// Positions against the clock.
    Marks(MarksName),
    /// A named snapshot.
    Snapshot(SnapshotName),
    /// How long points are kept; of several the highest revision counts.
    Retention {
        /// From 1; each change takes the next.
        revision: u64,
    },
    /// Records of a group.
    Redo(RedoName),
    /// Pages of a group.
    Pages(PagesName),
    /// What completes a snapshot of a group.
    Manifest(ManifestName),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Volume => f.write_str("volume"),
            Name::History(HistoryName { epoch, digest }) => write!(f, "history/{:016x}-{digest}", epoch.0),
            Name::Marks(MarksName { to_ms, from_ms, lsn, node, digest }) => {
                write!(f, "marks/{to_ms:016x}-{from_ms:016x}-{:016x}-{:04x}-{digest}", lsn.0, node.0)
            }
            Name::Snapshot(name) => write!(f, "snapshots/{name}"),
            Name::Retention { revision } => write!(f, "retention/{revision:016x}"),
            Name::Redo(name) => {
                let RedoName { group, last_end, previous_end, epoch, complete_through, node, digest } = name;
                let (high, low) =
                    (last_end.0 >> REDO_FOLDER_BITS, last_end.0 & ((1 << REDO_FOLDER_BITS) - 1));
                write!(f, "groups/{:04x}/redo/{high:09x}/{low:07x}-{:016x}", group.0, previous_end.0)?;
                write!(f, "-{:016x}-{:016x}-{:04x}-{digest}", epoch.0, complete_through.0, node.0)
            }
            Name::Pages(PagesName { group, lsn, epoch, node, digest }) => {
                let (group, lsn, epoch, node) = (group.0, lsn.0, epoch.0, node.0);
                write!(f, "groups/{group:04x}/pages/{lsn:016x}-{epoch:016x}-{node:04x}-{digest}")
            }
            Name::Manifest(ManifestName { group, lsn, tail_end, epoch, node, digest }) => {
                write!(f, "groups/{:04x}/manifests/{:016x}-{:016x}", group.0, lsn.0, tail_end.0)?;
                write!(f, "-{:016x}-{:04x}-{digest}", epoch.0, node.0)
            }
        }
    }
}

impl fmt::Display for PagesName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Name::Pages(*self).fmt(f)
    }
}

/// A name that no object of a backup has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of an object of a backup")]
pub struct NameError(String);

/// Reads numbers of a name, field by field.
struct Fields<'a>(std::str::Split<'a, char>);

impl Fields<'_> {
    fn number(&mut self, digits: usize) -> Option<u64> {
        hexadecimal(self.0.next()?, digits)
    }

    fn lsn(&mut self) -> Option<Lsn> {
        self.number(16).map(Lsn)
    }

    fn epoch(&mut self) -> Option<VolumeEpoch> {
        self.number(16).map(VolumeEpoch)
    }

    fn node(&mut self) -> Option<NodeId> {
        self.number(4).map(|node| NodeId(node as u16))
    }

    /// The last field.
    fn digest(mut self) -> Option<Digest> {
        let text = self.0.next()?;
        let digest = (text.len() == 32).then_some(text)?;
        let halves = digest.get(..16).zip(digest.get(16..))?;
        let number = u128::from(hexadecimal(halves.0, 16)?) << 64 | u128::from(hexadecimal(halves.1, 16)?);
        self.0.next().is_none().then_some(Digest(number.to_be_bytes()))
    }
}

/// A number of so many lower-case hexadecimal digits, at most 16.
fn hexadecimal(text: &str, digits: usize) -> Option<u64> {
    let plain = text.len() == digits
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn parse(text: &str) -> Option<Name> {
    let (folder, rest) = text.split_once('/').unwrap_or((text, ""));
    let mut fields = Fields(rest.split('-'));
    Some(match folder {
        "volume" if text == "volume" => Name::Volume,
        "history" => Name::History(HistoryName { epoch: fields.epoch()?, digest: fields.digest()? }),
        "marks" => {
            let (to_ms, from_ms) = (fields.number(16)?, fields.number(16)?);
            let (lsn, node) = (fields.lsn()?, fields.node()?);
            (from_ms <= to_ms).then_some(())?;
            Name::Marks(MarksName { to_ms, from_ms, lsn, node, digest: fields.digest()? })
        }
        "snapshots" => Name::Snapshot(SnapshotName::try_from(rest.to_owned()).ok()?),
        "retention" => Name::Retention { revision: hexadecimal(rest, 16)? },
        "groups" => parse_group(rest)?,
        _ => return None,
    })
}

fn parse_group(text: &str) -> Option<Name> {
    let mut parts = text.splitn(3, '/');
    let group = GroupId(hexadecimal(parts.next()?, 4)? as u16);
    (group.0 < MAX_GROUPS).then_some(())?;
    let (kind, rest) = (parts.next()?, parts.next()?);
    let joined = match (kind, rest.split_once('/')) {
        ("redo", Some((high, low))) if high.len() == 9 => format!("{high}{low}"),
        ("pages" | "manifests", None) => rest.to_owned(),
        _ => return None,
    };
    let mut fields = Fields(joined.split('-'));
    Some(match kind {
        "redo" => {
            let (last_end, previous_end) = (fields.lsn()?, fields.lsn()?);
            let (epoch, complete_through, node) = (fields.epoch()?, fields.lsn()?, fields.node()?);
            (previous_end < last_end && last_end <= complete_through).then_some(())?;
            let digest = fields.digest()?;
            Name::Redo(RedoName { group, last_end, previous_end, epoch, complete_through, node, digest })
        }
        "pages" => {
            let (lsn, epoch, node) = (fields.lsn()?, fields.epoch()?, fields.node()?);
            Name::Pages(PagesName { group, lsn, epoch, node, digest: fields.digest()? })
        }
        "manifests" => {
            let (lsn, tail_end, epoch, node) =
                (fields.lsn()?, fields.lsn()?, fields.epoch()?, fields.node()?);
            (tail_end <= lsn).then_some(())?;
            Name::Manifest(ManifestName { group, lsn, tail_end, epoch, node, digest: fields.digest()? })
        }
        _ => return None,
    })
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        parse(text).ok_or_else(|| NameError(text.chars().take(200).collect()))
    }
}

impl Name {
    /// What stands in the store: the name, in the volume's folder.
    #[must_use]
    pub fn key(&self, volume: VolumeId) -> String {
        format!("{volume}/{self}")
    }

    /// Where a listing begins that is to have a group's redo objects that end above `lsn`: their prefix, and a key before the first of them.
    #[must_use]
    pub fn redo_above(volume: VolumeId, group: GroupId, lsn: Lsn) -> (String, String) {
        let prefix = format!("{volume}/groups/{:04x}/redo/", group.0);
        let (high, low) = (lsn.0 >> REDO_FOLDER_BITS, lsn.0 & ((1 << REDO_FOLDER_BITS) - 1));
        // A tilde is after everything that a name has.
        let after = format!("{prefix}{high:09x}/{low:07x}~");
        (prefix, after)
    }

    /// As [`Name::redo_above`], for all page objects of a group.
    #[must_use]
    pub fn pages_of(volume: VolumeId, group: GroupId) -> (String, String) {
        let prefix = format!("{volume}/groups/{:04x}/pages/", group.0);
        (prefix.clone(), prefix)
    }

    /// As [`Name::redo_above`], for manifests as of positions above `lsn`.
    #[must_use]
    pub fn manifests_above(volume: VolumeId, group: GroupId, lsn: Lsn) -> (String, String) {
        let prefix = format!("{volume}/groups/{:04x}/manifests/", group.0);
        let after = format!("{prefix}{:016x}~", lsn.0);
        (prefix, after)
    }

    /// Of a key in the store, the volume and the name.
    ///
    /// # Errors
    /// When no object of a backup has that key.
    pub fn of_key(key: &str) -> Result<(VolumeId, Name), NameError> {
        let error = || NameError(key.chars().take(200).collect());
        let (volume, name) = key.split_once('/').ok_or_else(error)?;
        let halves = volume.get(..16).zip(volume.get(16..)).filter(|_| volume.len() == 32);
        let (high, low) = halves.ok_or_else(error)?;
        let (high, low) = hexadecimal(high, 16).zip(hexadecimal(low, 16)).ok_or_else(error)?;
        Ok((VolumeId(u128::from(high) << 64 | u128::from(low)), name.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> impl Strategy<Value = Name> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        (0..8, numbers, 0..MAX_GROUPS, any::<u16>(), any::<[u8; 16]>()).prop_map(
            |(kind, (one, two, three, four), group, node, digest)| {
                let (group, node, digest) = (GroupId(group), NodeId(node), Digest(digest));
                let epoch = VolumeEpoch(three);
                let (low, high) = (one.min(two), one.max(two));
                let tail_end = Lsn(low);
                match kind {
                    0 => Name::Volume,
                    1 => Name::History(HistoryName { epoch, digest }),
                    2 => {
                        let lsn = Lsn(three);
                        Name::Marks(MarksName { to_ms: high, from_ms: low, lsn, node, digest })
                    }
                    3 => Name::Snapshot(SnapshotName(format!("{one:x}-before.upgrade"))),
                    4 => Name::Retention { revision: one },
                    5 => Name::Redo(RedoName {
                        group,
                        last_end: Lsn((low / 2 + 1).max(four / 2)),
                        previous_end: Lsn(low / 2),
                        epoch,
                        complete_through: Lsn((low / 2 + 1).max(four / 2).max(high)),
                        node,
                        digest,
                    }),
                    6 => Name::Pages(PagesName { group, lsn: Lsn(one), epoch, node, digest }),
                    _ => {
                        Name::Manifest(ManifestName { group, lsn: Lsn(high), tail_end, epoch, node, digest })
                    }
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_written(name in names(), volume: u128) {
            prop_assert_eq!(name.to_string().parse(), Ok(name.clone()));
            prop_assert_eq!(Name::of_key(&name.key(VolumeId(volume))), Ok((VolumeId(volume), name)));
        }

        #[test]
        fn a_name_that_is_read_is_the_only_way_to_write_it(name in names(), at: prop::sample::Index, byte in "[ -~]") {
            let mut text = name.to_string();
            let at = at.index(text.len());
            text.replace_range(at..=at, &byte);
            if let Ok(read) = text.parse::<Name>() {
                prop_assert_eq!(read.to_string(), text);
            }
        }

        #[test]
        fn hostile_keys_never_panic(key in ".{0,200}") {
            let _ = Name::of_key(&key);
            let _ = Name::of_key(&format!("{:032x}/{key}", 7));
        }
    }

    #[test]
    fn names_sort_as_their_positions_do() {
        let at = |last: u64| {
            let digest = Digest([last as u8; 16]);
            let (group, epoch, node) = (GroupId(1), VolumeEpoch(1), NodeId(1));
            let (previous_end, last_end) = (Lsn(0), Lsn(last));
            Name::Redo(RedoName {
                group,
                last_end,
                previous_end,
                epoch,
                complete_through: last_end,
                node,
                digest,
            })
            .to_string()
        };
        let mut names: Vec<String> = [9, 10, 0x10, 0xFFFF, 0x1_0000_0000, u64::MAX].map(at).to_vec();
        assert!(names.is_sorted());
        names.reverse();
        assert!(!names.is_sorted());
    }

    #[test]
    fn a_listing_from_a_position_on_has_what_ends_above_it() {
        let (volume, group, digest) = (VolumeId(5), GroupId(3), Digest([0xFF; 16]));
        let (epoch, node) = (VolumeEpoch(1), NodeId(1));
        let ends = [8, (1 << 28) - 8, 1 << 28, (1 << 28) + 8, 1 << 40, u64::MAX];
        for (last, above) in ends.into_iter().flat_map(|last| ends.map(|above| (Lsn(last), Lsn(above)))) {
            let (previous_end, complete_through) = (Lsn(0), last);
            let redo =
                RedoName { group, last_end: last, previous_end, epoch, complete_through, node, digest };
            let (prefix, after) = Name::redo_above(volume, group, above);
            let key = Name::Redo(redo).key(volume);
            assert!(key.starts_with(&prefix));
            assert_eq!(key > after, last > above, "{last} above {above}");
            let manifest = ManifestName { group, lsn: last, tail_end: Lsn(0), epoch, node, digest };
            let (prefix, after) = Name::manifests_above(volume, group, above);
            let key = Name::Manifest(manifest).key(volume);
            assert!(key.starts_with(&prefix));
            assert_eq!(key > after, last > above, "{last} above {above}");
        }
    }

    #[test]
    fn what_cannot_be_is_no_name() {
        let digest = "0".repeat(32);
        let redo = |last: u64, previous: u64, through: u64| {
            format!(
                "groups/0001/redo/000000000/{last:07x}-{previous:016x}-{:016x}-{through:016x}-0001-{digest}",
                1
            )
        };
        assert!(redo(200, 100, 200).parse::<Name>().is_ok());
        for bad in [
            redo(100, 100, 200),
            redo(200, 100, 199),
            redo(200, 100, 200).replace("0001/redo", "0040/redo"),
            redo(200, 100, 200) + "-",
            redo(200, 100, 200).replace("redo", "Redo"),
            redo(200, 100, 200).replace("000000000/", "000000000"),
            redo(200, 100, 200).replace("000000000/0", "0000000000/"),
            "snapshots/".to_owned(),
            "snapshots/.hidden".to_owned(),
            "snapshots/a/b".to_owned(),
            format!("snapshots/{}", "a".repeat(64)),
            "volume/".to_owned(),
            "retention/1".to_owned(),
            String::new(),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was accepted");
        }
    }
}
