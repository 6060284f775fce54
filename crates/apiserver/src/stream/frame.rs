//! How a program's streams travel between this server and a node: in the bodies of one request and its answer, both at
//! once, as frames of a channel, a length (four bytes, big-endian) and that many bytes.

use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
/// The last frame of a program: a `Status` that says how it ended.
pub(super) const STATUS: u8 = 3;
/// A terminal's size: `{"Width":80,"Height":24}`.
pub(super) const RESIZE: u8 = 4;
/// The channel in its one byte will carry no more.
pub(super) const CLOSE: u8 = 255;

const MAX: usize = 1 << 20;
/// A node reads smaller frames only.
const PIECE: usize = 64 << 10;

/// The bytes as frames of one channel.
pub(super) fn encode(channel: u8, bytes: &[u8]) -> Bytes {
    let mut frames = Vec::with_capacity(bytes.len() + 5);
    for piece in bytes.chunks(PIECE) {
        frames.push(channel);
        frames.extend_from_slice(&u32::try_from(piece.len()).unwrap_or(0).to_be_bytes());
        frames.extend_from_slice(piece);
    }
    frames.into()
}

/// Frames out of a body.
pub(super) struct Frames {
    body: BodyDataStream,
    buffer: BytesMut,
}

impl Frames {
    pub(super) fn new(body: Body) -> Self {
        Self { body: body.into_data_stream(), buffer: BytesMut::new() }
    }

    /// `None` at the end, wherever it comes, and after nonsense.
    pub(super) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if let [channel, a, b, c, d, ..] = self.buffer[..] {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if length > MAX {
                    return None;
                }
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Some((channel, self.buffer.split_to(length).freeze()));
                }
            }
            self.buffer.extend_from_slice(&self.body.next().await?.ok()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_cross_chunks() {
        let all = [encode(STDOUT, b"hello"), encode(STATUS, &[b'x'; 70_000])].concat();
        for size in [1, 3, 7, 100_000] {
            let chunks: Vec<_> = all.chunks(size).map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c))).collect();
            let mut frames = Frames::new(Body::from_stream(futures::stream::iter(chunks)));
            assert_eq!(frames.next().await, Some((STDOUT, Bytes::from_static(b"hello"))));
            assert_eq!(frames.next().await.map(|(channel, bytes)| (channel, bytes.len())), Some((STATUS, PIECE)));
            assert_eq!(frames.next().await.map(|(_, bytes)| bytes.len()), Some(70_000 - PIECE));
            assert_eq!(frames.next().await, None);
        }
        assert_eq!(Frames::new(Body::from(&[1, 255, 255, 255, 255, 0][..])).next().await, None);
    }
}
