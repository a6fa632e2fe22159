//! Reads what the driver is told: the file `instance.json`, and the certificate that it names.

use core::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use borealis_client::{Credentials, Route};
pub use borealis_spec::DriverConfig;
use borealis_spec::{NodeAddress, Role};

/// What a driver is told, with the certificate that it shows to nodes.
#[derive(Clone, Debug)]
pub struct Configured {
    /// What the file says.
    pub told: DriverConfig,
    /// For nodes that are spoken to over TLS.
    pub credentials: Option<Arc<Credentials>>,
}

impl Deref for Configured {
    type Target = DriverConfig;

    fn deref(&self) -> &DriverConfig {
        &self.told
    }
}

impl Configured {
    /// Reads the certificate that the configuration names, if it names one. It has to be that of this very instance.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn new(told: DriverConfig) -> anyhow::Result<Configured> {
        let credentials = told.tls.as_ref().map(|files| {
            let role = Role::Instance(told.volume, told.instance);
            Credentials::load_for(files.below(&told.instance_dir), role).with_context(|| {
                format!("instance {} cannot speak TLS; see `tls` in its instance.json", told.instance)
            })
        });
        Ok(Configured { credentials: credentials.transpose()?, told })
    }

    /// When the certificate is valid no more, in seconds since 1970; zero if there is none.
    #[must_use]
    pub fn certificate_expires_seconds(&self) -> u64 {
        self.credentials.as_ref().map_or(0, |credentials| credentials.expires_seconds())
    }

    /// The way to a node.
    #[must_use]
    pub fn route<'a>(&'a self, node: &'a NodeAddress) -> Route<'a> {
        Route::new(&node.address, self.credentials.as_ref())
    }
}

/// Reads a configuration file.
///
/// # Errors
/// When it cannot be read, is not JSON of the right shape, or contradicts itself.
pub fn load(path: &Path) -> anyhow::Result<DriverConfig> {
    let text = std::fs::read(path)
        .with_context(|| format!("cannot read instance configuration {}", path.display()))?;
    let config: DriverConfig = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not an instance configuration", path.display()))?;
    config.validate()?;
    Ok(config)
}
