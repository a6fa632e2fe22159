//! Writes the inputs that fuzz targets start from to the folders where `cargo fuzz` looks for them.
//!
//! ```text
//! cargo run --release -p borealis-fuzz --example export_seeds
//! ```

use std::fs;
use std::io;
use std::path::Path;

use borealis_fuzz::{TARGETS, corpus};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fuzz/corpus");
    for (target, _) in TARGETS {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        let seeds = corpus::seeds(target);
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:04}")), seed)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
