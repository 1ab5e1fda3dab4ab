//! Length-capped messages on QUIC streams.

use prost::Message;
use quinn::{RecvStream, SendStream};
use warren_proto::codec::{self, FrameDecoder};
use warren_proto::reason::{Reason, Refusal};

/// Bytes taken from a stream at once.
const CHUNK: usize = 16 * 1024;

/// The sending half of a stream.
#[derive(Debug)]
pub(super) struct Sender {
    stream: SendStream,
    limit: usize,
}

impl Sender {
    pub(super) const fn new(stream: SendStream, limit: usize) -> Self {
        Self { stream, limit }
    }

    /// Sends one message; waits while the other side takes no more.
    pub(super) async fn send<M: Message>(&mut self, message: &M) -> Result<(), Refusal> {
        let frame = codec::encode(message, self.limit)?.freeze();
        self.stream.write_chunk(frame).await.map_err(lost)
    }

    /// Ends the stream and waits until all of it has arrived, or the connection is gone.
    pub(super) async fn finish(&mut self) {
        if self.stream.finish().is_ok() {
            let _ = self.stream.stopped().await;
        }
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct Receiver {
    stream: RecvStream,
    decoder: FrameDecoder,
}

impl Receiver {
    pub(super) fn new(stream: RecvStream, limit: usize) -> Self {
        Self { stream, decoder: FrameDecoder::new(limit) }
    }

    /// The next message; none at the stream's orderly end. May be dropped while it waits: nothing is lost.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Refusal> {
        loop {
            if let Some(message) = self.decoder.next_frame()? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(CHUNK, true).await {
                Ok(Some(chunk)) => self.decoder.extend(&chunk.bytes),
                Ok(None) if self.decoder.is_partial() => {
                    return Err(Refusal::new(Reason::FrameMalformed, "the stream ended within a frame"));
                }
                Ok(None) => return Ok(None),
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// The next message of an exchange in which one must come.
    pub(super) async fn expect<M: Message + Default>(&mut self, what: &str) -> Result<M, Refusal> {
        self.next()
            .await?
            .ok_or_else(|| Refusal::new(Reason::FrameUnexpected, format!("the stream ended where {what} was expected")))
    }
}

fn lost(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(Reason::FrameUnexpected, format!("the stream is lost: {error}"))
}
