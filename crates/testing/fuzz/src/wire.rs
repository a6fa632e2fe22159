//! What peers send: frames, messages and batches.

use borealis_wire::frame::frame_header;
use borealis_wire::message::{decode_payload, encode_message};
use borealis_wire::{BatchBuilder, BatchReader, FrameBuffer, Payload, Reply, Request, read_frame};

use crate::Input;

/// Payloads of one stream.
const FRAMES_MAX: usize = 32;

/// A stream of frames, with the right lengths and checksums or without, cut anywhere.
///
/// # Panics
/// When the two readers of frames disagree, or a message that is accepted does not survive the round trip.
pub fn proto_frame(data: &[u8]) {
    let mut input = Input::new(data);
    let raw = input.u8() & 1 == 1;
    let piece_bytes = usize::from(input.u8()) + 1;
    let mut stream = Vec::new();
    if raw {
        stream.extend_from_slice(input.rest());
    }
    for _ in 0..FRAMES_MAX {
        if input.is_empty() {
            break;
        }
        let payload = input.counted();
        stream.extend_from_slice(&frame_header(payload));
        stream.extend_from_slice(payload);
    }

    let mut reader = stream.as_slice();
    let (mut whole, mut payload) = (Vec::new(), Vec::new());
    while matches!(read_frame(&mut reader, &mut payload), Ok(true)) {
        whole.push(payload.clone());
    }
    let (mut buffer, mut pieces) = (FrameBuffer::default(), Vec::new());
    'stream: for piece in stream.chunks(piece_bytes) {
        buffer.extend(piece);
        loop {
            match buffer.next_frame() {
                Ok(Some(payload)) => pieces.push(payload.to_vec()),
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    assert_eq!(whole, pieces, "the two readers of frames disagree");
    for payload in &whole {
        check_payload(payload);
    }
}

fn check_payload(payload: &[u8]) {
    if let Ok(Payload::Append { batch, .. }) = decode_payload::<Request>(payload) {
        redo_batch(batch);
    }
    if let Ok(Payload::Message { request_id, message }) = decode_payload::<Request>(payload) {
        let encoded = encode_message(request_id, &message);
        let Ok(Payload::Message { message: again, .. }) = decode_payload::<Request>(&encoded) else {
            unreachable!("what was encoded decodes");
        };
        assert_eq!(message, again, "a request changes in the round trip");
    }
    if let Ok(Payload::Message { request_id, message }) = decode_payload::<Reply>(payload) {
        let encoded = encode_message(request_id, &message);
        let Ok(Payload::Message { message: again, .. }) = decode_payload::<Reply>(&encoded) else {
            unreachable!("what was encoded decodes");
        };
        assert_eq!(message, again, "a reply changes in the round trip");
    }
}

/// A redo batch of any bytes.
///
/// # Panics
/// When the records of one that is accepted do not survive the round trip.
pub fn redo_batch(data: &[u8]) {
    let Ok((header, reader)) = BatchReader::new(data) else { return };
    let records: Vec<_> = reader.map_while(Result::ok).collect();
    let mut builder = BatchBuilder::new(&header);
    for record in &records {
        assert!(!record.groups().is_empty(), "a record of no group");
        builder.push_form(record.span, record.form, &record.links, record.bytes);
    }
    let encoded = builder.finish();
    let (again, reader) = BatchReader::new(&encoded).expect("what was encoded decodes");
    let again_records: Vec<_> = reader.map(|record| record.expect("what was encoded decodes")).collect();
    assert_eq!((header, records), (again, again_records), "a batch changes in the round trip");
}
