//! TCP (RFC 7766): queries may follow one another without waiting, answers come as soon as they are known, and a
//! connection on which nothing happens is closed. One task per connection; what is ready leaves in one write.

use std::{cell::RefCell, io, net::SocketAddr, sync::Arc, time::Duration};

use model::names::Directory;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Reaction, Shared, Turns};
use crate::{
    metrics::{Tally, Transport},
    transfer::Transfer,
};

/// RFC 7766 §6.2.3 asks for some seconds.
const IDLE: Duration = Duration::from_secs(10);
/// A client that does not take its answers is let go.
const WRITE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 1024;
/// Questions of one connection that wait for upstream servers.
const MAX_PER_CONNECTION: usize = 64;
/// Answers are sent when there are so many octets of them, even if more questions have come already.
const FLUSH: usize = 64 << 10;
/// The longest message and its length in front.
const MAX_FRAME: usize = 2 + u16::MAX as usize;

thread_local! {
    /// Room for one answer: needed only between two points of waiting, so one for all connections.
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_FRAME].into());
}

/// Accepts until `stop`.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: some will come back.
                tracing::warn!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            shared.metrics.tcp_connections.inc();
            tokio::select! {
                ended = connection(&shared, stream, peer) => {
                    if let Err(error) = ended {
                        tracing::trace!(%peer, %error, "DNS connection ended");
                    }
                }
                () = stop.cancelled() => {}
            }
            shared.metrics.tcp_connections.dec();
            drop(permit);
        });
    }
}

/// One client.
struct Connection<'s> {
    shared: &'s Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    /// Answers that could not leave at once.
    out: Vec<u8>,
    turns: Turns,
    tally: Tally,
    waiting: Arc<Semaphore>,
    answers: mpsc::Sender<Vec<u8>>,
}

/// What to do after a question.
enum Next {
    Continue,
    Flush,
    /// As many questions wait for upstream servers as one client may have: this one again after the next answer.
    Full,
    Transfer(Box<Transfer>),
    Close,
}

async fn connection(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (answers, mut forwarded) = mpsc::channel::<Vec<u8>>(MAX_PER_CONNECTION);
    let mut c = Connection {
        shared,
        stream,
        peer,
        out: Vec::new(),
        turns: Turns::new(),
        tally: Tally::default(),
        waiting: Arc::new(Semaphore::new(MAX_PER_CONNECTION)),
        answers,
    };
    let mut input = Vec::with_capacity(512);
    loop {
        let mut at = 0;
        while let Some((length, rest)) = input[at..].split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(packet) = rest.get(..length) else { break };
            at += 2 + length;
            let alone = at == input.len();
            let next = c.question(packet, alone);
            shared.metrics.add(&mut c.tally);
            match next {
                Next::Continue => {}
                Next::Flush => c.flush().await?,
                Next::Full => {
                    at -= 2 + length;
                    if let Some(answer) = forwarded.recv().await {
                        frame(&answer, &mut c.out);
                        c.flush().await?;
                    }
                }
                Next::Transfer(transfer) => c.transfer(*transfer).await?,
                Next::Close => return c.flush().await,
            }
        }
        input.drain(..at);
        c.flush().await?;
        let open = c.waiting.available_permits();
        tokio::select! {
            read = timeout(IDLE, c.stream.read_buf(&mut input)) => match read {
                Ok(Ok(0)) => break,
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return Err(e),
                // Quiet, but perhaps because we owe it an answer.
                Err(_) if open < MAX_PER_CONNECTION => {}
                Err(_) => return Ok(()),
            },
            Some(answer) = forwarded.recv() => frame(&answer, &mut c.out),
        }
        while let Ok(answer) = forwarded.try_recv() {
            frame(&answer, &mut c.out);
        }
    }
    // It has no more questions. What is still on its way gets there, within the forwarder's patience.
    let Connection { mut stream, mut out, answers, .. } = c;
    drop(answers);
    while let Some(answer) = forwarded.recv().await {
        frame(&answer, &mut out);
    }
    timeout(WRITE, stream.write_all(&out)).await?
}

impl Connection<'_> {
    fn question(&mut self, packet: &[u8], alone: bool) -> Next {
        let reaction = ROOM.with_borrow_mut(|room| {
            let directory = self.shared.directory.load();
            let turn = self.turns.next().unwrap_or_default();
            let (peer, tally) = (&self.peer, &mut self.tally);
            let reaction = self.shared.react(&directory, packet, peer, Transport::Tcp, turn, (&mut room[2..], tally));
            if let Reaction::Reply(length) | Reaction::Fixed(length, ..) = reaction {
                room[..2].copy_from_slice(&(length as u16).to_be_bytes());
                let mut answer = &room[..2 + length];
                // The common case: one answer, and the socket takes it.
                if alone && self.out.is_empty() {
                    let sent = self.stream.try_write(answer).unwrap_or(0);
                    answer = &answer[sent..];
                }
                self.out.extend_from_slice(answer);
            }
            reaction
        });
        match reaction {
            // What is no query on a stream is no client either.
            Reaction::Silence => Next::Close,
            Reaction::Reply(_) | Reaction::Fixed(..) if self.out.len() >= FLUSH => Next::Flush,
            Reaction::Reply(_) | Reaction::Fixed(..) => Next::Continue,
            Reaction::Transfer(transfer) => Next::Transfer(transfer),
            Reaction::Forward(ask) => {
                let Ok(permit) = self.waiting.clone().try_acquire_owned() else { return Next::Full };
                let (shared, answers, packet) = (self.shared.clone(), self.answers.clone(), packet.to_vec());
                let peer = self.peer.ip();
                tokio::spawn(async move {
                    let answer = shared.forward(&packet, &ask, peer, Transport::Tcp).await;
                    let _ = answers.send(answer).await;
                    drop(permit);
                });
                Next::Continue
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        timeout(WRITE, self.stream.write_all(&self.out)).await??;
        self.out.clear();
        // Memory for one large answer is not kept for a quiet connection.
        self.out.shrink_to(4096);
        Ok(())
    }

    /// The whole zone, message by message, never more of it in memory than one message.
    async fn transfer(&mut self, mut transfer: Transfer) -> io::Result<()> {
        let directory: Arc<Directory> = self.shared.directory.load_full();
        while let Some(message) = transfer.next(&directory) {
            frame(&message, &mut self.out);
            self.flush().await?;
        }
        Ok(())
    }
}

fn frame(message: &[u8], out: &mut Vec<u8>) {
    out.extend((message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}
