//! One question to one upstream server: over UDP, again over TCP when the answer did not fit. An answer counts when it
//! comes from the server asked, to the port it was asked from, with our id and our question (RFC 5452 §9.1).

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::cache::{Key, Response};
use crate::wire::{HEADER, Rcode, UDP_MAX, flag};

/// A datagram gets lost now and then: ask again after this.
const RESEND: Duration = Duration::from_millis(1200);
const SENDS: usize = 3;
const TCP_PATIENCE: Duration = Duration::from_secs(3);

/// The error of an answer that cannot be read.
pub const NONSENSE: &str = "malformed answer";

/// Our question in wire form.
fn question(key: &Key, id: u16, edns: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + key.name().len() + 16);
    let flags = flag::RD | flag::AD | if key.checking_disabled() { flag::CD } else { 0 };
    for word in [id, flags, 1, 0, 0, u16::from(edns)] {
        out.extend(word.to_be_bytes());
    }
    out.extend(key.name());
    out.extend(key.kind());
    out.extend([0, 1]);
    if edns {
        let [high, low] = (UDP_MAX as u16).to_be_bytes();
        out.extend([0, 0, 41, high, low, 0, 0, if key.dnssec() { 0x80 } else { 0 }, 0, 0, 0]);
    }
    out
}

/// An answer to this question and no other.
fn matches(asked: &[u8], key: &Key, answer: &[u8]) -> bool {
    let end = HEADER + key.name().len() + 4;
    answer.len() >= end
        && answer[..2] == asked[..2]
        && answer[2] & 0x80 != 0
        && answer[4..6] == [0, 1]
        && answer[HEADER..end].eq_ignore_ascii_case(&asked[HEADER..end])
}

pub async fn ask(server: SocketAddr, key: &Key) -> Result<Response, String> {
    let answer = match over_udp(server, key, true).await? {
        // Some servers do not know EDNS even now.
        answer if u16::from(answer[3]) & flag::RCODE == Rcode::FORMERR.0 => over_udp(server, key, false).await?,
        answer => answer,
    };
    let answer = if answer[2] & 0x02 != 0 { over_tcp(server, key).await.unwrap_or(answer) } else { answer };
    Response::new(&answer).ok_or_else(|| NONSENSE.to_owned())
}

async fn over_udp(server: SocketAddr, key: &Key, edns: bool) -> Result<Vec<u8>, String> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let text = |e: std::io::Error| e.to_string();
    let mut buffer = vec![0; 4096];
    for _ in 0..SENDS {
        // A socket of its own, and so a port of its own, for each try.
        let socket = UdpSocket::bind(any).await.map_err(text)?;
        socket.connect(server).await.map_err(text)?;
        let asked = question(key, rand::random(), edns);
        socket.send(&asked).await.map_err(text)?;
        let answer = timeout(RESEND, async {
            loop {
                let length = socket.recv(&mut buffer).await.map_err(text)?;
                if matches(&asked, key, &buffer[..length]) {
                    return Ok::<_, String>(length);
                }
            }
        });
        match answer.await {
            Ok(length) => return Ok(buffer[..length?].to_vec()),
            Err(_) => continue,
        }
    }
    Err(format!("no answer within {} ms", RESEND.as_millis() * SENDS as u128))
}

async fn over_tcp(server: SocketAddr, key: &Key) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let asked = question(key, rand::random(), true);
        let mut framed = (asked.len() as u16).to_be_bytes().to_vec();
        framed.extend(&asked);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>((asked, answer))
    };
    let (asked, answer) = timeout(TCP_PATIENCE, exchange)
        .await
        .map_err(|_| "no answer over TCP".to_owned())?
        .map_err(|e| format!("over TCP: {e}"))?;
    if matches(&asked, key, &answer) { Ok(answer) } else { Err(NONSENSE.to_owned()) }
}
