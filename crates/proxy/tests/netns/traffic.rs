//! Where real connections go.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::IpAddr,
    time::{Duration, Instant},
};

use proxy::{Config, nftables::Nftables, target::Reconciler};
use serde_json::{Value, json};
use sys::nft::Kernel;

use crate::{
    cluster::Cluster,
    lab::{Lab, exchange, pod_ip},
};

pub fn config() -> Config {
    let net = |n: &str| n.parse().expect("a network");
    Config {
        node_name: "node".into(),
        service_cidrs: vec![net("10.96.0.0/12"), net("fd00:96::/108")],
        cluster_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/56")],
        ..Config::default()
    }
}

/// A lab with the proxy's state held between changes, as the running program does.
pub struct Bench {
    pub lab: Lab,
    pub cluster: Cluster,
    config: Config,
    reconciler: Option<Reconciler<Nftables<Kernel>>>,
}

impl Bench {
    pub fn new(pods: usize) -> Self {
        Self::with(pods, config())
    }

    pub fn with(pods: usize, config: Config) -> Self {
        let mut bench = Self { lab: Lab::new(pods), cluster: Cluster::new("node", "a"), config, reconciler: None };
        bench.restart();
        bench
    }

    /// Forgets everything but what is in the kernel.
    pub fn restart(&mut self) {
        let config = self.config.clone();
        let reconciler = move || Reconciler::new(Nftables::new(config, Kernel::open().expect("netlink")));
        self.reconciler = Some(self.lab.node.at(reconciler));
    }

    pub fn last_is_empty(&self) -> bool {
        self.reconciler.as_ref().is_some_and(|r| r.target.last.is_empty())
    }

    /// Programs the kernel from the cluster as it is now, and ends stale flows.
    pub fn sync(&mut self) {
        let mut reconciler = self.reconciler.take().expect("a reconciler");
        let snapshot = self.cluster.snapshot.clone();
        self.reconciler = Some(self.lab.node.at(move || {
            let before =
                reconciler.reconcile(&snapshot).unwrap_or_else(|e| panic!("{e}")).expect("a complete snapshot");
            let have = reconciler.have().expect("known");
            proxy::flows::clean(have, &proxy::flows::affected(&before, have)).unwrap_or_else(|e| panic!("{e}"));
            reconciler
        }));
    }

    fn pods(&self) -> Vec<String> {
        (0..self.lab.pods.len()).map(pod_ip).collect()
    }

    /// ClusterIP 10.96.0.10 port 80 and every pod behind it.
    pub fn web(&mut self, extra: Value) {
        let mut spec = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]});
        merge(&mut spec, extra);
        self.cluster.service("web", spec, Value::Null);
        let pods = self.pods();
        self.endpoints("web", "TCP", &pods);
    }

    pub fn endpoints(&mut self, service: &str, protocol: &str, ips: &[String]) {
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        self.cluster.endpoints(service, &[("", protocol, 8080)], "node", &ips);
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

fn count(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for name in names {
        *out.entry(name).or_default() += 1;
    }
    out
}

pub fn seed_022_cluster_ip_reaches_every_pod() {
    let mut b = Bench::new(3);
    b.web(json!({}));
    b.sync();
    for client in [&b.lab.pods[0], &b.lab.node] {
        let seen = count((0..300).map(|_| client.dial("10.96.0.10:80").expect("an answer").0));
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen.values().all(|n| *n > 60), "{seen:?}");
    }
}

pub fn seed_065_choice_is_random_and_even() {
    let mut b = Bench::new(4);
    b.web(json!({}));
    b.sync();
    let picks: Vec<String> = (0..1000).map(|_| b.lab.node.dial("10.96.0.10:80").expect("an answer").0).collect();
    let seen = count(picks.clone());
    let chi: f64 = seen.values().map(|n| (*n as f64 - 250.0).powi(2) / 250.0).sum();
    // 3 degrees of freedom: above 16.27 with a probability of 0.001.
    assert!(seen.len() == 4 && chi < 16.27, "chi square {chi}: {seen:?}");
    let cycle = picks.windows(5).filter(|w| w[0] == w[4]).count();
    assert!(cycle < 500, "consecutive picks follow a cycle");
}

pub fn seed_042_round_robin_takes_turns() {
    let mut b = Bench::new(2);
    let ports = json!([{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]);
    b.web(json!({"type": "NodePort", "ports": ports}));
    b.cluster.annotate("web", &[("portolan.dev/balancing", "round-robin")]);
    // Another one of the same kind has turns of its own.
    b.cluster.service(
        "other",
        json!({"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"],
        "ports": [{"port": 80, "protocol": "TCP"}]}),
        Value::Null,
    );
    b.cluster.annotate("other", &[("portolan.dev/balancing", "round-robin")]);
    b.cluster.endpoints("other", &[("", "TCP", 8080)], "node", &["10.244.0.2", "10.244.0.3"]);
    b.sync();
    let node = &b.lab.node;
    let name = |to: &str| node.dial(to).expect("an answer").0;
    for to in ["10.96.0.10:80", "192.0.2.1:30080"] {
        let four: Vec<String> = (0..4).map(|_| (name(to), drop(name("10.96.0.11:80"))).0).collect();
        assert!(four[0] != four[1] && four[0] == four[2] && four[1] == four[3], "{to}: {four:?}");
    }
    let printed = node.at(|| proxy::table::Live::read().unwrap_or_else(|e| panic!("{e}")).ipvsadm(&[]));
    assert!(printed.contains("TCP  10.96.0.10:80 rr\n"), "{printed}");
    let listing = node.run("nft list ruleset");
    assert!(listing.contains("numgen inc mod 2"), "{listing}");
    b.restart();
    b.sync();
    assert!(b.last_is_empty(), "a restart recognises it");
    b.cluster.annotate("web", &[("portolan.dev/balancing", "alphabetical")]);
    b.sync();
    let printed = b.lab.node.at(|| proxy::table::Live::read().unwrap_or_else(|e| panic!("{e}")).ipvsadm(&[]));
    assert!(printed.contains("TCP  10.96.0.10:80 random\n"), "an unknown one is the default: {printed}");
}

pub fn seed_035_endpoint_sees_its_own_address() {
    let mut b = Bench::new(2);
    b.web(json!({}));
    b.endpoints("web", "TCP", &[pod_ip(1)]);
    b.sync();
    let (name, client) = b.lab.pods[0].dial("10.96.0.10:80").expect("an answer");
    assert_eq!((name.as_str(), client), ("pod1", pod_ip(0).parse().expect("ip")), "a pod's own address is kept");
    let (_, client) = b.lab.node.dial("10.96.0.10:80").expect("an answer");
    assert_eq!(client, IpAddr::from([10, 244, 0, 1]));
}

/// The API server and the DNS server are endpoints on the node's own address, reached by pods and by the node itself.
pub fn node_address_as_endpoint() {
    let mut b = Bench::new(1);
    b.lab.node.echo("node", 5353);
    for (name, ip, protocol) in [("dns", "10.96.0.10", "UDP"), ("api", "10.96.0.1", "TCP")] {
        let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 53, "protocol": protocol}]});
        b.cluster.service(name, spec, Value::Null);
        b.cluster.slice(name, &[("", protocol, 5353)], vec![json!({"addresses": ["10.244.0.1"]})]);
    }
    b.sync();
    for client in [&b.lab.pods[0], &b.lab.node] {
        assert_eq!(client.ask("10.96.0.10:53").expect("an answer").0, "node");
        assert_eq!(client.dial("10.96.0.1:53").expect("an answer").0, "node");
    }
    assert_eq!(b.lab.pods[0].dial("10.96.0.1:53").expect("an answer").1, pod_ip(0).parse::<IpAddr>().expect("ip"));
}

/// Two endpoints, as many frontends as there are objects: what is programmed is what the objects say (rows 36 and 39).
pub fn seed_039_two_endpoints_share_the_connections() {
    let mut b = Bench::new(2);
    b.web(json!({}));
    b.sync();
    let seen = count((0..100).map(|_| b.lab.node.dial("10.96.0.10:80").expect("an answer").0));
    assert_eq!(seen.len(), 2, "{seen:?}");
    let listing = b.lab.node.run("nft list map ip portolan endpoints");
    for line in ["10.96.0.10 . tcp . 80 . 0 : 10.244.0.2 . 8080", "10.96.0.10 . tcp . 80 . 1 : 10.244.0.3 . 8080"] {
        assert!(listing.contains(line), "{listing}");
    }
}

/// Established connections go on when endpoints change; only new ones go elsewhere.
pub fn established_tcp_goes_on() {
    use std::io::{Read, Write};
    let mut b = Bench::new(2);
    b.web(json!({}));
    b.endpoints("web", "TCP", &[pod_ip(0)]);
    b.lab.pods[0].at(|| {
        let slow = std::net::TcpListener::bind("0.0.0.0:9000").expect("a port");
        std::thread::spawn(move || {
            let (mut stream, _) = slow.accept().expect("a client");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
    });
    b.cluster.endpoints("web", &[("", "TCP", 9000)], "node", &[&pod_ip(0)]);
    b.sync();
    let mut stream = b.lab.node.at(|| std::net::TcpStream::connect("10.96.0.10:80").expect("connected"));
    let mut say = |byte: u8| {
        stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        let mut back = [0];
        stream.write_all(&[byte]).and_then(|()| stream.read_exact(&mut back)).map(|()| back[0])
    };
    assert_eq!(say(1).expect("an answer"), 1);
    b.endpoints("web", "TCP", &[pod_ip(1)]);
    b.sync();
    assert_eq!(say(2).expect("an answer"), 2);
    assert_eq!(b.lab.node.dial("10.96.0.10:80").expect("an answer").0, "pod1");
    b.cluster.delete_service("web");
    b.sync();
    assert_eq!(say(3).expect("an answer"), 3);
    assert_eq!(b.lab.node.dial("10.96.0.10:80").expect_err("gone").kind(), ErrorKind::ConnectionRefused);
}

pub fn seed_172_each_port_leads_to_its_target() {
    let mut b = Bench::new(1);
    b.lab.pods[0].echo("tls", 8443);
    b.lab.pods[0].echo("metrics", 9090);
    b.cluster.service(
        "multi",
        json!({"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"], "ports": [
            {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
            {"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"},
            {"name": "metrics", "port": 9090, "targetPort": 9090, "protocol": "TCP"},
        ]}),
        Value::Null,
    );
    let ports = [("http", "TCP", 8080), ("https", "TCP", 8443), ("metrics", "TCP", 9090)];
    b.cluster.endpoints("multi", &ports, "node", &[&pod_ip(0)]);
    b.sync();
    for (port, name) in [(80, "pod0"), (443, "tls"), (9090, "metrics")] {
        assert_eq!(b.lab.node.dial(&format!("10.96.0.11:{port}")).expect("an answer").0, name);
    }
}

pub fn udp_reaches_every_pod() {
    let mut b = Bench::new(3);
    udp_service(&mut b);
    b.sync();
    for client in [&b.lab.pods[0], &b.lab.node] {
        let seen = count((0..60).map(|_| client.ask("10.96.0.53:53").expect("an answer").0));
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}

fn udp_service(b: &mut Bench) {
    let spec = json!({"clusterIP": "10.96.0.53", "clusterIPs": ["10.96.0.53"],
        "ports": [{"port": 53, "targetPort": 8080, "protocol": "UDP"}]});
    b.cluster.service("dns", spec, Value::Null);
    let pods = b.pods();
    b.endpoints("dns", "UDP", &pods);
}

pub fn ipv6_works_like_ipv4() {
    let mut b = Bench::new(2);
    let spec = json!({"clusterIP": "fd00:96::10", "clusterIPs": ["fd00:96::10"], "ipFamilies": ["IPv6"],
        "type": "NodePort",
        "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    b.cluster.service("six", spec, Value::Null);
    b.cluster.endpoints("six", &[("", "TCP", 8080)], "node", &["fd00:244::2", "fd00:244::3"]);
    b.sync();
    for to in ["[fd00:96::10]:80", "[fd00:244::1]:30080"] {
        let seen = count((0..40).map(|_| b.lab.pods[0].dial(to).expect("an answer").0));
        assert_eq!(seen.len(), 2, "{to}: {seen:?} (one of them is the client itself)");
    }
    assert_eq!(b.lab.node.dial("[fd00:96::10]:80").expect("an answer").1, "fd00:244::1".parse::<IpAddr>().expect("ip"));
    let refused = b.lab.pods[0].dial("[fd00:96::99]:80").expect_err("unallocated");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

pub fn pod_reaches_itself() {
    let mut b = Bench::new(1);
    b.web(json!({}));
    udp_service(&mut b);
    b.sync();
    let (name, client) = b.lab.pods[0].dial("10.96.0.10:80").expect("an answer");
    assert_eq!(name, "pod0");
    assert_eq!(client, IpAddr::from([10, 244, 0, 1]), "masqueraded, or the answer would bypass the node");
    assert_eq!(b.lab.pods[0].ask("10.96.0.53:53").expect("an answer").0, "pod0");
}

pub fn refused_at_once() {
    let mut b = Bench::new(1);
    b.web(
        json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]}),
    );
    udp_service(&mut b);
    b.endpoints("web", "TCP", &[]);
    b.endpoints("dns", "UDP", &[]);
    b.sync();
    let started = Instant::now();
    let nowhere = ["10.96.0.10:80", "10.96.0.10:81", "10.99.99.99:80", "10.244.0.1:30080"];
    for client in [&b.lab.pods[0], &b.lab.node] {
        for to in nowhere {
            assert_eq!(client.dial(to).expect_err("refused").kind(), ErrorKind::ConnectionRefused, "{to}");
        }
    }
    assert_eq!(b.lab.pods[0].ask("10.96.0.53:53").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    // The kernel tells a local sender of a datagram either with the ICMP error or at once.
    let error = b.lab.node.ask("10.96.0.53:53").expect_err("refused").kind();
    assert!(matches!(error, ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied), "{error}");
    let error = b.lab.outside.dial("192.0.2.1:30080").expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < Duration::from_secs(2), "at once, not after a timeout: {:?}", started.elapsed());
    // The first endpoint ends the refusal.
    b.endpoints("web", "TCP", &[pod_ip(0)]);
    b.sync();
    assert_eq!(b.lab.node.dial("10.96.0.10:80").expect("an answer").0, "pod0");
}

pub fn seed_052_node_port_from_inside_and_outside() {
    let mut b = Bench::new(2);
    b.web(
        json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]}),
    );
    b.sync();
    for (client, to) in [
        (&b.lab.outside, "192.0.2.1:30080"),
        (&b.lab.pods[0], "192.0.2.1:30080"),
        (&b.lab.pods[0], "10.244.0.1:30080"),
        (&b.lab.node, "192.0.2.1:30080"),
        (&b.lab.pods[1], "10.96.0.10:80"),
    ] {
        let seen = count((0..40).map(|_| client.dial(to).unwrap_or_else(|e| panic!("{to}: {e}")).0));
        assert_eq!(seen.len(), 2, "{to}: {seen:?}");
    }
    let (_, client) = b.lab.outside.dial("192.0.2.1:30080").expect("an answer");
    assert_eq!(client, IpAddr::from([10, 244, 0, 1]), "Cluster policy masquerades");
    let error = b.lab.node.dial("127.0.0.1:30080").expect_err("nodePorts are not on the loopback");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

pub fn pods_leave_with_the_node_s_address() {
    let mut b = Bench::with(2, Config { masquerade_outbound: true, ..config() });
    let lan = |ip: [u8; 4]| IpAddr::from(ip);
    b.lab.outside.echo("outside", 7000);
    b.lab.node.echo("node", 7000);
    // An endpoint outside the cluster, as one written by hand for a database would be.
    let spec =
        json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ports": [{"port": 7, "protocol": "TCP"}]});
    b.cluster.service("database", spec, Value::Null);
    b.cluster.slice("database", &[("", "TCP", 7000)], vec![json!({"addresses": ["192.0.2.2"]})]);
    b.web(json!({}));
    b.sync();
    // Nobody outside knows a way back to a pod.
    b.lab.outside.run("ip route del default");
    let pod = &b.lab.pods[0];
    for to in ["192.0.2.2:7000", "10.96.0.20:7"] {
        assert_eq!(pod.dial(to).expect(to), ("outside".into(), lan([192, 0, 2, 1])));
    }
    assert_eq!(pod.ask("192.0.2.2:7000").expect("an answer"), ("outside".into(), lan([192, 0, 2, 1])));
    assert_eq!(b.lab.node.dial("10.96.0.20:7").expect("an answer"), ("outside".into(), lan([192, 0, 2, 1])));
    // Inside, everybody keeps their address.
    let own = lan([10, 244, 0, 2]);
    assert_eq!(pod.dial("10.244.0.3:8080").expect("an answer"), ("pod1".into(), own));
    assert_eq!(pod.dial("192.0.2.1:7000").expect("an answer"), ("node".into(), own), "the node's own address");
    assert_eq!(b.lab.node.dial("10.244.0.3:8080").expect("an answer").1, lan([10, 244, 0, 1]));
    b.restart();
    b.sync();
    assert!(b.last_is_empty(), "the rule is recognised");
    let listing = b.lab.node.run("nft list chain ip portolan nat-postrouting");
    let rule = "ip saddr @cluster-cidrs ip daddr != @cluster-cidrs ip daddr != @service-cidrs fib daddr type unicast";
    assert!(listing.contains(rule), "{listing}");
}

pub fn seed_021_cluster_ip_is_for_the_inside() {
    let mut b = Bench::new(1);
    b.web(json!({}));
    b.sync();
    for client in [&b.lab.pods[0], &b.lab.node] {
        assert_eq!(client.dial("10.96.0.10:80").expect("an answer").0, "pod0");
    }
    // A host beside the node knows no way to Service addresses.
    b.lab.outside.run("ip route del default");
    assert_eq!(b.lab.outside.dial("10.96.0.10:80").expect_err("no route").kind(), ErrorKind::NetworkUnreachable);
}

pub fn seed_064_load_balancer_address_from_inside() {
    let mut b = Bench::new(2);
    load_balancer(&mut b, json!({}));
    b.sync();
    // Short-circuited: nothing outside the node is asked, and the balancer's address needs no owner.
    b.lab.node.run("ip link set po-out down");
    for client in [&b.lab.pods[0], &b.lab.node] {
        let seen = count((0..40).map(|_| client.dial("10.112.0.1:80").expect("an answer").0));
        assert_eq!(seen.len(), 2, "{seen:?}");
    }
}

fn load_balancer(b: &mut Bench, extra: Value) {
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
        "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    merge(&mut spec, extra);
    let status = json!({"loadBalancer": {"ingress": [{"ip": "10.112.0.1", "ipMode": "VIP"}]}});
    b.cluster.service("web", spec, status);
    let pods = b.pods();
    b.endpoints("web", "TCP", &pods);
}

pub fn seed_061_load_balancer_address() {
    let mut b = Bench::new(3);
    load_balancer(&mut b, json!({}));
    b.sync();
    for client in [&b.lab.outside, &b.lab.pods[0], &b.lab.node] {
        let seen = count((0..100).map(|_| client.dial("10.112.0.1:80").expect("an answer").0));
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}

pub fn external_local_keeps_the_client() {
    let mut b = Bench::new(2);
    load_balancer(&mut b, json!({"externalTrafficPolicy": "Local"}));
    let here = |ip: String, node: &str| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": node});
    b.cluster.slice("web", &[("", "TCP", 8080)], vec![here(pod_ip(0), "node"), here(pod_ip(1), "elsewhere")]);
    b.sync();
    for to in ["10.112.0.1:80", "192.0.2.1:30080"] {
        for _ in 0..20 {
            let (name, client) = b.lab.outside.dial(to).expect("an answer");
            assert_eq!((name.as_str(), client), ("pod0", IpAddr::from([192, 0, 2, 2])), "{to}");
        }
        let seen = count((0..40).map(|_| b.lab.node.dial(to).expect("an answer").0));
        assert_eq!(seen.len(), 2, "the node itself reaches all: {seen:?}");
    }
    // No endpoint here: dropped for the outside, still served inside.
    b.cluster.slice("web", &[("", "TCP", 8080)], vec![here(pod_ip(1), "elsewhere")]);
    b.sync();
    let error = b.lab.outside.dial("10.112.0.1:80").expect_err("dropped");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(b.lab.pods[0].dial("10.112.0.1:80").expect("an answer").0, "pod1");
}

pub fn source_ranges_admit_only_theirs() {
    let mut b = Bench::new(1);
    load_balancer(&mut b, json!({"loadBalancerSourceRanges": ["10.244.0.0/24", "198.51.100.0/24"]}));
    b.sync();
    assert_eq!(b.lab.pods[0].dial("10.112.0.1:80").expect("an answer").0, "pod0");
    assert_eq!(b.lab.outside.dial("10.112.0.1:80").expect_err("not admitted").kind(), ErrorKind::TimedOut);
    load_balancer(&mut b, json!({"loadBalancerSourceRanges": ["192.0.2.2/32"]}));
    b.sync();
    assert_eq!(b.lab.outside.dial("10.112.0.1:80").expect("an answer").0, "pod0");
}

pub fn seed_067_sticky_until_the_endpoint_goes() {
    let mut b = Bench::new(4);
    b.web(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}));
    b.endpoints("web", "TCP", &[pod_ip(0), pod_ip(1)]);
    b.sync();
    let all = |b: &Bench| count((0..30).map(|_| b.lab.node.dial("10.96.0.10:80").expect("an answer").0));
    let first = all(&b);
    assert_eq!(first.len(), 1, "{first:?}");
    let chosen = first.keys().next().expect("one").clone();
    // Kept when others come.
    let pods = b.pods();
    b.endpoints("web", "TCP", &pods);
    b.sync();
    assert_eq!(all(&b).keys().next(), Some(&chosen));
    assert_eq!(all(&b).len(), 1);
    // One move when its own goes, and not back again.
    let rest: Vec<String> = (0..4).filter(|i| chosen != format!("pod{i}")).map(pod_ip).collect();
    b.endpoints("web", "TCP", &rest);
    b.sync();
    let moved = all(&b);
    assert!(moved.len() == 1 && !moved.contains_key(&chosen), "{moved:?}");
    let pods = b.pods();
    b.endpoints("web", "TCP", &pods);
    b.sync();
    assert_eq!(all(&b).keys().next(), moved.keys().next());
    // What the packet path remembers is no reason to write anything after a restart, nor is it forgotten by one.
    b.restart();
    b.sync();
    assert!(b.last_is_empty());
    assert_eq!(all(&b).keys().next(), moved.keys().next());
}

pub fn stale_udp_flow_ends() {
    let mut b = Bench::new(2);
    udp_service(&mut b);
    b.endpoints("dns", "UDP", &[pod_ip(0)]);
    b.sync();
    let socket = b.lab.pods[1].udp_socket();
    assert_eq!(exchange(&socket, "10.96.0.53:53").expect("an answer").0, "pod0");
    b.endpoints("dns", "UDP", &[pod_ip(1)]);
    b.sync();
    assert_eq!(exchange(&socket, "10.96.0.53:53").expect("an answer").0, "pod1", "the same socket, the new endpoint");
    b.endpoints("dns", "UDP", &[]);
    b.sync();
    assert_eq!(exchange(&socket, "10.96.0.53:53").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    b.endpoints("dns", "UDP", &[pod_ip(0)]);
    b.sync();
    assert_eq!(exchange(&socket, "10.96.0.53:53").expect("an answer").0, "pod0");
}

/// The same for nodePorts and for a Service that goes away; flows of others are left alone.
pub fn stale_udp_flow_of_a_node_port_ends() {
    let mut b = Bench::new(2);
    let spec = json!({"clusterIP": "10.96.0.53", "clusterIPs": ["10.96.0.53"], "type": "NodePort",
        "ports": [{"port": 53, "targetPort": 8080, "protocol": "UDP", "nodePort": 30053}]});
    b.cluster.service("dns", spec, Value::Null);
    b.endpoints("dns", "UDP", &[pod_ip(0)]);
    b.sync();
    let (socket, direct) = (b.lab.outside.udp_socket(), b.lab.node.udp_socket());
    assert_eq!(exchange(&socket, "192.0.2.1:30053").expect("an answer").0, "pod0");
    assert_eq!(exchange(&direct, "10.244.0.3:8080").expect("an answer").0, "pod1");
    b.endpoints("dns", "UDP", &[pod_ip(1)]);
    b.sync();
    assert_eq!(exchange(&socket, "192.0.2.1:30053").expect("an answer").0, "pod1");
    b.cluster.delete_service("dns");
    b.sync();
    assert_eq!(exchange(&socket, "192.0.2.1:30053").expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
    let left = b.lab.node.at(|| {
        let mut conntrack = sys::conntrack::Conntrack::open().expect("netlink");
        conntrack.flows(|f| f.original.protocol == 17).expect("flows")
    });
    assert!(left.iter().any(|f| f.original.destination_port == 8080), "somebody else's flow lives: {left:?}");
    assert!(left.iter().all(|f| !f.dnat), "{left:?}");
}

pub fn marks_of_others_survive() {
    let mut b = Bench::new(2);
    b.web(
        json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]}),
    );
    b.sync();
    // Another program marks packets before us and counts what still carries exactly its mark behind us.
    b.lab.node.run(
        "nft -f - <<X
         table ip other {
           chain before { type filter hook prerouting priority raw; meta mark set 0x00a50001; }
           chain after { type filter hook postrouting priority 300;
             tcp dport 8080 tcp flags & (syn|ack) == syn mark 0x00a50001 counter
             tcp dport 8080 tcp flags & (syn|ack) == syn mark != 0x00a50001 counter
           }
         }
X",
    );
    for to in ["10.96.0.10:80", "192.0.2.1:30080"] {
        b.lab.pods[0].dial(to).expect("an answer");
    }
    b.lab.outside.dial("192.0.2.1:30080").expect("an answer");
    let counters = b.lab.node.run("nft list chain ip other after | grep -o 'packets [0-9]*'");
    assert_eq!(counters.lines().collect::<Vec<_>>(), ["packets 3", "packets 0"]);
}
