//! What a byte of a page is part of, for messages.
//!
//! Layouts: `src/include/storage/bufpage.h`, `access/htup_details.h` and `itup.h`, and each access method's own
//! header (`nbtree.h`, `hash.h`, `ginblock.h`, `gist.h`, `spgist_private.h`, `brin_page.h`).

use borealis_types::{BlockNumber, PageBytes};
use borealis_wal::ResourceManager;

use crate::bytes::u16_at;
use crate::heap::tuple;
use crate::page;

/// Fields one after the other: where each ends, and its name.
type Fields = &'static [(usize, &'static str)];

const PAGE_HEADER: Fields = &[
    (8, "pd_lsn"),
    (10, "pd_checksum"),
    (12, "pd_flags"),
    (14, "pd_lower"),
    (16, "pd_upper"),
    (18, "pd_special"),
    (20, "pd_pagesize_version"),
    (24, "pd_prune_xid"),
];
const BTREE_OPAQUE: Fields =
    &[(4, "btpo_prev"), (8, "btpo_next"), (12, "btpo_level"), (14, "btpo_flags"), (16, "btpo_cycleid")];
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
    (4, "hasho_prevblkno"),
    (8, "hasho_nextblkno"),
    (12, "hasho_bucket"),
    (14, "hasho_flag"),
    (16, "hasho_page_id"),
];
const HASH_META: Fields = &[
    (4, "hashm_magic"),
    (8, "hashm_version"),
    (16, "hashm_ntuples"),
    (18, "hashm_ffactor"),
    (20, "hashm_bsize"),
    (22, "hashm_bmsize"),
    (24, "hashm_bmshift"),
    (28, "hashm_maxbucket"),
    (32, "hashm_highmask"),
    (36, "hashm_lowmask"),
    (40, "hashm_ovflpoint"),
    (44, "hashm_firstfree"),
    (48, "hashm_nmaps"),
    (52, "hashm_procid"),
    // HASH_MAX_SPLITPOINTS is 98, HASH_MAX_BITMAPS 1024.
    (444, "hashm_spares"),
    (4540, "hashm_mapp"),
];
const GIN_OPAQUE: Fields = &[(4, "rightlink"), (6, "maxoff"), (8, "flags")];
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
const GIST_OPAQUE: Fields = &[(8, "nsn"), (12, "rightlink"), (14, "flags"), (16, "gist_page_id")];
const SPGIST_OPAQUE: Fields =
    &[(2, "flags"), (4, "nRedirection"), (6, "nPlaceholder"), (8, "spgist_page_id")];
const SPGIST_META: Fields = &[(4, "magicNumber"), (68, "lastUsedPages")];
const BRIN_SPECIAL: Fields = &[(4, "unused special space"), (6, "brin page flags"), (8, "brin page type")];
const BRIN_META: Fields =
    &[(4, "brinMagic"), (8, "brinVersion"), (12, "pagesPerRange"), (16, "lastRevmapPage")];
const SEQUENCE_SPECIAL: Fields = &[(4, "sequence magic")];
const INDEX_TUPLE: Fields = &[(6, "t_tid"), (8, "t_info")];
const BRIN_TUPLE: Fields = &[(4, "bt_blkno"), (5, "bt_info")];
const SPGIST_LEAF_TUPLE: Fields = &[(4, "tupstate and size"), (6, "t_info"), (12, "heapPtr")];
const SPGIST_INNER_TUPLE: Fields =
    &[(4, "tupstate, allTheSame, nNodes and prefixSize"), (6, "size"), (8, "padding")];

/// `GIN_DATA`, `GIN_LIST`
const GIN_DATA: u16 = 1 << 0;
/// `GIN_LEAF`
const GIN_LEAF: u16 = 1 << 1;
/// `GIN_COMPRESSED`
const GIN_COMPRESSED: u16 = 1 << 7;
/// `SPGIST_LEAF`
const SPGIST_LEAF: u16 = 1 << 2;
/// `BRIN_PAGETYPE_REVMAP`
const BRIN_REVMAP: u16 = 0xF092;

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
#[expect(clippy::too_many_lines, reason = "a table: one arm for each kind of page")]
pub(super) fn field_name(
    resource_manager: ResourceManager,
    block: BlockNumber,
    page: &PageBytes,
    offset: usize,
) -> String {
    if let Some(name) = field(PAGE_HEADER, offset) {
        return name.to_owned();
    }
    let special_start = usize::from(page::special_start(page)).max(page::HEADER_SIZE);
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
    let in_contents = offset - page::HEADER_SIZE;
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
        (ResourceManager::Brin, _) if special_u16(6) == BRIN_REVMAP => {
            return format!("revmap entry {}", in_contents / 6);
        }
        (ResourceManager::Hash, _) if special_u16(12) & 0x0F == 0x04 => {
            return format!("bitmap byte {in_contents}");
        }
        (ResourceManager::Gin, _) if special_u16(6) & GIN_DATA != 0 => {
            return gin_data_field(in_contents, special_u16(6));
        }
        _ => {}
    }
    if offset < usize::from(page::lower(page)) {
        return format!("line pointer {}", in_contents / page::LINE_POINTER_SIZE + 1);
    }
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
            ResourceManager::Spgist if special_u16(0) & SPGIST_LEAF != 0 => {
                field_or(SPGIST_LEAF_TUPLE, in_item, "value")
            }
            ResourceManager::Spgist => field_or(SPGIST_INNER_TUPLE, in_item, "prefix and nodes"),
            _ => format!("byte {in_item}"),
        };
        return format!("item {offset_number}, {name}");
    }
    "between the items".to_owned()
}

/// A page of a posting tree: the right bound, then posting lists (leaves) or downlinks of ten bytes.
fn gin_data_field(in_contents: usize, flags: u16) -> String {
    const RIGHT_BOUND_BYTES: usize = 8;
    const POSTING_ITEM_BYTES: usize = 10;
    match in_contents.checked_sub(RIGHT_BOUND_BYTES) {
        None => "right bound".to_owned(),
        Some(offset) if flags & GIN_LEAF == 0 => format!("posting item {}", offset / POSTING_ITEM_BYTES + 1),
        Some(offset) if flags & GIN_COMPRESSED != 0 => format!("posting lists, byte {offset}"),
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
