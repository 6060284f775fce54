//! What the proxy itself listens on.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use model::Snapshot;
use proxy::{Config, Proxy};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    lab::{Host, pod_ip},
    traffic::{Bench, config},
};

struct Running {
    proxy: Proxy,
    snapshots: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
}

impl Running {
    fn start(b: &Bench, config: Config) -> Self {
        let (snapshots, rx) = watch::channel(Arc::new(b.cluster.snapshot.clone()));
        let stop = CancellationToken::new();
        let token = stop.clone();
        let proxy = b.lab.node.at(move || Proxy::start(config, rx, token).unwrap_or_else(|e| panic!("{e}")));
        Self { proxy, snapshots, stop }
    }

    fn show(&self, b: &Bench) {
        self.snapshots.send_replace(Arc::new(b.cluster.snapshot.clone()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.proxy.join();
    }
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < deadline, "{what}: {last}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status line and everything behind it; an error when nobody listens.
fn get(host: &Host, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().expect("an address");
    host.at(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"GET /anything HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn local(b: &mut Bench, policy: &str) {
    let mut spec = json!({"clusterIP": "10.96.0.30", "clusterIPs": ["10.96.0.30"], "type": "LoadBalancer",
        "externalTrafficPolicy": policy, "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    if policy == "Local" {
        spec["healthCheckNodePort"] = json!(31999);
    }
    b.cluster.service("front", spec, Value::Null);
}

pub fn health_check_node_port_counts_endpoints_here() {
    let mut b = Bench::new(1);
    local(&mut b, "Local");
    b.cluster.endpoints("front", &[("", "TCP", 8080)], "node", &["10.244.0.2", "10.244.0.3"]);
    let running = Running::start(&b, config());
    let answer = eventually("the port opens and the kernel is programmed", || {
        let answer = get(&b.lab.outside, "192.0.2.1:31999").map_err(|e| e.to_string())?;
        if answer.contains("\"serviceProxyHealthy\": true") { Ok(answer) } else { Err(answer) }
    });
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.0 200 OK"), "{head}");
    assert!(head.contains("content-type: application/json\r\n") && head.contains("x-content-type-options: nosniff"));
    let wanted = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"front\"\n\t},\n\
                  \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body, wanted);
    b.cluster.endpoints("front", &[("", "TCP", 8080)], "elsewhere", &["10.244.9.2"]);
    running.show(&b);
    eventually("none here is 503", || {
        let answer = get(&b.lab.outside, "192.0.2.1:31999").map_err(|e| e.to_string())?;
        let unable = answer.starts_with("HTTP/1.0 503") && answer.contains("\"localEndpoints\": 0,");
        if unable { Ok(()) } else { Err(answer) }
    });
    local(&mut b, "Cluster");
    running.show(&b);
    eventually("the port closes", || match get(&b.lab.outside, "192.0.2.1:31999") {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

pub fn health_check_follows_node_port_addresses() {
    let mut b = Bench::new(1);
    local(&mut b, "Local");
    let only = vec!["192.0.2.0/24".parse().expect("a network")];
    let _running = Running::start(&b, Config { node_port_addresses: only, ..config() });
    eventually("the port opens", || get(&b.lab.outside, "192.0.2.1:31999").map_err(|e| e.to_string()));
    let answer = get(&b.lab.pods[0], "10.244.0.1:31999").unwrap_or_default();
    assert_eq!(answer, "", "not at other addresses");
}

pub fn node_port_on_the_loopback() {
    let mut b = Bench::new(2);
    let ports = json!([{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]);
    b.web(json!({"type": "NodePort", "ports": ports}));
    let running = Running::start(&b, Config { localhost_node_ports: true, ..config() });
    let dial = |b: &Bench, n: usize| -> Result<Vec<String>, String> {
        (0..n).map(|_| b.lab.node.dial("127.0.0.1:30080").map(|(name, _)| name).map_err(|e| e.to_string())).collect()
    };
    eventually("the loopback answers", || dial(&b, 1));
    let mut seen = dial(&b, 40).expect("answers");
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["pod0", "pod1"], "balanced");
    let (_, client) = b.lab.node.dial("127.0.0.1:30080").expect("an answer");
    assert_eq!(client, IpAddr::from([10, 244, 0, 1]));
    assert_eq!(b.lab.outside.dial("192.0.2.1:30080").expect("the kernel answers").0.len(), 4);
    // Neighbours do not get at the loopback: the kernel drops what claims to be for it.
    let conf = b.lab.node.run("cat /proc/sys/net/ipv4/conf/*/route_localnet | sort -u");
    assert_eq!(conf, "0\n", "route_localnet stays off");
    // Sticky: the loopback is one client.
    b.web(json!({"type": "NodePort", "ports": ports, "sessionAffinity": "ClientIP"}));
    running.show(&b);
    let name = eventually("always the same", || {
        let mut seen = dial(&b, 30)?;
        seen.dedup();
        if seen.len() == 1 { Ok(seen.remove(0)) } else { Err(format!("{seen:?}")) }
    });
    let other = usize::from(name == "pod0");
    b.endpoints("web", "TCP", &[pod_ip(other)]);
    running.show(&b);
    eventually("it moves once", || match dial(&b, 1)?.remove(0) {
        now if now == format!("pod{other}") => Ok(()),
        still => Err(still),
    });
    b.endpoints("web", "TCP", &[]);
    running.show(&b);
    eventually("no endpoints: refused", || match b.lab.node.dial("127.0.0.1:30080") {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // A port that somebody has, until they let go of it.
    let squatter = b.lab.node.at(|| TcpListener::bind("127.0.0.1:30080").expect("free now"));
    b.endpoints("web", "TCP", &[pod_ip(0)]);
    running.show(&b);
    eventually("the rest works", || b.lab.outside.dial("192.0.2.1:30080").map_err(|e| e.to_string()));
    drop(squatter);
    eventually("tried again", || dial(&b, 1));
}
