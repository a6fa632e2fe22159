//! One introduced caller: its frames are read, and answered in the order they came.

use std::io;
use std::time::Instant;

use borealis_types::invariant;
use borealis_wire::message::decode_payload;
use borealis_wire::{Caller, Payload, Refusal, Reply, Request, roles};

use super::appends::Appends;
use super::ended::Ended;
use super::frame_memory::FrameMemory;
use super::introduction::holds_promise;
use super::receiver::{Fill, Receiver};
use super::replies::push_reply;
use super::requests::Requests;
use crate::open_connections::Connection;

/// Replies are sent when this much of them has gathered, or when there is nothing more to answer.
const REPLY_GATHER_BYTES: usize = 128 << 10;

/// The requests of one introduced caller.
pub(super) struct Session<'a> {
    caller: Caller,
    memory: &'a FrameMemory,
    requests: &'a Requests,
    appends: Appends<'a>,
    connection: &'a Connection,
    /// Replies that were made and not sent yet, as frames.
    out: Vec<u8>,
    /// A reply says that the caller goes by another membership: with that it is over.
    is_over: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        caller: Caller,
        memory: &'a FrameMemory,
        requests: &'a Requests,
        appends: Appends<'a>,
        connection: &'a Connection,
    ) -> Session<'a> {
        invariant!("served-after-introduction", connection.is_introduced(), "{}", connection.address());
        Session { caller, memory, requests, appends, connection, out: Vec::new(), is_over: false }
    }

    /// Serves the caller until either side ends the connection.
    pub(super) fn run(&mut self, receiver: &mut Receiver) -> Result<(), Ended> {
        loop {
            self.judge(receiver)?;
            while let Some(payload) = receiver.next_frame()? {
                self.handle(payload)?;
                receiver.handled();
                self.end_if_over()?;
                self.judge(receiver)?;
            }
            if !self.appends.is_empty() && !self.appends.is_full() {
                match receiver.poll()? {
                    Fill::Bytes => continue,
                    Fill::Nothing | Fill::End => {}
                }
            }
            self.finish_appends()?;
            self.end_if_over()?;
            self.send_replies()?;
            match receiver.wait()? {
                Fill::Bytes => {}
                Fill::Nothing if receiver.is_mid_frame() => {
                    return Err(Ended::Garbage("a frame stopped in the middle".to_owned()));
                }
                Fill::Nothing => {}
                Fill::End if receiver.is_mid_frame() => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Fill::End => return Ok(()),
            }
        }
    }

    /// Judges the frame that is being received before the rest of it is.
    fn judge(&self, receiver: &mut Receiver) -> Result<(), Ended> {
        let (caller, store) = (&self.caller, &*self.requests.store);
        receiver.judge(
            roles::JUDGED_BYTES,
            self.memory,
            &|| holds_promise(store, caller),
            &mut |length, begin| {
                // The promise is asked for only if it matters: it takes the store's lock.
                if roles::judge(caller, false, length, begin).is_ok() {
                    return Ok(());
                }
                roles::judge(caller, holds_promise(store, caller), length, begin)
                    .map_err(|error| error.to_string())
            },
        )
    }

    fn handle(&mut self, payload: &[u8]) -> Result<(), Ended> {
        let received = Instant::now();
        self.connection.note_request();
        match decode_payload::<Request>(payload) {
            Ok(Payload::Append { request_id, batch }) => {
                self.appends.take(request_id, batch, received);
                if self.appends.is_full() {
                    self.finish_appends()?;
                }
            }
            Ok(Payload::Message { request_id, message }) => {
                self.finish_appends()?;
                self.appends.assert_none_pending();
                self.answer(request_id, message)?;
            }
            Err(error) => return Err(Ended::Garbage(error.to_string())),
        }
        if self.out.len() >= REPLY_GATHER_BYTES {
            self.send_replies()?;
        }
        Ok(())
    }

    fn answer(&mut self, request_id: u64, request: Request) -> Result<(), Ended> {
        let made_for = self.connection.made_for();
        if !request.kind().has_large_answer() {
            let reply = self.requests.answer(&self.caller, made_for, request);
            self.is_over |= ends_connection(&reply);
            push_reply(&mut self.out, request_id, &reply);
            return Ok(());
        }
        let holds_promise = holds_promise(&self.requests.store, &self.caller);
        let Some(_turn) = self.requests.large_answers.turn(&self.caller, holds_promise) else {
            let busy = Refusal::Busy("too many large answers are under way; ask again".to_owned());
            push_reply(&mut self.out, request_id, &Reply::Refused(busy));
            return Ok(());
        };
        push_reply(&mut self.out, request_id, &self.requests.answer(&self.caller, made_for, request));
        // The turn lasts until the answer is no longer in memory.
        self.send_replies()?;
        Ok(())
    }

    /// Makes the pending appends durable and answers them.
    fn finish_appends(&mut self) -> Result<(), Ended> {
        if self.appends.is_empty() {
            return Ok(());
        }
        let (out, is_over) = (&mut self.out, &mut self.is_over);
        let answered = self.appends.answer(|request_id, reply| {
            *is_over |= ends_connection(reply);
            push_reply(out, request_id, reply);
        });
        self.send_replies()?;
        self.appends.after_replies(answered);
        Ok(())
    }

    /// Ends the connection, once everything is said, of a caller that goes by another membership. It comes again with the one
    /// that it was told, and counts from what it hears then.
    fn end_if_over(&mut self) -> Result<(), Ended> {
        if !self.is_over {
            return Ok(());
        }
        self.finish_appends()?;
        self.send_replies()?;
        Err(Ended::OtherMembership)
    }

    fn send_replies(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.connection.send(&self.out)?;
            self.out.clear();
            self.out.shrink_to(REPLY_GATHER_BYTES);
        }
        Ok(())
    }
}

fn ends_connection(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(Refusal::OtherMembership { .. }))
}
