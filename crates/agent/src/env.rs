//! The environment of a container: its own variables, what it takes from ConfigMaps, Secrets and its own pod, and the
//! variables that describe Services (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
//! Fetching is the caller's: this module is told what the references hold.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use model::{Addressing, ObjectKey, Service, Snapshot};

/// The contents of the ConfigMaps and Secrets a container refers to; `None` for one that does not exist.
#[derive(Debug, Default)]
pub struct References {
    pub config_maps: BTreeMap<String, Option<BTreeMap<String, String>>>,
    pub secrets: BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
}

/// What is known of the pod only now that it runs.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    pub pod_ips: Vec<IpAddr>,
    pub host_ips: Vec<IpAddr>,
}

/// Names of the ConfigMaps and Secrets the container's variables need.
pub fn referenced(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The variables in order. The error is kubelet's message for `CreateContainerConfigError`.
pub fn variables(
    pod: &Pod,
    container: &Container,
    references: &References,
    runtime: &Runtime,
    services: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, String> {
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            match references.config_maps.get(&r.name).and_then(Option::as_ref) {
                Some(data) => out.extend(data.iter().map(|(k, v)| (format!("{prefix}{k}"), v.clone()))),
                None if r.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", r.name)),
            }
        }
        if let Some(r) = &from.secret_ref {
            match references.secrets.get(&r.name).and_then(Option::as_ref) {
                Some(data) => out.extend(data.iter().map(|(k, v)| (format!("{prefix}{k}"), text(v)))),
                None if r.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", r.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) if !value.is_empty() => {
                Some(expand(value, |name| out.get(name).or_else(|| services.get(name)).cloned()))
            }
            (_, Some(source)) => from_source(pod, container, namespace, source, references, runtime)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            out.insert(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        out.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(out.into_iter().collect())
}

/// `None`: the variable is left out (an optional reference that does not exist).
fn from_source(
    pod: &Pod,
    container: &Container,
    namespace: &str,
    source: &EnvVarSource,
    references: &References,
    runtime: &Runtime,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, runtime).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        let divisor = resource.divisor.as_ref().map_or("1", |d| d.0.as_str());
        return crate::spec::resource_value(container, &resource.resource, divisor).map(Some);
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        return match references.config_maps.get(&r.name).and_then(Option::as_ref) {
            Some(data) => match data.get(&r.key) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", r.key, r.name)),
            },
            None if optional => Ok(None),
            None => Err(format!("configmap {:?} not found", r.name)),
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        return match references.secrets.get(&r.name).and_then(Option::as_ref) {
            Some(data) => match data.get(&r.key) {
                Some(value) => Ok(Some(text(value))),
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in Secret {namespace}/{}", r.key, r.name)),
            },
            None if optional => Ok(None),
            None => Err(format!("secret {:?} not found", r.name)),
        };
    }
    Ok(Some(String::new()))
}

fn text(bytes: &[u8]) -> String {
    // An environment cannot hold a zero byte; whoever needs binary data mounts the Secret.
    String::from_utf8_lossy(bytes).replace('\0', "")
}

/// A field of the downward API, by its path.
pub fn field_value(pod: &Pod, path: &str, runtime: &Runtime) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned);
    let lookup = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    let all = |map: &Option<BTreeMap<String, String>>| {
        map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    if let Some(key) = subscript("metadata.labels") {
        return Ok(lookup(&meta.labels, &key));
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Ok(lookup(&meta.annotations, &key));
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => all(&meta.labels),
        "metadata.annotations" => all(&meta.annotations),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into())
        }
        "status.podIP" => first(&runtime.pod_ips),
        "status.podIPs" => join(&runtime.pod_ips),
        "status.hostIP" => first(&runtime.host_ips),
        "status.hostIPs" => join(&runtime.host_ips),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

/// `$(NAME)` becomes the value, `$$(NAME)` the text `$(NAME)`; a name that is unknown stays as it is written.
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables of the namespace's Services, and always those of `default/kubernetes`. Only Services with a cluster
/// address have any: not the headless, not the external.
pub fn service_variables(snapshot: &Snapshot, namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    if links {
        for service in snapshot.services_in(namespace) {
            describe(&mut out, service);
        }
    }
    if let Some(master) = snapshot.services.get(&ObjectKey::new("default", "kubernetes")) {
        describe(&mut out, master);
    }
    out
}

/// Seven variables for a Service with one unnamed port, four more for each further port, one more for each name.
fn describe(out: &mut BTreeMap<String, String>, service: &Service) {
    let Addressing::ClusterIp(ips) = &service.addressing else { return };
    let (Some(ip), Some(first)) = (ips.first(), service.ports.first()) else { return };
    let name = variable_name(&service.meta.key.name);
    out.insert(format!("{name}_SERVICE_HOST"), ip.to_string());
    out.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in &service.ports {
        if !port.name.is_empty() {
            out.insert(format!("{name}_SERVICE_PORT_{}", variable_name(&port.name)), port.port.to_string());
        }
        let protocol = port.protocol.as_str();
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        let protocol = protocol.to_ascii_lowercase();
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let url = format!("{protocol}://{host}:{}", port.port);
        if std::ptr::eq(port, first) {
            out.insert(format!("{name}_PORT"), url.clone());
        }
        out.insert(prefix.clone(), url);
        out.insert(format!("{prefix}_PROTO"), protocol);
        out.insert(format!("{prefix}_PORT"), port.port.to_string());
        out.insert(format!("{prefix}_ADDR"), ip.to_string());
    }
}

fn variable_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests;
