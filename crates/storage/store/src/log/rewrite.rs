//! Making true what the page cache claims, before an opened log is believed.
//!
//! After a failed write-back the kernel marks the pages clean, so a process that is started again reads bytes from the
//! cache that may never have reached the disk, and its own `fdatasync` has nothing to do and succeeds (hazard 28). No mark
//! that a failing disk would have to take can tell that this happened, and it may have happened with nobody watching: a
//! process killed between its write and its sync. So an opening always takes what no synced note vouches for (see
//! `synced_note.rs`) for unwritten: it writes the same bytes again, which makes the pages dirty, and syncs them. If that
//! works they are on disk; if not, the log is not opened and nothing was promised. That needs no `O_DIRECT`, which not
//! every file system has, and nothing is lost that a working disk can still take.
//!
//! Names need less: they are metadata, and a journaling file system that could not write its journal stays stopped.
//! [`crate::directory::Directory::sync_names`] asks it.

use crate::StoreError;
use crate::log::files::LogFile;
use crate::log::position::LogPosition;
use crate::log::scan::read_up_to;

/// Bytes written by one system call, as by the writer.
const PIECE_BYTES: usize = 128 << 10;

/// Writes everything in a file before `end` that is not before `synced_through` again, as it was read, and syncs it.
/// Returns how many bytes that were.
pub(super) fn rewrite(file: &LogFile, synced_through: LogPosition, end: u32) -> Result<u64, StoreError> {
    if synced_through >= LogPosition::new(file.number, end) {
        return Ok(0);
    }
    // The header, too, of a file that was begun after the note.
    let start = if file.number == synced_through.file() { synced_through.offset() } else { 0 };
    let (mut at, end) = (u64::from(start), u64::from(end));
    let mut piece = vec![0; PIECE_BYTES];
    while at < end {
        let length = PIECE_BYTES.min((end - at) as usize);
        let read = read_up_to(file, &mut piece[..length], at)?;
        if read == 0 {
            let what = format!("it ends at {at} where its entries went to {end}");
            return Err(StoreError::corrupt(file.path.display().to_string(), what));
        }
        file.file.write_at(&piece[..read], at).map_err(StoreError::io("write", &file.path))?;
        at += read as u64;
    }
    file.file.sync_data().map_err(StoreError::io("sync", &file.path))?;
    Ok(end - u64::from(start))
}
