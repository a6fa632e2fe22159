//! Writes down what each host of a fleet is given: a folder for each of its parts, with configuration and certificate.
//!
//! ```text
//! FOLDER/volume.json                       what was chosen once for the fleet
//! FOLDER/hosts/HOST/node-1/node.json       and tls/ beside it
//! FOLDER/hosts/HOST/instance-1/instance.json
//! FOLDER/hosts/HOST/controller/tls/
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use borealis_spec::Role;
use borealis_spec::node::CONFIG_FILE_NAME;
use serde::Serialize;

use crate::files::{SECRET, private_folder, write_whole};
use crate::inventory::{Chosen, Inventory, InventoryError, Plan};
use crate::{Fleet, FleetError, Validity};

const CHOSEN_NAME: &str = "volume.json";
pub(crate) const HOSTS_NAME: &str = "hosts";
const TLS_NAME: &str = "tls";
/// The name of an instance's configuration in its folder.
const INSTANCE_CONFIG_NAME: &str = "instance.json";

/// Why what the hosts are given could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The inventory makes no fleet.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A certificate or a file cannot be made.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The fleet has another name than the inventory.
    #[error(
        "the authority in {folder} is that of the fleet `{found}`, and the file is of `{wanted}`; nothing was changed"
    )]
    OtherFleet {
        /// Where the authority is.
        folder: PathBuf,
        /// Its fleet.
        found: String,
        /// The inventory's.
        wanted: String,
    },
}

/// What was written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// A folder for each host, with all that is for it.
    pub folders: Vec<PathBuf>,
    /// The folder of each controller, in which its certificate is.
    pub controllers: Vec<PathBuf>,
    /// What the parts are told.
    pub plan: Plan,
}

/// Writes down what each host is given, anew and whole. `fleet` is the authority in `folder`.
///
/// # Errors
/// When the inventory makes no fleet, or something cannot be written.
pub fn write_hosts(
    fleet: &Fleet,
    folder: &Path,
    inventory: &Inventory,
    validity: Validity,
    random: impl FnMut() -> u128,
) -> Result<Written, HostsError> {
    if *fleet.name() != inventory.name {
        let (found, wanted) = (fleet.name().to_string(), inventory.name.to_string());
        return Err(HostsError::OtherFleet { folder: folder.to_owned(), found, wanted });
    }
    let chosen_file = folder.join(CHOSEN_NAME);
    let plan = inventory.plan(read_chosen(&chosen_file)?, random)?;
    // First: a plan that was interrupted must not give another volume the next time.
    write_json(&chosen_file, &plan.chosen)?;
    let hosts = folder.join(HOSTS_NAME);
    for (host, config) in &plan.nodes {
        let part = hosts.join(host).join(format!("node-{}", config.node));
        write_part(&part, CONFIG_FILE_NAME, config)?;
        fleet.issue(Role::Node(config.node), std::slice::from_ref(host), validity, &part.join(TLS_NAME))?;
    }
    for (host, config) in &plan.instances {
        let part = hosts.join(host).join(format!("instance-{}", config.instance));
        write_part(&part, INSTANCE_CONFIG_NAME, config)?;
        fleet.issue(Role::Instance(config.volume, config.instance), &[], validity, &part.join(TLS_NAME))?;
    }
    let mut controllers = Vec::new();
    for controller in &inventory.controllers {
        let part = hosts.join(&controller.host).join("controller");
        fleet.issue(Role::Controller, &[], validity, &part.join(TLS_NAME))?;
        controllers.push(part);
    }
    Ok(Written { folders: folders(&hosts, inventory, &plan), controllers, plan })
}

fn folders(hosts: &Path, inventory: &Inventory, plan: &Plan) -> Vec<PathBuf> {
    let names = plan.nodes.iter().map(|(host, _)| host);
    let names = names.chain(plan.instances.iter().map(|(host, _)| host));
    let names = names.chain(inventory.controllers.iter().map(|controller| &controller.host));
    let mut folders: Vec<PathBuf> = names.map(|host| hosts.join(host)).collect();
    folders.sort();
    folders.dedup();
    folders
}

fn read_chosen(path: &Path) -> Result<Option<Chosen>, FleetError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FleetError::File { path: path.to_owned(), source }),
    };
    let damaged =
        |error: serde_json::Error| FleetError::Damaged { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

fn write_part(folder: &Path, name: &str, config: &impl Serialize) -> Result<(), FleetError> {
    private_folder(folder).map_err(|source| FleetError::File { path: folder.to_owned(), source })?;
    write_json(&folder.join(name), config)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FleetError> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data always encodes");
    text.push(b'\n');
    write_whole(path, SECRET, &text).map_err(|source| FleetError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::{DriverConfig, NodeConfig};

    #[test]
    fn every_host_is_given_its_parts_and_no_others() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut text = "name = \"north\"\ngroups = 2\n".to_owned();
        for id in 1..=6 {
            let zone = (id - 1) / 2 + 1;
            text += &format!("[[node]]\nid = {id}\nzone = \"az{zone}\"\nhost = \"host{id}\"\n");
        }
        text += "[[instance]]\nid = 1\nhost = \"host1\"\n[[controller]]\nhost = \"watch\"\n";
        let inventory = Inventory::parse(&text).expect("a fleet");
        let fleet =
            Fleet::init(folder.path(), "north".parse().expect("a name"), Validity::days(30)).expect("made");
        let write = || {
            let mut last = 0;
            let random = || {
                last += 1;
                last
            };
            write_hosts(&fleet, folder.path(), &inventory, Validity::days(30), random).expect("written")
        };
        let hosts = write().folders;
        assert_eq!(hosts.len(), 7);
        let read =
            |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let node: NodeConfig =
            serde_json::from_slice(&read(hosts[0].join("node-1/node.json"))).expect("a node");
        let instance: DriverConfig =
            serde_json::from_slice(&read(hosts[0].join("instance-1/instance.json"))).expect("an instance");
        assert_eq!(node.volume, instance.volume);
        for part in ["node-1", "instance-1"] {
            assert!(hosts[0].join(part).join("tls/key.pem").is_file(), "{part}");
        }
        assert!(
            !hosts[1].join("node-1").exists() && hosts[6].join("controller/tls/certificate.pem").is_file()
        );
        // Again: the same volume, and new certificates.
        write();
        let again: NodeConfig =
            serde_json::from_slice(&read(hosts[0].join("node-1/node.json"))).expect("a node");
        assert_eq!(again, node);
        let other = Inventory::parse(&text.replace("north", "south")).expect("a fleet");
        let refused = write_hosts(&fleet, folder.path(), &other, Validity::days(30), || 1);
        assert!(matches!(refused, Err(HostsError::OtherFleet { .. })));
    }
}
