//! A whole frame around one redo batch, made once for every node that gets the same batch.

use borealis_types::invariant;

use crate::frame::{FRAME_HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::message::{PAYLOAD_HEADER_BYTES, append_header};

/// A complete frame that carries a redo batch. Nodes that need the same batch get the same frame: the request
/// id is part of it, so it is unique to the frame and not to the connection.
#[derive(Debug)]
pub struct BatchFrame {
    head: [u8; FRAME_HEADER_BYTES + PAYLOAD_HEADER_BYTES],
    batch: Vec<u8>,
}

impl BatchFrame {
    /// Puts the headers before an encoded batch.
    ///
    /// # Panics
    /// If the batch is over the frame limit, which records that the decoder accepts never reach.
    #[must_use]
    pub fn new(request_id: u64, batch: Vec<u8>) -> BatchFrame {
        let append = append_header(request_id);
        let length = append.len() + batch.len();
        invariant!("frame-within-limit", length <= MAX_PAYLOAD_BYTES, "a batch of {length} bytes");
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&append), &batch);
        let mut head = [0; FRAME_HEADER_BYTES + PAYLOAD_HEADER_BYTES];
        head[..4].copy_from_slice(&(length as u32).to_le_bytes());
        head[4..8].copy_from_slice(&checksum.to_le_bytes());
        head[8..].copy_from_slice(&append);
        BatchFrame { head, batch }
    }

    /// The encoded batch, without the headers.
    #[must_use]
    pub fn batch(&self) -> &[u8] {
        &self.batch
    }

    /// The bytes on the wire, in two parts so that the batch is never copied: the headers, and the batch.
    #[must_use]
    pub fn parts(&self) -> (&[u8], &[u8]) {
        (&self.head, &self.batch)
    }

    /// Bytes on the wire, headers included.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.head.len() + self.batch.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::decode_payload;
    use crate::{FrameBuffer, Payload, Request};

    #[test]
    fn the_receiver_gets_the_batch_and_its_request_id() {
        let frame = BatchFrame::new(77, vec![3; 500]);
        let mut buffer = FrameBuffer::default();
        let (head, batch) = frame.parts();
        buffer.extend(head);
        buffer.extend(batch);
        let payload = buffer.next_frame().unwrap().unwrap();
        match decode_payload::<Request>(payload).unwrap() {
            Payload::Append { request_id: 77, batch } => assert_eq!(batch, frame.batch()),
            other => panic!("decoded as {other:?}"),
        }
        assert_eq!(frame.size_bytes(), head.len() + batch.len());
    }

    #[test]
    #[should_panic(expected = "invariant frame-within-limit is broken: a batch of")]
    fn a_batch_over_the_frame_limit_is_a_bug_of_the_sender() {
        let _ = BatchFrame::new(1, vec![0; MAX_PAYLOAD_BYTES]);
    }
}
