//! The shim library: checked before it is used, and put where every server process can load it.
//!
//! The dynamic loader only prints a line when it cannot load a preloaded library, and starts the program without it.
//! So the file is looked at first: that it is a library for this processor, and of this build. It is then copied
//! into the instance's memory folder, which the server's user owns: the original may lie in a folder that this user
//! may not enter (root's home), and a build that replaces it must not change what a running server has mapped.
//!
//! Where the memory folder forbids programs (`noexec`, as in most containers), or its path has a character that
//! `LD_PRELOAD` cannot contain, the copy is an anonymous file in memory that the server inherits as a descriptor. A
//! program of the server that closes all its descriptors and starts another one leaves that one without the library,
//! and the loader says so on its standard error; the server's own processes keep it.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use borealis_shm::{BUILD_FINGERPRINT, fingerprint_in};
use nix::sys::statvfs::{FsFlags, statvfs};

/// The name of the copy in the instance's memory folder.
pub const FILE_NAME: &str = "libborealis_shim.so";

/// `e_machine` of this program's own processor (`elf.h`).
const OWN_MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };

/// Why the shim library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShimLibraryError {
    /// The library's file cannot be read.
    #[error("cannot read the shim library {path}: {source}; it belongs beside the borealis program")]
    Unreadable {
        /// Where the library should be.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It is no shared library that this processor can load.
    #[error(
        "{path} is not a shim library for this machine: {what}; install or build the one that belongs to this program"
    )]
    Foreign {
        /// Where the library should be.
        path: PathBuf,
        /// What stands in the file instead, in words.
        what: String,
    },
    /// It does not belong to this program.
    #[error(
        "the shim library {path} is {found}, this program needs {BUILD_FINGERPRINT:016x}: they were built from different \
         sources. Install or build both together (cargo build, of the whole workspace)"
    )]
    OtherBuild {
        /// Where the library should be.
        path: PathBuf,
        /// Of which build it is.
        found: String,
    },
    /// The library cannot be put where the server can load it.
    #[error("cannot put the shim library into {place}: {source}")]
    NotInstalled {
        /// The place that was tried, in words.
        place: String,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A shim library that was checked.
#[derive(Debug)]
pub struct ShimLibrary {
    bytes: Vec<u8>,
}

/// Where a server's processes load the shim from.
#[derive(Debug)]
pub struct InstalledShim {
    /// What to put into `LD_PRELOAD`: the path by which the server finds its copy.
    pub preload: PathBuf,
    /// Stays open for as long as the server runs, whose processes inherit it.
    _memory: Option<OwnedFd>,
}

impl ShimLibrary {
    /// Reads the library and checks that it belongs to this program.
    ///
    /// # Errors
    /// When it cannot be read, is for another processor, or is of another build.
    pub fn load(path: &Path) -> Result<ShimLibrary, ShimLibraryError> {
        let bytes = fs::read(path)
            .map_err(|source| ShimLibraryError::Unreadable { path: path.to_path_buf(), source })?;
        if let Err(what) = check_elf(&bytes) {
            return Err(ShimLibraryError::Foreign { path: path.to_path_buf(), what });
        }
        let found = match fingerprint_in(&bytes) {
            Some(BUILD_FINGERPRINT) => return Ok(ShimLibrary { bytes }),
            Some(other) => format!("{other:016x}"),
            None => "of no known build".to_owned(),
        };
        Err(ShimLibraryError::OtherBuild { path: path.to_path_buf(), found })
    }

    /// Puts the library where the server's user can load it: into `memory_directory`, which was just made for the
    /// server that is about to start, or into a file without a name.
    ///
    /// # Errors
    /// When neither can be written.
    pub fn install(&self, memory_directory: &Path) -> Result<InstalledShim, ShimLibraryError> {
        let path = memory_directory.join(FILE_NAME);
        if loads_libraries(memory_directory) && fits_into_preload(&path) {
            let write = || {
                let mut file = fs::File::options().write(true).create_new(true).mode(0o755).open(&path)?;
                file.write_all(&self.bytes)?;
                // Whatever the umask says.
                file.set_permissions(fs::Permissions::from_mode(0o755))
            };
            let place = path.display().to_string();
            write().map_err(|source| ShimLibraryError::NotInstalled { place, source })?;
            return Ok(InstalledShim { preload: path, _memory: None });
        }
        let place = "a file without a name, in memory".to_owned();
        let memory = self.in_memory().map_err(|source| ShimLibraryError::NotInstalled { place, source })?;
        let preload = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        Ok(InstalledShim { preload, _memory: Some(memory) })
    }

    /// A file without a name that nobody can change, inherited by child processes under the same number.
    fn in_memory(&self) -> io::Result<OwnedFd> {
        let memory = memory_file()?;
        let mut file = fs::File::from(memory);
        file.write_all(&self.bytes)?;
        let memory = OwnedFd::from(file);
        let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        nix::fcntl::fcntl(
            &memory,
            nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::from_bits_retain(seals)),
        )?;
        Ok(memory)
    }
}

/// Kernels from 6.3 on want to be told that the file may hold a program; older ones reject the flag.
#[allow(unsafe_code)] // `memfd_create` with a flag that the safe interface does not know.
fn memory_file() -> io::Result<OwnedFd> {
    /// `MFD_EXEC` (`linux/memfd.h`)
    const MAY_HOLD_A_PROGRAM: libc::c_uint = 0x10;
    let mut result = Err(io::Error::from_raw_os_error(libc::ENOSYS));
    for flags in [libc::MFD_ALLOW_SEALING | MAY_HOLD_A_PROGRAM, libc::MFD_ALLOW_SEALING] {
        // SAFETY: the name is a C string.
        let descriptor = unsafe { libc::memfd_create(c"borealis-shim".as_ptr(), flags) };
        if descriptor >= 0 {
            // SAFETY: the kernel just made the descriptor for us, and nobody else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        result = Err(io::Error::last_os_error());
    }
    result
}

/// Whether the loader may map a program from this folder.
fn loads_libraries(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|statistics| !statistics.flags().contains(FsFlags::ST_NOEXEC))
}

/// `LD_PRELOAD` is a list with spaces and colons between its items, in which `$` begins a token (`ld.so(8)`).
fn fits_into_preload(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|byte| b" :$".contains(byte))
}

/// Whether the bytes begin like a shared library for this processor: 64 bits, little-endian, `ET_DYN` (`elf.h`).
fn check_elf(bytes: &[u8]) -> Result<(), String> {
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if bytes.get(..4) != Some(b"\x7fELF") {
        return Err("it is not an ELF file".to_owned());
    }
    if bytes.get(4..6) != Some(&[2, 1]) {
        return Err("it is not for a 64-bit little-endian processor".to_owned());
    }
    match (half(16), half(18)) {
        (Some(3), Some(OWN_MACHINE)) => Ok(()),
        (Some(3), Some(machine)) => {
            Err(format!("it is for another processor (ELF machine {machine}, this one is {OWN_MACHINE})"))
        }
        _ => Err("it is not a shared library".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Vec<u8> {
        let mut bytes = b"borealis-shim:v=".to_vec();
        bytes.extend(BUILD_FINGERPRINT.to_le_bytes());
        bytes.extend(b":borealS");
        bytes
    }

    fn library() -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(3u16.to_le_bytes());
        bytes.extend(OWN_MACHINE.to_le_bytes());
        bytes.extend(mark());
        bytes
    }

    fn load(bytes: &[u8]) -> Result<ShimLibrary, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("library.so");
        fs::write(&path, bytes).expect("written");
        ShimLibrary::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_library_of_another_build_or_machine_is_refused_before_anything_starts() {
        assert!(load(&library()).is_ok());
        let changed = |at: usize, byte: u8| {
            let mut bytes = library();
            bytes[at] = byte;
            load(&bytes).expect_err("refused")
        };
        assert!(changed(4, 1).contains("64-bit"));
        assert!(changed(18, 40).contains("another processor"));
        assert!(changed(16, 2).contains("not a shared library"));
        assert!(changed(20 + 16, !BUILD_FINGERPRINT.to_le_bytes()[0]).contains("different sources"));
        let without = load(&library()[..20]).expect_err("refused");
        assert!(without.contains("of no known build"), "{without}");
        assert!(load(b"#!/bin/sh\n").expect_err("refused").contains("not an ELF file"));
        let missing = ShimLibrary::load(Path::new("/nonexistent/library.so")).expect_err("refused");
        assert!(missing.to_string().contains("beside the borealis program"), "{missing}");
    }

    #[test]
    fn a_copy_is_readable_for_everyone_and_survives_the_original() {
        let library = load(&library()).expect("a library");
        let folder = tempfile::tempdir().expect("a folder");
        let installed = library.install(folder.path()).expect("installed");
        assert_eq!(installed.preload, folder.path().join(FILE_NAME));
        assert_eq!(fs::read(&installed.preload).expect("read"), library.bytes);
        assert_eq!(fs::metadata(&installed.preload).expect("there").permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_path_that_the_loader_would_split_is_not_given_to_it() {
        let library = load(&library()).expect("a library");
        let folder = tempfile::tempdir().expect("a folder");
        let spaced = folder.path().join("with space");
        fs::create_dir(&spaced).expect("made");
        let installed = library.install(&spaced).expect("installed");
        assert!(installed.preload.starts_with("/proc/self/fd"), "{installed:?}");
        assert_eq!(fs::read(&installed.preload).expect("read"), library.bytes);
        assert!(fs::write(&installed.preload, "other").is_err(), "it is sealed");
        assert!(!fits_into_preload(Path::new("/a:b")) && !fits_into_preload(Path::new("/$LIB")));
        assert!(fits_into_preload(Path::new("/dev/shm/Übung,1")));
    }
}
