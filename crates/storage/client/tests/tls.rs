//! Handshakes between parts of a fleet and others, over real sockets.

#![allow(clippy::unwrap_used)] // A broken step should stop the test.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use borealis_client::polled::Connection;
use borealis_client::stream::Stream;
use borealis_client::{Credentials, Endpoint, Route};
use borealis_fleet::{Fleet, Validity};
use borealis_spec::{Identity, Role, TlsFiles};
use borealis_types::{InstanceId, NodeId, VolumeId};
use borealis_wire::frame::frame_header;
use borealis_wire::{BatchFrame, Request};
use mio::{Events, Poll, Token};

const PATIENCE: Duration = Duration::from_secs(10);
const INSTANCE: Role = Role::Instance(VolumeId(1), InstanceId(1));

fn node(number: u16) -> Role {
    Role::Node(NodeId(number))
}

/// A fleet with files of its own.
struct Authority {
    folder: tempfile::TempDir,
    fleet: Fleet,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let fleet =
            Fleet::init(&folder.path().join("fleet"), name.parse().unwrap(), Validity::days(100)).unwrap();
        Authority { folder, fleet }
    }

    fn issue(&self, role: Role, hosts: &[&str], validity: Validity) -> TlsFiles {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let name = format!("{role:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "");
        self.fleet.issue(role, &hosts, validity, &self.folder.path().join(name)).unwrap().files
    }

    fn credentials(&self, role: Role) -> Arc<Credentials> {
        Credentials::load(self.issue(role, &["127.0.0.1", "localhost"], Validity::days(50))).unwrap()
    }
}

/// Serves one caller.
struct Served {
    endpoint: Endpoint,
    thread: JoinHandle<io::Result<Identity>>,
}

fn listen() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Endpoint::Tls { host: "127.0.0.1".to_owned(), port })
}

/// Shakes hands with one caller, then gives back what it says until it ends.
fn serve(credentials: Arc<Credentials>, patience: Duration) -> Served {
    let (listener, endpoint) = listen();
    let thread = thread::spawn(move || {
        let mut stream = Stream::accept(listener.accept()?.0, &credentials)?;
        let identity = stream.shake_hands(Instant::now() + patience)?.expect("it is TLS");
        let mut bytes = vec![0; 100_000];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(identity),
                count => stream.write_all(&bytes[..count])?,
            }
        }
    });
    Served { endpoint, thread }
}

fn connect(endpoint: &Endpoint, credentials: &Arc<Credentials>, node: u16) -> io::Result<Stream> {
    let mut stream = Stream::connect(Route::new(endpoint, Some(credentials)), NodeId(node), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The end of a caller's attempt: connecting may succeed before the node has judged its certificate.
fn talk(endpoint: &Endpoint, credentials: &Arc<Credentials>, node: u16) -> io::Result<()> {
    let mut stream = connect(endpoint, credentials, node)?;
    stream.write_all(b"word")?;
    stream.read_exact(&mut [0; 4])
}

#[track_caller]
fn assert_says(result: io::Result<impl std::fmt::Debug>, expected: &str) {
    let said = result.expect_err(expected).to_string();
    assert!(said.contains(expected), "`{expected}` is not in `{said}`");
}

#[test]
fn two_parts_of_a_fleet_know_each_other() {
    let authority = Authority::new("f");
    let server = authority.credentials(node(3));
    for role in [INSTANCE, node(2), Role::Controller, Role::Client] {
        let caller = authority.credentials(role);
        let served = serve(server.clone(), PATIENCE);
        talk(&served.endpoint, &caller, 3).unwrap();
        assert_eq!(served.thread.join().unwrap().unwrap(), caller.identity());
    }
}

#[test]
fn megabytes_go_both_ways_at_one_time_and_reads_end_in_time() {
    let authority = Authority::new("f");
    let served = serve(authority.credentials(node(3)), PATIENCE);
    let mut stream = connect(&served.endpoint, &authority.credentials(INSTANCE), 3).unwrap();
    let sent: Vec<u8> =
        (0..5_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut received = vec![0; sent.len()];
    assert_eq!(stream.read_what_is_there(&mut [0; 8]).unwrap(), None);
    let mut sending = stream.try_clone().unwrap();
    sending.set_write_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| sending.write_all(&sent).unwrap());
        stream.read_exact(&mut received).unwrap();
    });
    assert!(sent == received, "what came back differs");
    stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // Another handle ends it while this one waits.
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            sending.shutdown().unwrap();
        });
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
    });
    assert!(began.elapsed() < PATIENCE / 2);
    served.thread.join().unwrap().unwrap();
}

#[test]
fn a_caller_that_is_not_read_is_given_up_in_time() {
    let authority = Authority::new("f");
    let (listener, endpoint) = listen();
    let server = authority.credentials(node(3));
    let caller = authority.credentials(INSTANCE);
    let thread = thread::spawn(move || connect(&endpoint, &caller, 3));
    let stream = Stream::accept(listener.accept().unwrap().0, &server).unwrap();
    stream.shake_hands(Instant::now() + PATIENCE).unwrap();
    let _reads_nothing = thread.join().unwrap().unwrap();
    let began = Instant::now();
    let bytes = vec![7; 64 << 20];
    let mut rest = bytes.as_slice();
    let error = loop {
        match stream.write_within(rest, Duration::from_millis(200)) {
            Ok(count) => rest = &rest[count..],
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

#[test]
fn the_wrong_node_is_refused_before_a_word_is_said() {
    let authority = Authority::new("f");
    let caller = authority.credentials(INSTANCE);
    let served = serve(authority.credentials(node(3)), PATIENCE);
    assert_says(connect(&served.endpoint, &caller, 4), "that of borealis://f/node/3, where node 4 was meant");
    // It is over for the node, too: the caller is gone.
    let _ = served.thread.join().unwrap();
}

#[test]
fn other_fleets_are_refused_on_both_sides_and_told_why() {
    let (own, other) = (Authority::new("f"), Authority::new("g"));
    // Also one of the same name: whose authority is another.
    let namesake = Authority::new("f");
    for stranger in [&other, &namesake] {
        let served = serve(own.credentials(node(3)), PATIENCE);
        assert_says(
            talk(&served.endpoint, &stranger.credentials(INSTANCE), 3),
            "the other side's certificate is refused",
        );
        assert_says(served.thread.join().unwrap(), "the other side refused this process's certificate");
        // A caller that trusts more than the node does.
        let caller = stranger.issue(INSTANCE, &[], Validity::days(5));
        let mut both = fs::read(&caller.authorities).unwrap();
        both.extend(fs::read(own.fleet.authorities_file()).unwrap());
        fs::write(&caller.authorities, both).unwrap();
        let caller = Credentials::load(caller).unwrap();
        let served = serve(own.credentials(node(3)), PATIENCE);
        let expected = if stranger.fleet.name() == own.fleet.name() {
            "the other side refused this process's certificate: it does not trust the authority that signed it"
        } else {
            "of another fleet than this one"
        };
        assert_says(talk(&served.endpoint, &caller, 3), expected);
        let refused = served.thread.join().unwrap();
        if stranger.fleet.name() == own.fleet.name() {
            assert_says(refused, "the other side's certificate is refused: ");
        }
    }
}

#[test]
fn a_certificate_counts_for_its_hosts_and_for_its_time() {
    let authority = Authority::new("f");
    let caller = authority.credentials(INSTANCE);
    let elsewhere =
        Credentials::load(authority.issue(node(4), &["elsewhere.example"], Validity::days(5))).unwrap();
    let served = serve(elsewhere, PATIENCE);
    assert_says(
        connect(&served.endpoint, &caller, 4),
        "it is not valid for the host that was called; renew it",
    );
    assert!(served.thread.join().unwrap().is_err());

    let now = SystemTime::now();
    let short = Validity { since: now - Duration::from_secs(60), until: now + Duration::from_secs(2) };
    let expiring_node = Credentials::load(authority.issue(node(5), &["127.0.0.1"], short)).unwrap();
    let expiring_caller = Credentials::load(authority.issue(Role::Client, &[], short)).unwrap();
    let served = serve(expiring_node.clone(), PATIENCE);
    talk(&served.endpoint, &expiring_caller, 5).unwrap();
    served.thread.join().unwrap().unwrap();
    thread::sleep(Duration::from_millis(3100));
    let served = serve(expiring_node, PATIENCE);
    assert_says(talk(&served.endpoint, &caller, 5), "refused: it has expired; renew it");
    assert_says(served.thread.join().unwrap(), "certificate: it has expired by that side's clock");
    let served = serve(authority.credentials(node(3)), PATIENCE);
    assert_says(
        talk(&served.endpoint, &expiring_caller, 3),
        "certificate: it has expired by that side's clock",
    );
    assert_says(served.thread.join().unwrap(), "refused: it has expired; renew it");
}

#[test]
fn only_nodes_are_called() {
    let authority = Authority::new("f");
    let pretender = authority.issue(Role::Client, &["127.0.0.1"], Validity::days(5));
    let served = serve(Credentials::load(pretender).unwrap(), PATIENCE);
    assert_says(connect(&served.endpoint, &authority.credentials(INSTANCE), 3), "only nodes are called");
    assert!(served.thread.join().unwrap().is_err());
}

#[test]
fn what_is_no_tls_is_refused_and_silence_has_an_end() {
    let authority = Authority::new("f");
    let server = authority.credentials(node(3));
    let port_of = |endpoint: &Endpoint| match endpoint {
        Endpoint::Tls { port, .. } => *port,
        Endpoint::Unix(_) => panic!("it is TLS"),
    };
    let served = serve(server.clone(), PATIENCE);
    let mut plain = TcpStream::connect(("127.0.0.1", port_of(&served.endpoint))).unwrap();
    plain.write_all(&frame_header(b"a frame in the clear")).unwrap();
    plain.write_all(b"a frame in the clear").unwrap();
    assert_says(served.thread.join().unwrap(), "what came is not TLS");
    // One that says nothing, and one that drips the beginning of a handshake.
    for drips in [false, true] {
        let served = serve(server.clone(), Duration::from_millis(400));
        let mut slow = TcpStream::connect(("127.0.0.1", port_of(&served.endpoint))).unwrap();
        let began = Instant::now();
        // A record of the handshake of 512 bytes that never becomes whole.
        for byte in [22, 3, 1, 2, 0, 1, 0, 1, 252].iter().chain(&[3; 64]) {
            if drips && slow.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(served.thread.join().unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    // A node that takes the connection and says nothing.
    let (_silent, endpoint) = listen();
    let route = Route::new(&endpoint, Some(&server));
    let error = Stream::connect(route, NodeId(1), Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let error = Stream::connect(&endpoint, NodeId(1), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("no certificate is configured here"), "{error}");
}

#[test]
fn files_that_are_of_no_use_are_refused_with_the_reason() {
    let authority = Authority::new("f");
    let files = authority.issue(node(3), &["127.0.0.1"], Validity::days(5));
    let refused = |break_it: &dyn Fn(&TlsFiles), expected: &str| {
        break_it(&files);
        let said = Credentials::load(files.clone()).expect_err(expected).to_string();
        assert!(said.contains(expected), "`{expected}` is not in `{said}`");
        authority.issue(node(3), &["127.0.0.1"], Validity::days(5));
    };
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    refused(&|files| mode(&files.key, 0o644), "can be read by others");
    refused(&|files| fs::remove_file(&files.key).unwrap(), "cannot read ");
    refused(&|files| fs::write(&files.authorities, "").unwrap(), "no certificate in PEM is in it");
    refused(&|files| fs::write(&files.certificate, "x").unwrap(), "no certificate in PEM is in it");
    let other = Authority::new("f");
    let copy = |from: &Path, to: &Path| assert!(fs::copy(from, to).unwrap() > 0);
    refused(&|files| copy(&other.fleet.authorities_file(), &files.authorities), "of another fleet");
    let client = authority.issue(Role::Client, &[], Validity::days(5));
    refused(&|files| copy(&client.key, &files.key), "the key belongs to another certificate");
    let said = Credentials::load_for(files.clone(), node(4)).expect_err("another node's").to_string();
    assert!(
        said.contains("is that of borealis://f/node/3, where that of borealis://f/node/4 is needed"),
        "{said}"
    );
    Credentials::load_for(files, node(3)).unwrap();
    let past = SystemTime::now() - Duration::from_secs(10);
    let expired = Validity { since: past - Duration::from_secs(60), until: past };
    let said = Credentials::load(authority.issue(node(7), &["h"], expired)).expect_err("expired").to_string();
    assert!(said.contains("borealis://f/node/7 cannot be used: it has expired; renew it"), "{said}");
}

#[test]
fn new_certificates_and_authorities_are_taken_without_a_restart() {
    let mut authority = Authority::new("f");
    let (server, caller) = (authority.credentials(node(3)), authority.credentials(INSTANCE));
    let talks = |caller: &Arc<Credentials>| {
        let served = serve(server.clone(), PATIENCE);
        talk(&served.endpoint, caller, 3).and(served.thread.join().unwrap())
    };
    talks(&caller).unwrap();
    // Files change at most once in the time between two looks at them.
    let reissue = |authority: &Authority, role| {
        thread::sleep(Duration::from_millis(1100));
        authority.issue(role, &["127.0.0.1"], Validity::days(20));
        thread::sleep(Duration::from_millis(1100));
    };
    authority.fleet.rotate(Validity::days(100)).unwrap();
    // The node has the new authority's certificate, which the caller does not know yet.
    reissue(&authority, node(3));
    assert_says(talks(&caller), "no authority that is trusted here has signed it");
    reissue(&authority, INSTANCE);
    talks(&caller).unwrap();
    // One of the old authority's is trusted until that is retired everywhere.
    let old = tempfile::tempdir().unwrap();
    let old_files = TlsFiles::in_folder(old.path());
    let issued = authority.issue(Role::Client, &[], Validity::days(5));
    fs::copy(&issued.authorities, &old_files.authorities).unwrap();
    fs::copy(&issued.certificate, &old_files.certificate).unwrap();
    fs::copy(&issued.key, &old_files.key).unwrap();
    let old_client = Credentials::load(old_files).unwrap();
    talks(&old_client).unwrap();
    authority.fleet.rotate(Validity::days(100)).unwrap();
    authority.fleet.retire(1).unwrap();
    authority.fleet.retire(2).unwrap();
    reissue(&authority, node(3));
    assert_says(talks(&old_client), "no authority that is trusted here has signed it");
    reissue(&authority, INSTANCE);
    talks(&caller).unwrap();
    // What cannot be used is not taken, and what is loaded goes on.
    let files = authority.issue(node(3), &["127.0.0.1"], Validity::days(20));
    fs::write(&files.certificate, "x").unwrap();
    thread::sleep(Duration::from_millis(1100));
    talks(&caller).unwrap();
}

/// Turns the poll until `done`, as an event loop does.
fn turn_until(
    poll: &mut Poll,
    connection: &mut Connection,
    mut done: impl FnMut(&mut Connection) -> bool,
) -> io::Result<()> {
    let (mut events, mut scratch) = (Events::with_capacity(8), vec![0; 256 << 10]);
    let deadline = Instant::now() + PATIENCE;
    while !done(connection) {
        assert!(Instant::now() < deadline, "it takes too long");
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        for event in &events {
            if connection.has_outbound() {
                connection.flush()?;
            }
            if !connection.receive(&mut scratch, event.is_read_closed() || event.is_error())? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

#[test]
fn an_event_loop_talks_over_tls_without_waiting() {
    let authority = Authority::new("f");
    let caller = authority.credentials(INSTANCE);
    let served = serve(authority.credentials(node(3)), PATIENCE);
    let mut poll = Poll::new().unwrap();
    let route = Route::new(&served.endpoint, Some(&caller));
    let mut connection = Connection::open(route, NodeId(3), poll.registry(), Token(7)).unwrap();
    // Queued before the handshake, in one piece and in many.
    connection.send(1, &Request::Status);
    let batch = Rc::new(BatchFrame::new(2, vec![9; 3_000_000]));
    connection.send_batch(batch.clone());
    connection.send(3, &Request::Summaries);
    let mut frames = Vec::new();
    turn_until(&mut poll, &mut connection, |connection| {
        while let Some(frame) = connection.next_frame().unwrap() {
            frames.push(frame.len());
        }
        frames.len() == 3
    })
    .unwrap();
    assert_eq!(frames[1] + borealis_wire::frame::FRAME_HEADER_BYTES, batch.size_bytes());
    // Later ones as well, one at a time.
    for id in 4..20 {
        connection.send(id, &Request::Status);
        connection.flush().unwrap();
        let mut came = false;
        turn_until(&mut poll, &mut connection, |connection| {
            came |= connection.next_frame().unwrap().is_some();
            came
        })
        .unwrap();
    }
    connection.close(poll.registry());
    served.thread.join().unwrap().unwrap();
}

#[test]
fn an_event_loop_is_told_why_it_was_refused() {
    let (authority, other) = (Authority::new("f"), Authority::new("f"));
    let refused = |caller: &Arc<Credentials>, server: Arc<Credentials>, meant: u16| {
        let served = serve(server, PATIENCE);
        let mut poll = Poll::new().unwrap();
        let route = Route::new(&served.endpoint, Some(caller));
        let mut connection = Connection::open(route, NodeId(meant), poll.registry(), Token(7)).unwrap();
        connection.send(1, &Request::Status);
        let mut has_answer = false;
        let error = turn_until(&mut poll, &mut connection, |connection| {
            has_answer |= connection.next_frame().unwrap().is_some();
            has_answer
        });
        assert!(!has_answer, "it was served");
        connection.close(poll.registry());
        let _ = served.thread.join().unwrap();
        error.unwrap_err().to_string()
    };
    let said = refused(&authority.credentials(INSTANCE), authority.credentials(node(3)), 2);
    assert!(said.contains("where node 2 was meant"), "{said}");
    let said = refused(&other.credentials(INSTANCE), authority.credentials(node(3)), 3);
    assert!(said.contains("the other side's certificate is refused"), "{said}");
    let files = other.issue(INSTANCE, &[], Validity::days(5));
    let mut both = fs::read(&files.authorities).unwrap();
    both.extend(fs::read(authority.fleet.authorities_file()).unwrap());
    fs::write(&files.authorities, both).unwrap();
    let said = refused(&Credentials::load(files).unwrap(), authority.credentials(node(3)), 3);
    assert!(said.contains("the other side refused this process's certificate"), "{said}");
}
