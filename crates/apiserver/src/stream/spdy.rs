//! A SPDY/3.1 session as Kubernetes clients use it (draft-mbelshe-httpbis-spdy-00, version 3 framing): the client opens
//! streams, each with a few headers and bytes in both directions. Flow control is left to TCP, as their library does.
//! Knows nothing of what the streams are for.

use std::{collections::HashMap, sync::LazyLock};

use bytes::{BufMut, Bytes};
use flate2::{Decompress, FlushDecompress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::Connection;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;

const MAX_CONTROL: usize = 64 << 10;
const MAX_HEADERS: usize = 64 << 10;
const MAX_DATA: usize = 4 << 20;
const MAX_STREAMS: usize = 2_000;
/// Frames waiting for a slow reader of one stream before the session waits for it.
const BACKLOG: usize = 64;

/// Streams the client has opened, as they come. Ends with the session.
pub(super) struct Session {
    opened: mpsc::Receiver<Stream>,
}

/// A stream opened by the client.
pub(super) struct Stream {
    pub(super) id: u32,
    /// Names are lower-case.
    headers: Vec<(String, String)>,
    /// Ends when the client has finished sending.
    pub(super) input: mpsc::Receiver<Bytes>,
    /// The client has given the stream up, or the session is over.
    pub(super) gone: CancellationToken,
    output: mpsc::Sender<Vec<u8>>,
}

impl Session {
    /// Takes over the connection.
    pub(super) fn start(io: Connection, stop: CancellationToken) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (frames, queue) = mpsc::channel(BACKLOG);
        let (open, opened) = mpsc::channel(BACKLOG);
        let over = stop.child_token();
        tokio::spawn(write(writer, queue, over.clone()));
        tokio::spawn(async move {
            let mut incoming =
                Incoming { reader, inflate: Inflate::new(), streams: HashMap::new(), frames, open, over: over.clone() };
            tokio::select! {
                ended = incoming.run() => if let Err(error) = ended {
                    tracing::debug!(%error, "a SPDY session ended early");
                },
                () = stop.cancelled() => {}
            }
            over.cancel();
        });
        Self { opened }
    }

    pub(super) async fn accept(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }
}

impl Stream {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Sends bytes to the client; `last` says that no more follow. False: nobody listens any more.
    pub(super) async fn send(&self, bytes: &[u8], last: bool) -> bool {
        let mut frame = Vec::with_capacity(bytes.len() + 8);
        frame.put_u32(self.id);
        let flags = if last { u32::from(FLAG_FIN) << 24 } else { 0 };
        // Callers send what fits a read buffer, far below the 24 bits there are.
        frame.put_u32(flags | u32::try_from(bytes.len()).unwrap_or(0));
        frame.extend_from_slice(bytes);
        self.output.send(frame).await.is_ok()
    }
}

async fn write(mut writer: WriteHalf<Connection>, mut queue: mpsc::Receiver<Vec<u8>>, over: CancellationToken) {
    loop {
        let frame = tokio::select! {
            frame = queue.recv() => frame,
            () = over.cancelled() => None,
        };
        let Some(mut bytes) = frame else { break };
        while bytes.len() < 64 << 10 {
            let Ok(more) = queue.try_recv() else { break };
            bytes.extend_from_slice(&more);
        }
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            break;
        }
    }
    over.cancel();
    let _ = writer.shutdown().await;
}

/// The client's end of a stream, as the reader sees it.
struct Inlet {
    /// `None` once the client has sent its last byte.
    input: Option<mpsc::Sender<Bytes>>,
    gone: CancellationToken,
}

struct Incoming<R> {
    reader: R,
    inflate: Inflate,
    streams: HashMap<u32, Inlet>,
    frames: mpsc::Sender<Vec<u8>>,
    open: mpsc::Sender<Stream>,
    over: CancellationToken,
}

impl Incoming<ReadHalf<Connection>> {
    async fn run(&mut self) -> std::io::Result<()> {
        loop {
            let mut head = [0; 8];
            match self.reader.read_exact(&mut head).await {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            }
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).unwrap_or(usize::MAX);
            let control = first & 0x8000_0000 != 0;
            if length > if control { MAX_CONTROL } else { MAX_DATA } {
                return Err(invalid("a frame is too large"));
            }
            let mut body = vec![0; length];
            self.reader.read_exact(&mut body).await?;
            if !control {
                self.data(first, flags, body.into()).await;
            } else if !self.control(first, flags, &body).await? {
                return Ok(());
            }
        }
    }

    async fn data(&mut self, id: u32, flags: u8, bytes: Bytes) {
        let Some(inlet) = self.streams.get_mut(&id) else { return };
        if let Some(input) = &inlet.input
            && !bytes.is_empty()
        {
            // A stream nobody reads any more is no reason to end the session.
            let _ = input.send(bytes).await;
        }
        if flags & FLAG_FIN != 0 {
            inlet.input = None;
        }
    }

    /// False: the client says goodbye.
    async fn control(&mut self, first: u32, flags: u8, body: &[u8]) -> std::io::Result<bool> {
        let version = (first >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(invalid("not SPDY/3.1"));
        }
        let word = |at: usize| body.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) & 0x7fff_ffff);
        match first as u16 {
            SYN_STREAM => {
                let (Some(id), Some(block)) = (word(0), body.get(10..)) else {
                    return Err(invalid("a short SYN_STREAM"));
                };
                let headers = self.inflate.headers(block)?;
                self.open(id, flags, headers).await?;
            }
            RST_STREAM => {
                if let Some(inlet) = word(0).and_then(|id| self.streams.remove(&id)) {
                    inlet.gone.cancel();
                }
            }
            PING => {
                let mut frame = control_head(PING, 4);
                frame.extend_from_slice(body.get(..4).ok_or_else(|| invalid("a short PING"))?);
                let _ = self.frames.send(frame).await;
            }
            GOAWAY => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    async fn open(&mut self, id: u32, flags: u8, headers: Vec<(String, String)>) -> std::io::Result<()> {
        self.streams.retain(|_, inlet| !inlet.gone.is_cancelled());
        if id.is_multiple_of(2) || self.streams.contains_key(&id) {
            return Err(invalid("a stream with a number that is not free"));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(invalid("too many streams at once"));
        }
        let (input, receiver) = mpsc::channel(BACKLOG);
        let gone = self.over.child_token();
        let input = (flags & FLAG_FIN == 0).then_some(input);
        self.streams.insert(id, Inlet { input, gone: gone.clone() });
        // The reply's header block: a zlib stream may hold stored blocks only, and an empty list needs no more. The empty
        // block after it is a flush, without which Go's reader waits for what follows.
        let mut block = Vec::new();
        if !self.inflate.replied {
            block.extend_from_slice(&[0x78, 0x01]);
            self.inflate.replied = true;
        }
        block.extend_from_slice(&[0x00, 0x04, 0x00, 0xfb, 0xff, 0, 0, 0, 0]);
        block.extend_from_slice(&[0x00, 0x00, 0x00, 0xff, 0xff]);
        let mut reply = control_head(SYN_REPLY, 4 + block.len());
        reply.put_u32(id);
        reply.extend_from_slice(&block);
        let stream = Stream { id, headers, input: receiver, gone, output: self.frames.clone() };
        if self.frames.send(reply).await.is_err() || self.open.send(stream).await.is_err() {
            return Err(invalid("the session is over"));
        }
        Ok(())
    }
}

fn control_head(kind: u16, length: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + length);
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    // Flags are 0; every frame this side makes is a few bytes long.
    frame.put_u32(u32::try_from(length).unwrap_or(0));
    frame
}

fn invalid(why: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

/// The header blocks of a session are one zlib stream.
struct Inflate {
    zlib: Decompress,
    /// The other direction's zlib header was sent.
    replied: bool,
}

impl Inflate {
    fn new() -> Self {
        Self { zlib: Decompress::new(true), replied: false }
    }

    fn headers(&mut self, block: &[u8]) -> std::io::Result<Vec<(String, String)>> {
        let plain = self.inflate(block)?;
        let mut rest = &plain[..];
        let count = take_u32(&mut rest)?;
        let mut headers = Vec::new();
        for _ in 0..count.min(100) {
            let name = take_text(&mut rest)?.to_ascii_lowercase();
            headers.push((name, take_text(&mut rest)?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, block: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let mut buffer = [0; 4096];
        let mut rest = block;
        loop {
            let (before_in, before_out) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress(rest, &mut buffer, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - before_in).unwrap_or(0);
            let made = usize::try_from(self.zlib.total_out() - before_out).unwrap_or(0);
            rest = rest.get(used..).unwrap_or_default();
            plain.extend_from_slice(&buffer[..made]);
            match result {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&DICTIONARY).map_err(|_| invalid("headers use another dictionary"))?;
                }
                Err(_) => return Err(invalid("headers are not zlib")),
                Ok(_) if plain.len() > MAX_HEADERS => return Err(invalid("too many headers")),
                Ok(_) if rest.is_empty() && made < buffer.len() => return Ok(plain),
                Ok(_) if used == 0 && made == 0 => return Err(invalid("headers go on after their end")),
                Ok(_) => {}
            }
        }
    }
}

fn take_u32(rest: &mut &[u8]) -> std::io::Result<u32> {
    let (head, tail) = rest.split_at_checked(4).ok_or_else(|| invalid("headers are cut short"))?;
    *rest = tail;
    Ok(u32::from_be_bytes([head[0], head[1], head[2], head[3]]))
}

fn take_text(rest: &mut &[u8]) -> std::io::Result<String> {
    let length = usize::try_from(take_u32(rest)?).unwrap_or(usize::MAX);
    let (head, tail) = rest.split_at_checked(length).ok_or_else(|| invalid("headers are cut short"))?;
    *rest = tail;
    String::from_utf8(head.to_vec()).map_err(|_| invalid("a header is not UTF-8"))
}

/// The dictionary of section 2.6.10.1: words with their length before them, then plain text.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1_423);
    for word in WORDS.split('|') {
        dictionary.put_u32(u32::try_from(word.len()).unwrap_or(0));
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
});

const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|\
                     allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
                     content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|\
                     host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|\
                     max-forwards|pragma|proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|\
                     transfer-encoding|upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|\
                     HTTP/1.1|url|public|set-cookie|keep-alive|origin";
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
                    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
                    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
                    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
                    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
                    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};
    use tokio::io::AsyncRead;

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1_423, 0xe3c6_a7c2));
    }

    /// The client's side, for tests.
    pub(in crate::stream) struct Client {
        zlib: Compress,
    }

    impl Client {
        pub(in crate::stream) fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            zlib.set_dictionary(&DICTIONARY).expect("dictionary");
            Self { zlib }
        }

        pub(in crate::stream) fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = Vec::new();
            plain.put_u32(headers.len() as u32);
            for text in headers.iter().flat_map(|(n, v)| [n, v]) {
                plain.put_u32(text.len() as u32);
                plain.extend_from_slice(text.as_bytes());
            }
            let mut block = Vec::with_capacity(4096);
            self.zlib.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("compress");
            let mut frame = control_head(SYN_STREAM, 10 + block.len());
            frame.put_u32(id);
            frame.extend_from_slice(&[0; 6]);
            frame.extend_from_slice(&block);
            frame
        }

        pub(in crate::stream) fn data(id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
            let mut frame = Vec::new();
            frame.put_u32(id);
            frame.put_u32(u32::from(last) << 24 | bytes.len() as u32);
            frame.extend_from_slice(bytes);
            frame
        }
    }

    /// A frame as a client reads it: control kind or stream, flags, body.
    pub(in crate::stream) async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Option<(u32, u8, Vec<u8>)> {
        let mut head = [0; 8];
        io.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
        io.read_exact(&mut body).await.ok()?;
        Some((u32::from_be_bytes([head[0], head[1], head[2], head[3]]), head[4], body))
    }

    #[tokio::test]
    async fn streams_open_talk_and_end() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut session = Session::start(Box::new(server), CancellationToken::new());
        let mut spdy = Client::new();
        for (id, port) in [(1, "80"), (3, "8080")] {
            let frame = spdy.open(id, &[("Streamtype", "data"), ("port", port)]);
            client.write_all(&frame).await.expect("open");
            let mut stream = session.accept().await.expect("stream");
            assert_eq!((stream.id, stream.header("streamtype"), stream.header("port")), (id, "data", port));
            let (kind, _, body) = read_frame(&mut client).await.expect("reply");
            assert_eq!((kind as u16, &body[..4]), (SYN_REPLY, &id.to_be_bytes()[..]));
            // The blocks of both replies are one zlib stream that says "no headers".
            client.write_all(&Client::data(id, b"hello", false)).await.expect("data");
            client.write_all(&Client::data(id, b"", true)).await.expect("end");
            assert_eq!(stream.input.recv().await.as_deref(), Some(&b"hello"[..]));
            assert_eq!(stream.input.recv().await, None);
            assert!(stream.send(b"bye", true).await);
            assert_eq!(read_frame(&mut client).await, Some((id, FLAG_FIN, b"bye".to_vec())));
        }
        let mut ping = control_head(PING, 4);
        ping.put_u32(7);
        client.write_all(&ping).await.expect("ping");
        assert_eq!(read_frame(&mut client).await.map(|(_, _, body)| body), Some(vec![0, 0, 0, 7]));
        drop(client);
        assert!(session.accept().await.is_none());
    }

    #[tokio::test]
    async fn nonsense_ends_the_session() {
        for bytes in [&[0xff_u8; 64][..], b"GET / HTTP/1.1\r\n\r\n", &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]] {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let mut session = Session::start(Box::new(server), CancellationToken::new());
            client.write_all(bytes).await.expect("write");
            client.shutdown().await.expect("shutdown");
            assert!(session.accept().await.is_none());
        }
    }
}
