//! The attacks: what is sent on which connection, and what became of it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::stream::Stream;
use borealis_client::{Credentials, Route};
use borealis_spec::Endpoint;
use borealis_types::{NodeId, VolumeEpoch, VolumeId, WriterId};
use borealis_wire::message::{PROTOCOL_VERSION, decode_payload};
use borealis_wire::{Caller, Payload, Reply, Request, read_frame};

use crate::random::Random;
use crate::{Options, Report, frames};

/// Longest wait for an answer: the node's own limits are longer, and an attacker has no patience.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections that an idle holder takes at a time.
const HELD: u64 = 40;

/// A kind of attack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Attack {
    /// Random bytes instead of an introduction.
    Noise,
    /// An introduction to another volume or node, or of another version.
    WrongIntroduction,
    /// An introduction that is cut, damaged or far too long.
    BrokenIntroduction,
    /// A request or an append before the introduction.
    RequestBeforeIntroduction,
    /// The announcement of a frame of up to 4 GiB, and nothing more.
    HugeAnnouncement,
    /// Something to read, with arguments from anywhere.
    Look,
    /// A fence, installation, repair or step of a membership by someone who may only look.
    ForbiddenChange,
    /// An append by someone who is no writer.
    ForbiddenAppend,
    /// An append by a writer whom no node knows, or in an epoch that is over.
    ForgedAppend,
    /// A fence, installation or repair in an epoch that is out of bounds.
    EpochOutOfBounds,
    /// A step of a membership that cannot be, by someone who says that it is the controller.
    ForgedMembership,
    /// A frame whose payload was damaged, with a checksum that is right.
    DamagedRequest,
    /// A frame with a checksum that is wrong.
    WrongChecksum,
    /// The same frame again and again, the introduction too.
    Replay,
    /// A frame that is larger than its sender may send, up to 60 MB.
    Oversized,
    /// A repair of up to sixty million empty batches.
    EmptyBatches,
    /// Requests whose answers are never read.
    UnreadAnswers,
    /// Connections that are held, introduced or not, and say nothing.
    Idle,
    /// A frame that comes a byte at a time and never ends.
    Drip,
    /// A frame that stops in the middle, and the end of the connection.
    Cut,
    /// Of TLS: noise, frames in the clear, a handshake that hangs, drips or shows another fleet's certificate.
    BrokenHandshake,
}

const ALL: [Attack; 20] = [
    Attack::Noise,
    Attack::WrongIntroduction,
    Attack::BrokenIntroduction,
    Attack::RequestBeforeIntroduction,
    Attack::HugeAnnouncement,
    Attack::Look,
    Attack::ForbiddenChange,
    Attack::ForbiddenAppend,
    Attack::ForgedAppend,
    Attack::EpochOutOfBounds,
    Attack::ForgedMembership,
    Attack::DamagedRequest,
    Attack::WrongChecksum,
    Attack::Replay,
    Attack::Oversized,
    Attack::EmptyBatches,
    Attack::UnreadAnswers,
    Attack::Idle,
    Attack::Drip,
    Attack::Cut,
];

/// What became of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Answered,
    Refused,
    Closed,
    Unanswered,
}

pub(crate) fn attack_until(options: &Options, thread: u64, deadline: Instant) -> Report {
    let mut attacker = Attacker {
        volume: options.volume,
        options,
        random: Random::new(options.seed, thread),
        report: Report::default(),
        deadline,
    };
    let is_over_tls = options.nodes.iter().any(|(_, endpoint)| matches!(endpoint, Endpoint::Tls { .. }));
    while Instant::now() < deadline {
        let attack = match is_over_tls && attacker.random.below(5) == 0 {
            true => Attack::BrokenHandshake,
            false => *attacker.random.pick(&ALL),
        };
        // Broken connections are what it is about.
        let _ = attacker.attack(attack);
    }
    attacker.report
}

struct Attacker<'a> {
    volume: VolumeId,
    options: &'a Options,
    random: Random,
    report: Report,
    deadline: Instant,
}

impl Attacker<'_> {
    fn attack(&mut self, attack: Attack) -> io::Result<()> {
        match attack {
            Attack::Noise
            | Attack::WrongIntroduction
            | Attack::BrokenIntroduction
            | Attack::RequestBeforeIntroduction
            | Attack::HugeAnnouncement => self.as_stranger(attack),
            Attack::Idle => self.hold(),
            Attack::Drip => self.drip(),
            Attack::BrokenHandshake => self.break_handshake(),
            Attack::UnreadAnswers => self.leave_unread(),
            _ => self.introduced(attack),
        }
    }

    fn count(&mut self, attack: Attack, outcome: Outcome) {
        let outcomes = self.report.outcomes.entry(attack).or_default();
        outcomes.tried += 1;
        match outcome {
            Outcome::Answered => outcomes.answered += 1,
            Outcome::Refused => outcomes.refused += 1,
            Outcome::Closed => outcomes.closed += 1,
            Outcome::Unanswered => outcomes.unanswered += 1,
        }
    }

    fn connect(&mut self, attack: Attack) -> io::Result<(NodeId, Stream)> {
        let (node, endpoint) = self.random.pick(&self.options.nodes).clone();
        let stream = Stream::connect(self.route(&endpoint, &self.options.members), node, PATIENCE).and_then(
            |mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            },
        );
        if stream.is_err() {
            self.count(attack, Outcome::Unanswered);
        }
        Ok((node, stream?))
    }

    /// The way to a node with one of these certificates.
    fn route<'a>(&mut self, endpoint: &'a Endpoint, certificates: &'a [Arc<Credentials>]) -> Route<'a> {
        let certificate = (!certificates.is_empty()).then(|| self.random.pick(certificates));
        Route::new(endpoint, certificate)
    }

    /// Does to the handshake of TLS what can be done without a certificate of the fleet.
    fn break_handshake(&mut self) -> io::Result<()> {
        let attack = Attack::BrokenHandshake;
        let (node, endpoint) = self.random.pick(&self.options.nodes).clone();
        let Endpoint::Tls { host, port } = &endpoint else { return Ok(()) };
        let way = self.random.below(5);
        if way == 0 {
            let route = self.route(&endpoint, &self.options.strangers);
            let outcome = match Stream::connect(route, node, PATIENCE) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    let caller = self.looker();
                    ask(&mut stream, &frames::message(1, &self.hello(node, caller)))
                }
                Err(_) => Outcome::Closed,
            };
            self.count(attack, outcome);
            return Ok(());
        }
        let Ok(mut stream) = TcpStream::connect((host.as_str(), *port)) else {
            self.count(attack, Outcome::Unanswered);
            return Ok(());
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        // The beginning of a handshake record of 512 bytes.
        let mut bytes = vec![22, 3, 1, 2, 0];
        match way {
            1 => {
                let count = 1 + self.random.below(5000) as usize;
                bytes = self.random.bytes(count);
            }
            2 => bytes = frames::message(1, &self.hello(node, Caller::Recovery)),
            3 => {
                let count = 1 + self.random.below(600) as usize;
                bytes.extend(self.random.bytes(count));
            }
            _ => {
                for byte in &bytes {
                    stream.write_all(&[*byte])?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                bytes.clear();
            }
        }
        // It may be gone already.
        let _ = stream.write_all(&bytes);
        // An alert at most, and the end; or a silence that is as long as the node's patience.
        let outcome = match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => Outcome::Closed,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Outcome::Unanswered
            }
            Err(_) => Outcome::Closed,
        };
        self.count(attack, outcome);
        Ok(())
    }

    fn hello(&self, node: NodeId, caller: Caller) -> Request {
        Request::Hello {
            protocol: PROTOCOL_VERSION,
            volume: self.volume,
            node,
            caller,
            memberships: Vec::new(),
        }
    }

    /// Anyone but a recovery or writer that could be taken for the rightful one.
    fn looker(&mut self) -> Caller {
        match self.random.below(3) {
            0 => Caller::Client,
            1 => Caller::Reader {
                epoch: VolumeEpoch(self.random.number()),
                writer: WriterId(self.random.next() | 1),
            },
            _ => Caller::Peer(NodeId(1 + self.random.below(6) as u16)),
        }
    }

    fn caller_for(&mut self, attack: Attack) -> Caller {
        let wrong_writer = Caller::Writer {
            epoch: VolumeEpoch(self.random.number()),
            writer: WriterId(self.random.next() | 1),
        };
        match attack {
            Attack::ForbiddenAppend if self.random.below(3) == 0 => Caller::Recovery,
            Attack::ForgedAppend => wrong_writer,
            Attack::ForgedMembership => Caller::Controller,
            Attack::EpochOutOfBounds | Attack::Oversized | Attack::EmptyBatches | Attack::UnreadAnswers => {
                match self.random.below(4) {
                    0 => wrong_writer,
                    1 => self.looker(),
                    _ => Caller::Recovery,
                }
            }
            _ => self.looker(),
        }
    }

    fn as_stranger(&mut self, attack: Attack) -> io::Result<()> {
        let (node, mut stream) = self.connect(attack)?;
        let caller = self.looker();
        let hello = self.hello(node, caller);
        let bytes = match attack {
            Attack::Noise => {
                let count = 1 + self.random.below(5000) as usize;
                self.random.bytes(count)
            }
            Attack::WrongIntroduction => {
                let mut wrong = hello;
                if let Request::Hello { protocol, volume, node, .. } = &mut wrong {
                    match self.random.below(3) {
                        0 => *protocol = self.random.number() as u16,
                        1 => volume.0 ^= 1 << self.random.below(128),
                        _ => *node = NodeId(10 + self.random.below(1000) as u16),
                    }
                }
                frames::message(1, &wrong)
            }
            Attack::BrokenIntroduction => {
                let mut payload = borealis_wire::message::encode_message(1, &hello);
                match self.random.below(2) {
                    0 => frames::damage(&mut self.random, &mut payload),
                    _ => payload.resize(300 + self.random.below(100_000) as usize, 0),
                }
                frames::framed(&payload)
            }
            Attack::RequestBeforeIntroduction => match self.random.below(3) {
                0 => frames::append(&mut self.random, VolumeEpoch(1)),
                1 => frames::message(1, &frames::a_change(&mut self.random, VolumeEpoch(2))),
                _ => frames::message(1, &frames::a_look(&mut self.random)),
            },
            _ => {
                let mut header = (self.random.next() as u32).to_le_bytes().to_vec();
                header.extend([0; 4]);
                header
            }
        };
        let outcome = ask(&mut stream, &bytes);
        self.count(attack, outcome);
        Ok(())
    }

    fn introduce(&mut self, attack: Attack, caller: Caller) -> io::Result<Stream> {
        let (node, mut stream) = self.connect(attack)?;
        let hello = frames::message(1, &self.hello(node, caller));
        match ask(&mut stream, &hello) {
            Outcome::Answered => Ok(stream),
            outcome => {
                self.count(attack, outcome);
                Err(io::ErrorKind::ConnectionRefused.into())
            }
        }
    }

    /// Some frames of one kind on an introduced connection, until one ends it.
    fn introduced(&mut self, attack: Attack) -> io::Result<()> {
        let caller = self.caller_for(attack);
        let mut stream = self.introduce(attack, caller)?;
        for _ in 0..1 + self.random.below(50) {
            let bytes = self.frame(attack, caller);
            let outcome = ask(&mut stream, &bytes);
            self.count(attack, outcome);
            if attack == Attack::Cut || outcome == Outcome::Closed || Instant::now() > self.deadline {
                break;
            }
        }
        Ok(())
    }

    fn frame(&mut self, attack: Attack, caller: Caller) -> Vec<u8> {
        let random = &mut self.random;
        let claimed = match caller {
            Caller::Writer { epoch, .. } => epoch,
            _ => VolumeEpoch(random.number()),
        };
        match attack {
            Attack::ForbiddenChange => frames::message(random.number(), &frames::a_change(random, claimed)),
            Attack::ForbiddenAppend | Attack::ForgedAppend => frames::append(random, claimed),
            Attack::EpochOutOfBounds => {
                let wanted =
                    *random.pick(&[u64::MAX, u64::MAX - 1, 1 << 48, 1 << 63, (1 << 48) - 1, 1 << 40]);
                frames::message(random.number(), &frames::a_change(random, VolumeEpoch(wanted)))
            }
            Attack::ForgedMembership => frames::message(random.number(), &frames::an_impossible_step(random)),
            Attack::DamagedRequest => {
                let mut payload =
                    borealis_wire::message::encode_message(random.number(), &frames::a_look(random));
                frames::damage(random, &mut payload);
                frames::framed(&payload)
            }
            Attack::WrongChecksum => {
                let mut frame = frames::message(1, &frames::a_look(random));
                frame[4] ^= 1 << random.below(8);
                frame
            }
            Attack::Replay => {
                let again = match random.below(2) {
                    0 => self.hello(NodeId(1), caller),
                    _ => frames::a_look(random),
                };
                frames::message(1, &again).repeat(20)
            }
            Attack::Oversized => {
                let length = 1 << (13 + random.below(13));
                let length = (length + random.below(length)).min(60_000_000) as usize;
                frames::oversized(random, length)
            }
            Attack::EmptyBatches => frames::empty_batches(1 << (8 + random.below(18))),
            Attack::Cut => {
                let mut frame = frames::message(1, &frames::a_look(random));
                let length = 1 + random.below(frame.len() as u64 - 1) as usize;
                frame.truncate(length);
                frame
            }
            _ => frames::message(random.number(), &frames::a_look(random)),
        }
    }

    fn hold(&mut self) -> io::Result<()> {
        let mut held = Vec::new();
        for _ in 0..HELD {
            if self.random.below(2) == 0 {
                held.push(self.connect(Attack::Idle)?.1);
            } else {
                let caller = self.looker();
                let Ok(stream) = self.introduce(Attack::Idle, caller) else { continue };
                held.push(stream);
            }
            self.count(Attack::Idle, Outcome::Answered);
        }
        let until = (Instant::now() + PATIENCE).min(self.deadline);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        Ok(())
    }

    fn drip(&mut self) -> io::Result<()> {
        let caller = self.looker();
        let mut stream = self.introduce(Attack::Drip, caller)?;
        let frame = frames::message(1, &frames::a_look(&mut self.random));
        for byte in &frame[..frame.len() - 1] {
            if stream.write_all(&[*byte]).is_err() {
                self.count(Attack::Drip, Outcome::Closed);
                return Ok(());
            }
            if Instant::now() > self.deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.count(Attack::Drip, Outcome::Unanswered);
        Ok(())
    }

    /// Many at a time ask until the node takes no more, and read nothing: large answers, whose turns they hold, or small
    /// ones, whose senders wait for room.
    fn leave_unread(&mut self) -> io::Result<()> {
        let caller = self.caller_for(Attack::UnreadAnswers);
        let is_large = self.random.below(2) == 0;
        let mut held = Vec::new();
        for _ in 0..HELD {
            let Ok(mut stream) = self.introduce(Attack::UnreadAnswers, caller) else { continue };
            stream.set_write_timeout(Some(Duration::from_millis(20)))?;
            let outcome = loop {
                let group = borealis_types::GroupId(self.random.below(4) as u16);
                let above = borealis_types::Lsn(0);
                let request = match is_large {
                    true => Request::ReadTail { group, above, limit_bytes: u32::MAX },
                    false => Request::Status,
                };
                match stream.write_all(&frames::message(1, &request).repeat(100)) {
                    Ok(()) if Instant::now() < self.deadline => {}
                    Err(error)
                        if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
                    {
                        break Outcome::Closed;
                    }
                    _ => break Outcome::Unanswered,
                }
            };
            self.count(Attack::UnreadAnswers, outcome);
            held.push(stream);
        }
        let until = (Instant::now() + PATIENCE).min(self.deadline);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        Ok(())
    }
}

/// Sends bytes and reads one answer.
fn ask(stream: &mut Stream, bytes: &[u8]) -> Outcome {
    if let Err(error) = stream.write_all(bytes) {
        // A node that closes while it is sent something may have said why.
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            return Outcome::Unanswered;
        }
    }
    let mut payload = Vec::new();
    match read_frame(&mut Limited(stream), &mut payload) {
        Ok(true) => match decode_payload::<Reply>(&payload) {
            Ok(Payload::Message { message: Reply::Refused(_), .. }) => Outcome::Refused,
            _ => Outcome::Answered,
        },
        Ok(false) => Outcome::Closed,
        Err(borealis_wire::FrameError::Io(error))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Outcome::Unanswered
        }
        Err(_) => Outcome::Closed,
    }
}

/// Reads by way of a reference, so that [`read_frame`] takes a stream that is used again.
struct Limited<'a>(&'a mut Stream);

impl Read for Limited<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}
