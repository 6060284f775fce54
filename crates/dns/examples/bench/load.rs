//! Questions in a closed loop: so many are under way at any time, and each answer brings the next question.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use sys::packet_batch::PacketBatch;

use crate::{Fallible, data::SMALL};

/// Questions under way over UDP; below the smallest receive queue of any peer.
const WINDOW: usize = 100;
/// TCP connections, each with one question under way, as resolvers keep them.
const CONNECTIONS: usize = 16;

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    tcp: bool,
    questions: fn() -> Vec<Vec<u8>>,
    /// What the answer's header must say: response code and number of answers, and so on in turn.
    expect: &'static [(u8, u16)],
}

impl Row {
    pub fn all() -> Vec<Self> {
        fn each(name: impl Fn(usize) -> String, kind: u16) -> Vec<Vec<u8>> {
            (0..SMALL).map(|i| query(i as u16, &name(i * 7 % SMALL), kind)).collect()
        }
        let row = |name, title, tcp, expect, questions| Row { name, title, tcp, questions, expect };
        vec![
            row("a", "ClusterIP A", false, &[(0, 1)], || each(|i| format!("s-{i}.default.svc.cluster.local"), 1)),
            row("nxdomain", "NXDOMAIN", false, &[(3, 0)], || each(|i| format!("no-{i}.default.svc.cluster.local"), 1)),
            row("srv", "SRV", false, &[(0, 1)], || each(|i| format!("_http._tcp.s-{i}.default.svc.cluster.local"), 33)),
            row("aaaa", "AAAA, no data", false, &[(0, 0)], || each(|i| format!("s-{i}.default.svc.cluster.local"), 28)),
            row("headless-100", "headless, 100 endpoints, TCP", true, &[(0, 100)], || {
                vec![query(1, "h-100.default.svc.cluster.local", 1)]
            }),
            row("headless-1000", "headless, 1,000 endpoints, TCP", true, &[(0, 1000)], || {
                vec![query(1, "h-1000.default.svc.cluster.local", 1)]
            }),
            row("ndots", "ndots:5 mixture, upstream cached", false, &[(3, 0), (3, 0), (3, 0), (0, 1)], || {
                let walk = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", ""];
                (0..400).map(|i| query(i, &format!("www-{}.example.com.{}", i / 4, walk[i as usize % 4]), 1)).collect()
            }),
        ]
    }

    /// Servers sit out what they cannot do: resolving, or 16 connections.
    pub fn fair(&self, server: &str) -> bool {
        match self.name {
            "ndots" => ["portolan", "unbound", "dnsmasq", "echo"].contains(&server),
            // dnsmasq makes a process for each connection, and no more than 20.
            _ => !(self.tcp && ["echo", "dnsmasq"].contains(&server)),
        }
    }
}

#[derive(Default)]
pub struct Done {
    pub answers: u64,
    pub wrong: u64,
}

pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, 0] {
        out.extend(word.to_be_bytes());
    }
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

pub fn answers(server: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        socket.connect(server)?;
        socket.send(&query(1, "s-1.default.svc.cluster.local", 1))?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        Ok(length > 12 && buffer[7] == 1)
    };
    let answered = ask().unwrap_or(false);
    if !answered {
        std::thread::yield_now();
    }
    answered
}

pub fn run(row: &Row, server: SocketAddr, length: Duration) -> Fallible<Done> {
    if row.tcp { over_tcp(row, server, length) } else { over_udp(row, server, length) }
}

fn over_udp(row: &Row, server: SocketAddr, length: Duration) -> Fallible<Done> {
    let questions = (row.questions)();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut batch = PacketBatch::new(64, 2048);
    let (mut next, mut done, end) = (0, Done::default(), Instant::now() + length);
    let mut seed = true;
    while Instant::now() < end {
        if std::mem::take(&mut seed) {
            for _ in 0..WINDOW {
                socket.send_to(&questions[next % questions.len()], server)?;
                next += 1;
            }
        }
        let count = match batch.receive(&socket) {
            Ok(count) => count,
            // Some were lost: begin anew.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                seed = true;
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        for i in 0..count {
            let (answer, room) = batch.packet(i);
            done.answers += 1;
            let id = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
            let (rcode, answers) = row.expect[id % row.expect.len()];
            if answer[3] & 15 != rcode || answer[6..8] != answers.to_be_bytes() {
                done.wrong += 1;
            }
            let question = &questions[next % questions.len()];
            next += 1;
            room[..question.len()].copy_from_slice(question);
            batch.reply(i, question.len());
        }
        batch.send(&socket);
    }
    // What is still under way belongs to this run.
    while batch.receive(&socket).is_ok() {}
    Ok(done)
}

fn over_tcp(row: &Row, server: SocketAddr, length: Duration) -> Fallible<Done> {
    let question = &(row.questions)()[0];
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend(question);
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        streams.push(stream);
    }
    let (mut done, end) = (Done::default(), Instant::now() + length);
    let mut buffer = vec![0; 65_537];
    for stream in &mut streams {
        stream.write_all(&framed)?;
    }
    while Instant::now() < end {
        for stream in &mut streams {
            read_answer(stream, &mut buffer)?;
            done.answers += 1;
            if buffer[8..10] != row.expect[0].1.to_be_bytes() {
                done.wrong += 1;
            }
            stream.write_all(&framed)?;
        }
    }
    for stream in &mut streams {
        read_answer(stream, &mut buffer)?;
        done.answers += 1;
    }
    Ok(done)
}

/// Length and message in as few calls as there are segments.
fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut have = 0;
    loop {
        let got = stream.read(&mut buffer[have..])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += got;
        if have >= 2 && have >= 2 + usize::from(u16::from_be_bytes([buffer[0], buffer[1]])) {
            return Ok(());
        }
    }
}

/// Median and 99th percentile at a fixed rate.
pub fn latency(server: SocketAddr, rate: u32, length: Duration) -> Fallible<(Duration, Duration)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    let questions = (Row::all()[0].questions)();
    let total = (length.as_secs_f64() * f64::from(rate)) as usize;
    let begun = Instant::now();
    let mut sent = vec![begun; 65536];
    let (mut next, mut times, mut buffer) = (0usize, Vec::with_capacity(total), [0; 512]);
    while times.len() < total && begun.elapsed() < length + Duration::from_secs(1) {
        if next < total && begun.elapsed() >= Duration::from_secs(1) / rate * next as u32 {
            let mut question = questions[next % questions.len()].clone();
            question[..2].copy_from_slice(&(next as u16).to_be_bytes());
            sent[next % 65536] = Instant::now();
            socket.send(&question)?;
            next += 1;
        }
        if let Ok(length) = socket.recv(&mut buffer)
            && length >= 12
        {
            times.push(sent[usize::from(u16::from_be_bytes([buffer[0], buffer[1]]))].elapsed());
        }
    }
    times.sort_unstable();
    if times.len() < total * 95 / 100 {
        return Err(format!("{} of {total} answers came", times.len()).into());
    }
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}
