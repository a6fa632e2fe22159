//! Libraries that a server loads when it starts, and whether one brings its own kind of WAL records.
//!
//! A library registers a custom resource manager by calling `RegisterCustomRmgr`
//! (`src/backend/access/transam/rmgr.c`), which the server allows only while it loads these libraries. So the
//! function's name is among the names the library wants resolved.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Binaries;

/// The function's name, as a table of names has it.
const REGISTRATION: &[u8] = b"\0RegisterCustomRmgr\0";
/// Where the folder of libraries is, seen from the folder of programs: Debian's, and the usual ones.
const LIBRARY_FOLDERS: [&str; 4] = ["../lib", "../lib/postgresql", "../lib64/pgsql", "../lib64/postgresql"];

/// The names in the value of `shared_preload_libraries`: separated by commas, perhaps in double quotes.
pub(crate) fn names(list: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    for character in list.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            _ => names.last_mut().expect("there is always one").push(character),
        }
    }
    names.into_iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// Whether the library can be found, and registers a resource manager.
pub(crate) fn registers_resource_manager(binaries: &Binaries, library: &str) -> bool {
    candidates(&binaries.folder, library).iter().any(|path| has_registration(path))
}

/// Where the server would look for it.
fn candidates(program_folder: &Path, library: &str) -> Vec<PathBuf> {
    let name = library.strip_prefix("$libdir/").unwrap_or(library);
    let mut found = Vec::new();
    for folder in LIBRARY_FOLDERS {
        // A name that is a whole path replaces the folder.
        let path = program_folder.join(folder).join(name);
        found.push(path.with_file_name(match path.file_name().and_then(|file| file.to_str()) {
            Some(file) => format!("{file}.so"),
            None => continue,
        }));
        found.push(path);
    }
    found
}

/// Whether the file has the function's name among its names. A file that cannot be read is the server's to refuse.
fn has_registration(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return false;
    }
    let overlap = REGISTRATION.len() - 1;
    let mut window = vec![0; 64 << 10];
    let mut kept = 0;
    while let Ok(count) = file.read(&mut window[kept..]) {
        let filled = kept + count;
        if window[..filled].windows(REGISTRATION.len()).any(|bytes| bytes == REGISTRATION) {
            return true;
        }
        if count == 0 {
            break;
        }
        // The name may stand on both sides of a boundary.
        let keep_from = filled.saturating_sub(overlap);
        window.copy_within(keep_from..filled, 0);
        kept = filled - keep_from;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use borealis_types::ServerVersion;

    #[test]
    fn names_are_read_as_the_server_reads_them() {
        assert_eq!(
            names(" pg_stat_statements,orioledb , \"a,b\""),
            ["pg_stat_statements", "orioledb", "a,b"]
        );
        assert!(names("").is_empty());
    }

    #[test]
    fn a_library_with_its_own_resource_manager_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let (programs, libraries) = (folder.path().join("bin"), folder.path().join("lib"));
        std::fs::create_dir_all(&programs).expect("made");
        std::fs::create_dir_all(&libraries).expect("made");
        // The name stands across the boundary of what is read at a time.
        let mut bytes = vec![1; (64 << 10) - 10];
        bytes.extend_from_slice(b"\0RegisterCustomRmgr\0more");
        std::fs::write(libraries.join("columns.so"), &bytes).expect("written");
        std::fs::write(libraries.join("harmless.so"), vec![1; 100_000]).expect("written");
        let binaries = Binaries {
            folder: programs,
            server_version: ServerVersion::NEWEST_TESTED,
            postgres_file: crate::ProgramFile::at(folder.path()).expect("it is there"),
            version_text: String::new(),
        };
        let check = |list: &str| {
            let pair = ("Shared_Preload_Libraries".to_owned(), list.to_owned());
            Settings::check([pair]).expect("a setting").check_libraries(&binaries)
        };
        assert!(check("harmless, not_there").is_ok());
        let whole = libraries.join("columns.so");
        for list in ["harmless,columns", "$libdir/columns", whole.to_str().expect("a name")] {
            let text = check(list).expect_err(list).to_string();
            assert!(text.contains("columns") && text.contains("resource manager"), "{text}");
            assert!(!text.contains("harmless"), "{text}");
        }
    }
}
