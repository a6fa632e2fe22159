//! Pages as instructions: real ones without their hole, made-up ones, and small changes to either.

use borealis_types::{PAGE_SIZE, PageBytes};
use borealis_wal::layout::item_id::{FLAGS_SHIFT, ITEM_ID_BYTES, LENGTH_SHIFT, LP_NORMAL};
use borealis_wal::layout::page as header;

use crate::Input;

/// How a page is written down.
const ZEROS: u8 = 0;
const PARTS: u8 = 1;
const MADE_UP: u8 = 2;

/// Changes are at most this many.
const CHANGES_MAX: u8 = 15;

/// Appends the page: what precedes its longest run of zeros, and what follows.
pub(crate) fn encode_page(page: &PageBytes, out: &mut Vec<u8>) {
    let (start, end) = longest_run_of_zeros(page);
    if (start, end) == (0, PAGE_SIZE) {
        out.push(ZEROS);
        return;
    }
    out.push(PARTS);
    for part in [&page[..start], &page[end..]] {
        out.extend_from_slice(&(part.len() as u16).to_le_bytes());
        out.extend_from_slice(part);
    }
}

fn longest_run_of_zeros(page: &PageBytes) -> (usize, usize) {
    let (mut best, mut start) = ((0, 0), 0);
    for (at, byte) in page.iter().enumerate() {
        if *byte != 0 {
            start = at + 1;
        } else if at + 1 - start > best.1 - best.0 {
            best = (start, at + 1);
        }
    }
    best
}

/// Reads a page. What [`encode_page`] wrote comes out as it was.
pub(crate) fn decode_page(input: &mut Input<'_>) -> Box<PageBytes> {
    let mut page = Box::new([0; PAGE_SIZE]);
    match input.u8() {
        ZEROS => {}
        MADE_UP => make_up(input, &mut page),
        _ => {
            let front = input.counted();
            let front = &front[..front.len().min(PAGE_SIZE)];
            page[..front.len()].copy_from_slice(front);
            let back = input.counted();
            let back = &back[..back.len().min(PAGE_SIZE)];
            page[PAGE_SIZE - back.len()..].copy_from_slice(back);
        }
    }
    page
}

/// Lays a page out as `PageInit` and `PageAddItem` do (`src/backend/storage/page/bufpage.c`), with items and a
/// special space of arbitrary bytes.
fn make_up(input: &mut Input<'_>, page: &mut PageBytes) {
    let special_bytes = [0, 8, 16, 24][usize::from(input.u8() % 4)];
    let item_count = usize::from(input.u8() % 64);
    let special = PAGE_SIZE - special_bytes;
    let content = input.bytes(special_bytes);
    page[special..special + content.len()].copy_from_slice(content);
    let (mut lower, mut upper) = (header::HEADER_BYTES, special);
    for _ in 0..item_count {
        let length = usize::from(input.u8() % 128);
        let content = input.bytes(length);
        upper -= content.len().next_multiple_of(8);
        page[upper..upper + content.len()].copy_from_slice(content);
        let flags = u32::from(LP_NORMAL) << FLAGS_SHIFT;
        put_u32(page, lower, upper as u32 | flags | (content.len() as u32) << LENGTH_SHIFT);
        lower += ITEM_ID_BYTES;
    }
    for (at, value) in [
        (header::LOWER_OFFSET, lower as u16),
        (header::UPPER_OFFSET, upper as u16),
        (header::SPECIAL_OFFSET, special as u16),
        (header::SIZE_AND_VERSION_OFFSET, header::SIZE_AND_VERSION),
    ] {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

fn put_u32(page: &mut PageBytes, at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Changes two bytes here and there, mostly where the layout is: page header, line pointers, special space, and
/// the first bytes of items.
pub(crate) fn change_pages(input: &mut Input<'_>, pages: &mut [Box<PageBytes>]) {
    let count = input.u8() % (CHANGES_MAX + 1);
    for _ in 0..count {
        let (which, region, offset, value) = (input.u8(), input.u8(), input.u16(), input.u16());
        let Some(index) = usize::from(which).checked_rem(pages.len()) else { continue };
        let page = &mut pages[index];
        let offset = usize::from(offset);
        let at = match region % 5 {
            0 => offset % header::HEADER_BYTES,
            1 => header::HEADER_BYTES + offset % 160,
            2 => PAGE_SIZE - 2 - offset % 24,
            3 => {
                // Inside the item of one of the first line pointers.
                let pointer = header::HEADER_BYTES + ITEM_ID_BYTES * (offset % 64);
                let item = u16::from_le_bytes([page[pointer], page[pointer + 1]]) & 0x7FFF;
                usize::from(item) + offset / 64 % 32
            }
            _ => offset,
        };
        let at = at.min(PAGE_SIZE - 2);
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_survives_the_round_trip() {
        let mut page = [0; PAGE_SIZE];
        let check = |page: &PageBytes| {
            let mut bytes = Vec::new();
            encode_page(page, &mut bytes);
            assert!(*decode_page(&mut Input::new(&bytes)) == *page);
        };
        check(&page);
        page[3] = 1;
        page[8000] = 2;
        check(&page);
        page.fill(7);
        check(&page);
    }
}
