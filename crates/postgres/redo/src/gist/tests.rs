//! What depends on the release that wrote the record.

use borealis_types::{PAGE_SIZE, PageBytes, PageKey, ServerVersion};
use borealis_wal::{Record, ResourceManager};

use super::{NO_BLOCK, Opaque, PAGE_UPDATE, flag, redo_page};
use crate::page::{self, Placing};
use crate::test_record::{block_key, record_on};

const BLOCK: u32 = 7;
/// Three tuples of this size are on each page.
const TUPLE_SIZE: usize = 16;

fn page_with(flags: u16) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    let opaque = Opaque { split_lsn: borealis_types::Lsn::ZERO, right: NO_BLOCK, flags };
    opaque.init_page(&mut page).unwrap();
    for number in 1..=3 {
        // `IndexTupleData`: the row, then the size.
        let mut item = [0; TUPLE_SIZE];
        item[4] = number as u8;
        item[6] = TUPLE_SIZE as u8;
        page::add_item(&mut page, &item, number, Placing::Shift).unwrap();
    }
    page
}

/// What vacuum logs: a page update that removes the first tuple and adds none.
fn remove_first_tuple(page: &mut PageBytes, release: &str) {
    let (removed, inserted) = (1_u16, 0_u16);
    let data = [removed.to_le_bytes(), inserted.to_le_bytes()].concat();
    let record = record_on(ResourceManager::Gist, PAGE_UPDATE, &data, &[(0, BLOCK, &1_u16.to_le_bytes())]);
    let server_version: ServerVersion = release.parse().unwrap();
    let before = page::max_offset_number(page);
    redo_page(&Record { server_version, ..record }, &PageKey::Block(block_key(BLOCK)), page).unwrap();
    assert_eq!(page::max_offset_number(page), before - 1);
}

fn flags(page: &PageBytes) -> u16 {
    Opaque::read(page).unwrap().flags
}

#[test]
fn removing_tuples_marks_a_leaf_as_the_release_that_wrote_the_record_does() {
    for (release, expected) in [
        ("15.18", flag::LEAF | flag::TUPLES_DELETED),
        ("15.19", flag::LEAF | flag::TUPLES_DELETED),
        ("15.20", flag::LEAF),
    ] {
        let mut page = page_with(flag::LEAF);
        remove_first_tuple(&mut page, release);
        assert_eq!(flags(&page), expected, "{release}");
    }
}

#[test]
fn removing_tuples_marks_no_inner_page_in_any_release() {
    for release in ["15.18", "15.20"] {
        let mut page = page_with(0);
        remove_first_tuple(&mut page, release);
        assert_eq!(flags(&page), 0, "{release}");
    }
}

#[test]
fn a_page_that_releases_change_in_turn_is_marked_by_the_first_that_does_and_stays_so() {
    let mut page = page_with(flag::LEAF);
    remove_first_tuple(&mut page, "15.20");
    assert_eq!(flags(&page), flag::LEAF);
    remove_first_tuple(&mut page, "15.18");
    assert_eq!(flags(&page), flag::LEAF | flag::TUPLES_DELETED);
    remove_first_tuple(&mut page, "15.20");
    assert_eq!(flags(&page), flag::LEAF | flag::TUPLES_DELETED, "the newer release does not clear it");
}
