//! Stands between the nodes and an object store, and does what a network and a provider may do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the proxy does with a connection, from this moment on, also with those that are open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mood {
    /// Passes on what it gets.
    Well,
    /// Takes connections, and never says anything.
    Silent,
    /// Closes every connection at once.
    Down,
    /// Closes each connection in the middle of what the client says.
    Cutting,
    /// Says to every request that the credentials will not do.
    Refusing,
    /// Says to every request that there is no room.
    Full,
}

const MOODS: [Mood; 6] = [Mood::Well, Mood::Silent, Mood::Down, Mood::Cutting, Mood::Refusing, Mood::Full];
/// How much of a request passes before the connection is cut.
const CUT_AFTER_BYTES: usize = 700;

struct Shared {
    mood: AtomicU8,
    has_ended: AtomicBool,
    target: SocketAddr,
    open: Mutex<Vec<TcpStream>>,
    requests: AtomicU64,
}

impl Shared {
    fn mood(&self) -> Mood {
        MOODS[usize::from(self.mood.load(Ordering::SeqCst))]
    }

    fn close_all(&self) {
        for stream in self.open.lock().expect("nobody panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A proxy on a port of its own.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of a port on 127.0.0.1, and well.
    pub fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            mood: AtomicU8::new(Mood::Well as u8),
            has_ended: AtomicBool::new(false),
            target: (Ipv4Addr::LOCALHOST, target).into(),
            open: Mutex::default(),
            requests: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.has_ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Proxy { port, shared, thread: Some(thread) }
    }

    /// Changes what it does. Connections that are open end.
    pub fn become_(&self, mood: Mood) {
        self.shared.mood.store(mood as u8, Ordering::SeqCst);
        self.shared.close_all();
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::SeqCst);
        self.shared.close_all();
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn refusal(status: &str, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn serve(shared: &Shared, mut client: TcpStream) {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let Ok(kept) = client.try_clone() else { return };
    shared.open.lock().expect("nobody panics").push(kept);
    match shared.mood() {
        Mood::Well => pass(shared, client, None),
        Mood::Cutting => pass(shared, client, Some(CUT_AFTER_BYTES)),
        // The copy that is kept holds it open.
        Mood::Down => drop(client.shutdown(Shutdown::Both)),
        Mood::Silent => {
            let mut sink = [0; 4096];
            while client.read(&mut sink).is_ok_and(|count| count > 0) {}
        }
        Mood::Refusing => refuse(client, &refusal("403 Forbidden", "InvalidAccessKeyId")),
        Mood::Full => refuse(client, &refusal("507 Insufficient Storage", "InsufficientCapacity")),
    }
}

/// Answers a request of which it waits for no more than comes within a moment.
fn refuse(mut client: TcpStream, answer: &str) {
    let _ = client.set_read_timeout(Some(Duration::from_millis(50)));
    let mut sink = [0; 65_536];
    while client.read(&mut sink).is_ok_and(|count| count > 0) {}
    let _ = client.write_all(answer.as_bytes());
    let _ = client.shutdown(Shutdown::Write);
}

/// Passes both ways, of what the client says no more than `limit` bytes.
fn pass(shared: &Shared, mut client: TcpStream, limit: Option<usize>) {
    let Ok(mut server) = TcpStream::connect(shared.target) else { return };
    let (Ok(mut from), Ok(mut to)) = (server.try_clone(), client.try_clone()) else { return };
    let answers = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    match limit {
        None => drop(std::io::copy(&mut client, &mut server)),
        Some(limit) => drop(std::io::copy(&mut (&mut client).take(limit as u64), &mut server)),
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    let _ = answers.join();
}
