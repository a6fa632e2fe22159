//! Whether a volume still has to be filled, or filled again because that was interrupted.

use borealis_client::{ClientError, Memberships};
use borealis_instance::import::import_mark;
use borealis_spec::NodeAddress;
use borealis_types::{Lsn, MetaKey, READ_QUORUM, VolumeEpoch};

use crate::config::Configured;
use crate::contents::{connect, members};

/// What one node has of what an import puts into a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// The control file template, which comes last.
    Template,
    /// The mark of an import that is under way, and no template.
    Mark,
    /// Neither.
    Nothing,
}

/// Whether all that a volume has is a part of an import. `durable` is its last durable record's end, `tail` where the
/// meta group's redo ends, and `epoch` the recovery that found them.
///
/// An import begins by removing what is there, so one node's word is not enough: as many as a recovery must see have to
/// say so, and nobody the contrary.
#[must_use]
pub fn was_interrupted(
    config: &Configured,
    memberships: &Memberships,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> bool {
    let mut marked = 0;
    for node in members(memberships) {
        match ask(config, &node, epoch, durable, tail) {
            // As at nearly every start: the first node says so, and no other is asked.
            Ok(Found::Template | Found::Nothing) => return false,
            Ok(Found::Mark) => marked += 1,
            Err(error) => {
                tracing::info!(node = node.node.0, %error, "not asked whether the import is finished")
            }
        }
    }
    is_enough(marked)
}

fn is_enough(marked: usize) -> bool {
    marked >= READ_QUORUM
}

fn ask(
    config: &Configured,
    node: &NodeAddress,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> Result<Found, ClientError> {
    let (mut client, at) = connect(config, node, epoch, durable, tail)?;
    if client.read_meta(MetaKey::ControlFileTemplate, at)?.is_some() {
        return Ok(Found::Template);
    }
    Ok(match client.read_meta(import_mark(), at)? {
        Some(_) => Found::Mark,
        None => Found::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_cannot_have_a_volume_made_anew() {
        assert!(!is_enough(2));
        assert!(is_enough(3));
    }
}
