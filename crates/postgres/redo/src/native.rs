//! Borealis's own records: the pages and small values of an imported cluster.
//!
//! Format: `borealis_wal::native`.

use borealis_types::{MetaKey, PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::native::{Native, is_known};

use crate::counters;
use crate::fault::{Fault, Redo, expect};

fn parse<'a>(record: &Record<'a>) -> Redo<Native<'a>> {
    if is_known(record.operation()) { Ok(Native::parse(record)?) } else { Err(Fault::Unknown) }
}

/// Applies a record of this resource manager to a page: it becomes the record's bytes, LSN and all.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    match parse(record)? {
        Native::PutPage { key: put, image } => {
            expect(put == *key, "the record puts another page")?;
            page.copy_from_slice(image);
            Ok(())
        }
        Native::PutMeta { .. } | Native::CreateRelations(_) => Err(Fault::Failed("the record puts no page")),
    }
}

/// Applies a record of this resource manager to a small value. The counters see every record, so those that
/// put something else are no error for them.
pub(crate) fn redo_meta(record: &Record<'_>, key: &MetaKey, value: Option<Vec<u8>>) -> Redo<Option<Vec<u8>>> {
    let put = match parse(record)? {
        Native::PutMeta { key: put, value: new_value } if put == *key => Some(new_value.map(<[u8]>::to_vec)),
        _ => None,
    };
    match key {
        MetaKey::Counters => counters::redo_meta(record, put.unwrap_or(value)),
        _ => put.ok_or(Fault::Failed("the record puts another value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::test_record;
    use borealis_types::{Lsn, PAGE_SIZE};

    #[test]
    fn a_put_page_becomes_the_page() {
        let image = [7; PAGE_SIZE];
        let key = PageKey::Block(test_record::block_key(3));
        let bytes = Native::PutPage { key, image: &image }.encode(Lsn::ZERO);
        let record = test_record::parse(&bytes);
        let mut page = [0; PAGE_SIZE];
        redo_page(&record, &key, &mut page).unwrap();
        assert_eq!(page, image);
        assert!(redo_page(&record, &PageKey::Block(test_record::block_key(4)), &mut page).is_err());
    }

    #[test]
    fn put_counters_replace_the_old_ones_and_are_stamped_with_the_record() {
        let imported = Counters { next_full_xid: 731, next_oid: 13_000, ..Counters::default() };
        let encoded = imported.encode();
        let bytes = Native::PutMeta { key: MetaKey::Counters, value: Some(&encoded) }.encode(Lsn::ZERO);
        let value = redo_meta(&test_record::parse(&bytes), &MetaKey::Counters, None).unwrap().unwrap();
        let expected = Counters { last_record: test_record::SPAN, ..imported };
        assert_eq!(Counters::decode(&value), Some(expected));
        let bytes = Native::CreateRelations(Vec::new()).encode(Lsn::ZERO);
        let value = redo_meta(&test_record::parse(&bytes), &MetaKey::Counters, Some(value)).unwrap().unwrap();
        assert_eq!(Counters::decode(&value), Some(expected), "records about other things leave them");
    }
}
