//! How long the proxy takes, in a network namespace that it makes for itself: loading whole clusters, one change in a
//! large one (from the snapshot to the kernel's acknowledgement), and starting again on an unchanged table.
//!
//! `bench [--services N --endpoints M] [--changes K] [-o json]`; without sizes it measures the four usual ones.

#[path = "../tests/support/cluster.rs"]
mod cluster;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use cluster::Cluster;
use nix::sched::{CloneFlags, unshare};
use portolan_proxy::{
    Config,
    nftables::Nftables,
    target::{Reconciler, Target},
};
use serde_json::{Value, json};
use sys::nft::Kernel;

const USUAL: [(u32, u32); 4] = [(1_000, 3), (10_000, 3), (44_000, 1), (5_000, 50)];

fn config() -> Config {
    let net = |n: &str| n.parse().expect("a network");
    Config {
        node_name: "node".into(),
        service_cidrs: vec![net("10.96.0.0/12")],
        cluster_cidrs: vec![net("10.128.0.0/9")],
        ..Config::default()
    }
}

fn endpoints(cluster: &mut Cluster, service: u32, first: u32, count: u32) {
    let ip = |i: u32| Ipv4Addr::from(0x0a80_0000 + first + i).to_string();
    let ips: Vec<String> = (0..count).map(ip).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    cluster.endpoints(&format!("s{service}"), &[("http", "TCP", 8080)], "other", &ips);
}

fn build(services: u32, per_service: u32) -> Cluster {
    let mut cluster = Cluster::new("node", "a");
    for i in 0..services {
        let ip = Ipv4Addr::from(0x0a60_0100 + i).to_string();
        let spec = json!({"clusterIP": ip, "clusterIPs": [ip],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]});
        cluster.service(&format!("s{i}"), spec, Value::Null);
        endpoints(&mut cluster, i, i * per_service, per_service);
    }
    cluster
}

fn reconciler() -> Reconciler<Nftables<Kernel>> {
    Reconciler::new(Nftables::new(config(), Kernel::open().expect("netlink")))
}

/// Resident memory in MiB.
fn rss() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

fn percentile(sorted: &[Duration], p: usize) -> Duration {
    sorted[(sorted.len() * p / 100).min(sorted.len() - 1)]
}

fn measure(services: u32, per_service: u32, changes: u32) -> Value {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (run as root)");
    let mut cluster = build(services, per_service);
    let rss_cluster = rss();
    let mut running = reconciler();
    let started = Instant::now();
    running.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
    let full = started.elapsed();
    let (added, _) = running.target.last.elements();
    running.target.last = Default::default();

    // One endpoint more, or one less, at some Service: what a rolling update does all day.
    let mut times = Vec::new();
    let mut elements = 0;
    let mut grown = vec![false; services as usize];
    for n in 0..changes {
        let service = n.wrapping_mul(2_654_435_761) % services;
        let one_more = &mut grown[service as usize];
        *one_more = !*one_more;
        let count = per_service + u32::from(*one_more);
        endpoints(&mut cluster, service, service * per_service, count);
        let snapshot = cluster.snapshot.clone();
        let started = Instant::now();
        running.reconcile(&snapshot).unwrap_or_else(|e| panic!("{e}"));
        times.push(started.elapsed());
        let (a, d) = running.target.last.elements();
        elements += a + d;
    }
    times.sort();
    let rss_running = rss();

    let mut again = reconciler();
    let started = Instant::now();
    again.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
    let restart = started.elapsed();
    assert!(again.target.last.is_empty(), "a restart with nothing changed writes nothing");
    assert!(again.target.observe().is_ok_and(|d| d.intact));
    json!({
        "services": services, "endpointsPerService": per_service, "elements": added,
        "fullSyncMs": ms(full), "changes": changes,
        "changeP50Us": percentile(&times, 50).as_micros() as u64, "changeP99Us": percentile(&times, 99).as_micros() as u64,
        "elementsPerChange": elements as f64 / f64::from(changes.max(1)),
        "restartMs": ms(restart), "restartWrites": 0, "rssMiB": rss_running, "rssOfSnapshotMiB": rss_cluster,
    })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let number = |name: &str| option(name).and_then(|v| v.parse::<u32>().ok());
    let changes = number("--changes").unwrap_or(1000).max(1);
    let json_wanted = option("-o").is_some_and(|o| o == "json");
    let sizes = match (number("--services"), number("--endpoints")) {
        (Some(s), e) => vec![(s.max(1), e.unwrap_or(3))],
        _ => USUAL.to_vec(),
    };
    if !json_wanted {
        println!("services x endpoints   full sync    one change p50 / p99     restart     RSS");
    }
    let mut rows = Vec::new();
    for (services, endpoints) in sizes {
        let row = if number("--services").is_some() {
            measure(services, endpoints, changes)
        } else {
            // A process for each size: memory and namespace are its own.
            let me = std::env::current_exe().expect("this program");
            let out = std::process::Command::new(me)
                .args(["--services", &services.to_string(), "--endpoints", &endpoints.to_string()])
                .args(["--changes", &changes.to_string(), "-o", "json"])
                .output()
                .expect("a child");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            serde_json::from_slice::<Value>(&out.stdout).expect("JSON")[0].clone()
        };
        if !json_wanted {
            println!(
                "{services:>8} x {endpoints:<4}  {:>9.1} ms  {:>9} / {:>5} us  {:>9.1} ms  {:>6.1} MiB",
                row["fullSyncMs"].as_f64().unwrap_or(0.0),
                row["changeP50Us"],
                row["changeP99Us"],
                row["restartMs"].as_f64().unwrap_or(0.0),
                row["rssMiB"].as_f64().unwrap_or(0.0),
            );
        }
        rows.push(row);
    }
    if json_wanted {
        println!("{}", Value::Array(rows));
    }
}
