//! Records on pages and values: what they change, and redo.

use borealis_redo::consistency::{check_consistency, compare_pages};
use borealis_redo::{apply_meta, apply_page, meta_before};
use borealis_types::{
    Lsn, MetaKey, PAGE_SIZE, PageBytes, PageKey, Placement, RecordSpan, ServerVersion, SlruKind,
};
use borealis_wal::{Effect, Record, ResourceManager, effects, highest_xid, verify_checksum};

use crate::{Input, Sample};

/// Where the record stands. Pages of the corpus have LSNs of a young cluster, below it.
const SPAN: RecordSpan = RecordSpan { start: Lsn(0x1_0000_0028), end: Lsn(0x1_0010_0000) };

/// What redo of a sample did.
#[derive(Clone, Debug)]
pub struct Observation<'o> {
    /// Whose record it was.
    pub resource_manager: ResourceManager,
    /// Its info byte.
    pub info: u8,
    /// The page; `None` for a small value.
    pub page: Option<&'o PageKey>,
    /// The record says that it changes it. Redo of anything else should be refused.
    pub is_effect: bool,
    /// Redo found nothing wrong.
    pub applied: bool,
}

/// What a record of any content changes: raw bytes, or a [`Sample`]'s.
///
/// # Panics
/// When what must hold of effects does not.
pub fn record_effects(data: &[u8]) {
    let mut input = Input::new(data);
    let (server_version, bytes) = if input.u8() & 1 == 0 {
        let sample = Sample::decode(&mut input);
        (sample.server_version(), sample.record_bytes(Lsn(0x28)))
    } else {
        let mut bytes = input.rest().to_vec();
        bytes.resize(bytes.len().max(24), 0);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        (ServerVersion::NEWEST_TESTED, bytes)
    };
    let _ = verify_checksum(&bytes, SPAN.start);
    if let Ok(record) = Record::parse(server_version, SPAN, &bytes) {
        check_effects(&record);
        let _ = highest_xid(&record);
        for block in &record.blocks {
            if let Some(image) = &block.image {
                let _ = image.restore(&mut [0; PAGE_SIZE]);
            }
        }
    }
}

/// The record's effects, if they are known, checked for what is promised of them.
pub(crate) fn check_effects(record: &Record<'_>) -> Option<Vec<Effect>> {
    let placement = Placement::new(4).expect("four groups are allowed");
    let mut found = vec![Effect::Meta(MetaKey::ControlFileTemplate)];
    if effects(record, &mut found).is_err() {
        assert_eq!(found.len(), 1, "a refused record leaves effects behind");
        return None;
    }
    found.remove(0);
    let mut pages: Vec<&PageKey> = Vec::new();
    for effect in &found {
        assert!(!effect.groups(placement).is_empty(), "an effect concerns no group");
        if let Effect::Page(key) = effect {
            pages.push(key);
        }
    }
    pages.sort_unstable();
    let count = pages.len();
    pages.dedup();
    assert_eq!(count, pages.len(), "a page is listed twice");
    Some(found)
}

/// Redo of a [`Sample`], on everything it changes and on some that it does not.
pub fn redo_record(data: &[u8]) {
    redo_record_observed(data, &mut |_| {});
}

/// [`redo_record`], telling what happened.
///
/// # Panics
/// When what must hold of redo does not.
pub fn redo_record_observed(data: &[u8], observe: &mut dyn FnMut(Observation<'_>)) {
    let sample = Sample::decode(&mut Input::new(data));
    let bytes = sample.record_bytes(Lsn(0x28));
    // A block's data and image can be made such that no record says it, so this may be refused.
    let Ok(record) = Record::parse(sample.server_version(), SPAN, &bytes) else { return };
    let _ = highest_xid(&record);
    let known = check_effects(&record).unwrap_or_default();
    let (keys, values) = targets(&record, &known);
    let observation = |page, is_effect, applied| Observation {
        resource_manager: record.resource_manager,
        info: record.info,
        page,
        is_effect,
        applied,
    };
    for (index, key) in keys.iter().enumerate() {
        let before = page_before(&sample, key, index);
        let mut after = before.clone();
        let applied = apply_page(&record, key, &mut after).is_ok();
        if applied {
            let _ = check_consistency(&record, key, &after);
            if let PageKey::Block(block) = key {
                let _ = compare_pages(record.resource_manager, *block, &before, &after);
                let equal = compare_pages(record.resource_manager, *block, &after, &after);
                assert!(!matches!(equal, Ok(Some(_))), "a page differs from itself");
            }
        }
        observe(observation(Some(key), known.contains(&Effect::Page(*key)), applied));
    }
    for key in values {
        let Ok(other) = meta_before(&record, &key) else { continue };
        let wanted = other.as_ref().unwrap_or(&key);
        let value = sample.values.iter().find(|(known, _)| known == wanted).map(|(_, value)| value.clone());
        let applied = apply_meta(&record, &key, value).is_ok();
        let is_effect = key == MetaKey::Counters || known.contains(&Effect::Meta(key));
        observe(observation(None, is_effect, applied));
    }
}

/// The pages and values to try: what the record says it changes, what it lists, and what it should refuse.
fn targets(record: &Record<'_>, known: &[Effect]) -> (Vec<PageKey>, Vec<MetaKey>) {
    let mut keys = Vec::new();
    let mut values = vec![MetaKey::Counters];
    for effect in known {
        match effect {
            Effect::Page(key) => keys.push(*key),
            Effect::Meta(key) if *key != MetaKey::Counters => values.push(key.clone()),
            _ => {}
        }
    }
    for block in &record.blocks {
        let key = PageKey::Block(block.key);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if record.blocks.is_empty() {
        keys.extend(SlruKind::ALL.map(|kind| PageKey::Slru { kind, page: 0 }));
        values.extend([MetaKey::Tablespace(1), MetaKey::PreparedTransaction(record.xid)]);
    }
    (keys, values)
}

/// The page of the sample that has this key, or else one of its others.
fn page_before(sample: &Sample, key: &PageKey, index: usize) -> Box<PageBytes> {
    let named = sample.pages.iter().find(|(known, _)| known == key);
    let other = index.checked_rem(sample.pages.len()).and_then(|index| sample.pages.get(index));
    named.or(other).map_or_else(|| Box::new([0; PAGE_SIZE]), |(_, page)| page.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    /// Each page of the sample after redo.
    fn pages_after(sample: &Sample) -> Vec<Box<PageBytes>> {
        let bytes = sample.record_bytes(Lsn(0x28));
        let record = Record::parse(sample.server_version(), SPAN, &bytes).unwrap();
        let after = |(key, page): &(PageKey, Box<PageBytes>)| {
            let mut page = page.clone();
            let _ = apply_page(&record, key, &mut page);
            page
        };
        sample.pages.iter().map(after).collect()
    }

    #[test]
    fn the_corpus_reaches_what_releases_do_differently() {
        let samples: Vec<Sample> =
            corpus::samples().iter().map(|bytes| Sample::decode(&mut Input::new(bytes))).collect();
        let differ = |older: &&Sample| {
            let newer = Sample { by_older_release: false, ..(*older).clone() };
            pages_after(older) != pages_after(&newer)
        };
        let reached = samples.iter().filter(|sample| sample.by_older_release).filter(differ).count();
        assert!(reached > 0, "no sample's redo depends on the release");
    }
}
