//! Writes the golden files of the formats as they are now: `cargo run -p borealis-archive --example write_golden -- FOLDER`.
//!
//! Files of a format that was released are never written again: a format that changes gets the next number, and files of its
//! own beside those of the old one.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "it writes files: it is a tool, no part of the crate"
)]

#[path = "../tests/samples/mod.rs"]
mod samples;

use borealis_archive::sealing::Sealing;

fn main() {
    let folder = std::env::args().nth(1).expect("a folder");
    for (suffix, sealing) in [("", Sealing::Plain), ("-sealed", samples::sealed())] {
        for (kind, name, bytes) in samples::all(&sealing) {
            let file = format!("{folder}/{kind}-1{suffix}");
            std::fs::write(&file, &bytes).expect("a file is written");
            std::fs::write(format!("{file}.name"), name.to_string()).expect("a file is written");
            println!("{file}: {} bytes, {name}", bytes.len());
        }
    }
}
