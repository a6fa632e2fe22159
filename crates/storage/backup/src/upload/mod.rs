//! Uploading: a node's redo goes to the store of the backup as it becomes durable.
//!
//! An [`Uploader`] belongs to a node, which calls [`Uploader::step`] again and again on a thread that does nothing else. A step asks the
//! source for what is durable and not in the store, makes an object of it, and puts it there; it returns how long nothing is to be done. It
//! reads no clock: time comes as an argument.
//!
//! * Only what is durable is uploaded: no recovery ever cuts it. The history goes first, so that redo of an epoch is never there without it.
//! * A store that is down, slow, full or refuses is tried again after growing pauses, for ever. Meanwhile nothing is collected in memory:
//!   redo stays where it is, in the node's log, for as long as the node keeps it.
//! * Where no node kept it for long enough, there is a gap. It is counted and said, and a new snapshot closes the matter. A node that lacks
//!   redo waits until every other peer has had its turn, for one of them may have it.
//! * Now and then a snapshot is made beside the redo, a few pages in each step (`snapshot.rs`).
//! * Who uploads is computed ([`borealis_archive::duty`]). Others look at the store now and then, and take over when it stands still.

mod look;
mod snapshot;
mod source;
mod status;
mod store_pages;

use std::collections::BTreeMap;

use borealis_archive::due::Rule;
use borealis_archive::duty::{Candidate, Duty, Progress, duty};
use borealis_archive::history;
use borealis_archive::marks::{self, Mark};
use borealis_archive::name::{ManifestName, MarksName, Name};
use borealis_archive::redo::{NotAdded, RedoBuilder};
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::{self, VolumeFacts};
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId, PAGE_SIZE, Placement, PostgresVersion, VolumeId};
use borealis_wire::{BatchReader, GroupTail};

pub use source::{DurablePoint, PageSource, RedoSource, SourceError, Tail};
pub use status::{Failure, Gap, GroupStatus, Status};
pub use store_pages::{LendsStore, StorePages};

use self::snapshot::Snapshots;
use crate::pace::{Pauses, RateLimit};
use crate::store::{ObjectStore, ObjectStoreError, Put};

/// Asked of the source at a time, in bytes.
const TAIL_BYTES: u32 = 1 << 20;

/// The time, by two clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Milliseconds by a clock that never goes back.
    pub steady_ms: u64,
    /// Milliseconds since 1970 by the clock that people use.
    pub wall_ms: u64,
}

/// How a node uploads.
#[derive(Debug, Clone)]
pub struct Options {
    /// The volume.
    pub volume: VolumeId,
    /// What the volume is; when the backup began is filled in.
    pub facts: VolumeFacts,
    /// The node that this is.
    pub node: NodeId,
    /// Whether and how objects are encrypted.
    pub sealing: Sealing,
    /// An object ends when its content takes so many bytes.
    pub object_bytes: usize,
    /// A group has at most one object that is not full in such a time, in milliseconds.
    pub interval_ms: u64,
    /// How often the store is looked at for what others made, in milliseconds. Who is about to take over looks first in any case, so
    /// this only bounds for how long a peer keeps log that another has uploaded; requests cost money.
    pub look_ms: u64,
    /// How long the store may stand still for each peer that comes before ([`duty`]), in milliseconds.
    pub takeover_ms: u64,
    /// How long a list of marks is added to before the next one begins, in milliseconds.
    pub marks_ms: u64,
    /// Bytes a second at most, on average; zero for no bound.
    pub bytes_per_second: u64,
    /// The first pause after a failure, and the longest, in milliseconds.
    pub pauses_ms: (u64, u64),
    /// When a group's next snapshot is made.
    pub snapshot_rule: Rule,
    /// Bytes of pages a second that are read for snapshots at most, on average; zero for no bound.
    pub snapshot_bytes_per_second: u64,
    /// The first pause after a snapshot of a group that did not get to its end, and the longest, in milliseconds. None begins sooner after
    /// another.
    pub snapshot_pauses_ms: (u64, u64),
}

impl Options {
    /// What is usual.
    #[must_use]
    pub fn new(volume: VolumeId, placement: Placement, version: PostgresVersion, node: NodeId) -> Options {
        let facts = VolumeFacts { placement, version, page_bytes: PAGE_SIZE as u32, created_ms: 0 };
        Options {
            volume,
            facts,
            node,
            sealing: Sealing::Plain,
            object_bytes: 8 << 20,
            interval_ms: 500,
            look_ms: 30_000,
            takeover_ms: 15_000,
            marks_ms: 600_000,
            bytes_per_second: 0,
            pauses_ms: (500, 60_000),
            snapshot_rule: Rule::default(),
            snapshot_bytes_per_second: 32 << 20,
            snapshot_pauses_ms: (10_000, 600_000),
        }
    }
}

/// What an uploader knows of one group.
#[derive(Debug, Default)]
struct Group {
    /// The store has everything to here, from the newest snapshot on.
    uploaded: Lsn,
    newest_by: Option<NodeId>,
    /// When it was last looked at; never, before the first time.
    looked_ms: Option<u64>,
    /// Since when there is something to upload and nothing new in the store.
    stalled_since_ms: Option<u64>,
    /// No object that is not full before this.
    due_ms: u64,
    durable: DurablePoint,
    duty: Option<Duty>,
    /// When a look last found something new of another node.
    moved_ms: Option<u64>,
    /// The last attempt to read it at the source failed.
    is_unreadable: bool,
    /// The newest snapshot.
    base: Option<Base>,
    /// Bytes of redo objects above it, without a gap.
    redo_bytes: u64,
    /// The store has redo behind what is missing.
    has_gap: bool,
    /// No snapshot begins before this.
    snapshot_after_ms: u64,
    snapshot_failures: u32,
}

/// A snapshot in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Base {
    name: ManifestName,
    /// When it was made, in milliseconds since 1970.
    made_ms: u64,
}

impl Group {
    fn stalled_ms(&self, now: Now) -> u64 {
        self.stalled_since_ms.map_or(0, |since| now.steady_ms.saturating_sub(since))
    }
}

/// Uploads a node's redo.
#[derive(Debug)]
pub struct Uploader {
    options: Options,
    groups: BTreeMap<GroupId, Group>,
    /// The store has the volume's descriptor.
    is_described: bool,
    /// How far the volume is durable, and since when.
    volume_moved: (Lsn, u64),
    /// The history that the store has.
    history: EpochHistory,
    /// The marks of the list that is written at the moment, and its name in the store.
    marks: Vec<Mark>,
    marks_name: Option<MarksName>,
    mark_due_ms: u64,
    pauses: Pauses,
    limit: RateLimit,
    /// Nothing before this, after a failure.
    paused_until_ms: u64,
    snapshots: Snapshots,
    status: Status,
}

/// Why a group got no further.
enum Trouble {
    Store(ObjectStoreError),
    Source(SourceError),
}

impl From<ObjectStoreError> for Trouble {
    fn from(error: ObjectStoreError) -> Trouble {
        Trouble::Store(error)
    }
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Trouble {
        Trouble::Source(error)
    }
}

/// What one attempt to make an object of a group led to.
enum Made {
    /// There is nothing to upload.
    Nothing,
    /// An object, that has all there is.
    All,
    /// An object, and there is more.
    Part,
}

impl Uploader {
    /// An uploader that has not looked at anything yet. `seed` is another one for each node: it spreads attempts over time.
    #[must_use]
    pub fn new(options: Options, now: Now, seed: u64) -> Uploader {
        let (first_ms, most_ms) = options.pauses_ms;
        Uploader {
            pauses: Pauses::new(first_ms, most_ms, seed),
            limit: RateLimit::new(options.bytes_per_second, now.steady_ms),
            snapshots: Snapshots::new(&options, now),
            options,
            groups: BTreeMap::new(),
            is_described: false,
            volume_moved: (Lsn::ZERO, now.steady_ms),
            history: EpochHistory::default(),
            marks: Vec::new(),
            marks_name: None,
            mark_due_ms: 0,
            paused_until_ms: 0,
            status: Status::default(),
        }
    }

    /// Does what is due, one object at most for each group, and returns after how many milliseconds to come again.
    pub fn step(&mut self, now: Now, source: &dyn RedoSource, store: &dyn ObjectStore) -> u64 {
        self.note(source, now);
        let pause = self.paused_until_ms.saturating_sub(now.steady_ms).max(self.limit.wait_ms(now.steady_ms));
        if pause > 0 {
            return pause.min(self.options.interval_ms);
        }
        match self.advance(now, source, store) {
            Ok((is_more, unreadable)) => {
                self.pauses.after_success();
                match unreadable {
                    Some(error) => self.status.note_failure(&error.into(), now, self.options.node),
                    None if self.groups.values().any(|group| group.is_unreadable) => {}
                    None => self.status.last_failure = None,
                }
                if is_more { 0 } else { self.options.interval_ms }
            }
            Err(error) => {
                let pause = self.pauses.after_failure();
                self.paused_until_ms = now.steady_ms + pause;
                self.status.note_failure(&error.into(), now, self.options.node);
                pause.min(self.options.interval_ms)
            }
        }
    }

    /// What is durable now, whether or not the store can be reached.
    fn note(&mut self, source: &dyn RedoSource, now: Now) {
        let hosted = source.groups();
        self.groups.retain(|group, _| hosted.contains(group));
        for group in hosted {
            let state = self.groups.entry(group).or_default();
            if let Some(durable) = source.durable(group) {
                state.durable = durable;
                if durable.volume > self.volume_moved.0 {
                    self.volume_moved = (durable.volume, now.steady_ms);
                }
            }
            if state.durable.group_tail <= state.uploaded {
                state.stalled_since_ms = None;
            } else {
                state.stalled_since_ms.get_or_insert(now.steady_ms);
            }
        }
    }

    /// Whether there is more to do at once, and what the node cannot read of its own.
    fn advance(
        &mut self,
        now: Now,
        source: &dyn RedoSource,
        store: &dyn ObjectStore,
    ) -> Result<(bool, Option<SourceError>), ObjectStoreError> {
        self.describe(now, store)?;
        self.upload_history(now, source, store)?;
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        let (mut is_more, mut uploads_any) = (false, false);
        let mut unreadable = None;
        for group in groups {
            match self.advance_group(group, now, source, store) {
                Ok((duty, made)) => {
                    uploads_any |= duty == Duty::Upload;
                    is_more |= matches!(made, Made::Part);
                }
                // One group's segment is damaged: the others go on.
                Err(Trouble::Source(error)) => {
                    let state = self.groups.entry(group).or_default();
                    state.due_ms = now.steady_ms + self.options.look_ms;
                    state.is_unreadable = true;
                    unreadable = Some(error);
                }
                Err(Trouble::Store(error)) => return Err(error),
            }
        }
        if uploads_any && !self.is_marked_by_another(source) {
            self.upload_mark(now, store)?;
        }
        is_more |= self.advance_snapshot(now, source, store);
        Ok((is_more, unreadable))
    }

    fn put(
        &mut self,
        name: &Name,
        bytes: &[u8],
        now: Now,
        store: &dyn ObjectStore,
    ) -> Result<(), ObjectStoreError> {
        let put = store.put_new(&name.key(self.options.volume), bytes)?;
        self.limit.take(bytes.len() as u64, now.steady_ms);
        if put == Put::Made {
            self.status.objects += 1;
            self.status.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// What the volume is, before anything else.
    fn describe(&mut self, now: Now, store: &dyn ObjectStore) -> Result<(), ObjectStoreError> {
        if !self.is_described {
            let facts = VolumeFacts { created_ms: now.wall_ms, ..self.options.facts };
            let bytes = settings::encode(self.options.volume, facts, &self.options.sealing);
            self.put(&Name::Volume, &bytes, now, store)?;
            self.is_described = true;
        }
        Ok(())
    }

    fn upload_history(
        &mut self,
        now: Now,
        source: &dyn RedoSource,
        store: &dyn ObjectStore,
    ) -> Result<(), ObjectStoreError> {
        let history = source.history();
        if history == self.history || history.newest().is_none() {
            return Ok(());
        }
        let (name, bytes) = history::encode(self.options.volume, &history, &self.options.sealing);
        self.put(&Name::History(name), &bytes, now, store)?;
        self.history = history;
        // What was cut does not count any more.
        self.groups.values_mut().for_each(|group| group.looked_ms = None);
        Ok(())
    }

    fn advance_group(
        &mut self,
        group: GroupId,
        now: Now,
        source: &dyn RedoSource,
        store: &dyn ObjectStore,
    ) -> Result<(Duty, Made), Trouble> {
        let state = self.groups.entry(group).or_default();
        if state.looked_ms.is_none_or(|looked| looked + self.options.look_ms <= now.steady_ms) {
            self.look(group, now, store)?;
        }
        let candidates = source.candidates(group);
        let mut duty = self.duty(group, now, &candidates);
        let state = self.groups.entry(group).or_default();
        let is_due = state.due_ms <= now.steady_ms && state.durable.group_tail > state.uploaded;
        let takes_over = state.newest_by != Some(self.options.node) && state.looked_ms != Some(now.steady_ms);
        if duty == Duty::Upload && is_due && takes_over {
            // What was seen is old: the one who uploads may be well.
            self.look(group, now, store)?;
            duty = self.duty(group, now, &candidates);
        }
        let state = self.groups.entry(group).or_default();
        state.duty = Some(duty);
        if duty != Duty::Upload || state.due_ms > now.steady_ms {
            return Ok((duty, Made::Nothing));
        }
        let stalled_ms = state.stalled_ms(now);
        let peers = u64::try_from(candidates.len()).unwrap_or(u64::MAX);
        // The last of them may be in its longest pause when its turn comes.
        let turns_ms = self.options.takeover_ms.saturating_mul(peers.saturating_add(1));
        let all_had_their_turn =
            stalled_ms >= turns_ms.saturating_add(self.options.pauses_ms.1.saturating_mul(2));
        let made = self.upload_redo(group, now, all_had_their_turn, (source, store))?;
        let state = self.groups.entry(group).or_default();
        if !matches!(made, Made::Part) {
            state.due_ms = now.steady_ms + self.options.interval_ms;
        }
        Ok((duty, made))
    }

    /// What this node is to do for a group, by what it knows.
    fn duty(&self, group: GroupId, now: Now, candidates: &[Candidate]) -> Duty {
        let Options { volume, node, takeover_ms, .. } = self.options;
        let known = self.groups.get(&group);
        let newest_by = known.and_then(|state| state.newest_by);
        let stalled_ms = known.map_or(0, |state| state.stalled_ms(now));
        duty((volume, group), node, candidates, Progress { newest_by, stalled_ms }, takeover_ms)
    }

    /// Makes one object of what is durable and not uploaded, and puts it into the store; after a gap if need be, and if it may.
    fn upload_redo(
        &mut self,
        group: GroupId,
        now: Now,
        may_leave_gap: bool,
        (source, store): (&dyn RedoSource, &dyn ObjectStore),
    ) -> Result<Made, Trouble> {
        let state = self.groups.entry(group).or_default();
        let (durable, uploaded) = (state.durable, state.uploaded);
        if durable.group_tail <= uploaded {
            return Ok(Made::Nothing);
        }
        let collected = self.collect(group, uploaded, durable, source)?;
        self.groups.entry(group).or_default().is_unreadable = false;
        let Some(builder) = collected else {
            let tail = source.tail(group, uploaded, TAIL_BYTES)?;
            let all_is_gone = tail.batches.is_empty() && durable.group_tail <= source.log_floor(group);
            if may_leave_gap && all_is_gone {
                // Nothing comes after it: whoever goes on does so behind the next record.
                self.note_gap(group, (uploaded, durable.group_tail), now);
                self.groups.entry(group).or_default().uploaded = durable.group_tail;
            }
            return Ok(Made::Nothing);
        };
        let leaves_gap = builder.previous_end() > uploaded;
        if leaves_gap && !(may_leave_gap && builder.previous_end() <= source.log_floor(group)) {
            return Ok(Made::Nothing);
        }
        let is_all = builder.last_end() >= durable.group_tail;
        let complete_through = if is_all { durable.volume } else { builder.last_end() };
        let last_end = builder.last_end();
        let Some((name, bytes)) = builder.finish(complete_through, &self.options.sealing) else {
            return Ok(Made::Nothing);
        };
        let redo_bytes = bytes.len() as u64;
        self.put(&Name::Redo(name), &bytes, now, store)?;
        if leaves_gap {
            self.note_gap(group, (uploaded, name.previous_end), now);
        }
        let state = self.groups.entry(group).or_default();
        state.uploaded = last_end;
        state.redo_bytes += redo_bytes;
        state.newest_by = Some(self.options.node);
        state.stalled_since_ms = None;
        Ok(if is_all { Made::All } else { Made::Part })
    }

    fn note_gap(&mut self, group: GroupId, (from, through): (Lsn, Lsn), now: Now) {
        self.status.gaps.push(Gap { group, from, through, since_ms: now.wall_ms });
        tracing::error!(
            "group {group}: redo from {from} to {through} was not uploaded before this node let it go; what is between cannot be restored, and what is after it from the next snapshot on"
        );
    }

    /// Takes records from the source until there are enough for an object, no more durable ones, or one of another epoch.
    fn collect(
        &self,
        group: GroupId,
        uploaded: Lsn,
        durable: DurablePoint,
        source: &dyn RedoSource,
    ) -> Result<Option<RedoBuilder>, SourceError> {
        let Options { volume, node, object_bytes, .. } = self.options;
        let broken = |what: String| SourceError { group, what };
        let mut builder: Option<RedoBuilder> = None;
        loop {
            let above = builder.as_ref().map_or(uploaded, RedoBuilder::last_end);
            let tail = source.tail(group, above, TAIL_BYTES)?;
            for batch in &tail.batches {
                let (header, reader) = BatchReader::new(batch).map_err(|error| broken(error.to_string()))?;
                let epoch = header.volume_epoch;
                for record in reader {
                    let record = record.map_err(|error| broken(error.to_string()))?;
                    let end = record.span.end;
                    if end > durable.group_tail || !self.history.admits(epoch, end) {
                        return Ok(builder);
                    }
                    let Some(link) = record.link(group) else { continue };
                    let new = || RedoBuilder::new(volume, group, node, epoch, link.previous_end);
                    match builder.get_or_insert_with(new).push(epoch, &record) {
                        Ok(_) => {}
                        // The next object begins with it.
                        Err(NotAdded::OtherEpoch { .. } | NotAdded::Break(_)) => return Ok(builder),
                        Err(error @ NotAdded::TooLong { .. }) => return Err(broken(error.to_string())),
                    }
                    if builder.as_ref().is_some_and(|builder| builder.size_bytes() >= object_bytes) {
                        return Ok(builder);
                    }
                }
            }
            let moved = builder.as_ref().is_some_and(|builder| builder.last_end() > above);
            if !tail.more || !moved {
                return Ok(builder);
            }
        }
    }

    /// Whether the marks of one peer say of every group that this node uploads where it ends: of whoever uploads the first group, and
    /// so always makes them. In a small fleet it has all groups, and there is one list of marks at a time and not one of each node.
    fn is_marked_by_another(&self, source: &dyn RedoSource) -> bool {
        let first = self.options.facts.placement.groups().next();
        let Some(first) = first.and_then(|first| self.groups.get(&first)) else { return false };
        let Some(marker) = first.newest_by.filter(|_| first.duty != Some(Duty::Upload)) else { return false };
        // Where that group is quiet, and others are not, nothing shows that its uploader is well.
        let is_seen = |moved: u64| moved.saturating_add(2 * self.options.look_ms) > self.volume_moved.1;
        if !first.moved_ms.is_some_and(is_seen) {
            return false;
        }
        let uploaded = self.groups.iter().filter(|(_, state)| state.duty == Some(Duty::Upload));
        uploaded.map(|(&group, _)| source.candidates(group)).all(|candidates| {
            candidates.iter().any(|candidate| candidate.node == marker && candidate.complete)
        })
    }

    /// Says how far the volume is durable, and where the groups' redo ends as of that.
    fn upload_mark(&mut self, now: Now, store: &dyn ObjectStore) -> Result<(), ObjectStoreError> {
        let newest = self.groups.values().map(|group| group.durable).max_by_key(|durable| durable.volume);
        let Some(DurablePoint { epoch, volume: durable, .. }) = newest else { return Ok(()) };
        let marked = self.marks.last().map_or(Lsn::ZERO, |mark| mark.durable);
        if durable <= marked || self.mark_due_ms > now.steady_ms {
            return Ok(());
        }
        // Of a group that heard of an earlier point only it is not known where it ends as of this one.
        let current = self.groups.iter().filter(|(_, state)| state.durable.volume == durable);
        let tails = current.map(|(&group, state)| GroupTail { group, last_end: state.durable.group_tail });
        let mark = Mark { clock_ms: now.wall_ms, epoch, durable, tails: tails.collect() };
        // A new list after some time, and when somebody set the clock back.
        let begins = self.marks.first().map_or(0, |first| first.clock_ms);
        let last = self.marks.last().map_or(0, |last| last.clock_ms);
        let is_over = now.wall_ms.saturating_sub(begins) >= self.options.marks_ms || now.wall_ms < last;
        let mut marks = if is_over { Vec::new() } else { self.marks.clone() };
        marks.push(mark);
        let Options { volume, node, ref sealing, .. } = self.options;
        let Some((name, bytes)) = marks::encode(volume, node, &marks, sealing) else { return Ok(()) };
        self.put(&Name::Marks(name), &bytes, now, store)?;
        let before = self.marks_name.replace(name).filter(|before| !is_over && *before != name);
        self.marks = marks;
        self.mark_due_ms = now.steady_ms + self.options.interval_ms;
        if let Some(before) = before {
            // What stays is passed over by readers, and goes with what nobody needs.
            let _ = store.delete(&Name::Marks(before).key(volume));
        }
        Ok(())
    }

    /// What it did and how far it is.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let group = |(&group, state): (&GroupId, &Group)| GroupStatus {
            group,
            uploaded: state.uploaded,
            durable: state.durable.group_tail,
            duty: state.duty,
            behind_ms: state.stalled_ms(now),
            snapshot: state.base.map(|base| base.name.lsn),
        };
        Status { groups: self.groups.iter().map(group).collect(), ..self.status.clone() }
    }
}
