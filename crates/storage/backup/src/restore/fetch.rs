//! Redo objects, read and checked on several threads a little ahead of who needs them.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use borealis_archive::name::Name;
use borealis_archive::plan::PlannedRedo;
use borealis_archive::redo::for_each_record;
use borealis_archive::sealing::Sealing;
use borealis_types::{Lsn, RecordForm, RecordSpan, VolumeId};
use borealis_wire::{BatchRecord, GroupLink};

use super::gate::{Gate, Turn};
use crate::contents::NOT_THERE;
use crate::store::{ObjectStore, ObjectStoreError};

/// Requests under way at a time: a store far away answers each after a while.
const THREADS: usize = 8;

/// Objects that may be read beyond those that were taken. Every thread has one to read while it waits to hand over the last one; more would
/// only take memory, for each is held with all its records.
const AHEAD: usize = 2 * THREADS;

/// Bytes that objects may take which nobody needs yet, with all their records. Small objects are bounded by their number before.
const AHEAD_BYTES: u64 = 256 << 20;

/// The records of one object that a restore takes, in order.
#[derive(Debug, Default)]
pub(crate) struct Records {
    placed: Vec<Placed>,
    links: Vec<GroupLink>,
    bytes: Vec<u8>,
    /// How long the object is.
    pub object_bytes: u64,
}

/// Where a record's links and bytes end in their lists; they begin where the record's before end.
#[derive(Debug)]
struct Placed {
    span: RecordSpan,
    form: RecordForm,
    links_end: usize,
    bytes_end: usize,
}

impl Records {
    fn push(&mut self, record: &BatchRecord<'_>) {
        self.links.extend_from_slice(&record.links);
        self.bytes.extend_from_slice(record.bytes);
        let (links_end, bytes_end) = (self.links.len(), self.bytes.len());
        self.placed.push(Placed { span: record.span, form: record.form, links_end, bytes_end });
    }

    /// How much memory it takes.
    fn held_bytes(&self) -> u64 {
        let placed = self.placed.capacity() * size_of::<Placed>();
        (placed + self.links.capacity() * size_of::<GroupLink>() + self.bytes.capacity()) as u64
    }

    /// A record by its number; `None` past the last.
    pub(crate) fn get(&self, number: usize) -> Option<BatchRecord<'_>> {
        let Placed { span, form, links_end, bytes_end } = self.placed.get(number)?;
        let before = number.checked_sub(1).map(|before| &self.placed[before]);
        let (links_start, bytes_start) = before.map_or((0, 0), |before| (before.links_end, before.bytes_end));
        let links = self.links[links_start..*links_end].to_vec();
        Some(BatchRecord { span: *span, form: *form, links, bytes: &self.bytes[bytes_start..*bytes_end] })
    }
}

/// Why an object was not read.
#[derive(Debug)]
pub(crate) enum NotFetched {
    /// It is missing or damaged.
    Spoilt(String),
    /// The store did not answer.
    Store(ObjectStoreError),
}

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Fetching<'a> {
    store: &'a dyn ObjectStore,
    volume: VolumeId,
    sealing: &'a Sealing,
    objects: Vec<PlannedRedo>,
    /// How long each is.
    bytes: Vec<u64>,
    gate: Mutex<Gate>,
    moved: Condvar,
}

type Fetched = (usize, Result<Records, NotFetched>);

impl<'a> Fetching<'a> {
    /// Of these objects and their lengths, in the order in which they will be needed.
    pub(crate) fn new(
        store: &'a dyn ObjectStore,
        volume: VolumeId,
        sealing: &'a Sealing,
        objects: impl Iterator<Item = (PlannedRedo, u64)>,
    ) -> Fetching<'a> {
        let (objects, bytes) = objects.unzip();
        Fetching { store, volume, sealing, objects, bytes, gate: Mutex::default(), moved: Condvar::new() }
    }

    /// Every thread ends when it has read what it reads.
    fn end(&self) {
        self.gate().end();
        self.moved.notify_all();
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing panics while it holds this but an assertion of the gate's own, and then all end.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the threads; they end with the [`Waiting`] that takes what they read.
    pub(crate) fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) -> std::io::Result<Waiting<'s>> {
        let (sender, receiver) = sync_channel(THREADS);
        let waiting = Waiting { fetching: self, receiver, early: BTreeMap::new(), taken: 0 };
        for number in 0..THREADS.min(self.objects.len()) {
            let sender = sender.clone();
            Builder::new().name(format!("fetch-{number}")).spawn_scoped(scope, move || self.run(&sender))?;
        }
        Ok(waiting)
    }

    fn run(&self, sender: &SyncSender<Fetched>) {
        let _guard = EndIfPanicking(self);
        while let Some(number) = self.next() {
            let fetched = self.fetch(&self.objects[number]);
            self.gate().read(number, fetched.as_ref().map_or(0, Records::held_bytes));
            self.moved.notify_all();
            if sender.send((number, fetched)).is_err() {
                return;
            }
        }
    }

    /// The number of the next object to read, once that may be read.
    fn next(&self) -> Option<usize> {
        let mut gate = self.gate();
        loop {
            match gate.begin(&self.bytes, AHEAD_BYTES) {
                Turn::Read(number) => return Some(number),
                Turn::End => return None,
                Turn::Wait => gate = self.moved.wait(gate).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn fetch(&self, object: &PlannedRedo) -> Result<Records, NotFetched> {
        let key = Name::Redo(object.name).key(self.volume);
        let bytes = self.store.get(&key).map_err(|error| match error {
            error if error.is_missing() => NotFetched::Spoilt(NOT_THERE.to_owned()),
            error if error.is_of_object() => NotFetched::Spoilt(format!("cannot be read: {}", error.what)),
            error => NotFetched::Store(error),
        })?;
        let mut records = Records { object_bytes: bytes.len() as u64, ..Records::default() };
        for_each_record(&bytes, self.volume, &object.name, self.sealing, |record| {
            if record.span.end <= object.through {
                records.push(record);
            }
        })
        .map_err(|fault| NotFetched::Spoilt(fault.to_string()))?;
        Ok(records)
    }
}

/// Takes what the threads read.
#[derive(Debug)]
pub(crate) struct Waiting<'s> {
    fetching: &'s Fetching<'s>,
    receiver: Receiver<Fetched>,
    /// What was read before it was needed.
    early: BTreeMap<usize, Result<Records, NotFetched>>,
    taken: usize,
}

impl Waiting<'_> {
    /// Waits for an object by its number. Each is asked for once, and in order as far as objects have what their names say.
    pub(crate) fn take(&mut self, number: usize) -> Result<Records, NotFetched> {
        self.fetching.gate().need(number, self.taken + AHEAD);
        self.fetching.moved.notify_all();
        self.taken += 1;
        loop {
            if let Some(found) = self.early.remove(&number) {
                self.fetching.gate().taken(number);
                self.fetching.moved.notify_all();
                return found;
            }
            let (got, records) = self
                .receiver
                .recv()
                .map_err(|_| NotFetched::Spoilt("was not read: its thread ended".to_owned()))?;
            self.early.insert(got, records);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.fetching.end();
    }
}

/// What a thread that panics was to read never comes: the others end too, so that nobody waits for it, and the panic is seen.
struct EndIfPanicking<'s, 'a>(&'s Fetching<'a>);

impl Drop for EndIfPanicking<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}

/// Where in the stream each object of a group is needed: where the one before it has its last record.
pub(crate) fn needed_at(redo: &[PlannedRedo]) -> impl Iterator<Item = Lsn> {
    let ends = redo.iter().map(|object| object.name.last_end.min(object.through));
    std::iter::once(Lsn::ZERO).chain(ends).take(redo.len())
}
