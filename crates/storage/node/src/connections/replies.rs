//! Replies as frames.

use borealis_wire::frame::MAX_PAYLOAD_BYTES;
use borealis_wire::message::encode_message;
use borealis_wire::{Refusal, Reply};

use crate::open_connections::push_frame;

/// Adds a reply to those that will be sent. One that fits no frame becomes a refusal: the caller asked for too much.
pub(super) fn push_reply(out: &mut Vec<u8>, request_id: u64, reply: &Reply) {
    let mut payload = encode_message(request_id, reply);
    if payload.len() > MAX_PAYLOAD_BYTES {
        let what = format!("the answer has {} bytes, more than a frame holds; ask for less", payload.len());
        payload = encode_message(request_id, &Reply::Refused(Refusal::Misuse(what)));
    }
    push_frame(out, &payload);
}
