//! What the checker makes of known and unknown pages.

use borealis_types::{Lsn, PAGE_SIZE, PageBytes, PageKey, RecordSpan, ServerVersion};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::layout::heap::INPLACE;
use borealis_wal::record::CHECK_CONSISTENCY;
use borealis_wal::{BlockImage, BlockReference, ImageCompression, Record, ResourceManager};

use super::{Checker, Problem, Tally};
use crate::page::{self, Placing};
use crate::test_record::{block_key, parse};

/// Where the tuple's data begins in the page: the last bytes of it.
const DATA_AT: usize = PAGE_SIZE - 8;

/// A heap page with one tuple of 32 bytes whose data are eight times `filler`.
fn heap_page(filler: u8) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    page::init(&mut page, 0);
    let mut tuple = [0; 32];
    tuple[22] = 24;
    tuple[24..].fill(filler);
    page::add_item(&mut page, &tuple, 0, Placing::Heap).unwrap();
    page
}

/// An in-place update of that tuple's data to `filler`, with an image of the page if there is one.
fn inplace(filler: u8, image: Option<&PageBytes>, apply: bool) -> Record<'static> {
    let data = [filler; 8];
    let image = image.map(|page| BlockImage {
        bytes: page,
        hole_offset: 0,
        hole_length: 0,
        compression: ImageCompression::None,
        apply,
    });
    let block = BlockReference { id: 0, key: block_key(7), will_init: false, image, data: &data };
    let offset_number = [1, 0];
    let builder = RecordBuilder::new(ResourceManager::Heap, INPLACE | CHECK_CONSISTENCY)
        .main_data(&offset_number)
        .block(block);
    parse(Vec::leak(builder.finish()))
}

fn tally(checker: &Checker, operation: &'static str) -> Tally {
    checker.tallies()[&(ResourceManager::Heap, operation)]
}

fn key() -> PageKey {
    PageKey::Block(block_key(7))
}

#[test]
fn a_page_is_followed_from_its_first_image_on() {
    let mut checker = Checker::new();
    checker.feed(&inplace(1, None, false));
    assert_eq!(tally(&checker, "INPLACE").not_followed, 1);
    assert_eq!(checker.page(&key()), None);
    checker.feed(&inplace(2, Some(&heap_page(2)), false));
    assert_eq!((tally(&checker, "INPLACE").first_seen, tally(&checker, "INPLACE").compared), (1, 0));
    checker.feed(&inplace(3, Some(&heap_page(3)), false));
    checker.feed(&inplace(4, None, false));
    let figures = tally(&checker, "INPLACE");
    assert_eq!((figures.compared, figures.different, figures.no_image, figures.problems()), (1, 0, 1, 0));
    assert_eq!(checker.page(&key()).unwrap()[DATA_AT..], [4; 8]);
}

#[test]
fn an_image_to_be_applied_makes_a_page_known() {
    let mut checker = Checker::new();
    checker.feed(&inplace(9, Some(&heap_page(1)), true));
    let figures = tally(&checker, "INPLACE");
    assert_eq!((figures.restored, figures.first_seen, figures.compared), (1, 0, 0));
    assert_eq!(checker.page(&key()).unwrap()[DATA_AT..], [1; 8]);
}

#[test]
fn a_difference_is_reported_once_and_the_page_goes_on_as_postgres_has_it() {
    let mut checker = Checker::new();
    checker.feed(&inplace(1, Some(&heap_page(1)), false));
    checker.feed(&inplace(2, Some(&heap_page(7)), false));
    checker.feed(&inplace(3, Some(&heap_page(3)), false));
    let figures = tally(&checker, "INPLACE");
    assert_eq!((figures.compared, figures.different), (2, 1));
    let [Problem::Different { record, mismatch }] = checker.problems() else {
        panic!("{:?}", checker.problems());
    };
    assert!(record.ends_with("Heap/INPLACE"), "{record}");
    assert_eq!((mismatch.offset, mismatch.different_bytes), (DATA_AT, 8));
    assert_eq!((mismatch.expected.as_slice(), mismatch.actual.as_slice()), (&[7; 8][..], &[2; 8][..]));
    assert_eq!(mismatch.field, "item 1, tuple data");
}

#[test]
fn redo_that_fails_is_reported_and_the_page_goes_on_as_postgres_has_it() {
    let mut checker = Checker::new();
    let mut empty = [0; PAGE_SIZE];
    page::init(&mut empty, 0);
    checker.seed_page(key(), &empty);
    checker.feed(&inplace(1, Some(&heap_page(1)), false));
    assert_eq!(tally(&checker, "INPLACE").failed, 1);
    checker.feed(&inplace(2, Some(&heap_page(2)), false));
    assert_eq!((tally(&checker, "INPLACE").failed, tally(&checker, "INPLACE").compared), (1, 1));
}

#[test]
fn of_a_whole_cluster_what_was_not_seeded_is_zeros() {
    let mut checker = Checker::of_whole_cluster();
    checker.feed(&inplace(1, Some(&heap_page(1)), false));
    let figures = tally(&checker, "INPLACE");
    assert_eq!((figures.failed, figures.first_seen), (1, 0), "there is no tuple to update");
}

#[test]
fn what_is_cut_off_and_dropped_is_forgotten() {
    // xl_smgr_truncate: new size, relation, SMGR_TRUNCATE_ALL.
    let truncation = |blocks: u32| {
        let data: Vec<u8> =
            [blocks, 1663, 5, 16384, 7].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        crate::test_record::record(ResourceManager::Storage, 0x21, Vec::leak(data))
    };
    let mut checker = Checker::new();
    checker.feed(&inplace(1, Some(&heap_page(1)), false));
    checker.feed(&truncation(8));
    assert!(checker.page(&key()).is_some());
    checker.feed(&truncation(5));
    assert_eq!(checker.page(&key()), None);
    // From here on block 7 is known: it would begin as zeros, on which there is no tuple.
    checker.feed(&inplace(2, None, false));
    assert_eq!(tally(&checker, "INPLACE").failed, 1);
    // Block 4 is as unknown as before.
    let block = BlockReference { id: 0, key: block_key(4), will_init: false, image: None, data: &[0; 8] };
    let builder = RecordBuilder::new(ResourceManager::Heap, INPLACE).main_data(&[1, 0]).block(block);
    checker.feed(&parse(Vec::leak(builder.finish())));
    assert_eq!(tally(&checker, "INPLACE").not_followed, 1);
}

#[test]
fn a_record_nobody_knows_is_skipped_and_counted() {
    let bytes = RecordBuilder::new(ResourceManager::Other(140), 0).main_data(b"?").finish();
    let span = RecordSpan { start: Lsn(64), end: Lsn(128) };
    let record = Record::parse(ServerVersion::NEWEST_TESTED, span, &bytes).unwrap();
    let mut checker = Checker::new();
    checker.feed(&record);
    assert_eq!(checker.tallies()[&(ResourceManager::Other(140), "?")].skipped, 1);
    assert!(checker.problems()[0].to_string().contains("140"), "{}", checker.problems()[0]);
    assert!(checker.to_string().contains("custom140"), "{checker}");
}
