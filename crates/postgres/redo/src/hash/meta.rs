//! The metapage of a hash index: `HashMetaPageData` in `src/include/access/hash.h`.

use borealis_types::PageBytes;
use borealis_wal::layout::hash::{
    BITMAPS_MAX, GROUPS_WITH_ONE_PHASE, INITIAL_BUCKETS_MAX, META_MAGIC, META_VERSION, NONE, PHASE_BITS,
    SPLIT_POINTS_MAX, SPLIT_UPDATES_MASKS, SPLIT_UPDATES_SPLIT_POINT, flag, meta as at,
};
use borealis_wal::{BlockReference, Record};

use super::opaque::Opaque;
use crate::bytes::{Reader, put, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page;

/// `HashPageGetMeta`
fn meta(page: &mut PageBytes) -> &mut [u8] {
    &mut page[page::HEADER_BYTES..page::HEADER_BYTES + at::END]
}

/// Element `index` of the array of four-byte numbers at `start`.
fn element(start: usize, index: u32, count: usize) -> Redo<usize> {
    let index = index as usize;
    expect(index < count, "a hash index metapage has a number outside its array")?;
    Ok(start + index * 4)
}

fn add_to(meta: &mut [u8], offset: usize, increment: u32) -> Redo {
    let sum = u32_at(meta, offset)?
        .checked_add(increment)
        .ok_or(Fault::Failed("a counter of a hash index metapage overflows"))?;
    put(meta, offset, &sum.to_le_bytes())
}

/// `_hash_spareindex`: the split point phase that a bucket count belongs to.
fn spare_index(bucket_count: u32) -> u32 {
    let group = bucket_count.next_power_of_two().trailing_zeros();
    if group < GROUPS_WITH_ONE_PHASE {
        return group;
    }
    let phase = (bucket_count - 1) >> (group - (PHASE_BITS + 1)) & ((1 << PHASE_BITS) - 1);
    GROUPS_WITH_ONE_PHASE + ((group - GROUPS_WITH_ONE_PHASE) << PHASE_BITS) + phase
}

/// `_hash_get_totalbuckets`: buckets there are up to a split point phase.
fn total_buckets(phase: u32) -> u32 {
    if phase < GROUPS_WITH_ONE_PHASE {
        return 1 << phase;
    }
    let after = phase - GROUPS_WITH_ONE_PHASE;
    let before_group = 1 << (GROUPS_WITH_ONE_PHASE + (after >> PHASE_BITS) - 1);
    let phases_in_group = (after & ((1 << PHASE_BITS) - 1)) + 1;
    before_group + (before_group >> PHASE_BITS) * phases_in_group
}

/// `_hash_init_metabuffer`, from `xl_hash_init_meta_page`: tuples expected, hash procedure, fill factor.
pub(super) fn init(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let tuple_count = f64::from_bits(data.u64()?);
    let procedure = data.u32()?;
    let fill_factor = data.u16()?;
    let wanted = tuple_count / f64::from(fill_factor);
    let bucket_count = if wanted >= f64::from(INITIAL_BUCKETS_MAX) {
        INITIAL_BUCKETS_MAX
    } else if wanted > 2.0 {
        // Between 2 and 2^30, so the conversion only drops the fraction, as C's does.
        total_buckets(spare_index(wanted as u32))
    } else {
        2
    };
    let spare = spare_index(bucket_count);
    let high_mask = (bucket_count + 1).next_power_of_two() - 1;

    Opaque { previous: NONE, next: NONE, bucket: NONE, flags: flag::META }.init_page(page)?;
    let page_size = page::special_start(page) - page::HEADER_BYTES as u16;
    // The largest power of two that fits, and its logarithm in bits.
    let bitmap_shift = page_size.ilog2();
    let meta = meta(page);
    put(meta, at::MAGIC, &META_MAGIC.to_le_bytes())?;
    put(meta, at::VERSION, &META_VERSION.to_le_bytes())?;
    put(meta, at::FILL_FACTOR, &fill_factor.to_le_bytes())?;
    put(meta, at::PAGE_SIZE, &page_size.to_le_bytes())?;
    put(meta, at::BITMAP_SIZE, &(1_u16 << bitmap_shift).to_le_bytes())?;
    put(meta, at::BITMAP_SHIFT, &(bitmap_shift as u16 + 3).to_le_bytes())?;
    put(meta, at::MAX_BUCKET, &(bucket_count - 1).to_le_bytes())?;
    put(meta, at::HIGH_MASK, &high_mask.to_le_bytes())?;
    put(meta, at::LOW_MASK, &(high_mask >> 1).to_le_bytes())?;
    put(meta, at::OVERFLOW_POINT, &spare.to_le_bytes())?;
    put(meta, at::PROCEDURE, &procedure.to_le_bytes())?;
    put(meta, element(at::SPARES, spare, SPLIT_POINTS_MAX)?, &1_u32.to_le_bytes())?;
    page::set_lower(page, (page::HEADER_BYTES + at::END) as u16);
    Ok(())
}

/// Adds a bitmap page to the list.
fn add_bitmap(meta: &mut [u8], block: u32) -> Redo {
    let count = u32_at(meta, at::BITMAP_COUNT)?;
    put(meta, element(at::BITMAPS, count, BITMAPS_MAX)?, &block.to_le_bytes())?;
    add_to(meta, at::BITMAP_COUNT, 1)
}

/// `hash_xlog_init_bitmap_page`, the metapage: the first bitmap follows the first buckets.
pub(super) fn add_first_bitmap(page: &mut PageBytes) -> Redo {
    let meta = meta(page);
    let max_bucket = u32_at(meta, at::MAX_BUCKET)?;
    let block = max_bucket.checked_add(2).ok_or(Fault::Failed("a hash index has too many buckets"))?;
    add_bitmap(meta, block)
}

/// `hash_xlog_add_ovfl_page`, the metapage.
pub(super) fn add_overflow(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let found_in_bitmap =
        *record.main_data.get(2).ok_or(Fault::Failed("the record's data is too short"))? != 0;
    set_first_free(page, block.data)?;
    if found_in_bitmap {
        return Ok(());
    }
    let meta = meta(page);
    let spare = element(at::SPARES, u32_at(meta, at::OVERFLOW_POINT)?, SPLIT_POINTS_MAX)?;
    add_to(meta, spare, 1)?;
    if let Some(bitmap) = record.block(3) {
        add_bitmap(meta, bitmap.key.block)?;
        add_to(meta, spare, 1)?;
    }
    Ok(())
}

/// The lowest overflow page that may be free.
pub(super) fn set_first_free(page: &mut PageBytes, data: &[u8]) -> Redo {
    put(meta(page), at::FIRST_FREE, &u32_at(data, 0)?.to_le_bytes())
}

/// `hash_xlog_split_allocate_page`, the metapage. Data, as `flags` say: low and high mask, then split point and
/// its spare pages.
pub(super) fn add_bucket(page: &mut PageBytes, new_bucket: u32, flags: u8, data: &[u8]) -> Redo {
    let mut data = Reader::new(data);
    let meta = meta(page);
    put(meta, at::MAX_BUCKET, &new_bucket.to_le_bytes())?;
    if flags & SPLIT_UPDATES_MASKS != 0 {
        put(meta, at::LOW_MASK, &data.u32()?.to_le_bytes())?;
        put(meta, at::HIGH_MASK, &data.u32()?.to_le_bytes())?;
    }
    if flags & SPLIT_UPDATES_SPLIT_POINT != 0 {
        let split_point = data.u32()?;
        let spare = element(at::SPARES, split_point, SPLIT_POINTS_MAX)?;
        put(meta, spare, &data.u32()?.to_le_bytes())?;
        put(meta, at::OVERFLOW_POINT, &split_point.to_le_bytes())?;
    }
    Ok(())
}

fn change_tuple_count(page: &mut PageBytes, change: f64) -> Redo {
    let meta = meta(page);
    let low = u64::from(u32_at(meta, at::TUPLE_COUNT)?);
    let high = u64::from(u32_at(meta, at::TUPLE_COUNT + 4)?);
    let changed = f64::from_bits(high << 32 | low) + change;
    put(meta, at::TUPLE_COUNT, &changed.to_bits().to_le_bytes())
}

/// `hash_xlog_insert`, the metapage.
pub(super) fn count_insertion(page: &mut PageBytes) -> Redo {
    change_tuple_count(page, 1.0)
}

/// `hash_xlog_vacuum_one_page`, the metapage.
pub(super) fn subtract_tuples(page: &mut PageBytes, count: u32) -> Redo {
    change_tuple_count(page, -f64::from(count.cast_signed()))
}

/// `hash_xlog_update_meta_page`
pub(super) fn set_tuple_count(page: &mut PageBytes, count: &[u8]) -> Redo {
    put(meta(page), at::TUPLE_COUNT, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u16_at;
    use crate::test_record;
    use borealis_types::PAGE_SIZE;
    use borealis_wal::ResourceManager;

    #[test]
    fn bucket_counts_and_split_points_agree() {
        assert_eq!((spare_index(1), spare_index(2), spare_index(512), spare_index(513)), (0, 1, 9, 10));
        for phase in 0..80 {
            let buckets = total_buckets(phase);
            assert_eq!(spare_index(buckets), phase, "{buckets} buckets are those of phase {phase}");
            assert_eq!(spare_index(buckets + 1), phase + 1);
        }
        assert_eq!(total_buckets(10), 640);
    }

    #[test]
    fn a_fresh_metapage_has_buckets_for_the_tuples_expected() {
        let mut data = 100_000_f64.to_le_bytes().to_vec();
        data.extend(449_u32.to_le_bytes());
        data.extend(307_u16.to_le_bytes());
        let record =
            test_record::record(ResourceManager::Hash, borealis_wal::layout::hash::INIT_META_PAGE, &data);
        let mut page = [0xFF; PAGE_SIZE];
        init(&record, &mut page).unwrap();
        let meta = meta(&mut page);
        assert_eq!(u32_at(meta, at::MAX_BUCKET), Ok(511));
        assert_eq!(u32_at(meta, at::HIGH_MASK), Ok(1023));
        assert_eq!(u32_at(meta, at::LOW_MASK), Ok(511));
        assert_eq!(u16_at(meta, at::BITMAP_SIZE), Ok(4096));
        assert_eq!(u16_at(meta, at::BITMAP_SHIFT), Ok(15));
        assert_eq!(page::lower(&page), 4568);
    }
}
