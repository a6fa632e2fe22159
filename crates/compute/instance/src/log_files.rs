//! PostgreSQL's log files, written for a server or a tool without Borealis.
//!
//! A file has its name once all of its pages are there and on disk; until then, and for good where the log begins or ends inside of it, it
//! is called `….partial`, as `pg_receivewal` calls such files. The pages that it has are in their places, the others are zeros.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use borealis_types::{Lsn, PAGE_SIZE, PageBytes};
use borealis_wal::page::{WalLayout, segment_file_name};

use crate::data_directory::give;
use crate::export::make_folder;
use crate::{InstanceError, OperatingSystemUser, on};

/// A file of which pages are being written.
#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    /// Where its first byte is in the log.
    start: u64,
    /// It has every page so far.
    from_start: bool,
}

/// Log files that are being written, in the order of the log.
#[derive(Debug)]
pub struct LogFiles<'u> {
    folder: PathBuf,
    user: &'u OperatingSystemUser,
    layout: WalLayout,
    open: Option<Open>,
    whole: u64,
    partial: u64,
}

/// How many files were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Whole ones.
    pub whole: u64,
    /// Those that lack pages.
    pub partial: u64,
}

impl<'u> LogFiles<'u> {
    /// Begins in a folder that is new or empty.
    ///
    /// # Errors
    /// When the folder has anything in it, or cannot be made.
    pub fn begin(
        folder: &Path,
        user: &'u OperatingSystemUser,
        layout: WalLayout,
    ) -> Result<LogFiles<'u>, InstanceError> {
        let folder = make_folder(folder)?;
        Ok(LogFiles { folder, user, layout, open: None, whole: 0, partial: 0 })
    }

    /// Writes the page that begins at `position`; pages come in the order of the log.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_page(&mut self, position: Lsn, page: &PageBytes) -> Result<(), InstanceError> {
        let segment_bytes = u64::from(self.layout.segment_bytes);
        let offset = position.0 % segment_bytes;
        let start = position.0 - offset;
        if self.open.as_ref().is_none_or(|open| open.start != start) {
            self.close(false)?;
            self.open = Some(self.create(start, offset == 0)?);
        }
        let Some(open) = &self.open else { return Ok(()) };
        open.file.write_all_at(&page[..], offset).map_err(on("cannot write", &open.path))?;
        if offset + PAGE_SIZE as u64 == segment_bytes {
            self.close(true)?;
        }
        Ok(())
    }

    fn create(&self, start: u64, from_start: bool) -> Result<Open, InstanceError> {
        let name = segment_file_name(self.layout.timeline, Lsn(start), self.layout.segment_bytes);
        let path = self.folder.join(format!("{name}.partial"));
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = made.map_err(on("cannot write", &path))?;
        file.set_len(self.layout.segment_bytes.into()).map_err(on("cannot write", &path))?;
        Ok(Open { file, path, start, from_start })
    }

    /// Makes the open file durable, under its name if it is whole.
    fn close(&mut self, has_end: bool) -> Result<(), InstanceError> {
        let Some(Open { file, path, from_start, .. }) = self.open.take() else { return Ok(()) };
        file.sync_all().map_err(on("cannot synchronize", &path))?;
        give(&file, self.user).map_err(on("cannot give to the server's user", &path))?;
        if has_end && from_start {
            fs::rename(&path, path.with_extension("")).map_err(on("cannot rename", &path))?;
            self.whole += 1;
        } else {
            self.partial += 1;
        }
        Ok(())
    }

    /// Makes everything durable, and gives it to the server's user.
    ///
    /// # Errors
    /// When something cannot be synchronized.
    pub fn finish(mut self) -> Result<Written, InstanceError> {
        self.close(false)?;
        let folder = File::open(&self.folder).map_err(on("cannot open", &self.folder))?;
        give(&folder, self.user).map_err(on("cannot give to the server's user", &self.folder))?;
        folder.sync_all().map_err(on("cannot synchronize", &self.folder))?;
        Ok(Written { whole: self.whole, partial: self.partial })
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::PostgresVersion;

    use super::*;

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let folder = tempfile::tempdir().expect("made");
        let user = OperatingSystemUser::choose(None).expect("somebody");
        let layout = WalLayout {
            version: PostgresVersion::NEWEST,
            timeline: 1,
            system_identifier: 7,
            segment_bytes: 1 << 20,
        };
        let to = folder.path().join("log");
        let mut files = LogFiles::begin(&to, &user, layout).expect("begun");
        // From the middle of a file, a whole one, and the beginning of a third.
        let pages = (1 << 20) / PAGE_SIZE as u64;
        for number in pages + 5..pages * 3 + 2 {
            let page = [u8::try_from(number % 251).expect("small"); PAGE_SIZE];
            files.write_page(Lsn(number * PAGE_SIZE as u64), &page).expect("written");
        }
        assert_eq!(files.finish().expect("finished"), Written { whole: 1, partial: 2 });
        let mut names: Vec<String> = fs::read_dir(&to)
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        let name = |number: u32| format!("00000001000000000000000{number}");
        assert_eq!(names, [format!("{}.partial", name(1)), name(2), format!("{}.partial", name(3))]);
        let first = fs::read(to.join(&names[0])).expect("read");
        assert_eq!((first.len(), first[0], first[5 * PAGE_SIZE]), (1 << 20, 0, ((pages + 5) % 251) as u8));
    }
}
