//! Prints one line for each record of consecutive WAL segment files: `waldump pg_wal/0000… pg_wal/0000…`.
//!
//! With `--quiet` it prints only how fast it was.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "a tool: reads files and the clock, prints"
)]

use std::error::Error;
use std::path::Path;

use borealis_types::{Lsn, ServerVersion};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{effects, verify_checksum};

fn main() -> Result<(), Box<dyn Error>> {
    let (options, files): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let quiet = options.iter().any(|option| option == "--quiet");
    let first = files.first().ok_or("name the segment files, in order")?;

    let mut bytes = Vec::new();
    for file in &files {
        bytes.extend(std::fs::read(file)?);
    }
    let segment_bytes = bytes.len() / files.len();
    let start = segment_start(first, segment_bytes as u64).ok_or("not the name of a segment file")?;
    let source = WalWindow { start, bytes: &bytes };
    let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, start, Lsn::ZERO)
        .with_segment_bytes(u32::try_from(segment_bytes)?);
    decoder.skip_continuation(&source)?;

    let began = std::time::Instant::now();
    let mut records = 0u32;
    let mut out = Vec::new();
    let reason = loop {
        let record = match decoder.next(&source)? {
            Next::Record(record) => record,
            Next::Incomplete(reason) => break reason,
        };
        records += 1;
        out.clear();
        effects(&record, &mut out)?;
        if !quiet {
            println!(
                "{} to {}  {} {:#04x}  xid {}  {} bytes  {out:?}",
                record.span.start,
                record.span.end,
                record.resource_manager,
                record.info,
                record.xid,
                record.bytes.len()
            );
        }
        debug_assert_eq!(verify_checksum(record.bytes, record.span.start), Ok(()));
    };
    let seconds = began.elapsed().as_secs_f64();
    let mebibytes = (decoder.position().0 - start.0) as f64 / f64::from(1 << 20);
    eprintln!(
        "{records} records, {mebibytes:.1} MiB in {:.1} ms: {:.0} ns a record, {:.0} MiB/s; stopped at {}: {}",
        seconds * 1e3,
        seconds * 1e9 / f64::from(records.max(1)),
        mebibytes / seconds,
        reason.at,
        reason.why
    );
    Ok(())
}

/// Where the segment file of this name begins: after the time line, the name has two numbers of eight digits.
fn segment_start(file: &str, segment_bytes: u64) -> Option<Lsn> {
    let name = Path::new(file).file_name()?.to_str()?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let high = number(name.get(8..16)?)?;
    let low = number(name.get(16..24)?)?;
    Some(Lsn((high << 32) + low * segment_bytes))
}
