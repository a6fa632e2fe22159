//! Messages for logical decoding (`RM_LOGICALMSG_ID`) that have the content of a kept file.

use borealis_types::MetaKey;
use borealis_wal::Record;
use borealis_wal::kept_file::kept_file;

use crate::fault::{Fault, Redo, expect};

/// Applies such a message to the file's value: it becomes the message's content.
pub(crate) fn redo_meta(record: &Record<'_>, key: &MetaKey) -> Redo<Option<Vec<u8>>> {
    let (file, content) = kept_file(record).ok_or(Fault::Failed("the message has no kept file"))?;
    expect(*key == file.key(), "the record has another kept file")?;
    Ok(Some(content.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply_meta;
    use crate::test_record;
    use borealis_types::KeptFile;
    use borealis_types::kept_file::KEPT_FILE_PREFIX;
    use borealis_wal::ResourceManager;
    use borealis_wal::encode::RecordBuilder;

    #[test]
    fn a_kept_file_becomes_what_its_message_says() {
        let (file, content) = (KeptFile::SystemSettings, b"work_mem = '7MB'\n");
        let header = file.message_header(content.len());
        let data =
            [&header[..], KEPT_FILE_PREFIX.as_bytes(), file.name().as_bytes(), b"\0", content].concat();
        let bytes = RecordBuilder::new(ResourceManager::LogicalMessage, 0).main_data(&data).finish();
        let record = test_record::parse(&bytes);
        for before in [None, Some(b"another".to_vec())] {
            assert_eq!(apply_meta(&record, &file.key(), before).unwrap().as_deref(), Some(&content[..]));
        }
        assert!(apply_meta(&record, &KeptFile::Settings.key(), None).is_err());
        assert!(apply_meta(&record, &MetaKey::SmallFile("pg_hba.conf".to_owned()), None).is_err());
    }
}
