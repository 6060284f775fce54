//! Who asks: which sources are answered, how often each may ask, and who asks most.

use std::{
    collections::HashMap,
    fmt::Write,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use model::{
    Snapshot,
    names::{Directory, RecordType},
};

/// Sources counted apart; two that share a slot share its allowance for a second.
const SLOTS: usize = 4096;
/// Entries of a list of those who ask most.
const TOP: usize = 128;
/// One query in so many is looked at for those lists.
pub const SAMPLE: u64 = 256;

/// The rules about sources.
pub struct Sources {
    /// Always answered; when empty and the cluster is not asked for either, everybody is.
    allow: Vec<IpNet>,
    /// Nodes, pods and this host are answered too.
    cluster: bool,
    /// Addresses of nodes and ranges of their pods, from the newest snapshot.
    nodes: ArcSwap<Vec<IpNet>>,
    /// Queries a second and source over UDP; 0 for any number.
    rate: u32,
    /// By hash of the source: the second it was last heard in, and how often in that second.
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
    begun: Instant,
    top: Mutex<Top>,
}

#[derive(Default)]
struct Top {
    sources: HashMap<IpAddr, u64>,
    names: HashMap<(String, RecordType), u64>,
}

impl Sources {
    pub fn new(allow: Vec<IpNet>, cluster: bool, rate: u32) -> Self {
        Self {
            allow,
            cluster,
            nodes: ArcSwap::default(),
            rate,
            slots: (0..if rate > 0 { SLOTS } else { 0 }).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            begun: Instant::now(),
            top: Mutex::default(),
        }
    }

    /// Takes over the addresses of the nodes.
    pub fn follow(&self, snapshot: &Snapshot) {
        if self.cluster {
            let nodes = snapshot.nodes.values();
            let all =
                nodes.flat_map(|n| n.addresses.iter().map(|a| IpNet::from(*a)).chain(n.pod_cidrs.iter().copied()));
            self.nodes.store(all.collect::<Vec<_>>().into());
        }
    }

    pub fn allows(&self, directory: &Directory, peer: IpAddr) -> bool {
        if self.allow.is_empty() && !self.cluster {
            return true;
        }
        let peer = peer.to_canonical();
        self.allow.iter().any(|net| net.contains(&peer))
            || self.cluster
                && (peer.is_loopback()
                    || directory.is_pod(&peer)
                    || self.nodes.load().iter().any(|net| net.contains(&peer)))
    }

    /// One more query from there; false when it has had its share of this second.
    pub fn admit(&self, peer: IpAddr) -> bool {
        if self.rate == 0 {
            return true;
        }
        let now = self.begun.elapsed().as_secs() & 0xffff_ffff;
        let slot = &self.slots[self.hasher.hash_one(peer.to_canonical()) as usize % SLOTS];
        // Threads may overwrite each other's count now and then; a share need not be exact.
        let before = slot.load(Ordering::Relaxed);
        let count = if before >> 32 == now { (before & 0xffff_ffff) + 1 } else { 1 };
        slot.store(now << 32 | count, Ordering::Relaxed);
        count <= u64::from(self.rate)
    }

    /// Notes a sampled query.
    pub fn sample(&self, peer: IpAddr, name: &model::names::Name, kind: RecordType) {
        let mut top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut top.sources, peer.to_canonical());
        count(&mut top.names, (name.to_string(), kind));
    }

    /// The lists, as text, largest first.
    pub fn report(&self) -> String {
        let top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = format!("# one query in {SAMPLE} is counted; estimates are never too low\n# sources\n");
        let mut sources: Vec<_> = top.sources.iter().collect();
        sources.sort_by(|a, b| b.1.cmp(a.1));
        for (ip, n) in sources {
            let _ = writeln!(out, "{}\t{ip}", n * SAMPLE);
        }
        out.push_str("# names\n");
        let mut names: Vec<_> = top.names.iter().collect();
        names.sort_by(|a, b| b.1.cmp(a.1));
        for ((name, kind), n) in names {
            let _ = writeln!(out, "{}\t{name} {kind}", n * SAMPLE);
        }
        out
    }
}

/// The space-saving algorithm (Metwally, Agrawal, El Abbadi 2005): a newcomer takes the place, and the count, of the
/// smallest entry.
fn count<K: std::hash::Hash + Eq + Clone>(top: &mut HashMap<K, u64>, key: K) {
    if let Some(n) = top.get_mut(&key) {
        *n += 1;
        return;
    }
    let mut from = 0;
    if top.len() >= TOP
        && let Some((smallest, n)) = top.iter().min_by_key(|(_, n)| **n).map(|(k, n)| (k.clone(), *n))
    {
        top.remove(&smallest);
        from = n;
    }
    top.insert(key, from + 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_share() {
        let sources = Sources::new(Vec::new(), false, 3);
        let (noisy, quiet) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        // At most two seconds are touched while this runs.
        assert!((0..100).filter(|_| sources.admit(noisy)).count() <= 6);
        assert!(sources.admit(quiet));
    }

    #[test]
    fn the_loudest_are_found_in_little_memory() {
        let sources = Sources::new(Vec::new(), false, 0);
        let name = "web.default.svc.cluster.local".parse().unwrap();
        for i in 0..10_000u32 {
            let peer = if i % 3 == 0 { 1 } else { i };
            sources.sample(std::net::Ipv4Addr::from(peer).into(), &name, RecordType::A);
        }
        let report = sources.report();
        let first = report.lines().nth(2).unwrap();
        assert!(first.ends_with("\t0.0.0.1"), "{report}");
        assert!(report.contains("2560000\tweb.default.svc.cluster.local. A"), "{report}");
        assert!(report.lines().count() < 2 * TOP);
    }
}
