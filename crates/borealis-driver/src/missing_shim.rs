//! Why a server ran without its shim.
//!
//! Such a server has ended already: it does not find its control file ([`borealis_shm::path::control_file`]). What
//! is left to do is to tell the user what took the shim away, for neither PostgreSQL nor the loader says more than a
//! line in the server's log.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use borealis_instance::{OperatingSystemUser, confinement, server};

/// What is known about a server that ran without its shim.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// The program that was started.
    pub program: PathBuf,
    /// `LD_PRELOAD`.
    pub preload: PathBuf,
    /// As whom.
    pub user: OperatingSystemUser,
    /// What the server's log says since this start.
    pub log: String,
}

impl Evidence {
    /// The most likely cause, as a sentence for the user.
    pub fn cause(&self) -> String {
        let mut cause = self.loaders_word().or_else(|| self.of_the_program()).unwrap_or_else(|| {
            format!(
                "nothing says why. Check that {} loads {} and hands its environment on",
                self.program.display(),
                self.preload.display()
            )
        });
        if let Some(confinement) = confinement::of_this_process() {
            let _ = write!(cause, " ({confinement})");
        }
        cause
    }

    /// The dynamic loader's line in the log, and what it means.
    fn loaders_word(&self) -> Option<String> {
        let line = self.log.lines().find(|line| line.contains("from LD_PRELOAD cannot be preloaded"))?;
        let reason = line.rsplit_once("preloaded (").map_or(line, |(_, reason)| reason);
        // Which may be another one than was asked for, if a script between put it there.
        let object = line.split_once("object '").and_then(|(_, rest)| rest.split_once("' from LD_PRELOAD"));
        let object = object.map_or(self.preload.as_path(), |(object, _)| Path::new(object));
        let meaning = if reason.contains("failed to map segment") {
            "the file system it lies on is mounted noexec, or a security policy forbids it"
        } else if reason.contains("wrong ELF class") || reason.contains("invalid ELF header") {
            "it is not a library for this processor"
        } else if !server::readable_by(&self.user, object) {
            "the server's user may not read it"
        } else {
            "see the reason in brackets"
        };
        Some(format!("the loader could not load it: {meaning}. It said: {}", line.trim()))
    }

    /// What of the program itself keeps the loader from preloading anything.
    fn of_the_program(&self) -> Option<String> {
        let program = self.program.display();
        let metadata = fs::metadata(&self.program).ok()?;
        if metadata.mode() & 0o6000 != 0 {
            return Some(format!(
                "{program} is set-user-id or set-group-id, and for such programs the loader ignores LD_PRELOAD. Take the \
                 bit away (chmod ug-s), or name another installation with --pg-bin"
            ));
        }
        if server::has_attribute(&self.program, c"security.capability") {
            return Some(format!(
                "{program} has file capabilities, and for such programs the loader ignores LD_PRELOAD. Take them away \
                 (setcap -r), or name another installation with --pg-bin"
            ));
        }
        let bytes = fs::read(&self.program).ok()?;
        if bytes.starts_with(b"#!") {
            return Some(format!(
                "{program} is a script, which must hand LD_PRELOAD, BOREALIS_SHM and BOREALIS_EVENT_FD on and end with \
                 `exec`; or name the folder of the real program with --pg-bin"
            ));
        }
        if is_static(&bytes) == Some(true) {
            return Some(format!(
                "{program} is linked statically and loads no libraries; name another installation with --pg-bin"
            ));
        }
        None
    }
}

/// Whether a 64-bit little-endian ELF program has no interpreter (`PT_INTERP`, `elf.h`); `None` if it is none.
fn is_static(bytes: &[u8]) -> Option<bool> {
    const PROGRAM_HEADER_BYTES: usize = 56;
    const INTERPRETER: u32 = 3;
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let count = usize::from(u16::from_le_bytes(bytes.get(56..58)?.try_into().ok()?));
    let mut kinds =
        bytes.get(table..)?.chunks_exact(PROGRAM_HEADER_BYTES).take(count).map(|header| &header[..4]);
    Some(!kinds.any(|kind| kind == INTERPRETER.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn evidence(program: &Path, log: &str) -> Evidence {
        Evidence {
            program: program.to_path_buf(),
            preload: PathBuf::from("/nonexistent/shim.so"),
            user: OperatingSystemUser {
                name: "nobody".into(),
                user_id: 65534,
                group_id: 65534,
                switch: true,
            },
            log: log.to_owned(),
        }
    }

    #[test]
    fn the_loaders_line_is_found_and_explained() {
        let line = |reason: &str| {
            format!(
                "x\nERROR: ld.so: object '/a b/shim.so' from LD_PRELOAD cannot be preloaded ({reason}): ignored.\ny"
            )
        };
        let cause = |reason: &str| evidence(Path::new("/bin/true"), &line(reason)).cause();
        assert!(cause("failed to map segment from shared object").contains("noexec"));
        assert!(cause("wrong ELF class: ELFCLASS32").contains("processor"));
        assert!(cause("cannot open shared object file").contains("may not read it"));
    }

    #[test]
    fn the_programs_own_nature_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("postgres");
        let cause = |bytes: &[u8], mode: u32| {
            fs::write(&program, bytes).expect("written");
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).expect("mode");
            evidence(&program, "").cause()
        };
        assert!(cause(b"#!/bin/sh\n", 0o755).contains("is a script"));
        assert!(cause(b"anything", 0o4755).contains("set-user-id"));
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[32] = 64;
        elf[56] = 1;
        elf.extend([1; 56]);
        assert!(cause(&elf, 0o755).contains("statically"));
        elf[64..68].copy_from_slice(&[3, 0, 0, 0]);
        assert!(cause(&elf, 0o755).contains("nothing says why"));
        assert_eq!(is_static(&elf[..63]), None);
        assert_eq!(is_static(&fs::read("/proc/self/exe").expect("this program")), Some(false));
    }
}
