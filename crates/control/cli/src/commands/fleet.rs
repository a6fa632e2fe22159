//! The certificates of a fleet: its authority, and what that signs for nodes, instances and tools.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use borealis_client::EXPIRY_WARNING;
use borealis_controller::catalog::records::{
    FleetGroup, MembershipRecord, NodeRecord, NodeState, Record, VolumeRecord,
};
use borealis_controller::catalog::{Catalog, Change, Key, TRANSACTION_PARTS_MAX, Transaction};
use borealis_fleet::hosts::write_hosts;
use borealis_fleet::inventory::{Chosen, ControllerLine, Inventory, Plan};
use borealis_fleet::{Fleet, FleetError, Issued, Selection, Serial, Standing, Validity};
use borealis_local::catalog::FLEET_NAME;
use borealis_local::embedded_catalog::EmbeddedCatalog;
use borealis_spec::{FleetName, Role, TlsFiles};
use borealis_types::{InstanceId, NodeId, PostgresVersion, VolumeId};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

/// An authority is valid for ten years, where nobody says otherwise.
const AUTHORITY_DAYS: u32 = 3650;

/// What is done with certificates.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Make the certificate authority of a new fleet.
    Init {
        /// The fleet's name: lower-case letters, digits and `-`. [default: one at random]
        #[arg(long)]
        name: Option<FleetName>,
        /// For how many days the authority is valid.
        #[arg(long, value_name = "N", default_value_t = AUTHORITY_DAYS)]
        valid_days: u32,
    },
    /// Write down what each host of a fleet is given: configurations and certificates, anew each time.
    Plan {
        /// What the fleet consists of; see docs/operations.md.
        #[arg(value_name = "FLEET.toml")]
        inventory: PathBuf,
        /// For how many days the certificates are valid, at most as long as the authority.
        #[arg(long, value_name = "N", default_value_t = 365)]
        valid_days: u32,
    },
    /// Make the certificate and key of a part, or renew them.
    Certificate(CertificateArguments),
    /// Make a new authority that signs from now on, trusted beside those before it.
    Rotate {
        /// For how many days it is valid.
        #[arg(long, value_name = "N", default_value_t = 3650)]
        valid_days: u32,
    },
    /// Trust an authority no more, once every part has a certificate of a newer one.
    Retire {
        /// Its number, as `fleet list` shows it.
        number: u32,
    },
    /// Take certificates back, of a host that was stolen for instance: whoever has the new file of authorities refuses them.
    Revoke(RevokeArguments),
    /// List the authorities, and the certificates that were made and have not expired.
    List,
}

/// Whose certificates are taken back; one of the four ways to say it.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group(ArgGroup::new("which").required(true).args(["role", "host", "serial", "certificate"])))]
pub struct RevokeArguments {
    /// All of this part: every one that it ever got and that has not expired.
    #[arg(long)]
    role: Option<RoleName>,
    /// The number of a node or instance.
    #[arg(long, value_name = "N", requires = "role", required_if_eq_any = [("role", "node"), ("role", "instance")])]
    id: Option<u16>,
    /// The volume of an instance, if there are several with its number.
    #[arg(long, value_parser = parse_volume, requires = "role")]
    volume: Option<VolumeId>,
    /// All of the parts on a host, as `fleet plan` named it, and of nodes that are called so.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The one with this number, as `fleet list` shows it.
    #[arg(long, value_name = "HEX")]
    serial: Option<Serial>,
    /// The one in this file.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// Whose certificate is made.
#[derive(Debug, Args)]
pub struct CertificateArguments {
    /// What the part is.
    #[arg(long)]
    role: RoleName,
    /// The number of a node or instance.
    #[arg(long, value_name = "N", required_if_eq_any = [("role", "node"), ("role", "instance")])]
    id: Option<u16>,
    /// The volume of an instance, 32 hexadecimal digits, as its nodes' `node.json` says.
    #[arg(long, value_parser = parse_volume, required_if_eq("role", "instance"))]
    volume: Option<VolumeId>,
    /// A name or an IP address that a node is called by; may be given many times.
    #[arg(long = "host", value_name = "HOST", required_if_eq("role", "node"))]
    hosts: Vec<String>,
    /// For how many days it is valid, at most as long as the authority.
    #[arg(long, value_name = "N", default_value_t = 365)]
    valid_days: u32,
    /// The folder for the three files. [default: DIR/fleet/ROLE-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The kinds of parts.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RoleName {
    /// A storage node.
    Node,
    /// A database instance, which writes and recovers its volume.
    Instance,
    /// The controller.
    Controller,
    /// A tool that looks.
    Client,
}

fn parse_volume(text: &str) -> Result<VolumeId, String> {
    match u128::from_str_radix(text, 16) {
        Ok(number) if text.len() == 32 => Ok(VolumeId(number)),
        _ => Err("a volume has 32 hexadecimal digits".to_owned()),
    }
}

/// Makes, renews and lists certificates.
pub fn fleet(dir: &Path, command: &FleetCommand) -> anyhow::Result<ExitCode> {
    let place = std::path::absolute(dir).context("cannot find out where this is")?.join(FLEET_NAME);
    match command {
        FleetCommand::Init { name, valid_days } => {
            let name = match name {
                Some(name) => name.clone(),
                None => random_name()?,
            };
            let fleet = Fleet::init(&place, name, Validity::days(*valid_days))?;
            eprintln!(
                "the fleet `{}` has its authority; keep {} where nobody else can read it, and a copy elsewhere",
                fleet.name(),
                place.join("authority-1.key").display()
            );
            println!("{}", fleet.authorities_file().display());
        }
        FleetCommand::Plan { inventory, valid_days } => {
            plan(&place, inventory, Validity::days(*valid_days))?;
        }
        FleetCommand::Certificate(arguments) => {
            let issued = certificate(&Fleet::open(&place)?, &place, arguments)?;
            eprintln!("{} is valid until {}", issued.identity, issued.last_day());
            println!("{}", issued.files.certificate.parent().unwrap_or(&place).display());
        }
        FleetCommand::Rotate { valid_days } => {
            let mut fleet = Fleet::open(&place)?;
            let authority = fleet.rotate(Validity::days(*valid_days))?;
            eprintln!(
                "authority {} signs from now on. First give {} to every part, as its authorities.pem; then renew every \
                 certificate; then `borealis fleet retire` those before it",
                authority.number,
                fleet.authorities_file().display()
            );
            println!("{}", fleet.authorities_file().display());
        }
        FleetCommand::Retire { number } => {
            let mut fleet = Fleet::open(&place)?;
            fleet.retire(*number)?;
            eprintln!("give {} to every part, as its authorities.pem", fleet.authorities_file().display());
            println!("{}", fleet.authorities_file().display());
        }
        FleetCommand::Revoke(arguments) => revoke(&Fleet::open(&place)?, arguments)?,
        FleetCommand::List => list(&Fleet::open(&place)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the authority, too, if there is none: the inventory names the fleet.
fn plan(place: &Path, inventory: &Path, validity: Validity) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(inventory).with_context(|| format!("cannot read {}", inventory.display()))?;
    let inventory = Inventory::parse(&text)
        .with_context(|| format!("{} describes no fleet; nothing was changed", inventory.display()))?;
    let fleet = match Fleet::open(place) {
        Err(FleetError::Missing(_)) => {
            let fleet = Fleet::init(place, inventory.name.clone(), Validity::days(AUTHORITY_DAYS))?;
            eprintln!(
                "the fleet `{}` has its authority; keep {} where nobody else can read it, and a copy elsewhere",
                fleet.name(),
                place.join("authority-1.key").display()
            );
            fleet
        }
        fleet => fleet?,
    };
    // Read before anything is written, so that a machine without it changes nothing.
    let mut source =
        std::fs::File::open("/dev/urandom").context("cannot read random numbers from /dev/urandom")?;
    // One for the volume, and one for the store of each node.
    let mut bytes = vec![[0; 16]; inventory.nodes.len() + 1];
    for number in &mut bytes {
        source.read_exact(number).context("cannot read random numbers from /dev/urandom")?;
    }
    let mut numbers = bytes.into_iter().map(u128::from_le_bytes);
    let random = || numbers.next().expect("a plan takes one for the volume, and one for each node");
    let written = write_hosts(&fleet, place, &inventory, validity, random)?;
    for (part, line) in written.controllers.iter().zip(&inventory.controllers) {
        give_catalog(part, line, &inventory, &written.plan)?;
    }
    written.folders.iter().for_each(|host| println!("{}", host.display()));
    Ok(())
}

/// Gives a controller its configuration, and a catalog with what the fleet was created as: the nodes tell it what became of that.
fn give_catalog(
    part: &Path,
    line: &ControllerLine,
    inventory: &Inventory,
    plan: &Plan,
) -> anyhow::Result<()> {
    let catalog_folder = part.join("catalog");
    std::fs::create_dir_all(&catalog_folder)
        .with_context(|| format!("cannot make {}", catalog_folder.display()))?;
    let mut config = serde_json::json!({"catalog": "catalog", "tls": TlsFiles::in_folder(Path::new("tls"))});
    if let Some(address) = &line.metrics {
        config["metrics_listen"] = serde_json::to_value(address)?;
    }
    let config_file = part.join("controller.json");
    std::fs::write(&config_file, format!("{config:#}\n"))
        .with_context(|| format!("cannot write {}", config_file.display()))?;
    let mut catalog = EmbeddedCatalog::new(&catalog_folder);
    let entered: BTreeSet<Key> = catalog.list("")?.entries.into_keys().collect();
    let mut changes = records(inventory, plan);
    changes.retain(|change| !entered.contains(change.key()));
    for changes in changes.chunks(TRANSACTION_PARTS_MAX) {
        let transaction = Transaction { conditions: Vec::new(), changes: changes.to_vec() };
        catalog.commit(&transaction)?;
    }
    Ok(())
}

/// What a catalog says of a fleet that was just created.
fn records(inventory: &Inventory, plan: &Plan) -> Vec<Change> {
    let Chosen { volume, groups, incarnations, created } = &plan.chosen;
    let (volume, placement) = (*volume, *groups);
    let mut changes =
        vec![VolumeRecord { volume, postgres_version: PostgresVersion::NEWEST, placement }.put()];
    for (line, address) in inventory.nodes.iter().zip(&plan.addresses) {
        let record = NodeRecord {
            node: line.id,
            zone: line.zone.clone(),
            address: address.address.to_string(),
            incarnation: incarnations.get(&line.id).cloned().unwrap_or_default(),
            state: NodeState::Active,
        };
        changes.push(record.put());
    }
    for (group, membership) in created.first_memberships() {
        changes.push(MembershipRecord { group: FleetGroup { volume, group }, membership }.put());
    }
    changes
}

fn certificate(fleet: &Fleet, place: &Path, arguments: &CertificateArguments) -> anyhow::Result<Issued> {
    let (role, name) = match (arguments.role, arguments.id, arguments.volume) {
        (RoleName::Node, Some(id), None) => (Role::Node(NodeId(id)), format!("node-{id}")),
        (RoleName::Instance, Some(id), Some(volume)) => {
            (Role::Instance(volume, InstanceId(id)), format!("instance-{volume}-{id}"))
        }
        (RoleName::Controller, None, None) => (Role::Controller, "controller".to_owned()),
        (RoleName::Client, None, None) => (Role::Client, "client".to_owned()),
        _ => bail!("--id is for a node or an instance, --volume for an instance; nothing was made"),
    };
    let out = match &arguments.out {
        Some(out) => std::path::absolute(out).context("cannot find out where --out is")?,
        None => place.join(name),
    };
    Ok(fleet.issue(role, &arguments.hosts, Validity::days(arguments.valid_days), &out)?)
}

fn revoke(fleet: &Fleet, arguments: &RevokeArguments) -> anyhow::Result<()> {
    let selection = match (arguments.role, arguments.id, arguments.volume) {
        (Some(RoleName::Node), Some(id), None) => Selection::Part(Role::Node(NodeId(id))),
        (Some(RoleName::Instance), Some(id), Some(volume)) => {
            Selection::Part(Role::Instance(volume, InstanceId(id)))
        }
        (Some(RoleName::Instance), Some(id), None) => Selection::Instance(InstanceId(id)),
        (Some(RoleName::Controller), None, None) => Selection::Part(Role::Controller),
        (Some(RoleName::Client), None, None) => Selection::Part(Role::Client),
        (Some(_), ..) => {
            bail!("--id is for a node or an instance, --volume for an instance; nothing was changed")
        }
        (None, ..) => match (&arguments.host, &arguments.serial, &arguments.certificate) {
            (Some(host), ..) => Selection::Host(host.clone()),
            (_, Some(serial), _) => Selection::Serial(serial.clone()),
            (.., Some(file)) => Selection::File(file.clone()),
            (None, None, None) => bail!("say which with --role, --host, --serial or --certificate"),
        },
    };
    for revoked in fleet.revoke(&selection, SystemTime::now())? {
        let whose = match &revoked.identity {
            Some(identity) => identity.to_string(),
            None => "a certificate that was not noted when it was made".to_owned(),
        };
        let state = if revoked.was_revoked { "was revoked already" } else { "is revoked" };
        eprintln!("{whose}, number {}: {state}", revoked.serial);
    }
    eprintln!(
        "give {} to every part, as its authorities.pem: only who has it refuses these certificates, within a second or two and \
         without a restart. A part that is to go on needs that file and a new certificate (`borealis fleet certificate`)",
        fleet.authorities_file().display()
    );
    println!("{}", fleet.authorities_file().display());
    Ok(())
}

fn list(fleet: &Fleet) -> anyhow::Result<()> {
    let newest = fleet.authorities().last().map(|authority| authority.number);
    println!("fleet {}", fleet.name());
    for authority in fleet.authorities() {
        let state = match authority.is_retired {
            true => "retired",
            false if Some(authority.number) == newest => "signs",
            false => "trusted",
        };
        println!("authority {} {state} until {}", authority.number, authority.last_day());
    }
    let now = SystemTime::now();
    for Standing { certificate, revoked_day, is_of_retired } in fleet.certificates()? {
        if !certificate.has_not_expired(now) {
            continue;
        }
        let state = match revoked_day {
            Some(day) => format!("revoked {day}"),
            None if is_of_retired => format!("of authority {}, which is retired", certificate.authority),
            None if !certificate.has_not_expired(now + EXPIRY_WARNING) => "expires soon".to_owned(),
            None => "valid".to_owned(),
        };
        println!(
            "certificate {} {} until {} {state}",
            certificate.serial,
            certificate.identity,
            certificate.last_day()
        );
    }
    Ok(())
}

fn random_name() -> anyhow::Result<FleetName> {
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random numbers from /dev/urandom")?;
    format!("fleet-{:08x}", u32::from_le_bytes(bytes)).parse().context("it is a name")
}
