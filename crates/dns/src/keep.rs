//! The last good state on disk, so that a restart answers at once, with the API server away too. Kept are API objects,
//! one JSON document a line, with those fields that names depend on; reading them goes through the one parser there is.

use std::{
    fs, io,
    io::{BufRead, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use model::{
    Addressing, EndpointSlice, Kind, Pod, Service, Snapshot,
    parse::{self, Parser},
};
use serde_json::{Value, json};

/// The first line: what this is, and its version.
const HEAD: &str = r#"{"portolan":"dns snapshot","version":1}"#;

/// Writes all of it, then puts it in the place of what was there.
pub fn write(snapshot: &Snapshot, path: &Path) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut to = BufWriter::new(fs::File::create(&unfinished)?);
    let mut line = |value: Value| writeln!(to, "{value}");
    line(serde_json::from_str(HEAD)?)?;
    for key in snapshot.namespaces.keys() {
        line(json!({"kind": "Namespace", "metadata": {"name": &*key.name}}))?;
    }
    for node in snapshot.nodes.values() {
        let cidrs: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        let addresses: Vec<_> = node.addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        line(json!({
            "kind": "Node", "metadata": {"name": &*node.meta.key.name},
            "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses},
        }))?;
    }
    snapshot.services.values().try_for_each(|s| line(service(s)))?;
    snapshot.slices.values().flat_map(|s| s.iter()).try_for_each(|s| line(slice(s)))?;
    snapshot.pods.values().filter(|p| !p.terminal() && !p.ips.is_empty()).try_for_each(|p| line(pod(p)))?;
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(unfinished, path)
}

fn metadata(meta: &model::Meta) -> Value {
    json!({"name": &*meta.key.name, "namespace": &*meta.key.namespace})
}

fn service(s: &Service) -> Value {
    let ports = s.ports.iter().map(|p| json!({"name": &*p.name, "protocol": p.protocol.as_str(), "port": p.port}));
    let mut spec = json!({"ports": ports.collect::<Vec<_>>(), "publishNotReadyAddresses": s.publish_not_ready});
    match &s.addressing {
        Addressing::ClusterIp(ips) => {
            spec["clusterIP"] = json!(ips.first());
            spec["clusterIPs"] = json!(ips);
        }
        Addressing::Headless => {
            spec["clusterIP"] = "None".into();
            spec["clusterIPs"] = json!(["None"]);
        }
        Addressing::ExternalName(target) => {
            spec["type"] = "ExternalName".into();
            spec["externalName"] = (&**target).into();
        }
    }
    if let Some(selector) = &s.selector {
        spec["selector"] = selector.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect();
    }
    json!({"kind": "Service", "metadata": metadata(&s.meta), "spec": spec})
}

fn slice(s: &EndpointSlice) -> Value {
    let mut meta = metadata(&s.meta);
    meta["labels"] = json!({"kubernetes.io/service-name": &*s.service.name});
    let endpoints = s.endpoints.iter().map(|e| {
        let mut endpoint = json!({
            "addresses": &e.addresses,
            "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
        });
        if let Some(hostname) = &e.hostname {
            endpoint["hostname"] = (&**hostname).into();
        }
        if let Some(pod) = &e.pod {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": &*pod.name, "namespace": &*pod.namespace});
        }
        endpoint
    });
    let endpoints: Vec<_> = endpoints.collect();
    let ports = s.ports.iter().map(|p| {
        let mut port = json!({"name": &*p.name, "protocol": p.protocol.as_str()});
        if let Some(number) = p.port {
            port["port"] = number.into();
        }
        port
    });
    let family = match s.address_type {
        model::AddressType::V4 => "IPv4",
        model::AddressType::V6 => "IPv6",
        model::AddressType::Fqdn => "FQDN",
    };
    json!({
        "kind": "EndpointSlice", "metadata": meta, "addressType": family,
        "ports": ports.collect::<Vec<_>>(), "endpoints": endpoints,
    })
}

fn pod(p: &Pod) -> Value {
    let ips: Vec<_> = p.ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"kind": "Pod", "metadata": metadata(&p.meta), "spec": {}, "status": {"phase": "Running", "podIPs": ips}})
}

/// What an earlier process left, with everything listed.
pub fn read(path: &Path) -> io::Result<Snapshot> {
    let invalid = |line: usize| io::Error::new(io::ErrorKind::InvalidData, format!("line {line} is not understood"));
    let mut lines = io::BufReader::new(fs::File::open(path)?).lines();
    if lines.next().transpose()?.as_deref() != Some(HEAD) {
        return Err(invalid(1));
    }
    let (mut snapshot, mut parser) = (Snapshot::default(), Parser::default());
    for (i, line) in lines.enumerate() {
        let object: Value = serde_json::from_str(&line?).map_err(|_| invalid(i + 2))?;
        put(&mut snapshot, &mut parser, &object).ok_or_else(|| invalid(i + 2))?;
    }
    Kind::ALL.iter().for_each(|kind| snapshot.mark_listed(*kind));
    Ok(snapshot)
}

fn put(snapshot: &mut Snapshot, parser: &mut Parser, object: &Value) -> Option<()> {
    let key = parse::key(object)?;
    match object["kind"].as_str()? {
        "Namespace" => _ = snapshot.namespaces.insert(key, Arc::new(parser.namespace(object).0?)),
        "Node" => _ = snapshot.nodes.insert(key, Arc::new(parser.node(object).0?)),
        "Service" => _ = snapshot.services.insert(key, Arc::new(parser.service(object).0?)),
        "EndpointSlice" => snapshot.put_slice(Arc::new(parser.endpoint_slice(object).0?), None),
        "Pod" => _ = snapshot.pods.insert(key, Arc::new(parser.pod(object).0?)),
        _ => return None,
    }
    Some(())
}
