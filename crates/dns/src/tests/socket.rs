//! A real server on loopback, asked by the real `dig`.

use std::{net::UdpSocket, process::Command, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Config, Error, Server, Upstreams};

pub const OBJECTS: &str = r#"
kind: Service
metadata: { name: nginx }
spec: { clusterIP: 10.102.97.154, clusterIPs: [10.102.97.154], ports: [{ name: http, port: 80 }] }
---
kind: Service
metadata: { name: external-db }
spec: { type: ExternalName, externalName: www.iij.ad.jp }
"#;

pub struct Running {
    pub server: Server,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub snapshot: Snapshot,
    stop: CancellationToken,
}

pub async fn start(objects: &str, change: impl FnOnce(&mut Config)) -> Running {
    let mut snapshot = Snapshot::default();
    complete(&mut snapshot);
    documents(objects).iter().for_each(|o| put(&mut snapshot, o));
    let (snapshots, seen) = watch::channel(Arc::new(snapshot.clone()));
    Running { snapshots, snapshot, ..start_with(seen, change).await }
}

/// With the snapshots of somebody else.
pub async fn start_with(seen: watch::Receiver<Arc<Snapshot>>, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::new(zone(), vec!["127.0.0.1:0".parse().unwrap()]);
    config.upstreams = Upstreams::None;
    change(&mut config);
    let stop = CancellationToken::new();
    let server = Server::start(config, seen, stop.clone()).await.unwrap();
    let snapshots = watch::channel(Arc::default()).0;
    Running { server, snapshots, snapshot: Snapshot::default(), stop }
}

impl Running {
    pub async fn dig(&self, args: &str) -> String {
        let mut command = Command::new("dig");
        let address = self.server.addresses()[0];
        command.args([format!("@{}", address.ip()), "-p".into(), address.port().to_string()]);
        command.args(args.split(' '));
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        let output = output.expect("dig is needed: apt-get install dnsutils");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Stops while others go on at the same address.
    pub async fn retire(self) {
        self.stop.cancel();
        self.server.stopped().await;
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.server.stopped().await;
        // Everything is closed: the port is free again, for UDP and TCP.
        let address = self.server.addresses()[0];
        UdpSocket::bind(address).unwrap();
        std::net::TcpListener::bind(address).unwrap();
    }
}

#[tokio::test]
async fn seed_127_dig_sees_an_authoritative_server() {
    let s = start(OBJECTS, |_| ()).await;
    let answer = s.dig("nginx.default.svc.cluster.local").await;
    assert!(answer.contains("status: NOERROR") && answer.contains("flags: qr aa rd;"), "{answer}");
    assert!(answer.contains("nginx.default.svc.cluster.local. 30 IN\tA\t10.102.97.154"), "{answer}");
    let soa = s.dig("cluster.local SOA +noall +answer").await;
    assert!(
        soa.starts_with("cluster.local.\t\t30\tIN\tSOA\tns.dns.cluster.local. hostmaster.cluster.local. "),
        "{soa}"
    );
    let unknown = s.dig("unknown.default.svc.cluster.local").await;
    assert!(unknown.contains("status: NXDOMAIN") && unknown.contains("\tSOA\tns.dns.cluster.local."), "{unknown}");
    assert!(unknown.contains("; EDE: 0 (Other): (namespace default has no Service unknown)"), "{unknown}");
    let empty = s.dig("nginx.default.svc.cluster.local AAAA").await;
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0, AUTHORITY: 1"), "{empty}");
    let srv = s.dig("+short SRV _http._tcp.nginx.default.svc.cluster.local").await;
    assert_eq!(srv, "0 100 80 nginx.default.svc.cluster.local.\n");
    assert_eq!(s.dig("+short -x 10.102.97.154").await, "nginx.default.svc.cluster.local.\n");
    let tcp = s.dig("+tcp +short nginx.default.svc.cluster.local").await;
    assert_eq!(tcp, "10.102.97.154\n");
    assert!(s.dig("example.com").await.contains("status: REFUSED"));
    assert!(s.dig("+edns=1 +noednsnegotiation nginx.default.svc.cluster.local").await.contains("status: BADVERS"));
    assert!(s.dig("CH TXT version.bind").await.contains("status: REFUSED"));
    assert!(s.dig("AXFR cluster.local").await.contains("Transfer failed"));
    let counters = s.server.metrics();
    assert!(counters.contains(r#"coredns_dns_responses_total{server="dns://:"#), "{counters}");
    s.end().await;
}

#[tokio::test]
async fn too_large_for_udp_is_asked_again_over_tcp() {
    let endpoints: String = (0..200).map(|i| format!("- {{ addresses: [10.244.1.{i}] }}\n")).collect();
    let s = start(
        &format!(
            "kind: Service\nmetadata: {{ name: crowd }}\nspec: {{ clusterIP: None }}\n---\nkind: EndpointSlice\nmetadata: {{ name: crowd-1, labels: {{ kubernetes.io/service-name: crowd }} }}\naddressType: IPv4\nendpoints:\n{endpoints}"
        ),
        |_| (),
    )
    .await;
    let udp = s.dig("+ignore crowd.default.svc.cluster.local").await;
    assert!(udp.contains("flags: qr aa tc rd;"), "{udp}");
    let retried = s.dig("+short crowd.default.svc.cluster.local").await;
    assert_eq!(retried.lines().filter(|l| l.starts_with("10.244.1.")).count(), 200);
    s.end().await;
}

#[tokio::test]
async fn seed_126_a_new_service_is_answered_at_once() {
    let mut s = start("", |_| ()).await;
    assert!(s.dig("nginx.default.svc.cluster.local").await.contains("NXDOMAIN"));
    documents(OBJECTS).iter().for_each(|o| put(&mut s.snapshot, o));
    let revision = s.snapshot.revision;
    s.snapshots.send_replace(Arc::new(s.snapshot.clone()));
    s.server.applied().wait_for(|r| *r == revision).await.unwrap();
    assert_eq!(s.dig("+short nginx.default.svc.cluster.local").await, "10.102.97.154\n");
    s.end().await;
}

#[tokio::test]
async fn seed_077_the_chased_address_has_the_zones_ttl() {
    // Also row 76: both records, from an upstream that says 300.
    let upstream = crate::forward::tests::upstream().await.0;
    let s = start(OBJECTS, |c| c.upstreams = Upstreams::Servers(vec![upstream])).await;
    for _ in 0..2 {
        let full = s.dig("external-db.default.svc.cluster.local").await;
        assert!(full.contains("status: NOERROR") && full.contains("flags: qr aa rd ra;"), "{full}");
        let answer = s.dig("+noall +answer external-db.default.svc.cluster.local").await;
        let lines: Vec<_> = answer.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "external-db.default.svc.cluster.local. 30 IN CNAME www.iij.ad.jp.",
                "www.iij.ad.jp. 30 IN A 202.232.2.180"
            ]
        );
    }
    let missing = s.dig("external-db.default.svc.cluster.local AAAA").await;
    assert!(missing.contains("status: NXDOMAIN") && missing.contains("CNAME www.iij.ad.jp."), "{missing}");
    assert!(s.dig("www.iij.ad.jp").await.contains("\tA\t202.232.2.180"));
    assert!(s.dig("+tcp www.iij.ad.jp").await.contains("\tA\t202.232.2.180"));
    s.end().await;
}

#[tokio::test]
async fn seed_128_strangers_are_refused() {
    let s = start(OBJECTS, |c| c.allow = vec!["10.0.0.0/8".parse().unwrap()]).await;
    let answer = s.dig("nginx.default.svc.cluster.local").await;
    assert!(answer.contains("status: REFUSED") && answer.contains("127.0.0.1 is not among the sources"), "{answer}");
    s.end().await;
}

#[tokio::test]
async fn several_queries_share_a_connection() {
    use std::io::{Read, Write};
    let s = start(OBJECTS, |_| ()).await;
    let address = s.server.addresses()[0];
    let ids = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut all = Vec::new();
        for id in 0..40u16 {
            let mut q = packet("nginx.default.svc.cluster.local");
            q[..2].copy_from_slice(&id.to_be_bytes());
            all.extend((q.len() as u16).to_be_bytes());
            all.extend(q);
        }
        stream.write_all(&all).unwrap();
        // Half-closed: the answers come all the same.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        let mut ids = Vec::new();
        let mut rest = &answers[..];
        while let Some((length, more)) = rest.split_first_chunk::<2>() {
            let (answer, more) = more.split_at(usize::from(u16::from_be_bytes(*length)));
            ids.push(u16::from_be_bytes([answer[0], answer[1]]));
            rest = more;
        }
        ids
    });
    assert_eq!(ids.await.unwrap(), (0..40).collect::<Vec<_>>());
    s.end().await;
}

/// Twenty thousand damaged packets and some strange connections later, the server answers as before.
#[tokio::test]
async fn garbage_leaves_it_standing() {
    use rand::{Rng, SeedableRng};
    use std::io::Write;
    let s = start(OBJECTS, |_| ()).await;
    let address = s.server.addresses()[0];
    let good = packet("nginx.default.svc.cluster.local A +edns");
    let sent = tokio::task::spawn_blocking(move || {
        let mut random = rand::rngs::StdRng::seed_from_u64(53);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        for i in 0..20_000 {
            let mut p = if i % 4 == 0 { vec![0; random.random_range(0..300)] } else { good.clone() };
            let changes = if i % 4 == 0 { p.len() } else { random.random_range(1..5) };
            for at in 0..changes {
                let at = if i % 4 == 0 { at } else { random.random_range(0..p.len()) };
                p[at] = random.random();
            }
            socket.send_to(&p, address).unwrap();
            while let Ok(n) = socket.recv(&mut buffer) {
                assert!(n >= 12 && buffer[2] & 0x80 != 0);
            }
        }
        for junk in [&b""[..], b"\0", b"\0\0", b"\xff\xff", b"\0\x05abc", b"GET / HTTP/1.1\r\n\r\n"] {
            std::net::TcpStream::connect(address).unwrap().write_all(junk).unwrap();
        }
    });
    sent.await.unwrap();
    for option in ["+short", "+short +tcp"] {
        let said = s.dig(&format!("{option} nginx.default.svc.cluster.local")).await;
        // What still waits in the socket's queue may crowd the first question out; dig asks again and says so after `;`.
        let answers: Vec<&str> = said.lines().filter(|l| !l.starts_with(';')).collect();
        assert_eq!(answers, ["10.102.97.154"], "{said}");
    }
    s.end().await;
}

#[tokio::test]
async fn a_taken_port_is_one_clear_sentence() {
    let s = start("", |_| ()).await;
    let config = Config::new(zone(), s.server.addresses().to_vec());
    let error = Server::start(config, s.snapshots.subscribe(), s.stop.clone()).await.err().unwrap();
    assert!(matches!(error, Error::Bind { .. }));
    assert!(error.to_string().contains("is taken by another program"), "{error}");
    s.end().await;
}

#[tokio::test]
async fn health_and_metrics_are_pages() {
    let s = start("", |c| c.metrics = Some("127.0.0.1:0".parse().unwrap())).await;
    let address = s.server.metrics_address().unwrap();
    for (path, want) in
        [("/metrics", "portolan_dns_revision"), ("/health", "OK"), ("/ready", "OK"), ("/x", "404 Not Found")]
    {
        let page = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).unwrap();
            page
        });
        let page = page.await.unwrap();
        assert!(page.contains(want), "{page}");
    }
    s.end().await;
}
