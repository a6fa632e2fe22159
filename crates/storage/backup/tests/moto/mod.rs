//! A real server that speaks S3, moto, in a process of its own. Its conditional writes are right; not every substitute's are.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use borealis_backup::location::CloudLocation;

pub struct Moto {
    process: Child,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

/// Held while it is installed: tests of one program run at the same time.
static INSTALLING: Mutex<()> = Mutex::new(());

/// `moto_server`: what `BOREALIS_TEST_MOTO` names, or from PyPI, once, into a folder below target. `None` without Python.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("BOREALIS_TEST_MOTO") {
        return Some(PathBuf::from(named));
    }
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto");
    let program = environment.join("bin/moto_server");
    let ready = environment.join("ready");
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if !ready.exists() {
        let python = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
        if !python.is_ok_and(|status| status.success()) {
            return None;
        }
        let run = |command: &mut Command| {
            assert!(command.status().expect("it starts").success(), "{command:?} failed")
        };
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
        run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", "moto[server]"]));
        std::fs::write(&ready, "").expect("a file below target");
    }
    Some(program)
}

impl Moto {
    /// Starts a server with one bucket, `shop`. `None`, and a line that says so, if there is no Python.
    pub fn start() -> Option<Moto> {
        let Some(program) = program() else {
            println!("NOT TESTED: S3, for python3 is not installed");
            return None;
        };
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let process = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let moto = Moto { process, port };
        let begin = Instant::now();
        while !moto.make_bucket() {
            assert!(begin.elapsed() < Duration::from_secs(60), "moto does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(moto)
    }

    fn make_bucket(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request =
            "PUT /shop HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.contains(" 200 ")
    }

    /// What the server says of an object, in small letters.
    #[allow(dead_code)] // Each test program uses its part.
    pub fn headers_of(&self, key: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("moto listens");
        // It looks for a signature, and does not check it.
        let signed = "AWS4-HMAC-SHA256 Credential=AKIA/20270101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let request = format!(
            "HEAD /shop/{key} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {signed}\r\nConnection: close\r\n\r\n"
        );
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).expect("moto listens");
        stream.read_to_string(&mut answer).expect("moto answers");
        assert!(answer.contains(" 200 "), "{answer}");
        answer.to_ascii_lowercase()
    }

    #[allow(dead_code)] // Each test program uses its part.
    pub fn location(&self, prefix: &str) -> CloudLocation {
        let url = format!("s3://shop/{prefix}?endpoint=http://127.0.0.1:{}&region=us-east-1", self.port);
        match url.parse() {
            Ok(borealis_backup::location::Location::Cloud(location)) => location,
            other => panic!("{url} is {other:?}"),
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
