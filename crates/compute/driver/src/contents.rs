//! Reads what a fresh data directory needs from the meta group.

use std::time::Duration;

use borealis_client::{ClientError, Memberships, NodeClient, Timeouts};
use borealis_instance::Contents;
use borealis_quorum::quorum_set::replaced_by;
use borealis_redo::control_file::ControlFile;
use borealis_redo::counters::Counters;
use borealis_spec::NodeAddress;
use borealis_types::{Lsn, META_GROUP, MetaKey, PostgresVersion, ReadPoint, VolumeEpoch};
use borealis_wire::{Caller, Refusal};

use crate::config::Configured;

/// Values asked for at a time.
const VALUES_PER_PAGE: u32 = 1000;

/// Why the volume's small values could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// No node of the meta group answered with what it should have.
    #[error("no storage node gave the volume's small values: {0}")]
    Unavailable(String),
    /// So many nodes of the meta group are promised to a newer writer that this one can commit nothing any more.
    #[error("a newer writer has epoch {0}")]
    Fenced(VolumeEpoch),
    /// A value that every volume has is not there or not readable.
    #[error(
        "the volume has no usable {0}, and no import of it is under way: a store is damaged, or of another build. \
         Nothing was changed"
    )]
    Missing(&'static str),
}

/// Reads counters, the control file template and every other small value as of `durable`, the volume's last
/// durable record ending there; `tail` is where the meta group's redo ends, and `epoch` the recovery that found
/// them. Only a node that has that recovery's history installed is believed: one that missed it may hold, at the
/// same positions, records that were cut.
///
/// # Errors
/// When no node of the meta group can answer.
pub fn read(
    config: &Configured,
    memberships: &Memberships,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> Result<Contents, ContentsError> {
    let mut failures = Vec::new();
    let mut newer = Vec::new();
    let mut missing = None;
    let mut unanswered = 0;
    for node in members(memberships) {
        match read_from(config, &node, epoch, durable, tail) {
            Ok(found) => match usable(config.version, found) {
                Ok(contents) => return Ok(contents),
                // One node's word does not keep a volume from starting: another may have what this one lost.
                Err(what) => {
                    missing = Some(what);
                    failures.push(format!("node {} has no usable {what}", node.node));
                }
            },
            Err(error) => {
                if let Some(Refusal::Fenced(promised)) = error.refusal() {
                    newer.push(*promised);
                }
                unanswered += 1;
                failures.push(error.to_string());
            }
        }
    }
    Err(match (replaced_by(newer), missing) {
        (Some(newest), _) => ContentsError::Fenced(newest),
        (None, Some(what)) if unanswered == 0 => ContentsError::Missing(what),
        (None, _) => ContentsError::Unavailable(failures.join("; ")),
    })
}

/// What a node answered, if a server can be started from it; else what is wrong with it.
fn usable(version: PostgresVersion, (counters, template, values): Values) -> Result<Contents, &'static str> {
    let counters = counters.and_then(|bytes| Counters::decode(&bytes)).ok_or("counters")?;
    let template = template.filter(|bytes| ControlFile::decode(bytes).is_ok()).ok_or("control file")?;
    Ok(Contents { version, counters, control_file_template: template, values })
}

type Values = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(MetaKey, Vec<u8>)>);

fn read_from(
    config: &Configured,
    node: &NodeAddress,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> Result<Values, ClientError> {
    let (mut client, at) = connect(config, node, epoch, durable, tail)?;
    let counters = client.read_meta(MetaKey::Counters, at)?;
    let template = client.read_meta(MetaKey::ControlFileTemplate, at)?;
    let mut values: Vec<(MetaKey, Vec<u8>)> = Vec::new();
    loop {
        let after = values.last().map(|(key, _)| key.clone());
        let (page, more) = client.list_meta(at, after, VALUES_PER_PAGE)?;
        let is_empty = page.is_empty();
        for (key, part) in page {
            let value = match part.is_whole() {
                true => Some(part.bytes),
                // The state of a large prepared transaction, say.
                false => client.read_meta(key.clone(), at)?,
            };
            values.extend(value.map(|value| (key, value)));
        }
        if is_empty || !more {
            return Ok((counters, template, values));
        }
    }
}

/// The members of the meta group, and where they are.
pub(crate) fn members(memberships: &Memberships) -> Vec<NodeAddress> {
    let of_group = |node: &NodeAddress| {
        memberships.of(META_GROUP).is_some_and(|membership| membership.contains(node.node))
    };
    memberships.nodes().into_iter().filter(of_group).collect()
}

/// A connection to a node that has the recovery's history, and where to read on it.
pub(crate) fn connect(
    config: &Configured,
    node: &NodeAddress,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> Result<(NodeClient, ReadPoint), ClientError> {
    let timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(5) };
    let client = NodeClient::connect(config.route(node), config.volume, node.node, Caller::Client, timeouts)?;
    let segment = client.welcome().iter().find(|segment| segment.group == META_GROUP);
    if let Some(promised) = segment.map(|segment| segment.promised_epoch).filter(|promised| *promised > epoch)
    {
        return Err(ClientError::Refused { node: node.node, refusal: Refusal::Fenced(promised) });
    }
    if segment.is_none_or(|segment| segment.history.newest_epoch() != epoch) {
        let what = format!("it does not know the recovery of epoch {epoch} yet");
        return Err(ClientError::Protocol { node: node.node, address: node.address.clone(), what });
    }
    if segment.is_some_and(|segment| segment.joining) {
        let what = "it is joining the group and does not have everything yet".to_owned();
        return Err(ClientError::Protocol { node: node.node, address: node.address.clone(), what });
    }
    // Between the group's last record and the durable point nothing changes, so every position there shows the
    // same. The node can answer at the durable point it knows, if the group's redo does not end later.
    let known = segment.map_or(Lsn::ZERO, |segment| segment.known_durable.end);
    let at = ReadPoint { epoch, lsn: known.min(durable).max(tail) };
    Ok((client, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_node_has_lost_is_asked_of_the_next() {
        let counters = Counters::default().encode();
        let found = |counters: &[u8], template: Option<&[u8]>| {
            let found = (Some(counters.to_vec()), template.map(<[u8]>::to_vec), Vec::new());
            usable(PostgresVersion::NEWEST, found).map(|_| ())
        };
        assert_eq!(found(&[], None), Err("counters"));
        assert_eq!(found(&counters, None), Err("control file"));
        assert_eq!(found(&counters, Some(&[0; 8192])), Err("control file"));
    }
}
