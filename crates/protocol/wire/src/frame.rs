//! Framing: `length: u32 | checksum: u32 | payload`, both numbers little-endian.
//!
//! The checksum is CRC-32C of the payload. The length comes first and is checked against
//! [`MAX_PAYLOAD_BYTES`] before anything is allocated, so garbage on a port costs its sender a closed
//! connection and the receiver eight bytes.

use std::io::{self, Read, Write};

use borealis_types::invariant;

/// Bytes before the payload: its length and its checksum.
pub const FRAME_HEADER_BYTES: usize = 8;

/// The largest payload either side accepts. A batch carries at most one record beyond its size goal, and longer records
/// than a mebibyte come in pieces (decision 21); values and lists come in parts.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;

/// Why a frame was refused.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than [`MAX_PAYLOAD_BYTES`]; most likely it does not speak this protocol.
    #[error(
        "a frame of {0} bytes was announced (limit {MAX_PAYLOAD_BYTES}); the peer does not speak Borealis"
    )]
    TooLarge(usize),
    /// The payload does not match its checksum.
    #[error("a frame fails its checksum")]
    Checksum,
    /// The connection ended or failed in the middle of a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The eight bytes that precede `payload`.
///
/// # Panics
/// If the payload is over [`MAX_PAYLOAD_BYTES`]: senders split before that.
#[must_use]
pub fn frame_header(payload: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    invariant!(
        "frame-within-limit",
        payload.len() <= MAX_PAYLOAD_BYTES,
        "a payload of {} bytes",
        payload.len()
    );
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4..].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    header
}

/// Writes one frame.
///
/// # Errors
/// When the connection fails.
pub fn write_frame(writer: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.extend_from_slice(&frame_header(payload));
    frame.extend_from_slice(payload);
    writer.write_all(&frame)
}

/// Reads one frame's payload into `payload`, replacing what it held. `Ok(false)` is a clean end of stream.
///
/// # Errors
/// When the frame is refused or the connection fails, including in the middle of a frame.
pub fn read_frame(reader: &mut impl Read, payload: &mut Vec<u8>) -> Result<bool, FrameError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    let mut filled = 0;
    while filled < header.len() {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (length, checksum) = split_header(header);
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLarge(length));
    }
    payload.clear();
    // Grows with what arrives, so an announced length alone cannot make us allocate.
    let read = reader.by_ref().take(length as u64).read_to_end(payload)?;
    if read < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if crc32c::crc32c(payload) != checksum {
        return Err(FrameError::Checksum);
    }
    Ok(true)
}

fn split_header(header: [u8; FRAME_HEADER_BYTES]) -> (usize, u32) {
    let [a, b, c, d, e, f, g, h] = header;
    (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]))
}

/// Cuts frames out of a byte stream that arrives in pieces (for non-blocking sockets).
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that were handed out already.
    consumed: usize,
}

impl FrameBuffer {
    /// Adds what the socket delivered.
    pub fn extend(&mut self, bytes: &[u8]) {
        invariant!(
            "frames-come-from-what-arrived",
            self.consumed <= self.bytes.len(),
            "{} of {} bytes handed out",
            self.consumed,
            self.bytes.len()
        );
        if self.consumed > 0 && self.consumed >= self.bytes.len() / 2 {
            self.bytes.drain(..self.consumed);
            self.consumed = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The announced length of the next payload, and what has come of it. For those who judge a frame before they
    /// receive all of it.
    #[must_use]
    pub fn announced(&self) -> Option<(usize, &[u8])> {
        let rest = &self.bytes[self.consumed..];
        let (header, payload) = rest.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let (length, _) = split_header(*header);
        Some((length, &payload[..length.min(payload.len())]))
    }

    /// The next complete payload, if it is all here.
    ///
    /// # Errors
    /// When the frame is refused; the connection is then of no use.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let rest = &self.bytes[self.consumed..];
        let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let (length, checksum) = split_header(*header);
        if length > MAX_PAYLOAD_BYTES {
            return Err(FrameError::TooLarge(length));
        }
        let start = self.consumed + FRAME_HEADER_BYTES;
        let Some(payload) = self.bytes.get(start..start + length) else { return Ok(None) };
        if crc32c::crc32c(payload) != checksum {
            return Err(FrameError::Checksum);
        }
        self.consumed = start + length;
        invariant!(
            "frames-come-from-what-arrived",
            self.consumed <= self.bytes.len(),
            "{} of {} bytes handed out",
            self.consumed,
            self.bytes.len()
        );
        Ok(Some(payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8), cut in 1usize..64) {
            let mut stream = Vec::new();
            for payload in &payloads {
                write_frame(&mut stream, payload).unwrap();
            }
            let mut buffer = FrameBuffer::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                buffer.extend(piece);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(&seen, &payloads);
            let mut reader = stream.as_slice();
            let mut payload = Vec::new();
            for expected in &payloads {
                prop_assert!(read_frame(&mut reader, &mut payload).unwrap());
                prop_assert_eq!(&payload, expected);
            }
            prop_assert!(!read_frame(&mut reader, &mut payload).unwrap());
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut payload = Vec::new();
            let _ = read_frame(&mut bytes.as_slice(), &mut payload);
            let mut buffer = FrameBuffer::default();
            buffer.extend(&bytes);
            let _ = buffer.next_frame();
        }
    }

    #[test]
    #[should_panic(expected = "invariant frame-within-limit is broken: a payload of")]
    fn a_payload_over_the_limit_is_a_bug_of_the_sender() {
        let _ = frame_header(&vec![0; MAX_PAYLOAD_BYTES + 1]);
    }

    #[test]
    #[should_panic(expected = "invariant frames-come-from-what-arrived is broken: 9 of 0 bytes")]
    fn a_buffer_that_handed_out_what_never_came_is_noticed() {
        let mut buffer = FrameBuffer { bytes: Vec::new(), consumed: 9 };
        buffer.extend(b"more");
    }

    #[test]
    fn a_frame_is_announced_before_it_is_whole() {
        let mut stream = Vec::new();
        write_frame(&mut stream, b"acknowledge").unwrap();
        write_frame(&mut stream, b"next").unwrap();
        let mut buffer = FrameBuffer::default();
        buffer.extend(&stream[..7]);
        assert_eq!(buffer.announced(), None);
        buffer.extend(&stream[7..10]);
        assert_eq!(buffer.announced(), Some((11, b"ac".as_slice())));
        buffer.extend(&stream[10..]);
        assert_eq!(buffer.announced(), Some((11, b"acknowledge".as_slice())));
        buffer.next_frame().unwrap();
        assert_eq!(buffer.announced(), Some((4, b"next".as_slice())));
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut stream = Vec::new();
        write_frame(&mut stream, b"acknowledge").unwrap();
        stream[FRAME_HEADER_BYTES + 3] ^= 1;
        assert!(matches!(read_frame(&mut stream.as_slice(), &mut Vec::new()), Err(FrameError::Checksum)));
    }

    #[test]
    fn an_announced_gigabyte_is_refused_before_it_is_allocated() {
        let mut stream = (1u32 << 30).to_le_bytes().to_vec();
        stream.extend([0; 4]);
        assert!(matches!(read_frame(&mut stream.as_slice(), &mut Vec::new()), Err(FrameError::TooLarge(_))));
    }
}
