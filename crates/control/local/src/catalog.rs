//! `cluster.json`: what a cluster consists of.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use borealis_spec::node::CONFIG_FILE_NAME;
use borealis_spec::{BackupConfig, Contradiction, Membership};
use borealis_types::{AvailabilityZone, InstanceId, NodeId, Placement, PostgresVersion, VolumeId, invariant};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::whole_file::write_whole;

/// Raised with every change that an older binary would misread.
const FORMAT: u32 = 3;
/// A catalog of before groups changed their members: which nodes have which group is what it was in the beginning.
const FORMAT_OF_FIXED_MEMBERS: u32 = 2;
/// A catalog of before nodes hosted some groups only: it says nothing of groups, and each of its six nodes has all.
const FORMAT_OF_SIX: u32 = 1;
pub(crate) const FILE_NAME: &str = "cluster.json";
const LOCK_NAME: &str = "cluster.lock";
/// There from before the first node is made until the catalog is written: only where it stands may nodes without a
/// catalog be removed, for they never held anything.
const CREATING_NAME: &str = "cluster.creating";
/// There from before a restore makes its first node until the catalog is written: an empty cluster in its place would pass for what was
/// to be restored.
const RESTORING_NAME: &str = "cluster.restoring";
const NODES_NAME: &str = "nodes";
/// The folder of the cluster's certificate authority, if its nodes speak TLS.
pub const FLEET_NAME: &str = "fleet";
/// What starting a node leaves in its folder, beside its store.
pub(crate) const NODE_LOG_NAME: &str = "node.log";
pub(crate) const NODE_PROCESS_NAME: &str = "process";
/// How long a command waits for another one to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// What a cluster consists of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Catalog {
    /// Version of this file's format; another one is refused.
    pub format: u32,
    /// The volume, as 32 hexadecimal digits.
    pub volume: String,
    /// Which PostgreSQL wrote the volume.
    pub postgres_version: PostgresVersion,
    /// How many protection groups the volume is striped over.
    pub protection_groups: Placement,
    /// Its nodes.
    pub nodes: Vec<NodeEntry>,
    /// Which nodes hosted which group when the volume was made. The segments know who does now; `fleet.json` says what was seen
    /// of it last.
    #[serde(default)]
    pub groups: Membership,
    /// Numbers of nodes that are gone for good. They are never given again: what such a node has promised would be taken for
    /// the new one's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub retired_nodes: BTreeSet<NodeId>,
    /// Where metrics are shown on 127.0.0.1: the instance's on this port, and each node's on this port and its number. Zero for
    /// nowhere; absent for nowhere, too, but for nodes whose `node.json` says something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_port: Option<u16>,
    /// Where the nodes upload the volume's redo; absent for nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupConfig>,
    /// The database instances; today the writer alone.
    pub instances: Vec<InstanceEntry>,
}

/// A storage node: one process with one folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its number, from 1.
    pub id: NodeId,
    /// The availability zone it stands in for.
    pub zone: AvailabilityZone,
    /// The identity of its store, as 32 hexadecimal digits: a folder that was lost and made anew is another
    /// node, and must not vote under the old identity.
    pub incarnation: String,
    /// TCP port on 127.0.0.1 if it is spoken to over TLS; absent for a Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A database instance: a driver and its server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstanceEntry {
    /// Its number, from 1.
    pub id: InstanceId,
    /// TCP port of its database on 127.0.0.1.
    pub port: u16,
    /// Folder with `postgres` and `initdb`.
    pub postgres_bin_dir: PathBuf,
    /// System user of its server when started by root.
    pub postgres_user: Option<String>,
    /// A memory file system's folder, below which the instance's own is made.
    pub memory_root: PathBuf,
    /// How much memory cached pages should take at most; `None` for a share of what is free.
    #[serde(default)]
    pub cache_limit_bytes: Option<u64>,
    /// Settings of PostgreSQL that the user gave with `--pg-set`, by name.
    pub settings: std::collections::BTreeMap<String, String>,
}

/// Why a directory is not a usable cluster.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The directory is empty or does not exist.
    #[error("there is no Borealis cluster in {0}; create one with `borealis up --dir {0}`")]
    Missing(PathBuf),
    /// The directory has other content, which is not touched.
    #[error("{0} is not empty and is not a Borealis cluster; nothing was changed. Choose another --dir")]
    NotOurs(PathBuf),
    /// The stores of a cluster are there, its catalog is not.
    #[error(
        "{0} has the nodes of a cluster, but {FILE_NAME} is missing; nothing was changed. `borealis up --dir {0}` makes it \
         anew from what the nodes know"
    )]
    Lost(PathBuf),
    /// A version of Borealis with another format made it.
    #[error("{path} has format {found}, this Borealis reads format {FORMAT}; use the version that made it")]
    Format {
        /// The catalog's file.
        path: PathBuf,
        /// The format number it has.
        found: u64,
    },
    /// The file is no catalog, or contradicts itself.
    #[error("{path} cannot be read as a cluster's catalog: {reason}. Nothing was changed")]
    Damaged {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it, in words.
        reason: String,
    },
    /// Another command is at work.
    #[error("another borealis command is changing {0}; wait for it to finish")]
    Locked(PathBuf),
    /// Another user's: their next command could not use what this user's would leave there.
    #[error(
        "the cluster in {path} belongs to {owner}; run the command as that user (`sudo -u {argument} borealis …`)"
    )]
    Owner {
        /// The cluster's directory.
        path: PathBuf,
        /// The user, for a person.
        owner: String,
        /// The user, for `sudo`.
        argument: String,
    },
    /// The catalog's file cannot be read or written; why is the source, which whoever shows an error shows, too.
    #[error("cannot use {path}")]
    File {
        /// The file or folder of the operation.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

/// Holds a cluster's lock; other commands that change it wait or say so.
#[derive(Debug)]
pub struct CatalogLock {
    _lock: Flock<File>,
}

impl Catalog {
    /// An empty catalog of the current format.
    #[must_use]
    pub fn new(volume: VolumeId, placement: Placement, version: PostgresVersion) -> Catalog {
        Catalog {
            format: FORMAT,
            volume: volume.to_string(),
            postgres_version: version,
            protection_groups: placement,
            nodes: Vec::new(),
            groups: Membership::default(),
            retired_nodes: BTreeSet::new(),
            metrics_port: None,
            backup: None,
            instances: Vec::new(),
        }
    }

    /// The volume's identity.
    ///
    /// # Panics
    /// Never: [`Catalog::load`] has checked it.
    #[must_use]
    pub fn volume_id(&self) -> VolumeId {
        VolumeId(u128::from_str_radix(&self.volume, 16).expect("checked when loaded"))
    }

    /// Whether a cluster can be made in `directory`: it does not exist, or holds nothing but what a creation that
    /// was interrupted left (its lock, its mark, and below the mark nodes that belong to no catalog).
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_fresh(directory: &Path) -> Result<bool, CatalogError> {
        let names = names_in(directory)?;
        let interrupted = names.iter().any(|name| name == CREATING_NAME) && !nodes_have_run(directory)?;
        Ok(names.iter().all(|name| {
            // What was being written when it was interrupted has a name that begins like its own.
            let begins = |with: &str| name.to_string_lossy().starts_with(with);
            // An authority may be made before its cluster.
            name == LOCK_NAME
                || name == FLEET_NAME
                || begins(CREATING_NAME)
                || begins(RESTORING_NAME)
                || (interrupted && (name == NODES_NAME || (begins(FILE_NAME) && name != FILE_NAME)))
        }))
    }

    /// Whether a restore into `directory` was begun, and has not ended.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_restoring(directory: &Path) -> Result<bool, CatalogError> {
        let names = names_in(directory)?;
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        Ok(has(RESTORING_NAME) && !has(FILE_NAME))
    }

    /// Whether `directory` has the nodes of a cluster and no catalog, though nobody was about to make one; nodes that ran
    /// are a cluster's, whatever mark stands beside them.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_lost(directory: &Path) -> Result<bool, CatalogError> {
        let names = names_in(directory)?;
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        if has(FILE_NAME) || (has(CREATING_NAME) && !nodes_have_run(directory)?) {
            return Ok(false);
        }
        let nodes = directory.join(NODES_NAME);
        Ok(names_in(&nodes)?.iter().any(|node| nodes.join(node).join(CONFIG_FILE_NAME).is_file()))
    }

    /// Begins to make a cluster: what an earlier creation left that was interrupted is removed, and the mark is set that
    /// says so of this one. [`Catalog::end_creation`] takes it away once the catalog is written.
    ///
    /// # Errors
    /// When the directory has nodes that no interrupted creation left, which are not touched; or cannot be written.
    pub(crate) fn begin_creation(directory: &Path) -> Result<(), CatalogError> {
        let (mark, nodes) = (directory.join(CREATING_NAME), directory.join(NODES_NAME));
        let look = |path: &Path| {
            path.try_exists().map_err(|source| CatalogError::File { path: path.to_path_buf(), source })
        };
        if look(&nodes)? {
            if !look(&mark)? || look(&directory.join(FILE_NAME))? || nodes_have_run(directory)? {
                return Err(CatalogError::Lost(directory.to_path_buf()));
            }
            fs::remove_dir_all(&nodes).map_err(|source| CatalogError::File { path: nodes, source })?;
        }
        write_whole(&mark, b"").map_err(|source| CatalogError::File { path: mark, source })
    }

    /// Sets the mark that says that what is made in `directory` is restored.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn begin_restore(directory: &Path) -> Result<(), CatalogError> {
        let mark = directory.join(RESTORING_NAME);
        write_whole(&mark, b"").map_err(|source| CatalogError::File { path: mark, source })
    }

    /// The catalog is written: whatever becomes of it from now on, the nodes are a cluster's.
    ///
    /// # Errors
    /// When a mark is there and cannot be removed.
    pub(crate) fn end_creation(directory: &Path) -> Result<(), CatalogError> {
        [RESTORING_NAME, CREATING_NAME].into_iter().try_for_each(|name| remove_mark(directory, name))
    }

    /// Reads the catalog of `directory`.
    ///
    /// # Errors
    /// When there is none, or it is not of this format, or damaged.
    pub fn load(directory: &Path) -> Result<Catalog, CatalogError> {
        let path = directory.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(if Self::is_fresh(directory)? {
                    CatalogError::Missing(directory.to_path_buf())
                } else if Self::is_lost(directory)? {
                    CatalogError::Lost(directory.to_path_buf())
                } else {
                    CatalogError::NotOurs(directory.to_path_buf())
                });
            }
            Err(source) => return Err(CatalogError::File { path, source }),
        };
        let damaged = |reason: String| CatalogError::Damaged { path: path.clone(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(found)
                if [FORMAT, FORMAT_OF_FIXED_MEMBERS, FORMAT_OF_SIX]
                    .into_iter()
                    .map(u64::from)
                    .any(|known| known == found) => {}
            Some(found) => return Err(CatalogError::Format { path: path.clone(), found }),
            None => return Err(damaged("it has no format number".to_owned())),
        }
        let mut catalog: Catalog =
            serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
        if catalog.format == FORMAT_OF_SIX {
            let nodes: Vec<NodeId> = catalog.nodes.iter().map(|node| node.id).collect();
            catalog.groups = Membership::everyone_has_everything(catalog.protection_groups, &nodes);
        }
        catalog.format = FORMAT;
        if u128::from_str_radix(&catalog.volume, 16).is_err() || catalog.nodes.is_empty() {
            return Err(damaged("its volume or nodes are missing".to_owned()));
        }
        if !catalog.names_each_part_once() {
            return Err(damaged("two nodes or two instances have one number".to_owned()));
        }
        catalog.check_groups().map_err(|contradiction| damaged(contradiction.to_string()))?;
        Ok(catalog)
    }

    /// Checks that every group had six of the nodes that there are or were.
    fn check_groups(&self) -> Result<(), Contradiction> {
        let placement = self.protection_groups;
        self.groups.validate(placement, |node| {
            self.retired_nodes.contains(&node) || self.nodes.iter().any(|known| known.id == node)
        })?;
        self.groups.require_quorum_sets(placement)
    }

    /// Whether no two nodes and no two instances have one number: folders and processes are found by it.
    fn names_each_part_once(&self) -> bool {
        let nodes: BTreeSet<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let instances: BTreeSet<InstanceId> = self.instances.iter().map(|instance| instance.id).collect();
        (nodes.len(), instances.len()) == (self.nodes.len(), self.instances.len())
            && nodes.is_disjoint(&self.retired_nodes)
    }

    /// The number of the next node: above all that were ever given.
    ///
    /// # Errors
    /// When there is none left.
    pub fn next_node(&self) -> anyhow::Result<NodeId> {
        let nodes = self.nodes.iter().map(|node| node.id);
        let hosts = self.groups.iter().flat_map(|members| members.nodes.iter().copied());
        let last = nodes.chain(hosts).chain(self.retired_nodes.iter().copied()).max().unwrap_or_default();
        last.0.checked_add(1).map(NodeId).context("there are no numbers left for nodes")
    }

    /// Whether a command is changing the cluster now.
    #[must_use]
    pub fn is_locked(directory: &Path) -> bool {
        let Ok(file) = File::options().write(true).open(directory.join(LOCK_NAME)) else { return false };
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    }

    /// Writes the catalog, whole or not at all.
    ///
    /// # Errors
    /// When the directory cannot be written.
    ///
    /// # Panics
    /// If two nodes, or two instances, have one number.
    pub fn save(&self, directory: &Path) -> Result<(), CatalogError> {
        invariant!("catalog-names-each-part-once", self.names_each_part_once());
        let path = directory.join(FILE_NAME);
        let mut text = serde_json::to_vec_pretty(self).expect("a catalog is plain data");
        text.push(b'\n');
        write_whole(&path, &text).map_err(|source| CatalogError::File { path: path.clone(), source })
    }

    /// Whether this process's user made the cluster in `directory`. Only they may change it or act in it: files that root
    /// left in somebody's cluster would be closed to them. Nothing is there yet, and nobody is refused.
    ///
    /// # Errors
    /// When it is another user's, or cannot be looked at.
    pub fn check_owner(directory: &Path) -> Result<(), CatalogError> {
        // Made first and never again, unlike the catalog's file; and the directory itself may be anybody's.
        for name in [NODES_NAME, FILE_NAME] {
            let path = directory.join(name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.uid() == nix::unistd::geteuid().as_raw() => return Ok(()),
                Ok(metadata) => return Err(owned_by(directory, metadata.uid())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(CatalogError::File { path, source }),
            }
        }
        Ok(())
    }

    /// Takes the lock that commands which change the cluster hold; waits a moment for one that is about to end.
    ///
    /// # Errors
    /// When another command keeps it, or the cluster is another user's.
    pub fn lock(directory: &Path) -> Result<CatalogLock, CatalogError> {
        Self::check_owner(directory)?;
        let path = directory.join(LOCK_NAME);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| CatalogError::File { path, source })?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(CatalogLock { _lock: lock }),
                Err(_) if Instant::now() > deadline => {
                    return Err(CatalogError::Locked(directory.to_path_buf()));
                }
                Err((file, _)) => file,
            };
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn owned_by(directory: &Path, user_id: u32) -> CatalogError {
    let user = nix::unistd::User::from_uid(user_id.into()).ok().flatten();
    let (owner, argument) = match user {
        Some(user) => (format!("the user `{}`", user.name), user.name),
        None => (format!("user {user_id}"), format!("#{user_id}")),
    };
    CatalogError::Owner { path: directory.to_path_buf(), owner, argument }
}

/// The names in a folder; none if it does not exist.
fn names_in(folder: &Path) -> Result<Vec<std::ffi::OsString>, CatalogError> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            let names: Result<Vec<_>, _> =
                entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
            names.map_err(|source| CatalogError::File { path: folder.to_path_buf(), source })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(CatalogError::File { path: folder.to_path_buf(), source }),
    }
}

/// Whether a node below `directory` was ever started: that leaves files which making it does not.
fn nodes_have_run(directory: &Path) -> Result<bool, CatalogError> {
    let nodes = directory.join(NODES_NAME);
    if !nodes.is_dir() {
        return Ok(false);
    }
    let has_run = |node: &std::ffi::OsString| {
        [NODE_LOG_NAME, NODE_PROCESS_NAME].iter().any(|name| nodes.join(node).join(name).exists())
    };
    Ok(names_in(&nodes)?.iter().any(has_run))
}

/// Removes a mark, durably, if it is there.
fn remove_mark(directory: &Path, name: &str) -> Result<(), CatalogError> {
    let mark = directory.join(name);
    // A file system that is read-only refuses to remove even what is not there.
    let removed = match fs::symlink_metadata(&mark) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.and_then(|_| fs::remove_file(&mark)).and_then(|()| File::open(directory)?.sync_all()),
    };
    removed.map_err(|source| CatalogError::File { path: mark, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Catalog {
        let placement = Placement::new(4).expect("4 groups");
        let mut catalog = Catalog::new(VolumeId(77), placement, PostgresVersion::V15);
        catalog.nodes.extend((1..=6).map(|number: u16| NodeEntry {
            id: NodeId(number),
            zone: AvailabilityZone(format!("az{}", number.div_ceil(2))),
            incarnation: "ab".to_owned(),
            port: None,
        }));
        let nodes: Vec<NodeId> = catalog.nodes.iter().map(|node| node.id).collect();
        catalog.groups = Membership::everyone_has_everything(placement, &nodes);
        catalog
    }

    #[test]
    fn a_catalog_survives_the_disk() {
        let directory = tempfile::tempdir().expect("temporary folder");
        sample().save(directory.path()).expect("saved");
        let loaded = Catalog::load(directory.path()).expect("loaded");
        assert_eq!(loaded, sample());
        assert_eq!(loaded.volume_id(), VolumeId(77));
    }

    /// The sample as it is written, changed.
    fn written(directory: &Path, change: impl FnOnce(&mut serde_json::Value)) {
        sample().save(directory).expect("saved");
        let file = directory.join(FILE_NAME);
        let mut value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
        change(&mut value);
        fs::write(&file, value.to_string()).expect("written");
    }

    #[test]
    fn six_nodes_of_before_have_every_group() {
        let directory = tempfile::tempdir().expect("temporary folder");
        written(directory.path(), |value| {
            value["format"] = 1.into();
            value.as_object_mut().expect("an object").remove("groups");
        });
        assert_eq!(Catalog::load(directory.path()).expect("loaded"), sample());
    }

    #[test]
    fn a_group_without_six_known_nodes_is_not_read() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let refused = |change: &dyn Fn(&mut serde_json::Value)| {
            written(directory.path(), change);
            Catalog::load(directory.path()).expect_err("refused").to_string()
        };
        let said = refused(&|value| value["groups"][3]["nodes"][5] = 7.into());
        assert!(said.contains("group 3 has node 7, which is not among"), "{said}");
        let said = refused(&|value| drop(value["groups"].as_array_mut().expect("a list").pop()));
        assert!(said.contains("group 3 has 0 members, not six"), "{said}");
    }

    #[test]
    #[should_panic(expected = "invariant catalog-names-each-part-once is broken")]
    fn two_nodes_of_one_number_are_not_written() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let mut catalog = sample();
        catalog.nodes.push(catalog.nodes[0].clone());
        let _ = catalog.save(directory.path());
    }

    #[test]
    fn two_nodes_of_one_number_are_not_read() {
        let directory = tempfile::tempdir().expect("temporary folder");
        written(directory.path(), |value| {
            let node = value["nodes"][0].clone();
            value["nodes"].as_array_mut().expect("a list").push(node);
        });
        assert!(matches!(Catalog::load(directory.path()), Err(CatalogError::Damaged { .. })));
    }

    #[test]
    fn other_peoples_directories_are_left_alone() {
        let directory = tempfile::tempdir().expect("temporary folder");
        assert!(matches!(Catalog::load(directory.path()), Err(CatalogError::Missing(_))));
        drop(Catalog::lock(directory.path()).expect("free"));
        Catalog::begin_creation(directory.path()).expect("nothing is there");
        fs::create_dir(directory.path().join("nodes")).expect("made");
        fs::write(directory.path().join("cluster.json.new"), "{").expect("written");
        assert!(
            Catalog::is_fresh(directory.path()).expect("listed"),
            "an interrupted creation may be repeated"
        );
        fs::write(directory.path().join("thesis.txt"), "precious").expect("written");
        assert!(matches!(Catalog::load(directory.path()), Err(CatalogError::NotOurs(_))));
    }

    #[test]
    fn an_interrupted_restore_is_known_until_it_has_ended() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let path = directory.path();
        assert!(!Catalog::is_restoring(path).expect("listed"));
        Catalog::begin_restore(path).expect("begun");
        Catalog::begin_creation(path).expect("nothing is there");
        assert!(Catalog::is_restoring(path).expect("listed") && Catalog::is_fresh(path).expect("listed"));
        sample().save(path).expect("saved");
        assert!(!Catalog::is_restoring(path).expect("listed"), "the catalog comes last");
        Catalog::end_creation(path).expect("ended");
        assert!(!path.join(RESTORING_NAME).exists() && !path.join(CREATING_NAME).exists());
    }

    #[test]
    fn only_what_an_interrupted_creation_left_is_removed() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let path = directory.path();
        let node = path.join("nodes/1");
        Catalog::begin_creation(path).expect("nothing is there");
        fs::create_dir_all(&node).expect("made");
        Catalog::begin_creation(path).expect("begun again");
        assert!(!node.exists(), "nothing was ever in it");

        // A mark that was left behind, or nodes that were put beside it, from a backup perhaps.
        fs::create_dir_all(&node).expect("made");
        fs::write(node.join(CONFIG_FILE_NAME), "{}").expect("written");
        fs::write(node.join(NODE_LOG_NAME), "it ran").expect("written");
        assert!(!Catalog::is_fresh(path).expect("listed") && Catalog::is_lost(path).expect("listed"));
        assert!(matches!(Catalog::begin_creation(path), Err(CatalogError::Lost(_))));
        fs::remove_dir_all(&node).expect("removed");

        fs::create_dir_all(&node).expect("made");
        fs::write(node.join(CONFIG_FILE_NAME), "{}").expect("written");
        sample().save(path).expect("saved");
        assert!(Catalog::begin_creation(path).is_err(), "the catalog says that the nodes are a cluster's");
        Catalog::end_creation(path).expect("ended");
        Catalog::end_creation(path).expect("ended already");
        fs::remove_file(path.join(FILE_NAME)).expect("lost");
        assert!(!Catalog::is_fresh(path).expect("listed"));
        assert!(Catalog::is_lost(path).expect("listed"));
        assert!(matches!(Catalog::load(path), Err(CatalogError::Lost(_))));
        assert!(matches!(Catalog::begin_creation(path), Err(CatalogError::Lost(_))));
        assert!(node.exists(), "a store that may have data was removed");
    }

    #[test]
    fn another_format_and_damage_are_told_apart() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let file = directory.path().join(FILE_NAME);
        fs::write(&file, r#"{"format": 99}"#).expect("written");
        assert!(matches!(Catalog::load(directory.path()), Err(CatalogError::Format { found: 99, .. })));
        fs::write(&file, "{").expect("written");
        assert!(matches!(Catalog::load(directory.path()), Err(CatalogError::Damaged { .. })));
    }

    #[test]
    fn another_users_cluster_is_not_changed() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("temporary folder");
        let path = directory.path();
        // A directory is given to somebody before anything is in it.
        std::os::unix::fs::chown(path, Some(65534), None).expect("given");
        drop(Catalog::lock(path).expect("nothing is there yet"));
        fs::create_dir(path.join(NODES_NAME)).expect("made");
        drop(Catalog::lock(path).expect("ours"));
        fs::remove_file(path.join(LOCK_NAME)).expect("removed");
        std::os::unix::fs::chown(path.join(NODES_NAME), Some(65534), None).expect("given");
        let said = Catalog::lock(path).expect_err("somebody else's").to_string();
        assert!(said.contains("belongs to the user `nobody`") && said.contains("sudo -u nobody"), "{said}");
        assert!(!path.join(LOCK_NAME).exists(), "a file was left in it");
    }

    #[test]
    fn an_error_is_told_once() {
        let source = std::io::Error::from_raw_os_error(13);
        let error = CatalogError::File { path: "/cluster".into(), source };
        assert_eq!(
            format!("{:#}", anyhow::Error::from(error)),
            "cannot use /cluster: Permission denied (os error 13)"
        );
    }

    #[test]
    fn a_nodes_number_is_given_once() {
        let mut catalog = sample();
        assert_eq!(catalog.next_node().expect("there are more"), NodeId(7));
        catalog.retired_nodes.insert(NodeId(9));
        assert_eq!(catalog.next_node().expect("there are more"), NodeId(10));
        catalog.retired_nodes.insert(NodeId(u16::MAX));
        assert!(catalog.next_node().is_err());
    }

    #[test]
    fn one_command_at_a_time() {
        let directory = tempfile::tempdir().expect("temporary folder");
        assert!(!Catalog::is_locked(directory.path()), "nobody ever did");
        let first = Catalog::lock(directory.path()).expect("free");
        assert!(Catalog::is_locked(directory.path()));
        assert!(matches!(Catalog::lock(directory.path()), Err(CatalogError::Locked(_))));
        drop(first);
        assert!(!Catalog::is_locked(directory.path()));
        assert!(Catalog::lock(directory.path()).is_ok());
    }
}
