//! TCP (RFC 7766): queries may follow one another without waiting, answers come as soon as they are known, and a
//! connection on which nothing happens is closed.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Reaction, Shared, Turns};
use crate::metrics::{Tally, Transport};

/// RFC 7766 §6.2.3 asks for some seconds.
const IDLE: Duration = Duration::from_secs(10);
/// A client that does not take its answers is let go.
const WRITE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 1024;
/// Answers of one connection that wait: for upstream, or for the client to take them.
const MAX_PER_CONNECTION: usize = 64;

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

async fn connection(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    // Bounded: a client that asks without reading holds no more than this.
    let (answers, mut outgoing) = mpsc::channel::<Vec<u8>>(MAX_PER_CONNECTION);
    let writer = tokio::spawn(async move {
        while let Some(mut answer) = outgoing.recv().await {
            // Answers that are ready leave together.
            while let Ok(more) = outgoing.try_recv() {
                answer.extend(more);
            }
            match timeout(WRITE, write.write_all(&answer)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    });
    let waiting = Arc::new(Semaphore::new(MAX_PER_CONNECTION));
    let (mut turns, mut tally) = (Turns::new(), Tally::default());
    let mut room = vec![0; usize::from(u16::MAX)];
    let mut packet = Vec::new();
    loop {
        let length = match timeout(IDLE, read.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Ok(Err(e)) => return Err(e),
            // Quiet, but perhaps because we owe it an answer.
            Err(_) if waiting.available_permits() < MAX_PER_CONNECTION => continue,
            Err(_) => break,
        };
        packet.resize(length, 0);
        timeout(IDLE, read.read_exact(&mut packet)).await??;
        let reaction = {
            let directory = shared.directory.load();
            let turn = turns.next().unwrap_or_default();
            shared.react(&directory, &packet, &peer, Transport::Tcp, turn, (&mut room, &mut tally))
        };
        shared.metrics.add(&mut tally);
        match reaction {
            // What is no query on a stream is no client either.
            Reaction::Silence => break,
            Reaction::Reply(length) => {
                if answers.send(framed(&room[..length])).await.is_err() {
                    break;
                }
            }
            Reaction::Forward(ask) => {
                let Ok(permit) = waiting.clone().acquire_owned().await else { break };
                let (shared, answers, packet) = (shared.clone(), answers.clone(), packet.clone());
                tokio::spawn(async move {
                    let answer = shared.forward(&packet, &ask, Transport::Tcp).await;
                    let _ = answers.send(framed(&answer)).await;
                    drop(permit);
                });
            }
        }
    }
    drop(answers);
    // What is still on its way gets there, within the forwarder's patience.
    let _ = writer.await;
    Ok(())
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + message.len());
    out.extend((message.len() as u16).to_be_bytes());
    out.extend(message);
    out
}
