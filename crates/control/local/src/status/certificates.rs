//! When the certificates of a local cluster's parts expire, and how they are renewed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use borealis_client::{EXPIRY_WARNING, expiry_of};
use borealis_fleet::Fleet;
use borealis_spec::TlsFiles;
use borealis_types::{InstanceId, NodeId};
use serde::Serialize;

use super::{InstanceState, NodeState};
use crate::cluster::Cluster;
use crate::cluster::certificates::{CLIENT_NAME, HOSTS, TLS_NAME};
use crate::supervision::controlling;

/// What a node and a driver call the end of their certificate.
const EXPIRES_NAME: &str = "certificate_expires_seconds";

/// The certificate of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateState {
    /// `node 3`, `instance 1`, `controller`, or `commands`: what these show to nodes.
    pub part: String,
    /// When it is valid no more, in seconds since 1970.
    pub expires_seconds: u64,
    /// The last day it is valid, as `2026-11-27`.
    pub last_day: String,
    /// `valid`, `expires soon` (within 30 days) or `expired`.
    pub state: &'static str,
    /// The command that renews it; left out while it is `valid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew: Option<String>,
}

/// Those of the parts that run: one that is started gets a new certificate. A part that does not answer, as nobody talks to one whose
/// certificate has expired, is looked up in its folder.
pub(super) fn all(
    cluster: &Cluster,
    nodes: &[NodeState],
    instances: &[InstanceState],
    controller_runs: bool,
) -> Vec<CertificateState> {
    if !cluster.speaks_tls() {
        return Vec::new();
    }
    let now = SystemTime::now();
    let authority_ends = authority_ends(cluster, now);
    let directory = cluster.directory();
    let state = |part: String, said: Option<u64>, folder: &Path, role: String| {
        let certificate = TlsFiles::in_folder(folder).certificate;
        let expires_seconds = said.filter(|&seconds| seconds > 0).or_else(|| read(&certificate))?;
        let renew = match authority_ends {
            true => format!(
                "borealis fleet rotate --dir {0}, then borealis down --dir {0} and borealis up --dir {0}, for their authority \
                 ends as well",
                directory.display()
            ),
            false => format!(
                "borealis fleet certificate --dir {} {role} --out {}",
                directory.display(),
                folder.display()
            ),
        };
        Some(CertificateState::at(part, expires_seconds, now, renew))
    };
    let hosts: String = HOSTS.iter().map(|host| format!(" --host {host}")).collect();
    let of_nodes = nodes.iter().filter(|node| node.pid.is_some()).filter_map(|node| {
        let said = node.metrics.get(EXPIRES_NAME).and_then(serde_json::Value::as_u64);
        let folder = cluster.node_directory(NodeId(node.id)).join(TLS_NAME);
        state(format!("node {}", node.id), said, &folder, format!("--role node --id {}{hosts}", node.id))
    });
    let of_instances = instances.iter().filter(|instance| instance.driver_pid.is_some());
    let of_instances = of_instances.filter_map(|instance| {
        let said = instance.driver.get(EXPIRES_NAME).and_then(serde_json::Value::as_u64);
        let folder = cluster.instance_directory(InstanceId(instance.id)).join(TLS_NAME);
        let role = format!("--role instance --id {} --volume {}", instance.id, cluster.catalog.volume);
        state(format!("instance {}", instance.id), said, &folder, role)
    });
    let mut all: Vec<CertificateState> = of_nodes.chain(of_instances).collect();
    if controller_runs {
        let folder = controlling::folder(directory).join(TLS_NAME);
        all.extend(state("controller".to_owned(), None, &folder, "--role controller".to_owned()));
    }
    let folder: PathBuf = cluster.fleet_directory().join(CLIENT_NAME);
    all.extend(state("commands".to_owned(), None, &folder, "--role client".to_owned()));
    all
}

/// The end of the certificate in a file; `None` if that cannot be read, as by a user who may only look.
fn read(certificate: &Path) -> Option<u64> {
    let (_, expires) = expiry_of(certificate).ok()?;
    expires.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Whether a new certificate would expire soon, too.
fn authority_ends(cluster: &Cluster, now: SystemTime) -> bool {
    let Ok(fleet) = Fleet::open(&cluster.fleet_directory()) else { return false };
    let ends = fleet.authorities().last().map(|newest| newest.valid_until_seconds);
    ends.is_some_and(|ends| UNIX_EPOCH + Duration::from_secs(ends) <= now + EXPIRY_WARNING)
}

impl CertificateState {
    fn at(part: String, expires_seconds: u64, now: SystemTime, renew: String) -> CertificateState {
        let expires = UNIX_EPOCH + Duration::from_secs(expires_seconds);
        let (state, renew) = match expires.duration_since(now) {
            Err(_) => ("expired", Some(renew)),
            Ok(left) if left <= EXPIRY_WARNING => ("expires soon", Some(renew)),
            Ok(_) => ("valid", None),
        };
        CertificateState { part, expires_seconds, last_day: borealis_fleet::day(expires), state, renew }
    }
}

/// For a person, those alone that something is to be done about.
pub(super) fn text(certificates: &[CertificateState]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        let Some(renew) = &certificate.renew else { continue };
        let when = match certificate.state {
            "expired" => format!("has expired, on {}", certificate.last_day),
            _ => format!("expires on {}", certificate.last_day),
        };
        text += &format!("the certificate of {} {when}; renew it: {renew}\n", certificate.part);
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_of_certificates_that_end_within_thirty_days_and_how_to_renew_them() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_824_000);
        let at = |days: i64, seconds: i64| {
            let expires = 1_795_824_000 + days * 24 * 3600 + seconds;
            CertificateState::at("node 3".to_owned(), expires as u64, now, "do this".to_owned())
        };
        assert_eq!((at(30, 1).state, text(&[at(30, 1)])), ("valid", String::new()));
        let soon = at(30, 0);
        assert_eq!(soon.state, "expires soon");
        assert_eq!(text(&[soon]), "\nthe certificate of node 3 expires on 2026-12-28; renew it: do this\n");
        assert_eq!(at(0, 0).state, "expires soon");
        let over = at(0, -1);
        assert_eq!(over.state, "expired");
        assert_eq!(
            text(&[at(40, 0), over]),
            "\nthe certificate of node 3 has expired, on 2026-11-27; renew it: do this\n"
        );
    }
}
