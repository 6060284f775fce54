//! LoadBalancer addresses: which Service has which, as one function of all Services. What is assigned stays; what was
//! asked for by name comes before what is merely free. It refuses to know who announces the addresses.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    object::{Addressing, Exposure, IpFamily, LoadBalancer, Service},
    snapshot::ServiceKey,
};

/// The `loadBalancerClass` that is ours, beside none at all.
pub const CLASS: &str = "portolan.dev/lb";

/// Addresses to give away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: Arc<str>,
    pub ranges: Vec<IpNet>,
    /// Given to Services that ask for nothing in particular.
    pub auto_assign: bool,
}

/// Why a Service has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `spec.loadBalancerIP` is in none of the pools.
    NotInPool(IpAddr),
    Taken(IpAddr, ServiceKey),
    /// `spec.loadBalancerIP` is of a family the Service does not have.
    WrongFamily(IpAddr),
    NoPool(IpFamily),
    Exhausted(IpFamily, Vec<Arc<str>>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInPool(ip) => {
                write!(f, "{ip} is in no address pool: add a pool that has it, or remove spec.loadBalancerIP")
            }
            Self::Taken(ip, by) => write!(f, "{ip} is already allocated to the Service {by}"),
            Self::WrongFamily(ip) => write!(f, "{ip} is not of an IP family of the Service (spec.ipFamilies)"),
            Self::NoPool(family) => {
                write!(f, "no address pool has {} addresses: add one with --lb-pool", family.as_str())
            }
            Self::Exhausted(family, pools) => {
                write!(
                    f,
                    "no {} address left in pool {}: delete a Service or add a pool",
                    family.as_str(),
                    pools.join(", ")
                )
            }
        }
    }
}

/// An address and the pool it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub ip: IpAddr,
    pub pool: Arc<str>,
}

pub type Assignment = BTreeMap<ServiceKey, Result<Vec<Allocation>, Refusal>>;

/// The LoadBalancer part of a Service whose addresses are ours to give.
pub fn ours(service: &Service) -> Option<&LoadBalancer> {
    match (&service.exposure, &service.addressing) {
        (Exposure::LoadBalancer(lb), Addressing::ClusterIp(_)) if !service.meta.deleting => {
            lb.class.as_deref().is_none_or(|c| c == CLASS).then_some(lb)
        }
        _ => None,
    }
}

/// Addresses for all LoadBalancer Services. Older Services choose first; an assigned address that is still valid stays.
pub fn assign<'a>(services: impl Iterator<Item = &'a Arc<Service>>, pools: &[Pool]) -> Assignment {
    let mut claims: Vec<(&Service, &LoadBalancer)> = services.filter_map(|s| Some((&**s, ours(s)?))).collect();
    claims.sort_by(|(a, _), (b, _)| {
        (&a.meta.creation_timestamp, &a.meta.key).cmp(&(&b.meta.creation_timestamp, &b.meta.key))
    });
    let mut taken: HashMap<IpAddr, &ServiceKey> = HashMap::new();
    let mut held: HashMap<&ServiceKey, Vec<Allocation>> = HashMap::new();
    // 1. What is assigned and may stay.
    for (service, lb) in &claims {
        for ingress in &lb.ingress {
            let Some(pool) = pool_of(&ingress.ip, pools) else { continue };
            let family = IpFamily::of(&ingress.ip);
            let wanted = lb.requested.is_none_or(|r| r == ingress.ip || IpFamily::of(&r) != family);
            let have = held.entry(&service.meta.key).or_default();
            if wanted
                && service.families.contains(&family)
                && !have.iter().any(|a| IpFamily::of(&a.ip) == family)
                && claim(&mut taken, ingress.ip, &service.meta.key)
            {
                have.push(Allocation { ip: ingress.ip, pool: pool.name.clone() });
            }
        }
    }
    // 2. What is asked for by address; 3. anything free.
    let mut result = Assignment::new();
    for asked in [true, false] {
        for (service, lb) in claims.iter().filter(|(_, lb)| lb.requested.is_some() == asked) {
            let have = held.remove(&service.meta.key).unwrap_or_default();
            result.insert(service.meta.key.clone(), complete(service, lb, have, pools, &mut taken));
        }
    }
    result
}

/// True when the address was free; it is the Service's now.
fn claim<'a>(taken: &mut HashMap<IpAddr, &'a ServiceKey>, ip: IpAddr, service: &'a ServiceKey) -> bool {
    match taken.entry(ip) {
        Entry::Occupied(_) => false,
        Entry::Vacant(slot) => {
            slot.insert(service);
            true
        }
    }
}

fn complete<'a>(
    service: &'a Service,
    lb: &LoadBalancer,
    mut have: Vec<Allocation>,
    pools: &[Pool],
    taken: &mut HashMap<IpAddr, &'a ServiceKey>,
) -> Result<Vec<Allocation>, Refusal> {
    if let Some(ip) = lb.requested
        && !have.iter().any(|a| a.ip == ip)
    {
        if !service.families.contains(&IpFamily::of(&ip)) {
            return Err(Refusal::WrongFamily(ip));
        }
        let pool = pool_of(&ip, pools).ok_or(Refusal::NotInPool(ip))?;
        if let Some(by) = taken.get(&ip) {
            return Err(Refusal::Taken(ip, (*by).clone()));
        }
        taken.insert(ip, &service.meta.key);
        have.push(Allocation { ip, pool: pool.name.clone() });
    }
    for (i, family) in service.families.iter().enumerate() {
        if have.iter().any(|a| IpFamily::of(&a.ip) == *family) {
            continue;
        }
        match free(*family, pools, taken) {
            Ok(allocation) => {
                taken.insert(allocation.ip, &service.meta.key);
                have.push(allocation);
            }
            // The second family is welcome, not required: a pool of one family is the common case.
            Err(refusal) if i == 0 => return Err(refusal),
            Err(_) => (),
        }
    }
    let place = |a: &Allocation| service.families.iter().position(|f| *f == IpFamily::of(&a.ip));
    have.sort_by_key(place);
    Ok(have)
}

fn pool_of<'p>(ip: &IpAddr, pools: &'p [Pool]) -> Option<&'p Pool> {
    pools.iter().find(|p| p.ranges.iter().any(|r| r.contains(ip) && usable(r, ip)))
}

fn free(family: IpFamily, pools: &[Pool], taken: &HashMap<IpAddr, &ServiceKey>) -> Result<Allocation, Refusal> {
    let is_of = |r: &IpNet| IpFamily::of(&r.addr()) == family;
    let fit: Vec<_> = pools.iter().filter(|p| p.auto_assign && p.ranges.iter().any(is_of)).collect();
    if fit.is_empty() {
        return Err(Refusal::NoPool(family));
    }
    for pool in &fit {
        for range in pool.ranges.iter().filter(|r| is_of(r)) {
            // At most as many are taken as Services exist, so this ends soon also in an IPv6 range.
            let hosts: Box<dyn Iterator<Item = IpAddr>> = match range {
                IpNet::V4(r) => Box::new(r.hosts().map(IpAddr::V4)),
                IpNet::V6(r) => Box::new(r.hosts().map(IpAddr::V6)),
            };
            for ip in hosts {
                if usable(range, &ip) && !taken.contains_key(&ip) {
                    return Ok(Allocation { ip, pool: pool.name.clone() });
                }
            }
        }
    }
    Err(Refusal::Exhausted(family, fit.iter().map(|p| p.name.clone()).collect()))
}

/// Network and broadcast addresses are left alone: some routers and clients drop them.
fn usable(range: &IpNet, ip: &IpAddr) -> bool {
    range.prefix_len() + 1 >= range.max_prefix_len()
        || (*ip != range.network() && (ip.is_ipv6() || *ip != range.broadcast()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::parse;

    fn pool(range: &str) -> Vec<Pool> {
        vec![Pool { name: "default".into(), ranges: vec![range.parse().unwrap()], auto_assign: true }]
    }

    fn svc(name: &str, age: u32, spec: &Value, ingress: &[&str]) -> Arc<Service> {
        let mut v = json!({"metadata": {"name": name, "namespace": "default", "creationTimestamp": format!("2026-11-21T00:00:{age:02}Z")},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9"},
            "status": {"loadBalancer": {"ingress": ingress.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}}});
        for (k, x) in spec.as_object().into_iter().flatten() {
            v["spec"][k] = x.clone();
        }
        Arc::new(parse::service(&v).0.unwrap())
    }

    fn ips(a: &Assignment, name: &str) -> String {
        match a.get(&ServiceKey::new("default", name)) {
            None => "not ours".into(),
            Some(Ok(list)) => list.iter().map(|a| a.ip.to_string()).collect::<Vec<_>>().join(","),
            Some(Err(e)) => e.to_string(),
        }
    }

    #[test]
    fn seed_054_first_come_first_served_and_what_is_assigned_stays() {
        let services =
            [svc("a", 2, &json!({}), &[]), svc("b", 1, &json!({}), &[]), svc("c", 3, &json!({}), &["10.112.0.1"])];
        let a = assign(services.iter(), &pool("10.112.0.0/24"));
        assert_eq!(
            (ips(&a, "a"), ips(&a, "b"), ips(&a, "c")),
            ("10.112.0.3".into(), "10.112.0.2".into(), "10.112.0.1".into())
        );
    }

    #[test]
    fn seed_060_an_address_can_be_asked_for() {
        let ask = |ip: &str| json!({"loadBalancerIP": ip});
        let services = [
            svc("a", 1, &ask("203.0.113.10"), &["203.0.113.5"]),
            svc("b", 2, &ask("203.0.113.10"), &[]),
            svc("c", 3, &ask("192.0.2.1"), &[]),
            svc("d", 4, &json!({"loadBalancerClass": "metallb"}), &[]),
            svc("e", 5, &json!({"loadBalancerClass": CLASS}), &[]),
        ];
        let a = assign(services.iter(), &pool("203.0.113.0/24"));
        assert_eq!(ips(&a, "a"), "203.0.113.10");
        assert_eq!(ips(&a, "b"), "203.0.113.10 is already allocated to the Service default/a");
        assert!(ips(&a, "c").starts_with("192.0.2.1 is in no address pool"));
        assert_eq!(ips(&a, "d"), "not ours");
        assert_eq!(ips(&a, "e"), "203.0.113.1");
    }

    #[test]
    fn an_empty_pool_says_so() {
        let services = [svc("a", 1, &json!({}), &[]), svc("b", 2, &json!({}), &[]), svc("c", 3, &json!({}), &[])];
        let a = assign(services.iter(), &pool("10.112.0.0/30"));
        assert_eq!(ips(&a, "c"), "no IPv4 address left in pool default: delete a Service or add a pool");
        assert!(ips(&assign(services.iter(), &[]), "a").starts_with("no address pool has IPv4 addresses"));
        let two = assign(
            [svc("d", 1, &json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.9", "fd00::9"]}), &[])].iter(),
            &pool("10.112.0.0/24"),
        );
        assert_eq!(ips(&two, "d"), "10.112.0.1");
    }

    proptest! {
        /// No address twice, and written back as status it is a fixed point.
        #[test]
        fn assignments_are_unique_and_stable(start in prop::collection::vec((0_u8..20, 0_u8..20), 1..25)) {
            let services: Vec<_> = start.iter().enumerate().map(|(i, (asked, has))| {
                let spec = if *asked < 6 { json!({"loadBalancerIP": format!("10.112.0.{asked}")}) } else { json!({}) };
                let has = format!("10.112.0.{has}");
                let ingress: &[&str] = if has.ends_with('3') { &[] } else { &[&has] };
                svc(&format!("s{i}"), u32::try_from(i).unwrap(), &spec, ingress)
            }).collect();
            let first = assign(services.iter(), &pool("10.112.0.0/28"));
            let mut all: Vec<_> = first.values().flatten().flatten().map(|a| a.ip).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count);
            let written: Vec<_> = services.iter().map(|s| {
                let mut s = (**s).clone();
                if let Exposure::LoadBalancer(lb) = &mut s.exposure {
                    lb.ingress = first[&s.meta.key].iter().flatten().map(|a| crate::object::Ingress { ip: a.ip, proxy: false }).collect();
                }
                Arc::new(s)
            }).collect();
            let again = assign(written.iter(), &pool("10.112.0.0/28"));
            for (key, a) in &first {
                prop_assert_eq!(a.is_ok(), again[key].is_ok());
                if a.is_ok() {
                    prop_assert_eq!(a, &again[key]);
                }
            }
        }
    }
}
