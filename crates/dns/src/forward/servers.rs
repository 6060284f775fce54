//! Which servers to ask: given ones, or those of a `resolv.conf(5)`, which may change while we run.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Where questions outside the cluster go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// Nowhere: such questions are refused.
    None,
    Servers(Vec<SocketAddr>),
    /// The `nameserver` lines of this file, followed while it changes.
    ResolvConf(PathBuf),
}

impl Default for Upstreams {
    fn default() -> Self {
        Self::ResolvConf("/etc/resolv.conf".into())
    }
}

struct File {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

pub struct Servers {
    upstreams: Upstreams,
    ours: Vec<SocketAddr>,
    file: Mutex<File>,
}

impl Servers {
    pub fn new(upstreams: Upstreams, ours: Vec<SocketAddr>) -> Self {
        let upstreams = match upstreams {
            Upstreams::Servers(servers) if servers.is_empty() => Upstreams::None,
            other => other,
        };
        Self { upstreams, ours, file: Mutex::new(File { looked: None, modified: None, servers: Vec::new() }) }
    }

    pub fn configured(&self) -> bool {
        self.upstreams != Upstreams::None
    }

    /// In the order in which they are named, without ourselves.
    pub fn current(&self) -> Vec<SocketAddr> {
        let servers = match &self.upstreams {
            Upstreams::None => Vec::new(),
            Upstreams::Servers(servers) => servers.clone(),
            Upstreams::ResolvConf(path) => self.of_file(path),
        };
        servers.into_iter().filter(|s| !self.is_ours(s)).collect()
    }

    /// A question to ourselves would come back for ever.
    fn is_ours(&self, server: &SocketAddr) -> bool {
        self.ours.iter().any(|o| {
            o.port() == server.port()
                && (o.ip() == server.ip() || (o.ip().is_unspecified() && server.ip().is_loopback()))
        })
    }

    fn of_file(&self, path: &Path) -> Vec<SocketAddr> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.looked.is_some_and(|l| l.elapsed() < LOOK) {
            return file.servers.clone();
        }
        let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
        if file.looked.is_none() || modified != file.modified {
            match std::fs::read_to_string(path) {
                Ok(text) => file.servers = name_servers(&text),
                Err(error) => tracing::warn!(%error, path = %path.display(), "cannot read the upstream servers"),
            }
            file.modified = modified;
        }
        file.looked = Some(Instant::now());
        file.servers.clone()
    }
}

fn name_servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let name_server = words.next() == Some("nameserver");
        // A zone behind `%` is of no use without its interface's number.
        let ip = words.next()?.split('%').next()?.parse::<IpAddr>().ok()?;
        name_server.then_some(SocketAddr::new(ip, 53))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_and_we_are_left_out() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 192.0.2.1\n nameserver fe80::1%eth0 # x\nnameserver\nnameserver x\nnameserver 10.96.0.10\n";
        let list = name_servers(text);
        assert_eq!(list.len(), 3);
        let servers = Servers::new(Upstreams::Servers(list), vec!["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(servers.current(), ["192.0.2.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()]);
        let servers = Servers::new(
            Upstreams::Servers(vec!["127.0.0.1:53".parse().unwrap()]),
            vec!["0.0.0.0:53".parse().unwrap()],
        );
        assert!(servers.current().is_empty());
    }
}
