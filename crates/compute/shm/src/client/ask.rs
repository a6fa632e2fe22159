//! Requests: a slot of the process's own, one question at a time, and hints which nobody answers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use borealis_types::{BlockKey, DatabaseKey, PageBytes, RelationFork, SlruKind};

use super::{CHECK_INTERVAL_MS, ClientSide, ClientSlot, WaitError};
use crate::futex;
use crate::layout::{PREFETCH_ENTRIES, SLOT_DONE, SLOT_IDLE, SLOT_REQUESTED, SLOT_TAKEN, Slot};
use crate::liveness::process_exists;
use crate::request::{self, Message, STATUS_ERROR, STATUS_NONEXISTENT, STATUS_OK, Words};
use crate::{MAX_RELATION_ENTRIES, MAX_SLRU_ENTRIES, RelationEntry, RelationSize, Request, SlruEntry};

/// Why a request was not answered.
#[derive(Clone, Copy, Debug)]
pub enum RequestError {
    /// The instance was fenced or poisoned, or its driver is gone.
    Instance(WaitError),
    /// The driver answered with an error.
    Refused(Message),
    /// The driver's answer does not fit the request: the two are of different builds.
    Malformed,
}

impl ClientSide {
    /// The block as of now, into `page`. `false` when it does not exist.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn read_block(
        &self,
        slot: &ClientSlot,
        key: BlockKey,
        page: &mut PageBytes,
    ) -> Result<bool, RequestError> {
        self.ask(slot, Request::ReadBlock(key), Some(page)).map(|words| words.is_some())
    }

    /// A page of a transaction-status store as of now, into `page`. `false` when it does not exist.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn read_slru_page(
        &self,
        slot: &ClientSlot,
        kind: SlruKind,
        number: u32,
        page: &mut PageBytes,
    ) -> Result<bool, RequestError> {
        let request = Request::ReadSlruPage { kind, page: number };
        self.ask(slot, request, Some(page)).map(|words| words.is_some())
    }

    /// Whether the fork exists and how long it is.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn relation_size(&self, slot: &ClientSlot, key: RelationFork) -> Result<RelationSize, RequestError> {
        let words = self.ask(slot, Request::RelationSize(key), None)?;
        let absent = RelationSize { blocks: None, has_init_fork: false };
        Ok(words.map_or(absent, request::relation_size))
    }

    /// Some relation forks of a database and the cursor for the next ones (zero after the last). `page` is
    /// scratch space that the entries are read from.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn list_relations<'a>(
        &self,
        slot: &ClientSlot,
        database: DatabaseKey,
        cursor: u64,
        page: &'a mut PageBytes,
    ) -> Result<(impl Iterator<Item = RelationEntry> + use<'a>, u64), RequestError> {
        let words = self.ask(slot, Request::ListRelations { database, cursor }, Some(page))?;
        let (count, next) = words.map_or((0, 0), |words| request::listing(words, MAX_RELATION_ENTRIES));
        Ok((request::relation_entries(page, count), next))
    }

    /// How many pages a segment file of a transaction-status store has; `None` when it does not exist.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn slru_segment(
        &self,
        slot: &ClientSlot,
        kind: SlruKind,
        segment: u32,
    ) -> Result<Option<u32>, RequestError> {
        let words = self.ask(slot, Request::SlruSegment { kind, segment }, None)?;
        Ok(words.and_then(request::slru_segment))
    }

    /// Some segment files of a transaction-status store, like [`ClientSide::list_relations`].
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn list_slru_segments<'a>(
        &self,
        slot: &ClientSlot,
        kind: SlruKind,
        cursor: u64,
        page: &'a mut PageBytes,
    ) -> Result<(impl Iterator<Item = SlruEntry> + use<'a>, u64), RequestError> {
        let words = self.ask(slot, Request::ListSlruSegments { kind, cursor }, Some(page))?;
        let (count, next) = words.map_or((0, 0), |words| request::listing(words, MAX_SLRU_ENTRIES));
        Ok((request::slru_entries(page, count), next))
    }

    /// Tells the driver that the block will be read soon. Never waits; forgotten when the ring is full.
    pub fn prefetch(&self, slot: &ClientSlot, key: BlockKey) {
        if self.check_state().is_err() {
            return;
        }
        let Some((index, slot)) = self.own_slot(slot) else { return };
        let written = slot.prefetch_written.load(Ordering::Relaxed);
        // Acquire pairs with the driver's Release: it has read what the new entry overwrites.
        let read = slot.prefetch_read.load(Ordering::Acquire);
        if written.wrapping_sub(read) >= PREFETCH_ENTRIES {
            return;
        }
        let Some(entry) = slot.prefetch.get((written % PREFETCH_ENTRIES) as usize) else { return };
        let [a, b, c, d] = request::fork_words(key.relation_fork);
        for (word, value) in entry.iter().zip([a, b, c, d, key.block]) {
            word.store(value, Ordering::Relaxed);
        }
        slot.prefetch_written.store(written.wrapping_add(1), Ordering::Release);
        set_bit(&self.mapping.header().prefetch_pending, index);
        self.wake_driver();
    }

    /// Sends a request and waits for the answer. `None` for "nonexistent". The page buffer is copied to
    /// `page`, because the next request uses it again.
    fn ask(
        &self,
        client_slot: &ClientSlot,
        request: Request,
        page: Option<&mut PageBytes>,
    ) -> Result<Option<Words>, RequestError> {
        self.check_state().map_err(RequestError::Instance)?;
        let (index, slot) = self.idle_slot(client_slot)?;
        request::store(&slot.request, request::request_to_words(request));
        slot.state.store(SLOT_REQUESTED, Ordering::Release);
        set_bit(&self.mapping.header().pending, index);
        self.wake_driver();

        let mut spins = self.config().spin_count;
        let mut slept = false;
        loop {
            let state = slot.state.load(Ordering::Acquire);
            if state == SLOT_DONE {
                break;
            }
            if spins > 0 {
                spins -= 1;
                std::hint::spin_loop();
                continue;
            }
            let checked = match self.check_state() {
                // The common case is a prompt answer; whether the driver lives is asked after the first
                // sleep without one.
                Ok(()) if slept => self.check_driver(),
                checked => checked,
            };
            if let Err(error) = checked {
                // The driver may still write into the slot, so it is left as it is and another one is
                // claimed if there is a next time.
                client_slot.pid.store(0, Ordering::Relaxed);
                return Err(RequestError::Instance(error));
            }
            futex::wait(&slot.state, state, CHECK_INTERVAL_MS);
            slept = true;
        }

        let result = read_reply(slot, page);
        slot.state.store(SLOT_IDLE, Ordering::Release);
        result
    }

    /// This process's slot with nothing in it. Waits while all slots are taken.
    fn idle_slot(&self, client_slot: &ClientSlot) -> Result<(usize, &Slot), RequestError> {
        loop {
            if let Some(found) = self.own_slot(client_slot) {
                if found.1.state.load(Ordering::Acquire) == SLOT_IDLE {
                    return Ok(found);
                }
                // A signal handler that ends the process, out of the middle of a request: the driver may be about
                // to answer that one, so this one needs a slot of its own.
                client_slot.pid.store(0, Ordering::Relaxed);
                continue;
            }
            // More processes than slots: wait for one to end. The driver sizes the slots so that this does
            // not happen.
            futex::wait(&AtomicU32::new(0), 0, 1);
            self.check_state().and_then(|()| self.check_driver()).map_err(RequestError::Instance)?;
        }
    }

    /// This process's slot, claimed at first use; `None` when all are taken.
    fn own_slot(&self, client_slot: &ClientSlot) -> Option<(usize, &Slot)> {
        // A child of fork has its parent's memory but another number.
        let pid = std::process::id();
        if client_slot.pid.load(Ordering::Relaxed) == pid {
            let index = client_slot.index.load(Ordering::Relaxed) as usize;
            return self.mapping.slot(index).map(|slot| (index, slot));
        }
        let count = self.mapping.slot_count();
        // Start at a place of one's own, so that processes do not race for the first slots.
        let claimed = (0..count)
            .map(|step| (pid as usize + step) % count)
            .find(|&index| self.mapping.slot(index).is_some_and(|slot| claim(slot, pid)))?;
        client_slot.index.store(claimed as u32, Ordering::Relaxed);
        client_slot.pid.store(pid, Ordering::Relaxed);
        self.mapping.slot(claimed).map(|slot| (claimed, slot))
    }

    /// Gives the process's slot back. For a process that ends in an orderly way; the slots of others are
    /// found by their dead owner.
    pub fn release_slot(&self, client_slot: &ClientSlot) {
        client_slot.held.release(&self.mapping.header().fill_locks);
        if client_slot.pid.swap(0, Ordering::Relaxed) != std::process::id() {
            return;
        }
        let index = client_slot.index.load(Ordering::Relaxed) as usize;
        if let Some(slot) = self.mapping.slot(index)
            && slot.state.load(Ordering::Relaxed) == SLOT_IDLE
        {
            slot.owner.store(0, Ordering::Release);
        }
    }
}

/// The answer in a slot whose state is DONE. The slot is this side's until it asks again.
fn read_reply(slot: &Slot, page: Option<&mut PageBytes>) -> Result<Option<Words>, RequestError> {
    let words = request::load(&slot.reply);
    match words[0] {
        STATUS_OK => {
            if let Some(page) = page {
                // SAFETY: the state is DONE, so the buffer is this side's until it asks again.
                page.copy_from_slice(unsafe { &*slot.page.get() });
            }
            Ok(Some(words))
        }
        STATUS_NONEXISTENT => Ok(None),
        STATUS_ERROR => {
            // SAFETY: as above.
            let text = unsafe { &*slot.message.get() };
            Err(RequestError::Refused(Message::new(text.get(..words[1] as usize).unwrap_or(text))))
        }
        _ => Err(RequestError::Malformed),
    }
}

fn set_bit(bitmap: &[AtomicU64], index: usize) {
    if let Some(word) = bitmap.get(index / 64) {
        word.fetch_or(1 << (index % 64), Ordering::SeqCst);
    }
}

/// Makes the slot this process's own if it is free or its owner is dead.
fn claim(slot: &Slot, pid: u32) -> bool {
    let owner = slot.owner.load(Ordering::Relaxed);
    // Finding oneself: a process with the same number owned it once, and died.
    if owner != 0 && owner != pid && process_exists(owner) {
        return false;
    }
    // The driver still works for the dead owner and will write into the slot.
    if slot.state.load(Ordering::Relaxed) == SLOT_TAKEN {
        return false;
    }
    if slot.owner.compare_exchange(owner, pid, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return false;
    }
    // A request the driver has not taken yet is withdrawn; if it takes it at this moment, the slot goes back
    // to the dead owner until the driver has answered.
    let mut state = slot.state.load(Ordering::Acquire);
    loop {
        if state == SLOT_TAKEN {
            slot.owner.store(owner, Ordering::Release);
            return false;
        }
        match slot.state.compare_exchange(state, SLOT_IDLE, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(changed) => state = changed,
        }
    }
}
