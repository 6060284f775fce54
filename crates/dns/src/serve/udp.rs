//! UDP: a thread with a socket of its own for each core (`SO_REUSEPORT`), a batch of datagrams per system call.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use sys::packet_batch::{PacketBatch, steer};
use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    Reaction, Shared, Turns,
    prebuilt::{self, Prebuilt},
};
use crate::{
    metrics::{Tally, Transport},
    sources::SAMPLE,
    wire::{HEADER, Query, Rcode, UDP_MAX, Writer},
};

/// Datagrams taken in one go.
const BATCH: usize = 64;
/// Octets for a datagram. A query is a question and an OPT record: hundreds at most.
const ROOM: usize = 2048;
const _: () = assert!(ROOM >= UDP_MAX);
/// How long a thread sleeps in the kernel before it looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);
/// A socket to which nothing has come for so long is empty.
const DRAIN: Duration = Duration::from_millis(20);
const DRAIN_AT_MOST: Duration = Duration::from_millis(500);
const RECEIVE_BUFFER: usize = 4 << 20;
/// Datagrams that wait for an upstream answer, per socket.
const MAX_WAITING: usize = 4096;

/// One of several sockets on the same address.
pub fn bind(address: SocketAddr, freebind: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(freebind)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(freebind)?;
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
    }
    // The kernel gives what its limit allows; less is no reason not to serve.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.set_read_timeout(Some(LOOK))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Serves one socket until the server is stopped.
pub fn serve(shared: &Arc<Shared>, socket: &Arc<UdpSocket>, runtime: &Handle) {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut batch = PacketBatch::new(BATCH, ROOM);
    let (mut turns, mut tally, mut prebuilt) = (Turns::new(), Tally::default(), Prebuilt::new());
    let mut draining: Option<Instant> = None;
    loop {
        if draining.is_none() && shared.is_stopped() {
            // From now on everything goes to the server that has bound the address behind us, if there is one. What has
            // come to us already is answered before the socket is closed.
            draining = Some(Instant::now());
            let _ = steer(&**socket, shared.threads);
            if socket.set_read_timeout(Some(DRAIN)).is_err() {
                return;
            }
        }
        // Where nobody takes over, questions go on coming.
        if draining.is_some_and(|since| since.elapsed() > DRAIN_AT_MOST) {
            return;
        }
        let count = match batch.receive(&**socket) {
            Ok(count) => count,
            Err(e) if draining.is_some() && e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                prebuilt.rest();
                continue;
            }
            // What a former peer's host said about an earlier answer.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::error!(%error, "DNS socket failed; this thread ends");
                return;
            }
        };
        // All of a batch is answered from one moment, the newest there is.
        let directory = shared.directory.load();
        prebuilt.follow(&directory);
        for i in 0..count {
            let Some(peer) = batch.peer(i) else { continue };
            // An answer to port 0 goes nowhere; a query that was cut cannot be read.
            if peer.port() == 0 || batch.truncated(i) {
                shared.metrics.ignored.inc();
                continue;
            }
            let turn = turns.next().unwrap_or_default();
            let (packet, room) = batch.packet(i);
            if !turn.is_multiple_of(SAMPLE)
                && let Some((length, kind, rcode)) = prebuilt.answer(packet, turn, room)
                && shared.admits(&directory, peer.ip())
            {
                prebuilt::tally(&mut tally, &peer, kind, rcode);
                batch.reply(i, length);
                continue;
            }
            let reaction = shared.react(&directory, packet, &peer, Transport::Udp, turn, (&mut *room, &mut tally));
            let length = match reaction {
                // Transfers are for streams.
                Reaction::Silence | Reaction::Transfer(_) => continue,
                Reaction::Reply(length) => length,
                Reaction::Fixed(length, kind, rcode) => {
                    prebuilt.keep(packet, &room[..length], kind, rcode);
                    length
                }
                Reaction::Forward(ask) => match waiting.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let (shared, socket, packet) = (shared.clone(), socket.clone(), packet.to_vec());
                        runtime.spawn(async move {
                            let answer = shared.forward(&packet, &ask, peer.ip(), Transport::Udp).await;
                            drop(permit);
                            // A full send buffer drops it, as the network might.
                            let socket = socket2::SockRef::from(&*socket);
                            let _ = socket.send_to_with_flags(&answer, &peer.into(), libc::MSG_DONTWAIT);
                        });
                        continue;
                    }
                    Err(_) => overloaded(packet, room),
                },
            };
            batch.reply(i, length.max(HEADER));
        }
        batch.send(&**socket);
        shared.metrics.add(&mut tally);
    }
}

/// SERVFAIL at once, which costs nothing to keep.
fn overloaded(packet: &[u8], room: &mut [u8]) -> usize {
    let Ok(query) = Query::parse(packet) else { return 0 };
    let mut writer = Writer::new(&query, room, query.udp_limit());
    writer.rcode(Rcode::SERVFAIL);
    writer.finish(Some((crate::wire::Extended::OTHER, "too many questions wait for upstream servers")))
}
