//! Certificates of a local cluster whose nodes speak TLS: its own authority is in `DIR/fleet`, and each part gets a new
//! certificate whenever it is started.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use borealis_client::{ClientError, Credentials, NodeClient, Route, Timeouts};
use borealis_fleet::{Fleet, FleetError, Validity};
use borealis_instance::OperatingSystemUser;
use borealis_spec::{Role, TlsFiles};
use borealis_types::NodeId;
use borealis_wire::Caller;

use super::Cluster;
use crate::catalog::{FLEET_NAME, InstanceEntry};
use crate::node_user;

/// A part's certificate in the part's folder.
pub(crate) const TLS_NAME: &str = "tls";
pub(crate) const CLIENT_NAME: &str = "client";
/// Nobody renews them while a part runs, so that they outlive it.
const VALID_DAYS: u32 = 3650;
/// What a local cluster's nodes are called.
pub(crate) const HOSTS: [&str; 2] = ["127.0.0.1", "localhost"];

/// The certificate that commands show, read when it is first needed; why it cannot be used, if so.
#[derive(Debug, Default)]
pub(super) struct OwnCertificate(OnceLock<Result<Arc<Credentials>, String>>);

impl Cluster {
    /// Whether nodes are spoken to over TLS.
    #[must_use]
    pub fn speaks_tls(&self) -> bool {
        self.catalog.nodes.iter().any(|node| node.port.is_some())
    }

    /// The folder of the cluster's authority.
    #[must_use]
    pub fn fleet_directory(&self) -> PathBuf {
        self.directory().join(FLEET_NAME)
    }

    /// Gives a node its certificate, which `user` may read; does nothing if it listens on a socket.
    pub(super) fn issue_for_node(
        &self,
        node: NodeId,
        folder: &Path,
        user: Option<&OperatingSystemUser>,
    ) -> anyhow::Result<()> {
        if self.node(node)?.port.is_none() {
            return Ok(());
        }
        let folder = folder.join(TLS_NAME);
        self.issue(Role::Node(node), &folder)?;
        node_user::give_certificate(&folder, &TlsFiles::in_folder(&folder).key, user)?;
        // Whoever starts a node asks it whether it is there. Several may start nodes at one time.
        let client = self.fleet_directory().join(CLIENT_NAME);
        if Credentials::load(TlsFiles::in_folder(&client)).is_ok() {
            return Ok(());
        }
        self.issue(Role::Client, &client)
    }

    /// Gives an instance its certificate; does nothing if all nodes listen on sockets.
    pub(super) fn issue_for_instance(&self, instance: &InstanceEntry) -> anyhow::Result<()> {
        if !self.speaks_tls() {
            return Ok(());
        }
        let role = Role::Instance(self.catalog.volume_id(), instance.id);
        self.issue(role, &self.instance_directory(instance.id).join(TLS_NAME))
    }

    /// Gives the controller its certificate, in its folder; does nothing if all nodes listen on sockets.
    pub(crate) fn issue_for_controller(&self, folder: &Path) -> anyhow::Result<()> {
        if !self.speaks_tls() {
            return Ok(());
        }
        self.issue(Role::Controller, &folder.join(TLS_NAME))
    }

    /// The controller's certificate; `None` if all nodes listen on sockets.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn controller_credentials(&self, folder: &Path) -> anyhow::Result<Option<Arc<Credentials>>> {
        if !self.speaks_tls() {
            return Ok(None);
        }
        let files = TlsFiles::in_folder(&folder.join(TLS_NAME));
        Ok(Some(Credentials::load_for(files, Role::Controller)?))
    }

    fn issue(&self, role: Role, folder: &Path) -> anyhow::Result<()> {
        let place = self.fleet_directory();
        let validity = Validity::days(VALID_DAYS);
        let fleet = match Fleet::open(&place) {
            Err(FleetError::Missing(_)) => {
                let name = format!("local-{}", &self.catalog.volume[..8]);
                Fleet::init(&place, name.parse().context("a volume is hexadecimal")?, validity)
            }
            other => other,
        };
        let hosts = HOSTS.map(str::to_owned);
        fleet
            .and_then(|fleet| fleet.issue(role, &hosts, validity, folder))
            .context("cannot make a certificate")?;
        Ok(())
    }

    /// Connects to a node as somebody who looks.
    ///
    /// # Errors
    /// As [`NodeClient::connect`], and when there is no certificate for it.
    pub(crate) fn node_client(&self, node: NodeId, timeouts: Timeouts) -> Result<NodeClient, ClientError> {
        let address = self.endpoint(node);
        let credentials = self.credentials().map_err(|reason| ClientError::Connect {
            node,
            address: address.clone(),
            source: std::io::Error::other(reason),
        })?;
        let route = Route::new(&address, credentials.as_ref());
        NodeClient::connect(route, self.catalog.volume_id(), node, Caller::Client, timeouts)
    }

    /// What commands show to nodes; `None` if all listen on sockets.
    ///
    /// # Errors
    /// Says why it cannot be used.
    pub(super) fn credentials(&self) -> Result<Option<Arc<Credentials>>, String> {
        if !self.speaks_tls() {
            return Ok(None);
        }
        let load = || {
            let files = TlsFiles::in_folder(&self.fleet_directory().join(CLIENT_NAME));
            Credentials::load(files).map_err(|error| error.to_string())
        };
        self.own_certificate.0.get_or_init(load).clone().map(Some)
    }
}
