//! Restoring: a store with every record of a volume's history that ends at or before one point, and with nothing after it.
//!
//! * [`crate::contents`] reads what says what there is: the volume, its history, its marks, and a listing. A point follows from it.
//! * A group begins with the newest snapshot that the plan names, whose pages the new store takes as those of a peer (`base.rs`), or with its
//!   first record.
//! * [`restore`] reads the redo that the plan names, a little ahead and on several threads (`fetch.rs`), puts the groups' chains together to
//!   the volume's one stream (`merge.rs`), and brings that to a new store as a writer brought it to its nodes (`assemble.rs`): epoch by epoch, with what
//!   each recovery decided in between. So nothing here can apply what a recovery cut, and the store refuses what does not follow.
//!   Two chains are followed to the end: each group's, and the volume's, in which a record names the one before it whatever groups they have.
//!
//! What is made is one store with all groups under an identity of its own, from which `borealis_store::Store::gather` makes those of the
//! nodes. An object that is missing or damaged is passed over if others have what it had; else the restore ends and names it, with the points
//! that are lost with it.
//!
//! Invariant: what was restored is whole, or there is an error.

mod assemble;
mod base;
mod beginning;
pub(crate) mod fetch;
mod gate;
pub(crate) mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use borealis_archive::inventory::Inventory;
use borealis_archive::name::Name;
use borealis_archive::plan::{NotRestorable, Plan, plan};
use borealis_archive::ranges::{LsnRange, LsnRanges};
use borealis_archive::restorable::restorable;
use borealis_archive::sealing::Sealing;
use borealis_store::{Environment, Identity, Options, Policy, Store, StoreError};
use borealis_types::{EpochHistory, Lsn, MetaKey, Placement, VolumeId};

use crate::contents::Contents;
use crate::store::{ObjectStore, ObjectStoreError};
use assemble::{Assembly, materialize};
use base::Bases;
pub use beginning::check_begun;
use fetch::Fetching;
use merge::{Beginning, Merge};

/// Why a backup cannot be restored, or not to that point.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store of the backup does not answer.
    #[error(transparent)]
    ObjectStore(#[from] ObjectStoreError),
    /// Not all that it takes is there.
    #[error(transparent)]
    NotRestorable(#[from] NotRestorable),
    /// The volume had nothing there yet.
    #[error("nothing was in the volume at {point}, before its first record; {}", beginning::first(*.earliest))]
    BeforeAll {
        /// The point.
        point: Lsn,
        /// The first one that can be restored, if that is known.
        earliest: Option<Lsn>,
    },
    /// Without an object that is damaged the point cannot be reached.
    #[error("{object} {fault}. Without it {} cannot be restored; {}", ranges(lost), newest(*.below))]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        fault: String,
        /// The points that need it.
        lost: Vec<LsnRange>,
        /// The newest point below the one that was asked for that does not.
        below: Option<Lsn>,
    },
    /// Objects are sound, each by itself, and not of one history.
    #[error("the backup contradicts itself: {0}")]
    Contradiction(String),
    /// Redo that cannot be applied.
    #[error("what was restored cannot be applied: {0}")]
    NotApplied(String),
    /// The new store.
    #[error("cannot make the store to restore to: {0}")]
    Store(#[from] StoreError),
    /// It does not fit.
    #[error(
        "what is restored takes about {} MiB, and {} MiB are free in {}; make room, or restore to another disk",
        needed.div_ceil(1 << 20), available >> 20, folder.display()
    )]
    NoRoom {
        /// Bytes of the pages, as often as they will be there.
        needed: u64,
        /// Bytes that are free.
        available: u64,
        /// Where.
        folder: PathBuf,
    },
    /// The system refuses something else.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
}

fn ranges(lost: &[LsnRange]) -> String {
    let range = |range: &LsnRange| match range.through {
        Lsn::MAX => format!("{} and all after it", range.from),
        through => format!("{} to {through}", range.from),
    };
    lost.iter().map(range).collect::<Vec<_>>().join(", ")
}

fn newest(below: Option<Lsn>) -> String {
    below.map_or_else(
        || "no point before it can".to_owned(),
        |below| format!("the newest point before it that can is {below}"),
    )
}

/// What to restore, and where to.
#[derive(Clone)]
pub struct Order<'a> {
    /// The point.
    pub point: Lsn,
    /// How objects are encrypted.
    pub sealing: &'a Sealing,
    /// The disk and the redo of the new store.
    pub environment: &'a Environment,
    /// Its folder, which must not be there.
    pub folder: &'a Path,
    /// Who it is: of a new volume, and with all groups.
    pub identity: &'a Identity,
    /// Its limits.
    pub options: Options,
    /// How many more stores will be made of it on the same disk. Whether there is room for their pages is looked at first.
    pub copies: u64,
}

impl std::fmt::Debug for Order<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order")
            .field("point", &self.point)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// How far a restore is. It never goes back: where a damaged object makes it begin anew, there is more to do than there was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of objects whose records or pages were taken, by all attempts.
    pub bytes: u64,
    /// Bytes of all objects of the plan, and of what earlier attempts took.
    pub total_bytes: u64,
    /// The furthest that was brought ends here.
    pub at: Lsn,
}

/// Shows how far all attempts together are.
struct Meter<'a> {
    progress: Progress,
    /// Of attempts that ended.
    before_bytes: u64,
    show: &'a mut dyn FnMut(Progress),
}

impl Meter<'_> {
    /// An attempt begins, which will read so many bytes.
    fn begin(&mut self, plan_bytes: u64) {
        self.before_bytes = self.progress.bytes;
        self.progress.total_bytes = self.before_bytes + plan_bytes;
    }

    /// The attempt took so many bytes so far, and is at this position.
    fn reach(&mut self, bytes: u64, at: Lsn) {
        self.progress.bytes = self.before_bytes + bytes;
        self.progress.at = self.progress.at.max(at);
        (self.show)(self.progress);
    }
}

/// What was restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The last record ends here.
    pub end: Lsn,
    /// The history of the new volume.
    pub history: EpochHistory,
    /// Bytes of objects whose records or pages were taken, by attempts in vain too.
    pub bytes: u64,
    /// Objects that are damaged and were not needed, and what is wrong with them.
    pub passed_over: Vec<(String, String)>,
    /// At the point the volume had what a server starts from: its import was over.
    pub has_template: bool,
}

/// Why an attempt ended.
pub(crate) enum Ended {
    /// An object is as good as absent.
    Spoilt(Name, String),
    Failed(RestoreError),
}

impl<E: Into<RestoreError>> From<E> for Ended {
    fn from(error: E) -> Ended {
        Ended::Failed(error.into())
    }
}

/// Makes a store of what a backup has as of a point. `progress` is called now and then.
///
/// # Errors
/// When not all that it takes is there and sound, or the store cannot be made. What was made of it is left then, and is of no use.
pub fn restore(
    order: &Order<'_>,
    objects: &dyn ObjectStore,
    contents: &Contents,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, RestoreError> {
    check_begun(contents, order.point)?;
    let volume = contents.volume;
    let usable = &contents.inventory;
    let mut meter = Meter { progress: Progress::default(), before_bytes: 0, show: progress };
    let mut spoilt: BTreeMap<Name, String> = BTreeMap::new();
    let mut plan_now = plan(usable, &contents.known, order.point)?;
    loop {
        let (placement, sealing) = (contents.known.placement, order.sealing);
        let source = Source { objects, volume, inventory: usable, placement, sealing, plan: &plan_now };
        let (name, fault) = match attempt(order, &source, &mut meter) {
            Ok(restored) => {
                let passed_over = spoilt.into_iter();
                let passed_over = passed_over.map(|(name, fault)| (name.key(volume), fault)).collect();
                return Ok(Restored { passed_over, ..restored });
            }
            Err(Ended::Failed(error)) => return Err(error),
            Err(Ended::Spoilt(name, fault)) => (name, fault),
        };
        let object = name.key(volume);
        tracing::warn!(object, fault, "a damaged object of a backup is passed over, if that is possible");
        spoilt.insert(name, fault.clone());
        let names: BTreeSet<Name> = spoilt.keys().cloned().collect();
        let rest = usable.without(&names);
        plan_now = plan(&rest, &contents.known, order.point).map_err(|_| {
            let (all, left) = (restorable(usable, &contents.known), restorable(&rest, &contents.known));
            let lost: LsnRanges = all.without(&left);
            let below = left.at_or_below(order.point).filter(|below| *below > Lsn::ZERO);
            RestoreError::Damaged { object, fault, lost: lost.ranges().to_vec(), below }
        })?;
        remove(order.folder)?;
    }
}

/// What an attempt reads.
#[derive(Debug)]
struct Source<'a> {
    objects: &'a dyn ObjectStore,
    volume: VolumeId,
    inventory: &'a Inventory,
    placement: Placement,
    sealing: &'a Sealing,
    plan: &'a Plan,
}

fn remove(folder: &Path) -> Result<(), RestoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RestoreError::System { what: format!("remove {}", folder.display()), error })
        }
        _ => Ok(()),
    }
}

fn require_room(folder: &Path, needed: u64) -> Result<(), RestoreError> {
    let cannot_see = |error: nix::errno::Errno| RestoreError::System {
        what: format!("see how much of {} is free", folder.display()),
        error: error.into(),
    };
    let found = nix::sys::statvfs::statvfs(folder).map_err(cannot_see)?;
    let available = found.blocks_available().saturating_mul(found.fragment_size());
    match available < needed {
        true => Err(RestoreError::NoRoom { needed, available, folder: folder.to_owned() }),
        false => Ok(()),
    }
}

/// One attempt, in a folder that is empty or absent.
fn attempt(order: &Order<'_>, source: &Source<'_>, meter: &mut Meter<'_>) -> Result<Restored, Ended> {
    let folder: PathBuf = order.folder.to_owned();
    let store = Store::create_in(order.environment, &folder, order.identity.clone(), order.options.clone())?;
    let mut bases = Bases::read(source)?;
    require_room(&folder, bases.page_bytes().saturating_mul(order.copies.saturating_add(1)))?;
    let mut merge =
        Merge::new(source.volume, source.inventory, source.plan.groups.iter().map(Beginning::of_restore));
    meter.begin(merge.plan_bytes + bases.total_bytes());
    let mut assembly = Assembly::begin(&store, source.plan.history.clone(), &bases.points())?;
    let at = assembly.at();
    bases.bring(&store, &mut |bytes| meter.reach(bytes, Lsn::ZERO))?;
    meter.reach(bases.bytes, at);
    merge.bytes = bases.bytes;
    let fetching = Fetching::new(source.objects, source.volume, source.sealing, merge.in_order());
    let (is_over, failure) = (AtomicBool::new(false), Mutex::new(None));
    let history = std::thread::scope(|scope| {
        let _over = SetAtEnd(&is_over);
        let keep_up = || materialize_until(&store, &is_over, &failure);
        let thread = std::thread::Builder::new().name("materialize".to_owned()).spawn_scoped(scope, keep_up);
        thread.map_err(cannot_start)?;
        let mut waiting = fetching.start(scope).map_err(cannot_start)?;
        loop {
            let has_more = merge
                .step(&mut waiting, &mut |epoch, record| assembly.take(epoch, record).map_err(Ended::from));
            meter.reach(merge.bytes, assembly.at());
            let has_more = has_more?;
            if let Some(error) = failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(Ended::from(error));
            }
            if !has_more {
                break;
            }
        }
        Ok(assembly.finish(source.plan.newest_epoch)?)
    })?;
    materialize(&store)?;
    if let Some(failure) = store.failure() {
        return Err(RestoreError::NotApplied(failure).into());
    }
    store.note_synced()?;
    let end = history.newest().map_or(Lsn::ZERO, |opening| opening.last.end);
    let has_template = store.read_meta(&MetaKey::ControlFileTemplate, end)?.is_some();
    Ok(Restored { end, history, bytes: meter.progress.bytes, passed_over: Vec::new(), has_template })
}

pub(crate) fn cannot_start(error: std::io::Error) -> RestoreError {
    RestoreError::System { what: "start a thread".to_owned(), error }
}

/// However the work ends, those who wait for that hear of it.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Applies redo while more comes in, as a node does.
fn materialize_until(store: &Store, is_over: &AtomicBool, failure: &Mutex<Option<StoreError>>) {
    while !is_over.load(Ordering::Relaxed) {
        match store.materialize(Policy::IfDue) {
            Ok(progress) if progress.advanced => {}
            Ok(_) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        }
    }
}
