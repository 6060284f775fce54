//! The servers of this program: ours, the echo that shows what the sockets allow, and an upstream.

use std::{
    net::UdpSocket,
    num::NonZero,
    sync::Arc,
    time::{Duration, Instant},
};

use model::{names::Zone, parse::Parser};
use portolan_dns::{Config, Server, Upstreams};
use serde_json::json;
use sys::packet_batch::PacketBatch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Fallible, data, load, socket_of};

pub const UPSTREAM: &str = "127.0.0.2:5301";

fn config(listen: &str) -> Fallible<Config> {
    let mut zone = Zone::new("cluster.local")?;
    zone.reverse = vec!["10.0.0.0/8".parse()?];
    let mut config = Config::new(zone, vec![listen.parse()?]);
    config.threads = NonZero::new(1);
    config.upstreams = Upstreams::Servers(vec![UPSTREAM.parse()?]);
    Ok(config)
}

pub fn portolan(arguments: &[String]) -> Fallible<()> {
    let services = if arguments.first().is_some_and(|a| a == "large") { data::LARGE } else { data::SMALL };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_keep, snapshots) = watch::channel(Arc::new(data::snapshot(services)));
        let stop = CancellationToken::new();
        let server = Server::start(config(&socket_of("portolan").to_string())?, snapshots, stop).await?;
        server.stopped().await;
        Ok(())
    })
}

/// Every query gets the same record: what receiving and sending in batches costs, and nothing else.
pub fn echo() -> Fallible<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket.bind(&socket_of("echo").into())?;
    let socket: UdpSocket = socket.into();
    let mut batch = PacketBatch::new(64, 2048);
    loop {
        let count = batch.receive(&socket)?;
        for i in 0..count {
            let (packet, room) = batch.packet(i);
            let mut end = 12;
            while end < packet.len() && packet[end] > 0 {
                end += 1 + usize::from(packet[end]);
            }
            let end = (end + 5).min(packet.len());
            room[..end].copy_from_slice(&packet[..end]);
            room[2] |= 0x84;
            room[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            room[end..end + 16].copy_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1]);
            batch.reply(i, end + 16);
        }
        batch.send(&socket);
    }
}

/// An A record for every A question, nothing for the rest; TTL 300.
pub fn upstream() -> Fallible<()> {
    let socket = UdpSocket::bind(UPSTREAM)?;
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        let mut end = 12;
        while end < length && buffer[end] > 0 {
            end += 1 + usize::from(buffer[end]);
        }
        let end = end + 5;
        if end > length {
            continue;
        }
        let a = buffer[end - 4..end] == [0, 1, 0, 1];
        buffer[2] = 0x81;
        buffer[3] = 0x80;
        buffer[6..12].copy_from_slice(&[0, u8::from(a), 0, 0, 0, 0]);
        let mut answer = buffer[..end].to_vec();
        if a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1]);
        } else {
            answer[9] = 1;
            answer.extend([0xc0, 12, 0, 6, 0, 1, 0, 0, 1, 44, 0, 22, 0, 0]);
            answer.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 44]);
        }
        socket.send_to(&answer, peer)?;
    }
}

/// From handing over a snapshot with one change among 10,000 Services to the first answer that shows it.
pub fn event_to_answer() -> Fallible<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut snapshot = data::snapshot(data::LARGE);
        let (publish, snapshots) = watch::channel(Arc::new(snapshot.clone()));
        let stop = CancellationToken::new();
        let server = Server::start(config("127.0.0.1:5302")?, snapshots, stop.clone()).await?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect("127.0.0.1:5302")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let question = load::query(1, "s-77.default.svc.cluster.local", 1);
        let mut times = Vec::new();
        let mut parser = Parser::default();
        for round in 0..2000u32 {
            let ip = format!("10.250.{}.{}", round / 250, round % 250 + 1);
            let service = json!({
                "kind": "Service", "metadata": {"name": "s-77", "namespace": "default", "resourceVersion": "2"},
                "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]},
            });
            data::put(&mut snapshot, &mut parser, &service);
            snapshot.revision += 1;
            let next = Arc::new(snapshot.clone());
            let wanted = ip.parse::<std::net::Ipv4Addr>()?.octets();
            let begun = Instant::now();
            publish.send_replace(next);
            let mut buffer = [0; 512];
            loop {
                socket.send(&question)?;
                let length = socket.recv(&mut buffer)?;
                if buffer[..length].ends_with(&wanted) {
                    break;
                }
            }
            times.push(begun.elapsed());
        }
        stop.cancel();
        server.stopped().await;
        times.sort_unstable();
        let at = |part: usize| times[times.len() * part / 100].as_micros();
        Ok(format!("{} / {}", at(50), at(99)))
    })
}
