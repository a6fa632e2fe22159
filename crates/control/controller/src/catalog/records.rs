//! What the catalog's entries mean.
//!
//! | Key | Record |
//! |---|---|
//! | `settings` | [`Settings`]: how patient and how quick the controller is |
//! | `nodes/NODE` | [`NodeRecord`]: a storage node |
//! | `volumes/VOLUME` | [`VolumeRecord`]: a volume |
//! | `memberships/VOLUME/GROUP` | [`MembershipRecord`]: a group's membership as it was last seen |
//! | `moves/VOLUME/GROUP/FROM` | [`MoveRecord`]: a segment that shall go from one healthy node to another |
//! | `instances/VOLUME/INSTANCE` | [`InstanceRecord`]: a database instance |
//!
//! Keys of other beginnings are left alone: a newer version may have written them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use borealis_quorum::membership::GroupMembership;
use borealis_types::{AvailabilityZone, GroupId, InstanceId, NodeId, Placement, PostgresVersion, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{CatalogError, Change, Condition, Entry, Key, Listing, Revision};

/// A protection group of one of the fleet's volumes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FleetGroup {
    /// The volume.
    pub volume: VolumeId,
    /// Its group.
    pub group: GroupId,
}

impl fmt::Display for FleetGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} of volume {}", self.group, self.volume)
    }
}

/// What the fleet's operator wants of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It hosts segments.
    Active,
    /// Its segments shall go to other nodes of its zone; it keeps each until then.
    Draining,
    /// It hosts nothing and gets nothing.
    Removed,
}

/// A storage node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number in the fleet.
    pub node: NodeId,
    /// The zone it stands in.
    pub zone: AvailabilityZone,
    /// Where it listens, as in its configuration.
    pub address: String,
    /// The identity of its store, as 32 hexadecimal digits.
    pub incarnation: String,
    /// What shall become of it.
    pub state: NodeState,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its identity.
    pub volume: VolumeId,
    /// The release that wrote it first.
    pub postgres_version: PostgresVersion,
    /// How many groups it is striped over.
    pub placement: Placement,
}

/// A group's membership as the controller last saw it. The segments know better; this tells whom to ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MembershipRecord {
    /// The group.
    #[serde(flatten)]
    pub group: FleetGroup,
    /// Its epoch, and one set of members, or two or four while they change.
    #[serde(flatten)]
    pub membership: GroupMembership,
}

/// A segment that shall go from one node to another although nothing is wrong: rebalancing. Without such a record, a change
/// whose old member is well is taken back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct MoveRecord {
    /// The group.
    #[serde(flatten)]
    pub group: FleetGroup,
    /// The member that shall go.
    pub from: NodeId,
    /// The node of the same zone that shall have its place.
    pub to: NodeId,
}

/// A database instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its volume.
    pub volume: VolumeId,
    /// Its number in the volume.
    pub instance: InstanceId,
    /// Where its driver answers, as in its configuration.
    pub address: String,
}

/// How patient and how quick the controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// A node that nobody has heard for so long is replaced. Zero: no lost member is replaced, whatever became of it, unless its
    /// node is to be emptied.
    pub replace_after_ms: u64,
    /// A node that was not heard for so long counts as silent.
    pub silent_after_ms: u64,
    /// The most members that change at the same time in the whole fleet.
    pub changes_max: usize,
    /// Of these, the most that are begun to drain or to rebalance: a repair never waits for all of them.
    pub moves_max: usize,
    /// The most changes in which one node takes part as the newcomer, or leaves although it is well.
    pub changes_per_node_max: usize,
    /// Whether the controller may start node processes by itself where a zone has none left to take a segment.
    pub starts_nodes: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            replace_after_ms: 60_000,
            silent_after_ms: 5_000,
            changes_max: 16,
            moves_max: 8,
            changes_per_node_max: 2,
            starts_nodes: false,
        }
    }
}

impl Settings {
    /// For a cluster on one machine: less patience, for there is no network between its nodes, and processes are free. All
    /// segments of a lost node go to the one that is started in its place, so that one may take many at once; how fast they
    /// are filled is bounded by each node itself.
    #[must_use]
    pub fn local() -> Settings {
        Settings {
            replace_after_ms: 10_000,
            silent_after_ms: 2_000,
            changes_max: 32,
            moves_max: 16,
            changes_per_node_max: 16,
            starts_nodes: true,
        }
    }

    /// Whether lost members are replaced at all.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.replace_after_ms > 0
    }

    /// Whether the numbers make sense together.
    ///
    /// # Errors
    /// Says which does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let broken = [
            (self.silent_after_ms == 0, "`silent_after_ms` is zero: every node would be silent at once"),
            (
                self.replaces() && self.replace_after_ms < self.silent_after_ms,
                "`replace_after_ms` is below `silent_after_ms`",
            ),
            (self.changes_max == 0, "`changes_max` is zero: nothing would be repaired"),
            (self.moves_max > self.changes_max, "`moves_max` is above `changes_max`"),
            (self.changes_per_node_max == 0, "`changes_per_node_max` is zero: nothing would be repaired"),
        ];
        broken.iter().find(|(is_broken, _)| *is_broken).map_or(Ok(()), |(_, why)| Err(*why))
    }
}

/// A kind of entry.
pub trait Record: Serialize + DeserializeOwned {
    /// Where its keys begin.
    const PREFIX: &'static str;

    /// What follows the beginning; empty if there is one such entry.
    fn name(&self) -> String;

    /// Its key.
    ///
    /// # Panics
    /// Never: numbers and hexadecimal digits make a key.
    fn key(&self) -> Key {
        Key::new(format!("{}{}", Self::PREFIX, self.name()))
            .expect("numbers and hexadecimal digits make a key")
    }

    /// The write of it.
    ///
    /// # Panics
    /// Never: it is plain data.
    fn put(&self) -> Change {
        Change::Put(self.key(), serde_json::to_value(self).expect("a record is plain data"))
    }

    /// The condition that the entry is still as it was in `fleet`, or still not there.
    fn is_as_in(&self, fleet: &Fleet) -> Condition {
        fleet.is_as_read(&self.key())
    }

    /// The record that an entry holds.
    ///
    /// # Errors
    /// When it holds something else, or the record of another key.
    fn read(key: &Key, entry: &Entry) -> Result<Self, CatalogError> {
        let damaged = |why: String| CatalogError::Damaged(format!("the entry `{key}`: {why}"));
        let record: Self =
            serde_json::from_value(entry.value.clone()).map_err(|error| damaged(error.to_string()))?;
        if record.key() != *key {
            return Err(damaged(format!("it is what belongs to `{}`", record.key())));
        }
        Ok(record)
    }
}

impl Record for Settings {
    const PREFIX: &'static str = "settings";

    fn name(&self) -> String {
        String::new()
    }
}

impl Record for NodeRecord {
    const PREFIX: &'static str = "nodes/";

    fn name(&self) -> String {
        self.node.to_string()
    }
}

impl Record for VolumeRecord {
    const PREFIX: &'static str = "volumes/";

    fn name(&self) -> String {
        self.volume.to_string()
    }
}

impl Record for MembershipRecord {
    const PREFIX: &'static str = "memberships/";

    fn name(&self) -> String {
        format!("{}/{}", self.group.volume, self.group.group)
    }
}

impl Record for MoveRecord {
    const PREFIX: &'static str = "moves/";

    fn name(&self) -> String {
        format!("{}/{}/{}", self.group.volume, self.group.group, self.from)
    }
}

impl Record for InstanceRecord {
    const PREFIX: &'static str = "instances/";

    fn name(&self) -> String {
        format!("{}/{}", self.volume, self.instance)
    }
}

/// Everything that the catalog says of the fleet, as of one revision.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fleet {
    /// How patient and how quick the controller is; the default if the catalog does not say.
    pub settings: Settings,
    /// Every node by its number.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Every volume by its identity.
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Every group's membership as last seen.
    pub memberships: BTreeMap<FleetGroup, MembershipRecord>,
    /// Segments that shall move.
    pub moves: BTreeSet<MoveRecord>,
    /// Every instance.
    pub instances: BTreeMap<(VolumeId, InstanceId), InstanceRecord>,
    revisions: BTreeMap<Key, Revision>,
}

impl Fleet {
    /// The fleet that a listing of everything describes.
    ///
    /// # Errors
    /// When an entry is not what its key promises, or the settings contradict themselves.
    pub fn read(listing: &Listing) -> Result<Fleet, CatalogError> {
        let mut fleet = Fleet::default();
        for (key, entry) in &listing.entries {
            fleet.add(key, entry)?;
            fleet.revisions.insert(key.clone(), entry.revision);
        }
        fleet
            .settings
            .check()
            .map_err(|why| CatalogError::Damaged(format!("the entry `settings`: {why}")))?;
        Ok(fleet)
    }

    /// The condition that an entry is still as it was read, or still not there.
    #[must_use]
    pub fn is_as_read(&self, key: &Key) -> Condition {
        match self.revisions.get(key) {
            Some(revision) => Condition::Unchanged(key.clone(), *revision),
            None => Condition::Absent(key.clone()),
        }
    }

    fn add(&mut self, key: &Key, entry: &Entry) -> Result<(), CatalogError> {
        let text = key.as_str();
        if text == Settings::PREFIX {
            self.settings = Settings::read(key, entry)?;
        } else if text.starts_with(NodeRecord::PREFIX) {
            let node = NodeRecord::read(key, entry)?;
            self.nodes.insert(node.node, node);
        } else if text.starts_with(VolumeRecord::PREFIX) {
            let volume = VolumeRecord::read(key, entry)?;
            self.volumes.insert(volume.volume, volume);
        } else if text.starts_with(MembershipRecord::PREFIX) {
            let membership = MembershipRecord::read(key, entry)?;
            self.memberships.insert(membership.group, membership);
        } else if text.starts_with(MoveRecord::PREFIX) {
            self.moves.insert(MoveRecord::read(key, entry)?);
        } else if text.starts_with(InstanceRecord::PREFIX) {
            let instance = InstanceRecord::read(key, entry)?;
            self.instances.insert((instance.volume, instance.instance), instance);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::MembershipEpoch;

    use super::super::table::MemoryCatalog;
    use super::super::{Catalog, Outcome, Transaction, Value};
    use super::*;

    const GROUP: FleetGroup = FleetGroup { volume: VolumeId(0xfeed), group: GroupId(3) };

    fn node(number: u16) -> NodeRecord {
        NodeRecord {
            node: NodeId(number),
            zone: AvailabilityZone("az1".to_owned()),
            address: "unix:/run/borealis/1.sock".to_owned(),
            incarnation: "ab".to_owned(),
            state: NodeState::Draining,
        }
    }

    fn sample() -> Vec<Change> {
        let sets = vec![[1, 2, 3, 4, 5, 6].map(NodeId), [1, 2, 3, 4, 5, 7].map(NodeId)];
        let membership = GroupMembership::new(MembershipEpoch(2), sets).expect("one replacement");
        vec![
            Settings::local().put(),
            node(7).put(),
            VolumeRecord {
                volume: GROUP.volume,
                postgres_version: PostgresVersion::V15,
                placement: Placement::new(4).expect("four groups"),
            }
            .put(),
            MembershipRecord { group: GROUP, membership }.put(),
            MoveRecord { group: GROUP, from: NodeId(6), to: NodeId(7) }.put(),
            InstanceRecord { volume: GROUP.volume, instance: InstanceId(1), address: "here".to_owned() }
                .put(),
            Change::Put(Key::new("backups/1").expect("a key"), Value::from(7)),
        ]
    }

    fn stored(changes: Vec<Change>) -> MemoryCatalog {
        let mut catalog = MemoryCatalog::default();
        let transaction = Transaction { conditions: vec![], changes };
        assert!(matches!(catalog.commit(&transaction), Ok(Outcome::Committed(_))));
        catalog
    }

    #[test]
    fn every_record_is_read_as_it_was_written() {
        let mut catalog = stored(sample());
        let fleet = Fleet::read(&catalog.list("").expect("listed")).expect("read");
        let again: Vec<Change> = std::iter::once(fleet.settings.put())
            .chain(fleet.nodes.values().map(Record::put))
            .chain(fleet.volumes.values().map(Record::put))
            .chain(fleet.memberships.values().map(Record::put))
            .chain(fleet.moves.iter().map(Record::put))
            .chain(fleet.instances.values().map(Record::put))
            .collect();
        assert_eq!(again, sample()[..6], "what this version does not know is left out, and is no error");
    }

    #[test]
    fn a_record_is_replaced_only_as_it_was_read() {
        let mut catalog = stored(sample());
        let fleet = Fleet::read(&catalog.list("").expect("listed")).expect("read");
        let mut replace = |record: NodeRecord| {
            let conditions = vec![record.is_as_in(&fleet)];
            catalog
                .commit(&Transaction { conditions, changes: vec![record.put()] })
                .expect("no limit is broken")
        };
        let removed = |number| NodeRecord { state: NodeState::Removed, ..node(number) };
        assert!(matches!(replace(removed(7)), Outcome::Committed(_)));
        assert_eq!(replace(removed(7)), Outcome::Conflict, "it was read before the other change");
        assert!(matches!(replace(removed(8)), Outcome::Committed(_)));
        assert_eq!(replace(removed(8)), Outcome::Conflict, "there was none when it was read");
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_key() {
        let refused = |change: Change, expected: &str| {
            let mut catalog = stored(vec![change]);
            let said = Fleet::read(&catalog.list("").expect("listed")).expect_err(expected).to_string();
            assert!(said.contains(expected), "{said}");
        };
        let key = |text: &str| Key::new(text).expect("a key");
        refused(Change::Put(key("nodes/7"), Value::from(1)), "`nodes/7`");
        let Change::Put(_, other) = node(8).put() else { panic!("a write") };
        refused(Change::Put(key("nodes/7"), other), "belongs to `nodes/8`");
        let impatient = Settings { replace_after_ms: 1, ..Settings::default() };
        refused(impatient.put(), "`replace_after_ms` is below");
        refused(Settings { changes_max: 0, ..Settings::default() }.put(), "`changes_max` is zero");
    }
}
