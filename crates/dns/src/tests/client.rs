//! What depends on who asks: search paths, cookies, transfers, permissions; and what a restart remembers.

use std::sync::atomic::Ordering;

use super::socket::{OBJECTS, start};
use super::*;
use crate::{Upstreams, forward::tests::upstream};

const POD: &str = r#"
---
kind: Pod
metadata: { name: p, namespace: default }
spec: {}
status: { phase: Running, podIPs: [{ ip: 127.0.0.1 }] }
---
kind: Service
metadata: { name: api, namespace: production }
spec: { clusterIP: 10.96.7.7, clusterIPs: [10.96.7.7], ports: [{ port: 80 }] }
"#;

/// A pod's walk for an outside name ends at its first step, with one question upstream; rows 1 of the users' wishes.
#[tokio::test]
async fn users_01_a_search_path_costs_one_round_trip() {
    let (address, asked) = upstream().await;
    let s = start(&format!("{OBJECTS}{POD}"), |c| c.upstreams = Upstreams::Servers(vec![address])).await;
    for _ in 0..3 {
        let answer = s.dig("+noall +answer +comments www.iij.ad.jp.default.svc.cluster.local").await;
        let flat = answer.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            flat.contains("www.iij.ad.jp.default.svc.cluster.local. 30 IN CNAME www.iij.ad.jp. www.iij.ad.jp. 30 IN A 202.232.2.180"),
            "{answer}"
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // A Service of another namespace, two steps on, is found in the zone itself.
    assert_eq!(
        s.dig("+short api.production.default.svc.cluster.local").await,
        "api.production.svc.cluster.local.\n10.96.7.7\n"
    );
    assert_eq!(
        s.dig("+short nginx.default.svc.cluster.local.default.svc.cluster.local").await,
        "nginx.default.svc.cluster.local.\n10.102.97.154\n"
    );
    // Of the zone, nothing leaves; nor does what has one label, or another pod's search path.
    for name in [
        "nope.default.svc.cluster.local",
        "nope.production.default.svc.cluster.local.default.svc.cluster.local",
        "nope.production.svc.default.svc.cluster.local",
        "www.iij.ad.jp.production.svc.cluster.local",
        "www.iij.ad.jp.svc.cluster.local",
        "www.iij.ad.jp.cluster.local",
    ] {
        let answer = s.dig(name).await;
        assert!(answer.contains("status: NXDOMAIN") && answer.contains("\tSOA\t"), "{name}: {answer}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // No such name outside: no such name at all, and one question more to learn it.
    let no = s.dig("nope.test.default.svc.cluster.local").await;
    assert!(no.contains("status: NXDOMAIN") && no.contains("cluster.local.\t\t5\tIN\tSOA"), "{no}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    s.end().await;
}

#[tokio::test]
async fn cookies_and_the_servers_name_are_given_to_those_who_ask() {
    let s = start(OBJECTS, |c| c.identity = "node-7".into()).await;
    let answer = s.dig("+cookie=0123456789abcdef +nsid nginx.default.svc.cluster.local").await;
    assert!(answer.contains("; NSID: 6e 6f 64 65 2d 37 (\"node-7\")"), "{answer}");
    let cookie = answer.lines().find_map(|l| l.strip_prefix("; COOKIE: ")).unwrap();
    assert!(cookie.starts_with("0123456789abcdef01000000") && cookie.contains("(good)"), "{answer}");
    assert!(answer.contains("10.102.97.154"));
    // A reason and a cookie go together.
    let no = s.dig("+cookie=0123456789abcdef nope.default.svc.cluster.local").await;
    assert!(no.contains("(good)") && no.contains("; EDE: 0 (Other): (namespace default has no Service nope)"), "{no}");
    s.end().await;
}

#[tokio::test]
async fn users_17_a_transfer_is_the_zone_from_soa_to_soa() {
    let endpoints: String =
        (0..2000).map(|i| format!("- {{ addresses: [10.244.{}.{}] }}\n", i / 250, i % 250 + 1)).collect();
    let objects = format!(
        "{OBJECTS}---\nkind: Service\nmetadata: {{ name: crowd }}\nspec: {{ clusterIP: None }}\n---\nkind: EndpointSlice\nmetadata: {{ name: crowd-1, labels: {{ kubernetes.io/service-name: crowd }} }}\naddressType: IPv4\nports: [{{ name: http, port: 80 }}]\nendpoints:\n{endpoints}"
    );
    let s = start(&objects, |c| c.transfer_to = vec!["127.0.0.1/32".parse().unwrap()]).await;
    let zone = s.dig("AXFR cluster.local +nocomments +nostats +nocmd").await;
    let lines: Vec<_> = zone.lines().filter(|l| l.starts_with(|c: char| c != ';')).collect();
    // SOA twice, NS, version, nginx's A and SRV, the alias, and for each endpoint two addresses and a SRV.
    assert_eq!(lines.len(), 2 + 2 + 2 + 1 + 3 * 2000, "{}", &zone[..500]);
    assert!(lines[0].contains("\tSOA\t") && lines[lines.len() - 1] == lines[0]);
    let has = |text: &str| lines.iter().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == text);
    assert!(has("nginx.default.svc.cluster.local. 30 IN A 10.102.97.154"));
    assert!(has("external-db.default.svc.cluster.local. 30 IN CNAME www.iij.ad.jp."));
    assert!(has("_http._tcp.nginx.default.svc.cluster.local. 30 IN SRV 0 100 80 nginx.default.svc.cluster.local."));
    assert!(has("10-244-7-250.crowd.default.svc.cluster.local. 30 IN A 10.244.7.250"));
    // Not for other zones.
    assert!(s.dig("AXFR example.com").await.contains("Transfer failed"));
    s.end().await;
}

#[tokio::test]
async fn users_05_a_restart_remembers_and_says_that_it_does() {
    let file = std::env::temp_dir().join(format!("portolan-dns-{}.json", std::process::id()));
    let s = start(&format!("{OBJECTS}{POD}"), |c| c.keep = Some(file.clone())).await;
    // Written when a snapshot arrives.
    s.snapshots.send_replace(Arc::new(s.snapshot.clone()));
    while !file.exists() {
        tokio::task::yield_now().await;
    }
    s.end().await;
    let (snapshots, seen) = tokio::sync::watch::channel(Arc::new(Snapshot::default()));
    let s = super::socket::start_with(seen, |c| c.keep = Some(file.clone()));
    let mut s = s.await;
    let answer = s.dig("nginx.default.svc.cluster.local").await;
    assert!(answer.contains("10.102.97.154") && answer.contains("; EDE: 3 (Stale Answer)"), "{answer}");
    assert!(s.dig("+short 127-0-0-1.default.pod.cluster.local").await.starts_with("127.0.0.1"));
    assert!(s.dig("external-db.default.svc.cluster.local CNAME").await.contains("www.iij.ad.jp."));
    // The first complete snapshot is the truth again.
    complete(&mut s.snapshot);
    s.snapshot.revision = 9;
    snapshots.send_replace(Arc::new(s.snapshot.clone()));
    s.server.applied().wait_for(|r| *r == 9).await.unwrap();
    let gone = s.dig("nginx.default.svc.cluster.local").await;
    assert!(gone.contains("status: NXDOMAIN") && !gone.contains("Stale"), "{gone}");
    drop(snapshots);
    s.end().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn seed_128_only_the_cluster_is_answered() {
    let s = start(&format!("{OBJECTS}{POD}"), |c| c.allow_cluster = true).await;
    assert_eq!(s.dig("+short nginx.default.svc.cluster.local").await, "10.102.97.154\n");
    let d = s.server.directory();
    assert!(d.is_pod(&"127.0.0.1".parse().unwrap()) && !d.is_pod(&"192.0.2.1".parse().unwrap()));
    s.end().await;
}

#[tokio::test]
async fn users_11_a_noisy_source_is_told_to_come_by_tcp() {
    let s = start(OBJECTS, |c| c.source_rate = 1).await;
    let mut cut = 0;
    for _ in 0..4 {
        cut += usize::from(s.dig("+ignore nginx.default.svc.cluster.local").await.contains("flags: qr tc rd"));
        // dig asks again over TCP, and is answered.
        assert_eq!(s.dig("+short nginx.default.svc.cluster.local").await, "10.102.97.154\n");
    }
    assert!(cut >= 1);
    assert!(s.server.metrics().contains("portolan_dns_limited_total"));
    s.end().await;
}

#[tokio::test]
async fn stub_domains_and_hosts_have_their_own_answers() {
    let (stub, asked) = upstream().await;
    let s = start(OBJECTS, |c| {
        c.stubs = vec![("ad.jp".parse().unwrap(), vec![stub])];
        c.hosts.add("192.0.2.7".parse().unwrap(), "db.example".parse().unwrap());
    })
    .await;
    assert_eq!(s.dig("+short www.iij.ad.jp").await, "202.232.2.180\n");
    assert_eq!(s.dig("+short db.example").await, "192.0.2.7\n");
    assert_eq!(s.dig("+short -x 192.0.2.7").await, "db.example.\n");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert!(s.dig("other.example").await.contains("status: SERVFAIL"));
    s.end().await;
}

/// Servers take over from each other under a stream of questions; each has its answer.
#[tokio::test]
async fn users_10_servers_take_over_without_a_gap() {
    let first = start(OBJECTS, |c| c.share_port = true).await;
    let address = first.server.addresses()[0];
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asking = tokio::task::spawn_blocking({
        let done = done.clone();
        move || {
            let asked = packet("nginx.default.svc.cluster.local");
            let (mut sent, mut lost) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                // A socket each, so that the kernel spreads them over all servers.
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
                socket.send_to(&asked, address).unwrap();
                sent += 1;
                lost += usize::from(socket.recv(&mut [0; 512]).is_err());
            }
            (sent, lost)
        }
    });
    let mut running = first;
    for _ in 0..5 {
        let next = start(OBJECTS, |c| {
            c.share_port = true;
            c.listen = vec![address];
        })
        .await;
        running.retire().await;
        running = next;
    }
    done.store(true, Ordering::SeqCst);
    let (sent, lost) = asking.await.unwrap();
    assert!(sent > 50 && lost == 0, "{lost} of {sent} lost");
    running.end().await;
}
