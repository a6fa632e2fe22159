//! The page functions against a model: a list of items.

use borealis_types::{Lsn, PAGE_SIZE, PageBytes};
use proptest::collection::vec;
use proptest::prelude::*;

use borealis_wal::layout::item_id::LP_NORMAL;
use borealis_wal::layout::page::SPECIAL_OFFSET;

use super::header::set_header_u16;
use super::*;

fn empty(special_size: usize) -> PageBytes {
    let mut page = [0xAA; PAGE_SIZE];
    init(&mut page, special_size);
    page
}

/// The items by offset number; `None` for a line pointer without storage.
fn items(page: &PageBytes) -> Vec<Option<Vec<u8>>> {
    (1..=max_offset_number(page))
        .map(|number| {
            let pointer = line_pointer(page, number).unwrap();
            pointer.has_storage().then(|| item(page, pointer).unwrap().to_vec())
        })
        .collect()
}

/// Items fill the page downwards from the special space without gaps, each at a multiple of eight.
fn assert_compact(page: &PageBytes) {
    let mut extents: Vec<(usize, usize)> = (1..=max_offset_number(page))
        .map(|number| line_pointer(page, number).unwrap())
        .filter(|pointer| pointer.has_storage())
        .map(|pointer| (usize::from(pointer.offset), max_align(usize::from(pointer.length))))
        .collect();
    extents.sort_unstable();
    let mut expected = usize::from(upper(page));
    for (start, length) in extents {
        assert_eq!(start, expected);
        expected += length;
    }
    assert_eq!(expected, usize::from(special_start(page)));
}

/// A distinct item of each length.
fn numbered(lengths: &[usize]) -> Vec<Vec<u8>> {
    lengths.iter().enumerate().map(|(index, length)| vec![index as u8 + 1; *length]).collect()
}

#[test]
fn header_fields_are_where_postgres_has_them() {
    let mut page = empty(16);
    set_lsn(&mut page, Lsn(0x0123_4567_89AB_CDEF));
    set_flag(&mut page, ALL_VISIBLE, true);
    set_prune_xid(&mut page, 0xDEAD_BEEF);
    assert_eq!(
        page[..HEADER_BYTES],
        [
            0x67, 0x45, 0x23, 0x01, 0xEF, 0xCD, 0xAB, 0x89, // pd_lsn
            0, 0, 4, 0, // pd_checksum, pd_flags
            24, 0, 0xF0, 0x1F, 0xF0, 0x1F, // pd_lower, pd_upper, pd_special
            0x04, 0x20, // pd_pagesize_version
            0xEF, 0xBE, 0xAD, 0xDE, // pd_prune_xid
        ]
    );
    assert_eq!(lsn(&page), Lsn(0x0123_4567_89AB_CDEF));
}

#[test]
fn line_pointer_is_postgres_bit_field() {
    let pointer = LinePointer { offset: 0x1FE8, flags: LP_NORMAL, length: 21 };
    assert_eq!(pointer.encode(), 0x002A_9FE8u32.to_le_bytes());
    assert_eq!(LinePointer::decode(pointer.encode()), pointer);
}

#[test]
fn prunable_keeps_the_oldest_xid_of_the_circle() {
    let mut page = empty(0);
    for (xid, expected) in [(100, 100), (200, 100), (90, 90), (u32::MAX - 5, u32::MAX - 5)] {
        set_prunable(&mut page, xid);
        assert_eq!(prune_xid(&page), expected);
    }
}

#[test]
fn heap_placing_refuses_used_and_distant_numbers() {
    let mut page = empty(0);
    assert_eq!(add_item(&mut page, b"one", 1, Placing::Heap), Ok(1));
    assert!(add_item(&mut page, b"two", 1, Placing::Heap).is_err());
    assert!(add_item(&mut page, b"two", 3, Placing::Heap).is_err());
    set_line_pointer(&mut page, 1, LinePointer::UNUSED).unwrap();
    assert_eq!(add_item(&mut page, b"two", 1, Placing::Heap), Ok(1));
    assert_eq!(items(&page), [Some(b"two".to_vec())]);
}

#[test]
fn offset_number_zero_recycles_only_what_the_hint_admits() {
    let mut page = empty(0);
    for _ in 0..3 {
        add_item(&mut page, b"item", 0, Placing::Heap).unwrap();
    }
    set_line_pointer(&mut page, 2, LinePointer::UNUSED).unwrap();
    assert_eq!(add_item(&mut page, b"without hint", 0, Placing::Heap), Ok(4));
    set_flag(&mut page, HAS_FREE_LINES, true);
    assert_eq!(add_item(&mut page, b"with hint", 0, Placing::Heap), Ok(2));
    assert_eq!(add_item(&mut page, b"wrong hint", 0, Placing::Heap), Ok(5));
    assert_eq!(flags(&page) & HAS_FREE_LINES, 0, "a wrong hint is corrected");
}

#[test]
fn an_item_that_does_not_fit_is_refused() {
    let mut page = empty(0);
    add_item(&mut page, &[1; 8000], 0, Placing::Heap).unwrap();
    assert!(add_item(&mut page, &[2; 200], 0, Placing::Heap).is_err());
    assert!(add_item(&mut page, &[2; 100_000], 0, Placing::Heap).is_err());
}

#[test]
fn repair_drops_trailing_line_pointers_and_sets_the_hint() {
    let mut page = empty(0);
    for item in numbered(&[10, 20, 30, 40]) {
        add_item(&mut page, &item, 0, Placing::Heap).unwrap();
    }
    for unused in [1, 3, 4] {
        set_line_pointer(&mut page, unused, LinePointer::UNUSED).unwrap();
    }
    repair_fragmentation(&mut page).unwrap();
    assert_eq!(items(&page), [None, Some(vec![2; 20])]);
    assert_ne!(flags(&page) & HAS_FREE_LINES, 0);
    assert_compact(&page);
}

#[test]
fn truncating_line_pointers_leaves_the_first() {
    let mut page = empty(0);
    for item in numbered(&[8, 8, 8]) {
        add_item(&mut page, &item, 0, Placing::Heap).unwrap();
    }
    for number in 1..=3 {
        set_line_pointer(&mut page, number, LinePointer::UNUSED).unwrap();
    }
    truncate_line_pointer_array(&mut page).unwrap();
    assert_eq!(max_offset_number(&page), 1);
    assert_ne!(flags(&page) & HAS_FREE_LINES, 0);
}

proptest! {
    #[test]
    fn shifted_items_keep_their_order(inserted in vec((0usize..60, 0usize..1000), 1..60)) {
        let mut page = empty(16);
        let mut model: Vec<Option<Vec<u8>>> = Vec::new();
        for (index, (length, position)) in inserted.into_iter().enumerate() {
            let (item, position) = (vec![index as u8; length + 1], position % (model.len() + 1));
            add_item(&mut page, &item, position as u16 + 1, Placing::Shift).unwrap();
            model.insert(position, Some(item));
            prop_assert_eq!(&items(&page), &model);
            assert_compact(&page);
        }
    }

    #[test]
    fn multi_delete_removes_exactly_the_named(
        lengths in vec(1usize..120, 1..60),
        doomed in vec(any::<bool>(), 60),
    ) {
        let mut page = empty(16);
        let added = numbered(&lengths);
        for (index, item) in added.iter().enumerate() {
            // Every other one at the front, so that items are not in line pointer order.
            let number = if index % 2 == 0 { 1 } else { max_offset_number(&page) + 1 };
            add_item(&mut page, item, number, Placing::Shift).unwrap();
        }
        let before = items(&page);
        let numbers: Vec<u16> = (1..=before.len() as u16).filter(|number| doomed[usize::from(*number) - 1]).collect();
        index_multi_delete(&mut page, numbers.iter().copied()).unwrap();
        let kept: Vec<_> = before.iter().enumerate().filter(|(index, _)| !doomed[*index]).map(|(_, item)| item.clone()).collect();
        prop_assert_eq!(items(&page), kept);
        assert_compact(&page);
    }

    #[test]
    fn delete_without_compacting_keeps_numbers(lengths in vec(1usize..120, 1..60), doomed: prop::sample::Index) {
        let mut page = empty(16);
        for item in numbered(&lengths) {
            add_item(&mut page, &item, 0, Placing::Overwrite).unwrap();
        }
        let mut model = items(&page);
        let doomed = doomed.index(model.len());
        index_tuple_delete_no_compact(&mut page, doomed as u16 + 1).unwrap();
        model[doomed] = None;
        if doomed == model.len() - 1 {
            model.pop();
        }
        prop_assert_eq!(items(&page), model);
        assert_compact(&page);
    }

    #[test]
    fn overwrite_replaces_one_item(
        lengths in vec(1usize..120, 1..60),
        replaced: prop::sample::Index,
        new_length in 1usize..200,
    ) {
        let mut page = empty(16);
        for item in numbered(&lengths) {
            add_item(&mut page, &item, 0, Placing::Overwrite).unwrap();
        }
        let mut model = items(&page);
        let replaced = replaced.index(model.len());
        index_tuple_overwrite(&mut page, replaced as u16 + 1, &vec![0xEE; new_length]).unwrap();
        model[replaced] = Some(vec![0xEE; new_length]);
        prop_assert_eq!(items(&page), model);
        assert_compact(&page);
    }

    #[test]
    fn repair_keeps_items_and_closes_gaps(lengths in vec(1usize..120, 1..60), fate in vec(0u8..3, 60)) {
        let mut page = empty(0);
        for item in numbered(&lengths) {
            add_item(&mut page, &item, 0, Placing::Heap).unwrap();
        }
        let mut model = items(&page);
        for (index, item) in model.iter_mut().enumerate() {
            let pointer = match fate[index] {
                0 => continue,
                1 => LinePointer::UNUSED,
                _ => LinePointer::DEAD,
            };
            set_line_pointer(&mut page, index as u16 + 1, pointer).unwrap();
            *item = None;
        }
        let used = (0..model.len()).rposition(|index| fate[index] != 1).map_or(0, |last| last + 1);
        model.truncate(used);
        repair_fragmentation(&mut page).unwrap();
        prop_assert_eq!(items(&page), model);
        prop_assert_eq!(flags(&page) & HAS_FREE_LINES != 0, fate[..used].contains(&1));
        assert_compact(&page);
    }

    #[test]
    fn hostile_pages_never_panic(
        header in vec(any::<u16>(), 12),
        small_header in vec(0u16..1100, 3),
        use_small: bool,
        pointers in vec(any::<u32>(), 64),
        number in 0u16..70,
        length in 0usize..9000,
    ) {
        let mut original = [0u8; PAGE_SIZE];
        for (index, value) in header.iter().enumerate() {
            original[index * 2..index * 2 + 2].copy_from_slice(&value.to_le_bytes());
        }
        if use_small {
            // Plausible pointers, so that more than the header's check is reached.
            set_lower(&mut original, small_header[0] / 4);
            set_upper(&mut original, 300 + small_header[1]);
            set_header_u16(&mut original, SPECIAL_OFFSET, (8 * (100 + small_header[2])).min(8192));
        }
        for (index, pointer) in pointers.iter().enumerate() {
            let at = HEADER_BYTES + index * 4;
            // Masked, so that many stay inside the page.
            original[at..at + 4].copy_from_slice(&(pointer & 0x00FF_9FF8).to_le_bytes());
        }
        let item = vec![7; length];
        for placing in [Placing::Heap, Placing::Overwrite, Placing::Shift] {
            let _ = add_item(&mut original.clone(), &item, number, placing);
        }
        let _ = repair_fragmentation(&mut original.clone());
        let _ = truncate_line_pointer_array(&mut original.clone());
        let _ = index_tuple_delete(&mut original.clone(), number);
        let _ = index_tuple_delete_no_compact(&mut original.clone(), number);
        let _ = index_tuple_overwrite(&mut original.clone(), number, &item);
        let _ = index_multi_delete(&mut original.clone(), [number, number + 1, number + 2].into_iter());
        let _ = special(&original, usize::from(header[0]));
    }
}

#[test]
#[should_panic(expected = "invariant special-space-leaves-room is broken")]
fn a_special_space_as_large_as_the_page_is_noticed() {
    init(&mut [0; PAGE_SIZE], PAGE_SIZE - HEADER_BYTES);
}

#[test]
#[should_panic(expected = "invariant page-pointers-stay-in-order is broken")]
fn a_change_that_crosses_the_pointers_is_noticed() {
    let mut page = empty(16);
    set_lower(&mut page, upper(&empty(16)) + 1);
    header::assert_in_order(&page);
}

#[test]
#[should_panic(expected = "invariant line-pointer-lies-on-the-page is broken")]
fn a_line_pointer_without_a_number_is_noticed() {
    header::put_line_pointer(&mut empty(0), 0, LinePointer::UNUSED);
}

#[test]
#[should_panic(expected = "invariant compacted-items-leave-no-gap is broken")]
fn items_whose_length_was_miscounted_are_noticed() {
    space::compactify_miscounted(&mut empty(0));
}
