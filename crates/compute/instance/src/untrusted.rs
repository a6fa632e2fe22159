//! Files in the memory directory as root opens them.
//!
//! The directory belongs to the server's user, and so to every superuser of SQL, who may put there whatever he likes: a
//! symbolic link to a file of root's, or a pipe that nobody writes to. So no link is followed, nothing is waited for, and
//! what is neither a file nor a folder is refused.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// Opens a folder that must not be a symbolic link itself.
///
/// # Errors
/// When it is not there, is no folder, or may not be opened.
pub fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Opens the regular file `name` in `folder`, through no symbolic link: neither `folder`, nor anything below it is one.
/// `access` is how, as for `open(2)`.
///
/// # Errors
/// When it is not there, is no regular file, or may not be opened.
pub fn open_regular(folder: &Path, name: &Path, access: OFlag) -> io::Result<File> {
    let mut place = open_folder(folder)?;
    let mut parts = name.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(part) = part else { break };
        let way = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if parts.peek().is_some() {
            place = openat(&place, part, way | OFlag::O_DIRECTORY | OFlag::O_PATH, Mode::empty())?;
            continue;
        }
        let file = File::from(openat(&place, part, way | OFlag::O_NONBLOCK | access, Mode::empty())?);
        if file.metadata()?.is_file() {
            return Ok(file);
        }
        break;
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file"))
}

/// The text of a small file. See [`open_regular`].
///
/// # Errors
/// When it cannot be opened and read, is no text, or is longer than `bytes_max`.
pub fn read_text(folder: &Path, name: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read_bytes(folder, name, bytes_max)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))
}

/// The bytes of a small file. See [`open_regular`].
///
/// # Errors
/// When it cannot be opened and read, or is longer than `bytes_max`.
pub fn read_bytes(folder: &Path, name: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(folder, name, OFlag::O_RDONLY)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too long for what it should be"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(folder: &Path, name: &str) -> io::Result<String> {
        read_text(folder, Path::new(name), 8)
    }

    #[test]
    fn only_regular_files_are_opened_and_through_no_link() {
        let place = tempfile::tempdir().expect("temporary folder");
        let folder = place.path().join("memory");
        fs::create_dir_all(folder.join("data")).expect("made");
        fs::write(folder.join("data/file"), "text").expect("written");
        assert_eq!(read(&folder, "data/file").expect("read"), "text");
        assert_eq!(read(&folder, "data/none").expect_err("missing").kind(), io::ErrorKind::NotFound);
        symlink("file", folder.join("data/link")).expect("linked");
        symlink("data", folder.join("other")).expect("linked");
        symlink(&folder, place.path().join("itself")).expect("linked");
        nix::unistd::mkfifo(&folder.join("data/pipe"), Mode::S_IRUSR).expect("made");
        fs::write(folder.join("data/long"), "123456789").expect("written");
        for name in ["data/link", "other/file", "data/pipe", "data/long", "data", "../memory/data/file", ""] {
            assert!(read(&folder, name).is_err(), "{name:?}");
        }
        assert!(read(&place.path().join("itself"), "data/file").is_err());
    }
}
