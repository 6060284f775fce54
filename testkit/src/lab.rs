//! A private world for one test run.
//!
//! A lab is a process in new network, mount, process, cgroup, hostname and IPC namespaces, with its own `/run`,
//! `/var/lib` and `/etc/resolv.conf`, and a neighbour on its network: the outside. Everything started in it ends with it,
//! and it ends when the test process ends, even by a panic or `kill -9`: it waits on a pipe only the test holds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::{Place, cache};

/// The node's address towards the outside.
pub const NODE_ADDRESS: &str = "198.51.100.1";

/// The address of the outside.
pub const OUTSIDE_ADDRESS: &str = "198.51.100.2";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// One private world. Dropping it ends everything inside and waits until it is gone.
pub struct Lab {
    name: String,
    dir: PathBuf,
    host: Child,
    init: u32,
}

impl Lab {
    /// Makes a new one; `purpose` shows in names of directories and logs.
    ///
    /// # Errors
    /// One sentence when the tests do not run as root, or with what the set-up said.
    pub fn new(purpose: &str) -> Result<Lab> {
        if !nix::unistd::geteuid().is_root() {
            bail!("this test makes network namespaces and containers, which only root may: run it as root");
        }
        let name = format!("ptl-{purpose}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(dir.join("lib")).with_context(|| format!("making {}", dir.display()))?;
        fs::write(dir.join("resolv.conf"), format!("nameserver {OUTSIDE_ADDRESS}\n"))?;
        let inner = dir.join("lab.sh");
        fs::write(&inner, include_str!("lab.sh"))?;
        let mut host = Command::new("sh")
            .args(["-c", include_str!("lab-host.sh"), "lab-host"])
            .arg(&dir)
            .arg(&name)
            .arg(&inner)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting a shell for the lab")?;
        let output = host.stdout.take().context("the lab has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let Some(init) = line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok()) else {
            drop(host.stdin.take());
            let said = host.wait_with_output()?;
            bail!("the lab could not be set up: {line}{}", String::from_utf8_lossy(&said.stderr));
        };
        fs::create_dir_all(cache::logs())?;
        Ok(Lab { name, dir, host, init })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory seen under the same name inside and outside; removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where logs go; they stay after the lab has gone.
    pub fn logs(&self) -> PathBuf {
        cache::logs()
    }

    /// A path inside the lab as the host sees it.
    pub fn host_path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(inside.trim_start_matches('/'))
    }

    /// The node itself.
    pub fn node(&self) -> Place {
        Place::node(self.init)
    }

    /// A machine beside the node, no part of the cluster.
    pub fn outside(&self) -> Place {
        Place::outside(self.init)
    }

    /// The namespaces of a running pod, found by its hostname (so give pods of a lab different names).
    pub fn pod(&self, name: &str) -> Result<Place> {
        let mut pids: Vec<u32> = self.processes()?;
        pids.sort_unstable();
        let is_pod = |pid: u32| {
            let root = format!("/proc/{pid}/root/etc/hostname");
            fs::read_to_string(root).is_ok_and(|host| host.trim() == name) && is_container_init(pid)
        };
        let pid = pids.into_iter().find(|pid| is_pod(*pid));
        pid.map(Place::container).with_context(|| format!("no running container has the hostname {name:?}"))
    }

    /// Host numbers of all processes inside, its own first process excluded.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let own = process_namespace(self.init).context("the lab has ended")?;
        let mut inside = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            if pid != self.init && is_inside(pid, &own) {
                inside.push(pid);
            }
        }
        Ok(inside)
    }
}

/// Whether the process, or one it descends from, is in this process namespace. (A container's own is a child of the lab's.)
fn is_inside(mut pid: u32, namespace: &Path) -> bool {
    while pid > 1 {
        if process_namespace(pid).is_some_and(|n| n == namespace) {
            return true;
        }
        let Some(parent) = status_field(pid, "PPid:").and_then(|v| v.parse().ok()) else { return false };
        pid = parent;
    }
    false
}

fn process_namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Whether `pid` is process 1 of a namespace below the lab's.
fn is_container_init(pid: u32) -> bool {
    status_field(pid, "NSpid:").is_some_and(|v| {
        let numbers: Vec<&str> = v.split_whitespace().collect();
        numbers.len() >= 3 && numbers.last() == Some(&"1")
    })
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned())
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.host.stdin.take());
        let _ = self.host.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_lab_has_its_own_world_and_leaves_nothing() {
        let before = fs::read_to_string("/proc/net/dev").expect("links");
        let lab = Lab::new("selftest").expect("a lab");
        let dir = lab.dir().to_owned();
        assert_eq!(
            lab.node().sh("hostname=$(cat /proc/sys/kernel/hostname); echo $hostname").stdout.trim(),
            lab.name()
        );
        let outside = lab.outside().sh("ip -brief address show eth0");
        assert!(outside.stdout.contains("198.51.100.2/24"), "{outside:?}");
        let listen = || Ok(std::net::TcpListener::bind((NODE_ADDRESS, 0))?);
        let node = lab.node().enter(listen).expect("a listening node").local_addr().expect("its address");
        lab.outside().enter(|| Ok(std::net::TcpStream::connect(node)?)).expect_err("nobody listens any more");
        let listener = lab.node().enter(listen).expect("a listening node");
        let node = listener.local_addr().expect("its address");
        lab.outside().enter(|| Ok(std::net::TcpStream::connect(node)?)).expect("the node is reached from outside");
        let groups = lab.node().sh("cat /proc/self/cgroup");
        assert!(groups.stdout.lines().all(|l| l.ends_with(":/") || l.ends_with(":/lab-init")), "{groups:?}");
        let mut sleeper = lab.node().command("sleep");
        let mut running = crate::place::Running::spawn(sleeper.arg("1000")).expect("a program");
        assert!(lab.processes().expect("processes").contains(&(running.pid().expect("a pid") as u32)));
        drop(lab);
        running.wait(Duration::from_secs(5)).expect("the program ends with the lab");
        assert!(!dir.exists());
        assert_eq!(names(&fs::read_to_string("/proc/net/dev").expect("links")), names(&before));
    }

    fn names(links: &str) -> Vec<String> {
        links.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
    }

    #[test]
    fn a_thread_inside_opens_its_sockets_there() {
        let lab = Lab::new("sockets").expect("a lab");
        let address = lab
            .outside()
            .enter(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.connect((NODE_ADDRESS, 9))?;
                Ok(socket.local_addr()?)
            })
            .expect("a socket");
        assert_eq!(address.ip().to_string(), OUTSIDE_ADDRESS);
    }
}
