//! Servers that speak S3 badly, slowly or not at all: every failure has its kind, comes in time, and repeats no secret.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_backup::location::{CloudLocation, Location};
use borealis_backup::store::cloud::{CloudStore, CredentialSource, Timeouts};
use borealis_backup::store::{ErrorKind, ObjectStore, ObjectStoreError, Put};

const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_millis(700), request: Duration::from_millis(1500) };

struct Asked {
    /// Method and path.
    line: String,
    /// All headers, as they came.
    headers: String,
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut headers) = (String::new(), String::new());
    reader.read_line(&mut line).ok()?;
    loop {
        let before = headers.len();
        reader.read_line(&mut headers).ok()?;
        if headers[before..].trim().is_empty() {
            break;
        }
    }
    let length = headers.lines().find_map(|header| {
        let (name, value) = header.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok())?
    });
    std::io::copy(&mut reader.by_ref().take(length.unwrap_or(0)), &mut std::io::sink()).ok()?;
    (!line.is_empty()).then_some(Asked { line, headers })
}

/// A server that gives each request what `answer` says, byte by byte, and closes; `None` never answers. It serves until the test ends.
fn server(answer: impl Fn(&Asked) -> Option<String> + Send + Sync + 'static) -> CloudLocation {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let Some(asked) = read_request(&stream) else { return };
                match answer(&asked) {
                    Some(text) => drop((&stream).write_all(text.as_bytes())),
                    None => std::thread::sleep(Duration::from_secs(20)),
                }
            });
        }
    });
    location(port)
}

fn location(port: u16) -> CloudLocation {
    match format!("s3://shop/p?endpoint=http://127.0.0.1:{port}&region=us-east-1").parse() {
        Ok(Location::Cloud(location)) => location,
        other => panic!("{other:?}"),
    }
}

fn answer(status: &str, body: &str) -> String {
    let headers = "ETag: \"1\"\r\nLast-Modified: Fri, 01 Jan 2027 00:00:00 GMT\r\nConnection: close\r\n";
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn open(location: CloudLocation) -> CloudStore {
    let credentials =
        CredentialSource::of([("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush")]);
    CloudStore::new(location, credentials, TIMEOUTS).expect("a thread")
}

type Request<'a> = &'a dyn Fn() -> Result<(), ObjectStoreError>;

/// Every request of a store fails, with one kind and in time.
fn all_fail(location: CloudLocation, kind: ErrorKind) {
    let store = open(location);
    let requests: [(&str, Request<'_>); 4] = [
        ("put", &|| store.put_new("a/b", b"1").map(drop)),
        ("get", &|| store.get("a/b").map(drop)),
        ("list", &|| store.list("a/", None).map(drop)),
        ("delete", &|| store.delete("a/b")),
    ];
    for (name, request) in requests {
        let begin = Instant::now();
        let error = request().expect_err(name);
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{name} took {:?}", begin.elapsed());
        assert!(!error.to_string().contains("hush"), "{error}");
    }
    assert!(!store.refuses_duplicates(), "what was not asked is not promised");
}

#[test]
fn nobody_listens() {
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    all_fail(location(port), ErrorKind::Down);
}

#[test]
fn it_accepts_and_never_answers() {
    all_fail(server(|_| None), ErrorKind::Slow);
}

#[test]
fn it_closes_without_an_answer() {
    all_fail(server(|_| Some(String::new())), ErrorKind::Down);
}

#[test]
fn it_answers_with_errors() {
    for (status, code, kind) in [
        ("403 Forbidden", "InvalidAccessKeyId", ErrorKind::Denied),
        ("403 Forbidden", "AccessDenied", ErrorKind::Denied),
        ("503 Service Unavailable", "SlowDown", ErrorKind::Slow),
        ("507 Insufficient Storage", "XMinioStorageFull", ErrorKind::Full),
        ("404 Not Found", "NoSuchBucket", ErrorKind::Missing),
        ("500 Internal Server Error", "InternalError", ErrorKind::Down),
        ("400 Bad Request", "MalformedXML", ErrorKind::Broken),
    ] {
        let body = format!("<Error><Code>{code}</Code></Error>");
        let is_missing = kind == ErrorKind::Missing;
        let location = server(move |_| Some(answer(status, &body)));
        if is_missing {
            // What is not there is deleted.
            assert_eq!(open(location.clone()).list("", None).unwrap_err().kind, kind);
            assert_eq!(open(location).delete("a"), Ok(()));
        } else {
            all_fail(location, kind);
        }
    }
}

#[test]
fn a_connection_that_breaks_in_the_middle_gives_no_part_of_an_object() {
    let store = open(server(|asked| {
        let headers =
            "Content-Range: bytes 0-999/1000\r\nETag: \"1\"\r\nLast-Modified: Fri, 01 Jan 2027 00:00:00 GMT";
        assert!(asked.line.starts_with("GET"));
        Some(format!("HTTP/1.1 206 Partial Content\r\n{headers}\r\nContent-Length: 1000\r\n\r\nonly this"))
    }));
    let error = store.get("a/b").unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Down | ErrorKind::Broken), "{error}");
}

#[test]
fn an_answer_that_makes_no_sense_is_no_listing() {
    let store = open(server(|_| Some(answer("200 OK", "<html>Welcome to this hotel's network"))));
    assert_eq!(store.list("", None).unwrap_err().kind, ErrorKind::Broken);
}

#[test]
fn a_server_that_replaces_what_exists_is_found_out() {
    let store = open(server(|asked| {
        let is_there = asked.line.contains("/there");
        Some(match asked.line.split(' ').next() {
            Some("HEAD") if is_there => answer("200 OK", ""),
            Some("HEAD") => answer("404 Not Found", ""),
            Some("DELETE") => answer("204 No Content", ""),
            _ => answer("200 OK", ""),
        })
    }));
    assert_eq!(store.probe(), Ok(false));
    assert!(!store.refuses_duplicates());
    assert_eq!(store.put_new("new", b"1"), Ok(Put::Made));
    assert_eq!(store.put_new("there", b"1"), Ok(Put::Exists));
}

#[test]
fn credentials_that_were_changed_in_their_file_are_read_when_the_store_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let write = |id: &str| {
        std::fs::write(&file, format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = hush\n"))
            .unwrap();
    };
    write("OLD");
    let location = server(|asked| {
        let is_new = asked.headers.contains("Credential=NEW/");
        let refused = "<Error><Code>InvalidAccessKeyId</Code></Error>";
        Some(if is_new { answer("204 No Content", "") } else { answer("403 Forbidden", refused) })
    });
    let source = CredentialSource::of([("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())]);
    let store = CloudStore::new(location, source, TIMEOUTS).expect("a thread");
    assert_eq!(store.delete("a").unwrap_err().kind, ErrorKind::Denied);
    write("NEW");
    assert_eq!(store.delete("a"), Ok(()));
}
