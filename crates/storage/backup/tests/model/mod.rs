//! A model of what Google Cloud Storage and Azure Blob Storage answer to the few requests that a backup makes. It is no proof that the
//! real services do the same: it shows that the right thing is asked, in the right words.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use borealis_backup::location::{CloudLocation, Location};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Google,
    Azure,
}

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Without the query, decoded.
    pub path: String,
    /// What stands behind the `?`, as it came.
    pub query: String,
    /// Names in small letters.
    pub headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn option(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(found, _)| *found == name).map(|(_, value)| decoded(value)).next()
    }
}

/// A server with one bucket or container, `shop`. It serves until the test ends.
pub struct Model {
    protocol: Protocol,
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    asked: Vec<Asked>,
    /// It begins each listing at the front, as a server does that does not know the option.
    ignores_offset: bool,
}

impl Model {
    pub fn start(protocol: Protocol, ignores_offset: bool) -> Model {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(State { ignores_offset, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let Some(asked) = read(&stream) else { return };
                    let answer = state.lock().expect("no panic").answer(protocol, asked);
                    drop((&stream).write_all(&answer));
                });
            }
        });
        Model { protocol, port, state }
    }

    /// A place in it; `options` begin with `&` if there are any.
    pub fn location(&self, prefix: &str, options: &str) -> CloudLocation {
        let (scheme, account) = match self.protocol {
            Protocol::Google => ("gs", ""),
            Protocol::Azure => ("az", "&account=trader"),
        };
        let url =
            format!("{scheme}://shop/{prefix}?endpoint=http://127.0.0.1:{}{account}{options}", self.port);
        match url.parse() {
            Ok(Location::Cloud(location)) => location,
            other => panic!("{url} is {other:?}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| digit.expect("two digits") as char);
                u8::from_str_radix(&String::from_iter(digits), 16).expect("hexadecimal digits")
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Asked { method, path: decoded(path), query: query.to_owned(), headers, body })
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    // When it was made, both services say; what a backup does with it is tested elsewhere.
    let always = "ETag: \"1\"\r\nx-goog-generation: 1\r\nLast-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: close\r\n";
    let head = format!("HTTP/1.1 {status}\r\n{always}{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn refused(status: &str, code: &str) -> Vec<u8> {
    answer(status, "", format!("<Error><Code>{code}</Code></Error>").as_bytes())
}

impl State {
    fn answer(&mut self, protocol: Protocol, asked: Asked) -> Vec<u8> {
        self.asked.push(asked.clone());
        let authorized = match (protocol, asked.header("authorization")) {
            (Protocol::Google, Some(said)) => said == "Bearer a-token",
            (Protocol::Azure, Some(said)) => said.starts_with("SharedKey trader:"),
            (Protocol::Azure, None) => asked.option("sig").is_some_and(|signature| signature == "signed"),
            _ => false,
        };
        let missing = if protocol == Protocol::Azure { "BlobNotFound" } else { "NoSuchKey" };
        if !authorized {
            let code = if protocol == Protocol::Azure { "AuthenticationFailed" } else { "AccessDenied" };
            return refused("403 Forbidden", code);
        }
        let Some(path) = asked.path.strip_prefix("/shop") else {
            let code = if protocol == Protocol::Azure { "ContainerNotFound" } else { "NoSuchBucket" };
            return refused("404 Not Found", code);
        };
        let key = path.trim_start_matches('/').to_owned();
        match asked.method.as_str() {
            "PUT" => {
                let is_new_alone = match protocol {
                    Protocol::Google => asked.header("x-goog-if-generation-match") == Some("0"),
                    Protocol::Azure => {
                        assert_eq!(asked.header("x-ms-blob-type"), Some("BlockBlob"));
                        asked.header("if-none-match") == Some("*")
                    }
                };
                if is_new_alone && self.objects.contains_key(&key) {
                    return match protocol {
                        Protocol::Google => refused("412 Precondition Failed", "PreconditionFailed"),
                        Protocol::Azure => refused("409 Conflict", "BlobAlreadyExists"),
                    };
                }
                self.objects.insert(key, asked.body);
                answer(if protocol == Protocol::Azure { "201 Created" } else { "200 OK" }, "", b"")
            }
            "POST" if protocol == Protocol::Azure && asked.option("comp").as_deref() == Some("batch") => {
                self.delete_batch(&asked)
            }
            "DELETE" if self.objects.remove(&key).is_some() => answer("204 No Content", "", b""),
            "HEAD" => match self.objects.get(&key) {
                // A length without a body is what the request is for.
                Some(bytes) => {
                    let mut whole = answer("200 OK", "", bytes);
                    whole.truncate(whole.len() - bytes.len());
                    whole
                }
                None => answer("404 Not Found", "", b""),
            },
            "GET" if key.is_empty() => self.listed(protocol, &asked),
            "GET" => match self.objects.get(&key) {
                Some(bytes) => part(bytes, asked.header("range").expect("parts alone are asked for")),
                None => refused("404 Not Found", missing),
            },
            _ => refused("404 Not Found", missing),
        }
    }

    /// Azure's client deletes one object as a batch of one: requests within a request, each with its own authorization.
    fn delete_batch(&mut self, asked: &Asked) -> Vec<u8> {
        let body = String::from_utf8(asked.body.clone()).expect("text");
        let mut parts = String::new();
        for (number, line) in body.lines().filter(|line| line.starts_with("DELETE ")).enumerate() {
            let target = line.split(' ').nth(1).expect("a target");
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            assert!(
                query.contains("sig=signed") || body.contains("\r\nAuthorization: SharedKey trader:"),
                "each part is authorized: {body}"
            );
            let path = decoded(path);
            let key = path.strip_prefix("/shop/").expect("of this container");
            let status = match self.objects.remove(key) {
                Some(_) => "202 Accepted",
                None => "404 The specified blob does not exist.",
            };
            parts += &format!(
                "--bound\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\nx-ms-version: 2018-11-09\r\n\r\n"
            );
        }
        parts += "--bound--\r\n";
        answer("202 Accepted", "Content-Type: multipart/mixed; boundary=bound\r\n", parts.as_bytes())
    }

    fn listed(&self, protocol: Protocol, asked: &Asked) -> Vec<u8> {
        let google = protocol == Protocol::Google;
        let option = |of_google, of_azure| asked.option(if google { of_google } else { of_azure });
        let expected = option("list-type", "comp").expect("a listing");
        assert_eq!(expected, if google { "2" } else { "list" });
        let prefix = asked.option("prefix").unwrap_or_default();
        let most: usize = option("max-keys", "maxresults").expect("a bound").parse().expect("a number");
        let offset = option("start-after", "startFrom").filter(|_| !self.ignores_offset);
        // Azure begins with the offset itself.
        let begin = match (option("continuation-token", "marker"), offset) {
            (Some(token), _) => Bound::Excluded(token),
            (None, Some(offset)) if google => Bound::Excluded(offset),
            (None, Some(offset)) => Bound::Included(offset),
            (None, None) => Bound::Unbounded,
        };
        let mut found =
            self.objects.range((begin, Bound::Unbounded)).filter(|(key, _)| key.starts_with(&prefix));
        let shown: Vec<(&String, &Vec<u8>)> = found.by_ref().take(most).collect();
        let more = shown.last().filter(|_| found.next().is_some()).map(|(key, _)| key.as_str());
        let object = |(key, bytes): &(&String, &Vec<u8>)| {
            let length = bytes.len();
            if google {
                format!(
                    "<Contents><Key>{key}</Key><Size>{length}</Size><LastModified>1970-01-01T00:00:00.000Z</LastModified><ETag>1</ETag></Contents>"
                )
            } else {
                let made = "<Last-Modified>Thu, 01 Jan 1970 00:00:00 GMT</Last-Modified>";
                format!(
                    "<Blob><Name>{key}</Name><Properties>{made}<Content-Length>{length}</Content-Length><Content-Type>x</Content-Type></Properties></Blob>"
                )
            }
        };
        let objects: String = shown.iter().map(object).collect();
        let text = if google {
            let more = more.map_or_else(String::new, |key| {
                format!("<NextContinuationToken>{key}</NextContinuationToken>")
            });
            format!("<ListBucketResult>{objects}{more}</ListBucketResult>")
        } else {
            format!(
                "<EnumerationResults><Blobs>{objects}</Blobs><NextMarker>{}</NextMarker></EnumerationResults>",
                more.unwrap_or("")
            )
        };
        answer("200 OK", "", text.as_bytes())
    }
}

fn part(bytes: &[u8], range: &str) -> Vec<u8> {
    let (first, last) =
        range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
    let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().expect("a number"));
    if first >= bytes.len() {
        return refused("416 Range Not Satisfiable", "InvalidRange");
    }
    let end = bytes.len().min(last + 1);
    let header = format!("Content-Range: bytes {first}-{}/{}\r\n", end - 1, bytes.len());
    answer("206 Partial Content", &header, &bytes[first..end])
}
