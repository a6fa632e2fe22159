//! The server and its callers: right ones, wrong ones, slow ones.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use borealis_metrics::server::MetricsServer;
use borealis_spec::MetricsAddress;

fn start(address: &str) -> MetricsServer {
    let address = address.parse().expect("an address");
    MetricsServer::start(&address, || "borealis 1\n".to_owned()).expect("started")
}

fn connect(server: &MetricsServer) -> TcpStream {
    let MetricsAddress::Loopback(address) = server.address() else { panic!("it listens on TCP") };
    TcpStream::connect(address).expect("somebody listens")
}

fn ask(mut stream: impl Read + Write, request: &[u8]) -> String {
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn metrics_are_shown_on_loopback_and_on_a_unix_socket() {
    let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
                    Content-Length: 11\r\nConnection: close\r\n\r\nborealis 1\n";
    let request = b"GET /metrics?x=1 HTTP/1.1\r\nHost: here\r\n\r\n";
    let server = start("127.0.0.1:0");
    assert_eq!(ask(connect(&server), request), expected);
    assert_eq!(ask(connect(&server), request), expected, "again");

    let folder = tempfile::tempdir().expect("temporary folder");
    // Longer than a socket's name may be.
    let long = folder.path().join("x".repeat(120));
    std::fs::create_dir(&long).expect("made");
    let path = long.join("metrics.sock");
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("old")).expect("bound"));
    std::fs::rename(folder.path().join("old"), &path).expect("an old socket is in its place");
    let server = start(path.to_str().expect("text"));
    std::os::unix::fs::symlink(&path, folder.path().join("short")).expect("linked");
    let stream = UnixStream::connect(folder.path().join("short")).expect("somebody listens");
    assert_eq!(ask(stream, request), expected);
    drop(server);
    assert!(UnixStream::connect(folder.path().join("short")).is_err(), "nobody listens any more");
}

#[test]
fn everything_else_is_refused_in_words() {
    let server = start("127.0.0.1:0");
    let refused = |request: &[u8], expected: &str| {
        let answer = ask(connect(&server), request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{answer}");
        assert!(!answer.contains("borealis 1"), "{answer}");
    };
    refused(b"GET / HTTP/1.1\r\n\r\n", "404 Not Found");
    refused(b"GET /metrics/ HTTP/1.0\n\n", "404 Not Found");
    refused(b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed");
    refused(b"GET /metrics\r\n\r\n", "400 Bad Request");
    refused(b"\x16\x03\x01\x02\r\n\r\n", "400 Bad Request");
    refused(&vec![b'a'; 9 << 10], "431 Request Header Fields Too Large");
}

#[test]
fn a_caller_that_hangs_keeps_others_waiting_for_a_bounded_time() {
    let server = start("127.0.0.1:0");
    let mut hangs = connect(&server);
    hangs.write_all(b"GET /metrics HTTP/1.1\r\n").expect("sent");
    let began = Instant::now();
    let answer = ask(connect(&server), b"GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.ends_with("borealis 1\n"), "{answer}");
    let waited = began.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let server = start("127.0.0.1:0");
    assert!(MetricsServer::start(server.address(), String::new).is_err());
}
