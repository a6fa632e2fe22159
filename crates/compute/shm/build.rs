//! Computes a fingerprint of the sources that the driver and the shim share, for `src/build.rs`.
//!
//! Cargo builds the program and the shim library apart from each other, so an old library can stand beside a new
//! program. A version number in a manifest would not tell them apart; the sources do.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders whose content decides how the two sides talk: the memory's layout, the shim itself, and the types that
/// requests are made of.
const FOLDERS: [&str; 3] = ["src", "../shim/src", "../../protocol/types/src"];

fn main() {
    let mut files = Vec::new();
    for folder in FOLDERS {
        println!("cargo:rerun-if-changed={folder}");
        collect(Path::new(folder), &mut files);
    }
    files.sort();
    let mut fingerprint = Fnv(0xCBF2_9CE4_8422_2325);
    fingerprint.add(env!("CARGO_PKG_VERSION").as_bytes());
    for file in files {
        fingerprint.add(file.as_os_str().as_encoded_bytes());
        fingerprint.add(&fs::read(&file).expect("a source that is compiled, too, can be read"));
    }
    println!("cargo:rustc-env=BOREALIS_SHARED_SOURCES={:016x}", fingerprint.0);
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// FNV-1a with 64 bits: no secret is kept by it, and it needs no dependency.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        // The length keeps two files from passing for one with the same bytes.
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}
