//! The node's side of the pod network: a bridge, an address and a route per pod, and giving back everything that was
//! changed on the host. Services are not its business: it only makes sure that every packet of a pod passes the node's
//! IP stack (addresses are /32 and the bridge is the only neighbour), where the proxy's rules are.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sys::{
    link::{self, Links, Route},
    netns::{self, Kinds},
};

use crate::{
    Config, Error,
    shim::{read_json, write_json},
};

/// Original values of what was changed on the host, so that `down` can put them back after a `kill -9`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ledger {
    /// File below `/proc/sys` and its first value.
    sysctls: Vec<(PathBuf, String)>,
}

/// The namespaces and the address of one pod, as kept in its file.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Sandbox {
    pub uid: String,
    /// `None` for a pod on the host's network.
    pub ip: Option<IpAddr>,
    pub hostname: String,
}

pub struct Network {
    run: PathBuf,
    links: Links,
    bridge: u32,
    bridge_name: String,
    gateway: IpAddr,
    host: File,
    pool: Mutex<Pool>,
}

/// First usable address of the node's pod range: the bridge.
pub fn gateway(pod_cidr: IpNet) -> IpAddr {
    nth(pod_cidr, 1)
}

/// Directory of a pod's namespace files.
pub fn namespaces(run: &Path, uid: &str) -> PathBuf {
    run.join("ns").join(uid)
}

fn nth(net: IpNet, n: u128) -> IpAddr {
    match net {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).wrapping_add(n as u32))),
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()).wrapping_add(n))),
    }
}

/// A locally administered address derived from the IP address: when an address returns, neighbours' caches stay right.
fn mac(ip: IpAddr) -> [u8; 6] {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            [o[12], o[13], o[14], o[15]]
        }
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

/// The host's end of a pod's link; recognisable by its prefix, 14 of the 15 bytes a name may have.
fn veth(uid: &str) -> String {
    format!("po{}", &crate::image::hex(&Sha256::digest(uid))[..12])
}

/// The addresses of a range. One that was given back is handed out again only after all others had their turn.
struct Pool {
    net: IpNet,
    used: HashMap<IpAddr, String>,
    /// Where the search goes on.
    next: u128,
    file: PathBuf,
}

impl Pool {
    fn size(&self) -> u128 {
        let bits = (self.net.max_prefix_len() - self.net.prefix_len()).min(64);
        1u128 << bits
    }

    fn take(&mut self, uid: &str) -> Option<IpAddr> {
        // Without the network's own, the bridge's, and the broadcast address.
        let usable = self.size().saturating_sub(3);
        for step in 0..usable {
            let n = (self.next + step) % usable;
            let ip = nth(self.net, n + 2);
            if !self.used.contains_key(&ip) {
                self.used.insert(ip, uid.to_owned());
                self.next = n + 1;
                if let Err(e) = write_json(&self.file, &(self.next as u64)) {
                    tracing::debug!(error = %e, "cannot keep the address pool's position");
                }
                return Some(ip);
            }
        }
        None
    }
}

impl Network {
    /// Sets the node up. What an earlier agent left and still fits is used as it is.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        let run = config.run_dir.clone();
        let fail = |what: String| move |e: &dyn std::error::Error| Error::Network(format!("{what}: {e}"));
        fs::create_dir_all(run.join("ns")).map_err(|e| fail(format!("make {}", run.display()))(&e))?;
        let host = File::open("/proc/self/ns/net").map_err(|e| fail("open this network namespace".into())(&e))?;
        let links = Links::open().map_err(|e| fail("open a netlink socket".into())(&e))?;
        let gateway = gateway(config.pod_cidr);
        let name = &config.bridge;
        let net = |e: link::Error| Error::Network(e.to_string());
        let bridge = match links.index(name).await.map_err(net)? {
            Some(index) => index,
            None => {
                links.add_bridge(name, mac(gateway)).await.map_err(|e| {
                    Error::Network(format!("{e}; making a bridge needs root and a kernel with CONFIG_BRIDGE"))
                })?;
                links
                    .index(name)
                    .await
                    .map_err(net)?
                    .ok_or_else(|| Error::Network(format!("the bridge {name} vanished")))?
            }
        };
        links.up(bridge, None).await.map_err(net)?;
        let address = IpNet::new(gateway, config.pod_cidr.prefix_len()).map_err(|e| Error::Network(e.to_string()))?;
        links.add_address(bridge, address).await.map_err(net)?;
        for to in config.routes.iter().filter(|r| r.addr().is_ipv4() == gateway.is_ipv4()) {
            let route = Route { to: *to, via: None, src: Some(gateway) };
            links.add_route(bridge, route).await.map_err(net)?;
        }
        if let Some(lo) = links.index("lo").await.map_err(net)? {
            links.up(lo, None).await.map_err(net)?;
        }
        let sysctls = [
            ("net/ipv4/ip_forward".to_owned(), "1"),
            // A pod that asks for its neighbour must not be told to go there directly, past the proxy's rules.
            ("net/ipv4/conf/all/send_redirects".to_owned(), "0"),
            (format!("net/ipv4/conf/{name}/send_redirects"), "0"),
        ];
        set_sysctls(&run, &sysctls).map_err(|e| fail("set a kernel parameter".into())(&e))?;
        let file = config.data_dir.join("addresses.json");
        let next = read_json::<u64>(&file).unwrap_or(0);
        let mut pool = Pool { net: config.pod_cidr, used: HashMap::new(), next: u128::from(next), file };
        for sandbox in found(&run) {
            if let Some(ip) = sandbox.ip {
                pool.used.insert(ip, sandbox.uid);
            }
        }
        let bridge_name = name.clone();
        Ok(Self { run, links, bridge, bridge_name, gateway, host, pool: Mutex::new(pool) })
    }

    /// Makes the namespaces of a pod and, unless it uses the host's network, its link, address and routes.
    pub async fn add(
        &self,
        uid: &str,
        hostname: &str,
        host_network: bool,
        sysctls: Vec<(String, String)>,
    ) -> Result<Sandbox, Error> {
        let dir = namespaces(&self.run, uid);
        let fail = |e: io::Error| Error::Network(format!("make the namespaces of pod {uid}: {e}"));
        fs::create_dir_all(&dir).map_err(fail)?;
        let ip = if host_network {
            None
        } else {
            let taken = self.pool.lock().unwrap_or_else(PoisonError::into_inner).take(uid);
            Some(taken.ok_or_else(|| {
                Error::Network("no address is left in the node's pod range; delete pods or use a larger range".into())
            })?)
        };
        let sandbox = Sandbox { uid: uid.to_owned(), ip, hostname: hostname.to_owned() };
        let made = self.make(&dir, &sandbox, sysctls).await;
        if let Err(e) = made {
            self.remove(uid).await;
            return Err(e);
        }
        Ok(sandbox)
    }

    async fn make(&self, dir: &Path, sandbox: &Sandbox, sysctls: Vec<(String, String)>) -> Result<(), Error> {
        let fail = |e: io::Error| Error::Network(format!("make the namespaces of pod {}: {e}", sandbox.uid));
        write_json(&dir.join("sandbox.json"), sandbox).map_err(fail)?;
        let own = sandbox.ip.is_some();
        let (path, hostname) = (dir.to_owned(), sandbox.hostname.clone());
        let runtime = tokio::runtime::Handle::current();
        let kinds = Kinds { net: own, uts: own, ipc: true };
        let setup = move || {
            if !own {
                return Ok(None);
            }
            // What container runtimes set for every pod: ordinary users may listen below 1024 and ping.
            fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
            fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
            for (name, value) in &sysctls {
                let file = Path::new("/proc/sys").join(name.replace('.', "/"));
                fs::write(&file, value).map_err(|e| io::Error::new(e.kind(), format!("set sysctl {name}: {e}")))?;
            }
            let _context = runtime.enter();
            Links::open().map(Some)
        };
        let created = tokio::task::spawn_blocking(move || netns::create(&path, kinds, &hostname, setup)).await;
        let links = created.map_err(|e| fail(io::Error::other(e)))?.map_err(fail)?;
        if let (Some(links), Some(ip)) = (links, sandbox.ip) {
            self.wire(&links, &sandbox.uid, ip).await.map_err(|e| Error::Network(e.to_string()))?;
        }
        Ok(())
    }

    async fn wire(&self, pod: &Links, uid: &str, ip: IpAddr) -> Result<(), link::Error> {
        let peer = veth(uid);
        pod.add_veth("eth0", mac(ip), &peer, self.host.as_fd()).await?;
        if let Some(index) = self.links.index(&peer).await? {
            self.links.up(index, Some(self.bridge)).await?;
        }
        if let Some(lo) = pod.index("lo").await? {
            pod.up(lo, None).await?;
        }
        let Some(index) = pod.index("eth0").await? else { return Ok(()) };
        pod.add_address(index, IpNet::from(ip)).await?;
        pod.add_route(index, Route { to: IpNet::from(self.gateway), via: None, src: None }).await?;
        let everything = if ip.is_ipv4() { IpNet::V4(Default::default()) } else { IpNet::V6(Default::default()) };
        pod.add_route(index, Route { to: everything, via: Some(self.gateway), src: None }).await
    }

    /// Takes a pod's namespaces, link and address back. Missing parts are fine.
    pub async fn remove(&self, uid: &str) {
        let removed: Result<(), link::Error> = async {
            if let Some(index) = self.links.index(&veth(uid)).await? {
                self.links.delete(index).await?;
            }
            Ok(())
        }
        .await;
        if let Err(e) = removed {
            tracing::warn!(pod = uid, error = %e, "cannot remove the pod's link");
        }
        let dir = namespaces(&self.run, uid);
        let _ = tokio::task::spawn_blocking(move || forget(&dir)).await;
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).used.retain(|_, owner| owner != uid);
    }

    /// The pod has namespaces here.
    pub fn has(&self, uid: &str) -> bool {
        namespaces(&self.run, uid).exists()
    }

    /// Removes everything from the host. No pod may be left.
    pub async fn stop(&self) -> Result<(), Error> {
        take_down(&self.links, &self.run, &self.bridge_name).await
    }
}

/// What [`Network::stop`] does, for what another process left.
pub async fn cleanup(config: &Config) -> Result<(), Error> {
    let links = Links::open().map_err(|e| Error::Network(format!("open a netlink socket: {e}")))?;
    for sandbox in found(&config.run_dir) {
        if let Some(index) = links.index(&veth(&sandbox.uid)).await.map_err(|e| Error::Network(e.to_string()))? {
            links.delete(index).await.map_err(|e| Error::Network(e.to_string()))?;
        }
        forget(&namespaces(&config.run_dir, &sandbox.uid));
    }
    for entry in fs::read_dir(config.run_dir.join("ns")).into_iter().flatten().flatten() {
        forget(&entry.path());
    }
    // Only an agent that ran here left a ledger; without one the bridge, if any, is somebody else's.
    if config.run_dir.join(LEDGER).exists() {
        take_down(&links, &config.run_dir, &config.bridge).await?;
    }
    Ok(())
}

async fn take_down(links: &Links, run: &Path, bridge: &str) -> Result<(), Error> {
    let net = |e: link::Error| Error::Network(e.to_string());
    restore_sysctls(run).map_err(|e| Error::Network(format!("restore a kernel parameter: {e}")))?;
    if let Some(index) = links.index(bridge).await.map_err(net)? {
        links.delete(index).await.map_err(net)?;
    }
    Ok(())
}

fn forget(dir: &Path) {
    if let Err(e) = netns::remove(dir).and_then(|()| fs::remove_dir_all(dir))
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), error = %e, "cannot remove a pod's namespaces");
    }
}

/// Sandboxes that an earlier agent left.
pub fn found(run: &Path) -> Vec<Sandbox> {
    let entries = fs::read_dir(run.join("ns")).into_iter().flatten().flatten();
    entries.filter_map(|e| read_json(&e.path().join("sandbox.json")).ok()).collect()
}

const LEDGER: &str = "ledger.json";

/// The ledger is on disk before the first value changes, and a value recorded earlier stays: it is the true original.
fn set_sysctls(run: &Path, wanted: &[(String, &str)]) -> io::Result<()> {
    let mut ledger: Ledger = read_json(&run.join(LEDGER)).unwrap_or_default();
    let mut changes = Vec::new();
    for (name, value) in wanted {
        let path = Path::new("/proc/sys").join(name);
        let original =
            fs::read_to_string(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        if original.trim() != *value {
            if !ledger.sysctls.iter().any(|(p, _)| *p == path) {
                ledger.sysctls.push((path.clone(), original.trim().to_owned()));
            }
            changes.push((path, *value));
        }
    }
    write_json(&run.join(LEDGER), &ledger)?;
    for (path, value) in changes {
        fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

fn restore_sysctls(run: &Path) -> io::Result<()> {
    let ledger: Ledger = read_json(&run.join(LEDGER)).unwrap_or_default();
    for (path, value) in ledger.sysctls.into_iter().rev() {
        match fs::write(&path, value) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    match fs::remove_file(run.join(LEDGER)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(net: &str) -> (tempfile::TempDir, Pool) {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("next.json");
        (dir, Pool { net: net.parse().expect("net"), used: HashMap::new(), next: 0, file })
    }

    #[test]
    fn seed_003_a_returned_address_is_not_handed_out_again_at_once() {
        let (_dir, mut pool) = pool("10.244.0.0/24");
        let first = pool.take("a").expect("address");
        assert_eq!(first, "10.244.0.2".parse::<IpAddr>().expect("ip"));
        pool.used.clear();
        assert_ne!(pool.take("b").expect("address"), first);
        assert_eq!(read_json::<u64>(&pool.file).expect("kept"), 2);
    }

    #[test]
    fn seed_003_every_address_is_unique_until_the_range_is_full() {
        let (_dir, mut pool) = pool("10.244.7.0/28");
        let all: std::collections::BTreeSet<_> = (0..13).filter_map(|i| pool.take(&i.to_string())).collect();
        assert_eq!(all.len(), 13);
        assert!(!all.contains(&gateway(pool.net)) && all.contains(&"10.244.7.14".parse::<IpAddr>().expect("ip")));
        assert_eq!(pool.take("x"), None);
        pool.used.retain(|_, o| o != "5");
        assert!(pool.take("x").is_some());
    }

    #[test]
    fn ranges_of_the_other_family_work_alike() {
        let (_dir, mut pool) = pool("fd00:10:244::/64");
        assert_eq!(pool.take("a").map(|a| a.to_string()).as_deref(), Some("fd00:10:244::2"));
        assert_eq!(veth("some-uid").len(), 14);
    }
}
