use super::*;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

const PATIENCE: Timeouts = Timeouts { connect: Duration::from_secs(5), call: Duration::from_millis(200) };

/// A socket that somebody listens on, and the folder that has it.
fn listen() -> (tempfile::TempDir, UnixListener, Endpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("3");
    (folder, UnixListener::bind(&path).unwrap(), Endpoint::Unix(path))
}

/// A node that answers as many requests as there are replies, then stays silent until its caller goes.
fn node_that_says(replies: Vec<(u64, Reply)>) -> (Endpoint, JoinHandle<()>) {
    let (folder, listener, address) = listen();
    let thread = std::thread::spawn(move || {
        let _folder = folder;
        let (mut stream, _) = listener.accept().unwrap();
        let mut payload = Vec::new();
        for (request_id, reply) in replies {
            read_frame(&mut stream, &mut payload).unwrap();
            write_frame(&mut stream, &encode_message(request_id, &reply)).unwrap();
        }
        while matches!(read_frame(&mut stream, &mut payload), Ok(true)) {}
    });
    (address, thread)
}

fn welcome(node: u16) -> Reply {
    Reply::Welcome { node: NodeId(node), segments: Vec::new() }
}

fn connect(address: &Endpoint) -> Result<NodeClient, ClientError> {
    NodeClient::connect(address, VolumeId(1), NodeId(3), Caller::Client, PATIENCE)
}

#[test]
fn silence_is_called_silence() {
    let (address, thread) = node_that_says(vec![(1, welcome(3))]);
    let mut client = connect(&address).unwrap();
    let error = client.status().unwrap_err();
    assert_eq!(error.to_string(), format!("node 3 at {address}: no answer within 200 ms"));
    // An answer that comes now could be taken for that of the next request.
    let error = client.status().unwrap_err();
    assert!(client.is_broken() && error.to_string().contains("given up after an earlier failure"), "{error}");
    drop(client);
    thread.join().unwrap();
    assert_eq!(in_words(Timeouts::default().call), "10 s");
}

#[test]
fn an_end_is_called_an_end() {
    let (folder, listener, address) = listen();
    let thread = std::thread::spawn(move || drop((listener.accept().unwrap(), folder)));
    let error = connect(&address).unwrap_err();
    assert_eq!(error.to_string(), format!("node 3 at {address} closed the connection"));
    thread.join().unwrap();
}

#[test]
fn a_welcome_by_another_node_is_no_connection() {
    let (address, thread) = node_that_says(vec![(1, welcome(4))]);
    let error = connect(&address).unwrap_err();
    assert!(error.to_string().contains("node 4 answered where node 3 was meant"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_reply_to_another_request_is_refused() {
    let (address, thread) = node_that_says(vec![(1, welcome(3)), (7, Reply::Summaries(Vec::new()))]);
    let mut client = connect(&address).unwrap();
    let error = client.summaries().unwrap_err();
    assert!(error.to_string().contains("reply 7 where 2 was due"), "{error}");
    assert!(client.is_broken());
    drop(client);
    thread.join().unwrap();
}

#[test]
#[should_panic(expected = "invariant awaited-replies-were-asked-for is broken")]
fn a_reply_that_nobody_asked_for_is_not_waited_for() {
    let (address, _thread) = node_that_says(vec![(1, welcome(3))]);
    let _ = connect(&address).unwrap().receive();
}

#[test]
#[should_panic(expected = "invariant call-awaits-one-reply is broken")]
fn a_call_among_other_replies_is_noticed() {
    let (address, _thread) = node_that_says(vec![(1, welcome(3))]);
    let mut client = connect(&address).unwrap();
    client.send(&Request::Summaries).unwrap();
    let _ = client.status();
}
