//! The segment files of a stock server's log, made again from its records: byte for byte the files that it wrote, but for what does
//! not follow from records, which is counted. A server replays the files that were made.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "runs a real server"
)]
#![allow(clippy::unwrap_used)] // All of this is test code.

mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use borealis_redo::control_file::ControlFile;
use borealis_types::{Lsn, PageBytes, Part, PostgresVersion, RecordSpan};
use borealis_wal::ResourceManager;
use borealis_wal::assemble::{AssembleError, Front, PageAssembler, without_effect};
use borealis_wal::layout::wal_page::BACKUP_REMOVABLE;
use borealis_wal::layout::xlog;
use borealis_wal::page::{WAL_PAGE_BYTES, WalLayout, page_start, segment_file_name};
use borealis_wal::piece::open;
use borealis_wal::stream::{Next, NextPiece, RecordDecoder, WalWindow};
use support::Cluster;

const PAGE_BYTES: usize = WAL_PAGE_BYTES as usize;

const WORKLOAD: &str = "
create table account (id int primary key, balance int, note text);
insert into account select i, 100, repeat('n', i % 90) from generate_series(1, 3000) i;
create index on account (note); create index on account using hash (id);
create index on account using gin (string_to_array(note, 'n'));
checkpoint;
update account set balance = balance + 1;
select pg_switch_wal(); select pg_switch_wal();
select pg_logical_emit_message(true, 'long', repeat('three hundred thousand ', 14000));
begin; insert into account values (9001, 1, 'prepared'); prepare transaction 'kept';
begin; insert into account select i, 1, 'subtransactions' from generate_series(20001, 20100) i; rollback;
do $$ begin for i in 1..3000 loop
    begin insert into account values (30000 + i, i, 'one by one'); exception when division_by_zero then end;
end loop; end $$;
commit prepared 'kept';
vacuum (freeze) account;
select pg_switch_wal();
select pg_logical_emit_message(false, 'longer', repeat('several mebibytes ', 200000));
create table gone as select i from generate_series(1, 1000) i; drop table gone;
do $$ declare room int; begin
    -- Records that end with their page, or so near its end that the next one's header does not fit.
    for i in 1..90 loop
        room := 8192 - ((pg_current_wal_insert_lsn() - '0/0'::pg_lsn) % 8192)::int;
        if room < 600 then
            perform pg_logical_emit_message(false, 'p', repeat('x', 2000));
        else
            -- A record's header, a long length, xl_logical_message, and the prefix: 55 bytes.
            perform pg_logical_emit_message(false, 'p', repeat('x', room - 8 * (i % 3) - 55));
        end if;
    end loop;
end $$;
checkpoint;
";

/// A base backup is being made.
const BACKED_UP: &str = "
select pg_backup_start('backup', true);
insert into account select i, 1, 'meanwhile' from generate_series(50001, 54000) i;
select pg_backup_stop();
";

const AFTERWARDS: &str = "
insert into account select i, 1, 'afterwards' from generate_series(60001, 63000) i;
select pg_switch_wal();
insert into account values (70000, 1, 'the last one');
";

/// What the files must have, or the test would test too little.
#[derive(Default, Debug)]
struct Seen {
    records: usize,
    switches: usize,
    pieces: usize,
    /// Records that end with a page.
    page_ends: usize,
    /// Records whose header stands on two pages.
    split_headers: usize,
    longest: usize,
    overwrites: usize,
    last_operation: Option<(ResourceManager, u8)>,
}

/// The pages of a log, from its first position on.
#[derive(Default)]
struct Log(Vec<u8>);

impl Log {
    fn take(&mut self, start: Lsn) -> impl FnMut(Lsn, &PageBytes) -> Result<(), AssembleError> {
        move |page, bytes| {
            assert_eq!(start.0 + self.0.len() as u64, page.0, "a page is missing");
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
}

/// How the records of a log are brought.
#[derive(Clone, Copy)]
struct Manner {
    /// Longer ones are cut into pieces.
    piece_bytes: Option<usize>,
    /// Messages for logical decoding are exchanged for records without any effect.
    without_messages: bool,
}

const AS_THEY_ARE: Manner = Manner { piece_bytes: None, without_messages: false };

/// Decodes all records and makes pages of them again, from the first whole one on. Also returns where unfinished records
/// stood.
fn make_again(
    cluster: &Cluster,
    layout: &WalLayout,
    start: Lsn,
    original: &[u8],
    manner: Manner,
) -> (Vec<u8>, Vec<(Lsn, Lsn)>, Seen) {
    let window = WalWindow { start, bytes: original };
    let mut decoder = RecordDecoder::new(cluster.release(), start, Lsn::ZERO)
        .with_segment_bytes(layout.segment_bytes)
        .with_system_identifier(layout.system_identifier);
    decoder.skip_continuation(&window).unwrap().unwrap();
    let mut assembler = PageAssembler::new(*layout, decoder.position(), Lsn::ZERO, Front::LeftOut).unwrap();
    let start = Lsn(decoder.position().0.next_multiple_of(WAL_PAGE_BYTES));
    let (mut log, mut unfinished, mut seen) = (Log::default(), Vec::new(), Seen::default());
    loop {
        let is_cutting = manner.piece_bytes.map(|piece_bytes| decoder.next_piece(&window, piece_bytes));
        match is_cutting.transpose().unwrap() {
            Some(NextPiece::Piece(piece)) => {
                let content = open(piece.bytes, piece.span.start).unwrap();
                assembler.append(piece.span, piece.part, content, log.take(start)).unwrap();
                seen.pieces += 1;
                continue;
            }
            Some(NextPiece::Incomplete { reason, .. }) => panic!("a piece is not there: {reason:?}"),
            Some(NextPiece::NotCut) | None => {}
        }
        let Next::Record(record) = decoder.next(&window).unwrap() else { break };
        let before = assembler.position();
        let RecordSpan { start: at, end } = record.span;
        seen.records += 1;
        seen.page_ends += usize::from(page_start(end) == end);
        seen.split_headers += usize::from(page_start(at) != page_start(Lsn(at.0 + 23)));
        seen.longest = seen.longest.max(record.bytes.len());
        let is_log = record.resource_manager == ResourceManager::Xlog;
        seen.switches += usize::from(is_log && record.operation() == xlog::SWITCH);
        if is_log && record.operation() == xlog::OVERWRITE_CONTINUATION {
            seen.overwrites += 1;
            unfinished.push((before, page_start(at)));
        }
        seen.last_operation = Some((record.resource_manager, record.operation()));
        let stands_in = (manner.without_messages
            && record.resource_manager == ResourceManager::LogicalMessage)
            .then(|| without_effect(record.bytes, at).unwrap());
        let bytes = stands_in.as_deref().unwrap_or(record.bytes);
        assembler.append(record.span, Part::Whole, bytes, log.take(start)).unwrap();
    }
    let lost = unfinished.iter().filter(|(from, until)| from < until).count();
    assert_eq!(assembler.stand_ins(), lost as u64);
    assembler.finish(log.take(start)).unwrap();
    (log.0, unfinished, seen)
}

/// Compares the files with what was made; returns the pages in which one flag differs.
fn compare(start: Lsn, original: &[u8], made: &[u8], unfinished: &[(Lsn, Lsn)]) -> Vec<Lsn> {
    assert!(made.len() <= original.len());
    let (written, rest) = original.split_at(made.len());
    assert!(rest.iter().all(|&byte| byte == 0), "something stands after the last record");
    let mut other_flags = Vec::new();
    for (number, (theirs, ours)) in
        written.chunks_exact(PAGE_BYTES).zip(made.chunks_exact(PAGE_BYTES)).enumerate()
    {
        let page = Lsn(start.0 + number as u64 * WAL_PAGE_BYTES);
        let mut ours = ours.to_vec();
        if (theirs[2] ^ ours[2]) & BACKUP_REMOVABLE as u8 != 0 {
            other_flags.push(page);
            ours[2] ^= BACKUP_REMOVABLE as u8;
        }
        for at in (0..PAGE_BYTES).filter(|&at| theirs[at] != ours[at]) {
            let position = Lsn(page.0 + at as u64);
            // Its bytes are lost, and with them how many were to come.
            let of_unfinished = unfinished.iter().any(|(from, until)| {
                (*from..*until).contains(&position) && (at >= 24 || (16..20).contains(&at))
            });
            assert!(
                of_unfinished,
                "{position} (byte {at} of its page) is {:#04x} in the server's file, {:#04x} here",
                theirs[at], ours[at]
            );
        }
    }
    other_flags
}

fn layout_of(data: &Path) -> WalLayout {
    let control = ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
    WalLayout {
        version: PostgresVersion::V15,
        timeline: 1,
        system_identifier: control.system_identifier,
        segment_bytes: control.wal_segment_bytes,
    }
}

fn insert_position(cluster: &Cluster) -> Lsn {
    let text = cluster.run("psql", ["-X", "-A", "-t", "-c", "select pg_current_wal_insert_lsn()"]);
    text.trim().parse().unwrap()
}

/// Loses the file in which the rest of a record stood (`src/test/recovery/t/026_overwrite_contrecord.pl`).
fn lose_the_end_of_a_record(cluster: &mut Cluster, segment_bytes: u64) {
    let text = "x".repeat(usize::try_from(segment_bytes).unwrap() * 3 / 4);
    let before = insert_position(cluster).0 / segment_bytes;
    while insert_position(cluster).0 / segment_bytes == before {
        cluster.sql("postgres", &format!("select pg_logical_emit_message(true, 'lost', '{text}');"));
    }
    cluster.crash();
    let (_, last) = cluster.wal_files().pop().unwrap();
    fs::remove_file(last).unwrap();
    cluster.start();
}

/// A server whose data is a fresh `initdb`'s replays the files and has everything.
fn replay_files(cluster: &mut Cluster, fresh: &Path, layout: &WalLayout, start: Lsn, log: &[u8], rows: &str) {
    let archive = cluster.folder().join("archive");
    fs::create_dir(&archive).unwrap();
    let segment_bytes = layout.segment_bytes as usize;
    for (number, bytes) in log.chunks(segment_bytes).enumerate() {
        let position = Lsn(start.0 + (number * segment_bytes) as u64);
        let mut file = bytes.to_vec();
        file.resize(segment_bytes, 0);
        fs::write(archive.join(segment_file_name(1, position, layout.segment_bytes)), file).unwrap();
    }
    let data = cluster.data();
    fs::rename(&data, cluster.folder().join("original")).unwrap();
    fs::rename(fresh, &data).unwrap();
    for (_, path) in cluster.wal_files() {
        fs::remove_file(path).unwrap();
    }
    fs::write(data.join("recovery.signal"), "").unwrap();
    let mut settings = fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap();
    // Nobody is let in before all is replayed.
    let restore = format!("restore_command = 'cp {}/%f %p'\nhot_standby = off", archive.display());
    writeln!(settings, "{restore}").unwrap();
    cluster.give_to_server(cluster.folder());
    cluster.start();
    let is_over = || cluster.output_of_any_status("pg_isready", ["-t", "0"]).contains("accepting");
    let began = Instant::now();
    while !is_over() {
        assert!(began.elapsed() < Duration::from_secs(60), "the server does not end its recovery");
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.sql("postgres", &format!("do $$ begin {rows} end $$;"));
    let server_log = fs::read_to_string(cluster.folder().join("log")).unwrap();
    assert!(server_log.contains("restored log file"), "{server_log}");
    cluster.stop();
}

fn files_are_made_again(segment_size_mb: u32) {
    let segment_size = format!("--wal-segsize={segment_size_mb}");
    let settings = "wal_consistency_checking = ''\nwal_level = logical\n";
    let mut cluster = Cluster::create_with(&[&segment_size], settings);
    let fresh = cluster.folder().join("fresh");
    assert!(Command::new("cp").arg("-a").arg(cluster.data()).arg(&fresh).status().unwrap().success());
    cluster.start();
    cluster.sql("postgres", WORKLOAD);
    let backup_start = insert_position(&cluster);
    cluster.sql("postgres", BACKED_UP);
    let backup_end = insert_position(&cluster);
    let layout = layout_of(&cluster.data());
    let segment_bytes = u64::from(layout.segment_bytes);
    assert_eq!(segment_bytes, u64::from(segment_size_mb) << 20);
    lose_the_end_of_a_record(&mut cluster, segment_bytes);
    cluster.sql("postgres", AFTERWARDS);
    cluster.stop();

    let (start, original) = cluster.wal_bytes();
    let (made, unfinished, seen) = make_again(&cluster, &layout, start, &original, AS_THEY_ARE);
    // The first files of small ones are gone, and a record goes on in the first one that is there.
    let left_out = if start == Lsn(segment_bytes) { 0 } else { PAGE_BYTES };
    let whole = &original[left_out..];
    let other_flags = compare(Lsn(start.0 + left_out as u64), whole, &made, &unfinished);
    let pages = made.len() / PAGE_BYTES;
    let _ = writeln!(
        std::io::stderr(),
        "{pages} pages; one flag differs in {} of them; {seen:?}; unfinished: {unfinished:?}",
        other_flags.len()
    );
    let last = Some((ResourceManager::Xlog, xlog::CHECKPOINT_SHUTDOWN));
    assert_eq!(seen.last_operation, last, "the log was not read to its end");
    let enough = seen.records > 10_000
        && seen.switches >= 3
        && seen.page_ends >= 10
        && seen.split_headers >= 10
        && seen.longest > 3_000_000
        && seen.overwrites == 1;
    assert!(enough, "the workload is not what it should be: {seen:?}");
    // Pages are begun ahead of the log, as many as there are buffers for it: a thirty-second of `shared_buffers`.
    let begun_ahead = Lsn(backup_end.0 + (2 << 20));
    let during_backup = |page: &&Lsn| page_start(backup_start) <= **page && **page <= begun_ahead;
    assert_eq!(other_flags.iter().find(|page| !during_backup(page)), None, "no backup was being made");
    assert!(!other_flags.is_empty(), "a backup was made, and every page is as without");

    let in_pieces = Manner { piece_bytes: Some(3 * PAGE_BYTES), ..AS_THEY_ARE };
    let (pieced, pieced_unfinished, seen) = make_again(&cluster, &layout, start, &original, in_pieces);
    // Of the unfinished record all was in pieces that there is: nothing of it is lost.
    assert!(pieced_unfinished.iter().all(|(from, until)| from == until), "{pieced_unfinished:?}");
    let same_flags = compare(Lsn(start.0 + left_out as u64), whole, &pieced, &pieced_unfinished);
    assert_eq!(same_flags, other_flags, "records in pieces make other pages");
    assert!(seen.pieces > 100, "{seen:?}");

    let without_messages = Manner { without_messages: true, ..AS_THEY_ARE };
    let (changed, ..) = make_again(&cluster, &layout, start, &original, without_messages);
    assert!(changed != made && changed.len() == made.len());
    let rows = "
        if (select count(*) from account) <> 3000 + 1 + 3000 + 4000 + 3000 + 1 then raise 'rows are missing'; end if;
        if (select note from account where id = 70000) <> 'the last one' then raise 'the end is missing'; end if;";
    // The page that is left out has nothing that the fresh cluster does not have.
    let log = [&original[..left_out], &changed].concat();
    replay_files(&mut cluster, &fresh, &layout, start, &log, rows);
}

#[test]
fn segment_files_of_the_default_size_are_made_again_and_a_server_replays_them() {
    files_are_made_again(16);
}

#[test]
fn small_segment_files_are_made_again_and_a_server_replays_them() {
    files_are_made_again(1);
}
