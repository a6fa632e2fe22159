//! What a byte of a page is part of, for messages.
//!
//! Layouts: `src/include/storage/bufpage.h`, `access/htup_details.h` and `itup.h`, and each access method's own
//! header (`nbtree.h`, `hash.h`, `ginblock.h`, `gist.h`, `spgist_private.h`, `brin_page.h`).

use borealis_types::{BlockNumber, PageBytes};
use borealis_wal::ResourceManager;
use borealis_wal::layout::item_id::ITEM_ID_BYTES;
use borealis_wal::layout::{brin, btree, gin, gist, hash, page as header, sequence, spgist};

use crate::bytes::u16_at;
use crate::heap::tuple;
use crate::page;

/// Fields one after the other: where each ends, and its name.
type Fields = &'static [(usize, &'static str)];

const PAGE_HEADER: Fields = &[
    (header::CHECKSUM_OFFSET, "pd_lsn"),
    (header::FLAGS_OFFSET, "pd_checksum"),
    (header::LOWER_OFFSET, "pd_flags"),
    (header::UPPER_OFFSET, "pd_lower"),
    (header::SPECIAL_OFFSET, "pd_upper"),
    (header::SIZE_AND_VERSION_OFFSET, "pd_special"),
    (header::PRUNE_XID_OFFSET, "pd_pagesize_version"),
    (header::HEADER_BYTES, "pd_prune_xid"),
];
const BTREE_OPAQUE: Fields = &[
    (btree::NEXT_OFFSET, "btpo_prev"),
    (btree::LEVEL_OFFSET, "btpo_next"),
    (btree::FLAGS_OFFSET, "btpo_level"),
    (btree::CYCLE_ID_OFFSET, "btpo_flags"),
    (btree::SPECIAL_BYTES, "btpo_cycleid"),
];
const BTREE_META: Fields = &[
    (4, "btm_magic"),
    (8, "btm_version"),
    (12, "btm_root"),
    (16, "btm_level"),
    (20, "btm_fastroot"),
    (24, "btm_fastlevel"),
    (28, "btm_last_cleanup_num_delpages"),
    (32, "padding"),
    (40, "btm_last_cleanup_num_heap_tuples"),
    (41, "btm_allequalimage"),
];
const HASH_OPAQUE: Fields = &[
    (hash::NEXT_OFFSET, "hasho_prevblkno"),
    (hash::BUCKET_OFFSET, "hasho_nextblkno"),
    (hash::FLAGS_OFFSET, "hasho_bucket"),
    (hash::PAGE_ID_OFFSET, "hasho_flag"),
    (hash::SPECIAL_BYTES, "hasho_page_id"),
];
const HASH_META: Fields = &[
    (hash::meta::VERSION, "hashm_magic"),
    (hash::meta::TUPLE_COUNT, "hashm_version"),
    (hash::meta::FILL_FACTOR, "hashm_ntuples"),
    (hash::meta::PAGE_SIZE, "hashm_ffactor"),
    (hash::meta::BITMAP_SIZE, "hashm_bsize"),
    (hash::meta::BITMAP_SHIFT, "hashm_bmsize"),
    (hash::meta::MAX_BUCKET, "hashm_bmshift"),
    (hash::meta::HIGH_MASK, "hashm_maxbucket"),
    (hash::meta::LOW_MASK, "hashm_highmask"),
    (hash::meta::OVERFLOW_POINT, "hashm_lowmask"),
    (hash::meta::FIRST_FREE, "hashm_ovflpoint"),
    (hash::meta::BITMAP_COUNT, "hashm_firstfree"),
    (hash::meta::PROCEDURE, "hashm_nmaps"),
    (hash::meta::SPARES, "hashm_procid"),
    (hash::meta::BITMAPS, "hashm_spares"),
    (hash::meta::BITMAPS + 4 * hash::BITMAPS_MAX, "hashm_mapp"),
];
const GIN_OPAQUE: Fields =
    &[(gin::COUNT_OFFSET, "rightlink"), (gin::FLAGS_OFFSET, "maxoff"), (gin::SPECIAL_BYTES, "flags")];
const GIN_META: Fields = &[
    (4, "head"),
    (8, "tail"),
    (12, "tailFreeSize"),
    (16, "nPendingPages"),
    (24, "nPendingHeapTuples"),
    (28, "nTotalPages"),
    (32, "nEntryPages"),
    (36, "nDataPages"),
    (40, "padding"),
    (48, "nEntries"),
    (52, "ginVersion"),
];
const GIST_OPAQUE: Fields = &[
    (gist::RIGHT_OFFSET, "nsn"),
    (gist::FLAGS_OFFSET, "rightlink"),
    (gist::PAGE_ID_OFFSET, "flags"),
    (gist::SPECIAL_BYTES, "gist_page_id"),
];
const SPGIST_OPAQUE: Fields = &[
    (spgist::REDIRECTIONS_OFFSET, "flags"),
    (spgist::PLACEHOLDERS_OFFSET, "nRedirection"),
    (spgist::PAGE_ID_OFFSET, "nPlaceholder"),
    (spgist::SPECIAL_BYTES, "spgist_page_id"),
];
const SPGIST_META: Fields = &[(4, "magicNumber"), (68, "lastUsedPages")];
const BRIN_SPECIAL: Fields = &[
    (brin::FLAGS_OFFSET, "unused special space"),
    (brin::TYPE_OFFSET, "brin page flags"),
    (brin::SPECIAL_BYTES, "brin page type"),
];
const BRIN_META: Fields =
    &[(4, "brinMagic"), (8, "brinVersion"), (12, "pagesPerRange"), (16, "lastRevmapPage")];
const SEQUENCE_SPECIAL: Fields = &[(sequence::SPECIAL_BYTES, "sequence magic")];
const INDEX_TUPLE: Fields = &[(6, "t_tid"), (8, "t_info")];
const BRIN_TUPLE: Fields = &[(4, "bt_blkno"), (5, "bt_info")];
const SPGIST_LEAF_TUPLE: Fields = &[(4, "tupstate and size"), (6, "t_info"), (12, "heapPtr")];
const SPGIST_INNER_TUPLE: Fields =
    &[(4, "tupstate, allTheSame, nNodes and prefixSize"), (6, "size"), (8, "padding")];

fn field(fields: Fields, offset: usize) -> Option<&'static str> {
    fields.iter().find(|(end, _)| offset < *end).map(|(_, name)| *name)
}

fn field_or(fields: Fields, offset: usize, rest: &str) -> String {
    match field(fields, offset) {
        Some(name) => name.to_owned(),
        None => format!("{rest} byte {}", offset - fields.last().map_or(0, |(end, _)| *end)),
    }
}

/// What the byte at `offset` of a page of this resource manager is part of.
pub(super) fn field_name(
    resource_manager: ResourceManager,
    block: BlockNumber,
    page: &PageBytes,
    offset: usize,
) -> String {
    if let Some(name) = field(PAGE_HEADER, offset) {
        return name.to_owned();
    }
    let special_start = usize::from(page::special_start(page)).max(page::HEADER_BYTES);
    if offset >= special_start {
        let fields = match resource_manager {
            ResourceManager::Btree => BTREE_OPAQUE,
            ResourceManager::Hash => HASH_OPAQUE,
            ResourceManager::Gin => GIN_OPAQUE,
            ResourceManager::Gist => GIST_OPAQUE,
            ResourceManager::Spgist => SPGIST_OPAQUE,
            ResourceManager::Brin => BRIN_SPECIAL,
            ResourceManager::Sequence => SEQUENCE_SPECIAL,
            _ => &[],
        };
        return format!("special space, {}", field_or(fields, offset - special_start, "other"));
    }
    let in_contents = offset - page::HEADER_BYTES;
    // The last two bytes of the special space tell pages of one access method apart.
    let special_u16 = |at: usize| u16_at(page, special_start + at).unwrap_or(0);
    match (resource_manager, block) {
        (ResourceManager::Btree, 0) => {
            return format!("metapage, {}", field_or(BTREE_META, in_contents, "other"));
        }
        (ResourceManager::Hash, 0) => {
            return format!("metapage, {}", field_or(HASH_META, in_contents, "other"));
        }
        (ResourceManager::Gin, 0) => {
            return format!("metapage, {}", field_or(GIN_META, in_contents, "other"));
        }
        (ResourceManager::Spgist, 0) => {
            return format!("metapage, {}", field_or(SPGIST_META, in_contents, "other"));
        }
        (ResourceManager::Brin, 0) => {
            return format!("metapage, {}", field_or(BRIN_META, in_contents, "other"));
        }
        (ResourceManager::Brin, _) if special_u16(brin::TYPE_OFFSET) == brin::RANGE_MAP => {
            return format!("revmap entry {}", in_contents / brin::RANGE_MAP_ENTRY_BYTES);
        }
        (ResourceManager::Hash, _)
            if special_u16(hash::FLAGS_OFFSET) & hash::flag::TYPE == hash::flag::BITMAP =>
        {
            return format!("bitmap byte {in_contents}");
        }
        (ResourceManager::Gin, _) if special_u16(gin::FLAGS_OFFSET) & gin::flag::DATA != 0 => {
            return gin_data_field(in_contents, special_u16(gin::FLAGS_OFFSET));
        }
        _ => {}
    }
    if offset < usize::from(page::lower(page)) {
        return format!("line pointer {}", in_contents / ITEM_ID_BYTES + 1);
    }
    item_field(resource_manager, page, offset).unwrap_or_else(|| "between the items".to_owned())
}

/// Which item the byte is in, and what of it; `None` for a byte of no item.
fn item_field(resource_manager: ResourceManager, page: &PageBytes, offset: usize) -> Option<String> {
    let special_start = usize::from(page::special_start(page)).max(page::HEADER_BYTES);
    let special_u16 = |at: usize| u16_at(page, special_start + at).unwrap_or(0);
    for offset_number in 1..=page::max_offset_number(page) {
        let Ok(pointer) = page::line_pointer(page, offset_number) else { break };
        let start = usize::from(pointer.offset);
        if !pointer.has_storage() || !(start..start + usize::from(pointer.length)).contains(&offset) {
            continue;
        }
        let in_item = offset - start;
        let name = match resource_manager {
            ResourceManager::Heap | ResourceManager::Heap2 | ResourceManager::Sequence => {
                tuple::field_name(in_item).to_owned()
            }
            ResourceManager::Btree | ResourceManager::Hash | ResourceManager::Gin | ResourceManager::Gist => {
                field_or(INDEX_TUPLE, in_item, "key")
            }
            ResourceManager::Brin => field_or(BRIN_TUPLE, in_item, "summary"),
            ResourceManager::Spgist if special_u16(spgist::FLAGS_OFFSET) & spgist::LEAF != 0 => {
                field_or(SPGIST_LEAF_TUPLE, in_item, "value")
            }
            ResourceManager::Spgist => field_or(SPGIST_INNER_TUPLE, in_item, "prefix and nodes"),
            _ => format!("byte {in_item}"),
        };
        return Some(format!("item {offset_number}, {name}"));
    }
    None
}

/// A page of a posting tree: the right bound, then posting lists (leaves) or downlinks of ten bytes.
fn gin_data_field(in_contents: usize, flags: u16) -> String {
    match in_contents.checked_sub(gin::RIGHT_BOUND_BYTES) {
        None => "right bound".to_owned(),
        Some(offset) if flags & gin::flag::LEAF == 0 => {
            format!("posting item {}", offset / gin::POSTING_ITEM_BYTES + 1)
        }
        Some(offset) if flags & gin::flag::COMPRESSED != 0 => format!("posting lists, byte {offset}"),
        Some(offset) => format!("item pointers, byte {offset}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Placing, add_item, init};

    fn name(
        resource_manager: ResourceManager,
        block: BlockNumber,
        page: &PageBytes,
        offset: usize,
    ) -> String {
        field_name(resource_manager, block, page, offset)
    }

    #[test]
    fn every_part_of_a_heap_page_has_a_name() {
        let mut page = [0; borealis_types::PAGE_SIZE];
        init(&mut page, 0);
        add_item(&mut page, &[0; 40], 0, Placing::Heap).unwrap();
        add_item(&mut page, &[0; 40], 0, Placing::Heap).unwrap();
        let heap = |offset| name(ResourceManager::Heap, 3, &page, offset);
        assert_eq!(heap(0), "pd_lsn");
        assert_eq!(heap(11), "pd_flags");
        assert_eq!(heap(13), "pd_lower");
        assert_eq!(heap(23), "pd_prune_xid");
        assert_eq!(heap(24), "line pointer 1");
        assert_eq!(heap(31), "line pointer 2");
        assert_eq!(heap(100), "between the items");
        assert_eq!(heap(8192 - 80 + 5), "item 2, t_xmax");
        assert_eq!(heap(8192 - 40 + 20), "item 1, t_infomask");
        assert_eq!(heap(8192 - 1), "item 1, tuple data");
    }

    #[test]
    fn special_spaces_metapages_and_tuples_of_indexes_have_names() {
        let mut page = [0; borealis_types::PAGE_SIZE];
        init(&mut page, 16);
        add_item(&mut page, &[0; 16], 0, Placing::Overwrite).unwrap();
        assert_eq!(name(ResourceManager::Btree, 1, &page, 8176), "special space, btpo_prev");
        assert_eq!(name(ResourceManager::Btree, 1, &page, 8189), "special space, btpo_flags");
        assert_eq!(name(ResourceManager::Hash, 1, &page, 8184), "special space, hasho_bucket");
        assert_eq!(name(ResourceManager::Gist, 1, &page, 8176), "special space, nsn");
        assert_eq!(name(ResourceManager::Btree, 0, &page, 24 + 17), "metapage, btm_fastroot");
        assert_eq!(name(ResourceManager::Hash, 0, &page, 24 + 8), "metapage, hashm_ntuples");
        assert_eq!(name(ResourceManager::Btree, 1, &page, 8160 + 6), "item 1, t_info");
        assert_eq!(name(ResourceManager::Gist, 1, &page, 8160 + 9), "item 1, key byte 1");
        init(&mut page, 8);
        add_item(&mut page, &[0; 16], 0, Placing::Overwrite).unwrap();
        assert_eq!(name(ResourceManager::Gin, 1, &page, 8189), "special space, maxoff");
        assert_eq!(name(ResourceManager::Spgist, 1, &page, 8186), "special space, nRedirection");
        assert_eq!(name(ResourceManager::Spgist, 1, &page, 8168 + 4), "item 1, size");
        assert_eq!(name(ResourceManager::Brin, 2, &page, 8191), "special space, brin page type");
        assert_eq!(name(ResourceManager::Brin, 2, &page, 8168), "item 1, bt_blkno");
        assert_eq!(name(ResourceManager::Sequence, 0, &page, 8184), "special space, sequence magic");
    }

    #[test]
    fn hostile_pages_have_names_too() {
        for filler in [0x00, 0x7F, 0xFF] {
            let page = [filler; borealis_types::PAGE_SIZE];
            for number in 0..=21 {
                for offset in 0..borealis_types::PAGE_SIZE {
                    assert!(!name(ResourceManager::from(number), 1, &page, offset).is_empty());
                }
            }
        }
    }
}
