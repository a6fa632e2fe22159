//! Reads what a fresh data directory needs from the meta group.

use std::time::Duration;

use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_instance::Contents;
use borealis_quorum::quorum_set::replaced_by;
use borealis_redo::counters::Counters;
use borealis_spec::NodeAddress;
use borealis_types::{Lsn, META_GROUP, MetaKey, ReadPoint, VolumeEpoch};
use borealis_wire::{Caller, Refusal};

use crate::config::DriverConfig;

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
        "the volume has no usable {0}: its creation was interrupted. Nothing was ever stored in it; remove its \
         nodes' directories and create it again"
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
    config: &DriverConfig,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> Result<Contents, ContentsError> {
    let mut failures = Vec::new();
    let mut newer = Vec::new();
    for node in config.nodes.iter().filter(|node| config.groups.is_member(node.node, META_GROUP)) {
        match read_from(config, node, epoch, durable, tail) {
            Ok((Some(counters), Some(template), values)) => {
                let counters = Counters::decode(&counters).ok_or(ContentsError::Missing("counters"))?;
                return Ok(Contents {
                    version: config.version,
                    counters,
                    control_file_template: template,
                    values,
                });
            }
            Ok((None, _, _)) => return Err(ContentsError::Missing("counters")),
            Ok((_, None, _)) => return Err(ContentsError::Missing("control file")),
            Err(error) => {
                if let Some(Refusal::Fenced(promised)) = error.refusal() {
                    newer.push(*promised);
                }
                failures.push(error.to_string());
            }
        }
    }
    Err(match replaced_by(newer) {
        Some(newest) => ContentsError::Fenced(newest),
        None => ContentsError::Unavailable(failures.join("; ")),
    })
}

type Values = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(MetaKey, Vec<u8>)>);

fn read_from(
    config: &DriverConfig,
    node: &NodeAddress,
    epoch: VolumeEpoch,
    durable: Lsn,
    tail: Lsn,
) -> Result<Values, ClientError> {
    let timeouts = Timeouts { connect: Duration::from_millis(500), call: Duration::from_secs(5) };
    let mut client = NodeClient::connect(&node.address, config.volume, node.node, Caller::Client, timeouts)?;
    let segment = client.welcome().iter().find(|segment| segment.group == META_GROUP);
    if let Some(promised) = segment.map(|segment| segment.promised_epoch).filter(|promised| *promised > epoch)
    {
        return Err(ClientError::Refused { node: node.node, refusal: Refusal::Fenced(promised) });
    }
    if segment.is_none_or(|segment| segment.history.newest_epoch() != epoch) {
        let what = format!("it does not know the recovery of epoch {epoch} yet");
        return Err(ClientError::Protocol { node: node.node, address: node.address.clone(), what });
    }
    // Between the group's last record and the durable point nothing changes, so every position there shows the
    // same. The node can answer at the durable point it knows, if the group's redo does not end later.
    let known = segment.map_or(Lsn::ZERO, |segment| segment.known_durable.end);
    let at = ReadPoint { epoch, lsn: known.min(durable).max(tail) };
    let counters = client.read_meta(MetaKey::Counters, at)?;
    let template = client.read_meta(MetaKey::ControlFileTemplate, at)?;
    let mut values: Vec<(MetaKey, Vec<u8>)> = Vec::new();
    loop {
        let after = values.last().map(|(key, _)| key.clone());
        let page = client.list_meta(at, after, VALUES_PER_PAGE)?;
        if page.is_empty() {
            return Ok((counters, template, values));
        }
        values.extend(page);
    }
}
