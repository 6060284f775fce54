//! The kernel's table as the only memory: reading it back, repairing it, leaving it alone.

use std::{sync::Arc, time::Duration};

use model::IpFamily;
use proptest::{
    prelude::*,
    test_runner::{Config as Runs, TestRunner},
};
use proxy::{
    desired::Desired,
    nftables::Nftables,
    target::{Reconciler, Target},
};
use serde_json::{Value, json};
use sys::nft::{Kernel, Tables};

use crate::{
    cluster::Cluster,
    lab::Host,
    traffic::{Bench, config},
};

/// Services of every kind, so that every map has something in it.
fn rich() -> Cluster {
    let mut c = Cluster::new("node", "a");
    let port = |node_port: u16| json!([{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": node_port}]);
    let lb = json!({"loadBalancer": {"ingress": [{"ip": "10.112.0.1"}]}});
    c.service("plain", json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": port(0)}), Value::Null);
    c.service(
        "sticky",
        json!({"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"], "type": "NodePort", "ports": port(30001),
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}),
        Value::Null,
    );
    c.service(
        "local",
        json!({"clusterIP": "10.96.0.12", "clusterIPs": ["10.96.0.12"], "type": "LoadBalancer", "ports": port(30002),
            "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.0/24", "10.0.0.0/8"]}),
        lb,
    );
    c.service(
        "nobody",
        json!({"clusterIP": "10.96.0.13", "clusterIPs": ["10.96.0.13"], "ports": port(0)}),
        Value::Null,
    );
    c.service(
        "nobody-here",
        json!({"clusterIP": "10.96.0.14", "clusterIPs": ["10.96.0.14"], "ports": port(0), "internalTrafficPolicy": "Local"}),
        Value::Null,
    );
    c.apply(&json!({"kind": "Service", "metadata": {"name": "theirs", "namespace": "default", "uid": "t",
            "labels": {"service.kubernetes.io/service-proxy-name": "other"}},
        "spec": {"clusterIP": "10.96.0.15", "clusterIPs": ["10.96.0.15"], "ports": port(0)}}));
    c.service(
        "six",
        json!({"clusterIP": "fd00:96::10", "clusterIPs": ["fd00:96::10"], "ipFamilies": ["IPv6"], "ports": port(0),
            "type": "NodePort", "sessionAffinity": "ClientIP"}),
        Value::Null,
    );
    for name in ["plain", "sticky", "local"] {
        c.endpoints(name, &[("", "TCP", 8080)], "node", &["10.244.0.2", "10.244.0.3", "10.244.0.4"]);
    }
    c.endpoints("nobody-here", &[("", "TCP", 8080)], "elsewhere", &["10.244.9.2"]);
    c.endpoints("six", &[("", "TCP", 8080)], "node", &["fd00:244::2", "fd00:244::3"]);
    c
}

fn reconciler() -> Reconciler<Nftables<Kernel>> {
    Reconciler::new(Nftables::new(config(), Kernel::open().expect("netlink")))
}

pub fn restart_adopts_and_writes_nothing() {
    let host = Host::start();
    host.at(|| {
        let cluster = rich();
        let mut first = reconciler();
        first.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
        assert!(!first.target.last.is_empty());
        let generation = first.target.tables().generation().expect("a generation");
        let mut second = reconciler();
        let before = second.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}")).expect("observed");
        assert!(before.intact, "the table is recognised as ours");
        assert_eq!(second.target.last, Default::default(), "nothing to write");
        assert_eq!(second.target.tables().generation().expect("a generation"), generation);
        assert_eq!(Some(&before), first.have(), "what is read is what was written");
    });
}

/// The same with slots in a canonical order: any assignment of endpoints to slots means the same.
fn canonical(d: &Desired) -> Vec<String> {
    let mut out: Vec<String> = d.services.iter().map(|(f, e)| format!("{f} {} {}", e.class, e.label)).collect();
    out.extend(d.endpoints.iter().map(|((f, s), b)| format!("{f} {:?} {b:?}", s.list())));
    out.extend(d.picks.iter().map(|((f, s), to)| {
        let backend = d.endpoints.get(&(*f, *to)).expect("a pick leads to an endpoint");
        format!("pick {f} {:?} {backend:?}", s.list())
    }));
    out.extend(d.refused.iter().map(|(f, r)| format!("{f} {r:?}")));
    out.extend(d.ranges.keys().map(|(f, n)| format!("{f} {n}")));
    out.extend(d.hairpin.keys().chain(d.elsewhere.keys()).map(ToString::to_string));
    out.extend(d.classes.keys().map(|(f, c)| format!("{f:?} {c}")));
    out.sort();
    out
}

pub fn incremental_equals_fresh() {
    let step = (0usize..6, 0u8..6, prop::collection::btree_set(2u8..12, 0..7), 0u8..16);
    let steps = prop::collection::vec(step, 1..25);
    let mut runner = TestRunner::new(Runs { cases: 24, failure_persistence: None, ..Runs::default() });
    let outcome = runner.run(&steps, |steps| {
        let host = Host::start();
        let (incremental, fresh) = host.at(move || {
            let mut cluster = rich();
            let mut running = reconciler();
            for (service, kind, endpoints, knobs) in steps {
                let name = format!("s{service}");
                let ip = format!("10.96.1.{service}");
                if kind == 0 {
                    cluster.delete_service(&name);
                } else {
                    let mut spec = json!({"clusterIP": ip, "clusterIPs": [ip],
                        "type": if kind > 2 { "LoadBalancer" } else { "NodePort" },
                        // Two Services may want one nodePort: the oldest has it, at every moment.
                        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30100 + service / 2},
                                  {"name": "u", "port": 53, "protocol": "UDP"}]});
                    if knobs & 1 != 0 {
                        spec["sessionAffinity"] = json!("ClientIP");
                    }
                    if knobs & 2 != 0 {
                        spec["externalTrafficPolicy"] = json!("Local");
                    }
                    if knobs & 4 != 0 {
                        spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8"]);
                    }
                    let status = json!({"loadBalancer": {"ingress": [{"ip": format!("10.112.0.{service}")}]}});
                    cluster.service(&name, spec, status);
                    if knobs & 8 != 0 {
                        cluster.annotate(&name, &[("portolan.dev/balancing", "round-robin")]);
                    }
                }
                let endpoints = endpoints.iter().map(|n| {
                    json!({"addresses": [format!("10.244.0.{n}")],
                    "conditions": {"ready": n % 5 != 0}, "nodeName": if n % 2 == 0 { "node" } else { "other" }})
                });
                cluster.slice(&name, &[("", "TCP", 8080), ("u", "UDP", 8053)], endpoints.collect());
                running.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
            }
            let observed = running.target.observe().unwrap_or_else(|e| panic!("{e}"));
            assert!(observed.intact);
            assert_eq!(Some(&observed), running.have());
            let fresh = running.target.compile(&cluster.snapshot, &Desired::default());
            (canonical(&observed), canonical(&fresh))
        });
        prop_assert_eq!(incremental, fresh);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

pub fn nft_lists_and_reloads() {
    let host = Host::start();
    host.at(|| {
        reconciler().reconcile(&rich().snapshot).unwrap_or_else(|e| panic!("{e}"));
    });
    let listing = host.run("nft list ruleset");
    for line in [
        "type ipv4_addr . inet_proto . inet_service : classid",
        "comment \"default/plain\"",
        "typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport",
        "10.96.0.10 . tcp . 80 . 0 : 10.244.0.2 . 8080",
        "meta priority set ip daddr . meta l4proto . th dport map @services meta priority vmap @classes",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . meta priority map @sticky-endpoints",
        "update @affinity { ip saddr . ip daddr . meta l4proto . th dport timeout 7s : meta priority }",
        "10.112.0.1 . tcp . 80 . 192.0.2.0/24",
        "ip daddr @service-cidrs goto refuse",
        "goto internal-3",
    ] {
        assert!(listing.contains(line), "{line:?} is not in\n{listing}");
    }
    assert!(listing.contains("update @affinity { ip6 saddr . ip6 daddr"), "and sticky IPv6");
    // A saved ruleset loads again, and loads as the same: all but sticky IPv6, whose key is too long for nft 1.0.6 to
    // load (it lists it well).
    let mut cluster = rich();
    cluster.delete_service("six");
    host.at(move || drop(reconciler().reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"))));
    let again = host.run(
        "d=$(mktemp -d); nft list ruleset >$d/a; nft flush ruleset; nft -f $d/a; nft list ruleset >$d/b; \
         sort $d/a >$d/c; sort $d/b | diff $d/c - && echo same; rm -r $d",
    );
    assert!(again.ends_with("same\n"), "{again}");
}

pub fn foreign_changes_are_repaired() {
    let host = Host::start();
    host.run("nft add table ip bystander; nft add chain ip bystander keep");
    let cluster = rich();
    for damage in [
        "nft flush chain ip portolan dispatch",
        "nft delete table ip portolan",
        "nft delete table ip6 portolan",
        "nft add rule ip portolan refuse accept",
        "nft add chain ip portolan stray",
        "nft flush map ip portolan endpoints",
        "nft delete element ip portolan services '{ 10.96.0.10 . tcp . 80 }'",
        "nft add element ip portolan cluster-cidrs '{ 172.16.0.0/12 }'",
        "nft add element ip portolan rejected '{ 10.96.0.77 . tcp . 7 }'",
    ] {
        let snapshot = cluster.snapshot.clone();
        host.at({
            let snapshot = snapshot.clone();
            move || drop(reconciler().reconcile(&snapshot).unwrap_or_else(|e| panic!("{e}")))
        });
        host.run(damage);
        host.at(move || {
            let mut r = reconciler();
            r.reconcile(&snapshot).unwrap_or_else(|e| panic!("{damage}: {e}"));
            assert!(!r.target.last.is_empty(), "{damage}: noticed");
            let after = r.target.observe().unwrap_or_else(|e| panic!("{damage}: {e}"));
            assert!(after.intact && Some(&after) == r.have(), "{damage}: repaired");
        });
    }
    assert!(host.run("nft list tables").contains("table ip bystander"), "others' tables are left alone");
}

/// Three connections held open are three active ones; closed, they are inactive. The same without any proxy running.
pub fn seed_043_connections_are_counted() {
    use std::io::Read;
    let mut b = Bench::new(2);
    let ports = json!([{"port": 80, "targetPort": 9000, "protocol": "TCP", "nodePort": 30080}]);
    b.web(json!({"type": "NodePort", "ports": ports}));
    for pod in &b.lab.pods {
        pod.at(|| {
            let listener = std::net::TcpListener::bind("0.0.0.0:9000").expect("a port");
            std::thread::spawn(move || {
                for mut client in listener.incoming().flatten() {
                    std::thread::spawn(move || client.read(&mut [0]));
                }
            });
        });
    }
    b.cluster.endpoints("web", &[("", "TCP", 9000)], "node", &["10.244.0.2", "10.244.0.3"]);
    b.cluster.service(
        "none",
        json!({"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"],
        "ports": [{"port": 80, "protocol": "TCP"}]}),
        Value::Null,
    );
    b.sync();
    let look = |b: &Bench| b.lab.node.at(|| proxy::table::Live::read().unwrap_or_else(|e| panic!("{e}")));
    let sum = |b: &Bench, at: usize| {
        let endpoints = &look(b).rows()[at].endpoints;
        assert_eq!(endpoints.len(), 2);
        endpoints.iter().fold((0, 0), |s, e| (s.0 + e.connections.active, s.1 + e.connections.inactive))
    };
    let rows = look(&b).rows();
    let seen: Vec<(&str, &str, u16)> = rows.iter().map(|r| (r.service.as_str(), r.scheduler, r.port)).collect();
    assert_eq!(seen, [("default/web", "random", 80), ("", "reject", 80), ("default/web", "random", 30080)]);
    assert_eq!(sum(&b, 0), (0, 0));
    let dial = |to: &'static str| b.lab.node.at(move || std::net::TcpStream::connect(to).expect("connected"));
    let held: Vec<_> = (0..3).map(|_| dial("10.96.0.10:80")).collect();
    let other = dial("192.0.2.1:30080");
    assert_eq!((sum(&b, 0), sum(&b, 2)), ((3, 0), (1, 0)));
    let printed = look(&b).ipvsadm(&["10.244.0.1".parse().expect("ip"), "192.0.2.1".parse().expect("ip")]);
    let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
    assert_eq!(lines[3], "TCP  10.96.0.10:80 random", "{printed}");
    assert!(lines[4].starts_with("  -> 10.244.0.2:9000              Masq    1      "), "{printed}");
    assert!(lines[6..].contains(&"TCP  10.96.0.11:80 random"), "{printed}");
    assert!(
        lines.contains(&"TCP  10.244.0.1:30080 random") && lines.contains(&"TCP  192.0.2.1:30080 random"),
        "{printed}"
    );
    drop((held, other));
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while sum(&b, 0) != (0, 3) {
        assert!(std::time::Instant::now() < deadline, "closed ones are inactive: {:?}", sum(&b, 0));
    }
}

/// A Docker host: iptables' chain drops what is forwarded. And an administrator's own, which is left alone.
pub fn forwarding_is_opened_and_closed_again() {
    let mut b = Bench::new(2);
    b.web(json!({}));
    b.sync();
    let node = &b.lab.node;
    node.run(
        "nft add table ip filter
         nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
         nft add chain ip filter DOCKER-USER
         nft add rule ip filter FORWARD jump DOCKER-USER",
    );
    let before = node.run("nft list table ip filter");
    assert!(b.lab.pods[0].dial("10.244.0.3:8080").is_err(), "dropped");
    let open = || node.at(|| Kernel::open().and_then(|mut k| k.admit_forwarding("portolan0", "portolan")));
    let first = open().expect("opened");
    assert_eq!((first.opened, first.blocking.len()), (vec!["ip filter FORWARD".to_owned()], 0));
    assert_eq!(b.lab.pods[0].dial("10.244.0.3:8080").expect("let through").0, "pod1");
    assert_eq!(node.run("nft list chain ip filter FORWARD").matches("comment \"portolan\"").count(), 2);
    assert_eq!(open().expect("nothing to do"), Default::default(), "once is enough");
    // iptables itself, where there is one, can still work with its table.
    let listing = node.run("if command -v iptables-nft >/dev/null; then iptables-nft -S FORWARD; fi");
    assert!(listing.is_empty() || listing.contains("-A FORWARD -i portolan0"), "{listing}");
    node.run(
        "nft add table inet mine
         nft 'add chain inet mine way { type filter hook forward priority 10; policy drop; }'",
    );
    assert_eq!(open().expect("looked").blocking, ["inet mine way"]);
    node.run("nft add rule inet mine way iifname portolan0 accept");
    assert_eq!(open().expect("looked").blocking, [""; 0], "the administrator has seen to it");
    node.run("nft delete table inet mine");
    b.lab.node.at(|| proxy::cleanup().unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(b.lab.node.run("nft list table ip filter"), before, "as it was");
}

pub fn running_proxy_repairs_and_cleans_up() {
    let mut b = Bench::new(1);
    b.web(json!({}));
    let stop = tokio_util::sync::CancellationToken::new();
    let (tx, rx) = tokio::sync::watch::channel(Arc::new(b.cluster.snapshot.clone()));
    let token = stop.clone();
    let mut running = b.lab.node.at(move || proxy::Proxy::start(config(), rx, token).unwrap_or_else(|e| panic!("{e}")));
    let wait = |applied: &mut tokio::sync::watch::Receiver<u64>, revision: u64| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let reached = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(10), applied.wait_for(|r| *r >= revision)).await.is_ok()
        });
        assert!(reached, "revision {revision} is applied");
    };
    let mut applied = running.applied();
    wait(&mut applied, b.cluster.snapshot.revision);
    assert_eq!(b.lab.node.dial("10.96.0.10:80").expect("an answer").0, "pod0");
    // Somebody flushes everything; the next change, whatever it is, brings it back.
    b.lab.node.run("nft flush ruleset");
    b.endpoints("other", "TCP", &[]);
    tx.send_replace(Arc::new(b.cluster.snapshot.clone()));
    wait(&mut applied, b.cluster.snapshot.revision);
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while b.lab.node.dial("10.96.0.10:80").is_err() {
        assert!(std::time::Instant::now() < deadline, "the table comes back");
    }
    stop.cancel();
    running.join();
    assert!(b.lab.node.run("nft list ruleset").contains("portolan"), "rules stay when the proxy stops");
    b.lab.node.at(|| proxy::cleanup().unwrap_or_else(|e| panic!("{e}")));
    b.lab.node.at(|| proxy::cleanup().unwrap_or_else(|e| panic!("twice: {e}")));
    assert_eq!(b.lab.node.run("nft list ruleset"), "");
    let mut kernel = b.lab.node.at(|| Kernel::open().expect("netlink"));
    for family in [IpFamily::V4, IpFamily::V6] {
        assert!(kernel.read(proxy::layout::kernel_family(family), "portolan").expect("read").is_none());
    }
}
