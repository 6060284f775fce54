//! ClusterIP, nodePort and healthCheckNodePort: who has which, who gets which, and kube-apiserver's words when the answer is
//! no. The state lives in memory and is rebuilt from the list of Services at start. Addresses and ports are split into two
//! bands: automatic allocation uses the upper one first, so that static requests for low numbers rarely collide (KEP-3070,
//! KEP-3668).

mod families;
mod pools;

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;
use serde_json::{Value, json};

use self::pools::{AddressPool, PortPool};
use super::{
    ErrorKind, FieldError, list,
    service::{is_headless, needs_health_check, needs_node_port, strings},
};

/// What is handed out. Make it with [`Allocations::new`], then [`Allocations::adopt`] every stored Service.
#[derive(Debug)]
pub struct Allocations {
    /// One or two, the first is the default family.
    pools: Vec<AddressPool>,
    ports: PortPool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Address(IpAddr),
    Port(u16),
}

/// What one write took and what it will give back. Pass it to [`Allocations::commit`] once the write is durable, or to
/// [`Allocations::rollback`] when it failed.
#[derive(Debug, Default)]
#[must_use = "commit it after the write, or roll it back"]
pub struct Reservation {
    owner: Option<Arc<str>>,
    taken: Vec<Held>,
    freed: Vec<Held>,
}

/// Successive numbers from the caller's random one (SplitMix64).
struct Picks(u64);

impl Picks {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn owner_of(service: &Value) -> Arc<str> {
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name")).into()
}

/// Everything a Service holds.
fn held(service: &Value) -> Vec<Held> {
    let spec = &service["spec"];
    let addresses = strings(spec, "clusterIPs").into_iter().filter_map(|ip| ip.parse().ok()).map(Held::Address);
    let node_ports = list(spec, "ports").iter().map(|p| &p["nodePort"]).chain([&spec["healthCheckNodePort"]]);
    let node_ports = node_ports.filter_map(port_number).map(Held::Port);
    let mut out: Vec<Held> = addresses.chain(node_ports).collect();
    let mut seen = Vec::new();
    out.retain(|h| {
        !seen.contains(h) && {
            seen.push(*h);
            true
        }
    });
    out
}

/// A port that is set; what does not fit 16 bits is the validation's business.
fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

impl Allocations {
    /// `cidrs`: the Service ranges, default family first. `ports`: `--service-node-port-range`.
    pub fn new(cidrs: Vec<IpNet>, ports: RangeInclusive<u16>) -> Self {
        Self { pools: cidrs.into_iter().map(AddressPool::new).collect(), ports: PortPool::new(ports) }
    }

    /// Takes in a stored Service at start. Conflicts with earlier ones are tolerated: first come, first kept.
    pub fn adopt(&mut self, service: &Value) {
        let owner = owner_of(service);
        for held in held(service) {
            match held {
                Held::Address(ip) => {
                    if let Some(pool) = self.pools.iter_mut().find(|p| p.contains(&ip)) {
                        pool.adopt(ip, &owner);
                    }
                }
                Held::Port(port) => self.ports.adopt(port, &owner),
            }
        }
    }

    /// Allocates what `new` needs and does not have, writing it into `new`; checks and takes what it asks for. `old` is the
    /// stored Service on an update. `pick` is a random number that chooses among the free ones.
    pub fn reserve(&mut self, old: Option<&Value>, new: &mut Value, pick: u64) -> Result<Reservation, Vec<FieldError>> {
        let mut reservation = Reservation { owner: Some(owner_of(new)), ..Reservation::default() };
        let mut picks = Picks(pick);
        let result = self.reserve_all(old.map(|o| &o["spec"]), &mut new["spec"], &mut picks, &mut reservation);
        match result {
            Ok(()) => Ok(reservation),
            Err(errors) => {
                self.rollback(reservation);
                Err(errors)
            }
        }
    }

    fn reserve_all(
        &mut self,
        before: Option<&Value>,
        spec: &mut Value,
        picks: &mut Picks,
        reservation: &mut Reservation,
    ) -> Result<(), Vec<FieldError>> {
        let configured: Vec<&str> = self.pools.iter().map(|p| p.family.as_str()).collect();
        families::initialize(before, spec, &configured)?;
        self.reserve_addresses(before, spec, picks, reservation)?;
        match before {
            None => self.node_ports_on_create(spec, picks, reservation)?,
            Some(before) => self.node_ports_on_update(before, spec, picks, reservation)?,
        }
        self.health_check_port(before, spec, picks, reservation)
    }

    fn reserve_addresses(
        &mut self,
        before: Option<&Value>,
        spec: &mut Value,
        picks: &mut Picks,
        reservation: &mut Reservation,
    ) -> Result<(), Vec<FieldError>> {
        let external = |s: &Value| s["type"] == "ExternalName";
        if let Some(before) = before.filter(|b| !external(b)) {
            if is_headless(before) || families::settled(before, spec) {
                return Ok(());
            }
            let addresses =
                strings(before, "clusterIPs").into_iter().filter_map(|ip| ip.parse().ok()).map(Held::Address);
            if external(spec) {
                reservation.freed.extend(addresses);
                return Ok(());
            }
            let (had, has) = (strings(before, "ipFamilies").len(), strings(spec, "ipFamilies").len());
            if had == 2 && has == 1 {
                reservation.freed.extend(addresses.skip(1));
                return Ok(());
            }
            if !(had == 1 && has == 2) {
                return Ok(());
            }
        }
        if external(spec) || is_headless(spec) {
            return Ok(());
        }
        let families = strings(spec, "ipFamilies");
        let mut ips = strings(spec, "clusterIPs");
        let asked = ips.clone();
        // On an upgrade to dual stack the first address is there already.
        let kept = before.filter(|b| !external(b)).map_or(0, |b| strings(b, "clusterIPs").len());
        ips.resize(families.len().max(ips.len()), String::new());
        let owner = reservation.owner.clone().unwrap_or_else(|| "".into());
        for (i, family) in families.iter().enumerate().skip(kept) {
            let Some(pool) = self.pools.iter_mut().find(|p| p.family.as_str() == family) else { continue };
            let requested = ips[i].clone();
            let ip = if requested.is_empty() {
                pool.allocate_next(picks.next(), &owner).ok_or_else(|| {
                    vec![FieldError::new(
                        ErrorKind::Internal,
                        "spec.clusterIPs",
                        "",
                        format!("failed to allocate a serviceIP: range is full ({})", pool.cidr),
                    )]
                })?
            } else {
                let refuse = |why: String| {
                    let detail = format!("failed to allocate IP {requested}: {why}");
                    vec![FieldError::invalid("spec.clusterIPs", json!(asked), detail)]
                };
                // What is no address never gets here: the families check has refused it.
                let Ok(ip) = requested.parse::<IpAddr>() else { continue };
                pool.allocate(ip, &owner).map_err(refuse)?;
                ip
            };
            reservation.taken.push(Held::Address(ip));
            ips[i] = ip.to_string();
        }
        if let Some(first) = ips.first() {
            spec["clusterIP"] = first.as_str().into();
            spec["clusterIPs"] = json!(ips);
        }
        Ok(())
    }

    /// Ports of one number (TCP and UDP) share one nodePort unless they ask for different ones.
    fn node_ports_on_create(
        &mut self,
        spec: &mut Value,
        picks: &mut Picks,
        reservation: &mut Reservation,
    ) -> Result<(), Vec<FieldError>> {
        if !matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
            return Ok(());
        }
        let automatic = needs_node_port(spec);
        let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return Ok(()) };
        let mut chosen: Vec<(i64, u64)> = Vec::new();
        for i in 0..ports.len() {
            let number = ports[i]["port"].as_i64().unwrap_or(0);
            let own = ports[i]["nodePort"].as_u64().unwrap_or(0);
            if own == 0 && !automatic {
                continue;
            }
            match chosen.iter().find(|(p, _)| *p == number).map(|(_, n)| *n) {
                None => {
                    let asked = ports[i..]
                        .iter()
                        .filter(|p| p["port"].as_i64() == Some(number))
                        .find_map(|p| p["nodePort"].as_u64().filter(|n| *n != 0));
                    let port = match asked {
                        Some(asked) => self.take_port(asked, i, reservation)?,
                        None => self.next_port(picks, reservation)?,
                    };
                    ports[i]["nodePort"] = port.into();
                    chosen.push((number, u64::from(port)));
                }
                Some(shared) if own == 0 => ports[i]["nodePort"] = shared.into(),
                Some(shared) if own != shared => {
                    self.take_port(own, i, reservation)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn node_ports_on_update(
        &mut self,
        before: &Value,
        spec: &mut Value,
        picks: &mut Picks,
        reservation: &mut Reservation,
    ) -> Result<(), Vec<FieldError>> {
        let old: Vec<u16> = list(before, "ports").iter().filter_map(|p| port_number(&p["nodePort"])).collect();
        let wanted = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        let automatic = needs_node_port(spec);
        let mut now: Vec<u16> = Vec::new();
        if let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut).filter(|_| wanted) {
            for (i, port) in ports.iter_mut().enumerate() {
                let own = port["nodePort"].as_u64().unwrap_or(0);
                if own == 0 && !automatic {
                    continue;
                }
                let number = match u16::try_from(own) {
                    Ok(0) => {
                        let number = self.next_port(picks, reservation)?;
                        port["nodePort"] = number.into();
                        number
                    }
                    Ok(number) if old.contains(&number) || now.contains(&number) => number,
                    _ => self.take_port(own, i, reservation)?,
                };
                now.push(number);
            }
        }
        reservation.freed.extend(old.into_iter().filter(|p| !now.contains(p)).map(Held::Port));
        Ok(())
    }

    fn take_port(&mut self, asked: u64, index: usize, reservation: &mut Reservation) -> Result<u16, Vec<FieldError>> {
        let owner = reservation.owner.clone().unwrap_or_else(|| "".into());
        let port = self
            .ports
            .allocate(asked, &owner)
            .map_err(|why| vec![FieldError::invalid(format!("spec.ports[{index}].nodePort"), asked, why)])?;
        reservation.taken.push(Held::Port(port));
        Ok(port)
    }

    fn next_port(&mut self, picks: &mut Picks, reservation: &mut Reservation) -> Result<u16, Vec<FieldError>> {
        let owner = reservation.owner.clone().unwrap_or_else(|| "".into());
        let port = self.ports.allocate_next(picks.next(), &owner).ok_or_else(|| {
            let detail = "failed to allocate a nodePort: range is full";
            vec![FieldError::new(ErrorKind::Internal, "spec.ports", "", detail)]
        })?;
        reservation.taken.push(Held::Port(port));
        Ok(port)
    }

    fn health_check_port(
        &mut self,
        before: Option<&Value>,
        spec: &mut Value,
        picks: &mut Picks,
        reservation: &mut Reservation,
    ) -> Result<(), Vec<FieldError>> {
        let had = before.is_some_and(needs_health_check);
        match (had, needs_health_check(spec)) {
            (false, true) => {
                let asked = spec["healthCheckNodePort"].as_u64().unwrap_or(0);
                if asked == 0 {
                    spec["healthCheckNodePort"] = self.next_port(picks, reservation)?.into();
                } else {
                    let owner = reservation.owner.clone().unwrap_or_else(|| "".into());
                    let port = self.ports.allocate(asked, &owner).map_err(|why| {
                        let detail = format!("failed to allocate requested HealthCheck NodePort {asked}: {why}");
                        vec![FieldError::new(ErrorKind::Internal, "spec.healthCheckNodePort", "", detail)]
                    })?;
                    reservation.taken.push(Held::Port(port));
                }
            }
            (true, false) => {
                let port = before.and_then(|b| port_number(&b["healthCheckNodePort"]));
                reservation.freed.extend(port.map(Held::Port));
                // The client did not touch it, so it goes with the need for it.
                if let (Some(before), Some(map)) = (before, spec.as_object_mut())
                    && map.get("healthCheckNodePort") == before.get("healthCheckNodePort")
                {
                    map.remove("healthCheckNodePort");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The write is durable: what the old object held and the new one does not is free again.
    pub fn commit(&mut self, reservation: Reservation) {
        self.free(&reservation.freed, reservation.owner.as_deref());
    }

    /// The write failed (or was a dry run): what it took is free again.
    pub fn rollback(&mut self, reservation: Reservation) {
        self.free(&reservation.taken, reservation.owner.as_deref());
    }

    /// The Service is gone.
    pub fn release(&mut self, service: &Value) {
        self.free(&held(service), Some(&owner_of(service)));
    }

    /// Only the holder can give something back: a Service adopted in conflict never held it.
    fn free(&mut self, held: &[Held], owner: Option<&str>) {
        let owner = owner.unwrap_or_default();
        for held in held {
            match held {
                Held::Address(ip) => self.pools.iter_mut().for_each(|p| p.release(ip, owner)),
                Held::Port(port) => self.ports.release(*port, owner),
            }
        }
    }
}

#[cfg(test)]
mod tests;
