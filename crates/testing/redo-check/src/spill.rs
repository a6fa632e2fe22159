//! Pages in a temporary file, with a bounded number of them in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;

use borealis_redo::check::{PageNote, PageStore};
use borealis_types::{PAGE_SIZE, PageBytes, PageKey, invariant};

/// A page's place in the file.
type Slot = usize;
/// A page's place in memory.
type FrameIndex = usize;

struct Frame {
    bytes: Box<PageBytes>,
    /// Whose page it is; `None` if nobody's.
    slot: Option<Slot>,
    /// It is newer than the file.
    dirty: bool,
    /// It was used since the clock's hand last passed.
    used: bool,
}

/// A store of pages. The file is made when memory is first full, and has no name: it is gone with the process.
///
/// In memory are, besides `frames_max` pages, the key and place of each page: about 1 % of the pages' size.
pub struct SpillPages {
    folder: std::path::PathBuf,
    file: Option<File>,
    index: BTreeMap<PageKey, (Slot, PageNote)>,
    free_slots: Vec<Slot>,
    /// By slot: where the page is in memory.
    frame_of_slot: Vec<Option<FrameIndex>>,
    frames: Vec<Frame>,
    frames_max: usize,
    clock_hand: FrameIndex,
}

impl SpillPages {
    /// An empty store with at most `frames_max` (at least one) pages in memory and its file in `folder`.
    pub fn new(folder: &Path, frames_max: usize) -> SpillPages {
        SpillPages {
            folder: folder.to_path_buf(),
            file: None,
            index: BTreeMap::new(),
            free_slots: Vec::new(),
            frame_of_slot: Vec::new(),
            frames: Vec::new(),
            frames_max: frames_max.max(1),
            clock_hand: 0,
        }
    }

    fn file_offset(slot: Slot) -> u64 {
        slot as u64 * PAGE_SIZE as u64
    }

    /// A frame that holds nobody's page.
    fn free_frame(&mut self) -> io::Result<FrameIndex> {
        if self.frames.len() < self.frames_max {
            let bytes = Box::new([0; PAGE_SIZE]);
            self.frames.push(Frame { bytes, slot: None, dirty: false, used: false });
            return Ok(self.frames.len() - 1);
        }
        loop {
            let index = self.clock_hand;
            self.clock_hand = (index + 1) % self.frames.len();
            let frame = &mut self.frames[index];
            let Some(slot) = frame.slot else { return Ok(index) };
            if std::mem::take(&mut frame.used) {
                continue;
            }
            if frame.dirty {
                if self.file.is_none() {
                    self.file = Some(tempfile::tempfile_in(&self.folder)?);
                }
                let file = self.file.as_ref().expect("it was just made");
                file.write_all_at(&*frame.bytes, Self::file_offset(slot))?;
                frame.dirty = false;
            }
            frame.slot = None;
            self.frame_of_slot[slot] = None;
            return Ok(index);
        }
    }

    fn give_frame(&mut self, index: FrameIndex, slot: Slot, dirty: bool) {
        let frame = &mut self.frames[index];
        frame.slot = Some(slot);
        frame.dirty = dirty;
        frame.used = true;
        self.frame_of_slot[slot] = Some(index);
    }
}

impl PageStore for SpillPages {
    type Error = io::Error;

    fn read(&mut self, key: &PageKey, bytes: &mut PageBytes) -> io::Result<Option<PageNote>> {
        let Some((slot, note)) = self.index.get(key).copied() else { return Ok(None) };
        let index = match self.frame_of_slot[slot] {
            Some(index) => index,
            None => {
                let index = self.free_frame()?;
                let file = self.file.as_ref().expect("a page that is not in memory is in the file");
                file.read_exact_at(&mut *self.frames[index].bytes, Self::file_offset(slot))?;
                self.give_frame(index, slot, false);
                index
            }
        };
        let frame = &mut self.frames[index];
        invariant!("frame-holds-its-page", frame.slot == Some(slot), "frame {index} of {key}");
        frame.used = true;
        bytes.copy_from_slice(&*frame.bytes);
        Ok(Some(note))
    }

    fn write(&mut self, key: PageKey, bytes: &PageBytes, note: PageNote) -> io::Result<()> {
        let slot = match self.index.get_mut(&key) {
            Some((slot, old_note)) => {
                *old_note = note;
                *slot
            }
            None => {
                let slot = self.free_slots.pop().unwrap_or_else(|| {
                    self.frame_of_slot.push(None);
                    self.frame_of_slot.len() - 1
                });
                self.index.insert(key, (slot, note));
                slot
            }
        };
        let index = match self.frame_of_slot[slot] {
            Some(index) => index,
            None => self.free_frame()?,
        };
        self.frames[index].bytes.copy_from_slice(bytes);
        self.give_frame(index, slot, true);
        Ok(())
    }

    fn remove(&mut self, key: &PageKey) {
        let Some((slot, _)) = self.index.remove(key) else { return };
        if let Some(index) = self.frame_of_slot[slot].take() {
            self.frames[index].slot = None;
            self.frames[index].dirty = false;
        }
        self.free_slots.push(slot);
    }

    fn keys(&self, range: RangeInclusive<PageKey>) -> Vec<PageKey> {
        self.index.range(range).map(|(key, _)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_redo::check::MemoryPages;
    use borealis_types::SlruKind;

    fn key(page: u32) -> PageKey {
        PageKey::Slru { kind: SlruKind::Transactions, page }
    }

    /// Numbers that look random and are the same each time.
    fn numbers() -> impl Iterator<Item = u32> {
        let mut state = 0x2545_F491_u32;
        std::iter::from_fn(move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            Some(state)
        })
    }

    #[test]
    #[should_panic(expected = "invariant frame-holds-its-page is broken")]
    fn a_frame_that_was_given_to_another_page_is_noticed() {
        let mut spill = SpillPages::new(&std::env::temp_dir(), 7);
        let note = PageNote { changed_by: None, changed: false };
        for page in 0..2 {
            spill.write(key(page), &[page as u8; PAGE_SIZE], note).unwrap();
        }
        spill.frame_of_slot.swap(0, 1);
        let _ = spill.read(&key(0), &mut [0; PAGE_SIZE]);
    }

    #[test]
    fn it_keeps_what_a_map_in_memory_keeps() {
        let mut model = MemoryPages::default();
        let mut spill = SpillPages::new(&std::env::temp_dir(), 7);
        let mut numbers = numbers();
        let mut next = || numbers.next().unwrap();
        for _ in 0..20_000 {
            let (action, key) = (next() % 10, key(next() % 40));
            match action {
                0..4 => {
                    let bytes = [(next() % 251) as u8; PAGE_SIZE];
                    let note = PageNote { changed_by: None, changed: next() % 2 == 0 };
                    let Ok(()) = model.write(key, &bytes, note);
                    spill.write(key, &bytes, note).unwrap();
                }
                4 => {
                    model.remove(&key);
                    spill.remove(&key);
                }
                _ => {
                    let (mut expected, mut actual) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
                    let Ok(expected_note) = model.read(&key, &mut expected);
                    assert_eq!(spill.read(&key, &mut actual).unwrap(), expected_note);
                    if expected_note.is_some() {
                        assert!(expected == actual, "{key}");
                    }
                }
            }
            assert!(spill.frames.len() <= 7);
        }
        assert_eq!(spill.keys(key(0)..=key(99)), model.keys(key(0)..=key(99)));
        assert!(spill.file.is_some(), "the test reaches the file");
    }
}
