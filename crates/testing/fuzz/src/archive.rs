//! Objects of a backup, as a store might hand them out.

use borealis_archive::history::{self, HistoryFacts};
use borealis_archive::manifest::{Entry, ManifestBuilder, ManifestFacts, for_each_entry};
use borealis_archive::marks::{self, Mark, MarksFacts};
use borealis_archive::name::{HistoryName, Name, SnapshotName};
use borealis_archive::object::{Digest, Facts, Head, Object};
use borealis_archive::pages::{ExtentPages, PagesBuilder, PagesFacts, for_each_extent};
use borealis_archive::redo::{RedoBuilder, RedoFacts, for_each_record};
use borealis_archive::sealing::{Sealing, SealingKey};
use borealis_archive::settings::{self, NamedSnapshot, Retention, VolumeFacts};
use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, MetaKey, NodeId, PAGE_SIZE, PageKey, Placement,
    PostgresVersion, RecordForm, RecordSpan, ServerVersion, SlruKind, VolumeEpoch, VolumeId,
};
use borealis_wire::{BatchRecord, GroupLink, GroupTail};

use crate::Input;

const VOLUME: VolumeId = VolumeId(7);
const PLAIN: Sealing = Sealing::Plain;
/// Kinds of objects, from 1.
const KINDS: u8 = 8;
/// Blocks of an object that is put together here.
const BLOCKS_MAX: usize = 16;

/// An object of any bytes, or one that is put together of any facts and blocks with the right lengths and checksums; or any key.
///
/// # Panics
/// When what is accepted does not survive the round trip.
pub fn archive_object(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8() % (KINDS + 1);
    if kind == 0 {
        return check_key(input.rest());
    }
    let flags = input.u8();
    let bytes = if flags & 1 == 1 { input.rest().to_vec() } else { put_together(kind, &mut input) };
    let sealing = if flags & 2 == 2 { Sealing::from(SealingKey::new([3; 32])) } else { PLAIN };
    match kind {
        1 => check_redo(&bytes, &sealing),
        2 => check_pages(&bytes, &sealing),
        3 => check_manifest(&bytes, &sealing),
        4 => check_history(&bytes, &sealing),
        5 => check_marks(&bytes, &sealing),
        6 => check_settings::<VolumeFacts>(&bytes),
        7 => check_settings::<NamedSnapshot>(&bytes),
        _ => check_settings::<Retention>(&bytes),
    }
}

fn check_key(bytes: &[u8]) {
    let key = String::from_utf8_lossy(bytes);
    if let Ok((volume, name)) = Name::of_key(&key) {
        assert_eq!(name.key(volume), key, "there are two ways to write a name");
    }
}

fn head<F: Facts>(bytes: &[u8], sealing: &Sealing) -> Option<Head<F>> {
    Head::decode(bytes, VOLUME, sealing).ok()
}

fn check_redo(bytes: &[u8], sealing: &Sealing) {
    let Some(head) = head::<RedoFacts>(bytes, sealing) else { return };
    let facts = *head.facts();
    let name = facts.name(Digest::of(bytes));
    let mut builder = RedoBuilder::new(VOLUME, facts.group, facts.node, facts.epoch, facts.previous_end);
    let read = for_each_record(bytes, VOLUME, &name, sealing, |record| {
        builder.push(facts.epoch, record).expect("a record of a chain that was read follows");
    });
    if read.is_ok() {
        let (again, bytes) = builder.finish(facts.complete_through, &PLAIN).expect("it has records");
        let facts_again =
            for_each_record(&bytes, VOLUME, &again, &PLAIN, |_| {}).expect("what was encoded decodes");
        assert_eq!(facts_again, facts, "redo changes in the round trip");
    }
}

fn check_pages(bytes: &[u8], sealing: &Sealing) {
    let Ok(object) = Object::<PagesFacts>::decode(bytes, VOLUME, sealing) else { return };
    for block in object.blocks() {
        let Ok(block) = block else { return };
        let mut pages = 0;
        let read = for_each_extent(&block, |extent| {
            let mut again = ExtentPages::new(&extent.first());
            for (key, page) in extent.pages() {
                pages += 1;
                assert!(again.push(&key, page), "a page of an extent follows");
            }
            assert_eq!(again, extent, "an extent changes in the round trip");
        });
        assert!(read.is_err() || pages * PAGE_SIZE <= block.len());
    }
}

fn check_manifest(bytes: &[u8], sealing: &Sealing) {
    let Some(head) = head::<ManifestFacts>(bytes, sealing) else { return };
    let ManifestFacts { group, start, lsn, tail_end, epoch, node, .. } = *head.facts();
    let last = RecordSpan { start, end: lsn };
    let name = head.facts().name(Digest::of(bytes));
    let mut builder = ManifestBuilder::new(VOLUME, group, node, epoch, (last, tail_end));
    let read = for_each_entry(bytes, VOLUME, &name, sealing, |entry| {
        builder.push(&entry).expect("an entry that was read follows");
    });
    if let Ok(facts) = read {
        let (again, bytes) = builder.finish(&PLAIN).expect("it was whole");
        let again = for_each_entry(&bytes, VOLUME, &again, &PLAIN, |_| {}).expect("what was encoded decodes");
        assert_eq!(again, facts, "a manifest changes in the round trip");
    }
}

fn check_history(bytes: &[u8], sealing: &Sealing) {
    let Some(head) = head::<HistoryFacts>(bytes, sealing) else { return };
    let name = HistoryName { epoch: head.facts().epoch, digest: Digest::of(bytes) };
    if let Ok(history) = history::decode(bytes, VOLUME, &name, sealing) {
        let (again, bytes) = history::encode(VOLUME, &history, &PLAIN);
        assert_eq!(history::decode(&bytes, VOLUME, &again, &PLAIN), Ok(history));
    }
}

fn check_marks(bytes: &[u8], sealing: &Sealing) {
    let Some(head) = head::<MarksFacts>(bytes, sealing) else { return };
    let name = head.facts().name(Digest::of(bytes));
    if let Ok(marks) = marks::decode(bytes, VOLUME, &name, sealing) {
        let (again, bytes) = marks::encode(VOLUME, name.node, &marks, &PLAIN).expect("they are in order");
        assert_eq!(marks::decode(&bytes, VOLUME, &again, &PLAIN), Ok(marks));
    }
}

fn check_settings<F: Facts + Clone + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(facts) = settings::decode::<F>(bytes, VOLUME, &PLAIN) {
        let again = settings::encode(VOLUME, facts.clone(), &PLAIN);
        assert_eq!(settings::decode::<F>(&again, VOLUME, &PLAIN), Ok(facts));
    }
}

/// An object as `borealis_archive::object` describes it: facts, and then blocks to the end of the input.
fn put_together(kind: u8, input: &mut Input<'_>) -> Vec<u8> {
    let facts = input.counted();
    let mut blocks = Vec::new();
    while !input.is_empty() && blocks.len() < BLOCKS_MAX {
        blocks.push(input.counted());
    }
    let packed: Vec<Vec<u8>> =
        blocks.iter().map(|block| zstd::bulk::compress(block, 1).expect("room for it")).collect();
    let lengths: Vec<(u32, u32)> =
        packed.iter().zip(&blocks).map(|(packed, block)| (packed.len() as u32, block.len() as u32)).collect();
    let plain = "plain numbers always encode";
    let mut header = postcard::to_stdvec(&(VOLUME, None::<[u8; 32]>)).expect(plain);
    header.extend_from_slice(facts);
    header = postcard::to_extend(&lengths, header).expect(plain);
    let mut bytes = b"BOREALAR".to_vec();
    bytes.extend_from_slice(&[kind, 1, 0, 0]);
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    for block in packed {
        bytes.extend_from_slice(&crc32c::crc32c(&block).to_le_bytes());
        bytes.extend_from_slice(&block);
    }
    bytes
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

/// What `put_together` makes this object of.
fn taken_apart<F: Facts>(bytes: &[u8]) -> Vec<u8> {
    let object = Object::<F>::decode(bytes, VOLUME, &PLAIN).expect("it was just made");
    let facts = postcard::to_stdvec(object.facts()).expect("plain numbers always encode");
    let mut seed = vec![F::KIND as u8, 0];
    seed.extend(counted(&facts));
    object.blocks().for_each(|block| seed.extend(counted(&block.expect("it was just made"))));
    seed
}

fn setting<F: Facts>(facts: F) -> Vec<u8> {
    taken_apart::<F>(&settings::encode(VOLUME, facts, &PLAIN))
}

/// One of each kind, taken apart, as bytes and encrypted, and keys.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let (group, node, epoch) = (GroupId(1), NodeId(2), VolumeEpoch(3));
    let mut redo = RedoBuilder::new(VOLUME, group, node, epoch, Lsn(160));
    for start in [200u64, 264, 328] {
        let links = vec![GroupLink { group, previous_end: redo.last_end() }];
        let span = RecordSpan { start: Lsn(start), end: Lsn(start + 64) };
        let record = BatchRecord { span, links, form: RecordForm::default(), bytes: &[7; 60] };
        redo.push(epoch, &record).expect("the next one");
    }
    let (redo_name, redo) = redo.finish(Lsn(500), &PLAIN).expect("it has records");
    let key = PageKey::Slru { kind: SlruKind::Transactions, page: 4 };
    let mut extent = ExtentPages::new(&key);
    extent.push(&key, &[5; PAGE_SIZE]);
    let mut pages = PagesBuilder::new(VOLUME, group, node, epoch, Lsn(160));
    pages.push(&extent);
    let (pages_name, pages, _) = pages.finish(&PLAIN).expect("it has an extent");
    let last = RecordSpan { start: Lsn(160), end: Lsn(170) };
    let mut manifest = ManifestBuilder::new(VOLUME, group, node, epoch, (last, Lsn(160)));
    let (first, content) = (extent.first(), extent.content());
    for entry in [Entry::Object(pages_name), Entry::Extent { first, object: 0, block: 0, content }] {
        manifest.push(&entry).expect("in order");
    }
    manifest.push_value(&MetaKey::Counters, &[1; 40]).expect("in order");
    let (manifest_name, manifest) = manifest.finish(&PLAIN).expect("whole");
    let mut history = EpochHistory::default();
    let server_version = ServerVersion::NEWEST_TESTED;
    history.push(EpochOpening { epoch: VolumeEpoch(1), last: RecordSpan::NONE, server_version });
    history.push(EpochOpening { epoch, last: RecordSpan { start: Lsn(96), end: Lsn(160) }, server_version });
    let (history_name, history_bytes) = history::encode(VOLUME, &history, &PLAIN);
    let tails = vec![GroupTail { group, last_end: Lsn(160) }];
    let marks = [Mark { clock_ms: 9, epoch, durable: Lsn(170), tails }];
    let (marks_name, marks) = marks::encode(VOLUME, node, &marks, &PLAIN).expect("in order");
    let placement = Placement::new(4).expect("four groups");
    let name = SnapshotName::try_from("one".to_owned()).expect("a name");
    let snapshot = NamedSnapshot { name, lsn: Lsn(160), epoch, created_ms: 9 };
    let version = PostgresVersion::NEWEST;
    let names = [
        Name::Redo(redo_name),
        Name::Pages(pages_name),
        Name::Manifest(manifest_name),
        Name::History(history_name),
        Name::Marks(marks_name),
        Name::Snapshot(snapshot.name.clone()),
    ];
    let sealed = history::encode(VOLUME, &history, &Sealing::from(SealingKey::new([3; 32]))).1;
    let mut seeds = vec![
        taken_apart::<RedoFacts>(&redo),
        taken_apart::<PagesFacts>(&pages),
        taken_apart::<ManifestFacts>(&manifest),
        taken_apart::<HistoryFacts>(&history_bytes),
        taken_apart::<MarksFacts>(&marks),
        setting(VolumeFacts { placement, version, page_bytes: PAGE_SIZE as u32, created_ms: 9 }),
        setting(snapshot),
        setting(Retention::default()),
        [&[1, 1], &redo[..]].concat(),
        [&[4, 3], &sealed[..]].concat(),
    ];
    seeds.extend(names.iter().map(|name| [&[0], name.key(VOLUME).as_bytes()].concat()));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else mutations of them would never get behind the first check.
    #[test]
    fn what_seeds_are_put_together_to_is_read() {
        let mut kinds = Vec::new();
        for seed in seeds().iter().filter(|seed| seed[0] > 0 && seed[1] == 0) {
            let mut input = Input::new(&seed[2..]);
            let bytes = put_together(seed[0], &mut input);
            let read = match seed[0] {
                1 => head::<RedoFacts>(&bytes, &PLAIN).is_some_and(|head| {
                    let name = head.facts().name(Digest::of(&bytes));
                    for_each_record(&bytes, VOLUME, &name, &PLAIN, |_| {}).is_ok()
                }),
                2 => Object::<PagesFacts>::decode(&bytes, VOLUME, &PLAIN).is_ok(),
                3 => head::<ManifestFacts>(&bytes, &PLAIN).is_some_and(|head| {
                    let name = head.facts().name(Digest::of(&bytes));
                    for_each_entry(&bytes, VOLUME, &name, &PLAIN, |_| {}).is_ok()
                }),
                4 => Object::<HistoryFacts>::decode(&bytes, VOLUME, &PLAIN).is_ok(),
                5 => Object::<MarksFacts>::decode(&bytes, VOLUME, &PLAIN).is_ok(),
                6 => settings::decode::<VolumeFacts>(&bytes, VOLUME, &PLAIN).is_ok(),
                7 => settings::decode::<NamedSnapshot>(&bytes, VOLUME, &PLAIN).is_ok(),
                _ => settings::decode::<Retention>(&bytes, VOLUME, &PLAIN).is_ok(),
            };
            assert!(read, "kind {}", seed[0]);
            kinds.push(seed[0]);
        }
        assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
