//! What a backup says of the servers that wrote the volume: the template of their `pg_control`, which has the system identifier and how long
//! log files are.
//!
//! It is a value of the volume's first group. A snapshot of that group has it; without one it is in a record of the import, near the log's
//! beginning.

use borealis_archive::manifest::{Entry, for_each_entry};
use borealis_archive::name::Name;
use borealis_archive::sealing::Sealing;
use borealis_types::{Lsn, META_GROUP, MetaKey, Part, ServerVersion};
use borealis_wal::native::Native;
use borealis_wal::{Record, ResourceManager};
use borealis_wire::BatchRecord;

use crate::contents::Contents;
use crate::log::{LogError, for_each_record};
use crate::restore::RestoreError;
use crate::store::ObjectStore;

/// Why a search through the log ended.
enum Ended {
    Found(Vec<u8>),
    Failed(LogError),
}

impl From<LogError> for Ended {
    fn from(error: LogError) -> Ended {
        Ended::Failed(error)
    }
}

/// The template; `None` if the volume has none yet.
///
/// # Errors
/// When there is no snapshot to read it from, and the log is not all there from its beginning; or when the store does not answer.
pub fn control_file_template(
    objects: &dyn ObjectStore,
    contents: &Contents,
    sealing: &Sealing,
) -> Result<Option<Vec<u8>>, LogError> {
    let manifests: Vec<_> = contents.inventory.manifests(META_GROUP).collect();
    for name in manifests.into_iter().rev() {
        let bytes = match objects.get(&Name::Manifest(name).key(contents.volume)) {
            Ok(bytes) => bytes,
            // An older one will do as well.
            Err(error) if error.is_of_object() => continue,
            Err(error) => return Err(RestoreError::from(error).into()),
        };
        let mut value = Vec::new();
        let read = for_each_entry(&bytes, contents.volume, &name, sealing, |entry| {
            if let Entry::Value { key: MetaKey::ControlFileTemplate, mut part, .. } = entry {
                value.append(&mut part);
            }
        });
        if read.is_ok() && !value.is_empty() {
            return Ok(Some(value));
        }
    }
    let Some(newest) = contents.newest() else { return Ok(None) };
    let openings = contents.known.history.openings();
    let server_version =
        openings.last().map_or(ServerVersion::NEWEST_TESTED, |opening| opening.server_version);
    let search = for_each_record(objects, contents, sealing, Lsn::ZERO, newest.lsn, |_, record| {
        template_in(server_version, record).map_or(Ok(()), |value| Err(Ended::Found(value)))
    });
    match search {
        Ok(_) => Ok(None),
        Err(Ended::Found(value)) => Ok(Some(value)),
        Err(Ended::Failed(error)) => Err(error),
    }
}

/// The template in a record that sets it.
fn template_in(server_version: ServerVersion, record: &BatchRecord<'_>) -> Option<Vec<u8>> {
    if record.form.part != Part::Whole {
        return None;
    }
    let record = Record::parse(server_version, record.span, record.bytes).ok()?;
    if record.resource_manager != ResourceManager::Borealis {
        return None;
    }
    match Native::parse(&record).ok()? {
        Native::PutMeta { key: MetaKey::ControlFileTemplate, value: Some(value) } => Some(value.to_vec()),
        _ => None,
    }
}
