//! Reads what the driver is told: the file `instance.json`.

use std::path::Path;

use anyhow::Context as _;
pub use borealis_spec::DriverConfig;

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
