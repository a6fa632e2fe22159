//! Records that have the content of a kept file: see [`borealis_types::kept_file`].

use borealis_types::KeptFile;
use borealis_types::kept_file::{KEPT_FILE_BYTES_MAX, KEPT_FILE_PREFIX};

use crate::layout::logical::{LogicalMessage, MESSAGE};
use crate::{Record, ResourceManager};

/// The kept file that a record has the content of, and that content. `None` of every other record, a user's messages
/// for logical decoding among them: those have a database.
#[must_use]
pub fn kept_file<'a>(record: &Record<'a>) -> Option<(KeptFile, &'a [u8])> {
    if record.resource_manager != ResourceManager::LogicalMessage || record.operation() != MESSAGE {
        return None;
    }
    let message = LogicalMessage::read(record.main_data)?;
    let file = KeptFile::named(message.prefix.strip_prefix(KEPT_FILE_PREFIX.as_bytes())?)?;
    let is_ours =
        message.database == 0 && !message.is_transactional && message.content.len() <= KEPT_FILE_BYTES_MAX;
    is_ours.then_some((file, message.content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::RecordBuilder;
    use crate::{Effect, effects};
    use borealis_types::{RecordSpan, ServerVersion};

    /// A record's main data as the shim has PostgreSQL write them.
    fn message(file: KeptFile, content: &[u8]) -> Vec<u8> {
        let header = file.message_header(content.len());
        [&header[..], KEPT_FILE_PREFIX.as_bytes(), file.name().as_bytes(), b"\0", content].concat()
    }

    fn effects_of(main_data: &[u8]) -> Vec<Effect> {
        let bytes =
            RecordBuilder::new(ResourceManager::LogicalMessage, MESSAGE).main_data(main_data).finish();
        let record = Record::parse(ServerVersion::NEWEST_TESTED, RecordSpan::NONE, &bytes).unwrap();
        let mut out = Vec::new();
        effects(&record, &mut out).unwrap();
        out
    }

    #[test]
    fn a_kept_files_record_changes_its_value() {
        for file in KeptFile::ALL {
            for content in [&b""[..], b"work_mem = '7MB'\n", &[b'#'; KEPT_FILE_BYTES_MAX]] {
                assert_eq!(effects_of(&message(file, content)), [Effect::Meta(file.key())]);
            }
        }
    }

    #[test]
    fn a_users_message_changes_nothing_whatever_it_says() {
        let ours = message(KeptFile::Authentication, b"local all all trust\n");
        let changed = |place: usize, byte: u8| {
            let mut bytes = ours.clone();
            bytes[place] = byte;
            effects_of(&bytes)
        };
        assert_eq!(changed(0, 0), [Effect::Meta(KeptFile::Authentication.key())]);
        assert_eq!(changed(0, 5), [], "of a database");
        assert_eq!(changed(4, 1), [], "of a transaction");
        assert_eq!(changed(24, b'x'), [], "another prefix");
        assert_eq!(changed(8, 1), [], "another length");
        assert_eq!(effects_of(&ours[..ours.len() - 1]), [], "cut");
        assert_eq!(
            effects_of(&message(KeptFile::Settings, &[b'#'; KEPT_FILE_BYTES_MAX + 1])),
            [],
            "too long"
        );
    }
}
