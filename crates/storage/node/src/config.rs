//! Reads what a node is told: the file `node.json`.

use std::fs;
use std::path::Path;

use anyhow::Context;
use borealis_spec::NodeConfig;

/// Reads and checks a configuration file; the node's folder is the one the file is in.
///
/// # Errors
/// When the file cannot be read, is not JSON of the right shape, or contradicts itself.
pub fn load(path: &Path) -> anyhow::Result<NodeConfig> {
    let text =
        fs::read(path).with_context(|| format!("cannot read node configuration {}", path.display()))?;
    let mut config: NodeConfig = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a node configuration", path.display()))?;
    config.directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
    config.validate().with_context(|| format!("node configuration {} is wrong", path.display()))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::Membership;
    use borealis_types::{AvailabilityZone, NodeId, Placement, VolumeId};

    #[test]
    fn a_file_is_checked_before_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = NodeConfig::new(
            folder.path().to_owned(),
            VolumeId(1),
            NodeId(2),
            AvailabilityZone("az1".into()),
            7,
            "/somewhere/sockets/2".parse().unwrap(),
            Placement::new(2).unwrap(),
        );
        config.groups = Membership::everyone_has_everything(config.placement, &[NodeId(2)]);
        let loaded = |config: &NodeConfig| {
            fs::write(config.file(), serde_json::to_vec(config).unwrap()).unwrap();
            load(&config.file()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(loaded(&config), Ok(config.clone()));
        config.groups = Membership::everyone_has_everything(config.placement, &[NodeId(2), NodeId(3)]);
        let refused = loaded(&config).unwrap_err();
        assert!(refused.contains("is wrong: group 0 has node 3, which is not among the peers"), "{refused}");
        fs::write(config.file(), "{").unwrap();
        assert!(load(&config.file()).unwrap_err().to_string().contains("is not a node configuration"));
    }
}
