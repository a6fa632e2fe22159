//! Certificates that were taken back, between parts of a fleet over real sockets.

#![allow(clippy::unwrap_used)] // A broken step should stop the test.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use borealis_client::stream::Stream;
use borealis_client::{Credentials, Endpoint, Route, expiry_of};
use borealis_fleet::{Fleet, Selection, Validity};
use borealis_spec::{Role, TlsFiles};
use borealis_types::{InstanceId, NodeId, VolumeId};

const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than between two looks at the files.
const A_LOOK: Duration = Duration::from_millis(1100);
const NODE: Role = Role::Node(NodeId(3));
const INSTANCE: Role = Role::Instance(VolumeId(1), InstanceId(1));
const OTHER_INSTANCE: Role = Role::Instance(VolumeId(1), InstanceId(2));

struct Authority {
    folder: tempfile::TempDir,
    fleet: Fleet,
}

impl Authority {
    fn new() -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let fleet =
            Fleet::init(&folder.path().join("fleet"), "f".parse().unwrap(), Validity::days(100)).unwrap();
        Authority { folder, fleet }
    }

    fn files(&self, role: Role) -> TlsFiles {
        let name = format!("{role:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "");
        TlsFiles::in_folder(&self.folder.path().join(name))
    }

    fn issue(&self, role: Role) -> Arc<Credentials> {
        let out = self.files(role).key.parent().unwrap().to_owned();
        self.fleet.issue(role, &["127.0.0.1".to_owned()], Validity::days(50), &out).unwrap();
        Credentials::load(self.files(role)).unwrap()
    }

    fn revoke(&self, role: Role) {
        assert_eq!(self.fleet.revoke(&Selection::Part(role), SystemTime::now()).unwrap().len(), 1);
    }

    /// Gives a part the file of authorities of now, which it sees with its next look.
    fn give(&self, role: Role) {
        fs::copy(self.fleet.authorities_file(), self.files(role).authorities).unwrap();
        thread::sleep(A_LOOK);
    }
}

type Served = JoinHandle<io::Result<()>>;

/// A node that gives one caller back what it says until it ends.
fn serve(credentials: Arc<Credentials>) -> (Endpoint, Served) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let mut stream = Stream::accept(listener.accept()?.0, &credentials)?;
        stream.shake_hands(Instant::now() + PATIENCE)?.expect("it is TLS");
        let mut bytes = [0; 64];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                count => stream.write_all(&bytes[..count])?,
            }
        }
    });
    (Endpoint::Tls { host: "127.0.0.1".to_owned(), port }, thread)
}

fn connect(endpoint: &Endpoint, credentials: &Arc<Credentials>) -> io::Result<Stream> {
    let mut stream = Stream::connect(Route::new(endpoint, Some(credentials)), NodeId(3), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(b"word")?;
    stream.read_exact(&mut [0; 4])
}

/// What each side has of one connection: the caller's end first.
fn talk(node: &Arc<Credentials>, caller: &Arc<Credentials>) -> (io::Result<()>, io::Result<()>) {
    let (endpoint, served) = serve(Arc::clone(node));
    let said = connect(&endpoint, caller).and_then(|mut stream| exchange(&mut stream));
    (said, served.join().unwrap())
}

#[track_caller]
fn assert_says(result: io::Result<()>, expected: &str) {
    let said = result.expect_err(expected).to_string();
    assert!(said.contains(expected), "`{expected}` is not in `{said}`");
}

#[test]
fn a_node_refuses_a_revoked_caller_and_no_other_one() {
    let authority = Authority::new();
    let (node, stolen, other) =
        (authority.issue(NODE), authority.issue(INSTANCE), authority.issue(OTHER_INSTANCE));
    talk(&node, &stolen).0.unwrap();
    authority.revoke(INSTANCE);
    // It counts where the list is, and nowhere else.
    talk(&node, &stolen).0.unwrap();
    authority.give(NODE);
    let (caller, served) = talk(&node, &stolen);
    assert_says(caller, "the other side refused this process's certificate: it was revoked");
    assert_says(served, "the other side's certificate is refused: it was revoked");
    talk(&node, &other).0.unwrap();
    // With a new certificate the part goes on.
    let renewed = authority.issue(INSTANCE);
    talk(&node, &renewed).0.unwrap();
}

#[test]
fn a_caller_refuses_a_revoked_node() {
    let authority = Authority::new();
    let (node, caller) = (authority.issue(NODE), authority.issue(INSTANCE));
    authority.revoke(NODE);
    authority.give(INSTANCE);
    let (said, served) = talk(&node, &caller);
    assert_says(said, "the other side's certificate is refused: it was revoked");
    assert_says(served, "the other side refused this process's certificate: it was revoked");
    talk(&authority.issue(NODE), &caller).0.unwrap();
    // Whoever finds its own certificate in the list need not try.
    authority.revoke(INSTANCE);
    authority.give(INSTANCE);
    let own = Credentials::load(authority.files(INSTANCE)).expect_err("it is revoked").to_string();
    assert!(own.contains("cannot be used: it was revoked"), "{own}");
    talk(&authority.issue(NODE), &caller).0.unwrap_err();
}

#[test]
fn a_connection_that_stands_ends_when_the_list_comes() {
    let authority = Authority::new();
    let (node, stolen, other) =
        (authority.issue(NODE), authority.issue(INSTANCE), authority.issue(OTHER_INSTANCE));
    let (endpoint, served) = serve(Arc::clone(&node));
    let (other_endpoint, other_served) = serve(Arc::clone(&node));
    let mut stream = connect(&endpoint, &stolen).unwrap();
    let mut other_stream = connect(&other_endpoint, &other).unwrap();
    exchange(&mut stream).unwrap();
    exchange(&mut other_stream).unwrap();
    authority.revoke(INSTANCE);
    authority.give(NODE);
    exchange(&mut stream).expect_err("nothing of it is taken any more");
    assert_says(served.join().unwrap(), "refused: it was revoked");
    exchange(&mut other_stream).unwrap();
    drop(other_stream);
    other_served.join().unwrap().unwrap();
    // The other way: a caller takes nothing more of a revoked node.
    let (endpoint, served) = serve(node);
    let mut stream = connect(&endpoint, &other).unwrap();
    exchange(&mut stream).unwrap();
    authority.revoke(NODE);
    authority.give(OTHER_INSTANCE);
    assert_says(exchange(&mut stream), "refused: it was revoked");
    drop(stream);
    let _ = served.join().unwrap();
}

#[test]
fn a_list_that_cannot_be_used_is_refused_with_the_reason() {
    let authority = Authority::new();
    let node = authority.issue(NODE);
    authority.issue(INSTANCE);
    authority.revoke(INSTANCE);
    let good = fs::read_to_string(authority.fleet.authorities_file()).unwrap();
    let files = authority.files(NODE);
    let refused = |text: &str, expected: &str| {
        fs::write(&files.authorities, text).unwrap();
        let said = Credentials::load(files.clone()).expect_err(expected).to_string();
        let path = files.authorities.display().to_string();
        assert!(
            said.contains(expected) && said.contains(&path) && said.contains("Take the file anew"),
            "{said}"
        );
    };
    let (before, list) = good.split_at(good.find("-----BEGIN X509 CRL").unwrap());
    refused(&format!("{before}-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"), "it is damaged");
    // Cut where the list is, it says nothing that could be relied on.
    fs::write(&files.authorities, &good[..good.len() - 40]).unwrap();
    let said = Credentials::load(files.clone()).expect_err("it was cut").to_string();
    assert!(said.contains("missing section end"), "{said}");
    refused(&format!("{good}{list}"), "two of one authority");
    let stranger = Authority::new();
    stranger.issue(INSTANCE);
    stranger.revoke(INSTANCE);
    let foreign = fs::read_to_string(stranger.fleet.authorities_file()).unwrap();
    let foreign = &foreign[foreign.find("-----BEGIN X509 CRL").unwrap()..];
    // Of an authority that has the same name and another key.
    refused(&format!("{before}{foreign}"), "no authority in the file has signed it");
    // A bit in the middle: the entry, or what is signed, is another one.
    let lines: Vec<&str> = list.lines().collect();
    let middle = lines.len() / 2;
    let changed: String = lines
        .iter()
        .enumerate()
        .map(|(index, line)| {
            let swapped = if index == middle {
                line.replacen(&line[20..21], if &line[20..21] == "A" { "B" } else { "A" }, 1)
            } else {
                (*line).to_owned()
            };
            swapped + "\n"
        })
        .collect();
    fs::write(&files.authorities, format!("{before}{changed}")).unwrap();
    Credentials::load(files.clone()).expect_err("it was changed");
    // A process that runs goes on with what it has.
    thread::sleep(A_LOOK);
    let other = authority.issue(OTHER_INSTANCE);
    talk(&node, &other).0.unwrap();
    fs::write(&files.authorities, &good).unwrap();
    Credentials::load(files).unwrap();
}

#[test]
fn a_list_that_ran_out_goes_on_counting_and_stops_nobody() {
    let authority = Authority::new();
    let (node, stolen, other) =
        (authority.issue(NODE), authority.issue(INSTANCE), authority.issue(OTHER_INSTANCE));
    // A list is valid for as long as its authority, and a day at least.
    let day = Duration::from_secs(24 * 3600);
    let long_ago = SystemTime::now() - 20 * day;
    let record = authority.fleet.authorities_file().with_file_name("fleet.json");
    let text = fs::read_to_string(&record).unwrap();
    let until = authority.fleet.authorities()[0].valid_until_seconds;
    let earlier = long_ago.duration_since(UNIX_EPOCH).unwrap().as_secs();
    fs::write(&record, text.replace(&until.to_string(), &earlier.to_string())).unwrap();
    let fleet = Fleet::open(record.parent().unwrap()).unwrap();
    fleet.revoke(&Selection::Part(INSTANCE), long_ago).unwrap();
    authority.give(NODE);
    let (caller, _) = talk(&node, &stolen);
    assert_says(caller, "it was revoked");
    talk(&node, &other).0.unwrap();
    Credentials::load(authority.files(NODE)).unwrap();
}

#[test]
fn the_end_of_a_certificate_is_known() {
    let authority = Authority::new();
    let node = authority.issue(NODE);
    let wanted = authority.fleet.certificates().unwrap()[0].certificate.until_seconds;
    assert_eq!(node.expires_seconds(), wanted);
    let (identity, expires) = expiry_of(&authority.files(NODE).certificate).unwrap();
    assert_eq!((identity, expires), (node.identity(), UNIX_EPOCH + Duration::from_secs(wanted)));
    assert!(expiry_of(&authority.files(NODE).key).is_err());
    // A new one is taken by whoever asks, without a connection.
    let out = authority.files(NODE).key.parent().unwrap().to_owned();
    thread::sleep(A_LOOK);
    authority.fleet.issue(NODE, &["h".to_owned()], Validity::days(7), &out).unwrap();
    thread::sleep(A_LOOK);
    assert!(node.expires_seconds() < wanted);
}
