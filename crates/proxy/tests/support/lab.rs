//! A node, pods and an outside host in network namespaces of their own. Each namespace belongs to a thread; whatever
//! the thread opens or starts is inside. Nothing of the host is touched, and all of it ends with the threads.
#![allow(dead_code, reason = "each user takes a part")]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct Host {
    jobs: mpsc::Sender<Job>,
    pub tid: i32,
}

impl Host {
    pub fn start() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ready.send(nix::unistd::gettid().as_raw()).expect("somebody waits");
            inbox.into_iter().for_each(|job| job());
        });
        let tid = started.recv().expect("the thread started");
        let host = Self { jobs, tid };
        host.run("ip link set lo up");
        host
    }

    /// Runs in this host's namespace and waits for the result.
    pub fn at<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(tx.send(job())))).expect("the host lives");
        rx.recv().expect("the job finished without a panic")
    }

    /// Shell commands, all of which must succeed.
    pub fn run(&self, script: &str) -> String {
        let script = script.to_owned();
        self.at(move || {
            let out = Command::new("sh").args(["-ec", &script]).output().expect("sh runs");
            assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
    }

    pub fn write(&self, path: &'static str, value: &'static str) {
        self.at(move || std::fs::write(path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// Answers TCP and UDP on a port with "name client-address", until the process ends.
    pub fn echo(&self, name: &str, port: u16) {
        let name = name.to_owned();
        self.at(move || {
            let tcp = TcpListener::bind(("::", port)).expect("a TCP port");
            let udp = UdpSocket::bind(("::", port)).expect("a UDP port");
            let answer = move |peer: SocketAddr| {
                let ip = peer.ip().to_canonical();
                format!("{name} {ip}").into_bytes()
            };
            let say = answer.clone();
            thread::spawn(move || {
                for stream in tcp.incoming() {
                    let Ok(mut stream) = stream else { continue };
                    let Ok(peer) = stream.peer_addr() else { continue };
                    let _ = stream.write_all(&say(peer));
                }
            });
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&answer(peer), peer);
                }
            });
        });
    }

    /// Dials TCP and returns what the server said: its name and the client address it saw.
    pub fn dial(&self, to: &str) -> std::io::Result<(String, IpAddr)> {
        let to: SocketAddr = to.parse().expect("an address");
        self.at(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(parts(&text))
        })
    }

    /// Sends one datagram and returns the answer.
    pub fn ask(&self, to: &str) -> std::io::Result<(String, IpAddr)> {
        let to = to.to_owned();
        self.at(move || {
            let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
            exchange(&socket, &to)
        })
    }

    pub fn udp_socket(&self) -> UdpSocket {
        self.at(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"))
    }
}

/// One question and answer over a socket that may be used again: the same flow.
pub fn exchange(socket: &UdpSocket, to: &str) -> std::io::Result<(String, IpAddr)> {
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buffer = [0; 512];
    let n = socket.recv(&mut buffer)?;
    Ok(parts(&String::from_utf8_lossy(&buffer[..n])))
}

fn parts(text: &str) -> (String, IpAddr) {
    let (name, ip) = text.split_once(' ').unwrap_or((text, "0.0.0.0"));
    (name.into(), ip.parse().expect("an address"))
}

/// A node with bridge, pods (10.244.0.2 and up, fd00:244::2 and up) and a host outside (192.0.2.2).
pub struct Lab {
    pub node: Host,
    pub outside: Host,
    pub pods: Vec<Host>,
}

impl Lab {
    pub fn new(pods: usize) -> Self {
        let node = Host::start();
        let outside = Host::start();
        node.run(&format!(
            "ip link add portolan0 type bridge
             ip addr add 10.244.0.1/24 dev portolan0
             ip -6 addr add fd00:244::1/64 dev portolan0 nodad
             ip link set portolan0 up
             ip link add po-out type veth peer name eth0 netns {}
             ip addr add 192.0.2.1/24 dev po-out
             ip link set po-out up
             ip route add 10.96.0.0/12 dev portolan0 src 10.244.0.1
             ip route add 10.112.0.0/24 dev portolan0 src 10.244.0.1
             ip -6 route add fd00:96::/108 dev portolan0 src fd00:244::1",
            outside.tid
        ));
        node.write("/proc/sys/net/ipv4/ip_forward", "1");
        node.write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
        node.write("/proc/sys/net/ipv4/conf/all/send_redirects", "0");
        node.write("/proc/sys/net/ipv4/conf/portolan0/send_redirects", "0");
        outside.run("ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.1");
        let pods = (0..pods)
            .map(|i| {
                let pod = Host::start();
                node.run(&format!(
                    "ip link add po{i} type veth peer name eth0 netns {tid}
                     ip link set po{i} master portolan0 up
                     ip link set po{i} type bridge_slave hairpin on",
                    tid = pod.tid
                ));
                let last = i + 2;
                pod.run(&format!(
                    "ip link set eth0 up
                     ip addr add 10.244.0.{last}/32 dev eth0
                     ip route add 10.244.0.1 dev eth0 scope link
                     ip route add default via 10.244.0.1
                     ip -6 addr add fd00:244::{last}/128 dev eth0 nodad
                     ip -6 route add fd00:244::1 dev eth0
                     ip -6 route add default via fd00:244::1"
                ));
                pod.echo(&format!("pod{i}"), 8080);
                pod
            })
            .collect();
        Self { node, outside, pods }
    }
}

pub fn pod_ip(i: usize) -> String {
    format!("10.244.0.{}", i + 2)
}
