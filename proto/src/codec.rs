//! Length-capped framing: a 32-bit big-endian length, then that many bytes of one protobuf message.
//!
//! The cap is checked before a byte of the body is stored, so that a peer cannot make us allocate what it
//! merely announces.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;

use crate::reason::{Reason, Refusal};

/// Largest frame on the control link (256 KiB). An update larger than this is sent in parts.
pub const MAX_CONTROL_FRAME: usize = 256 * 1024;

/// Largest frame that a node sends on the control link (64 KiB).
pub const MAX_NODE_FRAME: usize = 64 * 1024;

/// Largest frame before a node has proven anything (32 KiB).
pub const MAX_ENROL_FRAME: usize = 32 * 1024;

/// Bytes of the length in front of a frame.
pub const HEADER: usize = 4;

/// Takes bytes as they come and gives frames as they complete.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limit: usize,
}

impl FrameDecoder {
    /// A decoder that refuses frames over `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Adds what has arrived. Call [`Self::next_frame`] until it has no more before adding again.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` until more bytes arrive.
    ///
    /// An error is final: the stream has lost its framing and must be closed.
    pub fn next_frame<M: Message + Default>(&mut self) -> Result<Option<M>, Refusal> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = check_length(*header, self.limit)?;
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        decode(&self.buffer.split_to(length)).map(Some)
    }

    /// Whether bytes of an unfinished frame are held: the stream was cut off if it ends now.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// The length of the frame that `header` announces, if `limit` allows it.
pub fn check_length(header: [u8; HEADER], limit: usize) -> Result<usize, Refusal> {
    let length = u32::from_be_bytes(header) as usize;
    if length > limit {
        let detail = format!("a frame of {length} bytes is over the limit of {limit}");
        return Err(Refusal::new(Reason::FrameTooLarge, detail));
    }
    Ok(length)
}

/// One message out of a frame's body.
pub fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Refusal> {
    M::decode(body).map_err(|error| Refusal::new(Reason::FrameMalformed, error.to_string()))
}

/// One message as a frame.
pub fn encode<M: Message>(message: &M, limit: usize) -> Result<BytesMut, Refusal> {
    let length = message.encoded_len();
    if length > limit {
        let detail = format!("a message of {length} bytes is over the limit of {limit}");
        return Err(Refusal::new(Reason::FrameTooLarge, detail));
    }
    let mut frame = BytesMut::with_capacity(HEADER + length);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut frame).map_err(|error| Refusal::new(Reason::FrameTooLarge, error.to_string()))?;
    Ok(frame)
}

#[cfg(test)]
mod tests;
